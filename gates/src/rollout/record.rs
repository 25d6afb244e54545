//! What Redis knows of a rollout: read, carried on by what was counted since, written back. Pure.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::Serialize;
use switchback_common::{
    Version,
    envelope::Fields,
    store::reply::{field, field_number, field_text},
};

use super::spec::Spec;
use crate::{
    gate::{Gate, Share},
    guard::{Arm, Counts, GuardState, Verdict},
};

/// How long after its end a block is still added to: attempts settle a moment after they end.
const BLOCK_GRACE_US: u64 = 2_000_000;
/// Most blocks that one look reads (P10).
pub const MAX_BLOCKS: u64 = 60;
/// How far Redis's clock may go back before blocks are looked at again.
const MOST_BLOCKS_BACK: u64 = 6;
/// The most that passes between two looks while anybody drives, µs: the lease of one that died, and a little.
const MOST_BETWEEN_LOOKS_US: u64 = 10_000_000;

/// Largest number of a record: what Lua holds.
const MAX_NUMBER: u64 = (1 << 53) - 1;

/// Where a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It ramps.
    Running,
    /// A person paused it: it stays at its step, and the guard watches on.
    Paused,
    /// It waits at its step for a reason that passes, or for a person.
    Held,
    /// The candidate is the active version; the guard watches on.
    Watching,
    /// Over: the candidate is the active version.
    Promoted,
    /// Over: the guard rolled it back.
    RolledBack,
    /// Over: a person ended it.
    Aborted,
    /// Over: somebody set the gate otherwise, and a person wins.
    Overruled,
}

impl Status {
    const ALL: [Self; 8] = [
        Self::Running,
        Self::Paused,
        Self::Held,
        Self::Watching,
        Self::Promoted,
        Self::RolledBack,
        Self::Aborted,
        Self::Overruled,
    ];

    /// The word in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Held => "held",
            Self::Watching => "watching",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled_back",
            Self::Aborted => "aborted",
            Self::Overruled => "overruled",
        }
    }

    /// Whether the rollout goes on; `rollout.lua` knows the same words.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Held | Self::Watching)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_str().replace('_', " "))
    }
}

impl FromStr for Status {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|status| status.as_str() == word).ok_or(())
    }
}

/// A rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// When it began, µs; names it.
    pub id: u64,
    /// Grows with every step.
    pub serial: u64,
    /// Where it is.
    pub status: Status,
    /// The version it leaves, and goes back to.
    pub from: Version,
    /// The version it tries.
    pub to: Version,
    /// The build of `to`.
    pub build: String,
    /// What it was asked to do.
    pub spec: Spec,
    /// The step it is at, from 0.
    pub step: usize,
    /// When that step began, µs.
    pub step_since_us: u64,
    /// How much of the step's bake time has passed, µs: not while the rollout, or the gate, is paused.
    pub baked_us: u64,
    /// When it was last looked at, µs.
    pub looked_us: u64,
    /// The gate's revision that its last step left.
    pub rev: u64,
    /// What the guard knows.
    pub guard: GuardState,
    /// The first block that is not closed yet.
    pub next_block: u64,
    /// What the guard has seen of blocks that are still open.
    pub counted: BTreeMap<u64, Counts>,
    /// What was counted since it began.
    pub totals: Counts,
    /// Why it is held, or how it ended.
    pub reason: String,
    /// JSON of the evidence that ended it.
    pub evidence: String,
    /// Who began it.
    pub by: String,
    /// Why.
    pub why: String,
    /// When its record was last written, µs.
    pub at_us: u64,
    /// The request that wrote it last.
    pub op: String,
    /// What happened lately, newest first: when (µs), what.
    pub events: Vec<(u64, String)>,
}

/// A record that makes no sense: only scripts write it, so somebody else did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the rollout's record has an invalid {field} ({problem}); was it edited by hand? `switchback rollout abort --keep` ends it"
)]
pub struct InvalidRecord {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Record {
    /// Reads the record. `None`: there never was a rollout, or what is left of one that is over cannot be read.
    ///
    /// # Errors
    /// [`InvalidRecord`] when somebody edited that of a rollout that runs.
    pub fn parse(fields: &Fields) -> Result<Option<Self>, InvalidRecord> {
        let status = field_text(fields, "status").parse::<Status>();
        // What is over, and cannot be read, keeps nobody from beginning another.
        let over = status.is_ok_and(|status| !status.is_live());
        match Self::read(fields, status) {
            _ if fields.is_empty() => Ok(None),
            Err(_) if over => Ok(None),
            read => read.map(Some),
        }
    }

