//! Is a version ready for what a gate is about to send there? Asked of the store, of sessions and of real workers.

use std::time::Duration;

use redis::Value as Reply;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use switchback_common::{
    ConnectOptions, SessionId, Task, Version,
    store::{
        gate::{Found, GateStore},
        keyspace::Key,
        probe::{self, Asked, MAX_BYTES, MAX_TASKS, Question, Taken, Unreadable},
    },
};
use switchback_tests::{eventually, patience};
use switchback_worker::{CancellationToken, Context, TaskError, TaskSpec, Worker, WorkerConfig, WorkerError};
use tokio::task::JoinSet;

use crate::cli::{Mail, OK, REFUSED, Ran};
use crate::queue::TestQueue;

const LONG: Duration = Duration::from_secs(20);

fn version(name: &str) -> Version {
    name.parse().unwrap()
}

impl TestQueue {
    async fn ask(&self, id: &str) -> Asked {
        let lanes = ["v1", "v2", "v3"].map(version).into_iter();
        probe::ask(&self.store, &self.queue, id, &version("v2"), lanes)
            .await
            .unwrap()
    }

    async fn take(&self, session: &SessionId, versions: &[&str]) -> Taken {
        let versions: Vec<Version> = versions.iter().map(|v| version(v)).collect();
        probe::take(&self.store, &self.queue, session, &versions).await.unwrap()
    }

    async fn question(&self, session: &SessionId) -> Question {
        match self.take(session, &["v2"]).await {
            Taken::Yours(question) => question,
            other => panic!("{other:?}"),
        }
    }

    async fn delay(&self, task: &str, payload: &str, due_ms: u64) {
        let packed = ["id", task, "payload", payload].map(|part| format!("{}:{part}", part.len()));
        self.cmd::<()>(&["HSET", &self.key(Key::Envelope), task, &packed.concat()])
            .await;
        self.cmd::<()>(&["ZADD", &self.key(Key::Delayed), &due_ms.to_string(), task])
            .await;
    }
}

#[tokio::test]
async fn a_sample_has_both_ends_of_every_place_where_something_waits() {
    let q = TestQueue::seeded().await;
    q.add(&q.key(Key::Stream), 500).await;
    q.add(&q.key(Key::Head), 2).await;
    q.add(&q.lane("v3"), 1).await;
    q.delay("soon", "\"soon\"", 1).await;
    q.delay("late", "\"late\"", u64::MAX / 4).await;
    // What runs, or is done, does not wait.
    q.claim(&q.session, &q.key(Key::Stream), 10).await;
    let Asked::Yes { tasks, left_out } = q.ask("q1").await else {
        panic!("something waits")
    };
    assert_eq!((tasks.len(), left_out), (MAX_TASKS, 0));
    let of = |place: &str| tasks.iter().filter(|(_, at)| at == place).count();
    assert_eq!((of("head"), of("lane:v3"), of("delayed"), of("main")), (2, 1, 2, 59));
    let payloads: Vec<String> = q
        .question(&SessionId::random())
        .await
        .payloads
        .into_iter()
        .map(|p| String::from_utf8(p).unwrap())
        .collect();
    for expected in ["10", "499", "\"soon\"", "\"late\""] {
        assert!(payloads.iter().any(|p| p == expected), "no {expected}: {payloads:?}");
    }
    assert!(!payloads.iter().any(|p| p == "9"), "it runs");
    // P6: they are copies. Nothing was claimed, and the gate is as it was.
    assert_eq!(q.pending(&q.key(Key::Stream)).await, 10);
    assert!(matches!(q.found().await, Found::Settled(sealed) if sealed.rev == 1));
    assert_eq!(q.human().await, "active=v1 paused=0");
}

