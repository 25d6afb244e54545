//! Figures, ratios and budgets, as tables for people or JSON for programs.

use std::{fmt, time::Duration};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;
use switchback_tests::RedisServer;

use crate::{Result, raw, server};

/// Where this was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cores: usize,
    /// As in "Redis 7.0.15", "Valkey 9.1.2".
    server: String,
    system: String,
    /// Of others, before we began.
    load_average: Option<f64>,
    build: &'static str,
    quick: bool,
}

impl Machine {
    pub(crate) async fn look(server: &RedisServer, quick: bool) -> Result<Self> {
        let mut connection = raw::connect(&server.url()).await?;
        let info = server::info(&mut connection, "server").await?;
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        Ok(Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            server: server::name(&info),
            system: server::text(&info, "os").to_owned(),
            load_average: load.and_then(|text| text.split(' ').next()?.parse().ok()),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            quick,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "switchback-bench ({} build): {} cores shared by {} and its clients, {}",
            self.build, self.cores, self.server, self.system
        )?;
        if let Some(load) = self.load_average {
            write!(f, ", load {load:.2} before the start")?;
        }
        f.write_str(if self.quick {
            "; quick: few and noisy samples"
        } else {
            ""
        })
    }
}

/// Several rounds of one figure.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            median: sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN),
            min: sorted.first().copied().unwrap_or(f64::NAN),
            max: sorted.last().copied().unwrap_or(f64::NAN),
        }
    }
}

/// A promise about a figure, and whether it was kept.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Budget {
    text: String,
    met: bool,
}

/// What a ratio or time should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Want {
    AtLeast(f64),
    AtMost(f64),
}

impl Want {
    fn judge(self, figure: f64) -> Budget {
        let (text, met) = match self {
            Self::AtLeast(bound) => (format!("≥ {bound:.2}"), figure >= bound),
            Self::AtMost(bound) => (format!("≤ {bound:.2}"), figure <= bound),
        };
        Budget { text, met }
    }
}

/// Ours beside the floor.
#[derive(Debug, Serialize)]
struct Rate {
    what: String,
    unit: &'static str,
    raw: Option<Spread>,
    ours: Spread,
    /// Median of the rounds' ratios: both sides of one round saw the same machine.
    ratio: Option<f64>,
    budget: Option<Budget>,
}

