//! `/admin`: what `devgrid status`, `fund`, `fast-forward` and `reset` say to a running grid.
//!
//! Only programs of this machine are listened to: the connection comes from a loopback address, the
//! request names one as its host, and no web page sent it. So a page in a browser can't reach it, not
//! even by a name that it let resolve to this machine.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use devchain::types::{AccountId32, Balance, TFT};
use devchain::{BlockRef, ChainError, DevChain};
use hostd_rmb::identity::AccountId;
use rmb_relay::Relay;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::index::Index;

/// Longest request.
const REQUEST_SIZE_MAX: usize = 4096;
/// Decimals of a TFT.
const TFT_DECIMALS: usize = 7;
/// Seconds of the chain's time from block to block.
pub(crate) const BLOCK_S: u64 = 6;

/// What is administered.
pub(crate) struct Admin {
    pub(crate) chain: DevChain,
    pub(crate) index: Arc<Index>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) reset: mpsc::Sender<()>,
}

/// `/admin`, for whoever is on this machine.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/admin/status", get(status))
        .route("/admin/fund", post(fund))
        .route("/admin/fast-forward", post(fast_forward))
        .route("/admin/reset", post(reset))
        .layer(DefaultBodyLimit::max(REQUEST_SIZE_MAX))
        .layer(middleware::from_fn(local_only))
        .with_state(Arc::new(admin))
}

async fn local_only(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    if peer.is_some_and(|peer| is_local(peer, request.headers())) {
        next.run(request).await
    } else {
        let text = "only programs of this machine are listened to here";
        (StatusCode::FORBIDDEN, Json(json!({ "error": text }))).into_response()
    }
}

fn is_local(peer: SocketAddr, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let names_loopback =
        name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    peer.ip().is_loopback() && names_loopback && !headers.contains_key(header::ORIGIN)
}

async fn status(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let head = admin.chain.head();
    let tables = admin.index.read();
    Json(json!({
        "block": head.number,
        "hash": format!("{:?}", head.hash),
        "genesis": format!("{:?}", admin.chain.genesis()),
        "time": admin.chain.timestamp_ms() / 1000,
        "farms": tables.farms.len(),
        "nodes": tables.nodes.len(),
        "twins": tables.twins.len(),
        "contracts": tables.contracts.values().filter(|one| one.state.is_active()).count(),
        "relay_sessions": admin.relay.session_count(),
    }))
}

#[derive(Deserialize)]
struct Fund {
    account: String,
    tft: String,
}

async fn fund(
    State(admin): State<Arc<Admin>>,
    Json(Fund { account, tft }): Json<Fund>,
) -> Result<Json<Value>, Refused> {
    let id = AccountId::from_ss58(&account)
        .map_err(|error| Refused::bad(format!("{account:?} is no account: {error}")))?;
    let amount = parse_tft(&tft)
        .ok_or_else(|| Refused::bad(format!("{tft:?} is no number of TFT, such as 10 or 0.5")))?;
    let account = AccountId32::from(*id.as_bytes());
    let chain = admin.chain.clone();
    on_chain(move || chain.fund(account, amount)).await
}

#[derive(Deserialize)]
struct FastForward {
    blocks: Option<u32>,
    seconds: Option<u64>,
}

async fn fast_forward(
    State(admin): State<Arc<Admin>>,
    Json(FastForward { blocks, seconds }): Json<FastForward>,
) -> Result<Json<Value>, Refused> {
    let blocks = match (blocks, seconds) {
        (Some(blocks), None) => blocks,
        (None, Some(seconds)) => u32::try_from(seconds.div_ceil(BLOCK_S)).unwrap_or(u32::MAX),
        _ => return Err(Refused::bad("either blocks or seconds is needed".to_owned())),
    };
    let chain = admin.chain.clone();
    on_chain(move || chain.fast_forward(blocks)).await
}

async fn reset(State(admin): State<Arc<Admin>>) -> Json<Value> {
    // Full means that it was asked for already.
    let _ = admin.reset.try_send(());
    Json(json!({ "reset": true }))
}

/// Does what takes the chain a while beside everything else, and says in which block it is done.
async fn on_chain(
    work: impl FnOnce() -> Result<BlockRef, ChainError> + Send + 'static,
) -> Result<Json<Value>, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    let block = done
        .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
        .map_err(|error| Refused::bad(error.to_string()))?;
    Ok(Json(json!({ "block": block.number, "hash": format!("{:?}", block.hash) })))
}

/// An error with its status.
struct Refused(StatusCode, String);

impl Refused {
    fn bad(text: String) -> Self {
        Self(StatusCode::BAD_REQUEST, text)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

/// `10` or `0.5`, in the chain's units.
fn parse_tft(text: &str) -> Option<Balance> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if whole.is_empty()
        || !is_digits(whole)
        || !is_digits(decimals)
        || decimals.len() > TFT_DECIMALS
    {
        return None;
    }
    let units: Balance = format!("{decimals:0<TFT_DECIMALS$}").parse().ok()?;
    whole.parse::<Balance>().ok()?.checked_mul(TFT)?.checked_add(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_up_to_seven_decimals() {
        for (text, units) in [
            ("10", Some(100_000_000)),
            ("0.5", Some(5_000_000)),
            ("1.0000001", Some(10_000_001)),
            ("1.00000001", None),
            ("-1", None),
            ("", None),
            (".5", None),
            ("1e3", None),
            ("340282366920938463463374607431768211455", None),
        ] {
            assert_eq!(parse_tft(text), units, "{text}");
        }
    }

    #[test]
    fn only_programs_of_this_machine_are_listened_to() {
        let local: SocketAddr = "127.0.0.1:40000".parse().unwrap();
        let remote: SocketAddr = "192.0.2.7:40000".parse().unwrap();
        let headers = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            headers
        };
        assert!(is_local(local, &headers("127.0.0.1:9946", None)));
        assert!(is_local(local, &headers("localhost:9946", None)));
        assert!(is_local(local, &headers("[::1]:9946", None)));
        assert!(!is_local(remote, &headers("127.0.0.1:9946", None)));
        assert!(!is_local(local, &headers("evil.example:9946", None)), "a rebound name");
        assert!(!is_local(local, &headers("127.0.0.1:9946", Some("https://evil.example"))));
        assert!(!is_local(local, &HeaderMap::new()));
    }
}
