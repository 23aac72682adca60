//! Farms and their public addresses.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::State;
use serde_json::{Value, json};

use super::nodes::NodeFilter;
use super::{Listing, Params, Refusal, contains_text, is, is_text};
use crate::index::{Farm, Index, Key, PublicIp, Tables, sorted};

pub(super) async fn list(
    State(index): State<Arc<Index>>,
    params: Params,
) -> Result<Listing, Refusal> {
    let tables = index.read();
    let mut farms = matching(&tables, &params)?;
    let key = sort_key(params.text("sort_by"))?;
    sorted(&mut farms, params.descending()?, |farm| key(farm));
    Listing::new(farms, &params, farm_json)
}

pub(super) async fn public_ips(
    State(index): State<Arc<Index>>,
    params: Params,
) -> Result<Listing, Refusal> {
    let tables = index.read();
    let farm_ids = params.numbers("farm_ids")?;
    let free = params.flag("free")?;
    let mut rows: Vec<(&Farm, &PublicIp)> = tables
        .farms
        .values()
        .filter(|farm| farm_ids.as_ref().is_none_or(|ids| ids.contains(&farm.id.into())))
        .flat_map(|farm| farm.public_ips.iter().map(move |ip| (farm, ip)))
        .filter(|(_, ip)| is(free, &(ip.contract_id == 0)))
        .filter(|(_, ip)| is_text(params.text("ip"), &ip.ip))
        .filter(|(_, ip)| is_text(params.text("gateway"), &ip.gateway))
        .collect();
    let key: fn(&(&Farm, &PublicIp)) -> Key = match params.text("sort_by") {
        None | Some("farm_id") => |row| row.0.id.into(),
        Some("ip") => |row| row.1.ip.as_str().into(),
        Some("contract_id") => |row| row.1.contract_id.into(),
        Some(other) => return Err(unknown_order(other)),
    };
    sorted(&mut rows, params.descending()?, key);
    Listing::new(rows, &params, |(farm, ip)| ip_json(farm, ip))
}

fn matching<'a>(tables: &'a Tables, params: &Params) -> Result<Vec<&'a Farm>, Refusal> {
    let farm_id = params.number("farm_id")?;
    let twin_id = params.number("twin_id")?;
    let policy = params.number("pricing_policy_id")?;
    let version = params.number("version")?;
    let dedicated = params.flag("dedicated")?;
    let free_ips = params.number("free_ips")?.unwrap_or(0);
    let total_ips = params.number("total_ips")?.unwrap_or(0);
    let nodes = NodeFilter::of_farms(params)?;
    let with_nodes: Option<HashSet<u32>> =
        nodes.map(|filter| filter.matching(tables).iter().map(|row| row.node.farm_id).collect());
    Ok(tables
        .farms
        .values()
        .filter(|farm| is(farm_id, &farm.id.into()) && is(twin_id, &farm.twin_id.into()))
        .filter(|farm| is(policy, &farm.pricing_policy_id.into()))
        .filter(|farm| is(version, &farm.grid_version.into()))
        .filter(|farm| is(dedicated, &farm.dedicated))
        .filter(|farm| is_text(params.text("name"), &farm.name))
        .filter(|farm| is_text(params.text("farm_name"), &farm.name))
        .filter(|farm| contains_text(params.text("name_contains"), &farm.name))
        .filter(|farm| is_text(params.text("certification_type"), farm.certification))
        // No farm of a grid on one machine has an address to be paid at.
        .filter(|_| params.text("stellar_address").is_none())
        .filter(|farm| farm.free_ip_count() as u64 >= free_ips)
        .filter(|farm| farm.public_ips.len() as u64 >= total_ips)
        .filter(|farm| with_nodes.as_ref().is_none_or(|farms| farms.contains(&farm.id)))
        .collect())
}

fn sort_key(name: Option<&str>) -> Result<fn(&Farm) -> Key, Refusal> {
    Ok(match name {
        None | Some("farm_id" | "id") => |farm| farm.id.into(),
        Some("name" | "farm_name") => |farm| farm.name.as_str().into(),
        Some("twin_id") => |farm| farm.twin_id.into(),
        Some("free_ips") => |farm| farm.free_ip_count().into(),
        Some("total_ips") => |farm| farm.public_ips.len().into(),
        Some("used_ips") => |farm| (farm.public_ips.len() - farm.free_ip_count()).into(),
        Some("dedicated") => |farm| u32::from(farm.dedicated).into(),
        Some("pricing_policy_id") => |farm| farm.pricing_policy_id.into(),
        Some("certification") => |farm| farm.certification.into(),
        Some(other) => return Err(unknown_order(other)),
    })
}

/// What is said to an order that nothing is sorted by.
pub(super) fn unknown_order(name: &str) -> Refusal {
    Refusal::Bad(format!("sort_by {name:?} is not something these are sorted by"))
}

fn farm_json(farm: &Farm) -> Value {
    let ips: Vec<Value> = farm.public_ips.iter().map(|ip| ip_json(farm, ip)).collect();
    json!({
        "name": farm.name,
        "farmId": farm.id,
        "twinId": farm.twin_id,
        "pricingPolicyId": farm.pricing_policy_id,
        "certificationType": farm.certification,
        "stellarAddress": "",
        "dedicated": farm.dedicated,
        "publicIps": ips,
    })
}

fn ip_json(farm: &Farm, ip: &PublicIp) -> Value {
    json!({
        "id": format!("{}-{}", farm.id, ip.ip),
        "ip": ip.ip,
        "farm_id": farm.id,
        "contract_id": ip.contract_id,
        "gateway": ip.gateway,
    })
}
