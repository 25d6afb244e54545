//! `dead requeue | discard`: page by page in entry-id order, step by step, and it can be stopped anywhere.

mod canary;
mod preview;
mod source;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use switchback_common::{
    Queue, StoreError, StreamId,
    store::dead::{DeadLetter, DeadStore, Operator, STEP_BYTES, STEP_ENTRIES, Waiting, steps},
};
use switchback_gates::admin::operation_id;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use self::{
    canary::{Canary, CanaryView, Verdict},
    preview::{Few, tell_refused},
    source::{Found, Source},
};
use super::Window;
use crate::{
    args::{self, Act, Rate},
    change::who,
    context::Context,
    exit::Failure,
    output::{Output, tell},
    text::{count, plain},
};

/// Steps a second when a rate is given.
const STEPS_A_SECOND: f64 = 10.0;
/// Without a terminal, a line of progress this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What becomes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Requeue {
        /// What is malformed, too.
        force: bool,
        /// Only the attempts made on one version are given back.
        refund: bool,
    },
    Discard,
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Self::Requeue { .. } => "requeue",
            Self::Discard => "discard",
        }
    }

    fn refuses(self, letter: &DeadLetter) -> bool {
        matches!(self, Self::Requeue { force: false, .. }) && letter.is_malformed()
    }

    fn refunds(self) -> bool {
        matches!(self, Self::Requeue { refund: true, .. })
    }

    fn refund(self, source: &Source) -> Option<Refund> {
        let version = source.version.clone().filter(|_| self.refunds())?;
        Some(Refund {
            version,
            ..Refund::default()
        })
    }
}

/// Attempts given back.
#[derive(Debug, Clone, Default, Serialize)]
struct Refund {
    version: String,
    attempts: u64,
    untold: u64,
    waiting: u64,
    at_once: u64,
}

impl Refund {
    fn letter(&mut self, letter: &DeadLetter) {
        self.attempts += letter.refund;
        self.untold += letter.untold;
    }

    fn waiting(&mut self, task: &Waiting) {
        self.attempts += task.refund;
        self.untold += task.untold;
        self.waiting += 1;
        self.at_once += u64::from(task.at_once);
    }

    /// Where it is not exact.
    fn untold_words(&self) -> Option<String> {
        (self.untold > 0).then(|| {
            format!(
                "{} keep counting: error chains hold the last 10, and do not tell on which version they were made",
                count(self.untold, "older attempt")
            )
        })
    }
}

pub(super) async fn run(
    context: &Context,
    out: &mut Output,
    action: Action,
    act: &Act,
    canary: Option<args::Canary>,
) -> Result<(), Failure> {
    let queue = context.queue(act.task_type.clone());
    // A window on one version is no `--all` by mistake; but nothing brings back what was discarded.
    let broad = act.all || (act.which.since_flip && action == Action::Discard);
    if broad && !act.yes && !act.dry_run {
        return Err(Failure::Refused(format!(
            "--all means every dead letter that fits; look with --dry-run, then {} them with --yes",
            action.verb()
        )));
    }
    let refunded = act.which.version.clone().filter(|_| action.refunds());
    let store = DeadStore::new(&context.store, &queue).refunding(refunded);
    let mut source = Source::open(context, store, act, action.refunds()).await?;
    if source.until.is_none() {
        context.require(&queue).await?;
    }
    let missing = source.missing.clone();
    if act.dry_run {
        preview::show(out, &queue, action, source).await?;
    } else {
        let mut work = Work {
            context,
            queue: &queue,
            action,
            operator: Operator {
                by: who(act.by.as_deref()),
                why: act.why.clone().unwrap_or_default(),
                op: operation_id(),
            },
            pace: Pace::new(act.rate),
            progress: Progress::new(source.store.count().await?),
            canary: match canary {
                Some(canary) => Canary::open(&context.store, &queue, canary).await?,
                None => None,
            },
            outcome: Outcome::of(&queue, action, &source),
        };
        let ended = work.all(&mut source).await;
        report(out, &queue, work.outcome, ended, source.is_list)?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::NotFound(format!(
        "no dead letters (any more) in {queue}: {}",
        missing.iter().map(|id| plain(id)).collect::<Vec<_>>().join(", ")
    )))
}

