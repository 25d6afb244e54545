//! A Redis (or Valkey) server of its own for each test.
//!
//! A server is up in about 20 ms and takes about 12 MB, so no two tests need to share one: they run in
//! parallel, flush, kill and fill their servers without a thought for the others. A missing server
//! binary fails the test; a suite that skips what it cannot run says nothing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Value};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::patience;
use crate::port::free_port;

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const PORT_TRIES: usize = 5;

/// A running server: a loopback port, a data directory and a log of its own, all gone when it is dropped.
#[derive(Debug)]
pub struct RedisServer {
    options: RedisServerBuilder,
    port: u16,
    dir: TempDir,
    run: Mutex<Run>,
}

/// One life of the server process; a restart begins the next.
#[derive(Debug)]
struct Run {
    number: u32,
    child: Option<Child>,
}

/// How to start a [`RedisServer`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct RedisServerBuilder {
    aof: bool,
    args: Vec<(String, String)>,
}

impl RedisServerBuilder {
    /// Keeps an append-only file, so that a restart finds the data again. Defaults to `false`.
    pub fn aof(mut self, aof: bool) -> Self {
        self.aof = aof;
        self
    }

    /// A setting for the command line, as in `.arg("--maxmemory", "10mb")`; it wins over the harness's own.
    pub fn arg(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.args.push((name.into(), value.into()));
        self
    }

    /// Starts the server, and returns when it answers.
    ///
    /// # Panics
    ///
    /// If there is no server binary, or it does not come up; with its log.
    pub async fn start(self) -> RedisServer {
        let dir = tempfile::Builder::new()
            .prefix("switchback-redis-")
            .tempdir()
            .expect("a temporary directory");
        for number in 1..=PORT_TRIES {
            let port = free_port();
            let log = dir.path().join(format!("try-{number}.log"));
            let mut child = self.spawn(dir.path(), port, &log);
            match ready(&mut child, port, &log).await {
                Ok(()) => {
                    fs::rename(&log, log_path(dir.path(), 1)).expect("renaming the log");
                    let run = Mutex::new(Run {
                        number: 1,
                        child: Some(child),
                    });
                    return RedisServer {
                        options: self,
                        port,
                        dir,
                        run,
                    };
                }
                Err(NotReady::PortTaken) => {}
                Err(NotReady::Failed(why)) => {
                    end(child);
                    panic!("redis: {why}; its log:\n{}", read(&log));
                }
            }
        }
        panic!("redis: {PORT_TRIES} free ports in a row were taken before the server could bind them");
    }

    fn spawn(&self, dir: &Path, port: u16, log: &Path) -> Child {
        let binary = server_binary();
        let output = File::create(log).expect("creating the server's log");
        let mut command = Command::new(&binary);
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--daemonize",
            "no",
        ]);
        command
            .arg("--dir")
            .arg(dir)
            .args(["--logfile", "", "--enable-debug-command", "local"]);
        if self.aof {
            // `always`: with `everysec` a busy disk may hold back acknowledged writes, and a kill loses them.
            command.args(["--appendonly", "yes", "--appendfsync", "always"]);
        }
        for (name, value) in &self.args {
            command.args([name, value]);
        }
        command
            .stdin(Stdio::null())
            .stderr(output.try_clone().expect("a second handle of the log"))
            .stdout(output)
            .spawn()
            .unwrap_or_else(|error| panic!("redis: cannot run {}: {error}", binary.display()))
    }

    fn password(&self) -> Option<&str> {
        let last = self.args.iter().rev().find(|(name, _)| name == "--requirepass");
        last.map(|(_, value)| value.as_str())
    }
}

impl RedisServer {
    /// A server with an empty database that keeps nothing on disk.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server with settings of its own.
    pub fn builder() -> RedisServerBuilder {
        RedisServerBuilder::default()
    }

    /// `redis://127.0.0.1:<port>`, with the password if there is one.
    pub fn url(&self) -> String {
        self.url_through(self.port)
    }

    /// The URL for clients that go through another port, as that of a [`Link`](crate::Link).
    pub fn url_through(&self, port: u16) -> String {
        match self.options.password() {
            Some(password) => format!("redis://:{password}@127.0.0.1:{port}"),
            None => format!("redis://127.0.0.1:{port}"),
        }
    }

    /// The port; a restart keeps it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The data directory; a restart keeps it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The process id.
    ///
    /// # Panics
    ///
    /// If the server is not running.
    pub fn pid(&self) -> u32 {
        self.run().child.as_ref().expect("the server is not running").id()
    }

    /// A new connection with a response timeout of 10 s: long enough for a blocking read in a test, short
    /// enough for a hang to show as an error.
    pub async fn connection(&self) -> MultiplexedConnection {
        self.try_connection()
            .await
            .unwrap_or_else(|error| panic!("redis: cannot connect to {}: {error}", self.url()))
    }

