//! How a run ends: the exit codes that scripts rely on, and what leads to each.

use std::process::ExitCode;

use switchback_common::{StoreError, config::ConfigError};
use switchback_gates::GateError;
use switchback_producer::{AfterError, EnqueueError};

/// Exit codes. Stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Anything that has no number of its own.
    Failed = 1,
    /// The command line or the configuration cannot be understood.
    Usage = 2,
    /// Redis cannot be reached or does not let us in.
    Unreachable = 3,
    /// No such queue, task, dead letter or schedule.
    NotFound = 4,
    /// Understood and refused: nothing was changed.
    Refused = 5,
    /// Changed, but not everyone has confirmed it; or waited for, and not ended in time.
    Unconfirmed = 6,
    /// `config diff` and `config drift` with `--exit-code`: there is something to change.
    Differs = 10,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a run did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Gate(GateError),
    #[error(transparent)]
    Enqueue(#[from] EnqueueError),
    #[error("{0}")]
    NotFound(String),
    #[error("refused: {0}")]
    Refused(String),
    #[error("committed, but not confirmed: {0}")]
    Unconfirmed(String),
    #[error("{0}")]
    NotYet(String),
    #[error("{0}")]
    Differs(String),
    #[error("{source}; whether the change was committed is unknown: look with `switchback gate show`, or repeat it")]
    Unknown { source: StoreError },
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
    #[error("{0}")]
    Other(String),
}

impl From<GateError> for Failure {
    fn from(error: GateError) -> Self {
        match error {
            GateError::Store(error) => Self::Store(error),
            other => Self::Gate(other),
        }
    }
}

impl From<AfterError> for Failure {
    fn from(error: AfterError) -> Self {
        match error {
            AfterError::Store(error) => Self::Store(error),
            AfterError::Name(error) => Self::Usage(error.to_string()),
            other => Self::Other(other.to_string()),
        }
    }
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Config(_) => Exit::Usage,
            Self::Store(error) => of_store(error),
            Self::Unknown { source } => of_store(source),
            Self::Gate(GateError::NoGate(_)) | Self::NotFound(_) => Exit::NotFound,
            Self::Gate(GateError::NothingBefore(_)) | Self::Refused(_) => Exit::Refused,
            Self::Enqueue(error) => of_enqueue(error),
            Self::Unconfirmed(_) | Self::NotYet(_) => Exit::Unconfirmed,
            Self::Differs(_) => Exit::Differs,
            Self::Gate(_) | Self::Output(_) | Self::Other(_) => Exit::Failed,
        }
    }
}

fn of_store(error: &StoreError) -> Exit {
    match error {
        StoreError::BadUrl(_) => Exit::Usage,
        StoreError::CancelsFull { .. } => Exit::Refused,
        error if error.is_unreachable() => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

fn of_enqueue(error: &EnqueueError) -> Exit {
    match error {
        EnqueueError::Refused { source, .. } | EnqueueError::OutcomeUnknown { source, .. } => of_store(source),
        EnqueueError::Name(_) | EnqueueError::Id(_) => Exit::Usage,
        EnqueueError::PayloadTooLarge { .. }
        | EnqueueError::KeyTooLong { .. }
        | EnqueueError::HeadersTooLong { .. }
        | EnqueueError::QueueFull { .. } => Exit::Refused,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_what_the_help_says() {
        let codes = [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::Unreachable,
            Exit::NotFound,
            Exit::Refused,
            Exit::Unconfirmed,
            Exit::Differs,
        ];
        assert_eq!(codes.map(|code| code as u8), [0, 1, 2, 3, 4, 5, 6, 10]);
        assert_eq!(Failure::Store(StoreError::BadUrl("x".into())).exit(), Exit::Usage);
    }
}
