//! `gate show`.

use serde::Serialize;
use switchback_common::Queue;
use switchback_gates::{Gate, GateError};

use crate::{
    commands::queue,
    context::Context,
    exit::Failure,
    output::{Output, sheet},
    text::plain,
    view::Made,
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
        if let Some(gate) = view.gate.as_ref().filter(|g| !g.pins.is_empty()) {
            let pins: Vec<String> = gate.pins.iter().map(|(k, v)| format!("{}={v}", plain(k))).collect();
            text.push_str(&sheet(&[("PINS    ", pins.join(" "))]));
        }
        if let Some(gate) = view.gate.as_ref().filter(|g| !g.targets.is_empty()) {
            let targets: Vec<String> = gate.targets.iter().map(|(k, v)| format!("{}={v}", plain(k))).collect();
            text.push_str(&sheet(&[("TARGETS ", targets.join(" "))]));
        }
        text.push('\n');
        text.push_str(&queue::versions_table(&view));
        text.push_str(&queue::hint_lines(out, &view));
        text
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
