//! `grid login`: who you are, and on which grid.

use std::fs;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::session::{Login, Session};

/// Bytes of a secret.
const SECRET_SIZE_MAX: u64 = 4096;

/// Say who you are, and on which grid
///
/// The account is activated, if it has to be, and gets a twin. The secret is asked for, or read from
/// standard input when that is no terminal, or from a file; it is stored where only you can read it.
#[derive(clap::Args)]
pub(crate) struct LoginArguments {
    /// The grid's network.json
    #[arg(long, value_name = "FILE")]
    network: PathBuf,
    /// File with a mnemonic or a seed of 0x and 64 hexadecimal digits
    #[arg(long, alias = "mnemonic-file", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Kind of key: sr25519, as users have, or ed25519
    #[arg(long, default_value = "sr25519", value_parser = ["sr25519", "ed25519"])]
    scheme: String,
}

pub(crate) async fn run(arguments: LoginArguments, json: bool) -> anyhow::Result<()> {
    let LoginArguments { network, key_file, scheme } = arguments;
    let secret = match key_file {
        Some(path) => read(fs::File::open(&path).with_context(|| path.display().to_string())?)?,
        None if std::io::stdin().is_terminal() => asked()?,
        None => read(std::io::stdin())?,
    };
    let network = canonical(&network)?;
    let login = Login { network, scheme, secret };
    let session = Session::open(&login).await?;
    let twin = session.register().await?;
    let path = login.write()?;
    let account = session.identity.account();
    if json {
        println!("{}", serde_json::json!({"account": account.to_string(), "twin_id": twin}));
    } else {
        println!("twin {twin}, account {account}");
    }
    eprintln!("stored in {}", path.display());
    Ok(())
}

fn canonical(path: &Path) -> anyhow::Result<PathBuf> {
    fs::canonicalize(path).with_context(|| path.display().to_string())
}

fn read(source: impl std::io::Read) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    source.take(SECRET_SIZE_MAX).read_to_string(&mut text).context("the secret")?;
    let secret = Zeroizing::new(text.trim().to_owned());
    ensure!(!secret.is_empty(), "there is no secret");
    Ok(secret)
}

/// Asks on the terminal, and shows nothing of what is typed.
fn asked() -> anyhow::Result<Zeroizing<String>> {
    let terminal = std::io::stdin();
    let before = tcgetattr(&terminal)?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    eprint!("Mnemonic or seed: ");
    tcsetattr(&terminal, OptionalActions::Now, &hidden)?;
    let mut line = Zeroizing::new(String::new());
    let typed = terminal.read_line(&mut line);
    tcsetattr(&terminal, OptionalActions::Now, &before)?;
    eprintln!();
    typed?;
    read(line.as_bytes())
}
