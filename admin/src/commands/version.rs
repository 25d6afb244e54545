//! `version ls | retire | restore`.

use std::collections::BTreeMap;

use serde::Serialize;
use switchback_common::{
    Queue, Version,
    store::{
        inspect,
        versions::{self, Restoring, RetireRequest, Retiring, VersionRecord},
    },
};
use switchback_gates::{Gate, readiness::share};

use crate::{
    args::{VersionChange, VersionVerb},
    change::signature,
    context::Context,
    exit::Failure,
    output::{Output, table, tell, warn},
    readiness,
    text::{ago, brief, count, rfc3339},
    view::{self, VersionView, whereabouts},
};

const MINUTES: u64 = 60;

pub(crate) async fn run(context: &Context, out: &mut Output, verb: VersionVerb) -> Result<(), Failure> {
    match verb {
        VersionVerb::Ls { task_type } => ls(context, out, &context.queue(task_type)).await,
        VersionVerb::Retire {
            task_type,
            version,
            force,
            if_rev,
            options,
        } => {
            let mut request = request(&options);
            (request.force, request.if_rev) = (force, if_rev);
            retire(context, out, &context.queue(task_type), version, request).await
        }
        VersionVerb::Restore {
            task_type,
            version,
            options,
        } => restore(context, out, &context.queue(task_type), version, request(&options)).await,
    }
}

fn request(options: &VersionChange) -> RetireRequest {
    let (by, why) = signature(options.by.as_deref(), options.why.as_deref());
    RetireRequest {
        by,
        why,
        dry_run: options.dry_run,
        ..RetireRequest::default()
    }
}

/// One version.
#[derive(Debug, Serialize)]
struct Row {
    queue: String,
    version: Version,
    builds: Vec<String>,
    refused_builds: Vec<String>,
    first_seen_at: Option<String>,
    first_seen_at_us: u64,
    routed: bool,
    routes: Vec<&'static str>,
    percent: f64,
    live_workers: usize,
    running: u64,
    lane_waiting: Option<u64>,
    last_hour: Ended,
    retired: Option<RetiredView>,
    rolled_back: Option<RolledBackView>,
    #[serde(skip)]
    share: String,
}

/// Attempts by how they ended.
#[derive(Debug, Default, Clone, Serialize)]
struct Ended {
    done: u64,
    retried: u64,
    dead: u64,
}

