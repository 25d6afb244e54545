//! Worse candidates: after how many of their tasks are they found?

use rand::rngs::SmallRng;
use switchback_gates::guard::{Counts, GuardConfig, Verdict};

use crate::{
    Args, each,
    table::{Table, percent, quantiles},
    world::{arm, binomial, primed},
};

/// The candidate's rate; what earlier work found at margin 0 and at 1 pp (share alarmed, median, p90 of its tasks).
const EXPECTED: [(f64, &str, &str); 6] = [
    (0.02, "95 %, 2290 (3950)", "0 %"),
    (0.03, "100 %, 760 (1390)", "71 %, 3130"),
    (0.05, "100 %, 270 (500)", "100 %, 590 (1090)"),
    (0.1, "100 %, 80 (150)", "100 %, 130 (230)"),
    (0.3, "100 %, 20 (40)", "100 %, 20 (40)"),
    (1.0, "100 %, 10", "100 %, 10"),
];

/// Tasks of the candidate until it is rolled back, in blocks of 90 and 10; 5000 at most.
fn found_after(rng: &mut SmallRng, config: &GuardConfig, fails: f64, burn: bool) -> Option<u64> {
    let mut guard = primed(config, rng, 2000, 0.01);
    (1..=500).find_map(|block| {
        let mut sum = Counts::default();
        for _ in 0..10 {
            let new = Counts {
                active: arm(9, binomial(rng, 9, 0.01)),
                candidate: arm(1, binomial(rng, 1, fails)),
            };
            if burn {
                guard.ticked(config, &new);
            }
            sum += &new;
            if burn && matches!(guard.verdict(config, 300), Verdict::Regressed(_)) {
                return Some(10 * (block - 1) + sum.candidate.n);
            }
        }
        guard.closed(config, &sum, 0.1);
        matches!(guard.verdict(config, 300), Verdict::Regressed(_)).then_some(10 * block)
    })
}

pub(crate) fn table(args: &Args) -> Table {
    let runs = args.fewer();
    let mut table = Table::new(
        &format!(
            "Candidates that fail more than the active version's 1 %: their tasks until rollback, median (p90), {runs} \
             runs a cell, blocks of 90 + 10 tasks. Expected: earlier work, the e-test alone, at the same size of evidence."
        ),
        &[
            "1 % →",
            "margin 0",
            "expected",
            "margin 1 pp",
            "expected",
            "margin 0.5 pp (default)",
            "with the burn",
        ],
    );
    for (number, (fails, no_margin, one_point)) in (0..).zip(EXPECTED) {
        let cell = |margin: f64, burn: bool| {
            let config = GuardConfig {
                failure_margin: margin,
                ..GuardConfig::default()
            };
            let found = each(runs, args.seed.wrapping_mul(1000) + 100 + number, |rng| {
                found_after(rng, &config, fails, burn)
            });
            let found: Vec<u64> = found.into_iter().flatten().collect();
            let alarmed = found.len();
            let share = percent(alarmed, usize::try_from(runs).unwrap_or(usize::MAX));
            let (median, p90) = quantiles(found);
            if alarmed == 0 {
                share
            } else {
                format!("{share}, {median} ({p90})")
            }
        };
        table.line(vec![
            format!("{} %", fails * 100.0),
            cell(0.0, false),
            no_margin.to_owned(),
            cell(0.01, false),
            one_point.to_owned(),
            cell(0.005, false),
            cell(0.005, true),
        ]);
    }
    table
}
