//! Audit: every effective change of a gate once, whoever made it and however many sealed it; what was in force when; and the
//! way back to a revision.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use switchback_common::{
    ConnectOptions, SessionId, Store,
    store::{
        gate::{ChangeRequest, Changed, GateStore, HistoryEntry},
        keyspace::Key,
        log,
    },
};
use switchback_gates::{GateView, admin::operation_id, view::Verdict};
use tokio::task::JoinSet;

use crate::{
    cli::{Mail, NOT_FOUND, OK, REFUSED, USAGE},
    queue::{TestQueue, show},
};

/// The history is a chain: each revision once, each from where the one before it left off, each a change.
fn is_unbroken(changes: &[HistoryEntry]) {
    let oldest_first: Vec<&HistoryEntry> = changes.iter().rev().collect();
    assert_eq!(oldest_first[0].before, "");
    for (entry, n) in oldest_first.iter().zip(1..) {
        assert_eq!(entry.rev, n, "{entry:?}");
    }
    let read = |text: &str| serde_json::from_str::<BTreeMap<String, String>>(text).unwrap();
    for pair in oldest_first.windows(2) {
        assert_eq!(read(&pair[0].after), read(&pair[1].before), "{pair:?}");
        assert_ne!(read(&pair[1].before), read(&pair[1].after), "{pair:?}");
        assert!(pair[0].at_us <= pair[1].at_us, "{pair:?}");
    }
}

