//! A cgroup (v2) for each program: its limits, and the sure way to end all that it started.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::program::Limits;

/// The period of `cpu.max`, in microseconds: the kernel's own choice.
const CPU_PERIOD_US: u64 = 100_000;

/// The folder of all cgroups of programs.
#[derive(Debug)]
pub(super) struct Groups {
    root: PathBuf,
}

/// A program's cgroup.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
}

impl Groups {
    /// Takes over a cgroup, which must be empty of processes for limits to work.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        if !root.join("cgroup.controllers").is_file() {
            let text = format!("{}: no cgroup of version 2", root.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        for controller in ["+memory", "+pids", "+cpu"] {
            // One that the machine does not have is missed when a limit needs it.
            if let Err(error) = write(root, "cgroup.subtree_control", controller) {
                tracing::warn!(controller, %error, "cgroups without it");
            }
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Where a program's cgroup is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a program's cgroup with these limits. One that was left behind is emptied and used.
    pub(super) fn make(&self, name: &str, limits: &Limits) -> io::Result<Group> {
        let group = Group { path: self.path(name) };
        match fs::create_dir(&group.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => group.kill(),
            other => other?,
        }
        for (file, value) in files(limits) {
            write(&group.path, file, &value)?;
        }
        Ok(group)
    }
}

impl Group {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What a process writes 0 into to be in it.
    pub(super) fn processes(&self) -> io::Result<File> {
        File::options().write(true).open(self.path.join("cgroup.procs"))
    }

    /// Kills everything in it.
    pub(super) fn kill(&self) {
        if let Err(error) = write(&self.path, "cgroup.kill", "1") {
            tracing::warn!(cgroup = %self.path.display(), %error, "processes are not killed by cgroup");
        }
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        let processes = fs::read(self.path.join("cgroup.procs"));
        processes.map_or(true, |text| text.is_empty())
    }

    /// Removes it, which works once it is empty.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!(cgroup = %self.path.display(), %error, "the cgroup stays");
        }
    }
}

fn files(limits: &Limits) -> Vec<(&'static str, String)> {
    let memory = limits.memory_max.map(|size| ("memory.max", size.to_string()));
    let pids = limits.pids_max.map(|count| ("pids.max", count.to_string()));
    let cpu = limits.cpu_max_percent.map(|percent| {
        let quota_us = u64::from(percent) * CPU_PERIOD_US / 100;
        ("cpu.max", format!("{quota_us} {CPU_PERIOD_US}"))
    });
    [memory, pids, cpu].into_iter().flatten().collect()
}

fn write(group: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = group.join(file);
    // It must be there: in an ordinary directory, a file would be made in vain.
    let opened = File::options().write(true).open(&path);
    opened.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|error| {
        io::Error::new(error.kind(), format!("{} = {value}: {error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_kernels_files() {
        let limits =
            Limits { memory_max: Some(1 << 30), pids_max: Some(9), cpu_max_percent: Some(150) };
        let expected = [
            ("memory.max", "1073741824".to_owned()),
            ("pids.max", "9".to_owned()),
            ("cpu.max", "150000 100000".to_owned()),
        ];
        assert_eq!(files(&limits), expected);
    }

    #[test]
    fn an_ordinary_folder_is_no_cgroup() {
        let folder = tempfile::tempdir().unwrap();
        let error = Groups::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("no cgroup of version 2"), "{error}");
    }
}
