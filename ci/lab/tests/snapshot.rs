//! Snapshots of Debian guests at work: taken under load, restored more than once, refused when damaged.
//!
//! Behind the feature `boot`: `cargo test -p lab --features boot --test snapshot`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod guest_files;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use guest_files::{built, probe, vmm, write_cidata};
use lab::{Lab, Machine, Outcome, Running};

/// How long a guest may take for what it is asked.
const GUEST_LIMIT: Duration = Duration::from_secs(240);
/// What guests are told. A kernel that warns, of a late clock say, does so in the middle of the
/// lines of others.
const WORDS: &str = "quiet reboot=k panic=1 cryptomgr.notests no_timer_check console=hvc0 \
                     root=vroot rootfstype=virtiofs rootdelay=5 rw";
/// What the guest is called that snapshots are taken of.
const FIRST: &str = "first";

/// A node with KVM, and what a guest's root consists of.
struct Node {
    machine: Machine,
    _lab: Lab,
}

impl Node {
    fn new(name: &str, zosrc: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cidata = folder.path().join("cidata.img");
        write_cidata(&cidata, "users: []\n", zosrc);
        let lab = Lab::new(name).unwrap();
        let builder = lab.machine("node").nested_kvm().memory_mib(1536);
        let builder = builder.modules(&["tun"]).life(Duration::from_secs(900));
        let builder = builder.host_file("/vmm", 0o755, vmm());
        let builder = builder.host_file("/vmlinux", 0o644, &built().vmlinux);
        let builder = builder.host_file("/initramfs.img", 0o644, &built().initramfs);
        let builder = builder.host_file("/cidata.img", 0o644, &cidata);
        let builder = builder.host_file("/tree/sbin/probe", 0o755, probe());
        let builder = builder.file("/tree/etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\n");
        let builder = builder.program("/bin/cp").program("/bin/date");
        let builder = builder.program("/bin/dd").program("/usr/bin/truncate");
        let machine = builder.boot().unwrap();
        let node = Self { machine, _lab: lab };
        node.succeed(&["/usr/bin/truncate", "--size", "64M", "/upper.img"]);
        node
    }

    fn succeed(&self, command: &[&str]) -> String {
        self.machine.run(command).unwrap().success().unwrap().text()
    }

    fn vmm(&self, words: &[&str]) -> String {
        self.succeed(&[&["/vmm"], words].concat())
    }

    /// Starts the guest, with `options` beside what it always has.
    fn run(&self, options: &[&str]) -> Running {
        let files = ["/vmm", "run", "--no-jail", "--kernel", "/vmlinux"];
        let more = ["--initramfs", "/initramfs.img", "--cmdline", WORDS];
        let disks = ["--disk", "/cidata.img,readonly", "--disk", "/upper.img,serial=rootfs"];
        let root = ["--fs", "tag=vroot,dir=/tree,readonly", "--rng", "--balloon"];
        let run = [&files[..], &more, &disks, &root, options];
        self.start(&run.concat(), FIRST, &["--vsock", "cid=3,socket=/run/first.vsock"])
    }

    /// Starts a clone that has its own of everything.
    fn restore(&self, name: &str, options: &[&str]) -> Running {
        let disk = format!("id=disk1,path=/{name}.img");
        let (vsock, net) = (format!("socket=/run/{name}.vsock"), format!("id=net0,tap=tap-{name}"));
        let restore = ["/vmm", "restore", "/snapshot", "--no-jail", "--disk", &disk];
        let own = ["--vsock", &vsock, "--net", &net];
        self.start(&[&restore[..], &own].concat(), name, options)
    }

    fn start(&self, command: &[&str], name: &str, options: &[&str]) -> Running {
        let (console, api) = (format!("file=/{name}.log"), format!("/run/{name}.sock"));
        let own = ["--console", &console, "--api-socket", &api];
        let command = [command, &own, options].concat();
        let command = self.machine.command(&command).timeout(GUEST_LIMIT * 2);
        command.env("VMM_LOG", "debug").spawn().unwrap()
    }

