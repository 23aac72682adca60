//! Who a node is: its keys, and the address, subnet and router id that follow from them.
//!
//! ```text
//!  secret key 32 ──X25519──> public key 32 ──BLAKE3, first 16, first byte 4 or 5──> address
//!                                  │                                     first 8 ──> subnet /64
//!                                  └── + zone 2 + random 6 ──> router id 40
//! ```
//!
//! The address is bound to the key by its hash, so that whoever knows an address can tell whether a
//! key is its owner's (`reference: mycelium 1.1`).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::random::{RandomError, random_bytes};

/// Size of secret and public keys, in bytes.
pub const KEY_SIZE: usize = 32;
/// Size of a router id, in bytes.
pub const ROUTER_ID_SIZE: usize = 40;
/// Length of the prefix that a node owns, in bits.
pub const NODE_PREFIX_LEN: u8 = 64;
/// Where all addresses of the overlay are.
pub const OVERLAY: Subnet = Subnet { network: 0x0400 << 112, prefix_len: 7 };

/// A node's secret: 32 bytes, forgotten on drop and shown by nobody.
#[derive(Clone)]
pub struct SecretKey(StaticSecret);

impl SecretKey {
    /// The key whose file holds these bytes. All values are keys: X25519 clamps them when it uses them.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_SIZE]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// A new key.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate() -> Result<Self, RandomError> {
        random_bytes().map(Self::from_bytes)
    }

    /// What is written to the key's file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        self.0.as_bytes()
    }

    /// The key that others know.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// What this node and the owner of `other` both know, and nobody else does.
    #[must_use]
    pub fn shared(&self, other: &PublicKey) -> SharedSecret {
        SharedSecret(self.0.diffie_hellman(&x25519_dalek::PublicKey::from(other.0)).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// What two nodes alone know; forgotten on drop and shown by nobody.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SharedSecret([u8; KEY_SIZE]);

impl SharedSecret {
    /// The secret itself, for a cipher.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

/// The name by which others know a node: an X25519 public key, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_SIZE]);

impl PublicKey {
    /// The key with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_SIZE]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        &self.0
    }

    /// The address of the node that owns this key.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        let mut hash = [0; 16];
        blake3::Hasher::new().update(&self.0).finalize_xof().fill(&mut hash);
        let [first, ..] = &mut hash;
        // One bit of the first byte survives, as its parity.
        *first = 0x04 | u8::from(first.count_ones() & 1 == 1);
        Ipv6Addr::from(hash)
    }

    /// The prefix of the node that owns this key.
    #[must_use]
    pub fn subnet(&self) -> Subnet {
        Subnet::of(self.address())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        if text.len() != 2 * KEY_SIZE {
            return Err(PublicKeyError::Length(text.len()));
        }
        let mut digits = text.chars().map(|c| c.to_digit(16).ok_or(PublicKeyError::Digit(c)));
        let mut next = || digits.next().unwrap_or(Err(PublicKeyError::Length(text.len())));
        let mut bytes = [0; KEY_SIZE];
        for byte in &mut bytes {
            let pair = next()? << 4 | next()?;
            *byte = u8::try_from(pair).expect("two digits fit into a byte");
        }
        Ok(Self(bytes))
    }
}

/// A text is no public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// It is too short or too long.
    #[error("a public key has 64 hexadecimal digits, not {0} characters")]
    Length(usize),
    /// It has something else than digits.
    #[error("a public key has hexadecimal digits alone, not {0:?}")]
    Digit(char),
}

/// A run of a router: the node's public key, a zone, and a part that is new at every start.
///
/// All 40 bytes are compared and passed on unchanged. Ids of a node are in the order of its starts,
/// whatever it says of itself in the zone.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouterId([u8; ROUTER_ID_SIZE]);

impl Ord for RouterId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let order = |id: &Self| {
            let (_, start) = id.0.split_at(KEY_SIZE + 2);
            (id.public_key(), <[u8; 6]>::try_from(start).unwrap_or_default(), id.zone())
        };
        order(self).cmp(&order(other))
    }
}

impl PartialOrd for RouterId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl RouterId {
    /// The id of a node in `zone`, for this start.
    #[must_use]
    pub fn new(key: PublicKey, zone: [u8; 2], random: [u8; 6]) -> Self {
        let mut bytes = [0; ROUTER_ID_SIZE];
        let parts = key.0.iter().chain(&zone).chain(&random);
        for (byte, part) in bytes.iter_mut().zip(parts) {
            *byte = *part;
        }
        Self(bytes)
    }

    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; ROUTER_ID_SIZE]) -> Self {
        Self(bytes)
    }

    /// The id's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; ROUTER_ID_SIZE] {
        &self.0
    }

    /// The key of the node that runs this router; a claim until the node has proved it.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(*self.0.first_chunk().expect("a router id is longer than a key"))
    }

    /// The zone: what the node says of itself ([`crate::session::ZONE`]); existing nodes say 0.
    #[must_use]
    pub fn zone(&self) -> [u8; 2] {
        let (_, rest) = self.0.split_at(KEY_SIZE);
        *rest.first_chunk().expect("a zone follows a router id's key")
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, rest) = self.0.split_at(KEY_SIZE);
        let (zone, random) = rest.split_at(2);
        write_hex(key, f)?;
        f.write_str("-")?;
        write_hex(zone, f)?;
        f.write_str("-")?;
        write_hex(random, f)
    }
}

impl fmt::Debug for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouterId({self})")
    }
}

/// A prefix of IPv6 addresses; the bits that it leaves open are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet {
    network: u128,
    prefix_len: u8,
}

