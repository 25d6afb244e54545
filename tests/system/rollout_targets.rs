//! Rollouts beside targets: whom a person sends to the candidate says nothing about the share of the percent.

use std::time::Duration;

use switchback_gates::rollout::Status;
use switchback_tests::{eventually, patience};
use switchback_worker::{Context, TaskError};
use tokio::task::JoinSet;

use crate::{
    fixture::{Fixture, Job},
    rollout::{QUICK, becomes, begin, record},
};

// Nine of ten tasks go to the candidate because somebody says so: that is no reason to hold, and the rollout goes through.
#[tokio::test(flavor = "multi_thread")]
async fn targets_that_send_nearly_all_to_the_candidate_do_not_hold_it() {
    let mut fixture = Fixture::new().await;
    let config = fixture.config();
    let fine = |_: Job, _: Context| async { Ok::<(), TaskError>(()) };
    fixture
        .worker(config, |t| t.version("v1", fine).version("v2", fine).concurrency(64))
        .await;
    let producer = fixture.producer.clone();
    let mut traffic = JoinSet::new();
    traffic.spawn(async move {
        for n in 0u64.. {
            let job = Job { n, then: String::new() };
            let plan = if n % 10 == 0 { "free" } else { "beta" };
            let _ = producer.enqueue(&job).header("plan", plan).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    // Long enough in its first step for the share to be known.
    let spec = QUICK
        .replace(r#""bake":"1s""#, r#""bake":"4s""#)
        .replace("[10,50,100]", "[10,100]");
    begin(&fixture, &spec).await;
    fixture
        .raw(&["HSET", "sb:gate:{test:job}", "targets", "plan:beta=v2", "by", "bob"])
        .await;
    eventually(
        "the candidate gets far more than its share",
        patience(Duration::from_secs(30)),
        async || {
            let totals = record(&fixture).await.totals;
            totals.candidate.placed > 500 && totals.candidate.n > totals.active.n * 2
        },
    )
    .await;
    let record = becomes(&fixture, Status::Promoted).await;
    assert!(
        !record.events.iter().any(|(_, text)| text.contains("held")),
        "{:?}",
        record.events
    );
    assert!(record.totals.active.placed == 0, "{:?}", record.totals);
    let shown = fixture.gates.show(&fixture.queue).await.unwrap();
    assert_eq!((shown.gate.active.as_str(), shown.gate.targets.len()), ("v2", 1));
}
