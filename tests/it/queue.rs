//! One queue on a server of its own, seen through the product's store and past it.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{FromRedisValue, aio::MultiplexedConnection};
use switchback_common::{
    ConnectOptions, Queue, SessionId, Store, StreamId,
    store::{
        claim::{Claimer, Want},
        gate::{Found, GateStore, GateText, HistoryEntry, SealWord, Sealed},
        keyspace::Key,
        log::{self, LogEntry},
        reply::Entry,
        session::{Joined, SessionRecord, SessionStore},
    },
};
use switchback_tests::RedisServer;

pub(crate) const LEASE: Duration = Duration::from_secs(600);

pub(crate) struct TestQueue {
    pub(crate) server: RedisServer,
    pub(crate) store: Store,
    pub(crate) queue: Queue,
    pub(crate) gate: GateStore,
    pub(crate) sessions: SessionStore,
    /// The session that seeded the gate, if there is one.
    pub(crate) session: SessionId,
    raw: MultiplexedConnection,
}

impl TestQueue {
    /// A queue that nobody has joined.
    pub(crate) async fn empty() -> Self {
        let server = RedisServer::start().await;
        let store = Store::new(&ConnectOptions::new(server.url())).unwrap();
        let queue = Queue::new("shop".parse().unwrap(), "send_email".parse().unwrap());
        Self {
            raw: server.connection().await,
            gate: GateStore::new(&store, &queue),
            sessions: SessionStore::new(&store, &queue),
            session: SessionId::random(),
            server,
            store,
            queue,
        }
    }

    /// A queue with one session that knows v1, v2 and v3; v1 is active at revision 1.
    pub(crate) async fn seeded() -> Self {
        let it = Self::empty().await;
        let joined = it.join(&it.session, &["v1", "v2", "v3"]).await;
        assert_eq!(joined, Joined::Yes { seeded: true });
        it
    }

    pub(crate) async fn join(&self, session: &SessionId, versions: &[&str]) -> Joined {
        let record = SessionRecord {
            host: "here".into(),
            pid: 1,
            build: "b1".into(),
            versions: versions.iter().map(|v| v.parse().unwrap()).collect(),
            concurrency: 4,
            started_ms: 0,
        };
        self.sessions.join(session, LEASE, &record).await.unwrap()
    }

    // --- past the store, as a person with redis-cli

    /// One command.
    pub(crate) async fn try_cmd<T: FromRedisValue>(&self, args: &[&str]) -> redis::RedisResult<T> {
        let mut raw = self.raw.clone();
        redis::cmd(args[0]).arg(&args[1..]).query_async(&mut raw).await
    }

    pub(crate) async fn cmd<T: FromRedisValue>(&self, args: &[&str]) -> T {
        self.try_cmd(args).await.unwrap_or_else(|e| panic!("{args:?}: {e}"))
    }

    pub(crate) async fn bytes_cmd<T: FromRedisValue>(&self, args: &[&[u8]]) -> T {
        let mut raw = self.raw.clone();
        let name = String::from_utf8(args[0].to_vec()).unwrap();
        redis::cmd(&name).arg(&args[1..]).query_async(&mut raw).await.unwrap()
    }

    pub(crate) fn key(&self, key: fn(Queue) -> Key) -> String {
        self.store.keyspace().render(&key(self.queue.clone()))
    }

    pub(crate) fn lane(&self, version: &str) -> String {
        let key = Key::Lane(self.queue.clone(), version.parse().unwrap());
        self.store.keyspace().render(&key)
    }

    pub(crate) fn lease(&self, session: &SessionId) -> String {
        let key = Key::Lease(self.queue.clone(), session.clone());
        self.store.keyspace().render(&key)
    }

    /// `HSET` of the gate: `hset("only v1 by alice")`.
    pub(crate) async fn hset(&self, edit: &str) {
        let gate = self.key(Key::Gate);
        let args: Vec<&str> = ["HSET", &gate].into_iter().chain(edit.split(' ')).collect();
        self.cmd::<()>(&args).await;
    }

    /// `HDEL` of the gate.
    pub(crate) async fn hdel(&self, fields: &str) {
        let gate = self.key(Key::Gate);
        let args: Vec<&str> = ["HDEL", &gate].into_iter().chain(fields.split(' ')).collect();
        self.cmd::<()>(&args).await;
    }

    /// What a person sees of the gate, as `field=value field=value`, sorted.
    pub(crate) async fn human(&self) -> String {
        let gate = self.key(Key::Gate);
        let fields: BTreeMap<String, String> = self.cmd(&["HGETALL", &gate]).await;
        let parts: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
        parts.join(" ")
    }

