//! The scheduler: declares the schedules of this worker's code, and enqueues a task at every tick of every schedule.
//!
//! Every worker of the queue does this, and any of them may be the one that fires: the script fires a tick once (P2). A
//! paused gate does not stop it: what is due waits in line like any task. A full queue does (P10): ticks are late then, and
//! each schedule says what becomes of those.

use std::{collections::HashMap, sync::Arc, time::Duration};

use switchback_common::{
    StoreError,
    schedule::{Schedule, ScheduleError, ScheduleName, Source, Timetable},
    store::{
        limits, log,
        schedule::{Change, Firing, Found, Listing, ScheduleStore, Written, json},
    },
};

use crate::session::Session;

/// How soon a changed definition is seen.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And the first one of a queue that has none.
const LOOK_FOR_FIRST: Duration = Duration::from_secs(5);
/// Redis's clock may stand still for us; a look is never repeated sooner.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// A definition that keeps changing while it is judged.
const TRIES: usize = 10;

/// What was made of a definition, until it changes.
struct Read {
    digest: String,
    sound: Result<(ScheduleName, Schedule, Timetable), ScheduleError>,
}

struct Scheduler {
    session: Arc<Session>,
    store: ScheduleStore,
    /// By name.
    read: HashMap<String, Read>,
    declared: bool,
    /// Whether the last look failed, and that was said.
    grumbled: bool,
    /// Whether the queue was full when something was due last.
    full: bool,
}

