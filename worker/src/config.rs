//! How a worker behaves, whatever it runs.

use std::{net::SocketAddr, time::Duration};

use switchback_common::{ConnectOptions, Namespace, store::session::Builds};

use crate::error::WorkerError;
#[cfg(feature = "faults")]
use crate::faults::Faults;

/// Settings of one worker process.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    pub(crate) connect: ConnectOptions,
    pub(crate) namespace: Namespace,
    pub(crate) build: String,
    pub(crate) builds: Builds,
    pub(crate) lease: Duration,
    pub(crate) start_ttl: Duration,
    pub(crate) grace: Duration,
    pub(crate) patience: Duration,
    pub(crate) pushes: bool,
    pub(crate) health: Option<SocketAddr>,
    pub(crate) retain: Duration,
    pub(crate) retain_entries: u64,
    pub(crate) retain_bytes: u64,
    pub(crate) log_retain: Duration,
    pub(crate) log_bytes: u64,
    #[cfg(feature = "faults")]
    pub(crate) faults: Faults,
}

impl WorkerConfig {
    /// A worker of `namespace` on the Redis that `connect` describes.
    #[must_use]
    pub fn new(connect: ConnectOptions, namespace: Namespace) -> Self {
        Self {
            connect,
            namespace,
            build: String::new(),
            builds: Builds::One,
            lease: Duration::from_secs(10),
            start_ttl: Duration::from_millis(250),
            grace: Duration::from_secs(25),
            patience: Duration::from_secs(10),
            pushes: true,
            health: None,
            retain: Duration::from_secs(24 * 3600),
            retain_entries: 100_000,
            retain_bytes: 256 * 1024 * 1024,
            log_retain: Duration::from_secs(7 * 24 * 3600),
            log_bytes: 256 * 1024 * 1024,
            #[cfg(feature = "faults")]
            faults: Faults::default(),
        }
    }

    /// A label of the build that runs here, for the records. Defaults to empty: unknown.
    ///
    /// A version is one build: a worker that brings another one under a label that is known does not join that queue, see
    /// [`allow_another_build`](Self::allow_another_build). Give new code a new version label. Without a build label nobody
    /// can tell, and nothing is refused.
    #[must_use]
    pub fn build_label(mut self, build: impl Into<String>) -> Self {
        self.build = build.into();
        self
    }

    /// Whether versions that are known as another build may be brought all the same, e.g. because the handler is the same
    /// code, built again. The record of the version then has both builds. Never for a retired version. Defaults to false.
    #[must_use]
    pub fn allow_another_build(mut self, allow: bool) -> Self {
        self.builds = if allow { Builds::Several } else { Builds::One };
        self
    }

    /// How long a session outlives its last renewal; renewed five times as often. Defaults to 10 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How old a gate read may be when a task starts under it. Defaults to 250 ms.
    #[must_use]
    pub fn start_ttl(mut self, ttl: Duration) -> Self {
        self.start_ttl = ttl;
        self
    }

    /// How long a stopping worker waits for running tasks before it gives them back. Defaults to 25 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long a starting worker waits for a Redis that cannot be reached or is loading. Defaults to 10 s.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whether to listen for announcements of gate changes. They make things fast; without them everything holds.
    /// Defaults to true.
    #[must_use]
    pub fn pushes(mut self, pushes: bool) -> Self {
        self.pushes = pushes;
        self
    }

    /// Where to answer `GET /livez` and `GET /readyz`. There is no password on it: choose a loopback address, or one that
    /// only whoever watches over the worker can reach. Port 0 takes a free one, and the log says which. Defaults to none.
    #[must_use]
    pub fn health(mut self, address: SocketAddr) -> Self {
        self.health = Some(address);
        self
    }

    /// How long, and how many at most, inputs of done tasks stay in their stream. Defaults to 24 h and 100 000 entries
    /// (and never more than 256 MiB).
    #[must_use]
    pub fn retain(mut self, retain: Duration, entries: u64) -> Self {
        self.retain = retain;
        self.retain_entries = entries;
        self
    }

    /// How long, and how many bytes at most, the log of attempts is kept. Defaults to 7 days and 256 MiB.
    #[must_use]
    pub fn log_retain(mut self, retain: Duration, bytes: u64) -> Self {
        self.log_retain = retain;
        self.log_bytes = bytes;
        self
    }

    /// Switches faults on, for tests that must see themselves fail.
    #[cfg(feature = "faults")]
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// How often a lease is renewed.
    pub(crate) fn renew_every(&self) -> Duration {
        self.lease / 5
    }

    /// How much of the lease is not trusted: clocks differ, packets dawdle.
    pub(crate) fn lease_margin(&self) -> Duration {
        (self.lease / 10).min(Duration::from_secs(1))
    }

    /// How long to keep hands off others' tasks after trouble of one's own: two renewals and a bit.
    pub(crate) fn reap_grace(&self) -> Duration {
        self.lease / 2
    }

    pub(crate) fn check(&self) -> Result<(), WorkerError> {
        let bad = |text: &str| Err(WorkerError::BadSetting(text.to_owned()));
        if self.lease < Duration::from_millis(500) || self.lease > Duration::from_secs(3600) {
            return bad("the lease must be between 500 ms and 1 h");
        }
        if self.start_ttl < Duration::from_millis(10) || self.start_ttl > self.lease / 2 {
            return bad("start_ttl must be at least 10 ms and at most half the lease");
        }
        Ok(())
    }
}
