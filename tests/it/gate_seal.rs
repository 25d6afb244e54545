//! Raw edits of the gate: what a person does with nothing but redis-cli, and what sealing makes of it.

use serde_json::json;
use switchback_common::{
    ConnectOptions, Store,
    store::{
        gate::{ChangeRequest, Changed, Found, GateStore, SealWord},
        keyspace::Key,
    },
};
use tokio::task::JoinSet;

use crate::queue::{TestQueue, json, show};

#[tokio::test]
async fn the_first_worker_seeds_its_first_version() {
    let q = TestQueue::seeded().await;
    let (word, sealed) = q.seal().await;
    assert_eq!((word, sealed.rev, show(&sealed.gate)), (SealWord::Same, 1, "v1".into()));
    assert_eq!(q.human().await, "active=v1 paused=0");
    let history = q.history().await;
    assert_eq!(history.len(), 1);
    assert_eq!((history[0].source.as_str(), history[0].before.as_str()), ("seed", ""));
}

#[tokio::test]
async fn only_ends_a_ramp_even_when_active_is_that_version_already() {
    let q = TestQueue::seeded().await;
    assert_eq!(q.edit("candidate v2 percent 10").await, "v1 v2@10");
    assert_eq!(q.edit("only v1").await, "v1");
    assert_eq!(q.human().await, "active=v1 paused=0");
    assert_eq!(q.edit("only v3").await, "v3");
}

#[tokio::test]
async fn only_drops_pins_to_other_versions_and_keeps_its_own() {
    let q = TestQueue::seeded().await;
    let gate = q.key(Key::Gate);
    q.cmd::<()>(&["HSET", &gate, "pins", "b=v2 a=v1 c=v3"]).await;
    assert_eq!(show(&q.seal().await.1.gate), "v1 pins[a=v1 b=v2 c=v3]");
    assert_eq!(q.edit("only v2").await, "v2 pins[b=v2]");
}

#[tokio::test]
async fn only_neither_pauses_nor_resumes() {
    let q = TestQueue::seeded().await;
    assert_eq!(q.edit("paused 1").await, "v1 paused");
    assert_eq!(q.edit("only v2").await, "v2 paused");
    assert_eq!(q.edit("only v3 paused 0").await, "v3");
    assert_eq!(q.edit("only v1 paused yes").await, "v1 paused");
}

#[tokio::test]
async fn a_valid_only_wins_over_everything_else_in_the_edit_and_that_is_logged() {
    let q = TestQueue::seeded().await;
    let gate = q
        .edit("only v2 active v3 candidate v9 percent 150 pins x pecent 5 inflight now")
        .await;
    assert_eq!(gate, "v2");
    let dropped = json!({
        "active": "v3", "candidate": "v9", "percent": "150", "pins": "x", "pecent": "5", "inflight": "now",
    });
    assert_eq!(json(&q.changes().await[0].dropped), dropped);
    assert_eq!(q.human().await, "active=v2 paused=0");

    // Also when `only` itself changes nothing.
    q.hset("only v2 pecent 5").await;
    assert_eq!(q.seal().await.0, SealWord::Same);
    assert_eq!(json(&q.history().await[0].dropped), json!({ "pecent": "5" }));
}

#[tokio::test]
async fn an_unknown_or_empty_only_is_refused() {
    let q = TestQueue::seeded().await;
    let gate = q.key(Key::Gate);
    for only in ["v9", "", "v1 ", "V1"] {
        q.cmd::<()>(&["HSET", &gate, "only", only, "candidate", "v2"]).await;
        let (word, sealed) = q.seal().await;
        assert_eq!((word, show(&sealed.gate)), (SealWord::Refused, "v1".into()), "{only:?}");
    }
}

#[tokio::test]
async fn a_dropped_candidate_does_not_come_back() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 10").await;
    q.edit("only v1").await;
    assert_eq!(q.edit("paused 1").await, "v1 paused");
    assert_eq!(q.edit("paused 0").await, "v1");
    assert_eq!(q.edit("active v3").await, "v3");
}

