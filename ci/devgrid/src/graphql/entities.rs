//! What can be asked for: each entity with its fields, and how rows become entities.

use serde_json::{Map, Value, json};

use crate::index::{Bill, Contract, ContractKind, Farm, Node, Tables, Twin};
use crate::rest::hex;

/// The kind of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Id,
    Int,
    /// A number that may not fit 32 bits; written as text, as the grid's server does.
    BigInt,
    Text,
    Flag,
    /// One of [`CONTRACT_STATES`].
    State,
    /// An entity, or a list of them, that is read but not filtered by.
    One(&'static str),
    Many(&'static str),
}

/// What states a contract can be in.
pub(super) const CONTRACT_STATES: [&str; 4] = ["Created", "Deleted", "OutOfFunds", "GracePeriod"];

/// A row as GraphQL sees it.
pub(super) type Object = Map<String, Value>;

/// Something that can be asked for.
pub(super) struct Entity {
    /// The name of its type.
    pub(super) name: &'static str,
    /// The name of the list of all of it; nothing for what is only part of others.
    pub(super) list: Option<&'static str>,
    pub(super) fields: &'static [(&'static str, Kind)],
    /// All rows.
    pub(super) rows: fn(&Tables) -> Vec<Object>,
}

use Kind::{BigInt, Flag, Id, Int, Many, One, State, Text};

/// Everything that can be asked for.
pub(super) const ENTITIES: [Entity; 13] = [
    Entity {
        name: "Twin",
        list: Some("twins"),
        fields: &[
            ("id", Id),
            ("twinID", Int),
            ("gridVersion", Int),
            ("accountID", Text),
            ("relay", Text),
            ("publicKey", Text),
        ],
        rows: |tables| tables.twins.values().map(twin).collect(),
    },
    Entity {
        name: "Farm",
        list: Some("farms"),
        fields: &[
            ("id", Id),
            ("farmID", Int),
            ("gridVersion", Int),
            ("name", Text),
            ("twinID", Int),
            ("pricingPolicyID", Int),
            ("certification", Text),
            ("stellarAddress", Text),
            ("dedicatedFarm", Flag),
            ("publicIPs", Many("PublicIp")),
        ],
        rows: |tables| tables.farms.values().map(farm).collect(),
    },
    Entity {
        name: "PublicIp",
        list: Some("publicIps"),
        fields: &[
            ("id", Id),
            ("ip", Text),
            ("gateway", Text),
            ("contractId", BigInt),
            ("farmID", Int),
        ],
        rows: |tables| tables.farms.values().flat_map(public_ips).collect(),
    },
    Entity {
        name: "Node",
        list: Some("nodes"),
        fields: &[
            ("id", Id),
            ("nodeID", Int),
            ("gridVersion", Int),
            ("farmID", Int),
            ("twinID", Int),
            ("farmingPolicyId", Int),
            ("country", Text),
            ("city", Text),
            ("uptime", BigInt),
            ("created", Int),
            ("createdAt", BigInt),
            ("updatedAt", BigInt),
            ("certification", Text),
            ("secure", Flag),
            ("virtualized", Flag),
            ("serialNumber", Text),
            ("connectionPrice", Int),
            ("dedicated", Flag),
            ("extraFee", BigInt),
            ("location", One("Location")),
            ("resourcesTotal", One("NodeResourcesTotal")),
            ("power", One("NodePower")),
            ("publicConfig", One("PublicConfig")),
            ("interfaces", Many("Interfaces")),
        ],
        rows: |tables| tables.nodes.values().map(|row| node(tables, row)).collect(),
    },
    Entity {
        name: "PublicConfig",
        list: Some("publicConfigs"),
        fields: &[
            ("id", Id),
            ("nodeID", Int),
            ("ipv4", Text),
            ("gw4", Text),
            ("ipv6", Text),
            ("gw6", Text),
            ("domain", Text),
        ],
        rows: |tables| tables.nodes.values().filter_map(public_config).collect(),
    },
    Entity {
        name: "NodeContract",
        list: Some("nodeContracts"),
        fields: &[
            ("id", Id),
            ("contractID", BigInt),
            ("gridVersion", Int),
            ("twinID", Int),
            ("nodeID", Int),
            ("deploymentHash", Text),
            ("deploymentData", Text),
            ("numberOfPublicIPs", Int),
            ("createdAt", BigInt),
            ("state", State),
            ("solutionProviderID", Int),
            ("resourcesUsed", One("ContractResources")),
        ],
        rows: |tables| contracts(tables, "node"),
    },
    Entity {
        name: "NameContract",
        list: Some("nameContracts"),
        fields: &[
            ("id", Id),
            ("contractID", BigInt),
            ("gridVersion", Int),
            ("twinID", Int),
            ("name", Text),
            ("createdAt", BigInt),
            ("state", State),
            ("solutionProviderID", Int),
        ],
        rows: |tables| contracts(tables, "name"),
    },
    Entity {
        name: "RentContract",
        list: Some("rentContracts"),
        fields: &[
            ("id", Id),
            ("contractID", BigInt),
            ("gridVersion", Int),
            ("twinID", Int),
            ("nodeID", Int),
            ("createdAt", BigInt),
            ("state", State),
            ("solutionProviderID", Int),
        ],
        rows: |tables| contracts(tables, "rent"),
    },
    Entity {
        name: "ContractBillReport",
        list: Some("contractBillReports"),
        fields: &[
            ("id", Id),
            ("contractID", BigInt),
            ("discountReceived", Text),
            ("amountBilled", BigInt),
            ("timestamp", BigInt),
        ],
        rows: |tables| tables.bills.iter().enumerate().map(bill).collect(),
    },
    Entity {
        name: "Location",
        list: None,
        fields: &[("longitude", Text), ("latitude", Text)],
        rows: |_| Vec::new(),
    },
    Entity {
        name: "NodeResourcesTotal",
        list: None,
        fields: &[("cru", BigInt), ("sru", BigInt), ("hru", BigInt), ("mru", BigInt)],
        rows: |_| Vec::new(),
    },
    Entity {
        name: "ContractResources",
        list: None,
        fields: &[("cru", BigInt), ("sru", BigInt), ("hru", BigInt), ("mru", BigInt)],
        rows: |_| Vec::new(),
    },
    Entity {
        name: "NodePower",
        list: None,
        fields: &[("state", Text), ("target", Text)],
        rows: |_| Vec::new(),
    },
];

