//! What a node says of itself on the local link, so that its neighbours dial it.
//!
//! ```text
//!  "mycelium" 8 │ TCP listen port 2 │ router id 40
//! ```
//!
//! A datagram to [`GROUP`], [`PORT`], at start and every 60 s, on each interface with a link-local
//! address. The receiver takes the address to dial from the datagram's source, which must be
//! link-local (`reference: mycelium 1.8`).

use std::net::Ipv6Addr;

use crate::identity::{ROUTER_ID_SIZE, RouterId};
use crate::reader::Reader;

/// Size of a beacon, in bytes.
pub const BEACON_SIZE: usize = MAGIC.len() + 2 + ROUTER_ID_SIZE;
/// UDP port that beacons go to, unless the operator chose another.
pub const PORT: u16 = 9650;
/// Multicast group that beacons go to.
pub const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xcafe);

const MAGIC: [u8; 8] = *b"mycelium";

/// Where a node listens, and who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// Where it accepts TCP connections.
    pub tcp_port: u16,
    /// Who it says it is.
    pub router_id: RouterId,
}

impl Beacon {
    /// The datagram.
    #[must_use]
    pub fn encode(&self) -> [u8; BEACON_SIZE] {
        let fields = MAGIC.into_iter().chain(self.tcp_port.to_be_bytes());
        let mut bytes = [0; BEACON_SIZE];
        for (byte, field) in bytes.iter_mut().zip(fields.chain(*self.router_id.as_bytes())) {
            *byte = field;
        }
        bytes
    }

    /// What a datagram says.
    ///
    /// # Errors
    /// When it is no beacon.
    pub fn parse(datagram: &[u8]) -> Result<Self, BeaconError> {
        let size = BeaconError::Size(datagram.len());
        if datagram.len() != BEACON_SIZE {
            return Err(size);
        }
        let mut reader = Reader::new(datagram);
        if reader.array() != Some(MAGIC) {
            return Err(BeaconError::Magic);
        }
        Ok(Self {
            tcp_port: reader.u16().ok_or(size)?,
            router_id: RouterId::from_bytes(reader.array().ok_or(size)?),
        })
    }
}

/// A datagram that is no beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    /// It is too short or too long.
    #[error("a beacon has 50 bytes, not {0}")]
    Size(usize),
    /// It begins with something else.
    #[error("a beacon begins with \"mycelium\"")]
    Magic,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_else_is_refused() {
        let beacon = Beacon { tcp_port: 9651, router_id: RouterId::from_bytes([7; 40]) };
        let bytes = beacon.encode();
        assert_eq!(Beacon::parse(&bytes), Ok(beacon));
        assert_eq!(Beacon::parse(&bytes[..49]), Err(BeaconError::Size(49)));
        assert_eq!(Beacon::parse(&[&bytes[..], &[0]].concat()), Err(BeaconError::Size(51)));
        assert_eq!(Beacon::parse(&[0; 50]), Err(BeaconError::Magic));
    }
}
