//! `schedule ls | show | set | pause | resume | rm | next`.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::value::RawValue;
use switchback_common::{
    Queue,
    schedule::{Missed, Schedule, ScheduleName, Source, Timetable},
    store::{
        enqueue::EnqueueStore,
        inspect,
        schedule::{Change, Found, ScheduleStore, Written, json},
        session::{SessionInfo, SessionStore},
    },
};

use crate::{
    args::{PayloadSource, Remark, ScheduleVerb},
    change::signature,
    commands::task::read_payload,
    context::Context,
    exit::Failure,
    output::{Output, sheet, table, tell, warn},
    text::{ago, brief, lossless, plain, rfc3339},
};

/// Times a change is judged anew because somebody else changed the schedule in between.
const TRIES: usize = 5;
/// Ticks shown after a change.
const NEXT_SHOWN: usize = 3;

pub(crate) async fn run(context: &Context, out: &mut Output, verb: ScheduleVerb) -> Result<(), Failure> {
    match verb {
        ScheduleVerb::Ls { task_type } => ls(context, out, task_type.map(|t| context.queue(t))).await,
        ScheduleVerb::Show { task_type, name } => show(context, out, &context.queue(task_type), &name).await,
        ScheduleVerb::Next { task_type, name, count } => {
            next(context, out, &context.queue(task_type), &name, count.into()).await
        }
        ScheduleVerb::Set {
            task_type,
            name,
            cron,
            time_zone,
            payload,
            file,
            key,
            missed,
            remark,
        } => {
            let wish = Wish {
                cron,
                time_zone,
                payload: payload_of(payload, file)?,
                key,
                missed: missed.map(Into::into),
            };
            change(
                context,
                out,
                &context.queue(task_type),
                &name,
                &Wanted::Set(wish),
                &remark,
            )
            .await
        }
        ScheduleVerb::Pause {
            task_type,
            name,
            remark,
        } => {
            change(
                context,
                out,
                &context.queue(task_type),
                &name,
                &Wanted::Paused(true),
                &remark,
            )
            .await
        }
        ScheduleVerb::Resume {
            task_type,
            name,
            remark,
        } => {
            change(
                context,
                out,
                &context.queue(task_type),
                &name,
                &Wanted::Paused(false),
                &remark,
            )
            .await
        }
        ScheduleVerb::Rm {
            task_type,
            name,
            remark,
        } => change(context, out, &context.queue(task_type), &name, &Wanted::Gone, &remark).await,
    }
}

/// One tick.
#[derive(Debug, Serialize)]
struct Tick {
    at: Option<String>,
    at_us: u64,
    local: String,
}

impl Tick {
    fn of(timetable: &Timetable, tick_ms: u64) -> Self {
        let at_us = tick_ms.saturating_mul(1_000);
        Self {
            at: rfc3339(at_us),
            at_us,
            local: timetable.local(tick_ms),
        }
    }
}

fn ticks(timetable: &Timetable, after_ms: u64, count: usize) -> Vec<Tick> {
    let mut last = after_ms;
    let ticks = std::iter::from_fn(|| {
        last = timetable.next_after(last)?;
        Some(Tick::of(timetable, last))
    });
    ticks.take(count).collect()
}

/// One schedule.
#[derive(Debug, Default, Serialize)]
struct ScheduleView {
    queue: String,
    name: String,
    cron: String,
    time_zone: String,
    missed: Missed,
    paused: bool,
    source: Source,
    key: Option<String>,
    by: String,
    why: String,
    payload: String,
    counted_from: Option<String>,
    counted_from_us: Option<u64>,
    next: Option<Tick>,
    broken: Option<String>,
}

impl ScheduleView {
    fn of(queue: &Queue, found: &Found, now_ms: u64) -> Self {
        let counted_from_us = found.counted_from(now_ms).map(|ms| ms.saturating_mul(1_000));
        let view = match found.parse() {
            Ok((_, schedule, timetable)) => Self::sound(queue, &found.name, &schedule, &timetable, now_ms),
            Err(error) => Self {
                queue: queue.to_string(),
                name: found.name.clone(),
                payload: lossless(&found.json).0,
                broken: Some(error.to_string()),
                ..Self::default()
            },
        };
        Self {
            counted_from: counted_from_us.and_then(rfc3339),
            counted_from_us,
            ..view
        }
    }

