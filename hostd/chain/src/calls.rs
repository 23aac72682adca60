//! What can be asked of the chain, as values: nothing here speaks to anybody.
//!
//! A call names its pallet, itself and its arguments as the chain's metadata names them; how they are
//! encoded, the metadata says. Limits of the chain are left to the chain, which says so in its own
//! words: they change with it.

use scale_value::{Composite, Value};
use subxt::transactions::DynamicPayload;

use crate::types::{
    ContractResources, Interface, Ip4, Location, Node, NruConsumption, Power, PublicConfig,
    Resources,
};

/// Most calls of one batch.
pub const BATCH_COUNT_MAX: usize = 64;

/// A call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pallet: &'static str,
    name: &'static str,
    arguments: Composite<()>,
}

impl Call {
    fn new(
        pallet: &'static str,
        name: &'static str,
        arguments: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Self {
        Self { pallet, name, arguments: Composite::named(arguments) }
    }

    /// What people call it.
    pub fn title(&self) -> String {
        format!("{}.{}", self.pallet, self.name)
    }

    pub(crate) fn payload(&self) -> DynamicPayload<Composite<()>> {
        subxt::dynamic::tx(self.pallet, self.name, self.arguments.clone())
    }
}

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// The farm that it belongs to.
    pub farm_id: u32,
    /// What it has.
    pub resources: Resources,
    /// Where it is.
    pub location: Location,
    /// Its network cards.
    pub interfaces: Vec<Interface>,
    /// Whether its firmware checked what it boots.
    pub secure_boot: bool,
    /// Whether it is itself a virtual machine.
    pub virtualized: bool,
    /// What its board says.
    pub serial_number: Option<String>,
}

impl NodeSpec {
    /// Whether the chain has something else about the node.
    pub fn differs_from(&self, node: &Node) -> bool {
        let serial = node.serial_number.as_ref().map(|serial| serial.as_str());
        self.farm_id != node.farm_id
            || self.resources != node.resources
            || self.location != node.location
            || self.interfaces != node.interfaces
            || self.secure_boot != node.secure_boot
            || self.virtualized != node.virtualized
            || self.serial_number.as_deref() != serial
    }

    fn arguments(&self) -> Vec<(&'static str, Value)> {
        let location = Value::named_composite([
            ("city", text(&self.location.city)),
            ("country", text(&self.location.country)),
            ("latitude", text(&self.location.latitude)),
            ("longitude", text(&self.location.longitude)),
        ]);
        let interfaces = self.interfaces.iter().map(|interface| {
            Value::named_composite([
                ("name", text(&interface.name)),
                ("mac", text(&interface.mac)),
                ("ips", list(interface.ips.iter().map(|ip| text(ip)))),
            ])
        });
        vec![
            ("farm_id", number(self.farm_id)),
            ("resources", resources(&self.resources)),
            ("location", location),
            ("interfaces", list(interfaces)),
            ("secure_boot", Value::bool(self.secure_boot)),
            ("virtualized", Value::bool(self.virtualized)),
            ("serial_number", option(self.serial_number.as_deref().map(text))),
        ]
    }
}

/// A deployment that somebody wants on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeContractSpec {
    /// The node.
    pub node_id: u32,
    /// The deployment's hash: 32 lower-case hexadecimal digits.
    pub hash: [u8; 32],
    /// What to write beside it: at most 512 bytes, for everybody to see.
    pub data: Vec<u8>,
    /// How many of the farm's public addresses it needs.
    pub public_ips: u32,
    /// Who gets a share.
    pub solution_provider: Option<u64>,
}

/// Accepts the terms and conditions: where they are, and the hash of what was read there.
pub fn accept_terms(link: &str, hash: &str) -> Call {
    let arguments = [("document_link", text(link)), ("document_hash", text(hash))];
    Call::new("TfgridModule", "user_accept_tc", arguments)
}

