//! `queue ls | show | limits | log`.

mod limits;
mod log;

use futures_util::StreamExt as _;
use serde::Serialize;
use switchback_common::{
    Queue,
    store::{
        inspect::{self, GroupInfo, QueueDepth},
        limits::read as read_limits,
        policy,
        session::SessionStore,
    },
};
use switchback_gates::{Gate, GateError};

use crate::{
    args::QueueVerb,
    commands::rollout,
    context::Context,
    exit::{Exit, Failure},
    hints::{Facts, Hint, Level, hints},
    output::{Output, sheet, table, tell},
    text::count,
    view::{Made, VersionView, names, versions, words},
};

/// Queues looked at at once.
const AT_ONCE: usize = 8;

pub(crate) async fn run(context: &Context, out: &mut Output, verb: QueueVerb) -> Result<(), Failure> {
    match verb {
        QueueVerb::Ls => ls(context, out).await,
        QueueVerb::Show { task_type } => show(context, out, &context.queue(task_type)).await,
        QueueVerb::Limits { task_type, edits } => limits::run(context, out, &context.queue(task_type), &edits).await,
        QueueVerb::Log { task_type, filter } => log::log(context, out, &context.queue(task_type), &filter).await,
    }
}

/// Everything about one queue.
#[derive(Debug, Serialize)]
pub(crate) struct QueueView {
    pub(crate) queue: String,
    pub(crate) namespace: String,
    pub(crate) task_type: String,
    pub(crate) rev: Option<u64>,
    pub(crate) gate: Option<Gate>,
    pub(crate) changed: Option<Made>,
    pub(crate) depth: DepthView,
    pub(crate) versions: Vec<VersionView>,
    pub(crate) live_workers: usize,
    /// Live workers that obey the revision.
    pub(crate) confirmed: usize,
    pub(crate) hints: Vec<Hint>,
}

#[derive(Debug, Serialize)]
pub(crate) struct DepthView {
    waiting: u64,
    /// Redis cannot count one of the streams: there are at least so many.
    waiting_is_lower_bound: bool,
    in_flight: u64,
    delayed: u64,
    dead: u64,
    /// Of a newer format than this release knows.
    newer: u64,
    streams: Vec<StreamView>,
}

#[derive(Debug, Serialize)]
struct StreamView {
    name: String,
    waiting: Option<u64>,
    in_flight: u64,
    /// Whether its consumer group is there.
    group: bool,
}

impl StreamView {
    fn of(name: impl Into<String>, group: &GroupInfo) -> Self {
        Self {
            name: name.into(),
            waiting: if group.exists { group.lag } else { Some(group.length) },
            in_flight: group.pending,
            group: group.exists,
        }
    }
}

impl DepthView {
    fn of(depth: &QueueDepth) -> Self {
        let mut streams = vec![StreamView::of("main", &depth.main), StreamView::of("head", &depth.head)];
        // Those that many queues never use are shown when they are.
        let rare = [("high", &depth.high), ("low", &depth.low)];
        let used = rare.into_iter().filter(|(_, group)| group.length > 0);
        streams.extend(used.map(|(label, group)| StreamView::of(label, group)));
        streams.push(StreamView::of("suspect", &depth.suspect));
        streams.extend(depth.lanes.iter().map(|(v, g)| StreamView::of(format!("lane:{v}"), g)));
        Self {
            waiting: depth.waiting(),
            waiting_is_lower_bound: streams.iter().any(|s| s.waiting.is_none()),
            in_flight: depth.in_flight(),
            delayed: depth.delayed,
            dead: depth.dead,
            newer: depth.newer,
            streams,
        }
    }

    fn waiting_words(&self) -> String {
        format!("{}{}", self.waiting, if self.waiting_is_lower_bound { "+" } else { "" })
    }
}

