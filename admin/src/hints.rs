//! What a person should notice about a queue, loudest first. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use switchback_common::{
    Queue, Version,
    store::{gate::HistoryEntry, inspect::QueueDepth, limits::Limits, policy::Policies, session::SessionInfo},
};
use switchback_gates::{
    admin::Shown,
    rollout::{Record, Status},
};

use crate::{
    config::rollout::rollout_of,
    text::{ago, count, plain},
};

/// How loud a hint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// Tasks stand still.
    Critical,
    /// Something is not as it should be.
    Warning,
    /// Good to know.
    Info,
}

/// One thing to notice.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Hint {
    pub(crate) level: Level,
    /// Stable, for scripts.
    pub(crate) code: &'static str,
    pub(crate) text: String,
}

/// What is known about a queue.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) queue: &'a Queue,
    pub(crate) shown: Option<&'a Shown>,
    pub(crate) sessions: &'a [SessionInfo],
    pub(crate) depth: Option<&'a QueueDepth>,
    pub(crate) limits: &'a Limits,
    pub(crate) policies: &'a Policies,
    /// The rollout that runs, or ran last.
    pub(crate) rollout: Option<&'a Record>,
    /// Newest first.
    pub(crate) history: &'a [HistoryEntry],
    pub(crate) now_us: u64,
}

/// Everything to notice, loudest first.
pub(crate) fn hints(facts: &Facts<'_>) -> Vec<Hint> {
    let mut out = Vec::new();
    of_gate(facts, &mut out);
    of_rollout(facts, &mut out);
    of_workers(facts, &mut out);
    if let Some(depth) = facts.depth {
        of_depth(facts, depth, &mut out);
        of_limits(facts, depth, &mut out);
    }
    out.sort_by_key(|hint| hint.level);
    out
}

fn of_gate(facts: &Facts<'_>, out: &mut Vec<Hint>) {
    let task_type = &facts.queue.task_type;
    let Some(shown) = facts.shown else {
        let ever = !facts.history.is_empty() || facts.depth.is_some_and(|d| d.main.exists);
        out.push(Hint {
            level: Level::Critical,
            code: "no_gate",
            text: if ever {
                format!("the gate state is lost: nothing starts. Bring it back: switchback gate set {task_type} active=VERSION --force")
            } else {
                "no gate: no worker has joined yet; the first one makes it".to_owned()
            },
        });
        return;
    };
    let newest = facts.history.iter().find(|e| e.kind == "change");
    if shown.gate.paused {
        let since = newest.map_or_else(String::new, |e| {
            let by = if e.by.is_empty() {
                String::new()
            } else {
                format!(" by {}", plain(&e.by))
            };
            let why = if e.why.is_empty() {
                String::new()
            } else {
                format!(" ({})", plain(&e.why))
            };
            format!("; last change {}{by}{why}", ago(facts.now_us, e.at_us))
        });
        let code = match newest.map(|e| e.source.as_str()) {
            Some("regress") => "regressed",
            Some("limit") => "dead_limit",
            _ => "paused",
        };
        out.push(Hint {
            level: Level::Critical,
            code,
            text: format!("paused: nothing starts until `switchback gate resume {task_type}`{since}"),
        });
    }
    // Older than the newest change it is history.
    if let Some(refused) = facts
        .history
        .iter()
        .take_while(|e| e.kind != "change")
        .find(|e| e.kind == "refused")
    {
        out.push(Hint {
            level: Level::Warning,
            code: "edit_refused",
            text: format!(
                "an edit ({}) was refused {}, the gate stays as it was: {}",
                plain(&refused.source),
                ago(facts.now_us, refused.at_us),
                fields(&refused.refused)
            ),
        });
    }
}

