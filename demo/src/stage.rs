//! The order of things: workers, documents and script at once, the end of the queue, the report.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use switchback_common::{Queue, Store, clock::Moment};
use switchback_gates::Gates;
use switchback_producer::Producer;
use tokio::sync::watch;

use crate::{
    Failure,
    corpus::Corpus,
    ledger::{self, Ledger, Tally},
    operator::Operator,
    pace::{self, Pace},
    pools::{self, Pools},
    report::{self, Evidence},
    script::{Flip, Plan, Script},
    timeline::Timeline,
};

const JOIN_LIMIT: Duration = Duration::from_secs(20);
/// After the last rollback; the longest backoff is 2 s.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// Everything that the acts need.
pub(crate) struct Stage<'a> {
    pub(crate) plan: Plan,
    pub(crate) queue: Queue,
    pub(crate) store: Store,
    /// The command line's path, Redis's URL and port.
    pub(crate) operator_of: (PathBuf, String, u16),
    pub(crate) corpus: &'a Corpus,
    pub(crate) index_dir: &'a Path,
}

impl Stage<'_> {
    /// Plays everything, stops the workers, and reports; names the claims that do not hold.
    pub(crate) async fn perform(&self, pools: &Pools, timeline: &mut Timeline) -> Result<Vec<String>, Failure> {
        self.wait_for_workers(pools).await?;
        timeline.say(format_args!(
            "{} worker processes: old-1 and old-2 know v1, new-1 and new-2 know v1 and v2",
            pools::COUNT
        ));
        timeline.show_bar(self.corpus.documents.len());
        let mut ledger = Ledger::default();
        let (enqueued, flips) = {
            let timeline = &*timeline;
            let (tell, mut tally) = watch::channel(Tally::default());
            tokio::select! {
                played = self.play(&mut tally, timeline) => played?,
                failure = ledger::follow(&mut ledger, (&self.store, &self.queue), pools, timeline, &tell) => {
                    return Err(failure);
                }
            }
        };
        let unclean = pools.stop().await?;
        ledger.catch_up(&self.store, &self.queue).await?;
        timeline.hide_bar();
        let operator = self.operator(timeline);
        operator
            .switchback(&["gate", "history", self.queue.task_type.as_str()])
            .await?;
        let evidence = Evidence {
            store: &self.store,
            queue: &self.queue,
            corpus: self.corpus,
            enqueued,
            flips: &flips,
            ledger: &ledger,
            unclean: &unclean,
            index_dir: self.index_dir,
        };
        report::print(&evidence, timeline).await
    }

    /// Enqueues while the script is played, then waits until everything is done.
    async fn play(
        &self,
        tally: &mut watch::Receiver<Tally>,
        timeline: &Timeline,
    ) -> Result<(usize, [Flip; 2]), Failure> {
        let documents = &self.corpus.documents;
        let producer = Producer::new(self.store.clone(), self.queue.namespace.clone());
        let pace = Pace::new(self.plan.enqueue);
        let operator = self.operator(timeline);
        let script = Script {
            plan: self.plan,
            store: &self.store,
            queue: &self.queue,
            gates: Gates::new(&self.store),
            operator: &operator,
            pace: &pace,
        };
        timeline.say(format_args!(
            "enqueueing {} documents over about {} s",
            documents.len(),
            self.plan.enqueue.as_secs()
        ));
        let enqueue = async {
            let enqueued = pace::enqueue(&producer, documents, &pace).await?;
            timeline.say(format_args!("all {enqueued} are enqueued"));
            Ok(enqueued)
        };
        let mut watching = tally.clone();
        let (enqueued, flips) = tokio::try_join!(enqueue, script.play(&mut watching))?;
        let drained = tally.wait_for(|tally| tally.done + tally.dead >= enqueued as u64);
        match tokio::time::timeout(DRAIN_LIMIT, drained).await {
            Ok(_) => timeline.say("all are done"),
            // The report says what is missing.
            Err(_) => timeline.say(format_args!("not all are done after {DRAIN_LIMIT:?}")),
        }
        Ok((enqueued, flips))
    }

    async fn wait_for_workers(&self, pools: &Pools) -> Result<(), Failure> {
        let gates = Gates::new(&self.store);
        let began = Moment::now();
        while gates.live_sessions(&self.queue).await?.len() < pools::COUNT {
            pools.check()?;
            if began.elapsed() >= JOIN_LIMIT {
                return Err(format!("the workers have not joined within {JOIN_LIMIT:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn operator<'t>(&self, timeline: &'t Timeline) -> Operator<'t> {
        let (switchback, redis_url, redis_port) = self.operator_of.clone();
        Operator {
            switchback,
            redis_url,
            redis_port,
            timeline,
        }
    }
}