#[derive(Debug, Serialize)]
struct RetiredView {
    at: Option<String>,
    at_us: u64,
    by: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct RolledBackView {
    at: Option<String>,
    at_us: u64,
    rev: u64,
    why: String,
    build: Option<String>,
    /// Whether it has been built again since, and may be tried.
    #[serde(skip)]
    is_over: bool,
}

async fn ls(context: &Context, out: &mut Output, queue: &Queue) -> Result<(), Failure> {
    let store = &context.store;
    let gate = context.gate(queue).await?.map(|shown| shown.gate);
    let records = versions::records(store, queue).await?;
    let known: Vec<Version> = records.keys().cloned().collect();
    let live = context.gates.live_sessions(queue).await?;
    let now = context.now_us().await?;
    let lanes: BTreeMap<_, _> = inspect::depth(store, queue).await?.lanes.into_iter().collect();
    let hour = last_hour(&versions::counters(store, queue, now, MINUTES).await?);
    let rows: Vec<Row> = view::versions(&known, gate.as_ref(), &live)
        .into_iter()
        .map(|seen| {
            let record = records.get(&seen.version).cloned().unwrap_or_default();
            let mut row = Row::of(queue, gate.as_ref(), seen, record);
            row.lane_waiting = match lanes.get(&row.version) {
                Some(lane) if lane.exists => lane.lag,
                _ => Some(0),
            };
            row.last_hour = hour.get(row.version.as_str()).cloned().unwrap_or_default();
            row
        })
        .collect();
    if rows.is_empty() && out.is_table() {
        tell(format_args!("{queue} has no versions: no worker has joined it yet"));
    }
    out.list(&rows, |_| {
        if rows.is_empty() {
            return String::new();
        }
        let header = [
            "VERSION",
            "SHARE",
            "WORKERS",
            "RUNNING",
            "LANE",
            "DONE/H",
            "FAILED/H",
            "BUILD",
            "FIRST SEEN",
            "STATE",
        ];
        let right = ["WORKERS", "RUNNING", "LANE", "DONE/H", "FAILED/H"];
        table(&header, &right, rows.iter().map(|row| row.cells(now)))
    })
}

/// `<version>:<what>` summed up.
fn last_hour(minutes: &[(u64, versions::Counters)]) -> BTreeMap<String, Ended> {
    let mut out = BTreeMap::<String, Ended>::new();
    for (name, n) in minutes.iter().flat_map(|(_, counters)| counters) {
        let Some((version, what)) = name.split_once(':') else {
            continue;
        };
        if !matches!(what, "done" | "retried" | "dead") {
            continue; // what sorted by duration, or ended without a failure
        }
        let ended = out.entry(version.to_owned()).or_default();
        *match what {
            "done" => &mut ended.done,
            "retried" => &mut ended.retried,
            _ => &mut ended.dead,
        } += n;
    }
    out
}

impl Row {
    fn of(queue: &Queue, gate: Option<&Gate>, seen: VersionView, record: VersionRecord) -> Self {
        let version = &seen.version;
        let named = |gate: &Gate| {
            let is_candidate = gate.candidate.as_ref() == Some(version);
            let to = |pairs: &BTreeMap<String, Version>| pairs.values().any(|to| to == version);
            let routes = [
                ("active", gate.active == *version),
                ("candidate", is_candidate),
                ("pins", to(&gate.pins)),
                ("targets", to(&gate.targets)),
            ];
            routes.into_iter().filter_map(|(name, is)| is.then_some(name)).collect()
        };
        let is_over = record.rolled_back_as_it_is().is_none();
        Self {
            queue: queue.to_string(),
            builds: record.builds,
            refused_builds: record.refused,
            first_seen_at: Some(record.first_seen_us).filter(|at| *at > 0).and_then(rfc3339),
            first_seen_at_us: record.first_seen_us,
            routed: seen.routed,
            routes: gate.map(named).unwrap_or_default(),
            percent: gate.map_or(0.0, |gate| share(gate, version) * 100.0),
            live_workers: seen.live_workers,
            running: seen.running,
            lane_waiting: None,
            last_hour: Ended::default(),
            retired: record.retired.map(|retired| RetiredView {
                at: rfc3339(retired.at_us),
                at_us: retired.at_us,
                by: retired.by,
                why: retired.why,
            }),
            rolled_back: record.rolled_back.map(|back| RolledBackView {
                at: rfc3339(back.at_us),
                at_us: back.at_us,
                rev: back.rev,
                why: back.why,
                build: back.build,
                is_over,
            }),
            share: seen.share,
            version: seen.version,
        }
    }

    fn state(&self, now: u64) -> String {
        let mut words = Vec::new();
        if let Some(retired) = &self.retired {
            words.push(format!("retired {}", ago(now, retired.at_us)));
        }
        if let Some(back) = &self.rolled_back {
            let build = match &back.build {
                Some(build) if back.is_over => format!(" as build {}", brief(build, 24)),
                _ => String::new(),
            };
            words.push(format!(
                "rolled back{build} {} (revision {})",
                ago(now, back.at_us),
                back.rev
            ));
        }
        if let Some(build) = self.refused_builds.last() {
            words.push(format!("build {} refused", brief(build, 24)));
        }
        words.join(", ")
    }

