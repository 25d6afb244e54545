//! `gate rollback|set --inflight`, `--drain`, and what `gate show` and `gate history` say of them, as an operator runs them.

use std::{process::Stdio, time::Duration};

use redis::Value as Reply;
use serde_json::json;
use switchback_tests::eventually;

use crate::cli::{Mail, OK, REFUSED, UNCONFIRMED, USAGE};

#[tokio::test]
async fn a_policy_is_carried_out_recorded_and_shown() {
    let mail = Mail::with_worker().await;
    mail.set("active=v2");
    mail.shell
        .run("gate rollback mail --inflight revoke --dry-run")
        .exits(OK)
        .says("v2 only -> v1 only, revoke what runs on withdrawn versions · dry run");
    let view = mail
        .shell
        .run("gate rollback mail --inflight revoke -o json")
        .exits(OK)
        .json();
    assert_eq!((&view["rev"], &view["inflight"]), (&json!(3), &json!("revoke")));
    let state = mail
        .server
        .cli(&["HMGET", "sb:gatestate:{shop:mail}", "stops", "min_rev:v2", "min_rev:v1"]);
    let three = || Reply::BulkString(b"3".to_vec());
    assert_eq!(state.await, Reply::Array(vec![three(), three(), Reply::Nil]));

    let history = mail.shell.json("gate history mail");
    let policies: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["inflight"].clone())
        .collect();
    assert_eq!(policies, ["revoke", "finish", "finish"]);
    mail.shell
        .run("gate history mail")
        .exits(OK)
        .says("active v2 -> v1, revoke what ran");
    assert_eq!(mail.shell.json("gate show mail")["changed"]["inflight"], "revoke");
    mail.shell
        .run("gate show mail")
        .exits(OK)
        .says("by alice (cli), revoke what ran");
}

#[tokio::test]
async fn what_an_earlier_flip_let_finish_can_be_stopped_without_another_change() {
    let mail = Mail::with_worker().await;
    let ran = mail.shell.run("gate set mail --inflight cancel -o json").exits(OK);
    let view = ran.json();
    assert_eq!(
        (&view["rev"], &view["changed"], &view["before"]),
        (&json!(2), &json!(true), &view["after"])
    );
    mail.shell
        .run("gate rollback mail --to v1 --inflight revoke")
        .exits(OK)
        .says("v1 active at revision 3");
    mail.shell
        .run("gate set mail --inflight revoke --if-rev 2")
        .exits(REFUSED);
    assert_eq!(mail.rev(), 3);
    for line in [
        "gate set mail inflight=revoke",
        "gate set mail --inflight",
        "gate set mail --inflight later",
        "gate pause mail --inflight revoke",
        "gate set mail",
    ] {
        mail.shell.run(line).exits(USAGE);
    }
    mail.shell
        .run("gate set mail inflight=revoke")
        .exits(USAGE)
        .tells("--inflight finish|cancel|revoke");
}

// Workers of a release without policies let everything finish: whoever asks for more is told.
#[tokio::test]
async fn workers_of_an_older_release_are_named() {
    let mail = Mail::with_worker().await;
    let old = mail.join(&["v1", "v2"], 815).await;
    let record = json!({ "host": "old-1", "pid": 815, "build": "b0", "versions": ["v1", "v2"], "concurrency": 1, "started_ms": 0 });
    let sessions = "sb:sessions:{shop:mail}";
    mail.server
        .cli(&["HSET", sessions, old.as_str(), &record.to_string()])
        .await;
    mail.shell
        .run("gate set mail active=v2 --inflight cancel")
        .exits(OK)
        .tells("1 of 2 live workers of an older release: what runs there finishes")
        .tells("old-1/815");
    let view = mail
        .shell
        .run("gate rollback mail --inflight revoke -o json")
        .exits(OK)
        .json();
    assert_eq!(view["warnings"].as_array().unwrap().len(), 1);
    let silent = mail.shell.run("gate rollback mail -o json").exits(OK).json();
    assert_eq!(silent["warnings"], json!([]));
}

