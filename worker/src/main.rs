//! `switchback-worker`: a pool of the built-in handlers, described by a TOML file.

mod pool;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use pool::{PoolError, PoolFile};
use switchback_common::{
    StoreError,
    config::{self, ConfigError},
    telemetry,
};
use switchback_worker::{Worker, WorkerError, examples};

/// Runs tasks with the handlers that a pool file names, until SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "switchback-worker", version, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 stopped cleanly, 1 failed, 2 usage or configuration, 3 Redis unreachable, \
                        5 refused: Redis is too old, may evict keys, or is a read-only replica.\n\
                        Settings: flag > environment > pool file > default. RUST_LOG sets how much is logged.\n\
                        SWITCHBACK_ALLOW_ANOTHER_BUILD=true lets in builds that are refused because a version is known as another one."
)]
struct Args {
    /// The pool file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    // Not clap's `env`: its help and errors would print the value, password and all.
    /// redis://[user:password@]host:port[/db]. Environment: SWITCHBACK_REDIS_URL.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// The application or team. Environment: SWITCHBACK_NAMESPACE.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Where to answer GET /livez and /readyz, e.g. 127.0.0.1:8080. Without it: as the pool file says.
    #[arg(long, value_name = "HOST:PORT")]
    health: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Pool(_) => 2,
            Self::Worker(WorkerError::Store(error)) => match error {
                StoreError::TooOld { .. } | StoreError::Evicting { .. } | StoreError::ReadOnly { .. } => 5,
                StoreError::BadUrl(_) => 2,
                error if error.is_unreachable() => 3,
                _ => 1,
            },
            Self::Worker(WorkerError::System(_) | WorkerError::Health { .. }) => 1,
            Self::Worker(_) => 2,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::init_logs();
    log_panics();
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = config::redact(&failure.to_string()).replace('\n', " ");
            eprintln!("switchback-worker: {text}");
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run(args: &Args) -> Result<(), Failure> {
    let file: PoolFile = config::read_toml(&args.config)?;
    let connect = file.redis.resolve(args.redis.as_deref())?;
    let namespace = config::resolve_namespace(args.namespace.as_deref(), file.namespace.as_deref())?;
    let (handlers, settings) = file.examples()?;
    let builder = Worker::builder(file.pool.worker(connect, namespace, args.health)?);
    Ok(examples::add(builder, &handlers, &settings).run().await?)
}

/// A panic is one line with its place; the worker says which task it was.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("without a message");
        tracing::error!("panic at {place}: {text}");
    }));
}
