//! Nodes, and gateways: nodes with a public address and a domain.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::farms::unknown_order;
use super::{Listing, Params, Refusal, contains_text, is, is_text};
use crate::index::{
    Farm, Index, Key, Node, NodeStatus, NodeUse, PublicConfig, Resources, Tables, sorted,
};

/// A node with all that belongs to it.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) node: &'a Node,
    farm: Option<&'a Farm>,
    usage: NodeUse,
    status: NodeStatus,
}

pub(super) async fn list(
    State(index): State<Arc<Index>>,
    params: Params,
) -> Result<Listing, Refusal> {
    listing(&index, &params, NodeFilter::of_nodes(&params)?)
}

pub(super) async fn gateways(
    State(index): State<Arc<Index>>,
    params: Params,
) -> Result<Listing, Refusal> {
    let filter = NodeFilter::of_nodes(&params)?;
    listing(&index, &params, NodeFilter { ipv4: Some(true), domain: Some(true), ..filter })
}

fn listing(index: &Index, params: &Params, filter: NodeFilter<'_>) -> Result<Listing, Refusal> {
    let tables = index.read();
    let mut rows = filter.matching(&tables);
    let key = sort_key(params.text("sort_by"))?;
    sorted(&mut rows, params.descending()?, key);
    Listing::new(rows, params, |row| row.json(false))
}

pub(super) async fn one(
    State(index): State<Arc<Index>>,
    Path(id): Path<u32>,
) -> Result<Json<Value>, Refusal> {
    find(&index.read(), id, |row| row.json(true)).map(Json)
}

pub(super) async fn status(
    State(index): State<Arc<Index>>,
    Path(id): Path<u32>,
) -> Result<Json<Value>, Refusal> {
    find(&index.read(), id, |row| json!({ "status": row.status.name() })).map(Json)
}

pub(super) async fn gpus(
    State(index): State<Arc<Index>>,
    Path(id): Path<u32>,
) -> Result<Json<Value>, Refusal> {
    find(&index.read(), id, |_| json!([])).map(Json)
}

pub(super) async fn statistics(
    State(index): State<Arc<Index>>,
    Path(id): Path<u32>,
) -> Result<Json<Value>, Refusal> {
    let tables = index.read();
    let on_node = tables
        .contracts
        .values()
        .filter(|contract| contract.state.is_active() && contract.node_id() == Some(id));
    let last = on_node.map(|contract| contract.created_at).max().unwrap_or(0);
    find(&tables, id, |row| {
        json!({
            "system": with_ips(Resources::default()),
            "total": with_ips(row.node.total),
            "used": with_ips(row.usage.used),
            "users": {
                "deployments": row.usage.contract_count,
                "workloads": row.usage.contract_count,
                "last_deployment_timestamp": last,
            },
        })
    })
    .map(Json)
}

