//! From the chain to the tables.
//!
//! At the start the tables go on where they were saved ([`index::saved`](crate::index::saved)), or
//! begin empty: every event since then is applied in order, and then what the state says has the last
//! word. From then on each new block adds its events. The chain keeps all its blocks, so a feed that
//! lags catches up by reading them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use devchain::pallets::{smart_contract, tfgrid};
use devchain::runtime::RuntimeEvent;
use devchain::types::{self as chain, text};
use devchain::{Block, DevChain, View};
use hostd_rmb::identity::AccountId;
use tokio::sync::broadcast::error::RecvError;

use crate::index::{
    Bill, Contract, ContractKind, ContractState, Farm, Index, Interface, Node, PublicConfig,
    PublicIp, Resources, Tables, Twin, saved,
};

/// After how many blocks the tables are saved, so that a start after an end that nobody asked for has no
/// more than these to read.
const SAVE_INTERVAL_BLOCKS: u32 = 10_000;

/// Fills `index` from what was saved in `folder` and all that `chain` has.
pub(crate) fn rebuild(chain: &DevChain, index: &Index, folder: &Path) {
    let hash_of = |number| chain.block(number).map(|block| block.hash.0);
    if let Some(tables) = saved::load(folder, chain.genesis().0, hash_of) {
        *index.write() = tables;
    }
    catch_up(chain, index);
    let Some(view) = chain.view(None) else { return };
    let mut tables = index.write();
    tables.now = view.timestamp_ms() / 1000;
    for farm in view.farms() {
        tables.farms.insert(farm.id, farm_row(&farm));
    }
    for twin in view.twins() {
        tables.twins.insert(twin.id, twin_row(&twin));
    }
    for node in view.nodes() {
        put_node(&mut tables, &node);
        set_power(&mut tables, node.id, view.node_power(node.id));
        if let Some(row) = tables.nodes.get_mut(&node.id) {
            row.extra_fee = view.extra_fee(node.id);
        }
    }
    for contract in view.contracts() {
        put_contract(&mut tables, &contract);
        if let Some(used) = view.contract_resources(contract.contract_id) {
            set_used(&mut tables, &used);
        }
    }
}

/// Keeps `index` at the head of `chain`, until the chain ends. Saves it to `folder` now and then.
pub(crate) async fn run(chain: DevChain, index: Arc<Index>, folder: PathBuf) {
    let mut blocks = chain.subscribe();
    catch_up(&chain, &index);
    let mut saved = index.read().block;
    while let Ok(_) | Err(RecvError::Lagged(_)) = blocks.recv().await {
        catch_up(&chain, &index);
        let block = index.read().block;
        if block.saturating_sub(saved) >= SAVE_INTERVAL_BLOCKS {
            saved = block;
            save(&chain, &index, &folder);
        }
    }
}

/// Saves `index` to `folder`. If that fails, the next start has more to read.
pub(crate) fn save(chain: &DevChain, index: &Index, folder: &Path) {
    let tables = index.read();
    let Some(block) = chain.block(tables.block) else { return };
    if let Err(error) = saved::save(folder, chain.genesis().0, block.hash.0, &tables) {
        tracing::warn!(%error, "the index was not saved");
    }
}

/// Applies the blocks that `index` has not seen.
fn catch_up(chain: &DevChain, index: &Index) {
    let next = index.read().block + 1;
    for number in next..=chain.head().number {
        if let (Some(block), Some(view)) = (chain.block(number), chain.view(Some(number))) {
            apply(&mut index.write(), &block, &view);
        }
    }
}

fn apply(tables: &mut Tables, block: &Block, view: &View) {
    tables.now = block.timestamp_ms / 1000;
    tables.block = block.number;
    for event in &block.events {
        match event {
            RuntimeEvent::TfgridModule(event) => grid_event(tables, event),
            RuntimeEvent::SmartContractModule(event) => contract_event(tables, event, view),
            _ => {}
        }
    }
}