    fn read(fields: &Fields, status: Result<Status, ()>) -> Result<Self, InvalidRecord> {
        let bad = |field, problem: &dyn fmt::Display| InvalidRecord {
            field,
            problem: problem.to_string().chars().take(200).collect(),
        };
        let text = |name| field_text(fields, name);
        // As a script writes it: a step names id and serial as they stand there, and what is misread is refused for ever.
        let number = |name| match field_number(fields, name) {
            n if n > MAX_NUMBER => Err(bad(name, &n)),
            n if field(fields, name).is_some_and(|text| text != n.to_string().as_bytes()) => {
                Err(bad(name, &format!("{:?} is not a number", text(name))))
            }
            n => Ok(n),
        };
        let version = |name| text(name).parse().map_err(|e| bad(name, &e));
        let json_or = |name, default: &str| match text(name) {
            empty if empty.is_empty() => default.to_owned(),
            text => text,
        };
        let spec: Spec = serde_json::from_str(&json_or("spec", "{}")).map_err(|e| bad("spec", &e))?;
        spec.validate().map_err(|e| bad("spec", &e))?;
        let guard = match text("guard") {
            empty if empty.is_empty() => {
                let mut guard = GuardState::new(&spec.guard);
                if spec.share_of(0) == Share::ALL {
                    guard.freeze(&spec.guard);
                }
                guard
            }
            json => serde_json::from_str(&json).map_err(|e| bad("guard", &e))?,
        };
        let step = usize::try_from(number("step")?).unwrap_or(usize::MAX);
        if step >= spec.steps.len() {
            return Err(bad("step", &format!("{step}, and there are {}", spec.steps.len())));
        }
        let mut record = Self {
            id: number("id")?,
            serial: number("serial")?,
            status: status.map_err(|()| bad("status", &text("status")))?,
            from: version("from")?,
            to: version("to")?,
            build: text("build"),
            step,
            step_since_us: number("step_since_us")?,
            baked_us: number("baked_us")?,
            looked_us: number("looked_us")?,
            rev: number("rev")?,
            next_block: number("next_block")?,
            counted: serde_json::from_str(&json_or("counted", "{}")).map_err(|e| bad("counted", &e))?,
            totals: serde_json::from_str(&json_or("totals", "{}")).map_err(|e| bad("totals", &e))?,
            reason: text("reason"),
            evidence: text("evidence"),
            by: text("by"),
            why: text("why"),
            at_us: number("at_us")?,
            op: text("op"),
            events: text("events")
                .lines()
                .filter_map(|line| line.split_once(' '))
                .filter_map(|(at, text)| Some((at.parse().ok()?, text.to_owned())))
                .take(20)
                .collect(),
            guard,
            spec,
        };
        if record.next_block == 0 {
            record.next_block = record.first_block(number("ended_before_us")?);
        }
        Ok(record)
    }

    /// The block it begins to count in. What another rollout counted a moment ago is not its own.
    fn first_block(&self, ended_before_us: u64) -> u64 {
        let block = self.block_of(self.id);
        block + u64::from(ended_before_us > 0 && self.block_of(ended_before_us) == block)
    }

    /// The number of the block of a time.
    #[must_use]
    pub fn block_of(&self, at_us: u64) -> u64 {
        at_us / block_us(self.spec.guard.block_secs)
    }

    /// The share that the gate gives the candidate now, if it is as the rollout left it.
    #[must_use]
    pub fn share(&self) -> Share {
        match self.status {
            Status::Watching | Status::Promoted => Share::ALL,
            _ => self.spec.share_of(self.step),
        }
    }

    /// Whether the gate is, in what a rollout is about, as this one left it: pauses, pins and limits are others' business.
    #[must_use]
    pub fn agrees_with(&self, gate: &Gate) -> bool {
        match self.status {
            Status::Watching | Status::Promoted => gate.active == self.to,
            _ => {
                gate.active == self.from
                    && gate.candidate.as_ref() == Some(&self.to)
                    && gate.percent == self.spec.share_of(self.step)
            }
        }
    }

    /// Whether there is more closed than one look reads.
    #[must_use]
    pub fn is_behind(&self, now_us: u64) -> bool {
        self.next_block.saturating_add(MAX_BLOCKS / 2) < self.block_of(now_us)
    }

    /// The blocks to look at now, first and last.
    #[must_use]
    pub fn blocks(&self, now_us: u64) -> (u64, u64) {
        // Older ones are gone.
        let last = self.block_of(now_us);
        let kept = 7_000_000_000 / block_us(self.spec.guard.block_secs);
        let first = self
            .next_block
            .max(last.saturating_sub(kept))
            .min(last.max(self.next_block));
        (first, last.min(first + MAX_BLOCKS - 1).max(first))
    }

