//! The plan of a boot: from what was asked for and what is there to a list of steps.
//!
//! ```text
//!   command line ──┐
//!   cidata ────────┼──> plan ──> [Step] ──> boot (does them, in order)
//!   disks ─────────┘
//! ```
//!
//! Pure, so every decision is tested without a machine: which disk is whose, where the root's
//! writes go, what fails and what is passed over with a warning. What a disk holds is looked at
//! only when its step runs ([`crate::disk::decide`]).

use crate::cidata::{CiData, Interface, Mount, Options, Source, User};
use crate::cmdline::{CommandLine, Upper};
use crate::disk::Disk;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mount the root, with its writes going to `upper`.
    MountRoot {
        /// Tag of the virtio-fs share.
        tag: String,
        /// Where writes go.
        upper: RootUpper,
    },
    /// Put the kernel's own file systems, `/run` and `/dev/shm` into the root.
    MountKernelFiles,
    /// Show a share with modules as `/lib/modules/RELEASE`.
    MountModules {
        /// Its tag.
        tag: String,
    },
    /// Mount a disk, formatting it first if it is blank.
    MountDisk {
        /// The disk.
        disk: Disk,
        /// Where.
        target: String,
        /// How.
        options: Options,
    },
    /// Mount a virtio-fs share.
    MountShare {
        /// Its tag.
        tag: String,
        /// Where.
        target: String,
        /// How.
        options: Options,
    },
    /// Set the host's name, and write it into the root.
    Hostname(String),
    /// Complete `/etc/hosts`.
    Hosts(Option<String>),
    /// Configure the interfaces, and write `/etc/resolv.conf`.
    Network(Vec<Interface>),
    /// Add a user's ssh keys.
    AuthorizedKeys(User),
    /// Enter the root: from here on `/` is the guest's.
    SwitchRoot,
    /// Make ssh host keys if the image can and has none.
    HostKeys,
    /// Say something that went wrong without ending the boot.
    Warn(String),
}

/// Where the root's writes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootUpper {
    /// An overlay's upper layer on this disk.
    Disk(Disk),
    /// An overlay's upper layer in memory.
    Memory,
    /// Straight to the share.
    Share,
}

/// Why there is no plan. Nothing has been changed yet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A disk that must be there is not.
    #[error("no disk {wanted} for {purpose}; there are: {there}")]
    NoDisk {
        /// What was looked for.
        wanted: String,
        /// What for.
        purpose: String,
        /// The disks that there are.
        there: String,
    },
    /// Two disks can't be told apart.
    #[error("two disks with the serial {0:?}")]
    Twins(String),
    /// A disk is wanted for two things.
    #[error("{disk} is wanted for {first} and for {second}")]
    Taken {
        /// The disk.
        disk: String,
        /// One use.
        first: String,
        /// The other.
        second: String,
    },
}

/// Makes the plan.
///
/// # Errors
///
/// [`Error`] when a disk is missing, ambiguous or wanted twice. Disks of mounts with `nofail` may
/// be missing.
pub fn plan(line: &CommandLine, cidata: &CiData, disks: &[Disk]) -> Result<Vec<Step>, Error> {
    let mut uses = Uses::default();
    let upper = root_upper(line.upper, disks, &mut uses)?;
    let mut steps =
        vec![Step::MountRoot { tag: line.root_tag.clone(), upper }, Step::MountKernelFiles];
    steps.extend(line.modules_tag.clone().map(|tag| Step::MountModules { tag }));
    for mount in &cidata.mounts {
        steps.push(mount_step(mount, disks, &mut uses)?);
    }
    steps.extend(cidata.hostname.clone().map(Step::Hostname));
    steps.push(Step::Hosts(cidata.hostname.clone()));
    steps.push(Step::Network(cidata.interfaces.clone()));
    let with_keys = cidata.users.iter().filter(|user| !user.keys.is_empty());
    steps.extend(with_keys.cloned().map(Step::AuthorizedKeys));
    steps.extend([Step::SwitchRoot, Step::HostKeys]);
    Ok(steps)
}

