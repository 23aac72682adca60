//! Private networks: TCP links with TLS 1.3, keyed by a secret that all members share
//! (`reference: mycelium 1.13`).
//!
//! Neither side has a certificate: who does not know the network's name and key gets no further than the
//! handshake. rustls has no external pre-shared keys, so this is OpenSSL's.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{
    Ssl, SslAcceptor, SslConnector, SslContext, SslContextBuilder, SslMethod, SslVerifyMode,
    SslVersion,
};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::link::tls::{Side, TlsSession};

/// Size of a network's key.
const KEY_SIZE: usize = 32;
/// Length of a network's name.
const NAME_SIZE_MIN: usize = 2;
const NAME_SIZE_MAX: usize = 64;
/// Suites whose hash is the pre-shared keys' (SHA-256).
const SUITES: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A network's name and key.
#[derive(Clone)]
pub(crate) struct PrivateNetwork {
    client: SslContext,
    server: SslContext,
    name: String,
}

impl fmt::Debug for PrivateNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateNetwork({:?})", self.name)
    }
}

/// A private network that can't be.
#[derive(Debug, thiserror::Error)]
pub enum PrivateNetworkError {
    /// The name has a wrong length.
    #[error(
        "--network-name: {0} bytes, a name has {NAME_SIZE_MIN} to {NAME_SIZE_MAX}, and no zero byte"
    )]
    Name(usize),
    /// The key can't be read.
    #[error("network key file {path}: can't be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key has a wrong length.
    #[error("network key file {path}: a key has exactly {KEY_SIZE} raw bytes")]
    KeySize {
        /// Which.
        path: PathBuf,
    },
    /// OpenSSL refuses.
    #[error("TLS of the private network")]
    Tls(#[from] ErrorStack),
}

impl PrivateNetwork {
    /// The network with this name and the key in this file.
    pub(crate) fn new(name: &str, key_file: &Path) -> Result<Self, PrivateNetworkError> {
        let is_length = (NAME_SIZE_MIN..=NAME_SIZE_MAX).contains(&name.len());
        if !is_length || name.contains('\0') {
            return Err(PrivateNetworkError::Name(name.len()));
        }
        let failed = |source| PrivateNetworkError::Read { path: key_file.to_owned(), source };
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_SIZE + 1));
        let file = File::open(key_file).map_err(failed)?;
        file.take(KEY_SIZE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let key = <[u8; KEY_SIZE]>::try_from(bytes.as_slice()).map(Zeroizing::new);
        let key = key.map_err(|_| PrivateNetworkError::KeySize { path: key_file.to_owned() })?;
        let client = client_context(name.to_owned(), key.clone())?;
        let server = server_context(name.to_owned(), key)?;
        Ok(Self { client, server, name: name.to_owned() })
    }

    /// Shakes hands over a connection.
    pub(crate) async fn establish(&self, socket: &OwnedFd, side: Side) -> io::Result<TlsSession> {
        let context = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        let handshake = TlsSession::establish(Ssl::new(context)?, socket, side);
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(late)?
    }
}

fn client_context(name: String, key: Zeroizing<[u8; KEY_SIZE]>) -> Result<SslContext, ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    restrict(&mut builder)?;
    builder.set_psk_client_callback(move |_, _, identity, secret| {
        // OpenSSL gives room for 128 bytes of name and 256 of key, and reads the name to its zero.
        let room = identity.get_mut(..=name.len()).zip(secret.get_mut(..KEY_SIZE));
        let Some((identity, secret)) = room else { return Ok(0) };
        identity[..name.len()].copy_from_slice(name.as_bytes());
        identity[name.len()] = 0;
        secret.copy_from_slice(&key[..]);
        Ok(KEY_SIZE)
    });
    Ok(builder.build().into_context())
}

fn server_context(name: String, key: Zeroizing<[u8; KEY_SIZE]>) -> Result<SslContext, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_modern_v5(SslMethod::tls_server())?;
    restrict(&mut builder)?;
    builder.set_psk_server_callback(move |_, identity, secret| {
        match (identity, secret.get_mut(..KEY_SIZE)) {
            (Some(identity), Some(secret)) if identity == name.as_bytes() => {
                secret.copy_from_slice(&key[..]);
                Ok(KEY_SIZE)
            }
            _ => Ok(0),
        }
    });
    Ok(builder.build().into_context())
}

fn restrict(builder: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    builder.set_ciphersuites(SUITES)?;
    // Tickets would be a second way in, and their state is of no use to links.
    builder.set_num_tickets(0)
}
