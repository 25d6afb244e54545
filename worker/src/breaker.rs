//! The circuit breaker of one version: when its attempts fail, it stops starting them. Pure.
//!
//! Closed: attempts start, and how they end is counted over a window. Open: nothing starts. Half-open, after a while: one
//! attempt starts as a probe; its success closes the circuit, its failure opens it again.

use std::{collections::VecDeque, time::Duration};

use switchback_common::clock::Moment;

/// Parts of the window that are forgotten one at a time.
const BUCKETS: u32 = 10;
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(3600);

/// When a version counts as broken. Off unless a task type asks for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Breaker {
    failures: f64,
    min_samples: u32,
    window: Duration,
    open_for: Duration,
}

impl Breaker {
    /// Opens when, of at least `min_samples` attempts that ended within `window`, the share `failures` (above 0, up to 1)
    /// failed, timed out or panicked; tries again with a single attempt after `open_for`. Durations are from 10 ms to 1 h.
    #[must_use]
    pub fn new(failures: f64, min_samples: u32, window: Duration, open_for: Duration) -> Self {
        Self {
            failures,
            min_samples,
            window,
            open_for,
        }
    }

    /// What is wrong with it, if anything is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let sane = |duration| (SHORTEST..=LONGEST).contains(&duration);
        if !(self.failures > 0.0 && self.failures <= 1.0) {
            Some("the share of failures of a breaker must be above 0 and at most 1")
        } else if self.min_samples == 0 {
            Some("a breaker needs at least 1 sample")
        } else if !sane(self.window) || !sane(self.open_for) {
            Some("window and open_for of a breaker must be between 10 ms and 1 h")
        } else {
            None
        }
    }

    pub(crate) fn open_for(&self) -> Duration {
        self.open_for
    }
}

/// Whether attempts may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum May {
    /// None.
    None,
    /// A single one.
    One,
    /// Any.
    Any,
}

/// An attempt's leave to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// One of many, in this era.
    Sample(u64),
    /// The one that decides.
    Probe,
}

/// What an attempt's end did to the circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It opened: so many failed, of so many.
    Opened { failed: u32, samples: u32 },
    /// The probe failed.
    StaysOpen,
    /// The probe succeeded.
    Closed,
}

/// The circuit of one version.
#[derive(Debug)]
pub(crate) struct Circuit {
    breaker: Breaker,
    /// Grows whenever it closes: attempts that began before do not count.
    era: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Closed(VecDeque<Bucket>),
    Open { until: Moment, probing: bool },
}

#[derive(Debug)]
struct Bucket {
    number: u128,
    failed: u32,
    samples: u32,
}

impl Circuit {
    pub(crate) fn new(breaker: Breaker) -> Self {
        Self {
            breaker,
            era: 0,
            state: State::Closed(VecDeque::new()),
        }
    }

    pub(crate) fn may(&self, now: Moment) -> May {
        match &self.state {
            State::Closed(_) => May::Any,
            State::Open { until, probing } if !probing && now >= *until => May::One,
            State::Open { .. } => May::None,
        }
    }