// P9: many people with redis-cli, many command lines, and eight workers that seal whatever they find.
#[tokio::test(flavor = "multi_thread")]
async fn every_revision_has_one_entry_whoever_seals_it() {
    const WORKERS: usize = 8;
    const EDITORS: usize = 4;
    const EDITS: usize = 60;
    const ENOUGH: u64 = 200;
    let q = TestQueue::seeded().await;
    let over = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let store = Store::new(&ConnectOptions::new(q.server.url())).unwrap();
        let (view, over) = (GateView::new(&store, &q.queue), Arc::clone(&over));
        workers.spawn(async move {
            let link = store.link().await.unwrap();
            let mut obeyed = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let read = view.store().read(&link, None).await.unwrap();
                let Verdict::Obey(now) = view.obey(read).await.unwrap() else {
                    panic!("no gate")
                };
                if obeyed.last().is_none_or(|(rev, _)| *rev != now.ruling.rev) {
                    obeyed.push((now.ruling.rev, now.ruling.digest.clone()));
                }
            }
            obeyed
        });
    }
    let mut editors = JoinSet::new();
    for editor in 0..EDITORS {
        let mut raw = q.server.connection().await;
        let gate = q.key(Key::Gate);
        editors.spawn(async move {
            let who = format!("editor-{editor}");
            for n in 0..EDITS {
                let percent = (editor * EDITS + n) % 90 + 1;
                let pin = format!("cust-{editor}=v{}", n % 3 + 1);
                let edits: [&[&str]; 6] = [
                    &[
                        "HSET",
                        &gate,
                        "candidate",
                        "v2",
                        "percent",
                        &percent.to_string(),
                        "by",
                        &who,
                    ],
                    &["HSET", &gate, "pins", &pin, "by", &who, "why", "a customer asked"],
                    &["HSET", &gate, "only", ["v1", "v2", "v3"][n % 3], "by", &who],
                    &["HSET", &gate, "pecent", "5", "by", &who],
                    &["HDEL", &gate, "pins", "candidate"],
                    &["HSET", &gate, "targets", "plan:beta=v3", "paused", ["0", "1"][n % 2]],
                ];
                let edit = edits[(n + editor) % edits.len()];
                let _: redis::Value = redis::cmd(edit[0]).arg(&edit[1..]).query_async(&mut raw).await.unwrap();
                if n % 4 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Vec::new()
        });
        let gate = GateStore::new(&Store::new(&ConnectOptions::new(q.server.url())).unwrap(), &q.queue);
        editors.spawn(async move {
            let (mut ops, mut n, mut rev) = (Vec::new(), 0, 0);
            // Edits by hand that nobody sealed in between are one revision: how many there are is the machine's affair.
            while n < EDITS || rev <= ENOUGH {
                let request = ChangeRequest {
                    source: "cli".into(),
                    by: format!("operator-{editor}"),
                    op: operation_id(),
                    fields: vec![("active", format!("v{}", (n + editor) % 3 + 1))],
                    ..ChangeRequest::default()
                };
                // A resend is harmless.
                let first = gate.change(&request).await.unwrap();
                gate.change(&request).await.unwrap();
                if let Changed::Changed(sealed) = first {
                    rev = sealed.rev;
                    ops.push(request.op);
                }
                n += 1;
            }
            ops
        });
    }
    let mut ops = BTreeSet::new();
    while let Some(done) = editors.join_next().await {
        ops.extend(done.unwrap());
    }
    over.store(true, Ordering::SeqCst);
    let mut obeyed = BTreeSet::new();
    while let Some(seen) = workers.join_next().await {
        obeyed.extend(seen.unwrap());
    }
    let (_, sealed) = q.seal().await;
    let changes = q.changes().await;
    is_unbroken(&changes);
    assert_eq!(changes[0].rev, sealed.rev);
    assert!(sealed.rev > ENOUGH, "enough was changed: {}", sealed.rev);
    let last: BTreeMap<String, String> = serde_json::from_str(&changes[0].after).unwrap();
    assert_eq!(last["active"], sealed.gate.active, "{}", show(&sealed.gate));
    // Whatever any worker ever obeyed is on record, and nothing else under its number.
    let recorded: BTreeSet<(u64, String)> = changes.iter().map(|e| (e.rev, e.digest.clone())).collect();
    assert!(obeyed.is_subset(&recorded), "{:?}", obeyed.difference(&recorded));
    // Each change of the command line has its one entry, by its own name, and no edit by hand took that over.
    let mut by_op: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in changes.iter().filter(|e| !e.op.is_empty()) {
        *by_op.entry(&entry.op).or_default() += 1;
        assert!(entry.source == "cli" && entry.by.starts_with("operator-"), "{entry:?}");
    }
    assert_eq!(by_op.keys().map(|op| (*op).to_owned()).collect::<BTreeSet<_>>(), ops);
    assert!(by_op.values().all(|n| *n == 1), "{by_op:?}");
    let by_hand: Vec<_> = changes.iter().filter(|e| e.source == "redis-cli").collect();
    assert!(
        by_hand.iter().all(|e| e.by.is_empty() || e.by.starts_with("editor-")),
        "{by_hand:?}"
    );
    assert!(by_hand.iter().any(|e| e.by.starts_with("editor-")), "who is kept");
    assert!(!q.human().await.contains("by="), "and does not sign the next edit");
}

#[tokio::test]
async fn a_note_among_the_versions_is_no_version() {
    let q = TestQueue::seeded().await;
    let before = q.seal().await.1;
    for edit in ["only :groups", "active :groups", "pins a=:groups", "candidate :absent"] {
        assert_eq!(q.edit(edit).await, show(&before.gate), "{edit}");
    }
    assert_eq!(q.seal().await.1.rev, before.rev);
}

impl Mail {
    /// Revisions 1 to 5: v1; a ramp; more of it with a pin; paused; v2 only, unpaused by hand.
    async fn with_history() -> Self {
        let mail = Self::with_worker().await;
        mail.set("candidate=v2 percent=10 --by alice --why ramp");
        mail.shell
            .args(&["gate", "set", "mail", "percent=25", "pins=cust-7=v2"]);
        mail.shell.run("gate pause mail --by bob --why incident").exits(OK);
        mail.server
            .cli(&[
                "HSET",
                "sb:gate:{shop:mail}",
                "only",
                "v2",
                "paused",
                "0",
                "by",
                "carol",
            ])
            .await;
        assert_eq!(mail.rev(), 5);
        mail
    }

    /// When the history says that `rev` was made, as the command line reads times.
    fn made(&self, rev: u64) -> (String, u64) {
        let entries = self.shell.json(&format!("gate history mail --rev {rev}"));
        let entry = &entries.as_array().unwrap()[0];
        (
            entry["at"].as_str().unwrap().to_owned(),
            entry["at_us"].as_u64().unwrap(),
        )
    }
}

