//! Where Redis differs from a document, and who changed it there.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use switchback_common::store::{
    gate::HistoryEntry,
    log::{self, Remark},
    schedule::Found,
};
use switchback_gates::Gate;

use crate::{
    config::{
        diff::{Change, changes, fields},
        document::QueueDoc,
        plan::{Plan, QueuePlan},
        state::{QueueState, gate_doc},
    },
    context::Context,
    exit::Failure,
    text::{plain, rfc3339},
    view::made,
};

/// How far back the history of a gate is searched.
const HISTORY: usize = 1_000;
/// And the log of a queue.
const LOG: u64 = 10_000;

/// Who changed a field last.
#[derive(Debug, Serialize)]
pub(crate) struct Who {
    /// `cli`, `redis-cli`, `guard`, … of a gate; else `cli`.
    pub(crate) source: String,
    pub(crate) by: String,
    pub(crate) why: String,
    /// Of a gate: its revision.
    pub(crate) rev: Option<u64>,
    pub(crate) at: Option<String>,
    pub(crate) at_us: u64,
}

impl Who {
    fn of_gate(entry: &HistoryEntry) -> Self {
        Self {
            source: entry.source.clone(),
            by: entry.by.clone(),
            why: entry.why.clone(),
            rev: Some(entry.rev),
            at: rfc3339(entry.at_us),
            at_us: entry.at_us,
        }
    }

    fn of_log(remark: &Remark) -> Self {
        let at_us = remark.id.ms.saturating_mul(1_000);
        Self {
            source: "cli".to_owned(),
            by: remark.by.clone(),
            why: remark.why.clone(),
            rev: None,
            at: rfc3339(at_us),
            at_us,
        }
    }

    /// `3 m ago by alice (cli): a big import`
    pub(crate) fn words(&self, now_us: u64) -> String {
        let source = format!("({})", plain(&self.source));
        made(now_us, self.at_us, &self.by, &source, &self.why)
    }
}

/// One field that is not as the document says.
#[derive(Debug, Serialize)]
pub(crate) struct Drift {
    queue: String,
    section: String,
    field: String,
    /// Null: it should not be there.
    file: Value,
    redis: Value,
    /// Null: nobody knows, and `note` says why.
    pub(crate) who: Option<Who>,
    pub(crate) note: Option<&'static str>,
}

impl Drift {
    pub(crate) fn queue(&self) -> &str {
        &self.queue
    }

    pub(crate) fn field(&self) -> String {
        format!("{}.{}", self.section, self.field)
    }

    pub(crate) fn file(&self) -> &Value {
        &self.file
    }

    pub(crate) fn redis(&self) -> &Value {
        &self.redis
    }
}

/// Finds who changed what the plan would change back.
pub(crate) async fn find(context: &Context, plan: &Plan<'_>) -> Result<Vec<Drift>, Failure> {
    let mut out = Vec::new();
    for queue in plan.queues.iter().filter(|queue| !queue.changes.is_empty()) {
        let mut gate = of_gate(context, queue).await?;
        let beside = queue.changes.iter().any(|change| change.section != "gate");
        let remarks = match beside {
            true => log::remarks(&context.store, &queue.state.queue, LOG).await?,
            false => Vec::new(),
        };
        out.extend(
            queue
                .changes
                .iter()
                .map(|change| drift(queue, change, &mut gate, &remarks)),
        );
    }
    Ok(out)
}

/// Who changed each of the gate's fields last. Reads no more of the history than tells it.
async fn of_gate(context: &Context, queue: &QueuePlan<'_>) -> Result<BTreeMap<String, Who>, Failure> {
    let asked = queue.changes.iter().filter(|change| change.section == "gate");
    let mut open: BTreeSet<&str> = asked.map(|change| change.field.as_str()).collect();
    let mut pages = context.gates.pages(&queue.state.queue);
    let (mut out, mut looked) = (BTreeMap::new(), 0);
    while !open.is_empty()
        && looked < HISTORY
        && let Some(page) = pages.next().await?
    {
        looked += page.len();
        for entry in page.iter().filter(|entry| entry.kind == "change") {
            for field in changed(entry) {
                if open.remove(field.as_str()) {
                    out.insert(field, Who::of_gate(entry));
                }
            }
        }
    }
    Ok(out)
}

