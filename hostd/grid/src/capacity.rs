//! What a workload takes of a node, in the units that contracts are billed by.

use std::ops::AddAssign;

use serde::Serialize;

/// One gibibyte, which the grid calls a gigabyte.
pub const GIB: u64 = 1 << 30;
/// One mebibyte, which the grid calls a megabyte.
pub const MIB: u64 = 1 << 20;

/// Resources of a node that a workload, or all workloads of a deployment, take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Capacity {
    /// Virtual CPUs.
    pub cru: u64,
    /// Bytes on SSDs.
    pub sru: u64,
    /// Bytes on hard disks.
    pub hru: u64,
    /// Bytes of memory.
    pub mru: u64,
    /// Public IPv4 addresses.
    pub ipv4u: u64,
}

impl Capacity {
    /// Whether it is nothing at all.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for Capacity {
    /// Adds up. What users ask for may be absurd: a sum stops at the largest number, which no node has,
    /// rather than coming out small.
    fn add_assign(&mut self, other: Self) {
        self.cru = self.cru.saturating_add(other.cru);
        self.sru = self.sru.saturating_add(other.sru);
        self.hru = self.hru.saturating_add(other.hru);
        self.mru = self.mru.saturating_add(other.mru);
        self.ipv4u = self.ipv4u.saturating_add(other.ipv4u);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_wrap() {
        let mut sum = Capacity { sru: u64::MAX - 1, cru: 1, ..Capacity::default() };
        sum += Capacity { sru: 2, cru: 1, ..Capacity::default() };
        assert_eq!(sum, Capacity { sru: u64::MAX, cru: 2, ..Capacity::default() });
        assert!(!sum.is_zero());
        assert!(Capacity::default().is_zero());
    }
}
