//! `gateway-name-proxy` and `gateway-fqdn-proxy`: web traffic for a name, passed on to back ends.
//!
//! Either the node terminates TLS and speaks HTTP to the back ends, which are then
//! `http://address[:port]`, or it passes TLS through, and they are `address:port`. Addresses are
//! literal. With a network, they are reached inside it.
//!
//! Challenge: `name tls_passthrough backends* [network]`, or `fqdn …` likewise.
//!
//! # Deviations
//!
//! A port beyond 65535 in a URL, and names that are longer than DNS allows, can't work, and are refused.
//! A back end whose port is written empty (`http://1.2.3.4:`) is port 80; existing nodes make an address
//! of it that nobody can dial. A back end that is passed through may be a loopback address, as on
//! existing nodes: whoever opens the connection must do it where that harms nobody.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::url::{Url, UrlError};
use super::{RuleError, Siblings};
use crate::capacity::Capacity;
use crate::challenge::Challenge;
use crate::excerpt::excerpt;
use crate::id::Name;
use crate::json;
use crate::limits::{DOMAIN_SIZE_MAX, LABEL_SIZE_MAX};

/// A proxy for a name below the node's domain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GatewayName {
    /// Whether TLS ends at the back ends.
    pub tls_passthrough: bool,
    /// Where traffic goes, in turns.
    pub backends: Vec<Backend>,
    /// The private network that the back ends are in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// One label, for which the twin has a name contract.
    pub name: String,
}
json::object!(GatewayName as "zos.GatewayNameProxy" {
    "tls_passthrough" => tls_passthrough,
    "backends" => backends,
    "network" => network,
    "name" => name,
});

impl GatewayName {
    pub(super) fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        if !is_label(&self.name) {
            return Err(RuleError::GatewayName(excerpt(&self.name)));
        }
        validate_backends(&self.backends, self.tls_passthrough)
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(&self.name);
        challenge_rest(self.tls_passthrough, &self.backends, self.network.as_ref(), out);
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity::default()
    }
}

/// What the node answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GatewayNameResult {
    /// The whole name.
    pub fqdn: String,
}
json::object!(GatewayNameResult as "zos.GatewayProxyResult" { "fqdn" => fqdn });
super::result!(GatewayNameResult);

/// A proxy for a domain name of the user's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GatewayFqdn {
    /// Whether TLS ends at the back ends.
    pub tls_passthrough: bool,
    /// Where traffic goes, in turns.
    pub backends: Vec<Backend>,
    /// The private network that the back ends are in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// The name, which points to the node.
    pub fqdn: String,
}
json::object!(GatewayFqdn as "zos.GatewayFQDNProxy" {
    "tls_passthrough" => tls_passthrough,
    "backends" => backends,
    "network" => network,
    "fqdn" => fqdn,
});

impl GatewayFqdn {
    pub(super) fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        if !is_domain(&self.fqdn) {
            return Err(RuleError::Fqdn(excerpt(&self.fqdn)));
        }
        validate_backends(&self.backends, self.tls_passthrough)
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(&self.fqdn);
        challenge_rest(self.tls_passthrough, &self.backends, self.network.as_ref(), out);
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity::default()
    }
}

/// What the node answers: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GatewayFqdnResult {}
json::object!(GatewayFqdnResult as "zos.GatewayFQDNResult" {});
super::result!(GatewayFqdnResult);

fn challenge_rest(
    tls_passthrough: bool,
    backends: &[Backend],
    network: Option<&Name>,
    out: &mut Challenge<'_>,
) {
    out.add(tls_passthrough);
    backends.iter().for_each(|backend| out.add(&backend.0));
    if let Some(network) = network {
        out.add(network);
    }
}

fn is_label(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=LABEL_SIZE_MAX).contains(&text.len()) && text.bytes().all(letter)
}