    /// Like [`connection`](Self::connection), for tests in which the server may be away.
    pub async fn try_connection(&self) -> redis::RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience(Duration::from_secs(5))))
            .set_response_timeout(Some(patience(Duration::from_secs(10))));
        Client::open(self.url())?
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// One command on a connection of its own, as a person at redis-cli would give it.
    ///
    /// # Panics
    ///
    /// If the server cannot be reached or answers with an error.
    pub async fn cli(&self, command: &[&str]) -> Value {
        self.try_cli(command)
            .await
            .unwrap_or_else(|error| panic!("redis: {}: {error}", command.join(" ")))
    }

    /// Like [`cli`](Self::cli), for commands that may be refused.
    pub async fn try_cli(&self, command: &[&str]) -> redis::RedisResult<Value> {
        let (name, args) = command.split_first().expect("a command");
        let mut connection = self.try_connection().await?;
        redis::cmd(name).arg(args).query_async(&mut connection).await
    }

    /// Kills the server, as a crash would. Does nothing if it is not running.
    pub fn kill9(&self) {
        if let Some(child) = self.run().child.take() {
            end(child);
        }
    }

    /// Freezes the server (SIGSTOP): connections stay open, nothing is answered.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Thaws a frozen server (SIGCONT).
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends the server in an orderly way (SIGTERM), and returns when it is gone.
    pub async fn shutdown(&self) {
        let Some(mut child) = self.run().child.take() else {
            return;
        };
        kill_process(Pid::from_child(&child), Signal::TERM).expect("sending SIGTERM");
        let deadline = Instant::now() + patience(STOP_LIMIT);
        while child.try_wait().expect("waiting for the server").is_none() {
            if Instant::now() >= deadline {
                end(child);
                panic!("redis: did not end within {STOP_LIMIT:?} of SIGTERM");
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Starts the server again on the same port and directory, after a [`shutdown`](Self::shutdown) if it
    /// runs. Without [`aof`](RedisServerBuilder::aof) it comes back empty.
    pub async fn restart(&self) {
        self.shutdown().await;
        let deadline = Instant::now() + patience(START_LIMIT);
        loop {
            let number = self.run().number + 1;
            let log = log_path(self.dir.path(), number);
            let mut child = self.options.spawn(self.dir.path(), self.port, &log);
            self.run().number = number;
            match ready(&mut child, self.port, &log).await {
                Ok(()) => {
                    self.run().child = Some(child);
                    return;
                }
                // Clients know the port, so there is no other to take: wait until it is free again.
                Err(NotReady::PortTaken) if Instant::now() < deadline => sleep(Duration::from_millis(5)).await,
                Err(NotReady::PortTaken) => {
                    panic!("redis: port {} was taken during a restart", self.port)
                }
                Err(NotReady::Failed(why)) => {
                    end(child);
                    panic!("redis: {why} after a restart; its log:\n{}", read(&log));
                }
            }
        }
    }

    /// What the server has logged, over all its lives.
    pub fn log(&self) -> String {
        let last = self.run().number;
        (1..=last)
            .map(|number| read(&log_path(self.dir.path(), number)))
            .collect()
    }

    fn signal(&self, signal: Signal) {
        // Under the lock, so that the process cannot be reaped, and its id reused, in between.
        if let Some(child) = self.run().child.as_ref() {
            kill_process(Pid::from_child(child), signal).expect("signalling the server");
        }
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            println!(
                "--- log of the redis on port {} ---\n{}--- end of the log ---",
                self.port,
                self.log()
            );
        }
    }
}

enum NotReady {
    PortTaken,
    Failed(String),
}

/// Waits until the server has loaded its data and answers.
///
/// The log is asked first: only it proves that the one who answers on the port is this very process.
async fn ready(child: &mut Child, port: u16, log: &Path) -> Result<(), NotReady> {
    let deadline = Instant::now() + patience(START_LIMIT);
    loop {
        if let Some(status) = child.try_wait().expect("waiting for the server") {
            let text = read(log);
            return Err(if text.contains("in use") || text.contains("Failed listening") {
                NotReady::PortTaken
            } else {
                NotReady::Failed(format!("the server ended at once ({status})"))
            });
        }
        if read(log).contains("Ready to accept connections") && answers(port) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(NotReady::Failed(format!(
                "the server was not up within {START_LIMIT:?}"
            )));
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// An inline PING over plain TCP, so that no client's timeouts and reconnects blur the picture.
/// A server that asks for a password is up as well.
fn answers(port: u16) -> bool {
    let ping = || {
        let limit = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"PING\r\n")?;
        let mut reply = [0; 7];
        stream.read_exact(&mut reply)?;
        Ok::<_, std::io::Error>(reply)
    };
    ping().is_ok_and(|reply| reply.starts_with(b"+PONG") || reply.starts_with(b"-NOAUTH"))
}

fn server_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("REDIS_SERVER").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    ["redis-server", "valkey-server"]
        .iter()
        .flat_map(|name| std::env::split_paths(&directories).map(move |directory| directory.join(name)))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "there is no redis-server or valkey-server on PATH. Run the tests with `make test`, which finds or \
                 installs one, or set REDIS_SERVER to the path of a server (7.0 or newer)"
            )
        })
}

/// SIGKILL also ends a process that is stopped; waiting for it afterwards leaves no zombie.
fn end(mut child: Child) {
    child.kill().ok();
    child.wait().ok();
}

fn log_path(dir: &Path, run: u32) -> PathBuf {
    dir.join(format!("redis-{run}.log"))
}

fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests;
