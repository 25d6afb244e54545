//! The settler: records outcomes. While one batch is on its way the next one gathers, so that an idle worker
//! settles at once and a busy one in large batches.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use switchback_common::{
    StoreError,
    store::{
        backoff::Backoff,
        grumble::Grumble,
        log::{self, AttemptGroup, AttemptRow, Ended},
        session::MOVE_BYTES,
        settle::{Batch, DoneGroup, Fate, MAX_GROUP, Settled, Settler, Single},
    },
};
use tokio::sync::mpsc;

use crate::{
    outcome::{Message, Outcome},
    session::Session,
};

/// Most outcomes in one script call.
const MAX_BATCH: usize = 1_000;
const RETRY: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(1_500));
/// Upper bounds of the duration buckets in the stats, ms.
const BUCKETS_MS: [u64; 12] = [1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000];

/// Settles until it is told that nothing will follow.
pub(crate) async fn run(session: Arc<Session>, mut messages: mpsc::UnboundedReceiver<Message>) {
    let (mut settler, mut grumble) = (None, Grumble::default());
    let mut gathered = Vec::with_capacity(MAX_BATCH);
    let mut open = true;
    while open && messages.recv_many(&mut gathered, MAX_BATCH).await > 0 {
        if gathered.len() > 1 && gathered.len() < MAX_BATCH / 4 {
            // A busy worker: let the handlers that are about to end join this batch.
            tokio::task::yield_now().await;
            while gathered.len() < MAX_BATCH {
                let Ok(message) = messages.try_recv() else { break };
                gathered.push(message);
            }
        }
        let mut outcomes: Vec<Outcome> = gathered
            .drain(..)
            .filter_map(|message| match message {
                Message::Outcome(outcome) => Some(outcome),
                Message::Trim => None,
                Message::Close => {
                    open = false;
                    None
                }
            })
            .collect();
        let retries = outcomes.iter().any(|o| matches!(o.fate, Some((Fate::Retry { .. }, _))));
        let died = outcomes.iter().any(|o| matches!(o.fate, Some((Fate::Dead, _))));
        session.take_back_revoked(&mut outcomes);
        let mut rest = outcomes.as_mut_slice();
        // Also with no outcome at all: the batch of a lone `Trim` carries the floors.
        loop {
            let fits = fitting(rest);
            if let After::Revoked = settle(&session, &mut settler, &mut grumble, &rest[..fits]).await {
                // P10: what was done and lay where it was goes back into line now, and has a weight.
                session.take_back_revoked(rest);
                continue;
            }
            let (part, later) = rest.split_at_mut(fits);
            session.held.remove(part.iter().map(|o| (o.place, o.entry)));
            let ended = part.iter().filter_map(|o| o.ran.as_ref());
            if session.board.end(ended.map(|ran| &ran.version)) {
                // The last of a withdrawn version: somebody may wait for that word.
                session.gate_touched.notify_one();
            }
            session.slots.settled(part.len());
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        if died {
            session.died.notify_one();
        }
        if retries {
            session.retry_scheduled.notify_one();
        }
    }
}

/// P10: how many of `outcomes` one script may take. What is done stays where it is and weighs nothing.
fn fitting(outcomes: &[Outcome]) -> usize {
    let mut bytes = 0;
    let light = outcomes.iter().take_while(|outcome| {
        bytes += outcome.fate.as_ref().map_or(0, |_| outcome.bytes);
        bytes += outcome.keep.as_ref().map_or(0, |keep| keep.tail.len());
        bytes <= MOVE_BYTES
    });
    light.count().max(1).min(outcomes.len())
}

/// What follows a settle.
enum After {
    /// The next one.
    Settled,
    /// The same one again: results in it were revoked, and nothing was done.
    Revoked,
}

async fn settle(
    session: &Session,
    settler: &mut Option<(usize, Settler)>,
    grumble: &mut Grumble,
    outcomes: &[Outcome],
) -> After {
    let mut retry = RETRY;
    let mut batch = None;
    loop {
        // P4: a lost session settles nothing; its results are refused and written down.
        if session.board.is_lost() {
            refuse(session, outcomes).await;
            return After::Settled;
        }
        let batch = batch.get_or_insert_with(|| build(session, outcomes));
        match attempt(session, settler, batch).await {
            Ok(Settled::Yes { .. }) => return After::Settled,
            Ok(Settled::Revoked(revoked)) => {
                tracing::info!(queue.name = %session.queue, ?revoked, "a flip revoked results of attempts decided before it: their tasks run again");
                session.stops.learn_revoked(revoked);
                session.blocks.uncount();
                return After::Revoked;
            }
            Ok(Settled::NoLease) => {
                // Kept and sent again once the renewer knows: revived, or lost.
                let _ = tokio::time::timeout(retry.next_wait(), session.lease_known.notified()).await;
            }
            Err(error) => {
                session.pulse.trouble(&error);
                if grumble.is_news() {
                    tracing::warn!(queue.name = %session.queue, %error, batch.len = outcomes.len(), "cannot settle; keeping the outcomes and trying again and again");
                }
                *settler = None;
                #[cfg(feature = "faults")]
                if session.config.faults.drop_outcomes {
                    return After::Settled;
                }
                tokio::time::sleep(retry.next_wait()).await;
            }
        }
    }
}

async fn attempt(
    session: &Session,
    settler: &mut Option<(usize, Settler)>,
    batch: &Batch,
) -> Result<Settled, StoreError> {
    // Lanes may have been added since: places are the same, the list is longer.
    let streams = session.streams.len();
    let current = match settler.take() {
        Some((known, current)) if known == streams => current,
        Some((_, current)) => current.with_streams(session.streams.keys()),
        None => {
            let new = Settler::new(&session.store, &session.queue, &session.id, session.streams.keys()).await?;
            #[cfg(feature = "faults")]
            let new = match session.config.faults.settle_ignores_lease {
                true => new.ignoring_lease(),
                false => new,
            };
            new
        }
    };
    let settled = current.settle(batch).await;
    *settler = Some((streams, current));
    settled
}

fn build(session: &Session, outcomes: &[Outcome]) -> Batch {
    let mut batch = Batch {
        tip: session.tip(),
        floors: session.floors.get(),
        minute: session.clock.now_us() / 60_000_000,
        ..Batch::default()
    };
    let mut counters: BTreeMap<String, u64> = BTreeMap::new();
    // Attempts of one claim sit together; a handful of groups at most, so a list is searched from its end.
    let mut groups: Vec<AttemptGroup> = Vec::new();
    let labels = session.streams.labels();
    for outcome in outcomes {
        match &outcome.fate {
            None => {
                let open = batch.done.iter_mut().rev().find(|g| g.stream == outcome.place);
                match open {
                    Some(group) if group.entries.len() < MAX_GROUP => group.entries.push(outcome.entry),
                    _ => batch.done.push(DoneGroup {
                        stream: outcome.place,
                        entries: vec![outcome.entry],
                    }),
                }
            }
            Some((fate, fields)) => batch.singles.push(Single {
                stream: outcome.place,
                entry: outcome.entry,
                fate: fate.clone(),
                fields: fields.clone(),
                keep: outcome.keep.clone(),
            }),
        }
        let Some(ran) = &outcome.ran else { continue };
        if ran.ended.is_result() {
            // A handful of versions at most. The lowest revision stands for all: if that is not revoked, none is.
            match batch.results.iter_mut().find(|(version, _)| *version == ran.version) {
                Some((_, lowest)) => *lowest = ran.rev.min(*lowest),
                None => batch.results.push((ran.version.clone(), ran.rev)),
            }
        }
        let row = AttemptRow(
            ran.task.clone(),
            outcome.entry.to_string(),
            ran.attempt,
            ran.ended,
            u64::try_from(ran.took().as_millis()).unwrap_or(u64::MAX),
        );
        let label = &labels[outcome.place];
        match groups
            .iter_mut()
            .rev()
            .find(|g| g.at == ran.read_us && g.rev == ran.rev && g.version == ran.version && g.stream == **label)
        {
            Some(group) => group.tasks.push(row),
            None => groups.push(AttemptGroup {
                at: ran.read_us,
                rev: ran.rev,
                version: ran.version.clone(),
                stream: label.to_string(),
                tasks: vec![row],
            }),
        }
    }
    for group in &groups {
        count(&mut counters, group);
    }
    #[cfg(feature = "faults")]
    if session.config.faults.settle_ignores_revoke {
        batch.results.clear();
    }
    batch.counters = counters.into_iter().collect();
    let ran = outcomes.iter().filter_map(|outcome| outcome.ran.as_ref());
    batch.block = session.blocks.count(session.clock.now_us(), ran);
    if !groups.is_empty() {
        batch.attempts = serde_json::to_string(&groups).unwrap_or_default();
    }
    batch
}

/// Adds a group's attempts to the counters of its version: counted first, named once.
fn count(counters: &mut BTreeMap<String, u64>, group: &AttemptGroup) {
    const ENDED: [Ended; 7] = [
        Ended::Done,
        Ended::Retried,
        Ended::Dead,
        Ended::Released,
        Ended::Snoozed,
        Ended::Cancelled,
        Ended::Revoked,
    ];
    let mut ended = [0_u64; ENDED.len()];
    let mut took = [0_u64; BUCKETS_MS.len() + 1];
    for row in &group.tasks {
        ended[ENDED.iter().position(|e| *e == row.3).unwrap_or(0)] += 1;
        if !matches!(row.3, Ended::Released | Ended::Cancelled | Ended::Revoked) {
            took[BUCKETS_MS.partition_point(|&bound| bound < row.4)] += 1;
        }
    }
    let mut add = |what: &str, n: u64| {
        if n > 0 {
            *counters.entry(format!("{}:{what}", group.version)).or_default() += n;
        }
    };
    for (what, n) in ENDED.iter().zip(ended) {
        add(what.as_str(), n);
    }
    for (bound, n) in BUCKETS_MS.iter().zip(took) {
        add(&format!("le_{bound}"), n);
    }
    add("le_inf", took[BUCKETS_MS.len()]);
}

async fn refuse(session: &Session, outcomes: &[Outcome]) {
    let late: Vec<String> = outcomes
        .iter()
        .filter_map(|o| o.ran.as_ref())
        .map(|ran| format!("{}@{}={}", ran.task, ran.version, ran.ended.as_str()))
        .collect();
    if late.is_empty() {
        return;
    }
    tracing::warn!(
        queue.name = %session.queue, session = %session.id, results = late.len(),
        "results came after this session was lost; they are refused, and the tasks run again elsewhere"
    );
    if let Err(error) = log::write(&session.store, &session.queue, "stale", &session.id, &late.join(" ")).await {
        tracing::warn!(%error, queue.name = %session.queue, "cannot write the refused results down");
    }
}