/// Makes the account's twin. `relay` is a list of host names joined by `_`.
pub fn create_twin(relay: Option<&str>, pk: Option<&[u8]>) -> Call {
    Call::new("TfgridModule", "create_twin", twin(relay, pk))
}

/// Says where the account's twin can be reached, and what to encrypt with.
pub fn update_twin(relay: Option<&str>, pk: Option<&[u8]>) -> Call {
    Call::new("TfgridModule", "update_twin", twin(relay, pk))
}

/// Makes a farm.
pub fn create_farm(name: &str, public_ips: &[Ip4]) -> Call {
    let ips = public_ips
        .iter()
        .map(|ip| Value::named_composite([("ip", text(&ip.ip)), ("gw", text(&ip.gw))]));
    let arguments = [("name", text(name)), ("public_ips", list(ips))];
    Call::new("TfgridModule", "create_farm", arguments)
}

/// Adds a public address to a farm.
pub fn add_farm_ip(farm: u32, address: &Ip4) -> Call {
    let arguments =
        [("farm_id", number(farm)), ("ip", text(&address.ip)), ("gw", text(&address.gw))];
    Call::new("TfgridModule", "add_farm_ip", arguments)
}

/// Makes the account's twin a node.
pub fn create_node(spec: &NodeSpec) -> Call {
    Call::new("TfgridModule", "create_node", spec.arguments())
}

/// Says what changed about a node.
pub fn update_node(node: u32, spec: &NodeSpec) -> Call {
    let arguments = [("node_id", number(node))].into_iter().chain(spec.arguments());
    Call::new("TfgridModule", "update_node", arguments)
}

/// Says for how long a node is up, in seconds, and what time it is there, in seconds since 1970.
pub fn report_uptime(uptime: u64, timestamp: u64) -> Call {
    let arguments = [("uptime", number(uptime)), ("timestamp_hint", number(timestamp))];
    Call::new("TfgridModule", "report_uptime_v2", arguments)
}

/// Says whether the account's node runs.
pub fn set_power_state(state: Power) -> Call {
    Call::new("TfgridModule", "change_power_state", [("power_state", power(state))])
}

/// Says whether a node of the account's farm should run.
pub fn set_power_target(node: u32, target: Power) -> Call {
    let arguments = [("node_id", number(node)), ("power_target", power(target))];
    Call::new("TfgridModule", "change_power_target", arguments)
}

/// Says how the internet reaches a node of the account's farm.
pub fn set_public_config(farm: u32, node: u32, config: Option<&PublicConfig>) -> Call {
    let config = config.map(|config| {
        let address = |ip, gw| Value::named_composite([("ip", text(ip)), ("gw", text(gw))]);
        let ip6 = config.ip6.as_ref().map(|ip6| address(&ip6.ip, &ip6.gw));
        Value::named_composite([
            ("ip4", address(&config.ip4.ip, &config.ip4.gw)),
            ("ip6", option(ip6)),
            ("domain", option(config.domain.as_ref().map(|domain| text(domain)))),
        ])
    });
    let arguments =
        [("farm_id", number(farm)), ("node_id", number(node)), ("public_config", option(config))];
    Call::new("TfgridModule", "add_node_public_config", arguments)
}

/// Makes a contract for a deployment.
pub fn create_node_contract(spec: &NodeContractSpec) -> Call {
    let arguments = [
        ("node_id", number(spec.node_id)),
        ("deployment_hash", bytes(&spec.hash)),
        ("deployment_data", bytes(&spec.data)),
        ("public_ips", number(spec.public_ips)),
        ("solution_provider_id", option(spec.solution_provider.map(number))),
    ];
    Call::new("SmartContractModule", "create_node_contract", arguments)
}

/// Says that the deployment of a contract changes.
pub fn update_node_contract(contract: u64, hash: &[u8; 32], data: &[u8]) -> Call {
    let arguments = [
        ("contract_id", number(contract)),
        ("deployment_hash", bytes(hash)),
        ("deployment_data", bytes(data)),
    ];
    Call::new("SmartContractModule", "update_node_contract", arguments)
}