fn of_rollout(facts: &Facts<'_>, out: &mut Vec<Hint>) {
    let Some(record) = facts.rollout else { return };
    let look = format!("see `switchback rollout status {}`", facts.queue.task_type);
    let otherwise = |shown: &&Shown| record.status.is_live() && !record.agrees_with(&shown.gate);
    let (level, code, text) = match record.status {
        // Whoever drives sees that within a moment; is nobody there, it stands in the way of the next one.
        _ if facts.shown.as_ref().is_some_and(otherwise) => (
            Level::Warning,
            "rollout_overruled",
            format!(
                "the gate was set otherwise than the rollout of {} left it, and nobody has ended that yet: `switchback rollout abort {}`",
                record.to, facts.queue.task_type
            ),
        ),
        Status::Running | Status::Paused => (
            Level::Info,
            "rollout_running",
            format!(
                "the rollout of {} is {} at {} %: {look}",
                record.to,
                record.status,
                record.share()
            ),
        ),
        Status::Watching => (
            Level::Info,
            "rollout_running",
            format!("the guard watches {}, promoted by a rollout: {look}", record.to),
        ),
        Status::Held => (
            Level::Warning,
            "rollout_held",
            format!(
                "the rollout of {} is held at {} %: {}; {look}",
                record.to,
                record.share(),
                plain(&record.reason)
            ),
        ),
        // Once somebody has set the gate since, it is history.
        Status::RolledBack if facts.shown.is_none_or(|shown| shown.rev == record.rev) => (
            Level::Warning,
            "rollback_by_guard",
            format!("{} {}: {look}", ago(facts.now_us, record.at_us), plain(&record.reason)),
        ),
        Status::RolledBack | Status::Promoted | Status::Aborted | Status::Overruled => return,
    };
    out.push(Hint { level, code, text });
}

fn of_workers(facts: &Facts<'_>, out: &mut Vec<Hint>) {
    let live: Vec<&SessionInfo> = facts.sessions.iter().filter(|s| s.is_live()).collect();
    let lost = facts.sessions.len() - live.len();
    if lost > 0 {
        out.push(Hint {
            level: Level::Warning,
            code: "lost_sessions",
            text: format!(
                "{} lost: a live worker takes over what they held",
                count(lost, "session")
            ),
        });
    }
    if live.is_empty() {
        out.push(Hint {
            level: Level::Critical,
            code: "no_workers",
            text: "no live worker: nothing runs".to_owned(),
        });
        return;
    }
    let Some(shown) = facts.shown else { return };
    for version in shown.gate.reachable() {
        if !live.iter().any(|s| s.has(&version)) {
            out.push(Hint {
                level: Level::Critical,
                code: "no_worker_for_version",
                text: format!("the gate sends tasks to {version} and no live worker has it: they wait until one joins"),
            });
        }
    }
    of_breakers(facts, &live, out);
    let behind = live.iter().filter(|s| s.rev.is_none_or(|rev| rev < shown.rev)).count();
    if behind > 0 {
        out.push(Hint {
            level: Level::Warning,
            code: "unconfirmed",
            text: format!(
                "{} of {} not confirmed revision {} yet: see `switchback worker ls {}`",
                behind,
                if live.len() == 1 {
                    "1 worker has".to_owned()
                } else {
                    format!("{} workers have", live.len())
                },
                shown.rev,
                facts.queue.task_type
            ),
        });
    }
}

/// Versions that workers hold because they fail there.
fn of_breakers(facts: &Facts<'_>, live: &[&SessionInfo], out: &mut Vec<Hint>) {
    let versions: BTreeSet<&Version> = live.iter().flat_map(|s| &s.open).collect();
    for version in versions {
        let held = live.iter().filter(|s| s.open.contains(version)).count();
        let having = live.iter().filter(|s| s.has(version)).count();
        let routed = facts.shown.is_some_and(|shown| shown.gate.reaches(version));
        out.push(Hint {
            level: match (routed, held < having) {
                (false, _) => Level::Info,
                (true, true) => Level::Warning,
                (true, false) => Level::Critical,
            },
            code: "breaker_open",
            text: format!(
                "{version} fails: {held} of {} with it {} (circuit breaker open): see `switchback worker ls {}`",
                count(having, "worker"),
                if held == 1 { "holds its tasks" } else { "hold its tasks" },
                facts.queue.task_type
            ),
        });
    }
}

