//! The rules: from [`VmSpec`] to [`VerifiedSpec`].
//!
//! Everything that can be checked without looking at the host is checked here, once; what needs the
//! host (does the file exist, is the memory there) fails later, in the machine, with the same names.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::cmdline::default_cmdline;
use crate::devices::{DiskSpec, FsSource, FsSpec, NetSpec, OutputSpec};
use crate::spec::{CpuSpec, HugePages, MemorySpec, SPEC_VERSION, VmSpec};
use crate::verified::{Bucket, Disk, Fs, Net, NetBackend, RateLimit, Verified, VerifiedSpec, Vm};
use crate::verify_jail::jail;
use crate::{RateSpec, Size, SpecError};

/// Processors of a VM: with x2APIC off, an APIC id has 8 bits and 255 is the broadcast.
pub const CPU_COUNT_MAX: u16 = 255;
/// The least memory that anything can be loaded into.
pub const MEMORY_SIZE_MIN: u64 = 2 << 20;
/// The most memory that the machine has addresses for; hosts usually have fewer.
pub const MEMORY_SIZE_MAX: u64 = 16 << 40;
/// Longest kernel command line in bytes: x86's `COMMAND_LINE_SIZE` without its NUL.
pub const CMDLINE_SIZE_MAX: usize = 2047;
/// Devices of a VM: the slots of its PCI bus, without the host bridge's.
pub const DEVICE_COUNT_MAX: usize = 31;
/// Longest id of a device, in bytes.
pub const ID_SIZE_MAX: usize = 32;
/// Longest serial number of a disk, in bytes (virtio 1.3 §5.2.6, `VIRTIO_BLK_T_GET_ID`).
pub const DISK_SERIAL_SIZE_MAX: usize = 20;
/// Most queues of a disk, and most queue pairs of a network card.
pub const QUEUE_COUNT_MAX: u16 = 16;
/// Longest tag of a file system, in bytes (virtio 1.3 §5.11.4).
pub const FS_TAG_SIZE_MAX: usize = 36;
/// Longest name of a network interface, in bytes (`IFNAMSIZ` without its NUL).
pub const TAP_NAME_SIZE_MAX: usize = 15;
/// Smallest MTU: what IPv4 asks of every link (RFC 791 §3.2).
pub const MTU_MIN: u16 = 68;
/// Smallest address of a guest on vsock; 0 to 2 are taken (virtio 1.3 §5.10.4).
pub const VSOCK_CID_MIN: u32 = 3;
/// Longest path of a unix socket, in bytes (`sun_path` without its NUL).
pub const SOCKET_PATH_SIZE_MAX: usize = 107;
/// Longest pause that a watchdog can allow, in seconds.
pub const WATCHDOG_TIMEOUT_MAX_S: u32 = 3600;
/// The most bytes or operations a second that a limit can allow: more is none.
pub const RATE_MAX: u64 = 1 << 50;
/// What vsock adds to its socket's path: `_` and a port.
const VSOCK_SUFFIX_SIZE_MAX: usize = 11;
/// The first descriptor that isn't standard input, output or error.
const DESCRIPTOR_MIN: i32 = 3;

