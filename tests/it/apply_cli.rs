//! `config apply` cut short between two schedules, `config` where there is more than a document or a reply should hold.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use switchback_common::store::{
    limits::Put,
    policy::{self, Policy},
};
use switchback_tests::{Link, Mode, eventually, patience};

use crate::cli::{FAILED, Mail, OK, REFUSED};

impl Mail {
    fn save(&self, name: &str, text: &str) {
        std::fs::write(self.shell.dir.path().join(name), text).unwrap();
    }

    async fn schedule(&self, name: &str) -> String {
        let found = self.server.cli(&["HGET", "sb:schedules:{shop:mail}", name]).await;
        redis::from_redis_value::<Option<String>>(found)
            .unwrap()
            .unwrap_or_default()
    }
}

fn schedules(hours: [u32; 2]) -> String {
    let one = |name: &str, hour: u32| {
        format!("[queues.mail.schedules.{name}]\ncron = \"0 {hour} * * *\"\npayload = {{ full = true }}\n")
    };
    one("a", hours[0]) + &one("b", hours[1])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_apply_wrote_of_a_section_it_left_is_said() {
    let mail = Mail::with_worker().await;
    mail.save("doc.toml", &schedules([1, 1]));
    mail.shell.run("config apply doc.toml").exits(OK);

    // Somebody edits b while an apply is on its way: the link is slow, the person is not.
    let link = Link::to(mail.server.port()).await;
    link.set(Mode::Delay(Duration::from_millis(100))).await;
    mail.save("doc.toml", &schedules([2, 2]));
    let mut command = mail.shell.command(&["config", "apply", "doc.toml", "-o", "json"]);
    command.env("SWITCHBACK_REDIS_URL", mail.server.url_through(link.port()));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let wait = patience(Duration::from_secs(20));
    eventually("a is written", wait, async || match mail.schedule("a").await {
        found if found.contains("0 2 * * *") => Ok(()),
        found => Err(found),
    })
    .await;
    let edited = mail.schedule("b").await.replace("0 1 * * *", "0 5 * * *");
    let hset = ["HSET", "sb:schedules:{shop:mail}", "b", &edited];
    mail.server.cli(&hset).await;
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
        .await
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(FAILED), "{stderr}");
    let words =
        "schedule b of shop/mail meanwhile; applied: nothing; of mail schedules: 1 written; left: mail schedules";
    assert!(stderr.contains(words), "{stderr}");
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&view["changed"], &view["complete"]), (&json!(true), &json!(false)));
    assert_eq!(
        view["partly"],
        json!({"queue": "mail", "section": "schedules", "written": 1})
    );
    assert_eq!(mail.schedule("b").await, edited, "the person won");
    let stopped = &mail.shell.json("config history")[0]["stopped"];
    assert!(stopped.as_str().unwrap().contains("1 written"), "{stopped}");
}

#[tokio::test]
async fn a_namespace_of_more_than_a_thousand_queues_is_exported_applied_and_reverted() {
    let mail = Mail::with_worker().await;
    let names: Vec<String> = (0..1_001).map(|n| format!("q{n:04}")).collect();
    let sadd: Vec<&str> = ["SADD", "sb:queues:{shop}"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    mail.server.cli(&sadd).await;
    mail.save("doc.toml", "[queues.mail.limits]\ndead = 7\n");
    mail.shell.run("config apply doc.toml").exits(OK);
    mail.shell.run("queue limits mail --dead 9").exits(OK);
    mail.shell.run("config revert --to 1").exits(OK);
    let export = mail.shell.run("config export").exits(OK);
    assert_eq!(export.stderr, "", "nothing speaks against applying it");
    assert!(export.stdout.contains("[queues.q1000") && export.stdout.contains("dead = 7"));
    mail.save("all.toml", &export.stdout);
    mail.shell
        .run("config apply all.toml")
        .exits(OK)
        .tells("it was so already");
}

#[tokio::test]
async fn what_no_document_may_hold_is_said_when_it_is_exported_and_when_it_is_applied() {
    let mail = Mail::with_worker().await;
    mail.save("doc.toml", &schedules([1, 1]));
    mail.shell.run("config apply doc.toml").exits(OK);
    // By hand there may be more.
    let one = mail.schedule("a").await;
    for n in 0..100 {
        let hset = ["HSET", "sb:schedules:{shop:mail}", &format!("by-hand-{n}"), &one];
        mail.server.cli(&hset).await;
    }
    for format in ["table", "yaml", "json"] {
        let export = mail.shell.run(&format!("config export -o {format}")).exits(OK);
        export.tells("cannot be applied as it is: queues.mail.schedules: 102 of them, the limit is 100");
    }
    mail.save("doc.toml", "[queues.mail.limits]\ndead = 7\n");
    let applied = mail.shell.run("config apply doc.toml").exits(OK);
    applied.tells("this one cannot be reverted to: queues.mail.schedules: 102 of them");
    assert_eq!(mail.shell.json("config history")[0]["kept"], json!(false));
    mail.shell
        .run("config revert --to 2")
        .exits(REFUSED)
        .tells("more than is kept");
    mail.shell.run("config revert --to 1 --dry-run").exits(OK);
}

/// The log says who changed a policy that is as long as one may be, and is not read as a whole for it.
#[tokio::test(flavor = "multi_thread")]
async fn drift_finds_a_long_policy_behind_long_attempts() {
    let mail = Mail::with_worker().await;
    // Blanks make it long.
    let json = format!(r#"{{"steps":[1,100]{}}}"#, " ".repeat(10_000));
    let set = policy::set(&mail.store, &mail.queue, Policy::Rollout, "", &json, "bob", "");
    assert_eq!(set.await.unwrap(), Put::Set);
    let long = "x".repeat(60_000);
    for _ in 0..200 {
        let xadd = ["XADD", "sb:log:{shop:mail}", "*", "kind", "settled", "attempts", &long];
        mail.server.cli(&xadd).await;
    }
    let link = Link::to(mail.server.port()).await;
    mail.save("doc.toml", "[queues.mail.rollout]\nsteps = [5, 100]\n");
    let mut far = mail.shell.command(&["config", "drift", "doc.toml", "-o", "json"]);
    far.env("SWITCHBACK_REDIS_URL", mail.server.url_through(link.port()));
    let drift = crate::cli::finish(&mut far).exits(OK).json();
    assert_eq!(drift["drift"][0]["who"]["by"], json!("bob"), "{drift}");
    let cost = link.counters().reply_bytes;
    assert!(cost < 1024 * 1024, "{cost} bytes");
}
