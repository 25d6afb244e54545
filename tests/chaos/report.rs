//! What a run was like, for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use switchback_tests::history::{Breach, Outcome, Promise, What};

use crate::run::Run;

/// Violations shown; all of them are in the directory.
const SHOWN: usize = 20;

impl Run {
    fn breaches(&self, which: impl Fn(Breach) -> bool) -> usize {
        self.violations.iter().filter(|v| which(v.breach)).count()
    }

    /// Tasks that are not where they should be.
    pub fn lost(&self) -> usize {
        self.breaches(|b| matches!(b, Breach::Lost | Breach::LeftBehind))
    }

    /// Starts on a withdrawn version.
    pub fn late(&self) -> usize {
        self.breaches(|b| b.promise() == Promise::P3)
    }

    /// Sessions that were declared lost.
    pub fn losses(&self) -> usize {
        self.history
            .log
            .iter()
            .filter(|line| matches!(line.what, What::Reaping { .. }))
            .count()
    }

    /// Everything that was broken.
    pub fn faults(&self) -> usize {
        self.done.values().sum()
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let history = &self.history;
        let sent = |outcome| history.enqueues.values().filter(|e| e.outcome == outcome).count();
        writeln!(f, "seed {}, schedule {:016x}", self.seed, self.hash)?;
        writeln!(
            f,
            "tasks         {} acknowledged, {} without a reply, {} refused",
            sent(Outcome::Acknowledged),
            sent(Outcome::Unknown),
            sent(Outcome::Refused)
        )?;
        let tasks: BTreeSet<&str> = history.effects.iter().map(|(_, id, _)| id.as_str()).collect();
        let recovered = history.fates.iter().filter(|fate| fate.ended.is_none()).count();
        writeln!(
            f,
            "ran           {} starts, {} effects of {} tasks ({} run again after a loss), {} dead letters",
            history.starts.len(),
            history.effects.len(),
            tasks.len(),
            history.effects.len() - tasks.len(),
            history.remains.iter().filter(|r| r.stream == "dead").count(),
        )?;
        let joined = history.log.iter().filter(|line| line.what == What::Joined).count();
        writeln!(
            f,
            "sessions      {joined} joined, {} lost; {recovered} tasks recovered",
            self.losses()
        )?;
        writeln!(
            f,
            "flips         {}, revisions {}",
            history.flips.len(),
            history.gates.len()
        )?;
        let kinds: Vec<String> = self.done.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        writeln!(f, "faults        {}: {}", self.faults(), kinds.join(", "))?;
        writeln!(f, "lost          {}", self.lost())?;
        writeln!(f, "late starts   {}", self.late())?;
        let mut by_breach: BTreeMap<String, usize> = BTreeMap::new();
        for violation in &self.violations {
            *by_breach
                .entry(format!("{:?} {:?}", violation.promise, violation.breach))
                .or_default() += 1;
        }
        writeln!(f, "violations    {} {by_breach:?}", self.violations.len())?;
        for violation in self.violations.iter().take(SHOWN) {
            writeln!(f, "  {violation}")?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "history, logs and schedule are in {}", kept.display())?;
        }
        Ok(())
    }
}