/// Whether a disk is still to come: the boot waits for these, up to `rootdelay`.
#[must_use]
pub fn is_waiting(line: &CommandLine, cidata: &CiData, disks: &[Disk]) -> bool {
    let late =
        |mount: &Mount| !mount.options.nofail && matches!(find(&mount.source, disks), Ok(None));
    let upper_late = line.upper == Upper::Disk && !disks.iter().any(|d| d.serial == ROOT_SERIAL);
    upper_late || cidata.mounts.iter().any(late)
}

fn root_upper(upper: Upper, disks: &[Disk], uses: &mut Uses) -> Result<RootUpper, Error> {
    let purpose = "what is written to the root";
    let found = match upper {
        Upper::None => return Ok(RootUpper::Share),
        Upper::Memory => return Ok(RootUpper::Memory),
        Upper::Auto | Upper::Disk => find(&Source::Serial(ROOT_SERIAL.into()), disks)?,
    };
    match found {
        Some(disk) => {
            uses.take(disk, purpose)?;
            Ok(RootUpper::Disk(disk.clone()))
        }
        None if upper == Upper::Auto => Ok(RootUpper::Memory),
        None => Err(missing(&Source::Serial(ROOT_SERIAL.into()), purpose, disks)),
    }
}

fn mount_step(mount: &Mount, disks: &[Disk], uses: &mut Uses) -> Result<Step, Error> {
    let Mount { source, target, options } = mount.clone();
    if let Source::Share(tag) = source {
        return Ok(Step::MountShare { tag, target, options });
    }
    match find(&source, disks)? {
        Some(disk) => {
            uses.take(disk, &target)?;
            Ok(Step::MountDisk { disk: disk.clone(), target, options })
        }
        None => {
            let error = missing(&source, &target, disks);
            if options.nofail { Ok(Step::Warn(error.to_string())) } else { Err(error) }
        }
    }
}

fn find<'a>(source: &Source, disks: &'a [Disk]) -> Result<Option<&'a Disk>, Error> {
    let serial = match source {
        Source::Share(_) => return Ok(None),
        Source::Name(name) => return Ok(disks.iter().find(|disk| disk.name == *name)),
        Source::Serial(serial) => serial,
    };
    let mut matching = disks.iter().filter(|disk| disk.serial == *serial);
    match (matching.next(), matching.next()) {
        (Some(_), Some(_)) => Err(Error::Twins(serial.clone())),
        (found, _) => Ok(found),
    }
}

fn missing(source: &Source, purpose: &str, disks: &[Disk]) -> Error {
    let wanted = match source {
        Source::Name(name) => format!("/dev/{name}"),
        Source::Serial(serial) => format!("with the serial {serial:?}"),
        Source::Share(tag) => tag.clone(),
    };
    let there: Vec<String> = disks.iter().map(Disk::describe).collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    Error::NoDisk { wanted, purpose: purpose.to_owned(), there }
}

/// Which disk is used for what, so that none is mounted twice.
#[derive(Default)]
struct Uses(Vec<(String, String)>);

impl Uses {
    fn take(&mut self, disk: &Disk, purpose: &str) -> Result<(), Error> {
        if let Some((_, first)) = self.0.iter().find(|(name, _)| *name == disk.name) {
            return Err(Error::Taken {
                disk: disk.describe(),
                first: first.clone(),
                second: purpose.to_owned(),
            });
        }
        self.0.push((disk.name.clone(), purpose.to_owned()));
        Ok(())
    }
}

