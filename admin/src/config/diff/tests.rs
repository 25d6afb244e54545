use proptest::{collection::btree_map, option, prelude::*};
use serde_json::json;
use switchback_common::retry::RetryRule;

use super::*;
use crate::config::document::{Document, GateDoc, LimitsDoc, Percent, ScheduleDoc, Syntax};

fn gate() -> impl Strategy<Value = GateDoc> {
    let version = || "v[1-3]";
    (
        option::of(version()),
        option::of("(v[1-3])?"),
        option::of(0u32..=100_000),
        option::of(btree_map("[a-zé.=]{1,5}", version(), 0..3)),
        option::of(btree_map("[a-z]{1,3}:[a-z:=]{0,3}", version(), 0..3)),
        option::of(any::<bool>()),
    )
        .prop_map(|(active, candidate, percent, pins, targets, paused)| GateDoc {
            active: active.map(|v| v.parse().unwrap()),
            candidate,
            percent: percent.map(|p| serde_json::from_value::<Percent>(json!(f64::from(p) / 1_000.0)).unwrap()),
            pins: pins.map(|p| p.into_iter().map(|(k, v)| (k, v.parse().unwrap())).collect()),
            targets: targets.map(|p| p.into_iter().map(|(k, v)| (k, v.parse().unwrap())).collect()),
            paused,
        })
}

fn payload() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("{\"a\": 1.50, \"b\": null}".to_owned()),
        Just("12345678901234567890123".to_owned()),
        Just("[]".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        "\\PC{0,12}".prop_map(|text| json!({"t": text, "n": [true, {"x": ""}]}).to_string()),
    ]
}

fn schedule() -> impl Strategy<Value = ScheduleDoc> {
    (payload(), any::<bool>(), option::of("[a-z]{1,4}")).prop_map(|(payload, paused, key)| {
        let doc = ScheduleDoc {
            cron: "30 2 * * *".to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            missed: switchback_common::schedule::Missed::All,
            paused,
            key,
            payload_json: Some(payload),
            payload: None,
        };
        ScheduleDoc::of(&doc.schedule().unwrap())
    })
}

fn queue() -> impl Strategy<Value = QueueDoc> {
    let limits = (
        option::of(0..1_000_000_000_000u64),
        option::of(1..9u64),
        option::of("[1-9]{1,3}/[smh]"),
    );
    let retry = (option::of(1..9u32), option::of(1..90_000u64));
    (
        option::of(gate()),
        option::of(limits),
        option::of(retry),
        option::of(option::of("[1-9]m")),
        option::of(btree_map("[a-z][a-z0-9._-]{0,8}", schedule(), 0..3)),
    )
        .prop_map(|(gate, limits, retry, rollout, schedules)| QueueDoc {
            gate,
            limits: limits.map(|(dead, concurrency, rate)| LimitsDoc {
                dead,
                concurrency,
                rate,
                ..LimitsDoc::default()
            }),
            retry: retry.map(|(max_attempts, ms)| RetryRule {
                max_attempts,
                longest: ms.map(std::time::Duration::from_millis),
                first: None,
            }),
            rollout: rollout.map(|bake| bake.map(|bake| ("bake".to_owned(), json!(bake))).into_iter().collect()),
            schedules,
        })
}

fn documents() -> impl Strategy<Value = Document> {
    btree_map("[a-z_]{1,8}", queue(), 0..3).prop_map(|queues| Document {
        namespace: Some("shop".to_owned()),
        queues,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_exported_reads_back_in_every_syntax(document in documents()) {
        for syntax in [Syntax::Toml, Syntax::Yaml, Syntax::Json] {
            let text = document.render(syntax).unwrap();
            let read = Document::parse(&text, syntax);
            prop_assert_eq!(read.as_ref(), Ok(&document), "{:?}\n{}", syntax, text);
        }
    }

    #[test]
    fn nothing_differs_from_itself_and_what_was_applied_is_applied(now in queue(), wanted in queue()) {
        prop_assert_eq!(changes("q", &fields(&now), &fields(&now)), vec![]);
        let after = merged(&now, &wanted);
        prop_assert_eq!(&merged(&after, &wanted), &after);
        prop_assert_eq!(changes("q", &fields(&after), &fields(&merged(&after, &wanted))), vec![]);
        // Every change speaks of something that was asked for.
        for change in changes("q", &fields(&now), &fields(&after)) {
            prop_assert!(fields(&wanted).contains_key(change.section.as_str()), "{:?}", change);
            prop_assert_ne!(change.before, change.after);
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        for syntax in [Syntax::Toml, Syntax::Yaml, Syntax::Json] {
            let _ = Document::parse(&text, syntax);
        }
    }
}

#[test]
fn mistakes_are_named_with_their_place() {
    let toml = |text: &str| Document::parse(text, Syntax::Toml).unwrap_err().to_string();
    for (text, place, problem) in [
        (
            "[queue.mail]",
            "queue",
            "unknown field `queue`, expected `namespace` or `queues`",
        ),
        (
            "[queues.mail.gate]\nactiv = \"v1\"",
            "queues.mail.gate.activ",
            "`active`",
        ),
        (
            "[queues.mail.gate]\npercent = \"10\"",
            "queues.mail.gate.percent",
            "string",
        ),
        (
            "[queues.mail.gate]\npercent = 101",
            "queues.mail.gate.percent",
            "0 to 100",
        ),
        (
            "[queues.mail.gate]\npins = {\"a b\" = \"v1\"}",
            "queues.mail.gate.pins",
            "space",
        ),
        (
            "[queues.mail.retry]\nfirst = \"2m\"\nlongest = \"1m\"",
            "queues.mail.retry",
            "more than longest",
        ),
        (
            "[queues.mail.retry]\nmax_attempts = 0",
            "queues.mail.retry",
            "max_attempts",
        ),
        ("[queues.mail.limits]\nrate = \"fast\"", "queues.mail.limits", "100/s"),
        ("[queues.mail.limits]\ndead = -1", "queues.mail.limits.dead", "-1"),
        ("[queues.mail.rollout]\nbake = 3", "queues.mail.rollout", "bake"),
        (
            "[queues.mail.schedules.n]\ncron = \"x\"\npayload = 1",
            "queues.mail.schedules.n",
            "cron",
        ),
        (
            "[queues.mail.schedules.n]\ncron = \"@daily\"",
            "queues.mail.schedules.n",
            "payload",
        ),
        ("[queues.\"a b\"]", "queues.a b", "A-Z"),
        ("namespace = \"a b\"", "namespace", "A-Z"),
        ("a = 1\n[queues.mail", "", "line 2"),
        ("[queues.mail.gate]\nactive = 2026-01-01", "", "in quotes"),
    ] {
        let error = toml(text);
        assert!(error.starts_with(place) && error.contains(problem), "{text}: {error}");
    }
    let yaml = Document::parse("queues:\n  mail:\n    gate: {active: v1, active: v2}", Syntax::Yaml).unwrap_err();
    assert!(yaml.to_string().contains("duplicate"), "{yaml}");
    assert_eq!(Document::parse("", Syntax::Yaml), Ok(Document::default()));
    let huge = " ".repeat(crate::config::document::MAX_DOCUMENT + 1);
    assert!(toml(&huge).contains("the limit is 1048576"));
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (was, is) in ('a'..'i').zip('b'..='i') {
        text.push_str(&format!(
            "{is}: &{is} [*{was}, *{was}, *{was}, *{was}, *{was}, *{was}, *{was}, *{was}]\n"
        ));
    }
    assert!(Document::parse(&text, Syntax::Yaml).is_err());
}
