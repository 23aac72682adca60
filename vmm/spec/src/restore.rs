//! What a clone of a snapshot has of its own.
//!
//! A snapshot knows the description of the VM that it was taken of. A VM that starts from it is the
//! same to its guest, but not to the host: its sockets, taps and disks' files are its own.
//! [`RestoreSpec`] names those; all else is as in the snapshot.

use std::path::PathBuf;

use crate::devices::{DiskSpec, FsSpec, NetSpec, OutputSpec};
use crate::spec::{JailSpec, VmSpec};
use crate::suggest::nearest;
use crate::{Flags, SpecError, VerifiedSpec};

/// The file of a snapshot's directory with the machine's state.
pub const STATE_FILE: &str = "state";
/// The file of a snapshot's directory with the guest's memory.
pub const MEMORY_FILE: &str = "memory";

/// How to start from a snapshot.
#[derive(Clone, Debug)]
pub struct RestoreSpec {
    /// Where the snapshot is.
    pub snapshot: PathBuf,
    /// How its memory gets into the guest.
    pub memory: RestoreMemory,
    /// What the guest's clocks do.
    pub clock: RestoreClock,
    /// Whether to read all of the snapshot first, and refuse it if it is damaged.
    pub verify: bool,
    /// Whether the VM waits for somebody to resume it.
    pub paused: bool,
    /// What differs from the snapshot's description.
    pub own: OwnFlags,
}

/// The flags of `vmm restore` that say what a clone has of its own, as typed.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is the flag of its name")]
pub struct OwnFlags {
    /// `id=` says which disk; its file is the clone's own.
    pub disk: Vec<String>,
    /// `id=` says which card; its tap is the clone's own.
    pub net: Vec<String>,
    /// `tag=` says which file system; what it serves is the clone's own.
    pub fs: Vec<String>,
    pub vsock: Option<String>,
    pub console: Option<String>,
    pub serial: Option<String>,
    pub api_socket: Option<PathBuf>,
    pub jail: Option<String>,
    pub no_jail: bool,
}

/// How a snapshot's memory gets into the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestoreMemory {
    /// Mapped privately: a page is read when the guest touches it, and clones share what they don't
    /// write. The snapshot must stay as it is while the VM runs. A balloon gives nothing back to the host:
    /// under what it takes are the snapshot's pages. Memory that is shared or made of huge pages is copied.
    #[default]
    Lazy,
    /// Read before the guest runs.
    Copy,
}

/// What the clocks of a restored guest do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestoreClock {
    /// They have moved on by the time that passed since the snapshot: the wall clock is right at once, and
    /// timers that were due meanwhile fire.
    #[default]
    Advance,
    /// They go on as if no time had passed. The wall clock is wrong until something in the guest sets it.
    Continue,
}

impl RestoreSpec {
    /// The description of the clone of a VM that `saved` describes, in which devices have ids, as
    /// in [`VerifiedSpec::spec`].
    ///
    /// # Errors
    /// A flag that is wrong, a device that the snapshot doesn't have or that differs in what its
    /// guest already knows, or a rule that the result breaks.
    pub fn apply(&self, saved: VmSpec) -> Result<VerifiedSpec, SpecError> {
        // Neither the jail nor the API of whoever the snapshot was taken of are the clone's.
        let spec = VmSpec { jail: JailSpec::default(), api_socket: None, ..saved };
        let mut own = self.own.apply_single(spec)?;
        self.own.apply_disks(&mut own.disks)?;
        self.own.apply_nets(&mut own.nets)?;
        self.own.apply_fs(&mut own.fs)?;
        if self.paused && own.api_socket.is_none() {
            let why = "nobody could resume a VM that begins paused";
            return Err(SpecError::missing("--api-socket".to_owned(), why));
        }
        own.verify()
    }
}

impl OwnFlags {
    /// Sockets, consoles and jail.
    fn apply_single(&self, spec: VmSpec) -> Result<VmSpec, SpecError> {
        let flags = Flags {
            vsock: self.vsock.clone(),
            console: self.console.clone(),
            serial: self.serial.clone(),
            api_socket: self.api_socket.clone(),
            jail: self.jail.clone(),
            no_jail: self.no_jail,
            ..Flags::default()
        };
        let own = flags.apply(spec.clone())?;
        stays(&spec.console, &own.console, "--console")?;
        stays(&spec.serial, &own.serial, "--serial")?;
        if let Some(text) = &self.vsock
            && own.vsock.as_ref().map(|vsock| vsock.cid) != spec.vsock.map(|vsock| vsock.cid)
        {
            let rule = "the guest in the snapshot knows whether it has one, and its cid";
            return Err(SpecError::flag("--vsock", text, rule));
        }
        Ok(own)
    }

    fn apply_disks(&self, disks: &mut [DiskSpec]) -> Result<(), SpecError> {
        let known: Vec<String> =
            disks.iter().map(|disk| disk.id.clone().unwrap_or_default()).collect();
        for (index, text) in self.disk.iter().enumerate() {
            let flag = format!("--disk[{index}]");
            let disk = DiskSpec::parse(&flag, text)?;
            disks[place(&flag, "id", disk.id.as_deref(), &known)?].path = disk.path;
        }
        Ok(())
    }

    fn apply_nets(&self, nets: &mut [NetSpec]) -> Result<(), SpecError> {
        let known: Vec<String> =
            nets.iter().map(|net| net.id.clone().unwrap_or_default()).collect();
        for (index, text) in self.net.iter().enumerate() {
            let flag = format!("--net[{index}]");
            let own = NetSpec::parse(&flag, text)?;
            let net = &mut nets[place(&flag, "id", own.id.as_deref(), &known)?];
            (net.tap, net.fds) = (own.tap, own.fds);
        }
        Ok(())
    }

