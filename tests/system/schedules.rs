//! Periodic tasks: one per tick over any number of workers, whatever is lost on the way, and what people do to them.

use std::{collections::BTreeMap, time::Duration};

use switchback_common::{
    ConnectOptions,
    schedule::{Missed, Schedule},
    store::{inspect, log},
};
use switchback_tests::{Link, Mode, eventually, patience};
use switchback_worker::{CancellationToken, TaskSpec, Worker, WorkerConfig, WorkerError};

use crate::fixture::{Fixture, Job, Seen};

const HASH: &str = "sb:schedules:{test:job}";
const STREAM: &str = "sb:stream:{test:job}";
const HEAD: &str = "sb:head:{test:job}";

fn job(n: u64) -> Job {
    Job { n, then: String::new() }
}

fn every_second(n: u64) -> Schedule {
    Schedule::new("* * * * * *", &job(n)).missed(Missed::All)
}

/// Fires not within the next half hour, and every hour.
async fn hourly(fixture: &Fixture, n: u64) -> Schedule {
    let minute = inspect::time_us(&fixture.store).await.unwrap() / 60_000_000 % 60;
    Schedule::new(format!("{} * * * *", (minute + 30) % 60), &job(n))
}

/// Ticks of a schedule that became tasks, in order, as the ids of the tasks spell them. A task that was recovered lies in
/// the head stream.
async fn ticks(fixture: &Fixture, name: &str) -> Vec<String> {
    let both = "local out = redis.call('XRANGE', KEYS[1], '-', '+')
        for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do out[#out + 1] = entry end
        return out";
    let entries = fixture.raw(&["EVAL", both, "2", STREAM, HEAD]).await;
    let entries: Vec<(String, Vec<(String, String)>)> = redis::from_redis_value(entries).unwrap();
    let ids = entries.into_iter().filter_map(|(_, fields)| {
        let fields: BTreeMap<String, String> = fields.into_iter().collect();
        fields["id"].strip_prefix(&format!("{name}-")).map(str::to_owned)
    });
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    ids
}

async fn at_least(fixture: &Fixture, name: &str, count: usize) -> Vec<String> {
    eventually(
        &format!("{name} has fired {count} times"),
        patience(Duration::from_secs(30)),
        async || {
            let ticks = ticks(fixture, name).await;
            if ticks.len() >= count {
                Ok(ticks)
            } else {
                Err(format!("{ticks:?}"))
            }
        },
    )
    .await
}

/// Every second from the first to the last, each once.
#[track_caller]
fn without_gap_or_double(ticks: &[String]) {
    let second = |tick: &String| {
        let digits: Vec<u64> = [9..11, 11..13, 13..15]
            .into_iter()
            .map(|range| tick[range].parse().unwrap())
            .collect();
        digits[0] * 3_600 + digits[1] * 60 + digits[2]
    };
    for pair in ticks.windows(2) {
        let passed = (second(&pair[1]) + 86_400 - second(&pair[0])) % 86_400;
        assert_eq!(passed, 1, "from {} to {} in {ticks:?}", pair[0], pair[1]);
    }
}

async fn alerts(fixture: &Fixture) -> Vec<String> {
    let entries = log::read(&fixture.store, &fixture.queue, None, 10_000).await.unwrap();
    entries
        .into_iter()
        .filter(|e| e.kind == "alert")
        .map(|e| e.text)
        .collect()
}

async fn hset(fixture: &Fixture, name: &str, value: &str) {
    fixture.raw(&["HSET", HASH, name, value]).await;
}

/// As if the schedule had last fired `hours` ago.
async fn age(fixture: &Fixture, name: &str, hours: u64) {
    let now = inspect::time_us(&fixture.store).await.unwrap() / 1_000;
    let last = now - hours * 3_600_000;
    hset(fixture, &format!("{name}:last"), &last.to_string()).await;
}

async fn definition(fixture: &Fixture, name: &str) -> serde_json::Value {
    let json: Option<String> = redis::from_redis_value(fixture.raw(&["HGET", HASH, name]).await).unwrap();
    json.map_or(serde_json::Value::Null, |json| serde_json::from_str(&json).unwrap())
}

fn beat(seen: &Seen, t: TaskSpec<Job>) -> TaskSpec<Job> {
    t.version("v1", seen.handler()).schedule("beat", every_second(1))
}

// P2: one task per tick, and it runs.
#[tokio::test(flavor = "multi_thread")]
async fn many_workers_fire_each_tick_once() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    for _ in 0..4 {
        let config = fixture.config();
        fixture.worker(config, |t| beat(&seen, t)).await;
    }
    at_least(&fixture, "beat", 6).await;
    hset(&fixture, "beat", "{\"cron\":\"@yearly\",\"payload\":{\"n\":1}}").await;
    let fired = ticks(&fixture, "beat").await;
    without_gap_or_double(&fired);
    fixture.drained().await;
    let mut ran: Vec<String> = seen.all().into_iter().map(|ran| ran.id).collect();
    ran.sort();
    ran.dedup(); // whose session was slow to renew ran again
    let expected: Vec<String> = fired.iter().map(|tick| format!("beat-{tick}")).collect();
    assert_eq!(ran, expected);
}

