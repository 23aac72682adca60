//! A grid on this host, a node of it in a machine of the lab, and a user of both.
//!
//! ```text
//!   this host                                     a machine of the lab
//!     devgrid: chain, relay, hub  <── 10.0.2.2 ──  hostd ── supervise ─┬─ vmm ── KVM ── guest
//!     grid: the user's command                                        ├─ flist cached
//!                                                                     └─ mycelium, a network's; zdb
//! ```
//!
//! The node's disk outlives its machine: [`World::pull_plug`] leaves of it what a real one may hold, and the
//! machine boots again over that.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Disk, Holdings, Lab, Machine, MachineBuilder, Outcome, Running};
use serde_json::Value;

use crate::guest_files::succeed;
use crate::node::image_disk_by;
pub(crate) use crate::parts::{Blank, Options, Packed};
use crate::parts::{Chance, LIFE, Process, describe, disk_of, leave_what_was_flushed, program, up};

/// What anything may take, on a host with other things to do.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(300);
/// How long one must be silent to be taken for somebody who does not answer.
const SILENCE_TIME: Duration = Duration::from_secs(10);
/// How often it is looked whether something is so.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// What the machine sends to itself goes to this host.
const BEND: &str = "table ip bend { \
    chain out { type nat hook output priority -100; ip daddr 127.0.0.1 tcp dport { 443, 1025-65535 } dnat to 10.0.2.2; }; \
    chain back { type nat hook postrouting priority 100; ip saddr 127.0.0.1 ip daddr 10.0.2.2 masquerade; }; }";
/// The user's account.
const ACCOUNT: &str = "5DtDLm5rQHShDqojQpsvcN8tRXHVFaecfDoRet1SU6BFD9Fi";
/// Folders of the machine that hold what users have: nothing, when nothing is deployed.
const FOLDERS: [&str; 9] = [
    "/data/hostd/deployments",
    "/data/machine/networks",
    "/data/machine/vms",
    "/data/ssd/vdisks",
    "/data/ssd/volumes",
    "/data/ssd/root-disks",
    "/data/ssd/root-folders",
    "/data/hdd",
    "/run/hostd/vms",
];

/// Says hello to each who connects, and what it wrote on its disk when it first had it.
const SERVE: &str = "use IO::Socket::INET; $| = 1; \
    if (-d qq(/data) and ! -s qq(/data/id)) { open F, qq(>/data/id); print F rand; close F; system qq(sync) } \
    if (open F, qq(/data/id)) { $id = <F> } print qq(serving\\n); \
    $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 5) or die $!; \
    while ($c = $s->accept) { print $c qq(hello from the guest $id\\n); close $c }";

/// A blank disk that is plugged in.
pub(crate) type Plugged = (&'static Blank, Disk);

/// A grid, a node of it, and its user.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    options: Options,
    builder: MachineBuilder,
    image_folder: String,
    data: Disk,
    /// Those that were blank, without those that were pulled out.
    disks: RefCell<Vec<Plugged>>,
    /// Of the machine that is on.
    node: RefCell<Option<On>>,
    _devgrid: Process,
    _lab: Lab,
}

