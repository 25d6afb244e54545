//! Real input: the texts that are indexed, and what was passed over.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use switchback_common::envelope::{DEFAULT_MAX_PAYLOAD, clip};
use switchback_worker::examples::index_document::{IndexDocument, words};

/// Bytes that a run enqueues at most: Redis keeps what is done for a while.
const MAX_BYTES: usize = 96 * 1024 * 1024;
const MAX_NAME_BYTES: usize = 200;

/// What is to be found under a root.
#[derive(Debug, Clone, Copy)]
enum Take {
    /// Every file.
    All,
    /// What packages say about themselves and their authors; not their samples and generated manuals.
    Prose,
    /// Every file that is not build output or version control.
    Sources,
}

/// Where the machine keeps documentation, wherever it is.
const DOCUMENTATION: &[(&str, Take)] = &[
    ("/usr/share/doc", Take::Prose),
    ("/usr/share/common-licenses", Take::All),
    ("/Library/Documentation", Take::Prose),
];

/// One text.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// One document to enqueue: a text under a key of its own.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) key: String,
    pub(crate) text: Arc<Text>,
}

impl Document {
    /// The payload.
    pub(crate) fn task(&self) -> IndexDocument {
        IndexDocument {
            document: self.text.name.clone(),
            text: self.text.text.clone(),
        }
    }
}

/// What was passed over, by reason.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Skipped {
    pub(crate) too_large: usize,
    pub(crate) not_utf8: usize,
    pub(crate) unreadable: usize,
    /// Good for all we know: there was enough without them.
    pub(crate) not_needed: usize,
}

/// The input of a run.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) documents: Vec<Document>,
    /// Different texts among them.
    pub(crate) texts: usize,
    /// Length of the different texts.
    pub(crate) bytes: usize,
    pub(crate) skipped: Skipped,
    /// Where they come from, for people.
    pub(crate) roots: Vec<String>,
}

impl Corpus {
    /// Reads up to `most` texts, under `input` or else the machine's own; fewer than `least` are repeated.
    pub(crate) fn load(input: Option<&Path>, least: usize, most: usize) -> std::io::Result<Self> {
        let roots: Vec<(PathBuf, Take)> = match input {
            Some(input) => {
                fs::read_dir(input)?; // says why, when it cannot be read
                vec![(input.to_owned(), Take::All)]
            }
            None => DOCUMENTATION
                .iter()
                .map(|(root, take)| (PathBuf::from(root), *take))
                .chain(repository().map(|root| (root, Take::Sources)))
                .filter(|(root, _)| root.is_dir())
                .collect(),
        };
        let mut skipped = Skipped::default();
        let mut files = Vec::new();
        for (root, take) in &roots {
            walk(root, root, *take, &mut files, &mut skipped);
        }
        // One package's files lie together: in this order any stretch of the run is like any other, every time.
        files.sort_by_cached_key(|(_, name)| {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            (hasher.finish(), name.clone())
        });
        let (mut texts, mut bytes) = (Vec::new(), 0);
        for (path, name) in files {
            if texts.len() >= most || bytes >= MAX_BYTES {
                skipped.not_needed += 1;
            } else if let Some(text) = read(&path, name, &mut skipped) {
                bytes += text.text.len();
                texts.push(Arc::new(text));
            }
        }
        let mut documents = Vec::with_capacity(texts.len().max(least));
        let mut enqueued = 0;
        for text in texts.iter().cycle().take(texts.len().max(least)) {
            if documents.len() >= texts.len() && enqueued >= MAX_BYTES {
                break;
            }
            enqueued += text.text.len();
            documents.push(Document {
                key: format!("{:04}-{}", documents.len(), clip(&text.name, MAX_NAME_BYTES)),
                text: Arc::clone(text),
            });
        }
        Ok(Self {
            documents,
            texts: texts.len(),
            bytes,
            skipped,
            roots: roots.iter().map(|(root, take)| take.describe(root)).collect(),
        })
    }

    /// Documents with a word that ends in a character of more than one byte: `v2` panics on these.
    pub(crate) fn treacherous(&self) -> usize {
        self.documents.iter().filter(|d| is_treacherous(&d.text.text)).count()
    }
}

/// Whether a word ends in a character of more than one byte.
fn is_treacherous(text: &str) -> bool {
    words(text).any(|word| word.chars().next_back().is_some_and(|c| c.len_utf8() > 1))
}

/// The repository that this was built from, if it is still there.
fn repository() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    Some(root.to_owned())
}