/// The fields that an entry changed.
fn changed(entry: &HistoryEntry) -> impl Iterator<Item = String> {
    let of = |json: &str| {
        fields(&QueueDoc {
            gate: Gate::from_history(json).as_ref().map(gate_doc),
            ..QueueDoc::default()
        })
    };
    let changes = changes("", &of(&entry.before), &of(&entry.after));
    changes.into_iter().map(|change| change.field)
}

fn drift(queue: &QueuePlan<'_>, change: &Change, gate: &mut BTreeMap<String, Who>, remarks: &[Remark]) -> Drift {
    let found = match change.section.as_str() {
        "gate" => gate.remove(&change.field).ok_or("the history does not go back so far"),
        "schedules" => of_schedule(queue.state, change, remarks),
        _ => of_hash(queue.state, change, remarks),
    };
    let (who, note) = match found {
        Ok(who) => (Some(who), None),
        Err(note) => (None, Some(note)),
    };
    Drift {
        queue: change.queue.clone(),
        section: change.section.clone(),
        field: change.field.clone(),
        file: change.after.clone(),
        redis: change.before.clone(),
        who,
        note,
    }
}

/// The newest log entry that speaks of the field, if it left what lies there now.
fn of_hash(state: &QueueState, change: &Change, remarks: &[Remark]) -> Result<Who, &'static str> {
    let (kind, field, raw) = match change.section.as_str() {
        "limits" => {
            let raw = state.limits.raw.iter().find(|(limit, _)| limit.name() == change.field);
            ("limits", change.field.as_str(), raw.map_or("", |(_, raw)| raw))
        }
        "retry" => ("policy", "retry", state.policies.retry.as_str()),
        _ => ("policy", "rollout", state.policies.rollout.as_str()),
    };
    for remark in remarks.iter().filter(|remark| remark.kind == kind) {
        let after: BTreeMap<String, String> = serde_json::from_str(&remark.after).unwrap_or_default();
        match after.get(field) {
            Some(value) if value == raw => return Ok(Who::of_log(remark)),
            Some(_) => return Err("by hand, after the last change in the queue's log"),
            None => {}
        }
    }
    Err("by hand, never, or before the queue's log begins")
}

/// A definition says itself by whom and why; the log says when.
fn of_schedule(state: &QueueState, change: &Change, remarks: &[Remark]) -> Result<Who, &'static str> {
    // Names may hold dots, and so may not be split off.
    let is_of = |name: &str| {
        change.field == name
            || change
                .field
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('.'))
    };
    let found: Option<&Found> = state.schedules.iter().find(|found| is_of(&found.name));
    let said = remarks.iter().find(|remark| {
        let name = remark.text.split_once(": ").map(|(name, _)| name);
        remark.kind == "schedule_changed" && name.is_some_and(is_of)
    });
    let definition = found
        .and_then(|found| found.parse().ok())
        .map(|(_, schedule, _)| schedule);
    match (said, definition) {
        (Some(said), Some(schedule)) => Ok(Who {
            by: schedule.by,
            why: schedule.why,
            ..Who::of_log(said)
        }),
        // It is gone: only the log can say so.
        (Some(said), None) if found.is_none() && said.text.contains(": removed by ") => {
            let (_, who) = said.text.split_once(": removed by ").unwrap_or_default();
            let (by, why) = who.split_once(": ").unwrap_or((who, ""));
            Ok(Who {
                by: by.to_owned(),
                why: why.to_owned(),
                ..Who::of_log(said)
            })
        }
        _ => Err("by hand, never, or before the queue's log begins"),
    }
}
