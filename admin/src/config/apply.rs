//! Applying a plan: section by section, the gate last, each only onto what it was judged against.

use switchback_common::{
    Queue, StoreError,
    schedule::{Schedule, ScheduleName, Source},
    store::{
        enqueue::EnqueueStore,
        gate::{ChangeRequest, Changed},
        limits::{self, Edit, Limit, Put},
        policy::{self, Policy},
        schedule::{Change as ScheduleChange, Found, ScheduleStore, Written},
    },
};
use switchback_gates::admin::operation_id;

use crate::{
    args::InFlight,
    change,
    config::{
        diff::SECTIONS,
        document::{LimitsDoc, ScheduleDoc},
        plan::{Plan, QueuePlan},
        state::QueueState,
    },
    context::Context,
    exit::Failure,
    text::plain,
};

/// Who applies, and why.
#[derive(Debug)]
pub(crate) struct Signature {
    pub(crate) by: String,
    pub(crate) why: String,
    /// What becomes of what runs on versions that the gates withdraw.
    pub(crate) inflight: InFlight,
}

/// How far it came.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Queue and section, in order.
    pub(crate) done: Vec<(String, &'static str)>,
    pub(crate) left: Vec<(String, &'static str)>,
    /// The section, among those that are left, of which something was written, and how much.
    pub(crate) partly: Option<(String, &'static str, usize)>,
    /// Gates that changed, and the revision each has now.
    pub(crate) gates: Vec<(Queue, u64)>,
    /// Why it stopped.
    pub(crate) stopped: Option<Stop>,
}

/// Why something was not applied.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Somebody else was faster, and wins.
    Moved(String),
    /// It was refused.
    Refused(String),
    /// Redis.
    Failed(Box<Failure>),
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Moved(text) | Self::Refused(text) => f.write_str(text),
            Self::Failed(failure) => write!(f, "{failure}"),
        }
    }
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

/// Applies what the plan changes, and stops where somebody else changed something meanwhile.
pub(crate) async fn apply(context: &Context, plan: &Plan<'_>, signature: &Signature) -> Applied {
    let mut out = Applied::default();
    for queue in &plan.queues {
        for section in SECTIONS {
            if !queue.changes_section(section) {
                continue;
            }
            let step = (queue.name.to_owned(), section);
            if out.stopped.is_some() {
                out.left.push(step);
                continue;
            }
            let mut written = 0;
            match write(context, plan, queue, section, signature, &mut written).await {
                Ok(gate) => {
                    out.done.push(step);
                    out.gates.extend(gate.map(|rev| (queue.state.queue.clone(), rev)));
                }
                Err(stop) => {
                    let (name, section) = step.clone();
                    out.partly = (written > 0).then_some((name, section, written));
                    out.left.push(step);
                    out.stopped = Some(stop);
                }
            }
        }
    }
    out
}

/// Writes one section; of the gate, tells its revision. `written` counts what was, should the rest not be.
async fn write(
    context: &Context,
    plan: &Plan<'_>,
    queue: &QueuePlan<'_>,
    section: &str,
    signature: &Signature,
    written: &mut usize,
) -> Result<Option<u64>, Stop> {
    let (state, wanted) = (queue.state, queue.wanted);
    let put = match section {
        "limits" => limits_of(context, state, wanted.limits.as_ref(), signature).await?,
        "retry" => {
            let json = wanted.retry.as_ref().map(serde_json::to_string);
            policy_of(context, state, Policy::Retry, json, signature).await?
        }
        "rollout" => {
            let json = wanted.rollout.as_ref().map(serde_json::to_string);
            policy_of(context, state, Policy::Rollout, json, signature).await?
        }
        "schedules" => {
            schedules_of(context, queue, signature, written).await?;
            Put::Set
        }
        _ => return gate_of(context, plan, queue, signature).await.map(Some),
    };
    if let Put::Moved(field) = put {
        return Err(moved(&state.queue, &format!("{section} ({field})")));
    }
    *written = (*written).max(1);
    if !state.exists {
        EnqueueStore::new(&context.store, &state.queue).announce().await?;
    }
    Ok(None)
}

fn moved(queue: &Queue, what: &str) -> Stop {
    Stop::Moved(format!("somebody changed {what} of {queue} meanwhile"))
}

async fn limits_of(
    context: &Context,
    state: &QueueState,
    wanted: Option<&LimitsDoc>,
    signature: &Signature,
) -> Result<Put, StoreError> {
    let mut edits = Vec::new();
    for limit in Limit::ALL {
        let raw = state.raw_limit(limit);
        let now = limit.parse(&raw).ok();
        let wish = wanted
            .and_then(|wanted| wanted.text(limit))
            .and_then(|text| limit.parse(&text).ok());
        // Absent is empty: nothing to read, nothing wished.
        if now != wish || (wish.is_none() && !raw.is_empty()) {
            edits.push(Edit {
                field: limit.name().to_owned(),
                expected: Some(raw),
                value: wish.map(|setting| setting.to_string()).unwrap_or_default(),
            });
        }
    }
    limits::replace(&context.store, &state.queue, &edits, &signature.by, &signature.why).await
}