/// Reads everything about one queue.
pub(crate) async fn look(context: &Context, queue: &Queue, now_us: u64) -> Result<QueueView, Failure> {
    let shown = match context.gates.show(queue).await {
        Ok(shown) => Some(shown),
        Err(GateError::NoGate(_)) => None,
        Err(e) => return Err(e.into()),
    };
    let depth = inspect::depth(&context.store, queue).await?;
    let sessions = SessionStore::new(&context.store, queue).list().await?;
    let limits = read_limits(&context.store, queue).await?;
    let policies = policy::read(&context.store, queue).await?;
    let known = context.gates.known_versions(queue).await?;
    let history = context.gates.history(queue, None, 20).await?;
    let gate = shown.as_ref().map(|s| &s.gate);
    // What cannot be read is said by `rollout status`; the queue is shown all the same.
    let rollout = rollout::look(context, queue).await.ok().flatten();
    let found = hints(&Facts {
        queue,
        shown: shown.as_ref(),
        sessions: &sessions,
        depth: Some(&depth),
        limits: &limits,
        policies: &policies,
        rollout: rollout.as_ref().map(|(record, _)| record),
        history: &history,
        now_us,
    });
    let live = sessions.iter().filter(|s| s.is_live());
    let confirmed = shown.as_ref().map_or(0, |g| {
        live.clone().filter(|s| s.rev.is_some_and(|rev| rev >= g.rev)).count()
    });
    let (name, namespace, task_type) = names(queue);
    Ok(QueueView {
        queue: name,
        namespace,
        task_type,
        rev: shown.as_ref().map(|s| s.rev),
        changed: history.iter().find(|e| e.kind == "change").map(Made::of),
        depth: DepthView::of(&depth),
        versions: versions(&known, gate, &sessions),
        live_workers: live.count(),
        confirmed,
        hints: found,
        gate: shown.map(|s| s.gate),
    })
}

/// The lines that `gate show` and `queue show` begin with.
pub(crate) fn heading(view: &QueueView, now_us: u64) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("QUEUE", view.queue.clone()),
        ("GATE", view.gate.as_ref().map_or_else(|| "none".to_owned(), words)),
    ];
    if let Some(rev) = view.rev {
        let made = view
            .changed
            .as_ref()
            .map_or_else(String::new, |m| format!(" · {}", m.words(now_us)));
        rows.push(("REVISION", format!("{rev}{made}")));
        rows.push((
            "WORKERS",
            format!(
                "{}, {} at this revision",
                count(view.live_workers, "live worker"),
                view.confirmed
            ),
        ));
    } else {
        rows.push(("WORKERS", count(view.live_workers, "live worker")));
    }
    rows
}

pub(crate) fn versions_table(view: &QueueView) -> String {
    if view.versions.is_empty() {
        return String::new();
    }
    let rows = view.versions.iter().map(|v| {
        vec![
            v.version.to_string(),
            v.share.clone(),
            v.live_workers.to_string(),
            v.running.to_string(),
        ]
    });
    let header = ["VERSION", "SHARE", "WORKERS", "RUNNING"];
    table(&header, &["WORKERS", "RUNNING"], rows) + "\n"
}

pub(crate) fn hint_lines(out: &Output, view: &QueueView) -> String {
    let lines: Vec<String> = view.hints.iter().map(|hint| hint_line(out, hint)).collect();
    if lines.is_empty() {
        String::new()
    } else {
        format!("\n{}\n", lines.join("\n"))
    }
}

fn hint_line(out: &Output, hint: &Hint) -> String {
    match hint.level {
        Level::Critical => format!("{} {}", out.loud("!!"), hint.text),
        Level::Warning => format!("{} {}", out.loud("!"), hint.text),
        Level::Info => format!("- {}", hint.text),
    }
}

