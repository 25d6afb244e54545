//! What a version did, and what is given back: `gate blast` and `dead requeue --since-flip --refund --canary`, with real
//! workers, some of which die or disobey, and with a log written by hand where that is exact.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use switchback_common::SessionId;
use switchback_common::store::{keyspace::Key, log, session::Reaped};
use switchback_tests::{Process, RedisServer, eventually, patience};
use tempfile::TempDir;

use crate::cli::{FAILED, Mail, NOT_FOUND, OK, REFUSED, Shell, UNCONFIRMED, USAGE};
use crate::queue::TestQueue;

const DEAD: &str = "sb:dead:{shop:mail}";
const MAIN: &str = "sb:stream:{shop:mail}";
const LOG: &str = "sb:log:{shop:mail}";
const DELAYED: &str = "sb:delayed:{shop:mail}";
const ENVELOPE: &str = "sb:envelope:{shop:mail}";
const VERSIONS: &str = "sb:versions:{shop:mail}";

/// Redis tells when it began in seconds: of what happens in its first the order is never certain.
pub(crate) async fn aged(server: &RedisServer) {
    let now = async || -> u64 {
        let (s, us): (u64, u64) = redis::from_redis_value(server.cli(&["TIME"]).await).unwrap();
        s * 1_000_000 + us
    };
    let began = now().await;
    eventually(
        "the server is old enough",
        patience(Duration::from_secs(10)),
        async || now().await > began + 1_010_000,
    )
    .await;
}

// --- real workers

/// Worker processes on shop/probe.
struct Fleet {
    server: RedisServer,
    shell: Shell,
    directory: TempDir,
    pools: Vec<(PathBuf, Process)>,
}

impl Fleet {
    async fn new() -> Self {
        let server = RedisServer::start().await;
        aged(&server).await;
        Self {
            shell: Shell::new(server.url()),
            server,
            directory: tempfile::tempdir().unwrap(),
            pools: Vec::new(),
        }
    }

    /// Starts a worker, and waits until it has joined and obeys.
    async fn worker(&mut self, versions: &str, more: &[&str]) -> usize {
        let n = self.pools.len();
        let file = self.directory.path().join(format!("starts-{n}"));
        let mut args = vec!["--redis".to_owned(), self.server.url()];
        args.extend(["--namespace", "shop", "--versions", versions, "--witness"].map(str::to_owned));
        args.push(file.display().to_string());
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let pool = Process::start("switchback-test-pool", args, [("RUST_LOG", "warn")]);
        self.pools.push((file, pool));
        eventually("the worker has joined", patience(Duration::from_secs(20)), async || {
            let ran = self.shell.run("worker ls probe -o json");
            let ready = |row: &Value| row["state"] == "live" && row["rev"].is_u64();
            ran.code == OK && ran.json().as_array().unwrap().iter().filter(|row| ready(row)).count() > n
        })
        .await;
        n
    }

    fn enqueue(&self, n: u64, work_ms: u64, then: &str) -> String {
        let payload = json!({"n": n, "work_ms": work_ms, "then": then, "on": "v2"}).to_string();
        let ran = self
            .shell
            .args(&["task", "enqueue", "probe", "--payload", &payload, "-o", "json"]);
        ran.exits(OK).json()["id"].as_str().unwrap().to_owned()
    }

    /// Waits until worker `pool` has begun task `n`.
    async fn begun(&self, pool: usize, n: u64) {
        let line = format!("start {n} ");
        eventually("it has begun", patience(Duration::from_secs(20)), async || {
            let text = std::fs::read_to_string(&self.pools[pool].0).unwrap_or_default();
            match text.lines().any(|it| it.starts_with(&line)) {
                true => Ok(()),
                false => Err(format!("task {n} of worker {pool}: {text}")),
            }
        })
        .await;
    }

    fn blast(&self) -> Value {
        self.shell.run("gate blast probe --version v2 -o json").exits(OK).json()
    }

    async fn blast_says(&self, what: &str, test: impl Fn(&Value) -> bool) {
        eventually(what, patience(Duration::from_secs(30)), async || {
            let view = self.blast();
            if test(&view) { Ok(()) } else { Err(format!("{view:#}")) }
        })
        .await;
    }

    /// The exported tasks by id.
    fn tasks(&self, line: &str) -> BTreeMap<String, Value> {
        let ran = self
            .shell
            .run(&format!("gate blast probe --version v2 -o jsonl {line}"))
            .exits(OK);
        let rows = ran
            .stdout
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.map(|row| (row["id"].as_str().unwrap().to_owned(), row)).collect()
    }
}

