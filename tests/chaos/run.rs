//! One run: a Redis, a fleet, a load; the schedule is carried out, everything is healed, and the history put together.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use redis::Value;
use switchback_common::{ConnectOptions, Queue, Store, clock::Moment, store::inspect};
use switchback_producer::Producer;
use switchback_tests::{
    Mode, RedisServer, eventually,
    history::{Event, Flip, History, Terms, Violation, check, load_files, load_redis, write_jsonl},
    patience,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep_until};

use crate::{
    fleet::{Fleet, MAX_ATTEMPTS, START_TTL},
    gate::Hand,
    load::Load,
    schedule::{Act, FLEET, PRODUCER, Schedule, Turn, VERSIONS, Wire},
};

const QUEUE: &str = "test:probe";
/// Healed, and nothing has moved for so long: what is left will not move any more.
const STILL: Duration = Duration::from_secs(12);

/// A run that is over.
pub struct Run {
    pub seed: u64,
    pub hash: u64,
    pub history: History,
    pub violations: Vec<Violation>,
    /// What was done, by kind.
    pub done: BTreeMap<&'static str, usize>,
    /// Where everything is, if something is wrong.
    pub kept: Option<PathBuf>,
}

/// Carries out a schedule, under the load of `seed`, with workers that have these faults.
pub async fn run(seed: u64, schedule: &Schedule, faults: &str) -> Run {
    let directory = tempfile::Builder::new().prefix("switchback-chaos-").tempdir().unwrap();
    // Written before every reply, as ever, so that a killed server comes back with all it acknowledged. With `everysec`
    // Redis holds a write back while it syncs; it is the machine that syncing is about, and that is not killed here.
    let server = RedisServer::builder()
        .aof(true)
        .arg("--appendfsync", "no")
        .start()
        .await;
    let mut fleet = Fleet::new(server.port(), directory.path(), faults).await;
    let store = Store::new(&ConnectOptions::new(server.url())).unwrap();
    let queue = Queue::new("test".parse().unwrap(), "probe".parse().unwrap());
    for worker in 0..FLEET.len() {
        fleet.start(worker);
        joined(&server, worker + 1).await;
    }
    let by_link = ConnectOptions::new(fleet.links[PRODUCER].url());
    let producer = Producer::connect(&by_link, "test".parse().unwrap()).await.unwrap();
    let load = Load::start(seed, &producer);
    let mut driver = Driver {
        server: &server,
        fleet: &mut fleet,
        hand: Hand::new(&server, &store, &queue),
        down: [false; FLEET.len()],
        done: BTreeMap::new(),
        events: Vec::new(),
    };
    driver.carry_out(schedule).await;
    driver.heal().await;
    let enqueues = load.stop().await;
    driver.drain(&store, &queue).await;
    let Driver {
        hand, done, mut events, ..
    } = driver;
    let flips: Vec<Flip> = hand.flips;
    fleet.end().await;

    events.push(Event::Terms(Terms {
        task_type: queue.task_type.to_string(),
        start_ttl_ms: u64::try_from(START_TTL.as_millis()).unwrap(),
        max_attempts: MAX_ATTEMPTS,
        healed: true,
    }));
    events.extend(enqueues.into_iter().map(Event::Enqueue));
    events.extend(flips.into_iter().map(Event::Flip));
    let files = fleet.files();
    events.extend(load_files(files.iter().map(PathBuf::as_path)));
    events.extend(load_redis(&server, QUEUE).await);
    let history = History::new(&events);
    let violations = check(&history);
    let kept = (!violations.is_empty()).then(|| keep(directory, &fleet, &server, schedule, &events, &violations));
    Run {
        seed,
        hash: schedule.hash(),
        history,
        violations,
        done,
        kept,
    }
}

fn keep(
    directory: TempDir,
    fleet: &Fleet,
    server: &RedisServer,
    schedule: &Schedule,
    events: &[Event],
    violations: &[Violation],
) -> PathBuf {
    let path = directory.keep();
    let steps: Vec<String> = schedule
        .steps
        .iter()
        .map(|s| format!("{:>7} {:?}", s.at_ms, s.act))
        .collect();
    let violations: Vec<String> = violations.iter().map(ToString::to_string).collect();
    fleet.write_logs().unwrap();
    write_jsonl(&path.join("history.jsonl"), events).unwrap();
    std::fs::write(path.join("schedule.txt"), steps.join("\n")).unwrap();
    std::fs::write(path.join("violations.txt"), violations.join("\n")).unwrap();
    std::fs::write(path.join("redis.log"), server.log()).unwrap();
    path
}

