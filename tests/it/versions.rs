//! Versions: one label is one build, and what is retired is routed to no more.

use serde_json::{Value, json};
use switchback_common::{
    SessionId, Version,
    store::{
        gate::{Found, SealWord},
        keyspace::Key,
        session::{Builds, Joined, SessionRecord},
        versions::{self, RetireRequest, Retiring, VersionRecord},
    },
};

use crate::cli::{Mail, NOT_FOUND, OK, REFUSED};
use crate::queue::{LEASE, TestQueue, show};

impl TestQueue {
    async fn join_as(&self, build: &str, list: &[&str], builds: Builds) -> Joined {
        let record = SessionRecord {
            host: "here".into(),
            pid: 1,
            build: build.into(),
            versions: list.iter().map(|v| v.parse().unwrap()).collect(),
            concurrency: 4,
            started_ms: 0,
        };
        let session = SessionId::random();
        self.sessions.join_with(&session, LEASE, &record, builds).await.unwrap()
    }

    async fn record(&self, version: &str) -> VersionRecord {
        let version: Version = version.parse().unwrap();
        let record = versions::record(&self.store, &self.queue, &version).await.unwrap();
        record.expect("a known version")
    }

    async fn retire(&self, version: &str, request: &RetireRequest) -> Retiring {
        let version: Version = version.parse().unwrap();
        versions::retire(&self.store, &self.queue, &version, request)
            .await
            .unwrap()
    }

    async fn kinds(&self, kind: &str) -> usize {
        self.log().await.iter().filter(|entry| entry.kind == kind).count()
    }
}

const YES: Joined = Joined::Yes { seeded: false };

fn another(version: &str, known: &str, retired: bool) -> Joined {
    Joined::AnotherBuild {
        version: version.parse().unwrap(),
        known: known.to_owned(),
        retired,
    }
}

fn routed(by: &str) -> Retiring {
    Retiring::Routed { by: by.to_owned() }
}

#[tokio::test]
async fn another_build_under_a_label_is_refused_and_said_once() {
    let q = TestQueue::seeded().await; // v1, v2 and v3 of build b1
    let sessions = q.sessions.list().await.unwrap().len();
    for _ in 0..5 {
        // Its other versions are no reason to let it in.
        let joined = q.join_as("b2", &["v9", "v2"], Builds::One).await;
        assert_eq!(joined, another("v2", "b1", false));
    }
    assert_eq!(q.kinds("build_refused").await, 1, "one entry, not one per try");
    assert_eq!(q.record("v2").await.refused, ["b2"]);
    // Nothing is left of it: no session, no lease, no version.
    assert_eq!(q.sessions.list().await.unwrap().len(), sessions);
    let leases: Vec<String> = q.cmd(&["KEYS", "sb:lease:*"]).await;
    assert_eq!(leases.len(), 1);
    assert!(!q.cmd::<bool>(&["HEXISTS", &q.key(Key::Versions), "v9"]).await);
    // Its own build is let in as ever, and so is one that nobody can tell.
    assert_eq!(q.join_as("b1", &["v2"], Builds::One).await, YES);
    assert_eq!(q.join_as("", &["v2"], Builds::One).await, YES);
    assert_eq!(q.record("v2").await.builds, ["b1"]);
}

#[tokio::test]
async fn another_build_that_is_allowed_is_on_record_beside_the_first() {
    let q = TestQueue::seeded().await;
    q.join_as("b2", &["v2"], Builds::One).await;
    assert_eq!(q.join_as("b2", &["v2"], Builds::Several).await, YES);
    let record = q.record("v2").await;
    assert_eq!(
        (record.builds, record.refused),
        (vec!["b1".into(), "b2".into()], vec![])
    );
    // A rolling deploy goes both ways: neither has to ask again.
    assert_eq!(q.join_as("b1", &["v2"], Builds::One).await, YES);
    assert_eq!(q.join_as("b2", &["v2"], Builds::One).await, YES);
    assert_eq!(q.join_as("b3", &["v2"], Builds::One).await, another("v2", "b2", false));
    // P10: the newest are kept.
    for n in 0..40 {
        q.join_as(&format!("x{n}"), &["v2"], Builds::Several).await;
    }
    let builds = q.record("v2").await.builds;
    assert_eq!((builds.len(), builds.last().unwrap().as_str()), (16, "x39"));
}

