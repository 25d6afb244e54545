//! What Redis holds of a queue, as a complete document.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::Value;
use switchback_common::{
    Queue,
    retry::RetryRule,
    schedule::{ScheduleName, Source},
    store::{
        config, inspect,
        limits::{self, Limit, Limits},
        policy::{self, Policies},
        schedule::{Found, ScheduleStore},
    },
};
use switchback_gates::{Gate, GateError, admin::Shown};

use crate::{
    config::{
        diff::{Fields, fields},
        document::{Document, GateDoc, LimitsDoc, Percent, QueueDoc, ScheduleDoc},
        rollout::rollout_of,
    },
    context::Context,
    exit::Failure,
    text::{brief, lossless},
};

/// Queues read at once.
const AT_ONCE: usize = 8;

/// One queue.
#[derive(Debug)]
pub(crate) struct QueueState {
    pub(crate) queue: Queue,
    /// Whether there is anything of it in Redis.
    pub(crate) exists: bool,
    pub(crate) shown: Option<Shown>,
    /// Every section, whether or not it says anything. Schedules of code are not in it: code declares them again.
    pub(crate) doc: QueueDoc,
    /// The same field by field, and what lies there without a meaning.
    pub(crate) fields: Fields,
    pub(crate) limits: Limits,
    pub(crate) policies: Policies,
    /// Those of code too.
    pub(crate) schedules: Vec<Found>,
    /// What makes no sense and so is in no document.
    pub(crate) problems: Vec<String>,
}

/// A namespace.
#[derive(Debug)]
pub(crate) struct State {
    /// The newest revision of its configuration.
    pub(crate) revision: u64,
    pub(crate) queues: BTreeMap<String, QueueState>,
}

impl State {
    /// Reads every queue there is, and those that are `named` whether there or not.
    pub(crate) async fn read(context: &Context, named: &Document) -> Result<Self, Failure> {
        // The revision first: whatever is read after it may be newer, and then it will have moved.
        let revision = config::revision(&context.store, &context.namespace).await?;
        let there = inspect::queues(&context.store, &context.namespace).await?;
        let mut queues: BTreeMap<String, (Queue, bool)> = there
            .into_iter()
            .map(|queue| (queue.task_type.to_string(), (queue, true)))
            .collect();
        for name in named.queues.keys() {
            if let Ok(task_type) = name.parse() {
                let queue = context.queue(task_type);
                queues.entry(name.clone()).or_insert((queue, false));
            }
        }
        let reads = queues.into_iter().map(|(name, (queue, listed))| async move {
            Ok::<_, Failure>((name, QueueState::read(context, queue, listed).await?))
        });
        let queues = futures_util::stream::iter(reads)
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(Self { revision, queues })
    }

    /// All of it as a document: what people write, or with every section, even an empty one.
    pub(crate) fn document(&self, context: &Context, complete: bool) -> Document {
        let doc = |state: &QueueState| {
            if complete {
                state.doc.clone()
            } else {
                concise(&state.doc)
            }
        };
        let queues = self.queues.iter().filter(|(_, state)| state.exists);
        Document {
            namespace: Some(context.namespace.to_string()),
            queues: queues.map(|(name, state)| (name.clone(), doc(state))).collect(),
        }
    }
}

