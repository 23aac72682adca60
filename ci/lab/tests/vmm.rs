//! Our VMM with real kernels: nested KVM in a machine of the lab, Debian's cloud kernel above it.
//!
//! ```text
//!   this host ── QEMU ── L1: Debian, kvm, our vmm, flist cached ── KVM ── L2: Debian's cloud kernel
//! ```
//!
//! Behind the feature `boot`: `cargo test -p lab --features boot --test vmm`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod guest_files;

use std::time::Duration;

use guest_files::{Console, agent, built, flist, probe, vmm, write_cidata};
use lab::{Lab, Machine, MachineBuilder, Outcome, Output, Running};

/// How long a guest may take from the start of its VMM to its end.
const GUEST_LIMIT: Duration = Duration::from_secs(240);
/// How long a node may take to boot, on a host with other things to do.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// What guests are told, beside where their console is.
const WORDS: &str = "reboot=k panic=1 cryptomgr.notests no_timer_check";
const RUN: [&str; 6] = ["/vmm", "run", "--kernel", "/vmlinux", "--initramfs", "/initramfs.img"];
/// Starts a program as somebody without rights.
const AS_USER: [&str; 6] =
    ["/usr/bin/setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"];

/// A node: a machine with KVM and what it takes to run a VM.
fn node(lab: &Lab) -> MachineBuilder {
    let builder = lab.machine("node").nested_kvm().memory_mib(1536);
    let builder =
        builder.modules(&["tun", "ext4"]).boot_timeout(BOOT_LIMIT).life(Duration::from_secs(900));
    let builder = builder.host_file("/vmm", 0o755, vmm());
    let builder = builder.host_file("/vmlinux", 0o644, &built().vmlinux);
    builder.host_file("/initramfs.img", 0o644, &built().initramfs)
}

/// What was said on the console, of a VM that ended as it should.
fn console(output: &Output, outcome: &Outcome) -> Console {
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = output.text();
    assert_eq!(&output.outcome, outcome, "{text}\n{errors}");
    Console { text }
}

#[test]
fn a_kernel_boots_on_one_and_two_vcpus_and_says_how_it_ended() {
    let lab = Lab::new("vmm-boot").unwrap();
    let node = node(&lab).boot().unwrap();
    for cpus in ["1", "2"] {
        let words = format!("console=ttyS0 rootdelay=1 {WORDS}");
        let run = [&RUN[..], &["--cpus", cpus, "--serial", "stdio", "--cmdline", &words]].concat();
        let output = node.command(&run).timeout(GUEST_LIMIT).run().unwrap();
        let Console { text } = console(&output, &Outcome::Exited(0));
        assert!(text.contains("guest-init: no read-only disk labelled cidata"), "{text}");
        assert!(text.contains("; powering off"), "{text}");
        assert!(text.contains(&format!("smp: Brought up 1 node, {cpus} CPU")), "{text}");
    }
    // Without an init the kernel panics, which pvpanic has no module for here, and resets.
    let words = format!("console=ttyS0 rdinit=/none root=/dev/none {WORDS}");
    let run = [&RUN[..], &["--on-reset", "exit", "--serial", "stdio", "--cmdline", &words]];
    let output = node.command(&run.concat()).timeout(GUEST_LIMIT).run().unwrap();
    let Console { text } = console(&output, &Outcome::Exited(10));
    assert!(text.contains("Kernel panic"), "{text}");
}