#[tokio::test]
async fn without_build_labels_everything_goes_as_before() {
    let q = TestQueue::empty().await;
    assert_eq!(q.join_as("", &["v1"], Builds::One).await, Joined::Yes { seeded: true });
    assert_eq!(q.join_as("", &["v1", "v2"], Builds::One).await, YES);
    assert!(q.record("v1").await.builds.is_empty());
    // The first that says what it is says it for the label.
    assert_eq!(q.join_as("b1", &["v1"], Builds::One).await, YES);
    assert_eq!(q.record("v1").await.builds, ["b1"]);
    assert_eq!(q.join_as("b2", &["v1"], Builds::One).await, another("v1", "b1", false));
    // A record that somebody broke by hand keeps nobody out.
    q.cmd::<()>(&["HSET", &q.key(Key::Versions), "v1", "garbage"]).await;
    assert_eq!(q.join_as("b2", &["v1"], Builds::One).await, YES);
}

#[tokio::test]
async fn what_the_gate_names_is_not_retired() {
    let q = TestQueue::seeded().await;
    let plain = RetireRequest::default();
    let force = RetireRequest {
        force: true,
        ..RetireRequest::default()
    };
    q.edit("candidate v2 percent 0").await;
    assert_eq!(q.retire("v1", &plain).await, routed("active"));
    assert_eq!(
        q.retire("v2", &force).await,
        routed("candidate"),
        "one HSET from its share"
    );
    // P9: an edit by hand that nobody has sealed yet counts.
    q.cmd::<()>(&["HSET", &q.key(Key::Gate), "pins", "a=v3"]).await;
    assert_eq!(q.retire("v3", &force).await, routed("pins"));
    q.cmd::<()>(&["HSET", &q.key(Key::Gate), "pins", "", "targets", "plan:beta=v3"])
        .await;
    assert_eq!(q.retire("v3", &force).await, routed("targets"));
    assert_eq!(q.retire("v8", &plain).await, Retiring::Unknown);
    let late = RetireRequest {
        if_rev: Some(1),
        ..RetireRequest::default()
    };
    assert!(matches!(q.retire("v3", &late).await, Retiring::Moved { rev } if rev > 1));
}

#[tokio::test]
async fn nothing_can_be_routed_to_a_retired_version() {
    let q = TestQueue::seeded().await;
    let by = RetireRequest {
        by: "alice".into(),
        why: "INC-7".into(),
        ..RetireRequest::default()
    };
    let dry = RetireRequest {
        dry_run: true,
        ..by.clone()
    };
    assert!(matches!(q.retire("v2", &dry).await, Retiring::Retired { .. }));
    assert_eq!(q.record("v2").await.retired, None);
    assert!(matches!(q.retire("v2", &by).await, Retiring::Retired { .. }));
    assert!(matches!(q.retire("v2", &by).await, Retiring::Already { .. }));
    let retired = q.record("v2").await.retired.unwrap();
    assert_eq!((retired.by.as_str(), retired.why.as_str()), ("alice", "INC-7"));
    // P9: one note, one entry, no revision.
    let notes: Vec<_> = q.history().await.into_iter().filter(|e| e.kind == "note").collect();
    assert_eq!(
        (notes.len(), notes[0].why.as_str(), notes[0].by.as_str()),
        (1, "version v2 retired: INC-7", "alice")
    );
    assert_eq!((q.kinds("version").await, q.changes().await.len()), (1, 1));
    for edit in [
        "only v2",
        "active v2",
        "candidate v2 percent 5",
        "pins a=v2",
        "targets plan:beta=v2",
    ] {
        q.hset(edit).await;
        let (word, sealed) = q.seal().await;
        assert_eq!((word, show(&sealed.gate).as_str()), (SealWord::Refused, "v1"), "{edit}");
        let refused = &q.history().await[0].refused;
        assert!(refused.contains("retired version"), "{edit}: {refused}");
    }
    // It comes back as it was.
    let version: Version = "v2".parse().unwrap();
    let restored = versions::restore(&q.store, &q.queue, &version, &by).await.unwrap();
    assert_eq!(restored, versions::Restoring::Restored);
    let again = versions::restore(&q.store, &q.queue, &version, &by).await.unwrap();
    assert_eq!(again, versions::Restoring::Same);
    assert_eq!(q.edit("only v2").await, "v2");
    assert_eq!(q.record("v2").await.builds, ["b1"]);
}