#[tokio::test]
async fn by_and_why_sign_one_edit_only() {
    let q = TestQueue::seeded().await;
    q.edit("only v2 by alice why INC-42").await;
    q.edit("only v1").await;
    let changes = q.changes().await;
    assert_eq!((changes[1].by.as_str(), changes[1].why.as_str()), ("alice", "INC-42"));
    assert_eq!((changes[0].by.as_str(), changes[0].why.as_str()), ("", ""));
    assert_eq!(q.human().await, "active=v1 paused=0");
}

#[tokio::test]
async fn by_and_why_alone_annotate_the_newest_revision() {
    let q = TestQueue::seeded().await;
    q.edit("only v2").await;
    q.hset("by bob why forgot").await;
    let (word, sealed) = q.seal().await;
    assert_eq!((word, sealed.rev), (SealWord::Same, 2));
    let note = &q.history().await[0];
    let seen = (note.kind.as_str(), note.rev, note.by.as_str(), note.why.as_str());
    assert_eq!(seen, ("note", 2, "bob", "forgot"));
    assert_eq!(q.human().await, "active=v2 paused=0");
}

#[tokio::test]
async fn a_typo_rejects_the_rest_of_the_edit_but_paused_is_obeyed() {
    let q = TestQueue::seeded().await;
    q.hset("candidate v2 pecent 10 paused 1").await;
    let (word, sealed) = q.seal().await;
    assert_eq!((word, show(&sealed.gate)), (SealWord::Refused, "v1 paused".into()));
    let history = q.history().await;
    assert_eq!(history[0].kind, "refused");
    assert_eq!(json(&history[0].refused), json!({ "pecent": "10: unknown field" }));
    assert_eq!((history[1].kind.as_str(), history[1].rev), ("change", 2));
}

#[tokio::test]
async fn a_typo_is_logged_once_and_removed_so_that_the_kill_switch_still_works() {
    let q = TestQueue::seeded().await;
    q.hset("activ v2").await;
    assert_eq!(q.seal().await.0, SealWord::Refused);
    assert_eq!(q.human().await, "active=v1 paused=0");
    for _ in 0..3 {
        assert_eq!(q.seal().await.0, SealWord::Same);
    }
    assert_eq!(q.history().await.iter().filter(|e| e.kind == "refused").count(), 1);
    assert_eq!(q.edit("only v2").await, "v2");
    assert_eq!(q.edit("paused 1").await, "v2 paused");
}

#[tokio::test]
async fn a_refused_edit_shows_who_made_it() {
    let q = TestQueue::seeded().await;
    q.edit("active v9 by carol why test").await;
    let entry = &q.history().await[0];
    let seen = (entry.kind.as_str(), entry.by.as_str(), entry.why.as_str(), entry.rev);
    assert_eq!(seen, ("refused", "carol", "test", 1));
    assert_eq!(json(&entry.refused), json!({ "active": "v9: unknown version" }));
}

#[tokio::test]
async fn paused_is_read_generously_and_odd_values_pause() {
    let q = TestQueue::seeded().await;
    let gate = q.key(Key::Gate);
    for (value, paused) in [
        ("1", true),
        ("0", false),
        ("true", true),
        ("FALSE", false),
        ("yes", true),
        ("No", false),
        ("on", true),
        ("OFF", false),
        ("2", true),
        ("", false),
        ("00", true),
        (" ", true),
        ("0 ", true),
        ("nope", true),
    ] {
        q.cmd::<()>(&["HSET", &gate, "paused", value]).await;
        let canonical = if paused { "1" } else { "0" };
        assert_eq!(q.seal().await.1.gate.paused, canonical, "{value:?}");
        assert_eq!(q.human().await, format!("active=v1 paused={canonical}"));
    }
    q.edit("paused 1").await;
    q.hdel("paused").await;
    assert_eq!(show(&q.seal().await.1.gate), "v1");
}

