//! Our metadata against TFChain's of spec version 152: calls, storage, events, errors and constants,
//! one by one, for the pallets that we have.
//!
//! [`DIFFERENCES`] lists all that TFChain has and we do not, each with the reason. The test fails
//! when the list is too short, and when it is too long. What we have beyond TFChain is not compared: a
//! client of TFChain never asks for it.
//!
//! TFChain's metadata is not part of this repository. Where it is not found in `shared/vectors` of a
//! directory above, the test says so and passes.

#![expect(clippy::unwrap_used, reason = "a test stops where something is wrong")]

use std::{collections::BTreeSet, path::Path};

use codec::Decode as _;
use frame_metadata::{
    RuntimeMetadata, RuntimeMetadataPrefixed,
    v14::{PalletMetadata, RuntimeMetadataV14, StorageEntryModifier, StorageEntryType},
};
use scale_info::{PortableRegistry, TypeDef, form::PortableForm};

/// The pallets that are compared in full.
const OURS: [&str; 4] = ["TfgridModule", "SmartContractModule", "TFTPriceModule", "TFKVStore"];
/// The pallets of FRAME, in a newer release than TFChain's: the numbers of their calls are compared.
const FRAME: [&str; 3] = ["Timestamp", "Utility", "Balances"];

/// What TFChain has and we do not: pallet, kind, names, and why.
const DIFFERENCES: &[(&str, &str, &[&str], &str)] = &[
    (
        "TfgridModule",
        "call",
        &[
            "create_entity",
            "update_entity",
            "delete_entity",
            "add_twin_entity",
            "delete_twin_entity",
        ],
        "entities were never used on the grid",
    ),
    (
        "TfgridModule",
        "storage",
        &["Entities", "EntityIdByAccountID", "EntityIdByName", "EntityID"],
        "entities were never used on the grid",
    ),
    (
        "TfgridModule",
        "event",
        &[
            "EntityStored",
            "EntityUpdated",
            "EntityDeleted",
            "TwinEntityStored",
            "TwinEntityRemoved",
        ],
        "entities were never used on the grid",
    ),
    (
        "TfgridModule",
        "event",
        &["FarmDeleted", "TwinDeleted"],
        "no call of TFChain emits them any more",
    ),
    (
        "TfgridModule",
        "call",
        &[
            "create_pricing_policy",
            "update_pricing_policy",
            "create_farming_policy",
            "update_farming_policy",
            "attach_policy_to_farm",
        ],
        "policies are part of block 0 here",
    ),
    (
        "TfgridModule",
        "event",
        &["FarmingPolicyUpdated", "FarmingPolicySet"],
        "policies are part of block 0 here",
    ),
    ("TfgridModule", "call", &["set_storage_version"], "there is nothing to migrate"),
    ("TfgridModule", "storage", &["PalletVersion"], "there is nothing to migrate"),
    (
        "SmartContractModule",
        "call",
        &["create_solution_provider", "approve_solution_provider", "attach_solution_provider_id"],
        "solution providers only share in money that is worth nothing here",
    ),
    (
        "SmartContractModule",
        "storage",
        &["SolutionProviders", "SolutionProviderID"],
        "solution providers only share in money that is worth nothing here",
    ),
    (
        "SmartContractModule",
        "event",
        &["SolutionProviderCreated", "SolutionProviderApproved"],
        "solution providers only share in money that is worth nothing here",
    ),
    (
        "SmartContractModule",
        "call",
        &[
            "service_contract_create",
            "service_contract_set_metadata",
            "service_contract_set_fees",
            "service_contract_approve",
            "service_contract_reject",
            "service_contract_cancel",
            "service_contract_bill",
        ],
        "service contracts have nothing to do with nodes",
    ),
    (
        "SmartContractModule",
        "storage",
        &["ServiceContracts", "ServiceContractID"],
        "service contracts have nothing to do with nodes",
    ),
    (
        "SmartContractModule",
        "event",
        &[
            "ServiceContractCreated",
            "ServiceContractMetadataSet",
            "ServiceContractFeesSet",
            "ServiceContractApproved",
            "ServiceContractCanceled",
            "ServiceContractBilled",
        ],
        "service contracts have nothing to do with nodes",
    ),
    (
        "SmartContractModule",
        "storage",
        &["ContractLock"],
        "what ContractPaymentState replaced in spec 152",
    ),
    (
        "SmartContractModule",
        "storage",
        &["PalletVersion", "CurrentMigrationStage"],
        "there is nothing to migrate",
    ),
    (
        "SmartContractModule",
        "event",
        &["ContractDeployed", "ConsumptionReportReceived"],
        "no call of TFChain emits them any more",
    ),
    ("TFTPriceModule", "event", &["OffchainWorkerExecuted"], "there is no off-chain worker here"),
    (
        "Balances",
        "call",
        &["set_balance_deprecated"],
        "gone from newer FRAME, and of the council alone",
    ),
];

