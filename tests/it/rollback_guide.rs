//! docs/rollback.md is true: its files are written, and every command in it is run, in its order, with real pools.
//!
//! What a reader does not see steers this test: `<!-- wait: COMMAND says TEXT -->` waits, `<!-- says: TEXT -->` is about the
//! command before it, `<!-- first: COMMAND -->` brings about what the text only speaks of.
//!
//! It is quicker than any reader: before the rollout it waits until the server is three seconds old. When a server began is
//! known to a second, and what lies nearer to that than a second a certificate calls undecidable.

use std::{collections::HashMap, fs, process::Command, time::Duration};

use redis::Value;
use switchback_tests::{Process, RedisServer, eventually, words};
use tokio::task::JoinSet;

use crate::cli::{OK, Ran, Shell, finish};

const TEXT: &str = include_str!("../../docs/rollback.md");
/// What the harness does in its own way: it has binaries and a server.
const OURS: &[&str] = &[
    "make build",
    "export PATH=$PWD/target/release:$PATH",
    "redis-server --save '' --daemonize yes",
    "redis-cli SHUTDOWN NOSAVE",
];
/// As long as a reader would look at it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The reader.
struct Reader {
    server: RedisServer,
    shell: Shell,
    env: HashMap<String, String>,
    pools: Vec<Process>,
    producers: JoinSet<()>,
    last: Ran,
    ran: usize,
}

impl Reader {
    /// A command as a shell would take it, with what it is to exit with.
    async fn run(&mut self, line: &str) {
        if OURS.contains(&line) {
            return;
        }
        let (line, remark) = line.split_once(" # ").unwrap_or((line, ""));
        let wanted = match remark.trim().strip_prefix("exits with ") {
            Some(code) => code.parse().expect("an exit code"),
            None => OK,
        };
        let mut words: Vec<String> = words(line.trim()).iter().map(|word| self.expand(word)).collect();
        let behind = words.pop_if(|word| word == "&").is_some();
        words.pop_if(|word| word == "2>&1");
        let file = words.iter().position(|word| word == ">").map(|at| {
            let name = words[at + 1].clone();
            words.truncate(at);
            name
        });
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        match words[0].as_str() {
            "export" => self.export(&arguments),
            "kill" => {
                assert_eq!(arguments.len(), self.pools.len() + self.producers.len(), "{line}");
                self.producers.shutdown().await;
                self.pools.iter().for_each(Process::term);
            }
            "switchback-worker" if behind => {
                let mut command = Command::new(Process::binary("switchback-worker"));
                command.args(&arguments).current_dir(self.shell.dir.path());
                command.envs(&self.env).env("SWITCHBACK_REDIS_URL", &self.shell.url);
                self.pools.push(Process::spawn(&mut command));
            }
            "redis-cli" if behind => self.produce(&arguments).await,
            "redis-cli" => {
                let reply = self.server.cli(&arguments).await;
                assert_ne!(reply, Value::Nil, "{line}");
                println!("{reply:?}");
            }
            "switchback" => {
                self.last = finish(self.shell.command(&arguments).envs(&self.env));
                println!("{}{}", self.last.stderr, self.last.stdout);
                assert_eq!(self.last.code, wanted, "{line}");
                if let Some(name) = file {
                    fs::write(self.shell.dir.path().join(name), &self.last.stdout).unwrap();
                }
            }
            other => panic!("what is {other}?"),
        }
        self.ran += 1;
    }

    fn expand(&self, word: &str) -> String {
        self.env.iter().fold(word.to_owned(), |word, (name, value)| {
            word.replace(&format!("${name}"), value)
        })
    }

    fn export(&mut self, pairs: &[&str]) {
        for pair in pairs {
            let (name, value) = pair.split_once('=').expect("NAME=value");
            self.env.insert(name.to_owned(), value.to_owned());
        }
    }

    /// `redis-cli -r -1 -i SECONDS …` in the background.
    async fn produce(&mut self, arguments: &[&str]) {
        let ["-r", "-1", "-i", every, command @ ..] = arguments else {
            panic!("what does {arguments:?} do?")
        };
        let mut connection = self.server.connection().await;
        let mut wire = redis::Cmd::new();
        wire.arg(command);
        let mut tick = tokio::time::interval(Duration::from_secs_f64(every.parse().unwrap()));
        self.producers.spawn(async move {
            loop {
                tick.tick().await;
                // Refused at maxmemory, as redis-cli would be, which goes on all the same.
                let _ = wire.query_async::<Value>(&mut connection).await;
            }
        });
    }

    async fn hidden(&mut self, comment: &str) {
        let (what, rest) = comment.split_once(": ").expect("a word and a colon");
        match what {
            "first" => self.run(rest).await,
            "says" => {
                let said = format!("{}{}", self.last.stdout, self.last.stderr);
                assert!(said.contains(rest), "no {rest:?} in\n{said}");
            }
            "wait" => {
                let (command, text) = rest.split_once(" says ").expect("COMMAND says TEXT");
                let words = words(command);
                let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
                eventually(comment, PATIENCE, async || {
                    let ran = finish(self.shell.command(&arguments).envs(&self.env));
                    if ran.stdout.contains(text) {
                        Ok(())
                    } else {
                        Err(format!("{ran:#?}"))
                    }
                })
                .await;
            }
            other => panic!("what is {other}?"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_docs_rollback_works() {
    let server = RedisServer::start().await;
    let mut reader = Reader {
        shell: Shell::new(server.url()),
        server,
        env: HashMap::new(),
        pools: Vec::new(),
        producers: JoinSet::new(),
        last: Ran {
            code: OK,
            stdout: String::new(),
            stderr: String::new(),
        },
        ran: 0,
    };
    for file in TEXT.split("```toml\n# ").skip(1) {
        let (name, rest) = file.split_once('\n').unwrap();
        let body = rest.split("```").next().unwrap();
        fs::write(reader.shell.dir.path().join(name), body).unwrap();
    }
    let mut block: Option<&str> = None;
    for line in TEXT.lines().map(str::trim) {
        match (line.strip_prefix("```"), block) {
            (Some(_), Some(_)) => block = None,
            (Some(kind), None) => block = Some(kind),
            (None, Some("console")) => {
                if let Some(command) = line.strip_prefix("$ ") {
                    println!("$ {command}");
                    reader.run(command).await;
                }
            }
            _ => {
                if let Some(comment) = line.strip_prefix("<!-- ").and_then(|l| l.strip_suffix(" -->")) {
                    reader.hidden(comment).await;
                }
            }
        }
    }
    assert!(reader.ran >= 45, "{} commands", reader.ran);
}
