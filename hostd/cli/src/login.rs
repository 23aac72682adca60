//! `grid login`: who you are, and on which grid.

use std::fs;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use hostd_rmb::identity::SEED_SIZE;
use ring::rand::{SecureRandom as _, SystemRandom};
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
    /// The grid's network.json; `devgrid up` writes one
    #[arg(long, value_name = "FILE")]
    network: PathBuf,
    /// File with a mnemonic or a seed of 0x and 64 hexadecimal digits
    #[arg(long, alias = "mnemonic-file", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Be somebody new: write a random seed to this file, which must not exist, and keep it
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    new_key: Option<PathBuf>,
    /// Kind of key: sr25519, as users have, or ed25519
    #[arg(long, default_value = "sr25519", value_parser = ["sr25519", "ed25519"])]
    scheme: String,
}

pub(crate) async fn run(arguments: LoginArguments, json: bool) -> anyhow::Result<()> {
    let LoginArguments { network, key_file, new_key, scheme } = arguments;
    // Asked for nothing, and nothing made, if there is no such grid.
    let network = canonical(&network)?;
    let secret = match (key_file, new_key) {
        (_, Some(path)) => made(&path)?,
        (Some(path), None) => {
            read(fs::File::open(&path).with_context(|| path.display().to_string())?)?
        }
        (None, None) if std::io::stdin().is_terminal() => asked()?,
        (None, None) => read(std::io::stdin())?,
    };
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

/// A new seed, in a new file that only its owner can read.
fn made(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut seed = Zeroizing::new([0; SEED_SIZE]);
    let filled = SystemRandom::new().fill(&mut *seed);
    filled.map_err(|_| anyhow::anyhow!("the operating system gives no random bytes"))?;
    let mut secret = Zeroizing::new(String::from("0x"));
    seed.iter().for_each(|byte| secret.push_str(&format!("{byte:02x}")));
    let shown = || path.display().to_string();
    let file = fs::File::options().create_new(true).write(true).mode(0o600).open(path);
    let mut file = file.with_context(shown)?;
    writeln!(file, "{}", *secret).and_then(|()| file.sync_all()).with_context(shown)?;
    Ok(secret)
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
