//! Asking the workers of one version whether they can read what waits, before it is routed to them.
//!
//! Only a worker knows what its handlers read. The question lies in a key of its own for a minute, with a sample of what
//! waits; every gate read brings a number that changes with it, so that workers that nobody asks spend nothing.

use std::time::Duration;

use redis::{Cmd, Value};
use serde::{Deserialize, Serialize};

use super::{
    connect::Store,
    error::StoreError,
    keyspace::Key,
    reply::{self, unexpected},
    script,
};
use crate::{
    id::{SessionId, stream_salt},
    name::{Queue, Version},
};

/// Most tasks of one sample.
pub const MAX_TASKS: usize = 64;
/// Most bytes of payload of one sample.
pub const MAX_BYTES: usize = 1024 * 1024;
/// How long whoever asks listens, at most.
pub const LISTENS: Duration = Duration::from_secs(3);

/// P10: lanes whose tasks are looked at; those of other versions pass the gate again like all tasks.
const MAX_LANES: usize = 64;
const KEPT: Duration = Duration::from_secs(60);
/// How long a question counts as open. Longer than anybody listens, for clocks of the machines that ask differ in speed.
const OPEN: Duration = Duration::from_millis(3_500);
/// How long a worker that took a question has to answer it, before another takes it.
const TAKER_HAS: Duration = Duration::from_millis(700);

/// How asking went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The question is out.
    Yes {
        /// The tasks of the sample: id, and where it waits.
        tasks: Vec<(String, String)>,
        /// Tasks that were too large for the sample.
        left_out: u64,
    },
    /// Nothing waits that could be asked about.
    Nothing {
        /// Tasks that were too large for the sample.
        left_out: u64,
    },
    /// Somebody else is asking: try again in a moment.
    Busy,
}

/// A task of the sample that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Its place in the sample.
    pub at: usize,
    /// No version can: it is not even JSON.
    pub malformed: bool,
    /// What the worker said.
    pub error: String,
}

/// A worker's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The session that answered.
    pub session: SessionId,
    /// What it cannot read of the sample.
    pub unreadable: Vec<Unreadable>,
}

/// A question to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its name.
    pub id: String,
    /// The version it is about.
    pub version: Version,
    /// The payloads.
    pub payloads: Vec<Vec<u8>>,
}

/// What a worker finds when it looks for a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is this worker's to answer.
    Yours(Question),
    /// Another worker has taken it, and might not answer.
    Wait,
    /// None that concerns this worker.
    None,
}

/// Asks whether workers of `version` can read what waits. `id` names the question.
///
/// # Errors
/// When Redis does not answer.
pub async fn ask(
    store: &Store,
    queue: &Queue,
    id: &str,
    version: &Version,
    lanes: impl Iterator<Item = Version>,
) -> Result<Asked, StoreError> {
    let [main, head, high, low, suspect] = Key::fixed_streams(queue);
    // The main stream last: it has what the others leave of the sample.
    let mut streams = vec![head, suspect, high, low];
    streams.extend(lanes.take(MAX_LANES).map(|version| Key::Lane(queue.clone(), version)));
    streams.push(main);
    let mut labels = vec!["delayed".to_owned(), String::new()];
    let mut call = script::PROBE_ASK.prepare_invoke();
    for key in [Key::Gate, Key::GateState, Key::Probe, Key::Delayed, Key::Envelope] {
        call.key(store.keyspace().render(&key(queue.clone())));
    }
    let keys: Vec<String> = streams.iter().map(|key| store.keyspace().render(key)).collect();
    labels.extend(streams.iter().map(Key::label));
    for key in &keys {
        call.key(key);
    }
    call.arg(id)
        .arg(version.as_str())
        .arg(MAX_TASKS)
        .arg(MAX_BYTES)
        .arg(KEPT.as_secs())
        .arg(micros(OPEN));
    for key in &keys {
        call.arg(stream_salt(key));
    }
    let link = store.cold().await?;
    let (word, mut rest) = reply::verdict("probe", link.run_script(&call).await?)?;
    if word == "busy" {
        return Ok(Asked::Busy);
    }
    let left_out = reply::count("probe", &rest.next().unwrap_or(Value::Nil))?;
    if word == "nothing" {
        return Ok(Asked::Nothing { left_out });
    }
    let mut tasks = Vec::with_capacity(MAX_TASKS);
    while let (Some(task), Some(place)) = (rest.next(), rest.next()) {
        let place = usize::try_from(reply::count("probe", &place)?).unwrap_or(0);
        // Places are counted from 1, and the keys before the streams are those of the gate, the question and the delayed.
        let label = place.checked_sub(4).and_then(|place| labels.get(place));
        tasks.push((reply::text("probe", task)?, label.cloned().unwrap_or_default()));
    }
    Ok(Asked::Yes { tasks, left_out })
}