    /// Takes in what the blocks say now, and the time that has passed. Each attempt counts once, whoever looks.
    pub fn observe(&mut self, now_us: u64, gate_paused: bool, blocks: &[(u64, Counts)]) {
        if self.block_of(now_us).saturating_add(MOST_BLOCKS_BACK) < self.next_block {
            // Redis's clock went back: what happens until it is there again must not pass unseen. A little is waited for, or what was
            // counted in those blocks already would count twice.
            self.next_block = self.block_of(now_us) + 1;
            self.counted.clear();
            self.looked_us = now_us;
        }
        let clock_runs = matches!(self.status, Status::Running | Status::Watching) && !gate_paused;
        if clock_runs {
            // Without the time of the last look none has passed.
            let looked_us = if self.looked_us == 0 { now_us } else { self.looked_us };
            // Longer than it takes to find another driver nobody looked, or the clock jumped.
            let passed = now_us.saturating_sub(looked_us).min(MOST_BETWEEN_LOOKS_US);
            self.baked_us = self.baked_us.saturating_add(passed);
        }
        self.looked_us = self.looked_us.max(now_us);
        let watching = self.status == Status::Watching;
        let config = &self.spec.guard;
        let length = block_us(config.block_secs);
        for (n, counts) in blocks {
            if *n < self.next_block {
                continue;
            }
            let new = match self.counted.get(n) {
                Some(seen) => counts - seen,
                None => counts.clone(),
            };
            add(&mut self.totals.active, &new.active);
            add(&mut self.totals.candidate, &new.candidate);
            match watching {
                true => self.guard.watched(config, &new.candidate),
                false => self.guard.ticked(config, &new),
            }
            self.counted.insert(*n, counts.clone());
            let end = n.saturating_add(1).saturating_mul(length);
            if now_us >= end.saturating_add(BLOCK_GRACE_US) {
                if !watching {
                    let share = f64::from(self.spec.share_of(self.step).thousandths()) / 100_000.0;
                    self.guard.closed(config, counts, share);
                }
                self.next_block = n.saturating_add(1);
            }
        }
        self.counted.retain(|n, _| *n >= self.next_block);
    }

    /// What the guard says.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.guard.verdict(&self.spec.guard, self.spec.samples_of(self.step))
    }

    /// The fields that change as it goes.
    #[must_use]
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let json = |value: Result<String, serde_json::Error>| value.unwrap_or_default();
        vec![
            ("status", self.status.as_str().to_owned()),
            ("step", self.step.to_string()),
            ("step_since_us", self.step_since_us.to_string()),
            ("baked_us", self.baked_us.to_string()),
            ("looked_us", self.looked_us.to_string()),
            ("guard", json(serde_json::to_string(&self.guard))),
            ("next_block", self.next_block.to_string()),
            ("counted", json(serde_json::to_string(&self.counted))),
            ("totals", json(serde_json::to_string(&self.totals))),
            ("reason", self.reason.clone()),
            ("evidence", self.evidence.clone()),
        ]
    }

    /// The fields of one that begins; the script adds its id, serial, revision and times.
    #[must_use]
    pub fn first_fields(
        spec: &Spec,
        from: &Version,
        to: &Version,
        build: &str,
        by: &str,
        why: &str,
    ) -> Vec<(&'static str, String)> {
        let first = spec.share_of(0);
        let spec = Spec {
            to: None,
            ..spec.clone()
        };
        let status = if first == Share::ALL {
            Status::Watching
        } else {
            Status::Running
        };
        vec![
            ("status", status.as_str().to_owned()),
            ("from", from.to_string()),
            ("to", to.to_string()),
            ("build", build.to_owned()),
            ("spec", serde_json::to_string(&spec).unwrap_or_default()),
            ("step", "0".to_owned()),
            ("by", by.to_owned()),
            ("why", why.to_owned()),
        ]
    }
}

fn add(total: &mut Arm, new: &Arm) {
    total.n = total.n.saturating_add(new.n);
    total.failed = total.failed.saturating_add(new.failed);
    total.dead = total.dead.saturating_add(new.dead);
    total.lost = total.lost.saturating_add(new.lost);
    total.placed = total.placed.saturating_add(new.placed);
}

/// The length of a block, µs.
#[must_use]
pub fn block_us(secs: u64) -> u64 {
    secs.clamp(1, 3_600) * 1_000_000
}

/// What a block says of two versions.
#[must_use]
pub fn counts(fields: &Fields, active: &Version, candidate: &Version) -> Counts {
    let mut out = Counts::default();
    for (name, value) in fields {
        let read = || {
            let (version, what) = std::str::from_utf8(name).ok()?.split_once(':')?;
            let n: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
            Some((version, what, n))
        };
        let Some((version, what, n)) = read() else { continue };
        let arm = match version {
            v if v == active.as_str() => &mut out.active,
            v if v == candidate.as_str() => &mut out.candidate,
            _ => continue,
        };
        match what {
            "n" => arm.n = n,
            "f" => arm.failed = n,
            "dead" => arm.dead = n,
            "lost" => arm.lost = n,
            "placed" => arm.placed = n,
            _ => {
                let bucket = |what: &str| what.parse().ok();
                if let Some(bucket) = what.strip_prefix('t').and_then(bucket) {
                    arm.took.insert(bucket, n);
                } else if let Some(bucket) = what.strip_prefix('o').and_then(bucket) {
                    arm.outlasted.insert(bucket, n);
                }
            }
        }
    }
    out
}