impl Take {
    fn enters(self, directory: &str) -> bool {
        match self {
            Self::All | Self::Prose => true,
            Self::Sources => !directory.starts_with('.') && directory != "target",
        }
    }

    fn describe(self, root: &Path) -> String {
        match self {
            Self::All | Self::Prose => root.display().to_string(),
            Self::Sources => "this repository".to_owned(),
        }
    }

    fn takes(self, file: &str) -> bool {
        const NAMES: &[&str] = &[
            "copyright",
            "README",
            "AUTHORS",
            "THANKS",
            "CREDITS",
            "NEWS",
            "changelog",
        ];
        match self {
            Self::All => true,
            Self::Sources => !file.starts_with('.'),
            Self::Prose => NAMES.contains(&file) || file.ends_with(".md") || file.ends_with(".rst"),
        }
    }
}

fn walk(root: &Path, directory: &Path, take: Take, files: &mut Vec<(PathBuf, String)>, skipped: &mut Skipped) {
    let Ok(entries) = fs::read_dir(directory) else {
        skipped.unreadable += 1;
        return;
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        // Links are not followed: they lead to what is found anyway, or in circles.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && take.enters(&name) => walk(root, &path, take, files, skipped),
            Ok(kind) if kind.is_file() && take.takes(&name) => {
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                files.push((path, name));
            }
            _ => {}
        }
    }
}

fn read(path: &Path, name: String, skipped: &mut Skipped) -> Option<Text> {
    let size = fs::metadata(path).map_or(0, |meta| meta.len());
    if size > DEFAULT_MAX_PAYLOAD as u64 {
        skipped.too_large += 1;
        return None;
    }
    let Ok(bytes) = fs::read(path) else {
        skipped.unreadable += 1;
        return None;
    };
    let Ok(text) = String::from_utf8(bytes) else {
        skipped.not_utf8 += 1;
        return None;
    };
    let task = IndexDocument { document: name, text };
    // The limit is on the payload, and JSON is longer than the text.
    if serde_json::to_vec(&task).map_or(usize::MAX, |json| json.len()) > DEFAULT_MAX_PAYLOAD {
        skipped.too_large += 1;
        return None;
    }
    Some(Text {
        name: task.document,
        text: task.text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    #[test]
    fn files_are_taken_or_counted() {
        let large = vec![b'x'; DEFAULT_MAX_PAYLOAD + 1];
        // Within the limit as a text, over it as JSON.
        let quotes = vec![b'"'; DEFAULT_MAX_PAYLOAD * 2 / 3];
        let dir = directory(&[
            ("a.txt", b"cats"),
            ("deep/er/b", "Zoë".as_bytes()),
            ("c", b"\xff\xfe"),
            ("large", &large),
            ("quotes", &quotes),
            ("empty", b""),
        ]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("deep/circle")).unwrap();
        let corpus = Corpus::load(Some(dir.path()), 0, 100).unwrap();
        assert_eq!((corpus.texts, corpus.documents.len(), corpus.treacherous()), (3, 3, 1));
        assert_eq!((corpus.skipped.too_large, corpus.skipped.not_utf8), (2, 1));
        assert_eq!(corpus.bytes, 8);
    }

    #[test]
    fn few_are_repeated_and_many_are_cut() {
        let dir = directory(&[("a", b"a"), ("b", b"b"), ("c", b"c")]);
        let corpus = Corpus::load(Some(dir.path()), 10, 100).unwrap();
        assert_eq!((corpus.texts, corpus.documents.len()), (3, 10));
        let keys: std::collections::HashSet<&str> = corpus.documents.iter().map(|d| d.key.as_str()).collect();
        assert_eq!(keys.len(), 10);

        let corpus = Corpus::load(Some(dir.path()), 1, 2).unwrap();
        assert_eq!((corpus.documents.len(), corpus.skipped.not_needed), (2, 1));
    }

    #[test]
    fn nothing_is_no_input_and_no_loop() {
        let dir = directory(&[]);
        assert!(Corpus::load(Some(dir.path()), 10, 100).unwrap().documents.is_empty());
        assert!(Corpus::load(Some(&dir.path().join("gone")), 10, 100).is_err());
    }

    #[test]
    fn of_documentation_only_the_prose() {
        for name in ["copyright", "README", "README.md", "AUTHORS", "howto.rst"] {
            assert!(Take::Prose.takes(name), "{name}");
        }
        for name in ["changelog.Debian.gz", "index.html", "sample.c", "copyrights"] {
            assert!(!Take::Prose.takes(name), "{name}");
        }
        assert!(!Take::Sources.enters("target") && !Take::Sources.enters(".git"));
    }
}
