//! The main job: what somebody deploys on a grid runs on a node, and goes when it is cancelled.
//!
//! ```text
//!   this host                                     a machine of the lab
//!     devgrid: chain, relay, hub  <── 10.0.2.2 ──  hostd ── supervise ─┬─ vmm ── KVM ── guest
//!     grid: the user's command                                        ├─ flist cached
//!                                                                     └─ mycelium, a network's
//! ```
//!
//! Nothing is pretended: `grid` deploys a network and a machine, the chain and the node do what they do,
//! and the guest says hello to whoever connects to it inside its network. Then `hostd` is killed, and
//! nothing is felt; and all is cancelled, and nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Disk, Lab, Machine, Outcome, Running};
use serde_json::Value;

use crate::guest_files::{built, succeed};
use crate::node::image_disk_by;

/// What a node consists of.
const PROGRAMS: [&str; 7] = ["hostd", "supervise", "vmm", "guestio", "flist", "mycelium", "zdb"];
/// What the test has in the machine to look around.
const TOOLS: [&str; 8] = [
    "/bin/bash",
    "/bin/sh",
    "/bin/cat",
    "/bin/ls",
    "/bin/ln",
    "/usr/bin/sort",
    "/sbin/ip",
    "/usr/sbin/nft",
];
/// What networks of users take of the kernel.
const MODULES: [&str; 16] = [
    "tun",
    "bridge",
    "veth",
    "ext4",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_limit",
    "nft_masq",
    "nft_nat",
    "nft_meta_bridge",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_bridge",
    "nft_connlimit",
    "nft_objref",
];
/// How long a node may live.
const LIFE: Duration = Duration::from_secs(1800);
/// What anything may take, on a host with other things to do.
const TIME_MAX: Duration = Duration::from_secs(300);
/// What the machine sends to itself goes to this host.
const BEND: &str = "table ip bend { \
    chain out { type nat hook output priority -100; ip daddr 127.0.0.1 tcp dport > 1024 dnat to 10.0.2.2; }; \
    chain back { type nat hook postrouting priority 100; ip saddr 127.0.0.1 ip daddr 10.0.2.2 masquerade; }; }";

/// Says hello to each who connects.
const SERVE: &str = "use IO::Socket::INET; $| = 1; print qq(serving\\n); \
    $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 5) or die $!; \
    while ($c = $s->accept) { print $c qq(hello from the guest\\n); close $c }";

