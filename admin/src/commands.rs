//! One file per noun.

pub(crate) mod config;
pub(crate) mod dead;
pub(crate) mod gate;
pub(crate) mod queue;
pub(crate) mod rollout;
pub(crate) mod schedule;
pub(crate) mod task;
pub(crate) mod version;
pub(crate) mod worker;
