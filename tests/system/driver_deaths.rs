//! Rollouts whose workers die at moments that dice choose: whoever drives, or anybody, is killed, or frozen for a while; the
//! driver's lease runs out, or is lost. A good candidate takes every step once, a bad one is rolled back once, and a person
//! wins. `SB_DEATHS_SEED=n` throws the dice of one run again; what they hit depends on the moment.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use redis::Value;
use switchback_common::{
    clock::Moment,
    store::{
        log::{self, Ended},
        reply::{Entry, field_text},
    },
};
use switchback_gates::{
    Gate,
    certificate::Revisions,
    rollout::{Record, Status, rolled_back},
};
use switchback_tests::{Flip, Link, Mode, Process, eventually, patience};

use crate::{
    fixture::dead_letters,
    rollout::{LONG, Pools, assert_each_step_once, begin, record, store},
};

const WORKERS: usize = 4;
const START_TTL: Duration = Duration::from_millis(250);
/// Shorter, and longer, than the second that a session's lease lasts here.
const FREEZES_MS: (u64, u64) = (100, 2_500);
/// How often a driver's lease may run out by itself, which takes 5 s; else it is lost at once.
const SLOW: usize = 1;
/// How far away Redis is for the workers, one way.
const AWAY: Duration = Duration::from_millis(25);

/// Its deaths are as many on both versions, so what they cost is no evidence; but with a hundred runs a day one in twenty is
/// too much to be wrong by chance.
const GOOD: &str = r#"{"steps":[10,30,60,100],"bake":"1s","min_samples":30,"extend":100,"watch":"1s",
    "guard":{"block_secs":1,"alpha":0.0001,"promote_margin":0.1,"baseline_min":50,"burn":{"active_min":20}}}"#;
/// The shares are small, so that something happens before it is known.
const BAD: &str = r#"{"steps":[4,8,50,100],"bake":"20s","min_samples":30,"extend":100,"watch":"1s",
    "guard":{"block_secs":1,"alpha":0.001,"promote_margin":0.1,"baseline_min":50,"burn":{"active_min":20}}}"#;
/// Long enough for a person to come in between.
const LONG_STEPS: &str = r#"{"steps":[5,10,15,20,25,30,35,40,45,50,100],"bake":"1s","min_samples":5,"extend":100,"watch":"1h",
    "guard":{"block_secs":1,"alpha":0.0001,"promote_margin":0.1,"baseline_min":50,"burn":{"active_min":20}}}"#;

/// The same seed gives the same throws.
struct Dice(u64);