impl QueueState {
    async fn read(context: &Context, queue: Queue, listed: bool) -> Result<Self, Failure> {
        let store = &context.store;
        let shown = match context.gates.show(&queue).await {
            Ok(shown) => Some(shown),
            Err(GateError::NoGate(_)) => None,
            Err(e) => return Err(e.into()),
        };
        let limits = limits::read(store, &queue).await?;
        let policies = policy::read(store, &queue).await?;
        let schedules = ScheduleStore::new(store, &queue).list().await?.schedules;
        let exists = listed || shown.is_some() || context.exists_unlisted(&queue).await?;
        let mut problems: Vec<String> = limits.problems.iter().map(|p| p.text.clone()).collect();
        problems.extend(policies.problems.iter().cloned());

        let mut odd: Vec<(&'static str, String, Value)> = Vec::new();
        for (limit, raw) in &limits.raw {
            if !limits.set.contains(limit) {
                odd.push(("limits", limit.name().to_owned(), Value::from(brief(raw, 200))));
            }
        }
        let retry = policies.retry().unwrap_or_else(|problem| {
            problems.push(problem);
            odd.push((
                "retry",
                "(invalid)".to_owned(),
                Value::from(brief(&policies.retry, 200)),
            ));
            None
        });
        let rollout = match rollout_of(&policies.rollout) {
            Ok(found) => found,
            Err(problem) => {
                problems.push(problem);
                odd.push((
                    "rollout",
                    "(invalid)".to_owned(),
                    Value::from(brief(&policies.rollout, 200)),
                ));
                serde_json::Map::new()
            }
        };
        let mut named = BTreeMap::new();
        for found in &schedules {
            match found.parse() {
                Ok((_, schedule, _)) if schedule.source == Source::Code => {}
                Ok((name, schedule, _)) => {
                    named.insert(name.to_string(), ScheduleDoc::of(&schedule));
                }
                Err(error) => {
                    let name = brief(&found.name, 80);
                    problems.push(format!("schedule {name} is broken, and in no document: {error}"));
                    // What has no name of a schedule can only be removed by hand.
                    if found.name.parse::<ScheduleName>().is_ok() {
                        odd.push(("schedules", name, Value::from(brief(&lossless(&found.json).0, 200))));
                    }
                }
            }
        }
        let doc = QueueDoc {
            gate: shown.as_ref().map(|shown| gate_doc(&shown.gate)),
            rollout: Some(rollout),
            retry: Some(retry.unwrap_or_default()),
            limits: Some(limits_doc(&limits)),
            schedules: Some(named),
        };
        let mut flat = fields(&doc);
        for (section, field, value) in odd {
            flat.entry(section).or_default().insert(field, value);
        }
        Ok(Self {
            queue,
            exists,
            shown,
            doc,
            fields: flat,
            limits,
            policies,
            schedules,
            problems,
        })
    }

    /// A limit as it lies there.
    pub(crate) fn raw_limit(&self, limit: Limit) -> String {
        let raw = self.limits.raw.iter().find(|(found, _)| *found == limit);
        raw.map(|(_, raw)| raw.clone()).unwrap_or_default()
    }
}

/// The gate, each field named.
pub(crate) fn gate_doc(gate: &Gate) -> GateDoc {
    GateDoc {
        active: Some(gate.active.clone()),
        candidate: Some(gate.candidate.as_ref().map(ToString::to_string).unwrap_or_default()),
        percent: Some(Percent(gate.percent)),
        pins: Some(gate.pins.clone()),
        targets: Some(gate.targets.clone()),
        paused: Some(gate.paused),
    }
}

fn limits_doc(limits: &Limits) -> LimitsDoc {
    let set = limits.raw.iter().filter(|(limit, _)| limits.set.contains(limit));
    LimitsDoc::of(set.filter_map(|(limit, raw)| limit.parse(raw).ok()))
}

/// Without what says nothing: empty sections, and what the gate does not have.
fn concise(doc: &QueueDoc) -> QueueDoc {
    let mut out = doc.clone();
    if let Some(gate) = &mut out.gate
        && gate.candidate.as_ref().is_some_and(String::is_empty)
    {
        gate.candidate = None;
        gate.percent = None;
    }
    if let Some(gate) = &mut out.gate {
        gate.pins = gate.pins.take().filter(|pins| !pins.is_empty());
        gate.targets = gate.targets.take().filter(|targets| !targets.is_empty());
    }
    out.rollout = out.rollout.filter(|fields| !fields.is_empty());
    out.retry = out.retry.filter(|rule| *rule != RetryRule::default());
    out.limits = out.limits.filter(|limits| *limits != LimitsDoc::default());
    out.schedules = out.schedules.filter(|schedules| !schedules.is_empty());
    out
}