fn of_depth(facts: &Facts<'_>, depth: &QueueDepth, out: &mut Vec<Hint>) {
    let task_type = &facts.queue.task_type;
    if facts.shown.is_some() {
        // Made when a worker joins, so that without a group nothing is claimed; the others when somebody needs them, or by
        // a release that knows them: an empty one without is no loss.
        let ever = [("main stream", &depth.main), ("head stream", &depth.head)];
        let used = [
            ("stream of high priority", &depth.high),
            ("stream of low priority", &depth.low),
            ("suspect stream", &depth.suspect),
        ];
        let lanes = depth.lanes.iter().map(|(v, g)| (format!("lane {v}"), g));
        let used = used
            .map(|(name, group)| (name.to_owned(), group))
            .into_iter()
            .chain(lanes);
        let names = ever
            .map(|(name, group)| (name.to_owned(), group))
            .into_iter()
            .chain(used.filter(|(_, group)| group.length > 0))
            .filter(|(_, group)| !group.exists)
            .map(|(name, _)| name);
        out.extend(names.map(|name| Hint {
            level: Level::Critical,
            code: "no_group",
            text: format!(
                "NOGROUP: the {name} has lost its consumer group `workers`: its tasks are held. A person decides where to \
                 go on: XGROUP CREATE … workers 0 runs retained tasks again, $ skips what waits"
            ),
        }));
    }
    if depth.newer > 0 {
        out.push(Hint {
            level: Level::Warning,
            code: "newer_format",
            text: format!(
                "{} of a newer format than this release knows: kept aside, whole, until a worker of a release that knows it joins",
                count(depth.newer, "task")
            ),
        });
    }
    for (version, lane) in &depth.lanes {
        let waiting = lane.waiting();
        if waiting == 0 || facts.sessions.iter().any(|s| s.is_live() && s.has(version)) {
            continue;
        }
        let parked = format!("{} parked in the lane of {version}", count(waiting, "task"));
        let routed = facts.shown.is_none_or(|shown| shown.gate.reaches(version));
        let (level, text) = if routed {
            let way_out = format!("start one, or send them elsewhere: switchback gate rollback {task_type}");
            (
                Level::Critical,
                format!("{parked}: no live worker has {version}; {way_out}"),
            )
        } else {
            (
                Level::Warning,
                format!("{parked}, which is withdrawn: any live worker sweeps them back into line"),
            )
        };
        out.push(Hint {
            level,
            code: "parked",
            text,
        });
    }
    let suspects = depth.suspect.waiting() + depth.suspect.pending;
    if suspects > 0 {
        out.push(Hint {
            level: Level::Info,
            code: "suspects",
            text: format!(
                "{}: a process died while they may have run; they run a few at a time, alone after two deaths, and a \
                 death alone makes a dead letter (poison)",
                count(suspects, "suspect")
            ),
        });
    }
    if depth.dead > 0 {
        out.push(Hint {
            level: Level::Info,
            code: "dead_letters",
            text: format!("{}: switchback dead ls {task_type}", count(depth.dead, "dead letter")),
        });
    }
}

fn of_limits(facts: &Facts<'_>, depth: &QueueDepth, out: &mut Vec<Hint>) {
    let (limits, task_type) = (facts.limits, &facts.queue.task_type);
    let waiting = depth.waiting() + depth.delayed;
    if limits.waiting > 0 && waiting >= limits.waiting {
        out.push(Hint {
            level: Level::Critical,
            code: "queue_full",
            text: format!(
                "{} in line, the limit is {}: enqueueing is refused. Add workers, or raise it: switchback queue limits {task_type} --waiting N",
                count(waiting, "task"),
                limits.waiting
            ),
        });
    }
    for problem in &limits.problems {
        out.push(Hint {
            level: Level::Warning,
            code: "bad_limits",
            text: format!("{}: see `switchback queue limits {task_type}`", plain(&problem.text)),
        });
    }
    let problems = facts.policies.problems.iter().cloned();
    let problems = problems
        .chain(facts.policies.retry().err())
        .chain(rollout_of(&facts.policies.rollout).err());
    for problem in problems {
        out.push(Hint {
            level: Level::Warning,
            code: "bad_policy",
            text: format!(
                "{}: set it with `switchback config apply`, or remove it",
                plain(&problem)
            ),
        });
    }
}

