//! Who and what: twins, contracts, and names of workloads.

use std::fmt;

use serde::Serialize;

use crate::limits::NAME_SIZE_MAX;

/// Number of a twin: an account on the chain that sends and receives messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct TwinId(pub u32);

impl fmt::Display for TwinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a contract on the chain. A deployment has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct ContractId(pub u64);

impl fmt::Display for ContractId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A workload's name, or a reference to one, as it was sent: [`Name::check`] says whether it can be one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Name(String);

/// Names that a workload can't have: the planetary network's interface has it.
const RESERVED: &[&str] = &["ygg"];

impl Name {
    /// Takes any text.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a workload may have this name: 1 to 36 letters of ASCII, digits and underscores.
    ///
    /// # Errors
    ///
    /// Says which rule is broken.
    pub fn check(&self) -> Result<(), NameError> {
        if self.0.is_empty() {
            return Err(NameError::Empty);
        }
        if self.0.len() > NAME_SIZE_MAX {
            return Err(NameError::TooLong);
        }
        if !self.0.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(NameError::Character);
        }
        match RESERVED.iter().find(|reserved| **reserved == self.0) {
            Some(reserved) => Err(NameError::Reserved(reserved)),
            None => Ok(()),
        }
    }

    pub(crate) fn text_mut(&mut self) -> &mut String {
        &mut self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// Why a text is no name of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is none.
    #[error("name cannot be empty")]
    Empty,
    /// It doesn't fit a file system's tag.
    #[error("name cannot exceed {NAME_SIZE_MAX} characters")]
    TooLong,
    /// Something else than letters, digits and underscores.
    #[error("unsupported character in workload name")]
    Character,
    /// It means something else.
    #[error("invalid name '{0}' is reserved")]
    Reserved(&'static str),
}