impl Dice {
    /// `nth`: each test has dice of its own.
    fn of_test(nth: u64) -> Self {
        let seed = std::env::var("SB_DEATHS_SEED").ok().filter(|text| !text.is_empty());
        let seed: u64 = seed.map_or(1, |text| text.parse().expect("SB_DEATHS_SEED: a whole number"));
        println!("SB_DEATHS_SEED={seed}");
        Self((seed * 8 + nth).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn between(&mut self, (from, to): (u64, u64)) -> Duration {
        Duration::from_millis(from + self.roll(to - from))
    }
}

/// A fleet, and what happens to it.
struct Deaths {
    pools: Pools,
    /// Each of its commands takes a while, so that what happens falls between the commands of a step.
    link: Link,
    dice: Dice,
    /// Who stands still, by process id, and until when.
    frozen: Vec<(u32, Instant)>,
    slow: usize,
    /// How often whoever drove was killed or frozen.
    drivers: usize,
    began: Instant,
}

impl Deaths {
    async fn new(nth: u64) -> Self {
        let mut pools = Pools::new(0).await;
        let link = Link::to(pools.fixture.server.port()).await;
        link.set(Mode::Delay(AWAY)).await;
        for _ in 0..WORKERS {
            pools.add_at(&link.url()).await;
        }
        Self {
            dice: Dice::of_test(nth),
            pools,
            link,
            frozen: Vec::new(),
            slow: 0,
            drivers: 0,
            began: Instant::now(),
        }
    }

    fn says(&self, what: &str) {
        println!("{:>6} ms: {what}", self.began.elapsed().as_millis());
    }

    /// One thing happens to the fleet, which has all its workers again afterwards, though some may stand still.
    async fn one(&mut self) {
        tokio::time::sleep(self.dice.between((50, 700))).await;
        let drives = self.pools.driver_now().await;
        let (whom, what, lose) = (self.dice.roll(3), self.dice.roll(5), self.dice.roll(3));
        let random = usize::try_from(self.dice.roll(WORKERS as u64)).unwrap();
        let place = drives.filter(|_| whom > 0).unwrap_or(random);
        let drove = drives == Some(place);
        let who = if drove { "the driver" } else { "a worker" };
        self.drivers += usize::from(drove);
        match what {
            0 | 1 => {
                self.says(&format!("{who} is killed"));
                let (process, _) = self.pools.all.remove(place);
                process.kill9();
                self.frozen.retain(|(pid, _)| *pid != process.pid());
                self.pools.add_at(&self.link.url()).await;
            }
            2 | 3 => {
                let length = self.dice.between(FREEZES_MS);
                self.says(&format!("{who} stands still for {length:?}"));
                let (process, _) = &self.pools.all[place];
                process.stop();
                self.frozen.push((process.pid(), Instant::now() + length));
            }
            _ => {}
        }
        if what == 4 || drove && (lose > 0 || self.slow == SLOW) {
            self.says("the driver's lease is lost");
            self.pools.fixture.raw(&["DEL", "sb:driver:{test:probe}"]).await;
        } else if drove {
            self.slow += 1;
        }
        self.thaw(Instant::now());
    }

    /// Lets those go on whose time has come.
    fn thaw(&mut self, now: Instant) {
        for (process, _) in &self.pools.all {
            if self
                .frozen
                .iter()
                .any(|(pid, until)| *pid == process.pid() && *until <= now)
            {
                process.cont();
            }
        }
        self.frozen.retain(|(_, until)| *until > now);
    }

    /// Things happen for so long.
    async fn happen(&mut self, length: Duration) {
        let until = Instant::now() + length;
        while Instant::now() < until {
            self.one().await;
        }
    }

    /// Things happen until the rollout has this status; then all go on.
    async fn until(&mut self, status: Status) -> Record {
        let limit = Instant::now() + patience(LONG);
        loop {
            let record = record(&self.pools.fixture).await;
            if record.status == status {
                self.says(&format!("the rollout is {status}"));
                self.thaw(Instant::now() + LONG);
                return record;
            }
            assert!(
                Instant::now() < limit && (record.status.is_live() || status.is_live()),
                "not {status} but {}: {} {:#?}",
                record.status,
                record.verdict(),
                record.events
            );
            self.one().await;
        }
    }

    /// How many entries the gate's history has, and what the gate says.
    async fn gate(&self) -> (usize, String) {
        let fixture = &self.pools.fixture;
        let history = fixture.gates.history(&fixture.queue, None, 1_000).await.unwrap();
        let gate = fixture.gates.show(&fixture.queue).await.unwrap().gate;
        (history.len(), gate.to_string())
    }

    /// A person's command, beside whatever happens to the fleet in that moment.
    async fn person(&mut self, line: &str) {
        self.says(&format!("a person: {line}"));
        let url = self.pools.fixture.server.url();
        let words = ["--redis", &url, "--namespace", "test"];
        let words = words.into_iter().chain(line.split(' ')).chain(["--by", "bob"]);
        let command = Process::start("switchback", words, [("RUST_LOG", "warn")]);
        self.one().await;
        let ended = command.wait().await;
        assert!(ended.success(), "{line}: {ended} {:?}", command.lines());
    }

    /// Some time in which things happen.
    async fn moment(&mut self) {
        let length = self.dice.between((0, 1_500));
        self.happen(length).await;
    }

    /// What the gate says now, and after some more deaths.
    async fn stays(&mut self) -> String {
        let before = self.gate().await;
        self.happen(Duration::from_millis(1_500)).await;
        assert_eq!(self.gate().await, before);
        before.1
    }
}

/// P1, P3: by the log, each task is done once, or is a dead letter because it was alone in one process too many that was
/// killed; and no attempt was decided late.
async fn assert_kept(deaths: &Deaths) {
    let fixture = &deaths.pools.fixture;
    fixture.drained().await;
    let history = fixture.gates.history(&fixture.queue, None, 1_000).await.unwrap();
    let revisions = Revisions::from_history(&history);
    let entries = log::read(&fixture.store, &fixture.queue, None, 100_000).await.unwrap();
    let groups: Vec<_> = entries.iter().flat_map(|entry| &entry.attempts).collect();
    for group in &groups {
        assert!(revisions.late(group).is_empty(), "{group:?}");
    }
    let dead = dead_letters(&fixture.store, &fixture.queue).await;
    let of = |entry: &Entry, name: &str| field_text(entry.fields.as_ref().unwrap(), name);
    assert!(
        dead.iter().all(|entry| of(entry, "dead_reason") == "poison"),
        "{dead:?}"
    );
    let rows: Vec<_> = groups.iter().flat_map(|group| &group.tasks).collect();
    let mut done: Vec<_> = rows
        .iter()
        .filter(|row| row.3 == Ended::Done)
        .map(|row| row.0.to_string())
        .collect();
    done.extend(dead.iter().map(|entry| of(entry, "id")));
    let count = done.len();
    done.sort();
    done.dedup();
    assert_eq!(count, done.len(), "each once");
    let all: HashSet<_> = rows.iter().map(|row| row.0.to_string()).collect();
    assert!(all.iter().all(|id| done.binary_search(id).is_ok()));
}

// P9, P4: nobody steps twice, nobody steps back, whoever dies.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_candidate_takes_each_step_once_whoever_dies() {
    let mut deaths = Deaths::new(0).await;
    let traffic = deaths.pools.traffic("");
    begin(&deaths.pools.fixture, GOOD).await;
    let record = deaths.until(Status::Promoted).await;
    assert_each_step_once(&deaths.pools.fixture, &record).await;
    assert!(deaths.drivers > 2, "{} drivers", deaths.drivers);
    drop(traffic);
    assert_kept(&deaths).await;
}

// P3: one rollback, nothing on v2 after it, and nobody tries v2 again, whoever drives next.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_candidate_is_rolled_back_once_whoever_dies() {
    let mut deaths = Deaths::new(1).await;
    let traffic = deaths.pools.traffic("fail_once");
    begin(&deaths.pools.fixture, BAD).await;
    let began = Moment::now();
    let over = deaths.until(Status::RolledBack).await;
    let seen = Moment::now();
    let after = deaths.gate().await;
    assert_eq!(after.1, "v1 active");
    // Somebody has to drive again, as if the end of the rollout had not come through.
    let id = over.id.to_string();
    for _ in 0..2 {
        let signal = ["HSET", "sb:gatestate:{test:probe}", "rollout", &id];
        deaths.pools.fixture.raw(&signal).await;
        deaths.happen(Duration::from_millis(1_200)).await;
    }
    deaths.thaw(Instant::now() + LONG);
    eventually("the signal is out", patience(LONG), async || {
        let signal = ["HGET", "sb:gatestate:{test:probe}", "rollout"];
        deaths.pools.fixture.raw(&signal).await == Value::BulkString(b"0".to_vec())
    })
    .await;
    drop(traffic);
    assert_kept(&deaths).await;
    let fixture = &deaths.pools.fixture;
    let last = record(fixture).await;
    assert_eq!(
        (last.id, last.status, last.rev, last.step),
        (over.id, Status::RolledBack, over.rev, 0)
    );
    assert_eq!(deaths.gate().await, after, "nothing since");
    let history = fixture.gates.history(&fixture.queue, None, 1_000).await.unwrap();
    let made: Vec<(&str, u64)> = history.iter().map(|e| (e.source.as_str(), e.rev)).collect();
    assert_eq!(made, [("guard", over.rev), ("rollout", over.rev - 1), ("seed", 1)]);
    let entry = store(fixture).version_entry(&"v2".parse().unwrap()).await.unwrap();
    assert_eq!(rolled_back(&entry).map(|back| back.rev), Some(over.rev), "{entry}");
    let entries = log::read(&fixture.store, &fixture.queue, None, 100_000).await.unwrap();
    let told = entries
        .iter()
        .filter(|e| e.text.starts_with("rolled back from v2"))
        .count();
    assert_eq!(told, 1, "it is told once");
    // By the processes' own books: neither the certificate nor the log is asked.
    let mut witness = deaths.pools.witness();
    let flip = |at, version: &str| Flip {
        sent: at,
        replied: at,
        version: version.to_owned(),
    };
    witness.flipped(flip(seen, "v1"));
    let late = witness.late(START_TTL);
    assert_eq!(late.count(), 0, "{late:?}");
    let on_v2 = witness
        .starts()
        .into_iter()
        .filter(|s| s.version == "v2" && s.at >= began);
    assert!(on_v2.count() > 5, "v2 has run");
}

