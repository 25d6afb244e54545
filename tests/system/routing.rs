//! Who runs what: percent, pins and targets in fleets where no worker has every version.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use redis::Value;
use switchback_common::{
    Queue,
    store::log::{self, LogEntry},
};
use switchback_gates::{Decision, Gate, decide, decide::bucket};
use switchback_tests::{eventually, patience};

use crate::fixture::{Fixture, Job, Ran, Seen};

// The bucket is what anyone can compute, in Redis or anywhere else.
#[tokio::test]
async fn redis_computes_the_same_buckets() {
    let fixture = Fixture::new().await;
    let script = "
        local out = {}
        for i = 2, #ARGV do
          local head = tonumber(string.sub(redis.sha1hex(ARGV[1] .. ':' .. ARGV[i]), 1, 8), 16)
          out[#out + 1] = math.floor(head * 100000 / 4294967296)
        end
        return out";
    let odd = ["", "ä日🎉", "a:b=c d", "\u{0}\r\n", &"x".repeat(256)].map(str::to_owned);
    let keys: Vec<String> = (0..1_000).map(|n| format!("cust-{n}")).chain(odd).collect();
    let task_type = "send_email".parse().unwrap();
    for candidate in ["v2", "2026-11-21.3"] {
        let salt = format!("send_email:{candidate}");
        let mut words = vec!["EVAL", script, "0", &salt];
        words.extend(keys.iter().map(String::as_str));
        let Value::Array(answers) = fixture.raw(&words).await else {
            panic!("no list")
        };
        assert_eq!(answers.len(), keys.len());
        for (key, answer) in keys.iter().zip(answers) {
            let ours = bucket(&task_type, &candidate.parse().unwrap(), key);
            assert_eq!(answer, Value::Int(i64::from(ours)), "{candidate} {key:?}");
        }
    }
}

/// A task of these tests: its number says its key and its headers.
fn key_of(n: u64) -> Option<String> {
    (!n.is_multiple_of(3)).then(|| format!("cust-{}", n % 50))
}

fn headers_of(n: u64) -> BTreeMap<String, String> {
    let plan = ["alpha", "beta", "gamma", "beta2"][usize::try_from(n % 7 % 4).unwrap()];
    let mut headers = BTreeMap::from([("plan".to_owned(), plan.to_owned())]);
    if n.is_multiple_of(11) {
        headers.insert("region".to_owned(), "eu".to_owned());
    }
    headers
}

impl Fixture {
    /// Enqueues tasks with key and headers.
    async fn enqueue_varied(&self, numbers: std::ops::Range<u64>) {
        for n in numbers {
            let job = Job { n, then: String::new() };
            let mut enqueue = self.producer.enqueue(&job);
            if let Some(key) = key_of(n) {
                enqueue = enqueue.key(key);
            }
            for (name, value) in headers_of(n) {
                enqueue = enqueue.header(name, value);
            }
            enqueue.await.unwrap();
        }
    }

    async fn gate(&self) -> Gate {
        self.gates.show(&self.queue).await.unwrap().gate
    }

    async fn log(&self) -> Vec<LogEntry> {
        log::read(&self.store, &self.queue, None, 10_000).await.unwrap()
    }

    /// What the log says of versions that nobody has.
    async fn alerts(&self) -> Vec<String> {
        let alerts = self.log().await.into_iter().filter(|entry| entry.kind == "alert");
        alerts.map(|entry| entry.text).collect()
    }
}

/// Every start was on the version that `decide` gives, and was its task's first and only.
fn as_decided(queue: &Queue, gate: &Gate, ran: &[Ran], tasks: std::ops::Range<u64>) -> HashMap<String, usize> {
    let mut starts: Vec<u64> = ran.iter().map(|r| r.n).collect();
    starts.sort_unstable();
    assert_eq!(starts, tasks.collect::<Vec<_>>(), "each ran once");
    let mut counts = HashMap::new();
    for r in ran {
        let decision = decide(gate, &queue.task_type, &headers_of(r.n), || {
            key_of(r.n).unwrap_or_else(|| r.id.clone())
        });
        assert!(
            matches!(decision, Decision::Run(v) if v.as_str() == r.version),
            "{r:?}: {decision:?}"
        );
        assert_eq!(r.attempt, 1, "P6: handing over burns nothing: {r:?}");
        *counts.entry(r.version.clone()).or_default() += 1;
    }
    counts
}

fn all(seen: &[Seen]) -> Vec<Ran> {
    seen.iter().flat_map(Seen::all).collect()
}

// Each worker lacks what another has; every task still runs where the gate says.
#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_fleet_runs_every_task_where_the_gate_says() {
    let mut fixture = Fixture::new().await;
    let mut seen = Vec::new();
    for versions in [["v1", "v2"], ["v2", "v3"], ["v3", "v4"]] {
        seen.push(fixture.simple(&versions).await.1);
    }
    fixture
        .set(&[
            ("candidate", "v2"),
            ("percent", "35"),
            ("pins", "cust-1=v3 cust-2=v4 cust-4=v1"),
            ("targets", "plan:beta=v3 region:eu=v4 plan:gamma=v1"),
        ])
        .await;
    fixture.enqueue_varied(0..500).await;
    fixture.drained().await;
    let counts = as_decided(&fixture.queue, &fixture.gate().await, &all(&seen), 0..500);
    assert_eq!(counts.len(), 4, "every version had some: {counts:?}");
    let lanes = fixture.log().await.into_iter().flat_map(|entry| entry.attempts);
    assert!(
        lanes.into_iter().any(|group| group.stream.starts_with("lane:")),
        "tasks were handed over"
    );
    assert_eq!(fixture.alerts().await, [""; 0], "nothing was missing");
}

