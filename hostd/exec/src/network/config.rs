//! Where a node keeps its networks, and what it takes to run them.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use hostd_grid::address::Cidr;

/// The node's own end of every network's way out. Networks reach the node's mycelium there.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 127, 0, 1);

/// Most peers that each network's mycelium dials.
pub const PEER_COUNT_MAX: usize = 64;
/// Longest address of a peer, in bytes.
pub const PEER_SIZE_MAX: usize = 256;
/// Most exceptions from what machines may not reach.
pub const REACHABLE_COUNT_MAX: usize = 64;

/// How a node runs its networks.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Where networks are written down: a folder of this node alone, made if missing.
    pub directory: PathBuf,
    /// Where namespaces have names: `/run/netns`, made if missing.
    pub namespaces: PathBuf,
    /// The namespace that leads to the world, by its file. The process's own is `/proc/self/ns/net`.
    pub uplink: PathBuf,
    /// The `nft` program.
    pub nft: PathBuf,
    /// The `mycelium` program.
    pub mycelium: PathBuf,
    /// Where the logs of networks' mycelium are; the folder must exist. None: there are no logs.
    pub logs: Option<PathBuf>,
    /// Whom each network's mycelium dials, as `tcp://ADDRESS:PORT` and the like. The node's own mycelium,
    /// if it runs in the uplink's namespace, is `tcp://100.127.0.1:9651`.
    pub mycelium_peers: Vec<String>,
    /// Ports of the node that networks reach at [`NODE_ADDRESS`], by TCP and UDP: those of the node's own
    /// mycelium. Nothing else of the node can be reached.
    pub node_ports: Vec<u16>,
    /// What machines may reach although it is not on the public Internet. Other private addresses
    /// around the node, such as the farmer's other machines, are out of reach.
    pub reachable: Vec<Cidr>,
}

impl NetworkConfig {
    /// As on a node, with records in `directory` and nobody to dial.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            namespaces: "/run/netns".into(),
            uplink: "/proc/self/ns/net".into(),
            nft: "/usr/sbin/nft".into(),
            mycelium: "/usr/bin/mycelium".into(),
            logs: None,
            mycelium_peers: Vec::new(),
            node_ports: vec![9651, 9652],
            reachable: Vec::new(),
        }
    }

    /// Whether it can work at all, as far as it says itself.
    pub(super) fn check(&self) -> Result<(), super::NetworkError> {
        let wrong = |what: String| Err(super::NetworkError::Config(what));
        for path in [&self.directory, &self.namespaces, &self.uplink, &self.nft, &self.mycelium] {
            if !path.is_absolute() {
                return wrong(format!("path {} is not absolute", path.display()));
            }
        }
        if self.mycelium_peers.len() > PEER_COUNT_MAX {
            let count = self.mycelium_peers.len();
            return wrong(format!("{count} mycelium peers, at most {PEER_COUNT_MAX} are dialed"));
        }
        if let Some(peer) = self.mycelium_peers.iter().find(|peer| !is_endpoint(peer)) {
            return wrong(format!("mycelium peer {peer:?} is not like tcp://ADDRESS:PORT"));
        }
        if self.reachable.len() > REACHABLE_COUNT_MAX {
            let count = self.reachable.len();
            return wrong(format!("{count} reachable networks, at most {REACHABLE_COUNT_MAX}"));
        }
        match self.reachable.iter().find(|cidr| cidr.address().is_ipv6()) {
            Some(cidr) => wrong(format!("reachable {cidr}: only IPv4 leaves by the uplink")),
            None => Ok(()),
        }
    }
}

/// Whether a text is an argument that can be nothing but a peer. What it leads to, mycelium finds out.
fn is_endpoint(peer: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:[]%-_/?=&+~".contains(&byte);
    peer.len() <= PEER_SIZE_MAX
        && peer.bytes().all(is_plain)
        && peer.starts_with(|first: char| first.is_ascii_lowercase())
        && peer.split_once("://").is_some_and(|(_, rest)| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        let good = NetworkConfig::new("/run/hostd/network");
        good.check().unwrap();
        let say = |config: NetworkConfig| config.check().unwrap_err().to_string();
        let relative = NetworkConfig { nft: "nft".into(), ..good.clone() };
        assert!(say(relative).contains("path nft is not absolute"));
        for peer in ["--tun-name", "tcp://", "tcp://a b", "tcp:/a", "://x", ""] {
            let config = NetworkConfig { mycelium_peers: vec![peer.into()], ..good.clone() };
            assert!(say(config).contains(&format!("{peer:?}")), "{peer}");
        }
        let many = vec!["tcp://[::1]:9651".to_owned(); PEER_COUNT_MAX + 1];
        assert!(say(NetworkConfig { mycelium_peers: many, ..good.clone() }).contains("65"));
        let reachable = vec![Cidr::parse("fd00::/8").unwrap()];
        assert!(say(NetworkConfig { reachable, ..good }).contains("fd00::/8"));
    }
}
