//! `queue limits`.

use serde::Serialize;
use serde_json::Value;
use switchback_common::{
    Queue,
    store::{
        dead::DeadStore,
        limits::{self, Limit, Limits, Setting},
        session::SessionStore,
    },
};

use crate::{
    args::LimitEdits,
    change::signature,
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
    /// A number, or a rate as text; null is none.
    limit: Value,
    default: Value,
    /// Whether somebody set it.
    set: bool,
    in_use: Option<u64>,
    /// Why what lies there does not count.
    problem: Option<String>,
}

pub(super) async fn run(context: &Context, out: &mut Output, queue: &Queue, edits: &LimitEdits) -> Result<(), Failure> {
    let store = &context.store;
    let (settings, clear) = (edits.settings(), &edits.clear);
    if let Some(twice) = settings.iter().map(|s| s.limit()).find(|limit| clear.contains(limit)) {
        let name = twice.name();
        return Err(Failure::Usage(format!("{name} is both set and cleared: one of them")));
    }
    let before = limits::read(store, queue).await?;
    let changed = if settings.is_empty() && clear.is_empty() {
        // Limits may be set before the first task: only who just looks is told that there is no such queue.
        if before.set.is_empty() && before.problems.is_empty() {
            context.require(queue).await?;
        }
        false
    } else {
        let (by, why) = signature(edits.by.as_deref(), edits.why.as_deref());
        limits::set(store, queue, &settings, clear, &by, &why).await?
    };
    let now = limits::read(store, queue).await?;
    for limit in settings.iter().map(|s| s.limit()).chain(clear.iter().copied()) {
        let (name, was, is) = (limit.name(), words(before.get(limit)), words(now.get(limit)));
        tell(format_args!("{queue}: {name} {was} -> {is}"));
    }
    for problem in &now.problems {
        warn(plain(&problem.text));
    }
    let link = store.link().await?;
    let waiting = limits::fullness(&link, store, queue).await?.waiting;
    let dead = DeadStore::new(store, queue).count().await?;
    let sessions = SessionStore::new(store, queue).list().await?;
    let live = sessions.iter().filter(|session| session.is_live());
    let at_once = live.flat_map(|session| session.running().into_values()).sum();
    let defaults = Limits::default();
    let limits = Limit::ALL.map(|limit| LimitView {
        name: limit.name(),
        limit: json(now.get(limit)),
        default: json(defaults.get(limit)),
        set: now.set.contains(&limit),
        in_use: match limit {
            Limit::Dead => Some(dead),
            Limit::Waiting => Some(waiting),
            Limit::Concurrency => Some(at_once),
            Limit::Rate | Limit::RatePerKey => None,
        },
        problem: now
            .problems
            .iter()
            .find(|p| p.limit == Some(limit))
            .map(|p| p.text.clone()),
    });
    let view = LimitsView {
        queue: queue.to_string(),
        changed,
        limits: limits.into(),
        problems: now.problems.iter().map(|p| p.text.clone()).collect(),
    };
    out.value(&view, |_| {
        let rows = Limit::ALL.iter().zip(&view.limits).map(|(&limit, row)| {
            let from = match (&row.problem, row.set) {
                (Some(_), _) => "not valid",
                (None, true) => "set",
                (None, false) => "default",
            };
            vec![
                row.name.to_owned(),
                match (&row.problem, now.get(limit)) {
                    // What workers keep to is known to them only.
                    (Some(_), None) => "?".to_owned(),
                    (_, most) => words(most),
                },
                words(defaults.get(limit)),
                row.in_use.map_or_else(String::new, |n| n.to_string()),
                from.to_owned(),
            ]
        });
        let header = ["LIMIT", "MOST", "DEFAULT", "IN USE", "FROM"];
        table(&header, &["MOST", "DEFAULT", "IN USE"], rows)
    })
}

fn words(setting: Option<Setting>) -> String {
    setting.map_or_else(|| "none".to_owned(), |setting| setting.to_string())
}

fn json(setting: Option<Setting>) -> Value {
    setting.map_or(Value::Null, |setting| {
        let text = setting.to_string();
        text.parse::<u64>().map_or_else(|_| Value::from(text), Value::from)
    })
}
