//! Ids: of tasks, of stream entries, of sessions.
//!
//! A plain task carries no id on the wire: its id *is* its place in the stream (ADR 0002), so that it
//! costs no memory, is stable however often it is delivered, and leads back to its entry in O(1).

use std::{fmt, str::FromStr, sync::Arc};

use sha1::{Digest, Sha1};
use uuid::Uuid;

use crate::name::is_valid_name;

/// The id of one task: a `UUIDv7`, or the text given with `.id(…)`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Uuid(Uuid),
    Text(Arc<str>),
}

/// An id that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid task id {0:?}: use 1 to 64 of the characters A-Z a-z 0-9 . _ -")]
pub struct InvalidTaskId(pub String);

impl TaskId {
    /// A new id that no other task has.
    #[must_use]
    pub fn random() -> Self {
        Self(Repr::Uuid(Uuid::now_v7()))
    }

    /// The id of the entry `entry` of the stream whose salt is `salt` (see [`stream_salt`]).
    ///
    /// Layout: 48 bits of milliseconds, then 42 bits of sequence, then 32 bits of salt, in the shape of
    /// a `UUIDv7`. `entry.lua` computes the same; `id_in_lua_and_rust_agree` in the tests holds them together.
    #[must_use]
    pub fn of_entry(salt: u32, entry: StreamId) -> Self {
        // Redis numbers far below these bounds by itself; a hand-made id beyond them wraps, and two such
        // entries would have to wrap onto each other within one stream to share an id.
        let ms = u128::from(entry.ms & ((1 << 48) - 1));
        let seq = u128::from(entry.seq & ((1 << 42) - 1));
        let high = (ms << 16) | 0x7000 | (seq >> 30);
        let low = (0b10 << 62) | ((seq & ((1 << 30) - 1)) << 32) | u128::from(salt);
        Self(Repr::Uuid(Uuid::from_u128((high << 64) | low)))
    }

    /// The entry this id was made from, if it was made by [`TaskId::of_entry`] for that stream.
    #[must_use]
    pub fn entry(&self, salt: u32) -> Option<StreamId> {
        let Repr::Uuid(uuid) = &self.0 else {
            return None;
        };
        let bits = uuid.as_u128();
        if uuid.get_version_num() != 7 || u32::try_from(bits & 0xffff_ffff) != Ok(salt) {
            return None;
        }
        let high = u64::try_from((bits >> 64) & 0xfff).ok()?;
        let low = u64::try_from((bits >> 32) & ((1 << 30) - 1)).ok()?;
        Some(StreamId {
            ms: u64::try_from(bits >> 80).ok()?,
            seq: (high << 30) | low,
        })
    }
}

impl FromStr for TaskId {
    type Err = InvalidTaskId;

    fn from_str(text: &str) -> Result<Self, InvalidTaskId> {
        if !is_valid_name(text) {
            return Err(InvalidTaskId(text.chars().take(80).collect()));
        }
        // Only the canonical spelling becomes a Uuid: an id must read back exactly as it was given.
        match Uuid::try_parse(text) {
            Ok(uuid) if text.len() == 36 && !text.bytes().any(|b| b.is_ascii_uppercase()) => Ok(Self(Repr::Uuid(uuid))),
            _ => Ok(Self(Repr::Text(Arc::from(text)))),
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Uuid(uuid) => fmt::Display::fmt(uuid, f),
            Repr::Text(text) => f.write_str(text),
        }
    }
}
impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl serde::Serialize for TaskId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> serde::Deserialize<'de> for TaskId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What distinguishes the ids of one stream from those of another: the first four bytes of SHA-1 of its key.
#[must_use]
pub fn stream_salt(stream_key: &str) -> u32 {
    let digest = Sha1::digest(stream_key.as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// The id of a stream entry: `<milliseconds>-<sequence>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamId {
    /// Milliseconds of Redis's clock.
    pub ms: u64,
    /// Sequence within the millisecond.
    pub seq: u64,
}

impl StreamId {
    /// Reads `<ms>-<seq>`, or a bare `<ms>`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (ms, seq) = text.split_once('-').unwrap_or((text, "0"));
        Some(Self {
            ms: ms.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// One worker's lease on one queue: the unit of fencing. New at every start, and the consumer's name in Redis.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// A new session id.
    #[must_use]
    pub fn random() -> Self {
        Self(Arc::from(Uuid::now_v7().simple().to_string()))
    }

    /// A session id found in Redis. Consumers made by hand have any name.
    #[must_use]
    pub fn from_found(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl serde::Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_leads_back_to_its_entry(ms in 0u64..(1 << 48), seq in 0u64..(1 << 42), salt: u32) {
            let entry = StreamId { ms, seq };
            let id = TaskId::of_entry(salt, entry);
            prop_assert_eq!(id.entry(salt), Some(entry));
            prop_assert_eq!(id.entry(salt.wrapping_add(1)), None);
            prop_assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id);
        }

        #[test]
        fn ids_of_one_stream_sort_like_their_entries(a: (u32, u16), b: (u32, u16), salt: u32) {
            let [a, b] = [a, b].map(|(ms, seq)| StreamId { ms: ms.into(), seq: seq.into() });
            prop_assert_eq!(TaskId::of_entry(salt, a).cmp(&TaskId::of_entry(salt, b)), a.cmp(&b));
        }

        #[test]
        fn any_text_is_an_id_as_given_or_refused(text in "\\PC{0,70}") {
            match text.parse::<TaskId>() {
                Ok(id) => prop_assert_eq!(id.to_string(), text),
                Err(_) => prop_assert!(!is_valid_name(&text)),
            }
        }
    }

    #[test]
    fn uppercase_uuids_keep_their_spelling() {
        let text = "0192F0C1-0000-7000-8000-000000000000";
        assert_eq!(text.parse::<TaskId>().unwrap().to_string(), text);
    }
}
