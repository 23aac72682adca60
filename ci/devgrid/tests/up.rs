//! The program as its user runs it: up, asked, reset, interrupted, up again.

#![expect(clippy::unwrap_used, reason = "a test stops where something is wrong")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{Grid, START_TIME_MAX};
use hostd_grid::network::Network;
use serde_json::{Value, json};

/// An account that nobody has.
const ACCOUNT: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

fn devgrid(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devgrid"));
    command.arg(arguments[0]).arg("--dir").arg(dir).args(&arguments[1..]).output().unwrap()
}

fn answer(dir: &Path, arguments: &[&str]) -> Value {
    let output = devgrid(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Status and body of one request.
fn request(network: &Network, head: &str, body: &str) -> (u16, String) {
    let host = network.gridproxy_urls[0].strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

fn activate(network: &Network, account: &str) -> (u16, String) {
    let body = json!({ "substrateAccountID": account }).to_string();
    request(network, "POST /activation/activate", &body)
}

#[test]
fn a_grid_comes_up_is_asked_reset_and_goes_on_after_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (grid, network) = Grid::up(dir, 0, &[]);
    assert!(network.ca_path(dir).unwrap().exists());
    assert_eq!(request(&network, "GET /nodes?ret_count=true", "").1, "[]");
    let graphql = json!({ "query": "{ nodesConnection { totalCount } }" }).to_string();
    let (_, counted) = request(&network, "POST /graphql", &graphql);
    assert_eq!(counted, r#"{"data":{"nodesConnection":{"totalCount":0}}}"#);

    assert_eq!(activate(&network, "5nobody").0, 400);
    let again = |text: &str| text.contains("\"activated\":false");
    let new = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty";
    assert_eq!(activate(&network, new).0, 200);
    assert!(again(&activate(&network, new).1), "it is paid once");

    std::fs::create_dir(dir.join("hub/me")).unwrap();
    std::fs::write(dir.join("hub/me/a.fl"), "abc").unwrap();
    assert_eq!(request(&network, "GET /hub/me/a.fl", ""), (200, "abc".to_owned()));
    assert_eq!(request(&network, "GET /hub/..%2fnetwork.json", "").0, 404);
    assert!(request(&network, "GET /kyc/api/v1/status?twin_id=1", "").1.contains("VERIFIED"));
    assert!(request(&network, "GET /geoip", "").1.contains("country_name"));

    answer(dir, &["fund", ACCOUNT, "2.5"]);
    let before = answer(dir, &["fast-forward", "--seconds", "60"])["block"].as_u64().unwrap();
    assert!(grid.terminate(), "an end that was asked for is no failure");
    assert!(!devgrid(dir, &["status"]).status.success(), "nobody is there to answer");

    let (grid, network) = Grid::up(dir, 0, &[]);
    assert_eq!(answer(dir, &["status"])["block"], before, "it goes on where it was");
    assert!(again(&activate(&network, new).1));
    answer(dir, &["reset"]);
    let end = Instant::now() + START_TIME_MAX;
    while Instant::now() < end {
        let output = devgrid(dir, &["status"]);
        let status = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
        if status["block"] == 0 {
            assert!(grid.terminate());
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no block 0 after a reset");
}