    fn apply_fs(&self, fs: &mut [FsSpec]) -> Result<(), SpecError> {
        let known: Vec<String> = fs.iter().map(|fs| fs.tag.clone()).collect();
        for (index, text) in self.fs.iter().enumerate() {
            let flag = format!("--fs[{index}]");
            let own = FsSpec::parse(&flag, text)?;
            fs[place(&flag, "tag", Some(&own.tag), &known)?].source = own.source;
        }
        Ok(())
    }
}

/// A console can move, but neither appear nor vanish under a guest that runs.
fn stays(before: &OutputSpec, after: &OutputSpec, flag: &str) -> Result<(), SpecError> {
    let [was, is] = [before, after].map(|output| *output != OutputSpec::Off);
    let message = match (was, is) {
        (true, false) => "the guest in the snapshot has it, so it can't be off",
        (false, true) => "the guest in the snapshot has none",
        _ => return Ok(()),
    };
    Err(SpecError::flag(flag, &after.to_options(), message))
}

/// Which of the `known` devices is meant.
fn place(flag: &str, key: &str, given: Option<&str>, known: &[String]) -> Result<usize, SpecError> {
    let given = given.ok_or_else(|| {
        let why = "which of the snapshot's devices is meant";
        SpecError::missing(format!("{flag} {key}=…"), why)
    })?;
    known.iter().position(|known| known == given).ok_or_else(|| {
        let near = nearest(given, known.iter().map(String::as_str)).map(str::to_owned);
        let rule = match known {
            [] => "the snapshot has no such device".to_owned(),
            _ => format!("the snapshot has {}", known.join(", ")),
        };
        SpecError::option(flag, key, given, rule).suggest(near)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{NetBackend, VsockSpec};

    fn saved() -> VmSpec {
        VmSpec {
            kernel: Some("vmlinux".into()),
            disks: vec![DiskSpec::parse("", "a.img,id=disk0").unwrap()],
            nets: vec![NetSpec::parse("", "tap0,id=lan").unwrap()],
            vsock: Some(VsockSpec { cid: 3, socket: "/run/a".into() }),
            console: OutputSpec::Stdio,
            api_socket: Some("/run/a.sock".into()),
            ..VmSpec::default()
        }
    }

    fn restore(own: OwnFlags) -> Result<VerifiedSpec, SpecError> {
        spec(own, false).apply(saved())
    }

    fn spec(own: OwnFlags, paused: bool) -> RestoreSpec {
        let (memory, clock) = (RestoreMemory::Lazy, RestoreClock::Advance);
        RestoreSpec { snapshot: "s".into(), memory, clock, verify: false, paused, own }
    }

    #[test]
    fn a_clone_has_its_own_files_taps_and_sockets() {
        let clone = restore(OwnFlags {
            disk: vec!["id=disk0,path=b.img".into()],
            net: vec!["id=lan,tap=tap1".into()],
            vsock: Some("socket=/run/b".into()),
            console: Some("pty".into()),
            ..OwnFlags::default()
        })
        .unwrap();
        assert_eq!(clone.disks[0].path, Path::new("b.img"));
        assert_eq!(clone.nets[0].backend, NetBackend::Tap("tap1".into()));
        assert_eq!(clone.vsock, Some(VsockSpec { cid: 3, socket: "/run/b".into() }));
        assert_eq!((&clone.console, &clone.api_socket), (&OutputSpec::Pty, &None));
        assert_eq!(restore(OwnFlags::default()).unwrap().disks[0].path, Path::new("a.img"));
    }

    #[test]
    fn a_vm_that_waits_can_be_reached() {
        let error = spec(OwnFlags::default(), true).apply(saved()).unwrap_err().to_string();
        assert!(error.starts_with("--api-socket is missing"), "{error}");
        let own = OwnFlags { api_socket: Some("/run/b.sock".into()), ..OwnFlags::default() };
        spec(own, true).apply(saved()).unwrap();
    }

    #[test]
    fn what_the_snapshot_has_not_is_refused() {
        let error = |own| restore(own).unwrap_err();
        let disk = |text: &str| error(OwnFlags { disk: vec![text.into()], ..OwnFlags::default() });
        assert_eq!(
            disk("id=disk1,path=b").to_string(),
            "--disk[0] id=\"disk1\": the snapshot has disk0"
        );
        assert_eq!(disk("id=disk1,path=b").hint().as_deref(), Some("did you mean `disk0`?"));
        assert!(disk("b").to_string().starts_with("--disk[0] id=… is missing"));
        let fs = error(OwnFlags { fs: vec!["tag=a,dir=/b".into()], ..OwnFlags::default() });
        assert_eq!(fs.to_string(), "--fs[0] tag=\"a\": the snapshot has no such device");
        for text in ["off", "cid=4"] {
            let vsock = error(OwnFlags { vsock: Some(text.into()), ..OwnFlags::default() });
            assert!(vsock.to_string().contains("knows whether it has one"), "{vsock}");
        }
        let console = error(OwnFlags { console: Some("off".into()), ..OwnFlags::default() });
        assert!(console.to_string().contains("can't be off"));
        let serial = error(OwnFlags { serial: Some("pty".into()), ..OwnFlags::default() });
        assert_eq!(serial.to_string(), "--serial \"pty\": the guest in the snapshot has none");
    }
}
