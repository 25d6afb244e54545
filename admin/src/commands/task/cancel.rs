//! `task cancel`.

use serde::Serialize;
use switchback_common::{
    Queue, TaskId,
    store::{
        cancel::{self, CancelRequest, Cancelled},
        inspect::{self, Found},
    },
};

use crate::{
    args::CancelOptions,
    change::signature,
    context::Context,
    exit::Failure,
    output::{Output, table},
};

/// What became of one request.
#[derive(Debug, Serialize)]
struct CancelView {
    queue: String,
    id: String,
    outcome: &'static str,
    cancelled: bool,
    dry_run: bool,
    text: &'static str,
}

/// What a person is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Met(Cancelled),
    Dead,
    NotFound,
}

pub(crate) async fn run(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    ids: &[TaskId],
    options: CancelOptions,
) -> Result<(), Failure> {
    context.require(queue).await?;
    let (by, why) = signature(options.by.as_deref(), options.why.as_deref());
    let request = CancelRequest {
        only_unstarted: options.unstarted,
        by,
        why,
    };
    let mut views = Vec::with_capacity(ids.len());
    let (mut missing, mut refused) = (0, 0);
    for id in ids {
        let outcome = if options.dry_run {
            foresee(
                inspect::find(&context.store, queue, id).await?.as_ref(),
                options.unstarted,
            )
        } else {
            ask(context, queue, id, &request).await?
        };
        missing += usize::from(outcome == Outcome::NotFound);
        refused += usize::from(!matches!(outcome, Outcome::Met(word) if word.took_effect()));
        views.push(view_of(queue, id, outcome, options.dry_run));
    }
    out.list(&views, |_| {
        let rows = views
            .iter()
            .map(|v| vec![v.id.clone(), v.outcome.to_owned(), v.text.to_owned()]);
        table(&["TASK", "OUTCOME", ""], &[], rows)
    })?;
    match (missing, refused) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::Refused(format!(
            "{refused} of {} tasks of {queue} cannot be cancelled",
            ids.len()
        ))),
        _ => Err(Failure::NotFound(format!(
            "{missing} of {} tasks of {queue} were not found; if one turns up within 7 days it will not start",
            ids.len()
        ))),
    }
}

async fn ask(context: &Context, queue: &Queue, id: &TaskId, request: &CancelRequest) -> Result<Outcome, Failure> {
    let word = cancel::cancel(&context.store, queue, id, request).await?;
    if word != Cancelled::Marked {
        return Ok(Outcome::Met(word));
    }
    // Marked wherever it is; a person wants to know where that is.
    let Some(found) = inspect::find(&context.store, queue, id).await? else {
        return Ok(Outcome::NotFound);
    };
    let outcome = foresee(Some(&found), request.only_unstarted);
    if outcome == Outcome::Dead {
        // Or it would be cancelled by surprise when somebody requeues it.
        cancel::lift(&context.store, queue, id).await?;
    }
    Ok(outcome)
}

/// What cancelling a task would meet.
fn foresee(found: Option<&Found>, unstarted: bool) -> Outcome {
    let Some(found) = found else {
        return Outcome::NotFound;
    };
    let word = match (found.place.as_str(), &found.held_by, found.waiting) {
        ("dead", _, _) => return Outcome::Dead,
        ("delayed", _, _) => Cancelled::Removed,
        (_, Some(_), _) if unstarted => Cancelled::Started,
        (_, Some(_), _) => Cancelled::Running,
        (_, None, true) => Cancelled::Waiting,
        (_, None, false) => Cancelled::Settled,
    };
    Outcome::Met(word)
}

fn view_of(queue: &Queue, id: &TaskId, outcome: Outcome, dry_run: bool) -> CancelView {
    let (word, text) = match outcome {
        Outcome::Met(Cancelled::Removed) => ("removed", "it was delayed, and is gone"),
        Outcome::Met(Cancelled::Waiting) => ("waiting", "it waits, and will not start"),
        Outcome::Met(Cancelled::Running) => (
            "running",
            "its handler is told; if it succeeds all the same, it is done",
        ),
        Outcome::Met(Cancelled::Marked) => ("marked", "wherever it is, it will not start"),
        Outcome::Met(Cancelled::Started) => ("started", "it has started: left alone"),
        Outcome::Met(Cancelled::Settled) => ("settled", "already done: nothing to cancel"),
        Outcome::Dead => ("dead", "a dead letter does not run: use `switchback dead`"),
        Outcome::NotFound => ("not_found", "not within the window"),
    };
    CancelView {
        queue: queue.to_string(),
        id: id.to_string(),
        outcome: word,
        cancelled: !dry_run && matches!(outcome, Outcome::Met(word) if word.took_effect()),
        dry_run,
        text,
    }
}
