//! Each peer, step by step: its name, its address, a connection, and whether a node is at its other end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mycelium_router::LinkId;
use mycelium_wire::control::{HELLO_UNICAST, Hello, Seqno, Tlv};
use mycelium_wire::frame::{self, Frame, FrameError};
use mycelium_wire::identity::{PublicKey, SecretKey};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Finding, RunningNode};
use crate::config::Config;
use crate::endpoint::{Address, Endpoint, Protocol};
use crate::link::Link;
use crate::link::stream::{Inbound, LinkError, Taker};
use crate::link::udp::socket::{SocketSettings, Sockets};
use crate::peers::connect::{Connection, Connector, resolve};
use crate::peers::private::PrivateNetwork;
use crate::peers::quic;
use crate::tun::MTU;

const CHECK: &str = "peer";
/// Time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the first words of a node.
const HEAR_TIMEOUT: Duration = Duration::from_secs(3);
/// Of the hello that is said, in hundredths of a second.
const HELLO_INTERVAL: u16 = 2000;
/// Peers that are looked at.
const PEER_COUNT_MAX: usize = 64;

pub(super) async fn examine(
    config: &Config,
    key: Option<PublicKey>,
    node: Option<&RunningNode>,
) -> Vec<Finding> {
    if config.peers.is_empty() {
        return vec![none(config.peer_discovery.is_some(), node)];
    }
    let connector = match connector(config) {
        Ok(connector) => connector,
        Err(error) => {
            let remedy = "see the error: without it no peer can be dialed";
            return vec![Finding::problem(CHECK, format!("{error:#}"), remedy)];
        }
    };
    let mut findings = Vec::new();
    for endpoint in config.peers.iter().take(PEER_COUNT_MAX) {
        let is_alive =
            |(peer, is_alive): &(String, bool)| *is_alive && *peer == endpoint.to_string();
        if node.is_some_and(|node| node.peers.iter().any(is_alive)) {
            findings.push(Finding::good(CHECK, format!("{endpoint}: the node has a link to it")));
        } else {
            findings.extend(examine_one(&connector, endpoint, key).await);
        }
    }
    findings
}

fn none(is_discovering: bool, node: Option<&RunningNode>) -> Finding {
    let has_link = node.is_some_and(|node| node.peers.iter().any(|(_, is_alive)| *is_alive));
    let said = "none is configured";
    if has_link {
        return Finding::good(CHECK, "none is configured, but the node has links to others");
    }
    let remedy = "--peers tcp://HOST:PORT, with the address of a node that others reach too";
    if is_discovering {
        let said = format!("{said}: only nodes on the local network are found");
        return Finding::hint(CHECK, said, remedy);
    }
    Finding::problem(CHECK, format!("{said}, and none is looked for"), remedy)
}

fn connector(config: &Config) -> anyhow::Result<Connector> {
    let private = match &config.private_network {
        Some((name, key_file)) => Some(PrivateNetwork::new(name, key_file)?),
        None => None,
    };
    let mut connector = Connector { mark: config.firewall_mark, private, quic: None, udp: None };
    if config.quic_listen_port.is_some() {
        connector.quic = Some(quic::endpoint(&connector, 0, "doctor").context("QUIC")?);
    }
    if config.udp_listen_port.is_some() {
        connector.udp = Some(udp_sockets().context("UDP links")?);
    }
    Ok(connector)
}

/// Sockets that dial as a node of another key would.
fn udp_sockets() -> anyhow::Result<Arc<Sockets>> {
    // Nobody is told of the port, so nobody dials.
    let (accepted, _) = mpsc::channel(1);
    let secret = SecretKey::generate()?;
    let settings = SocketSettings { port: 0, takes: MTU, reader_count: 1 };
    Ok(Sockets::open(secret, settings, |_| Ok(()), accepted)?)
}

