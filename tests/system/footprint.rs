//! Every key that a full scenario leaves in Redis is in the catalogue, with the right type.

use std::{collections::BTreeSet, time::Duration};

use redis::Value;
use switchback_common::store::{
    keyspace::{Key, Keyspace},
    probe,
};
use switchback_tests::{eventually, patience};

use crate::{
    fixture::{Fixture, Job},
    rollout::{QUICK, begin},
};

async fn keys(fixture: &Fixture) -> Vec<(String, String)> {
    let Value::Array(names) = fixture.raw(&["KEYS", "*"]).await else {
        panic!("an array")
    };
    let mut out = Vec::new();
    for name in names {
        let name: String = redis::from_redis_value(name).unwrap();
        let kind: String = redis::from_redis_value(fixture.raw(&["TYPE", &name]).await).unwrap();
        out.push((name, kind));
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_is_in_the_catalogue() {
    let mut fixture = Fixture::new().await;
    let (_one, seen) = fixture.simple(&["v1", "v2"]).await;
    fixture.set(&[("candidate", "v2"), ("percent", "50")]).await;
    fixture
        .raw(&["HSET", "sb:limits:{test:job}", "concurrency", "50", "rate", "1000/s"])
        .await;
    fixture
        .raw(&["HSET", "sb:limits:{test:job}", "rate_per_key", "1000/s"])
        .await;
    fixture.enqueue(0..50).await;
    fixture.enqueue_one(50, "reject").await;
    fixture
        .producer
        .enqueue(&crate::fixture::Job {
            n: 51,
            then: "fail".into(),
        })
        .id("once")
        .keep_result(Duration::from_secs(60))
        .await
        .unwrap();
    fixture.raw(&["HSET", "sb:limits:{test:job}", "dead", "9"]).await;
    fixture
        .raw(&["HSET", "sb:gate:{test:job}", "only", "v1", "by", "alice"])
        .await;
    fixture
        .raw(&[
            "HSET",
            "sb:schedules:{test:job}",
            "yearly",
            "{\"cron\":\"@yearly\",\"payload\":{\"n\":1}}",
        ])
        .await;
    fixture
        .producer
        .cancel("job", &"nobody".parse().unwrap())
        .await
        .unwrap();
    // One that waits all the time: a retry may be over between two looks.
    let waits = Job {
        n: 52,
        then: String::new(),
    };
    let waits = fixture.producer.enqueue(&waits).delay(Duration::from_secs(3_600));
    let waits = waits.await.unwrap();
    let policy = r#"{"max_attempts":5}"#;
    fixture.raw(&["HSET", "sb:policy:{test:job}", "retry", policy]).await;
    fixture
        .raw(&["XADD", "sb:config:{test}", "*", "kind", "begun", "rev", "1"])
        .await;
    begin(&fixture, QUICK).await;
    let (versions, v2) = (["v1", "v2"].map(|v| v.parse().unwrap()), "v2".parse().unwrap());
    let mut n = 1_000;
    // Keys come and go: look again and again while it all happens.
    let mut found = BTreeSet::new();
    eventually(
        "every kind of key has been seen",
        patience(Duration::from_secs(20)),
        async || {
            // What is counted, or limited, is so only while something runs.
            n += 1;
            fixture.enqueue([n]).await;
            probe::ask(
                &fixture.store,
                &fixture.queue,
                &format!("q{n}"),
                &v2,
                versions.iter().cloned(),
            )
            .await
            .unwrap();
            for (name, kind) in keys(&fixture).await {
                let Some(key) = Keyspace::default().parse(&name) else {
                    panic!("{name} is not in the catalogue")
                };
                // TYPE of a key that expired in between.
                if kind != "none" {
                    assert_eq!(key.key_type().as_str(), kind, "{name}");
                    found.insert(name.split(":{").next().unwrap_or_default().to_owned());
                }
            }
            let expected = [
                "stream",
                "head",
                "lane",
                "delayed",
                "envelope",
                "dead",
                "limits",
                "gate",
                "gatestate",
                "history",
                "versions",
                "lease",
                "sessions",
                "log",
                "stats",
                "schedules",
                "unique",
                "limits",
                "rate",
                "cancel",
                "result",
                "queues",
                "policy",
                "rollout",
                "driver",
                "block",
                "probe",
                "config",
            ];
            let missing: Vec<_> = expected
                .iter()
                .filter(|kind| !found.contains(&format!("sb:{kind}")))
                .collect();
            if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("not seen yet: {missing:?}"))
            }
        },
    )
    .await;
    fixture.producer.cancel("job", &waits).await.unwrap();
    fixture.drained().await;
    assert!(!seen.all().is_empty());
    let queue = fixture.queue.clone();
    assert_eq!(
        Keyspace::default().render(&Key::Gate(queue)),
        "sb:gate:{test:job}",
        "what people type"
    );
}