#[tokio::test]
async fn what_a_bad_version_did_is_told_and_given_back() {
    let mut fleet = Fleet::new().await;
    fleet.worker("v1", &["--backoff-ms", "600000"]).await;
    let v2 = fleet
        .worker(
            "v2",
            &["--backoff-ms", "600000", "--grace-ms", "50", "--concurrency", "1"],
        )
        .await;
    fleet
        .shell
        .run("gate set probe candidate=v2 percent=100 --wait")
        .exits(OK);
    let done: Vec<String> = (0..3).map(|n| fleet.enqueue(n, 0, "")).collect();
    let failed: Vec<String> = (10..14).map(|n| fleet.enqueue(n, 0, "fail")).collect();
    let died: Vec<String> = (20..22).map(|n| fleet.enqueue(n, 0, "reject")).collect();
    let running = fleet.enqueue(30, 600_000, "");
    fleet.begun(v2, 30).await;
    // It has no slot left: another worker of v2 takes the next one, and is killed under it.
    let doomed = fleet.worker("v2", &["--lease-ms", "1500"]).await;
    let crashed = fleet.enqueue(40, 500, "");
    fleet.begun(doomed, 40).await;
    fleet.pools[doomed].1.kill9();
    fleet.shell.run("gate rollback probe --why bounces --wait").exits(OK);

    fleet
        .blast_says("the killed worker's task was recovered and done on v1", |view| {
            view["tasks"]["by_fate"]["recovered"] == 1 && view["running"]["published"] == 1
        })
        .await;
    let view = fleet.blast();
    assert_eq!(
        view["attempts"]["by_outcome"],
        json!({"done": 3, "retried": 4, "dead": 2, "vanished": 1, "running": 1}),
        "{view:#}"
    );
    assert_eq!(
        view["tasks"]["by_fate"],
        json!({"done_on_it": 3, "recovered": 1, "waiting": 4, "dead": 2, "running": 1}),
        "{view:#}"
    );
    assert_eq!(
        (&view["tasks"]["touched"], &view["tasks"]["perhaps"]),
        (&json!(11), &json!(0))
    );
    assert_eq!(view["tasks"]["duplicated"], 1, "the one that vanished, and ran again");
    assert_eq!((&view["complete"], &view["reachable"]), (&json!(true), &json!(false)));
    assert_eq!(view["withdrawn"]["why"], "bounces");
    assert!(view["notes"].to_string().contains("lost: 1 attempt."), "{view:#}");

    let ids = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
    let of = |line: &str| fleet.tasks(line).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(of("--outcome done"), ids(&done));
    assert_eq!(of("--outcome waiting"), ids(&failed));
    assert_eq!(of("--outcome dead"), ids(&died));
    assert_eq!(of("--outcome running"), ids(std::slice::from_ref(&running)));
    let lost = fleet.tasks("--outcome vanished");
    let lost = &lost[&crashed];
    assert_eq!(
        (
            &lost["attempts"][0]["version"],
            &lost["attempts"][1]["version"],
            &lost["fate"]
        ),
        (&json!("v2"), &json!("v1"), &json!("recovered")),
        "computed again, and exact: {lost:#}"
    );
    assert!(lost["attempts"][0]["gate_read_at_us"].is_null() && lost["attempts"][0]["claimed_at_us"].is_u64());
    let table = fleet.shell.run("gate blast probe --version v2").exits(OK);
    let table = table
        .says("4  failed on it, wait for a retry")
        .says("effects possibly duplicated: 1");
    table.says("NOT EXACT  vanished, with a session that was lost: 1 attempt");
    let yaml = fleet.shell.run("gate blast probe --version v2 -o yaml").exits(OK);
    yaml.says("by_fate:").says("done_on_it: 3");
    let listed = fleet
        .shell
        .run("gate blast probe --version v2 --ids --outcome recovered")
        .exits(OK);
    assert_eq!(listed.stdout.trim(), crashed);

    // P3: while an attempt runs nobody can say how it began; then the log can.
    let certificate = || fleet.shell.run("gate blast probe --version v2 --certificate -o json");
    let ran = certificate().exits(UNCONFIRMED).tells("still run on v2");
    assert_eq!(ran.json()["certificate"]["verdict"], "incomplete");
    fleet.pools[v2].1.term();
    fleet.pools[v2].1.wait().await;
    let proof = certificate().exits(OK).json()["certificate"].clone();
    assert_eq!(
        (&proof["verdict"], &proof["late"]),
        (&json!("none"), &json!(0)),
        "{proof:#}"
    );
    assert_eq!(
        (&proof["attempts"], &proof["not_in_log"]["vanished"]),
        (&json!(10), &json!(1))
    );
    assert!(
        proof["last_gate_read_us"].as_u64() < proof["flip"]["at_us"].as_u64(),
        "{proof:#}"
    );

    // Given back: what died and what waits runs on v1 with no attempt on v2 counted.
    let preview = fleet
        .shell
        .run("dead requeue probe --version v2 --since-flip --refund --dry-run -o json")
        .exits(OK)
        .tells("became reachable: revision 2");
    assert_eq!(
        preview.json()["groups"],
        json!([
            {"reason": "rejected", "version": "v2", "count": 2, "place": "dead", "refund": 2, "untold": 0},
            {"reason": "", "version": "v2", "count": 4, "place": "delayed", "refund": 4, "untold": 0},
        ])
    );
    let ran = fleet
        .shell
        .run("dead requeue probe --version v2 --since-flip --refund --canary 1 --rate 100/s -o json")
        .exits(OK)
        .tells("canary: 1 of 1 done");
    let outcome = ran.json();
    assert_eq!(
        outcome["refund"],
        json!({"version": "v2", "attempts": 6, "untold": 0, "waiting": 4, "at_once": 4})
    );
    fleet
        .blast_says("all are done on v1", |view| view["tasks"]["by_fate"]["recovered"] == 7)
        .await;
    let view = fleet.blast();
    assert_eq!(
        (&view["tasks"]["refunded"], &view["tasks"]["duplicated"]),
        (&json!(6), &json!(8))
    );
    for (id, task) in fleet.tasks("--outcome recovered") {
        let last = task["attempts"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&last["version"], &last["attempt"]),
            (&json!("v1"), &json!(1)),
            "{id}: {task:#}"
        );
    }
}

