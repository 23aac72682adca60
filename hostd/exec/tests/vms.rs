//! Machines under a real supervisor, with a program that pretends to be their VMM: it answers on the API's
//! socket, and ends when it is asked to, or not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hostd_exec::storage::parse;
use hostd_exec::vm::cidata::CiData;
use hostd_exec::vm::record::Record;
use hostd_exec::vm::spec::{Boot, Order};
use hostd_exec::vm::{VmConfig, VmError, Vms, name};
use hostd_grid::derived::WorkloadId;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// How long a VMM may take until it answers: a program in Perl needs a moment on a busy machine.
const START_TIME_MAX: Duration = Duration::from_secs(15);

/// A VMM whose guest obeys its power button, unless there is a file `deaf` beside it; and which says very much
/// if there is a file `loud`. For the machine of which the name is in `broken`, it fails; of that in `mute`, it
/// takes questions and answers none.
const VMM: &str = r#"#!/usr/bin/perl
use strict; use IO::Socket::UNIX; use JSON::PP; use File::Basename;
my $here = dirname($0);
open(my $file, '<', $ARGV[2]) or die; local $/; my $spec = decode_json(<$file>); $/ = "\n";
my $path = $spec->{api_socket}; unlink $path;
sub is_it { open(my $file, '<', "$here/$_[0]") or return 0; my $name = <$file>; return index($path, $name) >= 0 }
if (is_it('broken')) { print "kernel: not a kernel\n"; exit 1; }
my $listener = IO::Socket::UNIX->new(Type => SOCK_STREAM, Local => $path, Listen => 8) or die "$!";
$| = 1; print "hello from the guest\n";
if (-e "$here/loud") { print(("x" x 999) . "\n") for 1 .. 24_000; sleep 3; print "loud no more\n"; }
my $state = 'running';
if (is_it('mute')) { my @kept; while (my $client = $listener->accept) { push @kept, $client; } }
while (my $client = $listener->accept) {
    my $line = <$client>; while (my $header = <$client>) { last if $header =~ /^\r?\n$/ }
    my ($method, $target) = split / /, $line;
    $state = 'paused' if $target eq '/vm/pause'; $state = 'running' if $target eq '/vm/resume';
    my $body = $method eq 'GET' ? qq({"state":"$state"}) : '';
    print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($body) . "\r\n\r\n$body"; close $client;
    exit 0 if $target eq '/vm/shutdown' && !-e "$here/deaf";
}
"#;

struct Node {
    folder: TempDir,
    process: Child,
    supervisor: supervise::Client,
    vms: Vms,
}