/// Two labels or more, the last of which has at least two letters.
fn is_domain(text: &str) -> bool {
    text.len() <= DOMAIN_SIZE_MAX
        && text.split('.').all(is_label)
        && text.rsplit_once('.').is_some_and(|(_, last)| last.len() >= 2)
}

fn validate_backends(backends: &[Backend], tls_passthrough: bool) -> Result<(), RuleError> {
    if backends.is_empty() {
        return Err(RuleError::NoBackends);
    }
    backends.iter().try_for_each(|backend| {
        let address = backend.address(tls_passthrough);
        address
            .map(drop)
            .map_err(|error| RuleError::Backend { backend: excerpt(&backend.0), error })
    })
}

/// Where a gateway sends traffic, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Backend(String);

/// Why a text is no back end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum BackendError {
    #[error("failed to parse backend with error: parse {backend:?}: {error}")]
    Url { backend: String, error: UrlError },
    #[error("scheme expected to be http")]
    Scheme,
    #[error("invalid ip address in backend: {0}")]
    Ip(String),
    #[error("failed to parse backend {backend} with error: {error}")]
    Address { backend: String, error: BackendAddressError },
    #[error("backend {0} points to the node's own public IP address")]
    Own(String),
}

/// Why a text is no `address:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum BackendAddressError {
    #[error("failed to parse backend {0} with error: address {0}: {1}")]
    Split(String, SplitError),
    #[error("invalid ip")]
    Ip,
    #[error("invalid port in backend: {0}")]
    Port(String),
    #[error("port '{0}' must be <= 65535")]
    LargePort(String),
}

/// Why a text can't be split at its port, in Go's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum SplitError {
    #[error("missing port in address")]
    MissingPort,
    #[error("too many colons in address")]
    Colons,
    #[error("missing ']' in address")]
    MissingBracket,
    #[error("unexpected '[' in address")]
    Opening,
    #[error("unexpected ']' in address")]
    Closing,
}
json::newtype!(Backend as "zos.Backend");

impl Backend {
    /// Takes any text; [`Backend::address`] says whether it is a back end.
    pub fn new(backend: impl Into<String>) -> Self {
        Self(backend.into())
    }

    /// Where it is.
    ///
    /// # Errors
    ///
    /// The text has not the form that goes with `tls_passthrough`.
    pub fn address(&self, tls_passthrough: bool) -> Result<SocketAddr, BackendError> {
        if tls_passthrough {
            let backend = || excerpt(&self.0);
            address_and_port(&self.0)
                .map_err(|error| BackendError::Address { backend: backend(), error })
        } else {
            self.address_of_url()
        }
    }

    /// Checks that it is not the node itself, which would send traffic round and round.
    ///
    /// # Errors
    ///
    /// It is, or it is no back end at all.
    pub fn check_not_own(&self, tls_passthrough: bool, own: &[IpAddr]) -> Result<(), BackendError> {
        let address = self.address(tls_passthrough)?.ip();
        if own.iter().any(|own| own.to_canonical() == address) {
            return Err(BackendError::Own(excerpt(&self.0)));
        }
        Ok(())
    }

    fn address_of_url(&self) -> Result<SocketAddr, BackendError> {
        let url = Url::parse(&self.0)
            .map_err(|error| BackendError::Url { backend: excerpt(&self.0), error })?;
        if url.scheme != "http" {
            return Err(BackendError::Scheme);
        }
        let address = address(url.hostname()).filter(|address| !address.is_loopback());
        let address = address.ok_or_else(|| BackendError::Ip(excerpt(url.hostname())))?;
        let port = url.port().map_or(Ok(80), port);
        let port =
            port.map_err(|error| BackendError::Address { backend: excerpt(&self.0), error })?;
        Ok(SocketAddr::new(address, port))
    }
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|address: IpAddr| address.to_canonical())
}

fn port(text: &str) -> Result<u16, BackendAddressError> {
    let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let port: Option<u64> = digits.then(|| text.parse().ok()).flatten();
    let port = port.ok_or_else(|| BackendAddressError::Port(excerpt(text)))?;
    u16::try_from(port).map_err(|_| BackendAddressError::LargePort(excerpt(text)))
}