async fn examine_one(
    connector: &Connector,
    endpoint: &Endpoint,
    key: Option<PublicKey>,
) -> Vec<Finding> {
    if let Err(error) = connector.check(endpoint) {
        let remedy = "use another protocol for this peer, or the settings that it needs";
        return vec![Finding::problem(CHECK, error.to_string(), remedy)];
    }
    if let Address::Vsock { .. } = endpoint.address {
        let result = connector.dial(endpoint).await;
        return vec![meet(endpoint, "", result, key).await];
    }
    let addresses = match timeout(CONNECT_TIMEOUT, resolve(&endpoint.address)).await {
        Ok(Ok(addresses)) if !addresses.is_empty() => addresses,
        Ok(Err(error)) => return vec![unresolved(endpoint, &format!("{error:#}"))],
        Ok(Ok(_)) => return vec![unresolved(endpoint, "the name has no address")],
        Err(_late) => return vec![unresolved(endpoint, "DNS does not answer")],
    };
    let mut findings = Vec::new();
    for address in addresses {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let result = timeout(CONNECT_TIMEOUT, connector.connect_to(endpoint, address)).await;
        let result = result.unwrap_or_else(|_| Err(late().into()));
        let at = match &endpoint.address {
            Address::Name(..) => format!(" at {address}"),
            _ => String::new(),
        };
        findings.push(meet(endpoint, &at, result, key).await);
    }
    findings
}

fn unresolved(endpoint: &Endpoint, why: &str) -> Finding {
    let remedy = "is the name right, and DNS in /etc/resolv.conf? an IP address does without";
    Finding::problem(CHECK, format!("{endpoint}: {why}"), remedy)
}

/// Says what became of a dial, and if it succeeded, who is at the other end.
async fn meet(
    endpoint: &Endpoint,
    at: &str,
    result: anyhow::Result<Connection>,
    key: Option<PublicKey>,
) -> Finding {
    let connection = match result {
        Ok(connection) => connection,
        Err(error) => {
            let (why, remedy) = explain(endpoint, &error);
            return Finding::problem(CHECK, format!("{endpoint}{at}: {why}"), remedy);
        }
    };
    let mut ears = Ears::default();
    let link = Link::new(LinkId(0), String::new(), connection.carrier);
    // Over QUIC, the other side hears of the connection by its first bytes.
    let hello = Hello { flags: HELLO_UNICAST, seqno: Seqno(0), interval: HELLO_INTERVAL };
    link.send_control(&Tlv::Hello(hello));
    // It ends when enough was heard.
    let ended = timeout(HEAR_TIMEOUT, link.carrier().run(&mut ears)).await;
    link.close();
    match (ears.heard, ended) {
        (Some(Heard::Key(peer)), _) if Some(peer) == key => Finding::problem(
            CHECK,
            format!("{endpoint}{at}: that is this node itself"),
            "name another node",
        ),
        (Some(Heard::Key(peer)), _) => {
            Finding::good(CHECK, format!("{endpoint}{at}: node {} answers", peer.address()))
        }
        (Some(Heard::Something), _) => {
            Finding::good(CHECK, format!("{endpoint}{at}: a node answers"))
        }
        (None, Ok(LinkError::Frame(error))) => Finding::problem(
            CHECK,
            format!("{endpoint}{at}: what answers is no node ({error})"),
            "is the port right? a node's is 9651 unless somebody chose another",
        ),
        (None, Ok(_)) => Finding::problem(
            CHECK,
            format!("{endpoint}{at}: it takes the connection and closes it at once"),
            "is it a node, of the same private network (--network-name), with room for one more?",
        ),
        (None, Err(_late)) => Finding::problem(
            CHECK,
            format!("{endpoint}{at}: it takes the connection and says nothing"),
            "is it a node? something on the way may take connections for it",
        ),
    }
}

