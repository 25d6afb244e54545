//! `dead requeue | discard`: page by page in entry-id order, step by step, and it can be stopped anywhere.

use std::{collections::BTreeMap, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use switchback_common::{
    Queue, StoreError, StreamId,
    store::dead::{DeadLetter, DeadStore, Filter, Operator, Order, STEP_ENTRIES, steps},
};
use switchback_gates::admin::operation_id;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use super::{PAGE, filter, find_all, some};
use crate::{
    args::{Act, Rate},
    change::who,
    context::Context,
    exit::Failure,
    output::{Output, table, tell, warn},
    text::{brief, count, plain},
};

/// Letters shown by name.
const SHOWN: usize = 5;
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
        self == Self::Requeue { force: false } && letter.is_malformed()
    }
}

/// A letter by name.
#[derive(Debug, Serialize)]
struct Named {
    entry: String,
    id: Option<String>,
    reason: String,
    version: String,
}

impl Named {
    fn of(letter: &DeadLetter) -> Self {
        Self {
            entry: letter.entry.to_string(),
            id: some(letter.id.clone()),
            reason: letter.reason.clone(),
            version: letter.version.clone(),
        }
    }

    fn words(&self) -> String {
        let id = self.id.as_deref().unwrap_or("no id");
        format!("{} ({}, {})", self.entry, brief(id, 64), brief(&self.reason, 24))
    }
}

/// How many, and the first of them.
#[derive(Debug, Default, Serialize)]
struct Few {
    count: u64,
    first: Vec<Named>,
}

impl Few {
    fn add(&mut self, letter: &DeadLetter) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(Named::of(letter));
        }
    }

    fn words(&self) -> String {
        let names: Vec<String> = self.first.iter().map(Named::words).collect();
        let more = if self.count > SHOWN as u64 { ", …" } else { "" };
        format!("{}{more}", names.join(", "))
    }
}

/// Where the letters come from, page after page.
#[derive(Debug)]
struct Source {
    store: DeadStore,
    filter: Filter,
    after: Option<StreamId>,
    until: Option<StreamId>,
    /// Letters that were named one by one.
    listed: Option<Vec<DeadLetter>>,
    is_list: bool,
    /// Named, and not there.
    missing: Vec<String>,
}

/// Letters that are meant, and where looking for them ended.
#[derive(Debug)]
struct Meant {
    letters: Vec<DeadLetter>,
    looked_at: u64,
    end: StreamId,
}

impl Source {
    async fn open(context: &Context, store: DeadStore, act: &Act) -> Result<Self, Failure> {
        let newest = store.newest().await?;
        let (listed, missing) = if act.all {
            (None, Vec::new())
        } else {
            let (found, missing) = find_all(&store, &act.ids).await?;
            (Some(found), missing)
        };
        Ok(Self {
            filter: filter(&act.which, context.now_us().await?),
            after: act.after,
            // What dies from here on is not meant.
            until: act.until.or(newest),
            is_list: listed.is_some(),
            listed,
            missing,
            store,
        })
    }

    async fn next(&mut self) -> Result<Option<Meant>, Failure> {
        if self.is_list {
            let letters = self.listed.take().unwrap_or_default();
            let end = letters.last().map(|letter| letter.entry);
            return Ok(end.map(|end| Meant {
                looked_at: letters.len() as u64,
                letters,
                end,
            }));
        }
        if self.until.is_none() {
            return Ok(None);
        }
        let page = self
            .store
            .scan(self.after, self.until, Order::OldestFirst, PAGE)
            .await?;
        let Some(end) = page.last else { return Ok(None) };
        self.after = Some(end);
        let looked_at = page.letters.len() as u64;
        let letters = page.letters.into_iter().filter(|letter| self.filter.fits(letter));
        Ok(Some(Meant {
            letters: letters.collect(),
            looked_at,
            end,
        }))
    }
}

pub(super) async fn run(context: &Context, out: &mut Output, action: Action, act: &Act) -> Result<(), Failure> {
    let queue = context.queue(act.task_type.clone());
    if act.all && !act.yes && !act.dry_run {
        return Err(Failure::Refused(format!(
            "--all means every dead letter that fits; look with --dry-run, then {} them with --yes",
            action.verb()
        )));
    }
    let store = DeadStore::new(&context.store, &queue);
    let mut source = Source::open(context, store.clone(), act).await?;
    if source.until.is_none() {
        context.require(&queue).await?;
    }
    let missing = source.missing.clone();
    if act.dry_run {
        preview(out, &queue, action, source).await?;
    } else {
        let operator = Operator {
            by: who(act.by.as_deref()),
            why: act.why.clone().unwrap_or_default(),
            op: operation_id(),
        };
        perform(out, &queue, action, &mut source, &operator, act.rate).await?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::NotFound(format!(
        "no dead letters (any more) in {queue}: {}",
        missing.iter().map(|id| plain(id)).collect::<Vec<_>>().join(", ")
    )))
}

#[derive(Debug, Serialize)]
struct Preview {
    queue: String,
    action: &'static str,
    dry_run: bool,
    matching: u64,
    bytes: u64,
    refused: Few,
    missing: Vec<String>,
    until: Option<String>,
    groups: Vec<Group>,
    first: Vec<Named>,
}

