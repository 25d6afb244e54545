//! The document: the configuration of a namespace's queues, as people write it and `export` prints it. Pure.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::{Map, Value};
use switchback_common::{
    Namespace, TaskType, Version,
    retry::RetryRule,
    schedule::{MAX_SCHEDULES, Missed, Schedule, ScheduleName, Source},
    store::{
        limits::{Limit, Setting},
        policy::MAX_POLICY_BYTES,
    },
};
use switchback_gates::Share;

use crate::config::rollout::validate_rollout;

/// Longest document, rendered or not: 1 MiB.
pub(crate) const MAX_DOCUMENT: usize = 1024 * 1024;
/// Most queues of one document. Larger namespaces are exported and applied in parts.
const MAX_QUEUES: usize = 10_000;
/// Most pins, and most targets, of a gate, as seal has it.
const MAX_PINS: usize = 1_000;
const MAX_TARGETS: usize = 100;

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Syntax {
    Toml,
    Yaml,
    Json,
}

impl Syntax {
    /// By the ending of a file's name; one more ending, for templates, does not count.
    pub(crate) fn of(path: &std::path::Path) -> Option<Self> {
        let path = match is_template(path) {
            true => path.with_extension(""),
            false => path.to_owned(),
        };
        match path.extension()?.to_str()? {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Whether a file's name says that it is a template.
pub(crate) fn is_template(path: &std::path::Path) -> bool {
    path.extension()
        .is_some_and(|ending| ending == "j2" || ending == "jinja")
}

/// What is configured. A queue that is not named is left alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    #[serde(default)]
    pub(crate) queues: BTreeMap<String, QueueDoc>,
}

/// One queue. A section that is not there is left alone; of the gate, a field that is not there; any other section that
/// is there is all there is to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueueDoc {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gate: Option<GateDoc>,
    /// Checked by [`validate_rollout`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rollout: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<RetryRule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<LimitsDoc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) schedules: Option<BTreeMap<String, ScheduleDoc>>,
}

/// The gate. A new field of the human hash has its place here, in [`GateDoc::fields`], `diff::merged` and `state::gate_doc`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GateDoc {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) active: Option<Version>,
    /// Empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) candidate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) percent: Option<Percent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pins: Option<BTreeMap<String, Version>>,
    /// `header:value` to version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) targets: Option<BTreeMap<String, Version>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) paused: Option<bool>,
}

impl GateDoc {
    /// The fields that are named, as they are written to the human hash.
    pub(crate) fn fields(&self) -> Vec<(&'static str, String)> {
        let pairs = |pairs: &BTreeMap<String, Version>| {
            let pairs: Vec<String> = pairs
                .iter()
                .map(|(what, version)| format!("{what}={version}"))
                .collect();
            pairs.join(" ")
        };
        let fields = [
            ("active", self.active.as_ref().map(ToString::to_string)),
            ("candidate", self.candidate.clone()),
            ("percent", self.percent.map(|percent| percent.0.to_string())),
            ("pins", self.pins.as_ref().map(pairs)),
            ("targets", self.targets.as_ref().map(pairs)),
            (
                "paused",
                self.paused.map(|paused| if paused { "1" } else { "0" }.to_owned()),
            ),
        ];
        let named = |(name, value): (&'static str, Option<String>)| value.map(|value| (name, value));
        fields.into_iter().filter_map(named).collect()
    }
}

/// A share in percent: a number with up to three decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Percent(pub(crate) Share);

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.thousandths() {
            whole if whole % 1_000 == 0 => serializer.serialize_u32(whole / 1_000),
            _ => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        let share = Share::parse(&number.to_string());
        share.map(Self).ok_or_else(|| {
            D::Error::custom(format!(
                "{number} is no share: write 0 to 100, with at most three decimals"
            ))
        })
    }
}

/// Limits. Absent: the default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitsDoc {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dead: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) waiting: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) concurrency: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate_per_key: Option<String>,
}

impl LimitsDoc {
    pub(crate) fn of(settings: impl IntoIterator<Item = Setting>) -> Self {
        let mut out = Self::default();
        for setting in settings {
            let text = setting.to_string();
            let number = text.parse().ok();
            match setting.limit() {
                Limit::Dead => out.dead = number,
                Limit::Waiting => out.waiting = number,
                Limit::Concurrency => out.concurrency = number,
                Limit::Rate => out.rate = Some(text),
                Limit::RatePerKey => out.rate_per_key = Some(text),
            }
        }
        out
    }

