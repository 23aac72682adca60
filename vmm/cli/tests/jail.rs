//! A VM in its jail, as the host sees it, and as its clients use it.
//!
//! The guest is a few instructions, on whatever `/dev/kvm` there is.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{run, vmm};

const PATIENCE: Duration = Duration::from_secs(60);

/// `hlt; jmp -3`, with interrupts off: nothing happens until it is stopped.
const IDLE: &[u8] = &[0xf4, 0xeb, 0xfd];

/// A VM that runs, and its folder.
struct Vm {
    process: Child,
    folder: tempfile::TempDir,
}

impl Vm {
    /// With one of each device that needs no other program, unless there is no KVM.
    fn start(options: &[&str]) -> Option<Self> {
        let (code, out, _) = run(&["check"]);
        if code != 0 {
            println!("skipped: {}", out.lines().next().unwrap_or_default());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("kernel"), kernel(IDLE)).unwrap();
        for disk in ["disk", "more"] {
            fs::File::create(path(disk)).unwrap().set_len(1 << 20).unwrap();
        }
        fs::create_dir(path("share")).unwrap();
        let words = [
            "run",
            "--kernel",
            &path("kernel"),
            "--memory",
            "32M",
            "--cpus",
            "2",
            "--disk",
            &path("disk"),
            "--fs",
            &format!("tag=share,dir={}", path("share")),
            "--vsock",
            &format!("cid=3,socket={}", path("vsock")),
            "--rng",
            "--balloon",
            "--console",
            &format!("file={}", path("console")),
            "--api-socket",
            &path("api"),
        ]
        .map(str::to_owned);
        let words: Vec<&str> =
            words.iter().map(String::as_str).chain(options.iter().copied()).collect();
        let process = vmm(&words).stderr(Stdio::piped()).spawn().unwrap();
        let mut vm = Self { process, folder };
        let start = Instant::now();
        while !vm.path("api").exists() || vm.ask(&["status"]).0 != 0 {
            if let Some(status) = vm.process.try_wait().unwrap() {
                panic!("{status}: {}", vm.errors());
            }
            assert!(start.elapsed() < PATIENCE, "the VM does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(vm)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command on its socket, which comes after the words up to the first that begins with `:`.
    fn ask(&self, words: &[&str]) -> (i32, String, String) {
        let socket = self.path("api").to_str().unwrap().to_owned();
        let at = words.iter().position(|word| word.starts_with(':')).unwrap_or(words.len());
        let (before, after) = words.split_at(at);
        let after = after.iter().map(|word| word.trim_start_matches(':'));
        let all: Vec<&str> = before.iter().copied().chain([socket.as_str()]).chain(after).collect();
        run(&all)
    }

    fn get(&self, words: &[&str]) -> String {
        let (code, out, err) = self.ask(words);
        assert_eq!((code, err.as_str()), (0, ""), "{words:?}");
        out
    }

    fn info(&self) -> serde_json::Value {
        serde_json::from_str(&self.get(&["status", ":--json"])).unwrap()
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(errors) = &mut self.process.stderr {
            errors.read_to_string(&mut text).unwrap();
        }
        text
    }

    /// Stops it, and returns what it said.
    fn stop(mut self) -> String {
        self.get(&["stop"]);
        let code = self.process.wait().unwrap().code();
        let errors = self.errors();
        assert_eq!(code, Some(0), "{errors}");
        for socket in ["api", "vsock"] {
            assert!(!self.path(socket).exists(), "{socket} stayed");
        }
        errors
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The fields of a `status` file in `/proc`.
fn status(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path.join("status")).unwrap();
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(field).collect()
}

#[test]
fn every_thread_is_behind_its_walls_and_clients_see_no_difference() {
    let Some(vm) = Vm::start(&[]) else { return };
    let info = vm.info();
    let process = Path::new("/proc").join(info["pid"].to_string());
    let mut names = Vec::new();
    for task in fs::read_dir(process.join("task")).unwrap() {
        let status = status(&task.unwrap().path());
        let name = status["Name"].clone();
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        assert_eq!(status["CapBnd"].trim_start_matches('0'), "", "{name}");
        // Threads of the kernel's own are copies of the one that started the vCPU's.
        if name.starts_with("kvm-") {
            continue;
        }
        assert_eq!(status["Seccomp"], "2", "{name}");
        if name != "fs.share" {
            assert_eq!(status["CapEff"].trim_start_matches('0'), "", "{name}");
            assert_eq!(status["CapPrm"].trim_start_matches('0'), "", "{name}");
        }
        assert!(!status["Uid"].split_whitespace().any(|id| id == "0"), "{name}: {}", status["Uid"]);
        names.push(name);
    }
    names.sort();
    let expected =
        ["api", "devices", "disk.disk0", "fs.share", "hotplug", "signals", "vcpu0", "vcpu1"];
    assert!(expected.iter().all(|name| names.iter().any(|found| found == name)), "{names:?}");
    for wall in info["walls"].as_array().unwrap() {
        let name = wall["name"].as_str().unwrap();
        let namespace = match name.strip_suffix(" namespace") {
            Some("mount") => "mnt",
            Some("process") => "pid",
            Some("network") => "net",
            Some(same) => same,
            None => continue,
        };
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).unwrap();
        let differs = of(&process) != of(Path::new("/proc/self"));
        assert_eq!(differs, wall["stands"].as_bool().unwrap(), "{name}");
    }
    let text = vm.get(&["status"]);
    assert!(text.contains("seccomp"), "{text}");
    vm.get(&["pause"]);
    assert_eq!(vm.info()["state"], "paused");
    vm.get(&["resume"]);
    vm.get(&["balloon", ":8M"]);
    assert!(vm.get(&["metrics"]).contains("vmm_uptime_seconds"));
    assert_eq!(vm.get(&["disk", "add", &format!(":{}", vm.path("more").display())]), "disk1\n");
    vm.get(&["disk", "resize", ":disk1", "2M"]);
    assert_eq!(vm.path("more").metadata().unwrap().len(), 2 << 20);
    let _ = UnixStream::connect(vm.path("vsock")).unwrap();
    let said = vm.stop();
    assert!(!said.contains("forbidden"), "{said}");
}

#[test]
fn what_is_not_handed_over_cannot_be_opened() {
    let Some(vm) = Vm::start(&[]) else { return };
    let body = format!("{{\"path\": \"{}\"}}", vm.path("more").display());
    let mut stream = UnixStream::connect(vm.path("api")).unwrap();
    let size = body.len();
    write!(stream, "POST /disks HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n{body}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    assert!(answer.contains("the VM is in a jail") && answer.contains("vmm disk add"), "{answer}");
    vm.stop();
}

#[test]
fn without_a_jail_there_is_a_warning() {
    let Some(vm) = Vm::start(&["--no-jail"]) else { return };
    assert!(vm.get(&["status"]).contains("jail      none"));
    assert!(vm.info().get("walls").is_none());
    let said = vm.stop();
    assert!(said.contains("no jail: a guest that breaks out"), "{said}");
}

/// An ELF file of one segment, entered at its start in 64-bit mode.
fn kernel(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x20_0000;
    const OFFSET: u64 = 0x1000;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(0x1000, 0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let size = code.len() as u64;
    for (at, number) in [(18, 62_u16), (54, 56), (56, 1)] {
        put(at, &number.to_le_bytes());
    }
    for (at, number) in [(64, 1_u32), (68, 5)] {
        put(at, &number.to_le_bytes());
    }
    let fields =
        [(24, ADDRESS), (32, 64), (72, OFFSET), (88, ADDRESS), (96, size), (104, size + 0x2000)];
    for (at, number) in fields {
        put(at, &number.to_le_bytes());
    }
    file.extend(code);
    file
}
