//! What still runs that the gate would not start now: read off what sessions said of themselves. Pure.
//!
//! What a session publishes with a revision is an upper bound from then on: it starts nothing more on what that revision
//! withdrew. Of a session that has not said that it obeys, or whose lease ran out before it did, nobody knows.

use std::collections::BTreeSet;

use serde::Serialize;
use switchback_common::{SessionId, Version, store::session::SessionInfo};

/// Attempts of one session on one version that may still run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The session.
    pub session: SessionId,
    /// Its machine, if its record can be read.
    pub host: Option<String>,
    /// Its process, if its record can be read.
    pub pid: Option<u32>,
    /// The version.
    pub version: Version,
    /// How many, at most; `None`: nobody knows.
    pub attempts: Option<u64>,
    /// Why they count as running.
    pub state: State,
}

/// How a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It lives, obeys the revision, and said so.
    Running,
    /// It lives, and has not said yet that it obeys the revision.
    Unconfirmed,
    /// Its lease ran out, and its tasks are not given to others yet. Its process may still be at it.
    Lost,
}

/// What may still run under `rev` on versions of which `goes_on` does not say that they may start.
#[must_use]
pub fn left(sessions: &[SessionInfo], rev: u64, goes_on: impl Fn(&Version) -> bool) -> Vec<Left> {
    let mut out = Vec::new();
    for session in sessions {
        let obeys = session.rev.is_some_and(|seen| seen >= rev);
        let state = match (session.is_live(), obeys) {
            (false, _) => State::Lost,
            (true, true) => State::Running,
            (true, false) => State::Unconfirmed,
        };
        let said = session.running();
        let has = session.record.iter().flat_map(|record| &record.versions);
        let versions: BTreeSet<&Version> = match obeys {
            true => said
                .iter()
                .filter(|(_, n)| **n > 0)
                .map(|(version, _)| version)
                .collect(),
            false => has.chain(said.keys()).collect(),
        };
        let versions = versions.into_iter().filter(|version| !goes_on(version));
        out.extend(versions.map(|version| Left {
            session: session.id.clone(),
            host: session.record.as_ref().map(|r| r.host.clone()),
            pid: session.record.as_ref().map(|r| r.pid),
            attempts: obeys.then(|| said[version]),
            version: version.clone(),
            state,
        }));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use switchback_common::store::session::SessionRecord;

    use super::*;

    fn session(rev: Option<u64>, running: &str, lease: bool) -> SessionInfo {
        SessionInfo {
            id: SessionId::random(),
            record: Some(SessionRecord {
                host: "here".into(),
                pid: 7,
                build: String::new(),
                versions: vec!["v1".parse().unwrap(), "v2".parse().unwrap()],
                concurrency: 1,
                started_ms: 0,
            }),
            knows_inflight: true,
            rev,
            running: running.into(),
            open: Vec::new(),
            reaping: false,
            lease: lease.then_some(Duration::from_secs(1)),
        }
    }

    fn seen(session: SessionInfo) -> Vec<(String, Option<u64>, State)> {
        let left = left(&[session], 5, |version| version.as_str() == "v1");
        left.into_iter()
            .map(|l| (l.version.to_string(), l.attempts, l.state))
            .collect()
    }

    #[test]
    fn only_what_was_said_under_the_revision_is_known() {
        use State::{Lost, Running, Unconfirmed};
        let v2 = |attempts, state| vec![("v2".to_owned(), attempts, state)];
        assert_eq!(seen(session(Some(5), r#"{"v1":9,"v2":3}"#, true)), v2(Some(3), Running));
        assert_eq!(seen(session(Some(6), r#"{"v1":9}"#, true)), []);
        assert_eq!(
            seen(session(Some(4), "{}", true)),
            v2(None, Unconfirmed),
            "it may start more"
        );
        assert_eq!(seen(session(None, "", true)), v2(None, Unconfirmed));
        // Without a lease a process may still be at it; what it said under the revision still bounds it.
        assert_eq!(seen(session(Some(5), r#"{"v2":1}"#, false)), v2(Some(1), Lost));
        assert_eq!(seen(session(Some(5), "{}", false)), []);
        assert_eq!(seen(session(Some(4), "{}", false)), v2(None, Lost));
        let mut reaped = session(None, "", true);
        reaped.reaping = true;
        assert_eq!(seen(reaped), v2(None, Lost));
        let mut other = session(None, "", false);
        other.record = None;
        assert_eq!(seen(other), [], "who it was, and what it had, nobody can say");
    }
}
