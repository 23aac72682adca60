//! `volume`: a directory with a quota on an SSD, shared into machines.
//!
//! Its tag in the machine is the workload's name. It may grow while it is used, and never shrinks below
//! what it was promised.
//!
//! Challenge: `size`.

use serde::Serialize;

use super::{RuleError, Siblings};
use crate::capacity::Capacity;
use crate::challenge::Challenge;
use crate::json;

/// A directory with a quota.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Volume {
    /// Bytes.
    pub size: u64,
}
json::object!(Volume as "zos.Volume" { "size" => size: "gridtypes.Unit" });

impl Volume {
    pub(super) fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        if self.size == 0 { Err(RuleError::Size) } else { Ok(()) }
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(self.size);
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity { sru: self.size, ..Capacity::default() }
    }
}

/// What the node answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct VolumeResult {
    /// The workload's id.
    pub id: String,
}
json::object!(VolumeResult as "zos.VolumeResult" { "id" => id });
super::result!(VolumeResult);
