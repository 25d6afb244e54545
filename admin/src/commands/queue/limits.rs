//! `queue limits`.

use serde::Serialize;
use switchback_common::{
    Queue,
    store::{
        dead::DeadStore,
        limits::{self, Limit},
    },
};

use crate::{
    context::Context,
    exit::Failure,
    output::{Output, table, tell, warn},
    text::plain,
};

#[derive(Debug, Serialize)]
struct LimitsView {
    queue: String,
    changed: bool,
    limits: Vec<LimitView>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LimitView {
    name: &'static str,
    /// 0 is none.
    limit: u64,
    default: u64,
    /// Whether somebody set it.
    set: bool,
    in_use: u64,
}

/// What the options ask for; each limit once.
pub(super) fn edits(
    dead: Option<u64>,
    waiting: Option<u64>,
    clear: &[Limit],
) -> Result<Vec<(Limit, Option<u64>)>, Failure> {
    let given = [(Limit::Dead, dead), (Limit::Waiting, waiting)];
    let mut out: Vec<_> = given.into_iter().filter(|(_, value)| value.is_some()).collect();
    for &limit in clear {
        if out.iter().any(|(given, value)| *given == limit && value.is_some()) {
            let name = limit.name();
            return Err(Failure::Usage(format!("--{name} and --clear {name}: one of them")));
        }
        out.push((limit, None));
    }
    Ok(out)
}

pub(super) async fn run(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    edits: &[(Limit, Option<u64>)],
    by: &str,
    why: &str,
) -> Result<(), Failure> {
    let store = &context.store;
    let before = limits::read(store, queue).await?;
    let changed = if edits.is_empty() {
        // Limits may be set before the first task: only who just looks is told that there is no such queue.
        if before.set.is_empty() && before.problems.is_empty() {
            context.require(queue).await?;
        }
        false
    } else {
        limits::set(store, queue, edits, by, why).await?
    };
    let now = limits::read(store, queue).await?;
    for (limit, _) in edits {
        let shown = |n: u64| if n == 0 { "no limit".to_owned() } else { n.to_string() };
        let (was, is) = (before.value(*limit), now.value(*limit));
        tell(format_args!(
            "{queue}: {} {} -> {}",
            limit.name(),
            shown(was),
            shown(is)
        ));
    }
    for problem in &now.problems {
        warn(plain(problem));
    }
    let link = store.link().await?;
    let waiting = limits::fullness(&link, store, queue).await?.waiting;
    let dead = DeadStore::new(store, queue).count().await?;
    let limits = Limit::ALL.map(|limit| LimitView {
        name: limit.name(),
        limit: now.value(limit),
        default: limit.default_value(),
        set: now.set.contains(&limit),
        in_use: match limit {
            Limit::Dead => dead,
            Limit::Waiting => waiting,
        },
    });
    let view = LimitsView {
        queue: queue.to_string(),
        changed,
        limits: limits.into(),
        problems: now.problems,
    };
    out.value(&view, |_| {
        let rows = view.limits.iter().map(|l| {
            vec![
                l.name.to_owned(),
                if l.limit == 0 {
                    "none".to_owned()
                } else {
                    l.limit.to_string()
                },
                l.in_use.to_string(),
                if l.set { "set" } else { "default" }.to_owned(),
            ]
        });
        table(&["LIMIT", "MOST", "IN USE", "FROM"], &["MOST", "IN USE"], rows)
    })
}
