//! Tasks that wait for a retry: whose attempts can be given back, and giving them back. In place, step by step.

use redis::{Cmd, Value};

use super::{DeadStore, Operator, STEP_ENTRIES};
use crate::store::{
    error::StoreError,
    keyspace::Key,
    reply, script,
    session::{MOVE_BYTES, MOVE_ENTRIES},
};

/// A task that waits for a retry and made attempts that can be given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its id.
    pub task: String,
    /// Attempts on the version that can be given back.
    pub refund: u64,
    /// Attempts that the error chain, which holds the last 10, does not tell of.
    pub untold: u64,
    /// Attempts made.
    pub attempts: u64,
    /// Whether it waits because of that version, and for nothing else, so that it is retried at once.
    pub at_once: bool,
    /// When it last failed on that version, ms since 1970 on Redis's clock.
    pub failed_ms: u64,
    /// With which error, at most 1000 bytes.
    pub error: String,
    /// Bytes of all its fields.
    pub bytes: u64,
}

/// What one look at waiting tasks brought.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// Tasks with attempts to give back.
    pub tasks: Vec<Waiting>,
    /// How many of the tasks asked for were looked at; the others were too many bytes for one step.
    pub dealt: usize,
}

impl DeadStore {
    /// Ids of some tasks that wait for a retry, or for their time, and where to go on; `None`: that was all. In no order;
    /// what waits all the while comes at least once.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn delayed(&self, cursor: Option<String>) -> Result<(Vec<String>, Option<String>), StoreError> {
        const WHAT: &str = "delayed tasks";
        let mut cmd = Cmd::new();
        cmd.arg("ZSCAN")
            .arg(self.store.keyspace().render(&Key::Delayed(self.queue.clone())))
            .arg(cursor.as_deref().unwrap_or("0"))
            .arg("COUNT")
            .arg(MOVE_ENTRIES);
        let mut parts = reply::array(WHAT, self.store.warm().await?.run(cmd).await?)?.into_iter();
        let next = reply::text(WHAT, parts.next().unwrap_or(Value::Nil))?;
        let pairs = reply::array(WHAT, parts.next().unwrap_or(Value::Nil))?;
        let ids = pairs.into_iter().step_by(2).map(|id| reply::text(WHAT, id));
        Ok((ids.collect::<Result<_, _>>()?, (next != "0").then_some(next)))
    }

    /// Looks which of these tasks wait and made attempts on the version of [`DeadStore::refunding`].
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn look_waiting(&self, tasks: &[String]) -> Result<Looked, StoreError> {
        self.waiting("look", tasks, &Operator::default()).await
    }

    /// Gives these tasks the attempts back that they made on the version of [`DeadStore::refunding`], and has those that
    /// wait because of it retried at once. Those that do not wait (any more), or have nothing to be given back, are passed
    /// over.
    ///
    /// # Errors
    /// When Redis does not answer; doing it again is harmless.
    pub async fn refund_waiting(&self, tasks: &[String], operator: &Operator) -> Result<Looked, StoreError> {
        self.waiting("do", tasks, operator).await
    }

    async fn waiting(&self, what: &str, tasks: &[String], operator: &Operator) -> Result<Looked, StoreError> {
        const WHAT: &str = "waiting tasks";
        let mut call = script::DEAD_REFUND.prepare_invoke();
        for key in [Key::Delayed, Key::Envelope, Key::Log] {
            call.key(self.store.keyspace().render(&key(self.queue.clone())));
        }
        call.arg(crate::envelope::clip(&operator.by, 64))
            .arg(crate::envelope::clip(&operator.why, 500))
            .arg(&operator.op)
            .arg(self.refunded())
            .arg(what)
            .arg(MOVE_BYTES);
        // P10: bounded here, whatever the caller gives.
        for task in tasks.iter().take(STEP_ENTRIES) {
            call.arg(task);
        }
        let (_, mut rows) = reply::verdict(WHAT, self.store.warm().await?.run_script(&call).await?)?;
        let dealt = reply::count(WHAT, &rows.next().unwrap_or(Value::Nil))?;
        Ok(Looked {
            tasks: rows.map(waiting).collect::<Result<_, _>>()?,
            dealt: usize::try_from(dealt).unwrap_or(usize::MAX),
        })
    }
}

fn waiting(row: Value) -> Result<Waiting, StoreError> {
    const WHAT: &str = "waiting tasks";
    let Ok([task, refund, untold, attempts, at_once, failed, error, bytes]) =
        <[Value; 8]>::try_from(reply::array(WHAT, row)?)
    else {
        return Err(reply::unexpected(WHAT, &Value::Nil));
    };
    Ok(Waiting {
        task: reply::text(WHAT, task)?,
        refund: reply::count(WHAT, &refund)?,
        untold: reply::count(WHAT, &untold)?,
        attempts: reply::count(WHAT, &attempts)?,
        at_once: reply::count(WHAT, &at_once)? == 1,
        failed_ms: reply::count(WHAT, &failed)?,
        error: reply::text(WHAT, error)?,
        bytes: reply::count(WHAT, &bytes)?,
    })
}
