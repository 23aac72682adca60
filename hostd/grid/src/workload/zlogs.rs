//! `zlogs`: a machine's log, sent to a server of the user's.
//!
//! Challenge: `zmachine output`.
//!
//! # Deviations
//!
//! Light nodes offer this type, and then refuse it, since they look for a `zmachine`, which they never
//! have. A `zmachine-light` is accepted too. Errors do not repeat the URL, which may hold a password.

use serde::Serialize;

use super::url::Url;
use super::{RuleError, Siblings, WorkloadType};
use crate::capacity::Capacity;
use crate::challenge::Challenge;
use crate::excerpt::excerpt;
use crate::id::Name;
use crate::json;
use crate::secret::SecretText;

/// A log that is sent somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Zlogs {
    /// A machine of the deployment.
    pub zmachine: Name,
    /// Where to: `redis://`, `ws://` or `wss://`.
    pub output: SecretText,
}
json::object!(Zlogs as "zos.ZLogs" { "zmachine" => zmachine, "output" => output });

const SCHEMES: &[&str] = &["redis", "ws", "wss"];

impl Zlogs {
    pub(super) fn validate(&self, siblings: &Siblings<'_>) -> Result<(), RuleError> {
        if !siblings.kind(&self.zmachine).is_some_and(WorkloadType::is_machine) {
            return Err(RuleError::NoMachine(excerpt(self.zmachine.as_str())));
        }
        let url = Url::parse(self.output.expose()).map_err(RuleError::OutputUrl)?;
        if SCHEMES.contains(&url.scheme.as_str()) {
            Ok(())
        } else {
            Err(RuleError::OutputScheme(excerpt(&url.scheme)))
        }
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(&self.zmachine);
        out.add(self.output.expose());
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity::default()
    }
}
