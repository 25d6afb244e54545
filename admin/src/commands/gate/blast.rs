//! `gate blast`: what a version did to which tasks. Only looks.

mod certificate;
mod collect;
mod export;
mod spill;

use serde::Serialize;
use switchback_common::{Queue, Version};
use switchback_gates::{
    blast::{Fate, Outcome, Question, Report},
    certificate::Revisions,
};

use self::{
    certificate::CertificateView,
    collect::{Collected, Running},
    export::Export,
};
use super::spell::{self, RevisionView};
use crate::{
    args::BlastArgs,
    context::Context,
    exit::Failure,
    output::{Output, sheet, table, tell, warn},
    text::{ago, count, rfc3339},
};

/// What is asked, resolved.
#[derive(Debug)]
struct Ask<'a> {
    queue: &'a Queue,
    revisions: &'a Revisions,
    question: Question,
    now_us: u64,
    /// Where reading the log begins.
    from_us: u64,
}

pub(super) async fn run(context: &Context, out: &mut Output, args: &BlastArgs) -> Result<(), Failure> {
    if args.outcome.is_some() && !args.ids && !out.is_lines() {
        return Err(Failure::Usage(
            "--outcome chooses tasks: add --ids, or -o jsonl".to_owned(),
        ));
    }
    let queue = context.queue(args.task_type.clone());
    let revisions = spell::revisions(context, &queue).await?;
    spell::require_version(context, &queue, &revisions, &args.version).await?;
    let flip = match args.certificate {
        true => Some(spell::withdrawn(&queue, &revisions, &args.version)?.1),
        false => None,
    };
    let last = revisions.spells(&args.version).pop();
    let now_us = context.now_us().await?;
    let became = last.and_then(|spell| spell.since);
    let since_us = match args.since {
        Some(at) => at.us(now_us),
        None => became.map_or(0, |revision| revision.at_us),
    };
    let until_us = args.until.map_or(u64::MAX, |at| at.us(now_us));
    if since_us > until_us.min(now_us) {
        return Err(Failure::Usage(format!(
            "the window ends before it begins: --since is {}, --until is {}",
            rfc3339(since_us).unwrap_or_default(),
            rfc3339(until_us.min(now_us)).unwrap_or_default()
        )));
    }
    let ask = Ask {
        queue: &queue,
        revisions: &revisions,
        question: Question {
            version: args.version.clone(),
            since_us,
            until_us,
        },
        now_us,
        from_us: since_us.min(flip.map_or(since_us, |flip| flip.at_us)),
    };
    let mut collected = collect::collect(context, &ask).await?;
    let mut report = Report::default();
    let mut export = Export::new(out, args);
    let facts = std::mem::take(&mut collected.facts);
    if let Some(facts) = facts {
        for part in facts.into_parts() {
            let mut part = part.map_err(|error| temporary(&error))?;
            collected.find_keys(context, &ask, &mut part).await?;
            for story in switchback_gates::blast::stories(part) {
                report.add(&story, &ask.question);
                export.add(out, &story, &ask.question)?;
            }
        }
    }
    let exported = export.end(out)?;
    let view = View::of(&ask, last, report, &collected, flip.map(RevisionView::of));
    if exported {
        for note in &view.notes {
            warn(note);
        }
        tell(view.line());
        if let Some(certificate) = &view.certificate {
            tell(certificate.human(now_us).trim());
        }
    } else {
        out.value(&view, |_| view.human(now_us))?;
    }
    match &view.certificate {
        Some(certificate) => certificate.judge(&queue, &args.version),
        None => Ok(()),
    }
}

fn temporary(error: &std::io::Error) -> Failure {
    Failure::Other(format!(
        "cannot use temporary files, which a log of this size needs: {error}; free some space, set TMPDIR, or ask for less \
         with --since"
    ))
}

/// The blast radius, as it is shown.
#[derive(Debug, Serialize)]
struct View {
    queue: String,
    version: Version,
    since: Option<String>,
    since_us: u64,
    until: Option<String>,
    until_us: u64,
    reachable: bool,
    made_reachable: Option<RevisionView>,
    withdrawn: Option<RevisionView>,
    #[serde(flatten)]
    report: Report,
    running: Running,
    complete: bool,
    complete_from: Option<String>,
    complete_from_us: Option<u64>,
    notes: Vec<String>,
    certificate: Option<CertificateView>,
}

impl View {
    fn of(
        ask: &Ask<'_>,
        last: Option<switchback_gates::certificate::Spell<'_>>,
        report: Report,
        collected: &Collected,
        flip: Option<RevisionView>,
    ) -> Self {
        let Question {
            version,
            since_us,
            until_us,
        } = &ask.question;
        let until_us = (*until_us).min(ask.now_us);
        let complete_from_us = collected.extent.complete_from_us();
        let complete = complete_from_us.is_none_or(|from| from <= *since_us);
        let certificate = flip.map(|flip| CertificateView::of(flip, ask, &report, collected));
        Self {
            queue: ask.queue.to_string(),
            version: version.clone(),
            since: rfc3339(*since_us),
            since_us: *since_us,
            until: rfc3339(until_us),
            until_us,
            reachable: last.is_some_and(|spell| spell.until.is_none()),
            made_reachable: last.and_then(|spell| spell.since).map(RevisionView::of),
            withdrawn: last.and_then(|spell| spell.until).map(RevisionView::of),
            notes: notes(ask, &report, collected, complete),
            running: collected.running.clone(),
            report,
            complete,
            complete_from: complete_from_us.and_then(rfc3339),
            complete_from_us,
            certificate,
        }
    }

