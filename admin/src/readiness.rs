//! Is a version ready for what a gate is about to send there? What is asked before every flip; the judgement is
//! `switchback_gates::readiness`.

use std::time::Duration;

use serde::Serialize;
use switchback_common::{
    Queue, Version,
    clock::Moment,
    store::{
        inspect, limits,
        probe::{self, Asked, Unreadable},
        versions::{self, VersionRecord},
    },
};
use switchback_gates::{
    Gate, Share,
    admin::operation_id,
    readiness::{self, Answer, Capacity, Facts, Level, Load, MINUTES, Objection, Sample, Shortage, UnreadableTask},
};

use crate::{context::Context, exit::Failure, text::plain};

/// How long a flip that can wait listens for the answer of a worker.
pub(crate) const LISTEN: Duration = probe::LISTENS;
/// How long a rollback does, which has happened already.
const LISTEN_AFTER: Duration = Duration::from_millis(500);

/// What is known of a version's readiness, as `gate check` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Readiness {
    pub(crate) queue: String,
    pub(crate) version: Version,
    /// The share of the tasks that it was judged for, in percent.
    pub(crate) percent: f64,
    pub(crate) ready: bool,
    pub(crate) objections: Vec<Objection>,
    pub(crate) capacity: CapacityView,
    pub(crate) sample: Sample,
    pub(crate) backlog: Backlog,
}

#[derive(Debug, Serialize)]
pub(crate) struct CapacityView {
    pub(crate) sessions: usize,
    pub(crate) held: usize,
    pub(crate) slots: u64,
    pub(crate) needed: Option<f64>,
    pub(crate) rate_per_sec: f64,
    pub(crate) mean_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Backlog {
    pub(crate) waiting: u64,
    pub(crate) drain_secs: Option<u64>,
}

/// What speaks against giving `version` a share (0 to 1) of the tasks of `queue`. Takes up to 3 s if no worker answers.
///
/// # Errors
/// When Redis does not answer.
pub(crate) async fn objections(
    context: &Context,
    queue: &Queue,
    version: &Version,
    share: f64,
) -> Result<Vec<Objection>, Failure> {
    Ok(look(context, queue, version, share, LISTEN).await?.objections)
}

/// Looks at everything, and asks the workers of `version` whether they can read what waits.
pub(crate) async fn look(
    context: &Context,
    queue: &Queue,
    version: &Version,
    share: f64,
    listen: Duration,
) -> Result<Readiness, Failure> {
    let store = &context.store;
    let records = versions::records(store, queue).await?;
    let capacity = capacity(context, queue, version).await?;
    let now = context.now_us().await?;
    let counters = versions::counters(store, queue, now, MINUTES + 1).await?;
    let answer = match capacity.sessions {
        0 => Answer::NotAsked,
        _ => ask(context, queue, version, records.keys(), listen).await?,
    };
    let facts = Facts {
        queue,
        version,
        share,
        record: records.get(version),
        capacity,
        load: Load::of(&counters, version, now),
        waiting: inspect::depth(store, queue).await?.waiting(),
        answer: &answer,
    };
    let objections = readiness::objections(&facts);
    Ok(Readiness {
        queue: queue.to_string(),
        version: version.clone(),
        percent: share * 100.0,
        ready: readiness::is_ready(&objections),
        capacity: CapacityView {
            sessions: capacity.sessions,
            held: capacity.held,
            slots: capacity.slots,
            needed: readiness::needed_slots(facts.load, share),
            rate_per_sec: facts.load.rate_per_sec,
            mean_ms: facts.load.mean_secs.map(|secs| secs * 1_000.0),
        },
        backlog: Backlog {
            waiting: facts.waiting,
            drain_secs: readiness::drain_secs(&facts),
        },
        objections,
        sample: match answer {
            Answer::Sample(sample) => sample,
            Answer::NotAsked | Answer::None(_) => Sample::default(),
        },
    })
}

async fn capacity(context: &Context, queue: &Queue, version: &Version) -> Result<Capacity, Failure> {
    let live = context.gates.live_sessions(queue).await?;
    let limit = limits::read(&context.store, queue).await?.throttle.concurrency;
    Ok(Capacity::of(&live, version, limit))
}

/// Of these shares, in their order, the first that the live workers of `version` would not carry.
pub(crate) async fn shortage(
    context: &Context,
    queue: &Queue,
    version: &Version,
    shares: impl IntoIterator<Item = Share>,
) -> Result<Option<(usize, Shortage)>, Failure> {
    let capacity = capacity(context, queue, version).await?;
    let now = context.now_us().await?;
    let counters = versions::counters(&context.store, queue, now, MINUTES + 1).await?;
    let load = Load::of(&counters, version, now);
    let short = |(n, share)| Some((n, Shortage::of(version, share, load, capacity)?));
    Ok(shares.into_iter().enumerate().find_map(short))
}

async fn ask(
    context: &Context,
    queue: &Queue,
    version: &Version,
    known: impl Iterator<Item = &Version> + Clone,
    listen: Duration,
) -> Result<Answer, Failure> {
    let (store, id, began) = (&context.store, operation_id(), Moment::now());
    let mut pause = Duration::from_millis(2);
    let mut asked = None;
    loop {
        match &asked {
            None => match probe::ask(store, queue, &id, version, known.clone().cloned()).await? {
                Asked::Yes { tasks, left_out } => asked = Some((tasks, left_out)),
                Asked::Nothing { left_out: 0 } => return Ok(Answer::NotAsked),
                Asked::Nothing { left_out } => {
                    return Ok(Answer::None(format!(
                        "the {left_out} tasks that were looked at are too large to ask about"
                    )));
                }
                Asked::Busy => {}
            },
            Some((tasks, left_out)) => {
                if let Some(answer) = probe::answer_to(store, queue, &id).await? {
                    return Ok(Answer::Sample(sample(tasks, *left_out, &answer.unreadable)));
                }
            }
        }
        if began.elapsed() >= listen {
            return Ok(Answer::None(match asked {
                None => "somebody else is asking workers of this queue; repeat it".to_owned(),
                Some(_) => {
                    format!(
                        "none of its live workers answered within {listen:?} (workers of an older release never do)"
                    )
                }
            }));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(50));
    }
}

fn sample(tasks: &[(String, String)], left_out: u64, unreadable: &[Unreadable]) -> Sample {
    let unreadable: Vec<UnreadableTask> = unreadable
        .iter()
        .filter_map(|one| {
            let (id, place) = tasks.get(one.at)?;
            Some(UnreadableTask {
                id: plain(id),
                place: place.clone(),
                error: plain(&one.error),
                malformed: one.malformed,
            })
        })
        .collect();
    Sample {
        looked_at: tasks.len(),
        readable: tasks.len() - unreadable.len().min(tasks.len()),
        unreadable,
        left_out,
    }
}

/// What speaks against a change of the gate: for every version whose share it grows.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// What keeps it from being made.
    pub(crate) blocks: Vec<String>,
    /// What is only said.
    pub(crate) warns: Vec<String>,
}

