//! What differs between two states of queues, field by field. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::document::QueueDoc;

/// The sections of a queue, in the order in which they are applied: the gate last, so that what it sends meets the rest.
pub(crate) const SECTIONS: [&str; 5] = ["limits", "retry", "rollout", "schedules", "gate"];

/// Section, then field, dotted; a field that is not there is absent.
pub(crate) type Fields = BTreeMap<&'static str, BTreeMap<String, Value>>;

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) queue: String,
    pub(crate) section: String,
    pub(crate) field: String,
    /// Null: it is not there.
    pub(crate) before: Value,
    pub(crate) after: Value,
}

/// The fields of the sections that are there; one that is there and empty has none.
pub(crate) fn fields(doc: &QueueDoc) -> Fields {
    let mut out = Fields::new();
    let json = serde_json::to_value(doc).unwrap_or_default();
    for section in SECTIONS {
        let Some(Value::Object(found)) = json.get(section) else {
            continue;
        };
        let mut flat = BTreeMap::new();
        match (section, &doc.schedules) {
            ("schedules", Some(schedules)) => {
                for (name, schedule) in schedules {
                    let mut found = serde_json::to_value(schedule).unwrap_or_default();
                    if let Value::Object(fields) = &mut found {
                        fields.remove("payload");
                        fields.remove("payload_json");
                        flatten(&format!("{name}."), fields, &mut flat);
                    }
                    // A payload is compared as a whole.
                    flat.insert(format!("{name}.payload"), schedule.canonical_payload());
                }
            }
            _ => flatten("", found, &mut flat),
        }
        out.insert(section, flat);
    }
    out
}

fn flatten(prefix: &str, fields: &Map<String, Value>, out: &mut BTreeMap<String, Value>) {
    for (name, value) in fields {
        match value {
            Value::Object(inner) => flatten(&format!("{prefix}{name}."), inner, out),
            Value::Null => {}
            value => {
                out.insert(format!("{prefix}{name}"), value.clone());
            }
        }
    }
}

/// What a queue is to be: `now`, with the sections and gate fields that are wanted in their place.
pub(crate) fn merged(now: &QueueDoc, wanted: &QueueDoc) -> QueueDoc {
    let mut out = now.clone();
    if let Some(wish) = &wanted.gate {
        let gate = out.gate.get_or_insert_default();
        let wish = wish.clone();
        gate.active = wish.active.or_else(|| gate.active.take());
        gate.candidate = wish.candidate.or_else(|| gate.candidate.take());
        gate.percent = wish.percent.or_else(|| gate.percent.take());
        gate.pins = wish.pins.or_else(|| gate.pins.take());
        gate.targets = wish.targets.or_else(|| gate.targets.take());
        gate.paused = wish.paused.or_else(|| gate.paused.take());
    }
    let wanted = wanted.clone();
    out.limits = wanted.limits.or(out.limits);
    out.retry = wanted.retry.or(out.retry);
    out.rollout = wanted.rollout.or(out.rollout);
    out.schedules = wanted.schedules.or(out.schedules);
    out
}

/// What differs, in the order of application. A section that is not in `after` is left alone.
pub(crate) fn changes(queue: &str, before: &Fields, after: &Fields) -> Vec<Change> {
    let mut out = Vec::new();
    let none = BTreeMap::new();
    for section in SECTIONS {
        let Some(after) = after.get(section) else { continue };
        let before = before.get(section).unwrap_or(&none);
        let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for name in names {
            let (was, is) = (before.get(name), after.get(name));
            if was != is {
                out.push(Change {
                    queue: queue.to_owned(),
                    section: section.to_owned(),
                    field: name.clone(),
                    before: was.cloned().unwrap_or_default(),
                    after: is.cloned().unwrap_or_default(),
                });
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
