//! The worker: what starts, in which order, and what stops.

use std::{sync::Arc, time::Duration};

use switchback_common::{Store, StoreError, Task, clock::Moment, store::backoff::Backoff};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    config::WorkerConfig,
    error::WorkerError,
    health::{Door, Health},
    loops::renewer::{Renewer, tick},
    pushes::Pushes,
    queue::{self, Shared},
    registry::{self, RawSpec, TaskSpec},
    suspects::Company,
};

/// Describes a worker.
#[derive(Debug)]
pub struct WorkerBuilder {
    config: WorkerConfig,
    specs: Vec<RawSpec>,
}

/// A process that runs handlers.
#[derive(Debug)]
pub struct Worker;

impl Worker {
    /// Begins to describe a worker.
    #[must_use]
    pub fn builder(config: WorkerConfig) -> WorkerBuilder {
        WorkerBuilder {
            config,
            specs: Vec::new(),
        }
    }
}

impl WorkerBuilder {
    /// Adds a task type with its versions.
    #[must_use]
    pub fn task<T: Task>(mut self, describe: impl FnOnce(TaskSpec<T>) -> TaskSpec<T>) -> Self {
        self.specs.push(describe(TaskSpec::new()).into_raw());
        self
    }

    /// Runs until SIGTERM or SIGINT, then finishes what runs within grace. A second signal cuts grace short.
    ///
    /// # Errors
    /// When there is nothing to run, a setting cannot work, or Redis cannot be used at the start. Later trouble with
    /// Redis is waited out.
    pub async fn run(self) -> Result<(), WorkerError> {
        let (stop, stop_now) = (CancellationToken::new(), CancellationToken::new());
        let mut signals = Signals::new()?;
        let (asked, asked_again) = (stop.clone(), stop_now.clone());
        let listen = async move {
            signals.next().await;
            tracing::info!("stopping: no more claims, finishing what runs");
            asked.cancel();
            signals.next().await;
            tracing::warn!("stopping now: giving running tasks back");
            asked_again.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = self.run_with(stop, stop_now) => ended,
            () = listen => Ok(()),
        }
    }

    /// Runs until `stop` is cancelled, for programs that handle signals themselves.
    ///
    /// # Errors
    /// As [`WorkerBuilder::run`].
    pub async fn run_until(self, stop: CancellationToken) -> Result<(), WorkerError> {
        self.run_with(stop, CancellationToken::new()).await
    }

    async fn run_with(self, stop: CancellationToken, stop_now: CancellationToken) -> Result<(), WorkerError> {
        self.config.check()?;
        let specs = registry::check(self.specs)?;
        let config = Arc::new(self.config);
        let store = Store::new(&config.connect)?;
        let queues = specs.iter().map(|s| format!("{}/{}", config.namespace, s.task_type));
        let health = Arc::new(Health::new(queues, &config, &stop));
        let door = match config.health {
            Some(address) => {
                let door = Door::open(address, Arc::clone(&health));
                Some(door.map_err(|source| WorkerError::Health { address, source })?)
            }
            None => None,
        };

        // Start order: renewer first, so that no session is ever without it and somebody says how we are; pushes; then
        // the queues.
        let longest = specs.iter().map(|s| s.timeout).max().unwrap_or_default();
        let renewer = Arc::new(Renewer::start(
            &store,
            config.renew_every(),
            longest.saturating_add(Duration::from_secs(30)),
            door,
        )?);
        let mut duties = JoinSet::new();
        duties.spawn(tick(renewer.ticks()));
        reach(&store, config.patience, &health, &stop).await?;
        let pushes = Pushes::default();
        if config.pushes {
            let handed = pushes.clone();
            let touched = Arc::new(move |what: &_| handed.touched(what));
            duties.spawn(switchback_gates::watch::listen(store.clone(), touched));
        }
        let shared = Shared {
            store,
            config,
            renewer,
            pushes,
            health,
            company: Arc::new(Company::new()),
            stop,
            stop_now,
        };
        let mut queues = JoinSet::new();
        for spec in specs {
            queues.spawn(queue::serve(shared.clone(), Arc::new(spec)));
        }
        // Stop order: queues end their sessions themselves (see `queue::end`); leases are renewed, and health is told, until
        // the last is over.
        while queues.join_next().await.is_some() {}
        duties.shutdown().await;
        Ok(())
    }
}

/// Waits for a Redis that is not there yet; refuses one that cannot be used.
async fn reach(store: &Store, patience: Duration, health: &Health, stop: &CancellationToken) -> Result<(), StoreError> {
    let began = Moment::now();
    let mut retry = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match store.check_server().await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_transient() && began.elapsed() < patience && !stop.is_cancelled() => {
                tracing::warn!(%error, "waiting for Redis");
                health.waiting(None, &error.to_string());
                tokio::time::sleep(retry.next_wait()).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, WorkerError> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
