//! `config export | diff | apply | history | revert | drift`.

mod apply;
mod history;

use serde::Serialize;
use serde_json::Value;
use switchback_common::{Namespace, TaskType, store::config as store};

use crate::{
    args::{ConfigVerb, DocumentSource},
    config::{
        diff::Change,
        document::{Document, Syntax},
        drift::{self, Drift},
        plan::{Plan, Problem},
        source,
        state::State,
    },
    context::Context,
    exit::Failure,
    output::{Format, Output, table, tell, warn},
    text::{brief, count, plain},
};

/// Longest value in a table.
const VALUE_SHOWN: usize = 60;

pub(crate) async fn run(mut context: Context, out: &mut Output, verb: ConfigVerb) -> Result<(), Failure> {
    match verb {
        ConfigVerb::Export {
            task_types,
            complete,
            rev,
        } => export(&context, out, &task_types, complete, rev).await,
        ConfigVerb::Diff {
            source: from,
            exit_code,
        } => {
            let wanted = source::read(&mut context, &from)?;
            diff(&context, out, &wanted, exit_code).await
        }
        ConfigVerb::Apply { source: from, options } => {
            let wanted = source::read(&mut context, &from)?;
            apply::run(&context, out, &wanted, None, &options).await
        }
        ConfigVerb::History { limit } => history::run(&context, out, limit).await,
        ConfigVerb::Revert { to, options } => {
            let wanted = kept(&context, to).await?;
            apply::run(&context, out, &wanted, Some(to), &options).await
        }
        ConfigVerb::Drift {
            source: from,
            exit_code,
        } => drift(&mut context, out, &from, exit_code).await,
    }
}

async fn export(
    context: &Context,
    out: &mut Output,
    task_types: &[TaskType],
    complete: bool,
    rev: Option<u64>,
) -> Result<(), Failure> {
    let mut document = match rev {
        Some(rev) => kept(context, rev).await?,
        None => {
            let named = Document {
                namespace: None,
                queues: task_types
                    .iter()
                    .map(|name| (name.to_string(), Default::default()))
                    .collect(),
            };
            let state = State::read(context, &named).await?;
            let shown = |name: &String| task_types.is_empty() || task_types.iter().any(|t| t.as_str() == name);
            for queue in state
                .queues
                .iter()
                .filter(|(name, _)| shown(name))
                .map(|(_, queue)| queue)
            {
                for problem in &queue.problems {
                    warn(format_args!("{}: {}", queue.queue, plain(problem)));
                }
            }
            state.document(context, complete)
        }
    };
    for task_type in task_types {
        if !document.queues.contains_key(task_type.as_str()) {
            context.require(&context.queue(task_type.clone())).await?;
        }
    }
    if !task_types.is_empty() {
        document
            .queues
            .retain(|name, _| task_types.iter().any(|task_type| task_type.as_str() == name));
    }
    let (text, syntax) = match out.format() {
        Format::Table => (document.render(Syntax::Toml).map_err(Failure::Other)?, Syntax::Toml),
        Format::Yaml => (out.render(&document)?, Syntax::Yaml),
        Format::Json | Format::Jsonl => (out.render(&document)?, Syntax::Json),
    };
    if let Err(mistake) = Document::parse(&text, syntax) {
        let mistake = plain(&mistake.to_string());
        warn(format_args!(
            "this cannot be applied as it is: {mistake}. Queues can be exported one by one, by their names"
        ));
    }
    Ok(out.text(&text)?)
}

/// What a revision left in force, as it was written down.
async fn kept(context: &Context, rev: u64) -> Result<Document, Failure> {
    let namespace = &context.namespace;
    let is = |found: &store::Revision| found.kind == "begun" && found.rev == rev;
    let entries = store::history(&context.store, namespace, |entries| entries.iter().any(is)).await?;
    let Some(found) = entries.into_iter().find(is) else {
        return Err(Failure::NotFound(format!(
            "the configuration of {namespace} has no revision {rev} (any more): see `switchback config history`"
        )));
    };
    if found.document.is_empty() {
        return Err(Failure::Refused(format!(
            "revision {rev} of {namespace} was more than is kept: its changes are in `switchback config history`"
        )));
    }
    Document::parse(&found.document, Syntax::Json).map_err(|e| {
        Failure::Other(format!(
            "revision {rev} of {namespace} cannot be read: {}",
            plain(&e.to_string())
        ))
    })
}

