//! What a rollout asks before it starts: readiness, and the queue's policy as a document says it.

use serde_json::{Value, json};

use crate::cli::{Mail, OK, REFUSED, USAGE};

const START: &str = "rollout start mail --to v2";
const POLICY: &str = "[queues.mail.rollout]\nsteps = [2, { percent = 20, bake = \"1h\" }, 100]\nbake = \"10m\"\n\
    min_samples = 40\nwatch = \"2h\"\ninflight = \"revoke\"\nmin_workers = 1\nextend = 3\n\
    [queues.mail.rollout.guard]\nalpha = 0.02\n";

impl Mail {
    fn newest(&self) -> Value {
        self.shell.json("gate history mail")[0].clone()
    }

    fn config(&self, text: &str, line: &str) -> crate::cli::Ran {
        std::fs::write(self.shell.dir.path().join("doc.toml"), text).unwrap();
        self.shell.run(&format!("config {line}"))
    }
}

// A rollout gives tasks to a version, as `gate set` does: it asks the same.
#[tokio::test]
async fn a_version_that_is_not_ready_is_not_begun() {
    let mail = Mail::with_worker().await; // a session, and nobody behind it
    mail.put("{}").await;
    let rev = mail.rev();
    let refused = mail.shell.run(START).exits(REFUSED);
    refused
        .tells("nobody knows whether v2 can read what waits")
        .tells("--force");
    assert_eq!(mail.rev(), rev);
    mail.shell.run(&format!("{START} --dry-run")).exits(REFUSED);
    mail.shell.run(&format!("{START} --force")).exits(OK).tells("going on");
    assert!(
        mail.newest()["forced"].to_string().contains("nobody knows whether v2"),
        "{}",
        mail.newest()
    );
}

#[tokio::test]
async fn too_few_workers_for_the_first_step_are_an_objection() {
    let mail = Mail::with_worker().await;
    mail.has_been_busy().await; // with more than its 8 slots
    let refused = mail.shell.run(&format!("{START} --steps 50,100")).exits(REFUSED);
    refused.tells("about 20 slots");
    mail.shell.run(&format!("{START} --steps 10,100")).exits(OK);
}

// P3: without it the guard would roll back to nobody.
#[tokio::test]
async fn there_is_somebody_to_roll_back_to() {
    let mail = Mail::new().await;
    mail.join_and_leave(&["v1"]).await;
    mail.join(&["v2"], 1).await;
    mail.shell
        .run(START)
        .exits(REFUSED)
        .tells("no live worker has v1, which a rollback would go to");
    mail.shell.run(&format!("{START} --force")).exits(OK);
    assert!(mail.newest()["forced"].to_string().contains("no live worker has v1"));
    // Somebody who runs nothing of it is nobody.
    let mail = Mail::new().await;
    let session = mail.join(&["v1", "v2"], 1).await;
    mail.sessions().say_open(&session, "v1").await.unwrap();
    mail.shell
        .run(START)
        .exits(REFUSED)
        .tells("every live worker holds v1 because it fails there");
    mail.shell.run(&format!("{START} --force")).exits(OK);
}

#[tokio::test]
async fn a_policy_that_was_applied_is_what_a_rollout_does() {
    let mail = Mail::with_worker().await;
    mail.config(POLICY, "apply doc.toml").exits(OK);
    let begun = mail.shell.run(&format!("{START} -o json")).exits(OK).json();
    let step = |percent: f64, bake_us: u64| json!({"percent": percent, "bake_us": bake_us, "min_samples": 40});
    assert_eq!(
        begun["steps"],
        json!([
            step(2.0, 600_000_000),
            step(20.0, 3_600_000_000),
            step(100.0, 600_000_000)
        ])
    );
    let record: Vec<String> =
        redis::from_redis_value(mail.server.cli(&["HVALS", "sb:rollout:{shop:mail}"]).await).unwrap();
    let spec = record.iter().find(|text| text.contains("\"steps\"")).unwrap();
    let spec: Value = serde_json::from_str(spec).unwrap();
    assert_eq!(
        (
            &spec["watch"],
            &spec["inflight"],
            &spec["guard"]["alpha"],
            &spec["extend"]
        ),
        (&json!("2h"), &json!("revoke"), &json!(0.02), &json!(3.0))
    );
}

#[tokio::test]
async fn a_policy_goes_out_and_in_again_unchanged() {
    let mail = Mail::with_worker().await;
    mail.config(POLICY, "apply doc.toml").exits(OK);
    for (flag, format) in [("", "toml"), (" -o yaml", "yaml")] {
        let text = mail.shell.run(&format!("config export{flag}")).exits(OK).stdout;
        let name = format!("doc.{format}");
        std::fs::write(mail.shell.dir.path().join(&name), &text).unwrap();
        let same = mail.shell.run(&format!("config apply {name} -o json")).exits(OK).json();
        assert_eq!(same["changed"], json!(false), "{text}\n{same}");
    }
}

// What `rollout start` would refuse, `config apply` refuses, with its place.
#[tokio::test]
async fn what_no_rollout_could_do_is_no_policy() {
    let mail = Mail::with_worker().await;
    for (fields, why) in [
        ("bake = \"8d\"", "queues.mail.rollout: bake: "),
        ("guard = { alpha = 5 }", "queues.mail.rollout: "),
        ("guard = { alfa = 0.1 }", "guard.alfa"),
        ("steps = [10, { percent = 20, soak = \"1m\" }]", "steps[1]"),
        ("min_workers = 0", "min_workers"),
    ] {
        mail.config(&format!("[queues.mail.rollout]\n{fields}\n"), "apply doc.toml")
            .exits(USAGE)
            .tells(why);
    }
}
