//! Waiting until what a change of the gate left behind has ended, and telling how far that is.

use std::{collections::BTreeSet, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use switchback_common::{Queue, Version};
use switchback_gates::{
    Gate,
    admin::Drained,
    drain::{Left, State},
};

use crate::{
    context::Context,
    exit::Failure,
    text::{count, plain},
};

/// How a wait for what still runs went.
#[derive(Debug, Serialize)]
pub(crate) struct DrainView {
    drained: bool,
    took_us: u64,
    still: Vec<Left>,
    /// What was waited for, as far as it is known by name.
    #[serde(skip)]
    versions: BTreeSet<Version>,
}

/// What a drain waits for.
#[derive(Debug)]
pub(crate) struct Behind<'a> {
    pub(crate) before: Option<&'a Gate>,
    pub(crate) after: &'a Gate,
    /// A pause: whatever runs. Nothing may start.
    pub(crate) everything: bool,
}

impl Behind<'_> {
    fn goes_on(&self, version: &Version) -> bool {
        !self.everything && self.after.reaches(version)
    }
}

pub(crate) async fn drain(
    context: &Context,
    queue: &Queue,
    rev: u64,
    behind: &Behind<'_>,
    limit: Duration,
) -> Result<DrainView, Failure> {
    let before = behind.before.into_iter().flat_map(Gate::reachable);
    let mut versions: BTreeSet<Version> = before.filter(|version| !behind.goes_on(version)).collect();
    // Drawn where there is a terminal, else not at all.
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} · {msg}") {
        bar.set_style(style);
    }
    let told = |left: &[Left]| {
        versions.extend(left.iter().map(|l| l.version.clone()));
        bar.set_message(in_words(left));
        bar.tick();
    };
    let drained = context
        .gates
        .drain(queue, rev, |version| behind.goes_on(version), limit, told)
        .await;
    bar.finish_and_clear();
    let Drained { took, still } = drained?;
    Ok(DrainView {
        drained: still.is_empty(),
        took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        still,
        versions,
    })
}

/// `3 attempts of v2 still running, v2 of 1 worker unknown`.
fn in_words(left: &[Left]) -> String {
    let versions: BTreeSet<&Version> = left.iter().map(|l| &l.version).collect();
    let of = |version: &Version| {
        let of = || left.iter().filter(|l| l.version == *version);
        let known: u64 = of().filter_map(|l| l.attempts).sum();
        let unknown = of().filter(|l| l.attempts.is_none()).count();
        let known = (known > 0).then(|| format!("{} of {version} still running", count(known, "attempt")));
        let unknown = (unknown > 0).then(|| format!("{version} of {} unknown", count(unknown, "worker")));
        known.into_iter().chain(unknown).collect::<Vec<_>>()
    };
    versions.into_iter().flat_map(of).collect::<Vec<_>>().join(", ")
}

impl DrainView {
    pub(crate) fn is_done(&self) -> bool {
        self.drained
    }

    /// For the line that sums a change up.
    pub(crate) fn words(&self) -> String {
        if !self.drained {
            return in_words(&self.still);
        }
        let names: Vec<&str> = self.versions.iter().map(Version::as_str).collect();
        match names.is_empty() {
            true => "nothing was left to drain".to_owned(),
            false => format!("{} drained in {}", names.join(", "), seconds(self.took_us)),
        }
    }

    /// Who is not done, if not everybody is. `now`: the gate as it is by now, if it could be read.
    pub(crate) fn failure(&self, rev: u64, limit: Duration, now: Option<&Gate>) -> Option<Failure> {
        if self.drained {
            return None;
        }
        let who: Vec<String> = self.still.iter().map(words_of).collect();
        let mut text = format!("not drained within {limit:?} at revision {rev}: {}", who.join(", "));
        let back = self
            .still
            .iter()
            .find(|l| now.is_some_and(|gate| gate.reaches(&l.version)));
        if let Some(back) = back {
            text.push_str(&format!(
                "; the gate has changed since, and {} may start again",
                back.version
            ));
        }
        Some(Failure::Unconfirmed(text))
    }
}

fn words_of(left: &Left) -> String {
    let host = left.host.as_deref().map_or_else(|| "unknown host".to_owned(), plain);
    let pid = left.pid.map_or_else(String::new, |pid| format!("/{pid}"));
    let what = match left.attempts {
        Some(n) => format!("{} of {}", count(n, "attempt"), left.version),
        None => format!("{}, nobody knows how many", left.version),
    };
    let why = match left.state {
        State::Running => "",
        State::Unconfirmed => ", has not said that it obeys",
        State::Lost => ", its lease ran out and its tasks are not recovered yet",
    };
    format!("{host}{pid} ({what}, session {}{why})", plain(left.session.as_str()))
}

fn seconds(us: u64) -> String {
    match us {
        0..=999_999 => format!("{} ms", us / 1_000),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}
