//! Rollouts driven by workers: up by itself, back by itself, whoever dies and whoever interferes.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use switchback_common::store::{
    gate::ChangeRequest,
    keyspace::Keyspace,
    log::{self, Ended},
    rollout::{RolloutStore, Step, Stepped},
};
use switchback_gates::{
    Gate,
    admin::operation_id,
    certificate::Revisions,
    rollout::{Record, Setting, Spec, Status, start},
};
use switchback_tests::{Process, Witness, eventually, patience};
use switchback_worker::{Context, TaskError};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::fixture::{Fixture, Job};

pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Small enough for a test to go through all of it; the statistics are those of a real one.
pub(crate) const QUICK: &str = r#"{"steps":[10,50,100],"bake":"1s","min_samples":30,"extend":100,"watch":"1s",
    "guard":{"block_secs":1,"alpha":0.05,"promote_margin":0.1,"baseline_min":50,"burn":{"active_min":20}}}"#;

pub(crate) type Handled = Pin<Box<dyn Future<Output = Result<(), TaskError>> + Send>>;

/// How often a version fails, in percent.
#[derive(Clone, Default)]
pub(crate) struct Fails(Arc<AtomicU64>);

impl Fails {
    pub(crate) fn set(&self, percent: u64) {
        self.0.store(percent, Ordering::SeqCst);
    }

    pub(crate) fn handler(&self) -> impl Fn(Job, Context) -> Handled + Send + Sync + 'static + use<> {
        let percent = Arc::clone(&self.0);
        move |job: Job, ctx: Context| {
            let fails = ctx.attempt == 1 && (job.n * 37 % 100) < percent.load(Ordering::SeqCst);
            Box::pin(async move {
                if fails {
                    Err(TaskError::failed("asked to fail"))
                } else {
                    Ok(())
                }
            })
        }
    }
}

/// Traffic until dropped.
pub(crate) struct Traffic(#[expect(dead_code, reason = "dropped with it")] JoinSet<()>);

impl Traffic {
    /// About 300 tasks per second; all with one key if there is one.
    pub(crate) fn begin(fixture: &Fixture, key: Option<&'static str>) -> Self {
        let (producer, mut tasks) = (fixture.producer.clone(), JoinSet::new());
        tasks.spawn(async move {
            for n in (0..).step_by(15) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let jobs: Vec<Job> = (n..n + 15).map(|n| Job { n, then: String::new() }).collect();
                match key {
                    None => drop(producer.enqueue_many(&jobs).await),
                    Some(key) => {
                        for job in &jobs {
                            let _ = producer.enqueue(job).key(key).await;
                        }
                    }
                }
            }
        });
        Self(tasks)
    }
}

pub(crate) struct Ramp {
    pub(crate) fixture: Fixture,
    pub(crate) v1: Fails,
    pub(crate) v2: Fails,
}

impl Ramp {
    /// A worker that has both versions, v1 active.
    pub(crate) async fn new() -> Self {
        Self::on(Fixture::new().await).await
    }

    pub(crate) async fn on(mut fixture: Fixture) -> Self {
        let (v1, v2) = (Fails::default(), Fails::default());
        let config = fixture.config();
        fixture
            .worker(config, |t| {
                t.version("v1", v1.handler())
                    .version("v2", v2.handler())
                    .concurrency(64)
            })
            .await;
        Self { fixture, v1, v2 }
    }

    pub(crate) fn store(&self) -> RolloutStore {
        store(&self.fixture)
    }

    pub(crate) async fn start(&self, spec: &str) {
        begin(&self.fixture, spec).await;
    }

    pub(crate) async fn record(&self) -> Record {
        record(&self.fixture).await
    }

    pub(crate) async fn becomes(&self, status: Status) -> Record {
        becomes(&self.fixture, status).await
    }

    pub(crate) async fn gate(&self) -> Gate {
        self.fixture.gates.show(&self.fixture.queue).await.unwrap().gate
    }
}

pub(crate) fn store(fixture: &Fixture) -> RolloutStore {
    RolloutStore::new(&fixture.store, &fixture.queue)
}

pub(crate) async fn record(fixture: &Fixture) -> Record {
    let fields = store(fixture).read().await.unwrap().0;
    Record::parse(&fields).unwrap().unwrap()
}