#[tokio::test]
async fn a_retired_label_is_never_given_to_another_build() {
    let q = TestQueue::seeded().await;
    q.retire("v2", &RetireRequest::default()).await;
    for builds in [Builds::One, Builds::Several] {
        assert_eq!(
            q.join_as("b2", &["v2"], builds).await,
            another("v2", "b1", true),
            "{builds:?}"
        );
    }
    // The same build may go on, and nothing is routed to it.
    assert_eq!(q.join_as("b1", &["v1", "v2"], Builds::One).await, YES);
    assert!(q.record("v2").await.retired.is_some());
    q.hset("only v2").await;
    assert_eq!(q.seal().await.0, SealWord::Refused);
}

#[tokio::test]
async fn a_new_queue_does_not_begin_with_a_retired_version() {
    let q = TestQueue::seeded().await;
    q.retire("v2", &RetireRequest::default()).await;
    // Everything is lost but the records: whoever comes first seeds again, with what may be routed to.
    for key in [Key::Gate, Key::GateState, Key::History, Key::Stream] {
        q.cmd::<()>(&["DEL", &q.key(key)]).await;
    }
    assert_eq!(q.join_as("b1", &["v2"], Builds::One).await, YES);
    assert_eq!(q.found().await, Found::Missing, "P8: it starts nothing");
    q.cmd::<()>(&["DEL", &q.key(Key::Stream)]).await;
    assert_eq!(
        q.join_as("b1", &["v2", "v3"], Builds::One).await,
        Joined::Yes { seeded: true }
    );
    assert_eq!(show(&q.seal().await.1.gate), "v3");
}

#[tokio::test]
async fn a_lane_that_holds_tasks_is_not_left_behind() {
    let q = TestQueue::seeded().await;
    let lane = q.lane("v2");
    q.add(&lane, 1).await;
    assert_eq!(q.retire("v2", &RetireRequest::default()).await, Retiring::Waiting);
    let entry = q.claim_ids(&q.session, &lane, 1).await[0].to_string();
    assert_eq!(
        q.retire("v2", &RetireRequest::default()).await,
        Retiring::Waiting,
        "a worker has it"
    );
    // What is settled is kept in the lane for a while, and holds nothing up.
    q.cmd::<()>(&["XACK", &lane, "workers", &entry]).await;
    assert_eq!(q.len(&lane).await, 1);
    let dry = RetireRequest {
        dry_run: true,
        ..RetireRequest::default()
    };
    assert!(matches!(q.retire("v2", &dry).await, Retiring::Retired { .. }));
    q.add(&lane, 1).await;
    let force = RetireRequest {
        force: true,
        ..RetireRequest::default()
    };
    assert!(matches!(q.retire("v2", &force).await, Retiring::Retired { .. }));
}

