//! A title, a table, and how many of its lines are worse than they may be.

use std::fmt;

use comfy_table::{CellAlignment, Table as Grid, presets};

pub(crate) struct Table {
    title: String,
    grid: Grid,
    pub(crate) over: u32,
}

impl Table {
    pub(crate) fn new(title: &str, header: &[&str]) -> Self {
        let mut grid = Grid::new();
        grid.load_style(presets::ASCII_MARKDOWN).set_header(header);
        for column in grid.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Self {
            title: title.to_owned(),
            grid,
            over: 0,
        }
    }

    pub(crate) fn line(&mut self, cells: Vec<String>) {
        self.grid.add_row(cells);
    }

    /// Counts a line that may have `allowed` and has `got`: with room for chance, three times its spread.
    pub(crate) fn at_most(&mut self, got: usize, runs: u64, allowed: f64) {
        let expected = runs as f64 * allowed;
        if got as f64 > expected + 3.0 * expected.sqrt() {
            self.over += 1;
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\n{}", self.title, self.grid)
    }
}

/// `12 (0.12 %)`.
pub(crate) fn of(count: usize, runs: u64) -> String {
    format!("{count} ({:.2} %)", 100.0 * count as f64 / runs.max(1) as f64)
}

pub(crate) fn percent(part: usize, all: usize) -> String {
    format!("{:.0} %", 100.0 * part as f64 / all.max(1) as f64)
}

/// Median and p90, or dashes.
pub(crate) fn quantiles(mut values: Vec<u64>) -> (String, String) {
    values.sort_unstable();
    let at = |part: usize| {
        values
            .get(values.len() * part / 100)
            .map_or_else(|| "–".to_owned(), u64::to_string)
    };
    (at(50), at(90))
}

/// The mean, or a dash.
pub(crate) fn mean(values: &[u64]) -> String {
    if values.is_empty() {
        return "–".to_owned();
    }
    format!("{:.0}", values.iter().sum::<u64>() as f64 / values.len() as f64)
}
