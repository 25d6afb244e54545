//! Settings that every binary shares: flag > environment > TOML file > default. Unknown keys are errors.

use std::path::{Path, PathBuf};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    name::{InvalidName, Namespace},
    store::{connect::ConnectOptions, keyspace::Keyspace},
};

/// The `[redis]` table.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisSettings {
    /// `redis://[user:password@]host:port[/db]`. Defaults to `redis://127.0.0.1:6379`.
    pub url: Option<String>,
    /// A file that holds the URL, for secrets kept out of the environment.
    pub url_file: Option<PathBuf>,
    /// First part of every key. Defaults to `sb`.
    pub prefix: Option<String>,
}

impl std::fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RedisSettings")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not valid TOML, or has a key that does not exist.
    #[error("{path}: {detail}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where and what.
        detail: String,
    },
    /// A name is not a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The key prefix is not a name.
    #[error("invalid key prefix {0:?}: use 1 to 64 of the characters A-Z a-z 0-9 . _ -")]
    Prefix(String),
}

/// Reads a TOML file into `T`.
///
/// # Errors
/// [`ConfigError::Unreadable`] or [`ConfigError::Invalid`], with line and column.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = read(path)?;
    toml::from_str(&text).map_err(|e| ConfigError::Invalid {
        path: path.to_owned(),
        detail: place_and_problem(&text, &e),
    })
}

/// Line, column and problem, without the excerpt that the parser would print: the line may hold a password.
fn place_and_problem(text: &str, error: &toml::de::Error) -> String {
    let message = redact(error.message());
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return message;
    };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column}: {message}")
}

/// `text` without user and password of any URL in it: for what is printed and was not made by us.
#[must_use]
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let end = url
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`'))
            .unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        match url.rfind('@') {
            Some(secret) => {
                out.push_str("***");
                out.push_str(&url[secret..]);
            }
            None => out.push_str(url),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// Name of the environment variable with the Redis URL.
pub const REDIS_URL_VAR: &str = "SWITCHBACK_REDIS_URL";
/// Name of the environment variable with the namespace.
pub const NAMESPACE_VAR: &str = "SWITCHBACK_NAMESPACE";
/// Where Redis is when nobody says.
pub const DEFAULT_URL: &str = "redis://127.0.0.1:6379";
/// The namespace when nobody says.
pub const DEFAULT_NAMESPACE: &str = "default";

impl RedisSettings {
    /// Where to connect: `flag`, else the environment, else this table, else the default.
    ///
    /// # Errors
    /// When the URL file cannot be read or the prefix is invalid. The URL itself is checked on connecting.
    pub fn resolve(&self, flag: Option<&str>) -> Result<ConnectOptions, ConfigError> {
        let from_file = match &self.url_file {
            Some(path) => Some(read(path)?.trim().to_owned()),
            None => None,
        };
        let url = flag
            .map(str::to_owned)
            .or_else(|| std::env::var(REDIS_URL_VAR).ok().filter(|url| !url.is_empty()))
            .or_else(|| self.url.clone())
            .or(from_file)
            .unwrap_or_else(|| DEFAULT_URL.to_owned());
        let options = ConnectOptions::new(url);
        match &self.prefix {
            Some(prefix) => Ok(options.with_keyspace(Keyspace::new(prefix).map_err(ConfigError::Prefix)?)),
            None => Ok(options),
        }
    }
}

/// The namespace: `flag`, else the environment, else `file`, else `default`.
///
/// # Errors
/// When it is not a valid name.
pub fn resolve_namespace(flag: Option<&str>, file: Option<&str>) -> Result<Namespace, ConfigError> {
    let environment = std::env::var(NAMESPACE_VAR).ok().filter(|name| !name.is_empty());
    let name = flag.or(environment.as_deref()).or(file).unwrap_or(DEFAULT_NAMESPACE);
    Ok(Namespace::new(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Whole {
        #[serde(default)]
        redis: RedisSettings,
    }

    #[test]
    fn unknown_keys_are_errors_and_name_the_place() {
        let error = toml::from_str::<Whole>("[redis]\nurll = \"x\"")
            .unwrap_err()
            .to_string();
        assert!(error.contains("urll") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn what_the_parser_quotes_holds_no_password() {
        let texts = [
            "[redis]\nurll = \"redis://u:hunter2@h\"",
            "redis = \"redis://u:hunter2@h\"",
            "[redis]\nurl = redis://u:hunter2@h",
        ];
        for text in texts {
            let error = toml::from_str::<Whole>(text).unwrap_err();
            let shown = place_and_problem(text, &error);
            assert!(shown.starts_with("line ") && !shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(
            redact("a redis://u:p@s@h:1/2 'b://c' d"),
            "a redis://***@h:1/2 'b://c' d"
        );
    }

    #[test]
    fn no_password_in_any_output() {
        let settings: Whole = toml::from_str("[redis]\nurl = \"redis://u:hunter2@h:1\"").unwrap();
        let options = settings.redis.resolve(None).unwrap();
        let shown = format!("{settings:?} {options:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
