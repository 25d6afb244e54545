//! `switchback` as an operator runs it: the real binary against a real server, with sessions instead of workers.

use std::process::{Command, Stdio};
use std::time::Duration;

use redis::Value as Reply;
use serde_json::{Value, json};
use switchback_common::store::session::{Joined, SessionRecord, SessionStore};
use switchback_common::{ConnectOptions, Queue, SessionId, Store, Version};
use switchback_tests::{Process, RedisServer, eventually};
use tempfile::TempDir;

pub(crate) const OK: i32 = 0;
pub(crate) const FAILED: i32 = 1;
pub(crate) const USAGE: i32 = 2;
pub(crate) const UNREACHABLE: i32 = 3;
pub(crate) const NOT_FOUND: i32 = 4;
pub(crate) const REFUSED: i32 = 5;
pub(crate) const UNCONFIRMED: i32 = 6;

/// An operator's shell: a home and a directory of its own, nothing inherited.
pub(crate) struct Shell {
    pub(crate) url: String,
    pub(crate) dir: TempDir,
}

#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }

    /// With `now` for what is seconds old: how long a few commands take is the machine's affair.
    pub(crate) fn recent(mut self) -> Self {
        while let Some((before, after)) = self.stdout.split_once(" s ago") {
            let before = before.trim_end_matches(|c: char| c.is_ascii_digit());
            self.stdout = format!("{before}now{after}");
        }
        self
    }

    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "no {text:?} on stdout: {self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn tells(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?} on stderr: {self:#?}");
        self
    }
}

