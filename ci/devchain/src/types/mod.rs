//! What TFChain stores, field by field in SCALE order.
//!
//! These are the types of spec version 152. The pallets keep them, the chain's view hands them out, and
//! a client that decodes them by the metadata meets the same layout as on the public chain. Texts are
//! bytes because the chain's are; [`text`] reads them for people.
//!
//! `grid` has twins, farms and nodes, `contract` what is paid for.
//!
//! Where TFChain wraps a text in a type of its own (`FarmName`, `CityName`, …) we keep the bytes: the
//! encoding is the same, and the rules live beside the calls that check them.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the SCALE derives cast the constant number of a variant"
)]

mod contract;
mod grid;

use codec::{Decode, DecodeWithMemTracking, Encode};
use frame_support::{BoundedVec, traits::ConstU32};
use scale_info::TypeInfo;
pub use sp_runtime::AccountId32;

pub use self::{contract::*, grid::*};

/// At most `N` bytes.
pub type Bytes<const N: u32> = BoundedVec<u8, ConstU32<N>>;

/// TFT in units of 10^-7.
pub type Balance = u128;

/// The height of a block.
pub type BlockNumber = u32;

/// One TFT.
pub const TFT: Balance = 10_000_000;

/// The longest name of a farm.
pub const FARM_NAME_MAX: u32 = 40;
/// The most public addresses of one farm.
pub const FARM_IPS_MAX: u32 = 512;
/// The longest IPv4 address with its prefix length.
pub const IP4_MAX: u32 = 18;
/// The longest IPv4 gateway.
pub const GW4_MAX: u32 = 15;
/// The longest IPv6 address with its prefix length.
pub const IP6_MAX: u32 = 43;
/// The longest IPv6 gateway.
pub const GW6_MAX: u32 = 39;
/// The longest domain of a public configuration.
pub const DOMAIN_MAX: u32 = 128;
/// The longest relay of a twin.
pub const RELAY_MAX: u32 = 1024;
/// The longest public key of a twin.
pub const PK_MAX: u32 = 128;
/// The longest name of a city.
pub const CITY_MAX: u32 = 58;
/// The longest name of a country.
pub const COUNTRY_MAX: u32 = 56;
/// The longest latitude or longitude.
pub const COORDINATE_MAX: u32 = 50;
/// The longest serial number.
pub const SERIAL_MAX: u32 = 128;
/// The longest name of a network interface.
pub const INTERFACE_NAME_MAX: u32 = 20;
/// The length of a hardware address.
pub const MAC_MAX: u32 = 17;
/// The longest address of a network interface.
pub const INTERFACE_IP_MAX: u32 = 42;
/// The most interfaces of a node, and addresses of an interface.
pub const INTERFACES_MAX: u32 = 10;
/// The longest link to the terms and conditions.
pub const DOCUMENT_LINK_MAX: u32 = 100;
/// The longest hash of the terms and conditions.
pub const DOCUMENT_HASH_MAX: u32 = 32;
/// The longest data a node contract carries.
pub const DEPLOYMENT_DATA_MAX: u32 = 512;
/// The most public addresses of one node contract.
pub const CONTRACT_IPS_MAX: u32 = 512;
/// The longest name of a name contract.
pub const NAME_MAX: u32 = 64;

/// Bytes of the chain as text; what is not UTF-8 becomes a replacement character.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a node has, or a contract uses: bytes, and cores.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub struct Resources {
    /// Bytes of hard disk.
    pub hru: u64,
    /// Bytes of solid-state disk.
    pub sru: u64,
    /// Cores.
    pub cru: u64,
    /// Bytes of memory.
    pub mru: u64,
}
