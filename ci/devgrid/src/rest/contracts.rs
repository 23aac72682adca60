//! Contracts and their bills.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::farms::unknown_order;
use super::{Listing, Params, Refusal, is, is_text};
use crate::index::{Contract, ContractKind, Index, Key, Tables, sorted};

pub(super) async fn list(
    State(index): State<Arc<Index>>,
    params: Params,
) -> Result<Listing, Refusal> {
    let tables = index.read();
    let mut contracts = matching(&tables, &params)?;
    let key: fn(&Contract) -> Key = match params.text("sort_by") {
        None | Some("contract_id") => |contract| contract.id.into(),
        Some("twin_id") => |contract| contract.twin_id.into(),
        Some("type") => |contract| contract.kind_name().into(),
        Some("state") => |contract| contract.state.name().into(),
        Some("created_at") => |contract| contract.created_at.into(),
        Some(other) => return Err(unknown_order(other)),
    };
    sorted(&mut contracts, params.descending()?, |contract| key(contract));
    Listing::new(contracts, &params, |contract| contract_json(&tables, contract))
}

pub(super) async fn one(
    State(index): State<Arc<Index>>,
    Path(id): Path<u64>,
) -> Result<Json<Value>, Refusal> {
    let tables = index.read();
    let contract = find(&tables, id)?;
    Ok(Json(contract_json(&tables, contract)))
}

pub(super) async fn bills(
    State(index): State<Arc<Index>>,
    Path(id): Path<u64>,
    params: Params,
) -> Result<Listing, Refusal> {
    let tables = index.read();
    find(&tables, id)?;
    let bills = tables.bills.iter().rev().filter(|bill| bill.contract_id == id).collect();
    Listing::new(bills, &params, |bill| {
        json!({
            "amountBilled": u64::try_from(bill.amount).unwrap_or(u64::MAX),
            "discountReceived": bill.discount,
            "timestamp": bill.timestamp,
        })
    })
}

fn find(tables: &Tables, id: u64) -> Result<&Contract, Refusal> {
    tables.contracts.get(&id).ok_or_else(|| Refusal::Absent(format!("no contract {id}")))
}

fn matching<'a>(tables: &'a Tables, params: &Params) -> Result<Vec<&'a Contract>, Refusal> {
    let id = params.number("contract_id")?;
    let twin_id = params.number("twin_id")?;
    let node_id = params.number("node_id")?;
    let states = params.texts("state");
    let ips = params.number("number_of_public_ips")?.unwrap_or(0);
    let is_detail = |contract: &Contract| {
        let wanted = |name| params.text(name);
        let deployment = [wanted("deployment_data"), wanted("deployment_hash")];
        match &contract.kind {
            ContractKind::Node { hash, data, public_ip_count, .. } => {
                let [wanted_data, wanted_hash] = deployment;
                is_text(wanted_data, data)
                    && is_text(wanted_hash, hash)
                    && u64::from(*public_ip_count) >= ips
                    && wanted("name").is_none()
            }
            ContractKind::Name { name } => {
                is_text(wanted("name"), name) && deployment == [None, None] && ips == 0
            }
            ContractKind::Rent { .. } => {
                wanted("name").is_none() && deployment == [None, None] && ips == 0
            }
        }
    };
    Ok(tables
        .contracts
        .values()
        .filter(|contract| is(id, &contract.id) && is(twin_id, &contract.twin_id.into()))
        .filter(|contract| node_id.is_none() || contract.node_id().map(u64::from) == node_id)
        .filter(|contract| is_text(params.text("type"), contract.kind_name()))
        .filter(|contract| {
            let state = contract.state.name();
            states.as_ref().is_none_or(|all| all.iter().any(|one| one.eq_ignore_ascii_case(state)))
        })
        .filter(|contract| is_detail(contract))
        .collect())
}

fn contract_json(tables: &Tables, contract: &Contract) -> Value {
    let farm = contract
        .node_id()
        .and_then(|id| tables.farms.get(&tables.nodes.get(&id)?.farm_id))
        .map_or((0, ""), |farm| (farm.id, farm.name.as_str()));
    let details = match &contract.kind {
        ContractKind::Node { node_id, hash, data, public_ip_count } => json!({
            "nodeId": node_id, "deployment_data": data, "deployment_hash": hash,
            "number_of_public_ips": public_ip_count, "farm_id": farm.0, "farm_name": farm.1,
        }),
        ContractKind::Name { name } => json!({ "name": name }),
        ContractKind::Rent { node_id } => {
            json!({ "nodeId": node_id, "farm_id": farm.0, "farm_name": farm.1 })
        }
    };
    json!({
        "contract_id": contract.id,
        "twin_id": contract.twin_id,
        "state": contract.state.name(),
        "created_at": contract.created_at,
        "type": contract.kind_name(),
        "details": details,
    })
}
