//! What a node is told: flags, and a TOML file with the same names (`-` as `_`). Flags override the
//! file.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::api;
use crate::endpoint::{Endpoint, EndpointError};
use crate::sys::INTERFACE_NAME_SIZE_MAX;
use crate::tun::{MTU, MTU_MAX};

/// Settings, as far as somebody gave them.
#[derive(Args, Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// File with the node's secret key, 32 raw bytes; made if missing
    ///
    /// Default: $HOME/.local/share/mycelium/priv_key.bin
    #[arg(short = 'k', long, value_name = "PATH", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,

    /// Peers to dial: tcp://HOST:PORT, quic://…, udp://…, ws://…, wss://… or vsock://CID:PORT
    ///
    /// HOST is an IP address or a name. ws and wss are for networks that let nothing else pass.
    #[arg(long, value_name = "ENDPOINT", num_args = 1..)]
    pub peers: Vec<String>,

    /// Port for TCP connections of peers [default: 9651]
    #[arg(short = 't', long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_listen_port: Option<u16>,

    /// No QUIC at all
    #[arg(long)]
    pub disable_quic: bool,

    /// UDP port for QUIC connections of peers [default: 9651]
    #[arg(short = 'q', long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quic_listen_port: Option<u16>,

    /// No UDP links, and so no direct ones to nodes behind NATs
    #[arg(long)]
    pub disable_udp: bool,

    /// UDP port for links of nodes of this kind [default: 9652, or any if it is taken]
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_listen_port: Option<u16>,

    /// Do not tell the nodes that this one has traffic with where it is, nor look for direct ways to them
    #[arg(long)]
    pub disable_direct: bool,

    /// Ask the router of an IPv4 network (PCP, NAT-PMP) to pass on the port for UDP links
    #[arg(long)]
    pub map_port: bool,

    /// Speak to all nodes as existing releases do: with keys that last for ever
    #[arg(long)]
    pub no_sessions: bool,

    /// Folder for what outlives a restart: who ever had a session with this node; none by default
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,

    /// Port for vsock connections of peers; none by default
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_listen_port: Option<u32>,

    /// TCP port for WebSocket connections of peers (ws://), as a web server may pass them on; none by
    /// default
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ws_listen_port: Option<u16>,

    /// Address of the HTTP API [default: 127.0.0.1:8989]
    #[arg(long, value_name = "ADDRESS", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_addr: Option<SocketAddr>,

    /// Address of the JSON-RPC API [default: 127.0.0.1:8990]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsonrpc_addr: Option<SocketAddr>,

    /// Address at which Prometheus gets metrics, under /metrics; none by default
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_api_address: Option<SocketAddr>,

    /// TOML file that says who may send messages about what
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_config: Option<PathBuf>,

    /// Name of the TUN device [default: mycelium]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tun_name: Option<String>,

    /// MTU of the TUN device, from 1400 to 9000 [default: 1400]
    ///
    /// Larger packets go to neighbours alone that say over a UDP link that they take them; for others, the
    /// node answers what is above 1400 with "packet too big".
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(i64::from(MTU)..=i64::from(MTU_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tun_mtu: Option<u16>,

    /// Route for others and carry messages, but have no TUN device
    #[arg(long)]
    pub no_tun: bool,

    /// Do not look for peers on the local network
    #[arg(long)]
    pub disable_peer_discovery: bool,

    /// UDP port on which peers on the local network find each other [default: 9650]
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_discovery_port: Option<u16>,

    /// Interface to look for peers on, instead of all; may be given several times
    #[arg(long, value_name = "NAME")]
    pub peer_discovery_interface: Vec<String>,

    /// Name of a private network, whose members alone are peers; needs --network-key-file
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_name: Option<String>,

    /// File with the private network's key, 32 raw bytes
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_key_file: Option<PathBuf>,

    /// Taken so that old command lines work; of no effect
    #[arg(long, value_name = "COUNT", hide = true, value_parser = clap::value_parser!(u8).range(1..=254))]
    #[serde(skip_serializing)]
    pub update_workers: Option<u8>,

    /// Mark of all packets to peers, for firewalls and policy routing
    #[arg(long, value_name = "MARK")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall_mark: Option<u32>,
}

/// Settings that make no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("configuration {path}: can't be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("configuration {path}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A peer is none.
    #[error("--peers")]
    Peer(#[from] EndpointError),
    /// The name of the device can't be one.
    #[error("--tun-name {0:?}: a name has 1 to {INTERFACE_NAME_SIZE_MAX} bytes and no slash")]
    TunName(String),
    /// Flags of one node, and a file with several.
    #[error("--instances takes no flags that are one node's")]
    FlagsWithInstances,
    /// The MTU is too small or too large.
    #[error("tun_mtu {0}: expected {MTU} to {MTU_MAX}")]
    TunMtu(u16),
    /// One of a private network's two settings is missing.
    #[error("--network-name and --network-key-file go together")]
    HalfPrivateNetwork,
}

/// What a node runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// File with the secret key.
    pub key_file: Option<PathBuf>,
    /// Peers to dial.
    pub peers: Vec<Endpoint>,
    /// Port for TCP; none when nobody may connect.
    pub tcp_listen_port: Option<u16>,
    /// Port for QUIC; none when there is none.
    pub quic_listen_port: Option<u16>,
    /// Port for UDP links; none when there are none.
    pub udp_listen_port: Option<UdpPort>,
    /// Whether direct ways are looked for.
    pub has_direct: bool,
    /// Whether the router is asked to pass on the port for UDP links.
    pub map_port: bool,
    /// Whether there are sessions with nodes that can have them.
    pub has_sessions: bool,
    /// Folder for what outlives a restart.
    pub state_dir: Option<PathBuf>,
    /// Port for vsock.
    pub vsock_listen_port: Option<u32>,
    /// Port for WebSockets.
    pub ws_listen_port: Option<u16>,
    /// Where the HTTP API is.
    pub api_address: Option<ApiAddress>,
    /// Where JSON-RPC is.
    pub jsonrpc_address: Option<ApiAddress>,
    /// Where metrics are.
    pub metrics_address: Option<SocketAddr>,
    /// File with the rules of topics.
    pub topic_config: Option<PathBuf>,
    /// Name of the TUN device; none when there is none.
    pub tun_name: Option<String>,
    /// MTU of the TUN device.
    pub tun_mtu: u16,
    /// Port and interfaces of discovery; none when there is none.
    pub peer_discovery: Option<(u16, Vec<String>)>,
    /// Name and key file of a private network.
    pub private_network: Option<(String, PathBuf)>,
    /// `SO_MARK`.
    pub firewall_mark: Option<u32>,
    /// Queues of the TUN device, each with a thread.
    pub queue_count: usize,
}

