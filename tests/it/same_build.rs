//! The mark of a rollback speaks of a build: the same label, built again, is another try for every command.

use std::time::Duration;

use serde_json::json;
use switchback_common::{
    SessionId,
    store::session::{Builds, Joined, SessionRecord},
};

use crate::cli::{Mail, OK, REFUSED};

impl Mail {
    /// What the guard leaves on v2 when it rolls it back.
    async fn v2_was_rolled_back(&self, build: &str) {
        let mark = format!(
            r#"{{"first_seen_us":"1","build":"{build}","rolled_back":{{"at_us":"5","rev":2,"why":"failed 30 %","build":"{build}"}}}}"#
        );
        let hset = ["HSET", "sb:versions:{shop:mail}", "v2", &mark];
        self.server.cli(&hset).await;
    }

    async fn join_again(&self, build: &str) {
        let record = SessionRecord {
            host: "web-4".to_owned(),
            pid: 4712,
            build: build.to_owned(),
            versions: vec!["v2".parse().unwrap()],
            concurrency: 8,
            started_ms: 1_700_000_000_000,
        };
        let (session, lease) = (SessionId::random(), Duration::from_secs(600));
        let joined = self
            .sessions()
            .join_with(&session, lease, &record, Builds::Several)
            .await;
        assert!(matches!(joined, Ok(Joined::Yes { .. })), "{joined:?}");
    }
}

#[tokio::test]
async fn what_was_rolled_back_as_another_build_is_another_try() {
    let mail = Mail::with_worker().await;
    mail.set("candidate=v2 percent=10");
    mail.set("candidate=");
    mail.v2_was_rolled_back("b1").await;
    std::fs::write(
        mail.shell.dir.path().join("doc.toml"),
        "[queues.mail.gate]\ncandidate = \"v2\"\npercent = 10\n",
    )
    .unwrap();
    let all = [
        "gate check mail --to v2",
        "gate set mail candidate=v2 percent=10 --dry-run",
        "gate revert mail --to-rev 2 --dry-run",
        "config apply doc.toml --dry-run",
    ];
    for line in all {
        mail.shell.run(line).exits(REFUSED);
    }
    let start = "rollout start mail --to v2 --dry-run";
    mail.shell.run(start).exits(REFUSED).tells("--again");

    mail.join_again("b2").await;
    for line in all {
        mail.shell.run(line).exits(OK);
    }
    mail.shell.run(start).exits(OK);
    let versions = mail.shell.json("version ls mail");
    assert_eq!(versions[1]["rolled_back"]["build"], json!("b1"), "{versions}");
    mail.shell
        .run("version ls mail")
        .exits(OK)
        .says("rolled back as build b1");
}