    fn sound(queue: &Queue, name: &str, schedule: &Schedule, timetable: &Timetable, now_ms: u64) -> Self {
        let next = timetable.next_after(now_ms).filter(|_| !schedule.paused);
        Self {
            queue: queue.to_string(),
            name: name.to_owned(),
            cron: schedule.cron.clone(),
            time_zone: schedule.time_zone.clone(),
            missed: schedule.missed,
            paused: schedule.paused,
            source: schedule.source,
            key: schedule.key.clone(),
            by: schedule.by.clone(),
            why: schedule.why.clone(),
            payload: schedule.payload.get().to_owned(),
            next: next.map(|tick| Tick::of(timetable, tick)),
            ..Self::default()
        }
    }

    fn next_words(&self) -> String {
        match (&self.broken, &self.next) {
            (Some(_), _) => "BROKEN".to_owned(),
            (None, Some(next)) => next.local.clone(),
            (None, None) if self.paused => "paused".to_owned(),
            (None, None) => "never".to_owned(),
        }
    }

    /// The definition in a few words.
    fn words(&self) -> String {
        let paused = if self.paused { ", paused" } else { "" };
        format!(
            "{} {}, missed {}{paused}",
            self.cron,
            self.time_zone,
            self.missed.as_str()
        )
    }
}

fn source_word(source: Source) -> &'static str {
    match source {
        Source::Code => "code",
        Source::Cli => "cli",
    }
}

async fn ls(context: &Context, out: &mut Output, queue: Option<Queue>) -> Result<(), Failure> {
    let queues = match queue {
        Some(queue) => {
            require(context, &queue).await?;
            vec![queue]
        }
        None => inspect::queues(&context.store, &context.namespace).await?,
    };
    let mut views = Vec::new();
    for queue in &queues {
        let listing = ScheduleStore::new(&context.store, queue).list().await?;
        let of = |found: &Found| (queue, ScheduleView::of(queue, found, listing.now_ms));
        views.extend(listing.schedules.iter().map(of));
    }
    if views.is_empty() && out.is_table() {
        tell("no schedules; make one: switchback schedule set TYPE NAME --cron EXPRESSION --payload JSON");
    }
    let now = context.now_us().await?;
    let lines: Vec<Vec<String>> = views
        .iter()
        .map(|(queue, view)| {
            vec![
                queue.task_type.to_string(),
                brief(&view.name, 40),
                plain(&view.cron),
                plain(&view.time_zone),
                view.missed.as_str().to_owned(),
                source_word(view.source).to_owned(),
                view.counted_from_us.map_or_else(|| "-".to_owned(), |at| ago(now, at)),
                view.next_words(),
            ]
        })
        .collect();
    let views: Vec<ScheduleView> = views.into_iter().map(|(_, view)| view).collect();
    out.list(&views, |_| {
        if lines.is_empty() {
            return String::new();
        }
        let header = ["TYPE", "NAME", "CRON", "ZONE", "MISSED", "SOURCE", "LAST", "NEXT"];
        table(&header, &[], lines)
    })
}

async fn show(context: &Context, out: &mut Output, queue: &Queue, name: &ScheduleName) -> Result<(), Failure> {
    let (found, now_ms) = find(context, queue, name).await?;
    let view = ScheduleView::of(queue, &found, now_ms);
    out.value(&view, |_| {
        let last = view.counted_from_us.map(|at| ago(now_ms.saturating_mul(1_000), at));
        sheet(&[
            ("SCHEDULE", format!("{queue} {name}")),
            ("BROKEN", view.broken.as_deref().map(plain).unwrap_or_default()),
            ("CRON", plain(&view.cron)),
            ("ZONE", plain(&view.time_zone)),
            ("NEXT", view.next_words()),
            ("LAST", last.unwrap_or_default()),
            ("MISSED", view.missed.as_str().to_owned()),
            ("KEY", view.key.as_deref().map(plain).unwrap_or_default()),
            ("SOURCE", source_word(view.source).to_owned()),
            ("BY", plain(&view.by)),
            ("WHY", plain(&view.why)),
            ("PAYLOAD", plain(&view.payload)),
        ])
    })
}

async fn next(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    name: &ScheduleName,
    count: usize,
) -> Result<(), Failure> {
    let (found, now_ms) = find(context, queue, name).await?;
    let (_, schedule, timetable) = found
        .parse()
        .map_err(|e| Failure::Refused(format!("schedule {name} of {queue} is broken and fires nothing: {e}")))?;
    if schedule.paused {
        tell(format_args!(
            "{name} is paused: none of these fires until `switchback schedule resume`"
        ));
    }
    let ticks = ticks(&timetable, now_ms, count);
    out.list(&ticks, |_| {
        let lines: Vec<&str> = ticks.iter().map(|tick| tick.local.as_str()).collect();
        lines.join("\n")
    })
}