    /// As it is written to the hash; `None`: not there.
    pub(crate) fn text(&self, limit: Limit) -> Option<String> {
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        match limit {
            Limit::Dead => number(self.dead),
            Limit::Waiting => number(self.waiting),
            Limit::Concurrency => number(self.concurrency),
            Limit::Rate => self.rate.clone(),
            Limit::RatePerKey => self.rate_per_key.clone(),
        }
    }
}

/// A schedule. Its payload is written as a value, or, where each byte counts, as JSON text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScheduleDoc {
    pub(crate) cron: String,
    #[serde(default = "utc")]
    pub(crate) time_zone: String,
    #[serde(default)]
    pub(crate) missed: Missed,
    #[serde(default)]
    pub(crate) paused: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payload_json: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<Value>,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl ScheduleDoc {
    pub(crate) fn of(schedule: &Schedule) -> Self {
        let text = schedule.payload.get();
        let value = serde_json::from_str(text).ok().filter(survives);
        Self {
            cron: schedule.cron.clone(),
            time_zone: schedule.time_zone.clone(),
            missed: schedule.missed,
            paused: schedule.paused,
            key: schedule.key.clone(),
            payload_json: value.is_none().then(|| text.to_owned()),
            payload: value,
        }
    }

    /// The definition, checked. From now on no code changes it.
    pub(crate) fn schedule(&self) -> Result<Schedule, String> {
        let payload = match (&self.payload, &self.payload_json) {
            (Some(value), None) => serde_json::value::to_raw_value(value),
            (None, Some(json)) => serde_json::value::RawValue::from_string(json.trim().to_owned()),
            _ => return Err("give its tasks a payload, or payload_json: one of them".to_owned()),
        };
        let mut out = Schedule::new(&self.cron, &());
        out.payload = payload.map_err(|e| format!("payload_json is not JSON: {e}"))?;
        out = out.time_zone(&self.time_zone).missed(self.missed);
        out.key = self.key.clone().filter(|key| !key.is_empty());
        out.paused = self.paused;
        out.source = Source::Cli;
        out.check().map_err(|e| e.to_string())?;
        Ok(out)
    }

    /// The payload in one spelling: equal payloads are equal.
    pub(crate) fn canonical_payload(&self) -> Value {
        match (&self.payload, &self.payload_json) {
            (Some(value), _) => value.clone(),
            (None, Some(json)) => match serde_json::from_str(json) {
                Ok(value) if survives(&value) => value,
                _ => Value::String(json.trim().to_owned()),
            },
            (None, None) => Value::Null,
        }
    }
}

/// Whether a value is the same after every syntax: no null, and no number that one of them would spell in another way.
fn survives(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(_) | Value::String(_) => true,
        Value::Number(number) => number.as_i64().is_some(),
        Value::Array(items) => items.iter().all(survives),
        Value::Object(fields) => fields.values().all(survives),
    }
}

/// What is wrong with a document, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Dotted; empty for the document as a whole.
    pub(crate) path: String,
    pub(crate) problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" | "." => f.write_str(&self.problem),
            path => write!(f, "{path}: {}", self.problem),
        }
    }
}

impl Document {
    /// Reads and checks a document.
    pub(crate) fn parse(text: &str, syntax: Syntax) -> Result<Self, Mistake> {
        let whole = |problem: String| Mistake {
            path: String::new(),
            problem,
        };
        if text.len() > MAX_DOCUMENT {
            return Err(whole(format!(
                "it is {} bytes, the limit is {MAX_DOCUMENT}",
                text.len()
            )));
        }
        let value = value(text, syntax).map_err(whole)?;
        // An empty YAML document is null.
        let value = if value.is_null() {
            Value::Object(Map::new())
        } else {
            value
        };
        let document: Self = serde_path_to_error::deserialize(value).map_err(|e| Mistake {
            path: e.path().to_string(),
            problem: e.inner().to_string(),
        })?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), Mistake> {
        let at = |path: String, problem: String| Mistake { path, problem };
        if let Some(name) = &self.namespace {
            Namespace::new(name).map_err(|e| at("namespace".to_owned(), e.to_string()))?;
        }
        if self.queues.len() > MAX_QUEUES {
            let problem = format!("{} queues, the limit is {MAX_QUEUES}", self.queues.len());
            return Err(at("queues".to_owned(), problem));
        }
        for (name, queue) in &self.queues {
            let path = format!("queues.{name}");
            TaskType::new(name).map_err(|e| at(path.clone(), e.to_string()))?;
            queue
                .check()
                .map_err(|mistake| at(format!("{path}.{}", mistake.path), mistake.problem))?;
        }
        Ok(())
    }

