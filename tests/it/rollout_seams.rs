//! Rollouts beside what else there is: retiring, notes among the versions, in-flight policies, edits of people.

use switchback_common::store::{
    gate::{ChangeRequest, Changed},
    inspect,
    keyspace::Key,
    limits::fullness,
    rollout::{RolloutStore, Step, Stepped},
    versions::{self, RetireRequest, Retiring},
};
use switchback_gates::{
    Gate,
    rollout::{Action, Record, Setting, Spec, plan, start},
};

use crate::cli::{Mail, OK, REFUSED};
use crate::queue::TestQueue;

impl TestQueue {
    fn rollouts(&self) -> RolloutStore {
        RolloutStore::new(&self.store, &self.queue)
    }

    async fn setting(&self) -> Setting {
        Setting {
            rev: self.rollouts().gate().await.unwrap().unwrap().rev,
            ..Setting::default()
        }
    }

    /// The first step of v1 -> v2.
    async fn first(&self, steps: &str, dry_run: bool) -> Step {
        let spec: Spec = serde_json::from_str(&format!(r#"{{"steps":{steps},"inflight":"revoke"}}"#)).unwrap();
        let (from, to) = ("v1".parse().unwrap(), "v2".parse().unwrap());
        start(&spec, &from, &to, &self.setting().await, dry_run)
    }

    async fn step(&self, step: &Step) -> Stepped {
        self.rollouts().step(step).await.unwrap()
    }

    async fn begin(&self, steps: &str) {
        let stepped = self.step(&self.first(steps, false).await).await;
        assert!(matches!(stepped, Stepped::Yes { .. }), "{stepped:?}");
    }

    async fn force_retire(&self, version: &str) -> Retiring {
        let force = RetireRequest {
            force: true,
            ..RetireRequest::default()
        };
        versions::retire(&self.store, &self.queue, &version.parse().unwrap(), &force)
            .await
            .unwrap()
    }
}

// P3: while the guard watches on after 100 % the gate does not name v1, and a rollback would go to it.
#[tokio::test]
async fn what_a_rollout_comes_from_or_goes_to_is_not_retired() {
    let q = TestQueue::seeded().await;
    q.begin("[10,100]").await;
    for version in ["v1", "v2"] {
        assert!(matches!(q.force_retire(version).await, Retiring::Routed { .. }));
    }
    // Somebody set the gate otherwise, and nobody has driven the rollout since.
    q.edit("only v3").await;
    for version in ["v1", "v2"] {
        let status = "running".to_owned();
        assert_eq!(q.force_retire(version).await, Retiring::Rollout { status });
    }
    let q = TestQueue::seeded().await;
    q.begin("[100]").await;
    let status = "watching".to_owned();
    assert_eq!(q.force_retire("v1").await, Retiring::Rollout { status });
    assert!(matches!(q.force_retire("v3").await, Retiring::Retired { .. }));
    // Once it is over the record is history.
    let record = Record::parse(&q.rollouts().read().await.unwrap().0).unwrap().unwrap();
    q.step(&plan(&record, &Action::Finish, &q.setting().await)).await;
    assert!(matches!(q.force_retire("v1").await, Retiring::Retired { .. }));
    // A key of a wrong type is no rollout.
    let q = TestQueue::seeded().await;
    q.cmd::<()>(&["SET", &q.key(Key::Rollout), "oops"]).await;
    assert!(matches!(q.force_retire("v3").await, Retiring::Retired { .. }));
}

#[tokio::test]
async fn retiring_says_which_rollout_is_in_the_way() {
    let mail = Mail::with_worker().await;
    mail.join_and_leave(&["v0"]).await;
    mail.shell.run("rollout start mail --to v2 --steps 100").exits(OK);
    mail.shell
        .run("version retire mail v1 --force")
        .exits(REFUSED)
        .tells("a rollout of shop/mail that is watching comes from v1")
        .tells("switchback rollout abort mail");
    mail.shell.run("version retire mail v0").exits(OK);
}

// Fields that begin with `:` are notes, and no versions: to nobody.
#[tokio::test]
async fn notes_among_the_versions_are_no_versions() {
    let mail = Mail::with_worker().await;
    let versions = "sb:versions:{shop:mail}";
    for note in [":absent", ":run", ":runs", ":later", ":v2"] {
        mail.server
            .cli(&["HSET", versions, note, "{\"first_seen_us\":1}"])
            .await;
    }
    let names: Vec<String> = mail
        .shell
        .json("version ls mail")
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["version"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["v1", "v2"]);
    let depth = inspect::depth(&mail.store, &mail.queue).await.unwrap();
    assert!(
        depth
            .lanes
            .iter()
            .all(|(version, _)| ["v1", "v2"].contains(&version.as_str()))
    );
    for line in ["gate set mail active=:v2 --force", "gate set mail active=:run --force"] {
        assert_ne!(mail.shell.run(line).code, OK, "{line}");
    }
    mail.server
        .cli(&[
            "HSET",
            "sb:gate:{shop:mail}",
            "candidate",
            ":later",
            "percent",
            "5",
            "pins",
            "a=:run",
            "targets",
            "a:b=:v2",
        ])
        .await;
    let gate = mail.gate();
    assert!(
        gate["candidate"].is_null() && gate["pins"] == serde_json::json!({}),
        "{gate}"
    );
    mail.shell
        .run("rollout start mail --to v9")
        .exits(REFUSED)
        .tells("ever joined: v1, v2\n");
    // P3: a revoke speaks of versions.
    mail.server
        .cli(&["HSET", "sb:gate:{shop:mail}", "only", "v1", "inflight", "revoke"])
        .await;
    assert_eq!(mail.gate()["active"], "v1");
    let state = mail.server.cli(&["HKEYS", "sb:gatestate:{shop:mail}"]).await;
    let state: Vec<String> = redis::from_redis_value(state).unwrap();
    assert!(state.iter().any(|field| field == "min_rev:v2"), "{state:?}");
    assert!(!state.iter().any(|field| field.contains("rev::")), "{state:?}");
    mail.join(&["v1", "v2", "v3"], 7).await;
    // Notes and nothing else, as where somebody removed the versions.
    mail.server.cli(&["HDEL", versions, "v1", "v2", "v3"]).await;
    mail.server
        .cli(&["HSET", "sb:limits:{shop:mail}", "waiting", "5"])
        .await;
    let link = mail.store.link().await.unwrap();
    fullness(&link, &mail.store, &mail.queue).await.unwrap();
    mail.shell.run("queue show mail").exits(OK);
}

// What a dry run says is what is done, for rollouts as for `gate set`.
#[tokio::test]
async fn a_dry_step_that_stops_what_runs_is_a_revision() {
    let q = TestQueue::seeded().await;
    let step = Step {
        gate: vec![("only", "v1".to_owned()), ("inflight", "revoke".to_owned())],
        ..q.first("[10,100]", true).await
    };
    let rev = q.setting().await.rev;
    match q.step(&step).await {
        Stepped::Would(sealed) => assert_eq!(sealed.rev, rev + 1),
        other => panic!("{other:?}"),
    }
    let request = ChangeRequest {
        fields: vec![("only", "v1".to_owned()), ("inflight", "revoke".to_owned())],
        ..ChangeRequest::default()
    };
    let changed = q.gate.change(&request).await.unwrap();
    assert!(matches!(changed, Changed::Changed(sealed) if sealed.rev == rev + 1));
}

// Whom a target sends where is a person's business: the rollout goes on, and back, with it.
#[tokio::test]
async fn targets_of_people_are_adopted() {
    let q = TestQueue::seeded().await;
    q.begin("[10,50,100]").await;
    q.edit("targets plan:beta=v2").await;
    let sealed = q.rollouts().gate().await.unwrap().unwrap();
    let record = Record::parse(&q.rollouts().read().await.unwrap().0).unwrap().unwrap();
    assert!(record.agrees_with(&Gate::parse(&sealed.gate).unwrap()));
    let step = plan(&record, &Action::Advance { step: 1 }, &q.setting().await);
    assert!(matches!(q.step(&step).await, Stepped::Yes { .. }));
    assert_eq!(
        q.human().await,
        "active=v1 candidate=v2 paused=0 percent=50 targets=plan:beta=v2"
    );
}

// As `gate set` and `gate rollback` have it.
#[tokio::test]
async fn a_revert_says_what_becomes_of_what_runs() {
    let mail = Mail::with_worker().await;
    mail.set("active=v2");
    mail.shell
        .run("gate revert mail --to-rev 1 --inflight revoke --why INC-9")
        .exits(OK);
    let newest = mail.shell.json("gate history mail")[0].clone();
    assert_eq!(newest["inflight"], "revoke", "{newest:#}");
    let state = mail
        .server
        .cli(&["HGET", "sb:gatestate:{shop:mail}", "min_rev:v2"])
        .await;
    assert_eq!(
        redis::from_redis_value::<u64>(state).unwrap(),
        newest["rev"].as_u64().unwrap()
    );
}
