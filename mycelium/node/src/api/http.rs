//! HTTP paths about the node: itself, its peers, its routes, its traffic.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde::Deserialize;

use super::types::{
    NodeInfo, PacketStatistics, PeerInfo, PublicKeyInfo, QueriedSubnet, RouteInfo, SessionInfo,
};
use super::{Control, PeerError};

/// What handlers ask.
pub(super) type Node = State<Arc<dyn Control>>;

/// These paths.
pub(super) fn routes() -> Router<Arc<dyn Control>> {
    Router::new()
        .route("/admin", get(info))
        .route("/admin/peers", get(peers).post(add_peer))
        .route("/admin/peers/{endpoint}", delete(remove_peer))
        .route("/admin/routes/selected", get(selected))
        .route("/admin/routes/fallback", get(fallback))
        .route("/admin/routes/queried", get(queried))
        .route("/admin/stats/packets", get(statistics))
        .route("/pubkey/{ip}", get(public_key))
        .route("/sessions", get(sessions))
        .route("/sessions/{ip}", delete(forget_session))
}

async fn info(State(node): Node) -> Json<NodeInfo> {
    Json(node.info())
}

async fn peers(State(node): Node) -> Json<Vec<PeerInfo>> {
    Json(node.peers())
}

#[derive(Deserialize)]
struct AddPeer {
    endpoint: String,
}

async fn add_peer(
    State(node): Node,
    Json(request): Json<AddPeer>,
) -> Result<StatusCode, PeerError> {
    node.add_peer(&request.endpoint).map(|()| StatusCode::NO_CONTENT)
}

async fn remove_peer(
    State(node): Node,
    Path(endpoint): Path<String>,
) -> Result<StatusCode, PeerError> {
    node.remove_peer(&endpoint).map(|()| StatusCode::NO_CONTENT)
}

impl IntoResponse for PeerError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Exists(_) => StatusCode::CONFLICT,
            Self::Unknown(_) => StatusCode::NOT_FOUND,
        };
        (status, self.to_string()).into_response()
    }
}

async fn selected(State(node): Node) -> Json<Vec<RouteInfo>> {
    Json(node.routes().await.selected)
}

async fn fallback(State(node): Node) -> Json<Vec<RouteInfo>> {
    Json(node.routes().await.fallback)
}

async fn queried(State(node): Node) -> Json<Vec<QueriedSubnet>> {
    Json(node.routes().await.queried)
}

async fn statistics(State(node): Node) -> Json<PacketStatistics> {
    Json(node.packet_statistics())
}

async fn sessions(State(node): Node) -> Json<Vec<SessionInfo>> {
    Json(node.sessions())
}

async fn forget_session(State(node): Node, Path(address): Path<Ipv6Addr>) -> StatusCode {
    if node.forget_session(address) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

async fn public_key(
    State(node): Node,
    Path(address): Path<IpAddr>,
) -> Result<Json<PublicKeyInfo>, StatusCode> {
    let key = match address {
        IpAddr::V6(address) => node.public_key(address),
        IpAddr::V4(_) => None,
    };
    let public_key = key.ok_or(StatusCode::NOT_FOUND)?;
    Ok(Json(PublicKeyInfo { public_key }))
}
