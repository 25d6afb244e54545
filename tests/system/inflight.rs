//! In-flight policies: what runs on a withdrawn version finishes, is told to end, or has its results refused.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::Value;
use switchback_common::{
    TaskId, Version,
    store::log::{self, Ended},
};
use switchback_producer::{Cancelled, Waited};
use switchback_tests::{RedisServer, eventually, patience};
use switchback_worker::{Breaker, CancellationToken, Context, TaskError, TaskSpec, WorkerConfig};

use crate::fixture::{Fixture, Job};

/// One start: job, version, attempt.
type Start = (u64, String, u32);

/// Handlers that do as they are asked, but on v2 only: everything else is done at once. What waits is released by hand.
#[derive(Clone, Default)]
struct Bench {
    starts: Arc<Mutex<Vec<Start>>>,
    released: CancellationToken,
}

impl Bench {
    async fn handle(self, job: Job, ctx: Context) -> Result<u64, TaskError> {
        let start = (job.n, ctx.version.to_string(), ctx.attempt);
        self.starts.lock().unwrap().push(start);
        if ctx.version.as_str() != "v2" {
            return Ok(1);
        }
        let then = match job.then.strip_prefix("told: ") {
            Some(then) => {
                ctx.cancelled.cancelled().await;
                then
            }
            None => {
                self.released.cancelled().await;
                &job.then
            }
        };
        match then {
            "fail" => Err(TaskError::failed("v2 cannot do this")),
            "reject" => Err(TaskError::reject("v2 will not do this")),
            "snooze" => Err(TaskError::snooze(Duration::from_secs(3600))),
            "panic" => panic!("asked to panic"),
            "deaf" => std::future::pending().await,
            _ => Ok(2),
        }
    }

    fn starts(&self) -> Vec<Start> {
        let mut starts = self.starts.lock().unwrap().clone();
        starts.sort();
        starts
    }

    fn runs(&self) -> usize {
        self.starts.lock().unwrap().len()
    }
}

struct Scene {
    fixture: Fixture,
    bench: Bench,
    ids: BTreeMap<u64, TaskId>,
}

impl Scene {
    /// A worker with both versions, v2 active.
    async fn new(config: impl FnOnce(WorkerConfig) -> WorkerConfig) -> Self {
        Self::with(config, |t| t).await
    }

    async fn with(
        config: impl FnOnce(WorkerConfig) -> WorkerConfig,
        describe: impl FnOnce(TaskSpec<Job>) -> TaskSpec<Job>,
    ) -> Self {
        let mut fixture = Fixture::on(RedisServer::start().await).await;
        let bench = Bench::default();
        let config = config(fixture.config());
        let handler = |bench: &Bench| {
            let bench = bench.clone();
            move |job, ctx| bench.clone().handle(job, ctx)
        };
        let (v1, v2) = (handler(&bench), handler(&bench));
        fixture
            .worker(config, |t| describe(t).version("v1", v1).version("v2", v2))
            .await;
        fixture.set(&[("only", "v2")]).await;
        Self {
            fixture,
            bench,
            ids: BTreeMap::new(),
        }
    }

    /// Enqueues one job for each of `thens`, numbered from 0, and waits until all run.
    async fn run(&mut self, thens: &[&str]) {
        for (n, then) in (0..).zip(thens) {
            let job = Job {
                n,
                then: (*then).to_owned(),
            };
            let kept = self.fixture.producer.enqueue(&job).keep_result(Duration::from_secs(60));
            self.ids.insert(n, kept.await.unwrap());
        }
        eventually("all run on v2", patience(Duration::from_secs(10)), async || {
            self.bench.runs() == thens.len()
        })
        .await;
    }

    /// As the cheat sheet has it.
    async fn hset(&self, edit: &str) {
        let args: Vec<&str> = ["HSET", "sb:gate:{test:job}"]
            .into_iter()
            .chain(edit.split(' '))
            .collect();
        self.fixture.raw(&args).await;
    }

