//! Throttle as an operator sets and sees it: `queue limits`, and what circuit breakers hold.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use switchback_common::store::limits;

use crate::cli::{Mail, OK, USAGE};

const LIMITS: &str = "sb:limits:{shop:mail}";

impl Mail {
    fn limit(&self, name: &str) -> Value {
        let view = self.shell.json("queue limits mail");
        let row = view["limits"]
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["name"] == name);
        row.unwrap_or_else(|| panic!("no {name} in {view}")).clone()
    }

    /// The `breaker_open` hints: level and text.
    fn breakers(&self, line: &str) -> Vec<(Value, String)> {
        let view = self.shell.json(line);
        let hints = view["hints"].as_array().unwrap().iter();
        hints
            .filter(|hint| hint["code"] == "breaker_open")
            .map(|hint| (hint["level"].clone(), hint["text"].to_string()))
            .collect()
    }
}

#[tokio::test]
async fn what_workers_keep_to_is_shown_set_and_logged() {
    let mail = Mail::with_worker().await;
    let busy = mail.join(&["v1"], 5).await;
    mail.confirm(&busy, 1, r#"{"v1":3,"v2":1}"#).await;
    let lost = mail.join(&["v1"], 6).await;
    mail.confirm(&lost, 1, r#"{"v1":9}"#).await;
    let lease = format!("sb:lease:{{shop:mail}}:{lost}");
    mail.server.cli(&["DEL", &lease]).await;
    let none = |name: &str, in_use: Value| {
        json!({
            "name": name, "limit": null, "default": null, "set": false, "in_use": in_use, "problem": null
        })
    };
    assert_eq!(mail.limit("concurrency"), none("concurrency", json!(4)));
    assert_eq!(mail.limit("rate_per_key"), none("rate_per_key", Value::Null));

    for (wrong, why) in [
        ("--rate 100", "100/s+20"),
        ("--rate-per-key 0/s", "100/s+20"),
        ("--concurrency 0", "pause the gate"),
        ("--rate 1/s --clear rate", "both set and cleared"),
        ("--clear speed", "rate_per_key"),
    ] {
        mail.shell
            .run(&format!("queue limits mail {wrong}"))
            .exits(USAGE)
            .tells(why);
    }
    mail.shell
        .run("queue limits mail --concurrency 50 --rate 100/s+20 --rate-per-key 5/s --by bob --why partner")
        .exits(OK)
        .tells("rate none -> 100/s+20")
        .says("50")
        .says("set");
    assert_eq!(
        ["concurrency", "rate", "rate_per_key"].map(|name| mail.limit(name)["limit"].clone()),
        [json!(50), json!("100/s+20"), json!("5/s")]
    );
    let found = limits::read(&mail.store, &mail.queue).await.unwrap();
    assert_eq!(found.throttle.concurrency, Some(50), "as workers read it");
    mail.shell
        .run("queue limits mail --rate 6000/m --clear concurrency,rate-per-key")
        .exits(OK)
        .tells("rate 100/s+20 -> 6000/m")
        .tells("concurrency 50 -> none");
    assert_eq!(mail.limit("concurrency")["set"], false);
    let newest = mail
        .server
        .cli(&["XREVRANGE", "sb:log:{shop:mail}", "+", "-", "COUNT", "2"])
        .await;
    let log: Vec<(String, BTreeMap<String, String>)> = redis::from_redis_value(newest).unwrap();
    let said = |n: usize, field: &str| -> Value { serde_json::from_str(&log[n].1[field]).unwrap() };
    assert_eq!(
        [said(0, "before"), said(0, "after"), said(1, "after")],
        [
            json!({"concurrency": "50", "rate": "100/s+20", "rate_per_key": "5/s"}),
            json!({"concurrency": "", "rate": "6000/m", "rate_per_key": ""}),
            json!({"concurrency": "50", "rate": "100/s+20", "rate_per_key": "5/s"}),
        ]
    );
    assert_eq!((log[1].1["by"].as_str(), log[1].1["why"].as_str()), ("bob", "partner"));

    mail.server.cli(&["HSET", LIMITS, "rate", "fast"]).await;
    mail.shell
        .run("queue limits mail")
        .exits(OK)
        .tells("\"fast\" is no rate")
        .tells("last valid one")
        .says("not valid");
    let row = mail.limit("rate");
    assert!(row["problem"].as_str().unwrap().contains("fast"), "{row}");
    let hints = mail.shell.json("queue show mail")["hints"].to_string();
    assert!(hints.contains("bad_limits"), "{hints}");
    mail.shell.run("queue limits mail --rate 1/s").exits(OK);
    assert_eq!(mail.limit("rate")["problem"], Value::Null);
}

#[tokio::test]
async fn what_circuit_breakers_hold_is_a_hint() {
    let mail = Mail::with_worker().await;
    let other = mail.join(&["v2"], 5).await;
    mail.set("candidate=v2 percent=10");
    assert_eq!(mail.breakers("gate show mail"), []);
    mail.sessions().say_open(&other, "v2").await.unwrap();
    for line in ["gate show mail", "queue show mail"] {
        let found = mail.breakers(line);
        assert_eq!((found.len(), &found[0].0), (1, &json!("warning")), "{found:?}");
        assert!(found[0].1.contains("v2 fails: 1 of 2 workers"), "{found:?}");
        mail.shell.run(line).exits(OK).says("! v2 fails");
    }
    mail.shell.run("queue ls").exits(OK).says("breaker open");

    for session in mail.sessions().list().await.unwrap() {
        mail.sessions().say_open(&session.id, "v2").await.unwrap();
    }
    let found = mail.breakers("gate show mail");
    assert_eq!(found[0].0, json!("critical"), "{found:?}");
    mail.shell.run("gate rollback mail --to v1").exits(OK);
    let found = mail.breakers("gate show mail");
    assert_eq!(found[0].0, json!("info"), "nothing goes there any more: {found:?}");
    for session in mail.sessions().list().await.unwrap() {
        let lease = format!("sb:lease:{{shop:mail}}:{}", session.id);
        mail.server.cli(&["DEL", &lease]).await;
    }
    assert_eq!(mail.breakers("gate show mail"), [], "they hold nothing any more");
}
