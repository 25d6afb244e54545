//! What two Switchback processes must agree on.
//!
//! A producer, a worker, the command line and a person with `redis-cli` meet only in Redis. This crate holds
//! what they must see alike there: names, ids, envelopes, keys, scripts. **Admission rule: a type may live here
//! only if two processes must agree on it.**
//!
//! # Layout
//! - [`name`], [`id`] — how things are called
//! - [`task`], [`envelope`] — what a stream entry says
//! - [`retry`], [`priority`], [`schedule`] — when a failure is tried again; what comes first; when a periodic task is due
//! - [`throttle`] — how much of a queue runs, and how often it starts
//! - [`took`] — how long attempts took, in buckets that add up
//! - [`clock`] — how ages are measured on one machine
//! - [`config`], [`telemetry`] — what every binary reads and writes
//! - [`store`] — the whole Redis footprint

pub mod clock;
pub mod config;
pub mod envelope;
pub mod id;
pub mod name;
pub mod priority;
pub mod retry;
pub mod schedule;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod throttle;
pub mod took;

pub use id::{SessionId, StreamId, TaskId};
pub use name::{Namespace, Queue, TaskType, Version};
pub use priority::Priority;
pub use store::{
    connect::{ConnectOptions, Store},
    error::StoreError,
    keyspace::Keyspace,
};
pub use task::Task;