    fn cells(&self, now: u64) -> Vec<String> {
        let builds = self.builds.last().map_or_else(|| "-".to_owned(), |b| brief(b, 24));
        let more = self.builds.len().saturating_sub(1);
        let failed = self.last_hour.retried + self.last_hour.dead;
        vec![
            self.version.to_string(),
            self.share.clone(),
            self.live_workers.to_string(),
            self.running.to_string(),
            self.lane_waiting.map_or_else(|| "?".to_owned(), |n| n.to_string()),
            self.last_hour.done.to_string(),
            failed.to_string(),
            if more > 0 { format!("{builds} +{more}") } else { builds },
            match self.first_seen_at_us {
                0 => "-".to_owned(),
                at => ago(now, at),
            },
            self.state(now),
        ]
    }
}

/// What became of a version.
#[derive(Debug, Serialize)]
struct Done {
    queue: String,
    version: Version,
    changed: bool,
    dry_run: bool,
    retired: bool,
    warnings: Vec<String>,
}

async fn retire(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    version: Version,
    request: RetireRequest,
) -> Result<(), Failure> {
    let task_type = &queue.task_type;
    let live = context.gates.live_sessions(queue).await?;
    let having: Vec<String> = live.iter().filter(|s| s.has(&version)).map(whereabouts).collect();
    let mut warnings = Vec::new();
    if let Some(first) = having.first() {
        let text = format!(
            "{} of {queue} still {} {version}, such as {first}",
            count(having.len(), "live worker"),
            if having.len() == 1 { "has" } else { "have" }
        );
        if !request.force {
            // Who is told of it all at once need not come back for the next reason.
            readiness::record(context, queue, &version).await?;
            return Err(Failure::Refused(format!(
                "{text}: stop them first, or repeat with --force; nothing was changed"
            )));
        }
        warn(&text);
        warnings.push(text);
    }
    let (changed, at_us) = match versions::retire(&context.store, queue, &version, &request).await? {
        Retiring::Retired { at_us } => (!request.dry_run, at_us),
        Retiring::Already { at_us } => (false, at_us),
        Retiring::Unknown => return readiness::record(context, queue, &version).await.map(drop),
        Retiring::Routed { by } => {
            return Err(Failure::Refused(format!(
                "the gate of {queue} names {version} ({by}): flip it first (switchback gate show {task_type}); nothing was changed"
            )));
        }
        Retiring::Rollout { status } => {
            return Err(Failure::Refused(format!(
                "a rollout of {queue} that is {status} comes from {version} or goes to it: let it end, or end it \
                 (switchback rollout abort {task_type}); nothing was changed"
            )));
        }
        Retiring::Waiting => {
            return Err(Failure::Refused(format!(
                "the lane of {version} in {queue} holds tasks: they pass the gate again within seconds while a worker lives; \
                 repeat it then, or with --force; nothing was changed"
            )));
        }
        Retiring::Moved { rev } => {
            return Err(Failure::Refused(format!(
                "the gate of {queue} is at revision {rev}, not {}; nothing was changed",
                request.if_rev.unwrap_or_default()
            )));
        }
        Retiring::Unsealed => {
            context.require(queue).await?;
            return Err(Failure::Gate(switchback_gates::GateError::NoGate(queue.clone())));
        }
    };
    let now = context.now_us().await.unwrap_or(at_us);
    let done = Done {
        queue: queue.to_string(),
        version,
        changed,
        dry_run: request.dry_run,
        retired: true,
        warnings,
    };
    out.value(&done, |_| match (done.changed, done.dry_run) {
        (true, _) => format!("{} of {task_type} is retired: no gate can name it", done.version),
        (false, true) => format!(
            "{} of {task_type} would be retired · dry run, nothing was changed",
            done.version
        ),
        (false, false) => format!(
            "{} of {task_type} is retired since {} (it was so already)",
            done.version,
            ago(now, at_us)
        ),
    })
}

async fn restore(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    version: Version,
    request: RetireRequest,
) -> Result<(), Failure> {
    let task_type = &queue.task_type;
    let restored = match versions::restore(&context.store, queue, &version, &request).await? {
        Restoring::Restored => true,
        Restoring::Same => false,
        Restoring::Unknown => return readiness::record(context, queue, &version).await.map(drop),
    };
    let done = Done {
        queue: queue.to_string(),
        version,
        changed: restored && !request.dry_run,
        dry_run: request.dry_run,
        retired: false,
        warnings: Vec::new(),
    };
    out.value(&done, |_| match (restored, done.dry_run) {
        (true, false) => format!("{} of {task_type} is back: gates can name it again", done.version),
        (true, true) => format!(
            "{} of {task_type} would be back · dry run, nothing was changed",
            done.version
        ),
        (false, _) => format!("{} of {task_type} is not retired (it was so already)", done.version),
    })
}
