//! Everything Switchback does in Redis: one file per concern, Lua beside its wrapper.
//!
//! Every key is catalogued in [`keyspace::Key`]. One operation is one function and at most one script.

pub mod absence;
pub mod backoff;
pub mod cancel;
pub mod claim;
pub mod config;
pub mod connect;
pub mod count;
pub mod dead;
pub mod enqueue;
pub mod error;
pub mod gate;
pub mod grumble;
pub mod held;
pub mod inspect;
pub mod keyspace;
pub mod limits;
pub mod log;
pub mod moves;
pub mod notes;
pub mod policy;
pub mod probe;
pub mod push;
pub mod reply;
pub mod results;
pub mod rollout;
pub mod schedule;
mod script;
pub mod session;
pub mod settle;
pub mod stops;
pub mod throttle;
pub mod versions;

/// The consumer group of every stream.
pub const GROUP: &str = "workers";
