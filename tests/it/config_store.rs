//! What the configuration keeps in Redis: its revisions, and writes that keep to what they were compared with.

use switchback_common::store::{
    config::{self, Begin, Begun},
    limits::{self, Edit, Put},
    policy::{self, Policy},
};

use crate::{
    cli::{Mail, OK},
    queue::TestQueue,
};

fn begin<'a>(after: u64, op: &'a str, document: &'a str) -> Begin<'a> {
    Begin {
        after,
        op,
        document,
        source: "apply",
        changes: "[]",
        ..Begin::default()
    }
}

#[tokio::test]
async fn a_revision_is_recorded_once_and_only_after_the_one_it_was_judged_against() {
    let q = TestQueue::empty().await;
    let namespace = &q.queue.namespace;
    let begun = async |after, op| {
        config::begin(&q.store, namespace, &begin(after, op, "{}"))
            .await
            .unwrap()
    };
    assert_eq!(config::revision(&q.store, namespace).await.unwrap(), 0);
    assert_eq!(begun(0, "a").await, Begun::As(1));
    assert_eq!(begun(0, "a").await, Begun::As(1), "sent twice");
    assert_eq!(begun(0, "b").await, Begun::Moved(1));
    assert_eq!(begun(1, "b").await, Begun::As(2));
    // The first one ends after the second has begun: the number stays.
    config::end(&q.store, namespace, 1, "a", "").await.unwrap();
    config::end(&q.store, namespace, 1, "a", "").await.unwrap();
    config::end(&q.store, namespace, 2, "b", "somebody").await.unwrap();
    assert_eq!(config::revision(&q.store, namespace).await.unwrap(), 2);
    let entries = config::history(&q.store, namespace, |_| false).await.unwrap();
    let said: Vec<(&str, u64)> = entries.iter().map(|e| (e.kind.as_str(), e.rev)).collect();
    assert_eq!(said, [("stopped", 2), ("done", 1), ("begun", 2), ("begun", 1)]);
}

// P10: by bytes, and by count.
#[tokio::test]
async fn the_history_of_the_configuration_is_bounded() {
    let q = TestQueue::empty().await;
    let namespace = &q.queue.namespace;
    let (large, key) = ("x".repeat(1024 * 1024), "sb:config:{shop}");
    let length = async || q.cmd::<u64>(&["XLEN", key]).await;
    for n in 0..40 {
        let op = n.to_string();
        let document = if n % 2 == 0 { large.as_str() } else { "" };
        config::begin(&q.store, namespace, &begin(n, &op, document))
            .await
            .unwrap();
    }
    assert!((30..=34).contains(&length().await), "16 MiB: {}", length().await);
    for n in 40..2_100 {
        let op = n.to_string();
        config::begin(&q.store, namespace, &begin(n, &op, "")).await.unwrap();
    }
    assert_eq!(length().await, 2_000);
    assert_eq!(config::revision(&q.store, namespace).await.unwrap(), 2_100);
}

#[tokio::test]
async fn what_somebody_changed_in_between_stays() {
    let q = TestQueue::seeded().await;
    let edit = |field: &str, expected: &str, value: &str| Edit {
        field: field.to_owned(),
        expected: Some(expected.to_owned()),
        value: value.to_owned(),
    };
    let log = async || {
        q.cmd::<u64>(&["XLEN", &q.key(switchback_common::store::keyspace::Key::Log)])
            .await
    };
    let (hash, policies) = ("sb:limits:{shop:send_email}", "sb:policy:{shop:send_email}");
    let put = async |edits: &[Edit]| limits::replace(&q.store, &q.queue, edits, "a", "").await.unwrap();
    assert_eq!(put(&[edit("dead", "", "5"), edit("rate", "", "1/s")]).await, Put::Set);
    let entries = log().await;
    assert_eq!(put(&[edit("dead", "5", "5")]).await, Put::Same);
    // One of two is not what it was: neither is written, and nothing is said.
    let both = [edit("dead", "5", "6"), edit("rate", "", "2/s")];
    assert_eq!(put(&both).await, Put::Moved("rate".to_owned()));
    assert_eq!(q.cmd::<String>(&["HGET", hash, "dead"]).await, "5");
    let set = async |expected: &str, json: &str| {
        policy::set(&q.store, &q.queue, Policy::Retry, expected, json, "a", "")
            .await
            .unwrap()
    };
    assert_eq!(set("{}", r#"{"max_attempts":1}"#).await, Put::Moved("retry".to_owned()));
    assert_eq!(log().await, entries);
    assert_eq!(set("", r#"{"max_attempts":1}"#).await, Put::Set);
    assert_eq!(set(r#"{"max_attempts":1}"#, "").await, Put::Set);
    assert_eq!(q.cmd::<u64>(&["EXISTS", policies]).await, 0);
    assert_eq!(log().await, entries + 2);
}

// P10: a document can be applied, and taken back, where no task can be enqueued any more.
#[tokio::test]
async fn a_configuration_is_applied_and_reverted_at_maxmemory() {
    let mail = Mail::with_worker().await;
    let path = mail.shell.dir.path().join("doc.toml");
    let text = "[queues.mail.gate]\nactive = \"v2\"\n[queues.mail.limits]\nwaiting = 9\n[queues.mail.retry]\nmax_attempts = 2\n\
                [queues.mail.schedules.n]\ncron = \"@daily\"\npayload = 1";
    std::fs::write(&path, "[queues.mail.gate]\npaused = true").unwrap();
    mail.shell.run("config apply doc.toml").exits(OK);
    std::fs::write(&path, text).unwrap();
    mail.server
        .cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
        .await;
    mail.server.cli(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    mail.shell
        .run("task enqueue mail --payload 1")
        .exits(crate::cli::FAILED)
        .tells("out of memory");
    mail.shell.run("config apply doc.toml").exits(OK);
    assert_eq!(mail.gate()["active"], "v2");
    mail.shell.run("config revert --to 1").exits(OK);
    assert_eq!(mail.gate()["active"], "v1");
    mail.shell.run("config diff doc.toml --exit-code").exits(10);
    mail.server.cli(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let away = crate::cli::Shell::new("redis://127.0.0.1:1");
    std::fs::write(away.dir.path().join("doc.toml"), text).unwrap();
    away.run("config apply doc.toml").exits(crate::cli::UNREACHABLE);
}
