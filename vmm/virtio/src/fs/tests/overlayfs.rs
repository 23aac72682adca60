//! Linux's own overlayfs on the same layers: what one writes, the other reads.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::image::Image;
use super::is_root;
use super::overlay::overlay;

fn image() -> Image {
    Image::default()
        .directory("etc")
        .directory("etc/ssl")
        .file("etc/ssl/cert", "certificate")
        .file("etc/passwd", "root")
        .file("etc/group", "wheel")
        .directory("old")
        .file("old/file", "old")
        .file("gone", "gone")
}

/// overlayfs, mounted while this lives.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// None, and a word about it, where that is not possible.
    fn new(lower: &Path, volume: &Path) -> Option<Self> {
        let point = tempfile::tempdir().unwrap();
        let show = |path: PathBuf| path.display().to_string();
        let data = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on",
            lower.display(),
            show(volume.join("rw")),
            show(volume.join("wd")),
        );
        let data = std::ffi::CString::new(data).unwrap();
        let flags = MountFlags::empty();
        match rustix::mount::mount("overlay", point.path(), "overlay", flags, data.as_c_str()) {
            Ok(()) => Some(Self(point)),
            Err(error) => {
                eprintln!("skipped: overlayfs cannot be mounted: {error}");
                None
            }
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking());
    }
}

#[test]
fn overlayfs_reads_what_we_wrote() {
    if !is_root("overlayfs_reads_what_we_wrote") {
        return;
    }
    let (volume, lower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    image().unpack(lower.path());
    let mut client = overlay(&image(), volume.path());
    let etc = client.walk("etc").unwrap().ino;
    let passwd = client.lookup(etc, "passwd").unwrap().ino;
    client.write(passwd, 4, b" us").unwrap();
    client.unlink(1, "gone").unwrap();
    client.rename((etc, "ssl"), (1, "moved"), 0).unwrap();
    let ssl = client.mkdir(etc, "ssl").unwrap().ino;
    client.touch(ssl, "new").unwrap();
    let old = client.walk("old").unwrap().ino;
    client.unlink(old, "file").unwrap();
    client.rmdir(1, "old").unwrap();
    client.mkdir(1, "old").unwrap();
    drop(client);
    let Some(mounted) = Mounted::new(lower.path(), volume.path()) else { return };
    assert_eq!(fs::read(mounted.path("etc/passwd")).unwrap(), b"root us");
    assert_eq!(fs::read(mounted.path("moved/cert")).unwrap(), b"certificate");
    assert!(!mounted.path("gone").exists() && mounted.path("etc/ssl/new").exists());
    assert_eq!(fs::read_dir(mounted.path("etc/ssl")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(mounted.path("old")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(mounted.path("")).unwrap().count(), 3);
}

#[test]
fn we_read_what_overlayfs_wrote() {
    if !is_root("we_read_what_overlayfs_wrote") {
        return;
    }
    let (volume, lower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    image().unpack(lower.path());
    for name in ["rw", "wd"] {
        fs::create_dir(volume.path().join(name)).unwrap();
    }
    let Some(mounted) = Mounted::new(lower.path(), volume.path()) else { return };
    fs::write(mounted.path("etc/passwd"), "changed").unwrap();
    fs::remove_file(mounted.path("gone")).unwrap();
    fs::rename(mounted.path("etc/ssl"), mounted.path("moved")).unwrap();
    fs::rename(mounted.path("moved"), mounted.path("etc/tls")).unwrap();
    fs::remove_dir_all(mounted.path("old")).unwrap();
    fs::create_dir(mounted.path("old")).unwrap();
    fs::hard_link(mounted.path("etc/group"), mounted.path("group")).unwrap();
    drop(mounted);
    let mut client = overlay(&image(), volume.path());
    let passwd = client.walk("etc/passwd").unwrap().ino;
    assert_eq!(client.read(passwd, 0, 100).unwrap(), b"changed");
    assert_eq!(client.names(1).unwrap(), ["etc", "group", "old"]);
    let etc = client.walk("etc").unwrap().ino;
    assert_eq!(client.names(etc).unwrap(), ["group", "passwd", "tls"]);
    let cert = client.walk("etc/tls/cert").unwrap().ino;
    assert_eq!(client.read(cert, 0, 100).unwrap(), b"certificate");
    let old = client.walk("old").unwrap().ino;
    assert_eq!(client.names(old).unwrap(), [""; 0]);
    let group = client.walk("group").unwrap();
    assert_eq!(client.read(group.ino, 0, 100).unwrap(), b"wheel");
    client.rename((etc, "tls"), (1, "ssl"), 0).unwrap();
    assert_eq!(client.walk("ssl/cert").unwrap().ino, cert);
}