impl VmSpec {
    /// Checks every rule that needs no look at the host.
    ///
    /// # Errors
    /// The first rule that is broken, with the flag and the value.
    pub fn verify(self) -> Result<VerifiedSpec, SpecError> {
        if self.version != SPEC_VERSION {
            return Err(SpecError::Version { found: self.version.to_string() });
        }
        let mut names = Names::default();
        let vm = Vm {
            kernel: kernel(&self)?,
            initramfs: self.initramfs.as_deref().map(|p| path("--initramfs", p)).transpose()?,
            cmdline: cmdline(&self)?,
            cpus: cpus(self.cpus)?,
            memory: memory(self.memory)?,
            disks: each(&self.disks, |index, disk| names.disk(index, disk))?,
            nets: each(&self.nets, |index, net| names.net(index, net))?,
            fs: each(&self.fs, |index, fs| names.fs(index, fs))?,
            vsock: vsock(&self, &mut names)?,
            rng: self.rng,
            balloon: balloon(&self)?,
            console: output("--console", &self.console)?,
            serial: output("--serial", &self.serial)?,
            pvpanic: self.pvpanic,
            watchdog: watchdog(&self)?,
            on_reset: self.on_reset,
            api_socket: api_socket(&self, &mut names)?,
            jail: jail(&self.jail, self.memory.size)?,
        };
        if self.console == OutputSpec::Stdio && self.serial == OutputSpec::Stdio {
            let both = "--console and --serial are both stdio: only one can have it";
            return Err(SpecError::Conflict(both.to_owned()));
        }
        check_device_count(&self)?;
        let spec = Self {
            disks: vm.disks.iter().map(|disk| disk.spec.clone()).collect(),
            nets: vm.nets.iter().map(|net| net.spec.clone()).collect(),
            ..self
        };
        Ok(VerifiedSpec { vm, spec })
    }

    /// How many slots of the PCI bus its devices take.
    fn device_count(&self) -> usize {
        let single = [
            self.vsock.is_some(),
            self.rng,
            self.balloon.is_some(),
            self.console != OutputSpec::Off,
            self.pvpanic,
        ];
        let single = single.into_iter().filter(|there| *there).count();
        self.disks.len() + self.nets.len() + self.fs.len() + single
    }
}

impl DiskSpec {
    /// Verifies a disk that is to be plugged into the running VM that `spec` describes. Without an
    /// id it gets the first one that is free.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn verify_beside(&self, spec: &VmSpec) -> Result<Verified<Disk>, SpecError> {
        let mut names = Names::of(spec)?;
        check_free_slot(spec)?;
        let index = names.free("disk");
        names.disk(index, self)
    }
}

impl NetSpec {
    /// Verifies a network card that is to be plugged into the running VM that `spec` describes.
    /// Without an id it gets the first one that is free.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn verify_beside(&self, spec: &VmSpec) -> Result<Verified<Net>, SpecError> {
        let mut names = Names::of(spec)?;
        check_free_slot(spec)?;
        let index = names.free("net");
        names.net(index, self)
    }
}

/// What no two devices may have in common.
#[derive(Default)]
struct Names {
    ids: HashSet<String>,
    tags: HashSet<String>,
    sockets: HashSet<PathBuf>,
    taps: HashSet<String>,
    descriptors: HashSet<i32>,
    /// Paths of disks, and whether somebody writes there.
    disks: Vec<(PathBuf, bool)>,
}

impl Names {
    /// The names in a description.
    fn of(spec: &VmSpec) -> Result<Self, SpecError> {
        let mut names = Self::default();
        each(&spec.disks, |index, disk| names.disk(index, disk))?;
        each(&spec.nets, |index, net| names.net(index, net))?;
        Ok(names)
    }

    /// The first number with which `kind` makes an id that is free.
    fn free(&self, kind: &str) -> usize {
        let taken = |index: &usize| self.ids.contains(&format!("{kind}{index}"));
        (0..=self.ids.len()).find(|index| !taken(index)).unwrap_or(self.ids.len())
    }

