//! The one place where the default rollout policy of a document is checked. Pure.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use switchback_common::span;
use switchback_gates::Share;

/// Longest bake time and watch: 30 days.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Most steps.
const MAX_STEPS: usize = 100;

/// The keys there are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RolloutPolicy {
    steps: Option<Vec<f64>>,
    bake: Option<String>,
    min_samples: Option<u64>,
    watch: Option<String>,
    inflight: Option<Inflight>,
    /// The guard's own settings.
    guard: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Inflight {
    Finish,
    Cancel,
    Revoke,
}

/// Checks a rollout policy.
pub(crate) fn validate_rollout(json: &Value) -> Result<(), String> {
    let policy: RolloutPolicy = serde_path_to_error::deserialize(json).map_err(|e| match e.path().to_string() {
        path if path == "." => e.inner().to_string(),
        path => format!("{path}: {}", e.inner()),
    })?;
    if let Some(steps) = &policy.steps {
        let shares: Option<Vec<Share>> = steps.iter().map(|step| Share::parse(&step.to_string())).collect();
        let rising = |shares: &Vec<Share>| shares.windows(2).all(|pair| pair[0] < pair[1]);
        let valid = shares.filter(|s| !s.is_empty() && s.len() <= MAX_STEPS && s[0] > Share::NONE && rising(s));
        valid
            .ok_or_else(|| format!("steps must rise, from above 0 to at most 100 percent, and be 1 to {MAX_STEPS}"))?;
    }
    for (name, text) in [("bake", &policy.bake), ("watch", &policy.watch)] {
        if let Some(text) = text {
            let length = span::parse(text).map_err(|problem| format!("{name} is {text:?}: {problem}"))?;
            if length > LONGEST {
                return Err(format!("{name} is {text}, the limit is 30 days"));
            }
        }
    }
    match policy.inflight {
        None | Some(Inflight::Finish | Inflight::Cancel | Inflight::Revoke) => {}
    }
    let _ = (policy.min_samples, policy.guard);
    Ok(())
}

/// The policy as it lies in Redis; empty is none.
pub(crate) fn rollout_of(json: &str) -> Result<Map<String, Value>, String> {
    let bad = |problem: String| format!("the rollout policy makes no sense: {problem}");
    if json.is_empty() {
        return Ok(Map::new());
    }
    let value: Value = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
    validate_rollout(&value).map_err(bad)?;
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(bad("it is no object".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_policy_is_refused_with_its_place() {
        let sound = json!({"steps": [1, 5.5, 100], "bake": "2m", "min_samples": 300, "watch": "24h",
            "inflight": "cancel", "guard": {"alpha": 0.01}});
        assert_eq!(validate_rollout(&sound), Ok(()));
        assert_eq!(validate_rollout(&json!({})), Ok(()));
        for (wrong, why) in [
            (json!({"step": [1]}), "unknown field `step`"),
            (json!({"steps": [5, 1]}), "must rise"),
            (json!({"steps": []}), "must rise"),
            (json!({"steps": [1, 101]}), "must rise"),
            (json!({"steps": ["1"]}), "steps[0]"),
            (json!({"bake": "soon"}), "bake"),
            (json!({"watch": "31d"}), "30 days"),
            (json!({"inflight": "drop"}), "inflight"),
            (json!([1]), "invalid"),
        ] {
            let error = validate_rollout(&wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
