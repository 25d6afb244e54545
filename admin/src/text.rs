//! Times, counts and foreign text, as people and terminals can take them. Pure.

use jiff::Timestamp;
pub(crate) use switchback_common::span::parse as duration;

/// RFC 3339, UTC.
pub(crate) fn rfc3339(at_us: u64) -> Option<String> {
    let at = Timestamp::from_microsecond(i64::try_from(at_us).ok()?).ok()?;
    Some(at.to_string())
}

/// What people write for a moment.
pub(crate) fn moment(text: &str) -> Result<Timestamp, String> {
    let moment = text.parse::<Timestamp>();
    moment.map_err(|_| "write a time with its zone, such as 2026-12-24T18:00:00Z".to_owned())
}

/// `3 m ago`, as seen from `now_us`.
pub(crate) fn ago(now_us: u64, at_us: u64) -> String {
    if at_us > now_us {
        return format!("in {}", span(at_us - now_us));
    }
    match now_us - at_us {
        us if us < 1_000_000 => "now".to_owned(),
        us => format!("{} ago", span(us)),
    }
}

fn span(us: u64) -> String {
    match us / 1_000_000 {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7_199 => format!("{} m", s / 60),
        s @ 7_200..=172_799 => format!("{} h", s / 3_600),
        s => format!("{} d", s / 86_400),
    }
}

/// `1 worker`, `2 workers`.
pub(crate) fn count(n: impl TryInto<u64> + Copy, what: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Text that others wrote, on one line and without what could steer a terminal.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// [`plain`], cut to `limit` characters.
pub(crate) fn brief(text: &str, limit: usize) -> String {
    let text = plain(text);
    match text.char_indices().nth(limit) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// What several lines say in one: a message is a line, also if what Redis (or whatever answers there) said was not.
pub(crate) fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}

/// Control characters, and those that change the direction of text.
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Bytes as text without loss, and how: `utf8` as they are, else `escaped` (`\xff`, `\n`, `\\` … as in C).
pub(crate) fn lossless(bytes: &[u8]) -> (String, &'static str) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), "utf8"),
        Err(_) => (bytes.escape_ascii().to_string(), "escaped"),
    }
}

/// Bytes for a terminal: [`lossless`], and escaped too when they hold what could steer it.
pub(crate) fn showable(bytes: &[u8]) -> (String, &'static str) {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| is_harmful(c) && !matches!(c, '\n' | '\t')) => (text.to_owned(), "utf8"),
        _ => (bytes.escape_ascii().to_string(), "escaped"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lengths_of_time_are_read_as_people_write_them() {
        let hours = |n: u64| Ok(Duration::from_secs(n * 3_600));
        assert_eq!(duration("2h"), hours(2));
        assert_eq!(duration("30d"), hours(720));
        assert_eq!(duration("1w 1d"), hours(192));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "5", "soon", "-1h", "1 month", "99999999999999999999h"] {
            assert!(duration(wrong).unwrap_err().contains("7d"), "{wrong}");
        }
        assert!(moment("2026-12-24T18:00:00+01:00").is_ok());
        assert!(moment("yesterday").unwrap_err().contains("18:00:00Z"));
    }

    #[test]
    fn times_are_relative_and_exact() {
        assert_eq!(rfc3339(1_700_000_000_123_456).unwrap(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(rfc3339(u64::MAX), None);
        let at = |seconds: u64| ago(1_000_000_000_000, 1_000_000_000_000 - seconds * 1_000_000);
        assert_eq!(
            [at(0), at(12), at(180), at(7_200), at(500_000)],
            ["now", "12 s ago", "3 m ago", "2 h ago", "5 d ago"]
        );
        assert_eq!(ago(0, 90_000_000), "in 90 s");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(brief("häuser", 3), "häu…");
        assert_eq!(showable(b"\x1b]0;x\x07").1, "escaped");
    }

    #[test]
    fn bytes_are_shown_without_loss() {
        assert_eq!(lossless("\"é\"".as_bytes()), ("\"é\"".to_owned(), "utf8"));
        assert_eq!(lossless(b"a\\\xff\n"), (r"a\\\xff\n".to_owned(), "escaped"));
    }
}
