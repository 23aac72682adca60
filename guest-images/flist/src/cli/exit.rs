//! Exit codes: 0 done, 1 failed, 2 usage (clap's own), 3 not found, 4 refused, 75 try again. Work that
//! a signal stopped ends by that signal, once it has cleaned up.

use std::process::ExitCode;

use flist::hub::HubError;
use flist::oci::registry::RegistryError;
use flist::store::StoreError;
use flist::store::fetch::FetchError;

/// Prints the chain of errors once, with a hint where we know the remedy, and picks the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("flist: {error:#}");
    let (code, hint) = classify(error);
    // The hint would be about what the interruption left undone.
    super::terminal::end_as_signalled();
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

fn classify(error: &anyhow::Error) -> (u8, Option<&'static str>) {
    for cause in error.chain() {
        if let Some(store) = cause.downcast_ref::<StoreError>() {
            return match store {
                StoreError::Missing { .. } => {
                    (3, Some("name another store that has the image's blocks: --store URL"))
                }
                StoreError::Refused { .. } => {
                    (4, Some("check the password or key in the store's URL"))
                }
                StoreError::Unreachable { .. } => (75, None),
                StoreError::Failed { .. } => (1, None),
                StoreError::ReadOnly { .. } | StoreError::Url { .. } => (2, None),
            };
        }
        if let Some(registry) = cause.downcast_ref::<RegistryError>() {
            return match registry {
                RegistryError::Missing { .. } => (3, None),
                RegistryError::Refused { .. } => {
                    (4, Some("log in: FLIST_REGISTRY_USER and FLIST_REGISTRY_PASSWORD"))
                }
                RegistryError::Unreachable { .. } => (75, None),
            };
        }
        if let Some(fetch) = cause.downcast_ref::<FetchError>() {
            return match fetch {
                FetchError::NoRoute { .. } | FetchError::Missing { .. } => {
                    (3, Some("name another store that has the image's blocks: --store URL"))
                }
                FetchError::Refused { .. } => {
                    (4, Some("check the password or key in the store's URL"))
                }
                FetchError::Unreachable { .. } => (75, None),
                FetchError::Bad { .. } | FetchError::Failed { .. } => (1, None),
            };
        }
        match cause.downcast_ref::<HubError>() {
            Some(HubError::Refused { .. }) => return (4, Some("check FLIST_HUB_TOKEN")),
            Some(HubError::Unreachable { .. }) => return (75, None),
            Some(HubError::Name { .. } | HubError::Address { .. }) => return (2, None),
            _ => {}
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::NotFound
        {
            return (3, None);
        }
    }
    (1, None)
}