async fn policy_of(
    context: &Context,
    state: &QueueState,
    policy: Policy,
    json: Option<serde_json::Result<String>>,
    signature: &Signature,
) -> Result<Put, Stop> {
    let json = json
        .transpose()
        .map_err(|e| Failure::Other(e.to_string()))?
        .unwrap_or_default();
    // A policy that says nothing is none.
    let json = if json == "{}" { String::new() } else { json };
    let (by, why) = (&signature.by, &signature.why);
    let raw = state.policies.get(policy);
    Ok(policy::set(&context.store, &state.queue, policy, raw, &json, by, why).await?)
}

async fn schedules_of(
    context: &Context,
    queue: &QueuePlan<'_>,
    signature: &Signature,
    written: &mut usize,
) -> Result<(), Stop> {
    let state = queue.state;
    let store = ScheduleStore::new(&context.store, &state.queue);
    let Some(wanted) = &queue.wanted.schedules else {
        return Ok(());
    };
    let stays = |found: &Found| {
        wanted.contains_key(&found.name)
            || matches!(found.parse(), Ok((_, schedule, _)) if schedule.source == Source::Code)
    };
    // First what goes: there may be too many else.
    for found in state.schedules.iter().filter(|found| !stays(found)) {
        if let Ok(name) = found.name.parse::<ScheduleName>() {
            put_schedule(&store, state, &name, Some(found), None, signature).await?;
            *written += 1;
        }
    }
    for (name, doc) in wanted {
        let found = state.schedules.iter().find(|found| found.name == *name);
        if found.is_some_and(|found| is_so(found, doc)) {
            continue;
        }
        let refused =
            |problem: &dyn std::fmt::Display| Stop::Refused(format!("schedule {name} of {}: {problem}", state.queue));
        let parsed = name.parse::<ScheduleName>().map_err(|e| refused(&e))?;
        let mut schedule = doc.schedule().map_err(|e| refused(&e))?;
        schedule.by.clone_from(&signature.by);
        schedule.why.clone_from(&signature.why);
        put_schedule(&store, state, &parsed, found, Some(&schedule), signature).await?;
        *written += 1;
    }
    Ok(())
}

/// Whether a schedule is what the document says, and the document's own.
fn is_so(found: &Found, doc: &ScheduleDoc) -> bool {
    let Ok((_, schedule, _)) = found.parse() else {
        return false;
    };
    let there = ScheduleDoc::of(&schedule);
    let bare = |doc: &ScheduleDoc| ScheduleDoc {
        payload: Some(doc.canonical_payload()),
        payload_json: None,
        ..doc.clone()
    };
    schedule.source == Source::Cli && bare(&there) == bare(doc)
}

async fn put_schedule(
    store: &ScheduleStore,
    state: &QueueState,
    name: &ScheduleName,
    before: Option<&Found>,
    after: Option<&Schedule>,
    signature: &Signature,
) -> Result<(), Stop> {
    let words = after.map_or_else(
        || "removed".to_owned(),
        |after| {
            let paused = if after.paused { ", paused" } else { "" };
            format!(
                "{} {}, missed {}{paused}",
                after.cron,
                after.time_zone,
                after.missed.as_str()
            )
        },
    );
    let because = if signature.why.is_empty() {
        String::new()
    } else {
        format!(": {}", signature.why)
    };
    let change = ScheduleChange {
        name,
        before,
        after,
        session: None,
        text: &format!("{name}: {words} by {}{because}", signature.by),
    };
    match store.write(&change).await? {
        Written::Yes => Ok(()),
        Written::Moved => Err(moved(&state.queue, &format!("schedule {name}"))),
        Written::Full => Err(Stop::Refused(format!("{} has too many schedules already", state.queue))),
    }
}

async fn gate_of(
    context: &Context,
    plan: &Plan<'_>,
    queue: &QueuePlan<'_>,
    signature: &Signature,
) -> Result<u64, Stop> {
    let state = queue.state;
    let mut fields = queue.wanted.gate.as_ref().map(|gate| gate.fields()).unwrap_or_default();
    // One revision has both: a crash leaves no gate that was changed without it.
    fields.extend(signature.inflight.field());
    let request = ChangeRequest {
        source: "config".to_owned(),
        by: signature.by.clone(),
        why: signature.why.clone(),
        op: operation_id(),
        // What a person did in between wins.
        if_rev: state.shown.as_ref().map(|shown| shown.rev),
        forced: plan.forced(&state.queue.to_string()),
        fields,
        ..ChangeRequest::default()
    };
    match change::deliver(context, &state.queue, &request).await? {
        Changed::Changed(sealed) | Changed::Same(sealed) | Changed::Would(sealed) => Ok(sealed.rev),
        Changed::Moved(sealed) => Err(moved(
            &state.queue,
            &format!("the gate (it is at revision {})", sealed.rev),
        )),
        Changed::Refused { field, reason } => Err(Stop::Refused(format!(
            "the gate of {} refused {field}={}",
            state.queue,
            plain(&reason)
        ))),
        Changed::Unsealed => Err(Stop::Refused(format!("{} has no gate", state.queue))),
    }
}
