//! What a broken promise looks like.

use std::fmt;

use serde::Serialize;

/// A promise of the design, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[expect(missing_docs, reason = "their text stands in ARCHITECTURE.md")]
pub enum Promise {
    P1,
    P2,
    P3,
    P4,
    P5,
    P6,
    P7,
    P8,
    P9,
    P10,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Breach {
    /// An acknowledged task is nowhere.
    Lost,
    /// A task still waits although everything was healed and given time.
    LeftBehind,
    /// A task that nobody enqueued, or whose enqueue was refused.
    Phantom,
    /// Settled as done, but its handler never came to its effect.
    DoneWithoutEffect,
    /// The log says dead, but there is no dead letter; or the other way round.
    DeadLetterAmiss,
    /// It started from an entry of which the log says nothing more.
    Unrecorded,
    /// The log tells of an attempt that no process began.
    NeverStarted,
    /// An entry was settled or moved away more than once.
    SettledTwice,
    /// A task ended more than once.
    EndedTwice,
    /// One claim was started more than once.
    StartedTwice,
    /// A task was moved or tried again after its end.
    CameBack,
    /// One enqueue became two tasks.
    TwoTasks,
    /// A start on a version that a flip had withdrawn before the task was even sent.
    StartedAfterFlip,
    /// A start on a withdrawn version later than `start_ttl` after the flip.
    StartedPastTtl,
    /// By the certificate, a start on a version withdrawn before its gate was read.
    LateByCertificate,
    /// A start on a version that its own gate read does not give it.
    Misrouted,
    /// The log tells another version, revision or gate read of an attempt than the process that ran it.
    Misrecorded,
    /// The result of an attempt took effect after a flip had revoked it.
    RevokedCounts,
    /// A session settled after it was declared lost, or after it had ended.
    ZombieSettled,
    /// A session started a task by a gate read made after it was declared lost.
    ZombieStarted,
    /// Entries of a session were taken although it was neither declared lost nor ended.
    TakenFromTheLiving,
    /// A task that ran before was not decided again.
    NotRedecided,
    /// An attempt counts although its handler did not fail.
    AttemptBurnt,
    /// The number of an attempt is not the number of failures before it, plus one.
    WrongAttempt,
    /// A dead letter for want of attempts that had not had them all.
    GaveUpEarly,
    /// A dead letter of a task that did nothing to deserve it.
    InnocentDead,
    /// A start while the gate was paused.
    StartedPaused,
    /// A start under a revision that the history does not have.
    UnknownRevision,
    /// The queue was put on hold for a gate that went backwards, and none had.
    HeldWithoutCause,
    /// A revision is missing, or there twice.
    RevisionGap,
    /// A revision does not begin where the one before ended, or not later.
    RevisionBreak,
    /// A change that nobody made, or that was made once and recorded twice.
    ChangeAmiss,
    /// A batch beyond its bound.
    TooLarge,
}

impl Breach {
    /// The promise it breaks.
    #[must_use]
    pub fn promise(self) -> Promise {
        match self {
            Self::Lost
            | Self::LeftBehind
            | Self::Phantom
            | Self::DoneWithoutEffect
            | Self::DeadLetterAmiss
            | Self::Unrecorded
            | Self::NeverStarted => Promise::P1,
            Self::SettledTwice | Self::EndedTwice | Self::StartedTwice | Self::CameBack | Self::TwoTasks => Promise::P2,
            Self::StartedAfterFlip
            | Self::StartedPastTtl
            | Self::LateByCertificate
            | Self::Misrouted
            | Self::Misrecorded
            | Self::RevokedCounts => Promise::P3,
            Self::ZombieSettled | Self::ZombieStarted | Self::TakenFromTheLiving => Promise::P4,
            Self::NotRedecided => Promise::P5,
            Self::AttemptBurnt | Self::WrongAttempt | Self::GaveUpEarly => Promise::P6,
            Self::InnocentDead => Promise::P7,
            Self::StartedPaused | Self::UnknownRevision | Self::HeldWithoutCause => Promise::P8,
            Self::RevisionGap | Self::RevisionBreak | Self::ChangeAmiss => Promise::P9,
            Self::TooLarge => Promise::P10,
        }
    }
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which promise.
    pub promise: Promise,
    /// What happened.
    pub breach: Breach,
    /// To which task, session or revision.
    pub subject: String,
    /// What shows it.
    pub evidence: String,
}

impl Violation {
    /// `breach` happened to `subject`.
    pub(crate) fn new(breach: Breach, subject: impl fmt::Display, evidence: impl Into<String>) -> Self {
        Self {
            promise: breach.promise(),
            breach,
            subject: subject.to_string(),
            evidence: evidence.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            promise,
            breach,
            subject,
            evidence,
        } = self;
        write!(f, "{promise:?} {breach:?}: {subject}: {evidence}")
    }
}
