//! A VM with devices is saved over its API and goes on elsewhere, with a guest that has no kernel, on
//! whatever `/dev/kvm` there is: descriptions, files, bus and lifecycle in one go.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_machine::snapshot::Snapshot;
use vmm_machine::vm::{self, VmError};
use vmm_spec::restore::{OwnFlags, RestoreClock, RestoreMemory, RestoreSpec};
use vmm_spec::{DiskSpec, Exit, FsSpec, OutputSpec, VerifiedSpec, VmSpec, VsockSpec};

/// Longer than anything takes, on a busy host with an emulated KVM.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts in memory, and says each number on the serial port.
const COUNTER: &[u8] = &[
    0xfe, 0x04, 0x25, 0, 0, 0x30, 0, // inc byte [0x300000]
    0x8a, 0x04, 0x25, 0, 0, 0x30, 0, // mov al, [0x300000]
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xb9, 0, 0x10, 0, 0, // mov ecx, 0x1000
    0xff, 0xc9, // dec ecx
    0x75, 0xfc, // jnz -4
    0xeb, 0xe2, // jmp to the beginning
];

/// An ELF file of one segment at 2 MiB, entered at its start.
fn kernel(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(0x1000, 0);
    let size = code.len() as u64;
    let fields: [(usize, &[u8]); 10] = [
        (18, &62_u16.to_le_bytes()),
        (24, &0x20_0000_u64.to_le_bytes()),
        (32, &64_u64.to_le_bytes()),
        (54, &56_u16.to_le_bytes()),
        (56, &1_u16.to_le_bytes()),
        (64, &[1, 0, 0, 0, 5, 0, 0, 0]),
        (72, &0x1000_u64.to_le_bytes()),
        (88, &0x20_0000_u64.to_le_bytes()),
        (96, &size.to_le_bytes()),
        (104, &size.to_le_bytes()),
    ];
    for (at, bytes) in fields {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file.extend(code);
    file
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::write(folder.path("kernel"), kernel(COUNTER)).unwrap();
        for disk in ["disk", "clone"] {
            File::create(folder.path(disk)).unwrap().set_len(1 << 20).unwrap();
        }
        fs::create_dir(folder.path("shared")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A VM with a device of each kind that this machine needs no right for.
    fn spec(&self) -> VmSpec {
        VmSpec {
            kernel: Some(self.path("kernel")),
            memory: vmm_spec::MemorySpec {
                size: vmm_spec::Size::from_mib(16),
                ..Default::default()
            },
            disks: vec![DiskSpec::parse("", &self.text("disk")).unwrap()],
            fs: vec![FsSpec::parse("", &format!("tag=d,dir={}", self.text("shared"))).unwrap()],
            vsock: Some(VsockSpec { cid: 3, socket: self.path("v") }),
            rng: true,
            balloon: Some(vmm_spec::BalloonSpec::default()),
            console: OutputSpec::File { path: self.path("console") },
            serial: OutputSpec::File { path: self.path("serial") },
            api_socket: Some(self.path("api")),
            jail: vmm_spec::JailSpec { enabled: false, ..Default::default() },
            ..VmSpec::default()
        }
    }

    /// What a clone called `name` has of its own.
    fn restore(&self, name: &str, memory: RestoreMemory) -> RestoreSpec {
        let file = |kind: &str| Some(format!("file={}", self.text(&format!("{kind}-{name}"))));
        RestoreSpec {
            snapshot: self.path("snapshot"),
            memory,
            clock: RestoreClock::Advance,
            verify: true,
            paused: false,
            own: OwnFlags {
                disk: vec![format!("id=disk0,path={}", self.text("clone"))],
                vsock: Some(format!("socket={}", self.text(&format!("v-{name}")))),
                console: file("console"),
                serial: file("serial"),
                api_socket: Some(self.path(&format!("api-{name}"))),
                no_jail: true,
                ..OwnFlags::default()
            },
        }
    }
}

/// A VM on a thread of its own.
struct Running {
    thread: JoinHandle<Result<Exit, VmError>>,
    api: PathBuf,
}

impl Running {
    fn start(spec: VerifiedSpec, api: PathBuf) -> Self {
        Self { thread: std::thread::spawn(move || vm::run(&spec)), api }
    }

    fn restore(spec: VerifiedSpec, restore: RestoreSpec, snapshot: Snapshot, api: PathBuf) -> Self {
        Self { thread: std::thread::spawn(move || vm::restore(&spec, &restore, snapshot)), api }
    }

    /// Asks its API, and returns the status and all that was said.
    fn ask(&self, request: &str, body: &str) -> (u16, String) {
        ask(&self.api, request, body)
    }

    fn end(self) -> Exit {
        assert_eq!(self.ask("PUT /vm/stop", "").0, 202);
        self.thread.join().unwrap().unwrap()
    }
}

fn ask(api: &Path, request: &str, body: &str) -> (u16, String) {
    let begin = Instant::now();
    // Its thread may not be that far yet.
    let mut stream = loop {
        match UnixStream::connect(api) {
            Ok(stream) => break stream,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{}: {error}", api.display()),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (size, host) = (body.len(), "Host: vm\r\nConnection: close\r\n");
    let kind = "Content-Type: application/json\r\n";
    let head = format!("{request} HTTP/1.1\r\n{host}{kind}Content-Length: {size}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    (status, answer)
}

/// What was said on a serial port, once there is so much of it.
fn said(path: &Path, size: usize) -> Vec<u8> {
    let started = Instant::now();
    loop {
        let bytes = fs::read(path).unwrap_or_default();
        if bytes.len() >= size {
            return bytes;
        }
        assert!(started.elapsed() < PATIENCE, "{}: {bytes:?}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn has_kvm() -> bool {
    let opened = vmm_machine::kvm::open();
    if let Err(error) = &opened {
        eprintln!("skipped: {error} ({})", error.hint());
    }
    opened.is_ok()
}

#[test]
fn a_vm_is_saved_and_goes_on_as_often_as_one_likes() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let spec = folder.spec().verify().unwrap();
    let running = Running::start(spec, folder.path("api"));
    said(&folder.path("serial"), 10);
    let request = format!("{{\"path\": {:?}}}", folder.text("snapshot"));
    let (status, answer) = running.ask("PUT /snapshot", &request);
    assert_eq!(status, 204, "{answer}");
    let (status, answer) = running.ask("PUT /snapshot", &request);
    assert!(status == 409 && answer.contains("it is there already"), "{answer}");
    assert!(running.ask("GET /vm", "").1.contains("\"running\""), "it goes on");
    fs::remove_dir_all(folder.path("snapshot")).unwrap();
    // Stopped, so that what it said last is what the guest in the snapshot said last.
    let request = request.replace('}', ", \"then\": \"stop\"}");
    assert_eq!(running.ask("PUT /snapshot", &request).0, 204);
    assert_eq!(running.thread.join().unwrap().unwrap(), Exit::Off);
    let last = *fs::read(folder.path("serial")).unwrap().last().unwrap();
    for memory in [RestoreMemory::Lazy, RestoreMemory::Copy] {
        let name = format!("{memory:?}");
        let restore = folder.restore(&name, memory);
        let snapshot = Snapshot::open(&restore.snapshot).unwrap();
        snapshot.verify().unwrap();
        let spec = restore.apply(snapshot.spec().clone()).unwrap();
        let api = folder.path(&format!("api-{name}"));
        let running = Running::restore(spec, restore, snapshot, api);
        let next = said(&folder.path(&format!("serial-{name}")), 20);
        let expected: Vec<u8> = (1..=20).map(|i| last.wrapping_add(i)).collect();
        assert_eq!(next[..20], expected, "{name}");
        assert!(running.ask("GET /vm", "").1.contains(&folder.text("clone")));
        // A clone can be saved like any other.
        let request = format!("{{\"path\": {:?}}}", folder.text(&format!("again-{name}")));
        assert_eq!(running.ask("PUT /snapshot", &request).0, 204);
        Snapshot::open(&folder.path(&format!("again-{name}"))).unwrap().verify().unwrap();
        assert_eq!(running.end(), Exit::Off);
    }
}

#[test]
fn a_clone_waits_to_be_resumed() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let spec = folder.spec().verify().unwrap();
    let running = Running::start(spec, folder.path("api"));
    said(&folder.path("serial"), 3);
    let request = format!("{{\"path\": {:?}, \"then\": \"pause\"}}", folder.text("snapshot"));
    assert_eq!(running.ask("PUT /snapshot", &request).0, 204);
    assert!(running.ask("GET /vm", "").1.contains("\"paused\""));
    let size = fs::read(folder.path("serial")).unwrap().len();
    let restore = RestoreSpec { paused: true, ..folder.restore("b", RestoreMemory::Lazy) };
    let snapshot = Snapshot::open(&restore.snapshot).unwrap();
    let clone = restore.apply(snapshot.spec().clone()).unwrap();
    let clone = Running::restore(clone, restore, snapshot, folder.path("api-b"));
    assert!(clone.ask("GET /vm", "").1.contains("\"paused\""));
    // It can be saved before it ever ran, too.
    let again = format!("{{\"path\": {:?}}}", folder.text("again"));
    assert_eq!(clone.ask("PUT /snapshot", &again).0, 204);
    assert_eq!(fs::read(folder.path("serial-b")).unwrap_or_default(), b"");
    assert_eq!(clone.ask("PUT /vm/resume", "").0, 204);
    said(&folder.path("serial-b"), 3);
    assert_eq!(clone.end(), Exit::Off);
    assert_eq!(fs::read(folder.path("serial")).unwrap().len(), size, "the first still stands");
    assert_eq!(running.ask("PUT /vm/resume", "").0, 204);
    said(&folder.path("serial"), size + 3);
    assert_eq!(running.end(), Exit::Off);
}

/// Whatever goes wrong, the VM goes on, and nothing is left that looks like a snapshot.
#[test]
fn a_snapshot_that_fails_changes_nothing() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let spec = folder.spec().verify().unwrap();
    let running = Running::start(spec, folder.path("api"));
    said(&folder.path("serial"), 3);
    for then in ["continue", "pause", "stop"] {
        let body = format!("{{\"path\": \"/nonexistent/a\", \"then\": \"{then}\"}}");
        let (status, answer) = running.ask("PUT /snapshot", &body);
        assert!(status == 500 && answer.contains("No such file or directory"), "{answer}");
        assert!(running.ask("GET /vm", "").1.contains("\"running\""));
    }
    let size = fs::read(folder.path("serial")).unwrap().len();
    said(&folder.path("serial"), size + 3);
    assert_eq!(running.end(), Exit::Off);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let spec = folder.spec().verify().unwrap();
    let running = Running::start(spec, folder.path("api"));
    said(&folder.path("serial"), 3);
    let body = format!("{{\"path\": {:?}, \"then\": \"stop\"}}", folder.text("snapshot"));
    assert_eq!(running.ask("PUT /snapshot", &body).0, 204);
    running.thread.join().unwrap().unwrap();
    let error = || {
        let restore = folder.restore("x", RestoreMemory::Lazy);
        let snapshot = Snapshot::open(&restore.snapshot).unwrap();
        let spec = restore.apply(snapshot.spec().clone()).unwrap();
        let error = vm::restore(&spec, &restore, snapshot).err().unwrap();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    };
    File::options().write(true).open(folder.path("clone")).unwrap().set_len(1 << 19).unwrap();
    let small = error();
    assert!(
        small.contains("disk.disk0: the disk has 524288 bytes, where the guest knows"),
        "{small}"
    );
    File::options().write(true).open(folder.path("clone")).unwrap().set_len(1 << 21).unwrap();
    fs::rename(folder.path("kernel"), folder.path("kernel-moved")).unwrap();
    assert!(error().contains("kernel"), "{}", error());
    fs::rename(folder.path("kernel-moved"), folder.path("kernel")).unwrap();
    // Every bit of the state counts, and every byte of its length and the memory's.
    for name in ["state", "memory"] {
        let path = folder.path("snapshot").join(name);
        let whole = fs::metadata(&path).unwrap().len();
        let file = File::options().write(true).open(&path).unwrap();
        for size in [0, 20, whole - 1, whole + 1] {
            let kept = folder.path("kept");
            fs::copy(&path, &kept).unwrap();
            file.set_len(size).unwrap();
            let refused = Snapshot::open(&folder.path("snapshot")).unwrap_err().to_string();
            assert!(refused.contains(&format!("snapshot/{name}: ")), "{refused}");
            fs::copy(&kept, &path).unwrap();
        }
    }
    Snapshot::open(&folder.path("snapshot")).unwrap();
}
