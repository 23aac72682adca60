//! What can be wrong with a request, by the codes that peers of the grid know.
//!
//! | code | what |
//! |---|---|
//! | 100 | not a message that peers exchange |
//! | 101 | not an envelope |
//! | 102 | expired |
//! | 103 | no such twin |
//! | 104 | not signed by its source |
//! | 105 | encrypted by a twin that published no key |
//! | 106 | can't be decrypted, or its answer can't be encrypted |
//! | 500 | anything else; our fault |
//! | 0 | a command's own error, and all errors of relays |
//!
//! We send those from 102 on: without an envelope (100, 101) nobody is known who could be told.

use crate::seal::{CipherError, OpenError};
use crate::signature::SignatureError;
use crate::twins::TwinId;

/// What is wrong with a request.
#[derive(Debug, thiserror::Error, PartialEq, Clone)]
pub enum Fault {
    /// Its time is over, or has not come.
    #[error("envelope validation error: the message expired at {expires_at}, and it is {now}")]
    Expired {
        /// The first second in which it did not count any more.
        expires_at: u64,
        /// What our clock says.
        now: u64,
    },
    /// Nobody is known who could have signed it.
    #[error("unknown twin id '{0}'")]
    UnknownTwin(TwinId),
    /// Its source did not sign it.
    #[error("invalid envelope signature: {0}")]
    Signature(SignatureError),
    /// Its source published no key to decrypt with.
    #[error("sender twin has no public key")]
    NoKey,
    /// It can't be decrypted.
    #[error("e2e error: {0}")]
    Cipher(CipherError),
    /// We can't do our part.
    #[error("other: {0}")]
    Other(String),
}

impl Fault {
    /// The code that peers know it by.
    pub const fn code(&self) -> u32 {
        match self {
            Self::Expired { .. } => 102,
            Self::UnknownTwin(_) => 103,
            Self::Signature(_) => 104,
            Self::NoKey => 105,
            Self::Cipher(_) => 106,
            Self::Other(_) => 500,
        }
    }
}

impl From<OpenError> for Fault {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Signature(error) => Self::Signature(error),
            OpenError::NoKey => Self::NoKey,
            OpenError::Cipher(error) => Self::Cipher(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_texts_are_those_that_clients_know() {
        let twin = TwinId::new(7).unwrap();
        for (fault, code, text) in [
            (Fault::Expired { expires_at: 1, now: 2 }, 102, "envelope validation error: "),
            (Fault::UnknownTwin(twin), 103, "unknown twin id '7'"),
            (OpenError::from(SignatureError::Missing).into(), 104, "invalid envelope signature: "),
            (OpenError::NoKey.into(), 105, "sender twin has no public key"),
            (OpenError::from(CipherError::Wrong).into(), 106, "e2e error: "),
            (Fault::Other("x".into()), 500, "other: x"),
        ] {
            assert_eq!(fault.code(), code);
            assert!(fault.to_string().starts_with(text), "{fault}");
        }
    }
}