async fn joined(server: &RedisServer, workers: usize) {
    eventually(
        "the workers have joined",
        patience(Duration::from_secs(30)),
        async || {
            let Value::Array(names) = server.cli(&["HKEYS", "sb:sessions:{test:probe}"]).await else {
                return false;
            };
            let published = |name: &&Value| matches!(name, Value::BulkString(b) if b.ends_with(b":rev"));
            names.iter().filter(published).count() == workers
        },
    )
    .await;
}

struct Driver<'a> {
    server: &'a RedisServer,
    fleet: &'a mut Fleet,
    hand: Hand<'a>,
    /// Without a process on purpose.
    down: [bool; FLEET.len()],
    done: BTreeMap<&'static str, usize>,
    events: Vec<Event>,
}

impl Driver<'_> {
    /// One step after the other, each at its time or as soon as the one before is over.
    async fn carry_out(&mut self, schedule: &Schedule) {
        let begin = Instant::now();
        for step in &schedule.steps {
            sleep_until(begin + Duration::from_millis(step.at_ms)).await;
            self.supervise();
            if let Some(kind) = step.act.kind() {
                self.note(kind, format!("{:?}", step.act));
            }
            self.act(step.act).await;
        }
    }

    fn note(&mut self, kind: &'static str, what: String) {
        *self.done.entry(kind).or_default() += 1;
        let at = Moment::now().as_nanos();
        self.events.push(Event::Fault { at, what });
    }

    /// Starts again whoever ended without being asked to.
    fn supervise(&mut self) {
        for worker in self.fleet.ended() {
            if !self.down[worker] {
                self.note("process aborted", format!("worker {worker} ended by itself"));
                self.fleet.start(worker);
            }
        }
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Kill { worker } => {
                self.down[worker] = true;
                self.fleet.kill(worker);
            }
            Act::Term { worker } => {
                self.down[worker] = true;
                self.fleet.term(worker);
            }
            Act::Start { worker } => {
                self.down[worker] = false;
                self.fleet.start(worker);
            }
            Act::Freeze { worker } => self.fleet.freeze(worker),
            Act::Thaw { worker } => self.fleet.thaw(worker),
            Act::Cut { link } => self.fleet.links[link].cut().await,
            Act::Break { link, wire } => self.fleet.links[link].set(mode(wire)).await,
            Act::Mend { link } => self.fleet.links[link].set(Mode::Pass).await,
            Act::RedisRestart => self.server.restart().await,
            Act::RedisCrash => {
                self.server.kill9();
                self.server.restart().await;
            }
            Act::ScriptFlush => {
                self.server.cli(&["SCRIPT", "FLUSH", "SYNC"]).await;
            }
            Act::MemoryLow => {
                self.server.cli(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
            }
            Act::MemoryBack => {
                self.server.cli(&["CONFIG", "SET", "maxmemory", "0"]).await;
            }
            Act::Flip { turn, raw } => self.hand.turn(turn, raw).await,
        }
    }

    /// The schedule ends every trouble of its own; what is left is an open gate, and who aborted just now.
    async fn heal(&mut self) {
        self.hand.turn(Turn::Only { version: VERSIONS[0] }, true).await;
        self.hand.turn(Turn::Resume, true).await;
        self.down = [false; FLEET.len()];
        self.fleet.heal();
    }

    /// Until nothing waits, runs or is delayed; or nothing moves any more, which the checker will have something to say about.
    async fn drain(&mut self, store: &Store, queue: &Queue) {
        let (mut quiet, mut moved, mut last) = (0, Instant::now(), Vec::new());
        while quiet < 2 && moved.elapsed() < patience(STILL) {
            self.supervise();
            tokio::time::sleep(Duration::from_millis(100)).await;
            let Ok(depth) = inspect::depth(store, queue).await else {
                continue;
            };
            let open = depth.waiting() + depth.in_flight() + depth.delayed;
            quiet = if open == 0 { quiet + 1 } else { 0 };
            let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
            let mut now: Vec<u64> = self.fleet.files().into_iter().map(size).collect();
            now.push(open);
            if now != last {
                (moved, last) = (Instant::now(), now);
            }
        }
    }
}

fn mode(wire: Wire) -> Mode {
    match wire {
        Wire::Delay { ms } => Mode::Delay(Duration::from_millis(ms)),
        Wire::Blackhole => Mode::Blackhole,
        Wire::DropReplies => Mode::DropReplies,
        Wire::Refuse => Mode::Refuse,
    }
}
