//! A worker process that serves `test/probe`, and what it witnesses.

use switchback_tests::{Process, Witness};

use crate::fixture::Fixture;

pub(crate) struct Pool {
    pub(crate) process: Process,
    pub(crate) witness: Witness,
    _directory: tempfile::TempDir,
}

impl Pool {
    /// Starts one that knows v1, with more arguments.
    pub(crate) fn start(fixture: &Fixture, extra: &[&str]) -> Self {
        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("starts");
        let mut witness = Witness::default();
        witness.watch(&file);
        let (url, file) = (fixture.server.url(), file.display().to_string());
        let mut args = vec!["--redis", &url, "--versions", "v1", "--witness", &file];
        args.extend(extra);
        Self {
            process: Process::start("switchback-test-pool", args, [("RUST_LOG", "info")]),
            witness,
            _directory: directory,
        }
    }

    /// How many lines of its log say `what`.
    pub(crate) fn said(&self, what: &str) -> usize {
        self.process.lines().iter().filter(|line| line.contains(what)).count()
    }
}
