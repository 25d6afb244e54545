//! The account at the end: every claim of the demo, with its number, right or wrong.

use std::{fmt::Display, fs, path::Path};

use switchback_common::{Queue, Store, store::inspect};
use switchback_gates::{Gates, certificate::Revisions};
use switchback_worker::examples::index_document::{Index, index, record_path, stem_v1};

use crate::{
    Failure,
    corpus::{Corpus, Document},
    ledger::Ledger,
    pools,
    script::Flip,
    timeline::Timeline,
};

/// More than any run makes.
const HISTORY: usize = 10_000;
const DIFFERENCES_SHOWN: usize = 5;

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) store: &'a Store,
    pub(crate) queue: &'a Queue,
    pub(crate) corpus: &'a Corpus,
    pub(crate) enqueued: usize,
    pub(crate) flips: &'a [Flip],
    pub(crate) ledger: &'a Ledger,
    pub(crate) unclean: &'a [String],
    pub(crate) index_dir: &'a Path,
}

/// Writes down lines and remembers which were wrong.
struct Account<'a> {
    timeline: &'a Timeline,
    wrong: Vec<String>,
}

impl Account<'_> {
    fn fact(&self, what: &str, value: impl Display) {
        self.timeline.line(format_args!("        {what:<36} {value}"));
    }

    fn claim(&mut self, holds: bool, what: &str, value: impl Display) {
        if !holds {
            self.wrong.push(what.to_owned());
        }
        let mark = if holds { "  ok  " } else { "WRONG " };
        self.timeline.line(format_args!(" {mark} {what:<36} {value}"));
    }
}

/// Prints the report; names the claims that do not hold.
pub(crate) async fn print(evidence: &Evidence<'_>, timeline: &Timeline) -> Result<Vec<String>, Failure> {
    let Evidence { ledger, corpus, .. } = evidence;
    let mut account = Account {
        timeline,
        wrong: Vec::new(),
    };
    timeline.line("");
    timeline.line("report");

    let skipped = corpus.skipped;
    account.fact(
        "documents",
        format_args!(
            "{} from {} texts, {:.1} MB",
            corpus.documents.len(),
            corpus.texts,
            megabytes(corpus.documents.iter().map(|d| d.text.text.len()).sum())
        ),
    );
    account.fact(
        "passed over",
        format_args!(
            "{} not UTF-8, {} over the payload limit, {} unreadable, {} more than needed",
            skipped.not_utf8, skipped.too_large, skipped.unreadable, skipped.not_needed
        ),
    );
    for ((version, outcome), count) in &ledger.outcomes {
        account.fact(&format!("attempts on {version}: {outcome}"), count);
    }
    let lanes = ledger.groups.iter().filter(|group| group.stream.starts_with("lane:"));
    account.fact(
        "handed over to a worker with v2",
        lanes.map(|group| group.tasks.len()).sum::<usize>(),
    );
    for (flip, n) in evidence.flips.iter().zip(1..) {
        account.claim(
            flip.confirmed == pools::COUNT,
            &format!("rollback {n}, {}", flip.how),
            format_args!(
                "{}/{} workers confirmed {:.1} ms after its commit, {:.1} ms after the command was started",
                flip.confirmed,
                pools::COUNT,
                flip.from_commit.as_secs_f64() * 1_000.0,
                flip.from_start.as_secs_f64() * 1_000.0,
            ),
        );
        account.claim(
            flip.failed_before > 0,
            &format!("rollback {n}: v2 had failed before"),
            format_args!("{} times", flip.failed_before),
        );
    }
    late_starts(evidence, &mut account).await?;

    let failed = &ledger.failed_on_candidate;
    let recovered = failed
        .iter()
        .filter(|task| ledger.done_by.get(*task).is_some_and(|version| version == "v1"))
        .count();
    account.claim(
        recovered == failed.len(),
        "failed on v2, succeeded on v1",
        format_args!("{recovered} of {} tasks", failed.len()),
    );
    balance(evidence, &mut account).await?;
    compare(&corpus.documents, evidence.index_dir, &mut account);
    let clean = match evidence.unclean {
        [] => format!("{} of {}", pools::COUNT, pools::COUNT),
        unclean => unclean.join(", "),
    };
    account.claim(evidence.unclean.is_empty(), "workers stopped cleanly", clean);
    Ok(account.wrong)
}

/// The certificate, over the whole log and the whole history.
async fn late_starts(evidence: &Evidence<'_>, account: &mut Account<'_>) -> Result<(), Failure> {
    let history = Gates::new(evidence.store)
        .history(evidence.queue, None, HISTORY)
        .await?;
    let revisions = Revisions::from_history(&history);
    let late: Vec<_> = evidence
        .ledger
        .groups
        .iter()
        .flat_map(|group| revisions.late(group))
        .collect();
    account.claim(
        late.is_empty() && !revisions.is_empty(),
        "late starts",
        format_args!(
            "{} in {} attempts under {} revisions",
            late.len(),
            evidence.ledger.attempts(),
            revisions.len()
        ),
    );
    for late in late.iter().take(DIFFERENCES_SHOWN) {
        account.timeline.note(format_args!("{late:?}"));
    }
    Ok(())
}

/// Nothing lost, nothing made up.
async fn balance(evidence: &Evidence<'_>, account: &mut Account<'_>) -> Result<(), Failure> {
    let ledger = evidence.ledger;
    let depth = inspect::depth(evidence.store, evidence.queue).await?;
    let (done, dead) = (ledger.done_by.len() as u64, depth.dead);
    account.claim(
        done + dead == evidence.enqueued as u64 && evidence.enqueued == evidence.corpus.documents.len(),
        "enqueued = done + dead",
        format_args!("{} = {done} + {dead}", evidence.enqueued),
    );
    account.claim(dead == 0, "dead letters", dead);
    // Not a claim: at least once is the promise. It takes a worker that loses its lease.
    account.fact("done more than once", ledger.done_again);
    let left = depth.waiting() + depth.in_flight() + depth.delayed;
    account.claim(left == 0, "left in the queue", left);
    Ok(())
}

/// What the queue made of each document, against what the function makes of it without a queue.
fn compare(documents: &[Document], index_dir: &Path, account: &mut Account<'_>) {
    let mut different: Vec<&str> = Vec::new();
    for document in documents {
        let direct = index(&document.text.name, &document.text.text, stem_v1);
        let written: Option<Index> = fs::read(record_path(index_dir, &document.key))
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok());
        if written != Some(direct) {
            different.push(&document.key);
        }
    }
    let files = fs::read_dir(index_dir).map_or(0, Iterator::count);
    account.claim(
        different.is_empty() && files == documents.len(),
        "index as computed without the queue",
        format_args!(
            "{} of {} documents, {files} files",
            documents.len() - different.len(),
            documents.len()
        ),
    );
    for key in different.iter().take(DIFFERENCES_SHOWN) {
        account.timeline.note(format_args!("missing or different: {key}"));
    }
}

/// For people.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub(crate) fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}