// P3: a worker that runs retried tasks on the version they failed on, whatever the gate says.
#[tokio::test]
async fn the_certificate_finds_what_a_disobedient_worker_started() {
    let mut fleet = Fleet::new().await;
    fleet.worker("v1", &[]).await;
    let more = ["--backoff-ms", "1500", "--faults", "retry_keeps_version"];
    fleet.worker("v1,v2", &more).await;
    fleet
        .shell
        .run("gate set probe candidate=v2 percent=100 --wait")
        .exits(OK);
    let id = fleet.enqueue(1, 0, "fail_once");
    fleet
        .blast_says("it failed on v2", |view| view["tasks"]["by_fate"]["waiting"] == 1)
        .await;
    fleet.shell.run("gate rollback probe --wait").exits(OK);
    // The obedient worker must not take the retry.
    fleet.pools[0].1.term();
    fleet.pools[0].1.wait().await;
    fleet
        .blast_says("it was done on v2", |view| view["tasks"]["by_fate"]["done_on_it"] == 1)
        .await;
    let ran = fleet.shell.run("gate blast probe --version v2 --certificate -o json");
    let ran = ran.exits(FAILED).tells("1 late start");
    let proof = ran.json()["certificate"].clone();
    assert_eq!(
        (&proof["verdict"], &proof["late"]),
        (&json!("late"), &json!(1)),
        "{proof:#}"
    );
    assert_eq!(proof["late_starts"][0]["task"], id);
    let ran = fleet
        .shell
        .run("gate blast probe --version v2 --certificate")
        .exits(FAILED);
    ran.says("LATE").says(&id);
}

// A lost attempt's version follows from its key and from how long it was held: both are written down when it is recovered.
#[tokio::test]
async fn a_lost_attempt_is_decided_again_by_its_key() {
    let q = TestQueue::seeded().await;
    let shell = Shell::new(q.server.url());
    let blast = || shell.run("gate blast send_email --version v2 -o json").exits(OK).json();
    q.edit("candidate v2 percent 10").await;
    let beyond_slack = || tokio::time::sleep(Duration::from_millis(10)); // of Redis's idle times
    beyond_slack().await;
    let main = q.key(Key::Stream);
    // As vectors say: 2.577 % and 34.362 %.
    for key in ["cust-1", "order-42"] {
        q.cmd::<()>(&["XADD", &main, "*", "id", key, "key", key, "payload", "1"])
            .await;
    }
    q.cmd::<()>(&["XADD", &main, "*", "id", "no-key", "payload", "1"]).await;
    assert_eq!(q.claim(&q.session, &main, 10).await.len(), 3);
    let view = blast();
    assert_eq!(view["attempts"]["by_outcome"], json!({"running": 1}), "{view:#}");

    q.edit("only v1").await;
    q.cmd::<()>(&["DEL", &q.lease(&q.session)]).await;
    let view = blast();
    assert_eq!(
        (&view["attempts"]["by_outcome"], &view["attempts"]["one_of"]),
        (&json!({"vanished": 1}), &json!(1))
    );
    assert_eq!(
        view["running"]["held"], 0,
        "its session is gone, though nobody has recovered it yet"
    );

    let reaped = async |lost: &SessionId| match q.sessions.reap(lost, &SessionId::random(), &main).await.unwrap() {
        Reaped::Moved { moved, .. } => moved,
        Reaped::Alive => panic!("{lost} is alive"),
    };
    assert_eq!(reaped(&q.session).await, 3);
    assert_eq!(
        blast()["attempts"]["one_of"],
        1,
        "nor afterwards: it may have begun under either"
    );

    // Back to the ramp alone: a claim under it that was held under nothing else is exact.
    let other = SessionId::random();
    q.edit("candidate v2 percent 10").await;
    q.join(&other, &["v1", "v2"]).await;
    for key in ["cust-1", "order-42"] {
        q.cmd::<()>(&[
            "XADD",
            &main,
            "*",
            "id",
            &format!("{key}-b"),
            "key",
            key,
            "payload",
            "1",
        ])
        .await;
    }
    beyond_slack().await;
    assert_eq!(q.claim(&other, &main, 10).await.len(), 2);
    q.cmd::<()>(&["DEL", &q.lease(&other)]).await;
    assert_eq!(reaped(&other).await, 2);
    let log = q.log().await;
    let last = &log.iter().rev().find(|e| e.kind == "recovered").unwrap().detail;
    assert_eq!(
        (last.held_ms.len(), last.keys.as_ref().unwrap().len()),
        (2, 2),
        "{last:?}"
    );
    let exported = shell
        .run("gate blast send_email --version v2 --ids --outcome vanished")
        .exits(OK);
    let view = blast();
    assert_eq!(
        (exported.stdout.trim(), &view["attempts"]["one_of"]),
        ("cust-1-b", &json!(0)),
        "{view:#}"
    );
}