/// Where programs reach a node.
#[derive(Clone, Copy, Debug)]
pub struct ApiAddress {
    /// Address and port.
    pub address: SocketAddr,
    /// Nobody chose it.
    pub is_default: bool,
}

impl ApiAddress {
    fn new(chosen: Option<SocketAddr>, port: u16) -> Self {
        let address = chosen.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into());
        Self { address, is_default: chosen.is_none() }
    }
}

/// Threads that run a node's tasks, and queues of its TUN device.
const THREAD_COUNT_MAX: usize = 4;
/// Where UDP links are taken.
#[derive(Clone, Copy, Debug)]
pub struct UdpPort {
    /// The port.
    pub port: u16,
    /// Nobody chose it.
    pub is_default: bool,
}

/// UDP port of links between nodes of this kind. Not that of QUIC: existing nodes have one socket for it,
/// whose datagrams nobody else may read.
pub(crate) const UDP_LISTEN_PORT: u16 = 9652;
/// UDP port of existing nodes' QUIC.
const QUIC_LISTEN_PORT: u16 = 9651;
/// TCP port of existing nodes.
const TCP_LISTEN_PORT: u16 = 9651;
/// Name of existing nodes' devices.
const TUN_NAME: &str = "mycelium";

/// Threads that are worth having on this machine.
pub(crate) fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(THREAD_COUNT_MAX)
}

/// Where the configuration is looked for when nobody says: `$HOME/.config/mycelium/mycelium.toml`.
pub fn default_path() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(Path::new(&home).join(".config/mycelium/mycelium.toml"))
}

impl Settings {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Reads the file that was named, or the default one if it is there.
    pub fn read_file(named: Option<&Path>) -> Result<Self, ConfigError> {
        match named {
            Some(path) => Self::read(path),
            None => match default_path() {
                Some(path) if path.exists() => Self::read(&path),
                _ => Ok(Self::default()),
            },
        }
    }

