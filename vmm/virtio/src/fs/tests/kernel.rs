//! The kernel of this machine as the client, through `/dev/fuse`: what a guest's kernel makes of the
//! answers, with its caches and without opens, cannot be known from single requests.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use flist_view::filesystem::FileSystem;
use flist_view::fuse::{BufferReply, REPLY_BODY_SIZE_MAX, Server};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::image::Image;
use super::is_root;
use super::overlay::prefix;
use crate::fs::host::{HostDirectory, HostOptions};
use crate::fs::overlay::{Overlay, OverlayOptions};

/// The largest request: a write, its header, and room that the kernel wants to see.
const REQUEST_SIZE: usize = (1 << 20) + 8192;

/// A file system mounted here, while this lives.
struct Mounted {
    point: tempfile::TempDir,
    server: Option<JoinHandle<()>>,
}

impl Mounted {
    /// None, and a word about it, where that is not possible.
    fn new(file_system: impl FileSystem + 'static) -> Option<Self> {
        let point = tempfile::tempdir().unwrap();
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = match rustix::fs::open("/dev/fuse", flags, Mode::empty()) {
            Ok(device) => device,
            Err(error) => {
                eprintln!("skipped: /dev/fuse: {error}");
                return None;
            }
        };
        let options = "rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other";
        let data = std::ffi::CString::new(format!("fd={},{options}", device.as_raw_fd())).unwrap();
        let flags = MountFlags::empty();
        if let Err(error) =
            rustix::mount::mount("test", point.path(), "fuse.test", flags, data.as_c_str())
        {
            eprintln!("skipped: mount: {error}");
            return None;
        }
        let server = Server::new(file_system, REPLY_BODY_SIZE_MAX);
        let server = thread::spawn(move || serve(&server, &device));
        Some(Self { point, server: Some(server) })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.point.path().join(path)
    }
}

/// Until it is unmounted.
fn serve(server: &Server<impl FileSystem>, device: &OwnedFd) {
    let mut request = vec![0; REQUEST_SIZE];
    let mut reply = BufferReply::new(REPLY_BODY_SIZE_MAX);
    while let Ok(size) = rustix::io::read(device, &mut request) {
        reply.reset();
        server.handle(&request[..size], &mut reply).unwrap();
        if let Some(reply) = reply.as_bytes() {
            // Whoever asked may have been interrupted.
            let _ = rustix::io::write(device, reply);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(self.point.path(), UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || thread::panicking());
        if let Some(server) = self.server.take() {
            let ended = server.join();
            assert!(ended.is_ok() || thread::panicking(), "the server panicked");
        }
    }
}

fn image() -> Image {
    Image::default()
        .directory("etc")
        .directory("etc/ssl")
        .file("etc/ssl/cert", vec![7; 700_000])
        .file("etc/passwd", "root:x:0:0")
        .link("passwd", "etc/passwd")
        .symlink("link", "etc/passwd")
}

/// Runs `test` on a host directory and on an overlay.
fn on_both(name: &str, test: impl Fn(&Mounted)) {
    if !is_root(name) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let host = HostDirectory::open(directory.path(), HostOptions::default()).unwrap();
    if let Some(mounted) = Mounted::new(host) {
        test(&mounted);
    }
    let volume = tempfile::tempdir().unwrap();
    let options = OverlayOptions { marks: prefix(), quota: None };
    let overlay = Overlay::open(image().view(), volume.path(), options).unwrap();
    if let Some(mounted) = Mounted::new(overlay) {
        test(&mounted);
        check_image(&mounted);
    }
}

/// The image's own files, before and after changes.
fn check_image(mounted: &Mounted) {
    let passwd = mounted.path("etc/passwd");
    assert_eq!(fs::read(mounted.path("link")).unwrap(), b"root:x:0:0");
    let mut reader = File::open(&passwd).unwrap();
    let mut half = [0; 4];
    reader.read_exact(&mut half).unwrap();
    File::options().append(true).open(&passwd).unwrap().write_all(b":/root").unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, ":x:0:0:/root", "open before it was copied up");
    assert_eq!(fs::read(mounted.path("passwd")).unwrap(), b"root:x:0:0:/root");
    assert_eq!(fs::metadata(mounted.path("passwd")).unwrap().nlink(), 2);
    fs::rename(mounted.path("etc/ssl"), mounted.path("ssl")).unwrap();
    assert_eq!(fs::read(mounted.path("ssl/cert")).unwrap().len(), 700_000);
    fs::remove_dir_all(mounted.path("etc")).unwrap();
    fs::create_dir(mounted.path("etc")).unwrap();
    assert_eq!(fs::read_dir(mounted.path("etc")).unwrap().count(), 0);
}

#[test]
fn files_are_what_was_written() {
    on_both("files_are_what_was_written", |mounted| {
        let path = mounted.path("file");
        let contents: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &contents).unwrap();
        assert!(fs::read(&path).unwrap() == contents);
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        file.seek(SeekFrom::End(-5)).unwrap();
        file.write_all(b"0123456789").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3_000_005);
        file.set_len(10).unwrap();
        file.write_at(b"x", 1 << 20).unwrap();
        file.sync_all().unwrap();
        let mut end = [9; 20];
        assert_eq!(file.read_at(&mut end, (1 << 20) - 10).unwrap(), 11);
        assert_eq!(end[..11], [&[0; 10][..], b"x"].concat());
        assert_eq!(fs::read(&path).unwrap()[..10], contents[..10]);
        let mut appended = File::options().append(true).open(&path).unwrap();
        appended.write_all(b"end").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), (1 << 20) + 4);
        fs::write(&path, "short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        File::create_new(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        appended.write_all(b"still").unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    });
}