/// Serial of the disk for the root's writes.
pub const ROOT_SERIAL: &str = "rootfs";

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, serial: &str) -> Disk {
        Disk { name: name.into(), serial: serial.into(), size: 1 << 30, read_only: false }
    }

    fn line(upper: Upper) -> CommandLine {
        CommandLine { upper, ..CommandLine::default() }
    }

    fn mount(source: Source, target: &str) -> Mount {
        Mount { source, target: target.into(), options: Options::default() }
    }

    fn with_mounts(mounts: Vec<Mount>) -> CiData {
        CiData { mounts, ..CiData::default() }
    }

    fn upper_of(upper: Upper, disks: &[Disk]) -> Result<RootUpper, Error> {
        match plan(&line(upper), &CiData::default(), disks)?.into_iter().next() {
            Some(Step::MountRoot { tag, upper }) if tag == "vroot" => Ok(upper),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_upper_layer_goes_to_the_disk_if_there_is_one() {
        let root = disk("vdb", "rootfs");
        let disks = [disk("vda", "x"), root.clone()];
        assert_eq!(upper_of(Upper::Auto, &disks), Ok(RootUpper::Disk(root.clone())));
        assert_eq!(upper_of(Upper::Disk, &disks), Ok(RootUpper::Disk(root)));
        assert_eq!(upper_of(Upper::Auto, &disks[..1]), Ok(RootUpper::Memory));
        assert_eq!(upper_of(Upper::Memory, &disks), Ok(RootUpper::Memory));
        assert_eq!(upper_of(Upper::None, &disks), Ok(RootUpper::Share));
        assert_eq!(
            upper_of(Upper::Disk, &disks[..1]).unwrap_err().to_string(),
            "no disk with the serial \"rootfs\" for what is written to the root; \
             there are: /dev/vda (serial \"x\")"
        );
    }

    #[test]
    fn everything_happens_in_order() {
        let cidata = CiData {
            hostname: Some("vm".into()),
            users: vec![
                User { name: "root".into(), keys: vec!["k".into()] },
                User { name: "ann".into(), keys: Vec::new() },
            ],
            mounts: vec![
                mount(Source::Share("s".into()), "/s"),
                mount(Source::Name("vda".into()), "/d"),
            ],
            ..CiData::default()
        };
        let steps = plan(&line(Upper::Memory), &cidata, &[disk("vda", "x")]).unwrap();
        let options = Options::default();
        assert_eq!(
            steps,
            [
                Step::MountRoot { tag: "vroot".into(), upper: RootUpper::Memory },
                Step::MountKernelFiles,
                Step::MountShare { tag: "s".into(), target: "/s".into(), options },
                Step::MountDisk { disk: disk("vda", "x"), target: "/d".into(), options },
                Step::Hostname("vm".into()),
                Step::Hosts(Some("vm".into())),
                Step::Network(Vec::new()),
                Step::AuthorizedKeys(cidata.users[0].clone()),
                Step::SwitchRoot,
                Step::HostKeys,
            ]
        );
    }

    #[test]
    fn a_missing_disk_ends_the_boot_unless_it_may_be_missing() {
        let mut cidata = with_mounts(vec![mount(Source::Name("vdz".into()), "/d")]);
        let result = plan(&line(Upper::Auto), &cidata, &[]);
        let message = "no disk /dev/vdz for /d; there are: none";
        assert_eq!(result.unwrap_err().to_string(), message);
        assert!(is_waiting(&line(Upper::Auto), &cidata, &[]));
        assert!(!is_waiting(&line(Upper::Auto), &cidata, &[disk("vdz", "")]));
        cidata.mounts[0].options.nofail = true;
        assert!(!is_waiting(&line(Upper::Auto), &cidata, &[]));
        let steps = plan(&line(Upper::Auto), &cidata, &[]).unwrap();
        assert!(steps.contains(&Step::Warn(message.into())));
    }

    #[test]
    fn the_boot_waits_for_the_root_disk_only_if_it_must_be_there() {
        let none = CiData::default();
        assert!(is_waiting(&line(Upper::Disk), &none, &[disk("vda", "x")]));
        assert!(!is_waiting(&line(Upper::Disk), &none, &[disk("vda", "rootfs")]));
        assert!(!is_waiting(&line(Upper::Auto), &none, &[]));
    }

    #[test]
    fn no_disk_serves_two_masters() {
        let cidata = with_mounts(vec![mount(Source::Name("vda".into()), "/d")]);
        let result = plan(&line(Upper::Auto), &cidata, &[disk("vda", "rootfs")]);
        assert_eq!(
            result.unwrap_err().to_string(),
            "/dev/vda (serial \"rootfs\") is wanted for what is written to the root and for /d"
        );
        let by_both = with_mounts(vec![
            mount(Source::Name("vda".into()), "/d"),
            mount(Source::Serial("x".into()), "/e"),
        ]);
        let result = plan(&line(Upper::Auto), &by_both, &[disk("vda", "x")]);
        assert!(matches!(result, Err(Error::Taken { .. })));
        let twins = [disk("vda", "rootfs"), disk("vdb", "rootfs")];
        assert_eq!(upper_of(Upper::Auto, &twins), Err(Error::Twins("rootfs".into())));
    }
}
