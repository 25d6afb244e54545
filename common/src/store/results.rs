//! Results: how a task ended, or how far it is, for whoever asked for it.

use std::time::Duration;

use redis::{Cmd, Value};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{connect::Store, error::StoreError, keyspace::Key, reply, script};
use crate::{
    id::{SessionId, TaskId},
    name::{Queue, Version},
};

/// Longest result that is kept, in bytes of JSON: with what goes with it 64 KiB.
pub const MAX_RESULT_BYTES: usize = 60 * 1024;
/// Longest note of a progress report, in bytes.
pub const MAX_NOTE_BYTES: usize = 200;
/// How long progress is kept for a task that asked for no result.
pub const KEEP_PROGRESS: Duration = Duration::from_secs(3600);
/// Most progress reports written in one call.
pub const MAX_REPORTS: usize = 200;

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// An attempt has reported progress and the task has not ended.
    Running,
    /// It succeeded.
    Done,
    /// It is a dead letter.
    Dead,
    /// It was cancelled.
    Cancelled,
    /// It was not started before its deadline.
    Expired,
}

/// How far a handler says it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// Of how many.
    pub total: u64,
    /// What it says, at most [`MAX_NOTE_BYTES`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// What is kept of a task, apart from its [`State`] and when that was written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The attempt that wrote it, from 1; 0 if none ran.
    #[serde(default)]
    pub attempt: u32,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// JSON of what the handler returned. `null`, too, is a result.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "even_null")]
    pub result: Option<Box<RawValue>>,
    /// Why it failed; of a task that is done: why its result could not be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last progress reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

fn even_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::deserialize(deserializer).map(Some)
}

impl Report {
    /// The JSON without its opening brace: scripts put the state, which only they know for sure, in front.
    #[must_use]
    pub fn tail(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_else(|_| "{\"attempt\":0}".to_owned());
        json.get(1..).unwrap_or("}").to_owned()
    }
}

/// What is kept of a task.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Where it stands.
    pub state: State,
    /// When that was written, ms of Redis's clock.
    pub at_ms: u64,
    /// The rest.
    pub report: Report,
}

impl Kept {
    fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Head {
            state: State,
            at_ms: u64,
        }
        // Twice, for raw JSON cannot be read from a flattened struct.
        let Head { state, at_ms } = serde_json::from_slice(json)?;
        Ok(Self {
            state,
            at_ms,
            report: serde_json::from_slice(json)?,
        })
    }
}

/// What is kept of `task`, if anything is.
///
/// # Errors
/// When Redis does not answer.
pub async fn read(store: &Store, queue: &Queue, task: &TaskId) -> Result<Option<Kept>, StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("GET")
        .arg(store.keyspace().render(&Key::Result(queue.clone(), task.to_string())));
    match link.run(cmd).await? {
        Value::Nil => Ok(None),
        value => {
            let bytes = reply::bytes("result", value)?;
            Kept::parse(&bytes).map(Some).map_err(|e| StoreError::Unexpected {
                what: "result",
                detail: format!("{queue} {task}: {e}"),
            })
        }
    }
}

/// Progress of one task, to be written.
#[derive(Debug, Clone)]
pub struct ProgressReport {
    /// The task.
    pub task: TaskId,
    /// How long to keep it.
    pub keep: Duration,
    /// [`Report::tail`].
    pub tail: String,
}

/// Writes progress, at most [`MAX_REPORTS`] in one call: nothing without the session's lease (P4), nothing over what has
/// ended (P2).
///
/// # Errors
/// When Redis does not answer.
pub async fn progress(
    store: &Store,
    queue: &Queue,
    session: &SessionId,
    reports: &[ProgressReport],
) -> Result<(), StoreError> {
    let link = store.warm().await?;
    for reports in reports.chunks(MAX_REPORTS) {
        let key = |key: Key| store.keyspace().render(&key);
        let mut call = script::PROGRESS.prepare_invoke();
        call.key(key(Key::Lease(queue.clone(), session.clone())));
        for report in reports {
            call.key(key(Key::Result(queue.clone(), report.task.to_string())));
            call.arg(u64::try_from(report.keep.as_millis()).unwrap_or(u64::MAX).max(1))
                .arg(&report.tail);
        }
        link.run_script(&call).await?;
    }
    Ok(())
}
