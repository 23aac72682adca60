//! Real mounts through `/dev/fuse`, looked at as any program would. Needs root and `/dev/fuse`; says
//! so and passes where they are missing.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

/// A mount that takes longer than this, in all, is killed; whoever reads from it gets an error.
const MOUNT_TIME_MAX: Duration = Duration::from_secs(120);
/// How long a mount may take to be there, or to be gone.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// `flist mount` in a process of its own, with a directory for mount point, cache and log.
struct Mounted {
    child: Child,
    directory: tempfile::TempDir,
    /// Dropped to tell the watchdog that all went well.
    _watchdog: Sender<()>,
}

impl Mounted {
    fn new(image: &Path, stores: &[String]) -> Self {
        Self::with(image, stores, &[])
    }

    /// With further arguments; these replace the cache in a directory of its own.
    fn with(image: &Path, stores: &[String], arguments: &[&OsStr]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mount_point = directory.path().join("mount");
        fs::create_dir(&mount_point).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flist"));
        command.arg("mount").arg(image).arg(&mount_point);
        if arguments.is_empty() {
            command.arg("--cache").arg(directory.path().join("cache"));
        }
        command.args(arguments);
        command.args(stores.iter().flat_map(|store| ["--store", store]));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let watchdog = watch(pid(&child));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mounted = Self { child, directory, _watchdog: watchdog };
        assert!(line.starts_with("mounted "), "{line:?}, log: {}", mounted.log());
        mounted
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let path = self.path();
        mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
    }

    fn terminate(&self) {
        kill_process(pid(&self.child), Signal::TERM).unwrap();
    }

    /// Waits for the process to end by itself, with success, and for the mount to be gone.
    fn assert_ends(&mut self) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < WAIT_MAX, "still running, log: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}, log: {}", self.log());
        assert!(!self.is_mounted());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.is_mounted() {
            let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

/// Kills the process if the returned end is not dropped in time.
fn watch(pid: Pid) -> Sender<()> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        if receiver.recv_timeout(MOUNT_TIME_MAX) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    sender
}

fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root()
        && File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/vectors/flist").canonicalize().unwrap()
}

fn store(range: &str, path: &Path) -> String {
    format!("{range}dir://{}", path.display())
}

/// What the vectors' manifests say of an entry, read from a file system.
fn describe(path: &Path) -> serde_json::Map<String, serde_json::Value> {
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    let mut entry = serde_json::Map::new();
    entry.insert("mode".into(), format!("{:06o}", metadata.mode()).into());
    entry.insert("uid".into(), metadata.uid().into());
    entry.insert("gid".into(), metadata.gid().into());
    entry.insert("mtime".into(), metadata.mtime().into());
    if kind.is_file() {
        let digest = Sha256::digest(fs::read(path).unwrap());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        entry.insert("size".into(), metadata.len().into());
        entry.insert("sha256".into(), hex.into());
    }
    if kind.is_symlink() {
        let target = fs::read_link(path).unwrap();
        entry.insert("target".into(), target.to_str().unwrap().into());
    }
    if kind.is_char_device() || kind.is_block_device() {
        let rdev = metadata.rdev();
        entry.insert("rdev".into(), vec![rustix::fs::major(rdev), rustix::fs::minor(rdev)].into());
    }
    entry
}

/// Every path below `root`, `/` for the root itself.
fn walk(root: &Path) -> Vec<String> {
    let mut paths = vec![];
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let below = path.strip_prefix(root).unwrap();
        paths.push(format!("/{}", below.to_str().unwrap()));
    }
    paths
}

/// Differences between a tree and a manifest. Legacy images keep only permission bits of the mode,
/// and mtime modulo 2^32.
fn differences(root: &Path, manifest: &Path, is_legacy: bool) -> Vec<String> {
    let manifest: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    let mut wanted: BTreeMap<&str, &serde_json::Value> =
        manifest.iter().map(|entry| (entry["path"].as_str().unwrap(), entry)).collect();
    let mut differences = Vec::new();
    for path in walk(root) {
        let Some(wanted) = wanted.remove(path.as_str()) else {
            differences.push(format!("{path}: not in the manifest"));
            continue;
        };
        for (key, got) in describe(&root.join(&path[1..])) {
            let Some(want) = wanted.get(&key) else { continue };
            let same = match key.as_str() {
                "mode" if is_legacy => {
                    let bits = |mode: &serde_json::Value| {
                        u32::from_str_radix(mode.as_str().unwrap(), 8).unwrap() & 0o7777
                    };
                    bits(&got) == bits(want)
                }
                "mtime" if is_legacy => {
                    let bits = |time: &serde_json::Value| time.as_i64().unwrap() & 0xffff_ffff;
                    bits(&got) == bits(want)
                }
                _ => got == *want,
            };
            if !same {
                differences.push(format!("{path}: {key} is {got}, should be {want}"));
            }
        }
    }
    differences.extend(wanted.keys().map(|path| format!("{path}: missing")));
    differences
}

