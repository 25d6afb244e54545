//! Records and blocks that somebody edited: whatever is in them, nobody panics, for a driver that does drives no more.

use proptest::prelude::*;
use switchback_common::envelope::Fields;

use super::*;

const NOW: u64 = 1_790_000_000_000_000;

fn whole(status: &str) -> Fields {
    let spec: Spec = serde_json::from_str(r#"{"steps":[10,100],"guard":{"block_secs":1}}"#).unwrap();
    let (from, to) = ("v1".parse().unwrap(), "v2".parse().unwrap());
    let mut out: Vec<(String, String)> = Record::first_fields(&spec, &from, &to, "b", "alice", "")
        .into_iter()
        .chain(["id", "step_since_us", "looked_us", "at_us"].map(|name| (name, (NOW - 9_000_000).to_string())))
        .chain([
            ("serial", "1".to_owned()),
            ("rev", "2".to_owned()),
            ("events", "1 began\n".to_owned()),
        ])
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let record = Record::parse(&bytes(&out)).unwrap().unwrap();
    for (name, value) in record.fields() {
        out.retain(|(other, _)| other != name);
        out.push((name.to_owned(), value));
    }
    out.retain(|(name, _)| name != "status");
    out.push(("status".to_owned(), status.to_owned()));
    bytes(&out)
}

fn bytes(fields: &[(String, String)]) -> Fields {
    fields
        .iter()
        .map(|(k, v)| (k.clone().into_bytes(), v.clone().into_bytes()))
        .collect()
}

/// Everything that is done with a record.
fn drive(fields: &Fields, block: &Fields, now: u64) {
    let Ok(Some(mut record)) = Record::parse(fields) else {
        return;
    };
    let setting = Setting {
        now_us: now,
        ..Setting::default()
    };
    for later in [0, 3_000_000, 90_000_000] {
        let now = now.saturating_add(later);
        let (first, last) = record.blocks(now);
        assert!(first <= last && last - first < MAX_BLOCKS, "{first} to {last}");
        let blocks: Vec<_> = (first..=last)
            .map(|n| (n, counts(block, &record.from, &record.to)))
            .collect();
        record.observe(now, false, &blocks);
        let verdict = record.verdict();
        let _ = record.is_behind(now);
        for gate in [Gate::new(record.from.clone()), Gate::new(record.to.clone())] {
            let mut gate = gate;
            if gate.active == record.from {
                gate.candidate = Some(record.to.clone());
                gate.percent = record.share();
            }
            let look = Look {
                gate: &gate,
                set_by: "",
                with_to: 1,
                with_from: 1,
                verdict: &verdict,
                short: Some("x"),
                task_type: "mail",
            };
            let action = next(&record, &look);
            let _ = plan(&record, &action, &setting);
            let _ = abort(&record, &gate, false, &setting);
        }
        let _ = (promote(&record, true, &setting), promote(&record, false, &setting));
        let _ = (pause(&record, &setting), resume(&record, &setting));
    }
    let _ = bury(fields, &setting);
}

fn value() -> impl Strategy<Value = String> {
    const ODD: &[&str] = &[
        "",
        "0",
        "1",
        "-1",
        "007",
        "1e9",
        "nan",
        "null",
        "{}",
        "[]",
        "[1]",
        "\"x\"",
        "v1",
        "v2",
        ":x",
        "watching",
        "held",
        "promoted",
        "18446744073709551615",
        "18446744073709551614",
        "9223372036854775807",
        "1790000000000000",
        r#"{"18446744073709551615":{}}"#,
        r#"{"steps":[]}"#,
        r#"{"steps":[0]}"#,
        r#"{"steps":[100]}"#,
        r#"{"steps":[50,10]}"#,
        r#"{"steps":[100,100]}"#,
        r#"{"watch":"9223372036854775807s","bake":"0s","extend":-1,"guard":{"block_secs":0}}"#,
        r#"{"extend":1e308,"bake":"9223372036854775807s"}"#,
        r#"{"guard":{"block_secs":18446744073709551615,"per_key_cap":0,"alpha":0,"beta":1e308}}"#,
        r#"{"guard":{"alpha":-1,"failure_margin":1e308,"burn":{"arl0":0,"p1":0,"p0_floor":0}}}"#,
    ];
    prop_oneof![4 => prop::sample::select(ODD).prop_map(str::to_owned), 1 => ".{0,40}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn whatever_is_in_a_record_nobody_panics(
        status in prop::sample::select(&["running", "paused", "held", "watching", "rolled_back", "odd"]),
        edits in prop::collection::vec((0usize..20, value()), 0..3),
        arms in prop::collection::vec(
            (prop::sample::select(&["v1", "v2"]), prop::sample::select(&["n", "f", "dead", "lost", "t7", "t255", "t0"]), value()), 0..8),
        now in prop_oneof![3 => Just(NOW), 1 => any::<u64>()],
    ) {
        let mut fields = whole(status);
        for (at, value) in edits {
            let at = at % fields.len();
            fields[at].1 = value.into_bytes();
        }
        let block: Fields = arms.into_iter().map(|(v, what, n)| (format!("{v}:{what}").into_bytes(), n.into_bytes())).collect();
        drive(&fields, &block, now);
    }
}

#[test]
fn a_record_of_which_nobody_knows_the_serial_is_invalid() {
    // A step names id and serial as they stand there: one that it misreads is refused as stale for ever.
    for (name, value) in [
        ("serial", "007"),
        ("serial", "x"),
        ("id", "+5"),
        ("id", ""),
        ("serial", "1e3"),
    ] {
        let mut fields = whole("running");
        fields.iter_mut().find(|(k, _)| k == name.as_bytes()).unwrap().1 = value.as_bytes().to_vec();
        let error = Record::parse(&fields).unwrap_err();
        assert_eq!(error.field, name, "{error}");
    }
}
