//! What a rollback leaves on the entry of a version: it is not tried again by itself. Pure.

use serde::Serialize;
use serde_json::Value;

/// That a version was rolled back by the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RolledBack {
    /// When, µs of Redis's clock.
    pub at_us: u64,
    /// By which revision.
    pub rev: u64,
    /// Why.
    pub why: String,
    /// The build that it was then.
    pub build: String,
}

/// The build on a version's entry; empty if none is.
#[must_use]
pub fn build_of(entry: &str) -> String {
    let entry: Option<Value> = serde_json::from_str(entry).ok();
    let build = entry.as_ref().and_then(|entry| entry.get("build")?.as_str());
    build.unwrap_or_default().to_owned()
}

/// Whether the version of this entry was rolled back, as the build that it is now.
#[must_use]
pub fn rolled_back(entry: &str) -> Option<RolledBack> {
    let found: Value = serde_json::from_str(entry).ok()?;
    let back = found.get("rolled_back").filter(|back| back.is_object())?;
    let text = |name| back.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    // Scripts that write an entry anew make text of large numbers.
    let number = |name| match back.get(name) {
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        Some(value) => value.as_u64().unwrap_or(0),
        None => 0,
    };
    let back = RolledBack {
        at_us: number("at_us"),
        rev: number("rev"),
        why: text("why"),
        build: text("build"),
    };
    (back.build == build_of(entry)).then_some(back)
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
    let build = fields
        .get("build")
        .cloned()
        .unwrap_or_else(|| Value::String(String::new()));
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