/// A schedule, and Redis's clock.
async fn find(context: &Context, queue: &Queue, name: &ScheduleName) -> Result<(Found, u64), Failure> {
    let mut listing = ScheduleStore::new(&context.store, queue).list().await?;
    let at = listing.schedules.iter().position(|found| found.name == name.as_str());
    match at {
        Some(at) => Ok((listing.schedules.swap_remove(at), listing.now_ms)),
        None => Err(missing(context, queue, name, &listing.schedules).await),
    }
}

async fn missing(context: &Context, queue: &Queue, name: &ScheduleName, there: &[Found]) -> Failure {
    if there.is_empty()
        && let Err(failure) = context.require(queue).await
    {
        return failure;
    }
    let names: Vec<String> = there.iter().map(|found| brief(&found.name, 40)).collect();
    let there = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    Failure::NotFound(format!("no schedule {name} in {queue}; there are: {there}"))
}

/// A queue may have schedules and nothing else yet.
async fn require(context: &Context, queue: &Queue) -> Result<(), Failure> {
    let listing = ScheduleStore::new(&context.store, queue).list().await?;
    if listing.schedules.is_empty() {
        context.require(queue).await?;
    }
    Ok(())
}

/// What `set` was given.
#[derive(Debug)]
struct Wish {
    cron: Option<String>,
    time_zone: Option<String>,
    payload: Option<Box<RawValue>>,
    key: Option<String>,
    missed: Option<Missed>,
}

fn payload_of(payload: Option<String>, file: Option<PathBuf>) -> Result<Option<Box<RawValue>>, Failure> {
    if payload.is_none() && file.is_none() {
        return Ok(None);
    }
    let text = read_payload(PayloadSource {
        payload,
        file,
        stdin: None,
    })?;
    let json = RawValue::from_string(text.trim().to_owned());
    json.map(Some)
        .map_err(|e| Failure::Usage(format!("the payload is not JSON: {e}")))
}

/// What a schedule is to become.
#[derive(Debug)]
enum Wanted {
    Set(Wish),
    Paused(bool),
    Gone,
}

/// The outcome of a change.
#[derive(Debug, Serialize)]
struct ChangeView {
    queue: String,
    name: String,
    changed: bool,
    dry_run: bool,
    before: Option<ScheduleView>,
    after: Option<ScheduleView>,
    warnings: Vec<String>,
    next: Vec<Tick>,
}

async fn change(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    name: &ScheduleName,
    wanted: &Wanted,
    remark: &Remark,
) -> Result<(), Failure> {
    let store = ScheduleStore::new(&context.store, queue);
    let (by, why) = signature(remark.by.as_deref(), remark.why.as_deref());
    for _ in 0..TRIES {
        let listing = store.list().await?;
        let found = listing.schedules.iter().find(|found| found.name == name.as_str());
        let sound = found
            .and_then(|found| found.parse().ok())
            .map(|(_, schedule, _)| schedule);
        if found.is_none() && !matches!(wanted, Wanted::Set(_)) {
            return Err(missing(context, queue, name, &listing.schedules).await);
        }
        let after = become_of(queue, name, sound.as_ref(), wanted)?;
        let timetable = match &after {
            Some(after) => Some(after.check().map_err(|e| refused(queue, name, &e))?),
            None => None,
        };
        // By whom and why is no change of its own.
        let changed = match (&sound, &after) {
            (Some(before), Some(after)) => json(before) != json(after),
            _ => true,
        };
        let after = after.map(|mut after| {
            (after.by, after.why) = (by.clone(), why.clone());
            after
        });
        let view = |schedule: &Schedule, timetable: &Timetable| {
            ScheduleView::sound(queue, name.as_str(), schedule, timetable, listing.now_ms)
        };
        let after_view = after.as_ref().zip(timetable.as_ref()).map(|(s, t)| view(s, t));
        if changed && !remark.dry_run {
            let words = after_view
                .as_ref()
                .map_or_else(|| "removed".to_owned(), ScheduleView::words);
            let because = if why.is_empty() {
                String::new()
            } else {
                format!(": {why}")
            };
            let written = store
                .write(&Change {
                    name,
                    before: found,
                    after: after.as_ref(),
                    session: None,
                    text: &format!("{name}: {words} by {by}{because}"),
                })
                .await?;
            match written {
                Written::Yes => {}
                Written::Moved => continue,
                Written::Full => {
                    return Err(Failure::Refused(format!(
                        "{queue} has too many schedules already; remove one first with `switchback schedule rm`"
                    )));
                }
            }
            EnqueueStore::new(&context.store, queue).announce().await?;
        }
        let running = after.as_ref().filter(|after| !after.paused).and(timetable.as_ref());
        let report = ChangeView {
            queue: queue.to_string(),
            name: name.to_string(),
            changed: changed && !remark.dry_run,
            dry_run: remark.dry_run,
            warnings: warnings(context, queue, sound.as_ref(), after.as_ref()).await,
            next: running.map_or_else(Vec::new, |timetable| ticks(timetable, listing.now_ms, NEXT_SHOWN)),
            before: found.map(|found| ScheduleView::of(queue, found, listing.now_ms)),
            after: after_view,
        };
        report.warnings.iter().for_each(warn);
        return out.value(&report, |_| line(&report, changed));
    }
    Err(Failure::Refused(format!(
        "schedule {name} of {queue} keeps changing; nothing was changed"
    )))
}

