//! The report: stories, counted.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Fate, Is, Outcome, Question, Story};

/// Attempts on the version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Attempts {
    /// All of them, those that only may have run on it included.
    pub total: u64,
    /// By outcome, all of them.
    pub by_outcome: BTreeMap<Outcome, u64>,
    /// Of these, attempts that ran on one of several versions: which one nobody can tell.
    pub one_of: u64,
    /// Of these, attempts whose outcome may not have taken effect.
    pub unsure: u64,
}

/// Tasks that the version touched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tasks {
    /// All of them.
    pub touched: u64,
    /// Of these, tasks that it only may have touched.
    pub perhaps: u64,
    /// What became of them: every task once.
    pub by_fate: BTreeMap<Fate, u64>,
    /// Of these, tasks of which more than one attempt may have had effects.
    pub duplicated: u64,
    /// Of these, tasks that had attempts given back.
    pub refunded: u64,
}

/// The blast radius of a version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Attempts on it.
    pub attempts: Attempts,
    /// Tasks that it touched.
    pub tasks: Tasks,
}

impl Report {
    /// Counts one task, if the version touched it.
    pub fn add(&mut self, story: &Story, question: &Question) {
        let touched = story.touched(question);
        if touched == Is::No {
            return;
        }
        for attempt in story.asked(question) {
            self.attempts.total += 1;
            *self.attempts.by_outcome.entry(attempt.outcome).or_default() += 1;
            self.attempts.one_of += u64::from(attempt.on(&question.version) == Is::Perhaps);
            self.attempts.unsure += u64::from(!attempt.sure);
        }
        self.tasks.touched += 1;
        self.tasks.perhaps += u64::from(touched == Is::Perhaps);
        *self.tasks.by_fate.entry(story.fate(question)).or_default() += 1;
        self.tasks.duplicated += u64::from(story.is_duplicated(question));
        self.tasks.refunded += u64::from(story.refunded > 0);
    }

    /// Tasks with this fate.
    #[must_use]
    pub fn fate(&self, fate: Fate) -> u64 {
        self.tasks.by_fate.get(&fate).copied().unwrap_or(0)
    }

    /// Attempts with this outcome.
    #[must_use]
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.attempts.by_outcome.get(&outcome).copied().unwrap_or(0)
    }
}