/// The whole way of a workload: an image packed from a tree, its blocks through the node's cache, its
/// root an overlay of virtio-fs and a volume, its console a virtio one, a card and entropy beside.
#[test]
fn an_flist_boots_with_a_volume_above_it_and_keeps_its_data() {
    let zosrc = "export PROBE_APPEND='/log'\nexport PROBE_SIZE='/'\n\
                 export PROBE_READ='/log:/etc/motd:/proc/net/dev:/sys/class/misc/hw_random/rng_current'\n\
                 init='probe'\n";
    let workload = Workload::new("vmm-flist", zosrc);
    for (cpus, log) in [("1", "one boot\n"), ("2", "one boot\none boot\n")] {
        let output = workload.run(&["--cpus", cpus, "--rng"]).wait().unwrap();
        let console = console(&output, &Outcome::Exited(0));
        assert!(console.text.contains("probe: end"), "no end:\n{}", console.text);
        assert_eq!(console.get("arg0"), "probe");
        assert_eq!(console.get("file /etc/motd"), "from the image");
        assert_eq!(console.get("file /log"), log);
        assert_eq!(console.get("file /proc/sys/kernel/hostname"), "my-vm\n");
        assert!(console.size("/") > 550 << 20, "{}", console.size("/"));
        assert!(console.get("file /proc/net/dev").contains("eth0:"), "{}", console.text);
        let rng = console.get("file /sys/class/misc/hw_random/rng_current");
        assert!(rng.starts_with("virtio_rng"), "{rng}");
    }
    workload.end();
}

#[test]
fn a_running_vm_is_asked_paused_and_given_a_disk_which_it_gives_back() {
    let zosrc = "export PROBE_AWAIT='/sys/block/vdc:!/sys/block/vdc'\ninit='probe'\n";
    let workload = Workload::new("vmm-hotplug", zosrc);
    let node = &workload.node;
    let vm = workload.run(&["--api-socket", "/run/vm.sock", "--balloon"]);
    vm.wait_for("probe: awaiting", GUEST_LIMIT).unwrap();
    let ask = |words: &[&str]| {
        let output = node.run(&[&["/vmm"], words].concat()).unwrap().success().unwrap();
        output.text()
    };
    let state = |wanted: &str| {
        let status = ask(&["status", "/run/vm.sock", "--json"]);
        assert!(status.contains(&format!("\"state\": \"{wanted}\"")), "{status}");
    };
    state("running");
    ask(&["pause", "/run/vm.sock"]);
    state("paused");
    ask(&["resume", "/run/vm.sock"]);
    state("running");
    node.push("/more.img", 0o600, &[0; 1 << 20]).unwrap();
    let id = ask(&["disk", "add", "/run/vm.sock", "/more.img,id=more"]);
    assert_eq!(id.trim(), "more");
    vm.wait_for("probe: awaiting \"!/sys/block/vdc\"", GUEST_LIMIT).unwrap();
    let metrics = ask(&["metrics", "/run/vm.sock"]);
    assert!(metrics.contains("kind=\"disk\",id=\"more\",count=\"reads\""), "{metrics}");
    ask(&["disk", "remove", "/run/vm.sock", "more"]);
    let console = console(&vm.wait().unwrap(), &Outcome::Exited(0));
    assert_eq!(console.get("awaited /sys/block/vdc"), "seen");
    assert_eq!(console.get("awaited !/sys/block/vdc"), "seen");
    assert!(node.pull("/run/vm.sock").is_err(), "the socket's file stayed");
    workload.end();
}

