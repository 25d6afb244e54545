//! What applying a document would change, and what speaks against it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use switchback_common::{
    Version,
    schedule::Source,
    store::{
        dead::DeadStore,
        gate::{ChangeRequest, Changed},
        inspect,
        limits::{self, Limits},
    },
};
use switchback_gates::{
    Gate, GateError,
    readiness::{Level, share},
};

use crate::{
    change,
    config::{
        diff::{Change, Fields, changes, fields, merged},
        document::{Document, QueueDoc, ScheduleDoc},
        state::{QueueState, State, gate_doc},
    },
    context::Context,
    exit::Failure,
    readiness,
    text::{brief, count, plain},
};

/// Longest list of reasons kept in a gate's history.
const MAX_FORCED_BYTES: usize = 1_000;

/// Something that speaks against applying.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Problem {
    pub(crate) queue: String,
    /// Stable, for scripts.
    pub(crate) code: &'static str,
    pub(crate) text: String,
    /// Whether `--force` passes over it.
    pub(crate) forceable: bool,
}

/// One queue that the document names.
#[derive(Debug)]
pub(crate) struct QueuePlan<'a> {
    pub(crate) name: &'a str,
    pub(crate) state: &'a QueueState,
    pub(crate) wanted: &'a QueueDoc,
    /// Complete.
    pub(crate) after: QueueDoc,
    pub(crate) changes: Vec<Change>,
}

impl QueuePlan<'_> {
    pub(crate) fn changes_section(&self, section: &str) -> bool {
        self.changes.iter().any(|change| change.section == section)
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Plan<'a> {
    pub(crate) queues: Vec<QueuePlan<'a>>,
    pub(crate) problems: Vec<Problem>,
    /// What is not in order and in nobody's way.
    pub(crate) warnings: Vec<String>,
}

impl<'a> Plan<'a> {
    /// Compares, and asks the gates what would become of them. Changes nothing.
    pub(crate) async fn make(context: &Context, state: &'a State, wanted: &'a Document) -> Result<Self, Failure> {
        let mut plan = Self::default();
        for (name, wanted) in &wanted.queues {
            let Some(state) = state.queues.get(name) else { continue };
            plan.warnings.extend(
                state
                    .problems
                    .iter()
                    .map(|text| format!("{}: {}", state.queue, plain(text))),
            );
            plan.add(context, name, state, wanted).await?;
        }
        Ok(plan)
    }

    async fn add(
        &mut self,
        context: &Context,
        name: &'a str,
        state: &'a QueueState,
        wanted: &'a QueueDoc,
    ) -> Result<(), Failure> {
        let mut after = merged(&state.doc, wanted);
        let mut gate_after = None;
        if let Some(wish) = &wanted.gate {
            let differs = fields(&after).get("gate") != state.fields.get("gate");
            let named = wish.fields();
            if differs && !named.is_empty() {
                // Only the script knows what a gate becomes of these fields.
                match self.would(context, state, named).await? {
                    Some(gate) => {
                        after.gate = Some(gate_doc(&gate));
                        gate_after = Some(gate);
                    }
                    None => after.gate.clone_from(&state.doc.gate),
                }
            }
        }
        let (mut before, mut becomes) = (state.fields.clone(), fields(&after));
        becomes.retain(|section, _| of(wanted, section));
        owned(state, wanted, &mut before);
        let plan = QueuePlan {
            name,
            state,
            wanted,
            after,
            changes: changes(name, &before, &becomes),
        };
        if !plan.changes.is_empty() {
            self.object(context, &plan, gate_after.as_ref()).await?;
        }
        self.queues.push(plan);
        Ok(())
    }

