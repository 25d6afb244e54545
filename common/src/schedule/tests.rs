use proptest::prelude::*;

use super::*;

fn at(text: &str) -> u64 {
    millis(&text.parse::<Timestamp>().unwrap().to_zoned(TimeZone::UTC)).unwrap()
}

fn table(cron: &str, zone: &str) -> Timetable {
    Timetable::parse(cron, zone).unwrap_or_else(|e| panic!("{e}"))
}

/// The next `n` ticks after a moment, as the zone's clocks show them.
fn ticks(cron: &str, zone: &str, after: &str, n: usize) -> Vec<String> {
    let table = table(cron, zone);
    let mut out = Vec::new();
    let mut after = at(after);
    while out.len() < n {
        after = table.next_after(after).unwrap();
        out.push(table.local(after));
    }
    out
}

// Berlin: on 2026-03-29 02:00 -> 03:00; on 2026-10-25 03:00 -> 02:00.
#[test]
fn a_time_of_day_is_due_once_a_day_whatever_the_clocks_do() {
    assert_eq!(
        ticks("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3),
        [
            "2026-03-28T02:30:00+01:00",
            "2026-03-29T03:00:00+02:00",
            "2026-03-30T02:30:00+02:00"
        ]
    );
    assert_eq!(
        ticks("30 2 * * *", "Europe/Berlin", "2026-10-23T12:00:00Z", 3),
        [
            "2026-10-24T02:30:00+02:00",
            "2026-10-25T02:30:00+02:00",
            "2026-10-26T02:30:00+01:00"
        ]
    );
    // In the second round, the one tick of that day is past.
    assert_eq!(
        ticks("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", 1),
        ["2026-10-26T02:30:00+01:00"]
    );
}

#[test]
fn an_interval_counts_the_local_times_that_pass() {
    assert_eq!(
        ticks("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 1),
        ["2026-03-30T02:00:00+02:00"]
    );
    assert_eq!(
        ticks("*/30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 5),
        [
            "2026-10-25T02:00:00+02:00",
            "2026-10-25T02:30:00+02:00",
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T02:30:00+01:00",
            "2026-10-26T02:00:00+01:00"
        ]
    );
}

#[test]
fn what_cannot_be_a_schedule_says_why() {
    let long = "1,".repeat(101);
    for (cron, zone, says) in [
        ("", "UTC", "it is empty"),
        ("* * *", "UTC", "5 or 6 fields"),
        ("61 * * * *", "UTC", "61"),
        ("0 0 1 1 * 2030 *", "UTC", "5 or 6 fields"),
        ("every day", "UTC", "invalid cron expression"),
        ("\u{661} * * * *", "UTC", "contains"),
        (long.as_str(), "UTC", "longer than 200 bytes"),
        ("0 0 31 2 *", "UTC", "never due"),
        ("* * * * *", "Europe/Bärlin", "unknown time zone"),
        ("* * * * *", "+02:00", "unknown time zone"),
        ("* * * * *", "", "unknown time zone"),
    ] {
        let error = Timetable::parse(cron, zone).unwrap_err().to_string();
        assert!(error.contains(says), "{cron:?} {zone:?}: {error}");
    }
    for name in ["", "a:last", "a b", &"x".repeat(41)] {
        assert!(name.parse::<ScheduleName>().is_err(), "{name}");
    }
    let definition = |more: &str| format!("{{\"cron\":\"* * * * *\",\"payload\":1{more}}}");
    assert!(Schedule::parse(definition("").as_bytes()).is_ok());
    for (more, says) in [
        (",\"timezone\":\"Europe/Berlin\"", "unknown field `timezone`"),
        (",\"missed\":\"maybe\"", "unknown variant"),
        (",\"key\":7", "invalid type"),
    ] {
        let error = Schedule::parse(definition(more).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{more}: {error}");
    }
    let fat = Schedule::new("* * * * *", &"x".repeat(MAX_SCHEDULE_PAYLOAD));
    assert!(matches!(
        fat.check(),
        Err(ScheduleError::TooLong { what: "payload", .. })
    ));
    let odd = std::collections::BTreeMap::from([(vec![1], 1)]);
    assert!(matches!(
        Schedule::new("* * * * *", &odd).check(),
        Err(ScheduleError::Payload(_))
    ));
}

#[test]
fn a_payload_stays_as_it_was_typed() {
    let json = br#"{"cron":"@daily","payload":{"b":1.50,"a":12345678901234567890123}}"#;
    let (schedule, _) = Schedule::parse(json).unwrap();
    assert_eq!(schedule.payload.get(), r#"{"b":1.50,"a":12345678901234567890123}"#);
    assert_eq!((schedule.time_zone.as_str(), schedule.missed), ("UTC", Missed::Once));
    let written = serde_json::to_vec(&schedule).unwrap();
    assert_eq!(
        Schedule::parse(&written).unwrap().0.payload.get(),
        schedule.payload.get()
    );
}

#[test]
fn an_id_names_schedule_and_tick() {
    let name: ScheduleName = "nightly".parse().unwrap();
    let id = name.task_id(at("2026-11-21T01:30:00Z")).unwrap();
    assert_eq!(id.to_string(), "nightly-20261121T013000Z");
    let longest: ScheduleName = "x".repeat(MAX_SCHEDULE_NAME_BYTES).parse().unwrap();
    assert!(longest.task_id(at("9999-12-30T00:00:00Z")).is_some());
}

#[test]
fn missed_ticks_fare_by_the_policy() {
    let every_second = table("* * * * * *", "UTC");
    let now = at("2026-11-21T12:00:00Z");
    let ago = |s: u64| now - s * 1_000;
    let due = |missed, last| every_second.due(missed, last, now + 300);

    let none = due(Missed::All, now);
    assert_eq!(none, Due::default());

    let once = due(Missed::Once, ago(1_000_000));
    assert_eq!((once.ticks, once.newest, once.dropped), (vec![now], Some(now), false));

    let some = due(Missed::All, ago(3));
    assert_eq!((some.ticks, some.dropped), (vec![ago(2), ago(1), now], false));
    let exactly = due(Missed::All, ago(100));
    assert_eq!((exactly.ticks.len(), exactly.dropped), (MAX_CATCH_UP, false));
    let all = due(Missed::All, ago(101));
    assert_eq!(
        (all.ticks[0], all.ticks.len(), all.dropped),
        (ago(99), MAX_CATCH_UP, true)
    );

    let fresh = due(Missed::Skip, ago(3));
    assert_eq!((fresh.ticks.len(), fresh.dropped), (3, false));
    let skip = due(Missed::Skip, ago(1_000));
    assert_eq!((skip.ticks[0], skip.ticks.len(), skip.dropped), (ago(59), 60, true));
    let stale = table("0 0 * * *", "UTC").due(Missed::Skip, ago(86_400 * 9), now);
    let midnight = at("2026-11-21T00:00:00Z");
    assert_eq!(
        (stale.ticks, stale.newest, stale.dropped),
        (vec![], Some(midnight), true)
    );
}

const ZONES: [&str; 9] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Santiago",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Antarctica/Troll",
    "Asia/Kolkata",
];

fn field(most: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("*".to_owned()),
        3 => (0..=most).prop_map(|n| n.to_string()),
        1 => (1..=most).prop_map(|n| format!("*/{n}")),
        1 => (0..=most, 0..=most).prop_map(|(a, b)| format!("{a},{b}")),
        1 => (0..=most, 0..=most).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
    ]
}

fn cron() -> impl Strategy<Value = String> {
    let day = prop_oneof![4 => Just("*".to_owned()), 1 => (1..=28_u32).prop_map(|n| n.to_string()), 1 => Just("L".to_owned())];
    let weekday = prop_oneof![4 => Just("*".to_owned()), 1 => (0..=7_u32).prop_map(|n| n.to_string()), 1 => Just("MON-FRI".to_owned())];
    (field(59), field(59), field(23), day, weekday).prop_map(|(s, m, h, d, w)| format!("{s} {m} {h} {d} * {w}"))
}

/// Moments near a change of clocks of some zone, and others.
fn moment() -> impl Strategy<Value = u64> {
    let near = prop_oneof![
        Just("2026-03-29T01:00:00Z"),
        Just("2026-10-25T01:00:00Z"),
        Just("2026-03-08T07:00:00Z"),
        Just("2026-11-01T06:00:00Z"),
        Just("2026-04-04T15:00:00Z"),
        Just("2026-10-03T15:30:00Z"),
        Just("2026-02-15T02:00:00Z"),
        Just("2026-03-22T02:00:00Z"),
    ];
    prop_oneof![
        3 => (near, -15_000_000..15_000_000_i64).prop_map(|(near, by)| at(near).saturating_add_signed(by)),
        1 => 1_700_000_000_000..2_200_000_000_000_u64,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// P2: ticks grow, and what was fired, and what is due, is of one mind with what comes next.
    #[test]
    fn ticks_grow_and_no_tick_is_skipped_or_due_twice(cron in cron(), zone in 0..ZONES.len(), begin in moment()) {
        let table = table(&cron, ZONES[zone]);
        let mut after = begin;
        for _ in 0..20 {
            let tick = table.next_after(after).unwrap();
            prop_assert!(tick > after && tick.is_multiple_of(1_000));
            // Nothing between, from wherever one looks.
            let middle = after + (tick - after) / 2;
            prop_assert_eq!(table.next_after(middle), Some(tick), "{} in {} from {}", cron, ZONES[zone], middle);
            prop_assert_eq!(table.next_after(tick - 1), Some(tick));
            // The way back, by which missed ticks are found.
            prop_assert_eq!(table.due(Missed::All, after, tick).ticks, vec![tick], "{} in {}", cron, ZONES[zone]);
            prop_assert_eq!(table.due(Missed::All, after, tick - 1).ticks, Vec::<u64>::new(), "{} in {} until {}", cron, ZONES[zone], tick - 1);
            prop_assert_eq!(table.due(Missed::All, tick, tick + 999).ticks, Vec::<u64>::new());
            after = tick;
        }
        let all = table.due(Missed::All, begin, after);
        prop_assert_eq!(all.ticks.len(), 20);
        prop_assert!(all.ticks.is_sorted());
    }

    #[test]
    fn no_text_panics(cron in "[-*/,#?LW+@A-Za-z0-9 ]{0,40}|\\PC{0,40}", zone in "\\PC{0,20}", after: u64) {
        if let Ok(table) = Timetable::parse(&cron, "UTC") {
            let _ = table.next_after(after);
            let _ = table.local(after);
        }
        let _ = Timetable::parse("* * * * *", &zone);
        let _ = Schedule::parse(cron.as_bytes());
    }
}
