//! The attempts that run: whom a cancellation stops, and how far each says it is.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use switchback_common::{
    TaskId, Version,
    clock::Moment,
    envelope::{Envelope, clip},
    store::results::{MAX_NOTE_BYTES, MAX_REPORTS, Progress, ProgressReport, Report},
};
use tokio_util::sync::CancellationToken;

use crate::{blocks::Counted, session::Session};

/// One attempt that runs.
#[derive(Debug)]
pub(crate) struct Run {
    /// Tells it from others that had its place.
    serial: u64,
    id: TaskId,
    enqueued_at_ms: u64,
    /// What it runs on, and the revision that said so.
    pub(crate) version: Version,
    rev: u64,
    pub(crate) started: Moment,
    /// Its key's fingerprint, if it began while blocks were counted.
    pub(crate) key: Option<u64>,
    pub(crate) counted: Counted,
    token: CancellationToken,
    /// Only of those that reported something.
    said: Option<Box<Said>>,
}

#[derive(Debug)]
struct Said {
    progress: Progress,
    attempt: u32,
    version: Version,
    keep: Duration,
    written: bool,
}

/// The attempts that run, in places that are used again: one more costs no allocation.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    runs: Vec<Option<Run>>,
    free: Vec<usize>,
    serial: u64,
    /// Every handler was told to end, also those to come.
    over: bool,
}

/// Where an attempt is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunId {
    place: usize,
    serial: u64,
}

impl Running {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters an attempt, decided for `version` under `rev`; `token` tells its handler to end.
    pub(crate) fn add(
        &self,
        task: &Envelope,
        (version, rev): (&Version, u64),
        (started, key): (Moment, Option<u64>),
        token: &CancellationToken,
    ) -> RunId {
        let first = task.attempt == 0 && task.recovered == 0;
        let mut run = Run {
            serial: 0,
            id: task.id.clone(),
            enqueued_at_ms: task.enqueued_at_ms,
            version: version.clone(),
            rev,
            started,
            key,
            counted: if first { Counted::Nothing } else { Counted::Never },
            token: token.clone(),
            said: None,
        };
        let mut places = self.places();
        if places.over {
            token.cancel();
        }
        places.serial += 1;
        let serial = places.serial;
        run.serial = serial;
        let place = match places.free.pop() {
            Some(place) => {
                places.runs[place] = Some(run);
                place
            }
            None => {
                places.runs.push(Some(run));
                places.runs.len() - 1
            }
        };
        RunId { place, serial }
    }

    /// Takes an attempt out, and tells what it said last, and how much of its length is counted.
    pub(crate) fn remove(&self, id: RunId) -> (Option<Progress>, Counted) {
        let mut places = self.places();
        let run = places.runs[id.place].take();
        places.free.push(id.place);
        drop(places);
        let Some(run) = run else { return (None, Counted::Never) };
        (run.said.map(|said| said.progress), run.counted)
    }

    /// Shows each.
    pub(crate) fn each(&self, show: impl FnMut(&mut Run)) {
        self.places().runs.iter_mut().flatten().for_each(show);
    }

    /// Tells all to end, also those to come.
    pub(crate) fn stop_all(&self) {
        let mut places = self.places();
        places.over = true;
        places.runs.iter().flatten().for_each(|run| run.token.cancel());
    }

    /// Tells those that `stops` speaks of to end.
    pub(crate) fn stop(&self, stops: impl Fn(&TaskId, u64) -> bool) {
        let places = self.places();
        for run in places.runs.iter().flatten() {
            if stops(&run.id, run.enqueued_at_ms) {
                run.token.cancel();
            }
        }
    }

    /// Tells those to end whose version and revision `stops` speaks of. Returns how many were not told before.
    pub(crate) fn stop_decided(&self, stops: impl Fn(&Version, u64) -> bool) -> usize {
        let mut told = 0;
        for run in self.places().runs.iter().flatten() {
            if !run.token.is_cancelled() && stops(&run.version, run.rev) {
                run.token.cancel();
                told += 1;
            }
        }
        told
    }

    /// Notes what an attempt says; `false` if it has ended.
    fn say(&self, id: RunId, said: Said) -> bool {
        let mut places = self.places();
        match &mut places.runs[id.place] {
            Some(run) if run.serial == id.serial => {
                match &mut run.said {
                    Some(before) => **before = said,
                    before => *before = Some(Box::new(said)),
                }
                true
            }
            _ => false,
        }
    }

