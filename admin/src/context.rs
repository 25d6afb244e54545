//! What every command needs: settings, the way to Redis, the namespace, and who is asking for what.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use switchback_common::{
    Namespace, Queue, Store, StoreError, TaskType,
    config::{NAMESPACE_VAR, RedisSettings, read_toml, resolve_namespace},
    store::{
        inspect,
        keyspace::{Key, Keyspace},
    },
};
use switchback_gates::{GateError, Gates, admin::Shown};

use crate::{args::Global, exit::Failure, output::warn};

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    namespace: Option<String>,
    #[serde(default)]
    redis: RedisSettings,
}

/// Names shown when a queue was not found.
const NAMES_SHOWN: usize = 20;

/// The way to everything.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) gates: Gates,
    pub(crate) namespace: Namespace,
    /// Whether somebody named it; else it is the default.
    pub(crate) namespace_named: bool,
}

impl Context {
    pub(crate) async fn connect(global: &Global) -> Result<Self, Failure> {
        let settings = match settings_file(global.config.as_deref()) {
            Some(path) => read_toml(&path)?,
            None => Settings::default(),
        };
        let namespace = resolve_namespace(global.namespace.as_deref(), settings.namespace.as_deref())?;
        let environment = std::env::var_os(NAMESPACE_VAR).is_some_and(|name| !name.is_empty());
        let namespace_named = environment || global.namespace.is_some() || settings.namespace.is_some();
        let store = Store::new(&settings.redis.resolve(global.redis.as_deref())?)?;
        warn_of_server(&store).await?;
        Ok(Self {
            gates: Gates::new(&store),
            store,
            namespace,
            namespace_named,
        })
    }

    pub(crate) fn queue(&self, task_type: TaskType) -> Queue {
        Queue::new(self.namespace.clone(), task_type)
    }

    pub(crate) fn keyspace(&self) -> &Keyspace {
        self.store.keyspace()
    }

    /// The gate; `None` if a queue is there and has none.
    pub(crate) async fn gate(&self, queue: &Queue) -> Result<Option<Shown>, Failure> {
        match self.gates.show(queue).await {
            Ok(shown) => Ok(Some(shown)),
            Err(GateError::NoGate(_)) => self.require(queue).await.map(|()| None),
            Err(e) => Err(e.into()),
        }
    }

    /// Fails, with the names there are, if nothing of this queue exists.
    pub(crate) async fn require(&self, queue: &Queue) -> Result<(), Failure> {
        let all = inspect::queues(&self.store, &self.namespace).await?;
        if all.contains(queue) || self.exists_unlisted(queue).await? {
            return Ok(());
        }
        let namespace = &self.namespace;
        let task_type = &queue.task_type;
        Err(Failure::NotFound(if all.is_empty() {
            format!("no such queue {task_type} in namespace {namespace}; there are none: check --namespace and --redis")
        } else {
            let mut names: Vec<&str> = all.iter().map(|q| q.task_type.as_str()).collect();
            let more = names.len().saturating_sub(NAMES_SHOWN);
            names.truncate(NAMES_SHOWN);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!(
                "no such queue {task_type} in namespace {namespace}; there are: {}{more}",
                names.join(", ")
            )
        }))
    }

    /// The directory is a convenience: a queue fed by `redis-cli`, or whose directory was evicted, is a queue.
    pub(crate) async fn exists_unlisted(&self, queue: &Queue) -> Result<bool, Failure> {
        let stream = self.keyspace().render(&Key::Stream(queue.clone()));
        let group = inspect::group(&self.store, &stream).await?;
        let found = group.exists || group.length > 0 || !self.gates.history(queue, None, 1).await?.is_empty();
        Ok(found)
    }

    /// Redis's clock.
    pub(crate) async fn now_us(&self) -> Result<u64, Failure> {
        Ok(inspect::time_us(&self.store).await?)
    }
}

fn settings_file(flag: Option<&Path>) -> Option<PathBuf> {
    // A file that was named must be there; the others may be missing.
    if let Some(path) = flag {
        return Some(path.to_owned());
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/switchback/config.toml"));
    [Some(PathBuf::from("switchback.toml")), home]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
}

/// Says what is wrong with the server, and goes on: whoever must roll back must not be stopped by it.
async fn warn_of_server(store: &Store) -> Result<(), Failure> {
    match store.check_server().await {
        Ok(_) => Ok(()),
        // Let in, but not to INFO.
        Err(StoreError::Denied { detail, .. }) if detail.starts_with("NOPERM") => Ok(()),
        Err(e) if e.is_unreachable() || matches!(e, StoreError::BadUrl(_)) => Err(e.into()),
        Err(e) => {
            warn(e);
            Ok(())
        }
    }
}
