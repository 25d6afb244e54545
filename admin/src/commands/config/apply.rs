//! `config apply`, `config revert`.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use switchback_common::{
    Namespace, StoreError,
    clock::Moment,
    store::config::{self, Begin, Begun},
};
use switchback_gates::admin::operation_id;

use super::{change_table, say};
use crate::{
    args::{ApplyOptions, InFlight},
    change::{ConfirmationView, signature, unconfirmed, warn_of_older_releases},
    config::{
        apply::{Applied, Signature, Stop, apply},
        diff::Change,
        document::{Document, Syntax},
        plan::{Plan, Problem},
        state::State,
    },
    context::Context,
    exit::Failure,
    output::{Output, tell, warn},
    text::{count, plain},
};

/// Times an apply is judged anew because somebody else began one in between.
const TRIES: usize = 5;
/// Longest list of changes kept with a revision, in bytes of JSON.
const MAX_CHANGES_BYTES: usize = 64 * 1024;

#[derive(Debug, Serialize)]
struct ApplyView<'a> {
    namespace: &'a Namespace,
    changed: bool,
    dry_run: bool,
    complete: bool,
    revision: u64,
    reverts: Option<u64>,
    inflight: InFlight,
    changes: Vec<Change>,
    problems: &'a [Problem],
    warnings: &'a [String],
    applied: Vec<Step<'a>>,
    left: Vec<Step<'a>>,
    partly: Option<Partly<'a>>,
    stopped: Option<String>,
    diff: Texts,
    confirmations: Vec<Confirmed>,
}

#[derive(Debug, Serialize)]
struct Step<'a> {
    queue: &'a str,
    section: &'a str,
}

/// A section that is left, and of which something was written.
#[derive(Debug, Serialize)]
struct Partly<'a> {
    queue: &'a str,
    section: &'a str,
    written: usize,
}

/// TOML, for whoever shows differences of texts.
#[derive(Debug, Serialize)]
struct Texts {
    before: String,
    after: String,
}

#[derive(Debug, Serialize)]
struct Confirmed {
    queue: String,
    rev: u64,
    #[serde(flatten)]
    confirmation: ConfirmationView,
}

impl<'a> ApplyView<'a> {
    fn of(context: &'a Context, state: &State, plan: &'a Plan<'_>, reverts: Option<u64>) -> Result<Self, Failure> {
        let (before, after) = plan.documents(context);
        let toml = |document: &Document| document.render(Syntax::Toml).map_err(Failure::Other);
        Ok(Self {
            namespace: &context.namespace,
            changed: false,
            dry_run: false,
            complete: true,
            revision: state.revision,
            reverts,
            inflight: InFlight::Finish,
            changes: plan.changes(),
            problems: &plan.problems,
            warnings: &plan.warnings,
            applied: Vec::new(),
            left: Vec::new(),
            partly: None,
            stopped: None,
            diff: Texts {
                before: toml(&before)?,
                after: toml(&after)?,
            },
            confirmations: Vec::new(),
        })
    }

    fn show(&self, out: &mut Output) -> Result<(), Failure> {
        out.value(self, |_| change_table(&self.changes))
    }
}