// --- a log written by hand

impl Mail {
    /// v2 ramped and withdrawn again; gives the times at which that was sealed, µs.
    fn ramped_and_back(&self) -> (u64, u64) {
        self.set("candidate=v2 percent=50");
        self.shell.run("gate rollback mail").exits(OK);
        let history = self.shell.run("gate history mail -o json").exits(OK).json();
        let at = |rev: u64| {
            let entries = history.as_array().unwrap();
            entries.iter().find(|e| e["rev"] == rev).unwrap()["at_us"]
                .as_u64()
                .unwrap()
        };
        (at(2), at(3))
    }

    /// A settled attempt.
    async fn settled(&self, task: &str, version: &str, rev: u64, read_us: u64, ended: &str) {
        let attempts = json!([{"at": read_us, "rev": rev, "version": version, "stream": "main",
            "tasks": [[task, "1-0", 1, ended, 1]]}])
        .to_string();
        let session = ["kind", "settled", "session", "s", "attempts", &attempts, "acked", "all"];
        self.server.cli(&[&["XADD", LOG, "*"], &session[..]].concat()).await;
    }

    async fn now_us(&self) -> u64 {
        let (s, us): (u64, u64) = redis::from_redis_value(self.server.cli(&["TIME"]).await).unwrap();
        s * 1_000_000 + us
    }

    /// `order-<n>` as a dead letter after three attempts: on v1, v2, v2.
    async fn died_on_v2(&self, numbers: std::ops::RangeInclusive<u64>) {
        let now = self.now_us().await / 1_000;
        let errors = chain(&[(1, "v1"), (2, "v2"), (3, "v2")], now);
        let mut connection = self.server.connection().await;
        let mut pipe = redis::pipe();
        for n in numbers {
            pipe.cmd("XADD").arg(DEAD).arg(format!("{n}-0"));
            pipe.arg(&[
                "id",
                &format!("order-{n}"),
                "payload",
                "{}",
                "attempt",
                "3",
                "snoozes",
                "2",
            ]);
            pipe.arg(&["errors", &errors, "dead_reason", "attempts", "dead_version", "v2"]);
            pipe.arg(&["dead_at", &now.to_string(), "dead_error", "boom"]);
        }
        let _: Vec<String> = pipe.query_async(&mut connection).await.unwrap();
    }

    /// `order-<n>` as a task that waits for its fourth attempt, an hour from now.
    async fn waits_after_v2(&self, numbers: std::ops::RangeInclusive<u64>) {
        let now = self.now_us().await / 1_000;
        let errors = chain(&[(1, "v1"), (2, "v2"), (3, "v2")], now);
        let mut connection = self.server.connection().await;
        let mut pipe = redis::pipe();
        for n in numbers {
            let id = format!("order-{n}");
            let fields = ["id", &id, "payload", "{}", "attempt", "3", "errors", &errors];
            let packed: String = fields.iter().map(|f| format!("{}:{f}", f.len())).collect();
            pipe.cmd("HSET").arg(ENVELOPE).arg(&id).arg(packed).ignore();
            pipe.cmd("ZADD").arg(DELAYED).arg(now + 3_600_000).arg(&id).ignore();
        }
        let () = pipe.query_async(&mut connection).await.unwrap();
    }

    /// Delayed tasks: attempts made, and whether they are due.
    async fn delayed(&self) -> BTreeMap<String, (String, bool)> {
        let now = self.now_us().await / 1_000;
        let mut connection = self.server.connection().await;
        let (due, packed): (Vec<(String, u64)>, BTreeMap<String, String>) = redis::pipe()
            .cmd("ZRANGE")
            .arg(&[DELAYED, "0", "-1", "WITHSCORES"])
            .cmd("HGETALL")
            .arg(ENVELOPE)
            .query_async(&mut connection)
            .await
            .unwrap();
        assert_eq!(
            due.len(),
            packed.len(),
            "a task without its envelope, or the other way round"
        );
        let attempt = |id: &str| packed[id].split("7:attempt").nth(1).unwrap()[2..3].to_owned();
        due.into_iter()
            .map(|(id, due)| {
                let attempt = attempt(&id);
                (id, (attempt, due <= now))
            })
            .collect()
    }

