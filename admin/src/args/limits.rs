//! `queue limits`.

use clap::Args;
use switchback_common::store::limits::{Limit, Setting};

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct LimitEdits {
    /// Most dead letters; 0 is no limit. Defaults to 100 000.
    #[arg(long, value_name = "N", value_parser = |text: &str| Limit::Dead.parse(text))]
    dead: Option<Setting>,
    /// Most waiting and delayed tasks; 0 is no limit. Defaults to 10 000 000.
    #[arg(long, value_name = "N", value_parser = |text: &str| Limit::Waiting.parse(text))]
    waiting: Option<Setting>,
    /// Most tasks that run at once in the whole fleet. Defaults to none.
    #[arg(long, value_name = "N", value_parser = |text: &str| Limit::Concurrency.parse(text))]
    concurrency: Option<Setting>,
    /// Most starts per second, minute or hour, and how many may come at once: 100/s, 6000/m, 100/s+20. Defaults to none.
    #[arg(long, value_name = "N/UNIT", value_parser = |text: &str| Limit::Rate.parse(text))]
    rate: Option<Setting>,
    /// The same for tasks with one and the same key. Defaults to none.
    #[arg(long, value_name = "N/UNIT", value_parser = |text: &str| Limit::RatePerKey.parse(text))]
    rate_per_key: Option<Setting>,
    /// Bring the defaults back, e.g. `dead,rate`.
    #[arg(long, value_name = "LIMITS", value_delimiter = ',', value_parser = limit)]
    pub(crate) clear: Vec<Limit>,
    /// Why: goes into the queue's log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) why: Option<String>,
    /// Who: goes into the queue's log. Defaults to $USER.
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
}

impl LimitEdits {
    /// What is to be set.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        let given = [self.dead, self.waiting, self.concurrency, self.rate, self.rate_per_key];
        given.into_iter().flatten().collect()
    }
}

/// Reads the name of a limit, also as the option spells it.
fn limit(word: &str) -> Result<Limit, String> {
    Limit::named(&word.replace('-', "_")).ok_or_else(|| {
        let names = Limit::ALL.map(Limit::name);
        format!("no such limit; limits: {}", names.join(", "))
    })
}
