//! Who gets in: HTTP, in front of everything else.
//!
//! | request | answer |
//! |---|---|
//! | websocket, any path, the token as the query | 101; 400 without a token, 401 with a bad one or of an unknown twin, 500 if the twin could not be looked up |
//! | `POST /`, an envelope | 202; 400 if it is none or expired, 401 if its source did not sign it, 404 if it is not for a twin of ours, or `fail-fast` and not connected, 413 if it is too large, 503 if there is no room |
//! | `GET /metrics` | Prometheus |
//! | anything else | 404 |

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{RawQuery, State as Shared};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use hostd_rmb::envelope::limits::{CONNECTION_SIZE_MAX, ENVELOPE_SIZE_MAX};
use hostd_rmb::envelope::{Envelope, unix_now};
use hostd_rmb::jwt::Unverified;
use hostd_rmb::twins::TwinId;
use tracing::debug;

use crate::switch::{RouteError, accept_foreign};
use crate::{State, metrics, session};

/// Bytes that are read from a websocket at a time. Each connection has a buffer of this size.
const READ_BUFFER_SIZE: usize = 8 * 1024;

/// Why somebody does not get in.
type Refused = (StatusCode, String);

pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new().fallback(enter).with_state(state)
}

async fn enter(
    Shared(state): Shared<Arc<State>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    method: Method,
    uri: Uri,
    RawQuery(query): RawQuery,
    body: Body,
) -> Response {
    if let Ok(upgrade) = upgrade {
        return match authorize(&state, query).await {
            Ok((twin, name)) => open(state, upgrade, twin, name),
            Err(refused) => {
                state.metrics.unauthorized.add(1);
                refused.into_response()
            }
        };
    }
    match (method, uri.path()) {
        (Method::POST, "/") => match federation(&state, body).await {
            Ok(()) => {
                state.metrics.federation_received.add(1);
                StatusCode::ACCEPTED.into_response()
            }
            Err(refused) => {
                state.metrics.federation_refused.add(1);
                refused.into_response()
            }
        },
        (Method::GET, "/metrics") => metrics::text(&state).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Which twin's session a token opens.
async fn authorize(state: &State, token: Option<String>) -> Result<(TwinId, String), Refused> {
    let token = token.filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| (StatusCode::BAD_REQUEST, "missing jwt".to_owned()))?;
    let bad = |error: &dyn std::fmt::Display| (StatusCode::UNAUTHORIZED, error.to_string());
    let unverified = Unverified::parse(&token).map_err(|error| bad(&error))?;
    let id = unverified.twin();
    let twin = state.twins.twin(id).await.map_err(|error| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("failed to get twin: {error}"))
    })?;
    let twin = twin.ok_or_else(|| bad(&format_args!("twin {id} not found")))?;
    let claims = unverified.verify(twin.account, unix_now()).map_err(|error| bad(&error))?;
    if let Some(relay) = &claims.aud
        && !state.domains.is_empty()
        && !state.domains.contains(&relay.to_lowercase())
    {
        return Err(bad(&format_args!("the token is for the relay {relay}")));
    }
    let name = claims.sid.unwrap_or_default();
    if name.len() > CONNECTION_SIZE_MAX {
        return Err(bad(&format_args!("a session's name has at most {CONNECTION_SIZE_MAX} bytes")));
    }
    Ok((id, name))
}

fn open(state: Arc<State>, upgrade: WebSocketUpgrade, twin: TwinId, name: String) -> Response {
    debug!(%twin, session = name, "connected");
    upgrade
        .read_buffer_size(READ_BUFFER_SIZE)
        .max_message_size(ENVELOPE_SIZE_MAX)
        .max_frame_size(ENVELOPE_SIZE_MAX)
        .on_upgrade(move |socket| session::run(state, socket, twin, name))
}

/// Takes an envelope from another relay, or from whoever says to be one.
async fn federation(state: &State, body: Body) -> Result<(), Refused> {
    let bad = |error: &dyn std::fmt::Display| (StatusCode::BAD_REQUEST, error.to_string());
    let bytes = to_bytes(body, ENVELOPE_SIZE_MAX).await;
    let bytes = bytes.map_err(|error| (StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))?;
    let envelope = Envelope::parse(bytes.clone()).map_err(|error| bad(&error))?;
    if envelope.is_expired(unix_now()) {
        return Err(bad(&"the message has expired"));
    }
    let unauthorized = |text: String| (StatusCode::UNAUTHORIZED, text);
    let id = envelope.source_twin().ok_or_else(|| bad(&"message without a source"))?;
    let failed = |error| (StatusCode::SERVICE_UNAVAILABLE, format!("failed to get twin: {error}"));
    let source = state.twins.twin(id).await.map_err(failed)?;
    let source = source.ok_or_else(|| unauthorized(format!("twin {id} not found")))?;
    envelope.verify(source.account).map_err(|error| unauthorized(error.to_string()))?;
    accept_foreign(state, &envelope, &bytes).await.map_err(|error| {
        let status = match error {
            RouteError::Twins(_) | RouteError::Full(_) | RouteError::Federation(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            RouteError::NoDestination | RouteError::Source => StatusCode::BAD_REQUEST,
            RouteError::UnknownTwin | RouteError::NoRelay | RouteError::Offline => {
                StatusCode::NOT_FOUND
            }
            RouteError::Rate => StatusCode::TOO_MANY_REQUESTS,
        };
        (status, error.to_string())
    })
}
