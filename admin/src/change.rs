//! Changing a gate: say what will happen, commit once, tell what it became and who obeys.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use switchback_common::{
    Queue, StoreError, Version,
    envelope::clip,
    store::gate::{ChangeRequest, Changed, HistoryEntry, Sealed},
};
use switchback_gates::{
    Gate, GateError,
    admin::{Confirmation, operation_id},
    rollout::Status,
};

use crate::{
    args::{Change, InFlight},
    commands::rollout,
    context::Context,
    drain::{self, Behind, DrainView},
    exit::Failure,
    output::{Output, tell, warn},
    readiness,
    text::{count, plain},
    view::{whereabouts, words},
};

/// As long as seal allows for edits by hand.
const MAX_WHY_BYTES: usize = 500;
const MAX_BY_BYTES: usize = 64;

/// The outcome of a change.
#[derive(Debug, Serialize)]
struct ChangeView {
    queue: String,
    changed: bool,
    dry_run: bool,
    rev: u64,
    before: Option<Gate>,
    after: Gate,
    inflight: InFlight,
    dropped: Option<BTreeMap<String, String>>,
    warnings: Vec<String>,
    confirmation: Option<ConfirmationView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ConfirmationView {
    confirmed: usize,
    total: usize,
    took_us: u64,
    running: BTreeMap<Version, u64>,
    missing: Vec<MissingView>,
    drain: Option<DrainView>,
}

#[derive(Debug, Serialize)]
struct MissingView {
    session: String,
    host: Option<String>,
    pid: Option<u32>,
    rev: Option<u64>,
    #[serde(skip)]
    words: String,
}

/// A change about to be made.
#[derive(Debug)]
pub(crate) struct Intent<'a> {
    pub(crate) queue: &'a Queue,
    pub(crate) fields: Vec<(&'static str, String)>,
    /// The gate before, if it could be read.
    pub(crate) before: Option<Gate>,
    /// What becomes of what runs on withdrawn versions.
    pub(crate) inflight: InFlight,
    /// What the person should know; said loudly, and part of the result.
    pub(crate) warnings: Vec<String>,
    /// Of a rollback: where to. Whether that version is ready is said when everything is done.
    pub(crate) rolled_back_to: Option<Version>,
}

/// How the store answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) gate: Gate,
    pub(crate) rev: u64,
    pub(crate) changed: bool,
}

/// Who it is: as said, else $USER, else $LOGNAME.
pub(crate) fn who(by: Option<&str>) -> String {
    let by = by.map_or_else(
        || {
            let named = |name| std::env::var(name).ok().filter(|who: &String| !who.is_empty());
            named("USER").or_else(|| named("LOGNAME")).unwrap_or_default()
        },
        str::to_owned,
    );
    clip(&by, MAX_BY_BYTES).to_owned()
}

