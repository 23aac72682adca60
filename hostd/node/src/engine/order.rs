//! In which order workloads are made: what others stand on, first.
//!
//! Disks, then networks, then addresses, then machines, then what watches machines, then everything
//! else; among disks the largest first, while there is room for it. Taking down and pausing go
//! backwards (`reference: zero-os 1.12`).

use std::cmp::Reverse;

use hostd_grid::{Workload, WorkloadData, WorkloadType};

/// A place in the order: workloads with a smaller one are made first.
pub(crate) type Rank = (u8, Reverse<u64>);

/// A workload's place in the order.
pub(crate) fn rank(workload: &Workload) -> Rank {
    let size = match &workload.data {
        WorkloadData::ZMount(disk) => disk.size,
        WorkloadData::Volume(volume) => volume.size,
        _ => 0,
    };
    (rank_of_type(workload.data.kind()), Reverse(size))
}

fn rank_of_type(kind: WorkloadType) -> u8 {
    match kind {
        WorkloadType::ZMount => 0,
        WorkloadType::Volume => 1,
        WorkloadType::Qsfs => 2,
        WorkloadType::Network | WorkloadType::NetworkLight => 3,
        WorkloadType::PublicIpv4 => 4,
        WorkloadType::PublicIp => 5,
        WorkloadType::ZMachine | WorkloadType::ZMachineLight => 6,
        WorkloadType::Zlogs => 7,
        WorkloadType::Zdb | WorkloadType::GatewayName | WorkloadType::GatewayFqdn => 8,
    }
}