    fn disk(&mut self, index: usize, spec: &DiskSpec) -> Result<Verified<Disk>, SpecError> {
        let flag = &format!("--disk[{index}]");
        let serial = spec.serial.clone().unwrap_or_default();
        if serial.len() > DISK_SERIAL_SIZE_MAX {
            let rule = format!("{} bytes, the limit is {DISK_SERIAL_SIZE_MAX}", serial.len());
            return Err(SpecError::option(flag, "serial", &serial, rule));
        }
        if !serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            return Err(SpecError::option(flag, "serial", &serial, "it has printable ASCII only"));
        }
        let path = path(&format!("{flag} path"), &spec.path)?;
        if self.disks.iter().any(|(other, written)| *other == path && (*written || !spec.readonly))
        {
            let rule = "another disk has it, and one of the two is written to";
            return Err(SpecError::option(flag, "path", &path.to_string_lossy(), rule));
        }
        self.disks.push((path.clone(), !spec.readonly));
        let id = self.id(flag, "disk", index, spec.id.as_deref())?;
        Ok(Verified(Disk {
            spec: DiskSpec { id: Some(id.clone()), ..spec.clone() },
            id,
            path,
            readonly: spec.readonly,
            serial,
            rate: rate(flag, spec.rate)?,
            direct: spec.direct,
            queues: queues(flag, spec.queues)?,
        }))
    }

    fn net(&mut self, index: usize, spec: &NetSpec) -> Result<Verified<Net>, SpecError> {
        let flag = &format!("--net[{index}]");
        if let Some(mac) = spec.mac.filter(|mac| mac.is_multicast() || mac.0 == [0; 6]) {
            let rule = "the address of one card is not zero, and its first byte is even";
            return Err(SpecError::option(flag, "mac", &mac.to_string(), rule));
        }
        if let Some(mtu) = spec.mtu.filter(|mtu| *mtu < MTU_MIN) {
            let rule = format!("it is at least {MTU_MIN}");
            return Err(SpecError::option(flag, "mtu", &mtu.to_string(), rule));
        }
        let id = self.id(flag, "net", index, spec.id.as_deref())?;
        Ok(Verified(Net {
            spec: NetSpec { id: Some(id.clone()), ..spec.clone() },
            id,
            queues: queues(flag, spec.queues)?,
            backend: self.backend(flag, spec)?,
            mac: spec.mac,
            mtu: spec.mtu,
            rate: rate(flag, spec.rate)?,
        }))
    }

    fn backend(&mut self, flag: &str, spec: &NetSpec) -> Result<NetBackend, SpecError> {
        match (&spec.tap, spec.fds.as_slice()) {
            (None, []) => {
                let why = "a network card is backed by a tap interface";
                Err(SpecError::missing(format!("{flag} tap=… or fd=…"), why))
            }
            (Some(_), [_, ..]) => {
                Err(SpecError::Conflict(format!("{flag} has both tap=… and fd=…: one is enough")))
            }
            (Some(tap), []) => {
                tap_name(flag, tap)?;
                if !self.taps.insert(tap.clone()) {
                    return Err(SpecError::option(flag, "tap", tap, "another card has it"));
                }
                Ok(NetBackend::Tap(tap.clone()))
            }
            (None, fds) => {
                let bad = |fd: i32, rule| SpecError::option(flag, "fd", &fd.to_string(), rule);
                if fds.len() != usize::from(spec.queues) {
                    let rule = format!("{} descriptors for {} queue pairs", fds.len(), spec.queues);
                    return Err(bad(fds[0], rule.as_str()));
                }
                for fd in fds {
                    if *fd < DESCRIPTOR_MIN {
                        return Err(bad(*fd, "0 to 2 are standard input, output and error"));
                    }
                    if !self.descriptors.insert(*fd) {
                        return Err(bad(*fd, "it is given twice"));
                    }
                }
                Ok(NetBackend::Descriptors(fds.to_vec()))
            }
        }
    }

    fn fs(&mut self, index: usize, spec: &FsSpec) -> Result<Verified<Fs>, SpecError> {
        let flag = &format!("--fs[{index}]");
        let bad = |rule: &str| SpecError::option(flag, "tag", &spec.tag, rule);
        match spec.tag.len() {
            0 => return Err(bad("it is empty")),
            1..=FS_TAG_SIZE_MAX => {}
            size => return Err(bad(&format!("{size} bytes, the limit is {FS_TAG_SIZE_MAX}"))),
        }
        if spec.tag.contains('\0') {
            return Err(bad("it has a NUL in it"));
        }
        if !self.tags.insert(spec.tag.clone()) {
            return Err(bad("another file system has it"));
        }
        match &spec.source {
            FsSource::Flist { image, cache, upper, quota } => {
                path(&format!("{flag} flist"), image)?;
                socket(&format!("{flag} cache"), cache, 0)?;
                upper.as_deref().map(|p| path(&format!("{flag} upper"), p)).transpose()?;
                if upper.is_none() && quota.is_some() {
                    let stray = format!("{flag} has a quota and no upper: nothing is written");
                    return Err(SpecError::Conflict(stray));
                }
            }
            FsSource::Dir { path: dir, .. } => drop(path(&format!("{flag} dir"), dir)?),
        }
        let (FsSource::Flist { quota, .. } | FsSource::Dir { quota, .. }) = &spec.source;
        if *quota == Some(Size::from_bytes(0)) {
            return Err(SpecError::option(flag, "quota", "0", "nothing would fit"));
        }
        Ok(Verified(Fs { tag: spec.tag.clone(), source: spec.source.clone() }))
    }

    fn id(
        &mut self,
        flag: &str,
        kind: &str,
        index: usize,
        given: Option<&str>,
    ) -> Result<String, SpecError> {
        let id = given.map_or_else(|| format!("{kind}{index}"), str::to_owned);
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if id.is_empty()
            || id.len() > ID_SIZE_MAX
            || !id.bytes().all(allowed)
            || id.starts_with('.')
        {
            let rule = format!(
                "an id has 1 to {ID_SIZE_MAX} letters, digits, `-`, `_` or `.`, not `.` first"
            );
            return Err(SpecError::option(flag, "id", &id, rule));
        }
        if !self.ids.insert(id.clone()) {
            let rule = if given.is_some() {
                "another device has it"
            } else {
                "that is its id unless it is given one, and another device has it"
            };
            return Err(SpecError::option(flag, "id", &id, rule));
        }
        Ok(id)
    }

    /// A socket that the VMM listens on: no two may be the same.
    fn own_socket(
        &mut self,
        what: &str,
        path: &Path,
        suffix_size: usize,
    ) -> Result<PathBuf, SpecError> {
        let path = socket(what, path, suffix_size)?;
        if !self.sockets.insert(path.clone()) {
            return Err(bad_path(what, &path, "another socket has it"));
        }
        Ok(path)
    }
}

