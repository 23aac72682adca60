//! The rules that a deployment and all its workloads keep, in the order in which existing nodes check
//! them.

use std::collections::HashSet;

use super::Deployment;
use crate::excerpt::excerpt;
use crate::id::NameError;
use crate::limits::WORKLOAD_COUNT_MAX;
use crate::workload::{Readable, RuleError, Siblings, WorkloadError};

/// The first rule that a deployment breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum ValidationError {
    #[error("deployment of {0} workloads, at most {WORKLOAD_COUNT_MAX} are accepted")]
    TooMany(usize),
    #[error(
        "workload '{name}' version '{version}' cannot be higher than deployment version \
         '{deployment}'"
    )]
    Version { name: String, version: u32, deployment: u32 },
    #[error("name '{name}' is invalid: {error}")]
    Name { name: String, error: NameError },
    #[error("multiple workloads with the same name '{0}'")]
    Duplicate(String),
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error(transparent)]
    Rule(#[from] RuleError),
}

impl<D: Readable> Deployment<D> {
    /// Checks all rules that don't need a node or a chain.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), ValidationError> {
        if self.workloads.len() > WORKLOAD_COUNT_MAX {
            return Err(ValidationError::TooMany(self.workloads.len()));
        }
        let siblings = Siblings::of(&self.workloads);
        let mut names = HashSet::new();
        for workload in &self.workloads {
            let name = || excerpt(workload.name.as_str());
            if workload.version > self.version {
                let (version, deployment) = (workload.version, self.version);
                return Err(ValidationError::Version { name: name(), version, deployment });
            }
            if let Err(error) = workload.name.check() {
                return Err(ValidationError::Name { name: name(), error });
            }
            if !names.insert(&workload.name) {
                return Err(ValidationError::Duplicate(name()));
            }
            workload.data.readable().map_err(Clone::clone)?.validate(&siblings)?;
        }
        Ok(())
    }
}
