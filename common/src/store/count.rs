//! How much of a stream waits when Redis cannot say.
//!
//! That is after a restart, or on a new primary, until the queue has once been empty. A claim reaches the append-only file and the replicas as an XCLAIM, which does not count what was read.

use redis::Value;

use super::{
    connect::Store,
    error::StoreError,
    inspect::{self, GroupInfo},
    reply, script,
    session::{MOVE_BYTES, MOVE_ENTRIES},
};

/// P10: most steps of one count. Behind the reading position lie what is retained (100 000 entries by default) and what
/// runs, so this is enough for entries of any ordinary size.
const MAX_STEPS: usize = 1_000;

/// Fills in what waits in `stream` if Redis did not say, by counting the entries that were delivered and are still there.
/// Left unknown where that would take too many steps.
///
/// # Errors
/// When Redis does not answer.
pub(crate) async fn complete(store: &Store, stream: &str, mut info: GroupInfo) -> Result<GroupInfo, StoreError> {
    if !info.exists || info.lag.is_some() || info.length == 0 {
        return Ok(info);
    }
    let entry = (inspect::memory(store, stream).await? / info.length).max(1);
    let step = (MOVE_BYTES as u64 / entry).clamp(1, MOVE_ENTRIES as u64);
    let link = store.cold().await?;
    let (mut from, mut delivered) = ("-".to_owned(), 0);
    for _ in 0..MAX_STEPS {
        let mut call = script::COUNT.prepare_invoke();
        call.key(stream)
            .arg(&from)
            .arg(info.last_delivered.to_string())
            .arg(step);
        let (_, mut rest) = reply::verdict("count", link.run_script(&call).await?)?;
        let mut next = || rest.next().unwrap_or(Value::Nil);
        delivered += reply::count("count", &next())?;
        let last = reply::text("count", next())?;
        if last.is_empty() {
            info.lag = Some(info.length.saturating_sub(delivered));
            break;
        }
        from = format!("({last}");
    }
    Ok(info)
}
