//! Why is nobody reachable? Each thing that a node needs is looked at, in the order in which it needs them,
//! and what is wrong is said with what can be done about it.
//!
//! Nothing is changed: no device is made, no key, and peers are dialed as by a neighbour that says hello and
//! goes. What the node itself knows, if one runs, is given by the caller, who asked its API.

mod machine;
mod peers;
mod ports;

use std::net::Ipv6Addr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use mycelium_wire::identity::PublicKey;
use serde::Serialize;

use crate::config::{Config, Settings};
use crate::key_file::{self, KeyFileError};

/// What was found out about one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub said: String,
    /// What can be done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Perhaps not as it should be.
    Hint,
    /// Nobody is reached, or the node can't start, because of it.
    Problem,
}

/// A node that runs here.
#[derive(Clone, Debug)]
pub struct RunningNode {
    /// Its address.
    pub address: Ipv6Addr,
    /// Its peers: endpoint, and whether there is a link.
    pub peers: Vec<(String, bool)>,
    /// How many routes it has.
    pub route_count: usize,
}

/// The clock can't be right before this: 2025-01-01, in seconds since 1970.
const EARLIEST: u64 = 1_735_689_600;

impl Finding {
    fn good(check: &'static str, said: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, said: said.into(), remedy: None }
    }

    fn hint(check: &'static str, said: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Hint, said: said.into(), remedy: Some(remedy.into()) }
    }

    fn problem(check: &'static str, said: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Problem, said: said.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks at all that a node with these settings needs. Must be called inside a runtime.
pub async fn examine(
    flags: &Settings,
    file: Option<&Path>,
    node: Option<&RunningNode>,
) -> Vec<Finding> {
    let config = Settings::read_file(file).and_then(|file| flags.clone().or(file).check());
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            let said = format!("{:#}", anyhow::Error::from(error));
            return vec![Finding::problem("settings", said, "`mycelium --help` has the rules")];
        }
    };
    let mut findings = vec![running(node)];
    let (key, found) = key(&config, node);
    findings.push(found);
    findings.push(clock(SystemTime::now()));
    findings.extend(machine::examine(&config, key, node));
    findings.extend(ports::examine(&config, node.is_some()));
    findings.extend(peers::examine(&config, key, node).await);
    findings
}

fn running(node: Option<&RunningNode>) -> Finding {
    let Some(node) = node else {
        let remedy = "start it, or say with --api-addr where its API is";
        return Finding::hint("node", "no node answers here", remedy);
    };
    let alive = node.peers.iter().filter(|(_, is_alive)| *is_alive).count();
    let said = format!(
        "a node runs: {}, links to {alive} of {} peers, {} routes",
        node.address,
        node.peers.len(),
        node.route_count
    );
    if alive == 0 {
        return Finding::problem("node", said, "see the findings about peers below");
    }
    Finding::good("node", said)
}

fn key(config: &Config, node: Option<&RunningNode>) -> (Option<PublicKey>, Finding) {
    const CHECK: &str = "key file";
    let path = match config.key_file.clone().map_or_else(key_file::default_path, Ok) {
        Ok(path) => path,
        Err(error) => {
            return (None, Finding::problem(CHECK, error.to_string(), "give --key-file PATH"));
        }
    };
    let key = match key_file::read(&path) {
        Ok(key) => key.public(),
        Err(KeyFileError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let said = format!("{} is not there", path.display());
            return (None, Finding::hint(CHECK, said, "the first start makes it"));
        }
        Err(error) => {
            let remedy = error.hint().unwrap_or("see the error");
            let said = format!("{:#}", anyhow::Error::from(error));
            return (None, Finding::problem(CHECK, said, remedy));
        }
    };
    let finding = match node {
        Some(node) if node.address != key.address() => Finding::hint(
            CHECK,
            format!(
                "{} is the key of {}, not of the node that runs",
                path.display(),
                key.address()
            ),
            "give the same --key-file, or the --api-addr of the other node",
        ),
        _ => Finding::good(CHECK, format!("{}: address {}", path.display(), key.address())),
    };
    (Some(key), finding)
}

fn clock(now: SystemTime) -> Finding {
    const CHECK: &str = "clock";
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    if seconds < EARLIEST {
        return Finding::problem(
            CHECK,
            format!("this machine's clock says {seconds} s after 1970, which is long ago"),
            "set the clock: starts are put in order by it, so that a restart is soon believed",
        );
    }
    Finding::good(CHECK, "plausible")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_1970_is_a_problem() {
        assert_eq!(clock(UNIX_EPOCH).verdict, Verdict::Problem);
        assert_eq!(clock(SystemTime::now()).verdict, Verdict::Good);
    }

    #[tokio::test]
    async fn settings_that_make_no_sense_are_the_only_finding() {
        let flags = Settings { peers: vec!["nowhere".to_owned()], ..Settings::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        let findings = examine(&flags, Some(file.path()), None).await;
        assert_eq!((findings.len(), findings[0].check), (1, "settings"));
    }

    #[test]
    fn a_key_file_is_read_missing_or_broken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let config = Settings { key_file: Some(path.clone()), ..Settings::default() };
        let config = config.check().unwrap();
        assert_eq!(key(&config, None).1.verdict, Verdict::Hint);
        std::fs::write(&path, [1; 31]).unwrap();
        assert_eq!(key(&config, None).1.verdict, Verdict::Problem);
        std::fs::write(&path, [1; 32]).unwrap();
        let (public, finding) = key(&config, None);
        assert_eq!(finding.verdict, Verdict::Good);
        let address = public.unwrap().address();
        let node = RunningNode { address, peers: Vec::new(), route_count: 0 };
        assert_eq!(key(&config, Some(&node)).1.verdict, Verdict::Good);
        let other = RunningNode { address: Ipv6Addr::LOCALHOST, ..node };
        assert_eq!(key(&config, Some(&other)).1.verdict, Verdict::Hint);
    }
}
