//! A moment, as people write it.

use std::{str::FromStr, time::Duration};

use jiff::Timestamp;

use crate::text::{duration, moment};

/// A time, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    At(Timestamp),
    Ago(Duration),
}

impl When {
    /// µs since 1970, on Redis's clock.
    pub(crate) fn us(self, now_us: u64) -> u64 {
        match self {
            Self::At(at) => u64::try_from(at.as_microsecond()).unwrap_or(0),
            Self::Ago(ago) => now_us.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ago = duration(text).map(Self::Ago);
        ago.or_else(|_| moment(text).map(Self::At)).map_err(|_| {
            "write a time with its zone, such as 2026-12-24T18:00:00Z, or how long ago, such as 2h".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_an_age() {
        let now = 10_000_000_000;
        assert_eq!("2h".parse::<When>().map(|w| w.us(now)), Ok(2_800_000_000));
        assert_eq!("1970-01-01T00:00:05Z".parse::<When>().map(|w| w.us(now)), Ok(5_000_000));
        assert_eq!("99d".parse::<When>().map(|w| w.us(now)), Ok(0), "before any history");
        assert!("yesterday".parse::<When>().unwrap_err().contains("2h"));
    }
}