#[tokio::test]
async fn drain_returns_when_nothing_runs_on_what_was_withdrawn() {
    let mail = Mail::with_worker().await;
    let session = mail.sessions().list().await.unwrap()[0].id.clone();
    mail.set("active=v2");
    mail.confirm(&session, 2, r#"{"v2":3}"#).await;
    let line = ["gate", "rollback", "mail", "--drain", "--timeout", "60s"];
    let mut command = mail.shell.command(&line);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the rollback is sealed", Duration::from_secs(10), async || {
        mail.server.cli(&["HGET", "sb:gatestate:{shop:mail}", "rev"]).await == Reply::BulkString(b"3".to_vec())
    })
    .await;
    // Old news is none: only what is said under the new revision counts.
    mail.confirm(&session, 2, "{}").await;
    mail.confirm(&session, 3, r#"{"v1":9,"v2":2}"#).await;
    mail.confirm(&session, 3, r#"{"v1":9}"#).await;
    let output = child.wait_with_output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(OK), "{line}");
    assert!(line.starts_with("v1 active at revision 3 · 1/1 worker in "), "{line}");
    assert!(line.contains(" · v2 drained in "), "{line}");
    assert!(
        output.stderr.iter().all(|byte| *byte != 0x1b),
        "no progress without a terminal"
    );

    let view = mail.shell.run("gate rollback mail --drain -o json").exits(OK).json();
    let drain = &view["confirmation"]["drain"];
    assert_eq!((&drain["drained"], &drain["still"]), (&json!(true), &json!([])));
    mail.shell
        .run("gate rollback mail --drain")
        .exits(OK)
        .says("nothing was left to drain");
    assert_eq!(
        mail.shell.run("gate rollback mail --wait -o json").exits(OK).json()["confirmation"]["drain"],
        json!(null)
    );
}

#[tokio::test]
async fn a_drain_that_takes_too_long_names_who_still_runs_what() {
    let mail = Mail::with_worker().await;
    let session = mail.sessions().list().await.unwrap()[0].id.clone();
    let lost = mail.join(&["v1", "v2"], 815).await;
    mail.join(&["v1"], 816).await; // it has nothing that could be withdrawn
    mail.set("active=v2");
    mail.confirm(&session, 99, r#"{"v1":1,"v2":2}"#).await;
    // Its lease is gone and nobody has recovered its tasks: whether it still runs, nobody knows.
    mail.server
        .cli(&["DEL", &format!("sb:lease:{{shop:mail}}:{lost}")])
        .await;
    let ran = mail
        .shell
        .run("gate rollback mail --drain --timeout 50ms -o json")
        .exits(UNCONFIRMED);
    let drain = &ran.json()["confirmation"]["drain"];
    assert_eq!(drain["drained"], false);
    let still: Vec<_> = drain["still"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            (
                s["pid"].clone(),
                s["version"].clone(),
                s["attempts"].clone(),
                s["state"].clone(),
            )
        })
        .collect();
    assert!(
        still.contains(&(json!(4711), json!("v2"), json!(2), json!("running"))),
        "{still:?}"
    );
    assert!(
        still.contains(&(json!(815), json!("v2"), json!(null), json!("lost"))),
        "{still:?}"
    );
    assert_eq!(still.len(), 2, "{still:?}");
}

// A pause withdraws nothing, but nothing starts: its drain waits for everything that runs.
#[tokio::test]
async fn a_pause_drains_everything() {
    let mail = Mail::with_worker().await;
    let session = mail.sessions().list().await.unwrap()[0].id.clone();
    mail.confirm(&session, 99, r#"{"v1":1}"#).await;
    mail.shell
        .run("gate pause mail --drain --timeout 50ms")
        .exits(UNCONFIRMED)
        .says("1 attempt of v1 still running")
        .tells("committed, but not confirmed: not drained within 50ms at revision 2: web-3/4711 (1 attempt of v1");
    mail.confirm(&session, 99, "{}").await;
    mail.shell
        .run("gate pause mail --drain")
        .exits(OK)
        .says("v1 drained in ");
    mail.confirm(&session, 99, r#"{"v1":1}"#).await;
    mail.shell
        .run("gate resume mail --drain")
        .exits(OK)
        .says("nothing was left to drain");
}