#[tokio::test]
async fn percent_is_a_plain_number_from_0_to_100() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 7").await;
    let gate = q.key(Key::Gate);
    for bad in [
        "150",
        "100.001",
        "abc",
        "0x10",
        "1e2",
        "-5",
        "",
        " 5",
        "5%",
        "1.",
        ".5",
        "nan",
        "inf",
        "١",
        "1,5",
        "0000000000005",
    ] {
        q.cmd::<()>(&["HSET", &gate, "percent", bad]).await;
        let (word, sealed) = q.seal().await;
        assert_eq!(
            (word, show(&sealed.gate)),
            (SealWord::Refused, "v1 v2@7".into()),
            "{bad:?}"
        );
    }
    for (good, canonical) in [
        ("10.0", "10"),
        ("0.5", "0.5"),
        ("100", "100"),
        ("100.000", "100"),
        ("007", "7"),
        ("33.333", "33.333"),
        ("0.001", "0.001"),
        ("12.3456", "12.346"),
        ("0", "0"),
    ] {
        q.cmd::<()>(&["HSET", &gate, "percent", good]).await;
        assert_eq!(q.seal().await.1.gate.percent, canonical, "{good:?}");
        assert_eq!(
            q.human().await,
            format!("active=v1 candidate=v2 paused=0 percent={canonical}")
        );
    }
}

#[tokio::test]
async fn percent_without_a_candidate_is_refused() {
    let q = TestQueue::seeded().await;
    q.hset("percent 10").await;
    assert_eq!(q.seal().await.0, SealWord::Refused);
    assert_eq!(q.human().await, "active=v1 paused=0");
    assert_eq!(q.edit("percent 0").await, "v1");
}

#[tokio::test]
async fn an_empty_or_deleted_active_changes_nothing() {
    let q = TestQueue::seeded().await;
    let gate = q.key(Key::Gate);
    q.cmd::<()>(&["HSET", &gate, "active", ""]).await;
    assert_eq!(q.seal().await.0, SealWord::Refused);
    q.hdel("active").await;
    assert_eq!(show(&q.seal().await.1.gate), "v1");
    assert_eq!(q.human().await, "active=v1 paused=0");
    assert_eq!(q.changes().await.len(), 1);
}

#[tokio::test]
async fn a_new_candidate_starts_at_0_when_the_percent_is_yesterdays() {
    let q = TestQueue::seeded().await;
    assert_eq!(q.edit("candidate v2").await, "v1 v2@0");
    assert_eq!(q.edit("percent 50").await, "v1 v2@50");
    assert_eq!(q.edit("candidate v3").await, "v1 v3@0");
    assert_eq!(json(&q.changes().await[0].dropped), json!({ "percent": "50" }));
    assert_eq!(q.edit("candidate v2 percent 5").await, "v1 v2@5");
}

#[tokio::test]
async fn a_change_of_active_drops_the_candidate_that_belonged_to_the_old_one() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 10").await;
    assert_eq!(q.edit("active v3").await, "v3");
    assert_eq!(json(&q.changes().await[0].dropped), json!({ "candidate": "v2" }));
    assert_eq!(q.edit("active v1 candidate v2 percent 20").await, "v1 v2@20");
}

#[tokio::test]
async fn promoting_or_naming_the_active_version_leaves_no_candidate() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 100").await;
    assert_eq!(q.edit("active v2").await, "v2");
    q.edit("candidate v3 percent 10").await;
    assert_eq!(q.edit("candidate v2").await, "v2");
    assert_eq!(q.human().await, "active=v2 paused=0");
}

#[tokio::test]
async fn deleting_or_emptying_the_candidate_ends_the_ramp() {
    let q = TestQueue::seeded().await;
    for fields in ["candidate percent", "candidate"] {
        q.edit("candidate v2 percent 10").await;
        q.hdel(fields).await;
        assert_eq!(show(&q.seal().await.1.gate), "v1", "{fields}");
    }
    q.edit("candidate v2 percent 10").await;
    let gate = q.key(Key::Gate);
    q.cmd::<()>(&["HSET", &gate, "candidate", ""]).await;
    assert_eq!(show(&q.seal().await.1.gate), "v1");
    assert_eq!(q.human().await, "active=v1 paused=0");
}