/// The answer to a question, as soon as there is one.
///
/// # Errors
/// When Redis does not answer.
pub async fn answer_to(store: &Store, queue: &Queue, id: &str) -> Result<Option<Answer>, StoreError> {
    let link = store.cold().await?;
    let mut cmd = Cmd::new();
    cmd.arg("HMGET")
        .arg(store.keyspace().render(&Key::Probe(queue.clone())))
        .arg(&["id", "answer", "by"]);
    let found = reply::array("probe", link.run(cmd).await?)?;
    let Ok([asked, answer, by]) = <[Value; 3]>::try_from(found) else {
        return Err(unexpected("probe", &Value::Nil));
    };
    if matches!(answer, Value::Nil) || reply::text("probe", asked)? != id {
        return Ok(None);
    }
    let json = reply::bytes("probe", answer)?;
    let unreadable = serde_json::from_slice(&json).map_err(|_| unexpected("probe", &Value::BulkString(json)))?;
    Ok(Some(Answer {
        session: SessionId::from_found(&reply::text("probe", by)?),
        unreadable,
    }))
}

/// Takes the open question, if it is about one of `versions`.
///
/// # Errors
/// When Redis does not answer.
pub async fn take(
    store: &Store,
    queue: &Queue,
    session: &SessionId,
    versions: &[Version],
) -> Result<Taken, StoreError> {
    let mut call = script::PROBE_TAKE.prepare_invoke();
    call.key(store.keyspace().render(&Key::Probe(queue.clone())))
        .arg(session.as_str())
        .arg(micros(OPEN))
        .arg(micros(TAKER_HAS));
    for version in versions {
        call.arg(version.as_str());
    }
    let link = store.cold().await?;
    let (word, mut rest) = reply::verdict("probe", link.run_script(&call).await?)?;
    match word.as_str() {
        "none" => return Ok(Taken::None),
        "wait" => return Ok(Taken::Wait),
        _ => {}
    }
    let mut next = || reply::text("probe", rest.next().unwrap_or(Value::Nil));
    let (id, version) = (next()?, next()?);
    let Ok(version) = version.parse() else {
        return Ok(Taken::None);
    };
    let payloads = rest.map(|payload| reply::bytes("probe", payload));
    Ok(Taken::Yours(Question {
        id,
        version,
        payloads: payloads.collect::<Result<_, _>>()?,
    }))
}

/// Answers a question. Whoever comes late changes nothing.
///
/// # Errors
/// When Redis does not answer.
pub async fn answer(
    store: &Store,
    queue: &Queue,
    question: &str,
    session: &SessionId,
    unreadable: &[Unreadable],
) -> Result<(), StoreError> {
    let mut call = script::PROBE_ANSWER.prepare_invoke();
    call.key(store.keyspace().render(&Key::Probe(queue.clone())))
        .arg(question)
        .arg(session.as_str())
        .arg(serde_json::to_string(unreadable).unwrap_or_default())
        .arg(KEPT.as_secs());
    let link = store.cold().await?;
    link.run_script(&call).await.map(drop)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
