//! The one place where the default rollout policy of a document is checked. Pure.

use serde_json::{Map, Value};
use switchback_gates::rollout::Spec;

/// Checks a rollout policy: it is what `rollout start` begins with.
pub(crate) fn validate_rollout(json: &Value) -> Result<(), String> {
    // A sequence would be read as the fields in their order.
    if !json.is_object() {
        return Err("it is no object".to_owned());
    }
    let spec: Spec = serde_path_to_error::deserialize(json).map_err(|e| match e.path().to_string() {
        path if path == "." => e.inner().to_string(),
        path => format!("{path}: {}", e.inner()),
    })?;
    if spec.to.is_some() {
        return Err("to: a policy is for every version; name it when the rollout starts".to_owned());
    }
    spec.validate().map_err(|e| e.to_string())
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
        let sound = json!({"steps": [1, 5.5, {"percent": 20, "bake": "1h"}, "100 %"], "bake": "2m", "min_samples": 300, "extend": 3,
            "watch": "24h", "inflight": "cancel", "min_workers": 2, "guard": {"alpha": 0.01}});
        assert_eq!(validate_rollout(&sound), Ok(()));
        assert_eq!(validate_rollout(&json!({})), Ok(()));
        for (wrong, why) in [
            (json!({"step": [1]}), "unknown field `step`"),
            (json!({"steps": [5, 1]}), "1 % after 5 %"),
            (json!({"steps": []}), "there is none"),
            (json!({"steps": [1, 101]}), "steps[1]: "),
            (json!({"steps": [{"percent": 1, "soak": "1m"}]}), "unknown field `soak`"),
            (json!({"bake": "soon"}), "bake: "),
            (json!({"bake": "8d"}), "7d"),
            (json!({"watch": "31d"}), "30d"),
            (json!({"inflight": "drop"}), "inflight: "),
            (json!({"guard": {"alfa": 1}}), "guard.alfa: "),
            (json!({"guard": {"alpha": 5}}), "alpha"),
            (json!({"guard": 5}), "guard: "),
            (json!({"min_samples": -1}), "min_samples: "),
            (json!({"to": "v2"}), "for every version"),
            (json!([1]), "no object"),
        ] {
            let error = validate_rollout(&wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