fn grid_event(tables: &mut Tables, event: &tfgrid::Event<devchain::runtime::Runtime>) {
    use tfgrid::Event;
    match event {
        Event::FarmStored(farm) | Event::FarmUpdated(farm) => {
            tables.farms.insert(farm.id, farm_row(farm));
        }
        Event::FarmMarkedAsDedicated(id) => {
            if let Some(farm) = tables.farms.get_mut(id) {
                farm.dedicated = true;
            }
        }
        Event::FarmCertificationSet(id, certification) => {
            if let Some(farm) = tables.farms.get_mut(id) {
                farm.certification = farm_certification(*certification);
            }
        }
        Event::TwinStored(twin) | Event::TwinUpdated(twin) => {
            tables.twins.insert(twin.id, twin_row(twin));
        }
        Event::NodeStored(node) | Event::NodeUpdated(node) => put_node(tables, node),
        Event::NodeDeleted(id) => {
            tables.nodes.remove(id);
        }
        Event::NodeUptimeReported(id, now, uptime) => {
            if let Some(node) = tables.nodes.get_mut(id) {
                (node.uptime, node.updated_at) = (Some(*uptime), *now);
            }
        }
        Event::NodePublicConfigStored(id, config) => {
            if let Some(node) = tables.nodes.get_mut(id) {
                node.public_config = config.as_ref().map(config_row);
            }
        }
        Event::NodeCertificationSet(id, certification) => {
            if let Some(node) = tables.nodes.get_mut(id) {
                node.certification = node_certification(*certification);
            }
        }
        Event::PowerTargetChanged { node_id, power_target, .. } => {
            if let Some(node) = tables.nodes.get_mut(node_id) {
                node.power_target_down = *power_target == chain::Power::Down;
            }
        }
        Event::PowerStateChanged { node_id, power_state, .. } => {
            if let Some(node) = tables.nodes.get_mut(node_id) {
                node.power_down = *power_state != chain::PowerState::Up;
            }
        }
        _ => {}
    }
}

fn contract_event(
    tables: &mut Tables,
    event: &smart_contract::Event<devchain::runtime::Runtime>,
    view: &View,
) {
    use smart_contract::Event;
    match event {
        Event::ContractCreated(contract) | Event::ContractUpdated(contract) => {
            put_contract(tables, contract);
        }
        Event::NodeContractCanceled { contract_id, .. }
        | Event::NameContractCanceled { contract_id }
        | Event::RentContractCanceled { contract_id } => {
            end(tables, *contract_id, ContractState::Deleted);
        }
        // It comes before the contract is cancelled, and says why it will be.
        Event::ContractGracePeriodElapsed { contract_id, .. } => {
            end(tables, *contract_id, ContractState::OutOfFunds);
        }
        Event::ContractGracePeriodStarted { contract_id, .. } => {
            set_state(tables, *contract_id, ContractState::GracePeriod);
        }
        Event::ContractGracePeriodEnded { contract_id, .. } => {
            set_state(tables, *contract_id, ContractState::Created);
        }
        Event::UpdatedUsedResources(used) => set_used(tables, used),
        Event::ContractBilled(bill) => tables.put_bill(Bill {
            contract_id: bill.contract_id,
            timestamp: bill.timestamp,
            discount: discount(bill.discount_level),
            amount: bill.amount_billed,
        }),
        Event::NodeExtraFeeSet { node_id, extra_fee } => {
            if let Some(node) = tables.nodes.get_mut(node_id) {
                node.extra_fee = *extra_fee;
            }
        }
        Event::IPsReserved { contract_id, .. } | Event::IPsFreed { contract_id, .. } => {
            let node_id = tables.contracts.get(contract_id).and_then(Contract::node_id);
            let farm_id = node_id.and_then(|id| tables.nodes.get(&id)).map(|node| node.farm_id);
            refresh_ips(tables, farm_id, view);
        }
        _ => {}
    }
}

/// Reads farms again whose addresses changed hands; all of them if it is not known whose they are.
fn refresh_ips(tables: &mut Tables, farm_id: Option<u32>, view: &View) {
    let farms = farm_id.map_or_else(|| view.farms(), |id| view.farm(id).into_iter().collect());
    for farm in farms {
        tables.farms.insert(farm.id, farm_row(&farm));
    }
}

fn set_state(tables: &mut Tables, id: u64, state: ContractState) {
    if let Some(contract) = tables.contracts.get(&id) {
        tables.put_contract(Contract { state, ..contract.clone() });
    }
}

/// A contract ends once; the first reason is the one that is kept.
fn end(tables: &mut Tables, id: u64, state: ContractState) {
    if tables.contracts.get(&id).is_some_and(|contract| contract.state.is_active()) {
        set_state(tables, id, state);
    }
}

fn set_used(tables: &mut Tables, used: &chain::ContractResources) {
    if let Some(contract) = tables.contracts.get_mut(&used.contract_id) {
        contract.used = resources(&used.used);
    }
}

fn set_power(tables: &mut Tables, id: u32, power: chain::NodePower) {
    if let Some(node) = tables.nodes.get_mut(&id) {
        node.power_down = power.state != chain::PowerState::Up;
        node.power_target_down = power.target == chain::Power::Down;
    }
}

