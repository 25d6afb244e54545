//! `gate set`, and what is pause and resume of it.

use switchback_common::{Queue, envelope::clip, store::session::SessionStore};
use switchback_gates::Gate;

use crate::{
    args::{Change, InFlight},
    change::{self, Intent},
    context::Context,
    exit::Failure,
    output::{Output, tell, warn},
    readiness::{self, Verdict},
    view::words,
};

/// Times a `set` is judged anew because somebody else changed the gate in between.
const TRIES: usize = 5;
/// As long as the history keeps.
const MAX_FORCED_BYTES: usize = 1_000;

pub(super) async fn set(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    mut fields: Vec<(&'static str, String)>,
    force: bool,
    inflight: InFlight,
    options: &Change,
) -> Result<(), Failure> {
    fields.extend(inflight.field());
    let older = change::warn_of_older_releases(context, queue, &fields).await;
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
        let verdict = check(context, queue, before.as_ref(), &preview.gate, force).await?;
        request.forced = clip(&verdict.blocks.join("; "), MAX_FORCED_BYTES).to_owned();
        let mut warnings = [verdict.blocks, verdict.warns].concat();
        warnings.iter().for_each(warn);
        warnings.extend(own_candidate(&fields, &preview.gate));
        warnings.extend(older.clone());
        let intent = Intent {
            queue,
            fields: fields.clone(),
            before,
            inflight,
            warnings,
            rolled_back_to: None,
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

/// Whoever names the active version as the candidate has mixed them up, and gets neither a change nor an error.
fn own_candidate(fields: &[(&'static str, String)], after: &Gate) -> Option<String> {
    let active = after.active.as_str();
    let text = format!("{active} is the active version: it cannot be its own candidate");
    let named = fields
        .iter()
        .any(|(name, value)| *name == "candidate" && value == active);
    named.then(|| {
        warn(&text);
        text
    })
}

/// Whether the gate has left the revision that a change was judged against.
async fn moved(context: &Context, queue: &Queue, judged: Option<u64>) -> bool {
    matches!(context.gates.show(queue).await, Ok(shown) if Some(shown.rev) != judged)
}

/// A flip towards a version that is not ready is refused, unless forced. What was passed over goes into the history.
async fn check(
    context: &Context,
    queue: &Queue,
    before: Option<&Gate>,
    after: &Gate,
    force: bool,
) -> Result<Verdict, Failure> {
    let verdict = match readiness::judge(context, queue, before, after).await {
        // Who insists is not stopped by a look that failed.
        Err(failure) if force && change::is_passable(&failure) => Verdict {
            blocks: vec![format!("cannot tell whether it is ready: {failure}")],
            ..Verdict::default()
        },
        other => other?,
    };
    if !verdict.blocks.is_empty() && !force {
        return Err(Failure::Refused(format!(
            "{}. Repeat with --force to do it all the same; nothing was changed",
            verdict.blocks.join("; ")
        )));
    }
    Ok(verdict)
}

pub(super) async fn pause(
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
            if !sessions.iter().any(|s| s.is_live() && s.has(&version)) {
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
        inflight: InFlight::Finish,
        warnings,
        rolled_back_to: None,
    };
    change::report(context, out, intent, answer, options).await
}

/// What is said of fields before Redis is asked. Values are judged in the store, as those that people write by hand;
/// only a switch is read here, because by hand every word but `0`, `false`, `no` and `off` pauses.
pub(super) fn checked(fields: Vec<(&'static str, String)>) -> Result<Vec<(&'static str, String)>, Failure> {
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
