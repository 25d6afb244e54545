//! What is played: ramp, roll back by command, ramp again, roll back by raw HSET.

use std::time::Duration;

use switchback_common::{
    Queue, Store,
    clock::Moment,
    store::{inspect, keyspace::Key},
};
use switchback_gates::Gates;
use tokio::sync::watch;

use crate::{
    Failure,
    ledger::{CANDIDATE, Tally},
    operator::Operator,
    pace::Pace,
    pools,
};

/// How long everything takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Texts are repeated up to so many documents.
    pub(crate) least: usize,
    /// No more texts than this.
    pub(crate) most: usize,
    /// Enqueueing.
    pub(crate) enqueue: Duration,
    /// Before each ramp.
    lead: Duration,
    /// At 10 %.
    tenth: Duration,
    /// At 50 %.
    half: Duration,
    /// How much longer a ramp waits for v2 to fail at all.
    unlucky: Duration,
}

impl Plan {
    /// About a minute.
    pub(crate) const FULL: Self = Self {
        least: 1_000,
        most: 3_000,
        enqueue: Duration::from_secs(30),
        lead: Duration::from_secs(4),
        tenth: Duration::from_secs(4),
        half: Duration::from_secs(4),
        unlucky: Duration::from_secs(20),
    };
    /// Less than half a minute.
    pub(crate) const QUICK: Self = Self {
        least: 400,
        most: 400,
        enqueue: Duration::from_secs(8),
        lead: Duration::from_millis(800),
        tenth: Duration::from_secs(1),
        half: Duration::from_millis(1_200),
        unlucky: Duration::from_secs(6),
    };
}

/// A rollback, measured.
#[derive(Debug)]
pub(crate) struct Flip {
    /// What was done.
    pub(crate) how: &'static str,
    /// From the commit, by Redis's clock, until the last worker had confirmed it.
    pub(crate) from_commit: Duration,
    /// The same from before the command was started.
    pub(crate) from_start: Duration,
    /// Workers that confirmed it.
    pub(crate) confirmed: usize,
    /// What v2 failed while it was ramped.
    pub(crate) failed_before: u64,
}

/// Plays the acts on one queue.
#[derive(Debug)]
pub(crate) struct Script<'a> {
    pub(crate) plan: Plan,
    pub(crate) store: &'a Store,
    pub(crate) queue: &'a Queue,
    pub(crate) gates: Gates,
    pub(crate) operator: &'a Operator<'a>,
    pub(crate) pace: &'a Pace,
}

/// When all workers had confirmed a revision.
struct Confirmed {
    at: Moment,
    /// The same by Redis's clock, µs.
    at_us: u64,
    workers: usize,
}

impl Script<'_> {
    /// Both ramps with their rollbacks.
    pub(crate) async fn play(&self, tally: &mut watch::Receiver<Tally>) -> Result<[Flip; 2], Failure> {
        Ok([self.first(tally).await?, self.second(tally).await?])
    }

    async fn first(&self, tally: &mut watch::Receiver<Tally>) -> Result<Flip, Failure> {
        let failed_before = self.ramp("a faster stemmer", tally).await?;
        let why = "v2 panics on real names";
        let rollback = [
            "gate",
            "rollback",
            self.queue.task_type.as_str(),
            "--why",
            why,
            "--wait",
        ];
        let command = self.operator.switchback(&rollback);
        self.measure("by command", failed_before, command).await
    }

    async fn second(&self, tally: &mut watch::Receiver<Tally>) -> Result<Flip, Failure> {
        let failed_before = self.ramp("a faster stemmer, second try", tally).await?;
        let gate = self.store.keyspace().render(&Key::Gate(self.queue.clone()));
        let edit = ["HSET", gate.as_str(), "only", "v1"];
        let command = self.operator.redis(&edit);
        self.measure("by raw HSET", failed_before, command).await
    }

    /// Runs the rollback while it watches the workers obey.
    async fn measure(
        &self,
        how: &'static str,
        failed_before: u64,
        command: impl Future<Output = Result<(), Failure>>,
    ) -> Result<Flip, Failure> {
        let rev = self.gates.show(self.queue).await?.rev + 1;
        let began = Moment::now();
        let (done, confirmed) = tokio::join!(command, self.confirmed(rev));
        done?;
        let confirmed = confirmed?;
        let history = self.gates.history(self.queue, None, 20).await?;
        let committed = history.iter().find(|entry| entry.kind == "change" && entry.rev == rev);
        let committed_us = committed.ok_or("the rollback is not in the history")?.at_us;
        self.check_rolled_back().await?;
        Ok(Flip {
            how,
            from_commit: Duration::from_micros(confirmed.at_us.saturating_sub(committed_us)),
            from_start: confirmed.at.since(began),
            confirmed: confirmed.workers,
            failed_before,
        })
    }

    /// 10 %, then 50 %, until v2 has failed; tells how often it did.
    async fn ramp(&self, why: &str, tally: &mut watch::Receiver<Tally>) -> Result<u64, Failure> {
        tokio::time::sleep(self.plan.lead).await;
        let before = tally.borrow().v2_failed;
        let (queue, candidate) = (self.queue.task_type.as_str(), format!("candidate={CANDIDATE}"));
        let begin = ["gate", "set", queue, &candidate, "percent=10", "--why", why];
        self.operator.switchback(&begin).await?;
        tokio::time::sleep(self.plan.tenth).await;
        self.operator.switchback(&["gate", "set", queue, "percent=50"]).await?;
        tokio::time::sleep(self.plan.half).await;
        // An unlucky share: sticky percent gave v2 only documents that it can take.
        let began = Moment::now();
        let step = Duration::from_millis(200);
        let mut all = false;
        while tally.borrow().v2_failed == before && began.elapsed() < self.plan.unlucky {
            if !all && began.elapsed() >= self.plan.unlucky / 2 {
                self.operator.switchback(&["gate", "set", queue, "percent=100"]).await?;
                all = true;
            }
            self.pace.stretch(step);
            let _ = tokio::time::timeout(step, tally.changed()).await;
        }
        Ok(tally.borrow().v2_failed - before)
    }

    /// Waits until every worker obeys `rev`, looking as often as it can without being the load.
    async fn confirmed(&self, rev: u64) -> Result<Confirmed, Failure> {
        let began = Moment::now();
        loop {
            let seen = self.gates.wait(self.queue, rev, Duration::ZERO).await?;
            if seen.missing.is_empty() {
                return Ok(Confirmed {
                    at: Moment::now(),
                    at_us: inspect::time_us(self.store).await?,
                    workers: seen.confirmed,
                });
            }
            if began.elapsed() >= Duration::from_secs(10) {
                let missing = pools::COUNT - seen.confirmed.min(pools::COUNT);
                return Err(format!("{missing} workers have not confirmed revision {rev} after 10 s").into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn check_rolled_back(&self) -> Result<(), Failure> {
        let gate = self.gates.show(self.queue).await?.gate;
        let reachable = gate.reachable();
        if reachable.iter().any(|version| version.as_str() == CANDIDATE) {
            return Err(format!("{CANDIDATE} is still reachable after the rollback: {gate}").into());
        }
        Ok(())
    }
}
