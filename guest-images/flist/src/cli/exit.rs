//! Exit codes: 0 done, 1 failed, 2 usage (clap's own), 3 not found, 4 refused, 75 try again. Work that
//! a signal stopped ends by that signal, once it has cleaned up.

use std::error::Error;
use std::process::ExitCode;

use flist::hub::HubError;
use flist::store::StoreError;
use flist::store::fetch::FetchError;
use flist::web::WebError;

/// Prints the chain of errors once, with a hint where we know the remedy, and picks the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("flist: {error:#}");
    // The hint would be about what the interruption left undone.
    super::terminal::end_as_signalled();
    let (code, hint) = classify(error);
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

const HINT_STORE: &str = "name another store that has the image's blocks: --store URL";
const HINT_PASSWORD: &str = "check the password or key in the store's URL";
const HINT_REGISTRY: &str = "log in: FLIST_REGISTRY_USER and FLIST_REGISTRY_PASSWORD";
const HINT_HUB: &str = "check FLIST_HUB_TOKEN";

fn classify(error: &anyhow::Error) -> (u8, Option<&'static str>) {
    error.chain().find_map(classify_cause).unwrap_or((1, None))
}

/// What one link of the chain decides, if it does.
fn classify_cause(cause: &(dyn Error + 'static)) -> Option<(u8, Option<&'static str>)> {
    if let Some(store) = cause.downcast_ref::<StoreError>() {
        return Some(match store {
            StoreError::Missing { .. } => (3, Some(HINT_STORE)),
            StoreError::Refused { .. } => (4, Some(HINT_PASSWORD)),
            StoreError::Unreachable { .. } => (75, None),
            StoreError::Failed { .. } => (1, None),
            StoreError::ReadOnly { .. } | StoreError::Url { .. } => (2, None),
        });
    }
    if let Some(fetch) = cause.downcast_ref::<FetchError>() {
        return Some(match fetch {
            FetchError::NoRoute { .. } | FetchError::Missing { .. } => (3, Some(HINT_STORE)),
            FetchError::Refused { .. } => (4, Some(HINT_PASSWORD)),
            FetchError::Unreachable { .. } => (75, None),
            FetchError::Bad { .. } | FetchError::Failed { .. } => (1, None),
        });
    }
    if let Some(web) = cause.downcast_ref::<WebError>() {
        return Some(classify_web(web, HINT_REGISTRY));
    }
    match cause.downcast_ref::<HubError>() {
        Some(HubError::Web(web)) => return Some(classify_web(web, HINT_HUB)),
        Some(HubError::Name { .. } | HubError::Address { .. }) => return Some((2, None)),
        _ => {}
    }
    let io = cause.downcast_ref::<std::io::Error>()?;
    (io.kind() == std::io::ErrorKind::NotFound).then_some((3, None))
}

fn classify_web(error: &WebError, hint: &'static str) -> (u8, Option<&'static str>) {
    match error {
        WebError::Missing { .. } => (3, None),
        WebError::Refused { .. } => (4, Some(hint)),
        WebError::Unreachable { .. } => (75, None),
    }
}
