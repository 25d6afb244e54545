//! `index_document`: what a text is made of. `v2` carries a regression that only real text brings out.
//!
//! Both versions make the same record of a text whose words end in ASCII. `v2` was "optimised" to cut bytes where
//! `v1` cuts characters, and panics in a word that ends in a character of more than one byte.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use switchback_common::Task;

use crate::handler::{Context, TaskError};

mod language;
mod record;

/// Most stems that a record lists.
pub const MAX_STEMS: usize = 20;

/// A request to index one text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IndexDocument {
    /// What the text is called.
    pub document: String,
    /// The text.
    pub text: String,
}

impl Task for IndexDocument {
    const TYPE: &'static str = "index_document";
}

/// What a text is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// What the text is called.
    pub document: String,
    /// Its lines.
    pub lines: u64,
    /// Its longest line, in characters.
    pub longest_line: u64,
    /// Its words: runs of letters.
    pub words: u64,
    /// Its words, each counted once, whatever their case.
    pub distinct_words: u64,
    /// What it seems to be written in (ISO 639-1), unless it is too short or too strange to tell.
    pub language: Option<String>,
    /// Its most frequent stems, at most [`MAX_STEMS`].
    pub stems: Vec<StemCount>,
}

/// How often a stem occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StemCount {
    /// The stem.
    pub stem: String,
    /// How often.
    pub count: u64,
}

/// Cuts a word to its stem.
pub type Stem = fn(&str) -> &str;

/// Indexes a text. Pure.
#[must_use]
pub fn index(document: &str, text: &str, stem: Stem) -> Index {
    let mut stems: HashMap<String, u64> = HashMap::new();
    let mut distinct: HashSet<String> = HashSet::new();
    let mut counts: u64 = 0;
    let mut guess = language::Guess::default();
    for word in words(text) {
        counts += 1;
        let lower = word.to_lowercase();
        guess.hear(&lower);
        let stem = stem(word);
        if !stem.is_empty() {
            *stems.entry(stem.to_lowercase()).or_default() += 1;
        }
        distinct.insert(lower);
    }
    let mut stems: Vec<StemCount> = stems
        .into_iter()
        .map(|(stem, count)| StemCount { stem, count })
        .collect();
    stems.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.stem.cmp(&b.stem)));
    stems.truncate(MAX_STEMS);
    Index {
        document: document.to_owned(),
        lines: text.lines().count() as u64,
        longest_line: text.lines().map(|line| line.chars().count()).max().unwrap_or(0) as u64,
        words: counts,
        distinct_words: distinct.len() as u64,
        language: guess.language().map(str::to_owned),
        stems,
    }
}

/// The words of a text: runs of letters.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty())
}

/// `v1`: cuts the last character.
#[must_use]
pub fn stem_v1(word: &str) -> &str {
    let mut letters = word.chars();
    letters.next_back();
    letters.as_str()
}

/// `v2`: cuts the last byte. Faster, until a word ends in a character of more than one.
#[must_use]
pub fn stem_v2(word: &str) -> &str {
    &word[..word.len() - 1]
}

/// The file that the record of a task is written to.
#[must_use]
pub fn record_path(index_dir: &Path, name: &str) -> PathBuf {
    index_dir.join(record::file_name(name))
}

/// A handler that indexes with `stem` and writes the record below `index_dir`, named by the task's key or else its id.
pub(crate) fn handler(
    stem: Stem,
    index_dir: PathBuf,
) -> impl Fn(IndexDocument, Context) -> Running + Send + Sync + 'static {
    let index_dir: Arc<Path> = index_dir.into();
    move |task, context| Box::pin(run(stem, Arc::clone(&index_dir), task, context))
}

type Running = std::pin::Pin<Box<dyn Future<Output = Result<(), TaskError>> + Send>>;

async fn run(stem: Stem, index_dir: Arc<Path>, task: IndexDocument, context: Context) -> Result<(), TaskError> {
    let span = tracing::Span::current();
    // A long text takes a while, and gates are read on this thread: compute on another.
    let work = tokio::task::spawn_blocking(move || {
        let _entered = span.enter();
        let record = index(&task.document, &task.text, stem);
        let id = context.id.to_string();
        let path = record_path(&index_dir, context.key.as_deref().unwrap_or(&id));
        record::write(&path, &id, context.attempt, &record)
    });
    match work.await {
        Ok(written) => Ok(written?),
        Err(ended) => match ended.try_into_panic() {
            // As if it had run here: the worker tells panics from failures.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(ended) => Err(ended.into()),
        },
    }
}

#[cfg(test)]
mod tests;
