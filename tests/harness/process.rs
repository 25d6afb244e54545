//! A process under test: its output line by line, and the signals that machines and people send it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{eventually, patience};

const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// A running process, killed when it is dropped (also when it is stopped).
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    lines: Arc<Mutex<Vec<String>>>,
    /// Threads, not tasks: output is also captured while the test blocks its runtime.
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a command with its stdout and stderr captured and its stdin closed.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn spawn(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let lines = Arc::default();
        let readers = vec![
            capture(child.stdout.take().expect("stdout is piped"), &lines),
            capture(child.stderr.take().expect("stderr is piped"), &lines),
        ];
        Self {
            name,
            child: Mutex::new(child),
            lines,
            readers,
        }
    }

    /// Starts one of the workspace's own binaries, as in
    /// `Process::start("switchback-worker", ["--config", path], [("RUST_LOG", "debug")])`.
    pub fn start<A: AsRef<OsStr>, K: AsRef<OsStr>, V: AsRef<OsStr>>(
        binary: &str,
        args: impl IntoIterator<Item = A>,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self::spawn(Command::new(Self::binary(binary)).args(args).envs(env))
    }

    /// The path of one of the workspace's binaries, built with the same profile as this test.
    ///
    /// # Panics
    ///
    /// If it has not been built.
    pub fn binary(name: &str) -> PathBuf {
        let test = std::env::current_exe().expect("the path of this test");
        let profile = test.ancestors().nth(2).expect("tests are in <profile>/deps"); // cargo's layout
        let path = profile.join(name);
        assert!(
            path.is_file(),
            "{} is not built; run the tests with `make test`, or `cargo build --workspace --bins` first",
            path.display()
        );
        path
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Whether it has not ended yet. A stopped process is running.
    pub fn is_running(&self) -> bool {
        self.child().try_wait().expect("asking for the status").is_none()
    }

    /// Every line of stdout and stderr so far, as they came in.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    /// How many lines there are so far; where [`wait_line_after`](Self::wait_line_after) can begin.
    pub fn mark(&self) -> usize {
        lock(&self.lines).len()
    }

    /// The first line that contains `text`, past or to come.
    ///
    /// # Panics
    ///
    /// If it does not come within 30 s, or the process ends without it; with the whole output.
    pub async fn wait_line(&self, text: &str) -> String {
        self.wait_line_after(0, text).await
    }

    /// Like [`wait_line`](Self::wait_line), without the first `mark` lines.
    pub async fn wait_line_after(&self, mark: usize, text: &str) -> String {
        let what = format!("{} prints a line with {text:?}", self.name);
        eventually(&what, WAIT_LIMIT, async || {
            let ended = self.is_finished(); // asked first: afterwards no line can be missed
            let found = lock(&self.lines)
                .iter()
                .skip(mark)
                .find(|line| line.contains(text))
                .cloned();
            assert!(
                found.is_some() || !ended,
                "{} ended without a line with {text:?}\n{}",
                self.name,
                self.output()
            );
            found.ok_or_else(|| self.output())
        })
        .await
    }

    /// Freezes it (SIGSTOP), as a long pause of its machine would.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end (SIGTERM).
    pub fn term(&self) {
        self.signal(Signal::TERM);
    }

    /// Interrupts it (SIGINT), as Ctrl-C does.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Kills it (SIGKILL), as a crash or the OOM killer would, and returns when it is gone.
    pub fn kill9(&self) {
        let mut child = self.child();
        child.kill().ok();
        child.wait().ok();
    }

    /// Returns how it ended, when it has, and all its output is captured.
    ///
    /// # Panics
    ///
    /// If it does not end within 30 s; with the whole output.
    pub async fn wait(&self) -> ExitStatus {
        eventually(&format!("{} ends", self.name), WAIT_LIMIT, async || {
            if self.is_finished() { Ok(()) } else { Err(self.output()) }
        })
        .await;
        self.child().wait().expect("asking for the status")
    }

    /// Ended, and its output read to the end. A descendant that holds the pipe open keeps this false.
    fn is_finished(&self) -> bool {
        !self.is_running() && self.readers.iter().all(JoinHandle::is_finished)
    }

    fn signal(&self, signal: Signal) {
        // Under the lock, so that the process cannot be reaped, and its id reused, in between.
        let mut child = self.child();
        if child.try_wait().expect("asking for the status").is_none() {
            kill_process(Pid::from_child(&child), signal).expect("signalling the process");
        }
    }

    fn output(&self) -> String {
        format!(
            "--- output of {} ---\n{}\n--- end of the output ---",
            self.name,
            lock(&self.lines).join("\n")
        )
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        lock(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            // What it said last is often why; the reader needs a moment to get to it.
            let deadline = std::time::Instant::now() + patience(Duration::from_millis(200));
            while !self.is_finished() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            println!("{}", self.output());
        }
    }
}

fn capture(pipe: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            lock(&lines).push(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned());
            line.clear();
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn shell(script: &str) -> Process {
        Process::spawn(Command::new("sh").args(["-c", script]).env("NAME", "switchback"))
    }

    #[tokio::test]
    async fn captures_both_streams_and_the_status() {
        let process = shell("echo hello $NAME; echo oh >&2; exit 3");
        assert_eq!(process.wait_line("hello").await, "hello switchback");
        assert_eq!(process.wait().await.code(), Some(3));
        assert!(process.lines().contains(&"oh".to_owned()));
        assert!(!process.is_running());
    }

    #[tokio::test]
    async fn lines_after_a_mark_are_told_apart() {
        let process = shell("trap 'echo ready again' TERM; echo ready; while :; do sleep 0.01; done");
        process.wait_line("ready").await;
        let mark = process.mark();
        process.term();
        assert_eq!(process.wait_line_after(mark, "ready").await, "ready again");
    }

    #[tokio::test]
    #[should_panic(expected = "ended without a line with \"never\"")]
    async fn an_early_end_is_not_waited_for() {
        shell("echo only this").wait_line("never").await;
    }

    #[tokio::test]
    async fn a_stopped_process_goes_on_or_dies() {
        let process = shell("echo up; while :; do echo tick; sleep 0.01; done");
        process.wait_line("up").await;
        process.stop();
        eventually("its ticks cease", Duration::from_secs(2), async || {
            let mark = process.mark();
            tokio::time::sleep(Duration::from_millis(50)).await;
            process.mark() == mark
        })
        .await;
        let mark = process.mark();
        process.cont();
        process.wait_line_after(mark, "tick").await;

        process.stop();
        process.kill9();
        assert_eq!(process.wait().await.signal(), Some(Signal::KILL.as_raw()));
    }

    #[tokio::test]
    async fn dropping_ends_a_stopped_process() {
        let process = shell("echo up; while :; do sleep 0.01; done");
        process.wait_line("up").await;
        let pid = Pid::from_child(&process.child());
        process.stop();
        drop(process);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
