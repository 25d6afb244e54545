//! What keeps a worker from running.

use switchback_common::{StoreError, TaskType, Version, name::InvalidName};

use crate::registry::MAX_CONCURRENCY;

/// Why a worker did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// There is nothing to run.
    #[error("this worker has no handlers: add at least one task type with one version")]
    NoHandlers,
    /// A task type without a version.
    #[error("task type {0} has no versions: add a handler with .version(\"v1\", …)")]
    NoVersions(TaskType),
    /// A task type described twice.
    #[error("task type {0} is described twice: put all its versions into one description")]
    DuplicateType(TaskType),
    /// A version described twice.
    #[error("version {version} of {task_type} is described twice")]
    DuplicateVersion {
        /// The task type.
        task_type: TaskType,
        /// The version.
        version: Version,
    },
    /// A concurrency out of range.
    #[error("concurrency {concurrency} of {task_type} is out of range: 1 to {MAX_CONCURRENCY}")]
    BadConcurrency {
        /// The task type.
        task_type: TaskType,
        /// What was asked for.
        concurrency: usize,
    },
    /// A schedule that cannot work.
    #[error("schedule {name:?} of {task_type}: {problem}")]
    BadSchedule {
        /// The task type.
        task_type: TaskType,
        /// Its name, cut.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A name that is not one.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A duration that cannot work.
    #[error("{0}")]
    BadSetting(String),
    /// The address for health cannot be listened on.
    #[error(
        "cannot listen on {address} for /livez and /readyz: {source}; choose another address, or end what holds it"
    )]
    Health {
        /// What was asked for.
        address: std::net::SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// Redis cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The machine gave no thread or no signal handler.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}
