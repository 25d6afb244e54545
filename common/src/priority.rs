//! How urgent a task is among the others of its queue.

use std::str::FromStr;

/// How urgent a task is. Each priority has a stream of its own; a busy worker takes from them 6 : 3 : 1, so that low
/// priority waits longer, but never for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Priority {
    /// Before the others.
    High,
    /// As usual.
    #[default]
    Normal,
    /// When there is time.
    Low,
}

impl Priority {
    /// What the envelope's field `priority` says; `None` for normal, which is not written.
    #[must_use]
    pub fn field(self) -> Option<&'static str> {
        match self {
            Self::High => Some("high"),
            Self::Normal => None,
            Self::Low => Some("low"),
        }
    }
}

/// A text that is no priority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown priority {0:?}: use high, normal or low")]
pub struct UnknownPriority(pub String);

impl FromStr for Priority {
    type Err = UnknownPriority;

    fn from_str(text: &str) -> Result<Self, UnknownPriority> {
        match text {
            "high" => Ok(Self::High),
            "normal" => Ok(Self::Normal),
            "low" => Ok(Self::Low),
            _ => Err(UnknownPriority(text.chars().take(40).collect())),
        }
    }
}
