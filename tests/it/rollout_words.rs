//! What an operator is told of a rollout: what happened, and what to do next.

use serde_json::{Value, json};
use switchback_common::store::rollout::{RolloutStore, Stepped};
use switchback_gates::rollout::{Action, Record, Setting, plan};

use crate::cli::{Mail, OK, REFUSED, UNCONFIRMED, USAGE};

const START: &str = "rollout start mail --to v2";

/// What a driver does.
async fn drive(mail: &Mail, action: Action) {
    let store = RolloutStore::new(&mail.store, &mail.queue);
    let (fields, now_us) = store.read().await.unwrap();
    let record = Record::parse(&fields).unwrap().unwrap();
    let setting = Setting {
        now_us,
        rev: mail.rev(),
        entry: store.version_entry(&record.to).await.unwrap(),
        task_type: "mail".to_owned(),
        ..Setting::default()
    };
    let stepped = store.step(&plan(&record, &action, &setting)).await.unwrap();
    assert!(matches!(stepped, Stepped::Yes { .. }), "{stepped:?}");
}

/// Ten minutes in which 10 tasks per second of about 2 s each ended, as the workers of `shop/mail` would have counted them.
async fn busy(mail: &Mail) {
    let time = mail.server.cli(&["TIME"]).await;
    let (secs, _): (String, String) = redis::from_redis_value(time).unwrap();
    let minute = secs.parse::<u64>().unwrap() / 60;
    for n in minute - 10..minute {
        let key = format!("sb:stats:{{shop:mail}}:{n}");
        mail.server
            .cli(&["HSET", &key, "v1:done", "600", "v1:le_3000", "600"])
            .await;
    }
}

#[tokio::test]
async fn who_promotes_what_the_guard_has_not_passed_is_on_record() {
    let mail = Mail::with_worker().await;
    mail.shell.run(&format!("{START} --steps 10,100")).exits(OK);
    let passed_over =
        "the guard had not passed step 1: insufficient: 0 of 300 attempts of the candidate in whole blocks";
    mail.shell
        .run("rollout promote mail --by pat")
        .exits(OK)
        .tells(&format!("promoted by pat: v2 is active, and watched on; {passed_over}"))
        .says(passed_over);
    let newest = &mail.shell.json("gate history mail")[0];
    assert_eq!(
        (&newest["source"], &newest["forced"]),
        (&json!("rollout"), &json!(passed_over))
    );
    assert!(
        newest["why"].as_str().unwrap().starts_with("promoted by pat: "),
        "{newest}"
    );
}

#[tokio::test]
async fn who_is_in_the_way_and_how_to_get_past() {
    let mail = Mail::with_worker().await;
    mail.shell.run("version retire mail v2 --force").exits(OK);
    mail.shell
        .run(START)
        .exits(REFUSED)
        .tells("v2 is retired; bring it back first: `switchback version restore mail v2`");
    mail.shell.run("version restore mail v2").exits(OK);
    mail.shell.run(&format!("{START} --by pat --why release-2")).exits(OK);
    mail.shell
        .run(START)
        .exits(REFUSED)
        .tells("the rollout of v2 is running, begun now by pat (release-2): see `switchback rollout status mail`");
}

