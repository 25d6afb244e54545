//! Where tasks come from, page after page: dead letters in entry-id order, then tasks that wait for a retry.

use std::collections::VecDeque;

use switchback_common::{
    StreamId,
    store::dead::{DeadLetter, DeadStore, Filter, Order, STEP_ENTRIES, Waiting},
};

use super::super::{PAGE, Window, filter, find_all};
use crate::{args::Act, context::Context, exit::Failure};

/// The next ones.
#[derive(Debug)]
pub(super) enum Found {
    /// Dead letters.
    Letters(Vec<DeadLetter>),
    /// Tasks that wait for a retry.
    Waiting(Vec<Waiting>),
}

/// What is meant, and where looking for it ended.
#[derive(Debug)]
pub(super) struct Meant {
    pub(super) found: Found,
    pub(super) looked_at: u64,
    /// The last dead letter looked at.
    pub(super) end: Option<StreamId>,
}

/// Where tasks come from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) store: DeadStore,
    filter: Filter,
    /// The version that is meant, if one was named.
    pub(super) version: Option<String>,
    pub(super) window: Option<Window>,
    pub(super) after: Option<StreamId>,
    pub(super) until: Option<StreamId>,
    /// Letters that were named one by one.
    listed: Option<Vec<DeadLetter>>,
    pub(super) is_list: bool,
    /// Named, and not there.
    pub(super) missing: Vec<String>,
    /// Delayed tasks not looked at yet; `None`: they are not meant.
    delayed: Option<Delayed>,
}

#[derive(Debug, Default)]
struct Delayed {
    ids: VecDeque<String>,
    cursor: Option<String>,
    begun: bool,
}

impl Source {
    pub(super) async fn open(context: &Context, store: DeadStore, act: &Act, refund: bool) -> Result<Self, Failure> {
        let queue = context.queue(act.task_type.clone());
        let (filter, window) = filter(context, &queue, &act.which, context.now_us().await?).await?;
        let newest = store.newest().await?;
        let is_list = !act.ids.is_empty();
        let (listed, missing) = if is_list {
            let (found, missing) = find_all(&store, &act.ids).await?;
            (Some(found), missing)
        } else {
            (None, Vec::new())
        };
        Ok(Self {
            // A task that waits has no reason to be dead.
            delayed: (refund && filter.reason.is_none()).then(Delayed::default),
            version: filter.version.clone(),
            filter,
            window,
            after: act.after,
            // What dies from here on is not meant.
            until: act.until.or(newest),
            listed,
            is_list,
            missing,
            store,
        })
    }

    pub(super) async fn next(&mut self) -> Result<Option<Meant>, Failure> {
        if self.is_list {
            let letters = self.listed.take().unwrap_or_default();
            let end = letters.last().map(|letter| letter.entry);
            return Ok(end.map(|end| Meant {
                looked_at: letters.len() as u64,
                found: Found::Letters(letters),
                end: Some(end),
            }));
        }
        if self.until.is_none() {
            return self.next_delayed().await;
        }
        let page = self
            .store
            .scan(self.after, self.until, Order::OldestFirst, PAGE)
            .await?;
        let Some(end) = page.last else {
            return self.next_delayed().await;
        };
        self.after = Some(end);
        let looked_at = page.letters.len() as u64;
        let letters = page.letters.into_iter().filter(|letter| self.filter.fits(letter));
        Ok(Some(Meant {
            found: Found::Letters(letters.collect()),
            looked_at,
            end: Some(end),
        }))
    }

    async fn next_delayed(&mut self) -> Result<Option<Meant>, Failure> {
        let Some(delayed) = &mut self.delayed else {
            return Ok(None);
        };
        while delayed.ids.is_empty() {
            if delayed.begun && delayed.cursor.is_none() {
                return Ok(None);
            }
            let (ids, cursor) = self.store.delayed(delayed.cursor.take()).await?;
            (delayed.begun, delayed.cursor) = (true, cursor);
            delayed.ids.extend(ids);
        }
        let ids: Vec<String> = delayed.ids.iter().take(STEP_ENTRIES).cloned().collect();
        let looked = self.store.look_waiting(&ids).await?;
        // At least one, or a single large one would be looked at for ever.
        let dealt = looked.dealt.clamp(1, ids.len());
        delayed.ids.drain(..dealt);
        let filter = &self.filter;
        let fits = |task: &Waiting| {
            let error = filter.error.as_ref().is_none_or(|text| {
                let text = text.to_lowercase();
                task.error.to_lowercase().contains(&text)
            });
            error
                && filter.until_ms.is_none_or(|until| task.failed_ms <= until)
                && filter.since_ms.is_none_or(|since| task.failed_ms >= since)
        };
        Ok(Some(Meant {
            found: Found::Waiting(looked.tasks.into_iter().filter(fits).collect()),
            looked_at: dealt as u64,
            end: None,
        }))
    }
}
