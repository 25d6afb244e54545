//! `gate revert`.

use std::collections::BTreeMap;

use switchback_common::{Queue, store::gate::HistoryEntry};

use super::{history, refuse_at_dead_limit, set};
use crate::{
    args::{Change, InFlight},
    context::Context,
    exit::Failure,
    output::{Output, tell},
    text::plain,
};

/// Every field of the gate, so that nothing of the present one is left; and what a field that is not there means.
const FIELDS: [(&str, &str); 6] = [
    ("active", ""),
    ("candidate", ""),
    ("percent", "0"),
    ("pins", ""),
    ("targets", ""),
    ("paused", "0"),
];

pub(super) async fn revert(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    to_rev: u64,
    force: bool,
    inflight: InFlight,
    mut options: Change,
) -> Result<(), Failure> {
    let entry = history::revision(context, queue, to_rev).await?;
    let fields = fields(&entry).ok_or_else(|| {
        Failure::Refused(format!(
            "the entry of revision {to_rev} of {queue} makes no sense: was the history edited by hand? Nothing was changed"
        ))
    })?;
    let paused = fields.contains(&("paused", "1".to_owned()));
    let now_paused = context.gate(queue).await?.is_some_and(|shown| shown.gate.paused);
    match (now_paused, paused) {
        (true, false) => {
            refuse_at_dead_limit(context, queue).await?;
            tell(format_args!(
                "{queue} is paused, and was not at revision {to_rev}: it is resumed"
            ));
        }
        (false, true) => tell(format_args!(
            "{queue} was paused at revision {to_rev}: it is paused again"
        )),
        _ => {}
    }
    options.why = Some(match options.why.as_deref().unwrap_or_default() {
        "" => format!("revert to revision {to_rev}"),
        why => format!("revert to revision {to_rev}: {why}"),
    });
    if !entry.why.is_empty() {
        tell(format_args!(
            "revision {to_rev} was made because: {}",
            plain(&entry.why)
        ));
    }
    set::set(context, out, queue, fields, force, inflight, &options).await
}

/// The fields that make the gate of a revision.
fn fields(entry: &HistoryEntry) -> Option<Vec<(&'static str, String)>> {
    let mut after: BTreeMap<String, String> = serde_json::from_str(&entry.after).ok()?;
    let fields = FIELDS.map(|(name, absent)| (name, after.remove(name).unwrap_or_else(|| absent.to_owned())));
    // A field that this release does not know is one that it would lose.
    (after.is_empty() && !fields[0].1.is_empty()).then(|| fields.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_says_every_field() {
        let of = |after: &str| {
            fields(&HistoryEntry {
                after: after.to_owned(),
                ..HistoryEntry::default()
            })
        };
        let all = of(r#"{"active":"v1","paused":"0"}"#).unwrap();
        assert_eq!(all.len(), FIELDS.len());
        assert!(all.contains(&("candidate", String::new())) && all.contains(&("percent", "0".to_owned())));
        for wrong in ["", "{}", r#"{"paused":"0"}"#, r#"{"active":"v1","shards":"3"}"#] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
