//! The commands that control a VM, against the real server and a machine that isn't there.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{run, said, vmm};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, LocalModes, OutputModes, tcgetattr};
use vmm_machine::api::{
    Attach, Control, ControlError, Kind, Listener, Metrics, Server, Stopper, Value,
};
use vmm_spec::api::{BalloonInfo, SnapshotThen, State, VmInfo, Wall};
use vmm_spec::{Disk, DiskSpec, Net, NetSpec, Size, Verified, VmSpec};

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);

/// Remembers what it was asked.
#[derive(Default)]
struct Fake(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    calls: Vec<String>,
    disks: Vec<DiskSpec>,
    nets: Vec<NetSpec>,
    refuse: bool,
}

impl Fake {
    fn call(&self, what: impl Into<String>) -> Result<(), ControlError> {
        let mut inner = self.0.lock().unwrap();
        inner.calls.push(what.into());
        if inner.refuse {
            let error = "the VM is paused\x1b[2J".to_owned();
            return Err(ControlError::Conflict { error, hint: Some("`vmm resume` first") });
        }
        Ok(())
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }
}

impl Control for Fake {
    fn info(&self) -> VmInfo {
        let inner = self.0.lock().unwrap();
        VmInfo {
            vmm_version: "0.1.0".to_owned(),
            pid: 42,
            state: State::Running,
            uptime_ms: 3_723_000,
            reboots: 1,
            exits: 1000,
            console_pty: Some("/dev/pts/9".into()),
            serial_pty: None,
            walls: [("seccomp", true, "filters"), ("landlock", false, "the kernel has none")]
                .map(|(name, stands, detail)| Wall {
                    name: name.to_owned(),
                    stands,
                    detail: detail.to_owned(),
                })
                .into(),
            spec: VmSpec {
                kernel: Some("/boot/vmlinux".into()),
                console: vmm_spec::OutputSpec::Pty,
                disks: inner.disks.clone(),
                nets: inner.nets.clone(),
                ..VmSpec::default()
            },
        }
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.call("pause")
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.call("resume")
    }

    fn shutdown(&self) -> Result<(), ControlError> {
        self.call("shutdown")
    }

    fn reboot(&self) -> Result<(), ControlError> {
        self.call("reboot")
    }

    fn stop(&self) -> Result<(), ControlError> {
        self.call("stop")
    }

    fn balloon(&self) -> Result<BalloonInfo, ControlError> {
        Ok(BalloonInfo { target_mib: 64, actual_mib: 32 })
    }

    fn set_balloon(&self, target_mib: u64) -> Result<(), ControlError> {
        self.call(format!("balloon {target_mib}"))
    }

    fn add_disk(&self, disk: Verified<Disk>, file: Option<OwnedFd>) -> Result<(), ControlError> {
        let mut contents = String::new();
        File::from(file.unwrap()).read_to_string(&mut contents).unwrap();
        self.call(format!("add {} {contents}", disk.id))?;
        self.0.lock().unwrap().disks.push(disk.spec.clone());
        Ok(())
    }

    fn resize_disk(&self, id: &str, size: Option<Size>) -> Result<(), ControlError> {
        self.call(format!("resize {id} {size:?}"))
    }

    fn remove_disk(&self, id: &str) -> Result<(), ControlError> {
        self.call(format!("remove {id}"))?;
        self.0.lock().unwrap().disks.clear();
        Ok(())
    }

    fn add_net(&self, net: Verified<Net>, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.call(format!("add {} with {}", net.id, descriptors.len()))
    }

    fn remove_net(&self, id: &str) -> Result<(), ControlError> {
        self.call(format!("remove {id}"))
    }

    fn snapshot(
        &self,
        path: &Path,
        then: SnapshotThen,
        files: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<(), ControlError> {
        let name = path.file_name().unwrap().to_string_lossy();
        self.call(format!("snapshot {name}, then {then:?}"))?;
        let (state, memory) = files.unwrap();
        File::from(state).write_all(b"state").unwrap();
        File::from(memory).write_all(b"memory").unwrap();
        Ok(())
    }

    fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.single("vmm_exits_total", "Exits.", Kind::Counter, Value::Integer(1000));
        metrics
    }

    /// Echoes what comes, in capitals, up to `!`.
    fn attach_console(&self) -> Result<Attach, ControlError> {
        self.call("attach")?;
        Ok(Box::new(|mut stream| {
            std::thread::spawn(move || {
                stream.set_nonblocking(false).unwrap();
                let mut byte = [0];
                while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'!' {
                    stream.write_all(&byte.map(|byte| byte.to_ascii_uppercase())).unwrap();
                }
            });
        }))
    }
}