#[tokio::test]
async fn the_history_is_told_field_by_field_and_filtered() {
    let mail = Mail::with_history().await;
    let table = mail.shell.run("gate history mail").exits(OK);
    for line in [
        "candidate none -> v2 at 10 %",
        "percent 10 -> 25, pins +cust-7=v2",
        "paused",
        "active v1 -> v2, candidate v2 at 25 % -> none, resumed",
        "redis-cli",
    ] {
        assert!(table.stdout.contains(line), "no {line}: {}", table.stdout);
    }
    let revs = |options: &str| -> Vec<u64> {
        let entries = mail.shell.json(format!("gate history mail {options}").trim_end());
        let entries = entries.as_array().unwrap().iter();
        entries.map(|entry| entry["rev"].as_u64().unwrap()).collect()
    };
    assert_eq!(revs(""), [5, 4, 3, 2, 1]);
    assert_eq!(revs("--limit 2"), [5, 4]);
    assert_eq!(revs("--source redis-cli"), [5]);
    assert_eq!(revs("--source cli --limit 1"), [4]);
    assert_eq!(revs("--rev 3"), [3]);
    let (at, _) = mail.made(3);
    assert_eq!(revs(&format!("--since {at}")), [5, 4, 3]);
    assert_eq!(revs(&format!("--until {at}")), [3, 2, 1]);
    assert_eq!(revs("--since 1h"), [5, 4, 3, 2, 1]);
    assert_eq!(revs("--until 1h"), [0; 0]);
    mail.shell
        .run("gate history mail --until 1h")
        .exits(OK)
        .tells("no such entry");

    let entry = &mail.shell.json("gate history mail --rev 2")[0];
    assert!(!entry["op"].as_str().unwrap().is_empty(), "{entry}");
    assert_eq!(
        (&entry["forced"], &entry["inflight"], &entry["changes"][0]),
        (&Value::Null, &json!("finish"), &json!("candidate none -> v2 at 10 %"))
    );
    let lines = mail.shell.run("gate history mail -o jsonl").exits(OK).stdout;
    assert_eq!(lines.lines().count(), 5);
    mail.shell
        .run("gate history mail --since yesterday")
        .exits(USAGE)
        .tells("2h");
}

#[tokio::test]
async fn what_was_in_force_then_is_told_with_who_and_why() {
    let mail = Mail::with_history().await;
    let (at, at_us) = mail.made(3);
    let then = mail.shell.json(&format!("gate show mail --at {at}"));
    assert_eq!(
        (&then["rev"], &then["at_us"]),
        (&json!(3), &json!(at_us)),
        "at the moment itself it is in force"
    );
    assert_eq!(then["gate"]["percent"], 25.0);
    assert_eq!(then["gate"]["pins"], json!({"cust-7": "v2"}));
    assert_eq!(
        (&then["until"]["rev"], &then["until"]["changed"]["by"]),
        (&json!(4), &json!("bob"))
    );
    mail.shell
        .run(&format!("gate show mail --at {at}"))
        .exits(OK)
        .recent()
        .says("GATE      v1, v2 at 25 %, 1 pin")
        .says("REVISION  3")
        .says("IN FORCE  until revision 4, now by bob (cli): incident")
        .says("PINS      cust-7=v2");
    let now = mail.shell.json("gate show mail --at 0s");
    assert_eq!(
        (&now["rev"], &now["until"], &now["changed"]["by"]),
        (&json!(5), &Value::Null, &json!("carol"))
    );

    mail.shell
        .run("gate show mail --at 1h")
        .exits(NOT_FOUND)
        .tells("had no gate at")
        .tells("revision 1");
    mail.shell.run("gate show mail --at 2999-01-01T00:00:00Z").exits(USAGE);
    mail.shell.run("gate show mial --at 0s").exits(NOT_FOUND);
    // What was trimmed cannot be told: not the first state that is left, either.
    mail.server
        .cli(&["XTRIM", "sb:history:{shop:mail}", "MAXLEN", "2"])
        .await;
    mail.shell
        .run(&format!("gate show mail --at {at}"))
        .exits(NOT_FOUND)
        .tells("does not reach back")
        .tells("revision 4");
}

