//! What flips stopped: from which revision on the attempts of a version count again.

use redis::Cmd;

use super::{connect::Store, error::StoreError, keyspace::Key, reply};
use crate::name::{Queue, Version};

/// What flips said of the attempts of one version. 0: they said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stop {
    /// Attempts decided under an earlier revision are to end (`cancel_rev`).
    pub cancel_rev: u64,
    /// Results of attempts decided under an earlier revision are refused (`min_rev`).
    pub min_rev: u64,
}

/// Reads the value of [`Signals::stops`](super::gate::Signals), and what it speaks of for each of `versions`.
///
/// # Errors
/// When Redis does not answer.
pub async fn stops(store: &Store, queue: &Queue, versions: &[Version]) -> Result<(u64, Vec<Stop>), StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("HMGET")
        .arg(store.keyspace().render(&Key::GateState(queue.clone())))
        .arg("stops");
    for version in versions {
        cmd.arg(format!("cancel_rev:{version}"))
            .arg(format!("min_rev:{version}"));
    }
    let numbers = reply::array("stops", link.run(cmd).await?)?
        .iter()
        .map(|value| reply::count("stops", value))
        .collect::<Result<Vec<u64>, _>>()?;
    let [value, of_versions @ ..] = numbers.as_slice() else {
        return Ok((0, Vec::new()));
    };
    let stop = |pair: &[u64]| Stop {
        cancel_rev: pair[0],
        min_rev: pair[1],
    };
    Ok((*value, of_versions.chunks_exact(2).map(stop).collect()))
}
