//! docs/config.md is true: its documents are written, and every command line in it works, in its order, on one queue.

use switchback_tests::words;

use crate::{
    cli::{OK, Shell},
    queue::TestQueue,
};

const TEXT: &str = include_str!("../../docs/config.md");

/// Code blocks that begin with `# NAME`: the files that the commands speak of.
fn files() -> Vec<(&'static str, String)> {
    let blocks = TEXT
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    blocks
        .map(|block| {
            let name = block.lines().next().and_then(|line| line.strip_prefix("# "));
            (name.expect("a name in the first line"), block.to_owned())
        })
        .collect()
}

#[tokio::test]
async fn every_command_of_docs_config_works() {
    let q = TestQueue::seeded().await;
    let shell = Shell::new(q.server.url());
    for (name, text) in files() {
        std::fs::write(shell.dir.path().join(name), text).unwrap();
    }
    let mut ran = 0;
    for line in TEXT.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let (line, remark) = line.split_once(" # ").unwrap_or((line, ""));
        let wanted = match remark.trim().strip_prefix("exits with ") {
            Some(code) => code.parse().unwrap(),
            None => OK,
        };
        let words = words(line.trim());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[0] {
            "switchback" => {
                if words.contains(&"--wait") {
                    q.sessions.publish(&q.session, 100, "{}").await.unwrap();
                }
                let found = shell.args(&words[1..]);
                assert_eq!(found.code, wanted, "{line}\n{}{}", found.stdout, found.stderr);
                let unchanged = remark.contains("changes nothing any more");
                assert!(!unchanged || found.stderr.contains("it was so already"), "{found:?}");
            }
            "redis-cli" => drop(q.cmd::<redis::Value>(&words[1..]).await),
            // With what they print: tests/ansible, for it needs a real ansible-core.
            "ansible-playbook" => continue,
            other => panic!("what is {other}?"),
        }
        ran += 1;
    }
    assert!(ran >= 20, "{ran} commands");
    // And they did what they say.
    let history = shell.json("config history");
    assert_eq!(history[0]["source"], "revert", "{history}");
    let limits = shell.json("queue limits send_email").to_string();
    assert!(limits.contains("1000000") && !limits.contains("2000000"), "{limits}");
}