// P9: the way back is a way forward: a new revision, with its reason.
#[tokio::test]
async fn a_revert_writes_the_old_gate_as_a_new_revision() {
    let mail = Mail::with_history().await;
    mail.shell
        .run("gate revert mail --to-rev 3 --dry-run")
        .exits(OK)
        .says("v2, 1 pin -> v1, v2 at 25 %, 1 pin");
    assert_eq!(mail.rev(), 5);
    mail.shell
        .run("gate revert mail --to-rev 3 --if-rev 4")
        .exits(REFUSED)
        .tells("is at revision 5");
    let done = mail
        .shell
        .run("gate revert mail --to-rev 3 --by dave --why INC-42 -o json")
        .exits(OK)
        .json();
    assert_eq!((&done["rev"], &done["changed"]), (&json!(6), &json!(true)), "{done}");
    let entries = mail.shell.json("gate history mail");
    assert_eq!(entries[0]["after"], entries[3]["after"], "as it was");
    assert_eq!(
        (&entries[0]["by"], &entries[0]["why"], &entries[0]["source"]),
        (&json!("dave"), &json!("revert to revision 3: INC-42"), &json!("cli"))
    );
    assert_eq!(
        entries.as_array().unwrap().len(),
        6,
        "nothing is taken out of the history"
    );
    mail.shell
        .run("gate revert mail --to-rev 6")
        .exits(OK)
        .says("it was so already");
    assert_eq!(mail.rev(), 6);
    // Back to a ramp with the same candidate and another percent, and to the very first.
    mail.shell
        .run("gate revert mail --to-rev 2")
        .exits(OK)
        .says("v2 at 10 %");
    mail.shell
        .run("gate revert mail --to-rev 1")
        .exits(OK)
        .says("v1 active at revision 8");
    assert_eq!(mail.gate()["pins"], json!({}));
}

// A pause is part of what was in force; it comes and goes with it, and is said.
#[tokio::test]
async fn a_revert_restores_the_pause_and_says_so() {
    let mail = Mail::with_history().await;
    mail.shell
        .run("gate revert mail --to-rev 4")
        .exits(OK)
        .tells("was paused at revision 4: it is paused again")
        .tells("revision 4 was made because: incident");
    assert_eq!(mail.gate()["paused"], true);
    mail.shell
        .run("gate revert mail --to-rev 3")
        .exits(OK)
        .tells("it is resumed");
    assert_eq!(mail.gate()["paused"], false);
    // P10: not while workers would hold it again at once.
    mail.shell.run("gate revert mail --to-rev 4").exits(OK);
    mail.server
        .cli(&["XADD", "sb:dead:{shop:mail}", "*", "payload", "1"])
        .await;
    mail.shell.run("queue limits mail --dead 1").exits(OK);
    mail.shell
        .run("gate revert mail --to-rev 3")
        .exits(REFUSED)
        .tells("dead letters");
}

#[tokio::test]
async fn a_revert_is_refused_where_it_would_strand_tasks_or_knows_nothing() {
    let mail = Mail::new().await;
    mail.join_and_leave(&["v0"]).await;
    mail.join(&["v1", "v2"], 1).await;
    mail.set("active=v1");
    mail.set("active=v2");
    mail.shell
        .run("gate revert mail --to-rev 1")
        .exits(REFUSED)
        .tells("no live worker")
        .tells("v0");
    assert_eq!(mail.rev(), 3);
    mail.shell
        .run("gate revert mail --to-rev 1 --force")
        .exits(OK)
        .says("v0 active at revision 4");
    mail.set("active=v2");
    // A version that is gone from the records cannot be forced: nobody could say what it was.
    mail.server.cli(&["HDEL", "sb:versions:{shop:mail}", "v1"]).await;
    mail.shell
        .run("gate revert mail --to-rev 2 --force")
        .exits(REFUSED)
        .tells("unknown version");
    mail.shell
        .run("gate revert mail --to-rev 99")
        .exits(NOT_FOUND)
        .tells("has no revision 99: the newest is 5");
    mail.server
        .cli(&["XTRIM", "sb:history:{shop:mail}", "MAXLEN", "2"])
        .await;
    mail.shell
        .run("gate revert mail --to-rev 2")
        .exits(NOT_FOUND)
        .tells("not kept any more: the oldest is 4");
    mail.shell.run("gate revert mial --to-rev 1").exits(NOT_FOUND);
    mail.shell.run("gate revert mail").exits(USAGE);
}

