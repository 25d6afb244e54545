//! A worker process for the tests. Every start is appended to a file of its own, so that what the process did is
//! known without asking its own log.

use std::{fs::File, io::Write as _, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use serde::{Deserialize, Serialize};
use switchback_common::{clock, telemetry};
use switchback_worker::{ConnectOptions, Context, Faults, RetryPolicy, Task, TaskError, Worker, WorkerConfig};

#[derive(Parser)]
struct Args {
    /// Redis.
    #[arg(long)]
    redis: String,
    /// The namespace.
    #[arg(long, default_value = "test")]
    namespace: String,
    /// The versions it has, comma-separated.
    #[arg(long, value_delimiter = ',')]
    versions: Vec<String>,
    /// Where starts are written down.
    #[arg(long)]
    witness: PathBuf,
    /// Where effects are written down, apart from everything else; several workers may share it.
    #[arg(long)]
    ledger: Option<PathBuf>,
    #[arg(long, default_value_t = 10_000)]
    lease_ms: u64,
    #[arg(long, default_value_t = 250)]
    start_ttl_ms: u64,
    #[arg(long, default_value_t = 10_000)]
    grace_ms: u64,
    #[arg(long, default_value_t = 32)]
    concurrency: usize,
    #[arg(long, default_value_t = 15)]
    attempts: u32,
    #[arg(long, default_value_t = 100)]
    backoff_ms: u64,
    #[arg(long)]
    no_pushes: bool,
    /// The build it says it is.
    #[arg(long, default_value = "")]
    build: String,
    #[arg(long)]
    allow_another_build: bool,
    /// Where to tell how it is.
    #[arg(long)]
    health: Option<std::net::SocketAddr>,
    /// Serve the queue `neighbour` too.
    #[arg(long)]
    neighbour: bool,
    /// How far its clock is ahead of the machine's.
    #[arg(long, default_value_t = 0)]
    clock_ahead_ms: u64,
    /// Faults to switch on, comma-separated.
    #[arg(long, default_value = "")]
    faults: String,
}

/// What a test task asks its handler to do.
#[derive(Serialize, Deserialize)]
struct Probe {
    /// Which one it is.
    n: u64,
    /// How long the handler takes.
    #[serde(default)]
    work_ms: u64,
    /// What it does at the end: nothing, or `fail`, `panic`, `reject`, `abort`, `block`; with `_once` only on a first
    /// attempt before any worker died with it.
    #[serde(default)]
    then: String,
    /// Only on this version (any if empty).
    #[serde(default)]
    on: String,
}

impl Task for Probe {
    const TYPE: &'static str = "probe";
}

/// The same in another queue.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Neighbour(Probe);

impl Task for Neighbour {
    const TYPE: &'static str = "neighbour";
}

/// The files a handler writes to. One write per line: appends of this size are not torn.
struct Books {
    witness: File,
    ledger: Option<File>,
}

impl Books {
    fn witness(&self, line: &str) -> std::io::Result<()> {
        (&self.witness).write_all(line.as_bytes())
    }

    fn effect(&self, line: &str) -> std::io::Result<()> {
        self.ledger
            .as_ref()
            .map_or(Ok(()), |mut file| file.write_all(line.as_bytes()))
    }
}

async fn probe(books: Arc<Books>, task: Probe, ctx: Context) -> Result<(), TaskError> {
    let seen = &ctx.evidence;
    let claim = format!("{} {} {}", seen.session, seen.stream, seen.entry);
    books.witness(&format!(
        "start {} {} {} {} {} {} {} {} {claim}\n",
        task.n,
        ctx.version,
        ctx.started.as_nanos(),
        ctx.attempt,
        ctx.gate_rev,
        ctx.id,
        ctx.recovered,
        seen.read_us,
    ))?;
    if task.work_ms > 0 && task.then != "block" {
        tokio::time::sleep(Duration::from_millis(task.work_ms)).await;
    }
    if task.on.is_empty() || task.on == ctx.version.as_str() {
        let then = match task.then.strip_suffix("_once") {
            Some(_) if ctx.attempt > 1 || ctx.recovered > 0 => "",
            Some(once) => once,
            None => &task.then,
        };
        if let "fail" | "reject" | "panic" = then {
            books.witness(&format!("fail {} {claim}\n", task.n))?;
        }
        match then {
            "fail" => return Err(TaskError::failed("asked to fail")),
            "reject" => return Err(TaskError::reject("asked to reject")),
            #[expect(clippy::panic, reason = "what it is asked to do")]
            "panic" => panic!("asked to panic"),
            "abort" => std::process::abort(),
            "block" => std::thread::sleep(Duration::from_millis(task.work_ms)),
            _ => {}
        }
    }
    books.effect(&format!("effect {} {} {claim}\n", task.n, ctx.id))?;
    books.witness(&format!("end {} {}\n", task.n, ctx.version))?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    telemetry::init_logs();
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test pool: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    clock::put_ahead(Duration::from_millis(args.clock_ahead_ms));
    let open = |path: &PathBuf| File::options().create(true).append(true).open(path);
    let books = Arc::new(Books {
        witness: open(&args.witness)?,
        ledger: args.ledger.as_ref().map(open).transpose()?,
    });
    let config = WorkerConfig::new(ConnectOptions::new(args.redis), args.namespace.parse()?)
        .lease(Duration::from_millis(args.lease_ms))
        .start_ttl(Duration::from_millis(args.start_ttl_ms))
        .grace(Duration::from_millis(args.grace_ms))
        .pushes(!args.no_pushes)
        .build_label(&args.build)
        .allow_another_build(args.allow_another_build)
        .faults(Faults::parse(&args.faults)?);
    let config = match args.health {
        Some(address) => config.health(address),
        None => config,
    };
    let backoff = Duration::from_millis(args.backoff_ms);
    let retry = RetryPolicy::default()
        .attempts(args.attempts)
        .backoff(backoff, backoff * 8);
    let mut worker = Worker::builder(config).task::<Probe>(|t| {
        let t = t.concurrency(args.concurrency).retry(retry.clone());
        args.versions.iter().fold(t, |t, version| {
            let books = Arc::clone(&books);
            t.version(version, move |task, ctx| probe(Arc::clone(&books), task, ctx))
        })
    });
    if args.neighbour {
        worker = worker.task::<Neighbour>(|t| {
            let t = t.concurrency(args.concurrency).retry(retry);
            args.versions.iter().fold(t, |t, version| {
                let books = Arc::clone(&books);
                t.version(version, move |Neighbour(task), ctx| {
                    probe(Arc::clone(&books), task, ctx)
                })
            })
        });
    }
    worker.run().await?;
    Ok(())
}
