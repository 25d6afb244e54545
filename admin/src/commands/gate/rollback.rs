//! `gate rollback`.

use switchback_common::{Queue, Version};
use switchback_gates::{Gate, GateError, rollback::Target};

use crate::{
    args::{Change, InFlight},
    change::{self, Intent},
    context::Context,
    exit::Failure,
    output::{Output, tell, warn},
    text::{ago, plain},
    view::words,
};

pub(super) async fn rollback(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    to: Option<Version>,
    inflight: InFlight,
    options: &Change,
) -> Result<(), Failure> {
    let task_type = &queue.task_type;
    let (before, target) = match (context.gates.show(queue).await, to) {
        (Ok(shown), Some(to)) => (Some(shown.gate), to),
        (Ok(shown), None) => {
            let target = where_to(context, queue, &shown.gate).await?;
            (Some(shown.gate), target)
        }
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
    let was = before.as_ref().map_or_else(|| "no gate".to_owned(), words);
    let will_be = format!("{target} only");
    if !options.dry_run && was != will_be {
        tell(format_args!("{task_type}: {was} -> {will_be}"));
    }
    let fields: Vec<_> = [("only", target.to_string())]
        .into_iter()
        .chain(inflight.field())
        .collect();
    // In a hurry: whatever can be asked afterwards is.
    let answer = change::send(context, queue, &change::request(&fields, options)).await?;
    let mut warnings = Vec::new();
    match context.gates.live_sessions(queue).await {
        Ok(live) if !live.iter().any(|s| s.has(&target)) => {
            let text = format!(
                "no live worker has {target}: rolled back all the same, its tasks wait in their lane until a worker with {target} joins"
            );
            warn(&text);
            warnings.push(text);
        }
        Ok(_) => {}
        Err(e) => warn(format_args!("cannot tell whether a live worker has {target}: {e}")),
    }
    warnings.extend(change::warn_of_older_releases(context, queue, &fields).await);
    let intent = Intent {
        queue,
        fields,
        before,
        inflight,
        warnings,
        rolled_back_to: (!options.dry_run).then_some(target),
    };
    change::report(context, out, intent, answer, options).await
}

/// Where it goes when nobody says.
async fn where_to(context: &Context, queue: &Queue, gate: &Gate) -> Result<Version, Failure> {
    let task_type = &queue.task_type;
    let target = context.gates.rollback_target(queue, gate).await.inspect_err(|_| {
        tell(format_args!(
            "{task_type} is at {}, and what was before cannot be read: switchback gate rollback {task_type} --to VERSION needs no history",
            words(gate)
        ));
    })?;
    match target {
        Target::To(version) => Ok(version),
        Target::Already {
            rev,
            at_us,
            by,
            further,
        } => {
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
                gate.active,
                ago(now, at_us)
            ));
            Ok(gate.active.clone())
        }
        Target::Nothing => Err(GateError::NothingBefore(queue.clone()).into()),
    }
}
