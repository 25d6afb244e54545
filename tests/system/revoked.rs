//! Revoking beside everything else that one may ask of a task: a unique key, a result, a retry, a limit, a person's word. What
//! was revoked never was, and whatever was promised about the task is kept by the attempt that counts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::Value;
use switchback_common::{
    ConnectOptions, TaskId,
    clock::Moment,
    envelope::AttemptError,
    store::{
        gate::GateStore,
        inspect,
        log::{self, Ended},
        reply::field_text,
    },
};
use switchback_producer::{Cancelled, EnqueueError, IfTaken, Progress, Waited};
use switchback_tests::{Link, Mode, eventually, patience};
use switchback_worker::{CancellationToken, Context, TaskError, TaskSpec, WorkerConfig};

use crate::fixture::{Fixture, Job, dead_letters};

const HOUR: Duration = Duration::from_secs(3_600);
const LONG: Duration = Duration::from_secs(30);
const LIMITS: &str = "sb:limits:{test:job}";

/// One start: which job, its version, its attempt, how often it was put off, and when.
#[derive(Debug, Clone)]
struct Start {
    n: u64,
    version: String,
    attempt: u32,
    snoozes: u32,
    at: Moment,
}

/// Handlers that follow the job's script: at its nth start they do its nth word, at every later one the last. `a:fail` waits
/// until the test opens `a`, and fails; `told:fail` waits until it is told to end.
#[derive(Clone, Default)]
struct Bench {
    starts: Arc<Mutex<Vec<Start>>>,
    doors: Arc<Mutex<HashMap<String, CancellationToken>>>,
    now: Arc<Mutex<(usize, usize)>>,
}

/// Counts what runs at once, also when it is dropped.
struct Inside(Arc<Mutex<(usize, usize)>>);

impl Inside {
    fn enter(now: &Arc<Mutex<(usize, usize)>>) -> Self {
        let mut inside = now.lock().unwrap();
        inside.0 += 1;
        inside.1 = inside.1.max(inside.0);
        Self(Arc::clone(now))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.lock().unwrap().0 -= 1;
    }
}

impl Bench {
    fn door(&self, name: &str) -> CancellationToken {
        self.doors.lock().unwrap().entry(name.to_owned()).or_default().clone()
    }

    fn open(&self, name: &str) {
        self.door(name).cancel();
    }

    async fn handle(self, job: Job, ctx: Context) -> Result<u64, TaskError> {
        let _inside = Inside::enter(&self.now);
        let nth = {
            let mut starts = self.starts.lock().unwrap();
            starts.push(Start {
                n: job.n,
                version: ctx.version.to_string(),
                attempt: ctx.attempt,
                snoozes: ctx.snoozes,
                at: ctx.started,
            });
            starts.iter().filter(|start| start.n == job.n).count() - 1
        };
        let words: Vec<&str> = job.then.split(' ').collect();
        let word = words.get(nth).or(words.last()).copied().unwrap_or_default();
        let then = match word.split_once(':') {
            Some(("told", then)) => {
                ctx.cancelled.cancelled().await;
                then
            }
            Some((door, then)) => {
                if then == "progress" {
                    ctx.progress(7, 9, "on its way");
                }
                self.door(door).cancelled().await;
                then
            }
            None => word,
        };
        match then {
            "fail" => Err(TaskError::failed(format!("failed on {}", ctx.version))),
            "reject" => Err(TaskError::reject("will not do this")),
            "snooze" => Err(TaskError::snooze(Duration::from_millis(100))),
            _ => Ok(ctx.version.as_str()[1..].parse().unwrap()),
        }
    }

    /// How a job was started, in order: version and attempt.
    fn of(&self, n: u64) -> Vec<(String, u32)> {
        let starts = self.starts.lock().unwrap();
        let of = starts.iter().filter(|start| start.n == n);
        of.map(|start| (start.version.clone(), start.attempt)).collect()
    }

