//! What is known of each version of a queue: since when, which build, whether it was taken out of use.
//!
//! A label is never forgotten, and one label is one build: so the log, which names versions, says what ran.

use std::collections::BTreeMap;

use redis::{Cmd, Value};
use serde_json::Value as Json;

use super::{
    connect::Store,
    error::StoreError,
    keyspace::Key,
    reply::{self, unexpected},
    script,
};
use crate::{
    envelope::clip,
    name::{Queue, Version},
};

/// Longest build label that is kept, in bytes.
pub const MAX_BUILD_BYTES: usize = 200;

const MAX_BY_BYTES: usize = 64;
const MAX_WHY_BYTES: usize = 500;

/// What is known of one version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionRecord {
    /// When a session first declared it, µs of Redis's clock.
    pub first_seen_us: u64,
    /// Its builds, newest last; empty if no session has said. More than one only where a worker allowed it.
    pub builds: Vec<String>,
    /// Builds that wanted its label and were refused.
    pub refused: Vec<String>,
    /// Set when it was taken out of use.
    pub retired: Option<Retired>,
    /// Set when a guard rolled it back, as whichever build: see [`rolled_back_as_it_is`](Self::rolled_back_as_it_is).
    pub rolled_back: Option<RolledBack>,
}

/// A version was taken out of use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retired {
    /// When, µs of Redis's clock.
    pub at_us: u64,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
}

/// A version was rolled back by a guard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RolledBack {
    /// When, µs of Redis's clock.
    pub at_us: u64,
    /// By which revision.
    pub rev: u64,
    /// Why.
    pub why: String,
    /// The build that it was then; `None`: whoever wrote the mark did not say.
    pub build: Option<String>,
}

impl VersionRecord {
    /// The build that it is now: the one that joined last. Empty if no session has said.
    #[must_use]
    pub fn build(&self) -> &str {
        self.builds.last().map_or("", String::as_str)
    }

    /// The mark of a rollback, unless it speaks of another build than it is now: another build is another try.
    #[must_use]
    pub fn rolled_back_as_it_is(&self) -> Option<&RolledBack> {
        let is_same = |back: &&RolledBack| back.build.as_deref().is_none_or(|build| build == self.build());
        self.rolled_back.as_ref().filter(is_same)
    }

    /// Reads what scripts wrote. What is not as they write it says nothing.
    #[must_use]
    pub fn parse(json: &[u8]) -> Self {
        let json: Json = serde_json::from_slice(json).unwrap_or_default();
        let mut builds = texts(&json["builds"]);
        if builds.is_empty() {
            builds.extend(Some(text(&json["build"])).filter(|build| !build.is_empty()));
        }
        let retired = &json["retired_us"];
        let rolled_back = &json["rolled_back"];
        Self {
            first_seen_us: number(&json["first_seen_us"]),
            builds,
            refused: texts(&json["refused"]),
            retired: (!retired.is_null()).then(|| Retired {
                at_us: number(retired),
                by: text(&json["retired_by"]),
                why: text(&json["retired_why"]),
            }),
            rolled_back: rolled_back.is_object().then(|| RolledBack {
                at_us: number(&rolled_back["at_us"]),
                rev: number(&rolled_back["rev"]),
                why: text(&rolled_back["why"]),
                build: rolled_back["build"].as_str().map(str::to_owned),
            }),
        }
    }
}

fn text(json: &Json) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

fn texts(json: &Json) -> Vec<String> {
    let list = json.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(text).filter(|text| !text.is_empty()).collect()
}

/// Scripts write large numbers as text: as a number Lua would lose digits.
fn number(json: &Json) -> u64 {
    json.as_u64().or_else(|| json.as_str()?.parse().ok()).unwrap_or(0)
}

/// Every version that a session ever declared.
///
/// # Errors
/// When Redis does not answer.
pub async fn records(store: &Store, queue: &Queue) -> Result<BTreeMap<Version, VersionRecord>, StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("HGETALL").arg(key(store, queue));
    let fields = reply::fields("versions", link.run(cmd).await?)?;
    // Fields that begin with `:` are no versions, and cannot be: see `name`.
    Ok(fields
        .into_iter()
        .filter_map(|(name, json)| {
            let version = std::str::from_utf8(&name).ok()?.parse().ok()?;
            Some((version, VersionRecord::parse(&json)))
        })
        .collect())
}

