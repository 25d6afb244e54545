//! The candidate's share of the tasks: seen when it is grossly wrong, and not held against a few large customers.

use rand::{RngExt as _, rngs::SmallRng};
use switchback_gates::guard::{Counts, GuardConfig, GuardState, HoldReason, Verdict};

use crate::{
    Args, each,
    table::{Table, of},
    world::{arm, binomial},
};

/// Blocks of a thousand tasks until the share holds the rollout; 200 at most.
fn held_after(rng: &mut SmallRng, asked: f64, gets: f64) -> Option<u64> {
    let config = GuardConfig::default();
    let mut guard = GuardState::new(&config);
    (1..=200).find(|_| {
        let theirs = binomial(rng, 1000, gets);
        guard.closed(
            &config,
            &Counts {
                active: arm(1000 - theirs, 0),
                candidate: arm(theirs, 0),
            },
            asked,
        );
        matches!(guard.verdict(&config, 1), Verdict::Hold(HoldReason::Share(_)))
    })
}

/// The part of the tasks that falls to the candidate if the n-th of 1000 customers sends 1/n of the largest.
fn of_customers(rng: &mut SmallRng, share: f64) -> f64 {
    let (mut theirs, mut all) = (0.0, 0.0);
    for rank in 1..=1000 {
        let tasks = 1.0 / f64::from(rank);
        all += tasks;
        if rng.random::<f64>() < share {
            theirs += tasks;
        }
    }
    theirs / all
}

pub(crate) fn table(args: &Args) -> Table {
    let runs = args.fewer();
    let mut table = Table::new(
        &format!(
            "Share of the tasks: rollouts held within 200,000 tasks, {runs} runs a cell. 1000 customers: whole customers on \
             either side, the largest sends 13 % of all. Expected: 0.1 % at most, and none; then all, after so many tasks"
        ),
        &[
            "asked for",
            "as asked",
            "1000 customers",
            "candidate gets none",
            "candidate gets all",
            "one key is all",
        ],
    );
    for (number, share) in (0..).zip([0.01, 0.05, 0.1, 0.25, 0.5]) {
        let seed = args.seed.wrapping_mul(1000) + 400 + number;
        let held = |gets: &(dyn Fn(&mut SmallRng) -> f64 + Sync)| {
            let held = each(runs, seed, |rng| {
                let gets = gets(rng);
                held_after(rng, share, gets)
            });
            held.into_iter().flatten().collect::<Vec<_>>()
        };
        let (fair, customers) = (held(&|_| share).len(), held(&|rng| of_customers(rng, share)).len());
        table.at_most(fair, runs, 0.001);
        table.at_most(customers, runs, 0.001);
        let all = |held: &[u64]| {
            let last = held
                .iter()
                .max()
                .map_or_else(|| "–".to_owned(), |blocks| (blocks * 1000).to_string());
            format!("{} after {last}", of(held.len(), runs))
        };
        table.line(vec![
            format!("{} %", share * 100.0),
            of(fair, runs),
            of(customers, runs),
            all(&held(&|_| 0.0)),
            all(&held(&|_| 1.0)),
            all(&held(&|rng| f64::from(u8::from(rng.random::<f64>() < share)))),
        ]);
    }
    table
}
