//! Connections. The hot paths hold their own ([`Link`]); what is small and frequent shares one; what is rare, or may
//! have a large reply, borrows from a small pool (whose every checkout asks Redis twice).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use deadpool_redis::{Manager, Pool, Runtime};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisError, Value,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::sync::{Mutex, mpsc};

use super::{error::StoreError, keyspace::Keyspace};

/// Time to open a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for a reply to a command that does not block.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
const POOL_SIZE: usize = 8;

/// Where Redis is, and under which prefix our keys lie. Never prints the password.
#[derive(Clone)]
pub struct ConnectOptions {
    url: String,
    keyspace: Keyspace,
}

impl ConnectOptions {
    /// Redis at `url`: `redis://[user:password@]host:port[/db]` or `unix:///path`.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            keyspace: Keyspace::default(),
        }
    }

    /// Keys under another prefix. Defaults to `sb`.
    #[must_use]
    pub fn with_keyspace(mut self, keyspace: Keyspace) -> Self {
        self.keyspace = keyspace;
        self
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No password in any output: the address only.
        let address = self
            .url
            .as_str()
            .into_connection_info()
            .map_or_else(|_| "invalid".to_owned(), |info| address_of(info.addr()));
        f.debug_struct("ConnectOptions")
            .field("address", &address)
            .field("keyspace", &self.keyspace)
            .finish()
    }
}

/// What a server is, as far as it matters to us.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// What it calls itself, for people: "Redis 7.0.15", "Valkey 9.1.2".
    pub name: String,
    /// The version of Redis that it keeps to (`redis_version`); Valkey keeps to 7.2.4, whatever its own.
    pub version: String,
    /// Changes with every start: times of one run compare, across runs they do not.
    pub run_id: String,
    /// `maxmemory-policy`.
    pub policy: String,
    /// Whether it is a replica that takes no writes.
    pub read_only: bool,
}

/// The way to Redis: cheap to clone, shared by everything in a process.
#[derive(Clone)]
pub struct Store {
    client: Client,
    pool: Pool,
    keyspace: Keyspace,
    address: String,
    shared: Arc<Mutex<Option<Link>>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("address", &self.address)
            .field("keyspace", &self.keyspace)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Prepares to talk to Redis; opens nothing yet.
    ///
    /// # Errors
    /// [`StoreError::BadUrl`].
    pub fn new(options: &ConnectOptions) -> Result<Self, StoreError> {
        // The URL's own error text may quote it, password and all: keep only its kind.
        let bad = |e: RedisError| StoreError::BadUrl(e.category().to_owned());
        let info = options.url.as_str().into_connection_info().map_err(bad)?;
        // Batches are written whole: waiting for more (Nagle) only adds latency.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let address = address_of(info.addr());
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(REPLY_TIMEOUT));
        let client = Client::open(info.clone()).map_err(bad)?;
        let manager = Manager::new_with_config(info, config).map_err(bad)?;
        let pool = Pool::builder(manager)
            .max_size(POOL_SIZE)
            .wait_timeout(Some(REPLY_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|e| StoreError::BadUrl(e.to_string()))?;
        Ok(Self {
            client,
            pool,
            keyspace: options.keyspace.clone(),
            address,
            shared: Arc::default(),
        })
    }

    /// The keys.
    #[must_use]
    pub fn keyspace(&self) -> &Keyspace {
        &self.keyspace
    }