/// Fires until the session closes.
pub(crate) async fn run(session: Arc<Session>) {
    let mut scheduler = Scheduler {
        store: ScheduleStore::new(&session.store, &session.queue),
        declared: session.spec.schedules.is_empty(),
        session: Arc::clone(&session),
        read: HashMap::new(),
        grumbled: false,
        full: false,
    };
    loop {
        let wait = match scheduler.look().await {
            Ok(wait) => {
                scheduler.grumbled = false;
                wait
            }
            Err(error) => {
                if !std::mem::replace(&mut scheduler.grumbled, true) {
                    tracing::warn!(queue.name = %session.queue, %error, "cannot fire schedules; what is due is fired later");
                }
                LOOK_EVERY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = session.closing.cancelled() => return,
        }
    }
}

impl Scheduler {
    /// Fires what is due; tells when to look again.
    async fn look(&mut self) -> Result<Duration, StoreError> {
        let mut listing = self.store.list().await?;
        if !self.declared {
            for (name, schedule) in &self.session.spec.schedules {
                declare(&self.session, &self.store, name, schedule, &listing).await?;
            }
            self.declared = true;
            listing = self.store.list().await?;
        }
        if listing.schedules.is_empty() {
            self.read.clear();
            return Ok(LOOK_FOR_FIRST);
        }
        self.read
            .retain(|name, _| listing.schedules.iter().any(|found| found.name == *name));
        let (mut wait, mut full) = (LOOK_EVERY, None);
        for found in &listing.schedules {
            if let Some(next) = self.fire(found, listing.now_ms, &mut full).await? {
                wait = wait.min(Duration::from_millis(next.saturating_sub(listing.now_ms)));
            }
        }
        if let Some(full) = full {
            if full && !self.full {
                tracing::warn!(queue.name = %self.session.queue, "the queue is full: its schedules fire when there is room");
            }
            self.full = full;
        }
        // Counted from asking for the time: firing took some of it.
        Ok(wait.saturating_sub(listing.sent.elapsed()).max(SHORTEST_WAIT))
    }

    /// Fires what is due of one schedule, unless the queue is `full`; tells its next tick.
    async fn fire(&mut self, found: &Found, now_ms: u64, full: &mut Option<bool>) -> Result<Option<u64>, StoreError> {
        let digest = found.digest();
        if self.read.get(&found.name).is_none_or(|read| read.digest != digest) {
            let sound = found.parse();
            if let Err(error) = &sound {
                tracing::error!(queue.name = %self.session.queue, schedule = short(found), %error, "this schedule is broken and fires nothing");
            }
            let read = Read { digest, sound };
            self.read.insert(found.name.clone(), read);
        }
        let Some(Read { digest, sound }) = self.read.get(&found.name) else {
            return Ok(None);
        };
        let (name, schedule, timetable) = match sound {
            Ok(sound) => sound,
            Err(error) => {
                self.alert(found, error).await?;
                return Ok(None);
            }
        };
        if found.alerted {
            self.store.clear_alert(&found.name).await?;
        }
        if schedule.paused {
            return Ok(None);
        }
        let counted_from = found.counted_from(now_ms);
        let due = timetable.due(schedule.missed, counted_from.unwrap_or(now_ms), now_ms);
        if !due.ticks.is_empty() && is_full(&self.session, full).await? {
            return Ok(None);
        }
        let firing = Firing {
            name,
            schedule,
            digest,
            timetable,
            due: &due,
            session: &self.session.id,
        };
        if counted_from.is_none() {
            self.store.begin(&firing).await?;
        }
        let fired = self.store.fire(&firing).await?;
        if fired > 0 {
            tracing::info!(queue.name = %self.session.queue, schedule = %name, tasks = fired, "schedule fired");
        }
        if due.dropped && fired > 0 || due.newest.is_some() && due.ticks.is_empty() {
            tracing::warn!(queue.name = %self.session.queue, schedule = %name, missed = schedule.missed.as_str(), "ticks were missed and are dropped");
        }
        Ok(timetable.next_after(now_ms))
    }

    /// Says in the log that a definition is broken: once, whoever sees it first.
    async fn alert(&self, found: &Found, error: &ScheduleError) -> Result<(), StoreError> {
        let (session, name) = (&self.session, short(found));
        if !found.alerted && self.store.claim_alert(&found.name).await? {
            let text = format!(
                "schedule {name:?} is broken and fires nothing: {error}; mend it with `switchback schedule set {} {name}`",
                session.queue.task_type
            );
            log::write(&session.store, &session.queue, "alert", &session.id, &text).await?;
        }
        Ok(())
    }
}

/// Its name, which people may have made as long as they like.
fn short(found: &Found) -> String {
    found.name.chars().take(80).collect()
}

/// Whether the queue has no room for another task; asked for once.
async fn is_full(session: &Session, known: &mut Option<bool>) -> Result<bool, StoreError> {
    if let Some(full) = *known {
        return Ok(full);
    }
    Ok(*known.insert(limits::is_full(&session.store, &session.queue).await?))
}

/// Writes down what this worker's code declares, unless a person has set it or it is so already.
async fn declare(
    session: &Session,
    store: &ScheduleStore,
    name: &ScheduleName,
    declared: &Schedule,
    listing: &Listing,
) -> Result<(), StoreError> {
    let mut listing = listing.clone();
    for _ in 0..TRIES {
        let before = listing.schedules.iter().find(|found| found.name == name.as_str());
        let mut after = declared.clone();
        // What cannot be read now is somebody's edit: it is not ours to overwrite.
        match before.map(Found::parse) {
            Some(Ok((_, before, _))) if before.source == Source::Code => {
                // Pausing is a person's doing, and stays.
                (after.paused, after.by, after.why) = (before.paused, before.by, before.why);
            }
            Some(_) => {
                tracing::info!(queue.name = %session.queue, schedule = %name, "set by a person: the code's declaration is not used");
                return Ok(());
            }
            None => {}
        }
        if before.is_some_and(|found| found.json == json(&after)) {
            return Ok(());
        }
        let text = format!("{name}: declared by code, {:?} in {}", after.cron, after.time_zone);
        let change = Change {
            name,
            before,
            after: Some(&after),
            session: Some(&session.id),
            text: &text,
        };
        match store.write(&change).await? {
            Written::Yes => {
                tracing::info!(queue.name = %session.queue, schedule = %name, cron = after.cron, "schedule declared");
                return Ok(());
            }
            Written::Full => {
                let text = format!(
                    "schedule {name} is not declared: the queue has too many; remove some with `switchback schedule rm`"
                );
                log::write(&session.store, &session.queue, "alert", &session.id, &text).await?;
                tracing::error!(queue.name = %session.queue, "{text}");
                return Ok(());
            }
            Written::Moved => listing = store.list().await?,
        }
    }
    Ok(())
}
