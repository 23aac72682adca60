//! What a command's end says to a script: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused, 75 try
//! again.
//!
//! The code follows from what is at the bottom of an error. What the chain or a node refuses is refused
//! for a reason that does not pass; what can't be reached, or did not answer, may be there later.

use std::process::ExitCode;

use hostd_chain::ChainError;
use hostd_rmb::peer::CallError;

/// What the command was told makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// There is no such thing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotFound(pub(crate) String);

/// What a node says of something that it does not have.
const ABSENT: [&str; 2] = ["deployment not found", "deployment does not exist"];

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    TryAgain = 75,
}

/// The exit code of an error.
pub(crate) fn code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(end(error) as u8)
}

fn end(error: &anyhow::Error) -> End {
    // Contexts are looked at too: the error itself may be one.
    if error.is::<Usage>() {
        return End::Usage;
    }
    if error.is::<NotFound>() {
        return End::NotFound;
    }
    error.chain().find_map(end_of).unwrap_or(End::Failed)
}

/// What one cause says.
fn end_of(cause: &(dyn std::error::Error + 'static)) -> Option<End> {
    if cause.is::<Usage>() {
        return Some(End::Usage);
    }
    if cause.is::<NotFound>() {
        return Some(End::NotFound);
    }
    if let Some(error) = cause.downcast_ref::<ChainError>() {
        return match error {
            ChainError::Refused { .. } => Some(End::Refused),
            error if error.is_unreachable() => Some(End::TryAgain),
            _ => None,
        };
    }
    match cause.downcast_ref::<CallError>()? {
        CallError::Failed { message, .. } if ABSENT.contains(&&**message) => Some(End::NotFound),
        CallError::Failed { .. } => Some(End::Refused),
        CallError::Relay(_)
        | CallError::NoAnswer { .. }
        | CallError::NotSent(_)
        | CallError::Twins(_) => Some(End::TryAgain),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn of(error: impl Into<anyhow::Error>) -> End {
        end(&error.into().context("node 3").context("vm web"))
    }

    #[test]
    fn the_end_follows_from_the_cause() {
        let failed = |message: &str| CallError::Failed { code: 0, message: message.to_owned() };
        assert_eq!(of(failed("exists")), End::Refused);
        assert_eq!(of(failed("deployment not found")), End::NotFound);
        assert_eq!(of(CallError::Relay("not connected".to_owned())), End::TryAgain);
        assert_eq!(of(NotFound("there is no node 3".to_owned())), End::NotFound);
        assert_eq!(of(anyhow::anyhow!("whatever")), End::Failed);
        let wrapped = Err::<(), _>(anyhow::anyhow!("x")).context(Usage("no such flag".to_owned()));
        assert_eq!(of(wrapped.unwrap_err()), End::Usage);
    }
}
