//! Workloads: what a deployment asks a node to run or to keep.
//!
//! Each type is a file: the fields of its `data`, the rules that they must keep, in the order in which
//! existing nodes check them and with their texts, its part of the
//! [challenge](crate::challenge), the [capacity](crate::capacity) that it takes, and the result that the
//! node gives back. What can be judged only at run time, with the node and the other workloads at hand,
//! is not here.
//!
//! | type | data | shared[^s] | updates | on light nodes |
//! |---|---|---|---|---|
//! | `zmachine` | [`ZMachine`] | | | |
//! | `zmachine-light` | [`ZMachineLight`] | | | yes |
//! | `zmount` | [`ZMount`] | | grows | yes |
//! | `volume` | [`Volume`] | | grows | yes |
//! | `network` | [`Network`] | yes | all | |
//! | `network-light` | [`NetworkLight`] | yes | all | yes |
//! | `zdb` | [`Zdb`] | | grows, password, public | yes |
//! | `ip` | [`PublicIp`] | | | |
//! | `ipv4` | [`PublicIpv4`] (deprecated) | | | |
//! | `gateway-name-proxy` | [`GatewayName`] | | | with a domain |
//! | `gateway-fqdn-proxy` | [`GatewayFqdn`] | | | with a domain |
//! | `qsfs` | [`Qsfs`] | | all | yes |
//! | `zlogs` | [`Zlogs`] | | | yes |
//!
//! [^s]: Its name is unique among a twin's deployments on a node, and all of those may use it.

mod gateway;
mod ip;
mod machine;
mod network;
mod network_light;
mod qsfs;
mod rule;
mod url;
mod volume;
mod wireguard;
mod zdb;
mod zlogs;
mod zmachine;
mod zmachine_light;
mod zmount;

use std::fmt;

use serde::{Serialize, Serializer};

use crate::capacity::Capacity;
use crate::challenge::Challenge;
use crate::excerpt::excerpt;
use crate::id::Name;
use crate::json::{self, Checked, Decode, Decoder, Raw, RawJson};
use crate::timestamp::Timestamp;

pub use gateway::{
    Backend, BackendAddressError, BackendError, GatewayFqdn, GatewayFqdnResult, GatewayName,
    GatewayNameResult, SplitError,
};
pub use ip::{PublicIp, PublicIpResult, PublicIpv4};
pub use machine::{
    ComputeCapacity, GpuError, GpuId, Interface, Machine, Mount, MyceliumAddress, SEED_SIZE,
    min_root_size,
};
pub use network::Network;
pub use network_light::NetworkLight;
pub use qsfs::{
    Compression, Encryption, Group, Meta, MetaConfig, Qsfs, QsfsConfig, QsfsResult, ZdbBackend,
};
pub use rule::{RuleError, Siblings};
pub use url::UrlError;
pub use volume::{Volume, VolumeResult};
pub use wireguard::{MYCELIUM_KEY_SIZE, Mycelium, Peer};
pub use zdb::{Zdb, ZdbMode, ZdbResult};
pub use zlogs::Zlogs;
pub use zmachine::{MachineNetwork, ZMachine, ZMachineResult};
pub use zmachine_light::{MachineNetworkLight, ZMachineLight, ZMachineLightResult};
pub use zmount::{ZMount, ZMountResult};

/// One workload of a deployment. `D` is its data, or the data and why it can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload<D = WorkloadData> {
    /// The deployment's version in which this workload was added or last changed.
    pub version: u32,
    /// Unique in its deployment.
    pub name: Name,
    /// What it is.
    pub data: D,
    /// For the client alone.
    pub metadata: String,
    /// For people.
    pub description: String,
    /// What became of it; the node's answer, and not believed when a client sends it.
    pub result: WorkloadResult,
}

impl<D: Readable> Workload<D> {
    /// Writes this workload's part of the challenge.
    pub(crate) fn challenge(&self, out: &mut Challenge<'_>) -> Result<(), WorkloadError> {
        let data = self.data.readable().map_err(Clone::clone)?;
        out.add(self.version);
        out.add(&self.name);
        out.add(data.kind());
        out.add(&self.metadata);
        out.add(&self.description);
        data.challenge(out);
        Ok(())
    }
}

impl<D: Typed> Serialize for Workload<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire<'a, D> {
            version: u32,
            name: &'a Name,
            r#type: WorkloadType,
            data: &'a D,
            metadata: &'a str,
            description: &'a str,
            result: &'a WorkloadResult,
        }
        let Self { version, name, data, metadata, description, result } = self;
        let r#type = data.workload_type();
        Wire { version: *version, name, r#type, data, metadata, description, result }
            .serialize(serializer)
    }
}

/// Data that is written with its type beside it.
pub trait Typed: Serialize {
    /// Its type.
    fn workload_type(&self) -> WorkloadType;
}