/// What is known of one version; `None` if no session ever declared it.
///
/// # Errors
/// When Redis does not answer.
pub async fn record(store: &Store, queue: &Queue, version: &Version) -> Result<Option<VersionRecord>, StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("HGET").arg(key(store, queue)).arg(version.as_str());
    Ok(match link.run(cmd).await? {
        Value::Nil => None,
        json => Some(VersionRecord::parse(&reply::bytes("version", json)?)),
    })
}

/// A version to take out of use, or to bring back.
#[derive(Debug, Clone, Default)]
pub struct RetireRequest {
    /// Who: goes into the history.
    pub by: String,
    /// Why: goes into the history.
    pub why: String,
    /// Even if its lane holds tasks.
    pub force: bool,
    /// Only if this is still the gate's revision.
    pub if_rev: Option<u64>,
    /// Judge it, change nothing.
    pub dry_run: bool,
}

/// How retiring a version went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retiring {
    /// It is retired now, or would be.
    Retired {
        /// When, µs of Redis's clock.
        at_us: u64,
    },
    /// It was before.
    Already {
        /// When, µs of Redis's clock.
        at_us: u64,
    },
    /// No session ever declared it.
    Unknown,
    /// The gate names it: `active`, `candidate`, `pins` or `targets`.
    Routed {
        /// Where.
        by: String,
    },
    /// A rollout comes from it or goes to it.
    Rollout {
        /// Where the rollout is: running, paused, held or watching.
        status: String,
    },
    /// Its lane holds tasks.
    Waiting,
    /// `if_rev` is not the revision any more.
    Moved {
        /// The revision now.
        rev: u64,
    },
    /// The queue has no gate state.
    Unsealed,
}

/// How bringing a version back went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restoring {
    /// It may be routed to again, or could be.
    Restored,
    /// It was not retired.
    Same,
    /// No session ever declared it.
    Unknown,
}

/// Takes a version out of use: from the reply on no gate names it, and none can until it is restored.
///
/// # Errors
/// When Redis does not answer. Repeating it is harmless.
pub async fn retire(
    store: &Store,
    queue: &Queue,
    version: &Version,
    request: &RetireRequest,
) -> Result<Retiring, StoreError> {
    let mut call = script::RETIRE.prepare_invoke();
    for name in gate_keys(queue).into_iter().chain([
        Key::Log(queue.clone()),
        Key::Lane(queue.clone(), version.clone()),
        Key::Rollout(queue.clone()),
    ]) {
        call.key(store.keyspace().render(&name));
    }
    call.arg(version.as_str())
        .arg(clip(&request.by, MAX_BY_BYTES))
        .arg(clip(&request.why, MAX_WHY_BYTES))
        .arg(if request.force { "force" } else { "" })
        .arg(request.if_rev.map_or_else(String::new, |rev| rev.to_string()))
        .arg(if request.dry_run { "dry" } else { "" });
    let link = store.warm().await?;
    let (word, mut rest) = reply::verdict("retire", link.run_script(&call).await?)?;
    let detail = rest.next().unwrap_or(Value::Nil);
    Ok(match word.as_str() {
        "retired" | "would" => Retiring::Retired {
            at_us: reply::count("retire", &detail)?,
        },
        "already" => Retiring::Already {
            at_us: reply::count("retire", &detail).unwrap_or(0),
        },
        "unknown" => Retiring::Unknown,
        "routed" => Retiring::Routed {
            by: reply::text("retire", detail)?,
        },
        "rollout" => Retiring::Rollout {
            status: reply::text("retire", detail)?,
        },
        "waiting" => Retiring::Waiting,
        "moved" => Retiring::Moved {
            rev: reply::count("retire", &detail)?,
        },
        "unsealed" => Retiring::Unsealed,
        _ => return Err(unexpected("retire", &Value::SimpleString(word))),
    })
}

