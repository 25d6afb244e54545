//! How free slots are split among the streams of a claim. Pure.
//!
//! COUNT is per stream, so slots are split before, never summed. A stream that gave all it was asked for is hot and
//! gets a part by its weight; a quiet one is asked for a single task, and not by every claim while others are hot.

use switchback_common::store::claim::{Claim, Want};

use crate::streams::{HIGH, LOW, MAIN};

/// A quiet stream is asked by every so many claims while the main stream is hot: each asking is a command.
const VISIT_EVERY: usize = 4;
/// With fewer slots than streams: how much rarer a quiet stream has its turn.
const QUIET: i64 = 8;

/// Splits slots, and learns from what came.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Whether a stream gave all it was asked for last time.
    hot: Vec<bool>,
    asked: Vec<usize>,
    /// Whose turn it is when there are fewer slots than streams.
    credit: Vec<i64>,
    claims: usize,
}

/// How much a hot stream gets beside the others. Low is never starved, and high never has it all.
fn weight(stream: usize) -> usize {
    match stream {
        HIGH => 6,
        LOW => 1,
        _ => 3,
    }
}

impl Plan {
    pub(crate) fn new(streams: usize) -> Self {
        Self {
            hot: vec![false; streams],
            asked: vec![0; streams],
            credit: vec![0; streams],
            claims: 0,
        }
    }

    /// Splits `free` slots among `places`; the main stream gets what the others leave.
    pub(crate) fn split(&mut self, places: &[usize], free: usize) -> Vec<Want> {
        self.asked.fill(0);
        self.claims = self.claims.wrapping_add(1);
        let wants = if free < places.len() {
            self.take_turns(places, free)
        } else {
            self.by_weight(places, free)
        };
        for want in &wants {
            self.asked[want.stream] = want.count;
        }
        wants
    }

    fn by_weight(&self, places: &[usize], free: usize) -> Vec<Want> {
        let visit = !self.hot[MAIN] || self.claims.is_multiple_of(VISIT_EVERY);
        let sides = || places.iter().copied().filter(|&stream| stream != MAIN);
        let hot = || sides().filter(|&stream| self.hot[stream]);
        let visited = if visit { sides().count() - hot().count() } else { 0 };
        let shared = free - visited;
        let whole = hot().map(weight).sum::<usize>() + weight(MAIN);
        let mut left = free;
        let mut wants = Vec::with_capacity(places.len());
        for stream in sides() {
            let count = match self.hot[stream] {
                true => (shared * weight(stream) / whole).max(1),
                false => usize::from(visit),
            }
            .min(left);
            if count > 0 {
                left -= count;
                wants.push(Want { stream, count });
            }
        }
        if left > 0 {
            wants.push(Want {
                stream: MAIN,
                count: left,
            });
        }
        wants
    }

    /// Fewer slots than streams: turns by weight, so that none waits for ever.
    fn take_turns(&mut self, places: &[usize], free: usize) -> Vec<Want> {
        let share = |hot: bool, stream: usize| {
            let weight = i64::try_from(weight(stream)).unwrap_or(1);
            if hot { weight * QUIET } else { weight }
        };
        let mut total = 0;
        for &stream in places {
            let share = share(self.hot[stream], stream);
            self.credit[stream] += share;
            total += share;
        }
        let mut order = places.to_vec();
        order.sort_by_key(|&stream| -self.credit[stream]);
        order.truncate(free);
        for &stream in &order {
            self.credit[stream] -= total / i64::try_from(free).unwrap_or(1).max(1);
        }
        order.into_iter().map(|stream| Want { stream, count: 1 }).collect()
    }

    /// Asks `stream` for `most` at most.
    pub(crate) fn cap(&mut self, wants: &mut [Want], stream: usize, most: usize) {
        for want in wants.iter_mut().filter(|want| want.stream == stream) {
            want.count = want.count.min(most);
            self.asked[stream] = want.count;
        }
    }

