//! Lua: every script lives in a `.lua` file beside its wrapper and is loaded on first use.

use std::sync::LazyLock;

use redis::Script;

const GATE: &str = include_str!("gate/core.lua");
const ENTRY: &str = include_str!("queue/entry.lua");

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
    JOIN = GATE, include_str!("session/join.lua");
    RENEW = include_str!("session/renew.lua");
    PUBLISH = include_str!("session/publish.lua");
    LEAVE = include_str!("session/leave.lua");
    REAP = ENTRY, include_str!("session/reap.lua");
    SETTLE = ENTRY, include_str!("queue/settle.lua");
    PROMOTE = ENTRY, include_str!("queue/promote.lua");
    SWEEP = ENTRY, include_str!("queue/sweep.lua");
    CANCEL = ENTRY, include_str!("cancel/cancel.lua");
    PROGRESS = include_str!("results/progress.lua");
    ENQUEUE_ONCE = include_str!("queue/enqueue_once.lua");
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_new_work_is_refused_at_maxmemory() {
        for (name, source) in super::all() {
            // P10: settle, renew, join, recover and roll back go on; enqueueing does not.
            let allowed = source.starts_with("#!lua flags=allow-oom\n");
            assert_eq!(allowed, name != "ENQUEUE_ONCE", "{name}");
        }
    }
}
