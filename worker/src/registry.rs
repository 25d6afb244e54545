//! What a worker can run: task types, their versions, and how each is run.

use std::{collections::BTreeMap, marker::PhantomData, time::Duration};

use serde::Serialize;
use switchback_common::{
    Task, TaskType, Version,
    envelope::{DEFAULT_MAX_PAYLOAD, MAX_RESULT_KEPT},
    retry::RetryPolicy,
    schedule::{MAX_SCHEDULES, Schedule, ScheduleError, ScheduleName},
};

use crate::{
    breaker::Breaker,
    circuits::Circuits,
    error::WorkerError,
    handler::{Context, Handler, TaskError, erase},
};

/// Tasks of one type that run at once in one worker, by default.
pub const DEFAULT_CONCURRENCY: usize = 100;
/// How long one attempt may take, by default: 5 min.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// The most a worker runs at once of one type.
pub const MAX_CONCURRENCY: usize = 10_000;

/// One task type of a worker, while it is being described.
#[derive(Debug)]
pub struct TaskSpec<T> {
    raw: RawSpec,
    task: PhantomData<fn(T)>,
}

/// One task type of a worker, its payload type forgotten.
pub(crate) struct RawSpec {
    pub(crate) task_type: String,
    pub(crate) versions: Vec<(String, Handler)>,
    pub(crate) concurrency: usize,
    pub(crate) timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) max_payload: usize,
    pub(crate) schedules: Vec<(String, Schedule)>,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) keep_results: Option<Duration>,
}

impl std::fmt::Debug for RawSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let versions: Vec<&str> = self.versions.iter().map(|(v, _)| v.as_str()).collect();
        f.debug_struct("TaskSpec")
            .field("task_type", &self.task_type)
            .field("versions", &versions)
            .finish_non_exhaustive()
    }
}

impl<T: Task> TaskSpec<T> {
    pub(crate) fn new() -> Self {
        Self {
            raw: RawSpec {
                task_type: T::TYPE.to_owned(),
                versions: Vec::new(),
                concurrency: DEFAULT_CONCURRENCY,
                timeout: DEFAULT_TIMEOUT,
                retry: RetryPolicy::default(),
                max_payload: DEFAULT_MAX_PAYLOAD,
                schedules: Vec::new(),
                breaker: None,
                keep_results: None,
            },
            task: PhantomData,
        }
    }

    /// Runs tasks that the gate gives to `version` with `handler`. The first version named seeds the gate of a new queue.
    ///
    /// What the handler returns is written as JSON if the result is to be kept, see [`keep_results`](Self::keep_results),
    /// and dropped otherwise.
    #[must_use]
    pub fn version<F, Fut, R>(mut self, version: impl Into<String>, handler: F) -> Self
    where
        F: Fn(T, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, TaskError>> + Send + 'static,
        R: Serialize,
    {
        self.raw.versions.push((version.into(), erase(handler)));
        self
    }

    /// Tasks of this type that run at once in this worker. Defaults to 100; at most 10 000.
    #[must_use]
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.raw.concurrency = tasks;
        self
    }

    /// How long one attempt may take. Defaults to 5 min.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.raw.timeout = timeout;
        self
    }

    /// When a failed attempt is tried again. Defaults to 15 attempts, 2 s doubling up to 30 min.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.raw.retry = policy;
        self
    }

    /// Keeps how every task of this type ended, and what its handler returned, for `ttl`: at most 30 days and 60 KiB each.
    /// By default only what its producer asked for with `keep_result` is kept.
    #[must_use]
    pub fn keep_results(mut self, ttl: Duration) -> Self {
        self.raw.keep_results = Some(ttl.clamp(Duration::from_millis(1), MAX_RESULT_KEPT));
        self
    }

    /// Longest payload accepted, in bytes. Defaults to 1 MiB.
    #[must_use]
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.raw.max_payload = bytes;
        self
    }

    /// Declares a periodic task: at every tick of `schedule`, one task is enqueued, however many workers there are. Any
    /// worker of the queue fires it; when none lives, nothing fires, and its [`Missed`] policy decides later.
    ///
    /// A session declares its schedules when it joins: the newest code wins over older code. What people set by the command
    /// line wins over any code, until they remove it. A schedule that goes from the code stays in Redis until
    /// `switchback schedule rm`.
    ///
    /// [`Missed`]: switchback_common::schedule::Missed
    #[must_use]
    pub fn schedule(mut self, name: impl Into<String>, schedule: Schedule) -> Self {
        self.raw.schedules.push((name.into(), schedule));
        self
    }

    /// Stops starting tasks on a version whose attempts fail, instead of burning theirs. Each worker judges for itself,
    /// version by version. Defaults to never.
    #[must_use]
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.raw.breaker = Some(breaker);
        self
    }

    pub(crate) fn into_raw(self) -> RawSpec {
        self.raw
    }
}

