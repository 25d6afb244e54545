//! What is shown of a rollout.

use serde::Serialize;
use serde_json::Value;
use switchback_common::{Queue, TaskType, Version};
use switchback_gates::{
    Gate, Share,
    guard::{Arm, Counts, Evidence, Verdict},
    readiness::Shortage,
    rollout::{Record, Status, without_commands},
};

use crate::{
    output::{Output, sheet, table},
    text::{ago, plain, rfc3339},
};

#[derive(Debug, Serialize)]
pub(super) struct RolloutView {
    queue: String,
    id: u64,
    status: Status,
    #[serde(skip)]
    words: String,
    from: Version,
    to: Version,
    build: String,
    rev: u64,
    by: String,
    why: String,
    reason: String,
    step: usize,
    steps: Vec<StepView>,
    percent: Share,
    began_at: Option<String>,
    began_at_us: u64,
    step_since: Option<String>,
    step_since_us: u64,
    baked_us: u64,
    bake_left_us: u64,
    watch_left_us: Option<u64>,
    counts: CountsView,
    verdict: Verdict,
    tests: Vec<Evidence>,
    driver: Option<String>,
    evidence: Option<Value>,
    events: Vec<EventView>,
    pub(super) short: Option<ShortView>,
    pub(super) dry_run: bool,
    /// Commands that may come next.
    #[serde(skip)]
    pub(super) next: Vec<String>,
    #[serde(skip)]
    now_us: u64,
}

/// A share that live workers would not carry.
#[derive(Debug, Serialize)]
pub(super) struct ShortView {
    percent: Share,
    needed: f64,
    slots: u64,
    #[serde(skip)]
    words: String,
}

impl ShortView {
    pub(super) fn of(short: &Shortage) -> Self {
        Self {
            percent: short.share,
            needed: short.needed,
            slots: short.slots,
            words: match short.is_sure() {
                true => format!("too few slots: {short}; start more, or it goes no further"),
                false => format!("too few slots: {short}; start more"),
            },
        }
    }
}

/// How it stands, in words, and why.
pub(super) fn status(record: &Record) -> String {
    let (status, reason) = (record.status.to_string(), plain(&record.reason));
    match reason.is_empty() {
        true => status,
        // "rolled back to v1: …" says it already.
        false if reason.starts_with(&status) => reason,
        false => format!("{status}: {reason}"),
    }
}

/// What people do next, as commands to copy. Reasons to be held name their own.
pub(super) fn next(record: &Record, task_type: &TaskType, gate: Option<&Gate>) -> Vec<String> {
    let to = &record.to;
    match record.status {
        Status::Paused => vec![
            format!("switchback rollout resume {task_type}"),
            format!("switchback rollout abort {task_type}"),
        ],
        Status::RolledBack | Status::Aborted if gate.is_some_and(|gate| !gate.reaches(to)) => vec![
            format!("switchback gate blast {task_type} --version {to} --certificate"),
            format!("switchback dead requeue {task_type} --version {to} --since-flip --refund --dry-run"),
        ],
        // Nobody guards what somebody set.
        Status::Overruled | Status::Aborted if gate.is_some_and(|gate| gate.reaches(to) && gate.active != *to) => {
            vec![format!("switchback gate rollback {task_type}")]
        }
        _ => Vec::new(),
    }
}

#[derive(Debug, Serialize)]
struct StepView {
    percent: Share,
    bake_us: u64,
    min_samples: u64,
}

#[derive(Debug, Serialize)]
struct CountsView {
    active: ArmView,
    candidate: ArmView,
}

#[derive(Debug, Serialize)]
struct ArmView {
    n: u64,
    failed: u64,
    dead: u64,
    lost: u64,
}

#[derive(Debug, Serialize)]
struct EventView {
    at: Option<String>,
    at_us: u64,
    text: String,
}

impl ArmView {
    fn of(arm: &Arm) -> Self {
        Self {
            n: arm.n,
            failed: arm.failed,
            dead: arm.dead,
            lost: arm.lost,
        }
    }
}

impl RolloutView {
    /// `now_us` is Redis's; `record` has observed what is new.
    pub(super) fn of(queue: &Queue, record: &Record, driver: Option<String>, now_us: u64) -> Self {
        let Counts { active, candidate } = &record.totals;
        let spec = &record.spec;
        let micros = |length: std::time::Duration| u64::try_from(length.as_micros()).unwrap_or(u64::MAX);
        let watching = record.status == Status::Watching;
        let steps = 0..spec.steps.len();
        Self {
            queue: queue.to_string(),
            id: record.id,
            status: record.status,
            words: status(record),
            from: record.from.clone(),
            to: record.to.clone(),
            build: record.build.clone(),
            rev: record.rev,
            by: record.by.clone(),
            why: record.why.clone(),
            reason: record.reason.clone(),
            step: record.step + 1,
            steps: steps
                .map(|n| StepView {
                    percent: spec.share_of(n),
                    bake_us: micros(spec.bake_of(n)),
                    min_samples: spec.samples_of(n),
                })
                .collect(),
            percent: record.share(),
            began_at: rfc3339(record.id),
            began_at_us: record.id,
            step_since: rfc3339(record.step_since_us),
            step_since_us: record.step_since_us,
            baked_us: record.baked_us,
            bake_left_us: match watching {
                true => 0,
                false => micros(spec.bake_of(record.step)).saturating_sub(record.baked_us),
            },
            watch_left_us: watching.then(|| micros(spec.watch).saturating_sub(record.baked_us)),
            counts: CountsView {
                active: ArmView::of(active),
                candidate: ArmView::of(candidate),
            },
            verdict: record.verdict(),
            tests: record.guard.evidence(&spec.guard),
            driver,
            evidence: serde_json::from_str(&record.evidence).ok(),
            events: record
                .events
                .iter()
                .map(|(at_us, text)| EventView {
                    at: rfc3339(*at_us),
                    at_us: *at_us,
                    text: text.clone(),
                })
                .collect(),
            short: None,
            dry_run: false,
            next: Vec::new(),
            now_us,
        }
    }

