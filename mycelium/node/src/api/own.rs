//! HTTP paths that existing daemons have not.
//!
//! | method and path | request → response |
//! |---|---|
//! | GET `/admin/status` | [`NodeStatus`] |
//! | POST `/admin/probe` | [`ProbeRequest`] → [`ProbeResult`]; 400 when the address is none to ask |

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::Control;
use super::http::Node;
use super::status::{NodeStatus, ProbeRequest, ProbeResult};

/// These paths.
pub(super) fn routes() -> Router<Arc<dyn Control>> {
    Router::new().route("/admin/status", get(status)).route("/admin/probe", post(probe))
}

async fn status(State(node): Node) -> Json<NodeStatus> {
    Json(node.status().await)
}

async fn probe(
    State(node): Node,
    Json(request): Json<ProbeRequest>,
) -> Result<Json<ProbeResult>, (StatusCode, String)> {
    let result = node.probe(request).await;
    result.map(Json).map_err(|error| (StatusCode::BAD_REQUEST, error))
}