    fn runs(&self) -> usize {
        self.starts.lock().unwrap().len()
    }

    async fn started(&self, count: usize) {
        eventually(&format!("{count} have started"), patience(LONG), async || {
            match self.runs() {
                n if n == count => Ok(()),
                n => Err(format!("{n}")),
            }
        })
        .await;
    }
}

struct Scene {
    fixture: Fixture,
    bench: Bench,
}

impl Scene {
    /// A worker with both versions, v2 active.
    async fn new() -> Self {
        Self::with(|config| config, |t| t).await
    }

    async fn with(
        config: impl FnOnce(WorkerConfig) -> WorkerConfig,
        describe: impl FnOnce(TaskSpec<Job>) -> TaskSpec<Job>,
    ) -> Self {
        let mut scene = Self {
            fixture: Fixture::new().await,
            bench: Bench::default(),
        };
        let config = config(scene.fixture.config());
        scene.worker(config, describe).await;
        scene.fixture.set(&[("only", "v2")]).await;
        scene
    }

    async fn worker(&mut self, config: WorkerConfig, describe: impl FnOnce(TaskSpec<Job>) -> TaskSpec<Job>) {
        let handler = |bench: &Bench| {
            let bench = bench.clone();
            move |job, ctx| bench.clone().handle(job, ctx)
        };
        let (v1, v2) = (handler(&self.bench), handler(&self.bench));
        self.fixture
            .worker(config, |t| describe(t).version("v1", v1).version("v2", v2))
            .await;
    }

    async fn enqueue(&self, n: u64, then: &str) -> TaskId {
        let enqueue = self.fixture.producer.enqueue(&job(n, then)).keep_result(HOUR).await;
        enqueue.unwrap()
    }

    /// A flip that every worker knows of.
    async fn revoke(&self, to: &str) -> u64 {
        self.fixture.set(&[("only", to), ("inflight", "revoke")]).await
    }

    /// A flip to v1 that is in force, whoever has heard of it.
    async fn flip(&self, inflight: &str) {
        self.fixture
            .raw(&["HSET", "sb:gate:{test:job}", "only", "v1", "inflight", inflight])
            .await;
        let gate = GateStore::new(&self.fixture.store, &self.fixture.queue);
        gate.seal().await.unwrap();
    }

    async fn wait(&self, id: &TaskId) -> Waited<u64> {
        self.fixture.producer.wait("job", id, patience(LONG)).await.unwrap()
    }

    /// How the attempts of a task ended, by the log.
    async fn ended(&self, id: &TaskId) -> Vec<(u32, Ended)> {
        let all = self.all_ended().await;
        let of = all.into_iter().filter(|(task, ..)| task == id);
        of.map(|(_, attempt, ended)| (attempt, ended)).collect()
    }

    async fn all_ended(&self) -> Vec<(TaskId, u32, Ended)> {
        let entries = log::read(&self.fixture.store, &self.fixture.queue, None, 100_000)
            .await
            .unwrap();
        let rows = entries.iter().flat_map(|e| &e.attempts).flat_map(|g| &g.tasks);
        rows.map(|row| (row.0.clone(), row.2, row.3)).collect()
    }

    /// A counter, over all minutes.
    async fn count(&self, what: &str) -> u64 {
        let keys = self.fixture.raw(&["KEYS", "sb:stats:{test:job}:*"]).await;
        let mut sum = 0;
        for key in redis::from_redis_value::<Vec<String>>(keys).unwrap() {
            let n = self.fixture.raw(&["HGET", &key, what]).await;
            sum += redis::from_redis_value::<Option<u64>>(n).unwrap().unwrap_or(0);
        }
        sum
    }
}

fn job(n: u64, then: &str) -> Job {
    Job {
        n,
        then: then.to_owned(),
    }
}

fn ran(runs: &[(&str, u32)]) -> Vec<(String, u32)> {
    runs.iter()
        .map(|(version, attempt)| ((*version).to_owned(), *attempt))
        .collect()
}

