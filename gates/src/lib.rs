//! Gates: which version of a handler runs, decided when a task is claimed.
//!
//! A gate names an active version, perhaps a candidate with a percentage, pins, targets, and whether the queue is paused.
//! People edit a hash in Redis; a script *seals* each edit into a numbered revision; workers obey the sealed
//! state only.
//!
//! ```
//! use switchback_gates::{decide, Decision, Gate};
//!
//! let gate = Gate::new("v1".parse()?);
//! let (task_type, headers) = ("send_email".parse()?, Default::default());
//! assert_eq!(decide(&gate, &task_type, &headers, || "customer-7".into()), Decision::Run(&gate.active));
//! # Ok::<(), switchback_common::name::InvalidName>(())
//! ```
//!
//! # Layout
//! - [`gate`] — what a gate is; what *withdrawn* means
//! - [`decide`](mod@decide) — task and gate in, version out; pure
//! - [`view`] — what a worker obeys: reads in, ruling out; P8
//! - [`blast`] — what a version did, and what became of it; pure
//! - [`certificate`] — did anything start on a withdrawn version? From history and log alone; pure
//! - [`readiness`] — what speaks against sending tasks to a version; pure
//! - [`guard`] — is the candidate worse? Statistics; pure
//! - [`history`] — what a gate was before, page by page
//! - [`rollback`] — which version a rollback goes to; pure
//! - [`drain`] — what still runs that the gate would not start now; pure
//! - [`rollout`] — a candidate goes up step by step; pure
//! - [`admin`] — look, change, roll back, wait
//! - [`watch`] — pushes

pub mod admin;
pub mod blast;
pub mod certificate;
pub mod decide;
pub mod drain;
pub mod gate;
pub mod guard;
pub mod history;
pub mod readiness;
pub mod rollback;
pub mod rollout;
pub mod view;
pub mod watch;

pub use admin::{GateError, Gates};
pub use decide::{Decision, decide, is_placed};
pub use gate::{Gate, Share};
pub use view::{GateView, Obeyed, Ruling, Verdict};
