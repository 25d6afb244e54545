//! The gate in Redis: reading it, sealing people's edits, changing it, its history.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, Pipeline, Value};

use super::{
    connect::{Link, Store},
    error::StoreError,
    keyspace::Key,
    reply::{self, field_number, field_text, unexpected},
    script,
};
use crate::{
    clock::Moment,
    envelope::Fields,
    id::{SessionId, StreamId},
    name::Queue,
};

/// The sealed values of a gate, as canonical text. `switchback-gates` gives them meaning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GateText {
    /// The version that serves what the candidate does not.
    pub active: String,
    /// The version being tried, or empty.
    pub candidate: String,
    /// Share of the candidate, 0 to 100, up to three decimals.
    pub percent: String,
    /// `key=version key=version …`, sorted.
    pub pins: String,
    /// `header:value=version header:value=version …`, sorted.
    pub targets: String,
    /// `0` or `1`.
    pub paused: String,
}

/// A gate revision in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Its number.
    pub rev: u64,
    /// SHA-1 over the routing fields.
    pub digest: String,
    /// `rev:digest` of the revision before: who obeyed that one needs to look no further.
    pub prev: String,
    /// What it says.
    pub gate: GateText,
}

/// What one look at the gate brought. Made by commands that Redis executed after whatever came before them.
#[derive(Debug, Clone)]
pub struct GateRead {
    /// Before the first byte was sent: the age of the read counts from here.
    pub sent: Moment,
    /// Redis's `TIME`, µs, read just before the gate: later than a seal proves that the read saw it.
    pub time_us: u64,
    /// What was found.
    pub found: Found,
    /// How long the session's lease still ran; `None` if it is gone (or there is no session).
    pub lease: Option<Duration>,
    /// What changed beside the gate.
    pub signals: Signals,
}

/// Numbers of the gate state that change when something beside the gate does: every gate read brings them, so that whoever
/// claims learns of it at no further cost. 0: it never did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signals {
    /// A task was cancelled: see [`cancel`](super::cancel).
    pub cancels: u64,
    /// A flip stopped what runs: the latest such revision.
    pub stops: u64,
    /// Somebody asks whether a version can read what waits.
    pub probe: u64,
    /// The id of the rollout that runs; 0 when none does.
    pub rollout: u64,
}

impl Signals {
    /// The fields of the gate state, in the order of [`Signals::parse`].
    const FIELDS: [&'static str; 4] = ["cancels", "stops", "probe", "rollout"];

    fn parse(what: &'static str, values: [Value; 4]) -> Result<Self, StoreError> {
        let [cancels, stops, probe, rollout] = values;
        Ok(Self {
            cancels: reply::count(what, &cancels)?,
            stops: reply::count(what, &stops)?,
            probe: reply::count(what, &probe)?,
            rollout: reply::count(what, &rollout)?,
        })
    }
}

/// What a look at the gate found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The human hash is what the last seal left: this revision is in force.
    Settled(Arc<Sealed>),
    /// Somebody edited the human hash since: seal first.
    Edited,
    /// There is no gate state: start nothing (P8).
    Missing,
}

/// What sealing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealWord {
    /// Nothing effective was pending.
    Same,
    /// A new revision was written.
    Sealed,
    /// Part of the edit was invalid; the sealed state stays.
    Refused,
    /// The human hash had vanished and was written back.
    Restored,
}

/// A change asked for by a person or program.
#[derive(Debug, Clone, Default)]
pub struct ChangeRequest {
    /// `cli`, `guard`, `playbook`, …
    pub source: String,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
    /// Names this request, so that sending it twice changes once.
    pub op: String,
    /// Only if this is still the revision.
    pub if_rev: Option<u64>,
    /// Judge it, change nothing. (An edit that is pending is sealed all the same, as any worker would.)
    pub dry_run: bool,
    /// The objections that whoever asks passes over (`--force`), for the history; empty if there are none.
    pub forced: String,
    /// Fields of the human hash and their new values.
    pub fields: Vec<(&'static str, String)>,
}

/// How a change went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// A new revision (or this request had already made it).
    Changed(Sealed),
    /// It was so already.
    Same(Sealed),
    /// What a dry run would have written; the revision is the present one if it would change nothing.
    Would(Sealed),
    /// A value is invalid.
    Refused {
        /// The field.
        field: String,
        /// Its value and what is wrong with it.
        reason: String,
    },
    /// `if_rev` is not the revision any more.
    Moved(Sealed),
    /// The queue has no gate state: no worker ever joined, or it was lost.
    Unsealed,
}

