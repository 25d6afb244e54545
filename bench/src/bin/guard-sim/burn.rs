//! The fast alarm: soon when it should, and else hardly ever.

use rand::rngs::SmallRng;
use switchback_gates::guard::{Counts, GuardConfig, GuardState, Verdict};

use crate::{
    Args, each,
    table::{Table, quantiles},
    world::{arm, binomial, primed},
};

/// Tasks of the candidate until the alarm, `per_look` of them in each look beside nine times as many.
fn alarm_after(
    rng: &mut SmallRng,
    config: &GuardConfig,
    guard: &mut GuardState,
    fails: f64,
    per_look: u64,
    most: u64,
) -> Option<u64> {
    (1..=most / per_look).find_map(|look| {
        let active = 9 * per_look;
        let new = Counts {
            active: arm(active, binomial(rng, active, 0.01)),
            candidate: arm(per_look, binomial(rng, per_look, fails)),
        };
        guard.ticked(config, &new);
        matches!(guard.verdict(config, 300), Verdict::Regressed(_)).then_some(look * per_look)
    })
}

pub(crate) fn table(args: &Args) -> Table {
    let config = GuardConfig::default();
    let runs = args.fewer();
    let mut table = Table::new(
        &format!(
            "The burn, beside an active version that fails 1 %: the candidate's tasks until it alarms, median (p90) of \
             {runs} runs; or how often it does without a reason"
        ),
        &["candidate fails", "1 task a look", "50 tasks a look", "expected"],
    );
    let mut number = args.seed.wrapping_mul(1000) + 200;
    for (fails, expected) in [
        (0.3, "about 20"),
        (0.5, "about 9"),
        (1.0, "4 (p0 at its floor), 5 at 2 %"),
    ] {
        let mut cells = vec![format!("{} %", fails * 100.0)];
        for per_look in [1, 50] {
            number += 1;
            let found = each(runs, number, |rng| {
                let mut guard = primed(&config, rng, 100_000, 0.01);
                alarm_after(rng, &config, &mut guard, fails, per_look, 100_000)
            });
            let (median, p90) = quantiles(found.into_iter().flatten().collect());
            cells.push(format!("{median} ({p90})"));
        }
        cells.push(expected.to_owned());
        table.line(cells);
    }
    // As good as the active version, and twice as bad: p0 itself.
    for (fails, expected) in [(0.01, "far fewer"), (0.02, "1 in 1e6 tasks at most")] {
        let mut cells = vec![format!("{} %", fails * 100.0)];
        for per_look in [1, 50] {
            number += 1;
            let tasks = runs * 20_000;
            let alarms: usize = each(runs, number, |rng| {
                let fresh = primed(&config, rng, 10_000_000, 0.01);
                let (mut left, mut alarms) = (20_000, 0);
                while left > 0 {
                    let mut guard = fresh.clone();
                    let Some(took) = alarm_after(rng, &config, &mut guard, fails, per_look, left) else {
                        break;
                    };
                    alarms += 1;
                    left = left.saturating_sub(took);
                }
                alarms
            })
            .into_iter()
            .sum();
            table.at_most(alarms, tasks, 1.0 / config.burn.arl0);
            cells.push(format!("{alarms} in {:.0e} tasks", tasks as f64));
        }
        cells.push(expected.to_owned());
        table.line(cells);
    }
    table
}
