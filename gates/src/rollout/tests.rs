//! The rules of a rollout, against every order of events.

mod garbage;

use std::collections::BTreeMap;

use proptest::prelude::*;
use switchback_common::{Version, envelope::Fields, store::rollout::Step};

use super::*;
use crate::guard::{Arm, Counts, GuardState, HoldReason, Lack, Test};

const START: u64 = 1_790_000_000_000_000;
const SECOND: u64 = 1_000_000;

/// A rollout, its record as text, and the gate that its steps made: what Redis would hold.
struct World {
    record: BTreeMap<&'static str, String>,
    gate: Gate,
    rev: u64,
    now: u64,
    /// What the live workers cannot carry.
    short: Option<&'static str>,
    /// What was written into the log.
    log: Vec<String>,
}

fn version(name: &str) -> Version {
    name.parse().unwrap()
}

fn spec(json: &str) -> Spec {
    serde_json::from_str(json).unwrap()
}

impl World {
    fn new(spec: &Spec) -> Self {
        let setting = Setting {
            now_us: START,
            rev: 1,
            entry: r#"{"build":"b"}"#.to_owned(),
            ..Setting::default()
        };
        let step = start(spec, &version("v1"), &version("v2"), &setting, false);
        let mut world = Self {
            record: BTreeMap::new(),
            gate: Gate::new(version("v1")),
            rev: 1,
            now: START,
            short: None,
            log: Vec::new(),
        };
        for name in ["id", "step_since_us", "looked_us"] {
            world.record.insert(name, START.to_string());
        }
        world.apply(&step);
        world
    }

    fn record(&self) -> Record {
        let fields: Fields = self
            .record
            .iter()
            .map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec()))
            .collect();
        Record::parse(&fields).unwrap().unwrap()
    }

    fn setting(&self) -> Setting {
        Setting {
            now_us: self.now,
            rev: self.rev,
            entry: r#"{"build":"b"}"#.to_owned(),
            ..Setting::default()
        }
    }

    /// What `rollout.lua` does.
    fn apply(&mut self, step: &Step) {
        for (name, value) in &step.gate {
            match *name {
                "only" => self.gate = Gate::new(version(value)),
                "active" => self.gate.active = version(value),
                "candidate" => self.gate.candidate = (!value.is_empty()).then(|| version(value)),
                "percent" => self.gate.percent = Share::parse(value).unwrap(),
                other => panic!("{other}"),
            }
        }
        self.rev += u64::from(!step.gate.is_empty());
        self.log.push(step.text.clone());
        let serial = self.record.get("serial").map_or(0, |n| n.parse::<u64>().unwrap()) + 1;
        self.record.insert("serial", serial.to_string());
        self.record.insert("rev", self.rev.to_string());
        for (name, value) in &step.record {
            self.record.insert(name, value.clone());
        }
    }

    fn look(&mut self, seconds: u64, verdict: &Verdict, with: (usize, usize)) -> Action {
        let mut record = self.record();
        record.observe(self.now, self.gate.paused, &[]);
        for _ in 0..seconds {
            self.now += SECOND;
            record.observe(self.now, self.gate.paused, &[]);
        }
        let look = Look {
            gate: &self.gate,
            set_by: "alice",
            with_to: with.0,
            with_from: with.1,
            verdict,
            short: self.short,
            task_type: "mail",
        };
        let action = next(&record, &look);
        let step = plan(&record, &action, &self.setting());
        self.apply(&step);
        action
    }
}

fn evidence() -> Evidence {
    Evidence {
        test: Test::Failure,
        n_active: 900,
        failed_active: 9,
        n_candidate: 100,
        failed_candidate: 30,
        e_value: 1e6,
        threshold: 500.0,
        allowed: 0.005,
        bound_us: None,
    }
}

fn pass() -> Verdict {
    Verdict::Pass(evidence())
}

fn few() -> Verdict {
    Verdict::Insufficient {
        lack: Lack::Samples,
        have: 3,
        need: 300,
    }
}

const QUICK: &str = r#"{"steps":[1,10,50,100],"bake":"10s","watch":"1h"}"#;