#[tokio::test]
async fn pins_are_sorted_and_the_last_of_a_key_counts() {
    let q = TestQueue::seeded().await;
    let gate = q.key(Key::Gate);
    for (pins, canonical) in [
        ("  b=v2   a=v1\tb=v3 ", "a=v1 b=v3"),
        ("a=b=v2", "a=b=v2"),
        ("Z=v1 a=v1 ä=v1 日=v2 _=v2", "Z=v1 _=v2 a=v1 ä=v1 日=v2"), // bytes, not a locale
        ("   ", ""),
    ] {
        q.cmd::<()>(&["HSET", &gate, "pins", pins]).await;
        assert_eq!(q.seal().await.1.gate.pins, canonical, "{pins:?}");
    }
}

#[tokio::test]
async fn bad_pins_are_refused_whole() {
    let q = TestQueue::seeded().await;
    let gate = q.key(Key::Gate);
    let many = |n: usize| (0..n).map(|i| format!("k{i}=v1")).collect::<Vec<_>>().join(" ");
    let long = format!("{}=v1", "k".repeat(33_000));
    for (pins, reason) in [
        ("a", "not key=version"),
        ("a=", "not key=version"),
        ("=v1", "not key=version"),
        ("a=v1 b=v9", "unknown version v9"),
        (many(1_001).as_str(), "more than 1000 pins"),
        (long.as_str(), "longer than"),
    ] {
        q.cmd::<()>(&["HSET", &gate, "pins", pins]).await;
        assert_eq!(q.seal().await.0, SealWord::Refused, "{reason}");
        let refused = json(&q.history().await[0].refused);
        let said = refused["pins"].as_str().unwrap();
        assert!(said.contains(reason) && said.len() < 400, "{said}");
        assert_eq!(q.human().await, "active=v1 paused=0");
    }
    q.cmd::<()>(&["HSET", &gate, "pins", &many(1_000)]).await;
    assert_eq!(q.seal().await.1.gate.pins.split(' ').count(), 1_000);
}

#[tokio::test]
async fn a_lost_gate_key_leaves_the_sealed_state_in_force_and_is_written_back() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 10 paused 1").await;
    let gate = q.key(Key::Gate);
    q.cmd::<()>(&["DEL", &gate]).await;
    assert_eq!(q.found().await, Found::Edited);
    let (word, sealed) = q.seal().await;
    assert_eq!(
        (word, sealed.rev, show(&sealed.gate)),
        (SealWord::Restored, 2, "v1 v2@10 paused".into())
    );
    assert_eq!(q.human().await, "active=v1 candidate=v2 paused=1 percent=10");
    assert_eq!(q.history().await[0].kind, "restored");
    assert_eq!(q.seal().await.0, SealWord::Same);
}

#[tokio::test]
async fn an_edit_of_a_lost_gate_takes_nothing_away_that_it_does_not_name() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 10 pins a=v3 paused 1").await;
    let gate = q.key(Key::Gate);
    q.cmd::<()>(&["DEL", &gate]).await;
    assert_eq!(q.edit("percent 20").await, "v1 v2@20 pins[a=v3] paused");
    q.cmd::<()>(&["DEL", &gate]).await;
    assert_eq!(q.edit("only v3").await, "v3 pins[a=v3] paused");
}

#[tokio::test]
async fn a_gate_key_of_another_type_is_a_lost_gate() {
    let q = TestQueue::seeded().await;
    let gate = q.key(Key::Gate);
    for command in [["SET", &gate, "v2"], ["LPUSH", &gate, "v2"]] {
        q.edit("candidate v2 percent 10").await;
        q.cmd::<()>(&["DEL", &gate]).await;
        q.cmd::<()>(&command).await;
        assert_eq!(q.found().await, Found::Edited);
        let (word, sealed) = q.seal().await;
        assert_eq!((word, show(&sealed.gate)), (SealWord::Restored, "v1 v2@10".into()));
        assert_eq!(q.edit("only v1").await, "v1");
    }
}

#[tokio::test]
async fn a_known_version_without_a_live_worker_is_obeyed() {
    let q = TestQueue::seeded().await;
    let streams = [q.key(Key::Stream), q.key(Key::Head)];
    q.sessions.leave(&q.session, &streams, "test").await.unwrap();
    assert_eq!(q.edit("only v3").await, "v3");
}