    pub(super) fn text(&self, out: &Output) -> String {
        let seconds = |us: u64| format!("{} s", us.div_ceil(1_000_000));
        let not_begun = self.began_at_us == 0; // a dry run of a start
        let status = match not_begun {
            true => "not begun: dry run".to_owned(),
            false => self.words.clone(),
        };
        let status = match self.status {
            Status::Held | Status::RolledBack | Status::Overruled => out.loud(&status),
            _ => status,
        };
        let step = match (self.status.is_live(), self.watch_left_us) {
            (true, Some(left)) => format!("{} is active; watched for another {}", self.to, seconds(left)),
            (true, None) => {
                let Some(step) = self.steps.get(self.step.saturating_sub(1)) else {
                    return status;
                };
                format!(
                    "{} of {}: {} % · {} of its bake left · at least {} samples",
                    self.step,
                    self.steps.len(),
                    self.percent,
                    seconds(self.bake_left_us),
                    step.min_samples
                )
            }
            (false, _) => String::new(),
        };
        let by = if self.by.is_empty() {
            String::new()
        } else {
            format!(" by {}", plain(&self.by))
        };
        let why = if self.why.is_empty() {
            String::new()
        } else {
            format!(": {}", plain(&self.why))
        };
        let live = self.status.is_live();
        let driver = self.driver.as_ref().map(|driver| plain(driver));
        let mut text = sheet(&[
            ("QUEUE", self.queue.clone()),
            (
                "ROLLOUT",
                format!(
                    "{} -> {}, {}{by}{why}",
                    self.from,
                    self.to,
                    match not_begun {
                        true => "to be begun".to_owned(),
                        false => format!("began {}", ago(self.now_us, self.began_at_us)),
                    }
                ),
            ),
            ("STATUS", status),
            ("STEP", step),
            (
                "VERDICT",
                if live {
                    verdict(&self.verdict, self)
                } else {
                    String::new()
                },
            ),
            (
                "DRIVER",
                if live {
                    driver.unwrap_or_else(|| "nobody yet".to_owned())
                } else {
                    String::new()
                },
            ),
            (
                "SLOTS",
                self.short
                    .as_ref()
                    .map(|short| out.loud(&short.words))
                    .unwrap_or_default(),
            ),
        ]);
        for (n, command) in self.next.iter().enumerate() {
            text.push_str(&format!("{:<7}  {command}\n", if n == 0 { "NEXT" } else { "" }));
        }
        let arm = |name: &Version, arm: &ArmView| {
            let numbers = [arm.n, arm.failed, arm.dead, arm.lost].map(|n| n.to_string());
            [name.to_string()].into_iter().chain(numbers).collect()
        };
        let header = ["VERSION", "FIRST ATTEMPTS", "FAILED", "DEAD", "LOST"];
        let rows = [
            arm(&self.from, &self.counts.active),
            arm(&self.to, &self.counts.candidate),
        ];
        text.push('\n');
        text.push_str(&table(&header, &header[1..], rows));
        text.push_str("\n\n");
        let number = |value: f64| match value {
            small if small < 100.0 => format!("{small:.2}"),
            large if large < 1e6 => format!("{large:.0}"),
            large => format!("{large:.1e}"),
        };
        let tests = self.tests.iter().map(|test| {
            vec![
                test.test.name().to_owned(),
                number(test.e_value),
                number(test.threshold),
                format!("{}/{}", test.failed_active, test.n_active),
                format!("{}/{}", test.failed_candidate, test.n_candidate),
            ]
        });
        let header = ["TEST", "E-VALUE", "THRESHOLD", self.from.as_str(), self.to.as_str()];
        text.push_str(&table(&header, &header[1..], tests));
        if !self.events.is_empty() {
            text.push_str("\n\n");
            let rows = self
                .events
                .iter()
                .map(|event| vec![ago(self.now_us, event.at_us), plain(without_commands(&event.text))]);
            text.push_str(&table(&["WHEN", "WHAT"], &[], rows));
        }
        text
    }
}

fn verdict(verdict: &Verdict, view: &RolloutView) -> String {
    match verdict {
        Verdict::Pass(evidence) => format!("pass: {}", evidence.words(view.from.as_str(), view.to.as_str())),
        other => plain(&other.to_string()),
    }
}