    pub(crate) fn learn(&mut self, claim: &Claim) {
        for (stream, asked) in self.asked.iter().enumerate().filter(|(_, asked)| **asked > 0) {
            let got = claim
                .entries
                .iter()
                .find(|(s, _)| *s == stream)
                .map_or(0, |(_, e)| e.len());
            self.hot[stream] = got >= *asked;
        }
    }
}

#[cfg(test)]
mod tests {
    use switchback_common::{StreamId, store::reply::Entry};

    use super::*;
    use crate::streams::{HEAD, LANES};

    const PLACES: [usize; 5] = [HEAD, LANES, HIGH, LOW, MAIN];

    fn plan(hot: &[usize]) -> Plan {
        let mut plan = Plan::new(LANES + 1);
        for &stream in hot {
            plan.hot[stream] = true;
        }
        plan
    }

    /// What each stream is asked for over `claims` claims in which the hot ones stay hot.
    fn asked(hot: &[usize], free: usize, claims: usize) -> Vec<usize> {
        let mut plan = plan(hot);
        let mut asked = vec![0; LANES + 1];
        for _ in 0..claims {
            for want in plan.split(&PLACES, free) {
                asked[want.stream] += want.count;
            }
        }
        asked
    }

    #[test]
    fn slots_are_split_and_never_summed() {
        for free in 1..60 {
            for hot in 0..32_usize {
                let hot: Vec<usize> = (0..5).filter(|n| hot & (1 << n) != 0).map(|n| PLACES[n]).collect();
                let mut plan = plan(&hot);
                for _ in 0..9 {
                    let wants = plan.split(&PLACES, free);
                    let total: usize = wants.iter().map(|w| w.count).sum();
                    assert!((1..=free).contains(&total), "{free} {hot:?} {wants:?}");
                    assert!(wants.iter().all(|w| w.count > 0), "{wants:?}");
                }
            }
        }
    }

    #[test]
    fn priorities_weigh_and_starve_nobody() {
        let asked = asked(&PLACES, 100, 100);
        assert!(asked[HIGH] > asked[MAIN] && asked[MAIN] > 2 * asked[LOW], "{asked:?}");
        assert!(asked[LOW] >= 500, "{asked:?}");
        assert!(PLACES.iter().all(|&stream| asked[stream] > 0), "{asked:?}");
    }

    #[test]
    fn few_slots_take_turns_by_weight() {
        for free in 1..PLACES.len() {
            let asked = asked(&[HIGH, MAIN, LOW], free, 1_000);
            assert!(PLACES.iter().all(|&stream| asked[stream] >= 5), "{free}: {asked:?}");
            assert!(
                asked[MAIN] >= asked[LOW] && asked[HIGH] >= asked[MAIN],
                "{free}: {asked:?}"
            );
        }
        let alone = asked(&[MAIN], 1, 1_000);
        assert!(alone[MAIN] > 500, "one slot is not wasted on quiet streams: {alone:?}");
    }

    #[test]
    fn a_capped_stream_that_gave_all_it_was_asked_for_is_hot() {
        let mut plan = plan(&[HEAD]);
        let mut wants = plan.split(&PLACES, 50);
        plan.cap(&mut wants, HEAD, 2);
        assert!(wants.contains(&Want { stream: HEAD, count: 2 }), "{wants:?}");
        let entry = |seq| Entry {
            id: StreamId { ms: 1, seq },
            fields: None,
        };
        plan.learn(&Claim {
            entries: vec![(HEAD, vec![entry(1), entry(2)])],
            read: None,
        });
        assert!(plan.hot[HEAD]);
    }

    #[test]
    fn quiet_streams_cost_a_busy_worker_little() {
        let mut plan = plan(&[MAIN]);
        let commands: usize = (0..100).map(|_| plan.split(&PLACES, 100).len()).sum();
        assert!(commands <= 200, "{commands}");
    }
}
