//! `switchback task enqueue` with all its options, and `task show` of what came of them.

use redis::Value as Reply;
use serde_json::{Value, json};

use crate::cli::{Mail, OK, REFUSED, USAGE};

const HOUR_US: u64 = 3_600_000_000;

impl Mail {
    /// Enqueues with these options; what `task show` says of the task.
    fn enqueued(&self, options: &str) -> Value {
        let line = format!("task enqueue mail --payload 1 -o json {options}");
        let told = self.shell.run(&line).exits(OK).json();
        assert_eq!(told["existing"], false, "{told}");
        self.shell
            .json(&format!("task show mail {}", told["id"].as_str().unwrap()))
    }
}

#[tokio::test]
async fn what_is_special_about_a_task_is_sent_and_shown() {
    let mail = Mail::with_worker().await;
    let view = mail.enqueued("--delay 1h --priority high --expires-in 2h --unique order-42 --hold 1h");
    assert_eq!(
        [&view["state"], &view["priority"], &view["unique"], &view["snoozes"]],
        [&json!("delayed"), &json!("high"), &json!("order-42"), &json!(0)]
    );
    let us = |field: &str| view[field].as_u64().unwrap();
    let enqueued = us("enqueued_at_us");
    assert_eq!(
        (us("due_at_us"), us("expires_at_us")),
        (enqueued + HOUR_US, enqueued + 2 * HOUR_US)
    );
    assert!(view["expires_at"].as_str().unwrap().ends_with('Z'), "{view}");
    let ttl = mail.server.cli(&["PTTL", "sb:unique:{shop:mail}:key:order-42"]).await;
    assert!(matches!(ttl, Reply::Int(1..=3_600_000)), "{ttl:?}");
    mail.shell
        .run(&format!("task show mail {}", view["id"].as_str().unwrap()))
        .exits(OK)
        .says("PRIORITY      high")
        .says("EXPIRES       in ")
        .says("UNIQUE KEY    order-42");

    let mut snoozed = vec!["XADD", "sb:head:{shop:mail}", "*", "payload", "7", "id", "t-7"];
    snoozed.extend(["snoozes", "3"]);
    mail.server.cli(&snoozed).await;
    assert_eq!(mail.shell.json("task show mail t-7")["snoozes"], 3);
    mail.shell.run("task show mail t-7").exits(OK).says("SNOOZES       3");

    let plain = mail.enqueued("--key cust-7");
    for field in ["priority", "unique", "expires_at", "expires_at_us"] {
        assert_eq!(plain[field], Value::Null, "{plain}");
    }
    let id = plain["id"].as_str().unwrap();
    let text = mail.shell.run(&format!("task show mail {id}")).exits(OK).stdout;
    for row in ["PRIORITY", "UNIQUE KEY", "EXPIRES", "SNOOZES"] {
        assert!(!text.contains(row), "{text}");
    }
}

#[tokio::test]
async fn tasks_start_when_and_where_they_are_told() {
    let mail = Mail::with_worker().await;
    let view = mail.enqueued("--at 2099-12-24T18:00:00+01:00");
    assert_eq!(
        [&view["state"], &view["due_at"]],
        [&json!("delayed"), &json!("2099-12-24T17:00:00Z")]
    );
    let view = mail.enqueued("--at 2001-01-01T00:00:00Z");
    assert_eq!(view["state"], "waiting", "that has passed");
    for (priority, place) in [("low", "low"), ("high", "high"), ("normal", "main")] {
        let view = mail.enqueued(&format!("--priority {priority}"));
        assert_eq!(view["place"], place);
    }
    // The longest there is: a deadline that is never met, and not a malformed task.
    let view = mail.enqueued("--expires-in 2562047788015215h");
    assert_eq!((&view["malformed"], &view["state"]), (&Value::Null, &json!("waiting")));

    for (wrong, why) in [
        ("--at tomorrow", "--at"),
        ("--at 2099-01-01T00:00:00Z --delay 1s", "--delay"),
        ("--delay=-1s", "negative"),
        ("--priority urgent", "high, normal or low"),
        ("--unique order-42", "--hold"),
        ("--hold 1h", "--unique"),
        ("--if-taken existing", "--unique"),
    ] {
        mail.shell
            .run(&format!("task enqueue mail --payload 1 {wrong}"))
            .exits(USAGE)
            .tells(why);
    }
}

#[tokio::test]
async fn a_unique_key_that_is_taken_names_the_task_that_has_it() {
    let mail = Mail::with_worker().await;
    let line = "task enqueue mail --payload 1 --unique order-42 --hold 1h";
    let first = mail.shell.run(line).exits(OK).stdout.trim().to_owned();
    let ran = mail.shell.run(line).exits(REFUSED).tells(&first);
    assert_eq!(ran.tells("--if-taken existing").stdout, "");
    let taken = mail.shell.run(&format!("{line} --if-taken existing")).exits(OK);
    assert_eq!(taken.tells("nothing was enqueued").stdout.trim(), first);
    let told = mail.shell.json(&format!("{line} --if-taken existing"));
    assert_eq!(told, json!({"queue": "shop/mail", "id": first, "existing": true}));
    assert_eq!(mail.server.cli(&["XLEN", "sb:stream:{shop:mail}"]).await, Reply::Int(1));

    let latest = mail.enqueued("--unique order-42 --hold 1h --if-taken replace");
    assert_ne!(latest["id"], json!(first));
    let replaced = mail.shell.json(&format!("task show mail {first}"));
    assert!(
        replaced["cancel_asked_at"].is_string() || replaced["state"] == "cancelled",
        "{replaced}"
    );
    let stays = mail.shell.run(line).exits(REFUSED);
    stays.tells(latest["id"].as_str().unwrap());

    // Its own key, by a repeat of the same enqueue, is nobody else's.
    for _ in 0..2 {
        let view = mail.enqueued("--id order-7 --unique order-7 --hold 1h --if-taken existing");
        assert_eq!(view["id"], "order-7");
    }
    assert_eq!(mail.server.cli(&["XLEN", "sb:stream:{shop:mail}"]).await, Reply::Int(3));
    let long = "k".repeat(257);
    mail.shell
        .run(&format!("task enqueue mail --payload 1 --unique {long} --hold 1h"))
        .exits(REFUSED)
        .tells("256");
}
