//! Which version runs a task: a pure function of the sealed gate and the task.
//!
//! Because it is pure, where a crashed attempt ran can be computed again from the history.

use std::{collections::BTreeMap, fmt::Write as _};

use sha1::{Digest, Sha1};
use switchback_common::{TaskType, Version};

use crate::gate::{Gate, Share};

/// What is to be done with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Run it on this version.
    Run(&'a Version),
    /// Nothing starts in this queue for now.
    Hold,
}

/// Decides for a task with these headers and this routing key (its `key`, else its id).
///
/// Pins win over targets, and targets over the percent; the percent is sticky: a key stays on its side, and 10 % is a subset of 20 %.
#[must_use]
pub fn decide<'a>(
    gate: &'a Gate,
    task_type: &TaskType,
    headers: &BTreeMap<String, String>,
    routing_key: impl FnOnce() -> String,
) -> Decision<'a> {
    if gate.paused {
        return Decision::Hold;
    }
    let candidate = gate.candidate.as_ref().filter(|_| gate.percent > Share::NONE);
    let targeted = gate.target(headers);
    if gate.pins.is_empty() {
        // The common gates look at no key at all.
        match (targeted, candidate) {
            (Some(version), _) => return Decision::Run(version),
            (None, None) => return Decision::Run(&gate.active),
            (None, Some(candidate)) if gate.percent == Share::ALL => return Decision::Run(candidate),
            (None, Some(_)) => {}
        }
    }
    let key = routing_key();
    if let Some(version) = gate.pins.get(&key).or(targeted) {
        return Decision::Run(version);
    }
    match candidate {
        Some(candidate) if bucket(task_type, candidate, &key) < gate.percent.thousandths() => Decision::Run(candidate),
        _ => Decision::Run(&gate.active),
    }
}

/// Whether a pin or a target decides for such a task, whatever the percent is.
#[must_use]
pub fn is_placed(gate: &Gate, headers: &BTreeMap<String, String>, routing_key: impl FnOnce() -> String) -> bool {
    gate.target(headers).is_some() || (!gate.pins.is_empty() && gate.pins.contains_key(&routing_key()))
}

/// The place of a key between 0 and 99 999: first 32 bits of SHA-1(`type:candidate:key`), scaled.
#[must_use]
pub fn bucket(task_type: &TaskType, candidate: &Version, key: &str) -> u32 {
    let mut salted = String::with_capacity(key.len() + 40);
    let _ = write!(salted, "{task_type}:{candidate}:{key}");
    let digest = Sha1::digest(salted.as_bytes());
    let head = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    u32::try_from((u64::from(head) * 100_000) >> 32).unwrap_or(99_999)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gate(percent: &str) -> Gate {
        let mut gate = Gate::new("v1".parse().unwrap());
        gate.candidate = Some("v2".parse().unwrap());
        gate.percent = Share::parse(percent).unwrap();
        gate
    }

    fn run(gate: &Gate, key: &str) -> String {
        run_with(gate, key, &[])
    }

    fn run_with(gate: &Gate, key: &str, headers: &[(String, String)]) -> String {
        let headers = headers.iter().cloned().collect();
        match decide(gate, &"send_email".parse().unwrap(), &headers, || key.to_owned()) {
            Decision::Run(version) => version.to_string(),
            Decision::Hold => "hold".to_owned(),
        }
    }

    #[test]
    fn buckets_are_what_anyone_can_compute() {
        let task_type = "send_email".parse().unwrap();
        let candidate = "v2".parse().unwrap();
        for (key, expected) in [
            ("cust-0", 17_122),
            ("cust-1", 2_577),
            ("cust-2", 23_171),
            ("order-42", 34_362),
        ] {
            assert_eq!(bucket(&task_type, &candidate, key), expected, "{key}");
        }
    }

    proptest! {
        #[test]
        fn a_larger_share_keeps_every_key_it_had(key in "\\PC{1,20}", a in 0u32..=100, b in 0u32..=100) {
            let (low, high) = (a.min(b), a.max(b));
            if run(&gate(&low.to_string()), &key) == "v2" {
                prop_assert_eq!(run(&gate(&high.to_string()), &key), "v2");
            }
        }

        #[test]
        fn the_ends_are_exact(key in "\\PC{1,20}") {
            prop_assert_eq!(run(&gate("0"), &key), "v1");
            prop_assert_eq!(run(&gate("100"), &key), "v2");
        }

        #[test]
        fn what_is_decided_is_reachable(key in "[a-d]", percent in 0u32..=100, pinned in "[a-d]") {
            let mut gate = gate(&percent.to_string());
            gate.pins.insert(pinned.clone(), "v3".parse().unwrap());
            let version = run(&gate, &key);
            prop_assert!(gate.reaches(&version.parse().unwrap()));
            prop_assert_eq!(version == "v3", key == pinned);
        }

        #[test]
        fn pins_win_over_targets_and_targets_over_the_percent(
            key in "[a-c]", percent in 0u32..=100, pins in proptest::collection::btree_map("[a-c]", "p[1-3]", 0..3),
            targets in proptest::collection::btree_map("[a-c]:[x-z]", "t[1-4]", 0..5),
            headers in proptest::collection::vec(("[a-d]", "[x-z]"), 0..4),
        ) {
            let mut gate = gate(&percent.to_string());
            let alone = run(&gate, &key);
            let parse = |(name, version): (String, String)| (name, version.parse().unwrap());
            gate.pins = pins.clone().into_iter().map(parse).collect();
            gate.targets = targets.clone().into_iter().map(parse).collect();
            let version = run_with(&gate, &key, &headers);
            prop_assert!(gate.reaches(&version.parse().unwrap()), "what is decided is reachable");
            let headers: BTreeMap<String, String> = headers.into_iter().collect();
            let is = |target: &str| headers.iter().any(|(name, value)| format!("{name}:{value}") == target);
            // In byte order: the first that matches.
            let targeted = targets.iter().find(|(target, _)| is(target)).map(|(_, version)| version);
            let expected = pins.get(&key).or(targeted).unwrap_or(&alone);
            prop_assert_eq!(&version, expected);
            let placed = pins.contains_key(&key) || targeted.is_some();
            prop_assert_eq!(is_placed(&gate, &headers, || key.clone()), placed);
        }
    }

    #[test]
    fn a_target_is_an_exact_header() {
        let mut gate = gate("0");
        gate.targets.insert("plan:beta".into(), "v2".parse().unwrap());
        gate.targets.insert("url:http://x=1:80".into(), "v3".parse().unwrap());
        let with = |name: &str, value: &str| run_with(&gate, "any", &[(name.to_owned(), value.to_owned())]);
        assert_eq!(with("plan", "beta"), "v2");
        for (name, value) in [
            ("plan", "Beta"),
            ("Plan", "beta"),
            ("plan", "beta2"),
            ("plan", ""),
            ("plan:beta", ""),
            ("pla", "n:beta"),
        ] {
            assert_eq!(with(name, value), "v1", "{name}: {value}");
        }
        assert_eq!(with("url", "http://x=1:80"), "v3", "the name ends at the first colon");
    }

    #[test]
    fn a_share_is_about_its_size() {
        let gate = gate("10");
        let hits = (0..10_000).filter(|n| run(&gate, &format!("key-{n}")) == "v2").count();
        assert!((900..1_100).contains(&hits), "{hits}");
    }

    #[test]
    fn a_pause_holds_everything() {
        let mut gate = gate("50");
        gate.paused = true;
        assert_eq!(run(&gate, "any"), "hold");
    }
}
