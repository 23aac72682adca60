//! What instances are told: the file of `--instances`, and the same for one that is added later.
//!
//! ```toml
//! control_socket = "/run/mycelium/control.sock"   # where to add, remove and list; the default
//!
//! [[instance]]
//! name = "host"                         # the first of the file is the one that others reach peers by
//! key_file = "/var/lib/mycelium/host.key"
//! namespace = "ndmz"                    # name or path; without it, that of the process
//! tun_name = "my0"                      # without it, no device
//! peers = ["tcp://192.0.2.1:9651"]
//! tcp_listen_port = 9651                # without it, nobody connects
//!
//! [[instance]]
//! name = "network-7"
//! key_file = "/var/lib/mycelium/network-7.key"
//! namespace = "n7"
//! tun_name = "my0"
//! ```
//!
//! An instance listens nowhere, looks for nobody and has no API of its own unless it is told to: its
//! process has a control socket for all.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Config, ConfigError, Settings};

/// Where the control socket is when nobody says.
pub const CONTROL_SOCKET: &str = "/run/mycelium/control.sock";
/// Longest name of an instance.
const NAME_SIZE_MAX: usize = 64;
/// Most threads of one instance.
const THREAD_COUNT_MAX: u8 = 16;

/// A file of instances.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct InstancesFile {
    /// Where the control socket is.
    pub control_socket: Option<PathBuf>,
    /// The instances, in their order.
    #[serde(default, rename = "instance")]
    pub instances: Vec<InstanceSettings>,
}

/// What one instance is told.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceSettings {
    /// What it is called here.
    pub name: String,
    /// File with its secret key; made if missing.
    pub key_file: PathBuf,
    /// Its network namespace, by name or path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its TUN device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tun_name: Option<String>,
    /// Threads that carry its packets; one, which is enough for a few Gbit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u8>,
    /// Peers to dial, besides the other instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// Port for TCP connections of peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_listen_port: Option<u16>,
    /// UDP port for QUIC; without it, no QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_listen_port: Option<u16>,
    /// UDP port for links to nodes of this kind; without it, none, and no direct ways through NATs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_listen_port: Option<u16>,
    /// No direct ways though there is such a port.
    #[serde(default)]
    pub disable_direct: bool,
    /// Ask the router to pass on that port.
    #[serde(default)]
    pub map_port: bool,
    /// MTU of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tun_mtu: Option<u16>,
    /// Port for vsock connections of peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_listen_port: Option<u32>,
    /// Port for WebSocket connections of peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ws_listen_port: Option<u16>,
    /// Whether it looks for peers on its local networks.
    #[serde(default)]
    pub peer_discovery: bool,
    /// UDP port of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_discovery_port: Option<u16>,
    /// Interfaces of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer_discovery_interface: Vec<String>,
    /// Name of its private network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_name: Option<String>,
    /// Key of its private network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_key_file: Option<PathBuf>,
    /// Mark of its packets to peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firewall_mark: Option<u32>,
    /// Folder for what outlives a restart, one for each instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Talk to all nodes as existing releases do.
    #[serde(default)]
    pub no_sessions: bool,
    /// Rules of topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_config: Option<PathBuf>,
    /// Address of an HTTP API of its own, in its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_addr: Option<SocketAddr>,
    /// Address of JSON-RPC of its own, in its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jsonrpc_addr: Option<SocketAddr>,
    /// Address of metrics of its own, in its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_api_address: Option<SocketAddr>,
}

/// Settings of instances that make no sense.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// A name that can't be one.
    #[error(
        "instance {0:?}: a name has 1 to {NAME_SIZE_MAX} letters, digits, dots, dashes or underscores"
    )]
    Name(String),
    /// A name that two have.
    #[error("instance {0}: there are two of this name")]
    Twice(String),
    /// Too many or no threads.
    #[error("instance {0}: {1} threads, expected 1 to {THREAD_COUNT_MAX}")]
    Threads(String, u8),
    /// Something else.
    #[error("instance {name}")]
    Settings {
        /// Whose.
        name: String,
        /// What.
        #[source]
        source: ConfigError,
    },
}

impl InstancesFile {
    /// Reads a file and checks it.
    ///
    /// # Errors
    /// When it can't be read or makes no sense.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text, path)
    }

    /// Takes the text of a file and checks it.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(text: &str, path: &Path) -> anyhow::Result<Self> {
        let wrong = |source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) };
        let file: Self = toml::from_str(text).map_err(wrong)?;
        let mut names = BTreeSet::new();
        for instance in &file.instances {
            instance.check()?;
            if !names.insert(&instance.name) {
                return Err(InstanceError::Twice(instance.name.clone()).into());
            }
        }
        Ok(file)
    }
}