// P2: the key is held for as long as was said, from the enqueue on; that the task runs again is nobody's second task.
#[tokio::test(flavor = "multi_thread")]
async fn a_unique_key_stays_with_its_task_through_every_revoke() {
    let scene = Scene::new().await;
    let producer = &scene.fixture.producer;
    let unique = |n: u64, then: &str| {
        let job = job(n, then);
        let producer = producer.clone();
        async move { producer.enqueue(&job).unique("order-42", HOUR).keep_result(HOUR).await }
    };
    let first = unique(1, "told:ok told:ok ok").await.unwrap();
    let key = "sb:unique:{test:job}:key:order-42";
    let held = async || redis::from_redis_value::<i64>(scene.fixture.raw(&["PTTL", key]).await).unwrap();
    let mut before = held().await;
    for (runs, to) in [(1, "v1"), (2, "v2")] {
        scene.bench.started(runs).await;
        scene.revoke(to).await;
        scene.bench.started(runs + 1).await;
        match unique(2, "ok").await.unwrap_err() {
            EnqueueError::Taken { by, .. } => assert_eq!(by, first),
            other => panic!("{other}"),
        }
        let now = held().await;
        assert!(
            now > 0 && now <= before,
            "neither given up nor held for longer: {before} {now}"
        );
        before = now;
    }
    assert_eq!(scene.wait(&first).await, Waited::Done(2));
    scene.fixture.drained().await;
    let existing = producer
        .enqueue(&job(3, "ok"))
        .unique("order-42", HOUR)
        .if_taken(IfTaken::Existing);
    assert_eq!(existing.await.unwrap(), first, "held after its end, too, as ever");
    assert_eq!(scene.bench.runs(), 3);
    use Ended::{Done, Revoked};
    assert_eq!(scene.ended(&first).await, [(1, Revoked), (1, Revoked), (1, Done)]);
}

// The latest wins over one whose start was revoked as over one that never started; and an id is repeated to no effect.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_task_may_be_replaced_and_its_id_repeated() {
    let scene = Scene::new().await;
    let producer = &scene.fixture.producer;
    let replace = |n: u64, then: &str| {
        let job = job(n, then);
        let producer = producer.clone();
        async move {
            let enqueue = producer.enqueue(&job).unique("cart-1", HOUR).if_taken(IfTaken::Replace);
            enqueue.keep_result(HOUR).await.unwrap()
        }
    };
    let first = replace(1, "told:ok ok").await;
    let named = || producer.enqueue(&job(3, "told:ok ok")).id("named");
    named().await.unwrap();
    scene.bench.started(2).await;
    // Paused, so that both wait for their second start.
    scene
        .fixture
        .set(&[("paused", "1"), ("active", "v1"), ("inflight", "revoke")])
        .await;
    eventually("both are back in line", patience(LONG), async || {
        scene.fixture.depth().await.in_flight() == 0
    })
    .await;
    let second = replace(2, "ok").await;
    assert_eq!(named().await.unwrap().to_string(), "named");
    scene.fixture.set(&[("paused", "0")]).await;
    scene.fixture.drained().await;
    assert_eq!(scene.wait(&first).await, Waited::Cancelled);
    assert_eq!(scene.wait(&second).await, Waited::Done(1));
    assert_eq!(scene.bench.of(1), ran(&[("v2", 1)]));
    assert_eq!(scene.bench.of(3), ran(&[("v2", 1), ("v1", 1)]));
}

