//! Facts on their way from the log's order to the order of tasks. P10: the log may be larger than memory, so that beyond a
//! bound they go through temporary files, parted by task, and no more than one part is in memory at a time.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
};

use switchback_gates::blast::Fact;

const PARTS: usize = 64;
/// Bytes kept in memory.
const IN_MEMORY: usize = 16 * 1024 * 1024;

/// Facts, gathered.
#[derive(Debug)]
pub(super) struct Spill {
    parts: Vec<Part>,
    bytes: usize,
    bound: usize,
    spilled: bool,
}

#[derive(Debug, Default)]
struct Part {
    lines: Vec<u8>,
    file: Option<File>,
}

impl Spill {
    pub(super) fn new() -> Self {
        Self::bounded(IN_MEMORY)
    }

    fn bounded(bound: usize) -> Self {
        Self {
            parts: (0..PARTS).map(|_| Part::default()).collect(),
            bytes: 0,
            bound,
            spilled: false,
        }
    }

    pub(super) fn add(&mut self, fact: &Fact) -> io::Result<()> {
        let mut hasher = DefaultHasher::new();
        fact.task.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % PARTS as u64).unwrap_or(0);
        let line = fact.to_line();
        let part = &mut self.parts[place].lines;
        part.extend_from_slice(line.as_bytes());
        part.push(b'\n');
        self.bytes += line.len() + 1;
        if self.bytes <= self.bound {
            return Ok(());
        }
        (self.bytes, self.spilled) = (0, true);
        for part in &mut self.parts {
            let file = match &mut part.file {
                Some(file) => file,
                // It has no name: whatever ends this process, nothing stays behind.
                none => none.insert(tempfile::tempfile()?),
            };
            file.write_all(&part.lines)?;
            part.lines.clear();
        }
        Ok(())
    }

    /// The facts, in parts: all facts of a task are in one. What fits into memory is one part, in the log's order.
    pub(super) fn into_parts(self) -> impl Iterator<Item = io::Result<Vec<Fact>>> {
        let at_once = if self.spilled { 1 } else { PARTS };
        let mut parts = self.parts.into_iter();
        std::iter::from_fn(move || {
            let group: Vec<Part> = parts.by_ref().take(at_once).collect();
            (!group.is_empty()).then(|| read(group))
        })
    }
}

fn read(group: Vec<Part>) -> io::Result<Vec<Fact>> {
    let mut facts = Vec::new();
    for part in group {
        let mut lines = Vec::new();
        if let Some(mut file) = part.file {
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut lines)?;
        }
        lines.extend_from_slice(&part.lines);
        drop(part.lines);
        facts.extend(lines.split(|&b| b == b'\n').filter_map(Fact::of_line));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use switchback_common::StreamId;
    use switchback_gates::blast::{State, What};

    use super::*;

    fn gathered(bound: usize) -> Vec<Vec<Fact>> {
        let mut spill = Spill::bounded(bound);
        for n in 0..1_000_u64 {
            let fact = Fact {
                task: format!("t{}", n % 200),
                at: StreamId { ms: n, seq: 0 },
                what: What::Moved {
                    to: State::InLine,
                    refunded: 0,
                },
            };
            spill.add(&fact).unwrap();
        }
        spill.into_parts().collect::<io::Result<_>>().unwrap()
    }

    // P10.
    #[test]
    fn what_does_not_fit_goes_through_files_and_nothing_is_lost() {
        let small = gathered(usize::MAX);
        assert_eq!((small.len(), small[0].len()), (1, 1_000));
        let large = gathered(4_000);
        assert_eq!(large.len(), PARTS);
        assert_eq!(large.iter().map(Vec::len).sum::<usize>(), 1_000);
        for part in &large {
            assert!(part.len() < 100, "a part is a part: {}", part.len());
            for fact in part {
                assert_eq!(
                    part.iter().filter(|f| f.task == fact.task).count(),
                    5,
                    "no task is torn"
                );
            }
        }
    }
}