/// Whether a gate went backwards.
#[derive(Debug, Clone)]
pub enum Hold {
    /// It did; the queue is now paused at this revision.
    Held(GateRead),
    /// It did not. The answer is itself a gate read.
    Fine(GateRead),
    /// There is no gate state.
    Unsealed,
}

/// One entry of the history.
#[derive(Debug, Clone, Default)]
pub struct HistoryEntry {
    /// Its id in the stream.
    pub id: StreamId,
    /// `change`, `refused`, `note`, `restored`.
    pub kind: String,
    /// The revision written, or in force.
    pub rev: u64,
    /// When, µs of Redis's clock.
    pub at_us: u64,
    /// `cli`, `redis-cli`, `seed`, `regress`, …
    pub source: String,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
    /// JSON of the people's fields before; empty for the first.
    pub before: String,
    /// JSON of the people's fields after.
    pub after: String,
    /// JSON of what was dropped from the edit; empty if nothing.
    pub dropped: String,
    /// JSON of what was refused; empty if nothing.
    pub refused: String,
    /// Digest of the sealed state, for changes.
    pub digest: String,
    /// The request that made it, if that had a name.
    pub op: String,
    /// The objections that were passed over; empty if there were none.
    pub forced: String,
    /// What became of what ran on withdrawn versions, if not `finish`.
    pub inflight: String,
}

impl HistoryEntry {
    /// Bytes of what may be long.
    #[must_use]
    pub fn length(&self) -> usize {
        let texts = [&self.before, &self.after, &self.dropped, &self.refused, &self.forced];
        texts.into_iter().map(String::len).sum()
    }
}

/// The gate of one queue.
#[derive(Debug, Clone)]
pub struct GateStore {
    store: Store,
    queue: Queue,
    keys: [String; 4],
}

impl GateStore {
    /// The gate of `queue`.
    #[must_use]
    pub fn new(store: &Store, queue: &Queue) -> Self {
        let render = |key: Key| store.keyspace().render(&key);
        Self {
            keys: [
                render(Key::Gate(queue.clone())),
                render(Key::GateState(queue.clone())),
                render(Key::History(queue.clone())),
                render(Key::Versions(queue.clone())),
            ],
            store: store.clone(),
            queue: queue.clone(),
        }
    }

    /// The queue.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The keys that gate scripts take, in their order.
    pub(crate) fn keys(&self) -> &[String; 4] {
        &self.keys
    }

