//! The worker processes: each with a link and files of its own, restarted with the same.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use switchback_tests::{Link, Process};

use crate::schedule::{FLEET, PRODUCER};

pub const START_TTL: Duration = Duration::from_millis(250);
const LEASE: Duration = Duration::from_millis(1_500);
const GRACE: Duration = Duration::from_millis(500);
const BACKOFF_MS: u64 = 50;
pub const MAX_ATTEMPTS: u32 = 3;

pub struct Fleet {
    workers: Vec<Worker>,
    /// One for each worker, and the producer's.
    pub links: Vec<Link>,
    directory: PathBuf,
    faults: String,
}

struct Worker {
    process: Option<Process>,
    frozen: bool,
    /// What its earlier processes said.
    said: Vec<String>,
}

impl Fleet {
    /// Links, and no process yet.
    pub async fn new(redis: u16, directory: &Path, faults: &str) -> Self {
        let mut links = Vec::new();
        for _ in 0..=PRODUCER {
            links.push(Link::to(redis).await);
        }
        let worker = || Worker {
            process: None,
            frozen: false,
            said: Vec::new(),
        };
        Self {
            workers: FLEET.iter().map(|_| worker()).collect(),
            links,
            directory: directory.to_owned(),
            faults: faults.to_owned(),
        }
    }

    pub fn ledger(&self) -> PathBuf {
        self.directory.join("ledger")
    }

    fn witness(&self, worker: usize) -> PathBuf {
        self.directory.join(format!("witness-{worker}"))
    }

    /// Every file that the processes wrote.
    pub fn files(&self) -> Vec<PathBuf> {
        let witnesses = (0..self.workers.len()).map(|worker| self.witness(worker));
        witnesses.chain([self.ledger()]).collect()
    }

    /// A new process, whatever there was before.
    pub fn start(&mut self, worker: usize) {
        self.kill(worker);
        let args = [
            ("--redis", self.links[worker].url()),
            ("--versions", FLEET[worker].to_owned()),
            ("--witness", self.witness(worker).display().to_string()),
            ("--ledger", self.ledger().display().to_string()),
            ("--lease-ms", LEASE.as_millis().to_string()),
            ("--start-ttl-ms", START_TTL.as_millis().to_string()),
            ("--grace-ms", GRACE.as_millis().to_string()),
            ("--attempts", MAX_ATTEMPTS.to_string()),
            ("--backoff-ms", BACKOFF_MS.to_string()),
            ("--faults", self.faults.clone()),
        ];
        let args = args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        // A push forbids starts by older reads, and so hides some of the damage.
        let args = args.chain((!self.faults.is_empty()).then(|| "--no-pushes".to_owned()));
        self.workers[worker].process = Some(Process::start("switchback-test-pool", args, [("RUST_LOG", "warn")]));
    }

    /// SIGKILL.
    pub fn kill(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        if let Some(process) = worker.process.take() {
            process.kill9();
            worker.said.extend(process.lines());
        }
        worker.frozen = false;
    }

    /// SIGTERM; the process has its grace to end.
    pub fn term(&mut self, worker: usize) {
        if let Some(process) = &self.workers[worker].process {
            process.term();
        }
    }

    pub fn freeze(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        if let Some(process) = &worker.process {
            process.stop();
            worker.frozen = true;
        }
    }

    pub fn thaw(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        if let Some(process) = &worker.process {
            process.cont();
            worker.frozen = false;
        }
    }

    /// The workers without a process: ended by themselves, or on purpose.
    pub fn ended(&self) -> Vec<usize> {
        let running = |worker: &Worker| worker.process.as_ref().is_some_and(Process::is_running);
        (0..self.workers.len())
            .filter(|n| !running(&self.workers[*n]))
            .collect()
    }

    /// Lets everybody go on, starts who is missing.
    pub fn heal(&mut self) {
        for worker in 0..self.workers.len() {
            if self.workers[worker].frozen {
                self.thaw(worker);
            }
        }
        for worker in self.ended() {
            self.start(worker);
        }
    }

    /// A clean stop of all.
    pub async fn end(&mut self) {
        for worker in &self.workers {
            worker.process.as_ref().inspect(|process| process.term());
        }
        for worker in &mut self.workers {
            if let Some(process) = worker.process.take() {
                process.wait().await;
                worker.said.extend(process.lines());
            }
        }
    }

    /// Leaves what the workers said beside their files.
    pub fn write_logs(&self) -> std::io::Result<()> {
        for (n, worker) in self.workers.iter().enumerate() {
            let mut said = worker.said.clone();
            said.extend(worker.process.iter().flat_map(Process::lines));
            std::fs::write(self.directory.join(format!("worker-{n}.log")), said.join("\n"))?;
        }
        Ok(())
    }
}