fn find(tables: &Tables, id: u32, write: impl Fn(Row<'_>) -> Value) -> Result<Value, Refusal> {
    let node = tables.nodes.get(&id).ok_or_else(|| Refusal::Absent(format!("no node {id}")))?;
    let usage = tables.node_uses().remove(&id).unwrap_or_default();
    Ok(write(Row::new(tables, node, usage)))
}

impl<'a> Row<'a> {
    fn new(tables: &'a Tables, node: &'a Node, usage: NodeUse) -> Self {
        let farm = tables.farms.get(&node.farm_id);
        Self { node, farm, usage, status: tables.node_status(node) }
    }

    fn renter(&self) -> Option<u32> {
        self.usage.rent.map(|(_, twin_id)| twin_id)
    }

    fn in_dedicated_farm(&self) -> bool {
        self.farm.is_some_and(|farm| farm.dedicated)
    }

    /// Whether it is rented whole or not at all.
    fn is_dedicated(&self) -> bool {
        self.in_dedicated_farm() || self.node.extra_fee > 0 || self.usage.rent.is_some()
    }

    fn is_rentable(&self) -> bool {
        self.usage.rent.is_none() && (self.is_dedicated() || self.usage.contract_count == 0)
    }

    fn farm_name(&self) -> &str {
        self.farm.map_or("", |farm| farm.name.as_str())
    }

    fn free(&self) -> Resources {
        self.node.total.minus(self.usage.used)
    }

    /// As the proxy writes it: in a list, or alone with its capacity in one place.
    fn json(&self, alone: bool) -> Value {
        let node = self.node;
        let config = node.public_config.clone().unwrap_or_default();
        let (total, used) = (resources_json(node.total), resources_json(self.usage.used));
        let power = |down| if down { "Down" } else { "Up" };
        let mut value = json!({
            "id": format!("{:010}", node.id), "nodeId": node.id,
            "farmId": node.farm_id, "farmName": self.farm_name(), "twinId": node.twin_id,
            "country": node.country, "city": node.city, "region": "",
            "gridVersion": node.grid_version, "uptime": node.uptime.unwrap_or(0), "created": node.created,
            "farmingPolicyId": node.farming_policy_id, "updatedAt": node.updated_at,
            "location": {
                "country": node.country, "city": node.city,
                "longitude": coordinate(&node.longitude), "latitude": coordinate(&node.latitude),
            },
            "publicConfig": config_json(&config),
            "status": self.status.name(), "certificationType": node.certification,
            "dedicated": self.is_dedicated(), "inDedicatedFarm": self.in_dedicated_farm(),
            "rentContractId": self.usage.rent.map_or(0, |(contract_id, _)| contract_id),
            "rentedByTwinId": self.renter().unwrap_or(0),
            "rented": self.usage.rent.is_some(), "rentable": self.is_rentable(),
            "serialNumber": node.serial_number,
            "power": {
                "state": power(node.power_down), "target": power(node.power_target_down),
            },
            "num_gpu": 0, "gpus": [], "extraFee": node.extra_fee,
            "healthy": self.status == NodeStatus::Up,
            "dmi": { "bios": {}, "baseboard": {}, "processor": [], "memory": [] },
            "speed": { "upload": 0, "download": 0 }, "price_usd": 0, "features": node.features,
        });
        if alone {
            value["capacity"] = json!({ "total_resources": total, "used_resources": used });
        } else {
            value["total_resources"] = total;
            value["used_resources"] = used;
        }
        value
    }
}

/// Which nodes are asked for.
#[derive(Default)]
pub(super) struct NodeFilter<'a> {
    node_ids: Option<Vec<u64>>,
    farm_ids: Option<Vec<u64>>,
    twin_ids: Option<Vec<u64>>,
    statuses: Option<HashSet<String>>,
    free: Resources,
    total: Resources,
    free_ips: u64,
    num_gpu: u64,
    country: Option<&'a str>,
    city: Option<&'a str>,
    city_part: Option<&'a str>,
    country_part: Option<&'a str>,
    farm_name: Option<&'a str>,
    farm_name_part: Option<&'a str>,
    certification: Option<&'a str>,
    region: Option<&'a str>,
    features: Vec<&'a str>,
    ipv4: Option<bool>,
    ipv6: Option<bool>,
    has_ipv6: Option<bool>,
    domain: Option<bool>,
    dedicated: Option<bool>,
    in_dedicated_farm: Option<bool>,
    rentable: Option<bool>,
    rented: Option<bool>,
    healthy: Option<bool>,
    has_gpu: Option<bool>,
    rented_by: Option<u64>,
    owned_by: Option<u64>,
    available_for: Option<u64>,
    rentable_or_rented_by: Option<u64>,
}

impl<'a> NodeFilter<'a> {
    /// What `/nodes` was asked for.
    pub(super) fn of_nodes(params: &'a Params) -> Result<Self, Refusal> {
        Ok(Self {
            node_ids: either(params.numbers("node_ids")?, params.numbers("node_id")?),
            farm_ids: either(params.numbers("farm_ids")?, params.numbers("farm_id")?),
            twin_ids: params.numbers("twin_id")?,
            free_ips: params.number("free_ips")?.unwrap_or(0),
            city_part: params.text("city_contains"),
            country_part: params.text("country_contains"),
            farm_name: params.text("farm_name"),
            farm_name_part: params.text("farm_name_contains"),
            ipv4: params.flag("ipv4")?,
            ipv6: params.flag("ipv6")?,
            domain: params.flag("domain")?,
            dedicated: params.flag("dedicated")?,
            in_dedicated_farm: params.flag("in_dedicated_farm")?,
            rentable: params.flag("rentable")?,
            rented: params.flag("rented")?,
            owned_by: params.number("owned_by")?,
            rentable_or_rented_by: params.number("rentable_or_rented_by")?,
            num_gpu: params.number("num_gpu")?.max(params.number("total_gpu")?).unwrap_or(0),
            ..Self::common(params, "")?
        })
    }

