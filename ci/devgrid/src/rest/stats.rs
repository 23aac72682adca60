//! How much of everything there is.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::{Params, Refusal};
use crate::index::{Index, Node, PublicConfig, Resources};

pub(super) async fn stats(
    State(index): State<Arc<Index>>,
    params: Params,
) -> Result<Json<Value>, Refusal> {
    let tables = index.read();
    let statuses = params.texts("status");
    let nodes: Vec<&Node> = tables
        .nodes
        .values()
        .filter(|node| {
            let status = tables.node_status(node).name();
            statuses
                .as_ref()
                .is_none_or(|all| all.iter().any(|one| one.eq_ignore_ascii_case(status)))
        })
        .collect();
    let total = nodes.iter().fold(Resources::default(), |sum, node| sum.plus(node.total));
    let mut countries = BTreeMap::<&str, usize>::new();
    for node in &nodes {
        *countries.entry(node.country.as_str()).or_default() += 1;
    }
    let with = |has: fn(&PublicConfig) -> bool| {
        nodes.iter().filter(|node| node.public_config.as_ref().is_some_and(has)).count()
    };
    let rented: HashSet<u32> = tables
        .node_uses()
        .into_iter()
        .filter(|(_, usage)| usage.rent.is_some())
        .map(|(id, _)| id)
        .collect();
    let dedicated = nodes.iter().filter(|node| {
        let farm = tables.farms.get(&node.farm_id);
        rented.contains(&node.id) || node.extra_fee > 0 || farm.is_some_and(|farm| farm.dedicated)
    });
    let active = tables.contracts.values().filter(|contract| contract.state.is_active()).count();
    Ok(Json(json!({
        "nodes": nodes.len(),
        "farms": tables.farms.len(),
        "countries": countries.len(),
        "totalCru": total.cru,
        "totalSru": total.sru,
        "totalMru": total.mru,
        "totalHru": total.hru,
        "publicIps": tables.farms.values().map(|farm| farm.public_ips.len()).sum::<usize>(),
        "accessNodes": with(|config| !config.ipv4.is_empty() || !config.ipv6.is_empty()),
        "gateways": with(|config| !config.ipv4.is_empty() && !config.domain.is_empty()),
        "twins": tables.twins.len(),
        "contracts": active,
        "nodesDistribution": countries,
        "gpus": 0,
        "dedicatedNodes": dedicated.count(),
        "workloads_number": active,
    })))
}