impl Typed for WorkloadData {
    fn workload_type(&self) -> WorkloadType {
        self.kind()
    }
}

/// Data as its client wrote it, with all that we do not know of.
#[derive(Clone, PartialEq, Eq)]
pub struct SentData {
    /// What it was read as.
    pub kind: WorkloadType,
    /// Its text.
    pub json: RawJson,
}

impl Typed for SentData {
    fn workload_type(&self) -> WorkloadType {
        self.kind
    }
}

impl Serialize for SentData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

impl fmt::Debug for SentData {
    /// Not the text, which holds secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentData").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Data that is there, or known not to be.
pub trait Readable {
    /// The data.
    ///
    /// # Errors
    ///
    /// Why it can't be read.
    fn readable(&self) -> Result<&WorkloadData, &WorkloadError>;
}

impl Readable for WorkloadData {
    fn readable(&self) -> Result<&WorkloadData, &WorkloadError> {
        Ok(self)
    }
}

/// Data as it was sent: read, or refused.
pub type ReadData = Result<WorkloadData, WorkloadError>;

impl Readable for ReadData {
    fn readable(&self) -> Result<&WorkloadData, &WorkloadError> {
        self.as_ref()
    }
}

/// Why a workload's data can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// Nobody knows this type.
    #[error("invalid reservation type '{0}'")]
    UnknownType(String),
    /// The data is `null`, which existing nodes fall over.
    #[error("data of a workload of type '{0}' cannot be null")]
    Null(WorkloadType),
    /// The data doesn't fit the type.
    #[error("failed to load data into object of type '*{}': {error}", .kind.go_type())]
    Data {
        /// The workload's type.
        kind: WorkloadType,
        /// What doesn't fit.
        error: json::Error,
    },
}

impl WorkloadError {
    /// The workload's type, if it is known.
    pub fn kind(&self) -> Option<WorkloadType> {
        match self {
            Self::UnknownType(_) => None,
            Self::Null(kind) | Self::Data { kind, .. } => Some(*kind),
        }
    }
}

/// Declares the types once: their names, Go's names of them, and their data.
macro_rules! types {
    ($($kind:ident($data:ident) = $name:literal,)*) => {
        /// What kinds of workloads there are.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the table of the module tells")]
        pub enum WorkloadType {
            $($kind,)*
        }

        impl WorkloadType {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The name in JSON.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            fn go_type(self) -> &'static str {
                match self {
                    $(Self::$kind => <$data as Decode<'static>>::GO_TYPE,)*
                }
            }

            fn read(self, text: Checked<'_>, budget: &mut usize) -> Result<WorkloadData, json::Error> {
                match self {
                    $(Self::$kind => json::from_checked(text, budget).map(WorkloadData::$kind),)*
                }
            }
        }

        /// What a workload is, by its type.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        #[expect(missing_docs, reason = "the table of the module tells")]
        pub enum WorkloadData {
            $($kind($data),)*
        }

        impl WorkloadData {
            /// Its type.
            pub fn kind(&self) -> WorkloadType {
                match self {
                    $(Self::$kind(_) => WorkloadType::$kind,)*
                }
            }

            /// What it takes of the node.
            pub fn capacity(&self) -> Capacity {
                match self {
                    $(Self::$kind(data) => data.capacity(),)*
                }
            }

            /// Checks the rules of its type, beside the other workloads of its deployment.
            ///
            /// # Errors
            ///
            /// The first rule that is broken.
            pub fn validate(&self, siblings: &Siblings<'_>) -> Result<(), RuleError> {
                match self {
                    $(Self::$kind(data) => data.validate(siblings),)*
                }
            }

            fn challenge(&self, out: &mut Challenge<'_>) {
                match self {
                    $(Self::$kind(data) => data.challenge(out),)*
                }
            }
        }
    };
}

types! {
    ZMachine(ZMachine) = "zmachine",
    ZMachineLight(ZMachineLight) = "zmachine-light",
    ZMount(ZMount) = "zmount",
    Volume(Volume) = "volume",
    Network(Network) = "network",
    NetworkLight(NetworkLight) = "network-light",
    Zdb(Zdb) = "zdb",
    PublicIp(PublicIp) = "ip",
    PublicIpv4(PublicIpv4) = "ipv4",
    GatewayName(GatewayName) = "gateway-name-proxy",
    GatewayFqdn(GatewayFqdn) = "gateway-fqdn-proxy",
    Qsfs(Qsfs) = "qsfs",
    Zlogs(Zlogs) = "zlogs",
}