/// One task type of a worker, checked.
pub(crate) struct QueueSpec {
    pub(crate) task_type: TaskType,
    /// In the order they were named.
    pub(crate) versions: Vec<Version>,
    pub(crate) handlers: BTreeMap<Version, Handler>,
    pub(crate) concurrency: usize,
    pub(crate) timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) max_payload: usize,
    pub(crate) schedules: Vec<(ScheduleName, Schedule)>,
    /// Outlive sessions, as the versions they judge do.
    pub(crate) circuits: Circuits,
    pub(crate) keep_results: Option<Duration>,
}

impl std::fmt::Debug for QueueSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueSpec")
            .field("task_type", &self.task_type)
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
}

/// Checks what was described.
pub(crate) fn check(specs: Vec<RawSpec>) -> Result<Vec<QueueSpec>, WorkerError> {
    if specs.is_empty() {
        return Err(WorkerError::NoHandlers);
    }
    let mut out: Vec<QueueSpec> = Vec::with_capacity(specs.len());
    for raw in specs {
        let task_type = TaskType::new(&raw.task_type)?;
        if out.iter().any(|spec| spec.task_type == task_type) {
            return Err(WorkerError::DuplicateType(task_type));
        }
        if raw.versions.is_empty() {
            return Err(WorkerError::NoVersions(task_type));
        }
        if !(1..=MAX_CONCURRENCY).contains(&raw.concurrency) {
            return Err(WorkerError::BadConcurrency {
                task_type,
                concurrency: raw.concurrency,
            });
        }
        if let Some(problem) = raw.breaker.as_ref().and_then(Breaker::problem) {
            return Err(WorkerError::BadSetting(format!("{task_type}: {problem}")));
        }
        let mut versions = Vec::new();
        let mut handlers = BTreeMap::new();
        for (name, handler) in raw.versions {
            let version = Version::new(name)?;
            if handlers.insert(version.clone(), handler).is_some() {
                return Err(WorkerError::DuplicateVersion { task_type, version });
            }
            versions.push(version);
        }
        let schedules = schedules(&task_type, raw.schedules)?;
        out.push(QueueSpec {
            circuits: Circuits::new(raw.breaker, &versions),
            task_type,
            versions,
            handlers,
            concurrency: raw.concurrency,
            timeout: raw.timeout,
            retry: raw.retry,
            max_payload: raw.max_payload,
            schedules,
            keep_results: raw.keep_results,
        });
    }
    Ok(out)
}

fn schedules(task_type: &TaskType, raw: Vec<(String, Schedule)>) -> Result<Vec<(ScheduleName, Schedule)>, WorkerError> {
    let refused = |name: &str, problem: String| WorkerError::BadSchedule {
        task_type: task_type.clone(),
        name: name.chars().take(80).collect(),
        problem,
    };
    let mut out: Vec<(ScheduleName, Schedule)> = Vec::new();
    for (name, schedule) in raw {
        let bad = |error: ScheduleError| refused(&name, error.to_string());
        schedule.check().map_err(bad)?;
        let parsed: ScheduleName = name.parse().map_err(bad)?;
        if out.iter().any(|(known, _)| *known == parsed) {
            return Err(refused(&name, "declared twice; give each a name of its own".to_owned()));
        }
        if out.len() == MAX_SCHEDULES {
            return Err(refused(
                &name,
                format!("one too many: a queue has at most {MAX_SCHEDULES}"),
            ));
        }
        out.push((parsed, schedule));
    }
    Ok(out)
}