    /// These settings, and where they are silent, those of `file`.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            key_file: self.key_file.or(file.key_file),
            peers: if self.peers.is_empty() { file.peers } else { self.peers },
            tcp_listen_port: self.tcp_listen_port.or(file.tcp_listen_port),
            disable_quic: self.disable_quic || file.disable_quic,
            quic_listen_port: self.quic_listen_port.or(file.quic_listen_port),
            disable_udp: self.disable_udp || file.disable_udp,
            udp_listen_port: self.udp_listen_port.or(file.udp_listen_port),
            disable_direct: self.disable_direct || file.disable_direct,
            map_port: self.map_port || file.map_port,
            no_sessions: self.no_sessions || file.no_sessions,
            state_dir: self.state_dir.or(file.state_dir),
            vsock_listen_port: self.vsock_listen_port.or(file.vsock_listen_port),
            ws_listen_port: self.ws_listen_port.or(file.ws_listen_port),
            api_addr: self.api_addr.or(file.api_addr),
            jsonrpc_addr: self.jsonrpc_addr.or(file.jsonrpc_addr),
            metrics_api_address: self.metrics_api_address.or(file.metrics_api_address),
            topic_config: self.topic_config.or(file.topic_config),
            tun_name: self.tun_name.or(file.tun_name),
            tun_mtu: self.tun_mtu.or(file.tun_mtu),
            no_tun: self.no_tun || file.no_tun,
            disable_peer_discovery: self.disable_peer_discovery || file.disable_peer_discovery,
            peer_discovery_port: self.peer_discovery_port.or(file.peer_discovery_port),
            peer_discovery_interface: if self.peer_discovery_interface.is_empty() {
                file.peer_discovery_interface
            } else {
                self.peer_discovery_interface
            },
            network_name: self.network_name.or(file.network_name),
            network_key_file: self.network_key_file.or(file.network_key_file),
            update_workers: self.update_workers.or(file.update_workers),
            firewall_mark: self.firewall_mark.or(file.firewall_mark),
        }
    }

    /// What results.
    pub fn check(&self) -> Result<Config, ConfigError> {
        let tun_name = self.tun_name.clone().unwrap_or_else(|| TUN_NAME.to_owned());
        let is_name = (1..=INTERFACE_NAME_SIZE_MAX).contains(&tun_name.len())
            && !tun_name.contains(['/', '\0'])
            && !tun_name.contains(char::is_whitespace);
        if !is_name {
            return Err(ConfigError::TunName(tun_name));
        }
        let tun_mtu = self.tun_mtu.unwrap_or(MTU);
        if !(MTU..=MTU_MAX).contains(&tun_mtu) {
            return Err(ConfigError::TunMtu(tun_mtu));
        }
        let private_network = match (self.network_name.clone(), self.network_key_file.clone()) {
            (Some(name), Some(key_file)) => Some((name, key_file)),
            (None, None) => None,
            _ => return Err(ConfigError::HalfPrivateNetwork),
        };
        // QUIC carries no private network.
        let has_quic = !self.disable_quic && private_network.is_none();
        // Nor do UDP links, whose handshake proves a node's key but no membership.
        let has_udp = !self.disable_udp && private_network.is_none();
        let udp_port = UdpPort {
            port: self.udp_listen_port.unwrap_or(UDP_LISTEN_PORT),
            is_default: self.udp_listen_port.is_none(),
        };
        let discovery_port = self.peer_discovery_port.unwrap_or(mycelium_wire::beacon::PORT);
        let discovery = (discovery_port, self.peer_discovery_interface.clone());
        let peers = self.peers.iter().map(|peer| peer.parse()).collect::<Result<Vec<_>, _>>()?;
        Ok(Config {
            key_file: self.key_file.clone(),
            peers,
            tcp_listen_port: Some(self.tcp_listen_port.unwrap_or(TCP_LISTEN_PORT)),
            quic_listen_port: has_quic.then(|| self.quic_listen_port.unwrap_or(QUIC_LISTEN_PORT)),
            udp_listen_port: has_udp.then_some(udp_port),
            has_direct: has_udp && !self.disable_direct,
            map_port: has_udp && self.map_port,
            has_sessions: !self.no_sessions,
            state_dir: self.state_dir.clone(),
            vsock_listen_port: self.vsock_listen_port,
            ws_listen_port: self.ws_listen_port,
            peer_discovery: (!self.disable_peer_discovery).then_some(discovery),
            private_network,
            api_address: Some(ApiAddress::new(self.api_addr, api::HTTP_PORT)),
            jsonrpc_address: Some(ApiAddress::new(self.jsonrpc_addr, api::RPC_PORT)),
            metrics_address: self.metrics_api_address,
            topic_config: self.topic_config.clone(),
            tun_name: (!self.no_tun).then_some(tun_name),
            tun_mtu,
            firewall_mark: self.firewall_mark,
            queue_count: thread_count(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn a_file_of_existing_nodes_is_understood_and_flags_win() {
        let text = "peers = [\"tcp://192.0.2.1:9651\"]\ntcp_listen_port = 1\ntun_name = \"my0\"\n";
        let flags = Settings { tcp_listen_port: Some(2), ..Settings::default() };
        let config = flags.or(parse(text).unwrap()).check().unwrap();
        assert_eq!((config.tcp_listen_port, config.tun_name.as_deref()), (Some(2), Some("my0")));
        assert_eq!(config.peers.len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(parse("tcp_listen_prot = 1").is_err());
        assert!(parse("tcp_listen_port = 65536").is_err());
        for (peers, name) in
            [(vec!["192.0.2.1"], "my0"), (vec![], "a-name-of-17-byte"), (vec![], "")]
        {
            let settings = Settings {
                peers: peers.into_iter().map(str::to_owned).collect(),
                tun_name: Some(name.to_owned()),
                ..Settings::default()
            };
            assert!(settings.check().is_err(), "{settings:?}");
        }
    }
}
