//! What a rollout is asked to do: its steps, its patience, its guard. Read from files, flags and Redis. Pure.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use switchback_common::Version;

use crate::{gate::Share, guard::GuardConfig};

/// Most steps of one rollout.
pub const MAX_STEPS: usize = 20;
const MAX_BAKE: Duration = Duration::from_secs(7 * 24 * 3600);
const MAX_WATCH: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a rollout is asked to do. All of it has defaults; unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    /// The version to try. Files may name it; the record keeps it apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Version>,
    /// The candidate's shares, one after the other. Defaults to 1, 5, 10, 25, 50, 100 %. After 100 the candidate is the
    /// active version; a rollout that ends below waits there for a person.
    pub steps: Vec<StepSpec>,
    /// How long each step is watched at least. Defaults to 2 m.
    #[serde(with = "length")]
    pub bake: Duration,
    /// First attempts of the candidate that each step needs at least. Defaults to 300.
    pub min_samples: u64,
    /// How many times its bake a step may take to get its samples, before it is held. Defaults to 2.
    pub extend: f64,
    /// How long the guard watches on after 100 %. Defaults to 24 h.
    #[serde(with = "length")]
    pub watch: Duration,
    /// What becomes of attempts that run on the candidate when it is rolled back. Defaults to `finish`.
    pub inflight: Inflight,
    /// Live workers that must have the candidate; with fewer the rollout is held. Defaults to 1.
    pub min_workers: usize,
    /// The statistics.
    pub guard: GuardConfig,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSpec {
    /// The candidate's share.
    pub percent: Share,
    /// How long it is watched, if not as long as the others.
    pub bake: Option<Duration>,
    /// How many samples it needs, if not as many as the others.
    pub min_samples: Option<u64>,
}

/// What becomes of attempts that run on a withdrawn version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inflight {
    /// They finish, and their results count.
    #[default]
    Finish,
    /// They are told to stop, and run again.
    Cancel,
    /// Their results are refused, and they run again.
    Revoke,
}

impl Inflight {
    /// The word in the gate.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finish => "finish",
            Self::Cancel => "cancel",
            Self::Revoke => "revoke",
        }
    }
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            to: None,
            steps: [1, 5, 10, 25, 50, 100].map(StepSpec::of_percent).to_vec(),
            bake: Duration::from_secs(120),
            min_samples: 300,
            extend: 2.0,
            watch: Duration::from_secs(24 * 3600),
            inflight: Inflight::Finish,
            min_workers: 1,
            guard: GuardConfig::default(),
        }
    }
}

/// A rollout that could not go as it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSpec(String);

