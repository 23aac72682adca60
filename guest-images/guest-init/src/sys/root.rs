//! The guest's root, seen from outside it.
//!
//! Before the switch the root is somebody else's tree: an image may hold any symbolic link. Every
//! path here is resolved by `openat2` with `RESOLVE_IN_ROOT` (Linux 5.6), so that `/` and `..` in
//! links mean the root's own, and never the initramfs.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, mkdirat,
    openat2, renameat, unlinkat,
};
use rustix::io::Errno;

/// An open root folder.
pub(crate) struct Root {
    fd: OwnedFd,
}

/// Owner and permissions of a file or folder that is made.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Access {
    fn apply(self, fd: &OwnedFd) -> Result<()> {
        fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        Ok(fchmod(fd, Mode::from_raw_mode(self.mode))?)
    }
}

impl Root {
    /// The tree below the open folder `fd`.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens `path`.
    pub(crate) fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Opens the folder `path` as a place to mount on, making what is missing of it.
    pub(crate) fn folder(&self, path: &str) -> Result<OwnedFd> {
        let mut made = String::from("/");
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut folder = self.open("/", flags)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            made = format!("{}/{name}", made.trim_end_matches('/'));
            folder = match self.open(&made, flags) {
                Err(Errno::NOENT) => {
                    mkdirat(&folder, name, Mode::from_raw_mode(0o755))
                        .with_context(|| format!("making the folder {made}"))?;
                    self.open(&made, flags)
                }
                opened => opened,
            }
            .with_context(|| format!("opening the folder {made}"))?;
        }
        Ok(folder)
    }

    /// Gives the folder `path` an owner and permissions.
    pub(crate) fn set_access(&self, path: &str, access: Access) -> Result<()> {
        let folder = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        access.apply(&folder).with_context(|| format!("giving {path} its owner"))
    }

    /// The text of the file `path`; empty if there is none. Bytes that are no text are replaced.
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match self.open(path, flags) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
            opened => opened.with_context(|| format!("opening {path}"))?,
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            bail!("{path} is not a regular file");
        }
        let mut bytes = Vec::new();
        std::fs::File::from(file)
            .take(TEXT_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("reading {path}"))?;
        if bytes.len() as u64 > TEXT_BYTES_MAX {
            bail!("{path} is longer than {TEXT_BYTES_MAX} bytes");
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Replaces the file `path` as a whole, be it a file or a link.
    pub(crate) fn replace(&self, path: &str, text: &str, access: Access) -> Result<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = self.folder(parent)?;
        let write = || -> Result<()> {
            let _ = unlinkat(&folder, TEMPORARY, AtFlags::empty());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&folder, TEMPORARY, flags, Mode::RUSR | Mode::WUSR)?;
            access.apply(&file)?;
            std::fs::File::from(file).write_all(text.as_bytes())?;
            Ok(renameat(&folder, TEMPORARY, &folder, name)?)
        };
        write().with_context(|| format!("writing {path}"))
    }

    /// Removes the files in the folder `path` whose names begin with `prefix`.
    pub(crate) fn remove_matching(&self, path: &str, prefix: &str) -> Result<()> {
        let folder = match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            opened => opened.with_context(|| format!("opening {path}"))?,
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&folder)?.take(ENTRIES_MAX) {
            let entry = entry.with_context(|| format!("listing {path}"))?;
            if entry.file_name().to_bytes().starts_with(prefix.as_bytes()) {
                names.push(entry.file_name().to_owned());
            }
        }
        for name in names {
            match unlinkat(&folder, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::ISDIR | Errno::NOENT) => {}
                Err(error) => return Err(error).with_context(|| format!("removing {name:?}")),
            }
        }
        Ok(())
    }
}

/// Name of a file that is being written.
const TEMPORARY: &str = ".guest-init.new";
/// Longest text that is read, in bytes.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn root(dir: &std::path::Path) -> Root {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Root::new(rustix::fs::open(dir, flags, Mode::empty()).unwrap())
    }

    fn mine(mode: u32) -> Access {
        let uid = rustix::process::getuid().as_raw();
        Access { mode, uid, gid: rustix::process::getgid().as_raw() }
    }

    #[test]
    fn links_do_not_lead_out() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("root");
        std::fs::create_dir_all(inner.join("real")).unwrap();
        std::fs::write(outer.path().join("secret"), "outside").unwrap();
        symlink("../../secret", inner.join("up")).unwrap();
        symlink(outer.path().join("secret"), inner.join("absolute")).unwrap();
        symlink("/real", inner.join("etc")).unwrap();
        symlink("../../..", inner.join("out")).unwrap();
        let root = root(&inner);
        assert_eq!(root.text("/up").unwrap(), "");
        assert_eq!(root.text("/absolute").unwrap(), "");
        root.replace("/etc/hosts", "x\n", mine(0o644)).unwrap();
        assert_eq!(std::fs::read_to_string(inner.join("real/hosts")).unwrap(), "x\n");
        root.replace("/out/new/file", "y", mine(0o600)).unwrap();
        assert_eq!(std::fs::read_to_string(inner.join("new/file")).unwrap(), "y");
        assert_eq!(std::fs::read_to_string(outer.path().join("secret")).unwrap(), "outside");
    }

    #[test]
    fn a_link_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/run/stub", dir.path().join("etc/resolv.conf")).unwrap();
        root(dir.path()).replace("/etc/resolv.conf", "nameserver\n", mine(0o640)).unwrap();
        let meta = std::fs::symlink_metadata(dir.path().join("etc/resolv.conf")).unwrap();
        assert!(meta.is_file());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path().join("etc")).unwrap().count(), 1);
    }

    #[test]
    fn folders_are_made_where_they_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        root.folder("/a/b//c").unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        root.folder("/").unwrap();
        root.set_access("/a/b", mine(0o700)).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("a/b")).unwrap().mode() & 0o7777, 0o700);
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = format!("{:#}", root.folder("/file/x").unwrap_err());
        assert!(error.starts_with("opening the folder /file: "), "{error}");
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        assert!(root.folder("/dangling").is_err());
    }

    #[test]
    fn texts_are_regular_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        assert_eq!(root.text("/none/at/all").unwrap(), "");
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(root.text("/folder").unwrap_err().to_string().contains("not a regular file"));
        let file = std::fs::File::create(dir.path().join("huge")).unwrap();
        file.set_len(TEXT_BYTES_MAX + 1).unwrap();
        assert!(root.text("/huge").unwrap_err().to_string().contains("longer than"));
    }

    #[test]
    fn only_matching_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ssh = dir.path().join("etc/ssh");
        std::fs::create_dir_all(ssh.join("ssh_host_folder")).unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"] {
            std::fs::write(ssh.join(name), "").unwrap();
        }
        let root = root(dir.path());
        root.remove_matching("/etc/ssh", "ssh_host_").unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(&ssh).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["ssh_host_folder", "sshd_config"]);
        root.remove_matching("/none", "x").unwrap();
    }
}
