//! The harness's own witness of the fence: what the processes started, held against when the gate was flipped.
//!
//! It knows nothing of revisions, logs or what a worker believes. It knows when a flip's reply had arrived, when a
//! task was sent, and when each start happened, on the one clock of this machine.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use switchback_common::clock::Moment;

/// One flip: from `sent` on the gate may name `version`, from `replied` on it does, until the next flip is sent.
#[derive(Debug, Clone)]
pub struct Flip {
    /// Before the first byte was written.
    pub sent: Moment,
    /// After the reply was read.
    pub replied: Moment,
    /// The only version that may start from then on.
    pub version: String,
}

/// One start, as the process wrote it down.
#[derive(Debug, Clone)]
pub struct Start {
    /// The task.
    pub n: u64,
    /// The version.
    pub version: String,
    /// When its start check was passed.
    pub at: Moment,
    /// Which attempt.
    pub attempt: u32,
}

/// What happened, from outside.
#[derive(Debug, Default)]
pub struct Witness {
    flips: Vec<Flip>,
    sent: HashMap<u64, Moment>,
    files: Vec<PathBuf>,
}

/// Starts that must not have been.
#[derive(Debug, Default)]
pub struct Late {
    /// Tasks that were sent after a flip's reply, and started on the version that it had withdrawn.
    pub sent_after: Vec<String>,
    /// Starts on a withdrawn version later than `start_ttl` after the flip's reply.
    pub past_ttl: Vec<String>,
}

impl Late {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sent_after.len() + self.past_ttl.len()
    }
}

impl Witness {
    /// A process writes its starts to `file`.
    pub fn watch(&mut self, file: &Path) {
        self.files.push(file.to_owned());
    }

    /// The gate was flipped.
    pub fn flipped(&mut self, flip: Flip) {
        self.flips.push(flip);
    }

    /// Task `n` is about to be sent.
    pub fn sending(&mut self, n: u64) {
        self.sent.insert(n, Moment::now());
    }

    /// How many flips there were.
    #[must_use]
    pub fn flips(&self) -> usize {
        self.flips.len()
    }

    /// Every start so far.
    ///
    /// # Panics
    /// When a line cannot be read.
    #[must_use]
    pub fn starts(&self) -> Vec<Start> {
        let mut out = Vec::new();
        for file in &self.files {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            for line in text.lines().filter(|line| line.starts_with("start ")) {
                let parts: Vec<&str> = line.split(' ').collect();
                out.push(Start {
                    n: parts[1].parse().expect("a number"),
                    version: parts[2].to_owned(),
                    at: Moment::from_nanos(parts[3].parse().expect("a moment")),
                    attempt: parts[4].parse().expect("an attempt"),
                });
            }
        }
        out
    }

    /// The tasks that ended, each as often as it did.
    #[must_use]
    pub fn ends(&self) -> Vec<u64> {
        let mut out = Vec::new();
        for file in &self.files {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let ends = text.lines().filter_map(|line| line.strip_prefix("end "));
            out.extend(ends.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()));
        }
        out
    }

    /// The starts that broke the fence.
    #[must_use]
    pub fn late(&self, start_ttl: std::time::Duration) -> Late {
        let mut late = Late::default();
        for start in self.starts() {
            // The last flip whose reply had arrived when this started, unless the next one was already on its way.
            let next = self.flips.partition_point(|flip| flip.replied < start.at);
            let Some(flip) = next.checked_sub(1).map(|n| &self.flips[n]) else {
                continue;
            };
            let overtaken = self.flips.get(next).is_some_and(|next| next.sent <= start.at);
            if overtaken || flip.version == start.version {
                continue;
            }
            let text = format!(
                "task {} attempt {} on {} {:?} after the flip to {}",
                start.n,
                start.attempt,
                start.version,
                start.at.since(flip.replied),
                flip.version
            );
            // P3 needs no clock here: the claim came after the send, the gate read after the claim, so it saw the flip.
            if self.sent.get(&start.n).is_some_and(|sent| *sent > flip.replied) {
                late.sent_after.push(text.clone());
            }
            if start.at.since(flip.replied) > start_ttl {
                late.past_ttl.push(text);
            }
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn late_starts_are_seen_and_others_are_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let at = |ms: u64| Moment::from_nanos(ms * 1_000_000);
        let mut witness = Witness::default();
        witness.watch(file.path());
        for (ms, version) in [(1_000, "v1"), (3_000, "v2")] {
            witness.flipped(Flip {
                sent: at(ms),
                replied: at(ms + 10),
                version: version.to_owned(),
            });
        }
        witness.sent.insert(1, at(500));
        witness.sent.insert(2, at(1_020));
        let line = |n: u64, version: &str, ms: u64| format!("start {n} {version} {} 1 1\n", ms * 1_000_000);
        let cases = [
            (line(1, "v2", 1_100), 0, 0, "read before the flip, within the time"),
            (line(1, "v2", 1_400), 0, 1, "too long after"),
            (line(2, "v2", 1_100), 1, 0, "sent after the flip"),
            (line(2, "v1", 1_100), 0, 0, "the right version"),
            (line(2, "v2", 3_005), 0, 0, "the next flip was on its way"),
        ];
        for (text, sent_after, past_ttl, why) in cases {
            std::fs::write(file.path(), text).unwrap();
            let late = witness.late(Duration::from_millis(250));
            assert_eq!(
                (late.sent_after.len(), late.past_ttl.len()),
                (sent_after, past_ttl),
                "{why}"
            );
        }
    }
}