/// The jail as the node sees it, around a guest with a root from an flist, disks, a card and sockets;
/// devices still come and go.
#[test]
fn a_vm_is_behind_its_walls_as_root_and_as_a_plain_user() {
    let zosrc = "export PROBE_AWAIT='/sys/block/vdc:!/sys/block/vdc'\ninit='probe'\n";
    let workload = Workload::new("vmm-jail", zosrc);
    let node = &workload.node;
    let is_served = ["/flist", "cached", "--socket", "/run/cache.sock", "--status"];
    while node.run(&is_served).unwrap().outcome != Outcome::Exited(0) {}
    // What an operator grants to a user who may run VMs.
    let grant = ["/bin/chmod", "666", "/dev/kvm", "/dev/vda", "/run/cache.sock"];
    node.run(&grant).unwrap().success().unwrap();
    node.run(&["/bin/chmod", "1777", "/run"]).unwrap().success().unwrap();
    node.push("/more.img", 0o600, &[0; 1 << 20]).unwrap();
    for (starter, socket) in [(&[][..], "/run/root.sock"), (&AS_USER[..], "/run/user.sock")] {
        let vsock = format!("cid=3,socket={socket}.v");
        let vm = workload.run_as(starter, &["--api-socket", socket, "--vsock", &vsock]);
        vm.wait_for("probe: awaiting", GUEST_LIMIT).unwrap();
        let ask = |words: &[&str]| {
            node.run(&[&["/vmm"], words].concat()).unwrap().success().unwrap().text()
        };
        let status: serde_json::Value =
            serde_json::from_str(&ask(&["status", socket, "--json"])).unwrap();
        for wall in status["walls"].as_array().unwrap() {
            assert_eq!(wall["stands"], true, "{socket}: {wall}");
        }
        let process = format!("/proc/{}/status", status["pid"]);
        let process = String::from_utf8(node.pull(&process).unwrap()).unwrap();
        let field = |name: &str| {
            let line = process.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim_start_matches(':').trim().to_owned()
        };
        assert_eq!((field("Seccomp").as_str(), field("NoNewPrivs").as_str()), ("2", "1"));
        assert_eq!(field("CapEff").trim_start_matches('0'), "", "{process}");
        assert!(field("NSpid").ends_with("\t1"), "{process}");
        let uid = field("Uid");
        let is_own =
            if starter.is_empty() { uid.starts_with("19") } else { uid.starts_with("1000") };
        assert!(is_own, "{uid}");
        assert_eq!(ask(&["disk", "add", socket, "/more.img,id=more"]).trim(), "more");
        vm.wait_for("probe: awaiting \"!/sys/block/vdc\"", GUEST_LIMIT).unwrap();
        ask(&["disk", "remove", socket, "more"]);
        let console = console(&vm.wait().unwrap(), &Outcome::Exited(0));
        assert_eq!(console.get("awaited !/sys/block/vdc"), "seen");
        for file in [socket.to_owned(), format!("{socket}.v")] {
            assert!(node.pull(&file).is_err(), "{file} stayed");
        }
    }
    workload.end();
}

/// The lab's agent as a guest's init: it fills a disk and finds it so, sends and receives, and writes to
/// its root, which an overlay in the VMM keeps.
#[test]
fn disk_network_and_the_writable_overlay_carry_data() {
    let workload = Workload::new("vmm-data", "init='agent'\n");
    let node = &workload.node;
    let shell = |script: &str| node.run(&["/bin/sh", "-ec", script]).unwrap().success().unwrap();
    shell(
        "mke2fs -q -t ext4 /dev/vda; /init mount ext4 /dev/vda /upper; ip tuntap add tap0 mode tap vnet_hdr multi_queue\n\
         ip address add 10.20.2.1/24 dev tap0; ip link set tap0 up",
    );
    let serve = node.command(&["/init", "serve-streams", "10.20.2.1:7"]).timeout(GUEST_LIMIT);
    let serve = serve.spawn().unwrap();
    let words = format!(
        "console=hvc0 root=vroot rootfstype=virtiofs rootdelay=5 rw guest.upper=none {WORDS} \
         lab.run=check-disk,/dev/vda;write-file,/etc/new,3000000;send,10.20.2.1:7,8388608,checked;\
         receive,10.20.2.1:7,8388608,checked;round-trips,10.20.2.1:8,20,1400"
    );
    let echo = node.command(&["/init", "listen", "udp", "10.20.2.1:8"]).timeout(GUEST_LIMIT);
    let echo = echo.spawn().unwrap();
    let fs = ["--fs", "tag=vroot,flist=/image.fl,cache=/run/cache.sock,upper=/upper"];
    node.push("/run/disk.img", 0o600, &vec![0; 8 << 20]).unwrap();
    let disks = ["--disk", "/run/disk.img,queues=2", "--disk", "/cidata.img,readonly"];
    let others = ["--net", "tap=tap0,mac=02:01:a0:00:00:09,queues=2", "--console", "stdio"];
    let run = [&RUN[..], &["--cpus", "2"], &fs, &disks, &others, &["--cmdline", &words]].concat();
    let output = node.command(&run).timeout(GUEST_LIMIT).run().unwrap();
    let Console { text } = console(&output, &Outcome::Exited(0));
    for line in ["check-disk: 8388608", "write-file: /etc/new", "send: 8388608", "receive: 8388608"]
    {
        assert!(text.contains(line), "no {line}:\n{text}");
    }
    assert!(text.contains("round-trips: 20"), "{text}");
    assert_eq!(node.pull("/upper/rw/etc/new").unwrap().len(), 3_000_000);
    for running in [serve, echo] {
        running.signal(9).unwrap();
        running.wait().unwrap();
    }
    workload.end();
}