async fn first_step(fixture: &Fixture, spec: &str) -> Step {
    let spec: Spec = serde_json::from_str(spec).unwrap();
    spec.validate().unwrap();
    let setting = Setting {
        rev: fixture.gates.show(&fixture.queue).await.unwrap().rev,
        op: operation_id(),
        by: "alice".into(),
        ..Setting::default()
    };
    start(&spec, &"v1".parse().unwrap(), &"v2".parse().unwrap(), &setting, false)
}

pub(crate) async fn begin(fixture: &Fixture, spec: &str) {
    let step = first_step(fixture, spec).await;
    let stepped = store(fixture).step(&step).await.unwrap();
    assert!(matches!(stepped, Stepped::Yes { .. }), "{stepped:?}");
}

pub(crate) async fn becomes(fixture: &Fixture, status: Status) -> Record {
    eventually(&format!("the rollout is {status}"), patience(LONG), async || {
        let record = record(fixture).await;
        match record.status == status {
            true => Ok(record),
            false => Err(format!(
                "{} at {}: {:?} {}",
                record.status,
                record.share(),
                record.events,
                record.verdict()
            )),
        }
    })
    .await
}

/// P9: every step of a rollout that went all the way is in the history once, in order, and nothing else is; and is told once.
pub(crate) async fn assert_each_step_once(fixture: &Fixture, record: &Record) {
    let history = fixture.gates.history(&fixture.queue, None, 1_000).await.unwrap();
    let made: Vec<(&str, String)> = history
        .iter()
        .rev()
        .filter_map(|e| Some((e.source.as_str(), Gate::from_history(&e.after)?.to_string())))
        .collect();
    let shares: Vec<_> = (0..record.spec.steps.len() - 1)
        .map(|n| record.spec.share_of(n))
        .collect();
    let ramp = shares
        .iter()
        .map(|share| ("rollout", format!("v1 active, v2 at {share} %")));
    let expected: Vec<_> = std::iter::once(("seed", "v1 active".to_owned()))
        .chain(ramp)
        .chain([("rollout", "v2 active".to_owned())])
        .collect();
    assert_eq!(made, expected, "{:?}", record.events);
    let entries = log::read(&fixture.store, &fixture.queue, None, 100_000).await.unwrap();
    let steps = ["v2 begins at ", "v2 goes to ", "v2 is active"];
    let told: Vec<&str> = entries
        .iter()
        .filter(|e| e.kind == "rollout" && steps.iter().any(|step| e.text.starts_with(step)))
        .map(|e| e.text.split([':', '(', ',']).next().unwrap_or_default().trim_end())
        .collect();
    let expected: Vec<String> = std::iter::once(format!("v2 begins at {} % beside v1", shares[0]))
        .chain(shares[1..].iter().map(|share| format!("v2 goes to {share} %")))
        .chain(["v2 is active".to_owned()])
        .collect();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_version_goes_through_every_step_by_itself() {
    let ramp = Ramp::new().await;
    let _traffic = Traffic::begin(&ramp.fixture, None);
    ramp.start(QUICK).await;
    let record = ramp.becomes(Status::Promoted).await;
    assert_each_step_once(&ramp.fixture, &record).await;
    assert!(
        record.totals.active.n > 50 && record.totals.candidate.n > 30,
        "{:?}",
        record.totals
    );
    let counting = ramp.fixture.raw(&["HGET", "sb:gatestate:{test:job}", "rollout"]).await;
    assert_eq!(
        redis::from_redis_value::<String>(counting).unwrap(),
        "0",
        "workers count no longer"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_is_rolled_back_by_itself() {
    let ramp = Ramp::new().await;
    let _traffic = Traffic::begin(&ramp.fixture, None);
    ramp.v2.set(30);
    ramp.start(QUICK).await;
    let record = ramp.becomes(Status::RolledBack).await;
    assert_eq!(ramp.gate().await, Gate::new("v1".parse().unwrap()));
    let newest = &ramp.fixture.gates.history(&ramp.fixture.queue, None, 1).await.unwrap()[0];
    assert_eq!(newest.source, "guard");
    assert!(newest.why.contains("v2 at 10 %: "), "{}", newest.why);
    assert!(!record.evidence.is_empty() && record.totals.candidate.failed > 0);
    let entry = ramp.store().version_entry(&"v2".parse().unwrap()).await.unwrap();
    assert!(switchback_gates::rollout::rolled_back(&entry).is_some(), "{entry}");
}

// P1, P3: what the bad version failed runs on the good one, and nothing starts late. The same with times: the bench's
// `rollback`.
#[tokio::test(flavor = "multi_thread")]
async fn an_automatic_rollback_loses_nothing_and_starts_nothing_late() {
    let mut ramp = Ramp::new().await;
    for _ in 0..2 {
        let config = ramp.fixture.config();
        let (v1, v2) = (ramp.v1.handler(), ramp.v2.handler());
        ramp.fixture
            .worker(config, |t| t.version("v1", v1).version("v2", v2).concurrency(16))
            .await;
    }
    let traffic = Traffic::begin(&ramp.fixture, None);
    ramp.v2.set(30);
    ramp.start(QUICK).await;
    let record = ramp.becomes(Status::RolledBack).await;
    let confirmed = ramp
        .fixture
        .gates
        .wait(&ramp.fixture.queue, record.rev, LONG)
        .await
        .unwrap();
    assert!(
        confirmed.missing.is_empty() && confirmed.confirmed == 3,
        "{confirmed:?}"
    );
    drop(traffic);
    ramp.fixture.drained().await;
    let history = ramp
        .fixture
        .gates
        .history(&ramp.fixture.queue, None, 100)
        .await
        .unwrap();
    let revisions = Revisions::from_history(&history);
    let entries = log::read(&ramp.fixture.store, &ramp.fixture.queue, None, 100_000)
        .await
        .unwrap();
    let groups: Vec<_> = entries.iter().flat_map(|entry| &entry.attempts).collect();
    assert!(groups.iter().all(|group| revisions.late(group).is_empty()));
    let rows: Vec<_> = groups.iter().flat_map(|group| &group.tasks).collect();
    let done = rows.iter().filter(|row| row.3 == Ended::Done).count();
    let all: std::collections::HashSet<_> = rows.iter().map(|row| &row.0).collect();
    assert_eq!(
        (done, ramp.fixture.depth().await.dead),
        (all.len(), 0),
        "each is done, once"
    );
    let failed_on_v2 = groups
        .iter()
        .filter(|g| g.version.as_str() == "v2")
        .flat_map(|g| &g.tasks)
        .filter(|r| r.3 == Ended::Retried);
    assert!(failed_on_v2.count() > 0);
}

// It was good on the ramp, and turns bad once it is alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_after_promotion_is_rolled_back_too() {
    let ramp = Ramp::new().await;
    let _traffic = Traffic::begin(&ramp.fixture, None);
    ramp.start(&QUICK.replace(r#""watch":"1s""#, r#""watch":"1h""#)).await;
    ramp.becomes(Status::Watching).await;
    ramp.v2.set(60);
    ramp.becomes(Status::RolledBack).await;
    assert_eq!(ramp.gate().await, Gate::new("v1".parse().unwrap()));
}

// An outage is nobody's fault: nothing goes up, nothing goes back; and when it is over the rollout goes on.
#[tokio::test(flavor = "multi_thread")]
async fn when_both_versions_fail_it_holds() {
    let ramp = Ramp::new().await;
    let _traffic = Traffic::begin(&ramp.fixture, None);
    ramp.start(&QUICK.replace(r#""bake":"1s""#, r#""bake":"20s""#)).await;
    eventually("both versions have run", patience(LONG), async || {
        let totals = ramp.record().await.totals;
        totals.active.n > 200 && totals.candidate.n > 20
    })
    .await;
    ramp.v1.set(100);
    ramp.v2.set(100);
    let record = ramp.becomes(Status::Held).await;
    assert!(record.reason.contains("fail"), "{}", record.reason);
    assert_eq!(ramp.gate().await.percent.to_string(), "10");
    // v2 must not be alone in it for a moment.
    ramp.v2.set(0);
    ramp.v1.set(0);
    ramp.becomes(Status::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_traffic_it_extends_then_holds() {
    let ramp = Ramp::new().await;
    ramp.start(&QUICK.replace(r#""extend":100"#, r#""extend":2"#)).await;
    let record = ramp.becomes(Status::Held).await;
    assert!(
        record.reason.contains("too little is known") && record.reason.contains("0 of 30"),
        "{}",
        record.reason
    );
    assert_eq!(ramp.gate().await.percent.to_string(), "10");
    let traffic = Traffic::begin(&ramp.fixture, None);
    ramp.becomes(Status::Promoted).await;
    drop(traffic);
}

// One customer's tasks all go to one side, and are a handful of evidence: nothing is concluded from them.
#[tokio::test(flavor = "multi_thread")]
async fn with_one_key_it_concludes_nothing() {
    let ramp = Ramp::new().await;
    let _traffic = Traffic::begin(&ramp.fixture, Some("the-one-customer"));
    ramp.start(&QUICK.replace(r#""extend":100"#, r#""extend":3"#)).await;
    let record = ramp.becomes(Status::Held).await;
    let Record { totals, .. } = &record;
    let blocks = (record.looked_us - record.id) / 1_000_000 + 2;
    assert!(
        totals.active.n.min(totals.candidate.n) == 0,
        "one key, one version: {totals:?}"
    );
    assert!(
        totals.active.n + totals.candidate.n <= 5 * blocks,
        "{totals:?} in {blocks} blocks"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persons_edit_ends_it_and_stays() {
    let ramp = Ramp::new().await;
    let _traffic = Traffic::begin(&ramp.fixture, None);
    ramp.v2.set(100);
    // So patient that it never comes to anything by itself.
    ramp.start(
        &QUICK
            .replace(r#""active_min":20"#, r#""active_min":1000000"#)
            .replace(r#""alpha":0.05"#, r#""alpha":0.000001"#)
            .replace(r#""block_secs":1"#, r#""block_secs":3600"#),
    )
    .await;
    ramp.fixture
        .raw(&["HSET", "sb:gate:{test:job}", "percent", "33", "by", "bob"])
        .await;
    let record = ramp.becomes(Status::Overruled).await;
    assert!(record.reason.contains("bob (redis-cli"), "{}", record.reason);
    assert_eq!(ramp.gate().await.percent.to_string(), "33");
}

// A pause, a pin: others' business. The bake waits while nothing starts.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_the_gate_is_no_objection() {
    let ramp = Ramp::new().await;
    let _traffic = Traffic::begin(&ramp.fixture, None);
    ramp.start(QUICK).await;
    ramp.fixture
        .raw(&["HSET", "sb:gate:{test:job}", "paused", "1", "pins", "vip=v1"])
        .await;
    eventually("the driver has seen it", patience(LONG), async || {
        ramp.record().await.rev == ramp.fixture.gates.show(&ramp.fixture.queue).await.unwrap().rev
            && ramp.gate().await.paused
    })
    .await;
    let before = ramp.record().await;
    eventually("it is looked at", patience(LONG), async || {
        ramp.record().await.serial > before.serial + 1
    })
    .await;
    let after = ramp.record().await;
    assert_eq!(
        (after.status, after.step, after.baked_us),
        (before.status, before.step, before.baked_us)
    );
    ramp.fixture.raw(&["HSET", "sb:gate:{test:job}", "paused", "0"]).await;
    ramp.becomes(Status::Promoted).await;
    assert_eq!(ramp.gate().await.pins.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_of_the_candidate_it_holds() {
    let mut fixture = Fixture::new().await;
    let fails = Fails::default();
    let config = fixture.config();
    fixture.worker(config, |t| t.version("v1", fails.handler())).await;
    let config = fixture.config();
    let stop = fixture.worker(config, |t| t.version("v2", fails.handler())).await;
    begin(&fixture, QUICK).await;
    fixture.stop(&stop).await;
    // Whoever drives now has v1 alone.
    let record = becomes(&fixture, Status::Held).await;
    assert!(record.reason.starts_with("no live worker has v2;"), "{}", record.reason);
    let config = fixture.config();
    fixture.worker(config, |t| t.version("v2", fails.handler())).await;
    becomes(&fixture, Status::Running).await;
}

/// A guard and a person at the same moment: whoever was first, one whole state, and nothing of it twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_promotes_what_the_guard_rolls_back() {
    let ramp = Ramp::new().await;
    let _traffic = Traffic::begin(&ramp.fixture, None);
    ramp.v2.set(100);
    ramp.start(QUICK).await;
    // Again and again, until one of them has had the last word.
    let over = eventually("it is over", patience(LONG), async || {
        let request = ChangeRequest {
            source: "cli".into(),
            by: "alice".into(),
            op: operation_id(),
            fields: vec![("pins", format!("k{}=v1", operation_id()))],
            ..ChangeRequest::default()
        };
        ramp.fixture.gates.change(&ramp.fixture.queue, &request).await.unwrap();
        let record = ramp.record().await;
        if record.status.is_live() {
            Err(format!("{:?}", record.events))
        } else {
            Ok(record)
        }
    })
    .await;
    assert_eq!(over.status, Status::RolledBack, "pins are no objection, however many");
    let history = ramp
        .fixture
        .gates
        .history(&ramp.fixture.queue, None, 1_000)
        .await
        .unwrap();
    assert_eq!(history.iter().filter(|e| e.source == "guard").count(), 1);
    assert_eq!(ramp.gate().await.active.as_str(), "v1");
}

/// Worker processes whose driver can be killed.
pub(crate) struct Pools {
    pub(crate) fixture: Fixture,
    directory: TempDir,
    pub(crate) all: Vec<(Process, Witness)>,
    /// How many there ever were.
    born: usize,
}

impl Pools {
    pub(crate) async fn new(count: usize) -> Self {
        Self::on(Fixture::new().await, count).await
    }

    pub(crate) async fn on(mut fixture: Fixture, count: usize) -> Self {
        fixture.queue = switchback_common::Queue::new("test".parse().unwrap(), "probe".parse().unwrap());
        let mut pools = Self {
            fixture,
            directory: TempDir::new().unwrap(),
            all: Vec::new(),
            born: 0,
        };
        for _ in 0..count {
            pools.add().await;
        }
        pools
    }

    pub(crate) async fn add(&mut self) {
        self.add_at(&self.fixture.server.url()).await;
    }

    pub(crate) async fn add_at(&mut self, url: &str) {
        let file = self.starts(self.born);
        self.born += 1;
        let mut witness = Witness::default();
        witness.watch(&file);
        let file = file.display().to_string();
        let args = [
            "--redis",
            url,
            "--versions",
            "v1,v2",
            "--witness",
            &file,
            "--lease-ms",
            "2000",
            "--backoff-ms",
            "10",
        ];
        let process = Process::start("switchback-test-pool", args, [("RUST_LOG", "info")]);
        process.wait_line("session begun").await;
        self.all.push((process, witness));
    }

    /// The file that the process that was born as the nth writes its starts to.
    fn starts(&self, nth: usize) -> PathBuf {
        self.directory.path().join(format!("starts-{nth}"))
    }

    /// A witness of every process that there ever was.
    pub(crate) fn witness(&self) -> Witness {
        let mut witness = Witness::default();
        (0..self.born).for_each(|nth| witness.watch(&self.starts(nth)));
        witness
    }

    /// The place of the process that drives. One that was killed holds its lease for a while.
    pub(crate) async fn driver(&self) -> usize {
        eventually("one of them drives", patience(LONG), async || self.driver_now().await).await
    }

    /// The same, if one of them does at this moment.
    pub(crate) async fn driver_now(&self) -> Option<usize> {
        let driver = store(&self.fixture).driver().await.unwrap()?;
        self.all.iter().position(|(process, _)| {
            let began = |line: &String| line.contains("session begun") && line.contains(driver.as_str());
            process.lines().iter().any(began)
        })
    }

    /// Kills the process that drives.
    pub(crate) async fn kill_driver(&mut self) {
        let place = self.driver().await;
        let (process, _) = self.all.remove(place);
        process.kill9();
    }

    pub(crate) fn traffic(&self, then: &'static str) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let server = self.fixture.server.url();
        tasks.spawn(async move {
            let client = redis::Client::open(server).unwrap();
            let mut raw = client.get_multiplexed_async_connection().await.unwrap();
            for n in 0u64.. {
                let then = if n * 37 % 100 < 30 { then } else { "" };
                let payload = format!("{{\"n\":{n},\"then\":\"{then}\",\"on\":\"v2\"}}");
                let _: redis::RedisResult<()> = redis::cmd("XADD")
                    .arg("sb:stream:{test:probe}")
                    .arg("*")
                    .arg("payload")
                    .arg(payload)
                    .query_async(&mut raw)
                    .await;
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
        });
        tasks
    }
}

// A process that dies says nothing of the attempts that it takes along: whoever has them next counts them as lost.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_died_with_their_process_are_counted() {
    let mut pools = Pools::new(1).await;
    begin(&pools.fixture, QUICK).await;
    let stream = "sb:stream:{test:probe}";
    for n in 0..20 {
        pools
            .fixture
            .raw(&[
                "XADD",
                stream,
                "*",
                "payload",
                &format!("{{\"n\":{n},\"work_ms\":2000}}"),
            ])
            .await;
    }
    eventually("they run", patience(LONG), async || pools.all[0].1.starts().len() == 20).await;
    let (first, _witness) = pools.all.remove(0);
    first.kill9();
    pools.add().await;
    let record = eventually("all are counted", patience(LONG), async || {
        let record = record(&pools.fixture).await;
        let lost = record.totals.active.lost + record.totals.candidate.lost;
        if lost >= 20 {
            Ok(record)
        } else {
            Err(format!("{:?}", record.totals))
        }
    })
    .await;
    let lost = record.totals.active.lost + record.totals.candidate.lost;
    assert_eq!(lost, 20, "each once");
    let redis::Value::Array(all) = pools.fixture.raw(&["KEYS", "*"]).await else {
        panic!()
    };
    for name in all {
        let name: String = redis::from_redis_value(name).unwrap();
        let kind: String = redis::from_redis_value(pools.fixture.raw(&["TYPE", &name]).await).unwrap();
        let key = Keyspace::default()
            .parse(&name)
            .unwrap_or_else(|| panic!("{name} is not in the catalogue"));
        assert!(kind == "none" || kind == key.key_type().as_str(), "{name}: {kind}");
    }
    let redis::Value::Array(blocks) = pools.fixture.raw(&["KEYS", "sb:block:{test:probe}:*"]).await else {
        panic!()
    };
    assert!(!blocks.is_empty());
    for block in blocks {
        let block: String = redis::from_redis_value(block).unwrap();
        let ttl: i64 = redis::from_redis_value(pools.fixture.raw(&["TTL", &block]).await).unwrap();
        // Block 0 has the names of those that were counted.
        let most = if block.ends_with(":0") { 86_400 } else { 7_200 };
        assert!((1..=most).contains(&ttl), "{block}: {ttl}");
    }
}

// Whoever drives is killed, again and again, at moments that nobody chose; the rollout goes on from where it was.
#[tokio::test(flavor = "multi_thread")]
async fn drivers_are_killed_and_others_go_on() {
    let mut pools = Pools::new(3).await;
    let _traffic = pools.traffic("");
    begin(&pools.fixture, QUICK).await;
    for moment in [700, 2_300] {
        let step = record(&pools.fixture).await.step;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        pools.kill_driver().await;
        pools.add().await;
        let again = record(&pools.fixture).await;
        assert!(
            again.status != Status::RolledBack && again.step >= step,
            "{:?}",
            again.events
        );
    }
    // Killed processes take tasks along: the same of both versions.
    let record = becomes(&pools.fixture, Status::Promoted).await;
    assert_each_step_once(&pools.fixture, &record).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_version_is_rolled_back_although_the_driver_dies() {
    let mut pools = Pools::new(2).await;
    let _traffic = pools.traffic("fail_once");
    begin(&pools.fixture, QUICK).await;
    pools.kill_driver().await;
    let record = becomes(&pools.fixture, Status::RolledBack).await;
    assert!(record.totals.candidate.failed > 0, "{:?}", record.totals);
    let shown = pools.fixture.gates.show(&pools.fixture.queue).await.unwrap();
    assert_eq!(shown.gate, Gate::new("v1".parse().unwrap()));
}
