//! Network namespaces: made, found, entered by a thread of one's own, removed.
//!
//! A namespace lives as long as something is in it or holds it; here that is a file which it is mounted
//! on, where `ip netns` and others expect it. The file is made first and mounted on after, so a crash in
//! between leaves an empty file, which the next call completes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::sys;

/// A namespace that can be entered.
#[derive(Debug)]
pub(super) struct Namespace {
    file: File,
}

impl Namespace {
    /// Opens one by its file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// The one of this name in `folder`; none if there is no such, or only an empty file for it.
    pub(super) fn find(folder: &Path, name: &str) -> io::Result<Option<Self>> {
        let path = folder.join(name);
        match is_namespace(&path) {
            Ok(true) => Self::open(&path).map(Some),
            Ok(false) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The one of this name in `folder`, made if it is missing.
    pub(super) fn find_or_make(folder: &Path, name: &str) -> io::Result<Self> {
        if let Some(found) = Self::find(folder, name)? {
            return Ok(found);
        }
        let path = folder.join(name);
        fs::create_dir_all(folder)?;
        OpenOptions::new().create(true).append(true).open(&path)?;
        let target = path.clone();
        on_thread(move || -> io::Result<()> {
            sys::unshare_network()?;
            mount_bind("/proc/thread-self/ns/net", target.as_path()).map_err(io::Error::from)
        })?;
        Self::open(&path)
    }

    /// Does something in it, on a thread that ends with it. What the thread starts is in it too.
    pub(super) fn run<T: Send, E: From<io::Error> + Send>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        on_thread(|| {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(self.file.as_fd(), network).map_err(io::Error::from)?;
            work()
        })
    }

    /// Its file, for those who want to hand it on.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

/// Takes a namespace's name away. It ends when the last program in it does.
pub(super) fn remove(folder: &Path, name: &str) -> io::Result<()> {
    let path = folder.join(name);
    // Whoever mounted it twice has it twice.
    for _ in 0..MOUNT_COUNT_MAX {
        match is_namespace(&path) {
            Ok(true) => unmount(&path, UnmountFlags::DETACH)?,
            Ok(false) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    fs::remove_file(&path)
}

/// Most mounts on one file that are undone.
const MOUNT_COUNT_MAX: usize = 8;

/// `NSFS_MAGIC`.
const NAMESPACE_FILE_SYSTEM: i64 = 0x6e73_6673;

fn is_namespace(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statfs(path)?.f_type == NAMESPACE_FILE_SYSTEM)
}

/// Runs something on a thread of its own, since a thread does not come back from a namespace.
fn on_thread<T: Send, E: From<io::Error> + Send>(
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("network".to_owned());
        let running = thread.spawn_scoped(scope, work)?;
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