#[derive(Debug, Serialize)]
struct Group {
    reason: String,
    version: String,
    count: u64,
}

async fn preview(out: &mut Output, queue: &Queue, action: Action, mut source: Source) -> Result<(), Failure> {
    let (mut matching, mut refused, mut bytes) = (Few::default(), Few::default(), 0);
    let mut groups: BTreeMap<(String, String), u64> = BTreeMap::new();
    while let Some(meant) = source.next().await? {
        for letter in &meant.letters {
            if action.refuses(letter) {
                refused.add(letter);
                continue;
            }
            matching.add(letter);
            bytes += letter.bytes;
            *groups
                .entry((letter.reason.clone(), letter.version.clone()))
                .or_default() += 1;
        }
    }
    let groups = groups
        .into_iter()
        .map(|((reason, version), count)| Group { reason, version, count });
    let view = Preview {
        queue: queue.to_string(),
        action: action.verb(),
        dry_run: true,
        matching: matching.count,
        bytes,
        missing: source.missing,
        until: source.until.map(|id| id.to_string()),
        groups: groups.collect(),
        first: matching.first,
        refused,
    };
    out.value(&view, |_| {
        let mut text = format!(
            "would {} {} of {queue} ({} bytes) · dry run, nothing was changed\n",
            view.action,
            count(view.matching, "dead letter"),
            view.bytes
        );
        let rows = view
            .groups
            .iter()
            .map(|g| vec![brief(&g.reason, 24), brief(&g.version, 64), g.count.to_string()]);
        if !view.groups.is_empty() {
            text.push('\n');
            text.push_str(&table(&["REASON", "VERSION", "COUNT"], &["COUNT"], rows));
            text.push_str("\n\nFIRST\n");
        }
        for letter in &view.first {
            text.push_str(&format!("  {}\n", letter.words()));
        }
        text
    })?;
    tell_refused(&view.refused);
    Ok(())
}

fn tell_refused(refused: &Few) {
    if refused.count > 0 {
        warn(format_args!(
            "{} malformed and stays, for it would only die again (--force): {}",
            if refused.count == 1 {
                "1 is".to_owned()
            } else {
                format!("{} are", refused.count)
            },
            refused.words()
        ));
    }
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
}

async fn perform(
    out: &mut Output,
    queue: &Queue,
    action: Action,
    source: &mut Source,
    operator: &Operator,
    rate: Option<Rate>,
) -> Result<(), Failure> {
    let mut outcome = Outcome {
        queue: queue.to_string(),
        action: action.verb(),
        done: 0,
        looked_at: 0,
        refused: Few::default(),
        missing: source.missing.clone(),
        cursor: source.after.map(|id| id.to_string()),
        until: source.until.map(|id| id.to_string()),
        finished: false,
    };
    let ended = work(action, source, operator, rate, &mut outcome).await;
    outcome.finished = matches!(ended, Ok(true));
    let (done, is_list) = (count(outcome.done, "dead letter"), source.is_list);
    out.value(&outcome, |_| match action {
        Action::Requeue { .. } => format!("{done} of {queue} requeued"),
        Action::Discard => format!("{done} of {queue} discarded; nothing of the payloads is kept"),
    })?;
    tell_refused(&outcome.refused);
    let go_on = match (&outcome.cursor, &outcome.until) {
        (Some(cursor), Some(until)) if !is_list => {
            format!("go on with the same command and --after {cursor} --until {until}")
        }
        _ => "repeat the command to go on".to_owned(),
    };
    match ended {
        Ok(true) if is_list && outcome.refused.count > 0 => Err(Failure::Refused(format!(
            "malformed, requeue it with --force: {}",
            outcome.refused.words()
        ))),
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Other(format!("interrupted; {go_on}"))),
        Err(failure) => {
            tell(format_args!("stopped half way; {go_on}"));
            Err(failure)
        }
    }
}

/// Acts until there is nothing left (`true`) or somebody interrupts.
async fn work(
    action: Action,
    source: &mut Source,
    operator: &Operator,
    rate: Option<Rate>,
    outcome: &mut Outcome,
) -> Result<bool, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    let mut stop = std::pin::pin!(stop);
    let store = source.store.clone();
    let mut progress = Progress::new(store.count().await?);
    let mut pace = Pace::new(rate);
    loop {
        let meant = tokio::select! {
            biased;
            () = &mut stop => return Ok(false),
            meant = source.next() => meant?,
        };
        let Some(meant) = meant else { return Ok(true) };
        let (refused, letters): (Vec<_>, Vec<_>) = meant.letters.into_iter().partition(|letter| action.refuses(letter));
        for step in steps(&letters, pace.step) {
            tokio::select! {
                biased;
                () = &mut stop => return Ok(false),
                () = pace.due() => {}
            }
            outcome.done += act(&store, action, &step, operator).await?;
            pace.done += step.len() as u64;
            outcome.cursor = step.last().map(ToString::to_string);
            progress.tell(outcome, outcome.looked_at + step.len() as u64);
        }
        refused.iter().for_each(|letter| outcome.refused.add(letter));
        outcome.looked_at += meant.looked_at;
        outcome.cursor = Some(meant.end.to_string());
        progress.tell(outcome, outcome.looked_at);
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
