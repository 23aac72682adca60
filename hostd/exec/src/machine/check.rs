//! What is wrong with a machine that only the node can know, before anything is made of it.
//!
//! Rules that any node can check have been checked ([`hostd_grid`]); here are those of this node and of
//! what its guests can be told. Texts are those of existing nodes where clients know them
//! (`reference: zero-os 1.1`).

use std::net::{IpAddr, Ipv4Addr};

use hostd_grid::derived::network::MachineAddressError;
use hostd_grid::workload::{MachineNetworkLight, Mount, SEED_SIZE, ZMachine, ZMachineLight};
use hostd_grid::{Name, WorkloadType};

/// Most disks and directories of one machine: it has 31 places for devices, and needs some itself.
const MOUNT_COUNT_MAX: usize = 20;

/// Why there can be no such machine here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckError {
    #[error("invalid cpu must be between 1 and {0}")]
    Cpus(u16),
    #[error("unknown GPU id '{0}'")]
    Gpu(String),
    #[error("{0} mounts, and a machine has at most {MOUNT_COUNT_MAX}")]
    MountCount(usize),
    #[error("mount '{0}' is mounted twice")]
    Twice(Name),
    #[error("mount '{name}' is no disk and no volume of this deployment")]
    NoDisk { name: Name },
    #[error("mount '{name}': {target:?} is no place to mount something: {rule}")]
    Target { name: Name, target: String, rule: &'static str },
    #[error("public ip '{0}': this node has no public addresses for machines")]
    PublicIp(Name),
    #[error("this node is not part of the planetary network")]
    Planetary,
    #[error("no network interface")]
    NoInterface,
    #[error(transparent)]
    Address(#[from] MachineAddressError),
    #[error(
        "the machine's mycelium address is in network '{mycelium}', and must be in '{private}', \
         which its private address is in"
    )]
    TwoNetworks { private: Name, mycelium: Name },
}

/// Where a machine is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its network.
    pub(super) network: Name,
    /// Its private address.
    pub(super) address: Ipv4Addr,
    /// What its mycelium address ends with.
    pub(super) seed: Option<[u8; SEED_SIZE]>,
}

/// Checks a machine on a node with so many processors, where `kind` tells what a workload of the same
/// deployment is.
pub(super) fn check(
    machine: &ZMachineLight,
    cpu_count: u16,
    kind: impl Fn(&Name) -> Option<WorkloadType>,
) -> Result<Place, CheckError> {
    if u16::from(machine.compute_capacity.cpu) > cpu_count {
        return Err(CheckError::Cpus(cpu_count));
    }
    if let Some(gpu) = machine.gpu.first() {
        return Err(CheckError::Gpu(gpu.to_string().chars().take(64).collect()));
    }
    check_mounts(&machine.mounts, kind)?;
    let [interface] = machine.network.interfaces.as_slice() else {
        return Err(CheckError::NoInterface);
    };
    let Some(IpAddr::V4(address)) = interface.ip.0 else {
        return Err(MachineAddressError::NotIpv4.into());
    };
    let (private, mycelium) = (&interface.network, machine.network.mycelium.as_ref());
    if let Some(mycelium) = mycelium.filter(|mycelium| mycelium.network != *private) {
        let (private, mycelium) = (private.clone(), mycelium.network.clone());
        return Err(CheckError::TwoNetworks { private, mycelium });
    }
    let seed = mycelium.and_then(|mycelium| mycelium.seed());
    Ok(Place { network: private.clone(), address, seed })
}

/// What a machine of a full node asks for, if it wants no more than one of a light node has.
pub(super) fn of_full(machine: &ZMachine) -> Result<ZMachineLight, CheckError> {
    let network = &machine.network;
    if !network.public_ip.is_empty() {
        return Err(CheckError::PublicIp(network.public_ip.clone()));
    }
    if network.planetary {
        return Err(CheckError::Planetary);
    }
    let (mycelium, interfaces) = (network.mycelium.clone(), network.interfaces.clone());
    Ok(ZMachineLight {
        flist: machine.flist.clone(),
        network: MachineNetworkLight { mycelium, interfaces },
        size: machine.size,
        compute_capacity: machine.compute_capacity,
        mounts: machine.mounts.clone(),
        entrypoint: machine.entrypoint.clone(),
        env: machine.env.clone(),
        corex: machine.corex,
        gpu: machine.gpu.clone(),
    })
}

fn check_mounts(
    mounts: &[Mount],
    kind: impl Fn(&Name) -> Option<WorkloadType>,
) -> Result<(), CheckError> {
    if mounts.len() > MOUNT_COUNT_MAX {
        return Err(CheckError::MountCount(mounts.len()));
    }
    let mut targets = Vec::new();
    for (index, Mount { name, mountpoint }) in mounts.iter().enumerate() {
        if mounts.iter().take(index).any(|other| other.name == *name) {
            return Err(CheckError::Twice(name.clone()));
        }
        if !matches!(kind(name), Some(WorkloadType::ZMount | WorkloadType::Volume)) {
            return Err(CheckError::NoDisk { name: name.clone() });
        }
        let bad = |rule| {
            let target = mountpoint.chars().take(100).collect();
            CheckError::Target { name: name.clone(), target, rule }
        };
        let target = normal(mountpoint).map_err(bad)?;
        if targets.contains(&target) {
            return Err(bad("something else is mounted there"));
        }
        targets.push(target);
    }
    Ok(())
}

