//! `zdb key`: hands the key of an encrypted namespace to a running server.
//!
//! ```text
//!  key file ───────────────────────────────────────────┐
//!  passphrase ── Argon2id, as the server says ──> key ─┴─> sealed for the server ── NSKEY ──> namespace
//! ```

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use zdb_client::{Client, Value};
use zdb_engine::{Derivation, MasterKey, Name};
use zdb_server::config::{read_key, read_passphrase};
use zdb_server::seal::{SEALED_SIZE, seal};
use zdb_server::session::{read_hex, write_hex};

use super::folders::parse_name;
use super::server_address::ServerAddress;

/// Hand the key of an encrypted namespace to a running server
///
/// Over its unix socket, sealed for it alone. It unlocks the namespace; one that is open is sealed with
/// this key from now on; one that does not exist is made.
#[derive(Args)]
pub(crate) struct KeyArguments {
    #[command(flatten)]
    server: ServerAddress,
    /// File with the key: 32 bytes, or 64 hex digits
    #[arg(long, value_name = "PATH", required_unless_present = "passphrase_file")]
    keyfile: Option<PathBuf>,
    /// File with the passphrase that the key is made of; the server never sees it
    #[arg(long, value_name = "PATH", conflicts_with = "keyfile")]
    passphrase_file: Option<PathBuf>,
    /// The namespace
    #[arg(value_parser = parse_name)]
    name: Name,
}

/// Hands it over.
pub(crate) fn run(arguments: &KeyArguments) -> anyhow::Result<()> {
    let mut client = arguments.server.connect()?;
    let name = arguments.name.as_bytes();
    let (key, derivation) = match (&arguments.keyfile, &arguments.passphrase_file) {
        (Some(path), _) => (read_key(path)?, None),
        (None, Some(path)) => {
            let passphrase = read_passphrase(path)?;
            let derivation = ask_derivation(&mut client, name)?;
            (derivation.derive(&passphrase)?, Some(derivation.to_string()))
        }
        (None, None) => bail!("give --keyfile or --passphrase-file"),
    };
    let sealed = seal_for(&mut client, name, &key)?;
    let mut words: Vec<&[u8]> = vec![b"NSKEY", name, &sealed];
    words.extend(derivation.as_ref().map(|text| text.as_bytes()));
    client.call(&words)?;
    println!("{}: taken", arguments.name);
    Ok(())
}

fn ask_derivation(client: &mut Client, name: &[u8]) -> anyhow::Result<Derivation> {
    let Value::Bulk(text) = client.call(&[b"NSKEY", name, b"DERIVATION"])? else {
        bail!("the server's answer is no derivation")
    };
    let text = String::from_utf8(text).context("the server's derivation")?;
    text.parse().context("the server's derivation")
}

/// The key in hex digits, sealed with what the server gave for this one time.
fn seal_for(client: &mut Client, name: &[u8], key: &MasterKey) -> anyhow::Result<Vec<u8>> {
    let Value::Bulk(digits) = client.call(&[b"NSKEY"])? else {
        bail!("the server's answer is no public key")
    };
    let theirs = read_hex(&digits).context("the server's public key is not 64 hex digits")?;
    let sealed = seal(name, key.as_bytes(), &theirs).context("sealing the key")?;
    let mut digits = vec![0; 2 * SEALED_SIZE];
    write_hex(&sealed, &mut digits);
    Ok(digits)
}