#[tokio::test]
async fn a_record_keeps_what_others_wrote_into_it() {
    let q = TestQueue::seeded().await;
    let written = r#"{"first_seen_us":1700000000123456,"build":"b1","rolled_back":{"at_us":1700000000654321,"rev":12,"why":"p95"},"later":{"x":[1,2]}}"#;
    q.cmd::<()>(&["HSET", &q.key(Key::Versions), "v2", written]).await;
    let before = q.record("v2").await;
    q.retire("v2", &RetireRequest::default()).await;
    let after = q.record("v2").await;
    assert!(after.retired.is_some());
    assert_eq!(
        (after.first_seen_us, after.rolled_back),
        (1_700_000_000_123_456, before.rolled_back)
    );
    let raw: String = q.cmd(&["HGET", &q.key(Key::Versions), "v2"]).await;
    assert!(raw.contains(r#""x":[1,2]"#), "{raw}");
}

#[tokio::test]
async fn versions_are_listed_retired_and_brought_back_from_the_shell() {
    let mail = Mail::new().await;
    mail.join_and_leave(&["v0"]).await;
    mail.join(&["v1", "v2"], 4711).await;
    mail.server.cli(&["HSET", "sb:gate:{shop:mail}", "only", "v1"]).await;
    let by_name = |list: &Value, name: &str| -> Value {
        let rows = list.as_array().unwrap();
        rows.iter().find(|row| row["version"] == name).unwrap().clone()
    };
    let now = mail.server.cli(&["TIME"]).await;
    let (seconds, _): (u64, u64) = redis::from_redis_value(now).unwrap();
    let stats = format!("sb:stats:{{shop:mail}}:{}", seconds / 60);
    mail.server
        .cli(&[
            "HSET",
            &stats,
            "v1:done",
            "7",
            "v1:retried",
            "2",
            "v1:dead",
            "1",
            "v1:le_10",
            "10",
        ])
        .await;
    mail.shell.run("gate set mail candidate=v2 percent=25").exits(OK);
    let list = mail.shell.json("version ls mail");
    let v1 = by_name(&list, "v1");
    assert_eq!(v1["last_hour"], json!({"done": 7, "retried": 2, "dead": 1}));
    assert_eq!((&v1["percent"], &v1["routes"]), (&json!(75.0), &json!(["active"])));
    let v2 = by_name(&list, "v2");
    assert_eq!((&v2["percent"], &v2["live_workers"]), (&json!(25.0), &json!(1)));
    let v0 = by_name(&list, "v0");
    assert_eq!(
        (&v0["routed"], &v0["builds"], &v0["retired"]),
        (&json!(false), &json!(["b1"]), &Value::Null)
    );

    let refused = mail.shell.run("version retire mail v2").exits(REFUSED);
    refused
        .tells("1 live worker of shop/mail still has v2")
        .tells("--force");
    let refused = mail.shell.run("version retire mail v2 --force").exits(REFUSED);
    refused.tells("names v2 (candidate)");
    mail.shell
        .run("version retire mail v9")
        .exits(NOT_FOUND)
        .tells("known: v0, v1, v2");
    mail.shell
        .run("version retire mail v0 --if-rev 1")
        .exits(REFUSED)
        .tells("not 1");
    mail.shell
        .run("version retire mail v0 --dry-run")
        .exits(OK)
        .says("would be retired");
    let done = mail
        .shell
        .args(&["version", "retire", "mail", "v0", "--why", "too old", "-o", "json"])
        .exits(OK)
        .json();
    assert_eq!((&done["changed"], &done["retired"]), (&json!(true), &json!(true)));
    mail.shell
        .run("version retire mail v0")
        .exits(OK)
        .says("it was so already");
    let v0 = by_name(&mail.shell.json("version ls mail"), "v0");
    assert_eq!(
        (&v0["retired"]["by"], &v0["retired"]["why"]),
        (&json!("alice"), &json!("too old"))
    );
    mail.shell.run("version ls mail").exits(OK).recent().says("retired now");
    mail.shell
        .run("gate history mail")
        .exits(OK)
        .says("version v0 retired: too old");
    let refused = mail
        .shell
        .run("gate set mail candidate=v0 percent=1 --force")
        .exits(REFUSED);
    refused
        .tells("retired version")
        .tells("switchback version restore mail v0");
    mail.shell
        .run("version restore mail v0")
        .exits(OK)
        .says("v0 of mail is back");
    mail.shell
        .run("version restore mail v0")
        .exits(OK)
        .says("is not retired");
    mail.shell.run("gate set mail candidate=v0 percent=1 --force").exits(OK);
}

#[tokio::test]
async fn a_rollback_passes_over_what_is_retired() {
    let mail = Mail::new().await;
    mail.join(&["v0", "v1", "v2"], 4711).await;
    mail.set("active=v1");
    mail.set("active=v2");
    mail.shell
        .run("version retire mail v1 --force")
        .exits(OK)
        .tells("WARNING");
    mail.shell.run("gate rollback mail").exits(OK).says("v0 active");
    // By name it is refused, with the way out: a label that was taken out of use is not reached by accident.
    let refused = mail.shell.run("gate rollback mail --to v1").exits(REFUSED);
    refused
        .tells("retired version")
        .tells("switchback version restore mail");
}
