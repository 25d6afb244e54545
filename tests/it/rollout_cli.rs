//! `switchback rollout`, as an operator runs it.

use serde_json::{Value, json};
use switchback_common::store::rollout::{RolloutStore, Stepped};
use switchback_gates::rollout::{Action, Record, Setting, plan};

use crate::cli::{FAILED, Mail, NOT_FOUND, OK, REFUSED, UNCONFIRMED, USAGE};

const START: &str = "rollout start mail --to v2";

fn status(mail: &Mail) -> Value {
    mail.shell.json("rollout status mail")
}

/// What a guard that has seen enough does.
async fn guard_rolls_back(mail: &Mail) {
    let store = RolloutStore::new(&mail.store, &mail.queue);
    let record = Record::parse(&store.read().await.unwrap().0).unwrap().unwrap();
    let setting = Setting {
        rev: mail.rev(),
        entry: store.version_entry(&record.to).await.unwrap(),
        ..Setting::default()
    };
    let evidence = json!({ "test": "failure", "n_active": 900, "failed_active": 9, "n_candidate": 100, "failed_candidate": 30,
        "e_value": 1e6, "threshold": 500.0, "allowed": 0.005 });
    let action = Action::Rollback {
        evidence: serde_json::from_value(evidence).unwrap(),
    };
    let stepped = store.step(&plan(&record, &action, &setting)).await.unwrap();
    assert!(matches!(stepped, Stepped::Yes { .. }), "{stepped:?}");
}

#[tokio::test]
async fn a_rollout_is_begun_paused_resumed_promoted_and_aborted() {
    let mail = Mail::with_worker().await;
    mail.shell
        .run("rollout status mail")
        .exits(NOT_FOUND)
        .tells("rollout start mail");
    let begun = mail
        .shell
        .run(&format!(
            "{START} --steps 5,50,100 --bake 5m --min-samples 10 --why faster -o json"
        ))
        .exits(OK)
        .tells("mail: v1 only -> v2 begins at 5 % beside v1 (step 1 of 3)")
        .json();
    assert_eq!(begun["status"], "running");
    assert_eq!(
        begun["steps"][0],
        json!({"percent": 5.0, "bake_us": 300_000_000u64, "min_samples": 10})
    );
    assert_eq!((&begun["by"], &begun["why"]), (&json!("alice"), &json!("faster")));
    assert_eq!(mail.gate()["percent"], 5.0);
    let table = mail.shell.run("rollout status mail").exits(OK);
    table
        .recent()
        .says("v1 -> v2, began now by alice: faster")
        .says("1 of 3: 5 %")
        .says("nobody yet")
        .says("failure");
    mail.shell
        .run("queue show mail")
        .exits(OK)
        .says("the rollout of v2 is running at 5 %");

    mail.shell
        .run("rollout pause mail --why lunch")
        .exits(OK)
        .tells("paused at 5 % by alice (lunch)");
    assert_eq!(status(&mail)["status"], "paused");
    mail.shell
        .run("rollout pause mail")
        .exits(REFUSED)
        .tells("is paused at 5 % by alice (lunch): it cannot be paused");
    mail.shell.run("rollout resume mail").exits(OK);
    mail.shell
        .run("rollout promote mail --dry-run")
        .exits(OK)
        .tells("dry run");
    assert_eq!(mail.gate()["percent"], 5.0);
    mail.shell.run("rollout promote mail").exits(OK).tells("50 %");
    assert_eq!(
        (&mail.gate()["percent"], &status(&mail)["step"]),
        (&json!(50.0), &json!(2))
    );
    mail.shell
        .run("rollout promote mail --all")
        .exits(OK)
        .tells("v2 is active, and watched on");
    assert_eq!(
        (&mail.gate()["active"], &status(&mail)["status"]),
        (&json!("v2"), &json!("watching"))
    );
    mail.shell.run("gate pause mail").exits(OK);
    mail.shell
        .run("rollout status mail")
        .exits(OK)
        .tells("is paused: nothing starts");
    mail.shell.run("gate resume mail").exits(OK);
    // Nobody is there to obey, and whoever asked learns it: --drain is --wait and more.
    mail.shell
        .run("rollout abort mail --drain --timeout 300ms")
        .exits(UNCONFIRMED)
        .tells("back to v1")
        .tells("committed, but not confirmed");
    assert_eq!(
        (&mail.gate()["active"], &status(&mail)["status"]),
        (&json!("v1"), &json!("aborted"))
    );
    mail.shell
        .run("rollout abort mail")
        .exits(REFUSED)
        .tells("is over (aborted by alice): it cannot be aborted");
    let sources: Vec<Value> = mail
        .shell
        .json("gate history mail")
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["source"].clone())
        .collect();
    assert_eq!(
        sources,
        ["rollout", "cli", "cli", "rollout", "rollout", "rollout", "seed"]
    );
}

