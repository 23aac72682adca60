//! TLS for the relay: stock clients register it on the chain by host name alone, and speak `wss` to it.
//!
//! The first start makes an authority and one certificate for `127.0.0.1`, `localhost` and what other names
//! it is told, and throws the authority's key away: whoever trusts `ca.pem` trusts nothing but that one
//! certificate. A start with other names makes both anew.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::serve::Listener;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

/// The certificate of the authority, in the directory of the grid.
pub(crate) const CA_FILE: &str = "ca.pem";
const CERTIFICATE_FILE: &str = "relay.pem";
const KEY_FILE: &str = "relay-key.pem";
/// Whom the certificate is for, one a line.
const NAMES_FILE: &str = "relay.names";
/// Whom it is for in any case.
const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];
/// Connections that may be shaking hands at the same time.
const HANDSHAKE_COUNT_MAX: usize = 256;
/// How long a handshake may take.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What `dir`'s certificate makes a server of, for `more_names` too; it is made if there is none.
pub(crate) fn server_config(
    dir: &Path,
    more_names: &[String],
) -> anyhow::Result<Arc<ServerConfig>> {
    let files = [CA_FILE, CERTIFICATE_FILE, KEY_FILE, NAMES_FILE];
    let [ca, certificate, key, names] = files.map(|name| dir.join(name));
    let wanted: Vec<String> =
        NAMES.into_iter().map(str::to_owned).chain(more_names.iter().cloned()).collect();
    let is_for_them = std::fs::read_to_string(&names).is_ok_and(|text| text == wanted.join("\n"));
    if !is_for_them || ![&ca, &certificate, &key].iter().all(|path| path.exists()) {
        let _ = std::fs::remove_file(&names);
        let made = make(wanted.clone()).context("no certificate can be made")?;
        write(&key, &made.key)?;
        write(&certificate, &made.certificate)?;
        write(&ca, &made.ca)?;
        // Last: once it is there, so is all the rest.
        write(&names, &wanted.join("\n"))?;
    }
    let certificate = CertificateDer::from_pem_file(&certificate)
        .with_context(|| certificate.display().to_string())?;
    let key = PrivateKeyDer::from_pem_file(&key).with_context(|| key.display().to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(Arc::new(config))
}

struct Made {
    ca: String,
    certificate: String,
    key: String,
}

fn make(names: Vec<String>) -> Result<Made, rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "devgrid");
    let authority_key = KeyPair::generate()?;
    let ca = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "devgrid relay");
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Made { ca, certificate, key: key.serialize_pem() })
}

/// A file that nobody else may read, in place of what was there.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let write = || {
        let mut file = options.open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| path.display().to_string())
}

/// Connections whose handshake is done.
pub(crate) struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    _acceptor: JoinSet<()>,
}

impl TlsListener {
    /// Accepts at `listener`. Handshakes run beside one another: a slow one holds nobody up.
    pub(crate) fn new(listener: TcpListener, config: Arc<ServerConfig>) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (done, ready) = mpsc::channel(HANDSHAKE_COUNT_MAX);
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, TlsAcceptor::from(config), done));
        Ok(Self { address, ready, _acceptor: acceptor })
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKE_COUNT_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "no connection was accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A relay's envelopes are small and somebody waits for each.
        let _ = stream.set_nodelay(true);
        let (acceptor, done) = (acceptor.clone(), done.clone());
        handshakes.spawn(async move {
            let _place = place;
            let handshake = acceptor.accept(stream);
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIME_MAX, handshake).await {
                let _ = done.send((stream, peer)).await;
            }
        });
        while handshakes.try_join_next().is_some() {}
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let ca = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            server_config(dir.path(), &names).unwrap();
            std::fs::read(dir.path().join(CA_FILE)).unwrap()
        };
        let first = ca(&[]);
        assert_eq!(ca(&[]), first);
        let other = ca(&["kyc.dev.grid.tf"]);
        assert_ne!(other, first, "for other names it is made anew");
        assert_eq!(ca(&["kyc.dev.grid.tf"]), other);
        let mode = std::fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