    /// How each attempt ended, by the log: job, attempt, how.
    async fn ended(&self) -> Vec<(u64, u32, Ended)> {
        let entries = log::read(&self.fixture.store, &self.fixture.queue, None, 100_000)
            .await
            .unwrap();
        let number = |id: &TaskId| *self.ids.iter().find(|(_, known)| *known == id).unwrap().0;
        let rows = entries.iter().flat_map(|e| &e.attempts).flat_map(|g| &g.tasks);
        let mut out: Vec<_> = rows.map(|row| (number(&row.0), row.2, row.3)).collect();
        out.sort_by_key(|(n, attempt, ended)| (*n, *attempt, *ended == Ended::Done));
        out
    }

    async fn result(&self, n: u64) -> Waited<u64> {
        let id = &self.ids[&n];
        let waited = self.fixture.producer.wait("job", id, Duration::from_secs(10));
        waited.await.unwrap()
    }

    async fn count(&self, what: &str) -> u64 {
        let mut sum = 0;
        let Value::Array(keys) = self.fixture.raw(&["KEYS", "sb:stats:{test:job}:*"]).await else {
            panic!("no list")
        };
        for key in keys {
            let key: String = redis::from_redis_value(key).unwrap();
            if let Value::BulkString(n) = self.fixture.raw(&["HGET", &key, what]).await {
                sum += String::from_utf8(n).unwrap().parse::<u64>().unwrap();
            }
        }
        sum
    }
}

fn start(n: u64, version: &str, attempt: u32) -> Start {
    (n, version.to_owned(), attempt)
}

// P6: whoever was told to end and did not succeed runs again, on the version that the gate says now, as if nothing had been.
#[tokio::test(flavor = "multi_thread")]
async fn cancel_tells_handlers_to_end_and_what_succeeds_all_the_same_counts() {
    // Long enough for whoever listens, however busy the machine is.
    let mut scene = Scene::new(|c| c.grace(Duration::from_secs(3))).await;
    let thens = [
        "told: fail",
        "told: ok",
        "deaf",
        "told: reject",
        "told: snooze",
        "told: panic",
    ];
    scene.run(&thens).await;
    // Waits for its release, which comes only after it was told: it has its grace.
    scene.hset("only v1 inflight cancel").await;
    scene.bench.released.cancel();
    scene.fixture.drained().await;
    use Ended::{Done, Released};
    let again = [0, 2, 3, 4, 5].map(|n| [(n, 1, Released), (n, 1, Done)]);
    let mut expected: Vec<_> = again.into_iter().flatten().collect();
    expected.insert(2, (1, 1, Done));
    assert_eq!(scene.ended().await, expected);
    let mut starts: Vec<Start> = (0..6).map(|n| start(n, "v2", 1)).collect();
    starts.extend([0, 2, 3, 4, 5].map(|n| start(n, "v1", 1)));
    starts.sort();
    assert_eq!(scene.bench.starts(), starts);
    assert_eq!(scene.result(1).await, Waited::Done(2), "it was in time");
    assert_eq!(scene.result(0).await, Waited::Done(1));
    let depth = scene.fixture.depth().await;
    assert_eq!((depth.dead, depth.delayed), (0, 0));
    assert_eq!((scene.count("v2:released").await, scene.count("v2:done").await), (5, 1));
}

