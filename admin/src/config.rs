//! Configuration as a document: what a namespace's queues are to be, compared with what Redis holds, and applied.
//!
//! `document`, `template`, `diff` and `rollout` are pure; the others speak to Redis.

pub(crate) mod apply;
pub(crate) mod diff;
pub(crate) mod document;
pub(crate) mod drift;
pub(crate) mod plan;
pub(crate) mod rollout;
pub(crate) mod source;
pub(crate) mod state;
pub(crate) mod template;