pub(super) async fn run(
    context: &Context,
    out: &mut Output,
    wanted: &Document,
    reverts: Option<u64>,
    options: &ApplyOptions,
) -> Result<(), Failure> {
    let (by, why) = signature(options.by.as_deref(), options.why.as_deref());
    let signature = Signature {
        by,
        why,
        inflight: options.inflight,
    };
    for _ in 0..TRIES {
        let state = State::read(context, wanted).await?;
        if let Some(rev) = options.if_rev.filter(|rev| *rev != state.revision) {
            return Err(moved(context, state.revision, rev));
        }
        let plan = Plan::make(context, &state, wanted).await?;
        let mut view = ApplyView::of(context, &state, &plan, reverts)?;
        view.inflight = options.inflight;
        let blocking = |problem: &&Problem| !(problem.forceable && options.force);
        let against: Vec<&Problem> = plan.problems.iter().filter(blocking).collect();
        if !against.is_empty() {
            view.dry_run = options.dry_run;
            view.complete = false;
            view.show(out)?;
            return Err(refused(&against));
        }
        say(&plan);
        if let Some(field) = options.inflight.field() {
            let changed = || plan.queues.iter().filter(|queue| queue.changes_section("gate"));
            if changed().next().is_none() {
                warn("no gate changes, so --inflight stops nothing: `switchback gate set TYPE --inflight` does");
            }
            for queue in changed() {
                warn_of_older_releases(context, &queue.state.queue, std::slice::from_ref(&field)).await;
            }
        }
        view.changed = !view.changes.is_empty();
        if options.dry_run || !view.changed {
            view.dry_run = options.dry_run;
            let note = if options.dry_run {
                "dry run, nothing was changed"
            } else {
                "it was so already"
            };
            tell(format_args!(
                "{}: {} · {note}",
                context.namespace,
                count(view.changes.len(), "change")
            ));
            return view.show(out);
        }
        let op = operation_id();
        let begun = match begin(context, &state, &plan, reverts, &signature, &op).await? {
            Begun::As(rev) => rev,
            Begun::Moved(now) => match options.if_rev {
                Some(rev) => return Err(moved(context, now, rev)),
                // Somebody else applies at this moment: what is left to do must be looked at again.
                None => continue,
            },
        };
        view.revision = begun;
        let applied = apply(context, &plan, &signature).await;
        return finish(context, out, view, applied, (begun, &op), options).await;
    }
    Err(Failure::Refused(format!(
        "the configuration of {} keeps changing; nothing was changed",
        context.namespace
    )))
}

fn moved(context: &Context, now: u64, asked: u64) -> Failure {
    Failure::Refused(format!(
        "the configuration of {} is at revision {now}, not {asked}; nothing was changed",
        context.namespace
    ))
}

fn refused(against: &[&Problem]) -> Failure {
    let texts: Vec<String> = against
        .iter()
        .map(|problem| format!("{}: {}", problem.queue, problem.text))
        .collect();
    let way_out = match against.iter().all(|problem| problem.forceable) {
        true => "; nothing was changed. Repeat with --force to do it all the same",
        false => "; nothing was changed",
    };
    Failure::Refused(format!("{}{way_out}", texts.join("; ")))
}

/// Writes the revision down before anything of it is done: what a crash leaves half done can be seen, and completed.
async fn begin(
    context: &Context,
    state: &State,
    plan: &Plan<'_>,
    reverts: Option<u64>,
    signature: &Signature,
    op: &str,
) -> Result<Begun, Failure> {
    let other = |e: serde_json::Error| Failure::Other(e.to_string());
    let mut after = state.document(context, true);
    let become_of = plan
        .queues
        .iter()
        .map(|queue| (queue.name.to_owned(), queue.after.clone()));
    after.queues.extend(become_of);
    let mut document = after.render(Syntax::Json).map_err(Failure::Other)?;
    // Only what can be read again is worth keeping: people may have made more by hand than a document may hold.
    if let Err(mistake) = Document::parse(&document, Syntax::Json) {
        warn(format_args!(
            "the configuration of {} is more than a revision keeps, and this one cannot be reverted to: {}",
            context.namespace,
            plain(&mistake.to_string())
        ));
        document = String::new();
    }
    let changes = plan.changes();
    let changed = changes.len();
    let (mut kept, mut size) = (Vec::new(), 0);
    for change in changes {
        size += serde_json::to_string(&change).map_err(other)?.len() + 1;
        if size > MAX_CHANGES_BYTES {
            break;
        }
        kept.push(change);
    }
    let mut forced = String::new();
    if !plan.problems.is_empty() {
        let shown: Vec<&Problem> = plan.problems.iter().take(100).collect();
        forced = serde_json::to_string(&shown).map_err(other)?;
    }
    let changes = serde_json::to_string(&kept).map_err(other)?;
    let begin = Begin {
        after: state.revision,
        source: if reverts.is_some() { "revert" } else { "apply" },
        by: &signature.by,
        why: &signature.why,
        op,
        reverts,
        changes: &changes,
        changed,
        forced: &forced,
        document: &document,
    };
    // The operation id makes asking again harmless.
    let again = |e: &StoreError| e.is_outcome_unknown();
    Ok(match config::begin(&context.store, &context.namespace, &begin).await {
        Err(e) if again(&e) => config::begin(&context.store, &context.namespace, &begin).await?,
        other => other?,
    })
}

