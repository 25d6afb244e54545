//! What people and other programs put into a queue by hand.

use std::time::Duration;

use redis::Value;
use switchback_common::{
    envelope::Fields,
    store::{inspect, reply::field_text},
};
use switchback_tests::{eventually, patience};

use crate::fixture::{Fixture, dead_letters};

const STREAM: &str = "sb:stream:{test:job}";

async fn dead(fixture: &Fixture) -> Vec<Fields> {
    let entries = dead_letters(&fixture.store, &fixture.queue).await;
    entries.into_iter().map(|e| e.fields.unwrap()).collect()
}

// Bad input is set aside with its bytes and never blocks the line.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_entries_become_dead_letters_with_their_bytes() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    let mut raw = fixture.server.connection().await;
    let huge = vec![b'x'; 1_100_000];
    type Case<'a> = (&'a [(&'a str, &'a [u8])], &'a str);
    let cases: &[Case<'_>] = &[
        (&[("pay", b"{}")], "no `payload` field"),
        (&[("payload", b"{\"n\":")], "payload is not JSON"),
        (&[("payload", b"\xff\xfe\x00")], "payload is not JSON"),
        (
            &[("payload", b"{\"n\":1}"), ("attempt", b"99999999999999999999")],
            "field `attempt`",
        ),
        (&[("payload", b"{\"n\":1}"), ("deaths", b"-3")], "field `deaths`"),
        (
            &[("payload", b"{\"n\":1}"), ("enqueued_at", b"1e99")],
            "field `enqueued_at`",
        ),
        (&[("payload", b"{\"n\":1}"), ("id", b"a b")], "field `id`"),
        (
            &[("payload", b"{\"n\":1}"), ("headers", b"nonsense")],
            "field `headers`",
        ),
        (&[("payload", huge.as_slice())], "payload of 1100000 bytes"),
    ];
    for (fields, _) in cases {
        let mut cmd = redis::cmd("XADD");
        cmd.arg(STREAM).arg("*");
        for (name, value) in *fields {
            cmd.arg(name).arg(*value);
        }
        let _: String = cmd.query_async(&mut raw).await.unwrap();
    }
    fixture.enqueue_one(7, "").await;
    fixture.drained().await;
    assert_eq!(seen.versions_of(7), ["v1"], "the line went on");
    let dead = dead(&fixture).await;
    assert_eq!(dead.len(), cases.len());
    for (fields, error) in cases {
        let letter = dead
            .iter()
            .find(|letter| {
                fields
                    .iter()
                    .all(|(k, v)| letter.iter().any(|(lk, lv)| lk == k.as_bytes() && lv == v))
            })
            .unwrap_or_else(|| panic!("{error}: its bytes are gone"));
        assert_eq!(field_text(letter, "dead_reason"), "malformed");
        assert!(
            field_text(letter, "dead_error").contains(error),
            "{}",
            field_text(letter, "dead_error")
        );
    }
}

// A foreign producer needs one field; fields that we do not know change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_bare_xadd_is_a_task() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.raw(&["XADD", STREAM, "*", "payload", "{\"n\":1}"]).await;
    fixture
        .raw(&[
            "XADD",
            STREAM,
            "*",
            "payload",
            "{\"n\":2}",
            "version",
            "v99",
            "colour",
            "red",
        ])
        .await;
    fixture.drained().await;
    assert_eq!(seen.versions_of(1), ["v1"]);
    assert_eq!(
        seen.versions_of(2),
        ["v1"],
        "a version on an entry is not how tasks are routed"
    );
    assert!(dead(&fixture).await.is_empty());
}

// JSON of another shape may suit another version: it is retried like any failure.
#[tokio::test(flavor = "multi_thread")]
async fn json_of_another_shape_is_an_ordinary_failure() {
    let mut fixture = Fixture::new().await;
    let (_stop, _) = fixture.simple(&["v1"]).await;
    fixture
        .raw(&["XADD", STREAM, "*", "payload", "{\"n\":\"not a number\"}"])
        .await;
    fixture.drained().await;
    let dead = dead(&fixture).await;
    assert_eq!(field_text(&dead[0], "dead_reason"), "attempts");
    assert!(field_text(&dead[0], "dead_error").starts_with("payload does not fit this version"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_type_that_nobody_handles_waits() {
    let fixture = Fixture::new().await;
    fixture.enqueue([1, 2, 3]).await;
    let queues = inspect::queues(&fixture.store, &fixture.queue.namespace).await.unwrap();
    assert_eq!(queues, std::slice::from_ref(&fixture.queue));
    assert_eq!(fixture.depth().await.waiting(), 3);
}

// P8: nonsense in the gate stops nobody and starts nothing new.
#[tokio::test(flavor = "multi_thread")]
async fn nonsense_in_the_gate_changes_nothing_and_the_kill_switch_still_works() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1", "v2"]).await;
    let gate = "sb:gate:{test:job}";
    for edit in [
        &["active", "v11"][..],
        &["percent", "150"],
        &["active", ""],
        &["actve", "v2"],
        &["candidate", "v2", "percent", "many"],
        &["only", "v9"],
    ] {
        fixture.raw(&[&["HSET", gate][..], edit].concat()).await;
        eventually(
            "the edit is judged and removed",
            patience(Duration::from_secs(5)),
            async || {
                let Value::Array(fields) = fixture.raw(&["HGETALL", gate]).await else {
                    return false;
                };
                fields.len() == 4 // active and paused, nothing else
            },
        )
        .await;
    }
    fixture.enqueue([1]).await;
    fixture.drained().await;
    assert_eq!(seen.versions_of(1), ["v1"]);
    fixture.raw(&["HSET", gate, "paused", "yes", "actve", "v2"]).await;
    eventually("the pause is sealed", patience(Duration::from_secs(5)), async || {
        fixture.gates.show(&fixture.queue).await.unwrap().gate.paused
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_gate_is_written_back_and_nothing_is_lost() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1", "v2"]).await;
    fixture.set(&[("active", "v2")]).await;
    fixture.raw(&["DEL", "sb:gate:{test:job}"]).await;
    fixture.enqueue(0..50).await;
    fixture.drained().await;
    assert!(seen.all().iter().all(|r| r.version == "v2"));
    let shown = fixture.gates.show(&fixture.queue).await.unwrap();
    assert_eq!(shown.gate.active.as_str(), "v2");
    let Value::Array(fields) = fixture.raw(&["HGETALL", "sb:gate:{test:job}"]).await else {
        panic!()
    };
    assert!(!fields.is_empty());
}

// P8: no gate state, no starts; a new state needs a person, or a fresh queue.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_gate_state_nothing_starts() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.raw(&["DEL", "sb:gatestate:{test:job}"]).await;
    fixture.enqueue([1]).await;
    // It is claimed or not, but it does not start: a state is made only by somebody who names a version.
    eventually(
        "the worker has looked and found nothing",
        patience(Duration::from_secs(5)),
        async || fixture.depth().await.waiting() == 0,
    )
    .await;
    assert!(seen.all().is_empty());
    fixture.set(&[("active", "v1")]).await;
    fixture.drained().await;
    assert_eq!(seen.versions_of(1), ["v1"]);
}