// A person's word holds: nobody who drives next takes it back, and nobody who stood still meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_wins_whoever_dies() {
    let mut deaths = Deaths::new(2).await;
    let _traffic = deaths.pools.traffic("");
    begin(&deaths.pools.fixture, LONG_STEPS).await;

    deaths.moment().await;
    deaths.person("rollout pause probe").await;
    let paused = record(&deaths.pools.fixture).await;
    assert_eq!(paused.status, Status::Paused, "{:?}", paused.events);
    let gate = deaths.gate().await;
    // Longer than the step would have taken.
    deaths.happen(Duration::from_millis(1_500)).await;
    let still = record(&deaths.pools.fixture).await;
    assert_eq!(
        (still.status, still.step),
        (Status::Paused, paused.step),
        "{:?}",
        still.events
    );
    assert_eq!(deaths.gate().await, gate);
    deaths.person("rollout resume probe").await;

    deaths.moment().await;
    match deaths.dice.roll(2) {
        0 => deaths.person("gate set probe percent=33 --force").await,
        _ => {
            deaths.says("a person: HSET … percent 33");
            let edit = ["HSET", "sb:gate:{test:probe}", "percent", "33", "by", "bob"];
            deaths.pools.fixture.raw(&edit).await;
        }
    }
    let over = deaths.until(Status::Overruled).await;
    assert!(over.reason.contains("bob ("), "{}", over.reason);
    assert_eq!(deaths.stays().await, "v1 active, v2 at 33 %");

    begin(&deaths.pools.fixture, LONG_STEPS).await;
    deaths.moment().await;
    deaths.person("rollout abort probe").await;
    assert_eq!(record(&deaths.pools.fixture).await.status, Status::Aborted);
    assert_eq!(deaths.stays().await, Gate::new("v1".parse().unwrap()).to_string());
}
