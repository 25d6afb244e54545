//! The settings of a pool: what `switchback-worker` reads from its TOML file.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;
use switchback_common::config::RedisSettings;
use switchback_worker::{
    Breaker, ConnectOptions, Namespace, RetryPolicy, WorkerConfig,
    examples::{Example, ExampleSettings, UnknownExample},
    registry::{DEFAULT_CONCURRENCY, DEFAULT_TIMEOUT},
};

/// The whole file. Relative paths in it are relative to the working directory.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PoolFile {
    /// The application or team. Defaults to `default`.
    pub(crate) namespace: Option<String>,
    pub(crate) redis: RedisSettings,
    pub(crate) pool: PoolSettings,
    pub(crate) examples: ExamplesSettings,
}

/// `[pool]`: what runs, and how. Unset is the library's default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PoolSettings {
    /// Built-in handlers, as `name@version`. The first version of a type seeds the gate of a new queue.
    handlers: Vec<String>,
    /// Tasks of one type that run at once.
    concurrency: Option<usize>,
    /// A label of this build: a version that is known as another one is refused.
    build: Option<String>,
    /// Whether versions that are known as another build may be brought all the same. The environment wins:
    /// `SWITCHBACK_ALLOW_ANOTHER_BUILD`.
    allow_another_build: Option<bool>,
    /// How long a session outlives its last renewal.
    lease_ms: Option<u64>,
    /// How long a stopping worker waits for running tasks.
    grace_s: Option<u64>,
    /// How long one attempt may take.
    timeout_s: Option<u64>,
    /// How old a gate read may be when a task starts under it.
    start_ttl_ms: Option<u64>,
    /// How long a starting worker waits for a Redis that is not there yet.
    patience_s: Option<u64>,
    /// Whether to listen for announcements of gate changes.
    pushes: Option<bool>,
    /// Where to answer `GET /livez` and `GET /readyz`, as in "127.0.0.1:8080". Unset: nowhere.
    health: Option<SocketAddr>,
    /// Attempts of a task in all.
    attempts: Option<u32>,
    /// Wait after the first failure.
    backoff_first_ms: Option<u64>,
    /// Longest wait between two attempts.
    backoff_longest_ms: Option<u64>,
    /// When a version is held because it fails, e.g. `{ failures = 0.5, samples = 20, window_s = 30, open_s = 10 }`.
    breaker: Option<BreakerSettings>,
}

/// `breaker`: see [`Breaker::new`].
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct BreakerSettings {
    /// The share of failures that opens it.
    failures: f64,
    /// Not before so many attempts have ended.
    samples: u32,
    /// Within this time.
    window_s: u64,
    /// Time until it is probed.
    open_s: u64,
}

/// `[examples]`: what the built-in handlers need.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ExamplesSettings {
    /// Where `index_document` writes its records. Created if it is missing.
    index_dir: Option<PathBuf>,
}

/// A file that makes no pool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("handlers: {0}")]
    Handler(#[from] UnknownExample),
    #[error("index_document needs a directory: set index_dir under [examples]")]
    NoIndexDir,
    #[error("{ALLOW_VAR}={0:?}: neither true nor false")]
    Switch(String),
    #[error("cannot make the directory {path}: {source}")]
    IndexDir { path: PathBuf, source: std::io::Error },
}

impl PoolSettings {
    /// How the worker behaves.
    pub(crate) fn worker(
        &self,
        connect: ConnectOptions,
        namespace: Namespace,
        health: Option<SocketAddr>,
    ) -> Result<WorkerConfig, PoolError> {
        let mut config = WorkerConfig::new(connect, namespace);
        if let Some(allow) = allowed_by_environment()?.or(self.allow_another_build) {
            config = config.allow_another_build(allow);
        }
        if let Some(build) = &self.build {
            config = config.build_label(build);
        }
        if let Some(ms) = self.lease_ms {
            config = config.lease(Duration::from_millis(ms));
        }
        if let Some(s) = self.grace_s {
            config = config.grace(Duration::from_secs(s));
        }
        if let Some(ms) = self.start_ttl_ms {
            config = config.start_ttl(Duration::from_millis(ms));
        }
        if let Some(s) = self.patience_s {
            config = config.patience(Duration::from_secs(s));
        }
        if let Some(pushes) = self.pushes {
            config = config.pushes(pushes);
        }
        if let Some(address) = health.or(self.health) {
            config = config.health(address);
        }
        Ok(config)
    }

    fn retry(&self) -> RetryPolicy {
        let policy = RetryPolicy::default();
        let first = self.backoff_first_ms.map_or(policy.first, Duration::from_millis);
        let longest = self.backoff_longest_ms.map_or(policy.longest, Duration::from_millis);
        let attempts = self.attempts.unwrap_or(policy.max_attempts);
        policy.attempts(attempts).backoff(first, longest)
    }
}

/// A fleet whose builds are refused can be let in without a new pool file.
const ALLOW_VAR: &str = "SWITCHBACK_ALLOW_ANOTHER_BUILD";

fn allowed_by_environment() -> Result<Option<bool>, PoolError> {
    match std::env::var(ALLOW_VAR) {
        Err(_) => Ok(None),
        Ok(text) => match text.to_ascii_lowercase().as_str() {
            "" => Ok(None),
            "1" | "true" | "yes" | "on" => Ok(Some(true)),
            "0" | "false" | "no" | "off" => Ok(Some(false)),
            _ => Err(PoolError::Switch(text)),
        },
    }
}

impl PoolFile {
    /// The handlers asked for, and how they run. Makes the directories they write to.
    pub(crate) fn examples(&self) -> Result<(Vec<Example>, ExampleSettings), PoolError> {
        let examples = self
            .pool
            .handlers
            .iter()
            .map(|name| name.parse())
            .collect::<Result<Vec<Example>, _>>()?;
        let index_dir = match &self.examples.index_dir {
            Some(path) => path.clone(),
            None if examples.is_empty() => PathBuf::new(),
            None => return Err(PoolError::NoIndexDir),
        };
        if !examples.is_empty() {
            std::fs::create_dir_all(&index_dir).map_err(|source| PoolError::IndexDir {
                path: index_dir.clone(),
                source,
            })?;
        }
        let settings = ExampleSettings {
            concurrency: self.pool.concurrency.unwrap_or(DEFAULT_CONCURRENCY),
            timeout: self.pool.timeout_s.map_or(DEFAULT_TIMEOUT, Duration::from_secs),
            retry: self.pool.retry(),
            breaker: self.pool.breaker.map(|b| {
                let (window, open) = (Duration::from_secs(b.window_s), Duration::from_secs(b.open_s));
                Breaker::new(b.failures, b.samples, window, open)
            }),
            index_dir,
        };
        Ok((examples, settings))
    }
}
