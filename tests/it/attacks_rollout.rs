//! `switchback rollout` on records that somebody edited: said in a line, ended by `abort --keep`, and the next one begins.

use crate::cli::{FAILED, Mail, OK, REFUSED};

const KEY: &str = "sb:rollout:{shop:mail}";

async fn raw(mail: &Mail, args: &[&str]) {
    mail.server.cli(args).await;
}

// P8: whatever is in the record, the gate stays, there is a way out, and the next rollout begins.
#[tokio::test]
async fn a_record_that_somebody_edited_can_be_ended_and_the_next_one_begins() {
    let mail = Mail::with_worker().await;
    let long = "9".repeat(400);
    for edit in [
        vec!["HSET", KEY, "serial", "007"],
        vec!["HSET", KEY, "serial", "1e300"],
        vec!["HSET", KEY, "serial", "18446744073709551615"],
        vec!["HSET", KEY, "serial", &long],
        vec!["HSET", KEY, "id", "mine"],
        vec!["HSET", KEY, "at_us", "soon"],
        vec!["HSET", KEY, "spec", "[1"],
        vec!["HSET", KEY, "spec", r#"{"steps":[]}"#],
        vec!["HSET", KEY, "step", "99"],
        vec!["HSET", KEY, "next_block", "18446744073709551615"],
        vec!["HSET", KEY, "status", "flying"],
        vec!["HSET", KEY, "from", ":x"],
        vec!["HSET", KEY, "guard", "\u{7}null", "events", "no line\n\n1 \n"],
        vec!["HDEL", KEY, "to", "from", "status"],
        vec!["SET", KEY, "a string"],
    ] {
        mail.shell.run("rollout start mail --to v2 --steps 10,100").exits(OK);
        let before = mail.gate();
        raw(&mail, &edit).await;
        let told = mail.shell.run("rollout status mail").exits(FAILED);
        told.tells("abort --keep");
        mail.shell.run("queue show mail").exits(OK);
        mail.shell.run("rollout abort mail --keep").exits(OK);
        assert_eq!(mail.gate(), before, "{edit:?}");
        mail.set("candidate= percent=0");
    }
    mail.shell.run("rollout start mail --to v2").exits(OK);
}

// A gate that was set otherwise while nobody drove, or was lost and begun anew: the rollout is over, and whoever ends it finds
// the gate as it was set. It was refused, and so was the next start.
#[tokio::test]
async fn what_nobody_saw_overruled_can_be_aborted() {
    let mail = Mail::with_worker().await;
    for (key, edit) in [
        (
            "sb:gate:{shop:mail}",
            &["HSET", "sb:gate:{shop:mail}", "percent", "33"][..],
        ),
        ("sb:gatestate:{shop:mail}", &["DEL", "sb:gatestate:{shop:mail}"][..]),
    ] {
        mail.shell.run("rollout start mail --to v2 --steps 10,100").exits(OK);
        raw(&mail, edit).await;
        if key.contains("state") {
            mail.shell.run("gate set mail active=v1 --force").exits(OK);
        }
        let before = mail.gate();
        mail.shell.run("queue show mail").exits(OK).says("rollout abort mail");
        mail.shell.run("rollout promote mail").exits(REFUSED);
        mail.shell
            .run("rollout status mail")
            .exits(OK)
            .tells("was set otherwise")
            .tells("`switchback rollout abort mail` does");
        mail.shell
            .run("rollout abort mail")
            .exits(OK)
            .tells("was set otherwise")
            .tells("the gate stays as it is");
        assert_eq!(mail.gate(), before, "{key}");
        mail.set("candidate= percent=0");
    }
    mail.shell.run("rollout start mail --to v2").exits(OK);
}

// P10: a question of another type keeps nobody from asking.
#[tokio::test]
async fn a_readiness_question_of_another_type_is_nobodys() {
    let mail = Mail::with_worker().await;
    raw(&mail, &["SET", "sb:probe:{shop:mail}", "x"]).await;
    let told = mail.shell.run("gate check mail --to v2");
    assert!(!told.stderr.contains("WRONGTYPE"), "{}", told.stderr);
}

// What a record is without some of its numbers goes on; the time of a bake is not what passed since 1970.
#[tokio::test]
async fn without_the_time_of_the_last_look_no_time_has_passed() {
    let mail = Mail::with_worker().await;
    mail.shell.run("rollout start mail --to v2 --steps 10,100").exits(OK);
    raw(&mail, &["HDEL", KEY, "looked_us"]).await;
    let status = mail.shell.json("rollout status mail");
    assert_eq!(status["status"], "running");
    mail.shell.run("rollout pause mail").exits(OK);
    let store = switchback_common::store::rollout::RolloutStore::new(&mail.store, &mail.queue);
    let record = switchback_gates::rollout::Record::parse(&store.read().await.unwrap().0)
        .unwrap()
        .unwrap();
    assert!(record.baked_us < 3_600_000_000, "{}", record.baked_us);
}