/// Ends a contract.
pub fn cancel_contract(contract: u64) -> Call {
    Call::new("SmartContractModule", "cancel_contract", [("contract_id", number(contract))])
}

/// Takes a name.
pub fn create_name_contract(name: &str) -> Call {
    Call::new("SmartContractModule", "create_name_contract", [("name", text(name))])
}

/// Rents a whole node.
pub fn create_rent_contract(node: u32, solution_provider: Option<u64>) -> Call {
    let arguments = [
        ("node_id", number(node)),
        ("solution_provider_id", option(solution_provider.map(number))),
    ];
    Call::new("SmartContractModule", "create_rent_contract", arguments)
}

/// Says what contracts use.
pub fn report_resources(reports: &[ContractResources]) -> Call {
    let reports = reports.iter().map(|report| {
        Value::named_composite([
            ("contract_id", number(report.contract_id)),
            ("used", resources(&report.used)),
        ])
    });
    let arguments = [("contract_resources", list(reports))];
    Call::new("SmartContractModule", "report_contract_resources", arguments)
}

/// Says what contracts sent and received.
pub fn add_nru_reports(reports: &[NruConsumption]) -> Call {
    let reports = reports.iter().map(|report| {
        Value::named_composite([
            ("contract_id", number(report.contract_id)),
            ("timestamp", number(report.timestamp)),
            ("window", number(report.window)),
            ("nru", number(report.nru)),
        ])
    });
    Call::new("SmartContractModule", "add_nru_reports", [("reports", list(reports))])
}

/// Keeps a value under a key.
pub fn kv_set(key: &[u8], value: &[u8]) -> Call {
    Call::new("TFKVStore", "set", [("key", bytes(key)), ("value", bytes(value))])
}

/// Forgets a key.
pub fn kv_delete(key: &[u8]) -> Call {
    Call::new("TFKVStore", "delete", [("key", bytes(key))])
}

/// Gives units of TFT to an account, and keeps enough for the sender's account to go on existing.
pub fn transfer(to: &[u8; 32], amount: u128) -> Call {
    let to = Value::unnamed_variant("Id", [bytes(to)]);
    Call::new("Balances", "transfer_keep_alive", [("dest", to), ("value", number(amount))])
}

/// All of these, or none of them.
pub fn batch_all(calls: &[Call]) -> Call {
    let calls = calls.iter().map(|call| call.payload().into_value());
    Call::new("Utility", "batch_all", [("calls", list(calls))])
}

fn twin(relay: Option<&str>, pk: Option<&[u8]>) -> [(&'static str, Value); 2] {
    [("relay", option(relay.map(text))), ("pk", option(pk.map(bytes)))]
}

fn power(power: Power) -> Value {
    let name = match power {
        Power::Up => "Up",
        Power::Down => "Down",
    };
    Value::unnamed_variant(name, [])
}

fn resources(resources: &Resources) -> Value {
    Value::named_composite([
        ("hru", number(resources.hru)),
        ("sru", number(resources.sru)),
        ("cru", number(resources.cru)),
        ("mru", number(resources.mru)),
    ])
}

fn number(number: impl Into<u128>) -> Value {
    Value::u128(number.into())
}

fn text(text: &str) -> Value {
    Value::from_bytes(text)
}

fn bytes(bytes: &[u8]) -> Value {
    Value::from_bytes(bytes)
}

fn list(values: impl IntoIterator<Item = Value>) -> Value {
    Value::unnamed_composite(values)
}

fn option(value: Option<Value>) -> Value {
    match value {
        Some(value) => Value::unnamed_variant("Some", [value]),
        None => Value::unnamed_variant("None", []),
    }
}

#[cfg(test)]
mod tests;
