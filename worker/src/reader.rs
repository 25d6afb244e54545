//! Reads the gate again, for whoever cannot act on the read that came with a claim.

use switchback_common::{StoreError, clock::Moment, store::connect::Link};
use switchback_gates::{Obeyed, Verdict};
use tokio::sync::Mutex;

use crate::session::Session;

/// Reads the gate again for tasks whose claim's read has grown stale, one read for all who wait.
#[derive(Debug)]
pub(crate) struct GateReader {
    slot: Mutex<(Option<Link>, Option<Obeyed>)>,
}

impl GateReader {
    pub(crate) fn new() -> Self {
        Self {
            slot: Mutex::new((None, None)),
        }
    }

    /// A gate read sent after `after`.
    pub(crate) async fn read_after(&self, session: &Session, after: Moment) -> Result<Option<Obeyed>, StoreError> {
        let mut slot = self.slot.lock().await;
        // P3: a shared read serves only tasks whose claim's reply came before it was sent.
        if let Some(shared) = &slot.1
            && shared.sent > after
        {
            return Ok(Some(shared.clone()));
        }
        let link = match slot.0.take() {
            Some(link) => link,
            None => session.store.link().await?,
        };
        let read = session.view.store().read(&link, Some(&session.id)).await?;
        slot.0 = Some(link);
        session.note_read(read.sent, read.time_us, read.lease);
        match session.obey(read).await? {
            Verdict::Obey(obeyed) => {
                session.pulse.gate_known(true);
                slot.1 = Some(obeyed.clone());
                Ok(Some(obeyed))
            }
            Verdict::Missing => {
                session.pulse.gate_known(false);
                Ok(None)
            }
        }
    }
}
