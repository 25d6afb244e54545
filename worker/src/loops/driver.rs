//! The driver: takes the queue's rollout from step to step, or back, for as long as it holds the lease of the driver.
//!
//! Every session of the queue tries; one drives. It keeps nothing between looks that Redis does not have: whoever takes
//! over goes on from the record, and each step is one script call, whole or not at all. All times are Redis's.

use std::{sync::Arc, time::Duration};

use switchback_common::{
    StoreError, Version,
    clock::Moment,
    envelope::Fields,
    store::{
        gate::Sealed,
        limits,
        rollout::{RolloutStore, Stepped},
        session::SessionInfo,
        versions,
    },
};
use switchback_gates::{
    Gate,
    readiness::{Capacity, Load, MINUTES, Shortage},
    rollout::{self, Action, Look, Record, Setting, Status, bury, counts, next, plan},
};

use crate::session::Session;

/// How often whoever drives looks: a bad version is stopped within that of being known as bad.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the lease is renewed or asked for, and a look that found nothing is written down.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// How often it is counted whether the next step could be carried, of a step that is over.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// A signal that is there so long after the end is not a late read: it was left behind, and is taken away.
const LEFT_BEHIND_US: u64 = 3_000_000;
/// Behind with closed blocks, or overtaken by somebody: at once, but not in a spin.
const AT_ONCE: Duration = Duration::from_millis(10);

struct Driver {
    session: Arc<Session>,
    store: RolloutStore,
    /// The rollout that is counted for.
    counted: u64,
    mine: bool,
    tried: Moment,
    written: Moment,
    live: (Moment, Vec<SessionInfo>),
    /// When it was last counted whether a step could be carried, which one, and why not.
    short: (Moment, usize, Option<String>),
    /// What is wrong, said once.
    grumbled: String,
}

/// What there is of a record.
enum Found {
    Read(Box<Record>, u64),
    Lost(Fields),
    Unreadable,
}

/// Drives until the session closes.
pub(crate) async fn run(session: Arc<Session>) {
    let mut driver = Driver {
        store: RolloutStore::new(&session.store, &session.queue),
        session: Arc::clone(&session),
        counted: 0,
        mine: false,
        tried: Moment::long_ago(),
        written: Moment::long_ago(),
        live: (Moment::long_ago(), Vec::new()),
        short: (Moment::long_ago(), 0, None),
        grumbled: String::new(),
    };
    loop {
        let wait = match session.blocks.rollout() {
            // A queue without a rollout pays nothing.
            0 => {
                // Once more: it may have ended while we began to count.
                session.blocks.stop();
                driver.counted = 0;
                Duration::MAX
            }
            id => match driver.tick(id).await {
                Ok(wait) => wait,
                Err(error) => {
                    driver.grumble(&format!("cannot look at the rollout: {error}"));
                    TRY_EVERY
                }
            },
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = session.blocks.turned.notified() => {}
            () = session.closing.cancelled() => break,
        }
    }
    if driver.mine
        && let Err(error) = driver.store.step_down(&session.id).await
    {
        tracing::debug!(queue.name = %session.queue, %error, "cannot step down; the lease of the driver runs out");
    }
}

impl Driver {
    fn grumble(&mut self, text: &str) {
        if self.grumbled != text {
            tracing::warn!(queue.name = %self.session.queue, "{text}");
            text.clone_into(&mut self.grumbled);
        }
    }

    async fn tick(&mut self, id: u64) -> Result<Duration, StoreError> {
        // Reads may overtake each other, and an older one say that nothing runs.
        if (self.counted != id || !self.session.blocks.is_on())
            && let Found::Read(record, _) = self.record().await?
        {
            let guard = &record.spec.guard;
            let versions = [record.from.clone(), record.to.clone()];
            self.session.blocks.begin(versions, guard.block_secs, guard.per_key_cap);
            // Else the next one has begun since, and the signal will say so.
            self.counted = record.id;
        }
        if self.tried.elapsed() >= TRY_EVERY {
            let session = &self.session;
            let long = session.blocks.count_running(session.clock.now_us(), &session.running);
            if let Some((block, counters)) = long {
                self.store.count_long(block, &counters).await?;
            }
            let mine = self.store.drive(&self.session.id).await?;
            if mine && !self.mine {
                tracing::info!(queue.name = %self.session.queue, session = %self.session.id, "driving the rollout of this queue");
            }
            self.mine = mine;
            self.tried = Moment::now();
        }
        match self.mine {
            true => self.drive().await,
            false => Ok(TRY_EVERY),
        }
    }