struct Running {
    machine: Arc<Fake>,
    folder: tempfile::TempDir,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = Arc::new(Fake::default());
        let listener = Listener::bind(&folder.path().join("a.sock")).unwrap();
        let (server, stopper) = Server::new(listener, machine.clone()).unwrap();
        let thread = std::thread::spawn(move || server.run().unwrap());
        Self { machine, folder, stopper, thread: Some(thread) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `vmm` with `SOCKET` replaced; standard output, if it went well.
    fn vmm(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.try_vmm(arguments);
        assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}");
        out
    }

    fn try_vmm(&self, arguments: &[&str]) -> (i32, String, String) {
        let socket = self.path("a.sock").display().to_string();
        let replaced = |argument: &&str| {
            if *argument == "SOCKET" { socket.clone() } else { (*argument).to_owned() }
        };
        let arguments: Vec<String> = arguments.iter().map(replaced).collect();
        run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn simple_commands_reach_the_machine() {
    let running = Running::new();
    for command in ["pause", "resume", "shutdown", "reboot", "stop"] {
        assert_eq!(running.vmm(&[command, "SOCKET"]), "");
    }
    running.vmm(&["balloon", "SOCKET", "512M"]);
    running.vmm(&["disk", "resize", "SOCKET", "disk0"]);
    running.vmm(&["disk", "resize", "SOCKET", "disk0", "2G"]);
    running.vmm(&["net", "remove", "SOCKET", "net0"]);
    assert_eq!(running.vmm(&["net", "add", "SOCKET", "tap1,fd=0"]), "net0\n");
    let expected = [
        "pause",
        "resume",
        "shutdown",
        "reboot",
        "stop",
        "balloon 512",
        "resize disk0 None",
        "resize disk0 Some(Size(2147483648))",
        "remove net0",
        "add net0 with 1",
    ];
    assert_eq!(running.machine.calls(), expected);
    assert_eq!(running.vmm(&["balloon", "SOCKET"]), "asked for 64M, given 32M\n");
    assert!(running.vmm(&["metrics", "SOCKET"]).ends_with("\nvmm_exits_total 1000\n"));
}

#[test]
fn status_shows_devices_as_their_options() {
    let running = Running::new();
    std::fs::write(running.path("d.img"), "x").unwrap();
    running.vmm(&["disk", "add", "SOCKET", &running.path("d.img").display().to_string()]);
    let status = running.vmm(&["status", "SOCKET"]);
    let disk = running.path("d.img").display().to_string();
    let expected = format!(
        "state     running\nprocess   42 (vmm 0.1.0)\nuptime    1h 2m, 1 reboots, 1000 exits\n\
         cpus      1\nmemory    256M\nkernel    /boot/vmlinux\ndisk      id=disk0,path={disk}\n\
         jail      seccomp\nno wall   landlock: the kernel has none\nconsole   pty /dev/pts/9\n"
    );
    assert_eq!(status, expected);
    let json: VmInfo = serde_json::from_str(&running.vmm(&["status", "SOCKET", "--json"])).unwrap();
    assert_eq!(json.pid, 42);
}

#[test]
fn disks_are_opened_here_and_handed_over() {
    let running = Running::new();
    std::fs::write(running.path("d.img"), "contents").unwrap();
    let disk = format!("{},readonly,id=data", running.path("d.img").display());
    assert_eq!(running.vmm(&["disk", "add", "SOCKET", &disk]), "data\n");
    running.vmm(&["disk", "remove", "SOCKET", "data"]);
    assert_eq!(running.machine.calls(), ["add data contents", "remove data"]);
    let (code, _, err) = running.try_vmm(&["disk", "add", "SOCKET", "/nonexistent/d.img"]);
    assert_eq!(code, 3);
    assert!(err.starts_with("vmm: /nonexistent/d.img: No such file"), "{err}");
}

#[test]
fn inherited_descriptors_are_handed_over() {
    let running = Running::new();
    let socket = running.path("a.sock");
    let script = "exec 7</dev/null; exec \"$0\" net add \"$1\" tap1,fd=7";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_vmm")]).arg(&socket);
    let (code, out, err) = said(&shell.output().unwrap());
    assert_eq!((code, out.as_str(), err.as_str()), (0, "net0\n", ""));
    assert_eq!(running.machine.calls(), ["add net0 with 1"]);
}

#[test]
fn refusals_come_with_their_hint_and_code() {
    let running = Running::new();
    running.machine.0.lock().unwrap().refuse = true;
    let (code, out, err) = running.try_vmm(&["reboot", "SOCKET"]);
    assert_eq!((code, out.as_str()), (4, ""));
    assert_eq!(err, "vmm: the VM is paused\u{fffd}[2J\nhint: `vmm resume` first\n");
    let (code, _, _) = running.try_vmm(&["console", "SOCKET"]);
    assert_eq!(code, 4);
}

#[test]
fn a_snapshot_is_there_whole_or_not_at_all() {
    let running = Running::new();
    let directory = running.path("snapshot");
    let name = directory.display().to_string();
    running.machine.0.lock().unwrap().refuse = true;
    assert_eq!(running.try_vmm(&["snapshot", "SOCKET", &name]).0, 4);
    assert_eq!(std::fs::read_dir(running.folder.path()).unwrap().count(), 1);
    running.machine.0.lock().unwrap().refuse = false;
    running.vmm(&["snapshot", "SOCKET", &name]);
    assert_eq!(std::fs::read_to_string(directory.join("state")).unwrap(), "state");
    assert_eq!(std::fs::read_to_string(directory.join("memory")).unwrap(), "memory");
    let (code, _, err) = running.try_vmm(&["snapshot", "SOCKET", &name]);
    assert_eq!(code, 1);
    assert!(err.contains("it is there already"), "{err}");
}

/// A VM ends when the directory has its name, and not before: until then it could go on.
#[test]
fn a_vm_that_ends_with_its_snapshot_ends_when_that_is_safe() {
    let running = Running::new();
    let name = running.path("snapshot").display().to_string();
    running.machine.0.lock().unwrap().refuse = true;
    assert_eq!(running.try_vmm(&["snapshot", "SOCKET", &name, "--then", "stop"]).0, 4);
    running.machine.0.lock().unwrap().refuse = false;
    running.machine.calls();
    running.vmm(&["snapshot", "SOCKET", &name, "--then", "stop"]);
    assert_eq!(running.machine.calls(), ["snapshot snapshot, then Pause", "stop"]);
}

#[test]
fn a_pipe_is_a_console() {
    let running = Running::new();
    let socket = running.path("a.sock").display().to_string();
    let mut command = vmm(&["console", &socket]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\x1dd!").unwrap();
    let (code, out, err) = said(&child.wait_with_output().unwrap());
    assert_eq!((code, out.as_str(), err.as_str()), (0, "HELLO\x1dD", ""));
}

/// A terminal of our own, whose other end is the program's.
fn terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let noctty = i32::try_from(OFlags::NOCTTY.bits()).unwrap();
    let slave = File::options().read(true).write(true).custom_flags(noctty).open(name).unwrap();
    (master.into(), slave)
}

fn modes(terminal: &File) -> (InputModes, OutputModes, LocalModes) {
    let modes = tcgetattr(terminal).unwrap();
    (modes.input_modes, modes.output_modes, modes.local_modes)
}

#[test]
fn a_terminal_is_raw_while_attached_and_as_before_afterwards() {
    let running = Running::new();
    let socket = running.path("a.sock").display().to_string();
    for by_signal in [false, true] {
        let (mut master, slave) = terminal();
        let before = modes(&slave);
        assert!(before.2.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        let mut command = vmm(&["console", &socket]);
        command.stdin(slave.try_clone().unwrap());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        while modes(&slave).2.intersects(LocalModes::ICANON | LocalModes::ISIG) {
            assert!(begin.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        }
        // Ctrl-C is the guest's.
        master.write_all(b"hi\x03").unwrap();
        let mut echo = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"HI\x03");
        if by_signal {
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        } else {
            master.write_all(b"\x1dd").unwrap();
        }
        assert!(child.wait().unwrap().success());
        assert_eq!(modes(&slave), before, "by signal: {by_signal}");
    }
}

#[test]
fn a_directory_of_sockets_is_a_list_of_vms() {
    let running = Running::new();
    let folder = running.folder.path().display().to_string();
    // One that is dead, one that hangs, one that is no VM, and a file.
    drop(UnixListener::bind(running.path("dead.sock")).unwrap());
    let _hangs = UnixListener::bind(running.path("hangs.sock")).unwrap();
    let other = UnixListener::bind(running.path("other.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in other.incoming() {
            let _ = stream.unwrap().write_all(b"SSH-2.0\r\n\r\n");
        }
    });
    std::fs::write(running.path("file"), "").unwrap();
    let (code, out, err) = run(&["ps", &folder]);
    let expected = "\
        NAME   STATE    PID  CPUS  MEMORY  DEVICES  UPTIME\n\
        a      running  42   1     256M    -        1h 2m\n\
        hangs  silent   -    -     -       -        -\n";
    assert_eq!((code, out.as_str()), (0, expected));
    assert_eq!(err, format!("vmm: {folder}/dead.sock: no VM of ours listens there\n"));
    let (_, out, _) = run(&["ps", &folder, "--json"]);
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[0]["vm"]["state"], "running");
    assert!(list[1]["vm"].is_null());
    let (code, _, err) = run(&["status", &format!("{folder}/dead.sock")]);
    assert_eq!(code, 3);
    assert!(err.contains("nobody listens there") && err.contains("hint:"), "{err}");
    assert_eq!(run(&["ps", "/nonexistent"]).0, 3);
}
