//! `hostd status`: how the node that runs here is, asked over its socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use hostd_daemon::Config;
use serde_json::Value;

use crate::CONFIG;

/// Bytes of an answer.
const ANSWER_SIZE_MAX: u64 = 64 << 20;
/// How long the node may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Say how the node that runs here is
#[derive(Args)]
pub(crate) struct StatusArguments {
    /// Its socket; the configuration says where it is if absent
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print metrics, as Prometheus reads them
    #[arg(long, conflicts_with = "json")]
    metrics: bool,
}

pub(crate) fn status(arguments: StatusArguments) -> anyhow::Result<()> {
    let StatusArguments { socket, config, json, metrics } = arguments;
    let socket = match socket {
        Some(socket) => socket,
        None => Config::read(&config)?.status_path(),
    };
    if metrics {
        print!("{}", ask(&socket, "/metrics")?);
        return Ok(());
    }
    let text = ask(&socket, "/status")?;
    let status: Value = serde_json::from_str(&text).context("the node answers with no JSON")?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        print!("{}", described(&status, now.as_secs()));
    }
    Ok(())
}

/// Asks for a page (RFC 9112), and returns what is on it.
fn ask(socket: &Path, page: &str) -> anyhow::Result<String> {
    let shown = || format!("{}: no node tells its status there", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(shown)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
    // Version 1.0, so that the answer comes in one piece and ends with the connection.
    let request = format!("GET {page} HTTP/1.0\r\nhost: hostd\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_SIZE_MAX).read_to_end(&mut answer).context("the node does not answer")?;
    let answer = String::from_utf8(answer).context("the node answers with no text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the node answers with no page")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "the node answers with status {status}: {}", body.trim());
    if body.is_empty() {
        bail!("the node answers with nothing");
    }
    Ok(body.to_owned())
}

/// How long something lasts, in the unit in which a person would say it.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A status as people read it at a time, in seconds since 1970.
fn described(status: &Value, now: u64) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut lines = vec![
        format!("hostd    {}", text(&status["version"])),
        format!("account  {}", text(&status["account"])),
        format!("farm     {}", text(&status["farm_id"])),
    ];
    let node = &status["node"];
    if node.is_null() {
        lines.push(format!("no node: {}", text(&status["problem"])));
        return lines.join("\n") + "\n";
    }
    lines.push(format!("node     {}, twin {}", text(&node["node_id"]), text(&node["twin_id"])));
    lines.push(format!("block    {}", text(&node["block"])));
    lines.push(format!("relays   {} connected", text(&node["relay_count"])));
    for (duty, progress) in node["duties"].as_object().into_iter().flatten() {
        let since = |key: &str| progress[key].as_u64().map(|at| span(now.saturating_sub(at)));
        let state = match (progress["error"].as_str(), since("failing_since"), since("done_at")) {
            (Some(error), Some(since), _) => format!("fails for {since}: {error}"),
            (Some(error), None, _) => format!("fails: {error}"),
            (None, _, Some(since)) => format!("done {since} ago"),
            (None, _, None) => "not done yet".to_owned(),
        };
        lines.push(format!("{duty:<13}{state}"));
    }
    let deployments = node["deployments"].as_array().map(Vec::as_slice).unwrap_or_default();
    lines.push(format!("{} deployments", deployments.len()));
    for deployment in deployments {
        let (contract, twin) = (text(&deployment["contract_id"]), text(&deployment["twin_id"]));
        let standing = text(&deployment["contract"]);
        lines.push(format!("contract {contract} of twin {twin}: {standing}"));
        for workload in deployment["workloads"].as_array().into_iter().flatten() {
            let [kind, name, state, message] =
                ["type", "name", "state", "message"].map(|key| text(&workload[key]));
            lines.push(format!("  {kind} {name}: {state} {message}").trim_end().to_owned());
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_described() {
        let mut status = json!({
            "version": "0.1.0", "account": "5F", "farm_id": 1, "problem": "",
            "node": {
                "node_id": 3, "twin_id": 4, "block": 77, "relay_count": 1,
                "duties": {"uptime": {"done_at": 5, "error": null},
                           "traffic": {"done_at": null, "error": null},
                           "events": {"done_at": null, "error": "nobody listens",
                                      "failing_since": 6}},
                "deployments": [{"twin_id": 9, "contract_id": 8, "contract": "paid", "workloads":
                    [{"type": "zdb", "name": "db", "state": "ok", "message": ""}]}],
            },
        });
        let text = described(&status, 125);
        let lines: Vec<_> = text.lines().skip(3).collect();
        assert_eq!(
            lines,
            [
                "node     3, twin 4",
                "block    77",
                "relays   1 connected",
                "events       fails for 119 s: nobody listens",
                "traffic      not done yet",
                "uptime       done 2 min ago",
                "1 deployments",
                "contract 8 of twin 9: paid",
                "  zdb db: ok",
            ]
        );
        status["node"] = Value::Null;
        status["problem"] = "registration".into();
        assert!(described(&status, 125).ends_with("no node: registration\n"));
    }

    #[test]
    fn spans_have_the_unit_that_people_use() {
        let spans = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(span);
        assert_eq!(spans, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
    }

    #[test]
    fn a_socket_without_a_node_is_said() {
        let error = ask(Path::new("/absent.sock"), "/status").unwrap_err();
        assert!(format!("{error:#}").starts_with("/absent.sock: no node tells"), "{error:#}");
    }
}
