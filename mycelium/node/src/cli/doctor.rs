//! `mycelium doctor`: why nobody is reached, and what can be done about it.

use clap::Args;
use mycelium_node::config::Settings;
use mycelium_node::doctor::{self, Finding, RunningNode, Verdict};
use serde_json::{Value, json};
use std::path::Path;

use crate::cli::http::Client;
use crate::cli::node::Output;

/// Find out why nobody is reached, and what can be done about it
///
/// Looks at the key file, the device, the route to it, ports and who holds them, the clock, and each
/// peer: its name, its address, a connection to it, and who answers. Takes the settings that a start
/// would take, so give the same flags before `doctor`, or the same --config-file. Changes nothing.
///
/// Exit code: 0 when there is no problem, 1 when there is one.
#[derive(Args)]
pub(crate) struct DoctorArguments {
    /// Look at these peers, instead of those of the settings
    #[arg(value_name = "ENDPOINT")]
    peers: Vec<String>,
    #[command(flatten)]
    output: Output,
}

/// There are some, which were said.
#[derive(Debug, thiserror::Error)]
#[error("there are problems")]
pub(crate) struct Problems;

pub(crate) fn run(
    arguments: &DoctorArguments,
    settings: &Settings,
    file: Option<&Path>,
    client: &Client,
) -> anyhow::Result<()> {
    let mut settings = settings.clone();
    if !arguments.peers.is_empty() {
        settings.peers.clone_from(&arguments.peers);
    }
    let node = client.get("/admin/status").ok().and_then(|status| running(&status));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(doctor::examine(&settings, file, node.as_ref()));
    runtime.shutdown_background();
    let problem_count =
        findings.iter().filter(|finding| finding.verdict == Verdict::Problem).count();
    if arguments.output.json {
        let all = json!({ "problems": problem_count, "findings": findings });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        findings.iter().for_each(|finding| println!("{}", shown(finding)));
        println!("{}", summary(problem_count));
    }
    if problem_count == 0 { Ok(()) } else { Err(Problems.into()) }
}

/// What the API says of the node that runs here.
fn running(status: &Value) -> Option<RunningNode> {
    let peer = |peer: &Value| {
        let endpoint = peer["endpoint"].as_str()?.to_owned();
        Some((endpoint, peer["connectionState"] == "alive"))
    };
    let route_count = status["routeCounts"]["selected"].as_u64()?;
    Some(RunningNode {
        address: status["node"]["nodeIp"].as_str()?.parse().ok()?,
        peers: status["peers"].as_array()?.iter().filter_map(peer).collect(),
        route_count: usize::try_from(route_count).ok()?,
    })
}

fn shown(finding: &Finding) -> String {
    let mark = match finding.verdict {
        Verdict::Good => "ok     ",
        Verdict::Hint => "hint   ",
        Verdict::Problem => "PROBLEM",
    };
    let line = format!("{mark}  {}: {}", finding.check, finding.said);
    match &finding.remedy {
        Some(remedy) => format!("{line}\n         -> {remedy}"),
        None => line,
    }
}

fn summary(problem_count: usize) -> String {
    match problem_count {
        0 => "No problem found.".to_owned(),
        1 => "1 problem found.".to_owned(),
        count => format!("{count} problems found."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_says_is_understood_or_left_alone() {
        let status = json!({
            "node": { "nodeIp": "400::1" },
            "routeCounts": { "selected": 7 },
            "peers": [
                { "endpoint": "tcp://192.0.2.1:9651", "connectionState": "alive" },
                { "endpoint": "tcp://192.0.2.2:9651", "connectionState": "dead" },
            ],
        });
        let node = running(&status).unwrap();
        assert_eq!((node.route_count, node.peers.len(), node.peers[0].1), (7, 2, true));
        assert!(running(&json!({})).is_none());
    }
}