    /// What `/farms` was asked for about the farms' nodes, if anything.
    pub(super) fn of_farms(params: &'a Params) -> Result<Option<Self>, Refusal> {
        const ASKED: [&str; 15] = [
            "node_free_mru",
            "node_free_hru",
            "node_free_sru",
            "node_total_cru",
            "node_total_mru",
            "node_total_sru",
            "node_total_hru",
            "node_rented_by",
            "node_available_for",
            "node_has_gpu",
            "node_has_ipv6",
            "node_certified",
            "node_features",
            "country",
            "region",
        ];
        // `node_status` alone, which stock clients always send, must not hide a farm without nodes.
        if ASKED.iter().all(|name| params.text(name).is_none()) {
            return Ok(None);
        }
        let mut filter = Self::common(params, "node_")?;
        filter.country = params.text("country");
        filter.region = params.text("region");
        if params.flag("node_certified")? == Some(true) {
            filter.certification = Some("Certified");
        }
        Ok(Some(filter))
    }

    /// Parameters that `/nodes` and `/farms` both have, there behind `node_`.
    fn common(params: &'a Params, prefix: &str) -> Result<Self, Refusal> {
        let name = |name: &str| format!("{prefix}{name}");
        let number = |of: &str| params.number(&name(of)).map(|number| number.unwrap_or(0));
        let resources = |kind: &str| {
            let number = |unit: &str| number(&format!("{kind}_{unit}"));
            Ok::<_, Refusal>(Resources {
                cru: number("cru")?,
                sru: number("sru")?,
                hru: number("hru")?,
                mru: number("mru")?,
            })
        };
        let statuses = params.texts(&name("status"));
        Ok(Self {
            statuses: statuses.map(|list| list.into_iter().map(str::to_lowercase).collect()),
            free: resources("free")?,
            total: resources("total")?,
            country: params.text(&name("country")),
            city: params.text(&name("city")),
            region: params.text(&name("region")),
            certification: params.text(&name("certification_type")),
            features: params.texts(&name("features")).unwrap_or_default(),
            has_ipv6: params.flag(&name("has_ipv6"))?,
            healthy: params.flag(&name("healthy"))?,
            has_gpu: params.flag(&name("has_gpu"))?,
            rented_by: params.number(&name("rented_by"))?,
            available_for: params.number(&name("available_for"))?,
            ..Self::default()
        })
    }

    /// The nodes asked for, by their numbers.
    pub(super) fn matching<'t>(&self, tables: &'t Tables) -> Vec<Row<'t>> {
        let uses = tables.node_uses();
        tables
            .nodes
            .values()
            .map(|node| Row::new(tables, node, uses.get(&node.id).copied().unwrap_or_default()))
            .filter(|row| self.is_identity(row) && self.is_place(row))
            .filter(|row| self.is_capacity(row) && self.is_network(row) && self.is_rent(row))
            .collect()
    }

    fn is_identity(&self, row: &Row<'_>) -> bool {
        let any = |wanted: &Option<Vec<u64>>, id: u32| {
            wanted.as_ref().is_none_or(|ids| ids.contains(&id.into()))
        };
        any(&self.node_ids, row.node.id)
            && any(&self.farm_ids, row.node.farm_id)
            && any(&self.twin_ids, row.node.twin_id)
            && self.statuses.as_ref().is_none_or(|wanted| wanted.contains(row.status.name()))
            && is(self.healthy, &(row.status == NodeStatus::Up))
            && is_text(self.certification, row.node.certification)
            && self.features.iter().all(|wanted| row.node.features.iter().any(|one| one == wanted))
    }

    fn is_place(&self, row: &Row<'_>) -> bool {
        is_text(self.country, &row.node.country)
            && is_text(self.city, &row.node.city)
            && contains_text(self.country_part, &row.node.country)
            && contains_text(self.city_part, &row.node.city)
            && is_text(self.farm_name, row.farm_name())
            && contains_text(self.farm_name_part, row.farm_name())
            && is_text(self.region, "")
    }

    fn is_capacity(&self, row: &Row<'_>) -> bool {
        let has = |have: Resources, want: Resources| want.minus(have) == Resources::default();
        let free_ips = row.farm.map_or(0, Farm::free_ip_count) as u64;
        has(row.free(), self.free)
            && has(row.node.total, self.total)
            && free_ips >= self.free_ips
            && self.num_gpu == 0
            && self.has_gpu != Some(true)
    }

    fn is_network(&self, row: &Row<'_>) -> bool {
        let config = row.node.public_config.as_ref();
        let set = |field: fn(&PublicConfig) -> &String| {
            config.is_some_and(|config| !field(config).is_empty())
        };
        let ipv6 = set(|config| &config.ipv6);
        is(self.ipv4, &set(|config| &config.ipv4))
            && is(self.ipv6, &ipv6)
            && is(self.has_ipv6, &ipv6)
            && is(self.domain, &set(|config| &config.domain))
    }

    fn is_rent(&self, row: &Row<'_>) -> bool {
        let renter = row.renter().map(u64::from);
        let available = self.available_for.is_none_or(|twin_id| {
            renter == Some(twin_id) || (renter.is_none() && !row.is_dedicated())
        });
        let rentable_or_rented = self
            .rentable_or_rented_by
            .is_none_or(|twin_id| row.is_rentable() || renter == Some(twin_id));
        let owner = row.farm.map(|farm| u64::from(farm.twin_id));
        available
            && rentable_or_rented
            && is(self.dedicated, &row.is_dedicated())
            && is(self.in_dedicated_farm, &row.in_dedicated_farm())
            && is(self.rentable, &row.is_rentable())
            && is(self.rented, &row.usage.rent.is_some())
            && self.rented_by.is_none_or(|twin_id| renter == Some(twin_id))
            && self.owned_by.is_none_or(|twin_id| owner == Some(twin_id))
    }
}

