//! grant.lua, rate.lua and keys.lua: the sums that a fleet keeps to.

use std::{collections::BTreeMap, time::Duration};

use switchback_common::{
    SessionId,
    store::{
        inspect,
        keyspace::Key,
        session::Lives,
        throttle::{self, Ask, Granted, pace, pace_keys},
    },
    throttle::Rate,
};
use switchback_tests::{eventually, patience};

use crate::queue::TestQueue;

/// A session as its throttler sees it.
struct Member {
    id: SessionId,
    call: u64,
    cap: usize,
    running: usize,
}

impl Member {
    async fn join(q: &TestQueue) -> Self {
        let id = SessionId::random();
        q.join(&id, &["v1"]).await;
        Self {
            id,
            call: 0,
            cap: 0,
            running: 0,
        }
    }

    fn held(&self) -> usize {
        self.cap.max(self.running)
    }

    async fn ask(&mut self, q: &TestQueue, limit: u32, ceiling: usize) -> Granted {
        self.call += 1;
        let ask = Ask {
            call: self.call,
            limit,
            held: self.held(),
            running: self.running,
            ceiling,
        };
        let stream = q.key(Key::Stream);
        let granted = throttle::grant(&q.store, &q.queue, &self.id, ask, &[stream])
            .await
            .unwrap();
        if let Granted::Cap(cap) = granted {
            self.cap = cap;
        }
        granted
    }
}

fn total(fleet: &[Member]) -> usize {
    fleet.iter().map(Member::held).sum()
}

/// Numbers that differ but are the same in every run.
fn dice(seed: &mut u64) -> usize {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*seed >> 33).unwrap()
}

// Whatever the members do, and whichever replies are lost, the fleet holds no more than the limit.
#[tokio::test]
async fn the_sum_of_grants_is_never_above_the_limit() {
    let q = TestQueue::seeded().await;
    q.add(&q.key(Key::Stream), 1).await;
    let mut fleet = Vec::new();
    for _ in 0..5 {
        fleet.push(Member::join(&q).await);
    }
    let mut seed = 7;
    let mut most = 0;
    for step in 0..1_500 {
        let who = dice(&mut seed) % fleet.len();
        let member = &mut fleet[who];
        match dice(&mut seed) % 8 {
            0..3 => member.running += dice(&mut seed) % (member.cap.saturating_sub(member.running) + 1),
            3..5 => member.running -= dice(&mut seed) % (member.running + 1),
            5 => {
                // Its reply is lost: it goes on with what it has.
                let cap = member.cap;
                member.ask(&q, 7, 4).await;
                member.cap = cap;
            }
            _ => {
                let ceiling = dice(&mut seed) % 10;
                member.ask(&q, 7, ceiling).await;
            }
        }
        most = most.max(total(&fleet));
        assert!(
            total(&fleet) <= 7,
            "step {step}: {:?}",
            fleet.iter().map(Member::held).collect::<Vec<_>>()
        );
    }
    assert_eq!(most, 7, "and all of it can be used");
}

#[tokio::test]
async fn what_nobody_else_wants_is_given_and_what_others_lack_is_taken_back() {
    let q = TestQueue::seeded().await;
    q.add(&q.key(Key::Stream), 1).await;
    let (mut a, mut b) = (Member::join(&q).await, Member::join(&q).await);
    assert_eq!(a.ask(&q, 10, 100).await, Granted::Cap(10));
    a.running = 10;
    assert_eq!(b.ask(&q, 10, 100).await, Granted::Cap(0), "all of it runs");
    assert_eq!(a.ask(&q, 10, 100).await, Granted::Cap(5), "its part");
    assert_eq!(b.ask(&q, 10, 100).await, Granted::Cap(0), "still runs");
    a.running = 7;
    a.ask(&q, 10, 100).await;
    assert_eq!(b.ask(&q, 10, 100).await, Granted::Cap(3));
    a.running = 0;
    a.ask(&q, 10, 100).await;
    assert_eq!(b.ask(&q, 10, 100).await, Granted::Cap(5));
    assert_eq!(a.ask(&q, 10, 0).await, Granted::Cap(0), "reads nothing any more");
    a.ask(&q, 10, 0).await;
    assert_eq!(b.ask(&q, 10, 100).await, Granted::Cap(10));
    // A lower limit is kept to as tasks end.
    b.running = 10;
    assert_eq!(b.ask(&q, 3, 100).await, Granted::Cap(3));
    assert_eq!(b.held(), 10);
}