impl Subnet {
    /// The prefix of `prefix_len` bits that holds `address`.
    ///
    /// # Errors
    /// When `prefix_len` is above 128.
    pub const fn new(address: Ipv6Addr, prefix_len: u8) -> Result<Self, SubnetError> {
        if prefix_len > 128 {
            return Err(SubnetError::PrefixLen(prefix_len));
        }
        Ok(Self { network: address.to_bits() & mask(prefix_len), prefix_len })
    }

    /// The prefix of the node that owns `address`: its /64.
    #[must_use]
    pub const fn of(address: Ipv6Addr) -> Self {
        Self { network: address.to_bits() & mask(NODE_PREFIX_LEN), prefix_len: NODE_PREFIX_LEN }
    }

    /// Whether `address` begins with this prefix.
    #[must_use]
    pub const fn contains(&self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask(self.prefix_len) == self.network
    }

    /// Whether all addresses of `other` are in this prefix.
    #[must_use]
    pub const fn covers(&self, other: &Self) -> bool {
        self.prefix_len <= other.prefix_len && self.contains(other.network())
    }

    /// Its length in bits.
    #[must_use]
    pub const fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Its first address.
    #[must_use]
    pub const fn network(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network)
    }
}

/// The `prefix_len` upper bits, at most 128.
const fn mask(prefix_len: u8) -> u128 {
    match u128::MAX.checked_shl(128 - prefix_len as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix_len)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    /// Reads `400::/7`. Bits beyond the length must be zero: they are more likely a mistake than noise.
    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let wrong = || SubnetError::Text(text.to_owned());
        let (address, prefix_len) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
        let subnet = Self::new(address, prefix_len.parse().map_err(|_| wrong())?)?;
        if subnet.network() == address { Ok(subnet) } else { Err(SubnetError::HostBits(subnet)) }
    }
}

/// Something is no IPv6 prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Addresses have 128 bits.
    #[error("an IPv6 prefix has at most 128 bits, not {0}")]
    PrefixLen(u8),
    /// The text is something else.
    #[error("{0:?} is no IPv6 prefix such as 400::/7")]
    Text(String),
    /// Bits beyond the prefix are set.
    #[error("bits beyond the prefix are set; the prefix is {0}")]
    HostBits(Subnet),
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_secret_is_not_shown() {
        let key = SecretKey::from_bytes([7; KEY_SIZE]);
        let shared = key.shared(&key.public());
        assert_eq!(format!("{key:?} {shared:?}"), "SecretKey(..) SharedSecret(..)");
        assert_eq!(key.as_bytes(), &[7; KEY_SIZE]);
    }

    #[test]
    fn both_sides_know_the_same_secret() {
        let (a, b) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        assert_ne!(a.as_bytes(), b.as_bytes());
        assert_eq!(a.shared(&b.public()).as_bytes(), b.shared(&a.public()).as_bytes());
    }

    #[test]
    fn a_public_key_is_64_digits() {
        let key = SecretKey::from_bytes([1; KEY_SIZE]).public();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().to_uppercase().parse(), Ok(key));
        assert_eq!("ab".parse::<PublicKey>(), Err(PublicKeyError::Length(2)));
        let wrong = "g".repeat(64);
        assert_eq!(wrong.parse::<PublicKey>(), Err(PublicKeyError::Digit('g')));
        // 64 bytes, but fewer characters.
        let short = format!("{}é", "0".repeat(62));
        assert_eq!(short.parse::<PublicKey>(), Err(PublicKeyError::Digit('é')));
    }

    #[test]
    fn a_router_id_has_three_parts() {
        let key = SecretKey::from_bytes([1; KEY_SIZE]).public();
        let id = RouterId::new(key, [0xab, 1], [1, 2, 3, 4, 5, 6]);
        assert_eq!(id.public_key(), key);
        assert_eq!(id.zone(), [0xab, 1]);
        assert_eq!(id.to_string(), format!("{key}-ab01-010203040506"));
        assert_eq!(RouterId::from_bytes(*id.as_bytes()), id);
    }

    #[test]
    fn router_ids_are_in_the_order_of_starts() {
        let key = |number| PublicKey::from_bytes([number; KEY_SIZE]);
        let ids = [
            RouterId::new(key(1), [9, 9], [9; 6]),
            RouterId::new(key(2), [0, 0], [0, 0, 0, 0, 0, 1]),
            RouterId::new(key(2), [0, 1], [0, 0, 0, 0, 0, 1]),
            RouterId::new(key(2), [0, 0], [0, 0, 0, 0, 0, 2]),
        ];
        assert!(ids.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_subnet_is_written_as_it_is_read() {
        for text in ["400::/7", "::/0", "5ad:4cd6:2dbd:2142::/64", "400::1/128"] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
        }
        assert_eq!(OVERLAY.to_string(), "400::/7");
        for text in ["400::", "400::/", "400::/129", "400::/1000", "x/7", "400::1/64", "10.0.0.0/8"]
        {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_subnet_contains_what_begins_with_it() {
        assert!(OVERLAY.contains(address("400::1")) && OVERLAY.contains(address("5ff::")));
        assert!(!OVERLAY.contains(address("300::1")) && !OVERLAY.contains(address("600::")));
        let all = Subnet::new(address("1::"), 0).unwrap();
        assert_eq!(all.network(), address("::"));
        assert!(all.contains(address("ffff::")));
        let one = Subnet::new(address("1::"), 128).unwrap();
        assert!(one.contains(address("1::")) && !one.contains(address("1::1")));
        let node = Subnet::of(address("400:1:2:3:4:5:6:7"));
        assert_eq!(node.to_string(), "400:1:2:3::/64");
        assert!(OVERLAY.covers(&node) && !node.covers(&OVERLAY) && node.covers(&node));
        assert_eq!(Subnet::new(address("1::"), 129), Err(SubnetError::PrefixLen(129)));
    }
}