#[tokio::test]
async fn an_edit_reverted_before_anyone_looked_leaves_no_trace() {
    let q = TestQueue::seeded().await;
    q.hset("candidate v2 percent 50").await;
    q.hdel("candidate percent").await;
    assert!(matches!(q.found().await, Found::Settled(_)));
    assert_eq!(q.seal().await.0, SealWord::Same);
    assert_eq!(q.history().await.len(), 1);
}

#[tokio::test]
async fn the_revision_grows_only_when_something_changes() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 10").await;
    for same in [
        "active v1",
        "percent 10.0",
        "percent 10.000",
        "candidate v2",
        "paused off",
        "inflight finish",
    ] {
        q.hset(same).await;
        let (word, sealed) = q.seal().await;
        assert_eq!((word, sealed.rev), (SealWord::Same, 2), "{same}");
        assert_eq!(q.human().await, "active=v1 candidate=v2 paused=0 percent=10");
    }
    assert_eq!(q.history().await.len(), 2);
}

#[tokio::test]
async fn every_change_has_one_entry_with_before_after_and_source() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 10").await;
    q.edit("percent 0.5").await;
    q.edit("only v2").await;
    let changes = q.changes().await;
    assert_eq!(q.history().await.len(), 4);
    let revisions: Vec<u64> = changes.iter().map(|e| e.rev).collect();
    assert_eq!(revisions, [4, 3, 2, 1]);
    assert!(changes[..3].iter().all(|e| e.source == "redis-cli"));
    for pair in changes.windows(2) {
        assert_eq!(json(&pair[0].before), json(&pair[1].after));
        assert!(pair[0].at_us >= pair[1].at_us && pair[0].id > pair[1].id);
    }
    assert_eq!(
        json(&changes[1].after),
        json!({ "active": "v1", "candidate": "v2", "percent": "0.5", "paused": "0" })
    );
    assert_eq!(json(&changes[0].after), json!({ "active": "v2", "paused": "0" }));
    assert_eq!(q.seal().await.1.digest, changes[0].digest);
}