// P6: what was revoked neither counts as a failure nor buries, on whichever attempt; what fails after it counts as ever.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_failures_burn_no_attempt_and_bury_nothing() {
    // The fixture's tasks have three attempts.
    let scene = Scene::new().await;
    let last = scene.enqueue(1, "fail fail told:fail told:reject ok").await;
    scene.bench.started(3).await;
    scene.revoke("v1").await;
    scene.bench.started(4).await;
    scene.revoke("v2").await;
    assert_eq!(scene.wait(&last).await, Waited::Done(2));
    let runs = [("v2", 1), ("v2", 2), ("v2", 3), ("v1", 3), ("v2", 3)];
    assert_eq!(scene.bench.of(1), ran(&runs));
    use Ended::{Done, Retried, Revoked};
    let ended = [(1, Retried), (2, Retried), (3, Revoked), (3, Revoked), (3, Done)];
    assert_eq!(scene.ended(&last).await, ended);
    // One that does fail three times, with a revoked one in between: its letter tells of those three.
    let dead = scene.enqueue(2, "fail told:fail fail").await;
    scene.bench.started(7).await;
    scene.revoke("v1").await;
    assert_eq!(scene.wait(&dead).await, Waited::Dead("failed on v1".to_owned()));
    assert_eq!(scene.bench.of(2), ran(&[("v2", 1), ("v2", 2), ("v1", 2), ("v1", 3)]));
    let letters = dead_letters(&scene.fixture.store, &scene.fixture.queue).await;
    assert_eq!(letters.len(), 1);
    let text = |name: &str| field_text(letters[0].fields.as_ref().unwrap(), name);
    let errors: Vec<AttemptError> = serde_json::from_str(&text("errors")).unwrap();
    let errors: Vec<_> = errors.iter().map(|e| (e.attempt, e.version.as_str())).collect();
    assert_eq!(errors, [(1, "v2"), (2, "v1"), (3, "v1")]);
    assert_eq!(
        (text("attempt"), text("dead_version")),
        ("3".to_owned(), "v1".to_owned())
    );
}

// A snooze that was settled before the flip stands; one that comes after it never was.
#[tokio::test(flavor = "multi_thread")]
async fn a_snooze_counts_if_it_came_before_the_flip() {
    let scene = Scene::with(|config| config.pushes(false), |t| t).await;
    let early = scene.enqueue(1, "a:snooze ok").await;
    let late = scene.enqueue(2, "b:snooze ok").await;
    scene.bench.started(2).await;
    scene.bench.open("a");
    eventually("one is put off", patience(LONG), async || {
        scene.ended(&early).await == [(1, Ended::Snoozed)]
    })
    .await;
    scene.flip("revoke").await;
    scene.bench.open("b");
    assert_eq!(scene.wait(&early).await, Waited::Done(1));
    assert_eq!(scene.wait(&late).await, Waited::Done(1));
    let starts = scene.bench.starts.lock().unwrap().clone();
    let snoozes = |n: u64| -> Vec<u32> { starts.iter().filter(|s| s.n == n).map(|s| s.snoozes).collect() };
    assert_eq!((snoozes(1), snoozes(2)), (vec![0, 1], vec![0, 0]));
    assert_eq!(scene.ended(&late).await, [(1, Ended::Revoked), (1, Ended::Done)]);
}

// Whoever waits hears nothing of a revoked result, whether it waited before; nor does a deadline start anew.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_gets_the_result_that_counts() {
    let scene = Scene::with(|config| config.pushes(false), |t| t).await;
    let told = scene.enqueue(1, "a:progress b:ok").await;
    let enqueue = scene.fixture.producer.enqueue(&job(2, "a:ok ok")).keep_result(HOUR);
    let expires = enqueue.expires_in(Duration::from_millis(1_500)).await.unwrap();
    scene.bench.started(2).await;
    let waits = scene.wait(&told);
    let flip = async {
        eventually("it says how far it is", patience(LONG), async || {
            let waited = scene
                .fixture
                .producer
                .wait::<u64>("job", &told, Duration::from_millis(1))
                .await;
            matches!(waited.unwrap(), Waited::TimedOut(Some(Progress { done: 7, .. })))
        })
        .await;
        let enqueued = inspect::time_us(&scene.fixture.store).await.unwrap();
        scene.flip("revoke").await;
        eventually("the deadline has passed", patience(LONG), async || {
            inspect::time_us(&scene.fixture.store).await.unwrap() > enqueued + 1_600_000
        })
        .await;
        scene.bench.open("a");
        scene.bench.started(3).await;
        let kept = scene
            .fixture
            .raw(&["GET", &format!("sb:result:{{test:job}}:{told}")])
            .await;
        let kept: String = redis::from_redis_value(kept).unwrap_or_default();
        assert!(!kept.contains("\"done\",") && !kept.contains("\"result\""), "{kept}");
        scene.bench.open("b");
    };
    let (waited, ()) = tokio::join!(waits, flip);
    assert_eq!(waited, Waited::Done(1));
    assert_eq!(scene.wait(&expires).await, Waited::Expired, "it may not start again");
    assert_eq!(scene.bench.of(2), ran(&[("v2", 1)]));
}