impl Spec {
    /// Whether a rollout can go as it says.
    ///
    /// # Errors
    /// What is wrong with it, first things first.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        let bad = |text: String| Err(InvalidSpec(text));
        if self.steps.is_empty() {
            return bad("steps: there is none; write e.g. 1,10,50,100".to_owned());
        }
        if self.steps.len() > MAX_STEPS {
            return bad(format!("steps: {} are more than {MAX_STEPS}", self.steps.len()));
        }
        for pair in self.steps.windows(2) {
            if pair[1].percent <= pair[0].percent {
                let (a, b) = (pair[0].percent, pair[1].percent);
                return bad(format!(
                    "steps: {b} % after {a} %; each must be more than the one before"
                ));
            }
        }
        if self.steps[0].percent == Share::NONE {
            return bad("steps: 0 % is no step; the first must be more".to_owned());
        }
        let bakes = self.steps.iter().filter_map(|step| step.bake).chain([self.bake]);
        for bake in bakes {
            if bake.is_zero() || bake > MAX_BAKE {
                return bad(format!("bake: {bake:?} is not from 1ms to 7d"));
            }
        }
        if self.watch > MAX_WATCH {
            return bad(format!("watch: {:?} is longer than 30d", self.watch));
        }
        let samples = self
            .steps
            .iter()
            .filter_map(|step| step.min_samples)
            .chain([self.min_samples]);
        for samples in samples {
            if samples == 0 || samples > 1_000_000_000 {
                return bad(format!("min_samples: {samples} is not from 1 to 1000000000"));
            }
        }
        if !(1.0..=100.0).contains(&self.extend) {
            return bad(format!("extend: {} is not from 1 to 100", self.extend));
        }
        if self.min_workers == 0 || self.min_workers > 100_000 {
            return bad(format!("min_workers: {} is not from 1 to 100000", self.min_workers));
        }
        self.guard.validate().map_err(|e| InvalidSpec(e.to_string()))
    }

    /// How long step `n` is watched.
    #[must_use]
    pub fn bake_of(&self, n: usize) -> Duration {
        self.steps.get(n).and_then(|step| step.bake).unwrap_or(self.bake)
    }

    /// How many samples step `n` needs.
    #[must_use]
    pub fn samples_of(&self, n: usize) -> u64 {
        self.steps
            .get(n)
            .and_then(|step| step.min_samples)
            .unwrap_or(self.min_samples)
    }

    /// The share of step `n`; of the last one beyond.
    #[must_use]
    pub fn share_of(&self, n: usize) -> Share {
        let step = self.steps.get(n).or_else(|| self.steps.last());
        step.map_or(Share::NONE, |step| step.percent)
    }

    /// Reads `1,5,10,100`.
    ///
    /// # Errors
    /// What is not a percentage.
    pub fn parse_steps(text: &str) -> Result<Vec<StepSpec>, InvalidSpec> {
        let step = |word: &str| {
            let percent = Share::parse(word.trim().trim_end_matches('%').trim());
            percent.map(StepSpec::plain).ok_or_else(|| not_a_percentage(word))
        };
        text.split(',').map(step).collect()
    }
}

fn not_a_percentage(text: &str) -> InvalidSpec {
    let text: String = text.chars().take(40).collect();
    InvalidSpec(format!("steps: {text:?} is not a percentage from 0.001 to 100"))
}

impl StepSpec {
    fn of_percent(percent: u32) -> Self {
        Self::plain(Share::parse(&percent.to_string()).unwrap_or(Share::ALL))
    }

    /// A step of this share and nothing of its own.
    #[must_use]
    pub fn plain(percent: Share) -> Self {
        Self {
            percent,
            bake: None,
            min_samples: None,
        }
    }
}

impl Serialize for StepSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if (self.bake, self.min_samples) == (None, None) {
            return self.percent.serialize(serializer);
        }
        #[derive(Serialize)]
        struct Long {
            percent: Share,
            #[serde(skip_serializing_if = "Option::is_none")]
            bake: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            min_samples: Option<u64>,
        }
        let long = Long {
            percent: self.percent,
            bake: self.bake.map(length::show),
            min_samples: self.min_samples,
        };
        long.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StepSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StepVisitor)
    }
}

/// `10`, `0.5`, `"10 %"`, or `{percent = 10, bake = "5m", min_samples = 1000}`.
struct StepVisitor;

