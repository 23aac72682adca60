//! Whether the machine can be a node at all, whether its own disk is well, its power and its clock.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use hostd_node::host::HostError;
use rustix::time::{ClockId, Timespec, clock_settime};
use tracing::info;

use crate::facts::wake;

/// The file that is written to see whether a disk takes it.
const PROBE: &str = ".probe";

/// Why this can't be a node; none if it can. The text is that of existing nodes.
pub(super) fn unfit(kvm: &Path) -> Option<String> {
    let opened = File::options().read(true).write(true).open(kvm);
    let error = opened.err()?;
    Some(format!(
        "virtualization is not enabled. please enable in BIOS ({}: {error})",
        kvm.display()
    ))
}

/// What is wrong with the disk of a folder: it must take a file, for good, and give it up again.
pub(super) fn check(folder: &Path) -> Vec<String> {
    let probe = folder.join(PROBE);
    let written = File::create(&probe).and_then(|mut file| {
        file.write_all(b"written to see whether it can be\n")?;
        file.sync_all()
    });
    let removed = fs::remove_file(&probe);
    let problem = written.and(removed).err();
    problem.map(|error| format!("{}: {error}", folder.display())).into_iter().collect()
}

/// Has the card that leads out listen for whoever wakes it. Of no use where nothing switches it off.
pub(super) fn enable_wake(can_be_switched_off: bool) -> Result<(), HostError> {
    if !can_be_switched_off {
        let reason = "nothing is configured that would switch this machine off (power_off)";
        return Err(HostError(reason.to_owned()));
    }
    let card = crate::facts::main_card();
    let card = card.ok_or_else(|| HostError("no card leads out".to_owned()))?;
    wake::enable(&card).map_err(|error| HostError(format!("{card} can't wake it: {error}")))
}

/// Has the machine switched off, which takes a moment.
pub(super) fn power_off(command: Option<&[String]>) -> Result<(), HostError> {
    let Some([program, arguments @ ..]) = command else {
        return Err(HostError("nothing is configured that switches it off".to_owned()));
    };
    info!(program, "the machine is switched off");
    let mut command = Command::new(program);
    let status = command.args(arguments).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(HostError(format!("{program}: {status}"))),
        Err(error) => Err(HostError(format!("{program}: {error}"))),
    }
}

pub(super) fn set_clock(time: i64) -> Result<(), HostError> {
    let time = Timespec { tv_sec: time, tv_nsec: 0 };
    clock_settime(ClockId::Realtime, time).map_err(|error| HostError(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_kvm_is_no_node() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("kvm");
        let reason = unfit(&device).unwrap();
        assert!(reason.starts_with("virtualization is not enabled. please enable in BIOS ("));
        fs::write(&device, "").unwrap();
        assert_eq!(unfit(&device), None);
    }

    #[test]
    fn a_disk_that_takes_nothing_is_ill() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check(folder.path()), [""; 0]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // Root may write where nobody may: a folder that is none is what it can't write to.
        let problems = check(Path::new("/proc/absent"));
        assert!(matches!(&problems[..], [text] if text.starts_with("/proc/absent: ")));
    }

    /// Memory as a file system, until it is dropped.
    struct Mounted<'a>(&'a Path);

    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }

    #[test]
    fn a_disk_that_turned_read_only_is_ill_until_it_is_mended() {
        use rustix::mount::{MountFlags, mount, mount_remount};

        let folder = tempfile::tempdir().unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        if let Err(error) = mount("tmpfs", folder.path(), "tmpfs", flags, c"size=1m") {
            eprintln!("skipped: nothing can be mounted: {error}");
            return;
        }
        let mounted = Mounted(folder.path());
        assert_eq!(check(folder.path()), [""; 0]);
        mount_remount(folder.path(), flags | MountFlags::RDONLY, "").unwrap();
        let problems = check(folder.path());
        assert!(matches!(&problems[..], [text] if text.contains("Read-only")), "{problems:?}");
        mount_remount(folder.path(), flags, "").unwrap();
        assert_eq!(check(folder.path()), [""; 0]);
        drop(mounted);
    }

    #[test]
    fn what_switches_a_machine_off_is_run_and_its_failure_is_said() {
        assert!(power_off(None).is_err());
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("off").display().to_string();
        power_off(Some(&["/bin/touch".to_owned(), mark.clone()])).unwrap();
        assert!(Path::new(&mark).exists());
        let error = power_off(Some(&["/bin/false".to_owned()])).unwrap_err();
        assert!(error.0.starts_with("/bin/false: "), "{error}");
        assert!(enable_wake(false).is_err());
    }
}