// P2: whoever does not know whether a tick was fired asks again, and a worker that comes back makes up for it.
#[tokio::test(flavor = "multi_thread")]
async fn lost_replies_and_lost_workers_neither_lose_nor_double_a_tick() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let link = Link::to(fixture.server.port()).await;
    for _ in 0..2 {
        let config =
            WorkerConfig::new(ConnectOptions::new(link.url()), "test".parse().unwrap()).lease(Duration::from_secs(2));
        fixture.worker(config, |t| beat(&seen, t)).await;
    }
    let mut fired = at_least(&fixture, "beat", 1).await.len();
    for round in 0..6 {
        let swallowed = link.counters().swallowed_bytes;
        link.set(Mode::DropReplies).await;
        eventually("a reply was lost", patience(Duration::from_secs(10)), async || {
            link.counters().swallowed_bytes > swallowed
        })
        .await;
        link.set(Mode::Pass).await;
        if round % 2 == 0 {
            link.cut().await;
        }
        fired = at_least(&fixture, "beat", fired + 1).await.len();
    }
    without_gap_or_double(&at_least(&fixture, "beat", fired + 2).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_was_there_for_fares_by_the_policy() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let hourly = hourly(&fixture, 1).await;
    let describe = |t: TaskSpec<Job>| {
        let t = t.version("v1", seen.handler());
        [Missed::Skip, Missed::Once, Missed::All]
            .into_iter()
            .fold(t, |t, missed| {
                t.schedule(missed.as_str(), hourly.clone().missed(missed))
            })
            .schedule("beat", every_second(1))
    };
    let config = fixture.config();
    let stop = fixture.worker(config, describe).await;
    at_least(&fixture, "beat", 1).await;
    fixture.stop(&stop).await;
    for name in ["skip", "once", "all"] {
        assert_eq!(ticks(&fixture, name).await.len(), 0, "new schedules miss nothing");
        age(&fixture, name, 5).await;
    }
    let before = ticks(&fixture, "beat").await.len();
    let config = fixture.config();
    fixture.worker(config, describe).await;
    // Definitions are taken in the order of their names; a second look would show what is fired twice.
    at_least(&fixture, "beat", before + 3).await;
    let count = async |name| ticks(&fixture, name).await.len();
    assert_eq!(
        (count("skip").await, count("once").await, count("all").await),
        (0, 1, 5)
    );
    let all = ticks(&fixture, "all").await;
    assert_eq!(ticks(&fixture, "once").await[0], all[4], "the newest");
    without_gap_or_double(&ticks(&fixture, "beat").await);
    let entries = log::read(&fixture.store, &fixture.queue, None, 10_000).await.unwrap();
    let dropped = entries
        .iter()
        .find(|e| e.text.starts_with("skip: ") && e.kind == "scheduled");
    assert!(dropped.unwrap().text.contains("dropped"), "{dropped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_hand_takes_effect_and_a_paused_gate_lets_ticks_wait() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.set(&[("paused", "1")]).await;
    hset(&fixture, "a", "{\"cron\":\"0 0 1 1 *\",\"payload\":{\"n\":1}}").await;
    hset(
        &fixture,
        "b",
        "{\"cron\":\"* * * * * *\",\"payload\":{\"n\":2},\"missed\":\"all\"}",
    )
    .await;
    at_least(&fixture, "b", 2).await;
    assert!(ticks(&fixture, "a").await.is_empty());
    hset(&fixture, "a", "{\"cron\":\"* * * * * *\",\"payload\":{\"n\":3}}").await;
    at_least(&fixture, "a", 2).await;
    hset(
        &fixture,
        "a",
        "{\"cron\":\"* * * * * *\",\"payload\":{\"n\":3},\"paused\":true}",
    )
    .await;
    let fired = ticks(&fixture, "a").await;
    at_least(&fixture, "b", ticks(&fixture, "b").await.len() + 2).await;
    assert_eq!(ticks(&fixture, "a").await, fired, "from the edit on nothing fires");
    fixture.raw(&["HDEL", HASH, "a", "b"]).await;
    let waiting = ticks(&fixture, "a").await.len() + ticks(&fixture, "b").await.len();
    assert!(seen.all().is_empty());
    fixture.set(&[("paused", "0")]).await;
    fixture.drained().await;
    assert_eq!(seen.all().len(), waiting);
}

// P7, P10: what a person broke stops nothing else, and is said once, not by every worker at every look.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_definition_stops_no_other_and_is_said_once() {
    let mut fixture = Fixture::new().await;
    let (_one, _) = fixture.simple(&["v1"]).await;
    let (_two, _) = fixture.simple(&["v1"]).await;
    hset(&fixture, "a", "{\"cron\":\"61 * * * *\",\"payload\":1}").await;
    hset(&fixture, "not a name", "\u{1F389}").await;
    hset(
        &fixture,
        "b",
        "{\"cron\":\"* * * * * *\",\"payload\":{\"n\":2},\"missed\":\"all\"}",
    )
    .await;
    at_least(&fixture, "b", 4).await;
    let said = alerts(&fixture).await;
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].contains("\"a\" is broken") && said[0].contains("schedule set job a"),
        "{said:?}"
    );
    // Mended, broken again: that is news.
    hset(&fixture, "a", "{\"cron\":\"* * * * * *\",\"payload\":{\"n\":3}}").await;
    at_least(&fixture, "a", 1).await;
    hset(
        &fixture,
        "a",
        "{\"cron\":\"* * * * * *\",\"payload\":{\"n\":3},\"zone\":1}",
    )
    .await;
    eventually("it is said again", patience(Duration::from_secs(10)), async || {
        let said = alerts(&fixture).await;
        if said.len() == 3 {
            Ok(())
        } else {
            Err(format!("{said:?}"))
        }
    })
    .await;
    without_gap_or_double(&ticks(&fixture, "b").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_code_wins_over_older_code_and_people_over_both() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let with = |cron: &'static str| {
        let seen = seen.clone();
        move |t: TaskSpec<Job>| {
            t.version("v1", seen.handler())
                .schedule("report", Schedule::new(cron, &job(1)).time_zone("Europe/Berlin"))
        }
    };
    let shows = async |fixture: &Fixture, cron: &str| {
        eventually("it is declared", patience(Duration::from_secs(10)), async || {
            let is = definition(fixture, "report").await;
            if is["cron"] == cron {
                Ok(is)
            } else {
                Err(is.to_string())
            }
        })
        .await
    };
    let config = fixture.config();
    let one = fixture.worker(config.clone(), with("0 1 * * *")).await;
    let declared = shows(&fixture, "0 1 * * *").await;
    assert_eq!(
        declared,
        serde_json::json!({"cron": "0 1 * * *", "time_zone": "Europe/Berlin", "payload": {"n": 1, "then": ""},
            "missed": "once", "paused": false, "source": "code"})
    );
    fixture.stop(&one).await;
    let paused = declared.to_string().replace("\"paused\":false", "\"paused\":true");
    hset(&fixture, "report", &paused).await;
    let two = fixture.worker(config.clone(), with("0 2 * * *")).await;
    assert_eq!(shows(&fixture, "0 2 * * *").await["paused"], true, "a pause stays");
    fixture.stop(&two).await;
    hset(&fixture, "report", "{\"cron\":\"0 3 * * *\",\"payload\":1}").await;
    // The canary is declared after `report`: when it is there, that was left alone.
    let describe = |t| with("0 4 * * *")(t).schedule("canary", Schedule::new("@yearly", &job(1)));
    let three = fixture.worker(config.clone(), describe).await;
    eventually("all is declared", patience(Duration::from_secs(10)), async || {
        !definition(&fixture, "canary").await.is_null()
    })
    .await;
    assert_eq!(definition(&fixture, "report").await["cron"], "0 3 * * *");
    fixture.stop(&three).await;
    fixture.raw(&["HDEL", HASH, "report"]).await;
    fixture.worker(config, with("0 5 * * *")).await;
    shows(&fixture, "0 5 * * *").await;
}

#[tokio::test]
async fn code_with_a_schedule_that_cannot_be_does_not_start() {
    let fixture = Fixture::new().await;
    let cases = [
        ("x", Schedule::new("every day", &job(1)), "invalid cron expression"),
        (
            "x",
            Schedule::new("@daily", &job(1)).time_zone("Mars/Olympus"),
            "unknown time zone",
        ),
        ("a b", Schedule::new("@daily", &job(1)), "invalid schedule name"),
        ("twice", Schedule::new("@daily", &job(1)), "declared twice"),
    ];
    for (name, schedule, says) in cases {
        let builder = Worker::builder(fixture.config()).task::<Job>(|t| {
            t.version("v1", Seen::default().handler())
                .schedule("twice", every_second(1))
                .schedule(name, schedule)
        });
        let error = builder.run_until(CancellationToken::new()).await.unwrap_err();
        assert!(matches!(error, WorkerError::BadSchedule { .. }), "{error:?}");
        let error = error.to_string();
        assert!(error.contains("of job") && error.contains(says), "{error}");
    }
}
