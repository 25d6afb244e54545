//! A worker process that can be stopped and killed: this program itself, told to be one.

use std::{process::Command, time::Duration};

use switchback_tests::Process;
use switchback_worker::{Context, TaskError, Worker};

use crate::{
    Result,
    ours::{Load, Place},
};

/// What a child is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    url: String,
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    lease_ms: u64,
    #[arg(long)]
    concurrency: usize,
}

impl Options {
    pub(crate) fn new(url: String, namespace: &str, lease: Duration, concurrency: usize) -> Self {
        Self {
            url,
            namespace: namespace.to_owned(),
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(10_000),
            concurrency,
        }
    }

    /// Starts this program again as a worker.
    pub(crate) fn spawn(&self) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker");
        command.args(["--url", &self.url, "--namespace", &self.namespace]);
        command.args(["--lease-ms", &self.lease_ms.to_string()]);
        command.args(["--concurrency", &self.concurrency.to_string()]);
        Ok(Process::spawn(&mut command))
    }
}

/// Holds on to whatever it is given. A stop gives everything back at once.
pub(crate) async fn run(options: Options) -> Result<()> {
    let place = Place::new(&options.url, &options.namespace)?;
    let config = place
        .config()
        .lease(Duration::from_millis(options.lease_ms))
        .grace(Duration::ZERO);
    let hold = |_: Load, _: Context| std::future::pending::<std::result::Result<(), TaskError>>();
    let concurrency = options.concurrency;
    let worker = Worker::builder(config)
        .task::<Load>(|task| task.version("v1", hold).version("v2", hold).concurrency(concurrency));
    Ok(worker.run().await?)
}
