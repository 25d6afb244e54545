//! Names: the strings that become part of keys, checked once at the border.
//!
//! Everything that reaches a key has passed through here, so a key can never be steered by data.

use std::{fmt, marker::PhantomData, str::FromStr, sync::Arc};

/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// A validated name matching `[A-Za-z0-9._-]{1,64}`; `K` says what it names.
pub struct Name<K> {
    text: Arc<str>,
    kind: PhantomData<fn() -> K>,
}

/// What a [`Name`] names; only used in messages.
pub trait NameKind {
    /// The word for it in an error message.
    const WHAT: &'static str;
}

/// Marker of [`Namespace`].
#[derive(Debug)]
pub enum NamespaceName {}
/// Marker of [`TaskType`].
#[derive(Debug)]
pub enum TaskTypeName {}
/// Marker of [`Version`].
#[derive(Debug)]
pub enum VersionName {}

impl NameKind for NamespaceName {
    const WHAT: &'static str = "namespace";
}
impl NameKind for TaskTypeName {
    const WHAT: &'static str = "task type";
}
impl NameKind for VersionName {
    const WHAT: &'static str = "version";
}

/// Marker of [`HeaderName`].
#[derive(Debug)]
pub enum HeaderNameName {}

impl NameKind for HeaderNameName {
    const WHAT: &'static str = "header name";
}

/// Isolation unit: an application or team, e.g. `shop`.
pub type Namespace = Name<NamespaceName>;
/// A kind of task, e.g. `send_email`. Each has its own queue.
pub type TaskType = Name<TaskTypeName>;
/// The label of one handler implementation, e.g. `v2` or `2026-11-21.3`.
pub type Version = Name<VersionName>;
/// The name of a task's header, e.g. `plan`.
pub type HeaderName = Name<HeaderNameName>;

/// A name that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {name:?}: use 1 to 64 of the characters A-Z a-z 0-9 . _ -")]
pub struct InvalidName {
    /// What it should have named.
    pub what: &'static str,
    /// The text, cut to 80 characters.
    pub name: String,
}

/// Whether `text` may be a name.
#[must_use]
pub fn is_valid_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl<K: NameKind> Name<K> {
    /// Checks `text` and makes a name of it.
    ///
    /// # Errors
    /// [`InvalidName`] when it does not match `[A-Za-z0-9._-]{1,64}`.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
        let text = text.as_ref();
        if is_valid_name(text) {
            Ok(Self {
                text: Arc::from(text),
                kind: PhantomData,
            })
        } else {
            Err(InvalidName {
                what: K::WHAT,
                name: text.chars().take(80).collect(),
            })
        }
    }
}

impl<K> Name<K> {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl<K: NameKind> FromStr for Name<K> {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl<K> fmt::Display for Name<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}
impl<K> fmt::Debug for Name<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}
impl<K> Clone for Name<K> {
    fn clone(&self) -> Self {
        Self {
            text: Arc::clone(&self.text),
            kind: PhantomData,
        }
    }
}
impl<K> PartialEq for Name<K> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl<K> Eq for Name<K> {}
impl<K> PartialOrd for Name<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Name<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}
impl<K> std::hash::Hash for Name<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}
impl<K> serde::Serialize for Name<K> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}
impl<'de, K: NameKind> serde::Deserialize<'de> for Name<K> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(text).map_err(serde::de::Error::custom)
    }
}

/// The streams and satellites of one task type in one namespace: one Redis hash slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Queue {
    /// The namespace.
    pub namespace: Namespace,
    /// The task type.
    pub task_type: TaskType,
}

impl Queue {
    /// The queue of `task_type` in `namespace`.
    #[must_use]
    pub fn new(namespace: Namespace, task_type: TaskType) -> Self {
        Self { namespace, task_type }
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.task_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "send_email", "2026-11-21.3", &"x".repeat(64)] {
            assert!(Version::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a:b", "a b", "{x}", "é", "a\n", &"x".repeat(65)] {
            let error = TaskType::new(bad).unwrap_err();
            assert!(error.to_string().starts_with("invalid task type"), "{error}");
        }
    }
}
