//! `gate rollback` where a history is long and its entries are large: a slow link must carry it.

use serde_json::json;
use switchback_common::store::gate::{ChangeRequest, Changed, GateStore};
use switchback_gates::admin::operation_id;
use switchback_tests::{Link, LinkCounters};

use crate::cli::{Mail, OK, Shell};

const MIB: u64 = 1024 * 1024;

impl Mail {
    /// Changes of large pins, some 60 KiB an entry.
    async fn long_history(&self, entries: usize) {
        let gate = GateStore::new(&self.store, &self.queue);
        for n in 0..entries {
            let pins: Vec<String> = (0..900).map(|i| format!("customer-{n:06}-{i:012}=v1")).collect();
            let request = ChangeRequest {
                source: "cli".into(),
                op: operation_id(),
                fields: vec![("pins", pins.join(" "))],
                ..ChangeRequest::default()
            };
            let changed = gate.change(&request).await.unwrap();
            assert!(matches!(changed, Changed::Changed(_)), "{changed:?}");
        }
    }

    /// Says that the first worker with v2 joined two hours from now: long after whatever the history speaks of.
    async fn v2_is_new(&self) {
        let now = switchback_common::store::inspect::time_us(&self.store).await.unwrap();
        let record = format!(r#"{{"first_seen_us":"{}","build":"b1"}}"#, now + 7_200_000_000);
        let args = ["HSET", "sb:versions:{shop:mail}", "v2", &record];
        self.server.cli(&args).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_reads_no_more_of_the_history_than_it_needs() {
    let mail = Mail::with_worker().await;
    mail.long_history(60).await;
    let link = Link::to(mail.server.port()).await;
    let far = Shell::new(link.url());
    let cost = |before: LinkCounters| link.counters().reply_bytes - before.reply_bytes;

    for (edit, line) in [
        ("active=v2", "gate rollback mail --to v1 -o json"),
        ("candidate=v2 percent=10", "gate rollback mail -o json"),
    ] {
        mail.set(edit);
        let before = link.counters();
        let view = far.run(line).exits(OK).json();
        assert_eq!(
            (&view["after"]["active"], &view["after"]["candidate"], &view["changed"]),
            (&json!("v1"), &json!(null), &json!(true)),
        );
        assert!(cost(before) < MIB, "{line}: {} bytes", cost(before));
    }

    // Nobody has v2 but since a moment ago, so nothing older can say that it was active before.
    mail.set("active=v2");
    mail.v2_is_new().await;
    let before = link.counters();
    far.run("gate rollback mail").exits(OK).says("v1 active");
    assert!(cost(before) < MIB, "{} bytes", cost(before));

    // Who changed it last is found in the newest entries, too.
    std::fs::write(far.dir.path().join("doc.toml"), "[queues.mail.gate]\nactive = \"v2\"\n").unwrap();
    let before = link.counters();
    let drift = far.run("config drift doc.toml -o json").exits(OK).json();
    assert_eq!(drift["drift"][0]["who"]["by"], "alice", "{drift}");
    assert!(cost(before) < MIB, "{} bytes", cost(before));
}

// Labels that take turns, and have been there from the start: nothing short of the whole history tells back from forward.
#[tokio::test]
async fn a_repeated_rollback_goes_not_forward_again_however_long_ago_it_was() {
    let mail = Mail::with_worker().await;
    mail.set("active=v2");
    mail.shell
        .run("gate rollback mail")
        .exits(OK)
        .says("v1 active at revision 3");
    mail.long_history(12).await;
    let again = mail.shell.run("gate rollback mail").exits(OK);
    again
        .tells("already rolled back to v1 at revision 3")
        .says("at revision 15 (it was so already)");
}
