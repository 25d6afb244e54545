//! Lua: every script lives in a `.lua` file beside its wrapper and is loaded on first use.

use std::sync::LazyLock;

use redis::Script;

const GATE: &str = include_str!("gate/core.lua");
/// Stands behind [`GATE`].
const RECORD: &str = include_str!("versions/record.lua");
const ENTRY: &str = include_str!("queue/entry.lua");
const CHAIN: &str = include_str!("dead/chain.lua");
/// P10: what follows also runs at `maxmemory`. Scripts that bring new work go without it.
const ALLOW_OOM: &str = "#!lua flags=allow-oom\n";

/// A script that is compiled into its hash once.
pub(crate) type Lazy = LazyLock<Script>;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $($part:expr),+;)*) => {
        $($(#[$doc])* pub(crate) static $name: Lazy = LazyLock::new(|| Script::new(&[$($part),+].concat()));)*
        /// Every script and its name, for the test that loads them all.
        #[cfg(test)]
        pub(crate) fn all() -> Vec<(&'static str, String)> {
            vec![$((stringify!($name), [$($part),+].concat())),*]
        }
    };
}

scripts! {
    SEAL = GATE, include_str!("gate/seal.lua");
    CHANGE = GATE, include_str!("gate/change.lua");
    HOLD = GATE, include_str!("gate/hold.lua");
    ROLLOUT = GATE, include_str!("gate/rollout.lua");
    HOLD_FULL = GATE, include_str!("gate/full.lua");
    JOIN = GATE, RECORD, include_str!("session/join.lua");
    RETIRE = GATE, RECORD, include_str!("versions/retire.lua");
    RESTORE = GATE, RECORD, include_str!("versions/restore.lua");
    PROBE_ASK = ALLOW_OOM, ENTRY, include_str!("probe/ask.lua");
    PROBE_TAKE = include_str!("probe/take.lua");
    PROBE_ANSWER = include_str!("probe/answer.lua");
    RENEW = include_str!("session/renew.lua");
    PUBLISH = include_str!("session/publish.lua");
    OPEN = include_str!("session/open.lua");
    LEAVE = include_str!("session/leave.lua");
    SUSPECTS = include_str!("session/suspects.lua");
    REAP = ALLOW_OOM, ENTRY, include_str!("session/reap.lua");
    SETTLE = ALLOW_OOM, ENTRY, include_str!("queue/settle.lua");
    PROMOTE = ALLOW_OOM, ENTRY, include_str!("queue/promote.lua");
    PRUNE = include_str!("queue/prune.lua");
    COUNT = include_str!("queue/count.lua");
    SWEEP = ALLOW_OOM, ENTRY, include_str!("queue/sweep.lua");
    ENQUEUE = ENTRY, include_str!("queue/enqueue.lua");
    SCHEDULE_FIRE = include_str!("schedule/fire.lua");
    SCHEDULE_WRITE = include_str!("schedule/write.lua");
    DEAD_SCAN = ALLOW_OOM, ENTRY, CHAIN, include_str!("dead/scan.lua");
    DEAD_REQUEUE = ALLOW_OOM, ENTRY, CHAIN, include_str!("dead/requeue.lua");
    DEAD_DISCARD = ALLOW_OOM, ENTRY, include_str!("dead/discard.lua");
    DEAD_REFUND = ALLOW_OOM, ENTRY, CHAIN, include_str!("dead/refund.lua");
    LOG_RUN = include_str!("log/run.lua");
    HELD = ALLOW_OOM, ENTRY, include_str!("held/scan.lua");
    LIMITS_SET = include_str!("limits/set.lua");
    CONFIG_RECORD = include_str!("config/record.lua");
    GRANT = include_str!("throttle/grant.lua");
    RATE = include_str!("throttle/rate.lua");
    KEY_RATES = include_str!("throttle/keys.lua");
    CANCEL = ALLOW_OOM, ENTRY, include_str!("cancel/cancel.lua");
    ABSENCE = include_str!("absence/note.lua");
    DRIVE = include_str!("rollout/drive.lua");
    LOST = include_str!("rollout/lost.lua");
    LONG = include_str!("rollout/long.lua");
    NOTES_PAGE = include_str!("notes/page.lua");
    PROGRESS = include_str!("results/progress.lua");
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_new_work_is_refused_at_maxmemory() {
        for (name, source) in super::all() {
            // P10: settle, renew, join, recover and roll back go on; enqueueing does not.
            let allowed = source.starts_with("#!lua flags=allow-oom\n");
            assert_eq!(allowed, !matches!(name, "ENQUEUE" | "SCHEDULE_FIRE"), "{name}");
        }
    }
}