    async fn would(
        &mut self,
        context: &Context,
        state: &QueueState,
        named: Vec<(&'static str, String)>,
    ) -> Result<Option<Gate>, Failure> {
        let request = ChangeRequest {
            source: "config".to_owned(),
            dry_run: true,
            fields: named,
            ..ChangeRequest::default()
        };
        let text = match change::deliver(context, &state.queue, &request).await? {
            Changed::Changed(sealed) | Changed::Same(sealed) | Changed::Would(sealed) | Changed::Moved(sealed) => {
                return Ok(Some(Gate::parse(&sealed.gate).map_err(GateError::from)?));
            }
            Changed::Refused { field, reason } => {
                let known = context.gates.known_versions(&state.queue).await?;
                let known: Vec<&str> = known.iter().map(Version::as_str).collect();
                let known = known.join(", ");
                format!(
                    "gate.{field} is {}; versions that ever joined: {}",
                    plain(&reason),
                    if known.is_empty() { "none" } else { &known }
                )
            }
            Changed::Unsealed => "it has no gate: no worker has joined yet, or its gate state was lost".to_owned(),
        };
        self.problems.push(Problem {
            queue: state.queue.to_string(),
            code: "gate_refused",
            text,
            forceable: false,
        });
        Ok(None)
    }

    /// Finds what would strand work.
    async fn object(&mut self, context: &Context, plan: &QueuePlan<'_>, gate: Option<&Gate>) -> Result<(), Failure> {
        let (state, queue) = (plan.state, &plan.state.queue);
        let mut reasons: Vec<(&'static str, String)> = Vec::new();
        if !state.exists {
            reasons.push((
                "no_queue",
                format!("there is no queue {} yet: is the name right?", queue.task_type),
            ));
        }
        let before = state.shown.as_ref().map(|shown| &shown.gate);
        if let Some(after) = gate {
            for version in readiness::grown(before, after) {
                let share = share(after, &version);
                let found = readiness::look(context, queue, &version, share, readiness::LISTEN).await?;
                for objection in found.objections {
                    // Reasons and errors in it were written by others.
                    let text = plain(&objection.text);
                    match objection.level {
                        Level::Blocks => reasons.push((objection.code, text)),
                        Level::Warns => self.warnings.push(format!("{queue}: {text}")),
                    }
                }
            }
            let gone: Vec<Version> = before.map(Gate::reachable).unwrap_or_default();
            let gone: Vec<Version> = gone.into_iter().filter(|version| !after.reaches(version)).collect();
            if !gone.is_empty() {
                let depth = inspect::depth(&context.store, queue).await?;
                for (version, lane) in depth.lanes.iter().filter(|(version, _)| gone.contains(version)) {
                    if lane.waiting() > 0 {
                        reasons.push(("tasks_in_lane", format!(
                            "{} waiting in the lane of {version}, which the gate would send nothing to any more: they would go \
                             back into line and to other versions", count(lane.waiting(), "task")
                        )));
                    }
                }
            }
        }
        let limits = plan.after.limits.clone().unwrap_or_default();
        let changed = |field: &str| plan.changes.iter().any(|c| c.section == "limits" && c.field == field);
        let most = limits.waiting.unwrap_or_else(|| Limits::default().waiting);
        if changed("waiting") && most > 0 {
            let link = context.store.link().await?;
            let waiting = limits::fullness(&link, &context.store, queue).await?.waiting;
            if waiting >= most {
                reasons.push((
                    "queue_full",
                    format!(
                        "{} in line, and limits.waiting would be {most}: enqueueing would be refused at once",
                        count(waiting, "task")
                    ),
                ));
            }
        }
        let resumes = before.is_some_and(|gate| gate.paused) && gate.is_some_and(|gate| !gate.paused);
        let most = limits.dead.unwrap_or_else(|| Limits::default().dead);
        if (changed("dead") || resumes) && most > 0 {
            let dead = DeadStore::new(&context.store, queue).count().await?;
            if dead >= most {
                reasons.push((
                    "dead_limit",
                    format!(
                        "{}, and limits.dead would be {most}: its workers would hold the queue at once",
                        count(dead, "dead letter")
                    ),
                ));
            }
        }
        self.problems.extend(reasons.into_iter().map(|(code, text)| Problem {
            queue: queue.to_string(),
            code,
            text,
            forceable: true,
        }));
        Ok(())
    }

    pub(crate) fn changes(&self) -> Vec<Change> {
        self.queues.iter().flat_map(|queue| queue.changes.clone()).collect()
    }

    /// What of a queue is passed over, for its gate's history.
    pub(crate) fn forced(&self, queue: &str) -> String {
        let texts = self.problems.iter().filter(|p| p.forceable && p.queue == queue);
        let texts: Vec<&str> = texts.map(|p| p.text.as_str()).collect();
        brief(&texts.join("; "), MAX_FORCED_BYTES)
    }

    /// The queues that the document names, as they are and as they would be.
    pub(crate) fn documents(&self, context: &Context) -> (Document, Document) {
        let of = |doc: &dyn Fn(&QueuePlan<'_>) -> QueueDoc| Document {
            namespace: Some(context.namespace.to_string()),
            queues: self
                .queues
                .iter()
                .map(|queue| (queue.name.to_owned(), doc(queue)))
                .collect(),
        };
        (of(&|queue| queue.state.doc.clone()), of(&|queue| queue.after.clone()))
    }
}

/// Whether a document speaks of a section.
fn of(wanted: &QueueDoc, section: &str) -> bool {
    match section {
        "gate" => wanted.gate.is_some(),
        "limits" => wanted.limits.is_some(),
        "retry" => wanted.retry.is_some(),
        "rollout" => wanted.rollout.is_some(),
        _ => wanted.schedules.is_some(),
    }
}

/// A schedule that code declares and the document names becomes the document's.
fn owned(state: &QueueState, wanted: &QueueDoc, before: &mut Fields) {
    let code = state.schedules.iter().filter_map(|found| {
        let (name, schedule, _) = found.parse().ok()?;
        (schedule.source == Source::Code).then(|| (name.to_string(), ScheduleDoc::of(&schedule)))
    });
    let named = wanted.schedules.as_ref();
    let code: BTreeMap<String, ScheduleDoc> = code
        .filter(|(name, _)| named.is_some_and(|named| named.contains_key(name)))
        .collect();
    let names: Vec<String> = code.keys().cloned().collect();
    let doc = QueueDoc {
        schedules: Some(code),
        ..QueueDoc::default()
    };
    let found = fields(&doc).remove("schedules").unwrap_or_default();
    let schedules = before.entry("schedules").or_default();
    schedules.extend(found);
    schedules.extend(
        names
            .into_iter()
            .map(|name| (format!("{name}.source"), Value::from("code"))),
    );
}
