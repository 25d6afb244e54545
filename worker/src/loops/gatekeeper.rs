//! The gatekeeper: looks at the gate when somebody touched it, and every second; says which revision is obeyed;
//! sweeps lanes that are no longer routed to.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use switchback_common::{
    StoreError, Version,
    clock::Moment,
    store::{inspect, moves, session::Lives},
};

use crate::session::Session;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);
/// How often while attempts run that a flip left behind: somebody may wait for them to end.
const LOOK_OFTEN: Duration = Duration::from_millis(250);
/// Lanes are swept when the gate changes, a moment later: everybody's word that it is obeyed comes first.
const SWEEP_AFTER: Duration = Duration::from_millis(25);
/// And this often otherwise, for what a slow worker handed over late.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Looks until the session is over: also while it only finishes what it runs, for whoever waits for its word.
pub(crate) async fn run(session: Arc<Session>) {
    let mut published: Option<(u64, BTreeMap<Version, u32>)> = None;
    let mut sweep_at = Moment::now();
    let mut grumbled = false;
    let mut every = LOOK_EVERY;
    while !session.board.is_lost() {
        match look(&session, &mut published, &mut sweep_at).await {
            Ok(left_behind) => {
                grumbled = false;
                every = if left_behind { LOOK_OFTEN } else { LOOK_EVERY };
            }
            Err(error) if !grumbled => {
                grumbled = true;
                session.pulse.trouble(&error);
                tracing::warn!(queue.name = %session.queue, %error, "cannot look at the gate; nothing starts until it can be read");
            }
            Err(error) => session.pulse.trouble(&error),
        }
        tokio::select! {
            () = session.gate_touched.notified() => {}
            () = tokio::time::sleep(sweep_at.since(Moment::now()).clamp(MOMENT, every)) => {}
        }
    }
}

/// Looks once. Returns whether attempts run that the gate would not start now.
async fn look(
    session: &Session,
    published: &mut Option<(u64, BTreeMap<Version, u32>)>,
    sweep_at: &mut Moment,
) -> Result<bool, StoreError> {
    let Some(obeyed) = session.reader.read_after(session, Moment::now()).await? else {
        return Ok(false);
    };
    session.board.obey(obeyed.ruling.rev);
    session.probes.heard(obeyed.signals.probe, obeyed.time_us);
    // Before the count is read: whatever ends after that is the last one, and calls.
    let gate = &obeyed.ruling.gate;
    let left_behind = session
        .board
        .await_last(|version| !gate.paused && gate.reaches(version));
    // Read after `obey`: from here on nothing starts under an older revision, so saying so is true.
    let report = session.board.report();
    let news = published.as_ref().is_none_or(|(rev, _)| *rev < report.0);
    if news || published.as_ref() != Some(&report) {
        let running = serde_json::to_string(&report.1).unwrap_or_default();
        if session.sessions.publish(&session.id, report.0, &running).await? == Lives::Lost {
            session.lose();
            return Ok(false);
        }
        *published = Some(report);
    }
    if news {
        session.ruling_changed.notify_waiters();
        *sweep_at = Moment::now() + SWEEP_AFTER;
    }
    if Moment::now() >= *sweep_at && !session.closing.is_cancelled() {
        sweep(session, &obeyed.ruling.gate).await?;
        *sweep_at = Moment::now() + SWEEP_EVERY;
    }
    Ok(left_behind)
}

/// P5: tasks in lanes that nobody is routed to any more go back and pass the gate again.
async fn sweep(session: &Session, gate: &switchback_gates::Gate) -> Result<(), StoreError> {
    for version in inspect::versions(&session.store, &session.queue).await? {
        if gate.reaches(&version) {
            continue;
        }
        let mut total = 0;
        loop {
            let moved = moves::sweep(&session.store, &session.queue, &version, &session.id).await?;
            total += moved;
            if moved == 0 || session.closing.is_cancelled() {
                break;
            }
        }
        if total > 0 {
            tracing::info!(queue.name = %session.queue, task.version = %version, tasks = total, "swept the lane of a version that is no longer routed to");
        }
    }
    Ok(())
}