#[tokio::test]
async fn a_sample_is_bounded_in_bytes() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    let large = format!("\"{}\"", "x".repeat(100_000));
    for _ in 0..40 {
        q.cmd::<()>(&["XADD", &main, "*", "payload", &large]).await;
    }
    let Asked::Yes { tasks, left_out } = q.ask("q1").await else {
        panic!("something waits")
    };
    assert!(
        left_out > 0 && tasks.len() <= MAX_BYTES / 100_000,
        "{} {left_out}",
        tasks.len()
    );
    let question = q.question(&SessionId::random()).await;
    let bytes: usize = question.payloads.iter().map(Vec::len).sum();
    assert!(bytes <= MAX_BYTES, "{bytes}");
    assert!(q.cmd::<i64>(&["TTL", &q.key(Key::Probe)]).await > 0);
    // One task that is larger than the whole sample cannot be asked about, and says so.
    q.cmd::<()>(&["DEL", &q.key(Key::Probe), &main]).await;
    let huge = format!("\"{}\"", "x".repeat(MAX_BYTES));
    q.cmd::<()>(&["XADD", &main, "*", "payload", &huge]).await;
    assert_eq!(q.ask("q2").await, Asked::Nothing { left_out: 1 });
    assert!(!q.cmd::<bool>(&["EXISTS", &q.key(Key::Probe)]).await);
}

