//! `gate show`.

use std::collections::BTreeMap;

use serde::Serialize;
use switchback_common::{Queue, Version};
use switchback_gates::{Gate, GateError};

use super::history;
use crate::{
    args::When,
    commands::queue,
    context::Context,
    exit::Failure,
    output::{Output, sheet},
    text::{ago, plain, rfc3339},
    view::{Made, names, words},
};

pub(super) async fn show(context: &Context, out: &mut Output, queue: Queue) -> Result<(), Failure> {
    context
        .gate(&queue)
        .await?
        .ok_or_else(|| GateError::NoGate(queue.clone()))?;
    let now = context.now_us().await?;
    let view = queue::look(context, &queue, now).await?;
    let gate = GateOnly::of(&view);
    out.value(&gate, |out| {
        let mut text = sheet(&queue::heading(&view, now));
        text.push_str(&sheet(&routes(view.gate.as_ref())));
        text.push('\n');
        text.push_str(&queue::versions_table(&view));
        text.push_str(&queue::hint_lines(out, &view));
        text
    })
}

/// Pins and targets, as they are written.
fn routes(gate: Option<&Gate>) -> [(&'static str, String); 2] {
    let list = |pairs: &BTreeMap<String, Version>| {
        let words: Vec<String> = pairs.iter().map(|(k, v)| format!("{}={v}", plain(k))).collect();
        words.join(" ")
    };
    [
        ("PINS    ", gate.map_or_else(String::new, |gate| list(&gate.pins))),
        ("TARGETS ", gate.map_or_else(String::new, |gate| list(&gate.targets))),
    ]
}

/// The gate that was in force at a time.
#[derive(Debug, Serialize)]
struct GateThen {
    queue: String,
    namespace: String,
    task_type: String,
    at: Option<String>,
    at_us: u64,
    rev: u64,
    gate: Gate,
    changed: Made,
    until: Option<Until>,
}

/// The revision that took its place.
#[derive(Debug, Serialize)]
struct Until {
    rev: u64,
    changed: Made,
}

pub(super) async fn show_at(context: &Context, out: &mut Output, queue: &Queue, at: When) -> Result<(), Failure> {
    let now = context.now_us().await?;
    let at_us = at.us(now);
    if at_us > now {
        let then = rfc3339(at_us).unwrap_or_default();
        return Err(Failure::Usage(format!("{then} has not come yet, by Redis's clock")));
    }
    let (entry, after) = history::in_force(context, queue, at_us).await?;
    let gate = Gate::from_history(&entry.after).ok_or_else(|| {
        Failure::Other(format!(
            "the entry of revision {} of {queue} makes no sense: was the history edited by hand?",
            entry.rev
        ))
    })?;
    let (name, namespace, task_type) = names(queue);
    let view = GateThen {
        queue: name,
        namespace,
        task_type,
        at: rfc3339(at_us),
        at_us,
        rev: entry.rev,
        gate,
        changed: Made::of(&entry),
        until: after.map(|entry| Until {
            rev: entry.rev,
            changed: Made::of(&entry),
        }),
    };
    out.value(&view, |_| {
        let until = match &view.until {
            Some(until) => format!("until revision {}, {}", until.rev, until.changed.words(now)),
            None => "still".to_owned(),
        };
        let mut rows = vec![
            ("QUEUE   ", view.queue.clone()),
            (
                "AT      ",
                format!("{} ({})", view.at.as_deref().unwrap_or_default(), ago(now, view.at_us)),
            ),
            ("GATE    ", words(&view.gate)),
            ("REVISION", format!("{} · {}", view.rev, view.changed.words(now))),
            ("IN FORCE", until),
        ];
        rows.extend(routes(Some(&view.gate)));
        sheet(&rows)
    })
}

/// What `gate show` shows of a queue.
#[derive(Debug, Serialize)]
struct GateOnly<'a> {
    queue: &'a str,
    namespace: &'a str,
    task_type: &'a str,
    rev: Option<u64>,
    gate: Option<&'a Gate>,
    changed: Option<&'a Made>,
    versions: &'a [crate::view::VersionView],
    live_workers: usize,
    confirmed: usize,
    hints: &'a [crate::hints::Hint],
}

impl<'a> GateOnly<'a> {
    fn of(view: &'a queue::QueueView) -> Self {
        Self {
            queue: &view.queue,
            namespace: &view.namespace,
            task_type: &view.task_type,
            rev: view.rev,
            gate: view.gate.as_ref(),
            changed: view.changed.as_ref(),
            versions: &view.versions,
            live_workers: view.live_workers,
            confirmed: view.confirmed,
            hints: &view.hints,
        }
    }
}
