//! Targets: tasks with a header that go to one version. What edits of them mean, and what another release makes of them.

use redis::Value as Reply;
use serde_json::Value;
use switchback_common::store::{
    gate::{ChangeRequest, Changed, SealWord},
    keyspace::Key,
};

use crate::{
    cli::{Mail, OK, REFUSED, USAGE},
    queue::{TestQueue, json, show},
};

impl TestQueue {
    /// Edits the targets by hand.
    async fn target(&self, targets: &str) -> (SealWord, String) {
        self.cmd::<()>(&["HSET", &self.key(Key::Gate), "targets", targets])
            .await;
        let (word, sealed) = self.seal().await;
        (word, show(&sealed.gate))
    }

    async fn state(&self, field: &str) -> Option<String> {
        self.cmd(&["HGET", &self.key(Key::GateState), field]).await
    }
}

#[tokio::test]
async fn targets_are_sorted_and_the_last_of_a_value_counts() {
    let q = TestQueue::seeded().await;
    for (targets, canonical) in [
        ("  plan:beta=v2   eu:1=v1\tplan:beta=v3 ", "eu:1=v1 plan:beta=v3"),
        ("u:http://x:80/?a=b=v2", "u:http://x:80/?a=b=v2"),
        ("p:ä=v1 p:Z=v1 P:z=v2 p-a:z=v2", "P:z=v2 p-a:z=v2 p:Z=v1 p:ä=v1"), // bytes, not a locale
    ] {
        assert_eq!(
            q.target(targets).await,
            (SealWord::Sealed, format!("v1 targets[{canonical}]"))
        );
    }
    assert_eq!(q.target("   ").await.1, "v1");
    assert_eq!(q.human().await, "active=v1 paused=0");
    q.target("plan:beta=v2").await;
    q.hdel("targets").await;
    assert_eq!(show(&q.seal().await.1.gate), "v1", "a field that is gone is empty");
}

// P8: a typo in one of them changes nothing.
#[tokio::test]
async fn bad_targets_are_refused_whole() {
    let q = TestQueue::seeded().await;
    let many = |n: usize| (0..n).map(|i| format!("h:{i}=v1")).collect::<Vec<_>>().join(" ");
    let value = |n: usize| format!("h:{}=v1", "x".repeat(n));
    let long: String = (0..40).map(|i| format!("h{i}:{}=v1 ", "x".repeat(220))).collect();
    for (targets, reason) in [
        ("plan", "not header:value=version"),
        ("plan=v1", "not header:value=version"),
        ("plan:beta", "not header:value=version"),
        ("plan:beta=", "not header:value=version"),
        ("plan:=v1", "not header:value=version"),
        (":beta=v1", "not the name of a header"),
        ("plän:beta=v1", "not the name of a header"),
        (
            format!("{}:beta=v1", "h".repeat(65)).as_str(),
            "not the name of a header",
        ),
        (value(257).as_str(), "a value longer than 256 bytes"),
        ("plan:beta=v1 plan:alpha=v9", "unknown version v9"),
        (many(101).as_str(), "more than 100 targets"),
        (long.as_str(), "longer than 8192 bytes"),
    ] {
        assert_eq!(q.target(targets).await, (SealWord::Refused, "v1".into()), "{reason}");
        let refused = json(&q.history().await[0].refused);
        let said = refused["targets"].as_str().unwrap();
        assert!(said.contains(reason) && said.len() < 400, "{said}");
        assert_eq!(q.human().await, "active=v1 paused=0");
    }
    let (_, gate) = q.target(&many(100)).await;
    assert_eq!(gate.matches("h:").count(), 100);
    assert_eq!(q.target(&value(256)).await.0, SealWord::Sealed);
}

#[tokio::test]
async fn only_drops_targets_of_other_versions_and_keeps_its_own() {
    let q = TestQueue::seeded().await;
    q.target("plan:beta=v2 plan:old=v1 eu:1=v3").await;
    assert_eq!(
        q.edit("active v3").await,
        "v3 targets[eu:1=v3 plan:beta=v2 plan:old=v1]"
    );
    assert_eq!(q.edit("only v2").await, "v2 targets[plan:beta=v2]");
    assert_eq!(q.edit("only v1").await, "v1");
}