#[test]
fn the_sample_image_shows_what_was_packed() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let stores = [store("", &vectors.join("sample-store"))];
    let mut mounted = Mounted::new(&vectors.join("sample.fl"), &stores);
    let manifest = vectors.join("sample.manifest.json");
    assert_eq!(differences(&mounted.path(), &manifest, false), [""; 0]);
    // The second walk is answered by the kernel's caches.
    assert_eq!(differences(&mounted.path(), &manifest, false), [""; 0]);
    mounted.terminate();
    mounted.assert_ends();
    assert_eq!(mounted.log(), "");
}

#[test]
fn the_cache_process_serves_a_mount() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_flist"))
        .arg("cached")
        .arg("--socket")
        .arg(&socket)
        .arg("--cache")
        .arg(directory.path().join("cache"))
        .args(["--allow-route", "local"])
        .spawn()
        .unwrap();
    let _watchdog = watch(pid(&daemon));
    let start = Instant::now();
    while !socket.exists() && start.elapsed() < WAIT_MAX {
        thread::sleep(Duration::from_millis(5));
    }
    let stores = [store("", &vectors.join("sample-store"))];
    let arguments = ["--cached".as_ref(), socket.as_os_str()];
    let mounted = Mounted::with(&vectors.join("sample.fl"), &stores, &arguments);
    let manifest = vectors.join("sample.manifest.json");
    let differences = differences(&mounted.path(), &manifest, false);
    drop(mounted);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(differences, [""; 0]);
}

#[test]
fn a_daemon_returns_when_mounted_and_ends_when_unmounted() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let directory = tempfile::tempdir().unwrap();
    let mount_point = directory.path().join("mount");
    let run = || {
        Command::new(env!("CARGO_BIN_EXE_flist"))
            .args(["mount", "--daemon"])
            .arg(vectors.join("sample.fl"))
            .arg(&mount_point)
            .arg("--cache")
            .arg(directory.path().join("cache"))
            .args(["--store", &store("", &vectors.join("sample-store"))])
            .stderr(Stdio::null())
            .status()
            .unwrap()
    };
    assert_eq!(run().code(), Some(3), "no such mount point");
    fs::create_dir(&mount_point).unwrap();
    assert!(run().success());
    let read = fs::read(mount_point.join("small.txt"));
    rustix::mount::unmount(&mount_point, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(!read.unwrap().is_empty());
}

#[test]
fn the_sharded_image_shows_what_was_packed() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let stores = [
        store("00-7f=", &vectors.join("sharded-stores/a")),
        store("80-ff=", &vectors.join("sharded-stores/b")),
    ];
    let mounted = Mounted::new(&vectors.join("sharded.fl"), &stores);
    let manifest = vectors.join("sharded.manifest.json");
    assert_eq!(differences(&mounted.path(), &manifest, false), [""; 0]);
}

#[test]
fn the_legacy_image_shows_what_was_packed_but_the_roots_mtime() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let stores = [store("", &vectors.join("legacy-store"))];
    let mounted = Mounted::new(&vectors.join("legacy.flist"), &stores);
    let manifest = vectors.join("legacy.manifest.json");
    let mut differences = differences(&mounted.path(), &manifest, true);
    differences.retain(|difference| !difference.starts_with("/: mtime"));
    assert_eq!(differences, [""; 0]);
}

#[test]
fn many_readers_at_once_see_the_same() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let stores = [store("", &vectors.join("sample-store"))];
    let mounted = Mounted::new(&vectors.join("sample.fl"), &stores);
    let (root, manifest) = (mounted.path(), vectors.join("sample.manifest.json"));
    let differences: Vec<String> = thread::scope(|scope| {
        let readers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| differences(&root, &manifest, false))).collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    });
    assert_eq!(differences, [""; 0]);
}

#[test]
fn a_store_that_is_away_gives_errors_and_serves_again_when_it_is_back() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let directory = tempfile::tempdir().unwrap();
    let away = directory.path().join("store");
    let mounted = Mounted::new(&vectors.join("sample.fl"), &[store("", &away)]);
    let file = mounted.path().join("small.txt");
    let metadata = fs::metadata(&file).unwrap();
    let error = fs::read(&file).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    let log = mounted.log();
    assert!(log.contains("/small.txt") && log.contains(away.to_str().unwrap()), "{log}");
    std::os::unix::fs::symlink(vectors.join("sample-store"), &away).unwrap();
    assert_eq!(fs::read(&file).unwrap().len() as u64, metadata.len());
}