    /// The human hash's key, as pushes name it.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.keys[0]
    }

    /// Adds the reads that follow a claim: TIME, gate, gate state, and the lease if there is one.
    pub(crate) fn append_read(&self, pipe: &mut Pipeline, lease_key: Option<&str>) {
        // P3: in this order. TIME first, so that a TIME after a seal proves the gate read saw it; the human
        // hash before the state, so that "equal to `seen`" speaks of an edit no newer than the state.
        pipe.cmd("TIME");
        pipe.cmd("HGETALL").arg(&self.keys[0]);
        pipe.cmd("HMGET")
            .arg(&self.keys[1])
            .arg(&["rev", "digest", "seen", "prev"])
            .arg(&Signals::FIELDS);
        if let Some(key) = lease_key {
            pipe.cmd("PTTL").arg(key);
        }
    }

    pub(crate) fn parse_read(
        &self,
        sent: Moment,
        time: Value,
        gate: Value,
        state: Value,
        lease: Option<&Value>,
    ) -> Result<GateRead, StoreError> {
        let lease = match lease {
            Some(ttl) => u64::try_from(reply::number("PTTL", ttl)?)
                .ok()
                .map(Duration::from_millis),
            None => None,
        };
        let (found, signals) = parse_found(gate, state)?;
        Ok(GateRead {
            sent,
            time_us: reply::time_us(time)?,
            found,
            lease,
            signals,
        })
    }

    /// Looks at the gate, and at the lease of `session` if given, over `link`.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn read(&self, link: &Link, session: Option<&SessionId>) -> Result<GateRead, StoreError> {
        let lease_key = session.map(|s| {
            let key = Key::Lease(self.queue.clone(), s.clone());
            self.store.keyspace().render(&key)
        });
        let mut pipe = Pipeline::new();
        self.append_read(&mut pipe, lease_key.as_deref());
        let sent = Moment::now();
        let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
        let mut next =
            || -> Result<Value, StoreError> { replies.next().unwrap_or(Ok(Value::Nil)).map_err(|e| link.error(e)) };
        let (time, gate, state) = (next()?, or_lost(next())?, next()?);
        let lease = lease_key.is_some().then(&mut next).transpose()?;
        self.parse_read(sent, time, gate, state, lease.as_ref())
    }

    /// Seals whatever people changed. The answer is itself a gate read.
    ///
    /// # Errors
    /// When Redis does not answer. `Ok(None)`: there is no gate state.
    pub async fn seal(&self) -> Result<Option<(SealWord, GateRead)>, StoreError> {
        let link = self.store.warm().await?;
        let sent = Moment::now();
        let mut call = script::SEAL.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        call.arg("redis-cli");
        let value = link.run_script(&call).await?;
        let (word, rest) = reply::verdict("seal", value)?;
        let word = match word.as_str() {
            "same" => SealWord::Same,
            "sealed" => SealWord::Sealed,
            "refused" => SealWord::Refused,
            "restored" => SealWord::Restored,
            _ => return Ok(None),
        };
        Ok(Some((word, script_read("seal", sent, rest)?)))
    }

    /// Changes the gate; seals what is pending first.
    ///
    /// # Errors
    /// When Redis does not answer. Sending the same request again is harmless.
    pub async fn change(&self, request: &ChangeRequest) -> Result<Changed, StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::CHANGE.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        call.arg(&request.source)
            .arg(&request.by)
            .arg(&request.why)
            .arg(&request.op);
        call.arg(request.if_rev.map_or_else(String::new, |rev| rev.to_string()));
        call.arg(if request.dry_run { "dry" } else { "" });
        call.arg(&request.forced);
        for (name, value) in &request.fields {
            call.arg(*name).arg(value);
        }
        let (word, mut rest) = reply::verdict("gate change", link.run_script(&call).await?)?;
        Ok(match word.as_str() {
            "changed" => Changed::Changed(parse_state("gate change", rest)?.2),
            "same" => Changed::Same(parse_state("gate change", rest)?.2),
            "would" => Changed::Would(parse_state("gate change", rest)?.2),
            "moved" => Changed::Moved(parse_state("gate change", rest)?.2),
            "refused" => Changed::Refused {
                field: reply::text("gate change", rest.next().unwrap_or(Value::Nil))?,
                reason: reply::text("gate change", rest.next().unwrap_or(Value::Nil))?,
            },
            _ => Changed::Unsealed,
        })
    }

    /// Holds the queue if its gate went back behind a revision that was obeyed (P8).
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn hold_if_regressed(&self, mine: u64, digest: &str) -> Result<Hold, StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::HOLD.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        call.arg(mine).arg(digest);
        let sent = Moment::now();
        let (word, rest) = reply::verdict("gate hold", link.run_script(&call).await?)?;
        if word == "unsealed" {
            return Ok(Hold::Unsealed);
        }
        let read = script_read("gate hold", sent, rest)?;
        Ok(if word == "held" {
            Hold::Held(read)
        } else {
            Hold::Fine(read)
        })
    }

    /// The newest `count` history entries older than `before`, newest first.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn history(&self, before: Option<StreamId>, count: usize) -> Result<Vec<HistoryEntry>, StoreError> {
        let link = self.store.warm().await?;
        let from = before.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let mut cmd = Cmd::new();
        cmd.arg("XREVRANGE")
            .arg(&self.keys[2])
            .arg(from)
            .arg("-")
            .arg("COUNT")
            .arg(count);
        let entries = reply::entries("gate history", link.run(cmd).await?)?;
        Ok(entries.into_iter().map(history_entry).collect())
    }
}

