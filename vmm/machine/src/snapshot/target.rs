//! Where a snapshot goes: two files that somebody handed over, or a directory that appears when it is
//! whole and on disk.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, fcntl_getfl, renameat_with};
use rustix::process::{Resource, getrlimit};
use vmm_spec::restore::{MEMORY_FILE, STATE_FILE};

/// Where a snapshot goes. One that is dropped unfinished leaves nothing that could be taken for one.
#[derive(Debug)]
pub(crate) struct Target {
    state: File,
    memory: File,
    directory: Option<Directory>,
    is_finished: bool,
}

/// A directory that is not there yet.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// What it is called until it is whole.
    partial: PathBuf,
}

/// Why a snapshot can't go there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// Something is there.
    #[error("{}: it is there already", .0.display())]
    Exists(PathBuf),
    /// A descriptor is not what it should be.
    #[error("the file for the snapshot's {name} {rule}")]
    Descriptor {
        /// Which of the two.
        name: &'static str,
        /// What it should be.
        rule: &'static str,
    },
    /// This process may not write as much.
    #[error("a file of {size} bytes is more than this process may write ({limit})")]
    Limit {
        /// Size of the memory file.
        size: u64,
        /// `RLIMIT_FSIZE`.
        limit: u64,
    },
    /// The host refused something.
    #[error("{}", path.display())]
    Host {
        /// The file or directory.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl Target {
    /// Files that somebody made, and will look after.
    pub(crate) fn files(state: OwnedFd, memory: OwnedFd) -> Result<Self, TargetError> {
        let (state, memory) = (check(state, STATE_FILE)?, check(memory, MEMORY_FILE)?);
        Ok(Self { state, memory, directory: None, is_finished: false })
    }

    /// A new directory at `path`.
    pub(crate) fn directory(path: &Path) -> Result<Self, TargetError> {
        let path = std::path::absolute(path).map_err(host(path))?;
        if path.symlink_metadata().is_ok() {
            return Err(TargetError::Exists(path));
        }
        let partial = path.with_added_extension("partial");
        DirBuilder::new().mode(0o700).create(&partial).map_err(host(&partial))?;
        let directory = Directory { path, partial };
        let create = |name: &str| {
            let path = directory.partial.join(name);
            // They hold all that the guest had in memory.
            let mut options = File::options();
            options.read(true).write(true).create_new(true).mode(0o600);
            let created = options.open(&path);
            created.map_err(host(&path))
        };
        match (create(STATE_FILE), create(MEMORY_FILE)) {
            (Ok(state), Ok(memory)) => {
                Ok(Self { state, memory, directory: Some(directory), is_finished: false })
            }
            (Err(error), _) | (_, Err(error)) => {
                directory.remove();
                Err(error)
            }
        }
    }

    pub(crate) const fn state(&self) -> &File {
        &self.state
    }

    pub(crate) const fn memory(&self) -> &File {
        &self.memory
    }

    /// Refuses a size for which the kernel would end this process rather than say no.
    pub(crate) fn check_room(&self, size: u64) -> Result<(), TargetError> {
        match getrlimit(Resource::Fsize).current {
            Some(limit) if limit < size => Err(TargetError::Limit { size, limit }),
            _ => Ok(()),
        }
    }

    /// All is written: it is on disk, under its name, when this returns.
    pub(crate) fn finish(mut self) -> Result<(), TargetError> {
        let named = |name: &str| {
            let directory = self.directory.as_ref().map(|directory| directory.partial.as_path());
            host(&directory.unwrap_or_else(|| Path::new("")).join(name))
        };
        self.memory.sync_all().map_err(named(MEMORY_FILE))?;
        self.state.sync_all().map_err(named(STATE_FILE))?;
        if let Some(directory) = &self.directory {
            directory.publish()?;
        }
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        match &self.directory {
            Some(directory) => directory.remove(),
            None => {
                // Whoever made them sees that there is nothing in them. What fails here has failed
                // before, and was told.
                let _ = self.state.set_len(0);
                let _ = self.memory.set_len(0);
            }
        }
    }
}

impl Directory {
    fn publish(&self) -> Result<(), TargetError> {
        sync(&self.partial)?;
        let (from, to) = (&self.partial, &self.path);
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(TargetError::Exists(to.clone())),
            // A file system that can't promise it; it was not there a moment ago.
            Err(rustix::io::Errno::INVAL) => fs::rename(from, to).map_err(host(to))?,
            Err(error) => return Err(host(to)(error.into())),
        }
        sync(self.path.parent().unwrap_or_else(|| Path::new("/")))
    }

    fn remove(&self) {
        // What is left of it is of no use to anybody.
        if let Err(error) = fs::remove_dir_all(&self.partial) {
            tracing::warn!(path = %self.partial.display(), %error, "part of a snapshot stays");
        }
    }
}

fn sync(folder: &Path) -> Result<(), TargetError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(host(folder))
}

fn host(path: &Path) -> impl Fn(io::Error) -> TargetError + use<> {
    let path = path.to_owned();
    move |source| TargetError::Host { path: path.clone(), source }
}

/// A descriptor that came from somebody else.
fn check(descriptor: OwnedFd, name: &'static str) -> Result<File, TargetError> {
    let wrong = |rule| TargetError::Descriptor { name, rule };
    let flags = fcntl_getfl(&descriptor).map_err(|_| wrong("can't be asked for its flags"))?;
    let file = File::from(descriptor);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(wrong("must be a regular file"));
    }
    if flags.contains(OFlags::APPEND) || !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return Err(wrong("must be open for writing, and not for appending"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let names = || fs::read_dir(folder.path()).unwrap().count();
        drop(Target::directory(&path).unwrap());
        assert_eq!(names(), 0, "nothing stays of one that is given up");
        let target = Target::directory(&path).unwrap();
        assert!(!path.exists());
        target.finish().unwrap();
        assert!(path.join(STATE_FILE).exists() && path.join(MEMORY_FILE).exists());
        assert_eq!(names(), 1);
        assert!(matches!(Target::directory(&path), Err(TargetError::Exists(_))));
        assert!(matches!(
            Target::directory(Path::new("/nonexistent/a/b")),
            Err(TargetError::Host { .. })
        ));
    }

    #[test]
    fn what_somebody_made_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let target = Target::directory(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(target.finish(), Err(TargetError::Exists(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn descriptors_are_files_that_can_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let new = |name: &str| OwnedFd::from(File::create(path(name)).unwrap());
        let error = |state: File| Target::files(state.into(), new("m")).unwrap_err().to_string();
        assert!(error(File::open("/dev/null").unwrap()).contains("must be a regular file"));
        fs::write(path("read"), "").unwrap();
        assert!(error(File::open(path("read")).unwrap()).contains("must be open for writing"));
        let appended = File::options().append(true).create(true).open(path("a")).unwrap();
        assert!(error(appended).contains("not for appending"));
        let target = Target::files(new("s"), new("m")).unwrap();
        target.state().set_len(5).unwrap();
        drop(target);
        assert_eq!(fs::metadata(path("s")).unwrap().len(), 0, "nobody takes it for a snapshot");
        target_with(new("s"), new("m"), 5).finish().unwrap();
        assert_eq!(fs::metadata(path("s")).unwrap().len(), 5);
    }

    fn target_with(state: OwnedFd, memory: OwnedFd, size: u64) -> Target {
        let target = Target::files(state, memory).unwrap();
        target.state().set_len(size).unwrap();
        target.check_room(size).unwrap();
        target
    }
}
