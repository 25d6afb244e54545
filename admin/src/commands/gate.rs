//! `gate show | set | check | rollback | pause | resume | revert | history | blast`: one file per verb that is more than a
//! few lines.

mod blast;
mod check;
pub(crate) mod history;
mod revert;
mod rollback;
mod set;
mod show;
pub(crate) mod spell;

use switchback_common::{
    Queue,
    store::{dead::DeadStore, limits},
};

use crate::{args::GateVerb, context::Context, exit::Failure, output::Output};

pub(crate) async fn run(context: &Context, out: &mut Output, verb: GateVerb) -> Result<(), Failure> {
    match verb {
        GateVerb::Show { task_type, at: None } => show::show(context, out, context.queue(task_type)).await,
        GateVerb::Show {
            task_type,
            at: Some(at),
        } => show::show_at(context, out, &context.queue(task_type), at).await,
        GateVerb::Set {
            task_type,
            fields,
            force,
            inflight,
            change,
        } => {
            let fields = set::checked(fields)?;
            set::set(
                context,
                out,
                &context.queue(task_type),
                fields,
                force,
                inflight,
                &change,
            )
            .await
        }
        GateVerb::Check { task_type, to, percent } => {
            check::check(context, out, &context.queue(task_type), &to, percent).await
        }
        GateVerb::Rollback {
            task_type,
            to,
            inflight,
            change,
        } => rollback::rollback(context, out, &context.queue(task_type), to, inflight, &change).await,
        GateVerb::Pause { task_type, change } => {
            set::pause(context, out, &context.queue(task_type), "1", &change).await
        }
        GateVerb::Resume { task_type, change } => {
            let queue = context.queue(task_type);
            refuse_at_dead_limit(context, &queue).await?;
            set::pause(context, out, &queue, "0", &change).await
        }
        GateVerb::Revert {
            task_type,
            to_rev,
            force,
            inflight,
            change,
        } => revert::revert(context, out, &context.queue(task_type), to_rev, force, inflight, change).await,
        GateVerb::History { task_type, filter } => {
            history::history(context, out, &context.queue(task_type), &filter).await
        }
        GateVerb::Blast(args) => blast::run(context, out, &args).await,
    }
}

/// P10: workers would hold it again at once. The way out is fewer dead letters, or a higher limit.
async fn refuse_at_dead_limit(context: &Context, queue: &Queue) -> Result<(), Failure> {
    let limit = limits::read(&context.store, queue).await?.dead;
    let count = DeadStore::new(&context.store, queue).count().await?;
    if limit == 0 || count < limit {
        return Ok(());
    }
    let task_type = &queue.task_type;
    Err(Failure::Refused(format!(
        "{queue} has {count} dead letters, the limit is {limit}: its workers would hold it again at once. Requeue or discard \
         some (switchback dead requeue|discard {task_type}), or raise the limit (switchback queue limits {task_type} --dead N)"
    )))
}
