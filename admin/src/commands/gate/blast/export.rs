//! Tasks one by one: as JSON lines, or their ids.

use serde::Serialize;
use switchback_common::Version;
use switchback_gates::blast::{Attempt, Fate, Is, Outcome, Question, State, Story};

use crate::{
    args::{Asked, BlastArgs},
    exit::Failure,
    output::Output,
    text::{plain, rfc3339},
};

/// Bytes gathered before they are written.
const CHUNK: usize = 64 * 1024;

#[derive(Debug)]
enum How {
    Nothing,
    Ids,
    Lines,
}

/// Writes tasks as they come.
#[derive(Debug)]
pub(super) struct Export {
    how: How,
    asked: Option<Asked>,
    text: String,
}

#[derive(Debug, Serialize)]
struct TaskView<'a> {
    id: &'a str,
    entry: Option<&'a str>,
    fate: Fate,
    state: State,
    perhaps: bool,
    duplicated: bool,
    refunded: u64,
    attempts: Vec<AttemptView<'a>>,
}

#[derive(Debug, Serialize)]
struct AttemptView<'a> {
    attempt: Option<u32>,
    version: Option<&'a Version>,
    one_of: &'a [Version],
    outcome: Outcome,
    refused: Option<Outcome>,
    rev: Option<u64>,
    gate_read_at: Option<String>,
    gate_read_at_us: Option<u64>,
    claimed_at: Option<String>,
    claimed_at_us: Option<u64>,
    settled_at: Option<String>,
    settled_at_us: Option<u64>,
    ran_ms: Option<u64>,
    session: &'a str,
    stream: &'a str,
    entry: &'a str,
    sure: bool,
}

impl<'a> AttemptView<'a> {
    fn of(attempt: &'a Attempt) -> Self {
        Self {
            attempt: attempt.attempt,
            version: attempt.version.as_ref(),
            one_of: &attempt.one_of,
            outcome: attempt.outcome,
            refused: attempt.refused,
            rev: attempt.rev,
            gate_read_at: attempt.gate_read_at_us.and_then(rfc3339),
            gate_read_at_us: attempt.gate_read_at_us,
            claimed_at: attempt.claimed_at_us.and_then(rfc3339),
            claimed_at_us: attempt.claimed_at_us,
            settled_at: attempt.settled_at_us.and_then(rfc3339),
            settled_at_us: attempt.settled_at_us,
            ran_ms: attempt.ran_ms,
            session: &attempt.session,
            stream: &attempt.stream,
            entry: &attempt.entry,
            sure: attempt.sure,
        }
    }
}

impl Export {
    pub(super) fn new(out: &Output, args: &BlastArgs) -> Self {
        let how = match (args.ids, out.is_lines()) {
            (true, _) => How::Ids,
            (false, true) => How::Lines,
            (false, false) => How::Nothing,
        };
        Self {
            how,
            asked: args.outcome.map(crate::args::Pick::asked),
            text: String::new(),
        }
    }

    pub(super) fn add(&mut self, out: &mut Output, story: &Story, question: &Question) -> Result<(), Failure> {
        let touched = story.touched(question);
        if touched == Is::No || !self.is_wanted(story, question) {
            return Ok(());
        }
        match self.how {
            How::Nothing => return Ok(()),
            How::Ids => self.text.push_str(&plain(&story.task)),
            How::Lines => {
                let view = TaskView {
                    id: &story.task,
                    entry: story.entry(question),
                    fate: story.fate(question),
                    state: story.state,
                    perhaps: touched == Is::Perhaps,
                    duplicated: story.is_duplicated(question),
                    refunded: story.refunded,
                    attempts: story.attempts.iter().map(AttemptView::of).collect(),
                };
                let line = serde_json::to_string(&view);
                self.text
                    .push_str(&line.map_err(|e| Failure::Other(format!("cannot write JSON: {e}")))?);
            }
        }
        self.text.push('\n');
        if self.text.len() >= CHUNK {
            self.flush(out)?;
        }
        Ok(())
    }

    fn is_wanted(&self, story: &Story, question: &Question) -> bool {
        match self.asked {
            None => true,
            Some(Asked::Outcome(outcome)) => story.asked(question).any(|a| a.outcome == outcome),
            Some(Asked::Fate(fate)) => story.fate(question) == fate,
            Some(Asked::Duplicated) => story.is_duplicated(question),
        }
    }

    fn flush(&mut self, out: &mut Output) -> Result<(), Failure> {
        out.text(&std::mem::take(&mut self.text))?;
        Ok(())
    }

    /// Writes what is left; whether tasks were written at all.
    pub(super) fn end(mut self, out: &mut Output) -> Result<bool, Failure> {
        self.flush(out)?;
        Ok(!matches!(self.how, How::Nothing))
    }
}
