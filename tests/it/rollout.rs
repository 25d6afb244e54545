//! rollout.lua: a step is whole or not at all; a person, and whoever was faster, wins.

use switchback_common::{
    SessionId,
    store::{
        gate::{ChangeRequest, Changed, Sealed},
        keyspace::Key,
        log,
        rollout::{RolloutStore, Step, Stepped},
    },
};
use switchback_gates::{
    Gate,
    guard::{Evidence, Test},
    rollout::{Action, Record, Setting, Spec, Status, abort, pause, plan, resume, rolled_back, start},
};
use tokio::task::JoinSet;

use crate::queue::{TestQueue, show};

struct Ramp {
    q: TestQueue,
    store: RolloutStore,
}

impl Ramp {
    /// v1 active, v2 known, nothing begun.
    async fn ready() -> Self {
        let q = TestQueue::seeded().await;
        let store = RolloutStore::new(&q.store, &q.queue);
        Self { q, store }
    }

    /// … and v2 at its first step.
    async fn begun() -> Self {
        let ramp = Self::ready().await;
        let step = ramp.start("op").await;
        assert_yes(ramp.store.step(&step).await.unwrap());
        assert!(ramp.store.drive(&ramp.q.session).await.unwrap());
        ramp
    }

    async fn start(&self, op: &str) -> Step {
        let setting = Setting {
            op: op.into(),
            driver: None,
            ..self.setting().await
        };
        let spec: Spec = serde_json::from_str(r#"{"steps":[1,10,100]}"#).unwrap();
        start(&spec, &"v1".parse().unwrap(), &"v2".parse().unwrap(), &setting, false)
    }

    async fn sealed(&self) -> Sealed {
        self.store.gate().await.unwrap().unwrap()
    }

    async fn setting(&self) -> Setting {
        Setting {
            driver: Some(self.q.session.clone()),
            now_us: self.store.read().await.unwrap().1,
            rev: self.sealed().await.rev,
            entry: self.store.version_entry(&"v2".parse().unwrap()).await.unwrap(),
            by: "rollout".into(),
            ..Setting::default()
        }
    }

    async fn record(&self) -> Record {
        let fields = self.store.read().await.unwrap().0;
        Record::parse(&fields).unwrap().unwrap()
    }

    async fn plan(&self, action: &Action) -> Step {
        plan(&self.record().await, action, &self.setting().await)
    }

    async fn take(&self, action: &Action) -> Stepped {
        self.store.step(&self.plan(action).await).await.unwrap()
    }

    async fn signal(&self) -> u64 {
        let key = self.q.key(Key::GateState);
        self.q.cmd::<Option<u64>>(&["HGET", &key, "rollout"]).await.unwrap_or(0)
    }

    /// Gate, record, signal and history say the same thing.
    async fn assert_whole(&self) {
        let (record, sealed) = (self.record().await, self.sealed().await);
        let gate = Gate::parse(&sealed.gate).unwrap();
        assert_eq!(self.signal().await, if record.status.is_live() { record.id } else { 0 });
        assert_eq!(record.rev, sealed.rev);
        match record.status {
            Status::RolledBack | Status::Aborted => assert_eq!(gate, Gate::new("v1".parse().unwrap())),
            _ => assert!(record.agrees_with(&gate), "{record:?} {gate:?}"),
        }
        assert_eq!(self.q.changes().await[0].rev, sealed.rev);
    }

    /// Everything that a step writes.
    async fn everything(&self) -> String {
        let mut out = format!("{:?}", self.store.read().await.unwrap().0);
        for key in [Key::Gate, Key::GateState, Key::Versions] {
            let key = self.q.key(key);
            let fields: std::collections::BTreeMap<String, String> = self.q.cmd(&["HGETALL", &key]).await;
            out.push_str(&format!("{fields:?}"));
        }
        out.push_str(&format!("{:?}", self.q.history().await.len()));
        out
    }
}

fn evidence() -> Evidence {
    serde_json::from_value(
        serde_json::json!({ "test": "failure", "n_active": 900, "failed_active": 9, "n_candidate": 100,
        "failed_candidate": 30, "e_value": 1e6, "threshold": 500.0, "allowed": 0.005 }),
    )
    .unwrap()
}

fn rollback() -> Action {
    Action::Rollback { evidence: evidence() }
}

#[track_caller]
fn assert_yes(stepped: Stepped) {
    assert!(matches!(stepped, Stepped::Yes { .. }), "{stepped:?}");
}

fn person(fields: &[(&'static str, &str)]) -> ChangeRequest {
    ChangeRequest {
        source: "cli".into(),
        by: "alice".into(),
        op: format!("{fields:?}"),
        fields: fields.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
        ..ChangeRequest::default()
    }
}

#[tokio::test]
async fn a_start_sets_gate_record_signal_and_log_at_once() {
    let ramp = Ramp::begun().await;
    ramp.assert_whole().await;
    let record = ramp.record().await;
    assert_eq!(
        (record.status, record.serial, record.build.as_str()),
        (Status::Running, 1, "b1")
    );
    assert_eq!(show(&ramp.sealed().await.gate), "v1 v2@1");
    let entry = &ramp.q.changes().await[0];
    assert_eq!(entry.source, "rollout");
    let log = log::read(&ramp.q.store, &ramp.q.queue, None, 100).await.unwrap();
    let said: Vec<_> = log
        .iter()
        .filter(|e| e.kind == "rollout")
        .map(|e| e.text.as_str())
        .collect();
    assert_eq!(said, ["v2 begins at 1 % beside v1 (step 1 of 3)"]);
    assert_eq!(record.events.len(), 1);
}

// The driver dies after any step: whoever takes over finds a whole state, goes on, and comes to the same end.
#[tokio::test]
async fn a_driver_that_dies_between_any_two_steps_leaves_a_whole_state() {
    let script: Vec<Action> = vec![
        Action::Nothing,
        Action::Hold {
            reason: "nobody there".into(),
        },
        Action::Release,
        Action::Advance { step: 1 },
        Action::Nothing,
        Action::Advance { step: 2 },
        Action::Finish,
    ];
    for dies_after in 0..=script.len() {
        let ramp = Ramp::begun().await;
        for (n, action) in script.iter().enumerate() {
            if n == dies_after {
                ramp.q.cmd::<()>(&["DEL", &ramp.q.key(Key::Driver)]).await;
                let heir = SessionId::random();
                ramp.q.join(&heir, &["v1"]).await;
                assert!(ramp.store.drive(&heir).await.unwrap());
                // The step that it was about to send comes late.
                let before = ramp.everything().await;
                assert_eq!(ramp.take(action).await, Stepped::NotDriver);
                assert_eq!(ramp.everything().await, before);
                ramp.q.cmd::<()>(&["DEL", &ramp.q.key(Key::Driver)]).await;
                assert!(ramp.store.drive(&ramp.q.session).await.unwrap());
            }
            assert_yes(ramp.take(action).await);
            ramp.assert_whole().await;
        }
        assert_eq!(ramp.record().await.status, Status::Promoted);
        assert_eq!(show(&ramp.sealed().await.gate), "v2");
    }
}

// P9: a step sent again, or by a driver that was overtaken, changes nothing.
#[tokio::test]
async fn a_stale_serial_changes_nothing() {
    let ramp = Ramp::begun().await;
    for action in [Action::Advance { step: 1 }, Action::Nothing, rollback()] {
        let step = ramp.plan(&action).await;
        assert_yes(ramp.store.step(&step).await.unwrap());
        let before = ramp.everything().await;
        assert_eq!(ramp.store.step(&step).await.unwrap(), Stepped::Stale);
        assert_eq!(ramp.everything().await, before);
    }
}

#[tokio::test]
async fn a_start_sent_again_starts_once_and_another_is_refused() {
    let ramp = Ramp::ready().await;
    let step = ramp.start("op").await;
    assert_yes(ramp.store.step(&step).await.unwrap());
    let before = ramp.everything().await;
    assert_yes(ramp.store.step(&step).await.unwrap());
    assert_eq!(ramp.everything().await, before);
    let other = ramp.start("other").await;
    assert!(matches!(ramp.store.step(&other).await.unwrap(), Stepped::Running(_)));
    assert_eq!(ramp.everything().await, before);
}

#[tokio::test]
async fn of_two_operators_at_once_one_wins() {
    let ramp = Ramp::ready().await;
    let mut at_once = JoinSet::new();
    for n in 0..8 {
        let (store, step) = (ramp.store.clone(), ramp.start(&format!("op-{n}")).await);
        at_once.spawn(async move { store.step(&step).await.unwrap() });
    }
    let all = at_once.join_all().await;
    let won = all.iter().filter(|s| matches!(s, Stepped::Yes { .. })).count();
    assert_eq!(won, 1, "{all:?}");
    assert!(
        all.iter()
            .all(|s| matches!(s, Stepped::Yes { .. } | Stepped::Running(_))),
        "{all:?}"
    );
    ramp.assert_whole().await;
}

// P9: the machine judges one revision and writes onto that one alone; raw edits that nobody sealed yet count.
#[tokio::test]
async fn a_persons_edit_wins_over_the_step_that_did_not_see_it() {
    for edit in ["percent 2 by alice", "only v1 by alice", "paused 1", "active v3"] {
        for action in [Action::Advance { step: 1 }, rollback(), Action::Nothing] {
            let ramp = Ramp::begun().await;
            let step = ramp.plan(&action).await;
            ramp.q.hset(edit).await;
            let stepped = ramp.store.step(&step).await.unwrap();
            assert!(matches!(stepped, Stepped::Moved(_)), "{edit}: {stepped:?}");
            let newest = &ramp.q.changes().await[0];
            assert_eq!((newest.source.as_str(), newest.rev), ("redis-cli", 3), "{edit}");
            assert_eq!(ramp.record().await.serial, 1);
        }
    }
}

// Guard and person at the same time: one of them was first, and what follows knows it.
#[tokio::test]
async fn guard_and_person_race_to_one_whole_state() {
    for n in 0..10 {
        let ramp = Ramp::begun().await;
        let step = ramp.plan(&rollback()).await;
        let promote = person(&[("active", "v2")]);
        let (stepped, changed) = if n % 2 == 0 {
            tokio::join!(ramp.store.step(&step), ramp.q.gate.change(&promote))
        } else {
            let (changed, stepped) = tokio::join!(ramp.q.gate.change(&promote), ramp.store.step(&step));
            (stepped, changed)
        };
        assert!(matches!(changed.unwrap(), Changed::Changed(_)));
        match stepped.unwrap() {
            Stepped::Yes { sealed, .. } => {
                assert_eq!((sealed.rev, show(&sealed.gate)), (3, "v1".into()));
                assert_eq!(ramp.record().await.status, Status::RolledBack);
                assert_eq!(ramp.signal().await, 0);
            }
            Stepped::Moved(sealed) => {
                assert_eq!((sealed.rev, show(&sealed.gate)), (3, "v2".into()));
                assert_eq!(ramp.record().await.status, Status::Running);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(
            show(&ramp.sealed().await.gate),
            "v2",
            "the person's word came last, or alone"
        );
    }
}

#[tokio::test]
async fn a_rollback_says_who_when_why_and_marks_the_version() {
    let ramp = Ramp::begun().await;
    assert_yes(ramp.take(&rollback()).await);
    ramp.assert_whole().await;
    let entry = &ramp.q.changes().await[0];
    assert_eq!(entry.source, "guard");
    assert!(
        entry.why.contains("30/100") && entry.why.contains("9/900"),
        "{}",
        entry.why
    );
    let marked = ramp.store.version_entry(&"v2".parse().unwrap()).await.unwrap();
    let back = rolled_back(&marked).unwrap_or_else(|| panic!("{marked}"));
    assert_eq!(
        (back.rev, back.why.as_str(), back.build.as_deref()),
        (3, entry.why.as_str(), Some("b1"))
    );
    assert_eq!(back.at_us, ramp.record().await.at_us, "{marked}");
    assert!(marked.contains("first_seen_us"), "the rest stays: {marked}");
    let log: Vec<String> = ramp
        .q
        .cmd::<Vec<(String, Vec<String>)>>(&["XRANGE", &ramp.q.key(Key::Log), "-", "+"])
        .await
        .pop()
        .unwrap()
        .1;
    let at = log.iter().position(|field| field == "evidence").unwrap();
    let evidence: serde_json::Value = serde_json::from_str(&log[at + 1]).unwrap();
    assert_eq!(evidence["evidence"]["test"], serde_json::json!(Test::Failure));
    assert_eq!(evidence["touched"]["first_attempts"], 0);
}

// P10: a Redis at maxmemory can still be rolled back, and driven.
#[tokio::test]
async fn at_maxmemory_the_guard_rolls_back() {
    let ramp = Ramp::begun().await;
    ramp.q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert!(ramp.store.drive(&ramp.q.session).await.unwrap());
    assert_yes(ramp.take(&Action::Nothing).await);
    assert_yes(ramp.take(&rollback()).await);
    ramp.assert_whole().await;
}

#[tokio::test]
async fn people_pause_resume_and_abort() {
    let ramp = Ramp::begun().await;
    let by_hand = async || Setting {
        driver: None,
        by: "alice".into(),
        ..ramp.setting().await
    };
    let step = pause(&ramp.record().await, &by_hand().await).unwrap();
    assert_yes(ramp.store.step(&step).await.unwrap());
    assert_eq!(ramp.record().await.status, Status::Paused);
    let step = resume(&ramp.record().await, &by_hand().await).unwrap();
    assert_yes(ramp.store.step(&step).await.unwrap());
    assert_eq!(ramp.record().await.status, Status::Running);
    let gate = Gate::parse(&ramp.sealed().await.gate).unwrap();
    let step = abort(&ramp.record().await, &gate, false, &by_hand().await).unwrap();
    assert_yes(ramp.store.step(&step).await.unwrap());
    ramp.assert_whole().await;
    assert_eq!(ramp.record().await.status, Status::Aborted);
    // The way is free for the next.
    let again = ramp.start("again").await;
    assert_yes(ramp.store.step(&again).await.unwrap());
    ramp.assert_whole().await;
}

#[tokio::test]
async fn one_drives_and_only_under_its_own_lease() {
    let ramp = Ramp::begun().await;
    let other = SessionId::random();
    ramp.q.join(&other, &["v2"]).await;
    assert!(!ramp.store.drive(&other).await.unwrap(), "taken");
    assert_eq!(ramp.store.driver().await.unwrap().as_ref(), Some(&ramp.q.session));
    ramp.q.cmd::<()>(&["DEL", &ramp.q.key(Key::Driver)]).await;
    ramp.q.cmd::<()>(&["DEL", &ramp.q.lease(&other)]).await;
    assert!(
        !ramp.store.drive(&other).await.unwrap(),
        "P4: a lost session drives nothing"
    );
    assert!(ramp.store.drive(&ramp.q.session).await.unwrap());
    let ttl: i64 = ramp.q.cmd(&["PTTL", &ramp.q.key(Key::Driver)]).await;
    assert!((1..=5_000).contains(&ttl), "{ttl}");
    let heir = SessionId::random();
    ramp.q.join(&heir, &["v2"]).await;
    ramp.store.step_down(&heir).await.unwrap();
    assert!(!ramp.store.drive(&heir).await.unwrap(), "nobody steps down for another");
    ramp.store.step_down(&ramp.q.session).await.unwrap();
    assert!(ramp.store.drive(&heir).await.unwrap());
}

#[tokio::test]
async fn a_lost_attempt_counts_once_for_each_recovery() {
    let ramp = Ramp::begun().await;
    let (v2, task) = ("v2".parse().unwrap(), "task-1".parse().unwrap());
    // In block 8 as well: a suspect that was given back, or waited in a lane, comes again.
    for (block, recovered) in [(7, 1), (7, 1), (7, 2), (7, 1), (8, 1), (8, 2)] {
        ramp.store
            .count_lost(block, &v2, &task, recovered, false)
            .await
            .unwrap();
    }
    let blocks = ramp.store.blocks(6, 8).await.unwrap();
    let counts = switchback_gates::rollout::counts(&blocks[1].1, &"v1".parse().unwrap(), &v2);
    assert_eq!(
        (counts.candidate.n, counts.candidate.lost, counts.candidate.failed),
        (2, 2, 0)
    );
    assert!(blocks[0].1.is_empty() && blocks[2].1.is_empty());
}
