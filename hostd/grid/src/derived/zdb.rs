//! Where ZDB servers live: a network namespace each, named by the server's id, with an interface to each
//! network, whose MACs follow from the id too.

use super::{MacAddress, ShortId};

/// The network namespace of a server on a full node.
pub fn namespace(id: &str) -> String {
    format!("zdb-ns-{}", public_mac(id).to_digits())
}

/// The network namespace of a server on a light node.
pub fn light_namespace(id: &str) -> String {
    format!("n{}", ShortId::of(id))
}

/// The MAC of a server in the public network.
pub fn public_mac(id: &str) -> MacAddress {
    MacAddress::of(&format!("pub:{id}"))
}

/// The MAC of a server in the planetary network.
pub fn planetary_mac(id: &str) -> MacAddress {
    MacAddress::of(&format!("ygg:{id}"))
}

/// The MAC of a server in the mycelium network.
pub fn mycelium_mac(id: &str) -> MacAddress {
    MacAddress::of(&format!("my:{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_named_by_the_public_mac() {
        assert_eq!(public_mac("7b1b6a1e-uuid").to_string(), "ea:c5:74:0d:cf:ca");
        assert_eq!(namespace("7b1b6a1e-uuid"), "zdb-ns-eac5740dcfca");
        assert_eq!(light_namespace("7b1b6a1e-uuid").len(), 14);
        let macs = [public_mac("x"), planetary_mac("x"), mycelium_mac("x")];
        assert!(macs.iter().enumerate().all(|(at, mac)| !macs[..at].contains(mac)));
    }
}