// Whatever the handler makes of it: done, retry, dead, reject, snooze.
#[tokio::test(flavor = "multi_thread")]
async fn revoke_refuses_every_result_and_the_task_runs_again() {
    // Without pushes the worker learns of it from settling, or a moment before: the results come at once.
    for pushes in [true, false] {
        let mut scene = Scene::new(|c| c.pushes(pushes)).await;
        scene.run(&["ok", "fail", "reject", "snooze", "panic"]).await;
        scene.hset("only v1 inflight revoke by alice why INC-42").await;
        if !pushes {
            let gate = switchback_common::store::gate::GateStore::new(&scene.fixture.store, &scene.fixture.queue);
            gate.seal().await.unwrap();
        } else {
            eventually("it is sealed", patience(Duration::from_secs(10)), async || {
                scene.fixture.gates.show(&scene.fixture.queue).await.unwrap().rev == 3
            })
            .await;
        }
        scene.bench.released.cancel();
        scene.fixture.drained().await;
        use Ended::{Done, Revoked};
        let expected = [0, 1, 2, 3, 4].map(|n| [(n, 1, Revoked), (n, 1, Done)]).concat();
        assert_eq!(scene.ended().await, expected, "pushes: {pushes}");
        for n in 0..5 {
            assert_eq!(scene.result(n).await, Waited::Done(1), "of v2 nothing is kept");
        }
        let depth = scene.fixture.depth().await;
        assert_eq!((depth.dead, depth.delayed), (0, 0));
        assert_eq!((scene.count("v2:revoked").await, scene.count("v2:done").await), (5, 0));
        assert_eq!(scene.count("v1:done").await, 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finish_is_the_default_and_can_be_tightened_later() {
    let mut scene = Scene::new(|c| c).await;
    scene.run(&["told: ok", "told: fail"]).await;
    scene.fixture.set(&[("only", "v1")]).await;
    scene.fixture.set(&[("paused", "1")]).await;
    let entries = scene.ended().await;
    assert_eq!(entries, [], "a flip without a policy, and a pause, tell nobody");
    scene.fixture.set(&[("paused", "0"), ("inflight", "revoke")]).await;
    scene.fixture.drained().await;
    use Ended::{Done, Revoked};
    let expected = [(0, 1, Revoked), (0, 1, Done), (1, 1, Revoked), (1, 1, Done)];
    assert_eq!(scene.ended().await, expected);
}

// A version that comes back counts: only what was decided before the flip is stopped.
#[tokio::test(flavor = "multi_thread")]
async fn what_starts_after_a_version_has_come_back_is_not_stopped() {
    let mut scene = Scene::new(|c| c).await;
    scene.fixture.set(&[("only", "v1"), ("inflight", "revoke")]).await;
    scene.fixture.set(&[("only", "v2")]).await;
    scene.run(&["ok"]).await;
    scene.bench.released.cancel();
    scene.fixture.drained().await;
    assert_eq!(scene.ended().await, [(0, 1, Ended::Done)]);
    assert_eq!(scene.result(0).await, Waited::Done(2));
}

// A person's word about one task goes before that about its version: it is not run again.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_whose_attempt_is_revoked_does_not_run_again() {
    let mut scene = Scene::new(|c| c).await;
    scene.run(&["ok", "told: fail", "ok"]).await;
    scene.fixture.set(&[("only", "v1"), ("inflight", "finish")]).await;
    let cancel = async |n: u64| scene.fixture.producer.cancel("job", &scene.ids[&n]).await.unwrap();
    // One that succeeds all the same, which is refused; and one that obeys.
    assert_eq!(cancel(0).await, Cancelled::Running);
    assert_eq!(cancel(1).await, Cancelled::Running);
    scene.fixture.set(&[("inflight", "revoke")]).await;
    scene.bench.released.cancel();
    scene.fixture.drained().await;
    assert_eq!(scene.result(0).await, Waited::Cancelled);
    assert_eq!(scene.result(1).await, Waited::Cancelled);
    assert_eq!(scene.result(2).await, Waited::Done(1));
    let again: Vec<u64> = scene
        .bench
        .starts()
        .iter()
        .filter(|s| s.1 == "v1")
        .map(|s| s.0)
        .collect();
    assert_eq!(again, [2]);
}

// A revoked attempt is nobody's failure: the circuit stays closed, and its task may start there at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_flip_stopped_opens_no_circuit() {
    let breaker = Breaker::new(0.1, 2, Duration::from_secs(60), Duration::from_secs(60));
    let mut scene = Scene::with(|c| c, |t| t.breaker(breaker)).await;
    scene.run(&["told: fail"; 8]).await;
    scene.fixture.set(&[("only", "v1"), ("inflight", "revoke")]).await;
    scene.fixture.drained().await;
    let sessions = switchback_common::store::session::SessionStore::new(&scene.fixture.store, &scene.fixture.queue);
    assert!(sessions.list().await.unwrap()[0].open.is_empty());
    assert_eq!(scene.count("v2:revoked").await, 8);
}

// P7: a suspect whose attempt did not count is as suspect as before, and goes back to where it is read a few at a time.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_whose_result_is_revoked_stays_one() {
    let mut scene = Scene::new(|c| c).await;
    let suspect = [
        "XADD",
        "sb:suspect:{test:job}",
        "*",
        "payload",
        r#"{"n":7,"then":"ok"}"#,
    ];
    let fields = ["id", "s7", "deaths", "2", "enqueued_at", "1"];
    scene.ids.insert(7, "s7".parse().unwrap());
    scene
        .fixture
        .raw(&[suspect.as_slice(), fields.as_slice()].concat())
        .await;
    eventually("it runs alone on v2", patience(Duration::from_secs(10)), async || {
        scene.bench.runs() == 1
    })
    .await;
    scene.fixture.set(&[("only", "v1"), ("inflight", "revoke")]).await;
    scene.bench.released.cancel();
    scene.fixture.drained().await;
    let entries = log::read(&scene.fixture.store, &scene.fixture.queue, None, 1_000)
        .await
        .unwrap();
    let groups = entries.iter().flat_map(|e| &e.attempts);
    let ways: Vec<_> = groups
        .map(|g| (g.stream.as_str(), g.version.as_str(), g.tasks[0].3))
        .collect();
    assert_eq!(
        ways,
        [("suspect", "v2", Ended::Revoked), ("suspect", "v1", Ended::Done)]
    );
}