#[test]
fn trees_are_copied_and_removed() {
    on_both("trees_are_copied_and_removed", |mounted| {
        let source = tempfile::tempdir().unwrap();
        let from = |name: &str| source.path().join(name);
        for i in 0..3 {
            fs::create_dir(from(&format!("d{i}"))).unwrap();
            for j in 0..120 {
                fs::write(from(&format!("d{i}/f{j}")), vec![1; j * 10]).unwrap();
            }
        }
        symlink("d0/f1", from("link")).unwrap();
        fs::hard_link(from("d0/f2"), from("hard")).unwrap();
        fs::set_permissions(from("d1/f1"), fs::Permissions::from_mode(0o4711)).unwrap();
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, from("fifo"), kind, Mode::RUSR, 0).unwrap();
        let run = |program: &str, arguments: &[&Path]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            assert!(output.status.success(), "{program}: {output:?}");
        };
        let copy = mounted.path("copy");
        run("cp", &[Path::new("-a"), source.path(), &copy]);
        // It would read it.
        let options = ["-r", "--no-dereference", "--exclude=fifo"].map(Path::new);
        run("diff", &[&options[..], &[source.path(), &copy]].concat());
        let copied = |name: &str| fs::symlink_metadata(copy.join(name)).unwrap();
        assert_eq!(copied("d1/f1").mode(), 0o104_711);
        assert!(copied("fifo").file_type().is_fifo());
        assert_eq!(copied("hard").ino(), copied("d0/f2").ino());
        assert_eq!(copied("d2/f3").mtime_nsec(), fs::metadata(from("d2/f3")).unwrap().mtime_nsec());
        fs::rename(&copy, mounted.path("moved")).unwrap();
        fs::rename(mounted.path("moved/d0"), mounted.path("moved/d1/d0")).unwrap();
        run("rm", &[Path::new("-r"), &mounted.path("moved")]);
        assert!(!mounted.path("moved").exists());
    });
}

#[test]
fn permissions_are_checked_by_the_client() {
    on_both("permissions_are_checked_by_the_client", |mounted| {
        let secret = mounted.path("secret");
        fs::write(&secret, "secret").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(mounted.path(""), fs::Permissions::from_mode(0o1777)).unwrap();
        let script = format!(
            "cd {} && ! cat secret && ! rm -f secret && echo mine > own && umask 027 && mkdir sub",
            mounted.path("").display()
        );
        fs::set_permissions(mounted.point.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let output = Command::new("setpriv")
            .args(["--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", &script])
            .output();
        let Ok(output) = output else { return eprintln!("skipped: no setpriv here") };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let own = fs::metadata(mounted.path("own")).unwrap();
        assert_eq!((own.uid(), own.gid(), own.mode()), (1000, 1000, 0o100_644));
        assert_eq!(fs::metadata(mounted.path("sub")).unwrap().mode(), 0o040_750);
        fs::set_permissions(mounted.path("own"), fs::Permissions::from_mode(0o6755)).unwrap();
        let write = format!("echo more >> {}", mounted.path("own").display());
        let wrote = Command::new("setpriv")
            .args(["--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", &write])
            .output()
            .unwrap();
        assert!(wrote.status.success());
        assert_eq!(fs::metadata(mounted.path("own")).unwrap().mode(), 0o100_755, "dropped");
    });
}

#[test]
fn mapped_files_are_written_back() {
    on_both("mapped_files_are_written_back", |mounted| {
        let path = mounted.path("mapped");
        fs::write(&path, vec![1; 20_000]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let region = vm_memory::MmapRegion::<()>::from_file(
            vm_memory::FileOffset::from_arc(Arc::new(file.try_clone().unwrap()), 0),
            20_000,
        )
        .unwrap();
        let slice = vm_memory::VolatileMemory::get_slice(&region, 10_000, 3).unwrap();
        slice.copy_from(b"abc");
        drop(region);
        file.sync_all().unwrap();
        assert_eq!(fs::read(&path).unwrap()[9_999..10_004], [1, b'a', b'b', b'c', 1]);
    });
}

#[test]
fn temporary_files_and_extended_attributes_work() {
    on_both("temporary_files_and_extended_attributes_work", |mounted| {
        let directory = File::open(mounted.path("")).unwrap();
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        match rustix::fs::openat(&directory, ".", flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => {
                rustix::io::pwrite(&file, b"unnamed", 0).unwrap();
                let by = format!("/proc/self/fd/{}", file.as_raw_fd());
                let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
                rustix::fs::linkat(rustix::fs::CWD, by, &directory, "named", follow).unwrap();
                assert_eq!(fs::read(mounted.path("named")).unwrap(), b"unnamed");
            }
            Err(error) => eprintln!("skipped: O_TMPFILE: {error}"),
        }
        let path = mounted.path("attributes");
        fs::write(&path, "x").unwrap();
        let set = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, "user.name", b"value", set).unwrap();
        // What Docker needs to unpack images.
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::setxattr(&path, "security.capability", &capability, set).unwrap();
        let mut value = [0; 100];
        assert_eq!(rustix::fs::getxattr(&path, "user.name", &mut value).unwrap(), 5);
        assert_eq!(rustix::fs::getxattr(&path, "security.capability", &mut value).unwrap(), 20);
        fs::write(&path, "y").unwrap();
        let lost = rustix::fs::getxattr(&path, "security.capability", &mut value);
        assert_eq!(lost, Err(rustix::io::Errno::NODATA), "whoever writes takes it away");
    });
}
