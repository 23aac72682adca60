//! Questions to a running grid: one request on one connection.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use hostd_grid::network::Network;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long an answer may take: 14 days of bills are made in less.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(600);
/// Largest answer that is read.
const ANSWER_SIZE_MAX: usize = 1 << 20;

/// What the grid of `dir` answers to a GET of `path`.
pub(crate) async fn get(dir: &Path, path: &str) -> anyhow::Result<Value> {
    ask(dir, Method::GET, path, Bytes::new()).await
}

/// What it answers to a POST of `body`.
pub(crate) async fn post(dir: &Path, path: &str, body: &Value) -> anyhow::Result<Value> {
    ask(dir, Method::POST, path, body.to_string().into()).await
}

async fn ask(dir: &Path, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
    let address = address(dir)?;
    let answer = exchange(&address, method, path, body);
    tokio::time::timeout(ANSWER_TIME_MAX, answer)
        .await
        .map_err(|_| anyhow!("no answer from {address} within {ANSWER_TIME_MAX:?}"))?
}

/// Where the grid of `dir` listens, as its network.json says.
fn address(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join("network.json");
    let bytes = std::fs::read(&path).with_context(|| {
        format!("{}: is there a grid? start one with `devgrid up`", path.display())
    })?;
    let network = Network::parse(&bytes)?.network;
    let url = network.gridproxy_urls.first().context("network.json names no gridproxy_urls")?;
    let url = url::Url::parse(url).context("gridproxy_urls of network.json")?;
    let (host, port) = (url.host_str(), url.port_or_known_default());
    let (Some(host), Some(port)) = (host, port) else { bail!("{url} names no host") };
    Ok(format!("{host}:{port}"))
}

async fn exchange(address: &str, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("{address}: the grid does not run; start it with `devgrid up`"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let bytes = Limited::new(response.into_body(), ANSWER_SIZE_MAX)
        .collect()
        .await
        .map_err(|error| anyhow!("{error}"))?
        .to_bytes();
    connection.abort();
    let text = String::from_utf8_lossy(&bytes);
    if !status.is_success() {
        let error = serde_json::from_slice::<Value>(&bytes).ok();
        let error = error.and_then(|value| value["error"].as_str().map(str::to_owned));
        bail!("{}", error.unwrap_or_else(|| format!("{status}: {text}")));
    }
    serde_json::from_slice(&bytes).with_context(|| format!("not JSON: {text}"))
}
