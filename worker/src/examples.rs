//! Handlers that `switchback-worker` brings along, chosen by name in the pool's settings.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use switchback_common::{Task, retry::RetryPolicy};

use crate::{breaker::Breaker, worker::WorkerBuilder};

pub mod index_document;

use index_document::IndexDocument;

/// Every built-in handler, as (task type, version).
pub const CATALOGUE: &[(&str, &str)] = &[(IndexDocument::TYPE, "v1"), (IndexDocument::TYPE, "v2")];

/// One built-in handler. Written `name@version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Example {
    task_type: &'static str,
    version: &'static str,
}

/// A handler that is not built in.
#[derive(Debug, Clone, thiserror::Error)]
#[error("there is no handler {wanted:?}; there are: {}", catalogue())]
pub struct UnknownExample {
    /// What was asked for.
    wanted: String,
}

/// How the examples run, the same for all.
#[derive(Debug, Clone)]
pub struct ExampleSettings {
    /// Tasks of one type that run at once.
    pub concurrency: usize,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// When a failed attempt is tried again.
    pub retry: RetryPolicy,
    /// When a version is held because it fails.
    pub breaker: Option<Breaker>,
    /// Where `index_document` writes its records.
    pub index_dir: PathBuf,
}

impl FromStr for Example {
    type Err = UnknownExample;

    fn from_str(text: &str) -> Result<Self, UnknownExample> {
        let found = text
            .split_once('@')
            .and_then(|wanted| CATALOGUE.iter().find(|known| **known == wanted));
        match found {
            Some(&(task_type, version)) => Ok(Self { task_type, version }),
            None => Err(UnknownExample {
                wanted: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.task_type, self.version)
    }
}

/// Adds `examples` to a worker, versions in the order they are named. None leaves the worker without handlers.
#[must_use]
pub fn add(builder: WorkerBuilder, examples: &[Example], settings: &ExampleSettings) -> WorkerBuilder {
    let versions: Vec<&'static str> = examples
        .iter()
        .filter(|example| example.task_type == IndexDocument::TYPE)
        .map(|example| example.version)
        .collect();
    if versions.is_empty() {
        return builder;
    }
    builder.task::<IndexDocument>(|spec| {
        let spec = spec
            .concurrency(settings.concurrency)
            .timeout(settings.timeout)
            .retry(settings.retry.clone());
        let spec = match settings.breaker {
            Some(breaker) => spec.breaker(breaker),
            None => spec,
        };
        versions.into_iter().fold(spec, |spec, version| {
            let stem = match version {
                "v2" => index_document::stem_v2,
                _ => index_document::stem_v1,
            };
            spec.version(version, index_document::handler(stem, settings.index_dir.clone()))
        })
    })
}

fn catalogue() -> String {
    let names: Vec<String> = CATALOGUE
        .iter()
        .map(|(name, version)| format!("{name}@{version}"))
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for (task_type, version) in CATALOGUE {
            let name = format!("{task_type}@{version}");
            assert_eq!(name.parse::<Example>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn the_unknown_is_refused_with_a_list() {
        for name in ["index_document", "index_document@v3", "@", "", "index_document@v1@v2"] {
            let error = name.parse::<Example>().unwrap_err().to_string();
            assert!(error.contains("index_document@v1, index_document@v2"), "{error}");
        }
    }
}