#[derive(Debug, Serialize)]
struct DiffView<'a> {
    namespace: &'a Namespace,
    revision: u64,
    changed: bool,
    changes: &'a [Change],
    problems: &'a [Problem],
    warnings: &'a [String],
}

async fn diff(context: &Context, out: &mut Output, wanted: &Document, exit_code: bool) -> Result<(), Failure> {
    let state = State::read(context, wanted).await?;
    let plan = Plan::make(context, &state, wanted).await?;
    let changes = plan.changes();
    say(&plan);
    let view = DiffView {
        namespace: &context.namespace,
        revision: state.revision,
        changed: !changes.is_empty(),
        changes: &changes,
        problems: &plan.problems,
        warnings: &plan.warnings,
    };
    if changes.is_empty() && out.is_table() {
        tell("nothing differs");
    }
    out.value(&view, |_| change_table(&changes))?;
    match exit_code && !changes.is_empty() {
        true => Err(Failure::Differs(format!("{} to change", count(changes.len(), "field")))),
        false => Ok(()),
    }
}

#[derive(Debug, Serialize)]
struct DriftView<'a> {
    namespace: &'a Namespace,
    drifted: bool,
    drift: &'a [Drift],
    problems: &'a [Problem],
    warnings: &'a [String],
}

async fn drift(context: &mut Context, out: &mut Output, from: &DocumentSource, exit_code: bool) -> Result<(), Failure> {
    let wanted = source::read(context, from)?;
    let state = State::read(context, &wanted).await?;
    let plan = Plan::make(context, &state, &wanted).await?;
    let drift = drift::find(context, &plan).await?;
    say(&plan);
    if drift.is_empty() && out.is_table() {
        tell("no drift");
    }
    let now = context.now_us().await?;
    let view = DriftView {
        namespace: &context.namespace,
        drifted: !drift.is_empty(),
        drift: &drift,
        problems: &plan.problems,
        warnings: &plan.warnings,
    };
    out.value(&view, |_| {
        if drift.is_empty() {
            return String::new();
        }
        let rows = drift.iter().map(|found| {
            let unknown = || format!("unknown: {}", found.note.unwrap_or_default());
            vec![
                plain(found.queue()),
                brief(&found.field(), VALUE_SHOWN),
                words(found.file()),
                words(found.redis()),
                found.who.as_ref().map_or_else(unknown, |who| who.words(now)),
            ]
        });
        table(&["QUEUE", "FIELD", "FILE", "REDIS", "CHANGED"], &[], rows)
    })?;
    match exit_code && !drift.is_empty() {
        true => Err(Failure::Differs(format!("{} drifted", count(drift.len(), "field")))),
        false => Ok(()),
    }
}

/// What speaks against it, to the person.
fn say(plan: &Plan<'_>) {
    plan.warnings.iter().for_each(warn);
    for problem in &plan.problems {
        warn(format_args!("{}: {}", problem.queue, problem.text));
    }
}

fn change_table(changes: &[Change]) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let rows = changes.iter().map(|change| {
        vec![
            plain(&change.queue),
            brief(&format!("{}.{}", change.section, change.field), VALUE_SHOWN),
            words(&change.before),
            words(&change.after),
        ]
    });
    table(&["QUEUE", "FIELD", "BEFORE", "AFTER"], &[], rows)
}

fn words(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "none".to_owned(),
        Value::String(text) => brief(text, VALUE_SHOWN),
        other => brief(&other.to_string(), VALUE_SHOWN),
    }
}