#[test]
fn a_good_candidate_goes_up_every_step_and_is_watched() {
    let mut world = World::new(&spec(QUICK));
    let mut shares = vec![world.gate.percent.to_string()];
    for _ in 0..3 {
        assert_eq!(world.look(9, &pass(), (1, 1)), Action::Nothing, "not before its bake");
        assert!(matches!(world.look(1, &pass(), (1, 1)), Action::Advance { .. }));
        shares.push(world.record().share().to_string());
    }
    assert_eq!(shares, ["1", "10", "50", "100"]);
    assert_eq!((world.gate.active.as_str(), &world.gate.candidate), ("v2", &None));
    assert_eq!(world.record().status, Status::Watching);
    assert_eq!(world.look(3_599, &pass(), (1, 0)), Action::Nothing);
    assert_eq!(world.look(1, &pass(), (1, 0)), Action::Finish);
    assert_eq!(world.record().status, Status::Promoted);
}

#[test]
fn a_regression_goes_back_whatever_else_is_the_case() {
    let bad = Verdict::Regressed(evidence());
    for before in ["running", "paused", "held", "gate paused", "watching", "no workers"] {
        let mut world = World::new(&spec(QUICK));
        let mut with = (1, 1);
        match before {
            "paused" => {
                let step = pause(&world.record(), &world.setting()).unwrap();
                world.apply(&step);
            }
            "held" => assert!(matches!(world.look(1, &pass(), (0, 1)), Action::Hold { .. })),
            "gate paused" => world.gate.paused = true,
            "watching" => {
                let step = promote(&world.record(), true, &world.setting()).unwrap();
                world.apply(&step);
            }
            "no workers" => with = (0, 0),
            _ => {}
        }
        let action = world.look(0, &bad, with);
        assert!(matches!(action, Action::Rollback { .. }), "{before}: {action:?}");
        assert_eq!(world.gate, Gate::new(version("v1")), "{before}");
        assert_eq!(world.record().status, Status::RolledBack);
        assert_eq!(world.look(100, &bad, (1, 1)), Action::Nothing, "and that is final");
    }
}

#[test]
fn too_little_extends_the_step_then_holds_it_and_more_lets_it_go_on() {
    let mut world = World::new(&spec(QUICK));
    assert_eq!(world.look(19, &few(), (1, 1)), Action::Nothing);
    let Action::Hold { reason } = world.look(1, &few(), (1, 1)) else {
        panic!()
    };
    assert!(
        reason.contains("too little is known") && reason.contains("3 of 300"),
        "{reason}"
    );
    assert!(
        reason.contains("let it go on by itself; `switchback rollout promote mail`"),
        "{reason}"
    );
    assert_eq!(world.look(9, &few(), (1, 1)), Action::Nothing, "said once");
    assert_eq!(world.look(1, &pass(), (1, 1)), Action::Release);
    let released = &world.log[world.log.len() - 1];
    assert!(
        released.ends_with("no longer held (too little is known of v2 after all the time that this step has)"),
        "what happened, and no advice: {released}"
    );
    assert!(matches!(world.look(1, &pass(), (1, 1)), Action::Advance { step: 1 }));
}

#[test]
fn a_step_that_nobody_could_carry_is_not_taken_and_is_when_somebody_can() {
    let mut world = World::new(&spec(QUICK));
    world.short = Some("at 10 % v2 needs about 40 slots, and its live workers have 8");
    assert_eq!(world.look(9, &pass(), (1, 1)), Action::Nothing, "it bakes");
    let Action::Hold { reason } = world.look(1, &pass(), (1, 1)) else {
        panic!()
    };
    assert!(reason.contains("40 slots"), "{reason}");
    assert_eq!(world.gate.percent.to_string(), "1");
    world.short = Some("at 10 % v2 needs about 50 slots, and its live workers have 8");
    assert_eq!(world.look(1, &pass(), (1, 1)), Action::Nothing, "said once");
    // Safety goes first, and a person may know better.
    let bad = Verdict::Regressed(evidence());
    let mut other = World {
        record: world.record.clone(),
        gate: world.gate.clone(),
        log: Vec::new(),
        ..world
    };
    assert!(matches!(other.look(1, &bad, (1, 1)), Action::Rollback { .. }));
    assert!(promote(&world.record(), false, &world.setting()).is_some());
    world.short = None;
    assert_eq!(world.look(1, &pass(), (1, 1)), Action::Release);
    assert!(matches!(world.look(0, &pass(), (1, 1)), Action::Advance { step: 1 }));
}

