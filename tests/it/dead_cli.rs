//! `switchback dead` and `queue limits` as an operator runs them; also interrupted and killed.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use switchback_tests::{Process, eventually, patience};

use crate::cli::{FAILED, Mail, NOT_FOUND, OK, REFUSED, USAGE};

const DEAD: &str = "sb:dead:{shop:mail}";
const MAIN: &str = "sb:stream:{shop:mail}";

impl Mail {
    /// Dead letters `order-<n>` under entry ids `<n>-0`, from 1.
    async fn die(&self, numbers: std::ops::RangeInclusive<u64>, reason: &str, version: &str, error: &str) {
        let mut connection = self.server.connection().await;
        let mut pipe = redis::pipe();
        for n in numbers {
            pipe.cmd("XADD").arg(DEAD).arg(format!("{n}-0"));
            pipe.arg("id")
                .arg(format!("order-{n}"))
                .arg("payload")
                .arg("{}")
                .arg("attempt")
                .arg(15);
            pipe.arg("dead_reason")
                .arg(reason)
                .arg("dead_version")
                .arg(version)
                .arg("dead_error")
                .arg(error);
        }
        let _: Vec<String> = pipe.query_async(&mut connection).await.unwrap();
    }

    async fn ids(&self, stream: &str) -> Vec<String> {
        let mut connection = self.server.connection().await;
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(stream).arg("-").arg("+");
        let entries: Vec<(String, std::collections::BTreeMap<String, String>)> =
            cmd.query_async(&mut connection).await.unwrap();
        entries.into_iter().map(|(_, fields)| fields["id"].clone()).collect()
    }

    fn start(&self, line: &str) -> Process {
        Process::spawn(&mut self.shell.command(&line.split(' ').collect::<Vec<_>>()))
    }

    /// Once some are requeued, and before all are.
    async fn half_way(&self) {
        eventually("some are requeued", patience(Duration::from_secs(20)), async || {
            self.ids(MAIN).await.len() > 20
        })
        .await;
    }
}

