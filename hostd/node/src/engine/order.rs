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

#[cfg(test)]
mod tests {
    use hostd_grid::workload::{
        GatewayFqdn, GatewayName, Network, NetworkLight, PublicIp, PublicIpv4, Qsfs, Volume,
        WorkloadResult, ZMachine, ZMachineLight, ZMount, Zdb, Zlogs,
    };

    use super::*;

    fn workload(data: WorkloadData) -> Workload {
        Workload {
            version: 0,
            name: "x".into(),
            data,
            metadata: String::new(),
            description: String::new(),
            result: WorkloadResult::default(),
        }
    }

    #[test]
    fn what_others_stand_on_comes_first() {
        use WorkloadData as Data;
        let in_order = [
            vec![Data::ZMount(ZMount::default())],
            vec![Data::Volume(Volume::default())],
            vec![Data::Qsfs(Qsfs::default())],
            vec![Data::Network(Network::default()), Data::NetworkLight(NetworkLight::default())],
            vec![Data::PublicIpv4(PublicIpv4::default())],
            vec![Data::PublicIp(PublicIp::default())],
            vec![
                Data::ZMachine(ZMachine::default()),
                Data::ZMachineLight(ZMachineLight::default()),
            ],
            vec![Data::Zlogs(Zlogs::default())],
            vec![
                Data::Zdb(Zdb::default()),
                Data::GatewayName(GatewayName::default()),
                Data::GatewayFqdn(GatewayFqdn::default()),
            ],
        ];
        let ranks: Vec<Vec<Rank>> = { in_order.into_iter() }
            .map(|group| group.into_iter().map(|data| rank(&workload(data))).collect())
            .collect();
        assert!(ranks.iter().all(|group| group.iter().all(|rank| *rank == group[0])));
        assert!(ranks.windows(2).all(|pair| pair[0][0] < pair[1][0]), "{ranks:?}");
    }

    #[test]
    fn the_largest_disk_comes_first_while_there_is_room_for_it() {
        let disk = |size| workload(WorkloadData::ZMount(ZMount { size }));
        let volume = |size| workload(WorkloadData::Volume(Volume { size }));
        let mut workloads = [volume(9), disk(1), disk(7), volume(10), disk(3)];
        workloads.sort_by_key(rank);
        let expected = [disk(7), disk(3), disk(1), volume(10), volume(9)];
        assert_eq!(workloads, expected);
    }
}