async fn show(context: &Context, out: &mut Output, queue: &Queue) -> Result<(), Failure> {
    let now = context.now_us().await?;
    let view = look(context, queue, now).await?;
    if view.gate.is_none() {
        context.require(queue).await?;
    }
    out.value(&view, |out| {
        let mut text = sheet(&heading(&view, now));
        let depth = &view.depth;
        let newer = match depth.newer {
            0 => String::new(),
            n => format!(" · {n} of a newer format"),
        };
        text.push_str(&format!(
            "TASKS     {} waiting · {} in flight · {} delayed · {} dead{newer}\n\n",
            depth.waiting_words(),
            depth.in_flight,
            depth.delayed,
            depth.dead
        ));
        let rows = depth.streams.iter().map(|s| {
            vec![
                s.name.clone(),
                s.waiting.map_or_else(|| "?".to_owned(), |n| n.to_string()),
                s.in_flight.to_string(),
            ]
        });
        text.push_str(&table(
            &["STREAM", "WAITING", "IN FLIGHT"],
            &["WAITING", "IN FLIGHT"],
            rows,
        ));
        text.push_str("\n\n");
        text.push_str(&versions_table(&view));
        text.push_str(&hint_lines(out, &view));
        text
    })
}

/// One line of `queue ls`.
#[derive(Debug, Serialize)]
struct Row {
    queue: String,
    namespace: String,
    task_type: String,
    rev: Option<u64>,
    gate: Option<Gate>,
    waiting: u64,
    waiting_is_lower_bound: bool,
    in_flight: u64,
    delayed: u64,
    dead: u64,
    live_workers: usize,
    hints: Vec<Hint>,
    /// Why nothing could be read of it.
    error: Option<String>,
}

impl Row {
    fn of(view: QueueView) -> Self {
        Self {
            queue: view.queue,
            namespace: view.namespace,
            task_type: view.task_type,
            rev: view.rev,
            gate: view.gate,
            waiting: view.depth.waiting,
            waiting_is_lower_bound: view.depth.waiting_is_lower_bound,
            in_flight: view.depth.in_flight,
            delayed: view.depth.delayed,
            dead: view.depth.dead,
            live_workers: view.live_workers,
            hints: view.hints,
            error: None,
        }
    }

    fn unreadable(queue: &Queue, failure: &Failure) -> Self {
        let (name, namespace, task_type) = names(queue);
        Self {
            queue: name,
            namespace,
            task_type,
            rev: None,
            gate: None,
            waiting: 0,
            waiting_is_lower_bound: true,
            in_flight: 0,
            delayed: 0,
            dead: 0,
            live_workers: 0,
            hints: Vec::new(),
            error: Some(failure.to_string()),
        }
    }

    fn attention(&self) -> String {
        if let Some(error) = &self.error {
            return format!("!! {error}");
        }
        let loud: Vec<&str> = self
            .hints
            .iter()
            .filter(|h| h.level != Level::Info)
            .map(|h| h.code)
            .collect();
        loud.join(", ").replace('_', " ")
    }
}

async fn ls(context: &Context, out: &mut Output) -> Result<(), Failure> {
    let queues = inspect::queues(&context.store, &context.namespace).await?;
    if queues.is_empty() && out.is_table() {
        tell(format_args!("no queues in namespace {}", context.namespace));
    }
    let now = context.now_us().await?;
    // P7: one queue that cannot be read does not hide the others; a Redis that is gone hides them all.
    let found: Vec<Result<Row, Failure>> = futures_util::stream::iter(&queues)
        .map(|queue| async move {
            match look(context, queue, now).await {
                Ok(view) => Ok(Row::of(view)),
                Err(failure) if failure.exit() == Exit::Unreachable => Err(failure),
                Err(failure) => Ok(Row::unreadable(queue, &failure)),
            }
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let rows = found.into_iter().collect::<Result<Vec<Row>, Failure>>()?;
    out.list(&rows, |_| {
        if rows.is_empty() {
            return String::new();
        }
        let lines = rows.iter().map(|row| {
            vec![
                row.task_type.clone(),
                row.gate.as_ref().map_or_else(|| "none".to_owned(), words),
                format!("{}{}", row.waiting, if row.waiting_is_lower_bound { "+" } else { "" }),
                row.in_flight.to_string(),
                row.delayed.to_string(),
                row.dead.to_string(),
                row.live_workers.to_string(),
                row.attention(),
            ]
        });
        let header = [
            "TYPE",
            "GATE",
            "WAITING",
            "IN FLIGHT",
            "DELAYED",
            "DEAD",
            "WORKERS",
            "ATTENTION",
        ];
        table(&header, &header[2..7], lines)
    })
}