fn orders(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<String> {
    numbers.into_iter().map(|n| format!("order-{n}")).collect()
}

fn set(ids: Vec<String>) -> BTreeSet<String> {
    let count = ids.len();
    let set: BTreeSet<String> = ids.into_iter().collect();
    assert_eq!(set.len(), count, "nothing twice");
    set
}

#[tokio::test]
async fn filters_choose_and_a_dry_run_changes_nothing() {
    let mail = Mail::with_worker().await;
    mail.die(1..=30, "attempts", "v1", "smtp: Timeout").await;
    mail.die(31..=40, "rejected", "v2", "no such customer").await;
    let (seconds, _): (u64, u64) = redis::from_redis_value(mail.server.cli(&["TIME"]).await).unwrap();
    let fresh = (seconds * 1_000).to_string();
    let args = [
        "XADD",
        DEAD,
        "41-0",
        "id",
        "fresh",
        "payload",
        "1",
        "dead_reason",
        "attempts",
        "dead_at",
        &fresh,
    ];
    mail.server.cli(&args).await;
    let ids = |line: &str| -> Vec<Value> {
        let rows = mail.shell.json(&format!("dead ls mail --limit 100 {line}"));
        rows.as_array().unwrap().iter().map(|row| row["id"].clone()).collect()
    };
    assert_eq!(ids("--version v2 --error CUSTOMER").len(), 10);
    assert_eq!(ids("--reason attempts --error timeout").len(), 30);
    assert_eq!(ids("--newer-than 1h"), ["fresh"]);
    assert_eq!(ids("--older-than 1h").len(), 40);
    assert_eq!(ids("--reason attempts --version v2"), [json!(null); 0]);
    mail.shell
        .run("dead ls mail --reason poison")
        .exits(OK)
        .tells("no such dead letter");

    let preview = mail.shell.json("dead requeue mail --all --dry-run");
    assert_eq!(
        (&preview["matching"], &preview["until"], &preview["dry_run"]),
        (&json!(41), &json!("41-0"), &json!(true))
    );
    assert_eq!(
        preview["groups"],
        json!([
            {"reason": "attempts", "version": "", "count": 1},
            {"reason": "attempts", "version": "v1", "count": 30},
            {"reason": "rejected", "version": "v2", "count": 10},
        ])
    );
    assert_eq!(
        (&preview["first"][0]["id"], preview["first"].as_array().unwrap().len()),
        (&json!("order-1"), 5)
    );
    mail.shell.run("dead discard mail --all").exits(REFUSED).tells("--yes");
    mail.shell.run("dead discard mail").exits(USAGE);
    mail.shell
        .run("dead discard mail order-1 --reason attempts")
        .exits(USAGE);
    mail.shell.run("dead discard mail --all --rate 0/s").exits(USAGE);
    assert_eq!(mail.ids(DEAD).await.len(), 41, "nothing was changed");

    mail.shell
        .run("dead discard mail --all --yes --version v2")
        .exits(OK)
        .says("10 dead letters of shop/mail discarded");
    assert_eq!(
        set(mail.ids(DEAD).await),
        &orders(1..=30) | &BTreeSet::from(["fresh".to_owned()])
    );
    mail.shell
        .run("dead requeue mail --all --yes --older-than 1h")
        .exits(OK);
    assert_eq!(
        (set(mail.ids(MAIN).await), mail.ids(DEAD).await),
        (orders(1..=30), vec!["fresh".to_owned()])
    );
}

#[tokio::test]
async fn single_letters_go_by_task_or_entry_id_and_malformed_ones_need_force() {
    let mail = Mail::with_worker().await;
    mail.die(1..=3, "attempts", "v1", "boom").await;
    mail.die(4..=4, "malformed", "", "payload is not JSON").await;
    let ran = mail
        .shell
        .run("dead requeue mail order-2 3-0 order-9 --by bob --why fixed")
        .exits(NOT_FOUND);
    ran.says("2 dead letters of shop/mail requeued").tells("order-9");
    mail.shell.run("dead requeue mail order-2").exits(NOT_FOUND);
    assert_eq!(set(mail.ids(MAIN).await), orders([2, 3]));

    mail.shell
        .run("dead requeue mail order-4")
        .exits(REFUSED)
        .tells("--force");
    let ran = mail
        .shell
        .run("dead requeue mail --all --yes -o json")
        .exits(OK)
        .tells("1 is malformed and stays");
    let view = ran.json();
    assert_eq!(
        (&view["done"], &view["refused"]["first"][0]["id"]),
        (&json!(1), &json!("order-4"))
    );
    assert_eq!((&view["looked_at"], &view["finished"]), (&json!(2), &json!(true)));
    assert_eq!(mail.ids(DEAD).await, ["order-4"]);
    mail.shell.run("dead requeue mail order-4 --force").exits(OK);
    mail.shell
        .run("dead requeue mail --all --yes")
        .exits(OK)
        .says("0 dead letters");
    mail.shell.run("dead requeue mial --all --yes").exits(NOT_FOUND);
}

// P1: killed at any point, nothing is lost and nothing doubled; repeating the command finishes it.
#[tokio::test]
async fn a_requeue_that_is_killed_half_way_loses_and_doubles_nothing() {
    let mail = Mail::with_worker().await;
    mail.die(1..=600, "attempts", "v1", "boom").await;
    for _ in 0..2 {
        let before = mail.ids(MAIN).await.len();
        let process = mail.start("dead requeue mail --all --yes --rate 200/s");
        eventually("some are requeued", patience(Duration::from_secs(20)), async || {
            mail.ids(MAIN).await.len() > before
        })
        .await;
        process.kill9();
        let (dead, line) = (set(mail.ids(DEAD).await), set(mail.ids(MAIN).await));
        assert!(dead.is_disjoint(&line) && !dead.is_empty(), "killed half way");
        assert_eq!(&dead | &line, orders(1..=600));
    }
    mail.shell.run("dead requeue mail --all --yes").exits(OK);
    assert_eq!(
        (set(mail.ids(MAIN).await), mail.ids(DEAD).await.len()),
        (orders(1..=600), 0)
    );
}

#[tokio::test]
async fn an_interrupted_requeue_says_how_to_go_on() {
    let mail = Mail::with_worker().await;
    mail.die(1..=400, "attempts", "v1", "boom").await;
    let process = mail.start("dead requeue mail --all --yes --rate 100/s -o jsonl");
    mail.half_way().await;
    mail.die(401..=401, "attempts", "v1", "died meanwhile").await;
    process.interrupt();
    assert_eq!(process.wait().await.code(), Some(FAILED));
    let lines = process.lines();
    let outcome: Value = lines.iter().find_map(|line| serde_json::from_str(line).ok()).unwrap();
    let done = outcome["done"].as_u64().unwrap();
    assert_eq!(
        (set(mail.ids(MAIN).await), &outcome["finished"]),
        (orders(1..=done), &json!(false))
    );
    let options = format!("--after {done}-0 --until 400-0");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("interrupted") && line.ends_with(&options)),
        "{lines:#?}"
    );

    mail.shell
        .run(&format!("dead requeue mail --all --yes {options}"))
        .exits(OK);
    assert_eq!(set(mail.ids(MAIN).await), orders(1..=400));
    assert_eq!(mail.ids(DEAD).await, ["order-401"], "what died meanwhile was not meant");
}

