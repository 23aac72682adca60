//! A node with an Internet behind it, in namespaces that go away with it.
//!
//! ```text
//!   I: 198.51.100.2, 192.168.77.2 ── wan ── W: 198.51.100.1, 192.168.77.1 ── u-N … networks
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use hostd_exec::network::{NetworkConfig, NetworkError, Networks, Services};
use hostd_grid::address::{Cidr, Maybe};
use hostd_grid::derived::WorkloadId;
use hostd_grid::secret::SecretBytes;
use hostd_grid::workload::{Mycelium, NetworkLight};
use hostd_grid::{ContractId, Name, TwinId};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use supervise::Program;

/// An Internet host.
pub(crate) const INTERNET: [u8; 4] = [198, 51, 100, 2];
/// The node itself, on the Internet.
pub(crate) const NODE: [u8; 4] = [198, 51, 100, 1];
/// A machine of the farmer's, beside the node.
pub(crate) const NEIGHBOUR: [u8; 4] = [192, 168, 77, 2];

/// Says what is missing for these tests, if something is.
pub(crate) fn is_possible() -> bool {
    let has = |program: &str| Command::new(program).arg("-V").output().is_ok();
    let missing = if !rustix::process::geteuid().is_root() {
        "root"
    } else if !has("nft") {
        "nft"
    } else if !has("ip") {
        "ip"
    } else {
        return true;
    };
    eprintln!("skipped: networks need {missing}");
    false
}

/// Services that are only noted.
#[derive(Default)]
pub(crate) struct Noted {
    running: Mutex<Vec<Program>>,
}

impl Noted {
    pub(crate) fn running(&self) -> Vec<Program> {
        self.running.lock().unwrap().clone()
    }
}

impl Services for Noted {
    fn start(&self, program: &Program) -> Result<(), NetworkError> {
        program.check().unwrap();
        let mut running = self.running.lock().unwrap();
        running.retain(|one| one.name != program.name);
        running.push(program.clone());
        Ok(())
    }

    fn stop(&self, name: &str) -> Result<(), NetworkError> {
        self.running.lock().unwrap().retain(|one| one.name != name);
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, NetworkError> {
        Ok(self.running.lock().unwrap().iter().map(|one| one.name.clone()).collect())
    }
}

/// A node, and what is around it.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) services: Arc<Noted>,
    /// Names of the uplink's namespace and the Internet's.
    names: [String; 2],
}

impl World {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("zt{}-{number}", std::process::id());
        let names = [format!("{id}w"), format!("{id}i")];
        let [w, i] = names.each_ref().map(String::as_str);
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
            services: Arc::default(),
            names: names.clone(),
        };
        for command in [
            format!("netns add {w}"),
            format!("netns add {i}"),
            format!("-n {w} link add wan type veth peer name eth0 netns {i}"),
            format!("-n {w} addr add 198.51.100.1/24 dev wan"),
            format!("-n {w} addr add 192.168.77.1/24 dev wan"),
            format!("-n {w} link set wan up"),
            format!("-n {w} link set lo up"),
            format!("-n {i} addr add 198.51.100.2/24 dev eth0"),
            format!("-n {i} addr add 192.168.77.2/24 dev eth0"),
            format!("-n {i} link set eth0 up"),
        ] {
            ip(&command);
        }
        // Addresses of keys, as mycelium says them: the same for the same key, and no two alike.
        let fake = "#!/bin/sh\nh=$(/usr/bin/md5sum < \"$2\")\n\
            printf '{\"publicKey\":\"\",\"address\":\"4%.2s:%.4s::%.1s7\"}' \
            \"$h\" \"${h#??}\" \"${h#??????}\"\n";
        let mycelium = world.folder.path().join("mycelium");
        fs::write(&mycelium, fake).unwrap();
        fs::set_permissions(&mycelium, fs::Permissions::from_mode(0o755)).unwrap();
        world
    }

    pub(crate) fn config(&self) -> NetworkConfig {
        let path = |name: &str| self.folder.path().join(name);
        let mut config = NetworkConfig::new(path("networks"));
        config.namespaces = path("netns");
        config.uplink = Path::new("/run/netns").join(&self.names[0]);
        config.mycelium = path("mycelium");
        config.nft = which("nft");
        config.mycelium_peers = vec!["tcp://100.127.0.1:9651".to_owned()];
        config
    }

    /// Does something on the Internet's host.
    pub(crate) fn on_the_internet<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(Path::new("/run/netns").join(&self.names[1])).unwrap();
        let there = move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).unwrap();
            act()
        };
        std::thread::scope(|scope| scope.spawn(there).join().unwrap())
    }

    /// Lets the Internet's host send to that network by way of the node, as somebody who guesses would.
    pub(crate) fn lead_in(&self, network: &str) {
        ip(&format!("-n {} route add {network} via 198.51.100.1", self.names[1]));
    }

    pub(crate) fn open(&self) -> Networks {
        Networks::open(self.config(), self.services.clone()).unwrap()
    }

    /// The addresses of the node that networks have, each once.
    pub(crate) fn lines(&self) -> BTreeSet<String> {
        let shown = ip(&format!("-n {} -o -4 addr show", self.names[0]));
        let lines = shown.lines().filter(|line| line.contains(" u-"));
        lines
            .filter_map(|line| line.split(" peer ").nth(1)?.split(' ').next().map(str::to_owned))
            .collect()
    }

    /// All that networks could have left behind, in words.
    pub(crate) fn left(&self) -> Vec<String> {
        let w = &self.names[0];
        let links = ip(&format!("-n {w} -o link show"));
        let links = links.lines().filter(|line| line.contains(": u-")).map(str::to_owned);
        let nft = Command::new("ip").args(["netns", "exec", w, "nft", "list", "tables"]).output();
        let tables = String::from_utf8(nft.unwrap().stdout).unwrap();
        let files = ["networks", "netns"].into_iter().flat_map(|name| {
            let entries = fs::read_dir(self.folder.path().join(name)).into_iter().flatten();
            entries.map(|entry| entry.unwrap().path().display().to_string())
        });
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = self.folder.path().display().to_string();
        let mounts = mounts.lines().filter(|line| line.contains(&folder)).map(str::to_owned);
        let services = self.services.running().into_iter().map(|program| program.name);
        let all = links.chain(tables.lines().map(str::to_owned)).chain(files);
        all.chain(mounts).chain(services).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
        // What a failed test left mounted would keep the folder.
        for entry in fs::read_dir(self.folder.path().join("netns")).into_iter().flatten().flatten()
        {
            let _ = rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Runs `ip`, which must succeed, and gives what it says.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

fn which(program: &str) -> PathBuf {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let found = places.iter().map(|place| Path::new(place).join(program));
    found.into_iter().find(|path| path.exists()).unwrap()
}

/// A workload of a user.
pub(crate) fn workload(twin: u32, name: &str) -> WorkloadId {
    WorkloadId { twin_id: TwinId(twin), contract_id: ContractId(4242), name: Name::new(name) }
}

/// A network with this subnet, and a key made of this byte.
pub(crate) fn network(subnet: &str, key: u8) -> NetworkLight {
    NetworkLight {
        subnet: Maybe(Some(Cidr::parse(subnet).unwrap())),
        mycelium: Mycelium { hex_key: SecretBytes::new([key; 32]), peers: Vec::new() },
        ..NetworkLight::default()
    }
}
