//! The grid's small services: activation, identity checks, places, and a hub for images.

mod activation;
mod hub;

pub(crate) use activation::router as activation;
pub(crate) use hub::router as hub;

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

/// `/kyc`: everybody on this machine is who they say they are. Without `/kyc` too, for clients that know
/// the service by a host name of its own.
pub(crate) fn kyc() -> Router {
    let status = get(async || result("VERIFIED"));
    let health = get(async || result("Healthy"));
    Router::new()
        .route("/kyc", status.clone())
        .route("/kyc/api/v1/status", status.clone())
        .route("/kyc/api/v1/health", health.clone())
        .route("/api/v1/status", status)
        .route("/api/v1/health", health)
}

fn result(status: &str) -> Json<Value> {
    Json(json!({ "result": { "status": status } }))
}

/// `/geoip`: where a node of this grid is. It is the same for all of them.
pub(crate) fn geoip() -> Router {
    let place = json!({
        "longitude": 3.7174, "latitude": 51.0543, "continent": "Europe", "continent_code": "EU",
        "continent_name": "Europe", "country_code": "BE", "country_name": "Belgium",
        "region_name": "East Flanders", "city_name": "Ghent",
    });
    let answer = get(async move || Json(place));
    Router::new().route("/geoip", answer.clone()).route("/geoip/", answer)
}
