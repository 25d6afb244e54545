//! What the demo says, and when: plain lines with the seconds since the start, and a bar where there is a terminal.

use std::{
    fmt::Display,
    io::{IsTerminal as _, Write as _, stdout},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use switchback_common::clock::Moment;

use crate::ledger::Tally;

/// The voice of the demo.
#[derive(Debug)]
pub(crate) struct Timeline {
    began: Moment,
    bar: Option<ProgressBar>,
}

impl Timeline {
    /// Starts the clock.
    pub(crate) fn begin() -> Self {
        Self {
            began: Moment::now(),
            bar: None,
        }
    }

    /// Whether there is nobody to draw for.
    pub(crate) fn is_plain(&self) -> bool {
        self.bar.is_none()
    }

    /// A line with its time.
    pub(crate) fn say(&self, text: impl Display) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.line(format_args!("{seconds:6.1} s  {text}"));
    }

    /// A line that belongs to the one before; several when the text has several.
    pub(crate) fn note(&self, text: impl Display) {
        for line in text.to_string().lines() {
            self.line(format_args!("          {line}"));
        }
    }

    /// A line as it is.
    pub(crate) fn line(&self, text: impl Display) {
        // Nobody listens any more: then there is nothing to say.
        let write = || drop(writeln!(stdout(), "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Shows a bar up to `documents`, given a terminal.
    pub(crate) fn show_bar(&mut self, documents: usize) {
        if !stdout().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(documents as u64), ProgressDrawTarget::stdout());
        if let Ok(style) = ProgressStyle::with_template("{elapsed:>6}  [{bar:30}] {pos}/{len} done · {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        self.bar = Some(bar);
    }

    /// Moves the bar.
    pub(crate) fn progress(&self, tally: &Tally) {
        if let Some(bar) = &self.bar {
            bar.set_position(tally.done);
            bar.set_message(tally.to_string());
        }
    }

    /// Takes the bar away.
    pub(crate) fn hide_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