    async fn record(&mut self) -> Result<Found, StoreError> {
        let (fields, now_us) = self.store.read().await?;
        Ok(match Record::parse(&fields) {
            Ok(Some(record)) => Found::Read(Box::new(record), now_us),
            // It never is: whoever says that a rollout runs has written one.
            Ok(None) => Found::Lost(fields),
            Err(error) => {
                // P8: the gate stays as it is.
                self.grumble(&error.to_string());
                Found::Unreadable
            }
        })
    }

    /// Ends a rollout that has no record any more: nobody counts for it, and people are told. The gate stays as it is.
    async fn bury(&mut self, fields: &Fields) -> Result<Duration, StoreError> {
        if let Some(sealed) = self.store.gate().await? {
            let setting = Setting {
                driver: Some(self.session.id.clone()),
                rev: sealed.rev,
                by: format!("session {}", self.session.id),
                why: "lost".to_owned(),
                ..Setting::default()
            };
            let step = bury(fields, &setting);
            if let Stepped::Yes { .. } = self.store.step(&step).await? {
                let Sealed { rev, gate, .. } = &sealed;
                let queue = &self.session.queue;
                tracing::error!(queue.name = %queue, gate.rev = rev, ?gate, "the record of the rollout is lost: nobody guards the gate as it is");
            }
        }
        Ok(TRY_EVERY)
    }

    async fn drive(&mut self) -> Result<Duration, StoreError> {
        let (mut record, now_us) = match self.record().await? {
            Found::Read(record, now_us) => (*record, now_us),
            Found::Lost(fields) => return self.bury(&fields).await,
            Found::Unreadable => return Ok(TRY_EVERY),
        };
        let Some(sealed) = self.store.gate().await? else {
            self.grumble("the gate state is lost: the rollout waits");
            return Ok(TRY_EVERY);
        };
        if !record.status.is_live() {
            if record.at_us.saturating_add(LEFT_BEHIND_US) < now_us {
                self.take(&record, Action::Nothing, &sealed, now_us).await?;
            }
            return Ok(TRY_EVERY);
        }
        let gate = match Gate::parse(&sealed.gate) {
            Ok(gate) => gate,
            Err(error) => {
                self.grumble(&error.to_string());
                return Ok(TRY_EVERY);
            }
        };
        let (from, to) = record.blocks(now_us);
        let blocks = self.store.blocks(from, to).await?;
        let blocks: Vec<_> = blocks
            .into_iter()
            .map(|(n, fields)| (n, counts(&fields, &record.from, &record.to)))
            .collect();
        record.observe(now_us, gate.paused, &blocks);
        if self.live.0.elapsed() >= TRY_EVERY {
            let sessions = self.session.sessions.list().await?;
            let live = sessions.into_iter().filter(SessionInfo::is_live);
            self.live = (Moment::now(), live.collect());
        }
        let set_by = match record.agrees_with(&gate) {
            true => String::new(),
            false => self.who_set(sealed.rev).await?,
        };
        let verdict = record.verdict();
        let task_type = self.session.queue.task_type.to_string();
        let mut look = Look {
            gate: &gate,
            set_by: &set_by,
            with_to: self.with(&record.to),
            with_from: self.with(&record.from),
            verdict: &verdict,
            short: None,
            task_type: &task_type,
        };
        let mut action = next(&record, &look);
        let short;
        if matches!(action, Action::Advance { .. } | Action::Release) {
            short = self.short_of(&record, now_us).await;
            look.short = short.as_deref();
            action = next(&record, &look);
        }
        let behind = record.is_behind(now_us);
        let wait = if behind { AT_ONCE } else { LOOK_EVERY };
        if action == Action::Nothing && self.written.elapsed() < TRY_EVERY && !behind {
            // The next look finds the same and more.
            return Ok(wait);
        }
        self.take(&record, action, &sealed, now_us)
            .await
            .map(|again| if again { AT_ONCE } else { wait })
    }