/// `candidat=v2: unknown field`: what was refused of an edit, and why.
fn fields(json: &str) -> String {
    let Ok(fields) = serde_json::from_str::<BTreeMap<String, String>>(json) else {
        return plain(json);
    };
    let words: Vec<String> = fields
        .iter()
        .map(|(k, v)| format!("{}={}", plain(k), plain(v)))
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use switchback_common::store::inspect::GroupInfo;

    use super::*;

    #[test]
    fn an_idle_queue_that_never_had_a_worker_says_so() {
        let queue = Queue::new("shop".parse().unwrap(), "mail".parse().unwrap());
        let facts = Facts {
            queue: &queue,
            shown: None,
            sessions: &[],
            depth: None,
            limits: &Limits::default(),
            policies: &Policies::default(),
            rollout: None,
            history: &[],
            now_us: 0,
        };
        let codes: Vec<_> = hints(&facts).into_iter().map(|h| h.code).collect();
        assert_eq!(codes, ["no_gate", "no_workers"]);
    }

    /// Whoever scripts against the codes finds all of them in the help.
    #[test]
    fn the_help_names_every_code() {
        use clap::CommandFactory as _;
        let mut command = crate::args::Cli::command();
        let queue = command.find_subcommand_mut("queue").unwrap();
        let help = queue
            .find_subcommand_mut("show")
            .unwrap()
            .render_long_help()
            .to_string();
        let product = include_str!("hints.rs").split("#[cfg(test)]").next().unwrap();
        let is_code = |word: &&str| {
            word.contains('_') && *word != "snake_case" && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        };
        let missing: Vec<&str> = product
            .split('"')
            .filter(is_code)
            .filter(|code| !help.contains(code))
            .collect();
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn every_stream_that_lost_its_group_is_named() {
        let queue = Queue::new("shop".parse().unwrap(), "mail".parse().unwrap());
        let shown = Shown {
            rev: 1,
            gate: switchback_gates::Gate::new("v1".parse().unwrap()),
        };
        let there = GroupInfo {
            exists: true,
            ..GroupInfo::default()
        };
        let lost = GroupInfo {
            length: 1,
            ..GroupInfo::default()
        };
        let named = |depth: &QueueDepth| -> Vec<String> {
            let facts = Facts {
                queue: &queue,
                shown: Some(&shown),
                sessions: &[],
                depth: Some(depth),
                limits: &Limits::default(),
                policies: &Policies::default(),
                rollout: None,
                history: &[],
                now_us: 0,
            };
            let found = hints(&facts).into_iter().filter(|hint| hint.code == "no_group");
            found.map(|hint| hint.text).collect()
        };
        let all = QueueDepth {
            main: there,
            head: there,
            ..QueueDepth::default()
        };
        assert_eq!(named(&all), [""; 0], "what was never used needs none");
        type Pick = fn(&mut QueueDepth) -> &mut GroupInfo;
        let streams: [(&str, Pick); 5] = [
            ("main stream", |depth| &mut depth.main),
            ("head stream", |depth| &mut depth.head),
            ("stream of high priority", |depth| &mut depth.high),
            ("stream of low priority", |depth| &mut depth.low),
            ("suspect stream", |depth| &mut depth.suspect),
        ];
        for (name, pick) in streams {
            let mut depth = all.clone();
            *pick(&mut depth) = lost;
            let found = named(&depth);
            assert!(found.len() == 1 && found[0].contains(name), "{name}: {found:?}");
        }
    }
}
