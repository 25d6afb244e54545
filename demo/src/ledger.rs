//! What happened, read from the queue's own log and from nothing else.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    time::Duration,
};

use switchback_common::{
    Queue, Store, StoreError, StreamId, TaskId,
    clock::Moment,
    envelope::field,
    store::{
        inspect,
        log::{self, AttemptGroup, Ended},
    },
};
use tokio::sync::watch;

use crate::{Failure, pools::Pools, timeline::Timeline};

/// The version that is rolled back.
pub(crate) const CANDIDATE: &str = "v2";

const PAGE: usize = 1_000;
const LOOK_EVERY: Duration = Duration::from_millis(100);
const SAY_EVERY: Duration = Duration::from_secs(1);
const SAY_ANYWAY: Duration = Duration::from_secs(5);

/// Where the run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tasks done, each counted once.
    pub(crate) done: u64,
    /// Tasks that became dead letters.
    pub(crate) dead: u64,
    pub(crate) v1_done: u64,
    pub(crate) v1_failed: u64,
    pub(crate) v2_done: u64,
    pub(crate) v2_failed: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "v1: {} done, {} failed · v2: {} done, {} failed",
            self.v1_done, self.v1_failed, self.v2_done, self.v2_failed
        )
    }
}

/// Everything the log says about attempts.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    read_to: Option<StreamId>,
    /// For the certificate.
    pub(crate) groups: Vec<AttemptGroup>,
    /// Attempts by version and outcome.
    pub(crate) outcomes: BTreeMap<(String, &'static str), u64>,
    /// The tasks that are done, and the version that did each.
    pub(crate) done_by: HashMap<TaskId, String>,
    /// Tasks done more than once.
    pub(crate) done_again: u64,
    pub(crate) failed_on_candidate: HashSet<TaskId>,
    /// The last task that failed on the candidate.
    pub(crate) last_failure: Option<TaskId>,
    tally: Tally,
}

impl Ledger {
    /// Reads on to the end of the log.
    pub(crate) async fn catch_up(&mut self, store: &Store, queue: &Queue) -> Result<Tally, StoreError> {
        loop {
            let page = log::read(store, queue, self.read_to, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(self.tally);
            };
            self.read_to = Some(last.id);
            for entry in page {
                for group in entry.attempts {
                    self.add(group);
                }
            }
        }
    }

    fn add(&mut self, group: AttemptGroup) {
        let version = group.version.as_str();
        let candidate = version == CANDIDATE;
        for row in &group.tasks {
            let (task, ended) = (&row.0, row.3);
            *self.outcomes.entry((version.to_owned(), ended.as_str())).or_default() += 1;
            let tally = &mut self.tally;
            match ended {
                Ended::Done => {
                    if self.done_by.insert(task.clone(), version.to_owned()).is_some() {
                        self.done_again += 1;
                    } else {
                        tally.done += 1;
                    }
                    *(if candidate {
                        &mut tally.v2_done
                    } else {
                        &mut tally.v1_done
                    }) += 1;
                }
                Ended::Retried | Ended::Dead => {
                    tally.dead += u64::from(ended == Ended::Dead);
                    *(if candidate {
                        &mut tally.v2_failed
                    } else {
                        &mut tally.v1_failed
                    }) += 1;
                    if candidate {
                        self.failed_on_candidate.insert(task.clone());
                        self.last_failure = Some(task.clone());
                    }
                }
                Ended::Released | Ended::Snoozed | Ended::Cancelled | Ended::Revoked | Ended::Other => {}
            }
        }
        self.groups.push(group);
    }

    /// Attempts in all.
    pub(crate) fn attempts(&self) -> u64 {
        self.outcomes.values().sum()
    }
}

/// Follows the log and tells of it until it is dropped; ends only when the log cannot be read or a worker is gone.
pub(crate) async fn follow(
    ledger: &mut Ledger,
    (store, queue): (&Store, &Queue),
    pools: &Pools,
    timeline: &Timeline,
    tell: &watch::Sender<Tally>,
) -> Failure {
    let mut said = (Moment::now(), Tally::default());
    let mut example_shown = false;
    loop {
        let tally = match ledger.catch_up(store, queue).await {
            Ok(tally) => tally,
            Err(error) => return error.into(),
        };
        if let Err(gone) = pools.check() {
            return gone;
        }
        timeline.progress(&tally);
        let pause = said.0.elapsed();
        let failed = (tally.v1_failed, tally.v2_failed) != (said.1.v1_failed, said.1.v2_failed);
        let quiet = timeline.is_plain() && tally != said.1 && pause >= SAY_ANYWAY;
        if (failed && (pause >= SAY_EVERY || !example_shown)) || quiet {
            timeline.say(tally);
            said = (Moment::now(), tally);
        }
        if let Some(task) = ledger.last_failure.as_ref().filter(|_| !example_shown) {
            if let Some(error) = why(store, queue, task).await {
                timeline.note(format_args!("e.g. task {task}: {error}"));
            }
            example_shown = true;
        }
        tell.send_replace(tally);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What the last attempt of a waiting task died of. It may have moved on meanwhile.
async fn why(store: &Store, queue: &Queue, task: &TaskId) -> Option<String> {
    let found = inspect::find(store, queue, task).await.ok()??;
    let (_, errors) = found.fields.iter().find(|(name, _)| name == field::ERRORS.as_bytes())?;
    let errors: Vec<serde_json::Value> = serde_json::from_slice(errors).ok()?;
    errors.last()?["error"].as_str().map(str::to_owned)
}