/// Says how it ended: to the history, to whoever asked, and in the exit code.
async fn finish(
    context: &Context,
    out: &mut Output,
    mut view: ApplyView<'_>,
    mut applied: Applied,
    (begun, op): (u64, &str),
    options: &ApplyOptions,
) -> Result<(), Failure> {
    let steps = |steps: &[(String, &'static str)]| -> String {
        let steps: Vec<String> = steps
            .iter()
            .map(|(queue, section)| format!("{queue} {section}"))
            .collect();
        if steps.is_empty() {
            "nothing".to_owned()
        } else {
            steps.join(", ")
        }
    };
    let stopped = applied.stopped.as_ref().map(|stop| {
        let (done, left) = (steps(&applied.done), steps(&applied.left));
        let partly = applied.partly.as_ref().map_or_else(String::new, |(queue, section, n)| {
            format!("; of {queue} {section}: {n} written")
        });
        format!(
            "{}; applied: {done}{partly}; left: {left}. Look, and apply again to complete it",
            plain(&stop.to_string())
        )
    });
    let end = stopped.as_deref().unwrap_or_default();
    if let Err(error) = config::end(&context.store, &context.namespace, begun, op, end).await {
        warn(format_args!("cannot write down how revision {begun} ended: {error}"));
    }
    let changed = !applied.done.is_empty() || applied.partly.is_some();
    let mut failure = match applied.stopped.take() {
        None => None,
        Some(_) if changed => Some(Failure::Other(format!("stopped half-way: {end}"))),
        Some(Stop::Moved(_) | Stop::Refused(_)) => Some(Failure::Refused(end.to_owned())),
        Some(Stop::Failed(failure)) => Some(*failure),
    };
    if failure.is_none() && options.wait {
        failure = wait(context, &mut view, &applied, options.timeout).await;
    }
    view.changed = changed;
    view.complete = stopped.is_none();
    view.applied = view_of(&applied.done);
    view.left = view_of(&applied.left);
    view.partly = applied.partly.as_ref().map(|(queue, section, written)| Partly {
        queue,
        section,
        written: *written,
    });
    view.stopped = stopped;
    if failure.is_none() {
        let what = count(view.changes.len(), "change");
        tell(format_args!(
            "{}: {what} applied as revision {begun}",
            context.namespace
        ));
    }
    view.show(out)?;
    failure.map_or(Ok(()), Err)
}

fn view_of<'a>(steps: &'a [(String, &'static str)]) -> Vec<Step<'a>> {
    let step = |(queue, section): &'a (String, &'static str)| Step { queue, section };
    steps.iter().map(step).collect()
}

/// Waits for every changed gate, all of them together no longer than `limit`.
async fn wait(context: &Context, view: &mut ApplyView<'_>, applied: &Applied, limit: Duration) -> Option<Failure> {
    let began = Moment::now();
    let mut failures: BTreeMap<String, Failure> = BTreeMap::new();
    for (queue, rev) in &applied.gates {
        match context
            .gates
            .wait(queue, *rev, limit.saturating_sub(began.elapsed()))
            .await
        {
            Ok(confirmation) => {
                let confirmation = ConfirmationView::of(confirmation);
                if let Some(failure) = unconfirmed(&confirmation, *rev, limit) {
                    failures.insert(queue.to_string(), failure);
                }
                view.confirmations.push(Confirmed {
                    queue: queue.to_string(),
                    rev: *rev,
                    confirmation,
                });
            }
            // It is committed, whatever happens to the connection now.
            Err(e) => {
                failures.insert(queue.to_string(), Failure::Unconfirmed(format!("revision {rev}: {e}")));
            }
        }
    }
    let texts: Vec<String> = failures
        .iter()
        .map(|(queue, failure)| format!("{queue}: {failure}"))
        .collect();
    (!texts.is_empty()).then(|| Failure::Unconfirmed(texts.join("; ")))
}
