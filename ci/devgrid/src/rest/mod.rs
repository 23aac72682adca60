//! The grid proxy: the chain as REST, with the paths, parameters and shapes of the grid's own.
//!
//! ```text
//!  GET /farms  /nodes  /gateways  /twins  /contracts  /public_ips     lists: page, size, sort_by, …
//!      /nodes/7  /nodes/7/status  /nodes/7/statistics  /nodes/7/gpu  /gateways/7
//!      /contracts/9  /contracts/9/bills  /twins/5/consumption
//!      /stats  /health  /version  /ping
//! ```
//!
//! Lists answer `ret_count=true` with the headers `count`, `size` and `pages`. The grid's proxy also
//! asks nodes over the message bus for what the chain doesn't know; so does ours for their features, by
//! which clients choose what to deploy. Hardware, health and speed say what is neutral.

mod contracts;
mod farms;
mod nodes;
mod params;
mod stats;
mod twins;

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::index::Index;
use params::Params;
pub(crate) use twins::hex;

/// Everything that the grid proxy serves.
pub(crate) fn router(index: Arc<Index>) -> Router {
    Router::new()
        .route("/farms", get(farms::list))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{id}", get(nodes::one))
        .route("/nodes/{id}/status", get(nodes::status))
        .route("/nodes/{id}/statistics", get(nodes::statistics))
        .route("/nodes/{id}/gpu", get(nodes::gpus))
        .route("/gateways", get(nodes::gateways))
        .route("/gateways/{id}", get(nodes::one))
        .route("/twins", get(twins::list))
        .route("/twins/{id}/consumption", get(twins::consumption))
        .route("/contracts", get(contracts::list))
        .route("/contracts/{id}", get(contracts::one))
        .route("/contracts/{id}/bills", get(contracts::bills))
        .route("/public_ips", get(farms::public_ips))
        .route("/stats", get(stats::stats))
        .route("/health", get(health))
        .route("/version", get(async || Json(json!({ "version": env!("CARGO_PKG_VERSION") }))))
        .route("/ping", get(async || Json(json!({ "ping": "pong" }))))
        .with_state(index)
}

async fn health(axum::extract::State(index): axum::extract::State<Arc<Index>>) -> Json<Value> {
    let block = index.read().block;
    Json(json!({ "health": "ok", "block": block }))
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The request makes no sense.
    Bad(String),
    /// There is no such thing.
    Absent(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Bad(text) => (StatusCode::BAD_REQUEST, text),
            Self::Absent(text) => (StatusCode::NOT_FOUND, text),
        };
        (status, Json(json!({ "error": text }))).into_response()
    }
}

/// One page of a list, with the headers that count it.
struct Listing {
    rows: Vec<Value>,
    headers: HeaderMap,
}

impl Listing {
    /// The page that `params` ask for of `rows`, each written by `write`.
    fn new<T>(rows: Vec<T>, params: &Params, write: impl Fn(T) -> Value) -> Result<Self, Refusal> {
        let page = params.page()?;
        let mut headers = HeaderMap::new();
        if params.flag("ret_count")? == Some(true) {
            headers.insert("count", HeaderValue::from(rows.len()));
            headers.insert("size", HeaderValue::from(page.size));
            headers.insert("pages", HeaderValue::from(page.count_of(rows.len())));
            headers.insert(
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static("count, size, pages"),
            );
        }
        Ok(Self { rows: page.of(rows).into_iter().map(write).collect(), headers })
    }
}

impl IntoResponse for Listing {
    fn into_response(self) -> Response {
        (self.headers, Json(self.rows)).into_response()
    }
}

/// Whether `text` is `wanted`, if anything is wanted.
fn is_text(wanted: Option<&str>, text: &str) -> bool {
    wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(text))
}

/// Whether `wanted` is part of `text`, whatever the case.
fn contains_text(wanted: Option<&str>, text: &str) -> bool {
    wanted.is_none_or(|wanted| text.to_lowercase().contains(&wanted.to_lowercase()))
}

/// Whether `value` is `wanted`, if anything is wanted.
fn is<T: PartialEq>(wanted: Option<T>, value: &T) -> bool {
    wanted.is_none_or(|wanted| wanted == *value)
}

#[cfg(test)]
mod tests;
