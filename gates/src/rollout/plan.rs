//! From what to do to what is written: one step for the script, with its words. Pure.

use serde_json::json;
use switchback_common::{
    SessionId, Version,
    envelope::Fields,
    store::{
        gate::HistoryEntry,
        reply::field_text,
        rollout::{Mark, Onto, Step},
    },
};

use super::{
    Action,
    hold::kind,
    is_full,
    mark::{self, build_of},
    micros,
    record::{Record, Status},
    spec::{Inflight, MAX_STEPS, Spec},
};
use crate::{
    gate::Gate,
    guard::{Counts, Verdict},
};

/// What is around a step.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// The session that drives; `None`: a person.
    pub driver: Option<SessionId>,
    /// Redis's clock, µs.
    pub now_us: u64,
    /// The revision that was looked at.
    pub rev: u64,
    /// The candidate's entry among the versions.
    pub entry: String,
    /// Attempts that run on the candidate, as last published.
    pub running: u64,
    /// Who asks.
    pub by: String,
    /// Why.
    pub why: String,
    /// Names the request.
    pub op: String,
    /// The objections that were passed over.
    pub forced: String,
    /// The task type, for commands that people may run next; empty: none is named.
    pub task_type: String,
}

/// The step that does `action`. `record` has observed what is new.
#[must_use]
pub fn plan(record: &Record, action: &Action, setting: &Setting) -> Step {
    let mut record = record.clone();
    let (from, to) = (record.from.clone(), record.to.clone());
    let mut step = Step {
        onto: Onto::Rollout {
            id: record.id.to_string(),
            serial: record.serial.to_string(),
        },
        if_rev: Some(setting.rev),
        driver: setting.driver.clone(),
        source: "rollout".to_owned(),
        by: setting.by.clone(),
        why: setting.why.clone(),
        op: setting.op.clone(),
        forced: setting.forced.clone(),
        text: String::new(),
        evidence: String::new(),
        mark: None,
        gate: Vec::new(),
        record: Vec::new(),
    };
    match action {
        Action::Nothing => {}
        Action::Advance { step: n } => {
            let evidence = match record.verdict() {
                Verdict::Pass(evidence) => format!(": {}", evidence.words(from.as_str(), to.as_str())),
                Verdict::Regressed(_) | Verdict::Hold(_) | Verdict::Insufficient { .. } => String::new(),
            };
            begin_step(&mut record, *n, setting.now_us);
            step.gate = gate_of(&record.spec, *n, &to);
            step.text = format!(
                "{to} goes to {} % (step {} of {}){evidence}",
                record.share(),
                n + 1,
                record.spec.steps.len()
            );
            if record.status == Status::Watching {
                step.text = format!("{to} is active, and watched on{evidence}");
            }
            if step.why.is_empty() {
                step.why.clone_from(&step.text);
            }
        }
        Action::Hold { reason } => {
            record.status = Status::Held;
            record.reason.clone_from(reason);
            step.text = format!("held at {} %: {reason}", record.share());
        }
        Action::Release => {
            record.status = Status::Running;
            step.text = format!(
                "goes on at {} %: no longer held ({})",
                record.share(),
                kind(&record.reason)
            );
            record.reason.clear();
        }
        Action::Rollback { evidence } => {
            let share = record.share();
            let words = evidence.words(from.as_str(), to.as_str());
            record.status = Status::RolledBack;
            record.reason = format!("rolled back to {from}: {words}");
            record.evidence = serde_json::to_string(evidence).unwrap_or_default();
            "guard".clone_into(&mut step.source);
            step.why = format!("{to} at {share} %: {words}");
            step.gate = back(&from, record.spec.inflight);
            step.text = format!(
                "rolled back from {to} at {share} % to {from}: {words}; {}{}",
                touched(&record.totals, setting),
                look_further(&setting.task_type, &to)
            );
            step.evidence = json!({
                "evidence": evidence, "from": from, "to": to, "percent": share, "touched": touched_json(&record.totals, setting),
            })
            .to_string();
            step.mark = Some(Mark {
                version: to,
                before: setting.entry.clone(),
                after: mark::mark(&setting.entry, &step.why),
            });
        }
        Action::Finish => {
            record.status = Status::Promoted;
            record.reason = format!("watched for {:?}: nothing against {to}", record.spec.watch);
            step.text = format!("done: {to} is active, {}", record.reason);
            // Whatever an earlier rollout of it came to: it is better now.
            step.mark = mark::unmark(&setting.entry).map(|after| Mark {
                version: to,
                before: setting.entry.clone(),
                after,
            });
        }
        Action::Overruled { by } => {
            record.status = Status::Overruled;
            record.reason = format!("the gate was set otherwise by {by}");
            step.text = format!("over: {}; the rollout of {to} leaves the gate alone", record.reason);
        }
    }
    step.record = record.fields();
    step
}

