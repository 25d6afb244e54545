//! Versions that the gate sends tasks to and no live worker has: said once in the log when it begins, and once when it is over.

use std::time::Duration;

use redis::Cmd;

use super::{connect::Store, error::StoreError, keyspace::Key, reply, script};
use crate::{
    id::SessionId,
    name::{Queue, Version},
};

/// Most versions that one call speaks of.
pub const MAX_NOTED: usize = 100;

/// What came of saying which versions are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// How many are absent, but not for long enough yet to be spoken of.
    pub pending: u64,
    /// Those that the log speaks of from now on: it was this call that said so.
    pub began: Vec<String>,
}

/// Whether any version is noted as absent: somebody who finds it otherwise should say so.
///
/// # Errors
/// When Redis does not answer.
pub async fn is_noted(store: &Store, queue: &Queue) -> Result<bool, StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("HEXISTS")
        .arg(store.keyspace().render(&Key::Versions(queue.clone())))
        .arg(":absent");
    Ok(reply::count("HEXISTS", &link.run(cmd).await?)? > 0)
}

/// Notes which of the versions that the gate reaches are absent, and what no longer is. It must last for `grace` before it is
/// spoken of.
///
/// # Errors
/// When Redis does not answer. Saying it again is harmless.
pub async fn note(
    store: &Store,
    queue: &Queue,
    session: &SessionId,
    grace: Duration,
    reached: &[Version],
    absent: &[Version],
) -> Result<Noted, StoreError> {
    let link = store.warm().await?;
    let mut call = script::ABSENCE.prepare_invoke();
    for key in [Key::Versions(queue.clone()), Key::Log(queue.clone())] {
        call.key(store.keyspace().render(&key));
    }
    let reached: String = reached.iter().map(|version| format!(" {version} ")).collect();
    call.arg(session.as_str())
        .arg(u64::try_from(grace.as_micros()).unwrap_or(u64::MAX))
        .arg(reached);
    for version in absent.iter().take(MAX_NOTED) {
        call.arg(version.as_str());
    }
    let (_, mut rest) = reply::verdict("absence", link.run_script(&call).await?)?;
    let pending = rest.next().map_or(Ok(0), |n| reply::count("absence", &n))?;
    let began = rest
        .map(|name| reply::text("absence", name))
        .collect::<Result<_, _>>()?;
    Ok(Noted { pending, began })
}