#[test]
fn what_is_deployed_runs_and_outlives_its_node_and_leaves_nothing() {
    let world = World::new();
    let before = world.left();
    let plan = format!(
        "project: test\n\
         networks: [{{name: lan, nodes: [1], range: 10.7.0.0/16}}]\n\
         vms:\n  \
         - {{name: web, node: 1, network: lan, flist: '{}/hub/lab/guest.fl', memory: 512M,\n     \
         entrypoint: '/usr/bin/perl -e \"eval $ENV{{SERVE}}; die $@\"', env: {{SERVE: '{SERVE}'}}}}\n",
        world.services(),
    );
    let file = world.folder.path().join("plan.yaml");
    fs::write(&file, plan).unwrap();
    let start = Instant::now();
    world.grid(&["deploy", "-f", file.to_str().unwrap()]);
    eprintln!("deployed after {:?}", start.elapsed());
    let ip = world.ip_of("web");
    world.answers(&ip);
    eprintln!("answered after {:?}", start.elapsed());

    // What plans a node may die: what runs on it goes on.
    let vmm = world
        .shell("for p in /proc/[0-9]*; do read n < $p/comm; [ $n = vmm ] && echo $p; done | sort");
    world.hostd_dies();
    world.answers(&ip);
    world.start_hostd();
    world.answers(&ip);
    let after = world
        .shell("for p in /proc/[0-9]*; do read n < $p/comm; [ $n = vmm ] && echo $p; done | sort");
    assert_eq!(vmm, after, "machines were started again");

    for contract in world.contracts() {
        world.grid(&["cancel", &contract.to_string()]);
    }
    let end = Instant::now() + TIME_MAX;
    while world.left() != before {
        assert!(Instant::now() < end, "left:\n{}\nbefore:\n{before}", world.left());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// A grid, a node of it, and its user.
struct World {
    machine: Machine,
    supervise: Option<Running>,
    hostd: std::cell::RefCell<Option<Running>>,
    folder: tempfile::TempDir,
    _devgrid: Process,
    _lab: Lab,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (disk, image_folder) = image_disk_by(&program("flist"));
        let hub = folder.path().join("grid/hub/lab");
        fs::create_dir_all(&hub).unwrap();
        let dump = format!("dump /image.fl {}", hub.join("guest.fl").display());
        succeed(Command::new("/sbin/debugfs").arg("-R").arg(dump).arg(disk));
        let (devgrid, network) = up(&folder.path().join("grid"));

        let lab = Lab::new("grid").unwrap();
        let builder = lab.machine("node").nested_kvm().memory_mib(3584).cpus(2).host_network();
        let builder = builder.modules(&MODULES).life(LIFE).boot_timeout(TIME_MAX * 2);
        let builder = builder.disk(&Disk::file("guest", disk).read_only());
        let programs = disk_of(folder.path(), "programs", 1024, |folder| {
            for name in PROGRAMS {
                let to = folder.join(name);
                succeed(Command::new("strip").arg("-o").arg(&to).arg(program(name)));
            }
            let kernel = named("vmlinux").unwrap_or_else(|| built().vmlinux.clone());
            let initramfs = named("initramfs.img").unwrap_or_else(|| built().initramfs.clone());
            fs::copy(kernel, folder.join("vmlinux")).unwrap();
            fs::copy(initramfs, folder.join("initramfs.img")).unwrap();
        });
        let data = disk_of(folder.path(), "data", 8192, |folder| {
            fs::create_dir(folder.join("pool")).unwrap();
        });
        let builder = builder.disk(&Disk::file("programs", &programs).read_only());
        let mut builder = builder.disk(&Disk::file("data", &data));
        for tool in TOOLS.map(PathBuf::from).into_iter().chain(PROGRAMS.map(program)) {
            builder = builder.program(tool);
        }
        let builder = builder.file("/network.json", 0o644, network);
        let builder = builder.file("/hostd.toml", 0o644, CONFIG);
        let machine = builder.boot().unwrap();
        for mount in [
            &["/dev/vda", image_folder.as_str(), "ro"][..],
            &["/dev/vdb", "/opt", "ro"],
            &["/dev/vdc", "/data"],
        ] {
            let mount = [&["/init", "mount", "ext4"], mount].concat();
            machine.run(&mount).unwrap().success().unwrap();
        }
        // The grid is known by this host's name for itself, which its relay insists on.
        // `nft` reads its standard input by name, which a node's init makes.
        let bend = format!("echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; nft '{BEND}'");
        machine.run(&["/bin/bash", "-ec", &bend]).unwrap().success().unwrap();
        let supervise = ["/opt/supervise", "--socket", "/run/supervise.sock"];
        let supervise = Some(machine.command(&supervise).timeout(LIFE).spawn().unwrap());
        let hostd = std::cell::RefCell::default();
        let world = Self { machine, supervise, hostd, folder, _devgrid: devgrid, _lab: lab };
        let key = world.folder.path().join("key");
        fs::write(&key, format!("0x{}", "11".repeat(32))).unwrap();
        let network = world.folder.path().join("grid/network.json");
        world.grid(&[
            "login",
            "--network",
            network.to_str().unwrap(),
            "--key-file",
            key.to_str().unwrap(),
        ]);
        world.grid(&["farm", "create", "testers"]);
        world.start_hostd();
        world
    }

    /// Starts the node, and waits until the grid knows it.
    fn start_hostd(&self) {
        let run = ["/opt/hostd", "run", "--config", "/hostd.toml"];
        let hostd = self.machine.command(&run).timeout(LIFE).spawn().unwrap();
        let end = Instant::now() + TIME_MAX;
        loop {
            let shown = self.command(&["node", "show", "1", "--json"]).output().unwrap();
            if shown.status.success() {
                break;
            }
            if Instant::now() > end {
                let _ = hostd.signal(15);
                let output = hostd.wait().unwrap();
                let errors = String::from_utf8_lossy(&output.stderr);
                let shown = String::from_utf8_lossy(&shown.stderr);
                panic!("no node: {shown}\n{}\n{errors}", output.text());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        self.hostd.replace(Some(hostd));
    }

    /// Ends the node as `kill -9` does.
    fn hostd_dies(&self) {
        let hostd = self.hostd.take().unwrap();
        hostd.signal(9).unwrap();
        let output = hostd.wait().unwrap();
        eprintln!("hostd said:\n{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.outcome, Outcome::Killed(9));
    }

    /// The guest at this address says hello, inside its network.
    fn answers(&self, ip: &str) {
        let script = format!(
            "n=$(ls /run/netns); exec /sbin/ip netns exec $n /bin/bash -c \
             'exec 3<>/dev/tcp/{ip}/8080 && cat <&3'"
        );
        let end = Instant::now() + TIME_MAX;
        loop {
            let run = self.machine.command(&["/bin/bash", "-c", &script]);
            let output = run.timeout(Duration::from_secs(20)).run().unwrap();
            if output.text() == "hello from the guest\n" {
                return;
            }
            if Instant::now() > end {
                let errors = String::from_utf8_lossy(&output.stderr);
                let logs =
                    self.shell("cat /data/machine/vms/*/log/console.log /data/machine/logs/*");
                panic!("no answer from {ip}: {}{errors}\n{logs}", output.text());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// What there is on the node beyond itself: nothing, when nothing is deployed.
    fn left(&self) -> String {
        self.shell(
            "echo namespaces; ls /run/netns 2>/dev/null; echo links; ip -o link | \
             while read n l r; do echo $l; done; echo files; \
             ls /data/machine/vms /data/machine/networks /data/pool/* /run/hostd/vms 2>/dev/null; \
             echo tables; nft list tables; echo mounts; \
             while read a b c; do echo $b; done < /proc/mounts; echo processes; \
             for p in /proc/[0-9]*; do [ -e $p/exe ] && read n < $p/comm && echo $n; done 2>/dev/null | \
             while read n; do case $n in vmm|mycelium|zdb|flist|supervise|hostd) echo $n;; esac; done | sort",
        )
    }

    fn contracts(&self) -> Vec<u64> {
        let shown = self.grid(&["ls", "--json"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let contracts = shown.as_array().unwrap().iter();
        contracts.map(|one| one["contract_id"].as_u64().unwrap()).collect()
    }

    /// The private address of a machine, as the node says it.
    fn ip_of(&self, name: &str) -> String {
        for contract in self.contracts() {
            let shown = self.grid(&["show", &contract.to_string(), "--json"]);
            let shown: Value = serde_json::from_str(&shown).unwrap();
            for workload in shown["workloads"].as_array().unwrap() {
                if workload["name"] == name {
                    let ip = &workload["result"]["data"]["ip"];
                    return ip.as_str().unwrap_or_else(|| panic!("{workload:#}")).to_owned();
                }
            }
        }
        panic!("no workload {name}");
    }

    /// The address of the services.
    fn services(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("grid/network.json")).unwrap();
        let network: Value = serde_json::from_str(&text).unwrap();
        let hub = network["hub_urls"][0].as_str().unwrap();
        hub.trim_end_matches('/').trim_end_matches("/hub").to_owned()
    }

    fn grid(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let (out, errors) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        let out = String::from_utf8_lossy(out).into_owned();
        assert!(output.status.success(), "grid {arguments:?}: {out}{errors}");
        out
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "300"]).arg(program("grid")).args(arguments);
        command.env("GRID_HOME", self.folder.path().join("home")).stdin(Stdio::null());
        command
    }

    fn shell(&self, script: &str) -> String {
        let run = self.machine.command(&["/bin/bash", "-c", script]).timeout(TIME_MAX);
        run.run().unwrap().text()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let said = |running: Option<Running>| {
            let Some(running) = running else { return };
            let _ = running.signal(15);
            if let Ok(output) = running.wait()
                && std::thread::panicking()
            {
                eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            }
        };
        said(self.hostd.take());
        said(self.supervise.take());
    }
}

const CONFIG: &str = r#"
state = "/data/hostd"
network = "/network.json"
farm = 1
status = "/run/hostd-status.sock"

[place]
country_name = "Belgium"
city_name = "Ghent"
latitude = 51.05
longitude = 3.72

[machine]
state = "/data/machine"
runtime = "/run/hostd"
supervisor = "/run/supervise.sock"
pools = [{ name = "ssd", path = "/data/pool", kind = "ssd" }]

[machine.programs]
vmm = "/opt/vmm"
flist = "/opt/flist"
mycelium = "/opt/mycelium"
zdb = "/opt/zdb"
guestio = "/opt/guestio"
nft = "/usr/sbin/nft"

[machine.guest]
kernel = "/opt/vmlinux"
initramfs = "/opt/initramfs.img"

[machine.images]
allow_routes = ["local"]
"#;

/// A program of ours: in one of the folders that `ZERO_OS_PROGRAMS` names, or beside the test's own.
fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().unwrap();
    let beside = beside.parent().and_then(Path::parent).unwrap().join(name);
    let path = named(name).or_else(|| Some(beside).filter(|path| path.is_file()));
    path.unwrap_or_else(|| panic!("no program {name}: `cargo build --workspace --bins` makes it"))
}

/// A file in the first of the folders that `ZERO_OS_PROGRAMS` names which has it: what was built elsewhere.
fn named(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("ZERO_OS_PROGRAMS")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A disk with a file system of so many MiB, with what `fill` puts into a folder.
fn disk_of(folder: &Path, name: &str, size_mib: u64, fill: impl FnOnce(&Path)) -> PathBuf {
    let (source, disk) = (folder.join(name), folder.join(format!("{name}.ext4")));
    fs::create_dir(&source).unwrap();
    fill(&source);
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-t", "ext4", "-d"]).arg(&source).arg(&disk).arg(format!("{size_mib}M"));
    succeed(&mut make);
    fs::remove_dir_all(&source).unwrap();
    disk
}

/// Runs a grid in a folder, at any ports, and returns its description.
fn up(folder: &Path) -> (Process, String) {
    let mut command = Command::new(program("devgrid"));
    command.args(["up", "--port", "0", "--dir"]).arg(folder);
    let log = fs::File::create(folder.join("devgrid.log")).unwrap();
    let process = Process(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let end = Instant::now() + TIME_MAX;
    loop {
        if let Ok(text) = fs::read_to_string(folder.join("network.json")) {
            return (process, text);
        }
        assert!(
            Instant::now() < end,
            "{}",
            fs::read_to_string(folder.join("devgrid.log")).unwrap()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A program that runs beside the test, and never longer.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