fn begin_step(record: &mut Record, n: usize, now_us: u64) {
    record.step = n;
    record.step_since_us = now_us;
    record.baked_us = 0;
    record.reason.clear();
    record.status = Status::Running;
    record.guard.begin_step();
    if is_full(&record.spec, n) {
        record.status = Status::Watching;
        record.guard.freeze(&record.spec.guard);
    }
}

/// What the gate says at step `n`.
fn gate_of(spec: &Spec, n: usize, to: &Version) -> Vec<(&'static str, String)> {
    match is_full(spec, n) {
        true => vec![
            ("active", to.to_string()),
            ("candidate", String::new()),
            ("percent", "0".to_owned()),
        ],
        false => vec![("candidate", to.to_string()), ("percent", spec.share_of(n).to_string())],
    }
}

fn back(from: &Version, inflight: Inflight) -> Vec<(&'static str, String)> {
    let mut fields = vec![("only", from.to_string())];
    if inflight != Inflight::Finish {
        fields.push(("inflight", inflight.as_str().to_owned()));
    }
    fields
}

/// What the candidate touched, in words. First attempts alone are counted: `gate blast` lists all.
fn touched(totals: &Counts, setting: &Setting) -> String {
    let arm = &totals.candidate;
    format!(
        "touched {} first attempts: {} done, {} failed ({} of them dead letters), {} lost; {} still running",
        arm.n,
        arm.n.saturating_sub(arm.failed).saturating_sub(arm.lost),
        arm.failed,
        arm.dead,
        arm.lost,
        setting.running
    )
}

/// What to do next: whoever reads this was woken by it.
fn look_further(task_type: &str, to: &Version) -> String {
    if task_type.is_empty() {
        return String::new();
    }
    format!(
        "{FURTHER}: switchback gate blast {task_type} --version {to} --certificate; attempts given back: \
         switchback dead requeue {task_type} --version {to} --since-flip --refund --dry-run"
    )
}

const FURTHER: &str = "; every task and the proof";

/// A text of the log without the commands at its end, for whoever shows them apart.
#[must_use]
pub fn without_commands(text: &str) -> &str {
    text.split_once(FURTHER).map_or(text, |(text, _)| text)
}

fn touched_json(totals: &Counts, setting: &Setting) -> serde_json::Value {
    let arm = &totals.candidate;
    json!({ "first_attempts": arm.n, "done": arm.n.saturating_sub(arm.failed).saturating_sub(arm.lost), "failed": arm.failed,
        "dead": arm.dead, "lost": arm.lost, "running": setting.running })
}

/// Begins a rollout.
#[must_use]
pub fn start(spec: &Spec, from: &Version, to: &Version, setting: &Setting, dry_run: bool) -> Step {
    let (steps, first) = (spec.steps.len(), spec.share_of(0));
    let why = if setting.why.is_empty() {
        String::new()
    } else {
        format!(": {}", setting.why)
    };
    Step {
        onto: Onto::Nothing { dry_run },
        if_rev: Some(setting.rev),
        driver: None,
        source: "rollout".to_owned(),
        by: setting.by.clone(),
        why: setting.why.clone(),
        op: setting.op.clone(),
        forced: setting.forced.clone(),
        text: format!("{to} begins at {first} % beside {from} (step 1 of {steps}){why}"),
        evidence: String::new(),
        mark: None,
        gate: gate_of(spec, 0, to),
        record: Record::first_fields(spec, from, to, &build_of(&setting.entry), &setting.by, &setting.why),
    }
}

/// A person pauses it: it stays at its step; the guard watches on, and rolls back if it must.
#[must_use]
pub fn pause(record: &Record, setting: &Setting) -> Option<Step> {
    let pausable = matches!(record.status, Status::Running | Status::Held);
    pausable.then(|| {
        let text = format!("paused at {} %{}", record.share(), by(setting));
        turned(record, setting, Status::Paused, text)
    })
}

/// A person lets it go on; a step that was held has its whole time again.
#[must_use]
pub fn resume(record: &Record, setting: &Setting) -> Option<Step> {
    let mut record = record.clone();
    match record.status {
        Status::Held => record.baked_us = 0,
        Status::Paused => {}
        _ => return None,
    }
    // Also of one that was paused while it was held.
    record.guard.resumed();
    let text = format!("resumed at {} %{}", record.share(), by(setting));
    Some(turned(&record, setting, Status::Running, text))
}

fn turned(record: &Record, setting: &Setting, status: Status, text: String) -> Step {
    let mut record = record.clone();
    record.status = status;
    record.reason = if status == Status::Paused {
        text.clone()
    } else {
        String::new()
    };
    // The clock was running, or standing, until now.
    record.looked_us = record.looked_us.max(setting.now_us);
    Step {
        text,
        ..plan(&record, &Action::Nothing, setting)
    }
}

