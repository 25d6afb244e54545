//! A guess at a text's language, by its commonest small words.

/// Languages with words that are frequent in them and rare in the others.
const STOP_WORDS: &[(&str, &[&str])] = &[
    (
        "en",
        &["the", "and", "of", "to", "is", "that", "with", "for", "this", "be"],
    ),
    (
        "de",
        &["der", "die", "und", "das", "ist", "nicht", "ein", "mit", "den", "auf"],
    ),
    (
        "fr",
        &["le", "les", "et", "des", "une", "est", "dans", "pour", "que", "du"],
    ),
    (
        "es",
        &["el", "los", "las", "del", "una", "por", "con", "para", "que", "es"],
    ),
    (
        "it",
        &["il", "che", "di", "gli", "della", "per", "sono", "una", "non", "nel"],
    ),
    (
        "pt",
        &["os", "uma", "não", "em", "para", "dos", "da", "com", "que", "um"],
    ),
    (
        "nl",
        &["het", "een", "van", "en", "niet", "dat", "zijn", "voor", "met", "op"],
    ),
    (
        "sv",
        &["och", "att", "det", "som", "är", "en", "på", "av", "för", "inte"],
    ),
];

/// Fewer hits than this are chance.
const MIN_HITS: u64 = 3;
/// One word in this many must be a hit.
const MIN_SHARE: u64 = 50;

/// Counts stop words of each language.
#[derive(Debug, Default)]
pub(super) struct Guess {
    hits: [u64; STOP_WORDS.len()],
    words: u64,
}

impl Guess {
    /// Takes one word, in lower case.
    pub(super) fn hear(&mut self, word: &str) {
        self.words += 1;
        for (hits, (_, stop_words)) in self.hits.iter_mut().zip(STOP_WORDS) {
            *hits += u64::from(stop_words.contains(&word));
        }
    }

    /// The language with the most hits, if they are more than chance. The first of equals.
    pub(super) fn language(&self) -> Option<&'static str> {
        let mut best = ("", 0);
        for ((name, _), &hits) in STOP_WORDS.iter().zip(&self.hits) {
            if hits > best.1 {
                best = (name, hits);
            }
        }
        let (name, hits) = best;
        (hits >= MIN_HITS && hits * MIN_SHARE >= self.words).then_some(name)
    }
}
