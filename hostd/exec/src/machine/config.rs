//! What a machine is told of itself: the `[machine]` table of a node's configuration.
//!
//! ```toml
//! [machine]
//! state = "/var/lib/hostd/machine"          # what must survive: records, images, logs
//! runtime = "/run/hostd"                    # sockets
//! supervisor = "/run/supervise.sock"
//! power_off = ["/sbin/poweroff"]             # optional: what switches it off; it stays on if absent
//! disks = "auto"                            # optional: all disks that are nobody's become pools
//! mounts = "/mnt"                           # optional: where those are mounted
//! cache = "/var/cache"                      # optional: where the node's own folder of a pool is mounted
//! missing_ssd = true                        # optional: hard disks stand for SSDs if there are none
//! pools = [                                 # optional: folders
//!     { name = "ssd1", path = "/mnt/ssd1", kind = "ssd", mount_point = true },
//!     { name = "hdd1", path = "/mnt/hdd1", kind = "hdd", size_max = 1000000000000 },
//! ]
//!
//! [machine.programs]
//! vmm = "/usr/bin/vmm"
//! flist = "/usr/bin/flist"
//! mycelium = "/usr/bin/mycelium"
//! zdb = "/usr/bin/zdb"
//! disk_boot = "/usr/bin/disk-boot"          # optional: without it, images of whole disks are refused
//! guestio = "/usr/bin/guestio"
//! nft = "/usr/sbin/nft"
//! mkfs = "/usr/sbin/mkfs.ext4"              # of e2fsprogs, as is the next; for `disks`
//! fsck = "/usr/sbin/e2fsck"
//!
//! [machine.guest]                           # what images boot with that bring no kernel
//! kernel = "/usr/share/guest/vmlinux"
//! initramfs = "/usr/share/guest/initramfs.img"
//!
//! [machine.images]                          # optional
//! size_max = 1073741824
//! cache_size_max = 10737418240
//! allow_routes = ["10.1.0.0/16"]
//!
//! [machine.network]                         # optional
//! mycelium_peers = ["tcp://100.127.0.1:9651"]
//! reachable = ["192.168.7.0/24"]
//!
//! [machine.zdb]                             # optional
//! listen = "::"
//! port = 9900                               # of the first disk; each keeps its own
//! addresses = ["2001:db8::7"]               # what users are told; the machine's own if absent
//! ```

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use serde::Deserialize;

use crate::storage::PoolConfig;
use crate::storage::disks::{DiskUse, DisksConfig};

/// What a machine is told of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder of what must survive.
    pub state: PathBuf,
    /// The folder of what goes with the machine's power: sockets.
    pub runtime: PathBuf,
    /// The supervisor's socket.
    pub supervisor: PathBuf,
    /// What is run to switch the machine off, when its farmer wants that and it can be woken again. It is
    /// never switched off if nothing is said.
    #[serde(default)]
    pub power_off: Option<Vec<String>>,
    /// Programs that it consists of.
    pub programs: Programs,
    /// What images boot with that bring no kernel.
    pub guest: Guest,
    /// How much of images there may be.
    #[serde(default)]
    pub images: ImageLimits,
    /// How users' networks reach the world.
    #[serde(default)]
    pub network: NetworkSettings,
    /// Where servers of namespaces are reached.
    #[serde(default)]
    pub zdb: ZdbSettings,
    /// Which disks become pools.
    #[serde(default)]
    pub disks: DiskUse,
    /// The folder that pools of disks are mounted in.
    #[serde(default = "mounts")]
    pub mounts: PathBuf,
    /// Where the node's own folder of a pool is mounted: the folders of `state` should be in it. There is
    /// none if nothing is said.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// Whether hard disks take the place of SSDs if there are none.
    #[serde(default)]
    pub missing_ssd: bool,
    /// Where users' data goes, beside disks.
    #[serde(default)]
    pub pools: Vec<PoolConfig>,
}

impl Config {
    /// What is needed to prepare disks.
    pub fn disks(&self) -> DisksConfig {
        let Programs { mkfs, fsck, .. } = &self.programs;
        DisksConfig { mounts: self.mounts.clone(), mkfs: mkfs.clone(), fsck: fsck.clone() }
    }
}