/// How far it came.
#[derive(Debug, Serialize)]
struct Outcome {
    queue: String,
    action: &'static str,
    done: u64,
    looked_at: u64,
    refused: Few,
    missing: Vec<String>,
    cursor: Option<String>,
    until: Option<String>,
    finished: bool,
    window: Option<Window>,
    refund: Option<Refund>,
    canary: Option<CanaryView>,
}

impl Outcome {
    fn of(queue: &Queue, action: Action, source: &Source) -> Self {
        Self {
            queue: queue.to_string(),
            action: action.verb(),
            done: 0,
            looked_at: 0,
            refused: Few::default(),
            missing: source.missing.clone(),
            cursor: source.after.map(|id| id.to_string()),
            until: source.until.map(|id| id.to_string()),
            finished: false,
            window: source.window.clone(),
            refund: action.refund(source),
            canary: None,
        }
    }

    fn human(&self) -> String {
        let waiting = self.refund.as_ref().map_or(0, |refund| refund.waiting);
        let letters = count(self.done - waiting, "dead letter");
        let mut text = match self.action {
            "discard" => {
                format!("{letters} of {} discarded; nothing of the payloads is kept", self.queue)
            }
            _ => format!("{letters} of {} requeued", self.queue),
        };
        if let Some(refund) = &self.refund {
            text.push_str(&format!(
                ", {} that waited: {} at once; {} on {} given back",
                count(refund.waiting, "task"),
                refund.at_once,
                count(refund.attempts, "attempt"),
                refund.version
            ));
        }
        text
    }
}

/// How acting ended, if no error ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Interrupted,
    Canary(Verdict),
}

fn report(
    out: &mut Output,
    queue: &Queue,
    mut outcome: Outcome,
    ended: Result<End, Failure>,
    is_list: bool,
) -> Result<(), Failure> {
    outcome.finished = matches!(ended, Ok(End::Finished));
    out.value(&outcome, |_| outcome.human())?;
    tell_refused(&outcome.refused);
    if let Some(words) = outcome.refund.as_ref().and_then(Refund::untold_words) {
        tell(words);
    }
    let go_on = match (&outcome.cursor, &outcome.until) {
        (Some(cursor), Some(until)) if !is_list => {
            format!("go on with the same command and --after {cursor} --until {until}")
        }
        _ => "repeat the command to go on".to_owned(),
    };
    let canary = outcome.canary.as_ref().map(CanaryView::words).unwrap_or_default();
    match ended {
        Ok(End::Finished) if is_list && outcome.refused.count > 0 => Err(Failure::Refused(format!(
            "malformed, requeue it with --force: {}",
            outcome.refused.words()
        ))),
        Ok(End::Finished) => Ok(()),
        Ok(End::Interrupted) | Ok(End::Canary(Verdict::Interrupted | Verdict::Passed)) => {
            Err(Failure::Other(format!("interrupted; {go_on}")))
        }
        Ok(End::Canary(Verdict::Failed)) => Err(Failure::Refused(format!(
            "{canary} on {queue}: the others stay where they are; look at why, then {go_on}"
        ))),
        Ok(End::Canary(Verdict::TimedOut)) => Err(Failure::NotYet(format!(
            "{canary} on {queue} within --canary-timeout: the others stay where they are; {go_on}"
        ))),
        Err(failure) => {
            tell(format_args!("stopped half way; {go_on}"));
            Err(failure)
        }
    }
}

/// Acting.
struct Work<'a> {
    context: &'a Context,
    queue: &'a Queue,
    action: Action,
    operator: Operator,
    pace: Pace,
    progress: Progress,
    /// Those that go first; `None` once they have ended, or when nobody asked for them.
    canary: Option<Canary>,
    outcome: Outcome,
}

