//! Twins, and what they spend.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::{Listing, Params, Refusal, is};
use crate::index::{Index, Key, Twin, sorted};

/// Units of a TFT.
const UNITS_PER_TFT: f64 = 10_000_000.0;

pub(super) async fn list(
    State(index): State<Arc<Index>>,
    params: Params,
) -> Result<Listing, Refusal> {
    let tables = index.read();
    let id = params.number("twin_id")?;
    let account = params.text("account_id");
    let mut twins: Vec<&Twin> = tables
        .twins
        .values()
        .filter(|twin| is(id, &twin.id.into()))
        .filter(|twin| account.is_none_or(|account| account == twin.account))
        .filter(|twin| {
            let key = twin.public_key.as_deref().map(hex);
            params.text("public_key").is_none_or(|wanted| key.as_deref() == Some(wanted))
        })
        .filter(|twin| {
            params.text("relay").is_none_or(|wanted| twin.relay.as_deref() == Some(wanted))
        })
        .collect();
    sorted(&mut twins, params.descending()?, |twin| Key::from(twin.id));
    Listing::new(twins, &params, |twin| {
        json!({
            "twinId": twin.id,
            "accountId": twin.account,
            "relay": twin.relay.as_deref().unwrap_or_default(),
            "publicKey": twin.public_key.as_deref().map(hex).unwrap_or_default(),
        })
    })
}

pub(super) async fn consumption(
    State(index): State<Arc<Index>>,
    Path(id): Path<u32>,
) -> Result<Json<Value>, Refusal> {
    let tables = index.read();
    if !tables.twins.contains_key(&id) {
        return Err(Refusal::Absent(format!("no twin {id}")));
    }
    let hour_ago = tables.now.saturating_sub(3600);
    let (mut overall, mut last_hour) = (0_u128, 0_u128);
    for bill in &tables.bills {
        let contract = tables.contracts.get(&bill.contract_id);
        if contract.is_some_and(|contract| contract.twin_id == id) {
            overall = overall.saturating_add(bill.amount);
            if bill.timestamp >= hour_ago {
                last_hour = last_hour.saturating_add(bill.amount);
            }
        }
    }
    let tft = |units: u128| units as f64 / UNITS_PER_TFT;
    Ok(Json(json!({
        "last_hour_consumption": tft(last_hour),
        "overall_consumption": tft(overall),
    })))
}

/// As the chain writes bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::from("0x");
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
