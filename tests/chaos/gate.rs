//! The hand at the gate: carries out a turn, however long it takes, and knows what may start after it.

use std::time::Duration;

use redis::{RedisResult, aio::MultiplexedConnection};
use switchback_common::{
    Queue, Store,
    clock::Moment,
    store::gate::{ChangeRequest, Changed},
};
use switchback_gates::{Gates, admin::operation_id};
use switchback_tests::{RedisServer, history::Flip};

use crate::schedule::{Turn, VERSIONS};

const GATE: &str = "sb:gate:{test:probe}";
/// The rollback of the documentation for a Redis at `maxmemory`.
const HSET_ANYWAY: &str = "#!lua flags=allow-oom\nreturn redis.call('HSET', KEYS[1], unpack(ARGV))";
const AGAIN: Duration = Duration::from_millis(20);

pub struct Hand<'a> {
    server: &'a RedisServer,
    raw: Option<MultiplexedConnection>,
    gates: Gates,
    queue: Queue,
    active: &'static str,
    candidate: Option<&'static str>,
    paused: bool,
    pub flips: Vec<Flip>,
}

impl<'a> Hand<'a> {
    pub fn new(server: &'a RedisServer, store: &Store, queue: &Queue) -> Self {
        Self {
            server,
            raw: None,
            gates: Gates::new(store),
            queue: queue.clone(),
            active: VERSIONS[0],
            candidate: None,
            paused: false,
            flips: Vec::new(),
        }
    }

    /// Changes the gate; comes back when Redis has said that it is done. Repeating an edit changes nothing more.
    pub async fn turn(&mut self, turn: Turn, raw: bool) {
        let why = format!("chaos-{}", self.flips.len());
        let mut fields = fields(turn);
        // A policy makes a revision each time it is asked for: only of a request that is known by its name can be said how
        // often that was.
        if let (Turn::Only { .. }, false) = (turn, raw) {
            let policy = ["cancel", "revoke", "finish"][self.flips.len() % 3];
            fields.push(("inflight", policy.to_owned()));
        }
        let sent = Moment::now().as_nanos();
        let rev = if raw {
            self.edit(&fields, &why).await;
            None
        } else {
            self.change(fields, &why).await
        };
        let replied = Moment::now().as_nanos();
        match turn {
            Turn::Only { version } => (self.active, self.candidate) = (version, None),
            Turn::Ramp { candidate, .. } => self.candidate = Some(candidate),
            Turn::Pause => self.paused = true,
            Turn::Resume => self.paused = false,
        }
        let reach = [Some(self.active), self.candidate].into_iter().flatten();
        self.flips.push(Flip {
            sent,
            replied,
            reach: reach.filter(|_| !self.paused).map(str::to_owned).collect(),
            why,
            rev,
        });
    }

    /// With the very bytes that a person would send.
    async fn edit(&mut self, fields: &[(&'static str, String)], why: &str) {
        while let Err(error) = self.try_edit(fields, why).await {
            // Made again: whatever the old connection still had to say was about an edit with the same content.
            self.raw = None;
            assert_ne!(error.code(), Some("ERR"), "{error}");
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn try_edit(&mut self, fields: &[(&'static str, String)], why: &str) -> RedisResult<i64> {
        let mut redis = match self.raw.take() {
            Some(redis) => redis,
            None => self.server.try_connection().await?,
        };
        let mut args = vec!["by".to_owned(), "chaos".to_owned(), "why".to_owned(), why.to_owned()];
        args.extend(
            fields
                .iter()
                .flat_map(|(name, value)| [(*name).to_owned(), value.clone()]),
        );
        let mut answer = redis::cmd("HSET").arg(GATE).arg(&args).query_async(&mut redis).await;
        if matches!(&answer, Err(error) if error.code() == Some("OOM")) {
            let mut eval = redis::cmd("EVAL");
            answer = eval
                .arg(HSET_ANYWAY)
                .arg(1)
                .arg(GATE)
                .arg(&args)
                .query_async(&mut redis)
                .await;
        }
        self.raw = Some(redis);
        answer
    }

    /// As the command line would. Gives the revision that it made, if it made one.
    async fn change(&self, fields: Vec<(&'static str, String)>, why: &str) -> Option<u64> {
        let request = ChangeRequest {
            source: "cli".to_owned(),
            by: "chaos".to_owned(),
            why: why.to_owned(),
            op: operation_id(),
            fields,
            ..ChangeRequest::default()
        };
        loop {
            match self.gates.change(&self.queue, &request).await {
                Ok(Changed::Changed(sealed)) => return Some(sealed.rev),
                Ok(Changed::Same(_)) => return None,
                Ok(other) => panic!("the gate says {other:?} to {request:?}"),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}

fn fields(turn: Turn) -> Vec<(&'static str, String)> {
    match turn {
        Turn::Only { version } => vec![("only", version.to_owned())],
        Turn::Ramp { candidate, percent } => {
            vec![("candidate", candidate.to_owned()), ("percent", percent.to_string())]
        }
        Turn::Pause => vec![("paused", "1".to_owned())],
        Turn::Resume => vec![("paused", "0".to_owned())],
    }
}