impl Work<'_> {
    /// Acts until there is nothing left, somebody interrupts, or the canary fails.
    async fn all(&mut self, source: &mut Source) -> Result<End, Failure> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        };
        let mut stop = std::pin::pin!(stop);
        let store = source.store.clone();
        loop {
            let meant = tokio::select! {
                biased;
                () = &mut stop => return Ok(End::Interrupted),
                meant = source.next() => meant?,
            };
            let Some(meant) = meant else { break };
            let mut todo = match meant.found {
                Found::Letters(letters) => {
                    let (refused, letters): (Vec<_>, Vec<_>) =
                        letters.into_iter().partition(|letter| self.action.refuses(letter));
                    refused.iter().for_each(|letter| self.outcome.refused.add(letter));
                    Todo::Letters(letters)
                }
                Found::Waiting(tasks) => Todo::Waiting(tasks),
            };
            while !todo.is_empty() {
                tokio::select! {
                    biased;
                    () = &mut stop => return Ok(End::Interrupted),
                    () = self.pace.due() => {}
                }
                let most = match &self.canary {
                    Some(canary) => self.pace.step.min(canary.missing()),
                    None => self.pace.step,
                };
                let n = self.step(&store, &mut todo, most).await?;
                self.pace.done += n;
                self.progress.tell(&self.outcome, self.outcome.looked_at + n);
                if self.canary.as_ref().is_some_and(|canary| canary.missing() == 0)
                    && let Some(end) = self.wait(&mut stop).await?
                {
                    return Ok(end);
                }
            }
            self.outcome.looked_at += meant.looked_at;
            if let Some(end) = meant.end {
                self.outcome.cursor = Some(end.to_string());
            }
            self.progress.tell(&self.outcome, self.outcome.looked_at);
        }
        // Fewer than were to go first.
        if self.canary.as_ref().is_some_and(|canary| !canary.is_empty())
            && let Some(end) = self.wait(&mut stop).await?
        {
            return Ok(end);
        }
        Ok(End::Finished)
    }

    /// One step; says of how many tasks it was.
    async fn step(&mut self, store: &DeadStore, todo: &mut Todo, most: usize) -> Result<u64, Failure> {
        match todo {
            Todo::Letters(letters) => {
                let step = steps(letters, most).into_iter().next().unwrap_or_default();
                self.outcome.done += act(store, self.action, &step, &self.operator).await?;
                self.outcome.cursor = step.last().map(ToString::to_string);
                let letters = letters.drain(..step.len());
                for letter in letters {
                    if let Some(refund) = &mut self.outcome.refund {
                        refund.letter(&letter);
                    }
                    if let Some(canary) = &mut self.canary {
                        canary.add([store.task_of(&letter)]);
                    }
                }
                Ok(step.len() as u64)
            }
            Todo::Waiting(tasks) => {
                let mut bytes = 0;
                let fits = tasks.iter().take(most.clamp(1, STEP_ENTRIES)).take_while(|task| {
                    bytes += task.bytes;
                    bytes <= STEP_BYTES
                });
                let n = fits.count().max(1);
                let step: Vec<Waiting> = tasks.drain(..n).collect();
                let given = give_back(store, &step, &self.operator).await?;
                self.outcome.done += given.len() as u64;
                for task in &given {
                    if let Some(refund) = &mut self.outcome.refund {
                        refund.waiting(task);
                    }
                }
                if let Some(canary) = &mut self.canary {
                    // One that keeps its time may not end for long.
                    canary.add(given.iter().filter(|task| task.at_once).map(|task| task.task.clone()));
                }
                Ok(n as u64)
            }
        }
    }

    /// Waits for the canary; `Some`: that ended it.
    async fn wait(&mut self, stop: &mut (impl Future<Output = ()> + Unpin)) -> Result<Option<End>, Failure> {
        let Some(mut canary) = self.canary.take() else {
            return Ok(None);
        };
        let verdict = tokio::select! {
            biased;
            () = stop => Verdict::Interrupted,
            verdict = canary.watch(&self.context.store, self.queue) => verdict?,
        };
        let view = canary.view(verdict);
        tell(view.words());
        self.outcome.canary = Some(view);
        // What was saved up while waiting is not for a burst.
        self.pace.restart();
        Ok((verdict != Verdict::Passed).then_some(End::Canary(verdict)))
    }
}