/// What a change is asked under: whose, why, and on which condition.
pub(crate) fn request(fields: &[(&'static str, String)], options: &Change) -> ChangeRequest {
    let (by, why) = signature(options.by.as_deref(), options.why.as_deref());
    ChangeRequest {
        source: "cli".to_owned(),
        by,
        why,
        op: operation_id(),
        if_rev: options.if_rev,
        dry_run: options.dry_run,
        forced: String::new(),
        fields: fields.to_vec(),
    }
}

/// Who changes something, by default $USER, and why; cut to what is kept.
pub(crate) fn signature(by: Option<&str>, why: Option<&str>) -> (String, String) {
    (who(by), clip(why.unwrap_or_default(), MAX_WHY_BYTES).to_owned())
}

/// Sends a change and understands the answer.
pub(crate) async fn send(context: &Context, queue: &Queue, request: &ChangeRequest) -> Result<Answer, Failure> {
    let read = |sealed: Sealed, changed: bool| -> Result<Answer, Failure> {
        Ok(Answer {
            gate: Gate::parse(&sealed.gate).map_err(GateError::from)?,
            rev: sealed.rev,
            changed,
        })
    };
    match deliver(context, queue, request).await? {
        Changed::Changed(sealed) => read(sealed, true),
        Changed::Same(sealed) | Changed::Would(sealed) => read(sealed, false),
        Changed::Moved(sealed) => {
            let now = read(sealed, false)?;
            Err(Failure::Refused(format!(
                "the gate of {queue} is at revision {} ({}), not {}; nothing was changed",
                now.rev,
                words(&now.gate),
                request.if_rev.unwrap_or_default()
            )))
        }
        Changed::Refused { field, reason } => Err(refused(context, queue, &field, &reason).await),
        Changed::Unsealed => {
            context.require(queue).await?;
            Err(GateError::NoGate(queue.clone()).into())
        }
    }
}

/// One resend when the reply was lost: the operation id makes it harmless (P9).
pub(crate) async fn deliver(context: &Context, queue: &Queue, request: &ChangeRequest) -> Result<Changed, Failure> {
    match context.gates.change(queue, request).await {
        Err(GateError::Store(e)) if e.is_outcome_unknown() => {
            tell(format_args!("{e}; asking again"));
            match context.gates.change(queue, request).await {
                Err(GateError::Store(source)) => Err(Failure::Unknown { source }),
                other => Ok(other?),
            }
        }
        other => Ok(other?),
    }
}

async fn refused(context: &Context, queue: &Queue, field: &str, reason: &str) -> Failure {
    let mut text = format!("{field}={}; nothing was changed", plain(reason));
    if reason.ends_with("unknown version") || reason.contains("unknown version ") {
        let known = context.gates.known_versions(queue).await.unwrap_or_default();
        let known: Vec<&str> = known.iter().map(Version::as_str).collect();
        text.push_str(&format!(". Versions that ever joined {queue}: {}", known.join(", ")));
    } else if reason.contains("retired version") {
        let task_type = &queue.task_type;
        let named = reason.strip_suffix(": retired version");
        let version = named
            .filter(|name| name.parse::<Version>().is_ok())
            .unwrap_or("VERSION");
        text.push_str(&format!(
            ". Bring it back first: switchback version restore {task_type} {version}"
        ));
    }
    Failure::Refused(text)
}

/// Tells the outcome; with `--wait`, after everyone obeys or the time is up.
pub(crate) async fn report(
    context: &Context,
    out: &mut Output,
    mut intent: Intent<'_>,
    answer: Answer,
    options: &Change,
) -> Result<(), Failure> {
    let queue = intent.queue;
    if answer.gate.paused && !options.dry_run {
        let text = format!(
            "{queue} is paused: nothing starts until `switchback gate resume {}`",
            queue.task_type
        );
        if !intent.fields.iter().any(|(name, _)| *name == "paused") {
            warn(&text);
        }
        intent.warnings.push(text);
    }
    intent
        .warnings
        .extend(ended_rollout(context, queue, &answer, options.dry_run).await);
    let dropped = if answer.changed {
        dropped(context, queue, answer.rev).await
    } else {
        None
    };
    if let Some(dropped) = &dropped {
        let list: Vec<String> = dropped.iter().map(|(k, v)| format!("{k}={}", plain(v))).collect();
        let text = format!("part of the change was dropped: {}", list.join(" "));
        warn(&text);
        intent.warnings.push(text);
    }
    let mut failure = None;
    let mut confirmation = None;
    if (options.wait || options.drain) && !options.dry_run {
        let waited = confirm(context, &intent, &answer, options, &mut confirmation).await;
        failure = committed(waited, answer.rev).err();
    }
    if let Some(target) = &intent.rolled_back_to {
        // In a hurry: nothing that is asked of workers may come before the commit, or before the word that it is obeyed.
        for text in readiness::after_rollback(context, queue, target).await {
            warn(&text);
            intent.warnings.push(text);
        }
    }
    let view = ChangeView {
        queue: queue.to_string(),
        changed: answer.changed,
        dry_run: options.dry_run,
        rev: answer.rev,
        before: intent.before,
        after: answer.gate,
        inflight: intent.inflight,
        dropped,
        warnings: intent.warnings,
        confirmation,
    };
    out.value(&view, |_| line(&view, &queue.task_type))?;
    failure.map_or(Ok(()), Err)
}

/// Whoever sets the gate otherwise than a rollout left it ends that, and should know. Asked behind the change.
async fn ended_rollout(context: &Context, queue: &Queue, answer: &Answer, dry_run: bool) -> Option<String> {
    if !answer.changed && !dry_run {
        return None;
    }
    let (record, _) = rollout::look(context, queue).await.ok()??;
    // A worker may have seen it already.
    let just_now = record.status == Status::Overruled && record.rev == answer.rev && answer.changed;
    let live = record.status.is_live() && !record.agrees_with(&answer.gate);
    if !live && !just_now {
        return None;
    }
    let ends = if dry_run { "this would end" } else { "this ends" };
    let text = format!("{ends} the rollout of {}", record.to);
    if !answer.gate.reaches(&record.to) {
        tell(format_args!("{}: {text}", queue.task_type));
        return Some(text);
    }
    let text = format!("{text}: nobody guards what the gate gives it");
    warn(&text);
    Some(text)
}

/// It is committed, whatever happens to the connection now.
pub(crate) fn committed(waited: Result<(), Failure>, rev: u64) -> Result<(), Failure> {
    waited.map_err(|failure| match failure {
        Failure::Unconfirmed(text) => Failure::Unconfirmed(text),
        other => Failure::Unconfirmed(format!("revision {rev}: {other}")),
    })
}

/// `--wait` and `--drain` of a change that was made, and told, otherwise: as a step of a rollout.
pub(crate) async fn wait(
    context: &Context,
    queue: &Queue,
    before: Gate,
    answer: &Answer,
    options: &Change,
) -> Result<(), Failure> {
    if !options.wait && !options.drain {
        return Ok(());
    }
    let intent = Intent {
        queue,
        fields: Vec::new(),
        before: Some(before),
        inflight: InFlight::Finish,
        warnings: Vec::new(),
        rolled_back_to: None,
    };
    let mut confirmation = None;
    let waited = confirm(context, &intent, answer, options, &mut confirmation).await;
    if let Some(confirmation) = &confirmation {
        let (gate, rev) = (&answer.gate, answer.rev);
        tell(format_args!("{gate} at revision {rev}{}", obeyed(confirmation, gate)));
    }
    committed(waited, answer.rev)
}

/// Waits as long as it was asked to, first for everybody's word, then for what the change left behind.
async fn confirm(
    context: &Context,
    intent: &Intent<'_>,
    answer: &Answer,
    options: &Change,
    confirmation: &mut Option<ConfirmationView>,
) -> Result<(), Failure> {
    let (queue, limit) = (intent.queue, options.timeout);
    let confirmed = context.gates.wait(queue, answer.rev, limit).await?;
    let left = limit.saturating_sub(confirmed.took);
    let view = confirmation.insert(ConfirmationView::of(confirmed));
    let missing = unconfirmed(view, answer.rev, limit);
    if options.drain {
        let behind = Behind {
            before: intent.before.as_ref(),
            after: &answer.gate,
            everything: intent.fields.iter().any(|(name, _)| *name == "paused") && answer.gate.paused,
        };
        let drain = view
            .drain
            .insert(drain::drain(context, queue, answer.rev, &behind, left).await?);
        let now = if drain.is_done() {
            None
        } else {
            context.gate(queue).await.ok().flatten()
        };
        let undrained = drain.failure(answer.rev, limit, now.as_ref().map(|shown| &shown.gate));
        return missing.or(undrained).map_or(Ok(()), Err);
    }
    missing.map_or(Ok(()), Err)
}

/// Says who will not obey a policy because its release does not know any.
pub(crate) async fn warn_of_older_releases(
    context: &Context,
    queue: &Queue,
    fields: &[(&'static str, String)],
) -> Option<String> {
    let asks = |name: &str| fields.iter().any(|(field, value)| *field == name && !value.is_empty());
    // Targets make a state that an older release cannot read, and that is the louder of the two.
    let what = match (asks("targets"), asks("inflight")) {
        (true, _) => "it starts nothing while there are targets",
        (_, true) => "what runs there finishes, and its results count",
        _ => return None,
    };
    let live = context.gates.live_sessions(queue).await.ok()?;
    let older: Vec<String> = live.iter().filter(|s| !s.knows_inflight).map(whereabouts).collect();
    if older.is_empty() {
        return None;
    }
    let text = format!(
        "{} of {} of an older release: {what}: {}",
        older.len(),
        count(live.len(), "live worker"),
        older.join(", ")
    );
    warn(&text);
    Some(text)
}

/// What the sealed revision left out of the wish.
async fn dropped(context: &Context, queue: &Queue, rev: u64) -> Option<BTreeMap<String, String>> {
    let mut pages = context.gates.pages(queue);
    while let Some(page) = pages.next().await.ok()? {
        let of = |entry: &&HistoryEntry| entry.kind == "change" && entry.rev <= rev;
        if let Some(entry) = page.iter().find(of) {
            return serde_json::from_str(&entry.dropped).ok().filter(|_| entry.rev == rev);
        }
    }
    None
}

fn line(view: &ChangeView, task_type: &impl std::fmt::Display) -> String {
    if view.dry_run {
        let before = view.before.as_ref().map_or_else(|| "no gate".to_owned(), words);
        let same = view.before.as_ref() == Some(&view.after);
        let note = match view.inflight {
            InFlight::Finish if same => " (no change)".to_owned(),
            InFlight::Finish => String::new(),
            policy => format!(", {} what runs on withdrawn versions", policy.word()),
        };
        return format!(
            "{task_type}: {before} -> {}{note} · dry run, nothing was changed",
            words(&view.after)
        );
    }
    let mut out = format!("{} at revision {}", view.after, view.rev);
    if !view.changed {
        out.push_str(" (it was so already)");
    }
    if let Some(c) = &view.confirmation {
        out.push_str(&obeyed(c, &view.after));
    }
    out
}

/// Who obeys, and what is left.
fn obeyed(c: &ConfirmationView, after: &Gate) -> String {
    let workers = if c.total == 1 { "" } else { "s" };
    let mut out = format!(
        " · {}/{} worker{workers} in {}",
        c.confirmed,
        c.total,
        millis(c.took_us)
    );
    if let Some(drain) = &c.drain {
        out.push_str(&format!(" · {}", drain.words()));
        return out;
    }
    for (version, n) in c.running.iter().filter(|(version, _)| !after.reaches(version)) {
        out.push_str(&format!(" · {} of {version} still running", count(*n, "attempt")));
    }
    out
}

fn millis(us: u64) -> String {
    match us {
        0..=99_999 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        100_000..=9_999_999 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

impl ConfirmationView {
    pub(crate) fn of(confirmation: Confirmation) -> Self {
        Self {
            confirmed: confirmation.confirmed,
            total: confirmation.confirmed + confirmation.missing.len(),
            took_us: u64::try_from(confirmation.took.as_micros()).unwrap_or(u64::MAX),
            drain: None,
            running: confirmation.running.into_iter().collect(),
            missing: confirmation
                .missing
                .iter()
                .map(|session| MissingView {
                    session: session.id.to_string(),
                    host: session.record.as_ref().map(|r| r.host.clone()),
                    pid: session.record.as_ref().map(|r| r.pid),
                    rev: session.rev,
                    words: format!(
                        "{} (session {}, last seen revision {})",
                        whereabouts(session),
                        plain(session.id.as_str()),
                        session.rev.map_or_else(|| "none".to_owned(), |rev| rev.to_string())
                    ),
                })
                .collect(),
        }
    }
}

pub(crate) fn unconfirmed(view: &ConfirmationView, rev: u64, limit: Duration) -> Option<Failure> {
    if view.missing.is_empty() {
        return None;
    }
    let who: Vec<&str> = view.missing.iter().map(|m| m.words.as_str()).collect();
    Some(Failure::Unconfirmed(format!(
        "{} of {} did not say within {limit:?} that they obey revision {rev}: {}",
        view.missing.len(),
        count(view.total, "worker"),
        who.join(", ")
    )))
}

/// Whether a failed look may be passed over by a command that must go through.
pub(crate) fn is_passable(failure: &Failure) -> bool {
    !matches!(failure, Failure::Store(e) if e.is_unreachable() || matches!(e, StoreError::BadUrl(_)))
        && !matches!(failure, Failure::NotFound(_))
}