fn history_entry(entry: reply::Entry) -> HistoryEntry {
    let fields = entry.fields.unwrap_or_default();
    let get = |name| field_text(&fields, name);
    HistoryEntry {
        id: entry.id,
        kind: get("kind"),
        rev: field_number(&fields, "rev"),
        at_us: field_number(&fields, "at"),
        source: get("source"),
        by: get("by"),
        why: get("why"),
        before: get("before"),
        after: get("after"),
        dropped: get("dropped"),
        refused: get("refused"),
        digest: get("digest"),
        op: get("op"),
        forced: get("forced"),
        inflight: get("inflight"),
    }
}

/// A script that answers with the state in force has read the gate after it was sent.
fn script_read(what: &'static str, sent: Moment, rest: std::vec::IntoIter<Value>) -> Result<GateRead, StoreError> {
    let (time_us, signals, sealed) = parse_state(what, rest)?;
    Ok(GateRead {
        sent,
        time_us,
        found: Found::Settled(Arc::new(sealed)),
        lease: None,
        signals,
    })
}

pub(crate) fn parse_state(
    what: &'static str,
    rest: std::vec::IntoIter<Value>,
) -> Result<(u64, Signals, Sealed), StoreError> {
    let items: Vec<Value> = rest.collect();
    let Ok(
        [
            rev,
            digest,
            time,
            active,
            candidate,
            percent,
            pins,
            targets,
            paused,
            prev,
            cancels,
            stops,
            probe,
            rollout,
        ],
    ) = <[Value; 14]>::try_from(items)
    else {
        return Err(unexpected(what, &Value::Nil));
    };
    let text = |value| reply::text(what, value);
    let sealed = Sealed {
        rev: reply::count(what, &rev)?,
        digest: text(digest)?,
        prev: text(prev)?,
        gate: GateText {
            active: text(active)?,
            candidate: text(candidate)?,
            percent: text(percent)?,
            pins: text(pins)?,
            targets: text(targets)?,
            paused: text(paused)?,
        },
    };
    let signals = Signals::parse(what, [cancels, stops, probe, rollout])?;
    Ok((reply::count(what, &time)?, signals, sealed))
}

/// A key of another type (`SET` for `HSET`) reads as an empty one. Of a gate that is an edit, which sealing puts right (P8).
pub(crate) fn or_lost(found: Result<Value, StoreError>) -> Result<Value, StoreError> {
    match found {
        Err(StoreError::Redis { source, .. }) if source.code() == Some("WRONGTYPE") => Ok(Value::Nil),
        other => other,
    }
}

fn parse_found(gate: Value, state: Value) -> Result<(Found, Signals), StoreError> {
    let mut raw = reply::fields("gate", gate)?;
    let state = reply::array("gate state", state)?;
    let Ok([rev, digest, seen, prev, cancels, stops, probe, rollout]) = <[Value; 8]>::try_from(state) else {
        return Err(unexpected("gate state", &Value::Nil));
    };
    let signals = Signals::parse("gate state", [cancels, stops, probe, rollout])?;
    if matches!(rev, Value::Nil) {
        return Ok((Found::Missing, signals));
    }
    raw.sort();
    if seen_of(&raw) != reply::bytes("gate state", seen)? {
        return Ok((Found::Edited, signals));
    }
    // Equal to what the last seal wrote: the human hash is the sealed state.
    let text = |name| field_text(&raw, name);
    let or = |value: String, default: &str| if value.is_empty() { default.to_owned() } else { value };
    let sealed = Sealed {
        rev: reply::count("gate state", &rev)?,
        digest: reply::text("gate state", digest)?,
        prev: reply::text("gate state", prev)?,
        gate: GateText {
            active: text("active"),
            candidate: text("candidate"),
            percent: or(text("percent"), "0"),
            pins: text("pins"),
            targets: text("targets"),
            paused: or(text("paused"), "0"),
        },
    };
    Ok((Found::Settled(Arc::new(sealed)), signals))
}

/// Byte-sorted, length-prefixed, and of a kind of its own when there are targets: the same text as `seen_of` in `core.lua`.
fn seen_of(sorted: &Fields) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    if sorted.iter().any(|(name, _)| name == b"targets") {
        out.extend_from_slice(b"2 ");
    }
    for (name, value) in sorted {
        for part in [name, value] {
            out.extend_from_slice(part.len().to_string().as_bytes());
            out.push(b':');
            out.extend_from_slice(part);
        }
    }
    out
}