fn refused(queue: &Queue, name: &ScheduleName, problem: &impl std::fmt::Display) -> Failure {
    Failure::Refused(format!("schedule {name} of {queue}: {problem}; nothing was changed"))
}

/// What the definition becomes; `None` for nothing.
fn become_of(
    queue: &Queue,
    name: &ScheduleName,
    before: Option<&Schedule>,
    wanted: &Wanted,
) -> Result<Option<Schedule>, Failure> {
    let wish = match (wanted, before) {
        (Wanted::Gone, _) => return Ok(None),
        (Wanted::Paused(paused), Some(before)) => {
            let mut after = before.clone();
            after.paused = *paused;
            return Ok(Some(after));
        }
        (Wanted::Paused(_), None) => {
            let problem = "its definition is broken; give a new one with `switchback schedule set`, or remove it";
            return Err(refused(queue, name, &problem));
        }
        (Wanted::Set(wish), _) => wish,
    };
    let (cron, payload) = match (&wish.cron, &wish.payload, before) {
        (cron, payload, Some(before)) => (
            cron.as_ref().unwrap_or(&before.cron),
            payload.as_ref().unwrap_or(&before.payload),
        ),
        (Some(cron), Some(payload), None) => (cron, payload),
        _ => {
            return Err(Failure::Usage(format!(
                "there is no schedule {name} in {queue} yet: a new one needs --cron, and --payload or --file"
            )));
        }
    };
    let mut after = before.cloned().unwrap_or_else(|| Schedule::new("", &()));
    after.cron.clone_from(cron);
    after.payload.clone_from(payload);
    after.source = Source::Cli;
    if let Some(time_zone) = &wish.time_zone {
        after.time_zone.clone_from(time_zone);
    }
    if let Some(key) = &wish.key {
        after.key = Some(key.clone()).filter(|key| !key.is_empty());
    }
    after.missed = wish.missed.unwrap_or(after.missed);
    Ok(Some(after))
}

/// What the person should know.
async fn warnings(
    context: &Context,
    queue: &Queue,
    before: Option<&Schedule>,
    after: Option<&Schedule>,
) -> Vec<String> {
    let mut out = Vec::new();
    if after.is_none() && before.is_some_and(|before| before.source == Source::Code) {
        out.push(
            "code declares it: the next worker to join brings it back. To stop it for good, take it out of the code, or pause it"
                .to_owned(),
        );
    }
    // What cannot be read now is not worth a failure.
    if after.is_some_and(|after| !after.paused)
        && let Ok(sessions) = SessionStore::new(&context.store, queue).list().await
        && !sessions.iter().any(SessionInfo::is_live)
    {
        out.push(format!("{queue} has no live worker: nothing fires until one joins"));
    }
    out
}

fn line(report: &ChangeView, changed: bool) -> String {
    let words = |view: &Option<ScheduleView>| match view {
        Some(view) if view.broken.is_some() => "broken".to_owned(),
        Some(view) => plain(&view.words()),
        None => "none".to_owned(),
    };
    let (before, after) = (words(&report.before), words(&report.after));
    let mut out = format!("{} {}: ", report.queue, report.name);
    out.push_str(&match (changed, report.dry_run) {
        (true, _) if before == after => format!("{after}, its payload, key or source changed"),
        (true, _) => format!("{before} -> {after}"),
        (false, _) => format!("{after} (it was so already)"),
    });
    if report.dry_run {
        out.push_str(" · dry run, nothing was changed");
    }
    for tick in &report.next {
        out.push_str(&format!("\nnext  {}", tick.local));
    }
    out
}
