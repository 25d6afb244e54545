//! Rollouts of candidates that are no worse than allowed: how many are rolled back all the same?

use rand::rngs::SmallRng;
use switchback_gates::guard::{Counts, GuardConfig, GuardState, HoldReason, Lack, Test, Verdict};

use crate::{
    Args, each,
    table::{Table, of},
    world::{Nature, World},
};

const STEPS: [f64; 5] = [0.01, 0.05, 0.1, 0.25, 0.5];
/// Two minutes a step; six, if it takes them to know.
const BAKE: u32 = 12;
const PATIENCE: u32 = 36;
const MIN_SAMPLES: u64 = 300;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    RolledBack(Test),
    Held,
    NeverKnown,
    Done,
}

struct Run {
    end: End,
    /// Whether a z-test for one look, taken at every block at the same level, alarmed.
    peeked: bool,
}

/// One rollout, as it is driven: looks, blocks, steps.
fn rollout(rng: &mut SmallRng, mut world: World) -> Run {
    let config = GuardConfig::default();
    let mut guard = GuardState::new(&config);
    let mut sums = Counts::default();
    let mut peeked = false;
    for _ in 0..3 {
        world.block(rng, &config, &mut guard, 0.0);
    }
    for share in STEPS {
        guard.begin_step();
        for block in 1.. {
            let mut new = world.block(rng, &config, &mut guard, share);
            (new.active.took, new.candidate.took) = <_>::default();
            sums += &new;
            peeked |= z_test(&sums) > 2.326; // 1 % on one side
            let end = match guard.verdict(&config, MIN_SAMPLES) {
                Verdict::Regressed(evidence) => Some(End::RolledBack(evidence.test)),
                Verdict::Hold(HoldReason::Slower(_) | HoldReason::Share(_)) => Some(End::Held),
                Verdict::Insufficient {
                    lack: Lack::Samples | Lack::Baseline | Lack::Evidence,
                    ..
                }
                | Verdict::Hold(_)
                    if block >= PATIENCE =>
                {
                    // With so few tasks nobody would ever know: somebody goes on by hand.
                    if world.nature == Nature::QuietOutages {
                        break;
                    }
                    Some(End::NeverKnown)
                }
                Verdict::Pass(_) if block >= BAKE => break,
                Verdict::Pass(_) | Verdict::Hold(_) | Verdict::Insufficient { .. } => None,
            };
            if let Some(end) = end {
                return Run { end, peeked };
            }
        }
    }
    Run { end: End::Done, peeked }
}

fn z_test(sums: &Counts) -> f64 {
    let (a, b) = (&sums.active, &sums.candidate);
    if b.failed < 5 {
        return 0.0;
    }
    let (n, m) = (a.n as f64, b.n as f64);
    let pooled = (a.failed + b.failed) as f64 / (n + m);
    (b.failed as f64 / m - a.failed as f64 / n) / (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt()
}

pub(crate) fn table(args: &Args) -> Table {
    let alpha = GuardConfig::default().alpha;
    let mut table = Table::new(
        &format!(
            "Rollouts of a candidate that is no worse: {} a line, {:?} %, 500 tasks/s, a look every second, steps of two \
             minutes or more. False rollbacks may be {} %; expected: 0 of 1000.",
            args.runs,
            STEPS.map(|share| share * 100.0),
            alpha * 100.0
        ),
        &[
            "fails",
            "both alike",
            "rolled back",
            "failure",
            "burn",
            "p95",
            "dead",
            "lost",
            "held",
            "never known",
            "done",
            "z-test that peeks",
        ],
    );
    let mut lines = Vec::new();
    for fails in [0.001, 0.01, 0.05] {
        for nature in [Nature::Steady, Nature::Outages, Nature::Drift, Nature::Latency] {
            lines.push((fails, nature, 0.0));
        }
    }
    lines.extend([0.01, 0.05].map(|fails| (fails, Nature::QuietOutages, 0.0)));
    // The hardest null: as much worse as is allowed, in failures, losses and the tail at once.
    lines.push((0.01, Nature::Steady, 1.0));
    for (number, (fails, nature, worse)) in (0..).zip(lines) {
        let seed = args.seed.wrapping_mul(1000) + number;
        let runs = each(args.runs, seed, |rng| {
            let world = World::new(fails, nature, worse, rng);
            rollout(rng, world)
        });
        let count = |end: &dyn Fn(End) -> bool| runs.iter().filter(|run| end(run.end)).count();
        let by = |test: Test| count(&|end| end == End::RolledBack(test)).to_string();
        let back = count(&|end| matches!(end, End::RolledBack(_)));
        table.at_most(back, args.runs, alpha);
        let name = match nature {
            Nature::Steady if worse > 0.0 => "at every margin",
            Nature::Steady => "steady",
            Nature::Outages => "4× outages",
            Nature::QuietOutages => "4× outages, 20 tasks/s",
            Nature::Drift => "drift",
            Nature::Latency => "latency noise",
        };
        table.line(vec![
            format!("{} %", fails * 100.0),
            name.to_owned(),
            of(back, args.runs),
            by(Test::Failure),
            by(Test::Burn),
            by(Test::P95),
            by(Test::Dead),
            by(Test::Lost),
            count(&|end| end == End::Held).to_string(),
            count(&|end| end == End::NeverKnown).to_string(),
            count(&|end| end == End::Done).to_string(),
            of(runs.iter().filter(|run| run.peeked).count(), args.runs),
        ]);
    }
    table
}