impl Verdict {
    fn add(&mut self, objection: &Objection) {
        // Reasons and errors in it were written by others.
        let text = plain(&objection.text);
        match objection.level {
            Level::Blocks => self.blocks.push(text),
            Level::Warns => self.warns.push(text),
        }
    }
}

/// The versions that `after` gives more of the tasks than `before`.
pub(crate) fn grown(before: Option<&Gate>, after: &Gate) -> Vec<Version> {
    let grows = |version: &Version| match before {
        None => true,
        Some(before) => {
            !before.reaches(version)
                || (before.active != *version && after.active == *version)
                || (after.candidate.as_ref() == Some(version) && after.percent > before.percent)
        }
    };
    after.reachable().into_iter().filter(grows).collect()
}

/// Judges a change before it is made.
pub(crate) async fn judge(
    context: &Context,
    queue: &Queue,
    before: Option<&Gate>,
    after: &Gate,
) -> Result<Verdict, Failure> {
    let mut verdict = Verdict::default();
    for version in grown(before, after) {
        let share = readiness::share(after, &version);
        let found = look(context, queue, &version, share, LISTEN).await?;
        found.objections.iter().for_each(|objection| verdict.add(objection));
    }
    Ok(verdict)
}

/// What speaks against a rollback that has been made: said, and nothing more. That nobody has the version was said before.
pub(crate) async fn after_rollback(context: &Context, queue: &Queue, target: &Version) -> Vec<String> {
    match look(context, queue, target, 1.0, LISTEN_AFTER).await {
        Ok(found) => {
            let said = found.objections.into_iter().filter(|o| o.code != "no_worker");
            said.map(|objection| plain(&objection.text)).collect()
        }
        Err(failure) => vec![format!("cannot tell whether {target} is ready: {failure}")],
    }
}

/// What is known of `version`, for whoever must name its record.
pub(crate) async fn record(context: &Context, queue: &Queue, version: &Version) -> Result<VersionRecord, Failure> {
    match versions::record(&context.store, queue, version).await? {
        Some(record) => Ok(record),
        None => {
            context.require(queue).await?;
            let known = context.gates.known_versions(queue).await?;
            let known: Vec<&str> = known.iter().map(Version::as_str).collect();
            Err(Failure::NotFound(format!(
                "no worker of {queue} ever joined with {version}; known: {}",
                known.join(", ")
            )))
        }
    }
}
