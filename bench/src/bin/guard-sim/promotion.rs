//! Promotion: how many tasks it takes to show that a candidate is no worse, and how often a worse one passes.

use rand::rngs::SmallRng;
use switchback_gates::guard::{Counts, GuardConfig, GuardState, Verdict};

use crate::{
    Args, each,
    table::{Table, mean, of, quantiles},
    world::{arm, binomial},
};

/// Tasks of the candidate until it passes; 20,000 at most.
fn passes_after(rng: &mut SmallRng, config: &GuardConfig, fails: f64, theirs: f64) -> Option<u64> {
    let mut guard = GuardState::new(config);
    let mut known = Counts {
        active: arm(20_000, binomial(rng, 20_000, fails)),
        candidate: arm(0, 0),
    };
    known.active.took.insert(10, 20_000); // what freezes the latency
    guard.closed(config, &known, 0.0);
    guard.begin_step();
    (1..=2000).find_map(|block| {
        let new = Counts {
            active: arm(90, binomial(rng, 90, fails)),
            candidate: arm(10, binomial(rng, 10, theirs)),
        };
        guard.closed(config, &new, 0.1);
        matches!(guard.verdict(config, 1), Verdict::Pass(_)).then_some(10 * block)
    })
}

pub(crate) fn table(args: &Args) -> Table {
    let runs = args.fewer();
    let mut table = Table::new(
        &format!(
            "Promotion: the candidate's tasks until it passes a step if it is as good, and how often one that is as bad as \
             the margin passes within 20,000 tasks; {runs} runs a line. Expected: ln 20 / KL, and 5 % at most"
        ),
        &[
            "both fail",
            "margin",
            "mean",
            "median",
            "p90",
            "expected",
            "as bad as the margin",
        ],
    );
    let lines = [
        (0.01, 0.04, "121"),
        (0.01, 0.02, "325"),
        (0.01, 0.01, "960"),
        (0.001, 0.005, "930"),
    ];
    for (number, (fails, margin, expected)) in (0..).zip(lines) {
        let seed = args.seed.wrapping_mul(1000) + 300 + number;
        // Its other guardrails would roll the bad one back long before.
        let config = GuardConfig {
            promote_margin: margin,
            failure_margin: 0.5,
            ..GuardConfig::default()
        };
        let good = each(runs, seed, |rng| passes_after(rng, &config, fails, fails));
        let bad = each(runs, seed + 50, |rng| passes_after(rng, &config, fails, fails + margin));
        let bad = bad.into_iter().flatten().count();
        table.at_most(bad, runs, config.beta);
        let good: Vec<u64> = good.into_iter().flatten().collect();
        let average = mean(&good);
        let (median, p90) = quantiles(good);
        table.line(vec![
            format!("{} %", fails * 100.0),
            format!("{} pp", margin * 100.0),
            average,
            median,
            p90,
            expected.to_owned(),
            of(bad, runs),
        ]);
    }
    table
}