impl Shell {
    pub(crate) fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn bare(&self, args: &[&str]) -> Command {
        let mut command = Command::new(Process::binary("switchback"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("USER", "alice")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.bare(args);
        command
            .env("SWITCHBACK_REDIS_URL", &self.url)
            .env("SWITCHBACK_NAMESPACE", "shop");
        command
    }

    pub(crate) fn run(&self, line: &str) -> Ran {
        self.args(&line.split(' ').collect::<Vec<_>>())
    }

    pub(crate) fn args(&self, args: &[&str]) -> Ran {
        finish(&mut self.command(args))
    }

    /// Every format must be well-formed; the JSON is returned.
    pub(crate) fn json(&self, line: &str) -> Value {
        let yaml = self.run(&format!("{line} -o yaml")).exits(OK);
        assert!(!yaml.stdout.is_empty());
        for text in self.run(&format!("{line} -o jsonl")).exits(OK).stdout.lines() {
            serde_json::from_str::<Value>(text).unwrap();
        }
        self.run(&format!("{line} -o json")).exits(OK).json()
    }
}

pub(crate) fn finish(command: &mut Command) -> Ran {
    let output = command.output().expect("running switchback");
    Ran {
        code: output.status.code().expect("an exit code"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8 on stdout"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8 on stderr"),
    }
}

/// The queue shop/mail, and sessions on it.
pub(crate) struct Mail {
    pub(crate) server: RedisServer,
    pub(crate) shell: Shell,
    pub(crate) store: Store,
    pub(crate) queue: Queue,
}

impl Mail {
    pub(crate) async fn new() -> Self {
        let server = RedisServer::start().await;
        Self {
            shell: Shell::new(server.url()),
            store: Store::new(&ConnectOptions::new(server.url())).unwrap(),
            queue: Queue::new("shop".parse().unwrap(), "mail".parse().unwrap()),
            server,
        }
    }

    /// With one session that has v1 and v2, gate at v1.
    pub(crate) async fn with_worker() -> Self {
        let mail = Self::new().await;
        mail.join(&["v1", "v2"], 4711).await;
        mail
    }

    pub(crate) fn sessions(&self) -> SessionStore {
        SessionStore::new(&self.store, &self.queue)
    }

    pub(crate) async fn join(&self, versions: &[&str], pid: u32) -> SessionId {
        let session = SessionId::random();
        let record = SessionRecord {
            host: "web-3".to_owned(),
            pid,
            build: "b1".to_owned(),
            versions: versions.iter().map(|v| v.parse::<Version>().unwrap()).collect(),
            concurrency: 8,
            started_ms: 1_700_000_000_000,
        };
        let joined = self.sessions().join(&session, Duration::from_secs(600), &record).await;
        assert!(matches!(joined, Ok(Joined::Yes { .. })), "{joined:?}");
        session
    }

    pub(crate) async fn confirm(&self, session: &SessionId, rev: u64, running: &str) {
        self.sessions().publish(session, rev, running).await.unwrap();
    }

    /// A version that is known and that nobody has any more.
    pub(crate) async fn join_and_leave(&self, versions: &[&str]) {
        let session = self.join(versions, 1).await;
        self.sessions().leave(&session, &[], "test").await.unwrap();
    }

    pub(crate) fn set(&self, fields: &str) {
        self.shell.run(&format!("gate set mail {fields}")).exits(OK);
    }

    pub(crate) fn rev(&self) -> u64 {
        self.shell.run("gate show mail -o json").exits(OK).json()["rev"]
            .as_u64()
            .unwrap()
    }

    pub(crate) fn gate(&self) -> Value {
        self.shell.run("gate show mail -o json").exits(OK).json()["gate"].clone()
    }
}

fn gate(active: &str, candidate: Option<(&str, f64)>) -> Value {
    json!({
        "active": active, "candidate": candidate.map(|c| c.0), "percent": candidate.map_or(0.0, |c| c.1),
        "pins": {}, "targets": {}, "paused": false
    })
}

#[tokio::test]
async fn a_ramp_is_rolled_back_in_one_step() {
    let mail = Mail::with_worker().await;
    mail.set("candidate=v2 percent=25");
    let ran = mail
        .shell
        .args(&["gate", "rollback", "mail", "--why", "bounces doubled", "-o", "json"])
        .exits(OK)
        .tells("mail: v1, v2 at 25 % -> v1 only");
    let view = ran.json();
    assert_eq!(
        (&view["before"], &view["after"]),
        (&gate("v1", Some(("v2", 25.0))), &gate("v1", None))
    );
    assert_eq!((&view["changed"], &view["rev"]), (&json!(true), &json!(3)));
    assert_eq!(mail.gate(), gate("v1", None));

    let history = mail.shell.json("gate history mail");
    let newest = &history[0];
    assert_eq!(
        (&newest["by"], &newest["why"], &newest["source"], &newest["rev"]),
        (&json!("alice"), &json!("bounces doubled"), &json!("cli"), &json!(3))
    );
    assert_eq!(history.as_array().unwrap().len(), 3, "one revision per change");
    let table = mail.shell.run("gate history mail --limit 2").exits(OK);
    let table = table
        .recent()
        .says("candidate v2 at 25 % -> none")
        .says("bounces doubled")
        .says("now");
    assert_eq!(table.stdout.lines().count(), 3, "{table:?}");
}

#[tokio::test]
async fn a_promotion_is_rolled_back_and_never_forward_again() {
    let mail = Mail::with_worker().await;
    mail.set("active=v2");
    mail.shell
        .run("gate rollback mail")
        .exits(OK)
        .says("v1 active at revision 3")
        .tells("v2 only -> v1 only");
    // A second hand in the same minute must not bring the bad version back.
    let again = mail.shell.run("gate rollback mail").exits(OK);
    again
        .says("v1 active at revision 3 (it was so already)")
        .tells("already rolled back to v1 at revision 3");
    assert_eq!(mail.gate(), gate("v1", None));
    mail.shell
        .run("gate rollback mail --to v2")
        .exits(OK)
        .says("v2 active at revision 4");
}

#[tokio::test]
async fn a_rollback_needs_somewhere_to_go() {
    let mail = Mail::with_worker().await;
    mail.shell
        .run("gate rollback mail")
        .exits(REFUSED)
        .tells("no earlier active version")
        .tells("--to");
    let unknown = mail.shell.run("gate rollback mail --to v9").exits(REFUSED);
    unknown.tells("unknown version").tells("v1, v2");
    assert_eq!(mail.rev(), 1);
}

#[tokio::test]
async fn a_rollback_to_a_version_without_workers_happens_and_says_so() {
    let mail = Mail::new().await;
    mail.join_and_leave(&["v1"]).await;
    mail.join(&["v2"], 1).await;
    mail.set("active=v2");
    let ran = mail
        .shell
        .run("gate rollback mail -o json")
        .exits(OK)
        .tells("WARNING: no live worker has v1");
    assert!(ran.json()["warnings"][0].as_str().unwrap().contains("v1"), "{ran:?}");
    assert_eq!(mail.gate(), gate("v1", None));
    // The other way round is refused: it would only park tasks.
    mail.server.cli(&["HSET", "sb:gate:{shop:mail}", "only", "v2"]).await;
    let refused = mail.shell.run("gate set mail candidate=v1 percent=5").exits(REFUSED);
    refused.tells("no live worker of shop/mail has v1").tells("--force");
    assert_eq!(mail.gate(), gate("v2", None));
    mail.shell
        .run("gate set mail candidate=v1 percent=5 --force")
        .exits(OK)
        .tells("WARNING");
    assert_eq!(mail.gate(), gate("v2", Some(("v1", 5.0))));
}

#[tokio::test]
async fn a_rollback_works_on_a_server_that_workers_would_refuse() {
    let mail = Mail::with_worker().await;
    mail.set("active=v2");
    mail.server.cli(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    mail.server
        .cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
        .await;
    mail.shell.run("gate rollback mail").exits(OK).says("v1 active");
    mail.shell
        .run("task enqueue mail --payload 1")
        .exits(FAILED)
        .tells("out of memory");
    mail.server.cli(&["CONFIG", "SET", "maxmemory", "0"]).await;
    mail.server
        .cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])
        .await;
    mail.shell
        .run("gate rollback mail --to v2")
        .exits(OK)
        .tells("WARNING")
        .tells("allkeys-lru");
}

#[tokio::test]
async fn a_lost_gate_state_is_brought_back_by_naming_the_version() {
    let mail = Mail::with_worker().await;
    mail.server.cli(&["DEL", "sb:gatestate:{shop:mail}"]).await;
    mail.shell
        .run("gate show mail")
        .exits(NOT_FOUND)
        .tells("shop/mail has no gate");
    mail.shell.run("gate rollback mail").exits(NOT_FOUND);
    mail.shell
        .run("queue show mail")
        .exits(OK)
        .says("the gate state is lost");
    mail.shell
        .run("gate rollback mail --to v1")
        .exits(OK)
        .says("v1 active at revision 2");
}

#[tokio::test]
async fn wait_returns_when_everyone_obeys() {
    let mail = Mail::new().await;
    let first = mail.join(&["v1", "v2"], 1).await;
    let second = mail.join(&["v1", "v2"], 2).await;
    mail.set("active=v2");
    for session in [&first, &second] {
        mail.confirm(session, 2, "{}").await;
    }
    let mut command = mail
        .shell
        .command(&["gate", "rollback", "mail", "--wait", "--timeout", "60s"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the rollback is sealed", Duration::from_secs(10), async || {
        mail.server.cli(&["HGET", "sb:gatestate:{shop:mail}", "rev"]).await == Reply::BulkString(b"3".to_vec())
    })
    .await;
    mail.confirm(&first, 3, r#"{"v1":4,"v2":3}"#).await;
    mail.confirm(&second, 3, r#"{"v2":2}"#).await;
    let output = child.wait_with_output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(OK), "{line}");
    assert!(line.starts_with("v1 active at revision 3 · 2/2 workers in "), "{line}");
    assert!(line.trim_end().ends_with(" · 5 attempts of v2 still running"), "{line}");

    let view = mail.shell.run("gate rollback mail --wait -o json").exits(OK).json();
    assert_eq!(view["confirmation"]["confirmed"], 2);
    assert_eq!(view["confirmation"]["running"], json!({"v1": 4, "v2": 5}));
}

#[tokio::test]
async fn wait_names_who_did_not_confirm() {
    let mail = Mail::new().await;
    let good = mail.join(&["v1", "v2"], 1).await;
    let slow = mail.join(&["v1", "v2"], 4711).await;
    mail.confirm(&good, 99, "{}").await;
    mail.confirm(&slow, 1, "{}").await;
    mail.shell
        .run("gate set mail active=v2 --wait --timeout 20ms")
        .exits(UNCONFIRMED)
        .says("v2 active at revision 2 · 1/2 workers in ")
        .tells("committed, but not confirmed: 1 of 2 workers")
        .tells("web-3/4711")
        .tells("last seen revision 1");
    let ran = mail
        .shell
        .run("gate rollback mail --wait --timeout 20ms -o json")
        .exits(UNCONFIRMED);
    let missing = &ran.json()["confirmation"]["missing"];
    assert_eq!(
        (&missing[0]["host"], &missing[0]["pid"], &missing[0]["rev"]),
        (&json!("web-3"), &json!(4711), &json!(1))
    );
    // Whoever is gone need not confirm.
    mail.server
        .cli(&["DEL", &format!("sb:lease:{{shop:mail}}:{slow}")])
        .await;
    mail.shell
        .run("gate rollback mail --wait")
        .exits(OK)
        .says("1/1 worker in ");
}

#[tokio::test]
async fn a_change_is_refused_when_the_revision_moved() {
    let mail = Mail::with_worker().await;
    for verb in ["set mail candidate=v2", "rollback mail --to v2", "pause mail"] {
        let ran = mail.shell.run(&format!("gate {verb} --if-rev 7")).exits(REFUSED);
        ran.tells("at revision 1 (v1 only), not 7");
    }
    assert_eq!(mail.rev(), 1);
    mail.shell
        .run("gate set mail candidate=v2 percent=10 --if-rev 1")
        .exits(OK);
    assert_eq!(mail.rev(), 2);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let mail = Mail::with_worker().await;
    mail.set("candidate=v2 percent=25");
    let before = mail.shell.run("gate history mail -o json").stdout;
    mail.shell
        .run("gate rollback mail --dry-run")
        .exits(OK)
        .says("mail: v1, v2 at 25 % -> v1 only · dry run");
    mail.shell
        .run("gate set mail active=v2 --dry-run")
        .exits(OK)
        .says("v1, v2 at 25 % -> v2 only");
    mail.shell
        .run("gate pause mail --dry-run")
        .exits(OK)
        .says("-> v1, v2 at 25 %, paused");
    mail.shell
        .run("gate set mail percent=25 --dry-run")
        .exits(OK)
        .says("(no change)");
    let view = mail.shell.run("gate rollback mail --dry-run -o json").exits(OK).json();
    assert_eq!(
        (&view["dry_run"], &view["changed"], &view["rev"]),
        (&json!(true), &json!(false), &json!(3))
    );
    mail.shell.run("gate set mail percent=150 --dry-run").exits(REFUSED);
    assert_eq!(mail.shell.run("gate history mail -o json").stdout, before);
    assert_eq!(mail.gate(), gate("v1", Some(("v2", 25.0))));
}

#[tokio::test]
async fn set_pause_and_resume() {
    let mail = Mail::with_worker().await;
    let ran = mail.shell.args(&[
        "gate",
        "set",
        "mail",
        "candidate=v2",
        "percent=0.5%",
        "pins=cust-7=v2 cust-1=v1",
    ]);
    ran.exits(OK)
        .says("v1 active, v2 at 0.5 %, 2 pinned at revision 2")
        .tells("v1 only -> v1, v2 at 0.5 %, 2 pins");
    mail.shell
        .run("gate show mail")
        .exits(OK)
        .says("PINS      cust-1=v1 cust-7=v2")
        .says("by alice (cli)");
    assert_eq!(mail.gate()["pins"], json!({"cust-1": "v1", "cust-7": "v2"}));
    mail.shell
        .run("gate pause mail --why deploy")
        .exits(OK)
        .says("paused at revision 3");
    mail.shell
        .run("queue show mail")
        .exits(OK)
        .says("!! paused")
        .says("by alice (deploy)");
    mail.shell
        .run("gate rollback mail")
        .exits(OK)
        .tells("WARNING: shop/mail is paused")
        .says("v1 active, 1 pinned, paused");
    mail.shell
        .run("gate resume mail")
        .exits(OK)
        .says("v1 active, 1 pinned at revision 5");
    mail.shell.run("gate resume mail").exits(OK).says("(it was so already)");
    // The candidate belonged to the old active version: it goes with it, and that is said.
    mail.join(&["v3"], 9).await;
    mail.set("candidate=v2 percent=10");
    mail.shell
        .run("gate set mail active=v3")
        .exits(OK)
        .tells("part of the change was dropped: candidate=v2");
    mail.shell
        .run("gate history mail")
        .exits(OK)
        .says("(dropped candidate=v2)");
    let own = mail.shell.run("gate set mail candidate=v3 percent=10").exits(OK);
    own.tells("v3 is the active version: it cannot be its own candidate");
    // What is void without a candidate is no loss of the edit.
    mail.set("candidate=v2 percent=10");
    let ran = mail.shell.run("gate set mail candidate=").exits(OK);
    assert!(!ran.stderr.contains("dropped"), "{ran:#?}");
}

#[tokio::test]
async fn wrong_values_are_refused_and_wrong_words_are_usage() {
    let mail = Mail::with_worker().await;
    for (fields, why) in [
        ("percent=150", "percent=150: not a number from 0 to 100"),
        ("candidate=v2 percent=-1", "percent"),
        ("active=v9", "unknown version"),
        ("active=", "active="),
        ("paused=flase", "neither true nor false"),
        ("pins=nonsense", "not key=version"),
        ("percent=10", "there is no candidate"),
    ] {
        mail.shell
            .run(&format!("gate set mail {fields}"))
            .exits(REFUSED)
            .tells(why)
            .tells("nothing was changed");
    }
    for line in [
        "gate set mail activ=v1",
        "gate set mail active",
        "gate set mail",
        "gate set mail active=v1 active=v2",
        "gate show a/b",
        "gate show mail --if-rev 1",
        "gate rollback mail --to a=b",
        "gate rollback mail --timeout 3s",
        "gate rollback mail --wait --timeout soon",
        "gate show mail -o xml",
        "gate show mail -n a:b",
        "task show mail a/b",
        "task enqueue mail",
        "task enqueue mail --payload {",
        "task enqueue mail --payload 1 -",
        "task enqueue mail --file nowhere.json",
        "nonsense",
        "gate",
    ] {
        let ran = mail.shell.run(line).exits(USAGE);
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{line}: {ran:?}");
    }
    assert_eq!(mail.rev(), 1);
    mail.shell.run("--help").exits(OK).says("Exit codes");
    mail.shell.run("gate show --help").exits(OK).says("JSON: {queue");
}

#[tokio::test]
async fn an_edit_by_hand_that_was_refused_is_shown() {
    let mail = Mail::with_worker().await;
    mail.server
        .cli(&["HSET", "sb:gate:{shop:mail}", "percent", "150", "by", "bob\u{1b}[2J"])
        .await;
    mail.shell
        .run("gate show mail")
        .exits(OK)
        .says("GATE      v1 only")
        .says("was refused")
        .says("percent");
    let history = mail
        .shell
        .run("gate history mail")
        .exits(OK)
        .says("REFUSED percent=150: not a number");
    assert!(
        !history.stdout.contains('\u{1b}'),
        "nothing steers the terminal: {history:?}"
    );
    assert_eq!(mail.shell.json("gate history mail")[0]["kind"], "refused");
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let mail = Mail::with_worker().await;
    for line in [
        "gate show mial",
        "gate set mial active=v1",
        "gate rollback mial",
        "gate rollback mial --to v1",
        "gate pause mial",
        "gate history mial",
        "queue show mial",
        "task show mial x",
        "dead ls mial",
        "dead show mial 1-0",
        "worker ls mial",
    ] {
        let ran = mail
            .shell
            .run(line)
            .exits(NOT_FOUND)
            .tells("no such queue mial in namespace shop; there are: mail");
        assert!(ran.stdout.is_empty(), "{line}: {ran:?}");
    }
    mail.shell
        .run("gate rollback mail -n shpo")
        .exits(NOT_FOUND)
        .tells("in namespace shpo; there are none");
    mail.shell
        .run("task show mail nope")
        .exits(NOT_FOUND)
        .tells("not within the window");
    mail.shell.run("dead show mail 1-0").exits(NOT_FOUND);
    let keys = mail.server.cli(&["KEYS", "*mial*"]).await;
    assert_eq!(keys, Reply::Array(Vec::new()), "a typo creates nothing");
}

#[tokio::test]
async fn an_empty_namespace_is_no_error() {
    let mail = Mail::new().await;
    for line in ["queue ls", "worker ls"] {
        let ran = mail.shell.run(line).exits(OK).tells("in namespace shop");
        assert!(ran.stdout.is_empty(), "{ran:?}");
        assert_eq!(mail.shell.run(&format!("{line} -o json")).exits(OK).json(), json!([]));
        assert_eq!(mail.shell.run(&format!("{line} -o jsonl")).exits(OK).stdout, "");
    }
}

#[tokio::test]
async fn queues_are_listed_with_what_needs_attention() {
    let mail = Mail::with_worker().await;
    mail.shell
        .run("task enqueue orders --payload {}")
        .exits(OK)
        .tells("no worker has joined");
    let table = mail
        .shell
        .run("queue ls")
        .exits(OK)
        .says("mail")
        .says("v1 only")
        .says("orders");
    assert!(
        table
            .stdout
            .lines()
            .any(|l| l.starts_with("orders") && l.contains("no gate, no workers")),
        "{table:?}"
    );
    // P7: a broken queue hides no other.
    mail.server.cli(&["SET", "sb:gatestate:{shop:orders}", "x"]).await;
    let rows = mail.shell.json("queue ls");
    assert_eq!(
        (&rows[0]["task_type"], &rows[0]["live_workers"]),
        (&json!("mail"), &json!(1))
    );
    assert!(rows[1]["error"].as_str().unwrap().contains("WRONGTYPE"), "{rows}");
    mail.shell.run("gate show orders").exits(FAILED).tells("WRONGTYPE");
}

#[tokio::test]
async fn one_queue_is_shown_with_loud_hints() {
    let mail = Mail::with_worker().await;
    for n in 0..3 {
        mail.shell.run(&format!("task enqueue mail --payload {n}")).exits(OK);
    }
    let consumer = [
        "XREADGROUP",
        "GROUP",
        "workers",
        "ghost",
        "COUNT",
        "1",
        "STREAMS",
        "sb:stream:{shop:mail}",
        ">",
    ];
    mail.server.cli(&consumer).await;
    mail.join_and_leave(&["v0"]).await;
    for n in ["1", "2"] {
        mail.server
            .cli(&["XADD", "sb:lane:{shop:mail}:v0", "*", "payload", n])
            .await;
    }
    mail.server
        .cli(&["XADD", "sb:dead:{shop:mail}", "*", "payload", "1"])
        .await;
    mail.shell
        .run("queue show mail")
        .exits(OK)
        .says("! 2 tasks parked in the lane of v0, which is withdrawn");
    mail.set("candidate=v0 percent=10 --force");
    let view = mail.shell.json("queue show mail");
    let depth = &view["depth"];
    assert_eq!(
        [
            &depth["waiting"],
            &depth["in_flight"],
            &depth["delayed"],
            &depth["dead"]
        ],
        [&json!(4), &json!(1), &json!(0), &json!(1)]
    );
    let codes: Vec<&str> = view["hints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|h| h["code"].as_str().unwrap())
        .collect();
    assert_eq!(
        codes,
        ["no_worker_for_version", "parked", "unconfirmed", "dead_letters"],
        "{view}"
    );
    let table = mail
        .shell
        .run("queue show mail")
        .exits(OK)
        .says("4 waiting · 1 in flight · 0 delayed · 1 dead");
    table
        .says("!! 2 tasks parked in the lane of v0")
        .says("lane:v0")
        .says("switchback dead ls mail");

    mail.server
        .cli(&["XGROUP", "DESTROY", "sb:stream:{shop:mail}", "workers"])
        .await;
    mail.shell
        .run("queue show mail")
        .exits(OK)
        .says("NOGROUP: the main stream");
    mail.server.cli(&["HDEL", "sb:sessions:{shop:mail}", "x"]).await;
    for session in mail.sessions().list().await.unwrap() {
        mail.server
            .cli(&["DEL", &format!("sb:lease:{{shop:mail}}:{}", session.id)])
            .await;
    }
    mail.shell
        .run("queue show mail")
        .exits(OK)
        .says("!! no live worker")
        .says("1 session lost");
}

#[tokio::test]
async fn suspects_are_shown_for_what_they_are() {
    let mail = Mail::with_worker().await;
    let quiet = mail.shell.run("queue show mail").exits(OK);
    assert!(!quiet.stdout.contains("may have run"), "{quiet:?}");
    let mut add = vec!["XADD", "sb:suspect:{shop:mail}", "*", "payload", "7", "id", "t-7"];
    add.extend(["deaths", "2", "recovered", "3"]);
    mail.server.cli(&add).await;
    let depth = mail.shell.json("queue show mail")["depth"].clone();
    assert_eq!(
        (&depth["waiting"], &depth["streams"][2]["name"]),
        (&json!(1), &json!("suspect"))
    );
    assert_eq!(depth["streams"][2]["waiting"], 1);
    mail.shell
        .run("queue show mail")
        .exits(OK)
        .says("1 suspect: a process died while they may have run");
    let view = mail.shell.json("task show mail t-7");
    assert_eq!([&view["deaths"], &view["recovered"]], [&json!(2), &json!(3)]);
    mail.shell
        .run("task show mail t-7")
        .exits(OK)
        .says("waiting among the suspects: its process died");
}

#[tokio::test]
async fn tasks_are_enqueued_from_everywhere_and_found() {
    let mail = Mail::with_worker().await;
    let ran = mail.shell.args(&[
        "task",
        "enqueue",
        "mail",
        "--payload",
        r#"{"to": "ada"}"#,
        "--key",
        "cust-7",
    ]);
    let id = ran.exits(OK).stdout.trim().to_owned();
    let view = mail.shell.json(&format!("task show mail {id}"));
    assert_eq!(
        [
            &view["state"],
            &view["place"],
            &view["key"],
            &view["payload"],
            &view["payload_encoding"]
        ],
        [
            &json!("waiting"),
            &json!("main"),
            &json!("cust-7"),
            &json!(r#"{"to": "ada"}"#),
            &json!("utf8")
        ]
    );
    mail.shell
        .run(&format!("task show mail {id}"))
        .exits(OK)
        .says("waiting in main")
        .says(r#"{"to": "ada"}"#);

    // Twice under one id is once.
    std::fs::write(
        mail.shell.dir.path().join("task.json"),
        "[1e400, 10000000000000000000000]\n",
    )
    .unwrap();
    for _ in 0..2 {
        let ran = mail
            .shell
            .run("task enqueue mail --file task.json --id order-42 -o json")
            .exits(OK);
        let told = json!({"queue": "shop/mail", "id": "order-42", "existing": false});
        assert_eq!(ran.json(), told);
    }
    let view = mail.shell.json("task show mail order-42");
    assert_eq!(view["payload"], "[1e400, 10000000000000000000000]", "as it was typed");

    std::fs::write(mail.shell.dir.path().join("stdin"), "7").unwrap();
    let stdin = std::fs::File::open(mail.shell.dir.path().join("stdin")).unwrap();
    let ran = finish(mail.shell.command(&["task", "enqueue", "mail", "-"]).stdin(stdin)).exits(OK);
    let in_flight = ran.stdout.trim();
    assert_eq!(mail.server.cli(&["XLEN", "sb:stream:{shop:mail}"]).await, Reply::Int(3));

    let worker = mail.join(&["v1"], 5).await;
    let mut claim = vec!["XREADGROUP", "GROUP", "workers", worker.as_str()];
    claim.extend(["STREAMS", "sb:stream:{shop:mail}", ">"]);
    mail.server.cli(&claim).await;
    let view = mail.shell.json(&format!("task show mail {in_flight}"));
    assert_eq!(
        (&view["state"], &view["held_by"]["pid"]),
        (&json!("in_flight"), &json!(5))
    );
    mail.shell
        .run(&format!("task show mail {in_flight}"))
        .exits(OK)
        .says("web-3/5");
}

#[tokio::test]
async fn tasks_are_cancelled_and_the_answer_says_what_that_means() {
    let mail = Mail::with_worker().await;
    let enqueue = || {
        let ran = mail
            .shell
            .run("task enqueue mail --payload 1 --keep-result 60s")
            .exits(OK);
        ran.stdout.trim().to_owned()
    };
    let ids: Vec<String> = (0..3).map(|_| enqueue()).collect();
    let (held, waits) = (&ids[0], &ids[1]);
    let worker = mail.join(&["v1"], 5).await;
    let stream = "sb:stream:{shop:mail}";
    let mut claim = vec!["XREADGROUP", "GROUP", "workers", worker.as_str(), "COUNT", "1"];
    claim.extend(["STREAMS", stream, ">"]);
    mail.server.cli(&claim).await;
    let outcomes = |ran: Ran| -> Vec<(String, bool)> {
        let list = ran.json();
        let one = |v: &Value| {
            (
                v["outcome"].as_str().unwrap().to_owned(),
                v["cancelled"].as_bool().unwrap(),
            )
        };
        list.as_array().unwrap().iter().map(one).collect()
    };
    let said = |word: &str, cancelled| (word.to_owned(), cancelled);

    let line = format!("task cancel mail {held} {waits} --dry-run -o json");
    let dry = outcomes(mail.shell.run(&line).exits(OK));
    assert_eq!(dry, [said("running", false), said("waiting", false)]);
    assert_eq!(
        mail.server.cli(&["EXISTS", "sb:cancel:{shop:mail}"]).await,
        Reply::Int(0)
    );
    let line = format!("task cancel mail {held} {waits} --unstarted -o json");
    let ran = mail
        .shell
        .run(&line)
        .exits(REFUSED)
        .tells("1 of 2 tasks of shop/mail cannot be cancelled");
    assert_eq!(outcomes(ran), [said("started", false), said("waiting", true)]);
    for _ in 0..2 {
        mail.shell
            .run(&format!("task cancel mail {held} --why INC-7"))
            .exits(OK)
            .says("its handler is told");
    }
    let view = mail.shell.json(&format!("task show mail {held}"));
    assert_eq!(
        (&view["state"], &view["held_by"]["version"]),
        (&json!("in_flight"), &json!("v1"))
    );
    assert!(view["cancel_asked_at_us"].as_u64() > Some(0), "{view}");

    // The worker settles it.
    let key = |key: fn(Queue) -> switchback_common::store::keyspace::Key| {
        mail.store.keyspace().render(&key(mail.queue.clone()))
    };
    let task: switchback_common::TaskId = held.parse().unwrap();
    let entry = task.entry(switchback_common::id::stream_salt(stream)).unwrap();
    use switchback_common::store::{keyspace::Key, results::Report, settle};
    let streams = vec![key(Key::Stream), key(Key::Head)];
    let settler = settle::Settler::new(&mail.store, &mail.queue, &worker, streams)
        .await
        .unwrap();
    let keep = |report: Report| {
        Some(Box::new(settle::Keep {
            task: task.clone(),
            ms: 60_000,
            tail: report.tail(),
        }))
    };
    let single = settle::Single {
        stream: 0,
        entry,
        fate: settle::Fate::Cancelled { else_to: 1 },
        fields: vec![("id", held.clone())],
        keep: keep(Report::default()),
    };
    let batch = settle::Batch {
        singles: vec![single],
        ..settle::Batch::default()
    };
    settler.settle(&batch).await.unwrap();
    let view = mail.shell.json(&format!("task show mail {held}"));
    assert_eq!(
        (&view["state"], &view["kept"]["state"]),
        (&json!("cancelled"), &json!("cancelled"))
    );
    assert_eq!(view["cancel_asked_at"], Value::Null, "its mark is gone");
    mail.shell
        .run(&format!("task show mail {held}"))
        .exits(OK)
        .says("cancelled (its entry is kept");
    mail.shell
        .run(&format!("task wait mail {held} --timeout 5s"))
        .exits(FAILED)
        .tells("was cancelled");
    mail.shell
        .run(&format!("task cancel mail {held}"))
        .exits(REFUSED)
        .says("already done");

    // Dead letters, and ids that nobody knows.
    mail.server
        .cli(&[
            "XADD",
            "sb:dead:{shop:mail}",
            "*",
            "id",
            "gone-wrong",
            "payload",
            "1",
            "dead_reason",
            "attempts",
        ])
        .await;
    mail.shell
        .run("task cancel mail gone-wrong")
        .exits(REFUSED)
        .says("use `switchback dead`");
    let marks = mail.server.cli(&["ZRANGE", "sb:cancel:{shop:mail}", "0", "-1"]).await;
    assert_eq!(
        marks,
        Reply::Array(vec![Reply::BulkString(waits.clone().into_bytes())]),
        "no surprise later"
    );
    mail.shell
        .run("task cancel mail nobody")
        .exits(NOT_FOUND)
        .says("not within the window");
    mail.shell
        .run("task cancel mial nobody")
        .exits(NOT_FOUND)
        .tells("no such queue");
    assert_eq!(
        mail.server.cli(&["EXISTS", "sb:cancel:{shop:mial}"]).await,
        Reply::Int(0)
    );
}

#[tokio::test]
async fn a_result_is_waited_for() {
    let mail = Mail::with_worker().await;
    let ran = mail
        .shell
        .run("task enqueue mail --payload 1 --id order-1 --keep-result 60s")
        .exits(OK);
    assert_eq!(ran.stdout.trim(), "order-1");
    let key = "sb:result:{shop:mail}:order-1";
    let wait = "task wait mail order-1 --timeout 10ms";
    mail.shell.run(wait).exits(UNCONFIRMED).tells("it goes on");
    let put = async |json: &str| mail.server.cli(&["SET", key, json]).await;
    put(r#"{"state":"running","at_ms":5,"attempt":1,"version":"v1","progress":{"done":3,"total":10,"note":"half"}}"#)
        .await;
    mail.shell.run(wait).exits(UNCONFIRMED).tells("(3 of 10: half)");
    mail.shell.run("task show mail order-1").exits(OK).says("3 of 10: half");
    put(r#"{"state":"done","at_ms":5,"attempt":1,"version":"v1","result":{"mails":[1,2]}}"#).await;
    let ran = mail.shell.run(wait).exits(OK);
    assert_eq!(ran.json(), json!({"mails": [1, 2]}));
    let view = mail.shell.json(wait);
    assert_eq!(
        (&view["state"], &view["result"]["mails"][1]),
        (&json!("done"), &json!(2))
    );
    put(r#"{"state":"dead","at_ms":5,"attempt":3,"error":"no such customer"}"#).await;
    mail.shell
        .run(wait)
        .exits(FAILED)
        .tells("is a dead letter: no such customer");
    mail.shell.run("task wait mail order-1 --timeout -1s").exits(USAGE);
}

#[tokio::test]
async fn what_only_the_log_remembers_is_shown() {
    let mail = Mail::with_worker().await;
    let attempts = json!([{
        "at": 1_700_000_000_000_000_u64, "rev": 1, "version": "v1", "stream": "main",
        "tasks": [["order-42", "1-0", 1, "retried", 12], ["other", "1-1", 1, "done", 1]]
    }]);
    let attempts = attempts.to_string();
    let entry = [
        "kind", "settled", "session", "s1", "attempts", &attempts, "tip", "1-0", "acked", "all",
    ];
    mail.server
        .cli(&[&["XADD", "sb:log:{shop:mail}", "*"], &entry[..]].concat())
        .await;
    let view = mail.shell.json("task show mail order-42");
    assert_eq!((&view["state"], &view["log_complete"]), (&json!("gone"), &json!(true)));
    let attempt = &view["attempts"][0];
    assert_eq!(
        [
            &attempt["outcome"],
            &attempt["version"],
            &attempt["ran_ms"],
            &attempt["gate_read_at"]
        ],
        [
            &json!("retried"),
            &json!("v1"),
            &json!(12),
            &json!("2023-11-14T22:13:20Z")
        ]
    );
    mail.shell
        .run("task show mail order-42")
        .exits(OK)
        .says("only the log speaks of it")
        .says("retried");
}

#[tokio::test]
async fn dead_letters_are_shown_without_loss() {
    let mail = Mail::with_worker().await;
    let errors = r#"[{"attempt":1,"version":"v2","error":"smtp: 550","at_ms":1700000000000}]"#;
    let fields = [
        "id",
        "order-42",
        "payload",
        "{\"a\": 1}",
        "attempt",
        "2",
        "errors",
        errors,
    ];
    let dead = [
        "dead_reason",
        "failed",
        "dead_error",
        "smtp: 551",
        "dead_version",
        "v2",
        "dead_session",
        "s1",
    ];
    let at = ["dead_at", "1700000000000"];
    mail.server
        .cli(&[&["XADD", "sb:dead:{shop:mail}", "5-0"], &fields[..], &dead[..], &at[..]].concat())
        .await;
    // What a foreign producer made of it: not UTF-8, no id.
    let mut connection = mail.server.connection().await;
    let mut xadd = redis::cmd("XADD");
    xadd.arg("sb:dead:{shop:mail}")
        .arg("6-0")
        .arg("payload")
        .arg(b"\xff\x00\\\x1b[2J");
    xadd.arg("attempt").arg("x").arg("dead_reason").arg("malformed");
    let _: String = xadd.query_async(&mut connection).await.unwrap();

    let rows = mail.shell.json("dead ls mail");
    assert_eq!((&rows[0]["entry"], &rows[0]["id"]), (&json!("6-0"), &Value::Null));
    assert_eq!(
        (&rows[1]["id"], &rows[1]["at"]),
        (&json!("order-42"), &json!("2023-11-14T22:13:20Z"))
    );
    mail.shell
        .run("dead ls mail")
        .exits(OK)
        .says("smtp: 551")
        .says("malformed");
    mail.shell
        .run("dead ls mail --limit 1")
        .exits(OK)
        .tells("there are more");

    for id in ["order-42", "5-0"] {
        let view = mail.shell.json(&format!("dead show mail {id}"));
        assert_eq!(
            (&view["payload"], &view["errors"][0]["error"]),
            (&json!("{\"a\": 1}"), &json!("smtp: 550"))
        );
        mail.shell
            .run(&format!("dead show mail {id}"))
            .exits(OK)
            .says("REASON     failed")
            .says("1. v2");
    }
    let view = mail.shell.json("dead show mail 6-0");
    assert_eq!(
        (&view["payload"], &view["payload_encoding"]),
        (&json!(r"\xff\x00\\\x1b[2J"), &json!("escaped"))
    );
    assert_eq!(view["fields"]["attempt"], "x");
    mail.shell
        .run("dead show mail 6-0")
        .exits(OK)
        .says("PAYLOAD, escaped\n\\xff\\x00\\\\\\x1b[2J")
        .says("field `attempt`");
    // `task show` knows where it went.
    let view = mail.shell.json("task show mail order-42");
    assert_eq!(
        (&view["state"], &view["dead"]["reason"]),
        (&json!("dead"), &json!("failed"))
    );
}

#[tokio::test]
async fn workers_are_listed() {
    let mail = Mail::with_worker().await;
    let lost = mail.join(&["v2"], 9).await;
    mail.server
        .cli(&["DEL", &format!("sb:lease:{{shop:mail}}:{lost}")])
        .await;
    for line in ["worker ls", "worker ls mail"] {
        let rows = mail.shell.json(line);
        let row = |pid: u32| {
            rows.as_array()
                .unwrap()
                .iter()
                .find(|r| r["pid"] == pid)
                .unwrap()
                .clone()
        };
        assert_eq!(
            (&row(4711)["state"], &row(4711)["behind"]),
            (&json!("live"), &json!(true))
        );
        assert_eq!((&row(9)["state"], &row(9)["lease_ms"]), (&json!("lost"), &Value::Null));
        mail.shell
            .run(line)
            .exits(OK)
            .says("web-3/4711")
            .says("none (behind)")
            .says("v1 v2");
    }
}

#[tokio::test]
async fn an_unreachable_redis_is_one_line_without_the_password() {
    let shell = Shell::new("redis://:hunter2@127.0.0.1:1");
    for line in [
        "gate rollback mail",
        "gate show mail",
        "queue ls",
        "task enqueue mail --payload 1",
        "worker ls",
    ] {
        let ran = shell
            .run(line)
            .exits(UNREACHABLE)
            .tells("cannot reach Redis at 127.0.0.1:1");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
    let server = RedisServer::builder().arg("--requirepass", "sesame").start().await;
    let shell = Shell::new(format!("redis://:hunter2@127.0.0.1:{}", server.port()));
    let ran = shell
        .run("gate rollback mail")
        .exits(UNREACHABLE)
        .tells("refused our credentials");
    assert!(
        ran.stderr.lines().count() == 1 && !ran.stderr.contains("hunter2"),
        "{ran:?}"
    );
    for line in [
        "gate show mail redis://:hunter2@h",
        "--redis",
        "gate set mail redis://u:hunter2@h",
    ] {
        let ran = shell.run(line);
        assert!(ran.code == USAGE && !ran.stderr.contains(":hunter2@"), "{ran:?}");
    }
}

#[tokio::test]
async fn settings_come_from_flag_environment_and_file_in_this_order() {
    let mail = Mail::with_worker().await;
    let shell = &mail.shell;
    let file = |name: &str, text: &str| {
        let path = shell.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let nowhere = "redis://127.0.0.1:1";
    let good = format!("namespace = \"shop\"\n[redis]\nurl = \"{}\"\n", mail.server.url());
    file(".config/switchback/config.toml", &good);
    finish(&mut shell.bare(&["gate", "show", "mail"])).exits(OK);
    file("switchback.toml", &format!("[redis]\nurl = \"{nowhere}\"\n"));
    finish(&mut shell.bare(&["gate", "show", "mail"])).exits(UNREACHABLE);
    file("other.toml", "namespace = \"shop\"\n[redis]\nurl_file = \"secret\"\n");
    file("secret", &format!("{}\n", mail.server.url()));
    finish(&mut shell.bare(&["gate", "show", "mail", "--config", "other.toml"])).exits(OK);
    shell.run("gate show mail").exits(OK);
    let url = mail.server.url();
    let mut command = shell.bare(&["gate", "show", "mail", "--redis", &url, "-n", "shop"]);
    finish(
        command
            .env("SWITCHBACK_REDIS_URL", nowhere)
            .env("SWITCHBACK_NAMESPACE", "none"),
    )
    .exits(OK);

    for (text, problem) in [
        (
            "[redis]\nurll = \"redis://:hunter2@h\"",
            "line 2, column 1: unknown field `urll`",
        ),
        ("name = 1", "unknown field `name`"),
        ("redis = \"redis://:hunter2@h\"", "invalid type"),
        ("namespace = \"a b\"", "invalid namespace"),
        ("[redis]\nprefix = \"a:b\"", "invalid key prefix"),
        ("[redis]\nurl_file = \"gone\"", "cannot read gone"),
        ("[redis]\nurl = \"htp://:hunter2@h\"", "invalid Redis URL"),
    ] {
        file("bad.toml", text);
        let ran = finish(&mut shell.bare(&["queue", "ls", "--config", "bad.toml"]))
            .exits(USAGE)
            .tells(problem);
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
    finish(&mut shell.bare(&["queue", "ls", "--config", "missing.toml"]))
        .exits(USAGE)
        .tells("cannot read missing.toml");
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let mail = Mail::with_worker().await;
    for line in [
        "gate history mail",
        "queue ls -o jsonl",
        "--help",
        "gate set mail candidate=v2",
    ] {
        let mut command = mail.shell.command(&line.split(' ').collect::<Vec<_>>());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(OK), "{line}: {stderr}");
        assert!(!stderr.contains("panic"), "{line}: {stderr}");
    }
}
