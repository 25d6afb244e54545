//! The person at the keyboard: the command line, and Redis itself.

use std::{
    io::{Read as _, Seek as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use switchback_common::config::{NAMESPACE_VAR, REDIS_URL_VAR};
use tokio::process::Command;

use crate::{Failure, NAMESPACE, timeline::Timeline};

/// What an operator has at hand.
#[derive(Debug)]
pub(crate) struct Operator<'a> {
    pub(crate) switchback: PathBuf,
    pub(crate) redis_url: String,
    pub(crate) redis_port: u16,
    pub(crate) timeline: &'a Timeline,
}

impl Operator<'_> {
    /// Runs one `switchback` command and shows it with its output.
    pub(crate) async fn switchback(&self, args: &[&str]) -> Result<(), Failure> {
        let shown: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
        self.timeline.say(format_args!("$ switchback {}", shown.join(" ")));
        // One file for both, so that lines stand as a terminal would show them.
        let mut output = tempfile::tempfile()?;
        let status = Command::new(&self.switchback)
            .args(args)
            .env(REDIS_URL_VAR, &self.redis_url)
            .env(NAMESPACE_VAR, NAMESPACE)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .kill_on_drop(true)
            .status()
            .await
            .map_err(|error| format!("cannot run {}: {error}", self.switchback.display()))?;
        let mut text = Vec::new();
        output.rewind()?;
        output.read_to_end(&mut text)?;
        self.timeline.note(String::from_utf8_lossy(&text));
        if status.success() {
            Ok(())
        } else {
            Err(format!("`switchback {}` failed: {status}", shown.join(" ")).into())
        }
    }

    /// Sends one command straight to Redis: with redis-cli if there is one, else the same bytes over a socket.
    pub(crate) async fn redis(&self, command: &[&str]) -> Result<(), Failure> {
        let port = self.redis_port.to_string();
        let shown: Vec<String> = command.iter().map(|part| quoted(part)).collect();
        let shown = shown.join(" ");
        let reply = if let Some(redis_cli) = on_path("redis-cli") {
            self.timeline.say(format_args!("$ redis-cli -p {port} {shown}"));
            let output = Command::new(redis_cli)
                .args(["-p", &port])
                .args(command)
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output()
                .await?;
            // It ends with 0 whatever Redis says.
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        } else {
            self.timeline
                .say(format_args!("to 127.0.0.1:{port}, without a redis-cli: {shown}"));
            over_socket(self.redis_port, command)?
        };
        self.timeline.note(&reply);
        if reply.parse::<u64>().is_ok() {
            Ok(())
        } else {
            Err(format!("Redis did not take `{shown}`: {reply}").into())
        }
    }
}

/// One command in Redis's own protocol; its reply's first line without the type.
fn over_socket(port: u16, command: &[&str]) -> Result<String, Failure> {
    let mut bytes = format!("*{}\r\n", command.len());
    for part in command {
        bytes.push_str(&format!("${}\r\n{part}\r\n", part.len()));
    }
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(bytes.as_bytes())?;
    let mut reply = Vec::new();
    let mut byte = [0];
    while !reply.ends_with(b"\r\n") {
        stream.read_exact(&mut byte)?;
        reply.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&reply)
        .trim()
        .trim_start_matches([':', '+'])
        .to_owned())
}

/// The first executable of that name on PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| Path::is_file(file))
}

/// An argument as one would type it in a shell.
fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:%@+".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) {
        arg.to_owned()
    } else {
        format!("'{}'", arg.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_one_would_type_them() {
        assert_eq!(quoted("candidate=v2"), "candidate=v2");
        assert_eq!(
            quoted("sb:gate:{demo:index_document}"),
            "'sb:gate:{demo:index_document}'"
        );
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
