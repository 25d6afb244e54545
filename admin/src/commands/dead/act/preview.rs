//! What would be done.

use std::collections::BTreeMap;

use serde::Serialize;
use switchback_common::{Queue, store::dead::DeadLetter};

use super::{
    super::{Window, some},
    Action, Refund,
    source::{Found, Source},
};
use crate::{
    exit::Failure,
    output::{Output, table, warn},
    text::{brief, count},
};

/// Letters shown by name.
const SHOWN: usize = 5;

/// A letter by name.
#[derive(Debug, Serialize)]
struct Named {
    entry: String,
    id: Option<String>,
    reason: String,
    version: String,
}

impl Named {
    fn of(letter: &DeadLetter) -> Self {
        Self {
            entry: letter.entry.to_string(),
            id: some(letter.id.clone()),
            reason: letter.reason.clone(),
            version: letter.version.clone(),
        }
    }

    fn words(&self) -> String {
        let id = self.id.as_deref().unwrap_or("no id");
        format!("{} ({}, {})", self.entry, brief(id, 64), brief(&self.reason, 24))
    }
}

/// How many, and the first of them.
#[derive(Debug, Default, Serialize)]
pub(super) struct Few {
    pub(super) count: u64,
    first: Vec<Named>,
}

impl Few {
    pub(super) fn add(&mut self, letter: &DeadLetter) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(Named::of(letter));
        }
    }

    pub(super) fn words(&self) -> String {
        let names: Vec<String> = self.first.iter().map(Named::words).collect();
        let more = if self.count > SHOWN as u64 { ", …" } else { "" };
        format!("{}{more}", names.join(", "))
    }
}

#[derive(Debug, Serialize)]
struct Preview {
    queue: String,
    action: &'static str,
    dry_run: bool,
    matching: u64,
    bytes: u64,
    refused: Few,
    missing: Vec<String>,
    until: Option<String>,
    window: Option<Window>,
    groups: Vec<Group>,
    first: Vec<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refund: Option<Refund>,
}

#[derive(Debug, Serialize)]
struct Group {
    reason: String,
    version: String,
    count: u64,
    #[serde(flatten)]
    refund: Option<GroupRefund>,
}

/// Of a refund: where they lie, and what is given back.
#[derive(Debug, Serialize)]
struct GroupRefund {
    place: &'static str,
    refund: u64,
    untold: u64,
}

#[derive(Debug, Default)]
struct Sum {
    count: u64,
    refund: u64,
    untold: u64,
}

pub(super) async fn show(out: &mut Output, queue: &Queue, action: Action, mut source: Source) -> Result<(), Failure> {
    let (mut matching, mut refused) = (Few::default(), Few::default());
    let mut refund = action.refund(&source);
    let (mut waiting, mut bytes) = (0, 0);
    let mut groups: BTreeMap<(&'static str, String, String), Sum> = BTreeMap::new();
    while let Some(meant) = source.next().await? {
        match meant.found {
            Found::Letters(letters) => {
                for letter in &letters {
                    if action.refuses(letter) {
                        refused.add(letter);
                        continue;
                    }
                    matching.add(letter);
                    bytes += letter.bytes;
                    let sum = groups
                        .entry(("dead", letter.reason.clone(), letter.version.clone()))
                        .or_default();
                    sum.count += 1;
                    sum.refund += letter.refund;
                    sum.untold += letter.untold;
                    if let Some(refund) = &mut refund {
                        refund.letter(letter);
                    }
                }
            }
            Found::Waiting(tasks) => {
                for task in &tasks {
                    waiting += 1;
                    bytes += task.bytes;
                    if let Some(refund) = &mut refund {
                        refund.waiting(task);
                        let sum = groups
                            .entry(("delayed", String::new(), refund.version.clone()))
                            .or_default();
                        sum.count += 1;
                        sum.refund += task.refund;
                        sum.untold += task.untold;
                    }
                }
            }
        }
    }
    let groups = groups.into_iter().map(|((place, reason, version), sum)| Group {
        reason,
        version,
        count: sum.count,
        refund: refund.is_some().then_some(GroupRefund {
            place,
            refund: sum.refund,
            untold: sum.untold,
        }),
    });
    let view = Preview {
        queue: queue.to_string(),
        action: action.verb(),
        dry_run: true,
        matching: matching.count + waiting,
        bytes,
        missing: source.missing.clone(),
        until: source.until.map(|id| id.to_string()),
        window: source.window.clone(),
        groups: groups.collect(),
        first: matching.first,
        refused,
        refund,
    };
    out.value(&view, |_| human(&view, queue, matching.count, waiting))?;
    tell_refused(&view.refused);
    Ok(())
}

fn human(view: &Preview, queue: &Queue, letters: u64, waiting: u64) -> String {
    let mut text = format!("would {} {} of {queue}", view.action, count(letters, "dead letter"));
    if let Some(refund) = &view.refund {
        text.push_str(&format!(
            " and retry {} that wait{}, giving back {} on {}",
            count(waiting, "task"),
            if waiting == 1 { "s" } else { "" },
            count(refund.attempts, "attempt"),
            refund.version
        ));
    }
    text.push_str(&format!(" ({} bytes) · dry run, nothing was changed\n", view.bytes));
    if let Some(words) = view.refund.as_ref().and_then(Refund::untold_words) {
        text.push_str(&format!("{words}\n"));
    }
    let rows = view.groups.iter().map(|g| {
        let mut row = vec![brief(&g.reason, 24), brief(&g.version, 64), g.count.to_string()];
        if let Some(refund) = &g.refund {
            row.insert(0, refund.place.to_owned());
            row.push(refund.refund.to_string());
        }
        row
    });
    if !view.groups.is_empty() {
        text.push('\n');
        text.push_str(&match view.refund {
            Some(_) => table(
                &["PLACE", "REASON", "VERSION", "COUNT", "GIVEN BACK"],
                &["COUNT", "GIVEN BACK"],
                rows,
            ),
            None => table(&["REASON", "VERSION", "COUNT"], &["COUNT"], rows),
        });
        text.push('\n');
    }
    if !view.first.is_empty() {
        text.push_str("\nFIRST\n");
    }
    for letter in &view.first {
        text.push_str(&format!("  {}\n", letter.words()));
    }
    text
}

pub(super) fn tell_refused(refused: &Few) {
    if refused.count > 0 {
        warn(format_args!(
            "{} malformed and stays, for it would only die again (--force): {}",
            if refused.count == 1 {
                "1 is".to_owned()
            } else {
                format!("{} are", refused.count)
            },
            refused.words()
        ));
    }
}
