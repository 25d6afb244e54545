//! What a rollback leaves on the entry of a version: it is not tried again by itself. Pure.

use serde_json::Value;
pub use switchback_common::store::versions::RolledBack;
use switchback_common::store::versions::VersionRecord;

/// The build on a version's entry; empty if none is.
#[must_use]
pub fn build_of(entry: &str) -> String {
    VersionRecord::parse(entry.as_bytes()).build().to_owned()
}

/// Whether the version of this entry was rolled back, as the build that it is now.
#[must_use]
pub fn rolled_back(entry: &str) -> Option<RolledBack> {
    VersionRecord::parse(entry.as_bytes()).rolled_back_as_it_is().cloned()
}

/// The entry with the mark on it; `rollout.lua` puts revision and time in.
#[must_use]
pub fn mark(entry: &str, why: &str) -> String {
    // An entry that somebody broke is replaced: the mark matters more.
    let mut found: Value = serde_json::from_str(entry).unwrap_or_default();
    let fields = match &mut found {
        Value::Object(fields) => fields,
        other => {
            *other = Value::Object(serde_json::Map::new());
            match other {
                Value::Object(fields) => fields,
                _ => return entry.to_owned(),
            }
        }
    };
    fields.remove("rolled_back");
    let build = Value::String(build_of(entry));
    // `@` only where the script is to put a number.
    let text = |value: &Value| value.to_string().replace('@', "\\u0040");
    let rest = text(&found);
    let why = text(&Value::String(why.chars().take(500).collect()));
    let rest = rest.strip_suffix('}').unwrap_or(&rest);
    let comma = if rest.len() > 1 { "," } else { "" };
    format!(
        r#"{rest}{comma}"rolled_back":{{"at_us":@at_us@,"rev":@rev@,"why":{why},"build":{}}}}}"#,
        text(&build)
    )
}

/// The entry without its mark; `None` if it has none.
#[must_use]
pub(super) fn unmark(entry: &str) -> Option<String> {
    let mut found: Value = serde_json::from_str(entry).ok()?;
    found.as_object_mut()?.remove("rolled_back")?;
    // `@` only where the script is to put a number.
    Some(found.to_string().replace('@', "\\u0040"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_leaves_the_rest() {
        for entry in [
            "",
            "{}",
            r#"{"first_seen_us":"17","build":"a@b"}"#,
            "[1]",
            r#"{"build":"","x":{"y":1}}"#,
        ] {
            let marked = mark(entry, "v2 fails: \"50 %\" @rev@")
                .replace("@rev@", "7")
                .replace("@at_us@", "1790000000000123");
            let again = mark(&marked, "again").replace("@rev@", "8").replace("@at_us@", "9");
            let back = rolled_back(&marked).unwrap_or_else(|| panic!("{marked}"));
            assert_eq!(
                (back.at_us, back.rev, back.why.as_str()),
                (1_790_000_000_000_123, 7, "v2 fails: \"50 %\" @rev@")
            );
            assert_eq!(build_of(&marked), build_of(entry));
            let object = |text: &str| serde_json::from_str(text).ok().filter(Value::is_object);
            let rest = object(&unmark(&marked).unwrap());
            assert_eq!(rest, object(entry).or_else(|| object("{}")));
            assert_eq!(unmark(entry), None);
            assert_eq!(rolled_back(&again).unwrap().rev, 8);
        }
        assert_eq!(rolled_back(r#"{"build":"b"}"#), None);
        let rewritten = r#"{"build":"b","rolled_back":{"at_us":"1790000000000123","rev":7,"why":"w","build":"b"}}"#;
        assert_eq!(rolled_back(rewritten).unwrap().at_us, 1_790_000_000_000_123);
    }

    #[test]
    fn another_build_is_another_try() {
        let marked = mark(r#"{"build":"b1"}"#, "")
            .replace("@rev@", "7")
            .replace("@at_us@", "1");
        let rebuilt = marked.replacen(r#""build":"b1""#, r#""build":"b2""#, 1);
        assert!(rolled_back(&marked).is_some());
        assert_eq!(rolled_back(&rebuilt), None);
    }
}
