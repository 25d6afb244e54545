//! A rollout before a step that its live workers could not carry.

use switchback_gates::rollout::Status;

use crate::{
    fixture::Fixture,
    rollout::{QUICK, Ramp, Traffic},
};

/// The keys of the counters of the last ten whole minutes.
async fn minutes(fixture: &Fixture) -> Vec<String> {
    let time = fixture.raw(&["TIME"]).await;
    let (secs, _): (String, String) = redis::from_redis_value(time).unwrap();
    let minute = secs.parse::<u64>().unwrap() / 60;
    let key = |n| format!("sb:stats:{{test:job}}:{n}");
    (minute - 10..minute).map(key).collect()
}

// Nothing fails when a version has too few slots: its share only waits, longer and longer, and no guard sees that.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_nobody_could_carry_waits_until_somebody_can() {
    let ramp = Ramp::new().await;
    let minutes = minutes(&ramp.fixture).await;
    for key in &minutes {
        // 1000 tasks per second of about 2 s each: 2000 slots, of which its worker has 64.
        ramp.fixture
            .raw(&["HSET", key, "v2:done", "60000", "v2:le_3000", "60000"])
            .await;
    }
    let _traffic = Traffic::begin(&ramp.fixture, None);
    ramp.start(QUICK).await;
    let record = ramp.becomes(Status::Held).await;
    assert!(
        record
            .reason
            .starts_with("too few slots for the next step (for 50 % of 1000.0 tasks/s")
            && record
                .reason
                .contains("its live workers have 64); it goes on by itself when there are more"),
        "{}",
        record.reason
    );
    assert_eq!(ramp.gate().await.percent.to_string(), "10");
    for key in &minutes {
        ramp.fixture.raw(&["DEL", key]).await;
    }
    // What cannot be told holds nobody up.
    ramp.fixture.raw(&["SET", &minutes[5], "no hash"]).await;
    let record = ramp.becomes(Status::Promoted).await;
    let held = record.events.iter().filter(|(_, text)| text.starts_with("held"));
    assert_eq!(held.count(), 1, "{:?}", record.events);
}
