//! Reads the gate again, for whoever cannot act on the read that came with a claim.

use std::time::Duration;

use switchback_common::{StoreError, clock::Moment, store::connect::Link};
use switchback_gates::{Obeyed, Verdict};
use tokio::sync::{Mutex, MutexGuard};

use crate::session::Session;

/// P10: a read that lets nothing start stands that long for all tasks that wait: hundreds may, and each asks again and again.
const NOTHING_FOR: Duration = Duration::from_millis(50);

/// Reads the gate again for tasks whose claim's read has grown stale, one read for all who wait.
#[derive(Debug)]
pub(crate) struct GateReader {
    slot: Mutex<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    link: Option<Link>,
    shared: Option<Obeyed>,
    /// When a read failed or found no gate, unless one since has found one.
    nothing: Option<Moment>,
}

impl Slot {
    /// P3: a shared read serves only tasks whose claim's reply came before it was sent.
    fn sent_after(&self, after: Moment) -> Option<Obeyed> {
        self.shared.as_ref().filter(|shared| shared.sent > after).cloned()
    }
}

impl GateReader {
    pub(crate) fn new() -> Self {
        Self { slot: Mutex::default() }
    }

    /// A gate read sent after `after`. `None`: there is no gate, or there was none a moment ago, or no Redis; ask again.
    pub(crate) async fn read_after(&self, session: &Session, after: Moment) -> Result<Option<Obeyed>, StoreError> {
        let slot = self.slot.lock().await;
        if let Some(shared) = slot.sent_after(after) {
            return Ok(Some(shared));
        }
        if slot.nothing.is_some_and(|at| at.elapsed() < NOTHING_FOR) {
            return Ok(None);
        }
        read(slot, session).await
    }

    /// A gate read sent from now on, whatever the last one said. `None`: there is no gate.
    pub(crate) async fn read_now(&self, session: &Session) -> Result<Option<Obeyed>, StoreError> {
        let asked = Moment::now();
        let slot = self.slot.lock().await;
        match slot.sent_after(asked) {
            Some(shared) => Ok(Some(shared)),
            None => read(slot, session).await,
        }
    }
}

async fn read(mut slot: MutexGuard<'_, Slot>, session: &Session) -> Result<Option<Obeyed>, StoreError> {
    let found = ask(&mut slot.link, session).await;
    match &found {
        Ok(Some(obeyed)) => {
            slot.nothing = None;
            slot.shared = Some(obeyed.clone());
        }
        Ok(None) | Err(_) => slot.nothing = Some(Moment::now()),
    }
    found
}

async fn ask(kept: &mut Option<Link>, session: &Session) -> Result<Option<Obeyed>, StoreError> {
    let link = match kept.take() {
        Some(link) => link,
        None => session.store.link().await?,
    };
    let read = session.view.store().read(&link, Some(&session.id)).await?;
    *kept = Some(link);
    session.note_read(read.sent, read.time_us, read.lease);
    match session.obey(read).await? {
        Verdict::Obey(obeyed) => {
            session.pulse.gate_known(true);
            Ok(Some(obeyed))
        }
        Verdict::Missing => {
            session.pulse.gate_known(false);
            Ok(None)
        }
    }
}
