//! Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 75 try again.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use mycelium_node::config::ConfigError;
use mycelium_node::instances::ControlSocketError;
use mycelium_node::instances::settings::InstanceError;
use mycelium_node::key_file::KeyFileError;
use mycelium_node::peers::{ListenError, PrivateNetworkError};
use mycelium_node::tun::TunError;

use crate::cli::doctor::Problems;
use crate::cli::http::{NoNode, Refused};
use crate::cli::ping::NoAnswer;

/// Prints the chain of errors once, with a hint where we know the remedy, and picks the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Those have been said.
    if error.is::<Problems>() || error.is::<NoAnswer>() {
        return ExitCode::from(1);
    }
    eprintln!("mycelium: {error:#}");
    let (code, hint) = error.chain().find_map(classify).unwrap_or((1, None));
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

/// What one link of the chain decides, if it does.
fn classify(cause: &(dyn Error + 'static)) -> Option<(u8, Option<&'static str>)> {
    if let Some(error) = cause.downcast_ref::<ConfigError>() {
        return Some(match error {
            ConfigError::Read { .. } => (3, None),
            ConfigError::FlagsWithInstances => {
                (2, Some("each instance has its settings in the file"))
            }
            _ => (2, Some("`mycelium --help` has the flags and their rules")),
        });
    }
    if let Some(error) = cause.downcast_ref::<KeyFileError>() {
        let code = match error {
            KeyFileError::Exists { .. } => 4,
            KeyFileError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => 3,
            KeyFileError::NoHome => 2,
            _ => 1,
        };
        return Some((code, error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<ListenError>() {
        return Some(match error.source.kind() {
            io::ErrorKind::AddrInUse => {
                (75, Some("another program listens there; choose another port"))
            }
            io::ErrorKind::PermissionDenied => (1, Some("ports below 1024 need a privilege")),
            _ => (1, None),
        });
    }
    if let Some(error) = cause.downcast_ref::<NoNode>() {
        return Some((75, Some(error.hint())));
    }
    if let Some(refused) = cause.downcast_ref::<Refused>() {
        let code = match refused.status {
            400 | 422 => 1,
            404 => 3,
            503 => 75,
            _ => 4,
        };
        return Some((code, None));
    }
    if cause.is::<InstanceError>() {
        return Some((2, Some("the form of the file is in `mycelium instances --help`")));
    }
    if let Some(error) = cause.downcast_ref::<ControlSocketError>() {
        let is_taken = error.source.kind() == io::ErrorKind::AddrInUse;
        let hint = "--control-socket PATH chooses another place";
        return Some((if is_taken { 75 } else { 1 }, Some(hint)));
    }
    if let Some(error) = cause.downcast_ref::<PrivateNetworkError>() {
        let is_usage = matches!(error, PrivateNetworkError::Name(_));
        return Some((if is_usage { 2 } else { 1 }, None));
    }
    if let Some(error) = cause.downcast_ref::<TunError>() {
        return Some((1, error.hint()));
    }
    None
}