// Drained: what ran on the withdrawn version is settled, too. Its worker says so at once; without that word it would take
// until the next look.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_when_the_last_attempt_is_settled() {
    let mut scene = Scene::new(|c| c.pushes(false)).await;
    scene.run(&["ok", "fail", "ok"]).await;
    let rev = scene.fixture.set(&[("only", "v1")]).await;
    let (gates, queue) = (&scene.fixture.gates, &scene.fixture.queue);
    let goes_on = |version: &Version| version.as_str() == "v1";
    let mut told = Vec::new();
    let none = gates.drain(queue, rev, goes_on, Duration::ZERO, |left| {
        told.extend(left.iter().map(|l| (l.version.to_string(), l.attempts)));
    });
    assert!(!none.await.unwrap().still.is_empty());
    assert_eq!(told, [("v2".to_owned(), Some(3))]);
    scene.bench.released.cancel();
    let drained = gates.drain(queue, rev, goes_on, patience(Duration::from_secs(20)), |_| {});
    assert_eq!(drained.await.unwrap().still, []);
    let mut on_v2 = scene.ended().await;
    on_v2.retain(|(_, attempt, _)| *attempt == 1);
    assert_eq!(
        on_v2,
        [(0, 1, Ended::Done), (1, 1, Ended::Retried), (2, 1, Ended::Done)]
    );
}

// P10: the rollback of the documentation for a Redis at maxmemory, with its policy.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_still_cancels_and_revokes() {
    let mut scene = Scene::new(|c| c).await;
    scene.run(&["ok", "told: fail"]).await;
    scene.fixture.raw(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    let script = "#!lua flags=allow-oom\nreturn redis.call('HSET', KEYS[1], 'only', 'v1', 'inflight', 'revoke')";
    scene.fixture.raw(&["EVAL", script, "1", "sb:gate:{test:job}"]).await;
    eventually("one is told", patience(Duration::from_secs(10)), async || {
        scene.bench.runs() == 3
    })
    .await;
    scene.bench.released.cancel();
    scene.fixture.drained().await;
    use Ended::{Done, Revoked};
    let expected = [(0, 1, Revoked), (0, 1, Done), (1, 1, Revoked), (1, 1, Done)];
    assert_eq!(scene.ended().await, expected);
}