    /// The text of the document, for people and for `apply`.
    pub(crate) fn render(&self, syntax: Syntax) -> Result<String, String> {
        match syntax {
            Syntax::Toml => toml::to_string_pretty(self).map_err(|e| e.to_string()),
            Syntax::Yaml => serde_saphyr::to_string(self).map_err(|e| e.to_string()),
            Syntax::Json => serde_json::to_string(self).map_err(|e| e.to_string()),
        }
    }
}

impl QueueDoc {
    fn check(&self) -> Result<(), Mistake> {
        let at = |path: &str, problem: String| Mistake {
            path: path.to_owned(),
            problem,
        };
        if let Some(gate) = &self.gate {
            gate.check()?;
        }
        if let Some(retry) = &self.retry {
            retry.check().map_err(|problem| at("retry", problem))?;
        }
        if let Some(rollout) = &self.rollout {
            let value = Value::Object(rollout.clone());
            validate_rollout(&value).map_err(|problem| at("rollout", problem))?;
            let size = value.to_string().len();
            if size > MAX_POLICY_BYTES {
                let problem = format!("it is {size} bytes, the limit is {MAX_POLICY_BYTES}");
                return Err(at("rollout", problem));
            }
        }
        if let Some(limits) = &self.limits {
            for limit in Limit::ALL {
                if let Some(text) = limits.text(limit) {
                    limit.parse(&text).map_err(|problem| at("limits", problem))?;
                }
            }
        }
        let schedules = self.schedules.iter().flatten();
        for (name, schedule) in schedules {
            let path = format!("schedules.{name}");
            name.parse::<ScheduleName>().map_err(|e| at(&path, e.to_string()))?;
            schedule.schedule().map_err(|problem| at(&path, problem))?;
        }
        match self.schedules.as_ref().map_or(0, BTreeMap::len) {
            n if n > MAX_SCHEDULES => Err(at("schedules", format!("{n} of them, the limit is {MAX_SCHEDULES}"))),
            _ => Ok(()),
        }
    }
}

impl GateDoc {
    fn check(&self) -> Result<(), Mistake> {
        let at = |path: &str, problem: String| Mistake {
            path: path.to_owned(),
            problem,
        };
        if let Some(name) = self.candidate.as_ref().filter(|name| !name.is_empty()) {
            Version::new(name).map_err(|e| at("gate.candidate", e.to_string()))?;
        }
        for (path, pairs, most) in [
            ("gate.pins", &self.pins, MAX_PINS),
            ("gate.targets", &self.targets, MAX_TARGETS),
        ] {
            let pairs = pairs.iter().flatten();
            // A space would make two pins of one.
            let odd = |key: &&String| key.is_empty() || key.contains(char::is_whitespace);
            if let Some(key) = pairs.clone().map(|(key, _)| key).find(odd) {
                return Err(at(path, format!("{key:?} is no key: it is empty, or has a space")));
            }
            let n = pairs.count();
            if n > most {
                return Err(at(path, format!("{n} of them, the limit is {most}")));
            }
        }
        Ok(())
    }
}

/// Reads text of any syntax.
pub(crate) fn value(text: &str, syntax: Syntax) -> Result<Value, String> {
    match syntax {
        // TOML's dates would be objects of its parser's own.
        Syntax::Toml => toml::from_str(text).map_err(|e| place(text, &e)).and_then(json_of),
        Syntax::Yaml => serde_saphyr::from_str(text).map_err(|e| first_line(&e.to_string())),
        Syntax::Json => serde_json::from_str(text).map_err(|e| e.to_string()),
    }
}

fn json_of(value: toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(truth) => Value::Bool(truth),
        toml::Value::Datetime(at) => return Err(format!("{at} is a date: write it as text, in quotes")),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(json_of).collect::<Result<_, _>>()?),
        toml::Value::Table(fields) => {
            let fields = fields.into_iter().map(|(name, value)| Ok((name, json_of(value)?)));
            Value::Object(fields.collect::<Result<_, String>>()?)
        }
    })
}

/// Line, column and problem, without the excerpt that the parser would print.
fn place(text: &str, error: &toml::de::Error) -> String {
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return error.message().to_owned();
    };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_end_matches(':').to_owned()
}
