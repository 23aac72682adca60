//! `POST /activation/activate {"substrateAccountID": "5…"}`: a first balance for a new account.
//!
//! An account that has nearly nothing gets [`ACTIVATION_TFT`], one that has more gets nothing and is told
//! so with the same status: nodes ask again whenever they start. Two questions about one account at the
//! same time are answered one after the other, so that it is paid once.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use devchain::DevChain;
use devchain::types::{AccountId32, Balance, TFT};
use hostd_rmb::identity::AccountId;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

/// What a new account gets.
const ACTIVATION_TFT: Balance = 1000;
/// An account with less than this is new: a thousandth of a TFT, as nodes see it too.
const ACTIVE_FROM: Balance = TFT / 1000;
/// Longest request.
const REQUEST_SIZE_MAX: usize = 4096;

struct Activation {
    chain: DevChain,
    one_by_one: Mutex<()>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "substrateAccountID")]
    account: String,
}

/// The service, which pays out of `chain`'s purse.
pub(crate) fn router(chain: DevChain) -> Router {
    Router::new()
        .route("/activation/activate", post(activate))
        .layer(DefaultBodyLimit::max(REQUEST_SIZE_MAX))
        .with_state(Arc::new(Activation { chain, one_by_one: Mutex::new(()) }))
}

async fn activate(
    State(activation): State<Arc<Activation>>,
    Json(Body { account }): Json<Body>,
) -> Response {
    let Ok(id) = AccountId::from_ss58(&account) else {
        let text = "substrateAccountID is not an SS58 address";
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": text }))).into_response();
    };
    let id = AccountId32::from(*id.as_bytes());
    let _turn = activation.one_by_one.lock().await;
    let chain = activation.chain.clone();
    let paid = tokio::task::spawn_blocking(move || {
        let free = chain.view(None).map_or(0, |view| view.account(&id).data.free);
        if free >= ACTIVE_FROM {
            return Ok(false);
        }
        chain.fund(id, ACTIVATION_TFT * TFT).map(|_| true)
    });
    match paid.await {
        Ok(Ok(paid)) => {
            Json(json!({ "substrateAccountID": account, "activated": paid })).into_response()
        }
        Ok(Err(error)) => refused(&error.to_string()),
        Err(error) => refused(&error.to_string()),
    }
}

fn refused(error: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error }))).into_response()
}