/// What is there while the machine is on.
struct On {
    machine: Machine,
    supervise: Running,
    hostd: Option<Running>,
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (disk, image_folder) = image_disk_by(&program("flist"));
        let hub = folder.path().join("grid/hub/lab");
        fs::create_dir_all(&hub).unwrap();
        let dump = format!("dump /image.fl {}", hub.join("guest.fl").display());
        succeed(Command::new("/sbin/debugfs").arg("-R").arg(dump).arg(disk));
        if let Some(image) = &options.image {
            fs::copy(image.place.join("image.fl"), hub.join("packed.fl")).unwrap();
        }
        let devgrid = up(&folder.path().join("grid"), options.devgrid);
        let data = disk_of(folder.path(), "data", options.disk_mib, |folder| {
            for pool in ["ssd", "hdd"] {
                fs::create_dir(folder.join(pool)).unwrap();
            }
        });
        let data = Disk::file("data", &data);
        let data = if options.loses_power { data.logged() } else { data };
        let lab = Lab::new(options.name).unwrap();
        let builder = describe(&lab, folder.path(), disk, &data, &options);
        let image_folder = image_folder.clone();
        let blank = options.blank.iter();
        let disks = blank.map(|blank| (blank, lab.disk(blank.name, blank.size_mib).unwrap()));
        let disks = RefCell::new(disks.collect());
        let node = RefCell::default();
        let (_devgrid, _lab) = (devgrid, lab);
        let world =
            Self { folder, options, builder, image_folder, data, disks, node, _devgrid, _lab };
        world.boot();
        world.join();
        world.start_hostd();
        world.until_reachable();
        world
    }

    /// Switches the machine on.
    fn boot(&self) {
        if self.options.loses_power {
            let mut copy = Command::new("cp");
            copy.args(["--sparse=always", "--reflink=auto"]);
            succeed(copy.arg(self.data.path()).arg(self.before()));
        }
        let plugged = self.disks.borrow();
        let disks = plugged.iter().flat_map(|(blank, disk)| scsi(blank, disk.path()));
        let disks: Vec<String> = disks.collect();
        drop(plugged);
        let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
        let machine = self.builder.clone().qemu_arguments(&disks).boot().unwrap();
        let image = self.options.image.as_ref().map(|image| image.place.to_str().unwrap());
        let image = image.map(|place| ["/dev/vdd", place, "ro"]);
        let mounts = [
            &["/dev/vda", self.image_folder.as_str(), "ro"][..],
            &["/dev/vdb", "/opt", "ro"],
            &["/dev/vdc", "/data"],
        ];
        for mount in mounts.into_iter().chain(image.as_ref().map(|image| &image[..])) {
            let mount = [&["/init", "mount", "ext4"], mount].concat();
            machine.run(&mount).unwrap().success().unwrap();
        }
        // The grid is known by this host's name for itself, which its relay insists on.
        let bend = format!("echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; nft '{BEND}'");
        machine.run(&["/bin/bash", "-ec", &bend]).unwrap().success().unwrap();
        let supervise = ["/opt/supervise", "--socket", "/run/supervise.sock"];
        let supervise = machine.command(&supervise).timeout(LIFE).spawn().unwrap();
        self.node.replace(Some(On { machine, supervise, hostd: None }));
        self.until("[ -S /run/supervise.sock ]");
    }

    /// Somebody new joins, and has a farm.
    fn join(&self) {
        let key = self.path("key");
        fs::write(&key, format!("0x{}", "11".repeat(32))).unwrap();
        if let Some(funds) = self.options.funds {
            self.fund(funds);
        }
        let network = self.path("grid/network.json");
        self.grid(&["login", "--network", &network, "--key-file", &key]);
        self.grid(&["farm", "create", self.options.farm]);
    }

    /// Gives the user so many TFT.
    pub(crate) fn fund(&self, tft: &str) {
        self.devgrid(&["fund", ACCOUNT, tft]);
    }

    /// Runs a command of devgrid.
    pub(crate) fn devgrid(&self, arguments: &[&str]) {
        let mut command = Command::new(program("devgrid"));
        command.arg(arguments[0]).args(["--dir", &self.path("grid")]).args(&arguments[1..]);
        succeed(&mut command);
    }

    /// Starts the node's program, and waits until the grid knows the node.
    pub(crate) fn start_hostd(&self) {
        let run = ["/opt/hostd", "run", "--config", "/hostd.toml"];
        let running = self.on(|on| on.machine.command(&run).timeout(LIFE).spawn().unwrap());
        let end = Instant::now() + TIME_MAX;
        loop {
            let shown = self.command(&["node", "show", "1", "--json"]).output().unwrap();
            if shown.status.success() {
                break;
            }
            if Instant::now() > end {
                let _ = running.signal(15);
                let output = running.wait().unwrap();
                let errors = String::from_utf8_lossy(&output.stderr);
                let shown = String::from_utf8_lossy(&shown.stderr);
                panic!("no node: {shown}\n{}\n{errors}", output.text());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        self.on(|on| on.hostd = Some(running));
    }

    /// Waits until the node can be asked by its users.
    pub(crate) fn until_reachable(&self) {
        self.until(
            "[[ $(/opt/hostd status --config /hostd.toml --metrics) = *'hostd_relays_connected 1'* ]]",
        );
    }

    /// Ends the node's program as `kill -9` does.
    pub(crate) fn hostd_dies(&self) {
        let hostd = self.on(|on| on.hostd.take()).unwrap();
        hostd.signal(9).unwrap();
        let output = hostd.wait().unwrap();
        eprintln!("hostd said:\n{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.outcome, Outcome::Killed(9));
    }

    /// Pulls the plug, leaves on the disk what may be there, and switches the machine on again.
    pub(crate) fn pull_plug(&self, chance: &mut Chance) {
        self.node.take().unwrap().machine.power_cut();
        leave_what_was_flushed(&self.data, &self.before(), self.options.disk_mib, chance);
        self.boot();
        self.start_hostd();
    }

    /// Switches the machine off and on again without asking anybody. In between, its disks may be changed.
    pub(crate) fn power_cycle(&self, between: impl FnOnce(&mut Vec<Plugged>)) {
        self.node.take().unwrap().machine.power_cut();
        between(&mut self.disks.borrow_mut());
        self.boot();
        self.start_hostd();
    }

    /// What the disk was when the machine was switched on.
    fn before(&self) -> PathBuf {
        self.folder.path().join("data.before")
    }

    /// What the guest at this address says, inside its network.
    pub(crate) fn answers(&self, ip: &str) -> String {
        let script = answer_of(ip);
        let mut said = String::new();
        let has_answered = || {
            let output = self.on(|on| {
                let run = on.machine.command(&["/bin/bash", "-c", &script]);
                run.timeout(Duration::from_secs(20)).run().unwrap()
            });
            said = output.text();
            said.starts_with("hello from the guest")
        };
        if !is_soon(has_answered) {
            let logs = self.shell("cat /data/machine/vms/*/log/console.log /data/machine/logs/*");
            panic!("no answer from {ip}: {said}\n{logs}");
        }
        said
    }

    /// Whether nobody answers at that address, inside the network.
    pub(crate) fn is_silent(&self, ip: &str) -> bool {
        self.on(|on| {
            let script = answer_of(ip);
            let run = on.machine.command(&["/bin/bash", "-c", &script]);
            let output = run.timeout(SILENCE_TIME).run().unwrap();
            output.stdout.is_empty() && output.outcome != Outcome::Exited(0)
        })
    }

    /// What the machine holds.
    pub(crate) fn holdings(&self) -> Holdings {
        self.on(|on| Holdings::of(&on.machine, &FOLDERS).unwrap())
    }

    /// Waits until the machine holds what it held before.
    pub(crate) fn holds_again(&self, before: &Holdings) {
        let mut left = Vec::new();
        let is_same = || {
            left = self.holdings().since(before);
            left.is_empty()
        };
        assert!(is_soon(is_same), "leaks:\n{}", left.join("\n"));
    }

    /// Numbers of all contracts that are not over.
    pub(crate) fn contracts(&self) -> Vec<u64> {
        let shown = self.grid(&["ls", "--json"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let contracts = shown.as_array().unwrap().iter();
        contracts.map(|one| one["contract_id"].as_u64().unwrap()).collect()
    }

    /// All workloads as their owner is shown them, without the time at which they were made.
    pub(crate) fn workloads(&self) -> Vec<Value> {
        let mut workloads = Vec::new();
        for contract in self.contracts() {
            let mut shown = self.shown(contract);
            let found = shown["workloads"].as_array_mut().unwrap();
            for mut workload in found.drain(..) {
                workload["result"]["created"].take();
                workloads.push(workload);
            }
        }
        workloads
    }

    /// A deployment as its node shows it, which may be about to start.
    fn shown(&self, contract: u64) -> Value {
        let (mut shown, mut errors) = (None, String::new());
        let is_shown = || {
            let output = self.command(&["show", &contract.to_string(), "--json"]).output().unwrap();
            errors = String::from_utf8_lossy(&output.stderr).into_owned();
            shown = serde_json::from_slice(&output.stdout).ok();
            shown.is_some()
        };
        is_soon(is_shown);
        shown.unwrap_or_else(|| panic!("contract {contract} is not shown: {errors}"))
    }

    /// The private address of a machine, as the node says it.
    pub(crate) fn ip_of(&self, name: &str) -> String {
        let workloads = self.workloads();
        let found = workloads.iter().find(|workload| workload["name"] == name);
        let found = found.unwrap_or_else(|| panic!("no {name} in {workloads:#?}"));
        let ip = found["result"]["data"]["ip"].as_str();
        ip.unwrap_or_else(|| panic!("{found:#}")).to_owned()
    }

    /// Cancels everything.
    pub(crate) fn cancel_all(&self) {
        for contract in self.contracts() {
            self.grid(&["cancel", &contract.to_string()]);
        }
    }

    /// The address of the services.
    pub(crate) fn services(&self) -> String {
        let text = fs::read_to_string(self.path("grid/network.json")).unwrap();
        let network: Value = serde_json::from_str(&text).unwrap();
        let hub = network["hub_urls"][0].as_str().unwrap();
        hub.trim_end_matches('/').trim_end_matches("/hub").to_owned()
    }

    /// The line of a plan that describes a machine which serves.
    pub(crate) fn serving_vm(&self, more: &str) -> String {
        format!(
            "{{name: web, node: 1, network: lan, flist: '{}/hub/lab/guest.fl', memory: 512M,\n     \
             entrypoint: '/usr/bin/perl -e \"eval $ENV{{SERVE}}; die $@\"', \
             env: {{SERVE: '{SERVE}'}}{more}}}",
            self.services(),
        )
    }

    /// Writes a plan, and says where.
    pub(crate) fn plan(&self, plan: &str) -> String {
        let path = self.path("plan.yaml");
        fs::write(&path, plan).unwrap();
        path
    }

    /// Has the user's command succeed.
    pub(crate) fn grid(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let (out, errors) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        let out = String::from_utf8_lossy(out).into_owned();
        assert!(output.status.success(), "grid {arguments:?}: {out}{errors}");
        out
    }

    /// Has the user's command fail, in words.
    pub(crate) fn grid_fails(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(!output.status.success(), "grid {arguments:?} did not fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The user's command, while something else happens.
    pub(crate) fn grid_beside(&self, arguments: &[&str]) -> Deploying {
        let log = self.path("beside.log");
        let output = File::create(&log).unwrap();
        let mut command = self.command(arguments);
        command.stdout(output.try_clone().unwrap()).stderr(output);
        Deploying { process: Process(command.spawn().unwrap()), log: log.into() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "900"]).arg(program("grid")).args(arguments);
        command.env("GRID_HOME", self.path("home")).stdin(Stdio::null());
        command
    }

    /// Writes a file of the machine.
    pub(crate) fn push(&self, path: &str, mode: u32, data: &[u8]) {
        self.on(|on| on.machine.push(path, mode, data).unwrap());
    }

    /// Starts a command in the machine that runs for as long as that does.
    pub(crate) fn start(&self, argv: &[&str]) -> Running {
        self.on(|on| on.machine.command(argv).timeout(LIFE).spawn().unwrap())
    }

    /// Waits until a script in the machine succeeds.
    pub(crate) fn until(&self, script: &str) {
        let is_so = || {
            self.on(|on| {
                let output = on.machine.run(&["/bin/bash", "-c", script]).unwrap();
                output.outcome == Outcome::Exited(0)
            })
        };
        assert!(is_soon(is_so), "in vain: {script}");
    }

    pub(crate) fn shell(&self, script: &str) -> String {
        self.on(|on| {
            let run = on.machine.command(&["/bin/bash", "-c", script]).timeout(TIME_MAX);
            run.run().unwrap().text()
        })
    }

    /// Runs a command in the machine that must succeed, and says what it said.
    pub(crate) fn run(&self, argv: &[&str]) -> String {
        self.on(|on| {
            let run = on.machine.command(argv).timeout(TIME_MAX);
            run.run().unwrap().success().unwrap().text()
        })
    }

    /// A path below the folder of the test.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn on<T>(&self, work: impl FnOnce(&mut On) -> T) -> T {
        work(self.node.borrow_mut().as_mut().expect("the machine is on"))
    }
}

/// Words for QEMU about a SCSI disk.
fn scsi(blank: &Blank, path: &Path) -> Vec<String> {
    let Blank { name, is_rotational, .. } = blank;
    let path = path.display();
    let raw = format!("driver=raw,node-name={name}-raw,file.driver=file,file.filename={path}");
    let mut words = vec!["-blockdev".to_owned(), raw];
    let (mut node, mut rate) = (format!("{name}-raw"), 1);
    if *is_rotational {
        let group = format!("throttle-group,id={name}-slow,x-iops-read=40");
        let slow =
            format!("driver=throttle,node-name={name}-node,throttle-group={name}-slow,file={node}");
        words.extend(["-object".to_owned(), group, "-blockdev".to_owned(), slow]);
        (node, rate) = (format!("{name}-node"), 7200);
    }
    let disk = format!("scsi-hd,bus=scsi0.0,drive={node},serial={name},rotation_rate={rate}");
    words.extend(["-device".to_owned(), disk]);
    words
}

impl Drop for World {
    fn drop(&mut self) {
        let Some(On { machine, supervise, hostd }) = self.node.take() else { return };
        for running in hostd.into_iter().chain([supervise]) {
            let _ = running.signal(15);
            if let Ok(output) = running.wait()
                && std::thread::panicking()
            {
                eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            }
        }
        drop(machine);
    }
}

/// A command of the user that is under way.
pub(crate) struct Deploying {
    process: Process,
    log: PathBuf,
}

impl Deploying {
    /// Waits for its good end.
    pub(crate) fn done(mut self) {
        let mut status = None;
        let has_ended = || {
            status = self.process.0.try_wait().unwrap();
            status.is_some()
        };
        is_soon_enough(TIME_MAX * 3, has_ended);
        let said = fs::read_to_string(&self.log).unwrap();
        assert!(status.is_some_and(|status| status.success()), "{status:?}: {said}");
        eprintln!("{said}");
    }
}

/// A script that asks who listens at that address, inside the only network.
fn answer_of(ip: &str) -> String {
    format!(
        "for n in /run/netns/*; do exec /sbin/ip netns exec ${{n##*/}} /bin/bash -c \
         'exec 3<>/dev/tcp/{ip}/8080 && cat <&3'; done"
    )
}

/// Looks until something is so, or for so long that it never will be.
pub(crate) fn is_soon(is_so: impl FnMut() -> bool) -> bool {
    is_soon_enough(TIME_MAX, is_so)
}

fn is_soon_enough(time_max: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time_max;
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    true
}
