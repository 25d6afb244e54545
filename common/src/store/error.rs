//! What can go wrong between us and Redis, in words a person can act on. Never shows a password.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Redis said no, or did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The URL does not describe a Redis server.
    #[error("invalid Redis URL: {0}; use redis://[user:password@]host:port[/db]")]
    BadUrl(String),
    /// Nothing answers there, or the connection broke.
    #[error("cannot reach Redis at {address}: {source}; check that it runs and that the address is right")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// The cause.
        source: RedisError,
    },
    /// A reply did not come in time. The command may have been executed.
    #[error(
        "no reply from Redis at {address} within {after:?}; what was asked may have been done. Check the network, and what keeps Redis busy (SLOWLOG GET)"
    )]
    Timeout {
        /// `host:port`.
        address: String,
        /// How long we waited.
        after: Duration,
    },
    /// Wrong or missing password, or a user without the right to a command.
    #[error("Redis at {address} refused our credentials: {detail}; check user, password and ACL rules")]
    Denied {
        /// `host:port`.
        address: String,
        /// What Redis said.
        detail: String,
    },
    /// Redis is reading its data set after a start.
    #[error("Redis at {address} is still loading its data set; it will answer when it is done")]
    Loading {
        /// `host:port`.
        address: String,
    },
    /// A replica, or a primary that lost its role.
    #[error("Redis at {address} is a read-only replica; point Switchback at the primary")]
    ReadOnly {
        /// `host:port`.
        address: String,
    },
    /// `maxmemory` is reached.
    #[error(
        "Redis at {address} is out of memory (maxmemory); workers still drain it, new tasks are refused until then"
    )]
    OutOfMemory {
        /// `host:port`.
        address: String,
    },
    /// Redis refuses writes: disk full, too few replicas.
    #[error(
        "Redis at {address} refuses writes: {detail}; mend its disk or its replicas. Workers keep their results and go on by themselves"
    )]
    WritesRefused {
        /// `host:port`.
        address: String,
        /// What Redis said.
        detail: String,
    },
    /// The consumer group of a stream is gone.
    #[error(
        "the consumer group `workers` of {queue} is gone although its gate state exists; tasks are held: see `switchback queue show`"
    )]
    NoGroup {
        /// The queue.
        queue: String,
    },
    /// Too many cancellations are on record.
    #[error(
        "{queue} has {limit} cancellations of tasks that no worker has met yet; wait until workers have passed them, or pause the queue"
    )]
    CancelsFull {
        /// The queue.
        queue: String,
        /// The limit.
        limit: usize,
    },
    /// The server is too old.
    #[error("Redis at {address} is version {found}, Switchback needs 7.0 or newer")]
    TooOld {
        /// `host:port`.
        address: String,
        /// Its version.
        found: String,
    },
    /// The server may throw keys away.
    #[error(
        "Redis at {address} has maxmemory-policy {policy}: it may evict tasks and gates; run CONFIG SET maxmemory-policy noeviction"
    )]
    Evicting {
        /// `host:port`.
        address: String,
        /// The policy.
        policy: String,
    },
    /// A reply of a shape we do not know: another program writes our keys, or a bug.
    #[error("unexpected reply from Redis to {what}: {detail}")]
    Unexpected {
        /// The operation.
        what: &'static str,
        /// What came.
        detail: String,
    },
    /// Anything else that Redis said.
    #[error("Redis at {address} failed: {source}")]
    Redis {
        /// `host:port`.
        address: String,
        /// The cause.
        source: RedisError,
    },
}

impl StoreError {
    pub(crate) fn from_redis(address: &str, source: RedisError) -> Self {
        let address = address.to_owned();
        // An aborted MULTI wraps what was said to its commands: the first of them says what is wrong.
        let source = match source.clone().into_server_errors().as_deref() {
            Some([(_, first), ..]) => first.clone().into(),
            _ => source,
        };
        // A refused AUTH has no detail of its own.
        let detail = || source.detail().unwrap_or_else(|| source.category()).to_owned();
        match (source.kind(), source.code().unwrap_or_default()) {
            (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS" | "NOPERM") => Self::Denied {
                detail: format!("{} {}", source.code().unwrap_or("AUTH"), detail()),
                address,
            },
            (ErrorKind::Server(ServerErrorKind::BusyLoading), _) => Self::Loading { address },
            (ErrorKind::Server(ServerErrorKind::ReadOnly), _) => Self::ReadOnly { address },
            (_, "OOM") => Self::OutOfMemory { address },
            (_, code @ ("MISCONF" | "NOREPLICAS")) => Self::WritesRefused {
                detail: format!("{code} {}", detail()),
                address,
            },
            _ if source.is_timeout() => Self::Timeout {
                address,
                after: super::connect::CONNECT_TIMEOUT,
            },
            _ if source.is_io_error() || source.is_connection_dropped() || source.is_connection_refusal() => {
                Self::Unreachable { address, source }
            }
            // A script wraps what its inner command said.
            _ if source.to_string().contains("OOM command not allowed") => Self::OutOfMemory { address },
            // Redis 7.0.0 (and no later one) refuses a script on a replica without the code READONLY.
            _ if source.to_string().contains("write flag on readonly replica") => Self::ReadOnly { address },
            _ => Self::Redis { address, source },
        }
    }

    /// Whether trying again later may help without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Loading { .. }
            | Self::ReadOnly { .. }
            | Self::OutOfMemory { .. }
            | Self::WritesRefused { .. }
            | Self::NoGroup { .. } => true,
            Self::BadUrl(_)
            | Self::CancelsFull { .. }
            | Self::Denied { .. }
            | Self::TooOld { .. }
            | Self::Evicting { .. }
            | Self::Unexpected { .. } => false,
            Self::Redis { source, .. } => matches!(
                source.kind(),
                ErrorKind::Server(
                    ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown
                )
            ),
        }
    }

    /// Whether a command that got this answer may have been executed all the same.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            // A refused connection never carried the command.
            Self::Unreachable { source, .. } => !source.is_connection_refusal(),
            Self::BadUrl(_)
            | Self::Denied { .. }
            | Self::Loading { .. }
            | Self::ReadOnly { .. }
            | Self::OutOfMemory { .. }
            | Self::WritesRefused { .. }
            | Self::NoGroup { .. }
            | Self::CancelsFull { .. }
            | Self::TooOld { .. }
            | Self::Evicting { .. }
            | Self::Unexpected { .. }
            | Self::Redis { .. } => false,
        }
    }

    /// Whether Redis could not be reached or used at all (exit code 3 of the binaries).
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Loading { .. } | Self::Denied { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use redis::{ErrorKind, RedisError, ServerErrorKind};

    use super::StoreError;

    // The first as Redis 7.0.0 has it, which tests/it/connect.rs meets only where that one runs.
    #[test]
    fn a_script_refused_by_a_replica_is_known_by_its_words() {
        let said = |detail: &str| {
            let kind = ErrorKind::Server(ServerErrorKind::ResponseError);
            StoreError::from_redis("here", RedisError::from((kind, "said", detail.to_owned())))
        };
        let refused = said("Can not run script with write flag on readonly replica");
        assert!(matches!(refused, StoreError::ReadOnly { .. }) && refused.is_transient());
        let other = said("Can not execute a script with write flag using *_ro command.");
        assert!(matches!(other, StoreError::Redis { .. }) && !other.is_transient());
    }
}
