//! Lengths of time as people write them: `500ms`, `30s`, `2m`, `7d`. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo};

/// What people write for a length of time; a day is 24 h.
///
/// # Errors
/// What to write instead.
pub fn parse(text: &str) -> Result<Duration, String> {
    let in_days = |span: Span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok();
    // Days are units of the calendar, which a duration does not read; hours beyond any calendar, a span does not.
    let length = text.parse::<SignedDuration>().ok();
    length
        .or_else(|| text.parse().ok().and_then(in_days))
        .and_then(|length| Duration::try_from(length).ok())
        .ok_or_else(|| "write a length of time, not negative, such as 500ms, 30s, 15m, 2h or 7d".to_owned())
}

/// A length of time in the one way in which it is written back: `1h 30m`.
#[must_use]
pub fn words(length: Duration) -> String {
    SignedDuration::try_from(length).map_or_else(|_| format!("{}s", length.as_secs()), |length| format!("{length:#}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lengths_are_written_as_they_are_read(ms in 0u64..10_000_000_000) {
            let length = Duration::from_millis(ms);
            prop_assert_eq!(parse(&words(length)), Ok(length));
        }
    }

    #[test]
    fn words_are_short() {
        let words = [2_000, 1_800_000, 1_500, 90_000].map(|ms| words(Duration::from_millis(ms)));
        assert_eq!(words, ["2s", "30m", "1s 500ms", "1m 30s"]);
    }
}
