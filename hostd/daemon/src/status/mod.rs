//! How the node is, for whoever is on this machine: read only, over HTTP on a unix socket.
//!
//! | path | what |
//! |---|---|
//! | `/status` | everything, as JSON: [`Status`] |
//! | `/metrics` | numbers, as Prometheus reads them |
//! | `/health` | 200 if all is well, else 503, and why |
//!
//! Nothing that its owner alone may know is in it: no data of workloads, no keys. The socket is for the
//! user that runs the node, and for root.

mod metrics;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use hostd_node::engine::{Overview, Statistics};
use hostd_node::health::{Duty, Progress};
use hostd_node::host::Pool;
use serde::Serialize;
use tokio::net::UnixListener;
use tracing::error;

use crate::daemon::Shared;
use crate::files;

/// How the node is.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The version of this program.
    pub version: &'static str,
    /// The node's account.
    pub account: String,
    /// The farm that it was told.
    pub farm_id: u32,
    /// Why there is no node; empty if there is.
    pub problem: String,
    /// The node, if it runs.
    pub node: Option<NodeStatus>,
    /// Disks.
    pub pools: Vec<Pool>,
}

/// How a running node is.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    /// Its number.
    pub node_id: u32,
    /// Its twin's.
    pub twin_id: u32,
    /// The last block whose events were obeyed.
    pub block: Option<u32>,
    /// Relays that it is connected to.
    pub relay_count: usize,
    /// How its duties go.
    pub duties: BTreeMap<Duty, Progress>,
    /// What it has, and what is taken.
    pub capacity: Statistics,
    /// What happened on the message bus, how often.
    pub messages: BTreeMap<&'static str, u64>,
    /// Its deployments.
    pub deployments: Vec<Overview>,
}

impl Status {
    fn of(shared: &Shared) -> Self {
        let node = shared.node.borrow().clone();
        let problem = match node {
            Some(_) => String::new(),
            None => shared.problem.borrow().clone(),
        };
        let node = node.map(|node| NodeStatus {
            node_id: node.node_id,
            twin_id: node.twin_id,
            block: node.block(),
            relay_count: node.known().relay_count(),
            duties: node.health().progress(),
            capacity: node.engine().statistics(),
            messages: node.peer().counts().collect(),
            deployments: node.engine().overview(),
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            account: shared.identity.account().to_string(),
            farm_id: shared.config.farm,
            problem,
            node,
            pools: shared.host.pools(),
        }
    }

    /// What is not well, a sentence each.
    fn problems(&self) -> Vec<String> {
        let Some(node) = &self.node else { return vec![format!("no node: {}", self.problem)] };
        let failed = node.duties.iter().filter_map(|(duty, progress)| {
            let (error, since) = (progress.error.as_ref()?, progress.failing_since?);
            Some(format!("{}: {error} (since {since})", duty.name()))
        });
        let mut problems: Vec<_> = failed.collect();
        // It was not missed yet, or has just gone.
        let is_told = node.duties.get(&Duty::Relay).is_some_and(|relay| relay.error.is_some());
        if node.relay_count == 0 && !is_told {
            problems.push("relay: not connected to any relay".to_owned());
        }
        problems
    }
}

/// Listens at `path`, where nothing else may be than what an earlier node left.
///
/// # Errors
///
/// It can't, or somebody listens there.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = || format!("status at {}", path.display());
    if let Some(folder) = path.parent() {
        files::make_folder(folder).with_context(shown)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => anyhow::bail!("{}: another hostd tells its own there", shown()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(shown)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(shown)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(shown)?;
    Ok(listener)
}

/// Leaves nothing behind.
pub(crate) fn remove(path: &Path) {
    // The next node removes what is left.
    let _ = fs::remove_file(path);
}

/// Tells whoever asks.
pub(crate) async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let router = Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(shared);
    if let Err(problem) = axum::serve(listener, router).await {
        error!(%problem, "the status is not told any more");
    }
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<Status> {
    Json(Status::of(&shared))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let text = metrics::text(&Status::of(&shared));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

async fn health(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let problems = Status::of(&shared).problems();
    match problems.is_empty() {
        true => (StatusCode::OK, "all is well\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Status {
        Status {
            version: "1.0.0",
            account: "5F…".into(),
            farm_id: 1,
            problem: "registration: nobody listens".into(),
            node: None,
            pools: Vec::new(),
        }
    }

    #[test]
    fn a_node_that_does_not_start_says_why() {
        let status = silent();
        assert_eq!(status.problems(), ["no node: registration: nobody listens"]);
        assert!(metrics::text(&status).contains("hostd_node_up 0\n"));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["node"], serde_json::Value::Null);
    }

    #[tokio::test]
    async fn what_an_earlier_node_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/status.sock");
        drop(bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("another hostd"), "{error}");
        drop(listener);
        remove(&path);
        assert!(!path.exists());
    }
}