// A person's cancellation counts at every stage: while the attempt runs that is revoked, between it and the next, and then.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_cancels_what_is_revoked_at_any_stage() {
    let scene = Scene::new().await;
    let (producer, bench) = (&scene.fixture.producer, &scene.bench);
    let cancel = async |id: &TaskId| producer.cancel("job", id).await.unwrap();
    let between = scene.enqueue(1, "told:ok ok").await;
    let then = scene.enqueue(2, "told:ok told:fail").await;
    let unstarted = scene.enqueue(3, "told:ok a:ok").await;
    bench.started(3).await;
    let word = producer.cancel_unstarted("job", &unstarted).await.unwrap();
    assert_eq!(word, Cancelled::Started);
    scene
        .fixture
        .set(&[("paused", "1"), ("active", "v1"), ("inflight", "revoke")])
        .await;
    eventually("all are back in line", patience(LONG), async || {
        scene.fixture.depth().await.in_flight() == 0
    })
    .await;
    cancel(&between).await;
    scene.fixture.set(&[("paused", "0")]).await;
    bench.started(5).await;
    cancel(&then).await;
    bench.open("a");
    scene.fixture.drained().await;
    assert_eq!(scene.wait(&between).await, Waited::Cancelled);
    assert_eq!(scene.wait(&then).await, Waited::Cancelled);
    assert_eq!(
        scene.wait(&unstarted).await,
        Waited::Done(1),
        "it had started when it was asked"
    );
    assert_eq!((bench.of(1).len(), bench.of(2).len(), bench.of(3).len()), (1, 2, 2));
    assert_eq!(
        scene.fixture.raw(&["EXISTS", "sb:cancel:{test:job}"]).await,
        Value::Int(0),
        "no mark is left"
    );
}

/// What each session has of the limit, as `grant.lua` booked it.
async fn grants(scene: &Scene) -> Vec<String> {
    let value = scene.fixture.raw(&["HGETALL", "sb:sessions:{test:job}"]).await;
    let fields: BTreeMap<String, String> = redis::from_redis_value(value).unwrap();
    let of = |(name, value): (String, String)| name.ends_with(":grant").then_some(value);
    fields.into_iter().filter_map(of).collect()
}