/// The parts of a path as the guest's init understands it.
fn normal(path: &str) -> Result<Vec<&str>, &'static str> {
    let relative = path.strip_prefix('/').ok_or("it is not absolute")?;
    if path.contains('\0') || path.len() > 4095 {
        return Err("it is no path");
    }
    let parts: Vec<&str> =
        relative.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    match parts.as_slice() {
        [] => Err("it is the root"),
        [first, ..] if ["proc", "sys", "dev"].contains(first) => Err("it is the kernel's own"),
        parts if parts.contains(&"..") => Err("it leads upwards"),
        _ => Ok(parts),
    }
}

#[cfg(test)]
mod tests {
    use hostd_grid::secret::SecretBytes;
    use hostd_grid::workload::{
        ComputeCapacity, GpuId, Interface, MachineNetwork, MyceliumAddress,
    };

    use super::*;

    fn machine(mounts: &[(&str, &str)]) -> ZMachineLight {
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        let interfaces = vec![Interface { network: "net".into(), ip: ip.into() }];
        ZMachineLight {
            compute_capacity: ComputeCapacity { cpu: 2, memory: 1 << 30 },
            network: MachineNetworkLight { mycelium: None, interfaces },
            mounts: { mounts.iter() }
                .map(|(name, target)| Mount {
                    name: (*name).into(),
                    mountpoint: (*target).to_owned(),
                })
                .collect(),
            ..ZMachineLight::default()
        }
    }

    fn kind(name: &Name) -> Option<WorkloadType> {
        match name.as_str() {
            "disk" => Some(WorkloadType::ZMount),
            "share" => Some(WorkloadType::Volume),
            "db" => Some(WorkloadType::Zdb),
            _ => None,
        }
    }

    fn error(machine: &ZMachineLight) -> String {
        check(machine, 4, kind).unwrap_err().to_string()
    }

    #[test]
    fn a_machine_that_fits_says_where_it_is_to_be() {
        let mut machine = machine(&[("disk", "/data"), ("share", "/data/deep")]);
        let hex_seed = SecretBytes::new([1, 2, 3, 4, 5, 6]);
        machine.network.mycelium = Some(MyceliumAddress { network: "net".into(), hex_seed });
        let place = check(&machine, 2, kind).unwrap();
        assert_eq!(place.network, Name::new("net"));
        assert_eq!(
            (place.address.to_string(), place.seed),
            ("10.1.2.3".into(), Some([1, 2, 3, 4, 5, 6]))
        );
    }

    #[test]
    fn a_full_machine_is_a_light_one_unless_it_wants_more() {
        let interfaces = machine(&[]).network.interfaces;
        let network = MachineNetwork { interfaces, ..MachineNetwork::default() };
        let full = ZMachine {
            compute_capacity: ComputeCapacity { cpu: 2, memory: 1 << 30 },
            network,
            ..ZMachine::default()
        };
        assert_eq!(of_full(&full), Ok(machine(&[])));
        let mut public = full.clone();
        public.network.public_ip = "ip".into();
        let text = "public ip 'ip': this node has no public addresses for machines";
        assert_eq!(of_full(&public).unwrap_err().to_string(), text);
        let mut planetary = full;
        planetary.network.planetary = true;
        assert_eq!(of_full(&planetary), Err(CheckError::Planetary));
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let plain = machine(&[]);
        assert_eq!(
            check(&plain, 1, kind).unwrap_err().to_string(),
            "invalid cpu must be between 1 and 1"
        );
        let gpu =
            ZMachineLight { gpu: vec![GpuId::new("0000:28:00.0/1002/731f")], ..plain.clone() };
        assert_eq!(error(&gpu), "unknown GPU id '0000:28:00.0/1002/731f'");
        for (mounts, expected) in [
            (&[("disk", "/")][..], "it is the root"),
            (&[("disk", "//./")], "it is the root"),
            (&[("disk", "data")], "it is not absolute"),
            (&[("disk", "/a/../b")], "it leads upwards"),
            (&[("disk", "/dev/x")], "it is the kernel's own"),
            (&[("disk", "/a\0")], "it is no path"),
            (&[("disk", "/a"), ("share", "/a/")], "something else is mounted there"),
            (&[("disk", "/a"), ("disk", "/b")], "mount 'disk' is mounted twice"),
            (&[("db", "/a")], "mount 'db' is no disk and no volume"),
            (&[("other", "/a")], "mount 'other' is no disk and no volume"),
        ] {
            let text = error(&machine(mounts));
            assert!(text.contains(expected), "{mounts:?}: {text}");
        }
        let many: Vec<_> = (0..21).map(|_| ("disk", "/a")).collect();
        assert!(error(&machine(&many)).starts_with("21 mounts"));
        let mut two = plain;
        let hex_seed = SecretBytes::new([1; 6]);
        two.network.mycelium = Some(MyceliumAddress { network: "other".into(), hex_seed });
        assert!(error(&two).contains("must be in 'net'"));
    }
}