    pub(crate) async fn len(&self, stream: &str) -> u64 {
        self.cmd(&["XLEN", stream]).await
    }

    /// Everything in Redis: to show that something changed nothing at all.
    pub(crate) async fn everything(&self) -> BTreeMap<String, Vec<u8>> {
        let mut dump = BTreeMap::new();
        for key in self.cmd::<Vec<String>>(&["KEYS", "*"]).await {
            let value = self.cmd(&["DUMP", &key]).await;
            dump.insert(key, value);
        }
        dump
    }

    // --- through the store

    pub(crate) async fn seal(&self) -> (SealWord, Sealed) {
        let (word, read) = self.gate.seal().await.unwrap().expect("a gate state");
        match read.found {
            Found::Settled(sealed) => (word, (*sealed).clone()),
            found => panic!("{found:?}"),
        }
    }

    /// Edits with `HSET`, seals, and shows the gate in force.
    pub(crate) async fn edit(&self, edit: &str) -> String {
        self.hset(edit).await;
        show(&self.seal().await.1.gate)
    }

    pub(crate) async fn found(&self) -> Found {
        let link = self.store.link().await.unwrap();
        self.gate.read(&link, None).await.unwrap().found
    }

    /// Newest first.
    pub(crate) async fn history(&self) -> Vec<HistoryEntry> {
        self.gate.history(None, 10_000).await.unwrap()
    }

    /// The effective changes, newest first.
    pub(crate) async fn changes(&self) -> Vec<HistoryEntry> {
        let mut entries = self.history().await;
        entries.retain(|e| e.kind == "change");
        entries
    }

    pub(crate) async fn log(&self) -> Vec<LogEntry> {
        log::read(&self.store, &self.queue, None, 10_000).await.unwrap()
    }

    /// Claims up to `count` entries of `stream` for `session`.
    pub(crate) async fn claim(&self, session: &SessionId, stream: &str, count: usize) -> Vec<Entry> {
        let claimer = Claimer::new(&self.store, &self.queue, session, vec![stream.to_owned()])
            .await
            .unwrap();
        let mut claim = claimer.claim(&[Want { stream: 0, count }]).await.unwrap();
        claim.entries.pop().map_or_else(Vec::new, |(_, entries)| entries)
    }

    pub(crate) async fn claim_ids(&self, session: &SessionId, stream: &str, count: usize) -> Vec<StreamId> {
        let entries = self.claim(session, stream, count).await;
        entries.into_iter().map(|e| e.id).collect()
    }

    /// Every entry of a stream, oldest first, each as its fields.
    pub(crate) async fn entries(&self, stream: &str) -> Vec<(String, BTreeMap<Vec<u8>, Vec<u8>>)> {
        self.cmd(&["XRANGE", stream, "-", "+"]).await
    }

    /// `payload`s of a stream, oldest first.
    pub(crate) async fn payloads(&self, stream: &str) -> Vec<String> {
        let entries = self.entries(stream).await;
        let payload = |fields: &BTreeMap<Vec<u8>, Vec<u8>>| fields.get(b"payload".as_slice()).cloned();
        entries
            .iter()
            .map(|(_, fields)| String::from_utf8(payload(fields).unwrap_or_default()).unwrap())
            .collect()
    }

    /// What lies in a stream's PEL.
    pub(crate) async fn pending(&self, stream: &str) -> u64 {
        let (n, _, _, _): (u64, redis::Value, redis::Value, redis::Value) =
            self.cmd(&["XPENDING", stream, "workers"]).await;
        n
    }

    /// Adds `count` tasks with payloads 0, 1, 2… to a stream.
    pub(crate) async fn add(&self, stream: &str, count: usize) {
        for n in 0..count {
            self.cmd::<()>(&["XADD", stream, "*", "payload", &n.to_string()]).await;
        }
    }
}

/// A sealed gate in a line, without what is empty: `v1`, `v1 v2@10 pins[a=v2] paused`.
pub(crate) fn show(gate: &GateText) -> String {
    let mut out = gate.active.clone();
    if !gate.candidate.is_empty() || gate.percent != "0" {
        out += &format!(" {}@{}", gate.candidate, gate.percent);
    }
    if !gate.pins.is_empty() {
        out += &format!(" pins[{}]", gate.pins);
    }
    if !gate.targets.is_empty() {
        out += &format!(" targets[{}]", gate.targets);
    }
    match gate.paused.as_str() {
        "0" => out,
        "1" => out + " paused",
        odd => panic!("paused={odd}"),
    }
}

pub(crate) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text:?}: {e}"))
}
