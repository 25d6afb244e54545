//! The gatekeeper: looks at the gate when somebody touched it, and every second; says which revision is obeyed;
//! sweeps lanes that are no longer routed to.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use switchback_common::{
    StoreError, Version,
    clock::Moment,
    store::{inspect, moves, session::Lives},
};
use switchback_gates::Gate;

use crate::session::Session;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);
/// How often while attempts run that a flip left behind: somebody may wait for them to end.
const LOOK_OFTEN: Duration = Duration::from_millis(250);
/// Lanes are swept when the gate changes, a moment later: everybody's word that it is obeyed comes first.
const SWEEP_AFTER: Duration = Duration::from_millis(25);
/// And this often otherwise, for what a slow worker handed over late.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// P10: most lanes asked in one look; nearly all are empty.
const LANES: usize = 16;

type Published = Option<(u64, BTreeMap<Version, u32>)>;

/// Looks until the session is over: also while it only finishes what it runs, for whoever waits for its word.
pub(crate) async fn run(session: Arc<Session>) {
    let mut published = None;
    let mut sweeper = Sweeper::new();
    let mut grumbled = false;
    while !session.board.is_lost() {
        let wait = match look(&session, &mut published, &mut sweeper).await {
            Ok(wait) => {
                grumbled = false;
                wait
            }
            Err(error) => {
                session.pulse.trouble(&error);
                if !std::mem::replace(&mut grumbled, true) {
                    tracing::warn!(queue.name = %session.queue, %error, "cannot look at the gate; nothing starts until it can be read");
                }
                LOOK_EVERY
            }
        };
        tokio::select! {
            () = session.gate_touched.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Looks once; tells when to look again.
async fn look(session: &Session, published: &mut Published, sweeper: &mut Sweeper) -> Result<Duration, StoreError> {
    let Some(obeyed) = session.reader.read_now(session).await? else {
        return Ok(LOOK_EVERY);
    };
    session.board.obey(obeyed.ruling.rev);
    session.probes.heard(obeyed.signals.probe, obeyed.time_us);
    // Before the count is read: whatever ends after that is the last one, and calls.
    let gate = &obeyed.ruling.gate;
    let left_behind = session
        .board
        .await_last(|version| !gate.paused && gate.reaches(version));
    let every = if left_behind { LOOK_OFTEN } else { LOOK_EVERY };
    // Read after `obey`: from here on nothing starts under an older revision, so saying so is true.
    let report = session.board.report();
    let news = published.as_ref().is_none_or(|(rev, _)| *rev < report.0);
    if news || published.as_ref() != Some(&report) {
        let running = serde_json::to_string(&report.1).unwrap_or_default();
        if session.sessions.publish(&session.id, report.0, &running).await? == Lives::Lost {
            session.lose();
            return Ok(every);
        }
        *published = Some(report);
    }
    if news {
        session.ruling_changed.notify_waiters();
        sweeper.begin_anew(session);
    }
    // Whoever stays has the lanes to sweep.
    if session.closing.is_cancelled() {
        return Ok(every);
    }
    let next = sweeper.sweep(session, gate).await;
    Ok(next.since(Moment::now()).clamp(MOMENT, every))
}

/// Brings back what lies in lanes that nobody is routed to any more: a step per look, however much that is. Somebody may
/// wait for the word that the gate is obeyed, and the next step is to be taken under the gate as it is then.
struct Sweeper {
    at: Moment,
    /// What is left of this round: lanes, and how many tasks each has given.
    lanes: VecDeque<(Version, u64)>,
    /// Lanes that cannot be swept, each said once.
    stuck: BTreeSet<Version>,
    grumbled: bool,
}

impl Sweeper {
    fn new() -> Self {
        Self {
            at: Moment::now(),
            lanes: VecDeque::new(),
            stuck: BTreeSet::new(),
            grumbled: false,
        }
    }

    /// The gate has changed, and with it the lanes to sweep.
    fn begin_anew(&mut self, session: &Session) {
        for (version, total) in self.lanes.drain(..) {
            say_swept(session, &version, total);
        }
        self.at = Moment::now() + SWEEP_AFTER;
    }

    /// Sweeps if it is time to; tells when it is time again. Trouble is said here: the gate can be looked at.
    async fn sweep(&mut self, session: &Session, gate: &Gate) -> Moment {
        if Moment::now() < self.at {
            return self.at;
        }
        // Whatever comes of this, Redis is not asked again at once.
        self.at = Moment::now() + SWEEP_EVERY;
        match self.step(session, gate).await {
            Ok(more) => {
                self.grumbled = false;
                if more {
                    self.at = Moment::now() + MOMENT;
                }
            }
            Err(error) => {
                self.lanes.clear();
                if !std::mem::replace(&mut self.grumbled, true) {
                    tracing::warn!(queue.name = %session.queue, %error, "cannot sweep lanes; what lies in those of withdrawn versions waits");
                }
            }
        }
        self.at
    }

    /// P5: tasks in lanes that nobody is routed to any more go back and pass the gate again. Returns whether there is more
    /// to sweep.
    async fn step(&mut self, session: &Session, gate: &Gate) -> Result<bool, StoreError> {
        if self.lanes.is_empty() {
            let versions = inspect::versions(&session.store, &session.queue).await?;
            let withdrawn = versions.into_iter().filter(|version| !gate.reaches(version));
            self.lanes = withdrawn.map(|version| (version, 0)).collect();
        }
        for _ in 0..LANES {
            let Some((version, total)) = self.lanes.pop_front() else {
                break;
            };
            match moves::sweep(&session.store, &session.queue, &version, &session.id).await {
                Ok(0) => {
                    self.stuck.remove(&version);
                    say_swept(session, &version, total);
                }
                Ok(moved) => {
                    // The other lanes need not wait for the last of it.
                    self.lanes.push_back((version, total + moved));
                    break;
                }
                // Redis answers: it is this lane, and the others can be swept.
                Err(error @ StoreError::Redis { .. }) => {
                    say_swept(session, &version, total);
                    if self.stuck.insert(version.clone()) {
                        tracing::error!(
                            queue.name = %session.queue, task.version = %version, %error,
                            "the lane of {version} cannot be swept, and what lies in it waits. If its group is gone, create it again with XGROUP CREATE … workers 0; if it is no stream, take it away"
                        );
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(!self.lanes.is_empty())
    }
}

fn say_swept(session: &Session, version: &Version, tasks: u64) {
    if tasks > 0 {
        tracing::info!(queue.name = %session.queue, task.version = %version, tasks, "swept the lane of a version that is no longer routed to");
    }
}