impl InstanceSettings {
    /// What results.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn check(&self) -> Result<Config, InstanceError> {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let is_name = (1..=NAME_SIZE_MAX).contains(&self.name.len());
        if !is_name || !self.name.bytes().all(is_good) {
            return Err(InstanceError::Name(self.name.clone()));
        }
        let threads = self.thread_count();
        if !(1..=THREAD_COUNT_MAX).contains(&threads) {
            return Err(InstanceError::Threads(self.name.clone(), threads));
        }
        let wrong = |source| InstanceError::Settings { name: self.name.clone(), source };
        let config = self.settings().check().map_err(wrong)?;
        let api_address = config.api_address.filter(|_| self.api_addr.is_some());
        let jsonrpc_address = config.jsonrpc_address.filter(|_| self.jsonrpc_addr.is_some());
        Ok(Config {
            tcp_listen_port: self.tcp_listen_port,
            api_address,
            jsonrpc_address,
            queue_count: usize::from(threads),
            ..config
        })
    }

    /// Whether `other` is the same but for its peers.
    pub(crate) fn differs_in_peers_alone(&self, other: &Self) -> bool {
        self.peers != other.peers && Self { peers: other.peers.clone(), ..self.clone() } == *other
    }

    /// Threads that carry its packets.
    pub(crate) fn thread_count(&self) -> u8 {
        self.threads.unwrap_or(1)
    }

    /// Name and key of its private network: only members are joined with it.
    pub(crate) fn private_network(&self) -> Option<(&str, &Path)> {
        Some((self.network_name.as_deref()?, self.network_key_file.as_deref()?))
    }

    fn settings(&self) -> Settings {
        Settings {
            key_file: Some(self.key_file.clone()),
            peers: self.peers.clone(),
            disable_quic: self.quic_listen_port.is_none(),
            quic_listen_port: self.quic_listen_port,
            disable_udp: self.udp_listen_port.is_none(),
            udp_listen_port: self.udp_listen_port,
            disable_direct: self.disable_direct,
            map_port: self.map_port,
            tun_mtu: self.tun_mtu,
            vsock_listen_port: self.vsock_listen_port,
            ws_listen_port: self.ws_listen_port,
            api_addr: self.api_addr,
            jsonrpc_addr: self.jsonrpc_addr,
            metrics_api_address: self.metrics_api_address,
            topic_config: self.topic_config.clone(),
            tun_name: self.tun_name.clone(),
            no_tun: self.tun_name.is_none(),
            disable_peer_discovery: !self.peer_discovery,
            peer_discovery_port: self.peer_discovery_port,
            peer_discovery_interface: self.peer_discovery_interface.clone(),
            network_name: self.network_name.clone(),
            network_key_file: self.network_key_file.clone(),
            firewall_mark: self.firewall_mark,
            state_dir: self.state_dir.clone(),
            no_sessions: self.no_sessions,
            ..Settings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<InstancesFile, String> {
        InstancesFile::parse(text, Path::new("x.toml")).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn an_instance_has_what_it_is_told_and_no_more() {
        let text = "[[instance]]\nname = \"host\"\nkey_file = \"a\"\ntcp_listen_port = 9651\n\
                    tun_name = \"my0\"\npeers = [\"tcp://192.0.2.1:9651\"]\n\
                    [[instance]]\nname = \"n7\"\nkey_file = \"b\"\nnamespace = \"n7\"\n";
        let file = parse(text).unwrap();
        let host = file.instances[0].check().unwrap();
        assert_eq!((host.tcp_listen_port, host.tun_name.as_deref()), (Some(9651), Some("my0")));
        let other = file.instances[1].check().unwrap();
        assert!(other.tcp_listen_port.is_none() && other.quic_listen_port.is_none());
        assert!(other.udp_listen_port.is_none() && !other.has_direct);
        assert!(other.api_address.is_none() && other.jsonrpc_address.is_none());
        assert!(other.tun_name.is_none() && other.peer_discovery.is_none());
        let json = serde_json::to_string(&file.instances[0]).unwrap();
        assert_eq!(serde_json::from_str::<InstanceSettings>(&json).unwrap(), file.instances[0]);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let one = |more: &str| format!("[[instance]]\nname = \"a\"\nkey_file = \"k\"\n{more}\n");
        for (text, said) in [
            (one("port = 1"), "port"),
            (one("peers = [\"x\"]"), "instance a"),
            (one("threads = 0"), "0 threads"),
            (one("network_name = \"x\""), "go together"),
            (one("tun_name = \"a/b\""), "tun-name"),
            (one("") + &one(""), "two of this name"),
            (one("").replace("\"a\"", "\"a b\""), "a b"),
            ("[[instance]]\nname = \"a\"".to_owned(), "key_file"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
