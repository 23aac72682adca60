//! Ids of workloads and networks, and short ids for devices.
//!
//! An interface's name has at most 15 characters, so ids are squeezed into 13: the beginning of the MD5
//! hash in base58, about 76 bits.

use std::fmt;

use md5::{Digest, Md5};
use serde::{Serialize, Serializer};

use crate::deployment::Deployment;
use crate::id::{ContractId, Name, TwinId};
use crate::workload::Workload;

/// Characters of a short id.
pub const SHORT_ID_SIZE: usize = 13;

/// An id that fits an interface's name behind a prefix of two characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortId(String);

impl ShortId {
    /// The id of any text.
    pub fn of(text: &str) -> Self {
        let mut id = base58(Md5::digest(text).into());
        id.truncate(SHORT_ID_SIZE);
        Self(id)
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a workload is called on its node: `twin-contract-name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadId {
    /// Whose it is.
    pub twin_id: TwinId,
    /// What pays for it.
    pub contract_id: ContractId,
    /// Its name in its deployment.
    pub name: Name,
}

impl WorkloadId {
    /// The id of a workload of a deployment.
    pub fn of<D>(deployment: &Deployment<D>, workload: &Workload<D>) -> Self {
        let (twin_id, contract_id) = (deployment.twin_id, deployment.contract_id);
        Self { twin_id, contract_id, name: workload.name.clone() }
    }

    /// The id of the workload `name` of the same deployment.
    pub fn sibling(&self, name: &Name) -> Self {
        Self { name: name.clone(), ..self.clone() }
    }

    /// The short id of one of its devices.
    pub fn device(&self, tag: &str) -> ShortId {
        ShortId::of(&format!("{self}:{tag}"))
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.twin_id, self.contract_id, self.name)
    }
}

impl Serialize for WorkloadId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a twin's private network is called on every node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(ShortId);

impl NetworkId {
    /// The id of a twin's network.
    pub fn of(twin_id: TwinId, network: &Name) -> Self {
        Self(ShortId::of(&format!("{twin_id}:{network}")))
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Bitcoin's base58: digits of a big-endian number, after a `1` for each zero byte at its beginning.
fn base58(bytes: [u8; 16]) -> String {
    let mut number = u128::from_be_bytes(bytes);
    let mut digits = Vec::new();
    while number > 0 {
        let digit = usize::try_from(number % 58).unwrap_or_default();
        digits.push(char::from(ALPHABET.get(digit).copied().unwrap_or_default()));
        number /= 58;
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).map(|_| '1');
    zeros.chain(digits.into_iter().rev()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base58_is_bitcoins() {
        assert_eq!(base58([0; 16]), "1".repeat(16));
        let mut bytes = [0; 16];
        bytes[14..].copy_from_slice(&[1, 0]);
        assert_eq!(base58(bytes), format!("{}5R", "1".repeat(14)));
        assert_eq!(base58([0xff; 16]), "YcVfxkQb6JRzqk5kF2tNLv");
    }

    #[test]
    fn siblings_share_twin_and_contract() {
        let machine = WorkloadId {
            twin_id: TwinId(11),
            contract_id: ContractId(4242),
            name: Name::new("vm1"),
        };
        assert_eq!(machine.sibling(&Name::new("pubip")).to_string(), "11-4242-pubip");
    }
}