fn put_contract(tables: &mut Tables, contract: &chain::Contract) {
    let before = tables.contracts.get(&contract.contract_id);
    let created_at = before.map_or(tables.now, |before| before.created_at);
    let used = before.map(|before| before.used).unwrap_or_default();
    let state = match contract.state {
        chain::ContractState::Created => ContractState::Created,
        chain::ContractState::GracePeriod(_) => ContractState::GracePeriod,
        chain::ContractState::Deleted(chain::Cause::OutOfFunds) => ContractState::OutOfFunds,
        chain::ContractState::Deleted(_) => ContractState::Deleted,
    };
    let kind = match &contract.contract_type {
        chain::ContractData::NodeContract(node) => ContractKind::Node {
            node_id: node.node_id,
            hash: text(&node.deployment_hash),
            data: text(&node.deployment_data),
            public_ip_count: node.public_ips,
        },
        chain::ContractData::NameContract(name) => ContractKind::Name { name: text(&name.name) },
        chain::ContractData::RentContract(rent) => ContractKind::Rent { node_id: rent.node_id },
    };
    tables.put_contract(Contract {
        id: contract.contract_id,
        grid_version: contract.version,
        twin_id: contract.twin_id,
        state,
        kind,
        solution_provider_id: contract.solution_provider_id,
        created_at,
        used,
    });
}

fn put_node(tables: &mut Tables, node: &chain::Node) {
    let before = tables.nodes.get(&node.id);
    let row = Node {
        id: node.id,
        grid_version: node.version,
        farm_id: node.farm_id,
        twin_id: node.twin_id,
        country: text(&node.location.country),
        city: text(&node.location.city),
        latitude: text(&node.location.latitude),
        longitude: text(&node.location.longitude),
        total: resources(&node.resources),
        public_config: node.public_config.as_ref().map(config_row),
        created: node.created,
        farming_policy_id: node.farming_policy_id,
        interfaces: node.interfaces.iter().map(interface_row).collect(),
        certification: node_certification(node.certification),
        secure_boot: node.secure_boot,
        virtualized: node.virtualized,
        serial_number: node.serial_number.as_ref().map(|serial| text(serial)).unwrap_or_default(),
        connection_price: node.connection_price,
        power_down: before.is_some_and(|before| before.power_down),
        power_target_down: before.is_some_and(|before| before.power_target_down),
        extra_fee: before.map_or(0, |before| before.extra_fee),
        uptime: before.and_then(|before| before.uptime),
        updated_at: before.map_or(tables.now, |before| before.updated_at),
        features: before.map(|before| before.features.clone()).unwrap_or_default(),
    };
    tables.nodes.insert(node.id, row);
}

fn farm_row(farm: &chain::Farm) -> Farm {
    let ip = |ip: &chain::PublicIP| PublicIp {
        ip: text(&ip.ip),
        gateway: text(&ip.gateway),
        contract_id: ip.contract_id,
    };
    Farm {
        id: farm.id,
        grid_version: farm.version,
        name: text(&farm.name),
        twin_id: farm.twin_id,
        pricing_policy_id: farm.pricing_policy_id,
        certification: farm_certification(farm.certification),
        dedicated: farm.dedicated_farm,
        public_ips: farm.public_ips.iter().map(ip).collect(),
    }
}

fn twin_row(twin: &chain::Twin) -> Twin {
    Twin {
        id: twin.id,
        account: AccountId::from_bytes(twin.account_id.clone().into()).to_string(),
        relay: twin.relay.as_ref().map(|relay| text(relay)),
        public_key: twin.pk.as_ref().map(|key| key.to_vec()),
    }
}

fn config_row(config: &chain::PublicConfig) -> PublicConfig {
    let ip6 = config.ip6.as_ref();
    PublicConfig {
        ipv4: text(&config.ip4.ip),
        gw4: text(&config.ip4.gw),
        ipv6: ip6.map(|ip6| text(&ip6.ip)).unwrap_or_default(),
        gw6: ip6.map(|ip6| text(&ip6.gw)).unwrap_or_default(),
        domain: config.domain.as_ref().map(|domain| text(domain)).unwrap_or_default(),
    }
}

fn interface_row(interface: &chain::Interface) -> Interface {
    Interface {
        name: text(&interface.name),
        mac: text(&interface.mac),
        ips: interface.ips.iter().map(|ip| text(ip)).collect(),
    }
}

fn resources(of: &chain::Resources) -> Resources {
    let chain::Resources { hru, sru, cru, mru } = *of;
    Resources { cru, sru, hru, mru }
}

fn farm_certification(certification: chain::FarmCertification) -> &'static str {
    match certification {
        chain::FarmCertification::NotCertified => "NotCertified",
        chain::FarmCertification::Gold => "Gold",
    }
}

fn node_certification(certification: chain::NodeCertification) -> &'static str {
    match certification {
        chain::NodeCertification::Diy => "Diy",
        chain::NodeCertification::Certified => "Certified",
    }
}

fn discount(level: chain::DiscountLevel) -> &'static str {
    match level {
        chain::DiscountLevel::None => "None",
        chain::DiscountLevel::Default => "Default",
        chain::DiscountLevel::Bronze => "Bronze",
        chain::DiscountLevel::Silver => "Silver",
        chain::DiscountLevel::Gold => "Gold",
    }
}
