//! A candidate that hangs: nothing of it ends for hours, and it is found all the same.

use std::time::Duration;

use switchback_gates::rollout::{Record, Status};
use switchback_worker::{Context, TaskError};

use crate::{
    fixture::{Fixture, Job},
    rollout::{Fails, QUICK, Traffic, becomes, begin, store},
};

const NEVER: Duration = Duration::from_secs(3600);

async fn hang(_: Job, _: Context) -> Result<(), TaskError> {
    tokio::time::sleep(NEVER).await;
    Ok(())
}

async fn hanging(concurrency: usize) -> Fixture {
    let mut fixture = Fixture::new().await;
    let config = fixture.config();
    fixture
        .worker(config, |t| {
            let t = t.version("v1", Fails::default().handler()).version("v2", hang);
            t.concurrency(concurrency).timeout(NEVER)
        })
        .await;
    fixture
}

// Nothing failed, nothing ended: what still runs is longer than nearly all of v1 took, and that is evidence.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_hangs_is_rolled_back_before_anything_of_it_ends() {
    let fixture = hanging(2_000).await;
    let _traffic = Traffic::begin(&fixture, None);
    begin(&fixture, QUICK).await;
    let record = becomes(&fixture, Status::RolledBack).await;
    let newest = &fixture.gates.history(&fixture.queue, None, 1).await.unwrap()[0];
    assert_eq!(newest.source, "guard");
    assert!(newest.why.contains("v2 at 10 %: p95: v2 "), "{}", newest.why);
    assert_eq!(record.totals.candidate.n, 0, "none of its attempts has ended");
    // Each running attempt counts once, by whoever runs it, and no more than have begun.
    let (fields, _) = store(&fixture).read().await.unwrap();
    let record = Record::parse(&fields).unwrap().unwrap();
    let blocks = store(&fixture)
        .blocks(record.next_block - 30, record.next_block + 2)
        .await
        .unwrap();
    let counted: u64 = blocks
        .iter()
        .flat_map(|(_, fields)| fields)
        .filter(|(name, _)| name == b"v2:o40")
        .map(|(_, n)| std::str::from_utf8(n).unwrap().parse::<u64>().unwrap())
        .sum();
    let running = fixture.depth().await.in_flight();
    assert!(counted >= 1 && counted <= running, "{counted} counted, {running} run");
}