impl Node {
    /// None, with a message, if something is missing.
    fn start() -> Option<Self> {
        let test = std::env::current_exe().unwrap();
        let supervise = test.parent()?.parent()?.join("supervise");
        if !supervise.is_file() || !Path::new("/usr/bin/perl").is_file() {
            eprintln!("skipped: {} and perl are needed", supervise.display());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("supervise.sock");
        let mut command = Command::new(supervise);
        let process = command.arg("--socket").arg(&socket).stderr(Stdio::null()).spawn().unwrap();
        let supervisor = until("it serves", || supervise::Client::connect(&socket).ok());
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("vmm"), VMM).unwrap();
        std::fs::set_permissions(at("vmm"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = VmConfig {
            state: at("vms"),
            runtime: at("run"),
            vmm: at("vmm"),
            kernel: at("vmlinux"),
            initramfs: at("initramfs"),
            cache: at("cached.sock"),
            disk_boot: None,
            start_time_max: START_TIME_MAX,
        };
        let vms = Vms::open(config, supervisor.clone()).unwrap();
        Some(Self { folder, process, supervisor, vms })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A machine that runs.
    fn machine(&self) -> WorkloadId {
        let id = parse("7-9-vm").unwrap();
        self.try_machine(&id).unwrap();
        id
    }

    fn try_machine(&self, id: &WorkloadId) -> Result<(), VmError> {
        let record = Record {
            image: "ab".repeat(32),
            url: "https://hub/x.flist".into(),
            result: "{}".into(),
            is_stopped: false,
            is_paused: false,
        };
        self.vms.records().write(id, &record).unwrap();
        let order = Order {
            cpus: 1,
            memory: 256 << 20,
            image: self.path("image"),
            boot: Boot::Node { root: self.path("root") },
            mounts: Vec::new(),
            cards: Vec::new(),
            namespace: None,
        };
        self.vms.start(id, &order, &CiData::default())
    }

    /// The machine of that name has a VMM that is so.
    fn spoil(&self, id: &WorkloadId, how: &str) {
        let folder = self.vms.runtime(id).unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap();
        std::fs::write(self.path(how), name).unwrap();
    }

    fn pid(&self, id: &WorkloadId) -> Option<u32> {
        self.supervisor.find(&name(id)).unwrap()?.pid
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Programs die with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = is_so() {
            return value;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether this machine lets us spare a program when memory runs out.
fn may_spare() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let capabilities = u64::from_str_radix(set.trim(), 16).unwrap();
    // `CAP_SYS_RESOURCE`
    capabilities >> 24 & 1 == 1
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_vmm_that_crashes_is_started_again_and_given_up_at_the_fourth() {
    let Some(node) = Node::start() else { return };
    let id = node.machine();
    let mut before = None;
    for _ in 0..4 {
        assert!(node.vms.fallen().unwrap().is_empty());
        let pid = until("it runs", || node.pid(&id).filter(|pid| Some(*pid) != before));
        before = Some(pid);
        kill(pid);
    }
    let fallen = until("it is given up", || node.vms.fallen().unwrap().into_iter().next());
    let (fallen, reason) = fallen;
    assert_eq!(fallen, id);
    // Its guest's last words are for its owner.
    let words = "deleting vm due to so many crashes; its console ended with:\nhello from the guest";
    assert!(reason.starts_with(words), "{reason}");
    // It is still there, so that nobody makes it again.
    assert_eq!(node.vms.inventory().unwrap(), [id]);
}

#[test]
fn a_machine_is_asked_to_end_and_then_made_to() {
    let Some(node) = Node::start() else { return };
    let id = node.machine();
    let start = Instant::now();
    node.vms.stop(&id).unwrap();
    assert!(start.elapsed() < Duration::from_secs(4), "it obeys: {:?}", start.elapsed());
    assert_eq!(node.pid(&id), None);

    std::fs::write(node.path("deaf"), "").unwrap();
    let id = node.machine();
    let start = Instant::now();
    node.vms.stop(&id).unwrap();
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_secs(5), "it was asked, and waited for: {elapsed:?}");
    assert!(elapsed < Duration::from_secs(11), "it was made to: {elapsed:?}");
    assert_eq!((node.pid(&id), node.vms.inventory().unwrap()), (None, vec![]));
}

#[test]
fn a_machine_stands_still_and_goes_on_and_is_spared_when_memory_runs_out() {
    let Some(node) = Node::start() else { return };
    let id = node.machine();
    node.vms.pause(&id).unwrap();
    node.vms.pause(&id).unwrap();
    let socket = node.vms.runtime(&id).unwrap().join("api.sock");
    assert_eq!(hostd_exec::vm::api::state(&socket).unwrap(), vmm_spec::api::State::Paused);
    node.vms.resume(&id).unwrap();
    assert_eq!(hostd_exec::vm::api::state(&socket).unwrap(), vmm_spec::api::State::Running);
    let pid = node.pid(&id).unwrap();
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    match may_spare() {
        true => assert_eq!(score.trim(), "-200"),
        false => eprintln!("not looked at: to be spared takes CAP_SYS_RESOURCE"),
    }
    node.vms.stop(&id).unwrap();
    node.vms.clear(&id).unwrap();
    assert!(!socket.parent().unwrap().exists());
}

#[test]
fn a_guest_that_floods_its_console_fills_no_disk_and_waits_for_nobody() {
    let Some(node) = Node::start() else { return };
    std::fs::write(node.path("loud"), "").unwrap();
    // It answers when it has said 24 MB.
    let id = node.machine();
    let log = node.vms.log(&id);
    let size = || {
        let folder = std::fs::read_dir(log.parent().unwrap()).unwrap();
        folder.map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    until("its last words", || {
        std::fs::read_to_string(&log).ok()?.contains("loud no more").then_some(())
    });
    let size = size();
    assert!((1 << 20..9 << 20).contains(&size), "{size} bytes of log");
}

#[test]
fn a_machine_that_never_runs_fails_in_words_and_in_time_beside_others() {
    let Some(node) = Node::start() else { return };
    let (broken, mute) = (parse("7-9-broken").unwrap(), parse("7-9-mute").unwrap());
    node.spoil(&broken, "broken");
    node.spoil(&mute, "mute");
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| node.try_machine(&mute));
        let error = node.try_machine(&broken).unwrap_err().to_string();
        assert!(error.starts_with("the machine did not start: its VMM "), "{error}");
        assert!(error.ends_with(": kernel: not a kernel"), "{error}");
        // Nor does it keep others from being started, looked at and ended.
        let other = node.machine();
        assert!(node.vms.inventory().unwrap().contains(&other));
        node.vms.stop(&other).unwrap();
        assert!(!waiting.is_finished(), "{:?}", begin.elapsed());
        let error = waiting.join().unwrap().unwrap_err().to_string();
        assert_eq!(error, "the machine did not start: its VMM did not answer within 15 s");
    });
    let elapsed = begin.elapsed();
    assert!(elapsed >= START_TIME_MAX && elapsed < START_TIME_MAX * 2, "{elapsed:?}");
    // Nothing runs, and nothing will.
    assert!(node.supervisor.list().unwrap().is_empty());
    assert_eq!(node.vms.inventory().unwrap(), []);
}
