//! The gate of one queue: which version gets which share. Pure.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use switchback_common::{Version, store::gate::GateText};

/// Share of the candidate, in thousandths of a percent: 0 to 100 000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Share(u32);

impl Share {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(100_000);

    /// Reads a percentage such as `10` or `0.5`, with up to three decimals.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || whole.len() > 3 || decimals.len() > 3 || !digits(whole) || !digits(decimals) {
            return None;
        }
        let thousandths: u32 = format!("{decimals:0<3}").parse().ok()?;
        let milli = whole.parse::<u32>().ok()? * 1_000 + thousandths;
        (milli <= Self::ALL.0).then_some(Self(milli))
    }

    /// In thousandths of a percent.
    #[must_use]
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1_000, self.0 % 1_000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl Serialize for Share {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1_000.0)
    }
}

/// A sealed gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gate {
    /// Serves everything that the rest does not.
    pub active: Version,
    /// The version being tried.
    pub candidate: Option<Version>,
    /// The candidate's share.
    pub percent: Share,
    /// Keys that always go to one version.
    pub pins: BTreeMap<String, Version>,
    /// `header:value` of tasks that go to one version, unless their key is pinned.
    pub targets: BTreeMap<String, Version>,
    /// Whether nothing may start.
    pub paused: bool,
}

/// A sealed gate that makes no sense: only scripts write it, so somebody else did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the sealed gate has an invalid {field}: {value:?}; was `gatestate` edited by hand?")]
pub struct InvalidGate {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: String,
}

impl Gate {
    /// A gate that routes everything to `active`.
    #[must_use]
    pub fn new(active: Version) -> Self {
        Self {
            active,
            candidate: None,
            percent: Share::NONE,
            pins: BTreeMap::new(),
            targets: BTreeMap::new(),
            paused: false,
        }
    }

    /// Reads the canonical text that seal wrote.
    ///
    /// # Errors
    /// [`InvalidGate`] when it was not seal that wrote it.
    pub fn parse(text: &GateText) -> Result<Self, InvalidGate> {
        let bad = |field, value: &str| InvalidGate {
            field,
            value: value.chars().take(80).collect(),
        };
        let candidate = match text.candidate.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|_| bad("candidate", name))?),
        };
        let pairs = |field, text: &str| {
            let mut out = BTreeMap::new();
            for pair in text.split_ascii_whitespace() {
                let (name, version) = pair.rsplit_once('=').ok_or_else(|| bad(field, pair))?;
                out.insert(name.to_owned(), version.parse().map_err(|_| bad(field, pair))?);
            }
            Ok(out)
        };
        Ok(Self {
            active: text.active.parse().map_err(|_| bad("active", &text.active))?,
            candidate,
            percent: Share::parse(&text.percent).ok_or_else(|| bad("percent", &text.percent))?,
            pins: pairs("pins", &text.pins)?,
            targets: pairs("targets", &text.targets)?,
            paused: text.paused != "0",
        })
    }

    /// Reads the people's fields as the history keeps them: a JSON object of strings. `None` if it is none.
    #[must_use]
    pub fn from_history(json: &str) -> Option<Self> {
        let mut fields: BTreeMap<String, String> = serde_json::from_str(json).ok()?;
        let mut take = |name: &str, default: &str| fields.remove(name).unwrap_or_else(|| default.to_owned());
        let text = GateText {
            active: take("active", ""),
            candidate: take("candidate", ""),
            percent: take("percent", "0"),
            pins: take("pins", ""),
            targets: take("targets", ""),
            paused: take("paused", "0"),
        };
        Self::parse(&text).ok()
    }

    /// Whether a task may be routed to `version`. A version that is not reachable is withdrawn.
    ///
    /// A pause withdraws nothing: it holds.
    #[must_use]
    pub fn reaches(&self, version: &Version) -> bool {
        let candidate_is = self.candidate.as_ref() == Some(version);
        (self.active == *version && !(self.candidate.is_some() && self.percent == Share::ALL))
            || (candidate_is && self.percent > Share::NONE)
            || self.pins.values().chain(self.targets.values()).any(|to| to == version)
    }

    /// The version that the targets give to a task with these headers: of several that match, the first in byte order.
    #[must_use]
    pub fn target(&self, headers: &BTreeMap<String, String>) -> Option<&Version> {
        if headers.is_empty() {
            return None;
        }
        let matches = |target: &str| {
            let found = target.split_once(':');
            found.is_some_and(|(name, value)| headers.get(name).is_some_and(|is| is == value))
        };
        let mut targets = self.targets.iter();
        targets.find_map(|(target, version)| matches(target).then_some(version))
    }

    /// Every version a task may be routed to, sorted, each once.
    #[must_use]
    pub fn reachable(&self) -> Vec<Version> {
        let mut out: Vec<Version> = [Some(&self.active), self.candidate.as_ref()]
            .into_iter()
            .flatten()
            .chain(self.pins.values())
            .chain(self.targets.values())
            .filter(|version| self.reaches(version))
            .cloned()
            .collect();
        out.sort();
        out.dedup();
        out
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} active", self.active)?;
        if let Some(candidate) = &self.candidate {
            write!(f, ", {candidate} at {} %", self.percent)?;
        }
        if !self.pins.is_empty() {
            write!(f, ", {} pinned", self.pins.len())?;
        }
        if !self.targets.is_empty() {
            write!(f, ", {} targeted", self.targets.len())?;
        }
        if self.paused {
            f.write_str(", paused")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(name: &str) -> Version {
        name.parse().unwrap()
    }

    proptest! {
        #[test]
        fn shares_read_back(milli in 0u32..=100_000) {
            prop_assert_eq!(Share::parse(&Share(milli).to_string()), Some(Share(milli)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}") {
            let _ = Share::parse(&text);
        }
    }

    #[test]
    fn withdrawn_means_not_reachable() {
        let mut gate = Gate::new(version("v1"));
        gate.candidate = Some(version("v2"));
        assert_eq!(gate.reachable(), [version("v1")]);
        gate.percent = Share::parse("0.001").unwrap();
        assert_eq!(gate.reachable(), [version("v1"), version("v2")]);
        gate.percent = Share::ALL;
        assert_eq!(gate.reachable(), [version("v2")]);
        gate.pins.insert("cust-1".into(), version("v1"));
        assert!(gate.reaches(&version("v1")));
        gate.targets.insert("plan:beta".into(), version("v3"));
        assert_eq!(gate.reachable(), [version("v1"), version("v2"), version("v3")]);
        gate.paused = true;
        assert!(gate.reaches(&version("v2")));
    }
}
