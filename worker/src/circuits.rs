//! The circuits of a task type, one per version: what they let start, what is read meanwhile, and what people are told.

use std::sync::{Mutex, MutexGuard, PoisonError};

use switchback_common::{Version, clock::Moment, store::claim::Want};
use switchback_gates::Gate;
use tokio::sync::Notify;

use crate::{
    breaker::{Breaker, Circuit, Leave, May, Turn},
    handler::{ErrorKind, TaskError},
    session::Session,
    streams::LANES,
};

/// Circuits by version, in the order of the versions; none if the task type has no breaker.
#[derive(Debug)]
pub(crate) struct Circuits {
    breaker: Option<Breaker>,
    list: Vec<(Version, Mutex<Circuit>)>,
    /// A circuit opened or closed, or its probe is over.
    pub(crate) turned: Notify,
}

impl Circuits {
    pub(crate) fn new(breaker: Option<Breaker>, versions: &[Version]) -> Self {
        let list = breaker.map_or_else(Vec::new, |breaker| {
            let circuit = || Mutex::new(Circuit::new(breaker));
            versions.iter().map(|v| (v.clone(), circuit())).collect()
        });
        Self {
            breaker,
            list,
            turned: Notify::new(),
        }
    }

    fn of(&self, version: &Version) -> Option<MutexGuard<'_, Circuit>> {
        let (_, circuit) = self.list.iter().find(|(v, _)| v == version)?;
        Some(lock(circuit))
    }

    /// Leave to start an attempt on `version`; `None`: its circuit is open.
    pub(crate) fn ask<'a>(&'a self, version: &'a Version) -> Option<Permit<'a>> {
        let leave = match self.of(version) {
            Some(mut circuit) => Some(circuit.ask(Moment::now())?),
            None => None,
        };
        Some(Permit {
            circuits: self,
            leave: leave.map(|leave| (leave, version)),
        })
    }

    /// Whether `version` starts nothing now.
    pub(crate) fn holds(&self, version: &Version) -> bool {
        self.of(version)
            .is_some_and(|circuit| circuit.may(Moment::now()) == May::None)
    }

    /// Of `places`, those to read while circuits are open: no lane of an open version, and nothing at all when no version
    /// of ours that the gate reaches may start anything (P6: the tasks stay where they are).
    pub(crate) fn readable(&self, mut places: Vec<usize>, gate: &Gate) -> Vec<usize> {
        if self.most(gate) == 0 {
            return Vec::new();
        }
        let now = Moment::now();
        for (n, (_, circuit)) in self.list.iter().enumerate() {
            if lock(circuit).may(now) == May::None {
                places.retain(|&place| place != LANES + n);
            }
        }
        places
    }

    /// The most that may be claimed at once: everything, a single task as a probe, or nothing.
    pub(crate) fn most(&self, gate: &Gate) -> usize {
        let now = Moment::now();
        let reached = self.list.iter().filter(|(version, _)| gate.reaches(version));
        match reached.map(|(_, circuit)| lock(circuit).may(now)).max() {
            None | Some(May::Any) => usize::MAX,
            Some(May::One) => 1,
            Some(May::None) => 0,
        }
    }

    /// A lane whose version is to be probed is asked for one task.
    pub(crate) fn trim(&self, wants: &mut [Want]) {
        for want in wants {
            let own = want.stream.checked_sub(LANES).and_then(|n| self.list.get(n));
            if own.is_some_and(|(_, circuit)| lock(circuit).may(Moment::now()) != May::Any) {
                want.count = want.count.min(1);
            }
        }
    }

    /// When the next probe may start; `None`: not before the gate or a circuit changes.
    pub(crate) fn probe_at(&self, gate: &Gate) -> Option<Moment> {
        let reached = |version| !gate.paused && gate.reaches(version);
        let reached = self.list.iter().filter(|(version, _)| reached(version));
        reached.filter_map(|(_, circuit)| lock(circuit).probe_at()).min()
    }

    /// The versions whose circuits are open.
    pub(crate) fn open(&self) -> Vec<&Version> {
        let open = self.list.iter().filter(|(_, circuit)| lock(circuit).is_open());
        open.map(|(version, _)| version).collect()
    }
}

fn lock(circuit: &Mutex<Circuit>) -> MutexGuard<'_, Circuit> {
    circuit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Leave to start one attempt. Dropped without a word (the attempt did not start, or was given back), it says nothing
/// about its version.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    circuits: &'a Circuits,
    leave: Option<(Leave, &'a Version)>,
}

impl Permit<'_> {
    /// The attempt came to an end of its own.
    pub(crate) fn ended(mut self, session: &Session, error: Option<&TaskError>) {
        let failed = match error.map(|error| error.kind) {
            None => Some(false),
            Some(ErrorKind::Failed | ErrorKind::RetryAfter(_)) => Some(true),
            // The task's own fault, or nobody's.
            Some(ErrorKind::Rejected | ErrorKind::Malformed | ErrorKind::Snoozed(_)) => None,
        };
        let Some((leave, version)) = self.leave.take() else {
            return;
        };
        let turn = self
            .circuits
            .of(version)
            .and_then(|mut circuit| circuit.end(leave, failed, Moment::now()));
        self.circuits.turned.notify_waiters();
        if let Some(turn) = turn {
            tell(session, version, turn);
            // What is read changes with it.
            session.ruling_changed.notify_waiters();
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some((leave, version)) = self.leave.take()
            && let Some(mut circuit) = self.circuits.of(version)
        {
            circuit.end(leave, None, Moment::now());
            drop(circuit);
            self.circuits.turned.notify_waiters();
        }
    }
}

fn tell(session: &Session, version: &Version, turn: Turn) {
    let queue = &session.queue;
    let open_for = session.spec.circuits.breaker.map_or(0, |b| b.open_for().as_millis());
    match turn {
        Turn::Opened { failed, samples } => tracing::error!(
            queue.name = %queue, task.version = %version, failed, samples, probe.after_ms = open_for,
            "{failed} of {samples} attempts failed: this worker starts nothing on {version} but a probe now and then, and its tasks wait"
        ),
        Turn::StaysOpen => tracing::warn!(
            queue.name = %queue, task.version = %version, probe.after_ms = open_for,
            "the probe of {version} failed; its tasks go on waiting"
        ),
        Turn::Closed => tracing::info!(
            queue.name = %queue, task.version = %version, "the probe of {version} succeeded; its tasks start again"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    // Whoever waits for a probe that nobody may make would wait no time at all, again and again.
    #[test]
    fn what_the_gate_does_not_reach_is_not_probed() {
        let versions: [Version; 2] = ["v1".parse().unwrap(), "v2".parse().unwrap()];
        let second = Duration::from_secs(1);
        let circuits = Circuits::new(Some(Breaker::new(1.0, 1, second, second)), &versions);
        let long_ago = Moment::now();
        for (version, at) in versions.iter().zip([long_ago, long_ago + second]) {
            let mut circuit = circuits.of(version).unwrap();
            let leave = circuit.ask(at).unwrap();
            circuit.end(leave, Some(true), at);
        }
        let mut gate = Gate::new(versions[1].clone());
        assert_eq!(circuits.probe_at(&gate), Some(long_ago + second * 2));
        gate.paused = true;
        assert_eq!(circuits.probe_at(&gate), None);
    }
}
