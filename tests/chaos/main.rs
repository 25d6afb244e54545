//! Chaos: a seeded schedule of kills, freezes, broken links, Redis restarts and gate flips against a fleet under load;
//! then the history checker. `make chaos SEED=n MINUTES=m` runs it by hand; the same seed gives the same schedule.

mod fleet;
mod gate;
mod load;
mod report;
mod run;
mod schedule;

use std::time::Duration;

use switchback_common::clock::Moment;
use switchback_tests::history::Promise;

use crate::{
    run::run,
    schedule::{Schedule, Trouble},
};

/// In `make ci`.
const SHORT: Duration = Duration::from_secs(25);
const SHORTEST: Duration = Duration::from_secs(10);
const MOST_TRIES: u64 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_short_run_keeps_every_promise() {
    let run = run(1, &Schedule::new(1, SHORT, Trouble::ALL), "").await;
    println!("{run}");
    assert!(run.violations.is_empty(), "{run}");
    assert!(
        run.losses() > 3 && run.history.flips.len() > 50 && run.faults() > 20,
        "{run}"
    );
}

/// Prints the report; fails if a promise was broken.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes long, and by hand: make chaos SEED=n MINUTES=m"]
async fn by_hand() {
    let setting = |name: &str| {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name}={text}: expected a whole number")),
        )
    };
    let seed = setting("SB_CHAOS_SEED").unwrap_or_else(|| Moment::now().as_nanos() % 1_000_000);
    let minutes = setting("SB_CHAOS_MINUTES").unwrap_or(2);
    let schedule = Schedule::new(seed, Duration::from_secs(60 * minutes), Trouble::ALL);
    println!(
        "chaos: SEED={seed} MINUTES={minutes}, schedule {:016x}",
        schedule.hash()
    );
    let run = run(seed, &schedule, "").await;
    println!("\n{run}");
    assert!(run.violations.is_empty(), "promises were broken; see the report above");
}

/// Workers that break a promise on purpose are caught, for that promise, in the trouble that brings it out.
async fn caught(faults: &str, mix: &[Trouble], promise: Promise) {
    // A slow machine may miss the moment once; not again and again.
    for seed in 1..=MOST_TRIES {
        let run = run(seed, &Schedule::new(seed, SHORTEST, mix), faults).await;
        println!("{run}");
        // What was wanted is not worth keeping.
        run.kept
            .map(std::fs::remove_dir_all)
            .transpose()
            .expect("removing the directory");
        if run.violations.iter().any(|violation| violation.promise == promise) {
            return;
        }
    }
    panic!("{faults} was not caught for {promise:?}");
}

macro_rules! caught {
    ($($test:ident: $faults:literal under $trouble:ident breaks $promise:ident;)*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            caught($faults, &[Trouble::$trouble], Promise::$promise).await;
        }
    )* };
}

caught! {
    tasks_of_a_lost_session_that_are_dropped_are_caught: "reap_drops" under Kill breaks P1;
    a_lost_claim_that_nobody_looks_for_is_caught: "never_find" under DropReplies breaks P1;
    outcomes_forgotten_at_a_lost_reply_are_caught: "drop_outcomes" under Refuse breaks P2;
    done_tasks_that_come_back_are_caught: "done_comes_back" under Flush breaks P2;
    a_start_by_an_old_gate_is_caught: "gate_before_claim,skip_start_check" under Freeze breaks P3;
    a_zombie_is_caught: "ignore_loss,settle_ignores_lease" under Freeze breaks P4;
    a_retry_that_is_not_decided_again_is_caught: "retry_keeps_version" under Flush breaks P5;
    an_attempt_burnt_by_a_shutdown_is_caught: "release_burns_attempt" under Term breaks P6;
    buried_neighbours_are_caught: "bury_recovered" under Kill breaks P7;
    starts_while_paused_are_caught: "start_while_paused" under Flush breaks P8;
}