    /// When the next probe may start; `None`: now, or when the one that runs has ended.
    pub(crate) fn probe_at(&self) -> Option<Moment> {
        match &self.state {
            State::Open { until, probing: false } => Some(*until),
            _ => None,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Asks for leave to start an attempt. Every leave is ended by [`Circuit::end`].
    pub(crate) fn ask(&mut self, now: Moment) -> Option<Leave> {
        let may = self.may(now);
        match &mut self.state {
            State::Closed(_) => Some(Leave::Sample(self.era)),
            State::Open { probing, .. } => (may == May::One).then(|| {
                *probing = true;
                Leave::Probe
            }),
        }
    }

    /// An attempt ended: it failed, or not, or (`None`) nothing can be told from how it ended.
    pub(crate) fn end(&mut self, leave: Leave, failed: Option<bool>, now: Moment) -> Option<Turn> {
        match (&mut self.state, leave, failed) {
            (State::Closed(buckets), Leave::Sample(era), Some(failed)) if era == self.era => {
                let width = (self.breaker.window / BUCKETS).as_nanos().max(1);
                let number = u128::from(now.as_nanos()) / width;
                while buckets
                    .front()
                    .is_some_and(|b| b.number + u128::from(BUCKETS) <= number)
                {
                    buckets.pop_front();
                }
                match buckets.back_mut() {
                    Some(last) if last.number >= number => {
                        last.samples += 1;
                        last.failed += u32::from(failed);
                    }
                    _ => buckets.push_back(Bucket {
                        number,
                        failed: u32::from(failed),
                        samples: 1,
                    }),
                }
                let samples: u32 = buckets.iter().map(|b| b.samples).sum();
                let failures: u32 = buckets.iter().map(|b| b.failed).sum();
                let broken = f64::from(failures) >= self.breaker.failures * f64::from(samples);
                // Only a failure opens: a success must not, however the window moves.
                if !failed || samples < self.breaker.min_samples || !broken {
                    return None;
                }
                self.state = self.opened(now);
                Some(Turn::Opened {
                    failed: failures,
                    samples,
                })
            }
            (State::Open { .. }, Leave::Probe, Some(true)) => {
                self.state = self.opened(now);
                Some(Turn::StaysOpen)
            }
            (State::Open { .. }, Leave::Probe, Some(false)) => {
                self.era += 1;
                self.state = State::Closed(VecDeque::new());
                Some(Turn::Closed)
            }
            (State::Open { probing, .. }, Leave::Probe, None) => {
                *probing = false;
                None
            }
            // Began before it opened, or before it closed again.
            _ => None,
        }
    }

    fn opened(&self, now: Moment) -> State {
        State::Open {
            until: now + self.breaker.open_for,
            probing: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);
    const OPEN: Duration = Duration::from_secs(5);

    fn circuit(failures: f64, min_samples: u32) -> Circuit {
        Circuit::new(Breaker::new(failures, min_samples, WINDOW, OPEN))
    }

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(1_000_000_000_000) + Duration::from_millis(ms)
    }

    fn attempt(circuit: &mut Circuit, ms: u64, failed: bool) -> Option<Turn> {
        let leave = circuit.ask(at(ms)).unwrap();
        circuit.end(leave, Some(failed), at(ms))
    }

    #[test]
    fn it_opens_at_the_share_and_not_before_the_samples() {
        let mut c = circuit(0.5, 4);
        assert_eq!(attempt(&mut c, 0, true), None);
        assert_eq!(attempt(&mut c, 1, true), None);
        assert_eq!(attempt(&mut c, 2, false), None);
        assert_eq!(attempt(&mut c, 3, true), Some(Turn::Opened { failed: 3, samples: 4 }));
        assert_eq!((c.may(at(3)), c.ask(at(4_000))), (May::None, None));
        assert_eq!(c.probe_at(), Some(at(5_003)));
    }

    #[test]
    fn old_failures_are_forgotten() {
        let mut c = circuit(0.5, 3);
        attempt(&mut c, 0, true);
        attempt(&mut c, 0, true);
        assert_eq!(attempt(&mut c, 11_000, true), None, "a window later");
        assert_eq!(attempt(&mut c, 11_000, true), None);
        assert!(attempt(&mut c, 11_000, true).is_some());
    }

    #[test]
    fn one_probe_decides() {
        let mut c = circuit(1.0, 1);
        let late = c.ask(at(0)).unwrap();
        attempt(&mut c, 1, true).unwrap();
        assert_eq!(c.end(late, Some(false), at(2)), None, "began before it opened");
        let probe = c.ask(at(6_000)).unwrap();
        assert_eq!((probe, c.ask(at(6_000))), (Leave::Probe, None), "one");
        assert_eq!(c.end(probe, Some(true), at(7_000)), Some(Turn::StaysOpen));
        assert_eq!(c.may(at(11_999)), May::None);
        let probe = c.ask(at(12_000)).unwrap();
        assert_eq!(c.end(probe, None, at(12_000)), None);
        let probe = c.ask(at(12_000)).unwrap();
        assert_eq!(c.end(probe, Some(false), at(12_001)), Some(Turn::Closed));
        assert_eq!(c.may(at(12_001)), May::Any);
        assert_eq!(c.end(late, Some(true), at(12_002)), None, "of an era long gone");
    }

    proptest! {
        // Whatever happens: never more than one attempt at once from opening to closing, none before its time, and it
        // opens exactly when the window says so.
        #[test]
        fn it_holds_the_line(
            steps in proptest::collection::vec((0_u64..3_000, 0_usize..8, proptest::option::of(any::<bool>()), any::<bool>()), 1..200),
            min_samples in 1_u32..6,
        ) {
            let mut c = circuit(0.5, min_samples);
            let mut out: Vec<Leave> = Vec::new();
            let mut now = 0;
            let mut opened_at = None;
            for (wait, pick, how, start) in steps {
                now += wait;
                if start {
                    if let Some(leave) = c.ask(at(now)) {
                        if let Some(opened) = opened_at {
                            prop_assert_eq!(leave, Leave::Probe);
                            prop_assert!(now >= opened + 5_000, "{} {}", now, opened);
                            prop_assert!(!out.contains(&Leave::Probe), "a second probe");
                        } else {
                            prop_assert!(matches!(leave, Leave::Sample(_)));
                        }
                        out.push(leave);
                    } else {
                        prop_assert!(opened_at.is_some(), "a closed circuit refuses nobody");
                    }
                } else if !out.is_empty() {
                    let leave = out.swap_remove(pick % out.len());
                    match c.end(leave, how, at(now)) {
                        Some(Turn::Opened { failed, samples }) => {
                            prop_assert!(opened_at.is_none() && how == Some(true));
                            prop_assert!(samples >= min_samples && 2 * failed >= samples);
                            opened_at = Some(now);
                        }
                        Some(Turn::StaysOpen) => {
                            prop_assert!(leave == Leave::Probe && how == Some(true));
                            opened_at = Some(now);
                        }
                        Some(Turn::Closed) => {
                            prop_assert!(leave == Leave::Probe && how == Some(false));
                            opened_at = None;
                        }
                        None => {}
                    }
                }
                prop_assert_eq!(c.is_open(), opened_at.is_some());
            }
        }
    }
}