    /// What is in line: id, attempts made, error chain.
    async fn in_line(&self) -> Vec<(String, String, Value)> {
        let mut connection = self.server.connection().await;
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(MAIN).arg("-").arg("+");
        let entries: Vec<(String, BTreeMap<String, String>)> = cmd.query_async(&mut connection).await.unwrap();
        let field = |f: &BTreeMap<String, String>, name: &str| f.get(name).cloned().unwrap_or_default();
        entries
            .iter()
            .map(|(_, f)| {
                let errors = serde_json::from_str(&field(f, "errors")).unwrap_or_default();
                (field(f, "id"), field(f, "attempt"), errors)
            })
            .collect()
    }

    fn spawn(&self, line: &str) -> Process {
        Process::spawn(&mut self.shell.command(&line.split(' ').collect::<Vec<_>>()))
    }
}

fn chain(attempts: &[(u32, &str)], at_ms: u64) -> String {
    let errors: Vec<Value> = attempts
        .iter()
        .map(|(n, version)| json!({"attempt": n, "version": version, "error": "boom", "at_ms": at_ms}))
        .collect();
    Value::from(errors).to_string()
}

fn numbers(errors: &Value) -> Vec<u64> {
    let errors = errors.as_array().unwrap();
    errors.iter().map(|e| e["attempt"].as_u64().unwrap()).collect()
}

const REFUND: &str = "dead requeue mail --version v2 --since-flip --refund";

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_word() {
    let mail = Mail::with_worker().await;
    let run = |line: &str| mail.shell.run(line);
    run("gate blast mial --version v2").exits(NOT_FOUND);
    let ran = run("gate blast mail --version v9").exits(NOT_FOUND);
    ran.tells("no worker of shop/mail ever had v9").tells("v1, v2");
    run("gate blast mail").exits(USAGE);
    run("gate blast mail --version v2 --certificate")
        .exits(REFUSED)
        .tells("v2 was never withdrawn");
    run("gate blast mail --version v1 --certificate")
        .exits(REFUSED)
        .tells("v1 was not withdrawn");
    run(REFUND).exits(REFUSED).tells("v2 was never withdrawn");
    mail.set("candidate=v2 percent=50");
    run(REFUND).exits(REFUSED).tells("still routes tasks to it");
    run("dead requeue mail --version v9 --since-flip").exits(NOT_FOUND);
    run("dead requeue mail --since-flip").exits(USAGE).tells("--version");
    run("dead requeue mail --all --yes --refund")
        .exits(USAGE)
        .tells("--version");
    run("dead requeue mail order-1 --canary 0").exits(USAGE);
    run("dead requeue mail --all --yes --canary-failures 1").exits(USAGE);

    let window = "gate blast mail --version v2 --since 2026-01-02T00:00:00Z --until 2026-01-01T00:00:00Z";
    run(window).exits(USAGE).tells("ends before it begins");
    run("gate blast mail --version v2 --since 2099-01-01T00:00:00Z").exits(USAGE);
    run("gate blast mail --version v2 --since yesterday")
        .exits(USAGE)
        .tells("2h");
    run("gate blast mail --version v2 --outcome done")
        .exits(USAGE)
        .tells("--ids");

    // Nothing in the log yet is nothing touched.
    let view = mail.shell.run("gate blast mail --version v2 -o json").exits(OK).json();
    assert_eq!(
        (&view["tasks"]["touched"], &view["complete"]),
        (&json!(0), &json!(true))
    );
    mail.server.cli(&["DEL", LOG]).await;
    mail.shell.run("gate rollback mail").exits(OK);
    let ran = run("gate blast mail --version v2 --certificate").exits(OK);
    ran.says("late starts: 0")
        .says("no attempt in the log")
        .says("0 touched");
    run("gate blast mail --version v2 --ids").exits(OK);
}