#[tokio::test]
async fn reverting_writes_a_new_revision_with_the_old_digest() {
    let q = TestQueue::seeded().await;
    let first = q.seal().await.1;
    q.edit("only v2").await;
    q.edit("only v1").await;
    let third = q.seal().await.1;
    assert_eq!((first.rev, third.rev), (1, 3));
    assert_eq!(first.digest, third.digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn seals_from_20_connections_make_one_revision() {
    let q = TestQueue::seeded().await;
    q.hset("candidate v2 percent 10 by alice").await;
    let mut seals = JoinSet::new();
    for _ in 0..20 {
        let store = Store::new(&ConnectOptions::new(q.server.url())).unwrap();
        let gate = GateStore::new(&store, &q.queue);
        seals.spawn(async move { gate.seal().await.unwrap().unwrap() });
    }
    let answers = seals.join_all().await;
    let sealed = answers.iter().filter(|(word, _)| *word == SealWord::Sealed).count();
    assert_eq!(sealed, 1);
    assert!(
        answers
            .iter()
            .all(|(_, read)| matches!(&read.found, Found::Settled(s) if s.rev == 2))
    );
    assert_eq!(q.history().await.len(), 2);
}

#[tokio::test]
async fn lua_and_rust_agree_on_what_was_seen_whatever_the_bytes() {
    let q = TestQueue::seeded().await;
    let gate = q.key(Key::Gate).into_bytes();
    let long = (0..1_000)
        .map(|i| format!("kunde-ä-{i}=v{}", i % 3 + 1))
        .collect::<Vec<_>>()
        .join(" ");
    let pins: &[&[u8]] = &[
        long.as_bytes(),
        "日本=v2 🎉=v3".as_bytes(),
        b"\xff\xfe=v2 \0=v1",
        b"a:1=v2 9:b=v3",
        b"",
    ];
    for pins in pins {
        q.bytes_cmd::<()>(&[b"HSET", &gate, b"pins", pins]).await;
        assert_eq!(q.found().await, Found::Edited);
        let (_, sealed) = q.seal().await;
        assert_eq!(
            q.found().await,
            Found::Settled(sealed.into()),
            "{}",
            String::from_utf8_lossy(pins)
        );
    }
    // Fields of any name are refused and removed.
    for name in [
        b"\xff\x00\xfe".as_slice(),
        b"",
        b"\n",
        "aktiv\u{e9}".as_bytes(),
        b"active\0",
        b"6:active",
    ] {
        q.bytes_cmd::<()>(&[b"HSET", &gate, name, b"\x01\xff", b"percent", b"\xff\x00"])
            .await;
        let (word, sealed) = q.seal().await;
        assert_eq!(word, SealWord::Refused);
        assert_eq!(q.found().await, Found::Settled(sealed.into()));
    }
}

#[tokio::test]
async fn what_the_history_keeps_of_a_huge_edit_is_bounded() {
    let q = TestQueue::seeded().await;
    let gate = q.key(Key::Gate);
    let huge = "x".repeat(1_000_000);
    q.cmd::<()>(&["HSET", &gate, "why", &huge, "by", &huge, &huge, "1"])
        .await;
    for n in 0..2_000 {
        q.cmd::<()>(&["HSET", &gate, &format!("junk-{n}"), &huge[..1_000]])
            .await;
    }
    assert_eq!(q.seal().await.0, SealWord::Refused);
    let entry = &q.history().await[0];
    let size = entry.refused.len() + entry.by.len() + entry.why.len();
    assert!(size < 10_000, "{size} bytes");
    assert_eq!(json(&entry.refused)["..."], json!("and 1981 more"));
    assert_eq!(q.human().await, "active=v1 paused=0");
}

#[tokio::test]
async fn a_history_that_cannot_be_written_seals_nothing() {
    let q = TestQueue::seeded().await;
    let history = q.key(Key::History);
    q.cmd::<()>(&["SET", &history, "oops"]).await;
    q.hset("only v2 by alice").await;
    q.gate.seal().await.unwrap_err();
    q.cmd::<()>(&["DEL", &history]).await;
    // P9: the edit was not half sealed, so it is still there to be logged.
    assert_eq!(show(&q.seal().await.1.gate), "v2");
    let changes = q.changes().await;
    assert_eq!((changes.len(), changes[0].rev, changes[0].by.as_str()), (1, 2, "alice"));
}

#[tokio::test]
async fn a_full_redis_can_still_be_sealed_changed_and_rolled_back() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 10").await;
    q.hset("percent 30").await;
    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;

    let (word, sealed) = q.seal().await;
    assert_eq!((word, show(&sealed.gate)), (SealWord::Sealed, "v1 v2@30".into()));
    let request = ChangeRequest {
        source: "cli".into(),
        fields: vec![("percent", "50".into())],
        ..ChangeRequest::default()
    };
    assert!(matches!(q.gate.change(&request).await.unwrap(), Changed::Changed(s) if show(&s.gate) == "v1 v2@50"));

    let gate = q.key(Key::Gate);
    let refused = q.try_cmd::<()>(&["HSET", &gate, "only", "v1"]).await.unwrap_err();
    assert_eq!(refused.code(), Some("OOM"));
    let script = "#!lua flags=allow-oom\nreturn redis.call('HSET', KEYS[1], 'only', ARGV[1])";
    q.cmd::<()>(&["EVAL", script, "1", &gate, "v1"]).await;
    assert_eq!(show(&q.seal().await.1.gate), "v1");
}

#[tokio::test]
async fn without_a_gate_state_nothing_is_sealed() {
    let q = TestQueue::seeded().await;
    let state = q.key(Key::GateState);
    q.cmd::<()>(&["DEL", &state]).await;
    q.hset("only v2").await;
    assert_eq!(q.found().await, Found::Missing);
    assert!(q.gate.seal().await.unwrap().is_none());
    assert_eq!(q.human().await, "active=v1 only=v2 paused=0");
}
