//! `zmount`: a virtual disk on an SSD, raw, of a fixed size.
//!
//! A machine that mounts it sees a block device. It may grow while no machine has it, and never shrinks.
//!
//! Challenge: `size`.

use serde::Serialize;

use super::{RuleError, Siblings};
use crate::capacity::Capacity;
use crate::challenge::Challenge;
use crate::json;

/// A virtual disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ZMount {
    /// Bytes.
    pub size: u64,
}
json::object!(ZMount as "zos.ZMount" { "size" => size: "gridtypes.Unit" });

impl ZMount {
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
pub struct ZMountResult {
    /// The workload's id.
    pub volume_id: String,
}
json::object!(ZMountResult as "zos.ZMountResult" { "volume_id" => volume_id });
super::result!(ZMountResult);