    /// What was said and is not on its way yet, at most one call's worth, and whether that is all.
    pub(crate) fn unwritten(&self) -> (Vec<ProgressReport>, bool) {
        let mut out = Vec::new();
        for run in self.places().runs.iter_mut().flatten() {
            let Some(said) = run.said.as_mut().filter(|said| !said.written) else {
                continue;
            };
            if out.len() == MAX_REPORTS {
                return (out, false);
            }
            said.written = true;
            out.push(ProgressReport {
                task: run.id.clone(),
                keep: said.keep,
                tail: Report {
                    attempt: said.attempt,
                    version: Some(said.version.clone()),
                    progress: Some(said.progress.clone()),
                    ..Report::default()
                }
                .tail(),
            });
        }
        (out, true)
    }
}

/// An attempt's way to say how far it is.
#[derive(Clone)]
pub(crate) struct Reporter {
    pub(crate) session: Arc<Session>,
    pub(crate) run: RunId,
    pub(crate) keep: Duration,
}

impl Reporter {
    /// Notes it, and lets the reporter loop write it: never waits for Redis.
    pub(crate) fn say(&self, attempt: u32, version: &Version, done: u64, total: u64, note: &str) {
        let said = Said {
            progress: Progress {
                done,
                total,
                note: clip(note, MAX_NOTE_BYTES).to_owned(),
            },
            attempt,
            version: version.clone(),
            keep: self.keep,
            written: false,
        };
        if self.session.running.say(self.run, said) {
            self.session.reported.notify_one();
        }
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reporter").field(&self.run).finish()
    }
}

#[cfg(test)]
mod tests {
    use switchback_common::StreamId;

    use super::*;

    const NOW: (Moment, Option<u64>) = (Moment::long_ago(), None);

    fn task(id: &str) -> Envelope {
        let fields = vec![
            (b"payload".to_vec(), b"1".to_vec()),
            (b"id".to_vec(), id.as_bytes().to_vec()),
        ];
        Envelope::decode(0, StreamId::default(), fields, 10).unwrap()
    }

    fn v1() -> Version {
        "v1".parse().unwrap()
    }

    fn said(done: u64) -> Said {
        Said {
            progress: Progress {
                done,
                ..Progress::default()
            },
            attempt: 1,
            version: "v1".parse().unwrap(),
            keep: Duration::from_secs(1),
            written: false,
        }
    }

    #[test]
    fn whoever_has_ended_speaks_for_nobody_else() {
        let running = Running::default();
        let (one, two) = (CancellationToken::new(), CancellationToken::new());
        let first = running.add(&task("x"), (&v1(), 1), NOW, &one);
        assert!(running.say(first, said(1)));
        assert_eq!(running.remove(first).0.map(|p| p.done), Some(1));
        let second = running.add(&task("y"), (&v1(), 1), NOW, &two);
        assert_eq!(second.place, first.place, "places are used again");
        assert!(!running.say(first, said(9)));
        running.stop(|id, _| *id == "y".parse().unwrap());
        assert!(two.is_cancelled() && !one.is_cancelled());
        assert_eq!(running.remove(second).0, None);
        let (old, new) = (CancellationToken::new(), CancellationToken::new());
        let runs = [
            running.add(&task("old"), (&v1(), 6), NOW, &old),
            running.add(&task("new"), (&v1(), 7), NOW, &new),
        ];
        let before = |version: &Version, rev| *version == v1() && rev < 7;
        assert_eq!((running.stop_decided(before), running.stop_decided(before)), (1, 0));
        assert!(old.is_cancelled() && !new.is_cancelled());
        let _ = runs.map(|run| running.remove(run));
        let three = CancellationToken::new();
        running.add(&task("z"), (&v1(), 1), NOW, &three);
        running.stop_all();
        assert!(three.is_cancelled(), "told to end");
        let late = CancellationToken::new();
        running.add(&task("late"), (&v1(), 1), NOW, &late);
        assert!(late.is_cancelled(), "as is whoever comes later");
    }

    #[test]
    fn the_latest_word_is_written_once() {
        let running = Running::default();
        let run = running.add(&task("x"), (&v1(), 1), NOW, &CancellationToken::new());
        assert!(running.say(run, said(1)) && running.say(run, said(2)));
        let (reports, all) = running.unwritten();
        assert!(
            all && reports.len() == 1 && reports[0].tail.contains("\"done\":2"),
            "{reports:?}"
        );
        assert!(running.unwritten().0.is_empty());
    }
}
