//! `task enqueue`.

use std::io::Read as _;

use serde::Serialize;
use serde_json::value::RawValue;
use switchback_common::{Queue, TaskType, config::ConfigError, envelope::DEFAULT_MAX_PAYLOAD};
use switchback_gates::GateError;
use switchback_producer::{EnqueueError, Producer};

use crate::{
    args::{EnqueueOptions, IfTaken, PayloadSource},
    context::Context,
    exit::Failure,
    output::{Output, tell},
};

#[derive(Debug, Serialize)]
struct Enqueued {
    queue: String,
    id: String,
    /// Whether it is another task's.
    existing: bool,
}

pub(super) async fn run(
    context: &Context,
    out: &mut Output,
    task_type: TaskType,
    source: PayloadSource,
    options: EnqueueOptions,
) -> Result<(), Failure> {
    let text = read_payload(source)?;
    let payload: Box<RawValue> =
        serde_json::from_str(&text).map_err(|e| Failure::Usage(format!("the payload is not JSON: {e}")))?;
    let producer = Producer::new(context.store.clone(), context.namespace.clone());
    let mut request = producer.enqueue_json(&task_type, &payload);
    if let Some(key) = options.key {
        request = request.key(key);
    }
    for (name, value) in options.headers {
        request = request.header(name.as_str(), value);
    }
    if let Some(id) = options.id {
        request = request.id(id.to_string());
    }
    if let Some(delay) = options.delay {
        request = request.delay(delay);
    }
    if let Some(time) = options.at {
        request = request.at(time.into());
    }
    if let Some(priority) = options.priority {
        request = request.priority(priority);
    }
    if let Some(after) = options.expires_in {
        request = request.expires_in(after);
    }
    if let (Some(key), Some(hold)) = (options.unique, options.hold) {
        request = request.unique(key, hold);
    }
    if options.if_taken == IfTaken::Replace {
        request = request.if_taken(switchback_producer::IfTaken::Replace);
    }
    if let Some(ttl) = options.keep_result {
        request = request.keep_result(ttl);
    }
    let queue = context.queue(task_type.clone());
    // `existing` is asked for as `reject`: only then the producer says whose the id is.
    let (id, existing) = match request.await {
        Err(EnqueueError::Taken { by, .. }) if options.if_taken == IfTaken::Existing => (by, true),
        Err(EnqueueError::Taken { by, key, .. }) => {
            return Err(Failure::Refused(format!(
                "task {by} has the unique key {key:?} of {queue}: nothing was enqueued. See `switchback task show {task_type} \
                 {by}`, or take its id: --if-taken existing"
            )));
        }
        other => (other?, false),
    };
    if existing {
        tell(format_args!(
            "{queue}: another task has the unique key, nothing was enqueued"
        ));
    } else {
        say_if_it_waits(context, &queue).await;
    }
    let view = Enqueued {
        queue: queue.to_string(),
        id: id.to_string(),
        existing,
    };
    out.value(&view, |_| view.id.clone())
}

/// It is enqueued: what cannot be read now is not worth a failure.
async fn say_if_it_waits(context: &Context, queue: &Queue) {
    match context.gates.show(queue).await {
        Err(GateError::NoGate(_)) => tell(format_args!(
            "{queue}: no worker has joined this queue yet, the task waits"
        )),
        Ok(shown) if shown.gate.paused => tell(format_args!("{queue} is paused, the task waits")),
        _ => {}
    }
}

/// Reads a payload from where the arguments say.
pub(crate) fn read_payload(source: PayloadSource) -> Result<String, Failure> {
    if let Some(text) = source.payload {
        return Ok(text);
    }
    // One byte more than fits: enough to see that it is too long.
    let limit = u64::try_from(DEFAULT_MAX_PAYLOAD).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    match source.file {
        Some(path) => {
            let unreadable = |source| ConfigError::Unreadable {
                path: path.clone(),
                source,
            };
            let file = std::fs::File::open(&path).map_err(unreadable)?;
            file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
        }
        None => {
            std::io::stdin()
                .take(limit)
                .read_to_end(&mut bytes)
                .map_err(|e| Failure::Other(format!("cannot read stdin: {e}")))?;
        }
    }
    if bytes.len() > DEFAULT_MAX_PAYLOAD {
        return Err(Failure::Refused(format!(
            "the payload is longer than {DEFAULT_MAX_PAYLOAD} bytes; put large data elsewhere and enqueue a reference"
        )));
    }
    String::from_utf8(bytes).map_err(|_| Failure::Usage("the payload is not UTF-8, so it is not JSON".to_owned()))
}
