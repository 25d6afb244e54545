//! The certificate, as it is shown, and what it is worth.

use serde::Serialize;
use switchback_common::{Queue, Version};
use switchback_gates::{
    blast::{Outcome, Report},
    certificate::LateStart,
};

use super::{Ask, Collected};
use crate::{
    commands::gate::spell::RevisionView,
    exit::Failure,
    output::sheet,
    text::{ago, count, plain, rfc3339},
};

/// What the log proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// Nothing started late.
    None,
    /// Something did.
    Late,
    /// The server became another in between.
    Undecidable,
    /// Not everything is in the log.
    Incomplete,
}

#[derive(Debug, Serialize)]
struct NotInLog {
    running: u64,
    vanished: u64,
    stale: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct CertificateView {
    verdict: Verdict,
    flip: RevisionView,
    attempts: u64,
    late: u64,
    late_starts: Vec<LateStart>,
    undecidable: u64,
    last_gate_read: Option<String>,
    last_gate_read_us: Option<u64>,
    from: Option<String>,
    from_us: u64,
    until: Option<String>,
    until_us: u64,
    complete: bool,
    not_in_log: NotInLog,
}

impl CertificateView {
    pub(super) fn of(flip: RevisionView, ask: &Ask<'_>, report: &Report, collected: &Collected) -> Self {
        let it = &collected.certificate;
        let complete_from = collected.extent.complete_from_us().unwrap_or(0);
        // Whatever was settled before the flip cannot have begun after it.
        let complete = complete_from <= flip.at_us();
        let verdict = match it {
            _ if it.late > 0 => Verdict::Late,
            _ if it.undecidable > 0 => Verdict::Undecidable,
            _ if !complete || collected.running.published > 0 => Verdict::Incomplete,
            _ => Verdict::None,
        };
        let from_us = ask.from_us.max(complete_from);
        Self {
            verdict,
            flip,
            attempts: it.attempts,
            late: it.late,
            late_starts: it.late_starts.clone(),
            undecidable: it.undecidable,
            last_gate_read: it.last_read_us.and_then(rfc3339),
            last_gate_read_us: it.last_read_us,
            from: rfc3339(from_us),
            from_us,
            until: rfc3339(ask.now_us),
            until_us: ask.now_us,
            complete,
            not_in_log: NotInLog {
                running: collected.running.published,
                vanished: report.outcome(Outcome::Vanished),
                stale: report.outcome(Outcome::Stale),
            },
        }
    }

    pub(super) fn human(&self, now_us: u64) -> String {
        let last = self.last_gate_read_us.map_or_else(
            || "no attempt in the log".to_owned(),
            |at| {
                let exact = self.last_gate_read.clone().unwrap_or_default();
                format!("{exact} ({})", ago(now_us, at))
            },
        );
        let missing = &self.not_in_log;
        let missing: Vec<String> = [
            (missing.running, "running"),
            (missing.vanished, "vanished"),
            (missing.stale, "stale"),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| format!("{n} {word}"))
        .collect();
        let mut text = format!("\nCERTIFICATE  late starts: {}\n", self.late);
        text.push_str(&sheet(&[
            ("FLIP", self.flip.words(now_us)),
            ("EXAMINED", format!("{} in the log", count(self.attempts, "attempt"))),
            (
                "UNDECIDABLE",
                if self.undecidable > 0 {
                    format!("{}: the server became another meanwhile", self.undecidable)
                } else {
                    String::new()
                },
            ),
            ("LAST GATE READ", last),
            (
                "LOG",
                format!(
                    "from {} on, {}",
                    self.from.as_deref().unwrap_or_default(),
                    if self.complete {
                        "complete since the flip"
                    } else {
                        "older entries are gone, also of attempts after the flip"
                    }
                ),
            ),
            ("NOT IN THE LOG", missing.join(", ")),
        ]));
        for late in &self.late_starts {
            text.push_str(&format!(
                "  LATE  {} on {}, decided under revision {}, after revision {} was sealed\n",
                plain(&late.task),
                late.version,
                late.rev,
                late.sealed
            ));
        }
        text
    }

    /// How the run ends.
    pub(super) fn judge(&self, queue: &Queue, version: &Version) -> Result<(), Failure> {
        match self.verdict {
            Verdict::None => Ok(()),
            Verdict::Late => Err(Failure::Other(format!(
                "{} of {queue} on {version} after it was withdrawn",
                count(self.late, "late start")
            ))),
            Verdict::Undecidable => Err(Failure::NotYet(format!(
                "whether {} of {queue} on {version} began before or after the withdrawal cannot be told: the server became \
                 another in between",
                count(self.undecidable, "attempt")
            ))),
            Verdict::Incomplete if self.complete => Err(Failure::NotYet(format!(
                "{} of {queue} still run on {version}; none so far began late: ask again when they have ended",
                count(self.not_in_log.running, "attempt")
            ))),
            Verdict::Incomplete => Err(Failure::NotYet(format!(
                "the log of {queue} begins after the flip: whether an attempt on {version} began late cannot be told for what is \
                 gone"
            ))),
        }
    }
}
