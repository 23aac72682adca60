//! What happened in a block, as far as a node, a relay or a command line cares.
//!
//! Events are found by their names. Of those that we know, a field that the chain adds is passed over;
//! all others are passed over as a whole.

use scale_decode::{DecodeAsFields, DecodeAsType};
use subxt::error::EventsError;

use crate::connection::{Fault, Grid};
use crate::error::shortened;
use crate::types::{Contract, ContractBill, Farm, Node, Power, PowerState, PublicConfig, Twin};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new twin.
    TwinStored(Twin),
    /// A twin that changed.
    TwinUpdated(Twin),
    /// A new farm.
    FarmStored(Farm),
    /// A farm that changed.
    FarmUpdated(Farm),
    /// A new node.
    NodeStored(Box<Node>),
    /// A node that changed.
    NodeUpdated(Box<Node>),
    /// A node that is no more.
    NodeDeleted {
        /// Its number.
        node_id: u32,
    },
    /// A node's farmer said how the internet reaches it.
    NodePublicConfigStored {
        /// The node.
        node_id: u32,
        /// None takes it away.
        config: Option<PublicConfig>,
    },
    /// The council said which release nodes should run.
    ZosVersionUpdated(Vec<u8>),
    /// A farmer said whether a node should run.
    PowerTargetChanged(PowerTargetChanged),
    /// A node said whether it runs.
    PowerStateChanged(PowerStateChanged),
    /// A new contract.
    ContractCreated(Contract),
    /// A contract that changed.
    ContractUpdated(Contract),
    /// A node's contract is over.
    NodeContractCanceled(NodeContractCanceled),
    /// A name is free again.
    NameContractCanceled(ContractOver),
    /// A node is free again.
    RentContractCanceled(ContractOver),
    /// A contract could not be paid for.
    GracePeriodStarted(GracePeriodStarted),
    /// A contract is paid for again.
    GracePeriodEnded(GracePeriodEnded),
    /// A contract was paid for.
    ContractBilled(ContractBill),
}

/// See [`Event::PowerTargetChanged`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct PowerTargetChanged {
    /// The farm.
    pub farm_id: u32,
    /// The node.
    pub node_id: u32,
    /// What the farmer wants.
    pub power_target: Power,
}

/// See [`Event::PowerStateChanged`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct PowerStateChanged {
    /// The farm.
    pub farm_id: u32,
    /// The node.
    pub node_id: u32,
    /// What the node says.
    pub power_state: PowerState,
}

/// See [`Event::NodeContractCanceled`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct NodeContractCanceled {
    /// The contract.
    pub contract_id: u64,
    /// The node that has the deployment.
    pub node_id: u32,
    /// The owner.
    pub twin_id: u32,
}

/// See [`Event::NameContractCanceled`] and [`Event::RentContractCanceled`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct ContractOver {
    /// The contract.
    pub contract_id: u64,
}

/// See [`Event::GracePeriodStarted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct GracePeriodStarted {
    /// The contract.
    pub contract_id: u64,
    /// The node.
    pub node_id: u32,
    /// The owner.
    pub twin_id: u32,
    /// Since this block.
    pub block_number: u64,
}

/// See [`Event::GracePeriodEnded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct GracePeriodEnded {
    /// The contract.
    pub contract_id: u64,
    /// The node.
    pub node_id: u32,
    /// The owner.
    pub twin_id: u32,
}

type Raw<'a> = subxt::events::Event<'a, Grid>;

/// All events of the block that we know, in order.
pub(crate) fn known(events: &subxt::events::Events<Grid>) -> Result<Vec<Event>, Fault> {
    let mut known = Vec::new();
    for raw in events.iter() {
        known.extend(read(&raw?)?);
    }
    Ok(known)
}

/// One event, if we know it.
pub(crate) fn read(raw: &Raw<'_>) -> Result<Option<Event>, Fault> {
    match raw.pallet_name() {
        "TfgridModule" => read_grid(raw),
        "SmartContractModule" => read_contract(raw),
        _ => Ok(None),
    }
}

fn read_grid(raw: &Raw<'_>) -> Result<Option<Event>, Fault> {
    let event = match raw.event_name() {
        "TwinStored" => Event::TwinStored(single(raw)?),
        "TwinUpdated" => Event::TwinUpdated(single(raw)?),
        "FarmStored" => Event::FarmStored(single(raw)?),
        "FarmUpdated" => Event::FarmUpdated(single(raw)?),
        "NodeStored" => Event::NodeStored(single(raw)?),
        "NodeUpdated" => Event::NodeUpdated(single(raw)?),
        "NodeDeleted" => Event::NodeDeleted { node_id: single(raw)? },
        "NodePublicConfigStored" => {
            let (node_id, config) = fields(raw)?;
            Event::NodePublicConfigStored { node_id, config }
        }
        "ZosVersionUpdated" => Event::ZosVersionUpdated(single(raw)?),
        "PowerTargetChanged" => Event::PowerTargetChanged(fields(raw)?),
        "PowerStateChanged" => Event::PowerStateChanged(fields(raw)?),
        _ => return Ok(None),
    };
    Ok(Some(event))
}

fn read_contract(raw: &Raw<'_>) -> Result<Option<Event>, Fault> {
    let event = match raw.event_name() {
        "ContractCreated" => Event::ContractCreated(single(raw)?),
        "ContractUpdated" => Event::ContractUpdated(single(raw)?),
        "NodeContractCanceled" => Event::NodeContractCanceled(fields(raw)?),
        "NameContractCanceled" => Event::NameContractCanceled(fields(raw)?),
        "RentContractCanceled" => Event::RentContractCanceled(fields(raw)?),
        "ContractGracePeriodStarted" => Event::GracePeriodStarted(fields(raw)?),
        "ContractGracePeriodEnded" => Event::GracePeriodEnded(fields(raw)?),
        "ContractBilled" => Event::ContractBilled(single(raw)?),
        _ => return Ok(None),
    };
    Ok(Some(event))
}

/// The fields of an event, by name if they have names, else by position.
fn fields<E: DecodeAsFields>(raw: &Raw<'_>) -> Result<E, Fault> {
    Ok(raw.decode_fields_unchecked_as()?)
}

/// The only field of an event.
fn single<E: DecodeAsType>(raw: &Raw<'_>) -> Result<E, Fault> {
    let (value,) = fields(raw)?;
    Ok(value)
}

impl From<EventsError> for Fault {
    fn from(error: EventsError) -> Self {
        match error {
            EventsError::CannotFetchEventBytes(error) => error.into(),
            other => Self::Incompatible(shortened(&other.to_string())),
        }
    }
}