// P10: a revoked attempt gives its place back once: never more at once than the limit, and in the end all of it can be used.
#[tokio::test(flavor = "multi_thread")]
async fn places_of_a_limit_are_given_back_once() {
    let mut scene = Scene {
        fixture: Fixture::new().await,
        bench: Bench::default(),
    };
    // Before anybody runs without one.
    scene.fixture.raw(&["HSET", LIMITS, "concurrency", "3"]).await;
    for _ in 0..2 {
        let config = scene.fixture.config();
        scene.worker(config, |t| t.concurrency(4)).await;
    }
    scene.fixture.set(&[("only", "v2")]).await;
    for n in 0..12 {
        scene.enqueue(n, "told:ok told:fail told:ok told:reject ok").await;
    }
    let mut before = 0;
    for to in ["v1", "v2", "v1", "v2"] {
        eventually("three run", patience(LONG), async || {
            let (runs, now) = (scene.bench.runs(), *scene.bench.now.lock().unwrap());
            if runs >= before + 3 && now.0 == 3 {
                Ok(())
            } else {
                Err(format!("{to}: {runs} {now:?} {before} {:?}", grants(&scene).await))
            }
        })
        .await;
        before = scene.bench.runs();
        scene.revoke(to).await;
    }
    // Until each has come to the word that ends it.
    let over = CancellationToken::new();
    let flips = async {
        let mut to = ["v1", "v2"].into_iter().cycle();
        while !over.is_cancelled() {
            scene.revoke(to.next().unwrap()).await;
        }
    };
    let drained = async {
        scene.fixture.drained().await;
        over.cancel();
    };
    tokio::join!(flips, drained);
    assert_eq!(
        scene.bench.now.lock().unwrap().clone(),
        (0, 3),
        "what runs now, and the most that ever did"
    );
    for n in 100..104 {
        scene.enqueue(n, "a:ok").await;
    }
    eventually("all places are used", patience(LONG), async || {
        scene.bench.now.lock().unwrap().0 == 3
    })
    .await;
    scene.bench.open("a");
    scene.fixture.drained().await;
    assert_eq!(scene.bench.now.lock().unwrap().1, 3);
    let done = scene
        .all_ended()
        .await
        .into_iter()
        .filter(|row| row.2 == Ended::Done)
        .count();
    assert_eq!(done, 16);
}

// What was given a time by its key's rate has used it with its first start: the one that counts has a time of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_rate_of_a_key_counts_revoked_starts() {
    // With pushes the handler is told; without them its result is refused when it is settled.
    for (policy, pushes) in [("cancel", true), ("revoke", true), ("revoke", false)] {
        let scene = Scene::with(|config| config.pushes(pushes), |t| t).await;
        scene.fixture.raw(&["HSET", LIMITS, "rate_per_key", "1/s+1"]).await;
        eventually("the rate is in force", patience(LONG), async || {
            let before = scene.bench.runs();
            for n in [90, 91] {
                scene.fixture.producer.enqueue(&job(n, "ok")).key("warm").await.unwrap();
            }
            scene.bench.started(before + 2).await;
            let starts = scene.bench.starts.lock().unwrap();
            starts[before + 1].at.since(starts[before].at) > Duration::from_millis(400)
        })
        .await;
        let before = scene.bench.runs();
        scene.fixture.producer.enqueue(&job(1, "ok")).key("k").await.unwrap();
        scene
            .fixture
            .producer
            .enqueue(&job(2, if pushes { "told:fail ok" } else { "a:fail ok" }))
            .key("k")
            .await
            .unwrap();
        scene.bench.started(before + 2).await;
        scene.flip(policy).await;
        if !pushes {
            scene.bench.open("a");
        }
        scene.bench.started(before + 3).await;
        let starts = scene.bench.starts.lock().unwrap()[before..].to_vec();
        for pair in starts.windows(2) {
            // A second apart, but for the way from the clock of Redis to the start: it was 35 ms.
            let apart = pair[1].at.since(pair[0].at);
            assert!(apart > Duration::from_millis(400), "{policy}: {apart:?} {starts:#?}");
        }
        assert_eq!(starts[2].version, "v1");
    }
}

