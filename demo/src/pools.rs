//! Real worker processes: a pool of the old release, and one of the new. Gone when dropped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use switchback_common::{
    clock::Moment,
    config::{NAMESPACE_VAR, REDIS_URL_VAR},
};

use crate::{Failure, NAMESPACE, timeline::Timeline};

const STOP_LIMIT: Duration = Duration::from_secs(15);
const LOG_LINES_SHOWN: usize = 12;

/// Processes, each with the handlers it has.
const WORKERS: &[(&str, &str)] = &[
    ("old-1", r#""index_document@v1""#),
    ("old-2", r#""index_document@v1""#),
    ("new-1", r#""index_document@v1", "index_document@v2""#),
    ("new-2", r#""index_document@v1", "index_document@v2""#),
];

/// How many workers there are.
pub(crate) const COUNT: usize = WORKERS.len();

/// The workers of the demo.
#[derive(Debug)]
pub(crate) struct Pools(Vec<Process>);

#[derive(Debug)]
struct Process {
    name: &'static str,
    log: PathBuf,
    child: std::sync::Mutex<Child>,
}

impl Pools {
    /// Starts them: settings and logs below `dir`, records in `index_dir`.
    pub(crate) fn start(binary: &Path, redis_url: &str, dir: &Path, index_dir: &Path) -> Result<Self, Failure> {
        let mut pools = Self(Vec::new());
        for (name, handlers) in WORKERS {
            let (config, log) = (dir.join(format!("{name}.toml")), dir.join(format!("{name}.log")));
            fs::write(&config, settings(name, handlers, redis_url, index_dir))?;
            let output = File::create(&log)?;
            let child = Command::new(binary)
                .arg("--config")
                .arg(&config)
                // The demo's own settings, whatever the shell has.
                .env_remove(REDIS_URL_VAR)
                .env_remove(NAMESPACE_VAR)
                .env("RUST_LOG", "info")
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                .spawn()
                .map_err(|error| format!("cannot start {}: {error}", binary.display()))?;
            pools.0.push(Process {
                name,
                log,
                child: child.into(),
            });
        }
        Ok(pools)
    }

    /// Whether all still run.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        for process in &self.0 {
            if let Some(status) = process.child().try_wait()? {
                return Err(format!("worker {} ended on its own: {status}", process.name).into());
            }
        }
        Ok(())
    }

    /// Asks all to end (SIGTERM); tells who did not end cleanly.
    pub(crate) async fn stop(&self) -> Result<Vec<String>, Failure> {
        for process in &self.0 {
            let mut child = process.child();
            if child.try_wait()?.is_none() {
                kill_process(Pid::from_child(&child), Signal::TERM).map_err(std::io::Error::from)?;
            }
        }
        let began = Moment::now();
        let mut unclean = Vec::new();
        for process in &self.0 {
            let status = loop {
                match process.child().try_wait()? {
                    Some(status) => break Some(status),
                    None if began.elapsed() >= STOP_LIMIT => break None,
                    None => {}
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            match status {
                Some(status) if status.success() => {}
                Some(status) => unclean.push(format!("{}: {status}", process.name)),
                None => unclean.push(format!("{}: still runs after {STOP_LIMIT:?}", process.name)),
            }
        }
        Ok(unclean)
    }

    /// The end of each log, for a person who wants to know why.
    pub(crate) fn show_logs(&self, timeline: &Timeline) {
        for process in &self.0 {
            let log = String::from_utf8_lossy(&fs::read(&process.log).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(LOG_LINES_SHOWN);
            timeline.line(format_args!("--- log of worker {}, its end ---", process.name));
            for line in &lines[from..] {
                timeline.line(line);
            }
        }
    }
}

impl Process {
    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Ended already, or ended now: either way nothing is left behind.
        child.kill().ok();
        child.wait().ok();
    }
}

fn settings(name: &str, handlers: &str, redis_url: &str, index_dir: &Path) -> String {
    let build = name.split('-').next().unwrap_or(name);
    format!(
        r#"namespace = "{NAMESPACE}"

[redis]
url = "{redis_url}"

[pool]
handlers = [{handlers}]
concurrency = 8
build = "{build}"
# The new release carries v1 as it was.
allow_another_build = true
# Soon enough that what failed on v2 is back while one watches.
attempts = 15
backoff_first_ms = 500
backoff_longest_ms = 2000

[examples]
index_dir = '{}'
"#,
        index_dir.display()
    )
}