// One place for all that people, rollouts and workers did to a queue, between the attempts.
#[tokio::test]
async fn the_log_tells_what_was_done_to_a_queue() {
    let mail = Mail::with_history().await;
    let session = SessionId::random();
    for n in 0..600 {
        let settled = [
            "XADD",
            "sb:log:{shop:mail}",
            "*",
            "kind",
            "settled",
            "attempts",
            &format!("[{n}]"),
        ];
        mail.server.cli(&settled).await;
    }
    mail.shell
        .run("queue limits mail --rate 100/s --by alice --why cap")
        .exits(OK);
    mail.server
        .cli(&["XADD", "sb:dead:{shop:mail}", "*", "payload", "1", "id", "t-1"])
        .await;
    mail.shell
        .run("dead discard mail --all --yes --by bob --why done")
        .exits(OK);
    let text = "no live worker has v9\u{1b}[2J";
    log::write(&mail.store, &mail.queue, "alert", &session, text)
        .await
        .unwrap();
    let rollout = [
        "XADD",
        "sb:log:{shop:mail}",
        "*",
        "kind",
        "rollout",
        "rev",
        "5",
        "by",
        "guard",
    ];
    mail.server
        .cli(&[&rollout[..], &["text", "step 2 of 6", "evidence", "{}"]].concat())
        .await;

    let log = mail.shell.run("queue log mail").exits(OK);
    for line in [
        "rate none -> 100/s",
        "1 dead letter discarded",
        "step 2 of 6",
        "revision 5 (redis-cli): active v1 -> v2",
    ] {
        assert!(log.stdout.contains(line), "no {line}: {}", log.stdout);
    }
    assert!(
        !log.stdout.contains('\u{1b}') && !log.stdout.contains("settled"),
        "{}",
        log.stdout
    );
    let kinds = |options: &str| -> Vec<String> {
        let entries = mail.shell.json(format!("queue log mail {options}").trim_end());
        let entries = entries.as_array().unwrap().iter();
        entries
            .map(|entry| entry["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        kinds(""),
        [
            "rollout",
            "alert",
            "discarded",
            "limits",
            "gate",
            "gate",
            "gate",
            "gate",
            "gate"
        ],
        "newest first"
    );
    assert_eq!(kinds("--limit 2"), ["rollout", "alert"]);
    assert_eq!(kinds("--kind gate,alert --limit 3"), ["alert", "gate", "gate"]);
    assert_eq!(kinds("--kind settled --limit 1000").len(), 600);
    assert_eq!(kinds("--kind joined").len(), 1);
    assert_eq!(kinds("--until 1h"), [""; 0]);
    let (at, _) = mail.made(5);
    assert_eq!(kinds(&format!("--until {at} --kind gate,limits")).len(), 5);
    let entry = &mail.shell.json("queue log mail --kind limits")[0];
    assert_eq!((&entry["by"], &entry["why"]), (&json!("alice"), &json!("cap")));
    assert!(entry["detail"]["after"].as_str().unwrap().contains("100"), "{entry}");
    let entry = &mail.shell.json("queue log mail --kind rollout")[0];
    assert_eq!(
        (&entry["rev"], &entry["by"], &entry["evidence"]),
        (&json!(5), &json!("guard"), &json!({}))
    );
    mail.shell.run("queue log mial").exits(NOT_FOUND);
    mail.shell
        .run("queue log mail --kind nonsense")
        .exits(OK)
        .tells("has no such entry");
}
