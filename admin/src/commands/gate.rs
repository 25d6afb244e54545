//! `gate show | set | rollback | pause | resume | history | blast`.

mod blast;
pub(crate) mod spell;

use serde::Serialize;
use switchback_common::{
    Queue, Version,
    store::{dead::DeadStore, gate::HistoryEntry, limits, session::SessionStore},
};
use switchback_gates::{Gate, GateError, rollback::Target};

use crate::{
    args::{Change, GateVerb},
    change::{self, Intent},
    commands::queue,
    context::Context,
    exit::Failure,
    output::{Output, sheet, table, tell, warn},
    text::{ago, brief, plain, rfc3339},
    view::{Made, has, is_live, words},
};

/// Times a `set` is judged anew because somebody else changed the gate in between.
const TRIES: usize = 5;

pub(crate) async fn run(context: &Context, out: &mut Output, verb: GateVerb) -> Result<(), Failure> {
    match verb {
        GateVerb::Show { task_type } => show(context, out, context.queue(task_type)).await,
        GateVerb::Set {
            task_type,
            fields,
            force,
            change,
        } => {
            let fields = checked(fields)?;
            set(context, out, &context.queue(task_type), fields, force, &change).await
        }
        GateVerb::Rollback { task_type, to, change } => {
            rollback(context, out, &context.queue(task_type), to, &change).await
        }
        GateVerb::Pause { task_type, change } => pause(context, out, &context.queue(task_type), "1", &change).await,
        GateVerb::Resume { task_type, change } => {
            let queue = context.queue(task_type);
            refuse_at_dead_limit(context, &queue).await?;
            pause(context, out, &queue, "0", &change).await
        }
        GateVerb::Blast(args) => blast::run(context, out, &args).await,
        GateVerb::History { task_type, limit } => history(context, out, &context.queue(task_type), limit).await,
    }
}

/// P10: workers would hold it again at once. The way out is fewer dead letters, or a higher limit.
async fn refuse_at_dead_limit(context: &Context, queue: &Queue) -> Result<(), Failure> {
    let limit = limits::read(&context.store, queue).await?.dead;
    let count = DeadStore::new(&context.store, queue).count().await?;
    if limit == 0 || count < limit {
        return Ok(());
    }
    let task_type = &queue.task_type;
    Err(Failure::Refused(format!(
        "{queue} has {count} dead letters, the limit is {limit}: its workers would hold it again at once. Requeue or discard \
         some (switchback dead requeue|discard {task_type}), or raise the limit (switchback queue limits {task_type} --dead N)"
    )))
}

async fn show(context: &Context, out: &mut Output, queue: Queue) -> Result<(), Failure> {
    context
        .gate(&queue)
        .await?
        .ok_or_else(|| GateError::NoGate(queue.clone()))?;
    let now = context.now_us().await?;
    let view = queue::look(context, &queue, now).await?;
    let gate = GateOnly::of(&view);
    out.value(&gate, |out| {
        let mut text = sheet(&queue::heading(&view, now));
        if let Some(gate) = view.gate.as_ref().filter(|g| !g.pins.is_empty()) {
            let pins: Vec<String> = gate.pins.iter().map(|(k, v)| format!("{}={v}", plain(k))).collect();
            text.push_str(&sheet(&[("PINS    ", pins.join(" "))]));
        }
        text.push('\n');
        text.push_str(&queue::versions_table(&view));
        text.push_str(&queue::hint_lines(out, &view));
        text
    })
}

/// What `gate show` shows of a queue.
#[derive(Debug, Serialize)]
struct GateOnly<'a> {
    queue: &'a str,
    namespace: &'a str,
    task_type: &'a str,
    rev: Option<u64>,
    gate: Option<&'a Gate>,
    changed: Option<&'a Made>,
    versions: &'a [crate::view::VersionView],
    live_workers: usize,
    confirmed: usize,
    hints: &'a [crate::hints::Hint],
}

impl<'a> GateOnly<'a> {
    fn of(view: &'a queue::QueueView) -> Self {
        Self {
            queue: &view.queue,
            namespace: &view.namespace,
            task_type: &view.task_type,
            rev: view.rev,
            gate: view.gate.as_ref(),
            changed: view.changed.as_ref(),
            versions: &view.versions,
            live_workers: view.live_workers,
            confirmed: view.confirmed,
            hints: &view.hints,
        }
    }
}

