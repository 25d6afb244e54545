//! `worker ls`.

use std::collections::BTreeMap;

use serde::Serialize;
use switchback_common::{
    Queue, Version,
    store::{
        inspect,
        session::{SessionInfo, SessionStore},
    },
};

use crate::{
    args::WorkerVerb,
    context::Context,
    exit::Failure,
    output::{Output, table, tell},
    text::{ago, plain, rfc3339},
    view::whereabouts,
};

pub(crate) async fn run(context: &Context, out: &mut Output, verb: WorkerVerb) -> Result<(), Failure> {
    let WorkerVerb::Ls { task_type } = verb;
    let queues = match task_type.map(|t| context.queue(t)) {
        Some(queue) => {
            context.require(&queue).await?;
            vec![queue]
        }
        None => inspect::queues(&context.store, &context.namespace).await?,
    };
    let now = context.now_us().await?;
    let mut rows = Vec::new();
    for queue in &queues {
        // Without a gate nobody can be behind it.
        let rev = context.gates.show(queue).await.ok().map(|shown| shown.rev);
        let sessions = SessionStore::new(&context.store, queue).list().await?;
        rows.extend(sessions.iter().map(|session| Row::of(queue, rev, session)));
    }
    if rows.is_empty() && out.is_table() {
        tell(format_args!("no workers in namespace {}", context.namespace));
    }
    out.list(&rows, |_| {
        if rows.is_empty() {
            return String::new();
        }
        let lines = rows.iter().map(|row| row.cells(now));
        let header = [
            "TYPE", "WORKER", "STATE", "VERSIONS", "REV", "RUNNING", "BUILD", "STARTED", "SESSION",
        ];
        table(&header, &["REV"], lines)
    })
}

/// One session.
#[derive(Debug, Serialize)]
struct Row {
    queue: String,
    session: String,
    state: &'static str,
    host: Option<String>,
    pid: Option<u32>,
    build: Option<String>,
    versions: Vec<Version>,
    concurrency: Option<usize>,
    rev: Option<u64>,
    behind: bool,
    running: BTreeMap<Version, u64>,
    open: Vec<Version>,
    lease_ms: Option<u64>,
    started_at: Option<String>,
    started_at_us: Option<u64>,
    #[serde(skip)]
    task_type: String,
    #[serde(skip)]
    worker: String,
}

impl Row {
    fn of(queue: &Queue, rev: Option<u64>, session: &SessionInfo) -> Self {
        let record = session.record.as_ref();
        let started_us = record.map(|r| r.started_ms.saturating_mul(1_000));
        let live = session.is_live();
        Self {
            queue: queue.to_string(),
            session: session.id.to_string(),
            state: match (live, session.reaping) {
                (true, _) => "live",
                (false, true) => "recovering",
                (false, false) => "lost",
            },
            host: record.map(|r| r.host.clone()),
            pid: record.map(|r| r.pid),
            build: record.map(|r| r.build.clone()),
            versions: record.map(|r| r.versions.clone()).unwrap_or_default(),
            concurrency: record.map(|r| r.concurrency),
            rev: session.rev,
            behind: live && rev.is_some_and(|rev| session.rev.is_none_or(|seen| seen < rev)),
            running: session.running(),
            open: session.open.clone(),
            lease_ms: session.lease.and_then(|lease| u64::try_from(lease.as_millis()).ok()),
            started_at: started_us.and_then(rfc3339),
            started_at_us: started_us,
            task_type: queue.task_type.to_string(),
            worker: whereabouts(session),
        }
    }

    fn cells(&self, now: u64) -> Vec<String> {
        let held = |version: &Version| match self.open.contains(version) {
            true => format!("{version} (held: fails)"),
            false => version.to_string(),
        };
        let versions: Vec<String> = self.versions.iter().map(held).collect();
        let running: Vec<String> = self.running.iter().map(|(v, n)| format!("{v}:{n}")).collect();
        let rev = self.rev.map_or_else(|| "none".to_owned(), |rev| rev.to_string());
        vec![
            self.task_type.clone(),
            self.worker.clone(),
            self.state.to_owned(),
            versions.join(" "),
            if self.behind { format!("{rev} (behind)") } else { rev },
            if running.is_empty() {
                "-".to_owned()
            } else {
                running.join(" ")
            },
            plain(self.build.as_deref().unwrap_or("-")),
            self.started_at_us.map_or_else(|| "-".to_owned(), |at| ago(now, at)),
            plain(&self.session),
        ]
    }
}
