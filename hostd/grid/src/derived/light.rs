//! Networks of a light node: the same ids, in other names.
//!
//! Namespaces and bridges do without the dash. A machine's interfaces are named by a short id *of the
//! short id*, and their MACs are those of the taps' names.

use super::network::Tap;
use super::{MacAddress, NetworkId, ShortId, WorkloadId};
use crate::id::Name;

impl NetworkId {
    /// The network's namespace on a light node.
    pub fn light_namespace(&self) -> String {
        format!("n{self}")
    }

    /// The bridge of private interfaces on a light node.
    pub fn light_bridge(&self) -> String {
        format!("r{self}")
    }

    /// The bridge of mycelium interfaces on a light node.
    pub fn light_mycelium_bridge(&self) -> String {
        format!("m{self}")
    }
}

impl WorkloadId {
    /// The interface of this machine in a private network of a light node.
    pub fn light_private_tap(&self, network: &Name) -> Tap {
        self.light_tap("b-", network)
    }

    /// The interface of this machine in the mycelium subnet of a network of a light node.
    pub fn light_mycelium_tap(&self, network: &Name) -> Tap {
        self.light_tap("m-", network)
    }

    fn light_tap(&self, prefix: &str, network: &Name) -> Tap {
        let id = ShortId::of(self.device(network.as_str()).as_str());
        let name = format!("{prefix}{id}");
        let mac = MacAddress::of(&name);
        Tap { name, mac }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ContractId, TwinId};

    #[test]
    fn taps_are_named_by_an_id_of_the_id() {
        let id =
            WorkloadId { twin_id: TwinId(11), contract_id: ContractId(4242), name: "vm1".into() };
        let network = Name::new("net1");
        let (private, mycelium) = (id.light_private_tap(&network), id.light_mycelium_tap(&network));
        // `YYzBJUHjASz9U` is the short id that the vectors have for this machine and network.
        let expected = ShortId::of("YYzBJUHjASz9U");
        assert_eq!(private.name, format!("b-{expected}"));
        assert_eq!(mycelium.name, format!("m-{expected}"));
        assert_eq!(private.mac, MacAddress::of(&private.name));
        assert_ne!(private.mac, mycelium.mac);
        let network = NetworkId::of(id.twin_id, &network);
        assert_eq!(network.light_namespace(), format!("n{network}"));
        assert_eq!(network.light_bridge(), format!("r{network}"));
        assert_eq!(network.light_mycelium_bridge(), format!("m{network}"));
    }
}