// One grant for three, all of which have work: each has its turn, however it is asked for.
#[tokio::test]
async fn one_grant_goes_round() {
    let q = TestQueue::seeded().await;
    q.add(&q.key(Key::Stream), 1).await;
    let mut fleet = [Member::join(&q).await, Member::join(&q).await, Member::join(&q).await];
    let mut turns: BTreeMap<usize, u32> = BTreeMap::new();
    let mut last = None;
    eventually(
        "each has had two turns",
        patience(Duration::from_secs(30)),
        async || {
            for (n, member) in fleet.iter_mut().enumerate() {
                member.ask(&q, 1, 100).await;
                if member.cap > 0 && last != Some(n) {
                    last = Some(n);
                    *turns.entry(n).or_default() += 1;
                }
            }
            assert!(total(&fleet) <= 1);
            if turns.len() == 3 && turns.values().all(|turns| *turns >= 2) {
                Ok(())
            } else {
                Err(format!("{turns:?}"))
            }
        },
    )
    .await;
}

#[tokio::test]
async fn who_reads_nothing_new_waits_for_nobody() {
    let q = TestQueue::seeded().await;
    let (mut a, mut b) = (Member::join(&q).await, Member::join(&q).await);
    assert_eq!(a.ask(&q, 1, 100).await, Granted::Cap(1));
    // Nothing waits: the one grant stays where it is, however long.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    b.ask(&q, 1, 100).await;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    assert_eq!(b.ask(&q, 1, 100).await, Granted::Cap(0));
    assert_eq!(a.ask(&q, 1, 100).await, Granted::Cap(1));
}

// P4: grants of a session come back when it is marked, not when its lease ends: until then it may come back itself.
#[tokio::test]
async fn grants_of_a_lost_session_come_back_when_it_cannot() {
    let q = TestQueue::seeded().await;
    q.add(&q.key(Key::Stream), 2).await;
    let (mut a, mut b) = (Member::join(&q).await, Member::join(&q).await);
    assert_eq!(a.ask(&q, 2, 2).await, Granted::Cap(2));
    q.claim(&a.id, &q.key(Key::Stream), 1).await;
    q.cmd::<()>(&["DEL", &q.lease(&a.id)]).await;
    assert_eq!(b.ask(&q, 2, 2).await, Granted::Cap(0), "it may be revived");
    let reaped = q.sessions.reap(&a.id, &b.id, &q.key(Key::Stream)).await.unwrap();
    assert_eq!(b.ask(&q, 2, 2).await, Granted::Cap(2), "{reaped:?}");
    assert_eq!(a.ask(&q, 2, 2).await, Granted::Lost);
    q.sessions.forget(&a.id).await.unwrap();
    b.ask(&q, 2, 2).await;
    let fields: Vec<String> = q.cmd(&["HKEYS", &q.key(Key::Sessions)]).await;
    assert!(!fields.iter().any(|f| f.starts_with(a.id.as_str())), "{fields:?}");
    // A record that went without its grant.
    q.cmd::<()>(&["HSET", &q.key(Key::Sessions), "ghost:grant", "2 2 0 0 1 0"])
        .await;
    assert_eq!(b.ask(&q, 2, 2).await, Granted::Cap(2));
    let ghost: Option<String> = q.cmd(&["HGET", &q.key(Key::Sessions), "ghost:grant"]).await;
    assert_eq!(ghost, None);
}