// A batch in which some results are revoked and others count: each has its own end, once, however many calls it takes.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_mixed_batch_each_result_has_its_own_end() {
    let scene = Scene::with(|config| config.pushes(false), |t| t.concurrency(400)).await;
    scene
        .fixture
        .set(&[("active", "v1"), ("candidate", "v2"), ("percent", "50")])
        .await;
    let words = ["a:ok ok", "a:fail ok", "a:reject ok", "a:snooze ok"];
    let mut ids = Vec::new();
    for n in 0..300_u64 {
        // Some so large that what goes back weighs more than one call may move (P10).
        let pad = if n % 10 == 0 {
            "x".repeat(200_000)
        } else {
            String::new()
        };
        let word = words[usize::try_from(n % 4).unwrap()];
        let job = job(n, &format!("{word}{}{pad}", if pad.is_empty() { "" } else { " ok:" }));
        ids.push(scene.fixture.producer.enqueue(&job).keep_result(HOUR).await.unwrap());
    }
    scene.bench.started(300).await;
    let first = scene.bench.starts.lock().unwrap().clone();
    scene.flip("revoke").await;
    scene.bench.open("a");
    scene.bench.open("ok");
    scene.fixture.drained().await;
    let mut rows: HashMap<TaskId, Vec<(u32, Ended)>> = HashMap::new();
    for (id, attempt, ended) in scene.all_ended().await {
        rows.entry(id).or_default().push((attempt, ended));
    }
    use Ended::{Dead, Done, Retried, Revoked, Snoozed};
    let mut revoked = 0;
    for start in &first {
        let n = usize::try_from(start.n).unwrap();
        let expected: &[(u32, Ended)] = match (start.version.as_str(), n % 4) {
            ("v2", _) => &[(1, Revoked), (1, Done)],
            (_, 0) => &[(1, Done)],
            (_, 1) => &[(1, Retried), (2, Done)],
            (_, 2) => &[(1, Dead)],
            _ => &[(1, Snoozed), (1, Done)],
        };
        revoked += u64::from(start.version == "v2");
        assert_eq!(rows[&ids[n]], expected, "{start:?}");
    }
    assert!((50..250).contains(&revoked), "{revoked}");
    // Counted once each, although the batch was refused as a whole before.
    assert_eq!(
        (scene.count("v2:revoked").await, scene.count("v2:done").await),
        (revoked, 0)
    );
    let done = rows.values().flatten().filter(|row| row.1 == Done).count();
    assert_eq!(scene.count("v1:done").await, done as u64);
}

// Attempts of three reigns in one batch: v2's first and v1's are revoked, v2's second counts.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_of_several_reigns_settle_together() {
    let scene = Scene::with(|config| config.pushes(false), |t| t).await;
    let mut ids = Vec::new();
    for (n, to) in [(0, "v1"), (1, "v2"), (2, "")] {
        ids.push(scene.enqueue(n, "a:ok ok").await);
        scene.bench.started(ids.len()).await;
        if !to.is_empty() {
            scene.revoke(to).await;
        }
    }
    scene.bench.open("a");
    for id in &ids {
        assert_eq!(scene.wait(id).await, Waited::Done(2));
    }
    scene.fixture.drained().await;
    let runs: Vec<_> = (0..3).map(|n| scene.bench.of(n)).collect();
    assert_eq!(
        runs,
        [
            ran(&[("v2", 1), ("v2", 1)]),
            ran(&[("v1", 1), ("v2", 1)]),
            ran(&[("v2", 1)])
        ]
    );
    use Ended::{Done, Revoked};
    assert_eq!(scene.ended(&ids[0]).await, [(1, Revoked), (1, Done)]);
    assert_eq!(scene.ended(&ids[1]).await, [(1, Revoked), (1, Done)]);
    assert_eq!(scene.ended(&ids[2]).await, [(1, Done)]);
}

/// A worker that reaches Redis by a link, and learns of flips from what it settles or reads only.
async fn far() -> (Scene, Link) {
    let mut scene = Scene {
        fixture: Fixture::new().await,
        bench: Bench::default(),
    };
    let link = Link::to(scene.fixture.server.port()).await;
    let config = WorkerConfig::new(ConnectOptions::new(link.url()), "test".parse().unwrap())
        .lease(Duration::from_secs(60))
        .pushes(false);
    scene.worker(config, |t| t).await;
    scene.fixture.set(&[("only", "v2")]).await;
    // The settler has its connection and its script.
    let warm = scene.enqueue(99, "ok").await;
    assert_eq!(scene.wait(&warm).await, Waited::Done(2));
    (scene, link)
}