    /// What stands below exported tasks.
    fn line(&self) -> String {
        let Report { attempts, tasks } = &self.report;
        format!(
            "{} of {}: {} touched, {}, effects possibly duplicated of {}",
            self.version,
            self.queue,
            count(tasks.touched, "task"),
            count(attempts.total, "attempt"),
            tasks.duplicated
        )
    }

    fn human(&self, now_us: u64) -> String {
        let Report { attempts, tasks } = &self.report;
        let since = match &self.made_reachable {
            Some(revision) => format!("reachable since {}", revision.words(now_us)),
            None => "when it became reachable, the history does not say".to_owned(),
        };
        let mut window = self.since.clone().unwrap_or_default();
        window.push_str(&format!(" ({})", ago(now_us, self.since_us)));
        let until = if self.until_us == now_us {
            "now".to_owned()
        } else {
            self.until.clone().unwrap_or_default()
        };
        let by_outcome: Vec<String> = attempts
            .by_outcome
            .iter()
            .map(|(outcome, n)| format!("{n} {}", outcome.as_str()))
            .collect();
        let mut text = sheet(&[
            ("QUEUE", self.queue.clone()),
            ("VERSION", format!("{} · {since}", self.version)),
            (
                "WITHDRAWN",
                match &self.withdrawn {
                    Some(revision) => revision.words(now_us),
                    None if self.reachable => "no: tasks are still routed to it".to_owned(),
                    None => "never reachable".to_owned(),
                },
            ),
            ("WINDOW", format!("{window} until {until}")),
            ("ATTEMPTS", format!("{}  {}", attempts.total, by_outcome.join(", "))),
            ("STILL RUNNING", self.running.words(&self.version)),
        ]);
        let rows = FATES.iter().filter_map(|(fate, words)| {
            let n = self.report.fate(*fate);
            (n > 0).then(|| vec![n.to_string(), (*words).to_owned()])
        });
        text.push_str(&format!("\nTASKS  {} touched", tasks.touched));
        if tasks.perhaps > 0 {
            text.push_str(&format!(", {} of them only perhaps", tasks.perhaps));
        }
        text.push('\n');
        if tasks.touched > 0 {
            text.push_str(&table(&["COUNT", "WHAT BECAME OF THEM"], &["COUNT"], rows));
            text.push_str(&format!("\neffects possibly duplicated: {}", tasks.duplicated));
            if tasks.refunded > 0 {
                text.push_str(&format!("\nattempts given back: to {}", count(tasks.refunded, "task")));
            }
            text.push('\n');
        }
        if let Some(certificate) = &self.certificate {
            text.push_str(&certificate.human(now_us));
        }
        for note in &self.notes {
            text.push_str(&format!("\nNOT EXACT  {note}"));
        }
        text
    }
}

const FATES: [(Fate, &str); 10] = [
    (
        Fate::DoneOnIt,
        "done on it: candidates for compensation if it was done wrongly",
    ),
    (Fate::Recovered, "did not end on it, done on another version"),
    (Fate::Waiting, "failed on it, wait for a retry"),
    (Fate::Dead, "dead on it"),
    (Fate::Running, "running"),
    (Fate::InLine, "in line again"),
    (Fate::FailedElsewhere, "failed on another version afterwards"),
    (Fate::Cancelled, "cancelled"),
    (Fate::Discarded, "dead, and discarded"),
    (Fate::Unknown, "unknown"),
];

/// Where it is not exact.
fn notes(ask: &Ask<'_>, report: &Report, collected: &Collected, complete: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !complete {
        let from = collected
            .extent
            .complete_from_us()
            .and_then(rfc3339)
            .unwrap_or_default();
        notes.push(format!("the log begins at {from}: what ended before is missing"));
    }
    let vanished = report.outcome(Outcome::Vanished);
    if vanished > 0 {
        notes.push(format!(
            "vanished, with a session that was lost: {}. Whether they began nobody knows; where they ran is computed from the \
             history",
            count(vanished, "attempt")
        ));
    }
    if report.attempts.one_of > 0 {
        notes.push(format!(
            "{} ran on one of several versions: {} perhaps",
            count(report.attempts.one_of, "attempt"),
            ask.question.version
        ));
    }
    if report.attempts.unsure > 0 {
        notes.push(format!(
            "{} ended in batches that took effect in part only: some outcomes may not count",
            count(report.attempts.unsure, "attempt")
        ));
    }
    if collected.stale_cut > 0 {
        notes.push(format!(
            "{} of late results were cut when they were written: some are missing",
            count(collected.stale_cut, "list")
        ));
    }
    if collected.unknown_keys > 0 {
        notes.push(format!(
            "{} could not be found any more to compute again where they ran",
            count(collected.unknown_keys, "task")
        ));
    }
    if !collected.running.held_complete {
        notes.push("more tasks are held than were looked at: those that run now are not all shown".to_owned());
    }
    notes
}