#[tokio::test]
async fn abort_may_keep_the_gate() {
    let mail = Mail::with_worker().await;
    mail.shell.run(START).exits(OK);
    mail.shell
        .run("rollout abort mail --keep")
        .exits(OK)
        .tells("the gate stays as it is");
    assert_eq!(mail.gate()["candidate"], "v2");
}

// P8: what nobody can read changes nothing, is said, and can be ended.
#[tokio::test]
async fn a_record_that_was_edited_by_hand_is_ended() {
    let mail = Mail::with_worker().await;
    mail.shell.run(START).exits(OK);
    mail.server
        .cli(&["HSET", "sb:rollout:{shop:mail}", "spec", "{oops"])
        .await;
    mail.shell
        .run("rollout status mail")
        .exits(FAILED)
        .tells("rollout abort --keep");
    mail.shell.run("gate show mail").exits(OK);
    mail.shell
        .run("rollout abort mail --keep")
        .exits(OK)
        .tells("could not be read");
    assert_eq!(mail.gate()["candidate"], "v2");
    mail.server.cli(&["HDEL", "sb:rollout:{shop:mail}", "spec"]).await;
    mail.shell.run(&format!("{START} --force")).exits(OK);
}

#[tokio::test]
async fn what_speaks_against_a_start_is_said_and_changes_nothing() {
    let mail = Mail::with_worker().await;
    mail.join_and_leave(&["v3"]).await;
    let rev = mail.rev();
    for (line, why) in [
        (
            "rollout start mail --to v9",
            "unknown version v9; versions that ever joined: v1, v2, v3",
        ),
        ("rollout start mail --to v1", "v1 is the active version already"),
        ("rollout start mail --to v3", "no live worker has v3; --force"),
        ("rollout start mail --to v2 --if-rev 99", "is at revision"),
    ] {
        mail.shell.run(line).exits(REFUSED).tells(why);
    }
    for (line, why) in [
        ("rollout start mail --to v2 --steps 10,5", "5 % after 10 %"),
        ("rollout start mail --to v2 --steps 10,10", "more than the one before"),
        ("rollout start mail --to v2 --bake 8d", "7d"),
        ("rollout start mail --to v2 --margin 60", "failure_margin"),
        ("rollout start mail --to v2 --steps 10,101", "is not a percentage"),
        ("rollout start mail --to v2 --steps ten", "is not a percentage"),
        ("rollout start mail", "which version?"),
    ] {
        mail.shell.run(line).exits(USAGE).tells(why);
    }
    mail.shell.run("rollout start nowhere --to v2").exits(NOT_FOUND);
    assert_eq!(mail.rev(), rev);
    let would = mail
        .shell
        .run(&format!("{START} --dry-run -o json"))
        .exits(OK)
        .tells("v1 only -> v1, v2 at 1 %")
        .json();
    assert_eq!((&would["dry_run"], mail.rev()), (&json!(true), rev));
    mail.shell
        .run("rollout start mail --to v3 --force")
        .exits(OK)
        .tells("no live worker has v3; going on");
    let newest = mail
        .server
        .cli(&["XREVRANGE", "sb:history:{shop:mail}", "+", "-", "COUNT", "1"])
        .await;
    let newest: Vec<(String, Vec<String>)> = redis::from_redis_value(newest).unwrap();
    let at = newest[0].1.iter().position(|field| field == "forced").unwrap();
    assert_eq!(newest[0].1[at + 1], "no live worker has v3");
    mail.shell
        .run(START)
        .exits(REFUSED)
        .tells("the rollout of v3 is running");
    mail.shell.run("rollout abort mail").exits(OK);
    mail.set("candidate=v2 percent=10");
    mail.shell
        .run(START)
        .exits(REFUSED)
        .tells("v2 ramps already, at 10 %, set by hand; --force");
    let rev = mail.rev();
    mail.shell.run(&format!("{START} --force --if-rev {rev}")).exits(OK);
    assert_eq!(mail.gate()["percent"], 1.0);
}