/// The entity of a node's network interface: its fields are texts, as its addresses are joined.
pub(super) const INTERFACES: Entity = Entity {
    name: "Interfaces",
    list: None,
    fields: &[("name", Text), ("mac", Text), ("ips", Text)],
    rows: |_| Vec::new(),
};

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}

fn twin(row: &Twin) -> Object {
    object(json!({
        "id": row.id.to_string(), "twinID": row.id, "gridVersion": 1, "accountID": row.account,
        "relay": row.relay, "publicKey": row.public_key.as_deref().map(hex),
    }))
}

fn farm(row: &Farm) -> Object {
    object(json!({
        "id": row.id.to_string(), "farmID": row.id, "gridVersion": row.grid_version,
        "name": row.name, "twinID": row.twin_id, "pricingPolicyID": row.pricing_policy_id,
        "certification": row.certification, "stellarAddress": null,
        "dedicatedFarm": row.dedicated, "publicIPs": public_ips(row),
    }))
}

fn public_ips(farm: &Farm) -> Vec<Object> {
    let row = |ip: &crate::index::PublicIp| {
        object(json!({
            "id": format!("{}-{}", farm.id, ip.ip), "ip": ip.ip, "gateway": ip.gateway,
            "contractId": ip.contract_id, "farmID": farm.id,
        }))
    };
    farm.public_ips.iter().map(row).collect()
}

fn node(tables: &Tables, row: &Node) -> Object {
    let power = |down| if down { "Down" } else { "Up" };
    let interfaces: Vec<Value> = row
        .interfaces
        .iter()
        .map(|one| json!({ "name": one.name, "mac": one.mac, "ips": one.ips.join(",") }))
        .collect();
    let dedicated = tables.farms.get(&row.farm_id).is_some_and(|farm| farm.dedicated);
    object(json!({
        "id": row.id.to_string(), "nodeID": row.id, "gridVersion": row.grid_version,
        "farmID": row.farm_id, "twinID": row.twin_id, "farmingPolicyId": row.farming_policy_id,
        "country": row.country, "city": row.city, "uptime": row.uptime.unwrap_or(0),
        "created": row.created, "createdAt": row.created, "updatedAt": row.updated_at,
        "certification": row.certification, "secure": row.secure_boot,
        "virtualized": row.virtualized, "serialNumber": row.serial_number,
        "connectionPrice": row.connection_price, "dedicated": dedicated || row.extra_fee > 0,
        "extraFee": row.extra_fee,
        "location": { "longitude": row.longitude, "latitude": row.latitude },
        "resourcesTotal": resources(row.total),
        "power": { "state": power(row.power_down), "target": power(row.power_target_down) },
        "publicConfig": public_config(row), "interfaces": interfaces,
    }))
}

fn public_config(row: &Node) -> Option<Object> {
    let config = row.public_config.as_ref()?;
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Some(object(json!({
        "id": row.id.to_string(), "nodeID": row.id, "ipv4": text(&config.ipv4),
        "gw4": text(&config.gw4), "ipv6": text(&config.ipv6), "gw6": text(&config.gw6),
        "domain": text(&config.domain),
    })))
}

fn contracts(tables: &Tables, kind: &str) -> Vec<Object> {
    let of_kind = tables.contracts.values().filter(|contract| contract.kind_name() == kind);
    of_kind.map(contract).collect()
}

fn contract(row: &Contract) -> Object {
    let mut value = object(json!({
        "id": row.id.to_string(), "contractID": row.id, "gridVersion": row.grid_version,
        "twinID": row.twin_id, "createdAt": row.created_at, "state": row.state.name(),
        "solutionProviderID": row.solution_provider_id,
    }));
    let more = match &row.kind {
        ContractKind::Node { node_id, hash, data, public_ip_count } => json!({
            "nodeID": node_id, "deploymentHash": hash, "deploymentData": data,
            "numberOfPublicIPs": public_ip_count, "resourcesUsed": resources(row.used),
        }),
        ContractKind::Name { name } => json!({ "name": name }),
        ContractKind::Rent { node_id } => json!({ "nodeID": node_id }),
    };
    value.extend(object(more));
    value
}

fn resources(of: crate::index::Resources) -> Value {
    json!({ "cru": of.cru, "sru": of.sru, "hru": of.hru, "mru": of.mru })
}

fn bill((number, row): (usize, &Bill)) -> Object {
    object(json!({
        "id": number.to_string(), "contractID": row.contract_id,
        "discountReceived": row.discount,
        "amountBilled": u64::try_from(row.amount).unwrap_or(u64::MAX),
        "timestamp": row.timestamp,
    }))
}