fn sort_key(name: Option<&str>) -> Result<fn(&Row<'_>) -> Key, Refusal> {
    Ok(match name {
        None | Some("node_id") => |row| row.node.id.into(),
        Some("farm_id") => |row| row.node.farm_id.into(),
        Some("farm_name") => |row| row.farm_name().into(),
        Some("twin_id") => |row| row.node.twin_id.into(),
        Some("uptime") => |row| row.node.uptime.unwrap_or(0).into(),
        Some("created") => |row| row.node.created.into(),
        Some("updated_at") => |row| row.node.updated_at.into(),
        Some("country") => |row| row.node.country.as_str().into(),
        Some("city") => |row| row.node.city.as_str().into(),
        Some("rent_contract_id") => |row| row.usage.rent.map_or(Key::None, |rent| rent.0.into()),
        Some("dedicated_farm") => |row| u32::from(row.in_dedicated_farm()).into(),
        Some("total_cru") => |row| row.node.total.cru.into(),
        Some("total_sru") => |row| row.node.total.sru.into(),
        Some("total_hru") => |row| row.node.total.hru.into(),
        Some("total_mru") => |row| row.node.total.mru.into(),
        Some("used_cru") => |row| row.usage.used.cru.into(),
        Some("used_sru") => |row| row.usage.used.sru.into(),
        Some("used_hru") => |row| row.usage.used.hru.into(),
        Some("used_mru") => |row| row.usage.used.mru.into(),
        Some("free_cru") => |row| row.free().cru.into(),
        Some("num_gpu") => |_| Key::None,
        Some("extra_fee") => |row| row.node.extra_fee.into(),
        Some("status") => |row| row.status.name().into(),
        Some(other) => return Err(unknown_order(other)),
    })
}

fn either<T>(first: Option<T>, second: Option<T>) -> Option<T> {
    first.or(second)
}

fn coordinate(text: &str) -> f64 {
    text.parse().ok().filter(|degrees: &f64| degrees.is_finite()).unwrap_or(0.0)
}

fn resources_json(resources: Resources) -> Value {
    let Resources { cru, sru, hru, mru } = resources;
    json!({ "cru": cru, "sru": sru, "hru": hru, "mru": mru })
}

fn with_ips(resources: Resources) -> Value {
    let mut value = resources_json(resources);
    value["ipv4u"] = json!(0);
    value
}

fn config_json(config: &PublicConfig) -> Value {
    let PublicConfig { ipv4, gw4, ipv6, gw6, domain } = config;
    json!({ "domain": domain, "gw4": gw4, "gw6": gw6, "ipv4": ipv4, "ipv6": ipv6 })
}
