//! QUIC connections of peers, as existing releases make them (`reference: mycelium 1.2`).
//!
//! One UDP socket listens and dials. TLS 1.3 hides what passes, but proves nobody's identity: the
//! certificate is self-signed and not looked at, since all that matters is sealed end to end anyway.
//! There is no ALPN: either side that offers one makes the other refuse.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mycelium_router::LinkInfo;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::endpoint::{Endpoint as PeerEndpoint, Protocol};
use crate::link::Carrier;
use crate::link::quic::{QuicCarrier, UDP_SIZE_MAX};
use crate::peers::connect::{Connection, Connector, canonical};
use crate::peers::{ListenError, Peers, shown};

/// What a dialer says it wants to reach.
const SERVER_NAME: &str = "dummy.mycelium";
/// Time for a handshake and the peer's stream.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes in progress.
const HANDSHAKE_COUNT_MAX: usize = 32;
const IDLE_TIMEOUT_MS: u32 = 60_000;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const STREAM_COUNT_MAX: u32 = 5;
/// What waits in quinn to be sent in datagrams; less than existing releases allow, since what waits there
/// is late.
const DATAGRAM_SEND_SIZE_MAX: usize = 1 << 20;
const DATAGRAM_RECEIVE_SIZE_MAX: usize = 4 << 20;
/// What the stream may have under way.
const SEND_WINDOW: u64 = 8 << 20;
const RECEIVE_WINDOW: u32 = 10 << 20;

/// Opens the UDP socket that listens and dials. Must be called inside a runtime.
pub(crate) fn endpoint(connector: &Connector, port: u16, name: &str) -> anyhow::Result<Endpoint> {
    let failed = |source| ListenError { port: port.into(), flag: "--quic-listen-port", source };
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let socket = UdpSocket::bind(address).map_err(failed)?;
    connector.mark(&socket)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let transport = Arc::new(transport());
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(UDP_SIZE_MAX).context("size of datagrams")?;
    let server = server_config(name, &provider, &transport)?;
    let runtime = Arc::new(TokioRuntime);
    let mut endpoint = Endpoint::new(config, Some(server), socket, runtime).map_err(failed)?;
    endpoint.set_default_client_config(client_config(provider, transport)?);
    Ok(endpoint)
}

/// Connects to a peer.
pub(crate) async fn dial(endpoint: &Endpoint, address: SocketAddr) -> anyhow::Result<Connection> {
    // The socket is an IPv6 one, which reaches IPv4 by mapped addresses.
    let mapped = match address {
        SocketAddr::V4(v4) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
        SocketAddr::V6(_) => address,
    };
    let connection = endpoint.connect(mapped, SERVER_NAME)?.await?;
    let streams = connection.open_bi().await?;
    Ok(link(QuicCarrier::new(connection, streams), address))
}

/// Takes connections for as long as the node runs.
pub(crate) async fn serve(peers: Arc<Peers>, endpoint: Endpoint) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKE_COUNT_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let peers = Arc::clone(&peers);
        tokio::spawn(async move {
            let from = canonical(incoming.remote_address());
            let accepted = timeout(HANDSHAKE_TIMEOUT, accept(incoming)).await;
            drop(permit);
            match accepted {
                Ok(Ok(carrier)) => {
                    let endpoint = PeerEndpoint::new(Protocol::Quic, from);
                    if let Ok(permit) = peers.inbound_permit() {
                        peers.serve(endpoint, link(carrier, from), permit).await;
                    }
                }
                Ok(Err(error)) => tracing::debug!(%from, %error, "no QUIC connection"),
                Err(_late) => tracing::debug!(%from, "no QUIC connection in time"),
            }
        });
    }
}

async fn accept(incoming: Incoming) -> Result<QuicCarrier, quinn::ConnectionError> {
    let connection = incoming.await?;
    let streams = connection.accept_bi().await?;
    Ok(QuicCarrier::new(connection, streams))
}

fn link(carrier: QuicCarrier, peer: SocketAddr) -> Connection {
    let peer = canonical(peer);
    let local = carrier.local();
    Connection {
        carrier: Carrier::Quic(carrier),
        description: format!("{} -> {peer}", shown(Protocol::Quic)),
        info: if peer.is_ipv4() { LinkInfo::QUIC4 } else { LinkInfo::QUIC6 },
        local,
    }
}

fn transport() -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(UDP_SIZE_MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAM_COUNT_MAX))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .mtu_discovery_config(Some(mtu))
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_SIZE_MAX))
        .datagram_send_buffer_size(DATAGRAM_SEND_SIZE_MAX)
        .send_window(SEND_WINDOW)
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW));
    transport
}

fn server_config(
    name: &str,
    provider: &Arc<CryptoProvider>,
    transport: &Arc<TransportConfig>,
) -> anyhow::Result<ServerConfig> {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()])
        .context("no certificate can be made")?;
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], PrivateKeyDer::Pkcs8(key))?;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::clone(transport));
    Ok(config)
}

fn client_config(
    provider: Arc<CryptoProvider>,
    transport: Arc<TransportConfig>,
) -> anyhow::Result<ClientConfig> {
    let algorithms = provider.signature_verification_algorithms;
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
        .with_no_client_auth();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport);
    Ok(config)
}

/// Takes every certificate: a link has no identity on this wire.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    /// QUIC has TLS 1.3 only.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 was not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
