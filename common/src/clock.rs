//! The one local clock: monotonic, and counting the time the machine slept.
//!
//! A lease must look expired to a worker whose laptop lid was closed; `Instant` does not count that on
//! Linux. Redis's `TIME` orders events between machines; this clock only measures ages on one.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;
// On macOS CLOCK_MONOTONIC goes on while the system is asleep.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;

/// Fault for tests: how far this process's clock is ahead of the machine's, ns.
#[cfg(feature = "faults")]
static AHEAD: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Fault for tests: puts the clock of this process ahead. Before anything asks for a moment.
#[cfg(feature = "faults")]
pub fn put_ahead(by: Duration) {
    let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    AHEAD.store(nanos, std::sync::atomic::Ordering::Relaxed);
}

/// A moment on this machine's clock, suspend included. Comparable between processes of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(CLOCK);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        let nanos = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        #[cfg(feature = "faults")]
        let nanos = nanos.saturating_add(AHEAD.load(std::sync::atomic::Ordering::Relaxed));
        Self(nanos)
    }

    /// A moment before every other.
    #[must_use]
    pub const fn long_ago() -> Self {
        Self(0)
    }

    /// How long ago this was; zero if it lies ahead.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// Time from `earlier` to this; zero if it is the other way round.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Nanoseconds since the machine started.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The inverse of [`Moment::as_nanos`].
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}
impl std::ops::Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}
