//! Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 75 try again.

use std::process::ExitCode;

use vmm_machine::kvm::KvmError;
use vmm_machine::vm::VmError;
use vmm_spec::SpecError;

use crate::client::ClientError;

pub(crate) const FAILED: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const NOT_FOUND: u8 = 3;
pub(crate) const REFUSED: u8 = 4;
pub(crate) const TRY_AGAIN: u8 = 75;

/// Prints the chain of errors once, with a hint where we know the remedy, and picks the exit code.
/// A command that `becomes_vm` has codes of its own: of these, only 1 and 2.
pub(crate) fn report(error: &anyhow::Error, becomes_vm: bool) -> ExitCode {
    eprintln!("vmm: {error:#}");
    let (code, hint) = classify(error);
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(if becomes_vm && code != USAGE { FAILED } else { code })
}

fn classify(error: &anyhow::Error) -> (u8, Option<String>) {
    for cause in error.chain() {
        if let Some(spec) = cause.downcast_ref::<SpecError>() {
            return (USAGE, spec.hint());
        }
        if let Some(client) = cause.downcast_ref::<ClientError>() {
            return (client.code(), client.hint());
        }
        if let Some(kvm) = cause.downcast_ref::<KvmError>() {
            return (FAILED, Some(kvm.hint()));
        }
        if let Some(vm) = cause.downcast_ref::<VmError>() {
            return (FAILED, vm.hint());
        }
        if let Some(Usage(_)) = cause.downcast_ref::<Usage>() {
            return (USAGE, None);
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                std::io::ErrorKind::NotFound => (NOT_FOUND, None),
                _ => (FAILED, None),
            };
        }
    }
    (FAILED, None)
}

/// Something is wrong with the command line that clap can't see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);