fn each<S, T>(
    specs: &[S],
    mut verify: impl FnMut(usize, &S) -> Result<T, SpecError>,
) -> Result<Vec<T>, SpecError> {
    specs.iter().enumerate().map(|(index, spec)| verify(index, spec)).collect()
}

fn kernel(spec: &VmSpec) -> Result<PathBuf, SpecError> {
    let why = "a VM boots a kernel: an ELF `vmlinux`, a `bzImage` or an ELF with a PVH entry";
    let kernel = spec.kernel.as_deref().ok_or_else(|| SpecError::missing("--kernel", why))?;
    path("--kernel", kernel)
}

fn cmdline(spec: &VmSpec) -> Result<String, SpecError> {
    let Some(cmdline) = &spec.cmdline else { return Ok(default_cmdline(spec)) };
    if cmdline.len() > CMDLINE_SIZE_MAX {
        let rule = format!("{} bytes, the limit is {CMDLINE_SIZE_MAX}", cmdline.len());
        return Err(SpecError::flag("--cmdline", cmdline, rule));
    }
    if cmdline.chars().any(char::is_control) {
        return Err(SpecError::flag("--cmdline", cmdline, "it has a control character in it"));
    }
    Ok(cmdline.clone())
}

fn cpus(cpus: CpuSpec) -> Result<CpuSpec, SpecError> {
    if cpus.count == 0 || cpus.count > CPU_COUNT_MAX {
        let rule = format!("a VM has 1 to {CPU_COUNT_MAX} processors");
        return Err(SpecError::option("--cpus", "count", &cpus.count.to_string(), rule));
    }
    Ok(cpus)
}

