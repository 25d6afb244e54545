//! What `queue show` says of a queue in which something stands still, or is not as it should be.

use serde_json::{Value, json};

use crate::cli::{Mail, OK};

impl Mail {
    fn hints(&self) -> Vec<(String, String)> {
        let view = self.shell.json("queue show mail");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let hints = view["hints"].as_array().unwrap().iter();
        hints.map(|hint| (text(&hint["code"]), text(&hint["text"]))).collect()
    }
}

#[tokio::test]
async fn a_stream_of_a_priority_that_lost_its_group_is_named() {
    for (priority, name) in [("high", "high priority"), ("low", "low priority")] {
        let mail = Mail::with_worker().await;
        let key = format!("sb:stream:{{shop:mail}}:{priority}");
        assert!(mail.hints().iter().all(|(code, _)| code != "no_group"));
        mail.server.cli(&["XADD", &key, "*", "payload", "{}"]).await;
        mail.server.cli(&["XGROUP", "DESTROY", &key, "workers"]).await;
        let hints = mail.hints();
        let found: Vec<_> = hints.iter().filter(|(code, _)| code == "no_group").collect();
        assert!(found.len() == 1 && found[0].1.contains(name), "{hints:?}");
    }
}

#[tokio::test]
async fn tasks_of_a_newer_format_are_shown() {
    let mail = Mail::with_worker().await;
    assert_eq!(mail.shell.json("queue show mail")["depth"]["newer"], json!(0));
    let key = "sb:newer:{shop:mail}:2";
    for _ in 0..3 {
        mail.server.cli(&["XADD", key, "*", "payload", "{}"]).await;
    }
    assert_eq!(mail.shell.json("queue show mail")["depth"]["newer"], json!(3));
    assert!(
        mail.hints()
            .iter()
            .any(|(code, text)| code == "newer_format" && text.starts_with("3 tasks"))
    );
    mail.shell
        .run("queue show mail")
        .exits(OK)
        .says("0 dead · 3 of a newer format");
    mail.shell.run("queue ls").exits(OK).says("newer format");
}

// P8: a person who wrote SET for HSET has said nothing, and stops nobody.
#[tokio::test]
async fn a_policy_of_another_type_is_said_and_stops_no_rollout() {
    let mail = Mail::with_worker().await;
    mail.server.cli(&["SET", "sb:policy:{shop:mail}", "x"]).await;
    assert!(
        mail.hints()
            .iter()
            .any(|(code, text)| code == "bad_policy" && text.contains("not a hash"))
    );
    mail.shell.run("rollout start mail --to v2 --dry-run").exits(OK);
}

#[tokio::test]
async fn a_cancellation_says_whose_it_was() {
    let mail = Mail::with_worker().await;
    let enqueue = [
        "task",
        "enqueue",
        "mail",
        "--payload",
        "{}",
        "--delay",
        "1h",
        "-o",
        "json",
    ];
    let id = mail.shell.args(&enqueue).exits(OK).json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut command = mail.shell.command(&["task", "cancel", "mail", &id]);
    crate::cli::finish(command.env_remove("USER").env("LOGNAME", "bob")).exits(OK);
    let log = mail.shell.json("queue log mail --kind cancel");
    assert_eq!(log[0]["by"], json!("bob"), "{log}");
}