    /// Why the live workers of the candidate could surely not carry the next step. What cannot be told keeps nothing from
    /// going on.
    async fn short_of(&mut self, record: &Record, now_us: u64) -> Option<String> {
        let step = record.step + 1;
        if self.short.1 != step || self.short.0.elapsed() >= COUNT_EVERY {
            let short = match self.count_slots(record, now_us).await {
                Ok(short) => short.filter(Shortage::is_sure).map(|short| short.to_string()),
                Err(error) => {
                    self.grumble(&format!("cannot tell whether the next step could be carried: {error}"));
                    None
                }
            };
            self.short = (Moment::now(), step, short);
        }
        self.short.2.clone()
    }

    async fn count_slots(&self, record: &Record, now_us: u64) -> Result<Option<Shortage>, StoreError> {
        let (store, queue) = (&self.session.store, &self.session.queue);
        let limit = limits::read(store, queue).await?.throttle.concurrency;
        let counters = versions::counters(store, queue, now_us, MINUTES + 1).await?;
        let load = Load::of(&counters, &record.to, now_us);
        let capacity = Capacity::of(&self.live.1, &record.to, limit);
        let share = record.spec.share_of(record.step + 1);
        Ok(Shortage::of(&record.to, share, load, capacity))
    }

    /// Takes a step. Returns whether to look again at once.
    async fn take(
        &mut self,
        record: &Record,
        action: Action,
        sealed: &Sealed,
        now_us: u64,
    ) -> Result<bool, StoreError> {
        let setting = Setting {
            driver: Some(self.session.id.clone()),
            now_us,
            rev: sealed.rev,
            entry: match action {
                Action::Rollback { .. } | Action::Finish => self.store.version_entry(&record.to).await?,
                _ => String::new(),
            },
            running: self.running(&record.to),
            by: format!("rollout {}", record.to),
            task_type: self.session.queue.task_type.to_string(),
            ..Setting::default()
        };
        let step = plan(record, &action, &setting);
        let queue = &self.session.queue;
        let (from, to) = (&record.from, &record.to);
        match self.store.step(&step).await? {
            Stepped::Yes { sealed, .. } => {
                self.written = Moment::now();
                match &action {
                    Action::Nothing => {}
                    Action::Rollback { .. } => tracing::error!(
                        queue.name = %queue, gate.rev = sealed.rev, %from, %to, "the guard rolled back: {}", step.text
                    ),
                    Action::Hold { .. } | Action::Overruled { .. } => {
                        tracing::warn!(queue.name = %queue, gate.rev = sealed.rev, "rollout of {to}: {}", step.text);
                    }
                    Action::Advance { .. } | Action::Release | Action::Finish => {
                        tracing::info!(queue.name = %queue, gate.rev = sealed.rev, "rollout of {to}: {}", step.text);
                    }
                }
                Ok(!matches!(action, Action::Nothing))
            }
            // A person, or another driver, was faster: look at what they made of it.
            Stepped::Moved(_) | Stepped::Stale => Ok(true),
            Stepped::NotDriver => {
                self.mine = false;
                Ok(false)
            }
            Stepped::Refused { field, reason } => {
                let reason = rollout::gate_refused(&field, &reason, &setting.task_type);
                let hold = plan(record, &Action::Hold { reason: reason.clone() }, &setting);
                if self.grumbled != reason {
                    tracing::error!(queue.name = %queue, "rollout of {to}: {reason}; wanted: {}", step.text);
                    self.grumbled.clone_from(&reason);
                }
                if record.status != Status::Watching && record.reason != reason {
                    self.store.step(&hold).await?;
                }
                Ok(false)
            }
            Stepped::Would(_) | Stepped::Running(_) | Stepped::Unsealed => Ok(false),
        }
    }

    /// Who made a revision, in words.
    async fn who_set(&self, rev: u64) -> Result<String, StoreError> {
        let history = self.session.view.store().history(None, 16).await?;
        let made = history.iter().find(|e| e.kind == "change" && e.rev == rev);
        Ok(made.map_or_else(|| format!("revision {rev}"), rollout::maker))
    }

    fn with(&self, version: &Version) -> usize {
        self.live.1.iter().filter(|s| s.has(version)).count()
    }

    fn running(&self, version: &Version) -> u64 {
        let of = |s: &SessionInfo| s.running().get(version).copied();
        self.live.1.iter().filter_map(of).sum()
    }
}