// P2: settled before the flip, the reply lost, and sent again after it: it counted, and counts.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_settled_before_the_flip_stays_though_its_reply_is_lost() {
    use Ended::{Done, Retried};
    for (word, first, result) in [("ok", Done, 2), ("fail", Retried, 1)] {
        let (scene, link) = far().await;
        let id = scene.enqueue(1, &format!("a:{word} ok")).await;
        scene.bench.started(2).await;
        link.set(Mode::DropReplies).await;
        scene.bench.open("a");
        eventually("it is settled", patience(LONG), async || {
            scene.ended(&id).await == [(1, first)]
        })
        .await;
        scene.flip("revoke").await;
        link.set(Mode::Pass).await;
        assert_eq!(scene.wait(&id).await, Waited::Done(result), "{word}");
        scene.fixture.drained().await;
        let (runs, ends): (&[_], &[_]) = match first {
            Done => (&[("v2", 1)], &[(1, Done)]),
            // Its failure was in time, too.
            _ => (&[("v2", 1), ("v1", 2)], &[(1, Retried), (2, Done)]),
        };
        assert_eq!(scene.bench.of(1), ran(runs));
        assert_eq!(scene.ended(&id).await, ends);
    }
}

// P1, P2: replies are lost at every stage of the way back: the refusal, the move, the end. Each task is done once, and no result
// of before a flip counts behind it.
#[tokio::test(flavor = "multi_thread")]
async fn replies_lost_on_the_way_back_double_nothing() {
    let (scene, link) = far().await;
    let gate = GateStore::new(&scene.fixture.store, &scene.fixture.queue);
    for round in 0..10_u64 {
        let (door, to) = (format!("door-{round}"), if round % 2 == 0 { "v1" } else { "v2" });
        for n in 0..8 {
            let word = ["ok", "fail", "snooze", "reject"][usize::try_from(n % 4).unwrap()];
            scene.enqueue(round * 8 + n, &format!("{door}:{word} ok")).await;
        }
        let all = usize::try_from(round * 8 + 8).unwrap();
        eventually("they have started", patience(LONG), async || {
            let starts = scene.bench.starts.lock().unwrap();
            let jobs: std::collections::HashSet<u64> = starts.iter().map(|s| s.n).collect();
            jobs.len() > all
        })
        .await;
        let flip = ["HSET", "sb:gate:{test:job}", "only", to, "inflight", "revoke"];
        scene.fixture.raw(&flip).await;
        gate.seal().await.unwrap();
        if round % 3 == 0 {
            // The refusal itself is lost.
            link.set(Mode::DropReplies).await;
        }
        scene.bench.open(&door);
        for ms in [2, 5, 8] {
            tokio::time::sleep(Duration::from_millis(ms + round)).await;
            link.set(Mode::DropReplies).await;
            tokio::time::sleep(Duration::from_millis(15)).await;
            link.set(Mode::Pass).await;
        }
    }
    scene.fixture.drained().await;
    assert!(link.counters().swallowed_bytes > 0);
    let mut ends: BTreeMap<TaskId, Vec<Ended>> = BTreeMap::new();
    for (id, _, ended) in scene.all_ended().await {
        ends.entry(id).or_default().push(ended);
    }
    let once = |ends: &Vec<Ended>| ends.iter().filter(|e| **e == Ended::Done).count() == 1;
    assert!(ends.values().all(once), "{ends:#?}");
    assert_eq!(ends.len(), 81);
    let bad = [Ended::Retried, Ended::Snoozed, Ended::Dead];
    assert!(
        !ends.values().flatten().any(|e| bad.contains(e)),
        "none of these came before its flip: {ends:#?}"
    );
    assert_eq!(scene.fixture.depth().await.dead, 0);
}
