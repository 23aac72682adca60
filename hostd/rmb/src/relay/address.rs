//! Where a relay is: `wss://relay.grid.tf`, or `ws://127.0.0.1:9945` on one's own machine.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

/// A relay's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayAddress {
    host: String,
    port: u16,
    is_tls: bool,
    path: String,
}

/// Why a text is no relay's address.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum RelayAddressError {
    /// Not the form of an address.
    #[error("{0:?} is no address: {1}")]
    Url(String, String),
    /// Another protocol.
    #[error("{0:?} is no relay: their addresses begin with wss:// or ws://")]
    Scheme(String),
    /// No host, or a part that does not belong.
    #[error("{0:?} is no relay: it takes a host, a port and a path, and nothing else")]
    Parts(String),
}

impl RelayAddress {
    /// The host's name, by which the chain knows the relay.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, which the chain does not know.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the connection is by TLS.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Where to connect with a token, which is the query.
    pub(super) fn with_token(&self, token: &str) -> String {
        format!("{self}?{token}")
    }

    /// The host as sockets want it: an IPv6 address without brackets.
    pub(super) fn socket_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl FromStr for RelayAddress {
    type Err = RelayAddressError;

    fn from_str(text: &str) -> Result<Self, RelayAddressError> {
        let url = Url::parse(text)
            .map_err(|error| RelayAddressError::Url(text.to_owned(), error.to_string()))?;
        let (is_tls, default_port) = match url.scheme() {
            "wss" => (true, 443),
            "ws" => (false, 80),
            _ => return Err(RelayAddressError::Scheme(text.to_owned())),
        };
        let is_plain = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let host = url.host().as_ref().map(Host::to_string).filter(|_| is_plain);
        let host = host.ok_or_else(|| RelayAddressError::Parts(text.to_owned()))?;
        let port = url.port().unwrap_or(default_port);
        Ok(Self { host, port, is_tls, path: url.path().to_owned() })
    }
}

impl fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, is_tls, path } = self;
        match (is_tls, port) {
            (true, 443) => write!(f, "wss://{host}{path}"),
            (true, _) => write!(f, "wss://{host}:{port}{path}"),
            (false, 80) => write!(f, "ws://{host}{path}"),
            (false, _) => write!(f, "ws://{host}:{port}{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, host, port, is_tls, shown) in [
            ("wss://Relay.Grid.tf", "relay.grid.tf", 443, true, "wss://relay.grid.tf/"),
            ("ws://127.0.0.1:9945", "127.0.0.1", 9945, false, "ws://127.0.0.1:9945/"),
            ("ws://[::1]:80/a/b", "[::1]", 80, false, "ws://[::1]/a/b"),
            ("wss://127.0.0.1:8443/", "127.0.0.1", 8443, true, "wss://127.0.0.1:8443/"),
        ] {
            let address: RelayAddress = text.parse().unwrap();
            assert_eq!((address.host(), address.port(), address.is_tls()), (host, port, is_tls));
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.with_token("a.b.c"), format!("{shown}?a.b.c"));
        }
    }

    #[test]
    fn other_addresses_are_refused() {
        for text in ["relay.grid.tf", "https://relay.grid.tf", "ws://", "ws://a/?x", "ws://u:p@a/"]
        {
            assert!(text.parse::<RelayAddress>().is_err(), "{text}");
        }
    }
}