async fn rollback(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    to: Option<Version>,
    options: &Change,
) -> Result<(), Failure> {
    let task_type = &queue.task_type;
    let (before, target) = match (context.gates.rollback_plan(queue).await, to) {
        (Ok((shown, _)), Some(to)) => (Some(shown), to),
        (Ok((shown, Target::To(version))), None) => (Some(shown), version),
        (
            Ok((
                shown,
                Target::Already {
                    rev,
                    at_us,
                    by,
                    further,
                },
            )),
            None,
        ) => {
            let now = context.now_us().await.unwrap_or(at_us);
            let by = if by.is_empty() {
                String::new()
            } else {
                format!(" by {}", plain(&by))
            };
            let further = further.map_or_else(
                || "there is no earlier version".to_owned(),
                |v| format!("one step further back: switchback gate rollback {task_type} --to {v}"),
            );
            tell(format_args!(
                "{task_type}: already rolled back to {} at revision {rev}, {}{by}; {further}",
                shown.gate.active,
                ago(now, at_us)
            ));
            let active = shown.gate.active.clone();
            (Some(shown), active)
        }
        (Ok((_, Target::Nothing)), None) => return Err(GateError::NothingBefore(queue.clone()).into()),
        (Err(e), to) => {
            let failure = Failure::from(e);
            if matches!(failure, Failure::Gate(GateError::NoGate(_))) {
                context.require(queue).await?;
            }
            // Whoever names the version gets it, even if the gate cannot be read.
            match to.filter(|_| change::is_passable(&failure)) {
                Some(to) => {
                    warn(format_args!("{failure}; going on"));
                    (None, to)
                }
                None => return Err(failure),
            }
        }
    };
    let before = before.map(|shown| shown.gate);
    let was = before.as_ref().map_or_else(|| "no gate".to_owned(), words);
    let will_be = format!("{target} only");
    if !options.dry_run && was != will_be {
        tell(format_args!("{task_type}: {was} -> {will_be}"));
    }
    let mut warnings = Vec::new();
    match context.gates.live_sessions(queue).await {
        Ok(live) if !live.iter().any(|s| has(s, &target)) => {
            let text = format!(
                "no live worker has {target}: rolled back all the same, its tasks wait in their lane until a worker with {target} joins"
            );
            warn(&text);
            warnings.push(text);
        }
        Ok(_) => {}
        Err(e) => warn(format_args!("cannot tell whether a live worker has {target}: {e}")),
    }
    let fields = vec![("only", target.to_string())];
    let answer = change::send(context, queue, &change::request(&fields, options)).await?;
    let intent = Intent {
        queue,
        fields,
        before,
        warnings,
    };
    change::report(context, out, intent, answer, options).await
}

async fn set(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    fields: Vec<(&'static str, String)>,
    force: bool,
    options: &Change,
) -> Result<(), Failure> {
    for attempt in 1..=TRIES {
        let shown = context.gate(queue).await?;
        // Judged first, and committed only onto what it was judged against.
        let mut request = change::request(&fields, options);
        request.if_rev = options.if_rev.or_else(|| shown.as_ref().map(|s| s.rev));
        request.dry_run = true;
        let may_retry = options.if_rev.is_none() && attempt < TRIES;
        let preview = match change::send(context, queue, &request).await {
            Err(Failure::Refused(_)) if may_retry && moved(context, queue, request.if_rev).await => continue,
            other => other?,
        };
        let before = shown.map(|s| s.gate);
        let warnings = check_live(context, queue, before.as_ref(), &preview.gate, force).await?;
        let intent = Intent {
            queue,
            fields: fields.clone(),
            before,
            warnings,
        };
        if options.dry_run {
            return change::report(context, out, intent, preview, options).await;
        }
        let was = intent.before.as_ref().map_or_else(|| "no gate".to_owned(), words);
        tell(format_args!("{}: {was} -> {}", queue.task_type, words(&preview.gate)));
        request.dry_run = false;
        let answer = match change::send(context, queue, &request).await {
            Err(Failure::Refused(_)) if may_retry && moved(context, queue, request.if_rev).await => continue,
            other => other?,
        };
        return change::report(context, out, intent, answer, options).await;
    }
    Err(Failure::Refused(format!(
        "the gate of {queue} keeps changing; nothing was changed"
    )))
}

/// Whether the gate has left the revision that a change was judged against.
async fn moved(context: &Context, queue: &Queue, judged: Option<u64>) -> bool {
    matches!(context.gates.show(queue).await, Ok(shown) if Some(shown.rev) != judged)
}

/// A flip towards a version that nobody can run is refused, unless forced: it would only park tasks.
async fn check_live(
    context: &Context,
    queue: &Queue,
    before: Option<&Gate>,
    after: &Gate,
    force: bool,
) -> Result<Vec<String>, Failure> {
    let grows = |version: &Version| match before {
        None => true,
        Some(before) => {
            !before.reaches(version)
                || (before.active != *version && after.active == *version)
                || (after.candidate.as_ref() == Some(version) && after.percent > before.percent)
        }
    };
    let grown: Vec<Version> = after.reachable().into_iter().filter(grows).collect();
    if grown.is_empty() {
        return Ok(Vec::new());
    }
    let live = context.gates.live_sessions(queue).await?;
    let mut warnings = Vec::new();
    for version in grown {
        if live.iter().any(|s| has(s, &version)) {
            continue;
        }
        if !force {
            return Err(Failure::Refused(format!(
                "no live worker of {queue} has {version}: its tasks would only wait. Start one first, or repeat with --force; nothing was changed"
            )));
        }
        let text = format!("no live worker has {version}: its tasks wait until a worker with {version} joins");
        warn(&text);
        warnings.push(text);
    }
    Ok(warnings)
}

async fn pause(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    paused: &str,
    options: &Change,
) -> Result<(), Failure> {
    let before = context.gate(queue).await?.map(|shown| shown.gate);
    let fields = vec![("paused", paused.to_owned())];
    let mut warnings = Vec::new();
    if paused == "0"
        && let Some(gate) = &before
    {
        let sessions = SessionStore::new(&context.store, queue).list().await?;
        for version in gate.reachable() {
            if !sessions.iter().any(|s| is_live(s) && has(s, &version)) {
                let text = format!("no live worker has {version}: its tasks wait until one joins");
                warn(&text);
                warnings.push(text);
            }
        }
    }
    let answer = change::send(context, queue, &change::request(&fields, options)).await?;
    let intent = Intent {
        queue,
        fields,
        before,
        warnings,
    };
    change::report(context, out, intent, answer, options).await
}

/// What is said of fields before Redis is asked. Values are judged in the store, as those that people write by hand;
/// only a switch is read here, because by hand every word but `0`, `false`, `no` and `off` pauses.
fn checked(fields: Vec<(&'static str, String)>) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut out: Vec<(&'static str, String)> = Vec::new();
    for (field, value) in fields {
        if out.iter().any(|(known, _)| *known == field) {
            return Err(Failure::Usage(format!("{field} is given twice")));
        }
        let value = match field {
            "paused" => switch(&value)
                .ok_or_else(|| {
                    Failure::Refused(format!("paused={value}: neither true nor false; nothing was changed"))
                })?
                .to_owned(),
            "percent" => value.trim_end_matches('%').trim().to_owned(),
            _ => value,
        };
        if value.is_empty() && matches!(field, "active" | "percent") {
            return Err(Failure::Refused(format!("{field}= is empty; nothing was changed")));
        }
        out.push((field, value));
    }
    Ok(out)
}

fn switch(text: &str) -> Option<&'static str> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some("1"),
        "0" | "false" | "no" | "off" => Some("0"),
        _ => None,
    }
}