fn memory(memory: MemorySpec) -> Result<MemorySpec, SpecError> {
    let size = memory.size;
    let bad = |rule: String| SpecError::option("--memory", "size", &size.to_string(), rule);
    if size.bytes() < MEMORY_SIZE_MIN {
        // A number without a unit is bytes, which nobody means who writes `--memory 512`.
        let meant = (16..=65_536).contains(&size.bytes()).then(|| format!("{}M", size.bytes()));
        let least = Size::from_bytes(MEMORY_SIZE_MIN);
        return Err(bad(format!("a VM has at least {least} of memory")).suggest(meant));
    }
    if size.bytes() > MEMORY_SIZE_MAX {
        let most = Size::from_bytes(MEMORY_SIZE_MAX);
        return Err(bad(format!("a VM has at most {most} of memory")));
    }
    // KVM and ACPI are told of whole MiB.
    let page_size = memory.hugepages.page_size().max(1 << 20);
    if !size.bytes().is_multiple_of(page_size) {
        let page_size = Size::from_bytes(page_size);
        let whose = if memory.hugepages == HugePages::Off { "pieces" } else { "huge pages" };
        return Err(bad(format!("it is not made of whole {whose} of {page_size}")));
    }
    Ok(memory)
}

fn balloon(spec: &VmSpec) -> Result<Option<crate::BalloonSpec>, SpecError> {
    if let Some(balloon) = spec.balloon
        && balloon.target >= spec.memory.size
    {
        let rule = format!("the guest has {} in all", spec.memory.size);
        let target = balloon.target.to_string();
        return Err(SpecError::option("--balloon", "target", &target, rule));
    }
    Ok(spec.balloon)
}

fn vsock(spec: &VmSpec, names: &mut Names) -> Result<Option<crate::VsockSpec>, SpecError> {
    let Some(vsock) = &spec.vsock else { return Ok(None) };
    if vsock.cid < VSOCK_CID_MIN || vsock.cid == u32::MAX {
        let rule = format!("a guest's address is {VSOCK_CID_MIN} to {}", u32::MAX - 1);
        return Err(SpecError::option("--vsock", "cid", &vsock.cid.to_string(), rule));
    }
    names.own_socket("--vsock socket", &vsock.socket, VSOCK_SUFFIX_SIZE_MAX)?;
    Ok(Some(vsock.clone()))
}

fn watchdog(spec: &VmSpec) -> Result<Option<crate::WatchdogSpec>, SpecError> {
    let Some(watchdog) = spec.watchdog else { return Ok(None) };
    if watchdog.timeout_s == 0 || watchdog.timeout_s > WATCHDOG_TIMEOUT_MAX_S {
        let rule = format!("it waits 1 to {WATCHDOG_TIMEOUT_MAX_S} seconds");
        let timeout = watchdog.timeout_s.to_string();
        return Err(SpecError::option("--watchdog", "timeout_s", &timeout, rule));
    }
    if spec.vsock.is_none() {
        return Err(SpecError::missing("--vsock", "--watchdog hears the heartbeat through it"));
    }
    Ok(Some(watchdog))
}

fn output(flag: &str, output: &OutputSpec) -> Result<OutputSpec, SpecError> {
    if let OutputSpec::File { path: file } = output {
        path(&format!("{flag} file"), file)?;
    }
    Ok(output.clone())
}

fn api_socket(spec: &VmSpec, names: &mut Names) -> Result<Option<PathBuf>, SpecError> {
    spec.api_socket.as_deref().map(|path| names.own_socket("--api-socket", path, 0)).transpose()
}

fn queues(flag: &str, queues: u16) -> Result<u16, SpecError> {
    if queues == 0 || queues > QUEUE_COUNT_MAX {
        let rule = format!("it is 1 to {QUEUE_COUNT_MAX}");
        return Err(SpecError::option(flag, "queues", &queues.to_string(), rule));
    }
    Ok(queues)
}