/// What an error of a dial means, and what can be done.
fn explain(endpoint: &Endpoint, error: &anyhow::Error) -> (String, &'static str) {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    let kind = cause.map(io::Error::kind);
    let is_late = error.chain().any(|cause| cause.to_string().contains("timed out"));
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => (
            "the machine is there, but nothing listens at this port".to_owned(),
            "does the node run there, with this port, and does a firewall refuse it?",
        ),
        Some(io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => (
            format!("this machine has no way there ({error:#})"),
            "look at `ip route` and `ip -6 route`; name an address of the other family",
        ),
        Some(io::ErrorKind::TimedOut) => late(endpoint),
        _ if is_late => late(endpoint),
        _ if endpoint.protocol == Protocol::Tls => (
            format!("no TLS with it ({error:#})"),
            "both sides need the same --network-name and --network-key-file",
        ),
        _ if matches!(endpoint.protocol, Protocol::Ws | Protocol::Wss) => (
            format!("no WebSocket there ({error:#})"),
            "the web server in front must pass /mycelium on to the node's --ws-listen-port",
        ),
        _ => (format!("{error:#}"), "see the error"),
    }
}

fn late(endpoint: &Endpoint) -> (String, &'static str) {
    let why = format!("nobody answers in {} s", CONNECT_TIMEOUT.as_secs());
    let remedy = if matches!(endpoint.protocol, Protocol::Quic | Protocol::Udp) {
        "the machine is off, or a firewall drops UDP: try tcp:// or wss://"
    } else {
        "the machine is off, or a firewall drops this port: try quic://, or wss:// at port 443"
    };
    (why, remedy)
}

/// Hears who is at the other end.
#[derive(Default)]
struct Ears {
    heard: Option<Heard>,
}

/// What was heard.
enum Heard {
    /// A node that announces its subnet.
    Key(PublicKey),
    /// Something that only nodes say.
    Something,
}

impl Taker for Ears {
    fn packets(&mut self, bytes: &mut [u8]) -> Result<usize, FrameError> {
        let mut at = 0;
        while let Some((frame, size)) = frame::parse(&bytes[at..])? {
            at += size;
            self.heard.get_or_insert(Heard::Something);
            if let Frame::Control(Ok(tlv)) = frame
                && let Some(update) = tlv.update()
            {
                let key = update.router_id.public_key();
                if key.subnet() == update.subnet && update.metric.0 == 0 {
                    self.heard = Some(Heard::Key(key));
                }
            }
        }
        Ok(at)
    }

    fn arrived(&mut self, _size: usize) {}
}

impl Inbound for Ears {
    async fn settle(&mut self) -> Result<(), LinkError> {
        match self.heard {
            Some(Heard::Key(_)) => Err(LinkError::Stopping),
            _ => Ok(()),
        }
    }

    fn data_taker(&self) -> Box<dyn Taker> {
        Box::new(Self::default())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::super::Verdict;
    use super::*;
    use crate::config::Settings;

    async fn examined(peer: String) -> Vec<Finding> {
        let settings = Settings { peers: vec![peer], disable_quic: true, ..Settings::default() };
        examine(&settings.check().unwrap(), None, None).await
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn a_port_where_nothing_listens_is_told_from_one_where_no_node_does() {
        let (listener, address) = listener().await;
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
            // Held open, as a server would.
            tokio::time::sleep(Duration::from_secs(20)).await;
        });
        let findings = examined(format!("tcp://{address}")).await;
        assert_eq!(findings[0].verdict, Verdict::Problem);
        assert!(findings[0].said.contains("no node"), "{findings:?}");
        served.abort();
        let _ = served.await;
        let findings = examined(format!("tcp://{address}")).await;
        assert!(findings[0].said.contains("nothing listens"), "{findings:?}");
    }

    #[tokio::test]
    async fn one_that_closes_at_once_is_said_so() {
        let (listener, address) = listener().await;
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let findings = examined(format!("tcp://{address}")).await;
        assert!(findings[0].said.contains("closes it at once"), "{findings:?}");
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_said_so() {
        let findings = examined("tcp://no-such-host.invalid:9651".to_owned()).await;
        assert_eq!((findings.len(), findings[0].verdict), (1, Verdict::Problem));
        assert!(findings[0].remedy.as_ref().unwrap().contains("resolv.conf"), "{findings:?}");
    }

    #[test]
    fn no_peers_at_all_is_a_problem_unless_some_are_looked_for() {
        assert_eq!(none(false, None).verdict, Verdict::Problem);
        assert_eq!(none(true, None).verdict, Verdict::Hint);
    }
}