/// Brings a retired version back, under the same label and for the same build. Nothing is routed to it by that.
///
/// # Errors
/// When Redis does not answer. Repeating it is harmless.
pub async fn restore(
    store: &Store,
    queue: &Queue,
    version: &Version,
    request: &RetireRequest,
) -> Result<Restoring, StoreError> {
    let mut call = script::RESTORE.prepare_invoke();
    for name in gate_keys(queue).into_iter().chain([Key::Log(queue.clone())]) {
        call.key(store.keyspace().render(&name));
    }
    call.arg(version.as_str())
        .arg(clip(&request.by, MAX_BY_BYTES))
        .arg(clip(&request.why, MAX_WHY_BYTES))
        .arg(if request.dry_run { "dry" } else { "" });
    let link = store.warm().await?;
    let (word, _) = reply::verdict("restore", link.run_script(&call).await?)?;
    match word.as_str() {
        "restored" | "would" => Ok(Restoring::Restored),
        "same" => Ok(Restoring::Same),
        "unknown" => Ok(Restoring::Unknown),
        _ => Err(unexpected("restore", &Value::SimpleString(word))),
    }
}

/// The counters of one minute: `<version>:<what>` and how many.
pub type Counters = Vec<(String, u64)>;

/// The counters of the newest `minutes` minutes of Redis's clock up to that of `now_us`, each with its minute.
///
/// # Errors
/// When Redis does not answer.
pub async fn counters(
    store: &Store,
    queue: &Queue,
    now_us: u64,
    minutes: u64,
) -> Result<Vec<(u64, Counters)>, StoreError> {
    let this = now_us / 60_000_000;
    let wanted: Vec<u64> = (this.saturating_sub(minutes.saturating_sub(1))..=this).collect();
    let mut pipe = redis::pipe();
    for minute in &wanted {
        let key = Key::Stats(queue.clone(), *minute);
        pipe.cmd("HGETALL").arg(store.keyspace().render(&key));
    }
    let link = store.cold().await?;
    let replies = link.run_pipe(&mut pipe).await?;
    let mut out = Vec::with_capacity(wanted.len());
    for (minute, found) in wanted.into_iter().zip(replies) {
        let fields = reply::fields("stats", found.map_err(|e| link.error(e))?)?;
        let counters = fields.into_iter().filter_map(|(name, n)| {
            let n = std::str::from_utf8(&n).ok()?.parse().ok()?;
            Some((String::from_utf8(name).ok()?, n))
        });
        out.push((minute, counters.collect()));
    }
    Ok(out)
}

fn key(store: &Store, queue: &Queue) -> String {
    store.keyspace().render(&Key::Versions(queue.clone()))
}

/// The keys that gate scripts take, in their order.
fn gate_keys(queue: &Queue) -> [Key; 4] {
    [Key::Gate, Key::GateState, Key::History, Key::Versions].map(|key| key(queue.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_every_release_are_read() {
        // As releases without builds wrote them.
        let old = VersionRecord::parse(br#"{"first_seen_us":"1700000000000001","build":""}"#);
        assert_eq!(old.first_seen_us, 1_700_000_000_000_001);
        assert!(old.builds.is_empty() && old.retired.is_none());
        let one = VersionRecord::parse(br#"{"first_seen_us":5,"build":"b1"}"#);
        assert_eq!(one.builds, ["b1"]);
        let whole = VersionRecord::parse(
            br#"{"first_seen_us":5,"build":"b2","builds":["b1","b2"],"refused":["b3"],"retired_us":"7","retired_by":"alice",
                 "retired_why":"old","rolled_back":{"at_us":9,"rev":3,"why":"failed"},"later":[1]}"#,
        );
        assert_eq!((whole.builds.len(), whole.refused.len()), (2, 1));
        let retired = whole.retired.unwrap();
        assert_eq!((retired.at_us, retired.by.as_str()), (7, "alice"));
        assert_eq!(whole.rolled_back.unwrap().rev, 3);
        let back = |mark: &str| {
            let entry = format!(r#"{{"build":"b2","builds":["b1","b2"],"rolled_back":{{"rev":3{mark}}}}}"#);
            VersionRecord::parse(entry.as_bytes()).rolled_back_as_it_is().is_some()
        };
        assert!(back(r#","build":"b2""#));
        assert!(!back(r#","build":"b1""#), "rebuilt since");
        assert!(back(""), "of which build nobody has said");
        for broken in [&b"1700000000"[..], b"", b"[]", br#"{"builds":{},"retired_us":null}"#] {
            assert_eq!(VersionRecord::parse(broken), VersionRecord::default());
        }
    }
}
