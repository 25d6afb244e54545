//! Results: what is kept of a task that asked for it, or that said how far it is.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use switchback_common::{
    Version,
    envelope::{Envelope, MAX_ERROR_BYTES, clip},
    store::{
        results::{KEEP_PROGRESS, MAX_RESULT_BYTES, Progress, Report},
        settle::Keep,
    },
};

/// What a handler returned, as JSON, or why that cannot be kept.
pub(crate) type Returned = Result<Box<RawValue>, String>;

/// Writes down what a handler returned. A task is done whether or not its result can be kept.
pub(crate) fn returned<R: Serialize>(value: &R) -> Returned {
    let json =
        serde_json::value::to_raw_value(value).map_err(|e| format!("the result cannot be written as JSON: {e}"))?;
    match json.get().len() {
        size if size > MAX_RESULT_BYTES => Err(format!(
            "the result is {size} bytes, the limit is {MAX_RESULT_BYTES}; put large data elsewhere and return a reference"
        )),
        _ => Ok(json),
    }
}

/// How long the result of `task` is kept, if it is: as its producer said, else as its type does.
pub(crate) fn kept_for(task: &Envelope, by_type: Option<Duration>) -> Option<Duration> {
    match task.result_ms {
        0 => by_type,
        ms => Some(Duration::from_millis(ms)),
    }
}

/// What an attempt leaves behind.
#[derive(Debug)]
pub(crate) struct Leaves<'a> {
    /// How long the task's result is kept, if that was asked for.
    pub(crate) kept_for: Option<Duration>,
    /// What the attempt said last.
    pub(crate) progress: Option<Progress>,
    /// The attempt and its version, if one ran.
    pub(crate) ran: Option<(u32, &'a Version)>,
}

impl Leaves<'_> {
    /// What settling keeps, if this ends the task.
    pub(crate) fn keep(self, task: &Envelope, returned: Option<Returned>, error: Option<&str>) -> Option<Box<Keep>> {
        // Progress that was told ends, too: nobody shall read of a running task for an hour.
        let kept_for = self
            .kept_for
            .or_else(|| self.progress.as_ref().map(|_| KEEP_PROGRESS))?;
        let (result, problem) = match returned {
            Some(Ok(json)) => (Some(json), None),
            Some(Err(problem)) => (None, Some(problem)),
            None => (None, None),
        };
        let (attempt, version) = self
            .ran
            .map_or((0, None), |(attempt, version)| (attempt, Some(version.clone())));
        let report = Report {
            attempt,
            version,
            result,
            error: error.map(|text| clip(text, MAX_ERROR_BYTES).to_owned()).or(problem),
            progress: self.progress,
        };
        Some(Box::new(Keep {
            task: task.id.clone(),
            ms: u64::try_from(kept_for.as_millis()).unwrap_or(u64::MAX),
            tail: report.tail(),
        }))
    }
}
