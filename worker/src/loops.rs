//! What a session does for as long as it lives: one file per duty.

pub(crate) mod claimer;
pub(crate) mod driver;
pub(crate) mod finder;
pub(crate) mod gatekeeper;
pub(crate) mod limiter;
pub(crate) mod prober;
pub(crate) mod promoter;
pub(crate) mod reaper;
pub(crate) mod renewer;
pub(crate) mod reporter;
pub(crate) mod scheduler;
pub(crate) mod settler;
pub(crate) mod throttler;
pub(crate) mod trimmer;
pub(crate) mod watchman;