#[tokio::test]
async fn a_change_that_names_no_targets_keeps_them() {
    let q = TestQueue::seeded().await;
    q.target("plan:beta=v2").await;
    let request = |fields: &[(&'static str, &str)]| ChangeRequest {
        source: "cli".into(),
        fields: fields.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
        ..ChangeRequest::default()
    };
    let changed = q
        .gate
        .change(&request(&[("candidate", "v3"), ("percent", "10")]))
        .await
        .unwrap();
    let Changed::Changed(sealed) = changed else {
        panic!("{changed:?}")
    };
    assert_eq!(show(&sealed.gate), "v1 v3@10 targets[plan:beta=v2]");
    let refused = q.gate.change(&request(&[("targets", "plan:beta=v9")])).await.unwrap();
    assert!(
        matches!(refused, Changed::Refused { ref field, .. } if field == "targets"),
        "{refused:?}"
    );
    let same = q.gate.change(&request(&[("targets", " plan:beta=v2 ")])).await.unwrap();
    assert!(matches!(same, Changed::Same(_)), "{same:?}");
}

/// What a worker of the release before does with the gate: compares, and where that differs, seals.
async fn release_before(q: &TestQueue) -> Result<String, String> {
    let old = include_str!("../corpus/seal-format-1.lua");
    let keys = [Key::Gate, Key::GateState, Key::History, Key::Versions].map(|key| q.key(key));
    let mut words = vec!["EVAL", old, "4"];
    words.extend(keys.iter().map(String::as_str));
    words.push("redis-cli");
    let fields: std::collections::BTreeMap<String, String> = q.cmd(&["HGETALL", &keys[0]]).await;
    let print: String = fields
        .iter()
        .map(|(k, v)| format!("{}:{k}{}:{v}", k.len(), v.len()))
        .collect();
    if q.state("seen").await.as_deref() == Some(&print) {
        return Ok("settled".into());
    }
    match q.try_cmd::<Reply>(&words).await {
        Ok(Reply::Array(answer)) => Ok(format!("{:?}", answer[0])),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

// P8: a worker of the release before does not know targets. It starts nothing while there are some, rather than to route
// as if there were none; and it goes on by itself when the last one is gone.
#[tokio::test]
async fn a_release_without_targets_starts_nothing_while_there_are_some() {
    let q = TestQueue::seeded().await;
    assert_eq!(release_before(&q).await, Ok("settled".into()));
    let plain = q.state("digest").await;
    // sha1 of `v1 NUL NUL 0 NUL NUL 0`: what the release before computes. Another digest at the same revision would hold the queue.
    assert_eq!(plain.as_deref(), Some("cf03976dd7d8ecfc4f3e26689c83db97ac53a302"));
    assert_eq!(q.state("format").await, None);

    q.target("plan:beta=v2").await;
    assert_eq!(q.state("format").await.as_deref(), Some("2"));
    let refused = release_before(&q).await.unwrap_err();
    assert!(refused.contains("NEWERGATE"), "{refused}");
    q.edit("candidate v3 percent 5").await;
    assert!(release_before(&q).await.unwrap_err().contains("NEWERGATE"));
    // This release obeys it without sealing anything.
    assert!(
        matches!(q.found().await, switchback_common::store::gate::Found::Settled(sealed) if show(&sealed.gate).contains("targets"))
    );
    assert_eq!(q.seal().await.0, SealWord::Same);

    q.edit("only v1").await;
    assert_eq!((q.state("format").await, q.state("targets").await), (None, None));
    assert_eq!(release_before(&q).await, Ok("settled".into()));
    assert_eq!(q.state("digest").await, plain);
}

#[tokio::test]
async fn targets_and_headers_from_the_command_line() {
    let mail = Mail::with_worker().await;
    let set = mail.shell.json("gate set mail targets=plan:beta=v1 --why try");
    assert_eq!(set["after"]["targets"]["plan:beta"], "v1", "{set}");
    mail.shell
        .run("gate show mail")
        .exits(OK)
        .says("v1, 1 target")
        .says("TARGETS   plan:beta=v1")
        .says("all + targets");
    mail.shell
        .run("gate history mail")
        .exits(OK)
        .says("targets +plan:beta=v1");
    mail.shell
        .run("gate set mail targets=plan:beta=v9")
        .exits(REFUSED)
        .tells("unknown version v9");

    // A target to a version that nobody has would only park tasks.
    mail.join_and_leave(&["v3"]).await;
    mail.shell
        .run("gate set mail targets=plan:beta=v3")
        .exits(REFUSED)
        .tells("v3");
    let forced = mail.shell.run("gate set mail targets=plan:beta=v3 --force").exits(OK);
    assert!(forced.stdout.contains("1 targeted"), "{forced:?}");
    let hints = mail.shell.json("queue show mail")["hints"].to_string();
    assert!(hints.contains("no_worker_for_version"), "{hints}");
    let enqueue = "task enqueue mail --payload 1 -o json";
    let task = mail
        .shell
        .run(&format!("{enqueue} --header plan=beta --header note=a=b"))
        .exits(OK)
        .json();
    let id = task["id"].as_str().unwrap().to_owned();
    let shown: Value = mail.shell.json(&format!("task show mail {id}"));
    assert_eq!(shown["headers"], serde_json::json!({"plan": "beta", "note": "a=b"}));
    mail.shell
        .run(&format!("{enqueue} --header plan"))
        .exits(USAGE)
        .tells("NAME=VALUE");
    mail.shell
        .run(&format!("{enqueue} --header a:b=c"))
        .exits(USAGE)
        .tells("header name");
    let long = "x".repeat(8 * 1024);
    mail.shell
        .run(&format!("{enqueue} --header plan={long}"))
        .exits(REFUSED)
        .tells("the limit is 8192");
}
