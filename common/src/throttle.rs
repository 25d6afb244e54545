//! The limits of a queue, as people write them. Pure.
//!
//! They lie in a hash of the queue, one field each, so that `HSET` by hand is enough to set one.

use std::{fmt, str::FromStr, time::Duration};

/// The most that a fleet-wide concurrency may be.
pub const MAX_FLEET_CONCURRENCY: u32 = 1_000_000;
/// The most starts that one rate may name, per second, minute or hour.
pub const MAX_RATE: u32 = 1_000_000_000;
/// The most starts that may come at once.
pub const MAX_BURST: u32 = 1_000_000;

/// Field names of the hash. Stable: people write them.
pub mod field {
    /// Tasks of the queue that run at once in the whole fleet; absent = no limit.
    pub const CONCURRENCY: &str = "concurrency";
    /// How often tasks of the queue start, all together; absent = no limit.
    pub const RATE: &str = "rate";
    /// How often tasks with one and the same `key` start; absent = no limit.
    pub const RATE_PER_KEY: &str = "rate_per_key";
}

/// How often something may happen: `100/s`, `6000/m`, `10/h`, and with a burst `100/s+20`.
///
/// In any window of `t` there are at most `rate × t + burst` starts. The burst defaults to a tenth of a second's worth,
/// and is at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    per: Per,
    burst: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    Second,
    Minute,
    Hour,
}

impl Per {
    const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    fn letter(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "m",
            Self::Hour => "h",
        }
    }

    fn us(self) -> u64 {
        match self {
            Self::Second => 1_000_000,
            Self::Minute => 60_000_000,
            Self::Hour => 3_600_000_000,
        }
    }
}

impl Rate {
    /// Time between two starts when there is no burst, in ns: at least 1.
    #[must_use]
    pub fn interval_ns(self) -> u64 {
        (self.per.us() * 1_000).div_ceil(u64::from(self.count)).max(1)
    }

    /// Starts that may come at once.
    #[must_use]
    pub fn burst(self) -> u32 {
        let tenth = u64::from(self.count) * 100_000 / self.per.us();
        self.burst
            .unwrap_or_else(|| u32::try_from(tenth).unwrap_or(MAX_BURST))
            .clamp(1, MAX_BURST)
    }

    /// Time in which the burst would be used up at the plain rate.
    #[must_use]
    pub fn burst_time(self) -> Duration {
        Duration::from_nanos(self.interval_ns().saturating_mul(u64::from(self.burst())))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.per.letter())?;
        match self.burst {
            Some(burst) => write!(f, "+{burst}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Rate {
    type Err = InvalidThrottle;

    fn from_str(text: &str) -> Result<Self, InvalidThrottle> {
        let invalid = || InvalidThrottle::Rate {
            text: crate::envelope::clip(text, 60).to_owned(),
        };
        let (count, rest) = text.split_once('/').ok_or_else(invalid)?;
        let (per, burst) = match rest.split_once('+') {
            Some((per, burst)) => (per, Some(whole(burst, MAX_BURST).ok_or_else(invalid)?)),
            None => (rest, None),
        };
        Ok(Self {
            count: whole(count, MAX_RATE).ok_or_else(invalid)?,
            per: Per::ALL.into_iter().find(|p| p.letter() == per).ok_or_else(invalid)?,
            burst,
        })
    }
}

/// Digits and nothing else, from 1 to `most`.
fn whole(text: &str, most: u32) -> Option<u32> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && (1..=most).contains(n))
}

/// One limit, with its value. Displayed as it is written to the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`field::CONCURRENCY`].
    Concurrency(u32),
    /// [`field::RATE`].
    Rate(Rate),
    /// [`field::RATE_PER_KEY`].
    RatePerKey(Rate),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Concurrency(tasks) => write!(f, "{tasks}"),
            Self::Rate(rate) | Self::RatePerKey(rate) => write!(f, "{rate}"),
        }
    }
}

