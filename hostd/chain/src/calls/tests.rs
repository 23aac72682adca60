//! Calls and keys as TFChain's own metadata encodes them, against bytes that other clients made.
//!
//! The metadata is 85 KB of recorded data beside the repository; where it is absent the tests say so and
//! pass. `reference/tfchain-rmb.md`, section 1.5.

use std::path::PathBuf;
use std::sync::Arc;

use subxt::config::SubstrateConfig;
use subxt::config::substrate::SpecVersionForRange;
use subxt::ext::codec::Decode as _;
use subxt::{Metadata, OfflineClient, OfflineClientAtBlock};

use super::*;
use crate::reads;

/// Spec 152's metadata, if it is there.
fn recorded() -> Option<OfflineClientAtBlock<SubstrateConfig>> {
    let shared = std::env::var_os("ZERO_OS_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let path = shared.join("vectors/tfchain-spec152.scale");
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("skipped: there is no {}", path.display());
        return None;
    };
    let metadata = Metadata::decode(&mut bytes.as_slice()).expect("the metadata is whole");
    let config = SubstrateConfig::builder()
        .set_genesis_hash([0; 32].into())
        .set_metadata_for_spec_versions([(152, Arc::new(metadata))])
        .set_spec_version_for_block_ranges([SpecVersionForRange {
            block_range: 0..u64::MAX,
            spec_version: 152,
            transaction_version: 2,
        }])
        .build();
    Some(OfflineClient::new_with_config(config).at_block(1_u64).expect("block 1 has metadata"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn node_spec() -> NodeSpec {
    NodeSpec {
        farm_id: 1,
        resources: Resources { hru: 1, sru: 2, cru: 3, mru: 4 },
        location: Location {
            city: "Ghent".into(),
            country: "Belgium".into(),
            latitude: "51.0".into(),
            longitude: "3.7".into(),
        },
        interfaces: vec![Interface {
            name: "zos".into(),
            mac: "aa:bb:cc:dd:ee:ff".into(),
            ips: vec!["10.0.0.1".into(), "fe80::1".into()],
        }],
        secure_boot: true,
        virtualized: false,
        serial_number: Some("S1".to_owned()),
    }
}

#[test]
fn the_reference_bytes_come_out() {
    let Some(chain) = recorded() else { return };
    let encoded = |call: &Call| hex(&chain.tx().call_data(&call.payload()).unwrap());
    let hash = [0xab; 32];
    let spec = NodeContractSpec {
        node_id: 11,
        hash,
        data: br#"{"type":"vm"}"#.to_vec(),
        public_ips: 1,
        solution_provider: None,
    };
    let made = format!("1a000b000000{}347b2274797065223a22766d227d0100000000", hex(&hash));
    assert_eq!(encoded(&create_node_contract(&spec)), made);
    assert_eq!(encoded(&cancel_contract(5)), "1a020500000000000000");
    assert_eq!(
        encoded(&report_uptime(3600, 1_700_000_000)),
        "1926100e00000000000000f1536500000000"
    );
    assert_eq!(
        encoded(&create_twin(Some("relay.grid.tf"), None)),
        "1911013472656c61792e677269642e746600"
    );
    let batch = encoded(&batch_all(&[cancel_contract(5), cancel_contract(6)]));
    assert_eq!(batch, "0302081a0205000000000000001a020600000000000000");
}

#[test]
fn every_call_fits_the_recorded_metadata() {
    let Some(chain) = recorded() else { return };
    let address = Ip4 { ip: "1.2.3.4/24".into(), gw: "1.2.3.1".into() };
    let config = PublicConfig {
        ip4: address.clone(),
        ip6: Some(crate::types::Ip6 { ip: "2a10::2/64".into(), gw: "2a10::1".into() }),
        domain: Some("gateway.grid.tf".into()),
    };
    let used = ContractResources { contract_id: 7, used: node_spec().resources };
    let nru = NruConsumption { contract_id: 7, timestamp: 8, window: 9, nru: 10 };
    let calls = [
        accept_terms("http://zos.tf/terms/v0.1", "9021d4dee05a661e2cb6838152c67f25"),
        update_twin(None, Some(&[2; 33])),
        create_farm("farm", std::slice::from_ref(&address)),
        create_farm("farm", &[]),
        add_farm_ip(1, &address),
        create_node(&node_spec()),
        update_node(9, &node_spec()),
        set_power_state(Power::Down),
        set_power_target(9, Power::Up),
        set_public_config(1, 9, Some(&config)),
        set_public_config(1, 9, None),
        update_node_contract(7, &[b'a'; 32], b""),
        create_name_contract("name"),
        create_rent_contract(9, Some(3)),
        report_resources(&[used]),
        add_nru_reports(&[nru, nru]),
        kv_set(b"key", b"value"),
        kv_delete(b"key"),
        transfer(&[5; 32], 10_000_000),
    ];
    for call in calls {
        let bytes = chain.tx().call_data(&call.payload());
        assert!(bytes.is_ok(), "{}: {bytes:?}", call.title());
    }
    let node = hex(&chain.tx().call_data(&create_node(&node_spec()).payload()).unwrap());
    let expected = "190801000000\
         0100000000000000020000000000000003000000000000000400000000000000\
         144768656e741c42656c6769756d\
         1035312e300c332e37\
         040c7a6f734461613a62623a63633a64643a65653a6666082031302e302e302e311c666538303a3a31\
         010001085331";
    assert_eq!(node, expected);
}

#[test]
fn the_reference_keys_come_out() {
    let Some(chain) = recorded() else { return };
    let key = |pallet: &str, entry: &str, keys: Vec<Value>| {
        let address = subxt::dynamic::storage::<Vec<Value>, Value>(pallet, entry);
        hex(&chain.storage().entry(address).unwrap().fetch_key(keys).unwrap())
    };
    assert_eq!(
        key("TfgridModule", "Twins", vec![reads::number(42_u32)]),
        "19a2526838feefd7695a3b5715b415b1311378229266fc86f673a3f4cf398e69\
         9017d1c733ec2aeaa6fd0230614e397e2a000000"
    );
    let hash = [0xab; 32];
    let by_hash = key(
        "SmartContractModule",
        "ContractIDByNodeIDAndHash",
        vec![reads::number(11_u32), reads::bytes(hash)],
    );
    let expected = "44cb2e51a1811cda53a74b4395e03d57909385366f0e1dfc293f0a45f60df2d7\
                    3436db8bf2d563cb5d2999a82809eded0b0000006bb3853c34cfcf3b081e5715f3c82748";
    assert_eq!(by_hash, format!("{expected}{}", hex(&hash)));
    assert_eq!(
        key("System", "Events", Vec::new()),
        "26aa394eea5630e07c48ae0c9558cef780d41e5e16056765bc8461851072c9d7"
    );
    // A newtype around a text is keyed as the text: length, then bytes.
    let name =
        key("SmartContractModule", "ContractIDByNameRegistration", vec![reads::bytes("name")]);
    assert!(name.ends_with("106e616d65"), "{name}");
}

#[test]
fn a_node_is_updated_only_if_something_differs() {
    let spec = node_spec();
    let node = Node {
        id: 9,
        farm_id: spec.farm_id,
        twin_id: 4,
        resources: spec.resources,
        location: spec.location.clone(),
        public_config: None,
        created: 0,
        farming_policy_id: 1,
        interfaces: spec.interfaces.clone(),
        certification: crate::types::NodeCertification::Diy,
        secure_boot: spec.secure_boot,
        virtualized: spec.virtualized,
        serial_number: Some("S1".into()),
    };
    assert!(!spec.differs_from(&node));
    assert!(NodeSpec { serial_number: None, ..spec.clone() }.differs_from(&node));
    assert!(NodeSpec { interfaces: Vec::new(), ..spec.clone() }.differs_from(&node));
    let resources = Resources { mru: 5, ..spec.resources };
    assert!(NodeSpec { resources, ..spec }.differs_from(&node));
}
