//! `task wait`.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use switchback_common::{Queue, TaskId, store::results::Progress};
use switchback_producer::{Producer, Waited};

use crate::{context::Context, exit::Failure, output::Output, text::plain};

/// How a task ended.
#[derive(Debug, Serialize)]
struct WaitView {
    queue: String,
    id: String,
    state: &'static str,
    result: Option<Value>,
    error: Option<String>,
    progress: Option<Progress>,
}

pub(crate) async fn run(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    id: &TaskId,
    timeout: Duration,
) -> Result<(), Failure> {
    let producer = Producer::new(context.store.clone(), context.namespace.clone());
    let waited = producer.wait::<Value>(queue.task_type.as_str(), id, timeout).await?;
    let mut view = WaitView {
        queue: queue.to_string(),
        id: id.to_string(),
        state: "done",
        result: None,
        error: None,
        progress: None,
    };
    let ended = match waited {
        Waited::Done(result) => {
            view.result = Some(result);
            Ok(())
        }
        Waited::Dead(error) => {
            view.state = "dead";
            let failure = format!("task {id} of {queue} is a dead letter: {}", plain(&error));
            view.error = Some(error);
            Err(Failure::Other(failure))
        }
        Waited::Cancelled => {
            view.state = "cancelled";
            Err(Failure::Other(format!("task {id} of {queue} was cancelled")))
        }
        Waited::Expired => {
            view.state = "expired";
            Err(Failure::Other(format!(
                "task {id} of {queue} was not started before its deadline"
            )))
        }
        Waited::TimedOut(progress) => {
            view.state = "not_ended";
            let far = progress
                .as_ref()
                .map_or_else(String::new, |p| format!(" ({})", words(p)));
            view.progress = progress;
            Err(Failure::NotYet(format!(
                "task {id} of {queue} has not ended within {timeout:?}, or keeps no result; if it is there (see `task show`), it goes on{far}"
            )))
        }
        Waited::Unknown => {
            context.require(queue).await?;
            view.state = "unknown";
            Err(Failure::NotFound(format!(
                "task {id} of {queue} was settled and left no result: none was asked for, or it is no longer kept"
            )))
        }
    };
    out.value(&view, |_| {
        view.result
            .as_ref()
            .map_or_else(String::new, |result| format!("{result:#}"))
    })?;
    ended
}

/// Progress in a few words: `3 of 10: halfway`.
pub(crate) fn words(progress: &Progress) -> String {
    let note = if progress.note.is_empty() {
        String::new()
    } else {
        format!(": {}", plain(&progress.note))
    };
    format!("{} of {}{note}", progress.done, progress.total)
}
