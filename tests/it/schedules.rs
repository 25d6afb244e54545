//! fire.lua and write.lua: a tick is one task, whoever asks and however often.

use std::collections::BTreeMap;

use switchback_common::{
    ConnectOptions, SessionId, Store, StoreError,
    schedule::{Due, Missed, Schedule, ScheduleName},
    store::{
        keyspace::Key,
        schedule::{Change, Firing, Found, ScheduleStore, Written},
    },
};
use switchback_tests::{Link, Mode};

use crate::queue::TestQueue;

const SECOND: u64 = 1_000;

struct Bell {
    q: TestQueue,
    store: ScheduleStore,
    name: ScheduleName,
    hash: String,
    main: String,
}

impl Bell {
    /// A queue with the schedule `bell`, due every second, every tick of it to be fired.
    async fn new() -> Self {
        let q = TestQueue::empty().await;
        let it = Self {
            store: ScheduleStore::new(&q.store, &q.queue),
            name: "bell".parse().unwrap(),
            hash: q.key(Key::Schedules),
            main: q.key(Key::Stream),
            q,
        };
        assert_eq!(it.set(Some(&every_second())).await, Written::Yes);
        it
    }

    async fn found(&self) -> (Found, u64) {
        let mut listing = self.store.list().await.unwrap();
        (listing.schedules.remove(0), listing.now_ms)
    }

    async fn set(&self, after: Option<&Schedule>) -> Written {
        let listing = self.store.list().await.unwrap();
        self.write(listing.schedules.first(), after).await
    }

    async fn write(&self, before: Option<&Found>, after: Option<&Schedule>) -> Written {
        let change = Change {
            name: &self.name,
            before,
            after,
            session: None,
            text: "a test",
        };
        self.store.write(&change).await.unwrap()
    }

    /// As if the last tick had been fired `seconds` ago.
    async fn age(&self, seconds: u64) -> u64 {
        let (_, now) = self.found().await;
        let last = now / SECOND * SECOND - seconds * SECOND;
        self.q
            .cmd::<()>(&["HSET", &self.hash, "bell:last", &last.to_string()])
            .await;
        last
    }

    async fn fire(&self, found: &Found, due: &Due) -> Result<u64, StoreError> {
        let (name, schedule, timetable) = found.parse().unwrap();
        self.store
            .fire(&Firing {
                name: &name,
                schedule: &schedule,
                digest: &found.digest(),
                timetable: &timetable,
                due,
                session: &SessionId::random(),
            })
            .await
    }

    /// The fields of every task in the main stream.
    async fn tasks(&self) -> Vec<BTreeMap<String, String>> {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let entries = self.q.entries(&self.main).await.into_iter();
        entries
            .map(|(_, fields)| fields.into_iter().map(|(k, v)| (text(k), text(v))).collect())
            .collect()
    }

    async fn ids(&self) -> Vec<String> {
        self.tasks().await.iter().map(|task| task["id"].clone()).collect()
    }
}

fn every_second() -> Schedule {
    Schedule::new("* * * * * *", &"ding").missed(Missed::All)
}

fn due(found: &Found, now_ms: u64) -> Due {
    let (_, schedule, timetable) = found.parse().unwrap();
    timetable.due(schedule.missed, found.last_ms.unwrap(), now_ms)
}

// P2: workers that looked at the same time, or at different times, or twice, or whose replies were lost.
#[tokio::test]
async fn a_tick_is_one_task_whoever_asks_and_however_often() {
    let bell = Bell::new().await;
    let now = bell.age(30).await + 30 * SECOND;
    let (early, _) = bell.found().await;
    let ten_of_them = due(&early, now - 20 * SECOND);
    assert_eq!(bell.fire(&early, &ten_of_them).await.unwrap(), 10);
    // One who looked before that firing, and has more to fire by now.
    let all = due(&early, now);
    assert_eq!((all.ticks.len(), all.dropped), (30, false));
    let results = futures_util::future::join_all((0..4).map(|_| bell.fire(&early, &all))).await;
    let fired: u64 = results.into_iter().map(Result::unwrap).sum();
    assert_eq!(fired, 20);
    assert_eq!(bell.fire(&early, &ten_of_them).await.unwrap(), 0);
    let expected: Vec<String> = all
        .ticks
        .iter()
        .map(|tick| bell.name.task_id(*tick).unwrap().to_string())
        .collect();
    assert_eq!(bell.ids().await, expected);
    let (found, _) = bell.found().await;
    assert_eq!(found.last_ms, all.newest);
    let log = bell.q.log().await;
    let logged: Vec<&str> = log
        .iter()
        .filter(|e| e.kind == "scheduled")
        .flat_map(|e| e.text.strip_prefix("bell: ").unwrap().split(' '))
        .collect();
    assert_eq!(logged, expected);
}

