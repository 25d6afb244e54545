//! Enqueue tasks.
//!
//! One [`Producer`] serves a whole process: it is cheap to clone and shares one connection.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use switchback_producer::{ConnectOptions, Producer, Task};
//!
//! #[derive(Serialize, Deserialize)]
//! struct SendEmail { to: String, template: String }
//!
//! impl Task for SendEmail {
//!     const TYPE: &'static str = "send_email";
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let producer = Producer::connect(&ConnectOptions::new("redis://127.0.0.1:6379"), "shop".parse()?).await?;
//! let mail = SendEmail { to: "ada@example.org".into(), template: "welcome".into() };
//! let id = producer.enqueue(&mail).key("customer-7").await?;
//! # drop(id); Ok(()) }
//! ```
//!
//! # Guarantees
//! A task whose enqueue returned `Ok` is in Redis. If the reply was lost, [`EnqueueError::OutcomeUnknown`] says
//! so: sending a plain enqueue again may run it twice. With [`Enqueue::id`] or [`Enqueue::idempotent`] every try is
//! safe to repeat.
//!
//! A queue has a limit on what may wait in it ([`EnqueueError::QueueFull`]). Each producer counts its own tasks at once
//! and asks for the others' once a second, so that a queue may grow past its limit by what the other producers enqueue
//! in about a second: at most some 10 000 tasks each, and what each sends while it asks.
//!
//! # Layout
//! - [`producer`] — connecting, enqueueing one or many
//! - [`options`] — key, id, delay, priority, deadline, uniqueness of one enqueue
//! - [`after`] — once it is enqueued: waiting for its result, cancelling it
//! - [`error`] — what can go wrong
//! - `room` — whether a queue is full

pub mod after;
pub mod error;
pub mod options;
pub mod producer;
mod room;

pub use after::{AfterError, Waited};
pub use error::EnqueueError;
pub use options::{Enqueue, EnqueueMany, IfTaken};
pub use producer::Producer;
pub use switchback_common::{
    ConnectOptions, Namespace, Priority, Task, TaskId, TaskType,
    store::{cancel::Cancelled, results::Progress},
};