#[test]
fn unmounting_from_outside_ends_the_process() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let stores = [store("", &vectors.join("sharded-stores/a"))];
    let mut mounted = Mounted::new(&vectors.join("sharded.fl"), &stores);
    assert!(mounted.is_mounted());
    let flags = rustix::mount::UnmountFlags::empty();
    rustix::mount::unmount(mounted.path(), flags).unwrap();
    mounted.assert_ends();
}

#[test]
fn a_mount_in_use_is_detached_at_the_end() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let stores = [store("", &vectors.join("sample-store"))];
    let mut mounted = Mounted::new(&vectors.join("sample.fl"), &stores);
    let file = File::open(mounted.path().join("small.txt")).unwrap();
    file.read_exact_at(&mut [0], 0).unwrap();
    mounted.terminate();
    mounted.assert_ends();
}

#[test]
fn writing_is_refused_and_names_that_are_not_there_stay_away() {
    if !can_mount() {
        return;
    }
    let vectors = vectors();
    let stores = [store("", &vectors.join("sample-store"))];
    let mounted = Mounted::new(&vectors.join("sample.fl"), &stores);
    let read_only = Some(rustix::io::Errno::ROFS.raw_os_error());
    let root = mounted.path();
    assert_eq!(File::create(root.join("new")).unwrap_err().raw_os_error(), read_only);
    let existing = File::options().write(true).open(root.join("small.txt"));
    assert_eq!(existing.unwrap_err().raw_os_error(), read_only);
    assert_eq!(fs::remove_file(root.join("small.txt")).unwrap_err().raw_os_error(), read_only);
    for _ in 0..2 {
        let missing = fs::metadata(root.join("missing")).unwrap_err();
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    }
    let error = fs::read_dir(root.join("small.txt")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotADirectory);
    let statistics = rustix::fs::statvfs(&root).unwrap();
    assert!(statistics.f_files > 300 && statistics.f_ffree == 0 && statistics.f_bfree == 0);
}

#[test]
fn packed_trees_come_back_with_links_times_and_attributes() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (tree, image) = (directory.path().join("tree"), directory.path().join("image.fl"));
    make_tree(&tree);
    let target = store("", &directory.path().join("store"));
    let pack = Command::new(env!("CARGO_BIN_EXE_flist"))
        .arg("pack")
        .arg(&tree)
        .arg("-o")
        .arg(&image)
        .args(["--store", &target])
        .output()
        .unwrap();
    assert!(pack.status.success(), "{}", String::from_utf8_lossy(&pack.stderr));
    let mounted = Mounted::new(&image, &[]);
    let root = mounted.path();
    let (source, copy) = (walk(&tree), walk(&root));
    assert_eq!(source.len(), copy.len());
    for path in source {
        let (a, b) = (tree.join(&path[1..]), root.join(&path[1..]));
        assert_eq!(describe(&a), describe(&b), "{path}");
        let (x, y) = (fs::symlink_metadata(&a).unwrap(), fs::symlink_metadata(&b).unwrap());
        assert_eq!((x.nlink(), x.mtime_nsec()), (y.nlink(), y.mtime_nsec()), "{path}");
        assert_eq!(x.file_type().is_fifo(), y.file_type().is_fifo());
        assert_eq!(xattrs(&a), xattrs(&b), "{path}");
    }
    let ino = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
    assert_eq!(ino("hard"), ino("sub/large"));
    let mut tail = Vec::new();
    File::open(root.join("hard")).unwrap().read_to_end(&mut tail).unwrap();
    assert!(tail == large());
}

/// Three blocks, the last one short, none like another.
fn large() -> Vec<u8> {
    (0..300_000u32).flat_map(u32::to_le_bytes).collect()
}

fn make_tree(tree: &Path) {
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("sub/large"), large()).unwrap();
    fs::write(tree.join("sub/none"), b"").unwrap();
    fs::hard_link(tree.join("sub/large"), tree.join("hard")).unwrap();
    std::os::unix::fs::symlink("sub/large", tree.join("link")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("fifo"), fifo, mode, 0).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(tree.join("sub/large"), name, value, flags).unwrap();
    };
    set("user.mime_type", b"application/octet-stream");
    set("user.empty", b"");
    // cap_net_raw=ep, version 2.
    set("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let time = std::time::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    File::open(tree.join("sub/large")).unwrap().set_modified(time).unwrap();
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 4096];
    let size = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..size].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let name = OsStr::from_bytes(name);
        let size = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        value.truncate(size);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}