// Else it would be released, and held again, at every look.
#[test]
fn a_step_that_the_gate_refused_is_tried_again_without_a_word() {
    let mut world = World::new(&spec(QUICK));
    world.now += 10 * SECOND;
    let mut record = world.record();
    record.observe(world.now, false, &[]);
    let reason = gate_refused("candidate", "v2: unknown version", "mail");
    let hold = plan(&record, &Action::Hold { reason }, &world.setting());
    world.apply(&hold);
    assert_eq!(world.record().status, Status::Held);
    assert_eq!(world.look(1, &pass(), (1, 1)), Action::Advance { step: 1 });
}

#[test]
fn every_reason_to_wait_says_what_to_do() {
    let reasons = [
        HoldReason::BothFail(evidence()),
        HoldReason::ActiveFails(evidence()),
        HoldReason::NothingBeside(evidence()),
        HoldReason::Stalled(evidence()),
        HoldReason::Slower(evidence()),
        HoldReason::Share(evidence()),
    ];
    for reason in reasons {
        let lifts = reason.lifts();
        let happened = reason.to_string();
        let mut world = World::new(&spec(QUICK));
        let Action::Hold { reason } = world.look(1, &Verdict::Hold(reason), (1, 1)) else {
            panic!("{happened}")
        };
        let then = reason.strip_prefix(&format!("{happened}; ")).expect(&reason);
        assert_eq!(then.contains("by itself"), lifts, "{reason}");
        assert!(
            lifts
                || then.contains("`switchback rollout resume mail` goes on; `switchback rollout abort mail` goes back"),
            "{reason}"
        );
    }
}

#[test]
fn whoever_promotes_before_the_guard_passes_it_is_on_record() {
    let world = World::new(&spec(QUICK));
    let setting = Setting {
        by: "pat".into(),
        ..world.setting()
    };
    let step = promote(&world.record(), false, &setting).unwrap();
    let passed_over =
        "the guard had not passed step 1: insufficient: 0 of 300 attempts of the candidate in whole blocks";
    assert_eq!(
        step.text,
        format!("promoted by pat: v2 goes to 10 % (step 2 of 4); {passed_over}")
    );
    assert_eq!(
        (step.why.as_str(), step.forced.as_str()),
        (step.text.as_str(), passed_over)
    );
    // Whoever says why is quoted as he said it.
    let why = Setting {
        why: "INC-42".into(),
        ..setting
    };
    assert_eq!(promote(&world.record(), true, &why).unwrap().why, "INC-42");
}