/// What workers keep to. `Default`: nothing is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Throttle {
    /// Tasks at once in the whole fleet.
    pub concurrency: Option<u32>,
    /// Starts, all together.
    pub rate: Option<Rate>,
    /// Starts of tasks with one and the same key.
    pub rate_per_key: Option<Rate>,
}

impl Throttle {
    /// Reads one field of the hash. `Ok(None)`: a field that is none of these.
    ///
    /// # Errors
    /// What is wrong with the value, and what a valid one looks like.
    pub fn parse_field(name: &str, value: &str) -> Result<Option<Limit>, InvalidThrottle> {
        Ok(Some(match name {
            field::CONCURRENCY => {
                let tasks = whole(value, MAX_FLEET_CONCURRENCY);
                Limit::Concurrency(tasks.ok_or_else(|| InvalidThrottle::Concurrency {
                    text: crate::envelope::clip(value, 60).to_owned(),
                })?)
            }
            field::RATE => Limit::Rate(value.parse()?),
            field::RATE_PER_KEY => Limit::RatePerKey(value.parse()?),
            _ => return Ok(None),
        }))
    }

    /// Puts one limit in force.
    pub fn set(&mut self, limit: Limit) {
        match limit {
            Limit::Concurrency(tasks) => self.concurrency = Some(tasks),
            Limit::Rate(rate) => self.rate = Some(rate),
            Limit::RatePerKey(rate) => self.rate_per_key = Some(rate),
        }
    }
}

/// A limit that cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidThrottle {
    /// A concurrency that is none.
    #[error(
        "{text:?} is no concurrency: write a whole number from 1 to {MAX_FLEET_CONCURRENCY}; to start nothing, pause the gate"
    )]
    Concurrency {
        /// What was written.
        text: String,
    },
    /// A rate that is none.
    #[error(
        "{text:?} is no rate: write starts per second, minute or hour, e.g. `100/s`, `6000/m` or, 20 at once, `100/s+20`"
    )]
    Rate {
        /// What was written.
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        let rate: Rate = "100/s+20".parse().unwrap();
        assert_eq!((rate.interval_ns(), rate.burst()), (10_000_000, 20));
        assert_eq!(rate.burst_time(), Duration::from_millis(200));
        let rate: Rate = "6000/m".parse().unwrap();
        assert_eq!((rate.interval_ns(), rate.burst()), (10_000_000, 10));
        let rate: Rate = "10/h".parse().unwrap();
        assert_eq!((rate.interval_ns(), rate.burst()), (360_000_000_000, 1));
    }

    #[test]
    fn what_is_no_limit_is_refused_with_an_example() {
        for text in [
            "",
            "100",
            "0/s",
            "/s",
            "1/d",
            "+1/s",
            "-1/s",
            "1/s+0",
            "1/s+",
            "1/s+1+1",
            "1.5/s",
            "99999999999/s",
            " 1/s",
        ] {
            let error = Throttle::parse_field("rate", text).unwrap_err().to_string();
            assert!(error.contains("100/s"), "{error}");
        }
        for text in ["", "0", "-1", "+1", "1e3", "1000001", "many"] {
            let error = Throttle::parse_field("concurrency", text).unwrap_err().to_string();
            assert!(error.contains("whole number"), "{error}");
        }
        assert_eq!(Throttle::parse_field("waiting", "x"), Ok(None), "somebody else's");
    }

    proptest! {
        #[test]
        fn rates_are_written_as_they_are_read(count in 1..=MAX_RATE, per in "[smh]", burst in proptest::option::of(1..=MAX_BURST)) {
            let text = format!("{count}/{per}{}", burst.map_or_else(String::new, |n| format!("+{n}")));
            let rate: Rate = text.parse().unwrap();
            prop_assert_eq!(rate.to_string(), text);
            prop_assert!(rate.interval_ns() >= 1 && rate.burst() >= 1);
        }

        #[test]
        fn no_text_panics(name in "(concurrency|rate|rate_per_key)", text in "\\PC{0,80}") {
            let _ = Throttle::parse_field(&name, &text);
        }
    }
}