    /// What a guest has said on its console.
    fn log(&self, name: &str) -> String {
        let log = self.machine.pull(&format!("/{name}.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// All ticks that a guest's probe has said so far.
    fn ticks(&self, name: &str) -> Vec<Tick> {
        self.log(name).lines().filter_map(Tick::parse).collect()
    }

    /// Waits until there are so many.
    fn await_ticks(&self, name: &str, count: usize) -> Vec<Tick> {
        let started = Instant::now();
        loop {
            let ticks = self.ticks(name);
            if ticks.len() >= count {
                return ticks;
            }
            if started.elapsed() > GUEST_LIMIT {
                panic!("{name}: {} ticks:\n{}", ticks.len(), self.log(name));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Milliseconds since 1970.
    fn now(&self) -> i64 {
        self.succeed(&["/bin/date", "+%s%3N"]).trim().parse().unwrap()
    }

    /// What the VMM's process has of memory, in KiB: resident, and its own alone.
    fn memory(&self, name: &str) -> (u64, u64) {
        let status = self.vmm(&["status", &format!("/run/{name}.sock"), "--json"]);
        let pid = number_behind(&status, "\"pid\": ").unwrap();
        let rollup = self.machine.pull(&format!("/proc/{pid}/smaps_rollup")).unwrap();
        let rollup = String::from_utf8_lossy(&rollup).into_owned();
        let field = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            number_behind(line, "").unwrap()
        };
        (field("Rss:"), field("Private_Clean:") + field("Private_Dirty:"))
    }

    /// A count of the VMM's, of the device `kind`.
    fn metric(&self, name: &str, kind: &str, count: &str) -> u64 {
        let metrics = self.vmm(&["metrics", &format!("/run/{name}.sock")]);
        let labels = format!("kind=\"{kind}\",id=\"{kind}\",count=\"{count}\"}} ");
        number_behind(&metrics, &labels).unwrap_or_else(|| panic!("no {labels} in {metrics}"))
    }

    /// Ends a guest; what its VMM logged.
    fn stop(&self, name: &str, running: Running) -> String {
        self.vmm(&["stop", &format!("/run/{name}.sock")]);
        let output = running.wait().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.outcome, Outcome::Exited(0), "{errors}");
        errors
    }
}

fn number_behind(text: &str, prefix: &str) -> Option<u64> {
    let rest = text.split_once(prefix)?.1.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// What a working guest says of itself.
#[derive(Clone, Debug)]
struct Tick {
    count: u64,
    wall_ms: i64,
    monotonic_ms: i64,
    random: String,
    checked: u64,
    errors: u64,
}

impl Tick {
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end().strip_prefix("probe: tick \"")?.strip_suffix('"')?;
        let mut words = line.split(' ');
        Some(Self {
            count: words.next()?.parse().ok()?,
            wall_ms: words.next()?.parse().ok()?,
            monotonic_ms: words.next()?.parse().ok()?,
            random: words.next()?.to_owned(),
            checked: words.next()?.parse().ok()?,
            errors: words.next()?.parse().ok()?,
        })
    }
}

/// Two guests that were one: each goes on where that was, with its disk, and neither is the other.
#[test]
fn a_guest_at_work_goes_on_twice_from_one_snapshot() {
    let node = Node::new("vmm-snapshot", "export PROBE_WORK='/'\ninit='probe'\n");
    let net = ["--net", "tap=tap-first,mac=02:01:a0:00:00:09", "--watchdog", "30"];
    let running = node.run(&[&["--cpus", "2"], &net[..]].concat());
    node.await_ticks(FIRST, 10);
    node.vmm(&["snapshot", "/run/first.sock", "/snapshot", "--then", "pause"]);
    let saved = node.ticks(FIRST);
    for name in ["a", "b"] {
        let copy = format!("/{name}.img");
        node.succeed(&["/bin/cp", "--sparse=always", "/upper.img", &copy]);
    }
    node.vmm(&["resume", "/run/first.sock"]);
    let went_on = node.await_ticks(FIRST, saved.len() + 5);
    assert!(went_on.iter().all(|tick| tick.errors == 0), "{went_on:?}");
    node.stop(FIRST, running);
    // So that clocks that stood still would be seen to be late.
    std::thread::sleep(Duration::from_secs(8));

    let last = saved.last().unwrap();
    let clones = [("a", node.restore("a", &[])), ("b", node.restore("b", &["--verify"]))];
    for (name, _) in &clones {
        let ticks = node.await_ticks(name, 30);
        check_continues(&node, name, last, &ticks);
    }
    // Now that both have run: pages of the snapshot that one alone has touched are its own.
    for (name, _) in &clones {
        let (resident, own) = node.memory(name);
        eprintln!("{name}: {resident} KiB resident, {own} KiB its own");
        assert!(own * 2 < resident, "{name}: {own} of {resident} KiB are its own");
        assert!(node.metric(name, "vsock", "beats") > 0, "{name}: its heart does not beat");
    }
    let random = |name: &str| -> BTreeSet<String> {
        let ticks = node.ticks(name);
        ticks.iter().skip(15).map(|tick| tick.random.clone()).collect()
    };
    assert!(random("a").is_disjoint(&random("b")), "both have the same random numbers");
    for (name, running) in clones {
        let log = node.stop(name, running);
        assert!(log.contains("Reseed(Done)"), "{name} was not given entropy:\n{log}");
    }
}

fn check_continues(node: &Node, name: &str, last: &Tick, ticks: &[Tick]) {
    let (first, now) = (&ticks[0], node.now());
    let newest = node.ticks(name).pop().unwrap();
    // What the guest had said, and nobody had written yet, comes late.
    assert!((last.count..last.count + 4).contains(&first.count), "{last:?}, then {first:?}");
    let is_complete = ticks.windows(2).all(|pair| pair[1].count == pair[0].count + 1);
    assert!(is_complete, "{name}: a tick is missing: {}", node.log(name));
    assert!(ticks.iter().all(|tick| tick.errors == 0), "{name}: its disk is damaged: {ticks:?}");
    assert!(newest.checked > last.checked + 5, "{name}: {last:?}, now {newest:?}");
    let late = now - newest.wall_ms;
    eprintln!("{name}: its clock is {late} ms behind");
    assert!((-2000..4000).contains(&late), "{name}: {late} ms late: {newest:?}");
    let jump = newest.monotonic_ms - last.monotonic_ms;
    assert!(jump >= 8000, "{name}: its clocks did not advance: {jump} ms");
}

/// A snapshot that is not whole, or not what was saved, is refused with its file's name.
#[test]
fn a_damaged_snapshot_is_refused() {
    let node = Node::new("vmm-damage", "export PROBE_WORK='/'\ninit='probe'\n");
    let running = node.run(&["--net", "tap=tap-first,mac=02:01:a0:00:00:09"]);
    node.await_ticks(FIRST, 3);
    node.vmm(&["snapshot", "/run/first.sock", "/snapshot", "--then", "stop"]);
    assert_eq!(running.wait().unwrap().outcome, Outcome::Exited(0));
    node.succeed(&["/bin/cp", "/upper.img", "/a.img"]);
    let refused = |options: &[&str], why: &str| {
        let output = node.restore("a", options).wait().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.outcome, Outcome::Exited(1), "{errors}");
        assert!(errors.contains(why), "{errors}");
    };
    let damage = |file: &str, at: usize| {
        let path = format!("/snapshot/{file}");
        let mut bytes = node.machine.pull(&path).unwrap();
        bytes[at] ^= 1;
        node.machine.push(&path, 0o600, &bytes).unwrap();
    };
    damage("state", 1000);
    refused(&[], "/snapshot/state: damaged");
    damage("state", 1000);
    node.succeed(&["/usr/bin/truncate", "--size", "-1", "/snapshot/memory"]);
    refused(&[], "/snapshot/memory: 268439551 bytes, where the snapshot has 268439552");
    node.succeed(&["/usr/bin/truncate", "--size", "+1", "/snapshot/memory"]);
    let clone = node.restore("a", &["--verify"]);
    node.await_ticks("a", 3);
    node.stop("a", clone);
    let write = ["/bin/dd", "if=/cidata.img", "of=/snapshot/memory", "bs=512", "count=1"];
    node.succeed(&[&write[..], &["seek=65536", "conv=notrunc"]].concat());
    refused(&["--verify"], "/snapshot/memory: damaged: bytes 0x0 to 0x4000000");
}

/// What watches the guest's heart ends the guest when it stops, also after a restore.
#[test]
fn a_guest_whose_heart_stops_is_ended() {
    let node = Node::new(
        "vmm-heart",
        "export PROBE_STILL_AGENT='1'\nexport PROBE_WORK='/'\ninit='probe'\n",
    );
    let running = node.run(&["--watchdog", "10"]);
    let output = running.wait().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.outcome, Outcome::Exited(12), "{errors}");
    assert!(!node.ticks(FIRST).is_empty(), "it was at work until then");
}