#[tokio::test]
async fn the_window_and_the_reach_of_the_log_are_said() {
    let mail = Mail::with_worker().await;
    aged(&mail.server).await;
    let (ramped, back) = mail.ramped_and_back();
    mail.settled("early", "v2", 2, ramped + 10, "done").await;
    mail.settled("late", "v2", 2, back - 10, "retried").await;
    mail.settled("before", "v2", 2, ramped - 10, "done").await;
    let touched = |line: &str| {
        let line = format!("gate blast mail --version v2 --ids {line}");
        let ran = mail.shell.run(line.trim()).exits(OK);
        ran.stdout.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(
        touched(""),
        set(&["early", "late"]),
        "by default since it became reachable"
    );
    assert_eq!(touched("--since 1h"), set(&["before", "early", "late"]));
    let later = mail.now_us().await + 3_600_000_000;
    mail.settled("to-come", "v2", 2, later, "done").await;
    assert_eq!(touched(""), set(&["early", "late", "to-come"]));
    assert_eq!(touched("--until 0s"), set(&["early", "late"]));

    mail.settled("kept", "v1", 3, back + 10, "done").await;
    // What was let go is missing, and said to be.
    mail.server.cli(&["XTRIM", LOG, "MAXLEN", "=", "1"]).await;
    let view = mail.shell.run("gate blast mail --version v2 -o json").exits(OK).json();
    assert_eq!(view["complete"], false);
    assert!(
        view["complete_from_us"].as_u64().unwrap() / 1_000 >= back / 1_000,
        "{view:#}"
    );
    assert!(view["notes"].to_string().contains("the log begins at"), "{view:#}");
    let ran = mail.shell.run("gate blast mail --version v2 --certificate -o json");
    let ran = ran.exits(UNCONFIRMED).tells("begins after the flip");
    assert_eq!(ran.json()["certificate"]["complete"], false);
}

// P3: times compare within one run of the server only.
#[tokio::test]
async fn across_a_restart_the_certificate_says_that_it_cannot_tell() {
    let mail = Mail::with_worker().await;
    // Redis tells its age in seconds: what happens in its first is never certain.
    let began = mail.now_us().await;
    eventually(
        "the server is old enough",
        patience(Duration::from_secs(10)),
        async || mail.now_us().await > began + 1_100_000,
    )
    .await;
    let (ramped, back) = mail.ramped_and_back();
    let verdict = || {
        let ran = mail.shell.run("gate blast mail --version v2 --certificate -o json");
        (ran.json()["certificate"]["verdict"].clone(), ran.code)
    };
    // As workers do it every now and then.
    let trim = || log::trim(&mail.store, &mail.queue, Duration::from_secs(3_600), u64::MAX);
    for _ in 0..2 {
        trim().await.unwrap();
    }
    let kinds = async || {
        let entries = log::read(&mail.store, &mail.queue, None, 1_000).await.unwrap();
        entries.iter().filter(|e| e.kind == "server").count()
    };
    assert_eq!(kinds().await, 1, "one run, noted once");
    mail.settled("in-time", "v2", 2, ramped + 10, "done").await;
    assert_eq!(verdict(), (json!("none"), OK));

    // The server was another one when it was last seen, before the flip: nobody knows which of the two sealed it.
    mail.server
        .cli(&["HSET", VERSIONS, ":run", &format!("another {}", ramped + 20)])
        .await;
    assert_eq!(verdict(), (json!("none"), OK), "the attempt is older than that");
    mail.settled("who-knows", "v2", 2, back + 10, "done").await;
    assert_eq!(verdict(), (json!("undecidable"), UNCONFIRMED));
    trim().await.unwrap();
    assert_eq!(kinds().await, 2);
    assert_eq!(
        verdict(),
        (json!("undecidable"), UNCONFIRMED),
        "and it stays so once it is noted"
    );

    // Revisions decide whatever the clocks say; and so do times beyond the gap.
    let later = mail.now_us().await + 1_000_000;
    mail.settled("late", "v2", 2, later, "done").await;
    assert_eq!(verdict(), (json!("late"), FAILED));
}

// P6, and given back once.
#[tokio::test]
async fn a_refund_gives_back_the_attempts_of_one_version_and_no_others() {
    let mail = Mail::with_worker().await;
    mail.ramped_and_back();
    mail.died_on_v2(1..=2).await;
    mail.waits_after_v2(11..=12).await;
    let now = mail.now_us().await / 1_000;
    // A chain that begins late: twelve attempts, the last ten known, of which v2 made two.
    let known: Vec<(u32, &str)> = (3..=12).map(|n| (n, if n >= 11 { "v2" } else { "v1" })).collect();
    let long = chain(&known, now);
    // An earlier life made attempts on v2 as well: they were given back then, all of them.
    let lives = chain(&[(14, "v2"), (15, "v2"), (1, "v1"), (2, "v2")], now);
    for (entry, id, attempt, errors) in [("3-0", "long", "12", &long), ("4-0", "lives", "2", &lives)] {
        let task = ["id", id, "payload", "1", "attempt", attempt, "errors", errors];
        let died = [
            "dead_reason",
            "attempts",
            "dead_version",
            "v2",
            "dead_at",
            &now.to_string(),
        ];
        mail.server
            .cli(&[&["XADD", DEAD, entry], &task[..], &died[..]].concat())
            .await;
    }
    // Died on another version: not meant.
    let other = [
        "id",
        "other",
        "payload",
        "1",
        "dead_version",
        "v1",
        "dead_at",
        &now.to_string(),
    ];
    mail.server.cli(&[&["XADD", DEAD, "5-0"], &other[..]].concat()).await;

    let before = (mail.delayed().await, mail.in_line().await);
    let view = mail.shell.run(&format!("{REFUND} --dry-run -o json")).exits(OK).json();
    assert_eq!(
        (mail.delayed().await, mail.in_line().await),
        before,
        "a dry run changes nothing"
    );
    assert_eq!(
        view["refund"],
        json!({"version": "v2", "attempts": 11, "untold": 2, "waiting": 2, "at_once": 2})
    );
    let ran = mail.shell.run(&format!("{REFUND} -o json")).exits(OK);
    let outcome = ran.tells("2 older attempts keep counting").json();
    assert_eq!((&outcome["done"], &outcome["refund"]), (&json!(6), &view["refund"]));

    let line: BTreeMap<_, _> = mail
        .in_line()
        .await
        .into_iter()
        .map(|(id, a, e)| (id, (a, numbers(&e))))
        .collect();
    let said = |id: &str| line[id].clone();
    assert_eq!(said("order-1"), ("1".to_owned(), vec![1, 0, 0]), "that on v1 counts");
    assert_eq!(said("long"), ("10".to_owned(), vec![3, 4, 5, 6, 7, 8, 9, 10, 0, 0]));
    assert_eq!(said("lives"), ("1".to_owned(), vec![14, 15, 1, 0]));
    assert_eq!(line.len(), 4);
    let both = ["order-11", "order-12"].map(|id| (id.to_owned(), ("1".to_owned(), true)));
    assert_eq!(mail.delayed().await, both.into_iter().collect());
    assert_eq!(mail.shell.json("dead ls mail").as_array().unwrap().len(), 1);

    // Once more gives nothing more.
    let again = mail.shell.run(&format!("{REFUND} -o json")).exits(OK).json();
    assert_eq!((&again["done"], &again["refund"]["attempts"]), (&json!(0), &json!(0)));
    let log = log::read(&mail.store, &mail.queue, None, 1_000).await.unwrap();
    let given: Vec<u32> = log.iter().flat_map(|e| e.detail.refunds.clone()).collect();
    assert_eq!(given.iter().sum::<u32>(), 11, "the log says whose");
    assert!(
        log.iter()
            .any(|e| e.kind == "refunded" && e.text.contains("order-11=delayed"))
    );
    assert!(log.iter().any(|e| e.kind == "requeued" && e.detail.version == "v2"));

    // A plain requeue begins a new life.
    mail.died_on_v2(6..=6).await;
    mail.shell.run("dead requeue mail order-6").exits(OK);
    let last = mail.in_line().await.pop().unwrap();
    assert_eq!(
        (last.0.as_str(), last.1.as_str(), numbers(&last.2)),
        ("order-6", "", vec![1, 2, 3])
    );
}

#[tokio::test]
async fn what_waits_for_something_else_keeps_its_time() {
    let mail = Mail::with_worker().await;
    mail.ramped_and_back();
    mail.waits_after_v2(1..=1).await;
    let now = mail.now_us().await / 1_000;
    let put = async |id: &str, errors: &str, more: &[&str]| {
        let fields = [&["id", id, "payload", "{}", "attempt", "2", "errors", errors], more].concat();
        let packed: String = fields.iter().map(|f| format!("{}:{f}", f.len())).collect();
        mail.server.cli(&["HSET", ENVELOPE, id, &packed]).await;
        let due = (now + 3_600_000).to_string();
        mail.server.cli(&["ZADD", DELAYED, &due, id]).await;
    };
    let on_v2 = chain(&[(1, "v2"), (2, "v2")], now);
    put("paced", &on_v2, &["slot", "2 99"]).await;
    put("put-off", &on_v2, &["snoozes", "1"]).await;
    put("elsewhere", &chain(&[(1, "v2"), (2, "v1")], now), &[]).await;
    put("innocent", &chain(&[(1, "v1"), (2, "v1")], now), &[]).await;
    put("long-ago", &chain(&[(1, "v2"), (2, "v2")], 5), &[]).await;
    mail.shell.run(&format!("{REFUND} --reason attempts")).exits(OK);
    let untouched = mail.delayed().await;
    assert!(
        untouched.values().all(|(_, due)| !due),
        "a task that waits has no reason to be dead"
    );
    let outcome = mail
        .shell
        .run(&format!("{REFUND} --error BOOM -o json"))
        .exits(OK)
        .json();
    assert_eq!(
        outcome["refund"],
        json!({"version": "v2", "attempts": 7, "untold": 0, "waiting": 4, "at_once": 1})
    );
    let found = mail.delayed().await;
    let of = |id: &str| (found[id].0.as_str(), found[id].1);
    assert_eq!(of("order-1"), ("1", true));
    assert_eq!((of("paced"), of("put-off")), (("0", false), ("0", false)));
    assert_eq!(of("elsewhere"), ("1", false), "it waits because of v1");
    assert_eq!((of("innocent"), of("long-ago")), (("2", false), ("2", false)));
}

// P1, P6: killed at any point, nothing is lost, doubled, or given back twice.
#[tokio::test]
async fn a_refund_that_is_killed_half_way_loses_and_doubles_nothing() {
    let mail = Mail::with_worker().await;
    mail.ramped_and_back();
    mail.died_on_v2(1..=300).await;
    mail.waits_after_v2(301..=600).await;
    let all: BTreeSet<String> = (1..=600).map(|n| format!("order-{n}")).collect();
    let progress = async || {
        let due = mail.delayed().await.values().filter(|(_, due)| *due).count();
        mail.in_line().await.len() + due
    };
    for part in [50, 350] {
        let process = mail.spawn(&format!("{REFUND} --rate 400/s"));
        eventually("some are given back", patience(Duration::from_secs(20)), async || {
            progress().await > part
        })
        .await;
        process.kill9();
        let line = mail.in_line().await;
        let ids: Vec<String> = line.iter().map(|(id, _, _)| id.clone()).collect();
        let (line_ids, delayed) = (ids.iter().cloned().collect::<BTreeSet<_>>(), mail.delayed().await);
        assert_eq!(line_ids.len(), ids.len(), "nothing twice");
        assert!(line.iter().all(|(_, attempt, _)| attempt == "1"), "whole or not at all");
        assert!(delayed.values().all(|(attempt, due)| (attempt == "1") == *due));
        let dead = mail.shell.run("dead ls mail --limit 1000 -o json").exits(OK).json();
        let dead: BTreeSet<String> = dead
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["id"].as_str().unwrap().to_owned())
            .collect();
        let waiting: BTreeSet<String> = delayed.into_keys().collect();
        assert!(dead.is_disjoint(&line_ids));
        assert_eq!(&(&dead | &line_ids) | &waiting, all);
    }
    mail.shell.run(REFUND).exits(OK);
    assert_eq!(mail.in_line().await.len(), 300);
    assert!(mail.in_line().await.iter().all(|(_, attempt, _)| attempt == "1"));
    let delayed = mail.delayed().await;
    assert_eq!(delayed.len(), 300);
    assert!(delayed.values().all(|it| *it == ("1".to_owned(), true)));
}