impl<'de> de::Visitor<'de> for StepVisitor {
    type Value = StepSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a percentage, or a table with percent, bake, min_samples")
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<StepSpec, E> {
        self.visit_str(&n.to_string())
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<StepSpec, E> {
        self.visit_str(&n.to_string())
    }

    fn visit_f64<E: de::Error>(self, n: f64) -> Result<StepSpec, E> {
        self.visit_str(&n.to_string())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<StepSpec, E> {
        let percent = Share::parse(text.trim().trim_end_matches('%').trim());
        percent
            .map(StepSpec::plain)
            .ok_or_else(|| E::custom(not_a_percentage(text)))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<StepSpec, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Long {
            percent: StepSpec,
            bake: Option<String>,
            min_samples: Option<u64>,
        }
        let long = Long::deserialize(de::value::MapAccessDeserializer::new(map))?;
        let bake = long.bake.as_deref().map(length::read).transpose();
        Ok(StepSpec {
            percent: long.percent.percent,
            bake: bake.map_err(de::Error::custom)?,
            min_samples: long.min_samples,
        })
    }
}

/// Lengths of time as people write them: `2m`, `24h`, `7d`.
mod length {
    use std::time::Duration;

    use jiff::{SignedDuration, Span, SpanRelativeTo};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn show(length: Duration) -> String {
        SignedDuration::try_from(length).map_or_else(|_| "0s".to_owned(), |length| format!("{length:#}"))
    }

    pub(super) fn read(text: &str) -> Result<Duration, String> {
        let in_days = |span: Span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok();
        let length = text.parse::<SignedDuration>().ok();
        let length = length.or_else(|| text.parse().ok().and_then(in_days));
        length
            .and_then(|length| Duration::try_from(length).ok())
            .ok_or_else(|| format!("{text:?} is no length of time such as 30s, 2m, 24h or 7d"))
    }

    pub(super) fn serialize<S: Serializer>(length: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&show(*length))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        read(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Result<Spec, String> {
        let spec: Spec = serde_json::from_str(json).map_err(|e| e.to_string())?;
        spec.validate().map_err(|e| e.to_string())?;
        Ok(spec)
    }

    #[test]
    fn what_is_not_said_is_the_default_and_reads_back() {
        let long = r#"{"steps": [0.5, "10 %", {"percent": 50, "bake": "5m", "min_samples": 9}, 100], "watch": "7d", "inflight": "revoke"}"#;
        for json in ["{}", long] {
            let spec = spec(json).unwrap();
            let text = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec, "{text}");
        }
        let spec = spec(long).unwrap();
        assert_eq!(
            (spec.bake_of(0), spec.bake_of(2)),
            (Duration::from_secs(120), Duration::from_secs(300))
        );
        assert_eq!((spec.samples_of(2), spec.samples_of(3)), (9, 300));
        assert_eq!(spec.share_of(0).to_string(), "0.5");
        assert_eq!(spec.watch, Duration::from_secs(7 * 86_400));
    }

    #[test]
    fn what_cannot_go_is_refused_with_its_reason() {
        for (json, why) in [
            (r#"{"steps": [10, 5]}"#, "5 % after 10 %"),
            (r#"{"steps": [10, 10]}"#, "10 % after 10 %"),
            (r#"{"steps": [0, 10]}"#, "0 % is no step"),
            (r#"{"steps": [50, 101]}"#, "\"101\" is not a percentage"),
            (r#"{"steps": [-1]}"#, "is not a percentage"),
            (r#"{"steps": []}"#, "there is none"),
            (r#"{"stepz": [1]}"#, "unknown field `stepz`"),
            (r#"{"steps": [{"percent": 1, "soak": "1m"}]}"#, "unknown field `soak`"),
            (r#"{"bake": "soon"}"#, "is no length of time"),
            (r#"{"bake": "8d"}"#, "7d"),
            (r#"{"bake": "0s"}"#, "7d"),
            (r#"{"min_samples": 0}"#, "min_samples"),
            (r#"{"extend": 0.5}"#, "extend"),
            (r#"{"min_workers": 0}"#, "min_workers"),
            (r#"{"inflight": "kill"}"#, "unknown variant"),
            (r#"{"guard": {"alpha": 5}}"#, "alpha"),
        ] {
            let error = spec(json).unwrap_err();
            assert!(error.contains(why), "{json}: {error}");
        }
        let many: Vec<u32> = (1..=21).collect();
        assert!(
            spec(&format!(r#"{{"steps": {many:?}}}"#))
                .unwrap_err()
                .contains("more than 20")
        );
        assert!(Spec::parse_steps("1,x").is_err());
        assert_eq!(Spec::parse_steps("1, 5%,100").unwrap().len(), 3);
    }
}