#[tokio::test]
async fn what_was_rolled_back_is_not_tried_again_by_itself() {
    let mail = Mail::with_worker().await;
    mail.shell.run(START).exits(OK);
    guard_rolls_back(&mail).await;
    let view = status(&mail);
    assert_eq!(view["status"], "rolled_back");
    assert_eq!(view["evidence"]["failed_candidate"], 30);
    mail.shell
        .run("rollout status mail")
        .exits(OK)
        .says("rolled back to v1: failure: v2 30/100 (30.0 %) against v1 9/900 (1.0 %)");
    mail.shell.run("gate show mail").exits(OK).says("rolled back to v1");
    let flip = &mail.shell.json("gate history mail")[0];
    assert_eq!(
        flip["dropped"],
        Value::Null,
        "it asked for nothing that was dropped: {flip}"
    );
    mail.shell
        .run(START)
        .exits(REFUSED)
        .tells("the guard rolled this build of v2 back")
        .tells("--again");
    mail.shell.run(&format!("{START} --force")).exits(REFUSED);
    mail.shell.run(&format!("{START} --again")).exits(OK);
}

#[tokio::test]
async fn files_and_policies_say_what_flags_do_not() {
    let mail = Mail::with_worker().await;
    let write = |name: &str, text: &str| std::fs::write(mail.shell.dir.path().join(name), text).unwrap();
    write(
        "r.toml",
        "to = 'v2'\nsteps = [2, {percent = 20, bake = '1h'}, 100]\nbake = '10m'\n[guard]\nalpha = 0.02\n",
    );
    write("r.yaml", "to: v2\nsteps: [3, 30]\nbake: 10m\n");
    write("typo.toml", "to = 'v2'\nstep = [2]\n");
    write("typo.yaml", "to: v2\nstep: [2]\n");
    let began = |line: &str| {
        let view = mail.shell.run(&format!("{line} --dry-run -o json")).exits(OK).json();
        (view["steps"][0]["percent"].clone(), view["steps"][0]["bake_us"].clone())
    };
    assert_eq!(
        began("rollout start mail --file r.toml"),
        (json!(2.0), json!(600_000_000u64))
    );
    assert_eq!(
        began("rollout start mail --file r.yaml --bake 1m"),
        (json!(3.0), json!(60_000_000u64))
    );
    for file in ["typo.toml", "typo.yaml", "none.toml", "none.yaml"] {
        mail.shell
            .run(&format!("rollout start mail --file {file}"))
            .exits(USAGE)
            .tells(file);
    }
    mail.server
        .cli(&["HSET", "sb:policy:{shop:mail}", "rollout", r#"{"steps":[7,100]}"#])
        .await;
    assert_eq!(began(START).0, json!(7.0));
    mail.server
        .cli(&["HSET", "sb:policy:{shop:mail}", "rollout", r#"{"stepz":[7]}"#])
        .await;
    mail.shell.run(START).exits(REFUSED).tells("policy");
}

#[tokio::test]
async fn a_gate_set_by_hand_is_not_fought() {
    let mail = Mail::with_worker().await;
    mail.shell.run(START).exits(OK);
    mail.set("percent=33");
    mail.shell
        .run("rollout promote mail")
        .exits(REFUSED)
        .tells("was set otherwise");
    assert_eq!(mail.gate()["percent"], 33.0);
}