#[test]
fn nobody_there_holds_and_says_who_is_missing() {
    let mut world = World::new(&spec(r#"{"steps":[1,100],"bake":"1s","min_workers":2}"#));
    for (with, why) in [
        ((0, 1), "no live worker has v2; it goes on by itself"),
        ((1, 1), "too few"),
        ((2, 0), "no live worker has v1"),
    ] {
        let Action::Hold { reason } = world.look(5, &pass(), with) else {
            panic!("{why}")
        };
        assert!(reason.contains(why), "{reason}");
    }
    assert_eq!(world.look(1, &pass(), (2, 1)), Action::Release);
}

#[test]
fn figures_are_no_news() {
    let mut world = World::new(&spec(QUICK));
    let both = |n| {
        let evidence = Evidence {
            n_active: n,
            ..evidence()
        };
        Verdict::Hold(HoldReason::BothFail(evidence))
    };
    assert!(matches!(world.look(1, &both(10), (1, 1)), Action::Hold { .. }));
    assert_eq!(world.look(1, &both(20), (1, 1)), Action::Nothing);
    assert_eq!(world.look(1, &few(), (1, 1)), Action::Release, "an outage is over");
}

#[test]
fn a_person_wins() {
    let mut world = World::new(&spec(QUICK));
    // Pauses and pins are not what a rollout is about.
    world.gate.pins.insert("cust-1".into(), version("v1"));
    world.gate.paused = true;
    assert_eq!(world.look(60, &pass(), (1, 1)), Action::Nothing);
    assert_eq!(world.record().baked_us, 0, "nothing bakes while nothing starts");
    world.gate.paused = false;
    assert_eq!(world.look(9, &pass(), (1, 1)), Action::Nothing);
    // Setting the share is.
    world.gate.percent = Share::parse("2").unwrap();
    let before = world.gate.clone();
    assert_eq!(
        world.look(1, &Verdict::Regressed(evidence()), (1, 1)),
        Action::Overruled { by: "alice".into() }
    );
    assert_eq!(world.gate, before, "never fought");
    assert_eq!(world.record().status, Status::Overruled);
}

#[test]
fn a_rollout_that_ends_below_100_waits_for_a_person() {
    let mut world = World::new(&spec(r#"{"steps":[10,50],"bake":"1s"}"#));
    assert!(matches!(world.look(1, &pass(), (1, 1)), Action::Advance { step: 1 }));
    let Action::Hold { reason } = world.look(1, &pass(), (1, 1)) else {
        panic!()
    };
    assert!(reason.contains("by hand"));
    let step = promote(&world.record(), false, &world.setting()).unwrap();
    world.apply(&step);
    assert_eq!(
        (world.gate.active.as_str(), world.record().status),
        ("v2", Status::Watching)
    );
}

#[test]
fn abort_goes_back_or_keeps() {
    for keep in [false, true] {
        for watching in [false, true] {
            let mut world = World::new(&spec(QUICK));
            if watching {
                let step = promote(&world.record(), true, &world.setting()).unwrap();
                world.apply(&step);
            }
            let before = world.gate.clone();
            let step = abort(&world.record(), &world.gate, keep, &world.setting()).unwrap();
            world.apply(&step);
            assert_eq!(world.record().status, Status::Aborted);
            assert_eq!(world.gate, if keep { before } else { Gate::new(version("v1")) });
            assert_eq!(abort(&world.record(), &world.gate, keep, &world.setting()), None);
        }
    }
}

#[test]
fn every_attempt_counts_once_whoever_looks() {
    let counts = |active, candidate, failed| Counts {
        active: Arm {
            n: active,
            ..Arm::default()
        },
        candidate: Arm {
            n: candidate,
            failed,
            ..Arm::default()
        },
    };
    let mut record = World::new(&spec(r#"{"guard":{"block_secs":10}}"#)).record();
    let n = record.next_block;
    let end = (n + 1) * 10 * SECOND;
    record.observe(end - 4 * SECOND, false, &[(n, counts(50, 5, 1))]);
    record.observe(end - 3 * SECOND, false, &[(n, counts(90, 9, 1))]);
    assert_eq!(
        (record.totals.active.n, record.totals.candidate.n, record.next_block),
        (90, 9, n)
    );
    // Another goes on from what is written; the block is over, but still added to.
    let json = serde_json::to_string(&record.counted).unwrap();
    assert!(json.len() < 500, "{json}");
    record.observe(end + SECOND, false, &[(n, counts(92, 9, 1)), (n + 1, counts(7, 0, 0))]);
    assert_eq!((record.totals.active.n, record.next_block), (99, n));
    record.observe(
        end + 2 * SECOND,
        false,
        &[(n, counts(93, 9, 1)), (n + 1, counts(17, 0, 0))],
    );
    assert_eq!((record.totals.active.n, record.next_block), (110, n + 1));
    record.observe(
        end + 2 * SECOND,
        false,
        &[(n, counts(99, 9, 1)), (n + 1, counts(17, 0, 0))],
    );
    assert_eq!(record.totals.active.n, 110, "a closed block is closed");
    assert_eq!(record.counted.len(), 1);
}

#[test]
fn catching_up_is_bounded_and_what_is_gone_is_skipped() {
    let record = World::new(&spec("{}")).record();
    let first = record.next_block;
    assert_eq!(record.blocks(START), (first, first));
    assert_eq!(record.blocks(START + 3_600 * SECOND), (first, first + MAX_BLOCKS - 1));
    let (from, to) = record.blocks(START + 86_400 * SECOND);
    assert!(from > first + 7_000 && to - from < MAX_BLOCKS);
}

#[test]
fn a_block_that_another_rollout_counted_in_is_left_out() {
    let mut world = World::new(&spec("{}"));
    let first = world.record().next_block;
    world.record.insert("ended_before_us", (START - 1).to_string());
    let same_block = (START - 1) / 10 / SECOND == START / 10 / SECOND;
    assert_eq!(world.record().next_block, first + u64::from(same_block));
    world
        .record
        .insert("ended_before_us", (START - 60 * SECOND).to_string());
    assert_eq!(world.record().next_block, first);
}

#[test]
fn a_clock_that_jumps_neither_bakes_nor_blinds() {
    let mut record = World::new(&spec(QUICK)).record();
    let counts = |n| Counts {
        candidate: Arm { n, ..Arm::default() },
        ..Counts::default()
    };
    let hour = 3_600 * SECOND;
    let block = record.next_block;
    let ahead = block + 360;
    let empty: Vec<_> = (block..ahead).map(|n| (n, Counts::default())).collect();
    record.observe(START + hour, false, &empty);
    assert!(record.baked_us <= 10 * SECOND, "{}", record.baked_us);
    assert!(record.next_block > block + 300);
    // Back again: what happens now is seen.
    record.observe(START + SECOND, false, &[]);
    let (first, _) = record.blocks(START + 30 * SECOND);
    assert!(first <= block + 2, "{first}");
    let before = record.baked_us;
    record.observe(START + 2 * SECOND, false, &[]);
    assert_eq!(record.baked_us - before, SECOND);
    record.observe(START + 60 * SECOND, false, &[(first, counts(7))]);
    assert_eq!(record.totals.candidate.n, 7);
    // A little is waited for: nothing counts twice.
    let next = record.next_block;
    record.observe(START + 30 * SECOND, false, &[(first, counts(7))]);
    assert_eq!((record.next_block, record.totals.candidate.n), (next, 7));
}

// Whatever a person promotes, whoever drives can read it.
#[test]
fn what_is_promoted_can_be_read() {
    let steps: Vec<String> = (1..=20).map(|n| n.to_string()).collect();
    for all in [true, false] {
        let mut world = World::new(&spec(&format!(r#"{{"steps":[{}]}}"#, steps.join(","))));
        for n in 0..20 {
            let record = world.record();
            assert_eq!(record.step, n);
            world.apply(&promote(&record, all, &world.setting()).unwrap());
            if world.record().status == Status::Watching {
                break;
            }
        }
        let record = world.record();
        assert_eq!(
            (record.status, world.gate.to_string()),
            (Status::Watching, "v2 active".to_owned())
        );
        assert!(promote(&record, all, &world.setting()).is_none());
    }
}

// What held it is looked at, and left behind, however a person goes on from there.
#[test]
fn a_signal_that_somebody_saw_is_over() {
    let slower = || {
        let mut world = World::new(&spec(QUICK));
        let mut guard: serde_json::Value = serde_json::to_value(GuardState::default()).unwrap();
        guard["held"] = serde_json::to_value(HoldReason::Slower(evidence())).unwrap();
        world.record.insert("guard", guard.to_string());
        let verdict = world.record().verdict();
        assert!(matches!(verdict, Verdict::Hold(_)));
        assert!(matches!(world.look(1, &verdict, (1, 1)), Action::Hold { .. }));
        world
    };
    let holds = |world: &World| matches!(world.record().verdict(), Verdict::Hold(_));
    let mut paused = slower();
    paused.apply(&pause(&paused.record(), &paused.setting()).unwrap());
    assert!(holds(&paused), "a pause says nothing");
    paused.apply(&resume(&paused.record(), &paused.setting()).unwrap());
    assert!(!holds(&paused));
    let mut promoted = slower();
    promoted.apply(&promote(&promoted.record(), false, &promoted.setting()).unwrap());
    assert!(!holds(&promoted));
}

// The mark of an earlier rollout says that nobody has shown it to be better since.
#[test]
fn a_version_that_made_it_is_marked_no_longer() {
    let mut world = World::new(&spec(r#"{"steps":[100],"watch":"5s"}"#));
    let record = world.record();
    let marked = mark::mark(r#"{"build":"b"}"#, "it failed")
        .replace("@rev@", "7")
        .replace("@at_us@", "1");
    let setting = Setting {
        entry: marked.clone(),
        ..world.setting()
    };
    let written = plan(&record, &Action::Finish, &setting).mark.unwrap();
    assert_eq!((written.before, written.after), (marked, r#"{"build":"b"}"#.to_owned()));
    assert_eq!(plan(&record, &Action::Finish, &world.setting()).mark, None);
    assert_eq!(world.look(5, &pass(), (1, 0)), Action::Finish);
}

#[test]
fn blocks_are_read_past_what_is_not_ours() {
    let fields: Fields = [
        ("v1:n", "10"),
        ("v1:f", "1"),
        ("v2:n", "x"),
        ("v2:lost", "2"),
        ("v1:t17", "9"),
        ("v1:o41", "2"),
        ("v3:n", "5"),
        ("?id@1", "v1"),
    ]
    .map(|(k, v)| (k.into(), v.into()))
    .to_vec();
    let counts = counts(&fields, &version("v1"), &version("v2"));
    assert_eq!(
        (counts.active.n, counts.active.failed, counts.active.took[&17]),
        (10, 1, 9)
    );
    assert_eq!(counts.active.outlasted, [(41, 2)].into());
    assert_eq!((counts.candidate.n, counts.candidate.lost), (0, 2));
}

#[test]
fn what_the_guard_knows_stays_small() {
    let mut record = World::new(&spec("{}")).record();
    for n in 0..200 {
        let arm = |n: u64| Arm {
            n,
            failed: n / 50,
            took: (0..60).map(|b| (b, n)).collect(),
            outlasted: (40..60).map(|b| (b, n)).collect(),
            ..Arm::default()
        };
        let block = record.next_block + n;
        record.observe(
            (block + 2) * 10 * SECOND,
            false,
            &[(
                block,
                Counts {
                    active: arm(900),
                    candidate: arm(100),
                },
            )],
        );
    }
    let bytes: usize = record.fields().iter().map(|(_, value)| value.len()).sum();
    assert!(bytes < 16 * 1024, "{bytes}");
    let read: GuardState = serde_json::from_str(&serde_json::to_string(&record.guard).unwrap()).unwrap();
    let config = &record.spec.guard;
    assert_eq!(
        read.verdict(config, 1).to_string(),
        record.guard.verdict(config, 1).to_string()
    );
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        4 => Just(pass()),
        3 => Just(few()),
        1 => Just(Verdict::Hold(HoldReason::BothFail(evidence()))),
        1 => Just(Verdict::Hold(HoldReason::Share(evidence()))),
        1 => Just(Verdict::Regressed(evidence())),
    ]
}

#[derive(Debug, Clone)]
enum Event {
    Look(u64, Verdict, (usize, usize)),
    Pause,
    Resume,
    GatePaused(bool),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        12 => (0u64..15, verdicts(), (0usize..3, 0usize..3)).prop_map(|(s, v, w)| Event::Look(s, v, w)),
        1 => Just(Event::Pause),
        2 => Just(Event::Resume),
        1 => any::<bool>().prop_map(Event::GatePaused),
    ];
    prop::collection::vec(event, 0..60)
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_the_rules(events in events()) {
        let mut world = World::new(&spec(QUICK));
        let mut since = 0;
        for event in events {
            let before = world.record();
            match event {
                Event::Pause => {
                    if let Some(step) = pause(&before, &world.setting()) { world.apply(&step); }
                }
                Event::Resume => {
                    if let Some(step) = resume(&before, &world.setting()) { world.apply(&step); }
                }
                Event::GatePaused(paused) => world.gate.paused = paused,
                Event::Look(seconds, verdict, with) => {
                    since += seconds;
                    let action = world.look(seconds, &verdict, with);
                    let after = world.record();
                    if !before.status.is_live() {
                        prop_assert_eq!(&action, &Action::Nothing, "over is over");
                        prop_assert_eq!(after.status, before.status);
                    }
                    if let Action::Advance { step } = action {
                        prop_assert_eq!(step, before.step + 1, "no step is skipped");
                        prop_assert_eq!(before.status, Status::Running);
                        prop_assert!(matches!(verdict, Verdict::Pass(_)) && with.0 > 0 && with.1 > 0 && !world.gate.paused);
                        prop_assert!(since >= 10, "each step bakes");
                        since = 0;
                    } else {
                        prop_assert_eq!(after.step, before.step);
                    }
                    if matches!(verdict, Verdict::Regressed(_)) && before.status.is_live() {
                        prop_assert_eq!(after.status, Status::RolledBack);
                        prop_assert_eq!(world.gate.active.as_str(), "v1");
                    }
                }
            }
            let record = world.record();
            if record.status.is_live() {
                prop_assert!(record.agrees_with(&world.gate), "the gate is what the step says");
            }
        }
    }
}

#[test]
fn a_bake_shorter_than_a_block_is_not_held_before_the_block_is_over() {
    let mut world = World::new(&spec(r#"{"steps":[10,100],"bake":"1s","extend":1}"#));
    assert_eq!(world.look(19, &few(), (1, 1)), Action::Nothing);
    assert!(matches!(world.look(1, &few(), (1, 1)), Action::Hold { .. }));
}