/// A person takes it to the next step now, or to 100 %.
#[must_use]
pub fn promote(record: &Record, all: bool, setting: &Setting) -> Option<Step> {
    if !matches!(record.status, Status::Running | Status::Paused | Status::Held) {
        return None;
    }
    let passed_over = passed_over(record);
    let mut record = record.clone();
    let last = record.spec.steps.len() - 1;
    let to_the_end = all || record.step == last;
    if to_the_end && !is_full(&record.spec, last) {
        // It ends below 100 %: a person adds the step that it lacks, or makes it of the last one.
        record.spec.steps.truncate(MAX_STEPS - 1);
        record.spec.steps.push(super::StepSpec::plain(crate::gate::Share::ALL));
    }
    let n = if to_the_end {
        record.spec.steps.len() - 1
    } else {
        record.step + 1
    };
    // What held the step before is no reason to hold the next one.
    record.guard.resumed();
    let mut step = plan(&record, &Action::Advance { step: n }, setting);
    step.text = format!("promoted{}: {}", by(setting), step.text);
    // P9: whoever reads the history learns that nobody but a person vouched for it.
    if let Some(passed_over) = passed_over {
        step.text.push_str(&format!("; {passed_over}"));
        step.forced = passed_over;
    }
    if setting.why.is_empty() {
        step.why.clone_from(&step.text);
    }
    step.record
        .push(("spec", serde_json::to_string(&record.spec).unwrap_or_default()));
    Some(step)
}

/// What a person passes over who promotes now.
fn passed_over(record: &Record) -> Option<String> {
    let step = record.step + 1;
    let left = micros(record.spec.bake_of(record.step)).saturating_sub(record.baked_us);
    match record.verdict() {
        Verdict::Pass(_) if left == 0 => None,
        Verdict::Pass(_) => Some(format!(
            "{} s of the bake of step {step} were left",
            left.div_ceil(1_000_000)
        )),
        verdict => Some(format!("the guard had not passed step {step}: {verdict}")),
    }
}

/// A person ends it: back to the version before, or with the gate kept as it is.
#[must_use]
pub fn abort(record: &Record, gate: &Gate, keep: bool, setting: &Setting) -> Option<Step> {
    if !record.status.is_live() {
        return None;
    }
    let mut ended = record.clone();
    ended.status = Status::Aborted;
    ended.reason = format!("aborted{}", by(setting));
    let mut step = plan(&ended, &Action::Nothing, setting);
    step.text = match keep {
        true => format!("aborted{}; the gate stays as it is", by(setting)),
        false => format!("aborted{}: back to {}", by(setting), record.from),
    };
    if !keep {
        step.gate = match (record.status, gate.active == record.from) {
            (Status::Watching, _) | (_, false) => back(&record.from, record.spec.inflight),
            // Pins and limits are others' business.
            _ => {
                let mut fields = vec![("candidate", String::new()), ("percent", "0".to_owned())];
                fields.extend(back(&record.from, record.spec.inflight).into_iter().skip(1));
                fields
            }
        };
        if step.why.is_empty() {
            step.why = format!("rollout of {} aborted", record.to);
        }
    }
    Some(step)
}

fn by(setting: &Setting) -> String {
    let mut out = String::new();
    if !setting.by.is_empty() {
        out.push_str(&format!(" by {}", setting.by));
    }
    if !setting.why.is_empty() {
        out.push_str(&format!(" ({})", setting.why));
    }
    out
}

/// Ends a rollout whose record nobody can read; the gate stays as it is.
#[must_use]
pub fn bury(fields: &Fields, setting: &Setting) -> Step {
    let text = format!(
        "aborted{}: its record could not be read; the gate stays as it is",
        by(setting)
    );
    Step {
        // As they stand there, numbers or not.
        onto: Onto::Rollout {
            id: field_text(fields, "id"),
            serial: field_text(fields, "serial"),
        },
        if_rev: Some(setting.rev),
        driver: None,
        source: "rollout".to_owned(),
        by: setting.by.clone(),
        why: setting.why.clone(),
        op: setting.op.clone(),
        forced: setting.forced.clone(),
        text: text.clone(),
        evidence: String::new(),
        mark: None,
        gate: Vec::new(),
        record: vec![("status", Status::Aborted.as_str().to_owned()), ("reason", text)],
    }
}

/// Who made a revision, in words.
#[must_use]
pub fn maker(entry: &HistoryEntry) -> String {
    let by = if entry.by.is_empty() { "somebody" } else { &entry.by };
    let why = if entry.why.is_empty() {
        String::new()
    } else {
        format!(": {}", entry.why)
    };
    format!("{by} ({}, revision {}){why}", entry.source, entry.rev)
}
