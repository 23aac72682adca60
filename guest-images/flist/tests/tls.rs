//! `https://` stores: whose certificates are believed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use common::FLIST;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A certificate authority, and what it says of `localhost`.
struct Authority {
    /// What clients are to trust.
    pem: String,
    server: Arc<ServerConfig>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(parameters, key);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Self { pem, server: Arc::new(server) }
    }
}

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/vectors/flist").canonicalize().unwrap()
}

/// Serves the sample's blocks, one request a connection, for as long as the test's process lives.
fn serve(config: Arc<ServerConfig>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let config = Arc::clone(&config);
            // Who refuses our certificate hangs up.
            std::thread::spawn(move || answer(stream.unwrap(), config));
        }
    });
    port
}

fn answer(stream: TcpStream, config: Arc<ServerConfig>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let path = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    while reader.read_line(&mut request)? > 2 {}
    let block = fs::read(samples().join("sample-store").join(path))?;
    let size = block.len();
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n");
    let stream = reader.get_mut();
    stream.write_all(&[head.as_bytes(), &block].concat())?;
    stream.conn.send_close_notify();
    stream.flush()?;
    stream.sock.read(&mut [0]).map(drop)
}

fn verify(port: u16, authorities: Option<&Path>) -> Output {
    let mut command = Command::new(FLIST);
    command.arg("verify").arg(samples().join("sample.fl"));
    command.args(["--store", &format!("https://localhost:{port}")]);
    command.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
    if let Some(authorities) = authorities {
        command.env("SSL_CERT_FILE", authorities);
    }
    command.output().unwrap()
}

#[test]
fn certificates_of_a_private_authority_are_believed_when_it_is_named_and_only_then() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, other] = [Authority::new(), Authority::new()];
    let files = [(&ours, "ours.pem"), (&other, "other.pem")].map(|(authority, name)| {
        let path = folder.path().join(name);
        fs::write(&path, &authority.pem).unwrap();
        path
    });
    let port = serve(Arc::clone(&ours.server));
    let output = verify(port, Some(&files[0]));
    assert!(output.status.success(), "{output:?}");
    let missing = folder.path().join("missing.pem");
    for authorities in [None, Some(files[1].as_path()), Some(&missing)] {
        let output = verify(port, authorities);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{authorities:?}: {output:?}");
        assert!(text.contains("TLS: invalid peer certificate"), "{authorities:?}: {text}");
    }
}