// A call that waited in a dead connection must not undo what a later one booked.
#[tokio::test]
async fn a_call_that_comes_late_changes_nothing() {
    let q = TestQueue::seeded().await;
    q.add(&q.key(Key::Stream), 1).await;
    let (mut a, mut b) = (Member::join(&q).await, Member::join(&q).await);
    a.call = 1;
    assert_eq!(a.ask(&q, 4, 4).await, Granted::Cap(4));
    let late = Ask {
        call: 1,
        limit: 4,
        held: 0,
        running: 0,
        ceiling: 0,
    };
    let stream = [q.key(Key::Stream)];
    let granted = throttle::grant(&q.store, &q.queue, &a.id, late, &stream).await.unwrap();
    assert_eq!(granted, Granted::Late);
    assert_eq!(b.ask(&q, 4, 4).await, Granted::Cap(0));
}

#[tokio::test]
async fn what_a_session_says_of_its_circuits_ends_with_it() {
    let q = TestQueue::seeded().await;
    q.sessions.say_open(&q.session, "v1 v3").await.unwrap();
    let found = q.sessions.list().await.unwrap();
    let open: Vec<&str> = found[0].open.iter().map(|v| v.as_str()).collect();
    assert_eq!(open, ["v1", "v3"]);
    q.sessions.say_open(&q.session, "").await.unwrap();
    assert!(q.sessions.list().await.unwrap()[0].open.is_empty());
    q.sessions.say_open(&q.session, "v1").await.unwrap();
    q.sessions.leave(&q.session, &[], "stopped").await.unwrap();
    assert_eq!(q.sessions.say_open(&q.session, "v1").await.unwrap(), Lives::Lost);
    assert_eq!(q.cmd::<u64>(&["HLEN", &q.key(Key::Sessions)]).await, 0);
}

// --- rates

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_burst_and_then_the_rate() {
    let q = TestQueue::seeded().await;
    let hourly = rate("60/h+3");
    let take = async |want| pace(&q.store, &q.queue, hourly, want).await.unwrap();
    let minute = Duration::from_secs(60);
    assert_eq!(take(0).await.now, 3);
    assert_eq!(take(2).await.now, 2);
    assert_eq!(take(0).await.now, 1, "looking takes nothing");
    let left = take(3).await;
    assert_eq!(left.now, 1);
    assert!(left.next > minute / 2 && left.next <= minute, "{left:?}");
    // Those that were not there were taken all the same: their times are to come, and nobody else gets them.
    let look = take(0).await;
    assert!(
        look.now == 0 && look.next > 2 * minute && look.next <= 3 * minute,
        "{look:?}"
    );
    let ttl: i64 = q.cmd(&["PTTL", &q.key(Key::Rate)]).await;
    assert!(ttl > 200_000 && ttl < 400_000, "{ttl}");
    // Another rate begins anew, at worst with an empty bucket.
    let faster = pace(&q.store, &q.queue, rate("1000/s+10"), 1).await.unwrap();
    assert!(faster.next <= Duration::from_millis(2), "{faster:?}");
}