/// How deep a type is followed.
const DEPTH_MAX: usize = 16;

/// One thing of a pallet: its kind, its name, and all that a client must know to use it.
type Facts = BTreeSet<(String, String, String)>;

#[test]
fn metadata_agrees_with_spec_152() {
    let Some(path) = vector() else {
        eprintln!("skipped: no shared/vectors/tfchain-spec152.scale in a directory above");
        return;
    };
    let theirs = v14(&std::fs::read(path).unwrap());
    let ours = v14(&devchain::runtime::metadata());
    let mut missing = BTreeSet::new();
    for name in OURS.into_iter().chain(FRAME) {
        let in_full = OURS.contains(&name);
        let expected = facts(&theirs, name, in_full);
        let found = facts(&ours, name, in_full);
        for (kind, item, detail) in &expected {
            if found.contains(&(kind.clone(), item.clone(), detail.clone())) {
                continue;
            }
            let other =
                found.iter().find(|(other_kind, other, _)| other_kind == kind && other == item);
            if let Some((_, _, other)) = other {
                panic!("{name} {kind} {item}:\n TFChain {detail}\n ours    {other}");
            }
            missing.insert((name.to_owned(), kind.clone(), item.clone()));
        }
    }
    let listed: BTreeSet<_> = DIFFERENCES
        .iter()
        .flat_map(|(pallet, kind, items, why)| {
            assert!(!why.is_empty());
            items.iter().map(|item| ((*pallet).to_owned(), (*kind).to_owned(), (*item).to_owned()))
        })
        .collect();
    let unlisted: Vec<_> = missing.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&missing).collect();
    assert!(unlisted.is_empty(), "TFChain has these, we do not: {unlisted:?}");
    assert!(stale.is_empty(), "these are no differences: {stale:?}");
}

#[test]
fn extensions_and_pallet_indexes_agree_with_spec_152() {
    let Some(path) = vector() else {
        eprintln!("skipped: no shared/vectors/tfchain-spec152.scale in a directory above");
        return;
    };
    let theirs = v14(&std::fs::read(path).unwrap());
    let ours = v14(&devchain::runtime::metadata());
    let extensions = |metadata: &RuntimeMetadataV14| -> Vec<String> {
        let all = &metadata.extrinsic.signed_extensions;
        all.iter().map(|extension| extension.identifier.clone()).collect()
    };
    assert_eq!(extensions(&ours), extensions(&theirs));
    assert_eq!(ours.extrinsic.version, theirs.extrinsic.version);
    for pallet in &ours.pallets {
        let same = theirs.pallets.iter().find(|other| other.name == pallet.name).unwrap();
        assert_eq!(pallet.index, same.index, "{}", pallet.name);
    }
}

fn vector() -> Option<std::path::PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|dir| dir.join("shared/vectors/tfchain-spec152.scale"))
        .find(|path| path.exists())
}

fn v14(bytes: &[u8]) -> RuntimeMetadataV14 {
    match RuntimeMetadataPrefixed::decode(&mut &bytes[..]).unwrap().1 {
        RuntimeMetadata::V14(metadata) => metadata,
        other => panic!("metadata version {}", other.version()),
    }
}

