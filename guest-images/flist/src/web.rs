//! HTTP as stores, registries and hubs speak it: what is the same for all of them.
//!
//! `https` never follows a redirect to `http`. A proxy from the environment (`HTTPS_PROXY` and its
//! kin) is used, except for this machine itself. Certificates are checked against the authorities of
//! `SSL_CERT_FILE` and `SSL_CERT_DIR` if either is set, else against those of the system, else, on a
//! node that has no certificate store, against Mozilla's, which are built in.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;

/// Variables that name certificate authorities, as OpenSSL knows them.
const AUTHORITY_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Why a server on the web did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// It answered that it has no such thing.
    #[error("{url}: not found")]
    Missing {
        /// What was asked for.
        url: String,
    },
    /// It refused. Trying again will not help.
    #[error("{url}: {reason}")]
    Refused {
        /// What was asked for.
        url: String,
        /// What it said.
        reason: String,
    },
    /// It could not be reached, or broke off. Trying again may help.
    #[error("{url}: {reason}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
    },
}

/// What all clients have in common, for URLs that begin with `base`. Limits on time and redirects are
/// the caller's.
pub(crate) fn config(base: &str) -> ConfigBuilder<AgentScope> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(base.starts_with("https://"))
        .tls_config(TlsConfig::builder().root_certs(authorities()).build())
        .user_agent(concat!("flist/", env!("CARGO_PKG_VERSION")));
    let host = url::Url::parse(base).ok().and_then(|url| url.host_str().map(str::to_owned));
    if host.is_some_and(|host| is_local(&host)) { config.proxy(None) } else { config }
}

/// Whether `host`, with or without a port, is this machine by its own word.
pub(crate) fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The certificate authorities that are trusted; read once.
fn authorities() -> RootCerts {
    static AUTHORITIES: OnceLock<RootCerts> = OnceLock::new();
    AUTHORITIES.get_or_init(load_authorities).clone()
}

fn load_authorities() -> RootCerts {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "cannot read a certificate authority");
    }
    let named = AUTHORITY_VARIABLES.iter().any(|name| std::env::var_os(name).is_some());
    // Who names authorities trusts no others, even if they can't be read.
    if found.certs.is_empty() && !named {
        return RootCerts::WebPki;
    }
    let owned = |der: &_| Certificate::from_der(AsRef::<[u8]>::as_ref(der)).to_owned();
    RootCerts::Specific(Arc::new(found.certs.iter().map(owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:1", "[::1]:5000"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["localhost.example", "127.0.0.1.example", "10.0.0.1", "[fe80::1]", ""] {
            assert!(!is_local(host), "{host}");
        }
    }
}