// P6: what nobody can run waits in its lane, costs no attempt, blocks nobody; an alert says so once, and once that it is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_nobody_has_raises_one_alert_and_burns_nothing() {
    let mut fixture = Fixture::new().await;
    let (gone, _) = fixture.simple(&["v4"]).await;
    fixture.stop(&gone).await;
    let mut seen = Vec::new();
    for versions in [["v1", "v2"], ["v2", "v3"], ["v3", "v1"]] {
        seen.push(fixture.simple(&versions).await.1);
    }
    let fields = [
        ("active", "v1"),
        ("candidate", "v2"),
        ("percent", "20"),
        ("targets", "plan:beta=v4"),
    ];
    fixture.set(&fields).await;
    fixture.enqueue_varied(0..300).await;
    let gate = fixture.gate().await;
    let beta = (0..300).filter(|n| headers_of(*n)["plan"] == "beta").count();
    eventually(
        "all but v4's tasks ran",
        patience(Duration::from_secs(20)),
        async || {
            let depth = fixture.depth().await;
            let parked = depth
                .lanes
                .iter()
                .find(|(v, _)| v.as_str() == "v4")
                .unwrap()
                .1
                .waiting();
            let ran = all(&seen).len();
            let fits = ran + beta == 300 && parked == beta as u64 && depth.in_flight() == 0;
            if fits {
                Ok(())
            } else {
                Err(format!("{ran} ran, {parked} parked"))
            }
        },
    )
    .await;
    eventually("the alert is raised", patience(Duration::from_secs(20)), async || {
        !fixture.alerts().await.is_empty()
    })
    .await;

    // Three more looks of three workers raise no second one; nor does a change that leaves it as it is.
    fixture.set(&[("percent", "30")]).await;
    fixture.set(&[("percent", "20")]).await;
    let (_four, last) = fixture.simple(&["v4"]).await;
    seen.push(last);
    fixture.drained().await;
    let counts = as_decided(&fixture.queue, &gate, &all(&seen), 0..300);
    assert_eq!(counts["v4"], beta);
    eventually("the alert is over", patience(Duration::from_secs(20)), async || {
        fixture.alerts().await.len() >= 2
    })
    .await;
    let alerts = fixture.alerts().await;
    assert_eq!(alerts.len(), 2, "{alerts:?}");
    assert!(alerts[0].starts_with("no live worker has v4"), "{alerts:?}");
    assert!(alerts[1].starts_with("a live worker has v4 now"), "{alerts:?}");
    assert_eq!(
        fixture.raw(&["HEXISTS", "sb:versions:{test:job}", ":absent"]).await,
        Value::Int(0)
    );
}

// A flip ends it as well.
#[tokio::test(flavor = "multi_thread")]
async fn an_alert_ends_when_the_gate_turns_away() {
    let mut fixture = Fixture::new().await;
    let (gone, _) = fixture.simple(&["v2"]).await;
    fixture.stop(&gone).await;
    let (_one, _) = fixture.simple(&["v1"]).await;
    fixture
        .set(&[("active", "v1"), ("candidate", "v2"), ("percent", "1")])
        .await;
    eventually("the alert is raised", patience(Duration::from_secs(20)), async || {
        fixture.alerts().await.len() == 1
    })
    .await;
    fixture.raw(&["HSET", "sb:gate:{test:job}", "only", "v1"]).await;
    eventually("the alert is over", patience(Duration::from_secs(20)), async || {
        fixture.alerts().await.len() == 2
    })
    .await;
    let alerts = fixture.alerts().await;
    assert!(alerts[1].contains("sends nothing to v2 any more"), "{alerts:?}");
    assert_eq!(fixture.gate().await.active.as_str(), "v1");
}
