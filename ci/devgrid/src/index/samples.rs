//! A small grid for tests: two farms, three nodes, three contracts.

use super::{
    Bill, Contract, ContractKind, ContractState, Farm, Interface, Node, PublicConfig, PublicIp,
    Resources, Tables, Twin,
};

/// The time in the sample, in Unix seconds.
pub(crate) const NOW: u64 = 1_700_000_000;
const GIB: u64 = 1 << 30;

pub(crate) fn tables() -> Tables {
    let mut tables = Tables { now: NOW, block: 9, ..Tables::default() };
    tables.farms.insert(1, farm(1));
    tables.farms.insert(2, Farm { dedicated: true, public_ips: Vec::new(), ..farm(2) });
    tables.nodes.insert(1, node(1));
    let second = Node { farm_id: 2, uptime: None, country: "Egypt".into(), ..node(2) };
    let second = Node { features: Vec::new(), ..second };
    tables.nodes.insert(2, Node { public_config: None, ..second });
    tables.nodes.insert(3, Node { power_down: true, public_config: None, ..node(3) });
    for id in 1..=6 {
        tables.twins.insert(id, twin(id));
    }
    tables.put_contract(contract(1));
    tables.put_contract(Contract {
        kind: ContractKind::Name { name: "web".into() },
        state: ContractState::GracePeriod,
        ..contract(2)
    });
    tables.put_contract(Contract { kind: ContractKind::Rent { node_id: 2 }, ..contract(3) });
    for (age, amount) in [(7200, 30), (600, 12)] {
        tables.put_bill(Bill { contract_id: 1, timestamp: NOW - age, discount: "Gold", amount });
    }
    tables
}

pub(crate) fn farm(id: u32) -> Farm {
    let ip = |last: u32, contract_id| PublicIp {
        ip: format!("185.0.{id}.{last}/24"),
        gateway: format!("185.0.{id}.1"),
        contract_id,
    };
    Farm {
        id,
        grid_version: 4,
        name: format!("Farm-{id}"),
        twin_id: id,
        pricing_policy_id: 1,
        certification: "NotCertified",
        dedicated: false,
        public_ips: vec![ip(2, 1), ip(3, 0)],
    }
}

pub(crate) fn node(id: u32) -> Node {
    Node {
        id,
        grid_version: 5,
        farm_id: 1,
        twin_id: id + 1,
        country: "Belgium".into(),
        city: "Ghent".into(),
        latitude: "51.05".into(),
        longitude: "3.71".into(),
        total: Resources { cru: 8 * u64::from(id), sru: 500 * GIB, hru: 0, mru: 16 * GIB },
        public_config: Some(PublicConfig {
            ipv4: "185.0.1.9/24".into(),
            gw4: "185.0.1.1".into(),
            domain: "gent.example.com".into(),
            ..PublicConfig::default()
        }),
        created: NOW - 1000,
        farming_policy_id: 1,
        interfaces: vec![Interface {
            name: "zos".into(),
            mac: "54:43:83:1f:eb:81".into(),
            ips: vec!["192.168.1.2".into()],
        }],
        certification: "Diy",
        secure_boot: false,
        virtualized: false,
        serial_number: String::new(),
        connection_price: 80,
        power_down: false,
        power_target_down: false,
        extra_fee: 0,
        uptime: Some(300),
        updated_at: NOW - 60,
        features: ["zmachine-light", "network-light"].map(String::from).into(),
    }
}

pub(crate) fn twin(id: u32) -> Twin {
    Twin {
        id,
        account: format!("5Account{id}"),
        relay: Some("127.0.0.1".into()),
        public_key: id.is_multiple_of(2).then(|| vec![2; 33]),
    }
}

pub(crate) fn contract(id: u64) -> Contract {
    Contract {
        id,
        grid_version: 4,
        twin_id: 5,
        state: ContractState::Created,
        kind: ContractKind::Node {
            node_id: 1,
            hash: "0123456789abcdef0123456789abcdef".into(),
            data: "{\"name\":\"vm\"}".into(),
            public_ip_count: 1,
        },
        solution_provider_id: None,
        created_at: NOW - 500 + id,
        used: Resources { cru: 2, sru: 10 * GIB, hru: 0, mru: 4 * GIB },
    }
}