/// A node with an image whose init is the probe, served by the node's cache, and a volume.
struct Workload {
    node: Machine,
    cached: Running,
    _lab: Lab,
}

impl Workload {
    fn new(name: &str, zosrc: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cidata = folder.path().join("cidata.img");
        write_cidata(&cidata, "users: []\n", zosrc);
        let lab = Lab::new(name).unwrap();
        let volume = lab.disk("volume", 600).unwrap();
        // For its libraries; where it lies here may be hidden by a mount there.
        let builder = node(&lab).program(flist()).host_file("/flist", 0o755, flist());
        let builder = builder.program("/bin/chmod").program("/usr/bin/setpriv");
        let builder = builder.disk(&volume).host_file("/cidata.img", 0o644, &cidata);
        let builder = builder.host_file("/tree/sbin/probe", 0o755, probe());
        let builder = builder.host_file("/tree/sbin/agent", 0o755, agent());
        let builder = builder.program("/bin/sh").program("/sbin/ip").program("/sbin/mke2fs");
        let builder = builder.file("/tree/etc/motd", 0o644, "from the image");
        let builder = builder.file("/tree/etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\n");
        let node = builder.boot().unwrap();
        let pack = ["/flist", "pack", "/tree", "-o", "/image.fl", "--store", "dir:///blocks"];
        node.run(&pack).unwrap().success().unwrap();
        let serve = ["/flist", "cached", "--socket", "/run/cache.sock", "--cache", "/cache"];
        let serve = [&serve[..], &["--free-min", "0", "--allow-route", "local"]].concat();
        let cached = node.command(&serve).timeout(Duration::from_secs(800)).spawn().unwrap();
        let wait = "n=0; while [ ! -S /run/cache.sock ]; do \
                    n=$((n+1)); [ $n -lt 1000 ]; /init sleep 20; done";
        node.run(&["/bin/sh", "-ec", wait]).unwrap().success().unwrap();
        Self { node, cached, _lab: lab }
    }

    /// Starts a VM of the image, with `options` beside what all have.
    fn run(&self, options: &[&str]) -> Running {
        self.run_as(&[], options)
    }

    /// The same, by way of a program that becomes somebody else, who has no right to a tap.
    fn run_as(&self, starter: &[&str], options: &[&str]) -> Running {
        let words = format!("console=hvc0 root=vroot rootfstype=virtiofs rootdelay=5 rw {WORDS}");
        let fs = ["--fs", "tag=vroot,flist=/image.fl,cache=/run/cache.sock"];
        let disks = ["--disk", "/cidata.img,readonly", "--disk", "/dev/vda,serial=rootfs"];
        let net = ["--net", "tap=tap0,mac=02:01:a0:00:00:09"];
        let net = if starter.is_empty() { &net[..] } else { &[] };
        let others = ["--console", "stdio", "--cmdline", &words];
        let run = [starter, &RUN[..], &fs, &disks, net, &others, options].concat();
        self.node.command(&run).timeout(GUEST_LIMIT).spawn().unwrap()
    }

    /// Ends the cache in good order.
    fn end(self) {
        self.cached.signal(15).unwrap();
        let ended = self.cached.wait().unwrap();
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.outcome, Outcome::Exited(0), "{errors}");
    }
}