fn rate(flag: &str, spec: Option<RateSpec>) -> Result<RateLimit, SpecError> {
    let Some(spec) = spec else { return Ok(RateLimit::default()) };
    if spec.bytes_per_s.is_none() && spec.ops_per_s.is_none() {
        return Err(SpecError::missing(format!("{flag} rate=…"), "it has no limit in it"));
    }
    let bucket = |per_second: Option<u64>, burst: Option<u64>| {
        let bad =
            |key, value: u64, rule| Err(SpecError::option(flag, key, &value.to_string(), rule));
        match (per_second, burst) {
            (None, None) => Ok(None),
            (Some(0), _) => bad("rate", 0, "nothing would ever move"),
            (_, Some(0)) => bad("burst", 0, "nothing would ever move"),
            (Some(over), _) if over > RATE_MAX => bad("rate", over, "that is no limit"),
            (_, Some(over)) if over > RATE_MAX => bad("burst", over, "that is no limit"),
            (None, Some(burst)) => bad("burst", burst, "there is no rate of its kind"),
            (Some(per_second), burst) => {
                Ok(Some(Bucket { per_second, burst: burst.unwrap_or(per_second) }))
            }
        }
    };
    Ok(RateLimit {
        bytes: bucket(spec.bytes_per_s.map(Size::bytes), spec.burst_bytes.map(Size::bytes))?,
        operations: bucket(spec.ops_per_s, spec.burst_ops)?,
    })
}

fn tap_name(flag: &str, name: &str) -> Result<(), SpecError> {
    let bad = |rule: &str| Err(SpecError::option(flag, "tap", name, rule));
    if name.len() > TAP_NAME_SIZE_MAX {
        return bad(&format!("{} bytes, the limit is {TAP_NAME_SIZE_MAX}", name.len()));
    }
    let odd = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name == "." || name == ".." || name.contains(odd) {
        return bad("no network interface can have this name");
    }
    Ok(())
}

pub(crate) fn path(what: &str, path: &Path) -> Result<PathBuf, SpecError> {
    let Some(text) = path.to_str() else {
        return Err(bad_path(what, path, "it is not UTF-8"));
    };
    if text.is_empty() {
        return Err(bad_path(what, path, "it is empty"));
    }
    if text.contains('\0') {
        return Err(bad_path(what, path, "it has a NUL in it"));
    }
    Ok(path.to_owned())
}

fn socket(what: &str, given: &Path, suffix_size: usize) -> Result<PathBuf, SpecError> {
    let socket = path(what, given)?;
    let (size, limit) = (socket.as_os_str().len(), SOCKET_PATH_SIZE_MAX - suffix_size);
    if size > limit {
        let rule = format!("{size} bytes, the limit for a socket is {limit}");
        return Err(bad_path(what, &socket, &rule));
    }
    Ok(socket)
}

/// `what` is a flag, or a flag and its option.
pub(crate) fn bad_path(what: &str, path: &Path, rule: &str) -> SpecError {
    let text = path.to_string_lossy();
    match what.split_once(' ') {
        Some((flag, option)) => SpecError::option(flag, option, &text, rule),
        None => SpecError::flag(what, &text, rule),
    }
}

fn check_device_count(spec: &VmSpec) -> Result<(), SpecError> {
    let count = spec.device_count();
    if count > DEVICE_COUNT_MAX {
        let too_many =
            format!("{count} devices: the PCI bus has {DEVICE_COUNT_MAX} slots for them");
        return Err(SpecError::Conflict(too_many));
    }
    Ok(())
}

fn check_free_slot(spec: &VmSpec) -> Result<(), SpecError> {
    if spec.device_count() >= DEVICE_COUNT_MAX {
        let full = format!("all {DEVICE_COUNT_MAX} slots of the PCI bus are taken");
        return Err(SpecError::Conflict(full));
    }
    Ok(())
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