/// One line of the history.
#[derive(Debug, Serialize)]
struct HistoryView {
    entry: String,
    kind: String,
    rev: u64,
    at: Option<String>,
    at_us: u64,
    source: String,
    by: String,
    why: String,
    before: Option<Gate>,
    after: Option<Gate>,
    dropped: Option<std::collections::BTreeMap<String, String>>,
    refused: Option<std::collections::BTreeMap<String, String>>,
}

impl HistoryView {
    fn of(entry: HistoryEntry) -> Self {
        Self {
            entry: entry.id.to_string(),
            at: rfc3339(entry.at_us),
            at_us: entry.at_us,
            before: Gate::from_history(&entry.before),
            after: Gate::from_history(&entry.after),
            dropped: serde_json::from_str(&entry.dropped).ok(),
            refused: serde_json::from_str(&entry.refused).ok(),
            kind: entry.kind,
            rev: entry.rev,
            source: entry.source,
            by: entry.by,
            why: entry.why,
        }
    }

    fn change(&self) -> String {
        let list = |fields: &std::collections::BTreeMap<String, String>| {
            let words: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={}", brief(v, 80))).collect();
            words.join(" ")
        };
        let mut out = match (&self.before, &self.after) {
            (Some(before), Some(after)) => format!("{} -> {}", words(before), words(after)),
            (None, Some(after)) => words(after),
            _ if self.kind == "note" => "(no change)".to_owned(),
            _ => self.kind.to_uppercase(),
        };
        if let Some(refused) = &self.refused {
            out.push_str(&format!(" {}", list(refused)));
        }
        if let Some(dropped) = &self.dropped {
            out.push_str(&format!(" (dropped {})", list(dropped)));
        }
        out
    }
}

async fn history(context: &Context, out: &mut Output, queue: &Queue, limit: usize) -> Result<(), Failure> {
    let entries = context.gates.history(queue, None, limit.max(1)).await?;
    if entries.is_empty() {
        context.require(queue).await?;
        if out.is_table() {
            tell(format_args!("{queue} has no history: no worker has joined it yet"));
        }
    }
    let now = context.now_us().await?;
    let entries: Vec<HistoryView> = entries.into_iter().map(HistoryView::of).collect();
    out.list(&entries, |_| {
        if entries.is_empty() {
            return String::new();
        }
        let rows = entries.iter().map(|e| {
            vec![
                e.rev.to_string(),
                ago(now, e.at_us),
                brief(&e.by, 32),
                plain(&e.source),
                e.change(),
                plain(&e.why),
            ]
        });
        table(&["REV", "WHEN", "BY", "SOURCE", "CHANGE", "WHY"], &["REV"], rows)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_read_strictly() {
        let check = |field, value: &str| checked(vec![(field, value.to_owned())]);
        assert_eq!(check("paused", "off").unwrap(), [("paused", "0".to_owned())]);
        assert_eq!(check("percent", "10 %").unwrap(), [("percent", "10".to_owned())]);
        // By hand this would pause the queue.
        assert!(matches!(check("paused", "flase"), Err(Failure::Refused(_))));
    }
}