/// Programs, by their absolute paths.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Programs {
    /// Runs one virtual machine.
    pub vmm: PathBuf,
    /// Fetches and serves images.
    pub flist: PathBuf,
    /// Joins networks.
    pub mycelium: PathBuf,
    /// Keeps namespaces of keys and values.
    pub zdb: PathBuf,
    /// Finds the kernels of whole disks; without it, their images are refused.
    #[serde(default)]
    pub disk_boot: Option<PathBuf>,
    /// Carries what machines say and are told.
    pub guestio: PathBuf,
    /// Debian's `nft`.
    #[serde(default = "nft")]
    pub nft: PathBuf,
    /// Makes file systems.
    #[serde(default = "mkfs")]
    pub mkfs: PathBuf,
    /// Mends them.
    #[serde(default = "fsck")]
    pub fsck: PathBuf,
}

/// The node's kernel for guests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial file system, which holds our init.
    pub initramfs: PathBuf,
}

/// How much of images there may be, and where they may come from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageLimits {
    /// Bytes of one image's file, its blocks not counted.
    pub size_max: u64,
    /// Bytes of all cached blocks.
    pub cache_size_max: u64,
    /// What may be connected to beyond addresses that anybody could reach: rules of `flist cached`.
    pub allow_routes: Vec<String>,
}

/// How users' networks reach the world.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSettings {
    /// Whom each network's mycelium dials.
    pub mycelium_peers: Vec<String>,
    /// Ports of the node's own mycelium; the usual ones if nothing is said.
    pub node_ports: Option<Vec<u16>>,
    /// Private networks around the node that machines may reach.
    pub reachable: Vec<String>,
    /// The namespace that leads to the world, by its file; the node's own if nothing is said.
    pub uplink: Option<PathBuf>,
}

/// Where servers of namespaces are reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ZdbSettings {
    /// The address that they listen on.
    pub listen: IpAddr,
    /// The port of the first one; the others have the next ones.
    pub port: u16,
    /// What users are told; the machine's own addresses if there are none.
    pub addresses: Vec<IpAddr>,
}

impl Default for ZdbSettings {
    fn default() -> Self {
        Self { listen: Ipv6Addr::UNSPECIFIED.into(), port: 9900, addresses: Vec::new() }
    }
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { size_max: 1 << 30, cache_size_max: 10 << 30, allow_routes: Vec::new() }
    }
}

fn nft() -> PathBuf {
    "/usr/sbin/nft".into()
}

fn mkfs() -> PathBuf {
    "/usr/sbin/mkfs.ext4".into()
}

fn fsck() -> PathBuf {
    "/usr/sbin/e2fsck".into()
}

fn mounts() -> PathBuf {
    "/mnt".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(lines: &str) -> Result<Config, serde_json::Error> {
        let more = if lines.is_empty() { String::new() } else { format!(", {lines}") };
        serde_json::from_str(&format!(
            "{{\"state\": \"/s\", \"runtime\": \"/r\", \"supervisor\": \"/x\", \
             \"programs\": {{\"vmm\": \"/v\", \"flist\": \"/f\", \"mycelium\": \"/m\", \"zdb\": \"/z\", \"guestio\": \"/g\"}}, \
             \"guest\": {{\"kernel\": \"/k\", \"initramfs\": \"/i\"}}{more}}}"
        ))
    }

    #[test]
    fn disks_are_left_alone_if_nothing_is_said() {
        let config = with("").unwrap();
        assert_eq!((config.disks, config.missing_ssd), (DiskUse::None, false));
        assert_eq!(config.cache, None);
        assert_eq!(config.disks().mounts, PathBuf::from("/mnt"));
        assert!(config.pools.is_empty());
        let config = with("\"disks\": \"auto\", \"cache\": \"/c\", \"missing_ssd\": true").unwrap();
        assert_eq!((config.disks, config.missing_ssd), (DiskUse::Auto, true));
        assert_eq!(config.cache, Some("/c".into()));
        assert!(with("\"disks\": \"all\"").is_err());
    }
}