/// All that a pallet offers; of a pallet of FRAME only the numbers of its calls.
fn facts(metadata: &RuntimeMetadataV14, name: &str, in_full: bool) -> Facts {
    let types = &metadata.types;
    let pallet = metadata.pallets.iter().find(|pallet| pallet.name == name).unwrap();
    let mut facts = Facts::new();
    let calls = pallet.calls.as_ref().map(|calls| calls.ty.id);
    variants(types, calls, "call", in_full, &mut facts);
    if in_full {
        variants(types, pallet.event.as_ref().map(|event| event.ty.id), "event", true, &mut facts);
        variants(types, pallet.error.as_ref().map(|error| error.ty.id), "error", true, &mut facts);
        storage(types, pallet, &mut facts);
        for constant in &pallet.constants {
            let detail = format!("{} = {:?}", shape(types, constant.ty.id, 0), constant.value);
            facts.insert(("constant".to_owned(), constant.name.clone(), detail));
        }
    }
    facts
}

fn variants(
    types: &PortableRegistry,
    id: Option<u32>,
    kind: &str,
    in_full: bool,
    facts: &mut Facts,
) {
    let Some(id) = id else { return };
    let TypeDef::Variant(all) = &types.resolve(id).unwrap().type_def else {
        panic!("{kind} is no enumeration")
    };
    for variant in &all.variants {
        let fields: Vec<String> = variant
            .fields
            .iter()
            .map(|field| {
                let name = field.name.clone().unwrap_or_default();
                format!("{name}: {}", shape(types, field.ty.id, 0))
            })
            .collect();
        let fields = if in_full { fields.join(", ") } else { String::new() };
        let detail = format!("{} ({fields})", variant.index);
        facts.insert((kind.to_owned(), variant.name.clone(), detail));
    }
}

fn storage(types: &PortableRegistry, pallet: &PalletMetadata<PortableForm>, facts: &mut Facts) {
    let storage = pallet.storage.as_ref().unwrap();
    assert_eq!(storage.prefix, pallet.name);
    for entry in &storage.entries {
        let modifier = match entry.modifier {
            StorageEntryModifier::Optional => "optional",
            StorageEntryModifier::Default => "default",
        };
        let layout = match &entry.ty {
            StorageEntryType::Plain(value) => shape(types, value.id, 0),
            StorageEntryType::Map { hashers, key, value } => {
                format!("{hashers:?} {} -> {}", shape(types, key.id, 0), shape(types, value.id, 0))
            }
        };
        let detail = format!("{modifier} {layout}");
        facts.insert(("storage".to_owned(), entry.name.clone(), detail));
    }
}

/// How a type is encoded, with the names of fields and variants: what types are called does not
/// matter, and a type around one field is that field.
fn shape(types: &PortableRegistry, id: u32, depth: usize) -> String {
    let resolved = types.resolve(id).unwrap();
    let last = resolved.path.segments.last().map_or("", |segment| segment.as_str());
    if last == "RuntimeCall" || depth > DEPTH_MAX {
        return last.to_owned();
    }
    let inner = |id: u32| shape(types, id, depth + 1);
    match &resolved.type_def {
        TypeDef::Composite(composite) => match composite.fields.as_slice() {
            [field] => inner(field.ty.id),
            fields => {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|field| {
                        format!(
                            "{}: {}",
                            field.name.clone().unwrap_or_default(),
                            inner(field.ty.id)
                        )
                    })
                    .collect();
                format!("{{{}}}", fields.join(", "))
            }
        },
        TypeDef::Variant(variants) => {
            let variants: Vec<String> = variants
                .variants
                .iter()
                .map(|variant| {
                    let fields: Vec<String> =
                        variant.fields.iter().map(|field| inner(field.ty.id)).collect();
                    format!("{} {}({})", variant.index, variant.name, fields.join(", "))
                })
                .collect();
            format!("<{}>", variants.join(" | "))
        }
        TypeDef::Sequence(sequence) => format!("[{}]", inner(sequence.type_param.id)),
        TypeDef::Array(array) => format!("[{}; {}]", inner(array.type_param.id), array.len),
        TypeDef::Tuple(tuple) => {
            let fields: Vec<String> = tuple.fields.iter().map(|field| inner(field.id)).collect();
            format!("({})", fields.join(", "))
        }
        TypeDef::Primitive(primitive) => format!("{primitive:?}"),
        TypeDef::Compact(compact) => format!("compact {}", inner(compact.type_param.id)),
        TypeDef::BitSequence(_) => "bits".to_owned(),
    }
}
