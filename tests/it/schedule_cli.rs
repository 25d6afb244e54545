//! `switchback schedule`: the real binary against a real server.

use serde_json::{Value, json};
use switchback_common::store::{inspect, log, schedule::ScheduleStore};

use crate::{
    cli::{NOT_FOUND, OK, REFUSED, Ran, Shell, UNREACHABLE, USAGE},
    queue::TestQueue,
};

const HASH: &str = "sb:schedules:{shop:send_email}";

struct Office {
    q: TestQueue,
    shell: Shell,
}

impl Office {
    /// With a worker's session, and the schedule `nightly` set by the command line.
    async fn new() -> Self {
        let q = TestQueue::seeded().await;
        let it = Self {
            shell: Shell::new(q.server.url()),
            q,
        };
        it.set("nightly", &["--cron", "30 2 * * *", "--payload", r#"{"a": 1.50}"#])
            .exits(OK);
        it
    }

    fn set(&self, name: &str, more: &[&str]) -> Ran {
        self.shell
            .args(&[&["schedule", "set", "send_email", name][..], more].concat())
    }

    fn show(&self, name: &str) -> Value {
        self.shell.json(&format!("schedule show send_email {name}"))
    }

    async fn stored(&self, name: &str) -> Option<String> {
        self.q.cmd(&["HGET", HASH, name]).await
    }

    async fn last(&self, name: &str) -> Option<u64> {
        self.q.cmd(&["HGET", HASH, &format!("{name}:last")]).await
    }
}

#[tokio::test]
async fn a_schedule_is_made_shown_and_changed_field_by_field() {
    let office = Office::new().await;
    assert_eq!(
        office.stored("nightly").await.unwrap(),
        r#"{"cron":"30 2 * * *","time_zone":"UTC","payload":{"a": 1.50},"missed":"once","paused":false,"source":"cli","by":"alice"}"#
    );
    let more = [
        "--time-zone",
        "Europe/Berlin",
        "--missed",
        "all",
        "--key",
        "c7",
        "--why",
        "auditors",
        "-o",
        "json",
    ];
    let changed = office.set("nightly", &more).exits(OK).json();
    assert_eq!(
        (&changed["changed"], &changed["dry_run"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        (&changed["before"]["missed"], &changed["after"]["missed"]),
        (&json!("once"), &json!("all"))
    );
    assert_eq!(changed["warnings"], json!([]));
    let local = changed["next"][0]["local"].as_str().unwrap();
    assert!(
        local.contains("T02:30:00+0") || local.contains("T03:00:00+02"),
        "{local}"
    );

    let shown = office.show("nightly");
    let expected = json!({
        "queue": "shop/send_email", "name": "nightly", "cron": "30 2 * * *", "time_zone": "Europe/Berlin", "missed": "all",
        "paused": false, "source": "cli", "key": "c7", "by": "alice", "why": "auditors", "payload": r#"{"a": 1.50}"#,
        "broken": null
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&shown[field], value, "{field}");
    }
    assert!(
        shown["counted_from_us"].is_u64() && shown["next"]["at_us"].is_u64(),
        "{shown}"
    );
    let again = office
        .set("nightly", &["--missed", "all", "-o", "json"])
        .exits(OK)
        .json();
    assert_eq!(again["changed"], json!(false));
    assert_eq!(office.show("nightly")["why"], "auditors", "no change, no new remark");

    let rows = office.shell.json("schedule ls");
    assert_eq!(rows, office.shell.json("schedule ls send_email"));
    assert_eq!(
        (&rows[0]["name"], rows.as_array().unwrap().len()),
        (&json!("nightly"), 1)
    );
    office
        .shell
        .run("schedule ls")
        .exits(OK)
        .says("Europe/Berlin")
        .says("nightly");
    let queue = &office.q.queue;
    let log = log::read(&office.q.store, queue, None, 100).await.unwrap();
    let said: Vec<&str> = log
        .iter()
        .filter(|e| e.kind == "schedule_changed")
        .map(|e| e.text.as_str())
        .collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[1].contains("Europe/Berlin") && said[1].contains("alice: auditors"),
        "{said:?}"
    );
}

#[tokio::test]
async fn the_next_ticks_are_shown_in_the_zone_of_the_schedule() {
    let office = Office::new().await;
    office
        .set(
            "hourly",
            &["--cron", "15 * * * *", "--time-zone", "Asia/Kolkata", "--payload", "1"],
        )
        .exits(OK);
    let ticks = office.shell.json("schedule next send_email hourly --count 4");
    let ticks = ticks.as_array().unwrap();
    assert_eq!(ticks.len(), 4);
    let mut before = inspect::time_us(&office.q.store).await.unwrap() - 5_000_000;
    for tick in ticks {
        let at = tick["at_us"].as_u64().unwrap();
        assert!(at > before && at % 3_600_000_000 == 45 * 60_000_000, "{tick}");
        assert!(tick["local"].as_str().unwrap().ends_with(":15:00+05:30"), "{tick}");
        before = at;
    }
    let table = office.shell.run("schedule next send_email hourly").exits(OK);
    assert_eq!(table.stdout.lines().count(), 10);
    office
        .shell
        .run("schedule next send_email hourly --count 0")
        .exits(USAGE);
}

#[tokio::test]
async fn what_cannot_be_is_refused_in_words_and_changes_nothing() {
    let office = Office::new().await;
    let before = office.stored("nightly").await;
    let long = "x".repeat(300);
    for (args, code, says) in [
        (
            &["--cron", "61 2 * * *"][..],
            REFUSED,
            "invalid cron expression \"61 2 * * *\"",
        ),
        (&["--cron", "0 0 30 2 *"], REFUSED, "never due"),
        (
            &["--time-zone", "Europe/Atlantis"],
            REFUSED,
            "unknown time zone \"Europe/Atlantis\"",
        ),
        (&["--key", &long], REFUSED, "its key is 300 bytes, the limit is 256"),
        (&["--payload", "{"], USAGE, "not JSON"),
        (&["--missed", "never"], USAGE, "skip, once, all"),
        (&["--file", "nothing-here"], USAGE, "cannot read"),
    ] {
        office.set("nightly", args).exits(code).tells(says);
    }
    assert_eq!(office.stored("nightly").await, before);
    office
        .set("weekly", &["--cron", "@weekly"])
        .exits(USAGE)
        .tells("--payload");
    office
        .set("no good", &["--cron", "@weekly"])
        .exits(USAGE)
        .tells("invalid schedule name");
    for line in ["show", "next", "pause", "resume", "rm"] {
        let ran = office.shell.run(&format!("schedule {line} send_email weekly"));
        ran.exits(NOT_FOUND)
            .tells("no schedule weekly")
            .tells("there are: nightly");
        let ran = office.shell.run(&format!("schedule {line} send_mail weekly"));
        ran.exits(NOT_FOUND).tells("no such queue send_mail");
    }
    office.shell.run("schedule ls send_mail").exits(NOT_FOUND);
    Shell::new("redis://127.0.0.1:1").run("schedule ls").exits(UNREACHABLE);
}

#[tokio::test]
async fn a_dry_run_shows_and_changes_nothing() {
    let office = Office::new().await;
    let before = (office.stored("nightly").await, office.last("nightly").await);
    office
        .set("nightly", &["--cron", "45 3 * * 1", "--dry-run"])
        .exits(OK)
        .says("30 2 * * * UTC, missed once -> 45 3 * * 1 UTC, missed once · dry run")
        .says("T03:45:00+00:00");
    office
        .set("other", &["--cron", "@daily", "--payload", "1", "--dry-run"])
        .exits(OK)
        .says("none -> @daily");
    for line in ["pause", "rm"] {
        office
            .shell
            .run(&format!("schedule {line} send_email nightly --dry-run"))
            .exits(OK)
            .says("dry run");
    }
    assert_eq!((office.stored("nightly").await, office.last("nightly").await), before);
    assert_eq!(office.stored("other").await, None);
}

#[tokio::test]
async fn pause_resume_and_remove() {
    let office = Office::new().await;
    office.q.cmd::<()>(&["HSET", HASH, "nightly:last", "1000"]).await;
    office
        .shell
        .run("schedule pause send_email nightly --why noise")
        .exits(OK)
        .says("paused");
    assert_eq!(office.show("nightly")["next"], Value::Null);
    assert_eq!(office.last("nightly").await, Some(1_000));
    office
        .shell
        .run("schedule next send_email nightly")
        .exits(OK)
        .tells("is paused");
    office
        .shell
        .run("schedule pause send_email nightly")
        .exits(OK)
        .says("it was so already");
    office.shell.run("schedule resume send_email nightly").exits(OK);
    assert!(
        office.last("nightly").await.unwrap() > 1_000_000,
        "the pause is not made up for"
    );
    office.shell.run("schedule rm send_email nightly").exits(OK);
    assert!(!office.q.cmd::<bool>(&["EXISTS", HASH]).await);
}

// Who pauses what code declares does not take it from the code; who sets it does.
#[tokio::test]
async fn what_code_declares_is_the_codes_until_a_person_sets_it() {
    let office = Office::new().await;
    let code = r#"{"cron":"@daily","time_zone":"UTC","payload":1,"missed":"once","paused":false,"source":"code"}"#;
    office.q.cmd::<()>(&["HSET", HASH, "nightly", code]).await;
    office.shell.run("schedule pause send_email nightly").exits(OK);
    assert_eq!(office.show("nightly")["source"], "code");
    let rm = office.shell.run("schedule rm send_email nightly --dry-run").exits(OK);
    rm.tells("the next worker to join brings it back");
    office.set("nightly", &["--missed", "skip"]).exits(OK);
    let shown = office.show("nightly");
    assert_eq!((&shown["source"], &shown["paused"]), (&json!("cli"), &json!(true)));
}

#[tokio::test]
async fn a_broken_definition_is_shown_and_mended() {
    let office = Office::new().await;
    for broken in [
        "{",
        r#"{"cron":"* * * * *","payload":1,"timezone":"Europe/Berlin"}"#,
        "\u{1b}[2J",
    ] {
        office.q.cmd::<()>(&["HSET", HASH, "nightly", broken]).await;
        office.shell.run("schedule ls").exits(OK).says("BROKEN");
        let shown = office.show("nightly");
        assert!(
            shown["broken"].as_str().unwrap().contains("not a definition"),
            "{shown}"
        );
        assert_eq!(shown["payload"], broken);
        let table = office.shell.run("schedule show send_email nightly").exits(OK);
        assert!(!table.stdout.contains('\u{1b}'), "{table:?}");
        office
            .shell
            .run("schedule next send_email nightly")
            .exits(REFUSED)
            .tells("broken");
        office
            .shell
            .run("schedule pause send_email nightly")
            .exits(REFUSED)
            .tells("broken");
        office.set("nightly", &["--missed", "all"]).exits(USAGE).tells("--cron");
        office
            .set("nightly", &["--cron", "@daily", "--payload", "2"])
            .exits(OK)
            .says("broken -> @daily");
    }
    let listing = ScheduleStore::new(&office.q.store, &office.q.queue)
        .list()
        .await
        .unwrap();
    assert!(listing.schedules[0].parse().is_ok());
}

#[tokio::test]
async fn a_schedule_may_be_there_before_any_worker() {
    let q = TestQueue::empty().await;
    let office = Office {
        shell: Shell::new(q.server.url()),
        q,
    };
    let made = office.set("nightly", &["--cron", "@daily", "--payload", "1"]).exits(OK);
    made.tells("no live worker: nothing fires until one joins");
    office.shell.run("schedule ls send_email").exits(OK).says("nightly");
    office.shell.run("schedule ls").exits(OK).says("nightly");
}