fn address_and_port(text: &str) -> Result<SocketAddr, BackendAddressError> {
    let (host, port_text) =
        split_host_port(text).map_err(|error| BackendAddressError::Split(excerpt(text), error))?;
    let address = address(host).ok_or(BackendAddressError::Ip)?;
    Ok(SocketAddr::new(address, port(port_text)?))
}

/// Go's `net.SplitHostPort`.
fn split_host_port(text: &str) -> Result<(&str, &str), SplitError> {
    let (before, port) = text.rsplit_once(':').ok_or(SplitError::MissingPort)?;
    let host = match text.strip_prefix('[') {
        Some(inside) => {
            let (host, rest) = inside.split_once(']').ok_or(SplitError::MissingBracket)?;
            match rest.strip_prefix(':') {
                Some(rest) if rest == port => {}
                Some(_) => return Err(SplitError::Colons),
                None => return Err(SplitError::MissingPort),
            }
            host
        }
        None if before.contains(':') => return Err(SplitError::Colons),
        None => before,
    };
    if host.contains('[') || port.contains('[') {
        return Err(SplitError::Opening);
    }
    if host.contains(']') || port.contains(']') {
        return Err(SplitError::Closing);
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_split_as_go_splits_them() {
        for (text, expected) in [
            ("[::1]:80", Ok(("::1", "80"))),
            ("a:", Ok(("a", ""))),
            ("a", Err(SplitError::MissingPort)),
            ("[::1]", Err(SplitError::MissingPort)),
            ("[::1]x:80", Err(SplitError::MissingPort)),
            ("[::1]:8:0", Err(SplitError::Colons)),
            ("::1:80", Err(SplitError::Colons)),
            ("[::1:80", Err(SplitError::MissingBracket)),
            ("a[:80", Err(SplitError::Opening)),
            ("a]:80", Err(SplitError::Closing)),
        ] {
            assert_eq!(split_host_port(text), expected, "{text}");
        }
    }

    #[test]
    fn ports_that_cannot_be_are_refused_in_urls_too() {
        let error = Backend::new("http://1.2.3.4:65536").address(false).unwrap_err();
        assert!(error.to_string().ends_with("port '65536' must be <= 65535"));
        let address = Backend::new("http://1.2.3.4:").address(false).unwrap();
        assert_eq!(address.to_string(), "1.2.3.4:80");
        for text in ["1.2.3.4:+1", "1.2.3.4:", "1.2.3.4:18446744073709551616"] {
            let error = Backend::new(text).address(true).unwrap_err();
            assert!(error.to_string().contains("invalid port in backend: "), "{error}");
        }
    }

    #[test]
    fn a_node_is_no_back_end_of_itself() {
        let own = ["1.2.3.4".parse().unwrap(), "2a02::1".parse().unwrap()];
        let backend = Backend::new("http://[::ffff:1.2.3.4]:8080");
        let error = backend.check_not_own(false, &own).unwrap_err();
        let expected = "backend http://[::ffff:1.2.3.4]:8080 points to the node's own public IP \
                        address";
        assert_eq!(error.to_string(), expected);
        assert_eq!(Backend::new("[2a02::2]:80").check_not_own(true, &own), Ok(()));
    }

    #[test]
    fn names_fit_dns() {
        let label = "a".repeat(LABEL_SIZE_MAX);
        assert!(is_label(&label) && !is_label(&format!("{label}a")) && !is_label(""));
        assert!(is_domain(&format!("{label}.{label}.ab")));
        assert!(!is_domain(&vec!["ab"; 100].join(".")));
        for text in ["localhost", "a.b", "a..bc", ".bc", "bc.", "a b.cd", "a.b_c-d.x"] {
            assert!(!is_domain(text), "{text}");
        }
    }
}
