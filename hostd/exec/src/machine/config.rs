//! What a machine is told of itself: the `[machine]` table of a node's configuration.
//!
//! ```toml
//! [machine]
//! state = "/var/lib/hostd/machine"          # what must survive: records, images, logs
//! runtime = "/run/hostd"                    # sockets
//! supervisor = "/run/supervise.sock"
//! pools = [{ path = "/mnt/ssd1", kind = "ssd" }, { path = "/mnt/hdd1", kind = "hdd", size = 1000000000000 }]
//!
//! [machine.programs]
//! vmm = "/usr/bin/vmm"
//! flist = "/usr/bin/flist"
//! mycelium = "/usr/bin/mycelium"
//! zdb = "/usr/bin/zdb"
//! nft = "/usr/sbin/nft"
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
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a machine is told of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder of what must survive.
    pub state: PathBuf,
    /// The folder of what goes with the machine's power: sockets.
    pub runtime: PathBuf,
    /// The supervisor's socket.
    pub supervisor: PathBuf,
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
    /// Where users' data goes.
    pub pools: Vec<PoolSettings>,
}

/// Programs, by their absolute paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Debian's `nft`.
    #[serde(default = "nft")]
    pub nft: PathBuf,
}

/// The node's kernel for guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial file system, which holds our init.
    pub initramfs: PathBuf,
}

/// How much of images there may be, and where they may come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
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

/// A folder for users' data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// The folder, on a file system of its own if possible.
    pub path: PathBuf,
    /// What is below.
    pub kind: PoolKind,
    /// Bytes that may be promised; all of the file system's if nothing is said.
    #[serde(default)]
    pub size: Option<u64>,
}

/// What a pool is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// Solid state: disks, volumes, roots.
    Ssd,
    /// Rotating: ZDB.
    Hdd,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { size_max: 1 << 30, cache_size_max: 10 << 30, allow_routes: Vec::new() }
    }
}

fn nft() -> PathBuf {
    "/usr/sbin/nft".into()
}