impl WorkloadType {
    /// Whether other deployments of its twin may use it, for which its name is unique among them all.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::Network | Self::NetworkLight)
    }

    /// Whether it may change while it exists.
    pub fn is_updatable(self) -> bool {
        matches!(
            self,
            Self::Network
                | Self::NetworkLight
                | Self::ZMount
                | Self::Volume
                | Self::Zdb
                | Self::Qsfs
        )
    }

    /// Whether it is a virtual machine.
    pub fn is_machine(self) -> bool {
        matches!(self, Self::ZMachine | Self::ZMachineLight)
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for WorkloadType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for WorkloadType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A workload as it stands in JSON, its data still to be read.
#[derive(Default)]
pub(crate) struct WireWorkload<'a> {
    version: u32,
    name: Name,
    kind: String,
    data: Raw<'a>,
    metadata: String,
    description: String,
    result: WorkloadResult,
}

impl<'a> Decode<'a> for WireWorkload<'a> {
    const GO_TYPE: &'static str = "gridtypes.Workload";

    fn decode(
        &mut self,
        decoder: &mut Decoder<'a>,
        go_type: &'static str,
    ) -> Result<(), json::Error> {
        decoder.object(go_type, |decoder, name| match name {
            name if name.is("version") => decoder.member("version", &mut self.version),
            name if name.is("name") => decoder.member("name", &mut self.name),
            name if name.is("type") => {
                decoder.member_of("type", &mut self.kind, "gridtypes.WorkloadType")
            }
            name if name.is("data") => decoder.member("data", &mut self.data),
            name if name.is("metadata") => decoder.member("metadata", &mut self.metadata),
            name if name.is("description") => decoder.member("description", &mut self.description),
            name if name.is("result") => decoder.member("result", &mut self.result),
            _ => {
                decoder.skip();
                Ok(())
            }
        })
    }
}

impl WireWorkload<'_> {
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// The data as it is written.
    pub(crate) fn text(&self) -> RawJson {
        self.data.0.as_ref().map_or_else(RawJson::default, RawJson::from_checked)
    }

    /// Reads the data, by the type.
    pub(crate) fn read(self, budget: &mut usize) -> Workload<ReadData> {
        let data = read_data(&self.kind, self.data.0, budget);
        let Self { version, name, metadata, description, result, .. } = self;
        Workload { version, name, data, metadata, description, result }
    }
}

fn read_data(kind: &str, data: Option<Checked<'_>>, budget: &mut usize) -> ReadData {
    let Some(kind) = WorkloadType::of_name(kind) else {
        return Err(WorkloadError::UnknownType(excerpt(kind)));
    };
    let read = match data {
        Some(data) if data.as_bytes() == b"null" => return Err(WorkloadError::Null(kind)),
        Some(data) => kind.read(data, budget),
        None => Err(json::Error::UnexpectedEnd),
    };
    read.map_err(|error| WorkloadError::Data { kind, error })
}

/// What became of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct WorkloadResult {
    /// When this state was reached.
    pub created: Timestamp,
    /// Where it stands.
    pub state: State,
    /// What went wrong.
    pub message: String,
    /// What the type tells: addresses, ids. `null` if nothing.
    pub data: RawJson,
}
json::object!(WorkloadResult as "gridtypes.Result" {
    "created" => created,
    "state" => state,
    "message" => message,
    "data" => data,
});

/// Where a workload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum State {
    /// No node has seen it.
    #[default]
    None,
    /// Stored, and waiting.
    Init,
    /// A change failed, and what was before still runs.
    Unchanged,
    /// It failed for good.
    Error,
    /// It runs.
    Ok,
    /// It was taken down.
    Deleted,
    /// It stands still until it is paid.
    Paused,
}

impl State {
    const NAMES: &[(Self, &str)] = &[
        (Self::None, ""),
        (Self::Init, "init"),
        (Self::Unchanged, "unchanged"),
        (Self::Error, "error"),
        (Self::Ok, "ok"),
        (Self::Deleted, "deleted"),
        (Self::Paused, "paused"),
    ];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    /// Whether it has what it asked for.
    pub fn is_okay(self) -> bool {
        matches!(self, Self::Ok | Self::Paused)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Decode<'_> for State {
    const GO_TYPE: &'static str = "gridtypes.ResultState";

    /// A state that nobody knows is none: clients make results up, and nodes ignore them.
    fn decode(
        &mut self,
        decoder: &mut Decoder<'_>,
        go_type: &'static str,
    ) -> Result<(), json::Error> {
        let mut name = self.name().to_owned();
        name.decode(decoder, go_type)?;
        let known = Self::NAMES.iter().find(|(_, known)| *known == name);
        *self = known.map_or(Self::None, |(state, _)| *state);
        Ok(())
    }
}

/// Lets a client read a result out of [`WorkloadResult::data`].
macro_rules! result {
    ($type:ty) => {
        impl $type {
            /// Reads the data of a workload's result.
            ///
            /// # Errors
            ///
            /// The text is no such result.
            pub fn from_json(text: &str) -> Result<Self, $crate::json::Error> {
                $crate::json::from_slice(text.as_bytes())
            }
        }
    };
}
use result;