#[tokio::test]
async fn one_worker_answers_and_another_if_that_one_dies() {
    let q = TestQueue::seeded().await;
    assert_eq!(q.ask("q0").await, Asked::Nothing { left_out: 0 }, "nothing waits");
    q.add(&q.key(Key::Stream), 3).await;
    assert!(matches!(q.ask("q1").await, Asked::Yes { .. }));
    // Two questions at once would answer neither.
    assert_eq!(q.ask("q2").await, Asked::Busy);
    let [dies, lives] = [SessionId::random(), SessionId::random()];
    assert_eq!(q.take(&lives, &["v1", "v3"]).await, Taken::None, "not its version");
    assert_eq!(q.question(&dies).await.payloads.len(), 3);
    assert_eq!(q.take(&lives, &["v1", "v2"]).await, Taken::Wait);
    let question = eventually("another worker takes it", patience(LONG), async || {
        match q.take(&lives, &["v1", "v2"]).await {
            Taken::Yours(question) => Ok(question),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let unreadable = [Unreadable {
        at: 1,
        malformed: false,
        error: "no `to`".into(),
    }];
    let answer = async |session: &SessionId, list: &[Unreadable]| {
        probe::answer(&q.store, &q.queue, &question.id, session, list)
            .await
            .unwrap();
    };
    let read = async || probe::answer_to(&q.store, &q.queue, "q1").await.unwrap();
    assert_eq!(read().await, None);
    answer(&lives, &unreadable).await;
    // Who comes late changes nothing.
    answer(&dies, &[]).await;
    let found = read().await.unwrap();
    assert_eq!((&found.session, found.unreadable.as_slice()), (&lives, &unreadable[..]));
    // The sample goes with the answer, and the next may ask.
    let left: Vec<String> = q.cmd(&["HKEYS", &q.key(Key::Probe)]).await;
    assert!(!left.iter().any(|field| field.starts_with('p')), "{left:?}");
    assert_eq!(q.take(&dies, &["v2"]).await, Taken::None);
    assert!(matches!(q.ask("q2").await, Asked::Yes { .. }));
    assert_eq!(read().await, None, "an answer to another question");
}

#[tokio::test]
async fn a_question_changes_the_number_that_gate_reads_bring() {
    let q = TestQueue::seeded().await;
    q.add(&q.key(Key::Stream), 1).await;
    let link = q.store.link().await.unwrap();
    let probe = async || q.gate.read(&link, None).await.unwrap().signals.probe;
    assert_eq!(probe().await, 0);
    q.ask("q1").await;
    let first = probe().await;
    q.ask("q1").await;
    assert!(first > 0 && probe().await > first);
    // A lost gate state must not look like one.
    q.cmd::<()>(&["DEL", &q.key(Key::GateState), &q.key(Key::Probe)]).await;
    q.ask("q3").await;
    assert!(!q.cmd::<bool>(&["EXISTS", &q.key(Key::GateState)]).await);
}

impl Mail {
    pub(crate) async fn put(&self, payload: &str) {
        let key = "sb:stream:{shop:mail}";
        self.server.cli(&["XADD", key, "*", "payload", payload]).await;
    }

    /// 1 200 attempts of about 2 s in the last whole minute: 40 at a time.
    pub(crate) async fn has_been_busy(&self) {
        let now = self.server.cli(&["TIME"]).await;
        let (seconds, _): (u64, u64) = redis::from_redis_value(now).unwrap();
        let stats = format!("sb:stats:{{shop:mail}}:{}", seconds / 60 - 1);
        let counters = ["v1:done", "1200", "v1:le_3000", "1200"];
        self.server.cli(&[&["HSET", &stats], &counters[..]].concat()).await;
    }

    fn check(&self, args: &str) -> Ran {
        self.shell.run(&format!("gate check mail {args} -o json"))
    }

    /// What its real workers say. Whoever asks listens for a while only, in which a busy machine may let none of them run.
    async fn answer(&self, args: &str) -> Ran {
        eventually("a worker answers", patience(LONG), async || {
            let ran = self.check(args);
            match codes(&ran).iter().any(|code| code == "no_answer") {
                true => Err(ran.stdout),
                false => Ok(ran),
            }
        })
        .await
    }

    async fn newest_change(&self) -> (u64, String) {
        let history = GateStore::new(&self.store, &self.queue).history(None, 1).await.unwrap();
        (history[0].rev, history[0].forced.clone())
    }
}

fn said(text: String, what: &str) -> Result<(), String> {
    if text.contains(what) { Ok(()) } else { Err(text) }
}

fn codes(ran: &Ran) -> Vec<String> {
    let json = ran.json();
    let list = json["objections"].as_array().unwrap();
    list.iter().map(|o| o["code"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_version_that_is_unknown_retired_or_rolled_back_is_not_ready() {
    let mail = Mail::with_worker().await;
    let ready = mail.check("--to v2").exits(OK);
    assert_eq!((ready.json()["ready"].clone(), codes(&ready).len()), (json!(true), 0));
    assert_eq!(ready.json()["capacity"]["slots"], json!(8));
    assert_eq!(
        codes(&mail.check("--to v9").exits(REFUSED)),
        ["unknown_version", "no_worker"]
    );
    mail.join_and_leave(&["v3"]).await;
    assert_eq!(codes(&mail.check("--to v3").exits(REFUSED)), ["no_worker"]);
    mail.shell.run("version retire mail v3").exits(OK);
    assert_eq!(codes(&mail.check("--to v3").exits(REFUSED)), ["retired", "no_worker"]);
    let record = r#"{"first_seen_us":1,"build":"b1","rolled_back":{"at_us":5,"rev":2,"why":"failed 30 %"}}"#;
    mail.server
        .cli(&["HSET", "sb:versions:{shop:mail}", "v2", record])
        .await;
    let back = mail.check("--to v2").exits(REFUSED);
    assert_eq!(codes(&back), ["rolled_back"]);
    // Not by accident, but a person may know better; and the history knows that somebody did.
    let refused = mail.shell.run("gate set mail candidate=v2 percent=5").exits(REFUSED);
    refused
        .tells("rolled back at revision 2 (failed 30 %)")
        .tells("--force");
    mail.shell
        .run("gate set mail candidate=v2 percent=5 --force")
        .exits(OK)
        .tells("WARNING");
    let (rev, forced) = mail.newest_change().await;
    assert!(rev == 2 && forced.contains("was rolled back at revision 2"), "{forced}");
    // What is not ready is said of a queue that is there.
    mail.shell.run("gate check nobody --to v1").exits(crate::cli::NOT_FOUND);
}

#[tokio::test]
async fn too_few_workers_for_the_load_are_an_objection() {
    let mail = Mail::with_worker().await;
    mail.has_been_busy().await; // with more than its 8 slots
    let ran = mail.check("--to v2").exits(REFUSED);
    assert_eq!(codes(&ran), ["too_few_slots"]);
    assert_eq!(ran.json()["capacity"]["needed"], json!(40.0));
    assert_eq!(codes(&mail.check("--to v2 --percent 10").exits(OK)).len(), 0);
    assert_eq!(codes(&mail.check("--to v2 --percent 17").exits(OK)), ["nearly_busy"]);
    mail.shell
        .run("gate check mail --to v2")
        .exits(REFUSED)
        .says("NOT READY")
        .says("about 40");
    // All reasons at once: whoever comes back for the next one loses time.
    let record = r#"{"first_seen_us":1,"build":"b1","rolled_back":{"at_us":5,"rev":2,"why":""}}"#;
    mail.server
        .cli(&["HSET", "sb:versions:{shop:mail}", "v2", record])
        .await;
    let refused = mail.shell.run("gate set mail active=v2").exits(REFUSED);
    refused.tells("was rolled back").tells("about 40 slots");
    mail.shell
        .run("gate check mail --to v2 --percent 101")
        .exits(crate::cli::USAGE);
}

#[tokio::test]
async fn a_version_whose_workers_do_not_answer_is_not_ready_and_a_rollback_goes_through() {
    let mail = Mail::with_worker().await; // a session, and nobody behind it
    mail.put("{}").await;
    let ran = mail.check("--to v2").exits(REFUSED);
    assert_eq!(codes(&ran), ["no_answer"]);
    assert_eq!(ran.json()["backlog"]["waiting"], json!(1));
    mail.shell
        .run("gate set mail active=v2")
        .exits(REFUSED)
        .tells("nobody knows whether v2 can read what waits");
    mail.shell.run("gate set mail active=v2 --force").exits(OK);
    let ran = mail.shell.run("gate rollback mail -o json").exits(OK);
    let json = ran.json();
    assert_eq!(
        (&json["changed"], &json["after"]["active"]),
        (&json!(true), &json!("v1"))
    );
    assert!(
        json["warnings"][0]
            .as_str()
            .unwrap()
            .contains("nobody knows whether v1"),
        "{json}"
    );
    ran.tells("WARNING");
    // Without anybody to ask, nobody is asked.
    let sessions = mail.sessions();
    for session in sessions.list().await.unwrap() {
        sessions.leave(&session.id, &[], "test").await.unwrap();
    }
    assert_eq!(codes(&mail.check("--to v2").exits(REFUSED)), ["no_worker"]);
}

/// What `v1` reads.
#[derive(Debug, Serialize, Deserialize)]
struct MailV1 {
    to: String,
}

impl Task for MailV1 {
    const TYPE: &'static str = "mail";
}

/// What `v2` reads: a field more, which tasks of old producers do not have.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MailV2 {
    to: String,
    template: String,
}

impl Task for MailV2 {
    const TYPE: &'static str = "mail";
}

/// A payload type whose decoder breaks.
#[derive(Debug, Serialize)]
struct Breaks;

impl<'de> Deserialize<'de> for Breaks {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        assert!(value.get("template").is_none(), "asked to break");
        Ok(Self)
    }
}

impl Task for Breaks {
    const TYPE: &'static str = "mail";
}

/// Real workers of shop/mail, in this process.
struct Fleet(JoinSet<Result<(), WorkerError>>);

async fn run<T: Task>(_: T, _: Context) -> Result<(), TaskError> {
    Ok(())
}

impl Fleet {
    async fn add<T: Task>(&mut self, mail: &Mail, describe: impl FnOnce(TaskSpec<T>) -> TaskSpec<T>) {
        let sessions = mail.sessions();
        let published = async || {
            let list = sessions.list().await.unwrap();
            list.iter().filter(|s| s.rev.is_some()).count()
        };
        let before = published().await;
        let config = WorkerConfig::new(ConnectOptions::new(mail.server.url()), mail.queue.namespace.clone());
        let worker = Worker::builder(config).task::<T>(describe);
        self.0.spawn(worker.run_until(CancellationToken::new()));
        eventually("the worker has joined", patience(LONG), async || {
            let now = published().await;
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
    }
}

/// shop/mail with a worker that has v1 and one that has v2, paused, so that what is put there waits.
async fn two_versions() -> (Mail, Fleet) {
    let mail = Mail::new().await;
    let mut fleet = Fleet(JoinSet::new());
    fleet.add::<MailV1>(&mail, |t| t.version("v1", run)).await;
    fleet
        .add::<MailV2>(&mail, |t| t.version("v2", run).max_payload(2_000))
        .await;
    mail.shell.run("gate pause mail --wait").exits(OK);
    (mail, fleet)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_the_version_says_what_it_cannot_read() {
    let (mail, _fleet) = two_versions().await;
    for n in 0..5 {
        mail.put(&format!("{{\"to\":\"old-{n}\"}}")).await;
        mail.put(&format!("{{\"to\":\"new-{n}\",\"template\":\"hello\"}}"))
            .await;
    }
    let ran = mail.answer("--to v2").await.exits(REFUSED);
    assert_eq!(codes(&ran), ["cannot_read"]);
    let sample = ran.json()["sample"].clone();
    assert_eq!((&sample["looked_at"], &sample["readable"]), (&json!(10), &json!(5)));
    let first = &sample["unreadable"][0];
    assert!(
        first["error"].as_str().unwrap().contains("missing field `template`"),
        "{first}"
    );
    assert_eq!(first["place"], json!("main"));
    // The id is one that `task show` knows.
    let id = first["id"].as_str().unwrap();
    mail.shell.run(&format!("task show mail {id}")).exits(OK).says("old-");
    let why = "v2 cannot read 5 of 10";
    eventually("an answer in time", patience(LONG), async || {
        let refused = mail.shell.run("gate set mail candidate=v2 percent=10").exits(REFUSED);
        said(refused.stderr, &format!("{why} waiting tasks"))
    })
    .await;
    let percents = std::cell::Cell::new(10);
    eventually("an answer in time", patience(LONG), async || {
        let percent = percents.replace(percents.get() + 1);
        let line = format!("gate set mail candidate=v2 percent={percent} --force");
        mail.shell.run(&line).exits(OK);
        said(mail.newest_change().await.1, why)
    })
    .await;
    // v1 takes both, so the way back is open; and nothing was claimed by asking.
    let back = mail.answer("--to v1").await.exits(OK);
    assert_eq!(back.json()["sample"]["readable"], json!(10));
    let pending = mail.server.cli(&["XPENDING", "sb:stream:{shop:mail}", "workers"]).await;
    assert!(matches!(pending, Reply::Array(parts) if parts[0] == Reply::Int(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_says_what_the_old_version_cannot_read() {
    let mail = Mail::new().await;
    let mut fleet = Fleet(JoinSet::new());
    // v1 is the strict one here: what producers enqueue for v2 is nothing for it.
    fleet.add::<MailV2>(&mail, |t| t.version("v1", run)).await;
    fleet.add::<MailV1>(&mail, |t| t.version("v2", run)).await;
    mail.shell.run("gate pause mail --wait").exits(OK);
    mail.put("{\"to\":\"a\"}").await;
    let why = "v1 cannot read 1 of 1";
    // A rollback does not wait long for the answer of a worker.
    eventually("an answer in time", patience(LONG), async || {
        mail.shell.run("gate set mail active=v2 --force").exits(OK);
        let ran = mail.shell.run("gate rollback mail --wait -o json").exits(OK);
        assert_eq!(ran.json()["after"]["active"], json!("v1"));
        said(ran.json()["warnings"].to_string(), why)?;
        said(ran.stderr, &format!("WARNING: {why}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_that_nobody_can_read_or_that_break_a_decoder_do_no_harm() {
    let (mail, mut fleet) = two_versions().await;
    mail.put("not json").await;
    mail.put(&format!("{{\"to\":\"{}\",\"template\":\"\"}}", "x".repeat(3_000)))
        .await;
    let ran = mail.answer("--to v2").await.exits(REFUSED);
    assert_eq!(codes(&ran), ["cannot_read", "malformed"]);
    assert!(
        ran.json().to_string().contains("this version takes 2000 at most"),
        "{ran:?}"
    );
    assert_eq!(codes(&mail.answer("--to v1").await.exits(OK)), ["malformed"]);
    // P7: a decoder that panics answers no, and its worker lives on to be asked again.
    fleet.add::<Breaks>(&mail, |t| t.version("v3", run)).await;
    for _ in 0..2 {
        let ran = mail.answer("--to v3").await.exits(REFUSED);
        assert_eq!(codes(&ran), ["cannot_read", "malformed"]);
        assert!(ran.json().to_string().contains("its decoder panics"), "{ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_though_the_worker_that_took_it_died() {
    let (mail, _fleet) = two_versions().await;
    mail.put("{\"to\":\"a\",\"template\":\"b\"}").await;
    let answer = async |id: &str| probe::answer_to(&mail.store, &mail.queue, id).await.unwrap();
    // One that takes the question, now and then before the real one can, and is never heard of again.
    let dies = SessionId::random();
    let mut id = String::new();
    for round in 0.. {
        assert!(round < 500, "never first");
        id = format!("q{round}");
        let asked = probe::ask(&mail.store, &mail.queue, &id, &version("v2"), std::iter::empty()).await;
        assert!(matches!(asked, Ok(Asked::Yes { .. })), "{asked:?}");
        let taken = probe::take(&mail.store, &mail.queue, &dies, &[version("v2")]).await;
        if matches!(taken, Ok(Taken::Yours(_))) {
            break;
        }
        eventually("the real one answers", patience(LONG), async || {
            answer(&id).await.ok_or("nobody")
        })
        .await;
    }
    let answer = eventually("somebody else answers", patience(LONG), async || {
        answer(&id).await.ok_or("nobody")
    })
    .await;
    assert!(answer.unreadable.is_empty() && answer.session != dies);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_nobody_asks_sends_no_word_about_it() {
    let mail = Mail::new().await;
    mail.server
        .cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"])
        .await;
    mail.server.cli(&["CONFIG", "SET", "slowlog-max-len", "100000"]).await;
    let mut fleet = Fleet(JoinSet::new());
    fleet.add::<MailV1>(&mail, |t| t.version("v1", run)).await;
    fleet.add::<MailV1>(&mail, |t| t.version("v1", run)).await;
    let commands = async || -> usize {
        let Reply::Array(log) = mail.server.cli(&["SLOWLOG", "GET", "-1"]).await else {
            panic!("an array")
        };
        let of_probe = |entry: &&Reply| format!("{entry:?}").contains("sb:probe:");
        log.iter().filter(of_probe).count()
    };
    let settled = async |n: usize| {
        for _ in 0..n {
            mail.put("{\"to\":\"a\"}").await;
        }
        eventually("everything is done", patience(LONG), async || {
            let depth = mail.shell.json("queue show mail")["depth"].clone();
            let left = depth["waiting"].as_u64().unwrap() + depth["in_flight"].as_u64().unwrap();
            if left == 0 { Ok(()) } else { Err(left) }
        })
        .await;
    };
    settled(50).await;
    assert_eq!(commands().await, 0);
    // With nothing to ask about, nobody is asked.
    mail.check("--to v1").exits(OK);
    let asked = mail.server.cli(&["HEXISTS", "sb:gatestate:{shop:mail}", "probe"]).await;
    assert_eq!(asked, Reply::Int(0));
    mail.shell.run("gate pause mail --wait").exits(OK);
    mail.put("{\"to\":\"a\"}").await;
    mail.answer("--to v1").await.exits(OK);
    mail.shell.run("gate resume mail --wait").exits(OK);
    // Who did not get to answer looks again every 200 ms, until somebody has.
    eventually("it is over", patience(LONG), async || {
        let before = commands().await;
        settled(50).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let more = commands().await - before;
        if more == 0 { Ok(()) } else { Err(more) }
    })
    .await;
}