#[tokio::test]
async fn limits_are_shown_set_and_guard_the_resume() {
    let mail = Mail::with_worker().await;
    mail.die(1..=3, "attempts", "v1", "boom").await;
    mail.server.cli(&["XADD", MAIN, "*", "payload", "1"]).await;
    let view = mail.shell.json("queue limits mail");
    let row = json!({
        "name": "dead", "limit": 100_000, "default": 100_000, "set": false, "in_use": 3, "problem": null
    });
    assert_eq!((&view["limits"][0], &view["limits"][1]["in_use"]), (&row, &json!(1)));
    mail.shell.run("queue limits mial").exits(NOT_FOUND);
    mail.shell.run("queue limits mail --dead lots").exits(USAGE);
    mail.shell.run("queue limits mail --dead 5 --clear dead").exits(USAGE);
    mail.shell
        .run("queue limits mail --dead 3 --waiting 1")
        .exits(OK)
        .tells("dead 100000 -> 3")
        .says("set");
    mail.shell
        .run("task enqueue mail --payload 1")
        .exits(REFUSED)
        .tells("queue limits mail --waiting");

    // As a worker does when it notices.
    switchback_common::store::limits::hold_if_full(&mail.store, &mail.queue)
        .await
        .unwrap();
    let hint = |line: &str| mail.shell.json(line)["hints"].to_string();
    for line in ["queue show mail", "gate show mail"] {
        let hints = hint(line);
        assert!(
            hints.contains("\"dead_limit\"") && hints.contains("limit of 3: requeue or discard some"),
            "{hints}"
        );
        assert!(hints.contains("\"queue_full\""), "{hints}");
    }
    mail.shell.run("queue ls").exits(OK).says("dead limit");
    mail.shell
        .run("gate resume mail")
        .exits(REFUSED)
        .tells("3 dead letters, the limit is 3")
        .tells("--dead N");
    mail.shell.run("dead discard mail order-1").exits(OK);
    mail.shell.run("gate resume mail").exits(OK);

    mail.server
        .cli(&["HSET", "sb:limits:{shop:mail}", "dead", "many"])
        .await;
    mail.shell
        .run("queue limits mail --clear waiting")
        .exits(OK)
        .tells("\"many\"");
    assert!(hint("queue show mail").contains("bad_limits"));
}
