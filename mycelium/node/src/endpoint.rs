//! Where a peer is: `tcp://HOST:PORT`, `quic://…`, `tls://…`, `udp://…`, `ws://…`, `wss://…` or
//! `vsock://CID:PORT`.
//!
//! HOST is an IP address (IPv6 in brackets, a link-local one with its scope as a number) or, unlike in
//! existing releases, a name, which is resolved each time it is dialed.
//!
//! Another instance of this process is shown as `instance://NAME`. Nobody can dial it by that text:
//! instances are joined by their process ([`crate::instances`]).

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// How a link to a peer is made.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// A TCP connection with TLS, keyed by a private network's secret.
    Tls,
    /// A QUIC connection.
    Quic,
    /// Datagrams, between nodes of this kind alone.
    Udp,
    /// A stream between a virtual machine and its host.
    Vsock,
    /// A WebSocket, for networks that let nothing else pass.
    Ws,
    /// A WebSocket over TLS, such as a web server in front of a node offers.
    Wss,
    /// Memory: the peer is an instance of the same process.
    Instance,
}

impl Protocol {
    /// As it stands in endpoints and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Quic => "quic",
            Self::Udp => "udp",
            Self::Vsock => "vsock",
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Instance => "instance",
        }
    }
}

/// Address of a peer.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Address {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A name that DNS knows, and a port.
    Name(String, u16),
    /// A vsock context and a port.
    Vsock {
        /// The machine.
        cid: u32,
        /// The port there.
        port: u32,
    },
    /// An instance of this process.
    Instance(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Vsock { cid, port } => write!(f, "{cid}:{port}"),
            Self::Instance(name) => f.write_str(name),
        }
    }
}

/// A peer to dial, or one that dialed.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Endpoint {
    /// How.
    pub protocol: Protocol,
    /// Where.
    pub address: Address,
}

impl Endpoint {
    /// An endpoint at an IP address.
    pub fn new(protocol: Protocol, address: SocketAddr) -> Self {
        Self { protocol, address: Address::Socket(address) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.protocol.name(), self.address)
    }
}

/// Text that is no endpoint.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EndpointError {
    /// There is no `://`.
    #[error("endpoint {0:?}: expected PROTOCOL://HOST:PORT, such as tcp://192.0.2.1:9651")]
    Form(String),
    /// The protocol is unknown.
    #[error("endpoint {0:?}: protocol {1:?}, expected tcp, quic, tls, udp, ws, wss or vsock")]
    Protocol(String, String),
    /// The address has no port, or a bad one.
    #[error("endpoint {0:?}: expected a port from 1 to {1} behind the last colon")]
    Port(String, u32),
    /// The host is neither an address nor a name.
    #[error("endpoint {0:?}: host {1:?} is neither an IP address (IPv6 in brackets) nor a name")]
    Host(String, String),
    /// The context of vsock is no number.
    #[error("endpoint {0:?}: context {1:?}, expected a number from 0 to 4294967295")]
    Context(String, String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let whole = || text.to_owned();
        let (protocol, rest) =
            text.split_once("://").ok_or_else(|| EndpointError::Form(whole()))?;
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "tls" => Protocol::Tls,
            "quic" => Protocol::Quic,
            "udp" => Protocol::Udp,
            "vsock" => Protocol::Vsock,
            "ws" => Protocol::Ws,
            "wss" => Protocol::Wss,
            _ => return Err(EndpointError::Protocol(whole(), protocol.to_owned())),
        };
        if protocol == Protocol::Vsock {
            let (cid, port) = split_port(text, rest, u32::MAX)?;
            let bad = |_| EndpointError::Context(whole(), cid.to_owned());
            let address = Address::Vsock { cid: cid.parse().map_err(bad)?, port };
            return Ok(Self { protocol, address });
        }
        let (host, port) = split_port(text, rest, u32::from(u16::MAX))?;
        // `split_port` has checked the range.
        let port = u16::try_from(port).unwrap_or(u16::MAX);
        if let Ok(address) = rest.parse::<SocketAddr>() {
            return Ok(Self::new(protocol, address));
        }
        if !is_name(host) {
            return Err(EndpointError::Host(whole(), host.to_owned()));
        }
        Ok(Self { protocol, address: Address::Name(host.to_ascii_lowercase(), port) })
    }
}

fn split_port<'a>(whole: &str, rest: &'a str, max: u32) -> Result<(&'a str, u32), EndpointError> {
    let bad = || EndpointError::Port(whole.to_owned(), max);
    let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
    let is_digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|port| is_digits && (1..=max).contains(port));
    Ok((host, port.ok_or_else(bad)?))
}

/// Host names as RFC 1123 §2.1 has them, with a letter somewhere so that `1.2.3` is none.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(is_label)
        && host.bytes().any(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_existing_releases_take_is_taken_and_shown_the_same() {
        for text in [
            "tcp://192.0.2.1:9651",
            "quic://[2001:db8::1]:9651",
            "tls://127.0.0.1:1",
            "udp://192.0.2.1:9652",
            "vsock://2:9651",
            "vsock://4294967295:4294967295",
            "tcp://[fe80::1%3]:9651",
            "tcp://node.example.org:9651",
            "ws://192.0.2.1:8080",
            "wss://node.example.org:443",
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
        }
        assert_eq!("TCP://1.2.3.4:5".parse::<Endpoint>().unwrap().to_string(), "tcp://1.2.3.4:5");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word) in [
            ("192.0.2.1:9651", "PROTOCOL"),
            ("icmp://192.0.2.1:9651", "protocol \"icmp\""),
            ("instance://host:1", "protocol \"instance\""),
            ("sctp://192.0.2.1:9651", "protocol \"sctp\""),
            ("tcp://192.0.2.1", "port"),
            ("tcp://192.0.2.1:0", "port"),
            ("tcp://192.0.2.1:65536", "port"),
            ("tcp://192.0.2.1:+80", "port"),
            ("tcp://2001:db8::1:9651", "host"),
            ("tcp://1.2.3:80", "host"),
            ("tcp://-a.org:80", "host"),
            ("tcp://:80", "host"),
            ("vsock://host:80", "context"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
