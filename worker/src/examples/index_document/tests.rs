use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

#[test]
fn a_text_is_counted() {
    let text = "The cats and the dog.\nThat is the cat; the cats — and Zoë's dogs of 42.\n";
    let index = index("pets", text, stem_v1);
    assert_eq!((index.lines, index.longest_line), (2, 49));
    assert_eq!((index.words, index.distinct_words), (16, 11));
    assert_eq!(index.language.as_deref(), Some("en"));
    let top: Vec<(&str, u64)> = index.stems.iter().map(|s| (s.stem.as_str(), s.count)).collect();
    assert_eq!(top[..3], [("th", 4), ("an", 2), ("cat", 2)]);
    assert!(top.contains(&("zo", 1)), "cut by characters: {top:?}");
}

#[test]
fn nothing_comes_of_nothing() {
    let index = index("empty", "", stem_v1);
    assert_eq!((index.lines, index.longest_line, index.words), (0, 0, 0));
    assert_eq!((index.language, index.stems), (None, vec![]));
}

#[test]
fn languages_are_told_apart() {
    let guess = |text: &str| index("", text, stem_v1).language;
    assert_eq!(
        guess("Der Hund und die Katze, das ist nicht ein Spiel.").as_deref(),
        Some("de")
    );
    assert_eq!(
        guess("Le chien et les chats sont dans une maison; est-ce que").as_deref(),
        Some("fr")
    );
    assert_eq!(guess("0x3f 0x40 eax ebx"), None);
}

#[test]
fn v2_panics_on_real_names() {
    let panic = std::panic::catch_unwind(|| index("authors", "Copyright José <j@example.org>", stem_v2)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains('é'), "{text}");
}

#[test]
fn file_names_stay_in_their_directory() {
    for key in ["../../etc/passwd", ".", "..", "", ".hidden", "a/b", "nul\0", "a%2Fb"] {
        let name = record::file_name(key);
        assert!(!name.contains('/') && !name.contains('\0'), "{name}");
        assert!(name == ".json" || !name.starts_with('.'), "{name}");
    }
}

#[test]
fn a_record_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let record = index("a", "b c", stem_v1);
    let path = record_path(dir.path(), "shelf/a");
    record::write(&path, "task", 1, &record).unwrap();
    record::write(&path, "task", 2, &record).unwrap();
    let read: Index = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(read, record);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing unfinished is left"
    );
    let gone = record_path(&dir.path().join("gone"), "a");
    assert!(
        record::write(&gone, "task", 1, &record)
            .unwrap_err()
            .to_string()
            .contains("cannot write")
    );
}

/// Whether a word of `text` ends in a character of more than one byte.
fn ends_wide(text: &str) -> bool {
    words(text).any(|word| word.chars().next_back().is_some_and(|c| c.len_utf8() > 1))
}

proptest! {
    #[test]
    fn both_versions_agree_on_ascii(text in "[ -~\n]{0,200}") {
        prop_assert_eq!(index("d", &text, stem_v1), index("d", &text, stem_v2));
    }

    #[test]
    fn v2_panics_exactly_when_a_word_ends_in_a_wide_character(text in "([a-z]{0,3}[éßñА日]{0,2}[ .a-zК\u{212a}]{0,2}){0,6}|\\PC{0,40}") {
        let outcome = std::panic::catch_unwind(|| index("d", &text, stem_v2));
        prop_assert_eq!(outcome.is_err(), ends_wide(&text));
        if let Ok(record) = outcome {
            prop_assert_eq!(record, index("d", &text, stem_v1));
        }
    }

    #[test]
    fn different_keys_have_different_files(keys in proptest::collection::hash_set("\\PC{0,90}|[a/.%]{0,6}", 2..20)) {
        let names: HashSet<String> = keys.iter().map(|key| record::file_name(key)).collect();
        prop_assert_eq!(names.len(), keys.len());
        prop_assert!(names.iter().all(|name| name.len() <= 255));
    }
}
