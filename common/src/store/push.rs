//! Pushes: Redis tells us which gates were touched. They make things fast; nothing relies on them.

use redis::{Cmd, PushKind, Value};
use tokio::sync::mpsc;

use super::{
    connect::{Link, Store},
    error::StoreError,
};

/// What a push said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// The gate with this key was written.
    Gate(String),
    /// Everything may have changed (FLUSHALL).
    All,
    /// The connection is gone: until there is a new one, nothing is told.
    Disconnected,
}

/// A connection on which Redis announces every write to any gate.
#[derive(Debug)]
pub struct GatePushes {
    link: Link,
    receiver: mpsc::UnboundedReceiver<redis::PushInfo>,
    ready: Vec<Touched>,
}

impl GatePushes {
    /// Asks for pushes. One prefix for all gates: each distinct prefix costs every write on the server.
    ///
    /// # Errors
    /// When Redis cannot be reached or does not speak RESP3.
    pub async fn subscribe(store: &Store) -> Result<Self, StoreError> {
        let (link, receiver) = store.push_link().await?;
        let mut cmd = Cmd::new();
        cmd.arg("CLIENT").arg("TRACKING").arg("ON").arg("BCAST");
        cmd.arg("PREFIX").arg(store.keyspace().gate_prefix());
        link.run(cmd).await?;
        Ok(Self {
            link,
            receiver,
            ready: Vec::new(),
        })
    }

    /// Checks that the connection still answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let mut cmd = Cmd::new();
        cmd.arg("PING");
        self.link.run(cmd).await.map(|_| ())
    }

    /// The next announcement. Safe to cancel.
    pub async fn next(&mut self) -> Touched {
        loop {
            if let Some(touched) = self.ready.pop() {
                return touched;
            }
            let Some(push) = self.receiver.recv().await else {
                return Touched::Disconnected;
            };
            match push.kind {
                PushKind::Disconnection => return Touched::Disconnected,
                PushKind::Invalidate => match push.data.into_iter().next() {
                    Some(Value::Array(keys)) => {
                        self.ready.extend(keys.into_iter().filter_map(|key| match key {
                            Value::BulkString(bytes) => String::from_utf8(bytes).ok().map(Touched::Gate),
                            _ => None,
                        }));
                    }
                    _ => return Touched::All,
                },
                _ => {}
            }
        }
    }
}
