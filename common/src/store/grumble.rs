//! Trouble that lasts is told when it begins, and now and then while it does: not at every try (P8, P10).

use std::time::Duration;

use crate::clock::Moment;

/// How often trouble that lasts is told.
const AGAIN: Duration = Duration::from_secs(60);
/// Tries that fail within this of each other are the same trouble, whatever went well between them.
const SAME: Duration = Duration::from_secs(10);

/// What somebody who tries again and again has told.
#[derive(Debug, Default)]
pub struct Grumble {
    met: Option<Moment>,
    told: Option<Moment>,
}

impl Grumble {
    /// Whether trouble that is met now is worth a line.
    pub fn is_news(&mut self) -> bool {
        self.is_news_at(Moment::now())
    }

    fn is_news_at(&mut self, now: Moment) -> bool {
        let recent = |at: Option<Moment>, within| at.is_some_and(|at| now.since(at) < within);
        let news = !recent(self.met, SAME) || !recent(self.told, AGAIN);
        self.met = Some(now);
        if news {
            self.told = Some(now);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_told_once_a_minute_and_what_comes_back_again() {
        let mut grumble = Grumble::default();
        let began = Moment::now();
        let mut news = |s: u64| grumble.is_news_at(began + Duration::from_secs(s));
        let told: Vec<u64> = (0..150).filter(|&s| news(s)).collect();
        assert_eq!(told, [0, 60, 120]);
        assert!(!news(158), "the same, though some went well");
        assert!(news(168));
    }
}