#[tokio::test]
async fn a_canary_goes_first_and_stops_the_rest_if_it_fails() {
    let mail = Mail::with_worker().await;
    mail.ramped_and_back();
    mail.died_on_v2(1..=20).await;
    let now = mail.now_us().await;
    let released = async |n: usize| {
        eventually("the canary is in line", patience(Duration::from_secs(20)), async || {
            mail.in_line().await.len() == n
        })
        .await;
    };
    // Nobody works: they do not end.
    let ran = mail
        .shell
        .run(&format!("{REFUND} --canary 2 --canary-timeout 300ms -o json"))
        .exits(UNCONFIRMED)
        .tells("0 of 2 done, 2 not ended")
        .tells("--after 2-0 --until 20-0");
    assert_eq!(
        (&ran.json()["done"], &ran.json()["finished"]),
        (&json!(2), &json!(false))
    );
    assert_eq!(mail.in_line().await.len(), 2, "the others stay");

    // One fails again.
    let process = mail.spawn(&format!("{REFUND} --canary 2"));
    released(4).await;
    mail.settled("order-3", "v1", 3, now, "released").await;
    mail.settled("order-3", "v1", 3, now, "done").await;
    mail.settled("order-4", "v1", 3, now, "retried").await;
    assert_eq!(process.wait().await.code(), Some(REFUSED), "{:#?}", process.lines());
    let said = process.lines().join("\n");
    assert!(said.contains("1 of 2 done, 1 failed (order-4: failed)"), "{said}");
    assert!(said.contains("--after 4-0 --until 20-0"), "{said}");
    assert_eq!(mail.in_line().await.len(), 4);

    // One may fail; and somebody may lose patience.
    let process = mail.spawn(&format!("{REFUND} --canary 2"));
    released(6).await;
    process.interrupt();
    assert_eq!(process.wait().await.code(), Some(FAILED));
    let process = mail.spawn(&format!("{REFUND} --canary 3 --canary-failures 1 -o jsonl"));
    released(9).await;
    mail.settled("order-7", "v1", 3, now, "done").await;
    mail.settled("order-8", "v1", 3, now, "dead").await;
    mail.server
        .cli(&["XADD", LOG, "*", "kind", "cancel", "text", "order-9: removed"])
        .await;
    assert_eq!(process.wait().await.code(), Some(OK), "{:#?}", process.lines());
    let view: Value = process
        .lines()
        .iter()
        .find_map(|line| serde_json::from_str(line).ok())
        .unwrap();
    let canary = &view["canary"];
    assert_eq!(
        (
            &canary["verdict"],
            &canary["done"],
            &canary["died"],
            &canary["cancelled"]
        ),
        (&json!("passed"), &json!(1), &json!(1), &json!(1))
    );
    assert_eq!((mail.in_line().await.len(), &view["finished"]), (20, &json!(true)));
}
