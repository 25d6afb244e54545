//! Run versioned task handlers under a gate.
//!
//! A worker claims tasks from Redis, asks the queue's gate which version each belongs to, runs that handler, and
//! records how it ended. The gate is read after the claim and checked again immediately before the handler runs:
//! from the moment a version is withdrawn, nothing new starts on it.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use switchback_worker::{ConnectOptions, Context, Task, TaskError, Worker, WorkerConfig};
//!
//! #[derive(Serialize, Deserialize)]
//! struct SendEmail { to: String, template: String }
//!
//! impl Task for SendEmail {
//!     const TYPE: &'static str = "send_email";
//! }
//!
//! async fn email_v1(task: SendEmail, _ctx: Context) -> Result<(), TaskError> {
//!     println!("{} to {}", task.template, task.to);
//!     Ok(())
//! }
//!
//! async fn email_v2(task: SendEmail, ctx: Context) -> Result<(), TaskError> {
//!     if ctx.attempt > 3 {
//!         return Err(TaskError::reject("gave up"));
//!     }
//!     let _parsed: std::net::IpAddr = task.to.parse()?; // any error is tried again
//!     Ok(())
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let redis = ConnectOptions::new("redis://127.0.0.1:6379");
//!     Worker::builder(WorkerConfig::new(redis, "shop".parse()?))
//!         .task::<SendEmail>(|t| t.version("v1", email_v1).version("v2", email_v2).concurrency(64))
//!         .run()
//!         .await?;
//!     Ok(())
//! }
//! ```
//!
//! # Guarantees
//! Tasks run at least once. A handler that panics, fails or times out is retried by the policy and ends as a dead
//! letter, never in nothing. A worker that lost its session cannot start or settle anything.
//!
//! # Layout
//! - [`worker`] — what starts and stops, in which order
//! - [`config`], [`registry`] — how a worker behaves, what it can run
//! - [`handler`] — what an application writes
//! - `queue`, `session` — one queue, session after session; what the loops of one session share
//! - `streams`, `slots`, `plan` — what a session reads; how much it runs at once; how much of which it claims
//! - `suspects` — what may have killed its process, and how it is run (P7)
//! - `attempt`, `starts`, `reader`, `outcome`, `ends` — one attempt; the start check (P3, P4); the gate read again; how it ended
//! - [`breaker`], `circuits`, `pace` — when a version, a queue or a key must wait
//! - `cancel`, `running`, `results` — cancelled tasks; the attempts that run; what is kept of a task
//! - `blocks` — what is counted for a rollout
//! - `loops` — one file per duty
//! - `health` — `/livez` and `/readyz`
//! - [`examples`] — handlers that `switchback-worker` brings along

mod attempt;
mod blocks;
pub mod breaker;
mod cancel;
mod circuits;
pub mod config;
mod ends;
pub mod error;
pub mod examples;
#[cfg(feature = "faults")]
pub mod faults;
pub mod handler;
mod health;
mod loops;
mod outcome;
mod pace;
mod plan;
mod pushes;
mod queue;
mod reader;
pub mod registry;
mod results;
mod retries;
mod running;
mod session;
mod slots;
mod starts;
mod stops;
mod streams;
mod suspects;
pub mod worker;

pub use breaker::Breaker;
pub use config::WorkerConfig;
pub use error::WorkerError;
#[cfg(feature = "faults")]
pub use faults::Faults;
pub use handler::{Context, TaskError};
pub use registry::TaskSpec;
pub use switchback_common::{
    ConnectOptions, Namespace, Task, TaskId, Version,
    retry::RetryPolicy,
    schedule::{Missed, Schedule},
};
pub use tokio_util::sync::CancellationToken;
pub use worker::{Worker, WorkerBuilder};
