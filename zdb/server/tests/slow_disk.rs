//! The server on a disk whose folders can't be synced for a while: who waits for that, and who doesn't.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod common;

use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Client, Received, bulk, simple};
use zdb_engine::storage::{Disk, File, Open, Space, Storage};
use zdb_engine::{Engine, Options};
use zdb_server::core::{Core, Policy};
use zdb_server::event_loop::{Address, Listener, Server};

/// How long the disk hangs at most: longer than any client here waits.
const HANG_MAX: Duration = Duration::from_secs(120);
/// How long a client listens for a reply that must not come.
const SILENCE: Duration = Duration::from_millis(200);

/// A disk that syncs no folder while it hangs.
#[derive(Debug, Default)]
struct HangingDisk {
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl HangingDisk {
    fn set(&self, hangs: bool) {
        *self.hangs.lock().unwrap() = hangs;
        self.changed.notify_all();
    }
}

impl Storage for HangingDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        Disk.open(path, how)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        Disk.create_folder(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        Disk.list(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        Disk.remove_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let hangs = self.hangs.lock().unwrap();
        drop(self.changed.wait_timeout_while(hangs, HANG_MAX, |hangs| *hangs).unwrap());
        Disk.sync_folder(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        Disk.lock(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        Disk.space(path)
    }

    fn random(&self, buffer: &mut [u8]) -> io::Result<()> {
        Disk.random(buffer)
    }
}

/// A server on such a disk.
struct Running {
    disk: Arc<HangingDisk>,
    port: u16,
    stop: UnixStream,
    thread: JoinHandle<io::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start() -> Self {
        let disk = Arc::new(HangingDisk::default());
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            reserve_size: 0,
            defers: true,
            ..Options::new(folder.path().join("data"), folder.path().join("index"))
        };
        let engine = Engine::open(Arc::<HangingDisk>::clone(&disk), options).unwrap();
        let core = Core::open(engine, Policy::default()).unwrap();
        let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        let port = listener.tcp_address().unwrap().port();
        let (stop, signals) = UnixStream::pair().unwrap();
        let run = move || Server::new(core, vec![listener], None, signals).unwrap().run();
        Self { disk, port, stop, thread: std::thread::spawn(run), _folder: folder }
    }

    fn end(self) {
        drop(self.stop);
        self.thread.join().unwrap().unwrap();
    }
}

#[test]
fn a_segment_that_begins_keeps_nobody_but_its_writers_waiting() {
    let running = Running::start();
    let [mut writer, mut other] = [(); 2].map(|()| Client::connect(running.port));
    assert_eq!(writer.ask(&[b"NSNEW", b"n"]), simple("OK"));
    assert_eq!(writer.ask(&[b"SELECT", b"n"]), simple("OK"));
    assert_eq!(other.ask(&[b"SET", b"begins", b"a segment"]), bulk(b"begins"));
    running.disk.set(true);
    writer.tell(&[b"SET", b"first", b"value"]);
    for count in 0..20_u32 {
        let value = count.to_string();
        assert_eq!(other.ask(&[b"SET", b"key", value.as_bytes()]), bulk(b"key"));
        assert_eq!(other.ask(&[b"GET", b"key"]), bulk(value.as_bytes()));
    }
    let mut reader = Client::connect(running.port);
    assert_eq!(reader.ask(&[b"SELECT", b"n"]), simple("OK"));
    assert_eq!(reader.ask(&[b"GET", b"first"]), bulk(b"value"), "readable at once");
    let patience = writer.stream.read_timeout().unwrap();
    writer.stream.set_read_timeout(Some(SILENCE)).unwrap();
    assert_eq!(writer.receive(), Received::Nothing, "it is not durable");
    writer.stream.set_read_timeout(patience).unwrap();
    running.disk.set(false);
    assert_eq!(writer.receive(), bulk(b"first"));
    running.end();
}

#[test]
fn who_changes_a_namespace_keeps_nobody_else_waiting() {
    let running = Running::start();
    let (disk, port) = (&running.disk, running.port);

    let [mut asker, mut owner, mut other] = [(); 3].map(|()| Client::connect(port));
    assert_eq!(asker.ask(&[b"NSNEW", b"n"]), simple("OK"));
    for (property, value) in [(&b"password"[..], &b"pw"[..]), (b"public", b"0")] {
        assert_eq!(asker.ask(&[b"NSSET", b"n", property, value]), simple("OK"));
    }
    for client in [&mut asker, &mut owner] {
        assert_eq!(client.ask(&[b"SELECT", b"n", b"pw"]), simple("OK"));
    }
    assert_eq!(owner.ask(&[b"SET", b"k", b"v"]), bulk(b"k"));
    assert_eq!(other.ask(&[b"SET", b"begins", b"a segment"]), bulk(b"begins"));
    let patience = owner.stream.read_timeout().unwrap();
    let commands: [&[&[u8]]; 4] =
        [&[b"NSSET", b"n", b"maxsize", b"1000000"], &[b"NSJUMP"], &[b"FLUSH"], &[b"NSNEW", b"new"]];
    for (number, command) in (0_u32..).zip(commands) {
        disk.set(true);
        asker.tell(command);
        // Somebody else is served, with syncs of his own and all; nobody else's folder is synced.
        for count in 0..20_u32 {
            let value = format!("{number} {count}");
            let set = other.ask(&[b"SET", b"key", value.as_bytes()]);
            assert_eq!(set, bulk(b"key"), "beside {}", command[0].escape_ascii());
            assert_eq!(other.ask(&[b"GET", b"key"]), bulk(value.as_bytes()));
        }
        let is_about_n = command[0] != b"NSNEW";
        owner.tell(&[b"EXISTS", b"k"]);
        if is_about_n {
            owner.stream.set_read_timeout(Some(SILENCE)).unwrap();
            assert_eq!(owner.receive(), Received::Nothing, "{}", command[0].escape_ascii());
            owner.stream.set_read_timeout(patience).unwrap();
        }
        disk.set(false);
        assert_eq!(asker.receive(), simple("OK"), "{}", command[0].escape_ascii());
        let exists = i64::from(number < 2);
        assert_eq!(owner.receive(), Received::Integer(exists), "{}", command[0].escape_ascii());
    }
    running.end();
}
