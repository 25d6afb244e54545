//! Why a rollout waits at its step, and what to do then. Pure.
//!
//! What happened comes first, its figures in brackets behind it, and after a `;` what to do: see [`kind`].

use switchback_common::Version;

use super::Record;
use crate::guard::{HoldReason, Verdict};

/// A reason without its figures, and without what to do.
pub(super) fn kind(reason: &str) -> &str {
    let end = [" (", "; "].iter().filter_map(|mark| reason.find(mark)).min();
    reason.get(..end.unwrap_or(reason.len())).unwrap_or(reason)
}

const REFUSED: &str = "the gate refused ";

/// The gate refused a step.
#[must_use]
pub fn gate_refused(field: &str, problem: &str, task_type: &str) -> String {
    format!(
        "{REFUSED}{field} ({problem}); the next step is tried until it is taken: `switchback version ls {task_type}` shows what is \
         known, and `switchback rollout abort {task_type}` ends it"
    )
}

/// Whether a rollout waits because of [`gate_refused`]: only trying tells whether it is over.
pub(super) fn is_refused(reason: &str) -> bool {
    reason.starts_with(REFUSED)
}

/// Reasons, with commands that can be copied as they stand.
pub(super) struct Reasons<'a> {
    pub(super) record: &'a Record,
    /// Empty: unknown.
    pub(super) task_type: &'a str,
}

impl Reasons<'_> {
    fn command(&self, verb: &str) -> String {
        let task_type = if self.task_type.is_empty() {
            "TYPE"
        } else {
            self.task_type
        };
        format!("`switchback rollout {verb} {task_type}`")
    }

    pub(super) fn nobody_has(&self, to: &Version) -> String {
        let abort = self.command("abort");
        format!("no live worker has {to}; it goes on by itself when one joins, and {abort} ends it")
    }

    pub(super) fn too_few_have(&self, to: &Version, n: usize, need: usize) -> String {
        format!("too few live workers have {to} ({n}, and it needs {need}); it goes on by itself when more join")
    }

    pub(super) fn no_way_back(&self, from: &Version) -> String {
        format!("no live worker has {from}, which a rollback would go to; it goes on by itself when one joins")
    }

    pub(super) fn of_guard(&self, reason: &HoldReason) -> String {
        let Record { from, to, .. } = self.record;
        let (resume, abort) = (self.command("resume"), self.command("abort"));
        let then = match reason {
            HoldReason::BothFail(_) => {
                "most likely something is down that both need: it goes on by itself when that is over".to_owned()
            }
            HoldReason::ActiveFails(_) => format!(
                "it goes on by itself when {from} is well again; if {to} is the cure, {} goes on now",
                self.command("promote")
            ),
            HoldReason::NothingBeside(_) => {
                format!("when more of {from} has ended it goes on, or back, by itself; {abort} goes back now")
            }
            HoldReason::Stalled(_) => format!(
                "most likely {to} hangs: {abort} goes back now, and what hangs keeps its places until it times out; it goes on by itself \
                 when something of {from} ends"
            ),
            HoldReason::Slower(_) => format!("if it may be as slow as that, {resume} goes on; {abort} goes back"),
            HoldReason::Share(_) => format!(
                "too few keys, or one that is most of the tasks, would explain it: then {resume} goes on; {abort} goes back"
            ),
        };
        format!("{reason}; {then}")
    }

    pub(super) fn too_little(&self, verdict: &Verdict) -> String {
        let (to, promote) = (&self.record.to, self.command("promote"));
        format!(
            "too little is known of {to} after all the time that this step has ({verdict}); more tasks, of more keys, let it go \
             on by itself; {promote} goes on without"
        )
    }

    pub(super) fn too_weak(&self, short: &str) -> String {
        let promote = self.command("promote");
        format!(
            "too few slots for the next step ({short}); it goes on by itself when there are more; {promote} goes on without"
        )
    }

    pub(super) fn last_step(&self) -> String {
        let (promote, abort) = (self.command("promote"), self.command("abort"));
        format!("the last step is passed and below 100 %; by hand: {promote} to 100 %, or {abort} goes back")
    }
}
