//! What is done to the system, and when: pure data made from a seed. The same seed gives the same schedule.

use std::time::Duration;

/// The versions of each worker: a mixed fleet. The first to join seeds the gate.
pub const FLEET: [&str; 5] = ["v1,v2", "v2,v1", "v1,v2", "v1", "v2"];
/// The first is active at first.
pub const VERSIONS: [&str; 2] = ["v1", "v2"];
/// The link of the producer stands after those of the workers.
pub const PRODUCER: usize = FLEET.len();
/// Most workers in trouble at once: somebody has to make progress.
const MOST_IN_TROUBLE: usize = 3;

/// A small generator of our own, so that seeds mean the same for ever.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike (splitmix64); zero would stay zero.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)).max(1))
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll(high - low + 1)
    }

    fn place(&mut self, places: usize) -> usize {
        usize::try_from(self.roll(places as u64)).expect("a place")
    }
}

/// What the network does to one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    Delay { ms: u64 },
    Blackhole,
    DropReplies,
    Refuse,
}

/// A change of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Turn {
    Only { version: &'static str },
    Ramp { candidate: &'static str, percent: u64 },
    Pause,
    Resume,
}

/// One thing that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// SIGKILL.
    Kill {
        worker: usize,
    },
    /// SIGTERM: a clean stop.
    Term {
        worker: usize,
    },
    /// A new process, after either.
    Start {
        worker: usize,
    },
    /// SIGSTOP.
    Freeze {
        worker: usize,
    },
    /// SIGCONT.
    Thaw {
        worker: usize,
    },
    /// Every connection of a link is reset.
    Cut {
        link: usize,
    },
    Break {
        link: usize,
        wire: Wire,
    },
    Mend {
        link: usize,
    },
    /// SHUTDOWN and start with its data.
    RedisRestart,
    /// SIGKILL and start with its data.
    RedisCrash,
    ScriptFlush,
    /// `maxmemory` below what is used.
    MemoryLow,
    MemoryBack,
    /// By raw HSET, or as the command line would.
    Flip {
        turn: Turn,
        raw: bool,
    },
}

impl Act {
    /// The word in the report; `None` for what only ends something.
    pub fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Self::Kill { .. } => "kill -9",
            Self::Term { .. } => "clean restart",
            Self::Freeze { .. } => "SIGSTOP/CONT",
            Self::Cut { .. } => "link cut",
            Self::Break { wire, .. } => match wire {
                Wire::Delay { .. } => "link delay",
                Wire::Blackhole => "link blackhole",
                Wire::DropReplies => "replies dropped",
                Wire::Refuse => "link refused",
            },
            Self::RedisRestart => "Redis SHUTDOWN",
            Self::RedisCrash => "Redis kill -9",
            Self::ScriptFlush => "SCRIPT FLUSH",
            Self::MemoryLow => "maxmemory",
            Self::Start { .. } | Self::Thaw { .. } | Self::Mend { .. } | Self::MemoryBack | Self::Flip { .. } => {
                return None;
            }
        })
    }
}

/// A kind of trouble, to be drawn from a mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Redis,
    Flush,
    Memory,
    Kill,
    Term,
    Freeze,
    Cut,
    Delay,
    Refuse,
    Blackhole,
    DropReplies,
}

impl Trouble {
    /// One Redis serves all: its troubles are rare, or nothing else would ever happen.
    pub const ALL: &[Self] = &[
        Self::Redis,
        Self::Flush,
        Self::Memory,
        Self::Kill,
        Self::Kill,
        Self::Kill,
        Self::Term,
        Self::Term,
        Self::Freeze,
        Self::Freeze,
        Self::Freeze,
        Self::Freeze,
        Self::Cut,
        Self::Delay,
        Self::Delay,
        Self::Refuse,
        Self::Blackhole,
        Self::Blackhole,
        Self::DropReplies,
        Self::DropReplies,
    ];
}

/// An act and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    pub at_ms: u64,
    pub act: Act,
}

/// All of it, in the order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub steps: Vec<Step>,
}

impl Schedule {
    /// The schedule of `seed` for `length`, with troubles drawn from `mix`.
    pub fn new(seed: u64, length: Duration, mix: &[Trouble]) -> Self {
        let end = u64::try_from(length.as_millis()).expect("a length in ms");
        let mut dice = Dice::new(seed);
        let mut steps = flips(&mut dice, end);
        troubles(&mut dice, end, mix, &mut steps);
        steps.sort_by_key(|step| step.at_ms); // stable: what was thought of first comes first
        Self { steps }
    }

