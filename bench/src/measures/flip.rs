//! From a flip of the gate to the moment when every worker obeys it, and to the first start under it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use switchback_common::{
    clock::Moment,
    store::{
        gate::{ChangeRequest, Changed},
        keyspace::Key,
    },
};
use switchback_gates::{Gates, admin::operation_id};
use switchback_tests::RedisServer;
use switchback_worker::Context;

use crate::{
    Result,
    measures::Setup,
    ours::{self, Load, Place, Workers},
    raw,
    report::{Report, Samples, Want},
};

const MANY: usize = 50;
const GIVEN_UP: Duration = Duration::from_secs(5);

/// When a task started, and on which version.
type Start = (Moment, String);

pub(crate) async fn run(setup: &Setup, report: &mut Report) -> Result<()> {
    let flips = setup.count(200, 40);
    for saturated in [false, true] {
        let state = if saturated { "Redis saturated" } else { "idle" };
        let decided = Want::AtMost(if saturated { 5.0 } else { 1.0 });
        for sessions in [1, MANY] {
            let redis = RedisServer::start().await;
            let place = Place::new(&redis.url(), "bench")?;
            let (starts, started) = mpsc::channel();
            let mut workers = Workers::new();
            for _ in 0..sessions {
                let starts = starts.clone();
                workers.start(place.config(), 2, move |_: Load, context: Context| {
                    let _ = starts.send((context.started, context.version.to_string()));
                    std::future::ready(Ok(()))
                });
            }
            place.sessions(sessions).await?;
            let load = saturated.then(|| Saturation::start(redis.url()));
            let who = if sessions == 1 { "1 worker" } else { "50 workers" };
            // Everything that comes with a start is over.
            tokio::time::sleep(Duration::from_millis(500)).await;

            let mut flipper = Flipper::new(&redis.url(), &place, sessions, started).await?;
            let (flipper, confirmed, first) = tokio::task::spawn_blocking(move || {
                let confirmed = flipper.confirmed(flips)?;
                let first = flipper.first_starts(flips)?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((flipper, confirmed, first))
            })
            .await??;
            drop(flipper);
            let waited = waited(&place, flips).await?;
            // How soon one worker decides anew, and how soon all of many have said so.
            let [one, all] = [decided, Want::AtMost(10.0)].map(|want| [("p99", want)]);
            let (one, all): (&[_], &[_]) = if sessions == 1 { (&one, &[]) } else { (&[], &all) };
            let title = |what: &str| format!("flip to {what}, {who}, {state}");
            report.times(title("first start under it: HSET"), &first, one);
            report.times(title("confirmed: HSET"), &confirmed, &[]);
            report.times(title("confirmed: change + wait"), &waited, all);
            if let Some(load) = load {
                load.end();
            }
            workers.end().await?;
        }
    }
    Ok(())
}

/// The version that the flip with this number goes to.
fn target(flip: u64) -> &'static str {
    if flip.is_multiple_of(2) { "v2" } else { "v1" }
}

/// Never in step with anything else.
fn pause(flip: u64) -> Duration {
    Duration::from_micros(8_000 + flip * 1_237 % 9_000)
}

/// One who flips as a person does, with plain commands over a connection of his own. It runs on a thread of its own:
/// the workers' runtime must not delay what it sees.
struct Flipper {
    connection: redis::Connection,
    place: Place,
    revisions: redis::Cmd,
    started: mpsc::Receiver<Start>,
}

impl Flipper {
    async fn new(url: &str, place: &Place, sessions: usize, started: mpsc::Receiver<Start>) -> Result<Self> {
        let mut revisions = redis::cmd("HMGET");
        revisions.arg(place.key(Key::Sessions));
        for session in place.sessions(sessions).await? {
            revisions.arg(format!("{}:rev", session.id));
        }
        Ok(Self {
            connection: redis::Client::open(raw::address(url)?)?.get_connection()?,
            place: place.clone(),
            revisions,
            started,
        })
    }

    /// From the flip to the last session that says it obeys.
    fn confirmed(&mut self, flips: u64) -> Result<Samples> {
        let mut samples = Samples::new()?;
        let state = self.place.key(Key::GateState);
        let before: u64 = redis::cmd("HGET").arg(&state).arg("rev").query(&mut self.connection)?;
        for flip in 0..flips {
            std::thread::sleep(pause(flip));
            let began = Instant::now();
            self.flip(flip).exec(&mut self.connection)?;
            let rev = before + 1 + flip; // every flip changes something, and nobody else does
            loop {
                let seen: Vec<Option<u64>> = self.revisions.query(&mut self.connection)?;
                if seen.iter().all(|seen| seen.is_some_and(|seen| seen >= rev)) {
                    break;
                }
                if began.elapsed() > GIVEN_UP {
                    return Err(format!("flip {flip} was not confirmed within {GIVEN_UP:?}").into());
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            samples.add(began.elapsed());
        }
        Ok(samples)
    }

    /// From the flip to the start of a task that was enqueued right behind it.
    fn first_starts(&mut self, flips: u64) -> Result<Samples> {
        let mut samples = Samples::new()?;
        let stream = self.place.key(Key::Stream);
        let payload = serde_json::to_vec(&Load::new(0))?;
        for flip in 0..flips {
            std::thread::sleep(pause(flip));
            let mut pipe = redis::pipe();
            pipe.add_command(self.flip(flip));
            pipe.add_command(raw::xadd(&stream, &payload));
            let began = Moment::now();
            pipe.exec(&mut self.connection)?;
            let (at, version) = self.started.recv_timeout(GIVEN_UP)?;
            if version != target(flip) {
                return Err(format!("flip {flip} to {}: a later task started on {version}", target(flip)).into());
            }
            samples.add(at.since(began));
        }
        Ok(samples)
    }

    fn flip(&self, flip: u64) -> redis::Cmd {
        let mut cmd = redis::cmd("HSET");
        cmd.arg(self.place.key(Key::Gate)).arg("only").arg(target(flip));
        cmd
    }
}

/// From asking for the change to the answer that everybody obeys it, as the command line's `--wait` does it.
async fn waited(place: &Place, flips: u64) -> Result<Samples> {
    let mut samples = Samples::new()?;
    let gates = Gates::new(&place.store);
    for flip in 0..flips {
        tokio::time::sleep(pause(flip)).await;
        let request = ChangeRequest {
            source: "bench".to_owned(),
            op: operation_id(),
            fields: vec![("only", target(flip).to_owned())],
            ..ChangeRequest::default()
        };
        let began = Instant::now();
        let Changed::Changed(sealed) = gates.change(&place.queue, &request).await? else {
            return Err(format!("flip {flip} to {} changed nothing", target(flip)).into());
        };
        let confirmation = gates.wait(&place.queue, sealed.rev, GIVEN_UP).await?;
        if !confirmation.missing.is_empty() {
            return Err(format!("flip {flip} was not confirmed within {GIVEN_UP:?}").into());
        }
        samples.add(began.elapsed());
    }
    Ok(samples)
}

/// Writes to another stream as fast as Redis takes it, from a thread and a runtime of its own.
struct Saturation {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Saturation {
    fn start(url: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let payloads = ours::payloads(20_000)?;
                let mut connection = raw::connect(&url).await?;
                while !asked.load(Ordering::Relaxed) {
                    raw::bulk(&connection, "bench:load", &payloads).await?;
                    redis::cmd("UNLINK")
                        .arg("bench:load")
                        .exec_async(&mut connection)
                        .await?;
                }
                Ok(())
            })
        });
        Self { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Ok(Err(error)) = self.thread.join() {
            eprintln!("the load ended early: {error}");
        }
    }
}
