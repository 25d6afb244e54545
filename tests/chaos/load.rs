//! The load: which task comes next, purely; and a few lanes that enqueue at a steady pace and write down what they know.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use switchback_common::{Task, clock::Moment};
use switchback_producer::Producer;
use switchback_tests::history::{Enqueue, Outcome};
use tokio::{task::JoinSet, time::MissedTickBehavior};

use crate::schedule::Dice;

const LANES: u64 = 4;
/// Tasks a second, over all lanes.
const RATE: u64 = 300;

/// What a task asks of the test worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Probe {
    pub n: u64,
    pub work_ms: u64,
    pub then: String,
}

impl Task for Probe {
    const TYPE: &'static str = "probe";
}

/// How a task is sent.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Plain,
    Keyed,
    WithId,
}

/// The task with number `n` of the run with this seed.
fn task(seed: u64, n: u64) -> (Probe, Sent) {
    let mut dice = Dice::new(seed ^ (n << 20));
    let then = match dice.roll(10_000) {
        0..=299 => "fail_once",
        300..=449 => "panic_once",
        450..=489 => "fail",
        490..=509 => "panic",
        510..=549 => "reject",
        // Takes its whole process along.
        550..=552 => "abort_once",
        553..=570 => "block",
        _ => "",
    };
    let work_ms = match dice.roll(1_000) {
        // Longer than a lease.
        0..=5 => 2_500,
        6..=20 => dice.between(100, 400),
        21..=400 => dice.between(1, 20),
        _ => 0,
    };
    let sent = match dice.roll(10) {
        0..=5 => Sent::Plain,
        6..=7 => Sent::Keyed,
        _ => Sent::WithId,
    };
    let work_ms = if then == "block" { 30 } else { work_ms };
    let then = then.to_owned();
    (Probe { n, work_ms, then }, sent)
}

/// The lanes, running.
pub struct Load {
    records: Arc<Mutex<Vec<Enqueue>>>,
    stop: Arc<AtomicBool>,
    lanes: JoinSet<()>,
}

impl Load {
    pub fn start(seed: u64, producer: &Producer) -> Self {
        let (records, stop) = (Arc::<Mutex<Vec<Enqueue>>>::default(), Arc::new(AtomicBool::new(false)));
        let mut lanes = JoinSet::new();
        for lane in 0..LANES {
            let (producer, records, stop) = (producer.clone(), Arc::clone(&records), Arc::clone(&stop));
            lanes.spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_micros(LANES * 1_000_000 / RATE));
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut n = lane;
                while !stop.load(Ordering::Acquire) {
                    pace.tick().await;
                    let record = enqueue(&producer, seed, n).await;
                    let held_back = record.outcome == Outcome::Refused;
                    records.lock().unwrap().push(record);
                    n += LANES;
                    if held_back {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            });
        }
        Self { records, stop, lanes }
    }

    /// Ends the lanes, each after what it is at.
    pub async fn stop(mut self) -> Vec<Enqueue> {
        self.stop.store(true, Ordering::Release);
        while let Some(lane) = self.lanes.join_next().await {
            lane.expect("a lane broke");
        }
        std::mem::take(&mut self.records.lock().unwrap())
    }
}

/// Enqueues one; with an id, again and again until Redis has said something.
async fn enqueue(producer: &Producer, seed: u64, n: u64) -> Enqueue {
    let (probe, how) = task(seed, n);
    let key = (how == Sent::Keyed).then(|| format!("customer-{}", n % 97));
    let id = (how == Sent::WithId).then(|| format!("own-{n}"));
    let sent = Moment::now().as_nanos();
    let mut unknown = false;
    let (id, outcome) = loop {
        let mut request = producer.enqueue(&probe);
        if let Some(key) = &key {
            request = request.key(key);
        }
        if let Some(id) = &id {
            request = request.id(id);
        }
        match request.await {
            Ok(id) => break (Some(id.to_string()), Outcome::Acknowledged),
            Err(error) if error.is_outcome_unknown() && id.is_none() => break (None, Outcome::Unknown),
            Err(error) if error.is_outcome_unknown() || unknown => {
                unknown = true;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(_) => break (id, Outcome::Refused),
        }
    };
    Enqueue {
        n,
        id,
        key,
        then: probe.then,
        sent,
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_the_seeds_and_mixed() {
        let mut kinds = std::collections::BTreeSet::new();
        for n in 0..20_000 {
            let (probe, sent) = task(3, n);
            let (again, same) = task(3, n);
            assert_eq!((&probe.then, probe.work_ms, &sent), (&again.then, again.work_ms, &same));
            kinds.insert(probe.then);
        }
        assert_eq!(kinds.len(), 8, "{kinds:?}");
    }
}
