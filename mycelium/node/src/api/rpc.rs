//! JSON-RPC 2.0: requests one by one or in batches, by POST to any path, or over a WebSocket.
//!
//! This module knows the protocol; what methods there are is in [`rpc_methods`]. A
//! WebSocket's requests are answered as they finish, since some wait for messages.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::rpc_methods::{self, RpcError};
use super::{BODY_SIZE_MAX, Control};

/// Most requests in a batch.
const BATCH_COUNT_MAX: usize = 100;
/// Requests of one WebSocket that are answered at a time; more are not read.
const CONCURRENT_COUNT_MAX: usize = 32;

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;

/// Any path.
pub(super) fn routes() -> Router<Arc<dyn Control>> {
    let handlers = post(by_post).get(by_websocket);
    Router::new().route("/", handlers.clone()).route("/{*path}", handlers)
}

async fn by_post(
    State(node): State<Arc<dyn Control>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // Browsers ask before they send a page's JSON elsewhere, but not before they send its text.
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|value| value.starts_with("application/json"));
    if !is_json {
        let text = "the content type must be application/json";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response();
    }
    match answer(&node, &body).await {
        Some(answer) => axum::Json(answer).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn by_websocket(State(node): State<Arc<dyn Control>>, upgrade: WebSocketUpgrade) -> Response {
    let upgrade = upgrade.max_message_size(BODY_SIZE_MAX).max_frame_size(BODY_SIZE_MAX);
    upgrade.on_upgrade(|socket| converse(node, socket))
}

/// Answers a WebSocket until it closes.
async fn converse(node: Arc<dyn Control>, mut socket: WebSocket) {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            received = socket.recv(), if answers.len() < CONCURRENT_COUNT_MAX => {
                let request = match received {
                    Some(Ok(Message::Text(text))) => Bytes::copy_from_slice(text.as_bytes()),
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                let node = Arc::clone(&node);
                answers.spawn(async move { answer(&node, &request).await });
            }
            Some(answered) = answers.join_next() => {
                // A notification has no answer.
                let Ok(Some(answer)) = answered else { continue };
                if socket.send(Message::Text(answer.to_string().into())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The answer to a request or batch; none to notifications alone.
pub(super) async fn answer(node: &Arc<dyn Control>, request: &[u8]) -> Option<Value> {
    match serde_json::from_slice(request) {
        Ok(Value::Array(batch)) if batch.is_empty() || batch.len() > BATCH_COUNT_MAX => {
            let text = format!("a batch has 1 to {BATCH_COUNT_MAX} requests, not {}", batch.len());
            Some(failure(&Value::Null, &RpcError::new(INVALID_REQUEST, text)))
        }
        Ok(Value::Array(batch)) => {
            let mut answers = Vec::new();
            for request in batch {
                answers.extend(answer_one(node, request).await);
            }
            (!answers.is_empty()).then_some(Value::Array(answers))
        }
        Ok(request) => answer_one(node, request).await,
        Err(error) => {
            let error = RpcError::new(PARSE_ERROR, format!("the request is no JSON: {error}"));
            Some(failure(&Value::Null, &error))
        }
    }
}

async fn answer_one(node: &Arc<dyn Control>, mut request: Value) -> Option<Value> {
    let id = request.get_mut("id").map(Value::take);
    let is_version_2 = request.get("jsonrpc").is_some_and(|version| version == "2.0");
    let has_good_id = id.as_ref().is_none_or(|id| id.is_string() || id.is_number() || id.is_null());
    let method = request.get("method").and_then(Value::as_str).map(str::to_owned);
    let (true, true, Some(method)) = (is_version_2, has_good_id, method) else {
        let error = RpcError::new(INVALID_REQUEST, "no JSON-RPC 2.0 request".to_owned());
        let id = if has_good_id { id.unwrap_or_default() } else { Value::Null };
        return Some(failure(&id, &error));
    };
    let parameters = request.get_mut("params").map(Value::take);
    let result = rpc_methods::call(node, &method, parameters).await;
    // Without an id nobody waits for the answer.
    let id = id?;
    Some(match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => failure(&id, &error),
    })
}

fn failure(id: &Value, error: &RpcError) -> Value {
    let error = json!({ "code": error.code, "message": error.message });
    json!({ "jsonrpc": "2.0", "id": id, "error": error })
}