    /// A number that tells schedules apart (FNV-1a of its text).
    pub fn hash(&self) -> u64 {
        let text = format!("{:?}", self.steps);
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

fn flips(dice: &mut Dice, end: u64) -> Vec<Step> {
    let (mut at, mut active, mut paused, mut steps) = (500, 0, false, Vec::new());
    while at < end {
        let turn = match dice.roll(10) {
            _ if paused => Turn::Resume,
            0 => Turn::Pause,
            1..=3 => Turn::Ramp {
                candidate: VERSIONS[1 - active],
                percent: dice.between(1, 99),
            },
            _ => {
                active = dice.place(2);
                Turn::Only {
                    version: VERSIONS[active],
                }
            }
        };
        paused = turn == Turn::Pause;
        let raw = dice.roll(3) > 0;
        steps.push(Step {
            at_ms: at,
            act: Act::Flip { turn, raw },
        });
        at += dice.between(30, 400);
    }
    steps
}

/// Every trouble ends, before the end, and nobody has two at once.
fn troubles(dice: &mut Dice, end: u64, mix: &[Trouble], steps: &mut Vec<Step>) {
    let mut free_from = [0_u64; FLEET.len() + 1];
    let mut memory_from = 0;
    let mut at = 1_000;
    while at < end {
        let mut push = |at_ms, act| steps.push(Step { at_ms, act });
        let troubled = free_from.iter().filter(|from| **from > at).count();
        let link = dice.place(FLEET.len() + 1);
        let until = at + dice.between(300, 2_000);
        let trouble = match mix[dice.place(mix.len())] {
            // What only a worker can have: the producer loses replies instead.
            Trouble::Kill | Trouble::Term | Trouble::Freeze if link == PRODUCER => Trouble::DropReplies,
            trouble => trouble,
        };
        let busy = match trouble {
            Trouble::Redis | Trouble::Flush => false,
            Trouble::Memory => memory_from > at,
            _ => free_from[link] > at || troubled >= MOST_IN_TROUBLE,
        };
        let worker = link;
        let over = match trouble {
            _ if busy => None,
            Trouble::Redis => {
                push(at, [Act::RedisRestart, Act::RedisCrash][dice.place(2)]);
                None
            }
            Trouble::Flush => {
                push(at, Act::ScriptFlush);
                None
            }
            Trouble::Memory => {
                push(at, Act::MemoryLow);
                memory_from = until.min(end) + 1;
                push(memory_from - 1, Act::MemoryBack);
                None
            }
            Trouble::Kill => {
                push(at, Act::Kill { worker });
                Some((until, Act::Start { worker }))
            }
            Trouble::Term => {
                push(at, Act::Term { worker });
                // Grace, and a little.
                Some((at + 1_500, Act::Start { worker }))
            }
            Trouble::Freeze => {
                push(at, Act::Freeze { worker });
                // More than half of them longer than the lease.
                Some((at + dice.between(100, 4_000), Act::Thaw { worker }))
            }
            Trouble::Cut => {
                push(at, Act::Cut { link });
                None
            }
            Trouble::Delay | Trouble::Refuse | Trouble::Blackhole | Trouble::DropReplies => {
                let wire = match trouble {
                    Trouble::Delay => Wire::Delay {
                        ms: dice.between(2, 150),
                    },
                    Trouble::Refuse => Wire::Refuse,
                    Trouble::Blackhole => Wire::Blackhole,
                    _ => Wire::DropReplies,
                };
                push(at, Act::Break { link, wire });
                Some((until, Act::Mend { link }))
            }
        };
        if let Some((until, act)) = over {
            push(until.min(end), act);
            free_from[link] = until.min(end) + 1;
        }
        at += dice.between(100, 600);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_MINUTES: Duration = Duration::from_secs(120);

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_another_another() {
        let schedule = Schedule::new(7, TWO_MINUTES, Trouble::ALL);
        assert_eq!(schedule, Schedule::new(7, TWO_MINUTES, Trouble::ALL));
        assert_eq!(
            format!("{:016x}", schedule.hash()),
            "05677500446c8dff",
            "seeds mean the same for ever"
        );
        assert_ne!(schedule.hash(), Schedule::new(8, TWO_MINUTES, Trouble::ALL).hash());
    }

    #[test]
    fn everything_happens_and_every_trouble_ends() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let schedule = Schedule::new(seed, TWO_MINUTES, Trouble::ALL);
            let mut open = [0_i32; FLEET.len() + 1];
            let mut memory = 0;
            for Step { at_ms, act } in &schedule.steps {
                kinds.extend(act.kind());
                assert!(*at_ms <= 120_000);
                match act {
                    Act::Kill { worker } | Act::Term { worker } | Act::Freeze { worker } => open[*worker] += 1,
                    Act::Break { link, .. } => open[*link] += 1,
                    Act::Start { worker } | Act::Thaw { worker } => open[*worker] -= 1,
                    Act::Mend { link } => open[*link] -= 1,
                    Act::MemoryLow => memory += 1,
                    Act::MemoryBack => memory -= 1,
                    _ => {}
                }
                assert!(
                    open.iter().all(|n| (0..=1).contains(n)) && (0..=1).contains(&memory),
                    "seed {seed}: {act:?}"
                );
                assert!(open.iter().sum::<i32>() <= MOST_IN_TROUBLE as i32);
            }
            assert_eq!(open, [0; FLEET.len() + 1]);
            assert_eq!(memory, 0);
        }
        assert_eq!(kinds.len(), 12, "{kinds:?}");
    }
}