    /// `host:port`, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn error(&self, source: RedisError) -> StoreError {
        StoreError::from_redis(&self.address, source)
    }

    /// A connection of the caller's own, for a hot path.
    ///
    /// # Errors
    /// When Redis cannot be reached or refuses the credentials.
    pub async fn link(&self) -> Result<Link, StoreError> {
        // No response timeout inside the client: it would turn a blocking claim into a lost one. `Link` bounds each call.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|e| self.error(e))?;
        Ok(Link {
            connection,
            address: self.address.clone(),
            broken: Arc::default(),
        })
    }

    /// A RESP3 connection whose pushes arrive on the receiver.
    pub(crate) async fn push_link(&self) -> Result<(Link, mpsc::UnboundedReceiver<redis::PushInfo>), StoreError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let info = self.client.get_connection_info().clone();
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings)).map_err(|e| self.error(e))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None)
            .set_push_sender(sender);
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|e| self.error(e))?;
        let link = Link {
            connection,
            address: self.address.clone(),
            broken: Arc::default(),
        };
        Ok((link, receiver))
    }

    /// The connection that everything small and frequent shares; opened when there is none, or the last one broke.
    pub(crate) async fn warm(&self) -> Result<Link, StoreError> {
        let mut shared = self.shared.lock().await;
        if let Some(link) = shared.as_ref().filter(|link| !link.broken.load(Ordering::Acquire)) {
            return Ok(link.clone());
        }
        let link = self.link().await?;
        *shared = Some(link.clone());
        Ok(link)
    }

    /// A connection for something rare.
    pub(crate) async fn cold(&self) -> Result<Link, StoreError> {
        // P10: each pooled connection may have died in silence; trying them one by one must not add up.
        match tokio::time::timeout(REPLY_TIMEOUT, self.pool.get()).await {
            Ok(Ok(object)) => Ok(Link {
                // A clone of the multiplexed handle: the pool keeps the connection, we only send on it.
                connection: (*object).clone(),
                address: self.address.clone(),
                broken: Arc::default(),
            }),
            Ok(Err(deadpool_redis::PoolError::Backend(e))) => Err(self.error(e)),
            Ok(Err(_)) | Err(_) => Err(StoreError::Timeout {
                address: self.address.clone(),
                after: REPLY_TIMEOUT,
            }),
        }
    }

    /// What kind of server answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn server_facts(&self) -> Result<ServerFacts, StoreError> {
        let link = self.cold().await?;
        let info = link.run(redis::cmd("INFO")).await?;
        let text: String = redis::from_redis_value(info).map_err(|e| StoreError::Unexpected {
            what: "INFO",
            detail: e.to_string(),
        })?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        if field("loading") == "1" {
            return Err(StoreError::Loading {
                address: self.address.clone(),
            });
        }
        let version = field("redis_version");
        Ok(ServerFacts {
            name: match field("valkey_version").as_str() {
                "" => format!("Redis {version}"),
                own => format!("Valkey {own}"),
            },
            version,
            run_id: field("run_id"),
            policy: field("maxmemory_policy"),
            read_only: field("role") == "slave" && field("slave_read_only") != "0",
        })
    }

    /// Refuses a server that cannot keep the promises: older than 7.0, free to evict keys, or a read-only replica.
    ///
    /// # Errors
    /// [`StoreError::TooOld`], [`StoreError::Evicting`], [`StoreError::ReadOnly`], or why it did not answer.
    pub async fn check_server(&self) -> Result<ServerFacts, StoreError> {
        let facts = self.server_facts().await?;
        let major: u32 = facts
            .version
            .split('.')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        if major < 7 {
            return Err(StoreError::TooOld {
                address: self.address.clone(),
                found: facts.version,
            });
        }
        if facts.policy != "noeviction" {
            return Err(StoreError::Evicting {
                address: self.address.clone(),
                policy: facts.policy,
            });
        }
        if facts.read_only {
            return Err(StoreError::ReadOnly {
                address: self.address.clone(),
            });
        }
        Ok(facts)
    }
}

fn address_of(addr: &ConnectionAddr) -> String {
    match addr {
        ConnectionAddr::Tcp(host, port) => format!("{host}:{port}"),
        other => other.to_string(),
    }
}

/// One connection. Clones share it; dropping the last clone closes it.
#[derive(Clone)]
pub struct Link {
    connection: MultiplexedConnection,
    address: String,
    /// Whether a reply failed to come: later ones may be lost, too.
    broken: Arc<AtomicBool>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Sends one command.
    pub(crate) async fn run(&self, cmd: redis::Cmd) -> Result<Value, StoreError> {
        self.run_within(cmd, REPLY_TIMEOUT).await
    }

    /// Sends one command that may block on the server.
    pub(crate) async fn run_within(&self, cmd: redis::Cmd, limit: Duration) -> Result<Value, StoreError> {
        let mut connection = self.connection.clone();
        self.within(limit, async move { cmd.query_async(&mut connection).await })
            .await
    }

    /// Sends a pipeline; every command answers for itself, so one failure does not throw the others' replies away.
    pub(crate) async fn run_pipe(&self, pipe: &mut Pipeline) -> Result<Vec<Result<Value, RedisError>>, StoreError> {
        pipe.ignore_errors();
        let mut connection = self.connection.clone();
        self.within(REPLY_TIMEOUT, async move { pipe.query_async(&mut connection).await })
            .await
    }

    /// Sends a MULTI batch: executed whole or not at all.
    pub(crate) async fn run_atomic(&self, pipe: &mut Pipeline) -> Result<Value, StoreError> {
        let mut connection = self.connection.clone();
        pipe.atomic();
        self.within(REPLY_TIMEOUT, async move { pipe.query_async(&mut connection).await })
            .await
    }

    /// Calls a script by its hash, loading it if the server does not have it.
    pub(crate) async fn run_script(&self, call: &redis::ScriptInvocation<'_>) -> Result<Value, StoreError> {
        let mut connection = self.connection.clone();
        self.within(REPLY_TIMEOUT, async move { call.invoke_async(&mut connection).await })
            .await
    }

    pub(crate) fn error(&self, source: RedisError) -> StoreError {
        StoreError::from_redis(&self.address, source)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        reply: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, StoreError> {
        let failure = match tokio::time::timeout(limit, reply).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(error)) => self.error(error),
            Err(_) => StoreError::Timeout {
                address: self.address.clone(),
                after: limit,
            },
        };
        if failure.is_outcome_unknown() {
            self.broken.store(true, Ordering::Release);
        }
        Err(failure)
    }
}
