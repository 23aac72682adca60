//! From an address to an open websocket: TCP, TLS if the address says so, the token, the handshake.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config, tungstenite,
};

use super::{Credentials, RelayAddress};
use crate::envelope::limits::ENVELOPE_SIZE_MAX;
use crate::envelope::unix_now;
use crate::jwt::{self, Claims, LIFETIME};

/// Bytes that are read from a socket at a time.
const READ_BUFFER_SIZE: usize = 16 * 1024;

/// An open connection to a relay.
pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens, or there is no such host.
    #[error("{0}")]
    Tcp(#[from] std::io::Error),
    /// The relay refused the token.
    #[error("the relay refuses us: {status} {reason}")]
    Refused {
        /// As HTTP has it.
        status: u16,
        /// What the relay says about it.
        reason: String,
    },
    /// It does not speak as relays do.
    #[error("{0}")]
    Handshake(Box<tungstenite::Error>),
}

/// Certificates that can't be trusted because they can't be read.
#[derive(Debug, thiserror::Error)]
#[error("certificates of authorities: {0}")]
pub struct TlsError(String);

/// Whose certificates relays may show.
#[derive(Clone)]
pub struct TrustedRoots(Arc<ClientConfig>);

impl TrustedRoots {
    /// The authorities that browsers trust, and those in `additional`, in PEM.
    pub fn new(additional: Option<&[u8]>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let error = |error: &dyn std::fmt::Display| TlsError(error.to_string());
        for certificate in CertificateDer::pem_slice_iter(additional.unwrap_or_default()) {
            let certificate = certificate.map_err(|problem| error(&problem))?;
            roots.add(certificate).map_err(|problem| error(&problem))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.map_err(|problem| error(&problem))?;
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// What a TLS client that trusts them needs.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

/// Connects, with a token made for the occasion.
pub(super) async fn dial(
    address: &RelayAddress,
    credentials: &Credentials,
    tls: Arc<ClientConfig>,
) -> Result<Socket, DialError> {
    let stream = TcpStream::connect((address.socket_host(), address.port())).await?;
    // Envelopes are small and somebody waits for each.
    stream.set_nodelay(true)?;
    let iat = unix_now();
    let claims = Claims {
        sub: credentials.twin.number(),
        sid: credentials.session.clone(),
        iat,
        exp: iat.saturating_add(LIFETIME),
        aud: Some(address.host().to_owned()),
    };
    let token = jwt::issue(&credentials.identity, &claims);
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = READ_BUFFER_SIZE;
    config.max_message_size = Some(ENVELOPE_SIZE_MAX);
    config.max_frame_size = Some(ENVELOPE_SIZE_MAX);
    let connector = Connector::Rustls(tls);
    let url = address.with_token(&token);
    match client_async_tls_with_config(url, stream, Some(config), Some(connector)).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => Err(DialError::Refused {
            status: response.status().as_u16(),
            reason: reason(response.body().as_deref().unwrap_or_default()),
        }),
        // An error of the address would show the token, which is in there.
        Err(tungstenite::Error::Url(_)) => {
            Err(DialError::Handshake(Box::new(tungstenite::Error::ConnectionClosed)))
        }
        Err(error) => Err(DialError::Handshake(Box::new(error))),
    }
}

/// What a relay says about its refusal, as far as it belongs into a log.
fn reason(body: &[u8]) -> String {
    const REASON_SIZE_MAX: usize = 200;
    let text = String::from_utf8_lossy(body.get(..REASON_SIZE_MAX).unwrap_or(body));
    text.chars().filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_read_or_refused() {
        assert!(TrustedRoots::new(None).is_ok());
        let nonsense = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(TrustedRoots::new(Some(nonsense)).is_err());
    }

    #[test]
    fn reasons_are_short_and_readable() {
        assert_eq!(reason(b"missing\n jwt\x1b[0m"), "missing jwt[0m");
        assert_eq!(reason(&[b'x'; 1000]).len(), 200);
    }
}