#[tokio::test]
async fn what_cannot_be_meant_is_a_usage_error_wherever_it_stands() {
    let mail = Mail::with_worker().await;
    let file = |text: &str| std::fs::write(mail.shell.dir.path().join("r.toml"), text).unwrap();
    for steps in ["50,10", "10,10", "10,150", "0,10", "ten"] {
        mail.shell.run(&format!("{START} --steps {steps}")).exits(USAGE);
    }
    for flag in [
        "--bake 8d",
        "--bake soon",
        "--min-samples 0",
        "--margin 60",
        "--watch 31d",
    ] {
        mail.shell.run(&format!("{START} {flag}")).exits(USAGE);
    }
    for text in ["steps = [50, 10]", "steps = [10, 150]", "bake = '8d'", "nonsense = 1"] {
        file(text);
        mail.shell.run(&format!("{START} --file r.toml")).exits(USAGE);
    }
    // What lies in Redis is no mistake of the command line, unless it mends it.
    for policy in [r#"{"steps":[50,10]}"#, r#"{"stepz":[7]}"#] {
        mail.server
            .cli(&["HSET", "sb:policy:{shop:mail}", "rollout", policy])
            .await;
        mail.shell
            .run(START)
            .exits(REFUSED)
            .tells("the policy of shop/mail for rollouts makes no sense");
    }
    mail.server
        .cli(&["HSET", "sb:policy:{shop:mail}", "rollout", r#"{"steps":[50,10]}"#])
        .await;
    mail.shell.run(&format!("{START} --steps 10,50 --dry-run")).exits(OK);
    assert_eq!(mail.rev(), 1);
}

#[tokio::test]
async fn what_is_over_says_where_that_leaves_the_gate_and_what_comes_next() {
    let mail = Mail::with_worker().await;
    mail.shell.run(START).exits(OK);
    mail.shell
        .run("rollout pause mail --why lunch")
        .exits(OK)
        .says("STATUS   paused at 1 % by alice (lunch)\n")
        .says("NEXT     switchback rollout resume mail\n");
    mail.shell
        .run("rollout pause mail")
        .exits(REFUSED)
        .tells("is paused at 1 % by alice (lunch): it cannot be paused");
    mail.shell
        .run("gate set mail percent=7 --dry-run")
        .exits(OK)
        .tells("this would end the rollout of v2: nobody guards what the gate gives it");
    let set = mail.shell.run("gate set mail percent=7 -o json").exits(OK);
    let set = set.tells("WARNING: this ends the rollout of v2: nobody guards what the gate gives it");
    assert_eq!(set.json()["warnings"].as_array().unwrap().len(), 1);
    drive(&mail, Action::Overruled { by: "alice".to_owned() }).await;
    mail.shell
        .run("rollout status mail")
        .exits(OK)
        .says("STATUS   overruled: the gate was set otherwise by alice\n")
        .says("NEXT     switchback gate rollback mail\n");
    mail.shell
        .run("rollout abort mail")
        .exits(REFUSED)
        .tells(
            "is over (overruled: the gate was set otherwise by alice): it cannot be aborted. The gate is v1, v2 at 7 %",
        )
        .tells("`switchback gate rollback mail` goes back");
    mail.set("percent=0 candidate=");
    mail.shell.run(START).exits(OK);
    mail.shell
        .run("gate rollback mail")
        .exits(OK)
        .tells("this ends the rollout of v2\n");
    mail.shell.run("gate pause mail").exits(OK);
}

#[tokio::test]
async fn what_the_guard_rolled_back_names_the_next_commands_apart() {
    let mail = Mail::with_worker().await;
    mail.shell.run(START).exits(OK);
    let evidence = json!({ "test": "failure", "n_active": 900, "failed_active": 9, "n_candidate": 100, "failed_candidate": 30,
        "e_value": 1e6, "threshold": 500.0, "allowed": 0.005 });
    let evidence = serde_json::from_value(evidence).unwrap();
    drive(&mail, Action::Rollback { evidence }).await;
    let ran = mail.shell.run("rollout status mail").exits(OK);
    let ran = ran
        .says("STATUS   rolled back to v1: failure: v2 30/100")
        .says("\nNEXT     switchback gate blast mail --version v2 --certificate\n")
        .says("\n         switchback dead requeue mail --version v2 --since-flip --refund --dry-run\n");
    assert_eq!(ran.stdout.matches("switchback dead requeue").count(), 1, "{ran:?}");
    let log = mail.shell.run("queue log mail --kind rollout").exits(OK);
    log.says("attempts given back: switchback dead requeue");
}

#[tokio::test]
async fn steps_that_nobody_could_carry_are_told() {
    let mail = Mail::with_worker().await;
    busy(&mail).await;
    // 20 slots' worth of tasks, and its worker has 8: enough for 10 %, not for 50, and for 100 not by far.
    let begun = mail
        .shell
        .run(&format!("{START} --steps 10,50,100 -o json"))
        .exits(OK)
        .tells("WARNING: step 2 of 3: for 50 % of 10.0 tasks/s of 2.0 s each v2 needs about 10 slots, and its live workers have 8");
    assert_eq!(
        begun.json()["short"],
        json!({"percent": 50.0, "needed": 10.0, "slots": 8})
    );
    mail.shell
        .run("rollout status mail")
        .exits(OK)
        .says("SLOTS    too few slots: for 50 % of 10.0 tasks/s");
    mail.join(&["v2"], 4712).await;
    assert_eq!(mail.shell.json("rollout status mail")["short"], Value::Null);
    mail.shell
        .run("rollout promote mail")
        .exits(OK)
        .says("SLOTS    too few slots: for 100 %");
    mail.shell.run("rollout abort mail").exits(OK);
    assert_eq!(mail.shell.json("rollout status mail")["short"], Value::Null);
}

// P9: what is committed is not told as if it were not: whoever reads "refused" or "failed" does it again.
#[tokio::test]
async fn a_look_that_fails_after_a_step_says_that_the_step_was_made() {
    let mail = Mail::with_worker().await;
    // May do everything but ask who drives.
    mail.server
        .cli(&["ACL", "SETUSER", "default", "on", "nopass", "~*", "+@all", "-get"])
        .await;
    mail.shell
        .run(&format!("{START} --steps 10,100"))
        .exits(UNCONFIRMED)
        .tells("revision 2: ");
    mail.shell
        .run("rollout pause mail")
        .exits(UNCONFIRMED)
        .tells("revision 2: ");
    mail.server.cli(&["ACL", "SETUSER", "default", "+get"]).await;
    mail.shell.run("rollout status mail").exits(OK).says("paused");
}
