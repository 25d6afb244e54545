//! The guide is true: every command line in it works, in its order, on one queue with one dead letter.

use switchback_tests::{RedisServer, words};

use crate::cli::{OK, Shell};

const GUIDE: &str = include_str!("../../docs/guide.md");

#[tokio::test]
async fn every_command_of_the_guide_works() {
    let server = RedisServer::start().await;
    let shell = Shell::new(server.url());
    shell.run("task enqueue send_email --payload {}").exits(OK);
    let dead = [
        "payload",
        "{}",
        "dead_reason",
        "attempts",
        "dead_version",
        "v2",
        "dead_at",
        "5",
    ];
    server
        .cli(&[&["XADD", "sb:dead:{shop:send_email}", "*"], &dead[..]].concat())
        .await;
    let lines: Vec<&str> = GUIDE
        .lines()
        .filter_map(|line| line.strip_prefix("$ switchback "))
        .collect();
    assert!(lines.len() >= 15, "{lines:?}");
    for line in lines {
        let words = words(line);
        let ran = shell.args(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ran.code, OK, "switchback {line}\n{}{}", ran.stdout, ran.stderr);
    }
    // And they did what they say.
    let left = server.cli(&["XLEN", "sb:dead:{shop:send_email}"]).await;
    assert_eq!(left, redis::Value::Int(0), "requeued");
}