/// What is left of a page.
enum Todo {
    Letters(Vec<DeadLetter>),
    Waiting(Vec<Waiting>),
}

impl Todo {
    fn is_empty(&self) -> bool {
        match self {
            Self::Letters(letters) => letters.is_empty(),
            Self::Waiting(tasks) => tasks.is_empty(),
        }
    }
}

/// One step; sent again once when its reply was lost, for it happens once.
async fn act(store: &DeadStore, action: Action, step: &[StreamId], operator: &Operator) -> Result<u64, StoreError> {
    let send = async || match action {
        Action::Requeue { .. } => store.requeue(step, operator).await,
        Action::Discard => store.discard(step, operator).await,
    };
    match send().await {
        Err(e) if e.is_outcome_unknown() => {
            tell(format_args!("{e}; asking again"));
            // Whichever of the two it was: none of them is a dead letter any more.
            send().await.map(|_| step.len() as u64)
        }
        other => other,
    }
}

/// One step of tasks that wait, likewise. Gives those that it was about.
async fn give_back(store: &DeadStore, step: &[Waiting], operator: &Operator) -> Result<Vec<Waiting>, StoreError> {
    let mut ids: Vec<String> = step.iter().map(|task| task.task.clone()).collect();
    let mut given = Vec::new();
    while !ids.is_empty() {
        let looked = match store.refund_waiting(&ids, operator).await {
            Err(e) if e.is_outcome_unknown() => {
                tell(format_args!("{e}; asking again"));
                let again = store.refund_waiting(&ids, operator).await?;
                // Whichever of the two it was: what was found before has been given back.
                given.extend(
                    step.iter()
                        .filter(|task| ids[..again.dealt.min(ids.len())].contains(&task.task))
                        .cloned(),
                );
                again.dealt
            }
            other => {
                let looked = other?;
                given.extend(looked.tasks);
                looked.dealt
            }
        };
        ids.drain(..looked.clamp(1, ids.len()));
    }
    Ok(given)
}

/// No faster than the rate.
#[derive(Debug)]
struct Pace {
    rate: Option<Rate>,
    step: usize,
    began: Instant,
    done: u64,
}

impl Pace {
    fn new(rate: Option<Rate>) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and STEP_ENTRIES"
        )]
        let step = rate.map_or(STEP_ENTRIES, |Rate(rate)| {
            (rate / STEPS_A_SECOND).clamp(1.0, STEP_ENTRIES as f64) as usize
        });
        Self {
            rate,
            step,
            began: Instant::now(),
            done: 0,
        }
    }

    fn restart(&mut self) {
        (self.began, self.done) = (Instant::now(), 0);
    }

    /// Passes when the next step may be made.
    async fn due(&self) {
        if let Some(Rate(rate)) = self.rate {
            let since = Duration::try_from_secs_f64(self.done as f64 / rate).unwrap_or(Duration::MAX);
            let due = self.began.checked_add(since);
            tokio::time::sleep_until(due.unwrap_or(self.began)).await;
        }
    }
}

/// A bar where there is a terminal, else a line now and then.
#[derive(Debug)]
struct Progress {
    bar: ProgressBar,
    said: Instant,
}

impl Progress {
    fn new(total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} looked at, {msg}") {
            bar.set_style(style);
        }
        Self {
            bar,
            said: Instant::now(),
        }
    }

    fn tell(&mut self, outcome: &Outcome, looked_at: u64) {
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{} done", outcome.done));
            self.bar.set_position(looked_at);
        } else if self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            let cursor = outcome.cursor.as_deref().unwrap_or_default();
            tell(format_args!("{} done, at {cursor}", outcome.done));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