#[tokio::test]
async fn a_firing_whose_reply_was_lost_is_not_repeated() {
    let bell = Bell::new().await;
    let link = Link::to(bell.q.server.port()).await;
    let store = Store::new(&ConnectOptions::new(link.url())).unwrap();
    let bell = Bell {
        store: ScheduleStore::new(&store, &bell.q.queue),
        ..bell
    };
    let now = bell.age(5).await + 5 * SECOND;
    let (found, _) = bell.found().await;
    // The script is there already: the very firing is what nobody hears of.
    bell.fire(&found, &due(&found, now - 4 * SECOND)).await.unwrap();
    let all = due(&found, now);
    link.set(Mode::DropReplies).await;
    let error = bell.fire(&found, &all).await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error}");
    link.set(Mode::Pass).await;
    assert_eq!(bell.ids().await.len(), 5, "it had happened");
    assert_eq!(bell.fire(&found, &all).await.unwrap(), 0);
    assert_eq!(bell.ids().await.len(), 5);
}

#[tokio::test]
async fn a_task_says_which_schedule_and_tick_it_is() {
    let bell = Bell::new().await;
    let nightly = Schedule::new("30 2 * * *", &serde_json::json!({"full": true}))
        .time_zone("Europe/Berlin")
        .key("customer-7");
    bell.set(Some(&nightly)).await;
    bell.age(2 * 86_400).await;
    let (found, now) = bell.found().await;
    let due = due(&found, now);
    assert_eq!(bell.fire(&found, &due).await.unwrap(), 1);
    let fields = bell.tasks().await.remove(0);
    assert_eq!(fields["payload"], r#"{"full":true}"#);
    assert_eq!(fields["key"], "customer-7");
    let headers: BTreeMap<String, String> = serde_json::from_str(&fields["headers"]).unwrap();
    assert_eq!(headers["schedule"], "bell");
    assert!(headers["tick"].contains("T02:30:00+0"), "{headers:?}");
    assert_eq!(fields.len(), 4, "{fields:?}");
}

#[tokio::test]
async fn what_was_decided_by_an_older_definition_fires_nothing() {
    let bell = Bell::new().await;
    bell.age(5).await;
    let (old, now) = bell.found().await;
    let due = due(&old, now);
    let mut paused = every_second();
    paused.paused = true;
    assert_eq!(bell.set(Some(&paused)).await, Written::Yes);
    assert_eq!(bell.fire(&old, &due).await.unwrap(), 0);
    // And nobody writes onto what he has not seen.
    assert_eq!(bell.write(Some(&old), Some(&every_second())).await, Written::Moved);
    assert_eq!(bell.write(None, Some(&every_second())).await, Written::Moved);
    assert_eq!(bell.set(None).await, Written::Yes);
    assert_eq!(bell.fire(&old, &due).await.unwrap(), 0);
    assert!(bell.ids().await.is_empty());
    assert!(
        !bell.q.cmd::<bool>(&["EXISTS", &bell.hash]).await,
        "nothing is left of it"
    );
}

#[tokio::test]
async fn a_tick_never_fires_before_its_time() {
    let bell = Bell::new().await;
    let (found, now) = bell.found().await;
    let begun = found.last_ms.unwrap();
    let ahead = due(&found, now + 3_600 * SECOND);
    let fired = bell.fire(&found, &ahead).await.unwrap();
    let (found, now) = bell.found().await;
    // Those whose time came while this test was at it, if any.
    assert!(fired <= now / SECOND - begun / SECOND, "{fired} from {begun} to {now}");
    assert_eq!(bell.ids().await.len() as u64, fired);
    assert!(found.last_ms.unwrap() <= now);
}

#[tokio::test]
async fn only_new_times_are_counted_anew() {
    let bell = Bell::new().await;
    let last = bell.age(1_000).await;
    let mut other = every_second().key("k");
    other.payload = serde_json::value::to_raw_value(&"dong").unwrap();
    bell.set(Some(&other)).await;
    assert_eq!(bell.found().await.0.last_ms, Some(last), "a new payload misses no tick");
    other.paused = true;
    bell.set(Some(&other)).await;
    assert_eq!(bell.found().await.0.last_ms, Some(last));
    let (_, before) = bell.found().await;
    other.paused = false;
    bell.set(Some(&other)).await;
    assert!(
        bell.found().await.0.last_ms.unwrap() >= before,
        "a pause is not made up for"
    );
    bell.age(1_000).await;
    bell.set(Some(&other.time_zone("Asia/Kolkata"))).await;
    assert!(bell.found().await.0.last_ms.unwrap() >= before);
}

#[tokio::test]
async fn counting_begins_when_a_definition_by_hand_is_first_seen() {
    let bell = Bell::new().await;
    for last in ["", "yesterday", "99999999999999999999", "4102444800000", "-5", "nan"] {
        bell.q.cmd::<()>(&["HSET", &bell.hash, "bell:last", last]).await;
        let (found, now) = bell.found().await;
        assert_eq!(found.counted_from(now), None, "{last:?}");
        let (name, schedule, timetable) = found.parse().unwrap();
        let firing = Firing {
            name: &name,
            schedule: &schedule,
            digest: &found.digest(),
            timetable: &timetable,
            due: &Due::default(),
            session: &SessionId::random(),
        };
        bell.store.begin(&firing).await.unwrap();
        let (found, later) = bell.found().await;
        let from = found.counted_from(later).unwrap_or_else(|| panic!("{last:?}"));
        assert!((now..=later).contains(&from), "{last:?}");
    }
    assert!(bell.ids().await.is_empty());
}

// P10: new work is refused at maxmemory, and late then; people can still pause and remove.
#[tokio::test]
async fn a_full_redis_makes_ticks_late_and_loses_none() {
    let bell = Bell::new().await;
    bell.age(5).await;
    let (found, now) = bell.found().await;
    let due = due(&found, now);
    bell.q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = bell.fire(&found, &due).await.unwrap_err();
    assert!(matches!(error, StoreError::OutOfMemory { .. }), "{error:?}");
    assert_eq!(bell.found().await.0.last_ms, found.last_ms, "nothing was written");
    let mut paused = every_second();
    paused.paused = true;
    assert_eq!(bell.set(Some(&paused)).await, Written::Yes);
    assert_eq!(bell.set(Some(&every_second())).await, Written::Yes);
    bell.q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let found = bell.found().await.0;
    assert_eq!(
        bell.fire(&found, &due).await.unwrap(),
        0,
        "resumed: the pause is not made up for"
    );
    let now = bell.age(5).await + 5 * SECOND;
    let (found, _) = bell.found().await;
    assert_eq!(bell.fire(&found, &self::due(&found, now)).await.unwrap(), 5);
}

#[tokio::test]
async fn a_queue_has_a_bounded_number_of_schedules() {
    let bell = Bell::new().await;
    let mut full = 0;
    for n in 0..105 {
        let name: ScheduleName = format!("s{n}").parse().unwrap();
        let change = Change {
            name: &name,
            before: None,
            after: Some(&every_second()),
            session: None,
            text: "",
        };
        full += usize::from(bell.store.write(&change).await.unwrap() == Written::Full);
    }
    let listing = bell.store.list().await.unwrap();
    assert_eq!((listing.schedules.len(), full), (100, 6));
    // By hand there is no limit, but then nothing is read.
    for n in 0..400 {
        bell.q.cmd::<()>(&["HSET", &bell.hash, &format!("h{n}"), "{}"]).await;
    }
    let error = bell.store.list().await.unwrap_err().to_string();
    assert!(error.contains("at most 100 schedules"), "{error}");
}

#[tokio::test]
async fn a_broken_definition_is_announced_by_one() {
    let bell = Bell::new().await;
    bell.q.cmd::<()>(&["HSET", &bell.hash, "odd one", "{}"]).await;
    let claims = futures_util::future::join_all((0..5).map(|_| bell.store.claim_alert("odd one"))).await;
    assert_eq!(claims.into_iter().filter(|c| *c.as_ref().unwrap()).count(), 1);
    let listing = bell.store.list().await.unwrap();
    let odd = listing.schedules.iter().find(|f| f.name == "odd one").unwrap();
    assert!(odd.alerted && odd.parse().is_err());
    bell.store.clear_alert("odd one").await.unwrap();
    assert!(bell.store.claim_alert("odd one").await.unwrap());
}