// In every window, on Redis's clock, no more begins than rate × window + burst, however many ask.
#[tokio::test(flavor = "multi_thread")]
async fn no_window_holds_more_than_the_rate() {
    let q = TestQueue::seeded().await;
    let limit = rate("500/s+20");
    let taken = std::sync::Mutex::new(Vec::new());
    let one = async |seed: u64| {
        let mut seed = seed;
        let end = inspect::time_us(&q.store).await.unwrap() + 250_000;
        loop {
            let look = pace(&q.store, &q.queue, limit, 0).await.unwrap().now;
            let before = inspect::time_us(&q.store).await.unwrap();
            let all: usize = taken.lock().unwrap().iter().map(|(_, _, n)| n).sum();
            if before > end && all > 20 {
                return;
            }
            // Now and then one that is not there, whose time is to come.
            let want = (dice(&mut seed) % 12).min(look + usize::from(dice(&mut seed).is_multiple_of(16)));
            if want > 0 {
                let paced = pace(&q.store, &q.queue, limit, want).await.unwrap();
                let after = inspect::time_us(&q.store).await.unwrap();
                taken.lock().unwrap().push((before, after, paced.now));
            }
        }
    };
    for round in [0, 4] {
        tokio::join!(one(1 + round), one(2 + round), one(3 + round), one(4 + round));
        // Time for more than a full bucket, which it must not hold.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let taken = taken.into_inner().unwrap();
    let all: usize = taken.iter().map(|(_, _, n)| n).sum();
    assert!(all > 20, "{all}");
    for (from, ..) in &taken {
        for (_, to, _) in taken.iter().filter(|(_, to, _)| to > from) {
            // Only what certainly began within the window.
            let within = taken.iter().filter(|(b, a, _)| b >= from && a <= to);
            let n: usize = within.map(|(_, _, n)| n).sum();
            let most = 20.0 + 500.0 * (to - from) as f64 / 1e6;
            assert!(n as f64 <= most + 1.0, "{n} in {} µs", to - from);
        }
    }
}

#[tokio::test]
async fn each_key_has_a_rate_of_its_own() {
    let q = TestQueue::seeded().await;
    let per_key = rate("60/h+2");
    let keys = ["hot", "hot", "cold", "hot", "hot", "a:{b}"];
    let (waits, now_ms) = pace_keys(&q.store, &q.queue, per_key, &keys.map(|key| (key, None)))
        .await
        .unwrap();
    assert_eq!((waits[0], waits[1], waits[2], waits[5]), (0, 0, 0, 0));
    assert!((waits[3], waits[4]) == (60_000, 120_000), "{waits:?}");
    assert!(now_ms > 1_600_000_000_000);
    // The next batch comes after the last one.
    let next = [("hot", None), ("cold", None)];
    let (waits, _) = pace_keys(&q.store, &q.queue, per_key, &next).await.unwrap();
    assert!(waits[0] > 120_000 && waits[0] <= 180_000 && waits[1] == 0, "{waits:?}");
    // Who could only start after his deadline takes no time from those behind him.
    let (soon, late) = (Some(now_ms + 100_000), Some(now_ms + 10_000_000));
    let late = [
        ("hot", soon),
        ("hot", soon),
        ("hot", late),
        ("hot", Some(1)),
        ("hot", None),
    ];
    let (waits, then_ms) = pace_keys(&q.store, &q.queue, per_key, &late).await.unwrap();
    assert!(
        waits[..2].iter().all(|wait| then_ms + wait >= now_ms + 100_000),
        "{waits:?}"
    );
    assert!(
        waits[..2].iter().all(|wait| then_ms + wait <= now_ms + 100_001),
        "{waits:?}"
    );
    assert!(waits[2] > 180_000 && waits[2] <= 240_000 && waits[3] == 1, "{waits:?}");
    assert_eq!(waits[4], waits[2] + 60_000, "{waits:?}");
    // P10: keys go by themselves.
    let names: Vec<String> = q.cmd(&["KEYS", "sb:rate:*"]).await;
    assert_eq!(names.len(), 3, "{names:?}");
    for name in names {
        let ttl: i64 = q.cmd(&["PTTL", &name]).await;
        assert!(ttl > 0 && ttl < 600_000, "{name} {ttl}");
    }
}

// Workers look before they take, and take nothing while they see nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_raised_rate_is_seen_by_who_only_looks() {
    let q = TestQueue::seeded().await;
    pace(&q.store, &q.queue, rate("1/h"), 5).await.unwrap();
    eventually("a start is left", patience(Duration::from_secs(10)), async || {
        pace(&q.store, &q.queue, rate("100/s"), 0).await.unwrap().now > 0
    })
    .await;
}