/// How long something took, many times.
#[derive(Debug, Serialize)]
struct Times {
    what: String,
    samples: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    budgets: Vec<(&'static str, Budget)>,
}

/// Commands by name: per task when idle, per task under load, per second of an idle worker.
#[derive(Debug, Serialize)]
struct Commands {
    command: String,
    idle_per_task: f64,
    load_per_task: f64,
    waiting_per_second: f64,
}

/// Everything measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    rates: Vec<Rate>,
    times: Vec<Times>,
    commands: Vec<Commands>,
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            rates: Vec::new(),
            times: Vec::new(),
            commands: Vec::new(),
        }
    }

    /// Rounds of ours and of the floor, taken in turns.
    pub(crate) fn compare(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        raw: &[f64],
        ours: &[f64],
        want: Option<Want>,
    ) {
        let ratios: Vec<f64> = ours.iter().zip(raw).map(|(ours, raw)| ours / raw).collect();
        let ratio = Spread::of(&ratios).median;
        self.rates.push(Rate {
            what: what.into(),
            unit,
            raw: Some(Spread::of(raw)),
            ours: Spread::of(ours),
            ratio: Some(ratio),
            budget: want.map(|want| want.judge(ratio)),
        });
    }

    /// A figure that has no floor to stand on.
    pub(crate) fn alone(&mut self, what: impl Into<String>, unit: &'static str, ours: &[f64]) {
        self.rates.push(Rate {
            what: what.into(),
            unit,
            raw: None,
            ours: Spread::of(ours),
            ratio: None,
            budget: None,
        });
    }

    /// Times, with what their percentiles should be, in ms.
    pub(crate) fn times(&mut self, what: impl Into<String>, samples: &Samples, wants: &[(&'static str, Want)]) {
        let ms = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1e3;
        let mut times = Times {
            what: what.into(),
            samples: samples.0.len(),
            p50_ms: ms(samples.0.value_at_quantile(0.5)),
            p99_ms: ms(samples.0.value_at_quantile(0.99)),
            max_ms: ms(samples.0.max()),
            budgets: Vec::new(),
        };
        for &(name, want) in wants {
            let figure = match name {
                "p50" => times.p50_ms,
                "p99" => times.p99_ms,
                _ => times.max_ms,
            };
            times.budgets.push((name, want.judge(figure)));
        }
        self.times.push(times);
    }

    pub(crate) fn command(&mut self, command: String, idle: f64, load: f64, waiting: f64) {
        self.commands.push(Commands {
            command,
            idle_per_task: idle,
            load_per_task: load,
            waiting_per_second: waiting,
        });
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    pub(crate) fn to_tables(&self) -> String {
        let mut out = Vec::new();
        if !self.rates.is_empty() {
            out.push(self.rate_table().to_string());
        }
        if !self.times.is_empty() {
            out.push(self.time_table().to_string());
        }
        if !self.commands.is_empty() {
            out.push(self.command_table().to_string());
        }
        out.join("\n\n")
    }

    fn rate_table(&self) -> Table {
        let header = [
            "", "unit", "raw", "min..max", "ours", "min..max", "ours/raw", "budget", "",
        ];
        let mut table = table(&header, 2..=6);
        for row in &self.rates {
            let (raw, raw_range) = row.raw.map_or_else(Default::default, |raw| cells(&raw));
            let (ours, ours_range) = cells(&row.ours);
            let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
            let (budget, met) = row.budget.as_ref().map_or_else(Default::default, verdict);
            let unit = row.unit.to_owned();
            table.add_row([
                row.what.clone(),
                unit,
                raw,
                raw_range,
                ours,
                ours_range,
                ratio,
                budget,
                met,
            ]);
        }
        table
    }

    fn time_table(&self) -> Table {
        let header = ["", "samples", "p50 ms", "p99 ms", "max ms", "budget ms", ""];
        let mut table = table(&header, 1..=4);
        for row in &self.times {
            let budgets: Vec<String> = row
                .budgets
                .iter()
                .map(|(name, b)| format!("{name} {}", b.text))
                .collect();
            let missed: Vec<&str> = row.budgets.iter().filter(|(_, b)| !b.met).map(|(n, _)| *n).collect();
            let met = match (row.budgets.is_empty(), missed.is_empty()) {
                (true, _) => String::new(),
                (false, true) => "met".to_owned(),
                (false, false) => format!("{} not met", missed.join(", ")),
            };
            let ms = |figure: f64| number(figure);
            table.add_row([
                row.what.clone(),
                grouped(&row.samples.to_string()),
                ms(row.p50_ms),
                ms(row.p99_ms),
                ms(row.max_ms),
                budgets.join(", "),
                met,
            ]);
        }
        table
    }

    fn command_table(&self) -> Table {
        let header = [
            "commands, scripts' own included",
            "per task at 200/s",
            "per task under load",
            "per s, worker waiting",
        ];
        let mut table = table(&header, 1..=3);
        for row in &self.commands {
            let figures = [row.idle_per_task, row.load_per_task, row.waiting_per_second];
            let [idle, load, waiting] = figures.map(|figure| {
                if figure < 0.0005 {
                    String::new()
                } else {
                    format!("{figure:.3}")
                }
            });
            table.add_row([row.command.clone(), idle, load, waiting]);
        }
        table
    }
}

/// Many times, to 0.1 %.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Histogram<u64>);

impl Samples {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, 600_000_000_000, 3)?))
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.0
            .saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

fn table(header: &[&str], numbers: std::ops::RangeInclusive<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn cells(spread: &Spread) -> (String, String) {
    let range = if spread.min == spread.max {
        String::new()
    } else {
        format!("{}..{}", number(spread.min), number(spread.max))
    };
    (number(spread.median), range)
}

fn verdict(budget: &Budget) -> (String, String) {
    let met = if budget.met { "met" } else { "not met" };
    (budget.text.clone(), met.to_owned())
}

/// Three or more digits that mean something, thousands apart.
fn number(figure: f64) -> String {
    if figure >= 100.0 {
        grouped(&format!("{figure:.0}"))
    } else if figure >= 10.0 {
        format!("{figure:.1}")
    } else {
        format!("{figure:.3}")
    }
}

fn grouped(digits: &str) -> String {
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            ["1", "123", "1234", "1234567"].map(grouped),
            ["1", "123", "1,234", "1,234,567"]
        );
        assert_eq!(number(0.1234), "0.123");
        assert_eq!(number(12345.6), "12,346");
    }

    #[test]
    fn the_median_and_the_bounds_are_the_rounds() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert!(Want::AtLeast(0.9).judge(0.9).met && !Want::AtMost(1.1).judge(1.2).met);
    }
}
