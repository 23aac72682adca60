//! Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 75 try again.

use std::error::Error;
use std::process::ExitCode;

use zdb_client::ClientError;
use zdb_server::config::ConfigError;
use zdb_server::event_loop::BindError;

/// Prints the chain of errors once, with a hint where we know the remedy, and picks the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("zdb: {error:#}");
    let (code, hint) = error.chain().find_map(classify).unwrap_or((1, None));
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

/// What one link of the chain decides, if it does.
fn classify(cause: &(dyn Error + 'static)) -> Option<(u8, Option<&'static str>)> {
    if cause.is::<ConfigError>() {
        return Some((2, Some("`zdb --help` has the flags and their rules")));
    }
    if let Some(bind) = cause.downcast_ref::<BindError>() {
        let is_taken = bind.source.kind() == std::io::ErrorKind::AddrInUse;
        return Some((75, is_taken.then_some("another server is there; choose another --port")));
    }
    if let Some(engine) = cause.downcast_ref::<zdb_engine::Error>() {
        return Some(classify_engine(engine));
    }
    if let Some(client) = cause.downcast_ref::<ClientError>() {
        return Some(match client {
            ClientError::Refused { .. } => (4, None),
            ClientError::Connect { .. } => {
                (75, Some("is a server there? --host, --port, --socket"))
            }
            _ => (75, None),
        });
    }
    let io = cause.downcast_ref::<std::io::Error>()?;
    (io.kind() == std::io::ErrorKind::NotFound).then_some((3, None))
}

fn classify_engine(error: &zdb_engine::Error) -> (u8, Option<&'static str>) {
    use zdb_engine::Error;
    match error {
        Error::InUse { .. } => (
            75,
            Some("a server serves these folders; stop it first, or give `zdb backup` its --socket"),
        ),
        Error::NoSuchNamespace(_) => (3, None),
        Error::Exists(_) => (4, Some("choose another name, or remove that namespace first")),
        Error::KeyNeeded | Error::WrongKey | Error::PasswordSealed => {
            (4, Some("give what these folders were written with: --keyfile or --passphrase-file"))
        }
        _ => (1, None),
    }
}
