//! The description itself: [`VmSpec`], version 1.
//!
//! Every field but `version` has a default, so a file can be as short as what it means to say. The
//! defaults are written out again by `--print-config`: a saved description keeps its meaning when a
//! default changes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::devices::{BalloonSpec, DiskSpec, FsSpec, NetSpec, OutputSpec, VsockSpec, WatchdogSpec};
use crate::suggest::nearest;
use crate::{BadValue, RateSpec, Size, SpecError};

/// The version of descriptions that this program reads and writes.
pub const SPEC_VERSION: u32 = 1;

/// What somebody wants a VM to be. May be nonsense: [`verify`](Self::verify) tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Always [`SPEC_VERSION`].
    pub version: u32,
    /// The guest's kernel: an ELF `vmlinux`, a `bzImage`, or an ELF with a PVH entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The initial file system, as a cpio archive that the kernel can unpack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line. If not given, one that boots fast and quietly and follows the
    /// `console` and `serial` fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Processors.
    #[serde(default)]
    pub cpus: CpuSpec,
    /// Memory.
    #[serde(default)]
    pub memory: MemorySpec,
    /// Disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Network cards, in the order in which the guest finds them.
    #[serde(default)]
    pub nets: Vec<NetSpec>,
    /// Shared file systems.
    #[serde(default)]
    pub fs: Vec<FsSpec>,
    /// A socket device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSpec>,
    /// An entropy source.
    #[serde(default)]
    pub rng: bool,
    /// A memory balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonSpec>,
    /// Where the virtio console (`hvc0`) goes.
    #[serde(default)]
    pub console: OutputSpec,
    /// Where the serial port (`ttyS0`) goes. Slow: every character costs two exits.
    #[serde(default)]
    pub serial: OutputSpec,
    /// A device through which the guest's kernel says that it panicked.
    #[serde(default = "on")]
    pub pvpanic: bool,
    /// Ends a guest whose heartbeat over vsock stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogSpec>,
    /// What a reset that the guest asks for does.
    #[serde(default)]
    pub on_reset: OnReset,
    /// Where the HTTP interface listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_socket: Option<PathBuf>,
    /// What the VMM may do to the host.
    #[serde(default)]
    pub jail: JailSpec,
}

/// Processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuSpec {
    /// How many, 1 to 255.
    #[serde(default = "one_cpu")]
    pub count: u16,
    /// Which features of the host's processor the guest sees.
    #[serde(default)]
    pub template: CpuTemplate,
}

/// Which processor features a guest sees. A guest under one of the baselines can move, as a
/// snapshot, between all hosts of a vendor that have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuTemplate {
    /// All that KVM can give on this host.
    #[default]
    Host,
    /// The psABI's x86-64-v2, with AES and carry-less multiplication.
    BaselineV2,
    /// The psABI's x86-64-v3, with AES, carry-less multiplication and RDRAND.
    BaselineV3,
}

/// Memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemorySpec {
    /// How much the guest has.
    #[serde(default = "default_memory_size")]
    pub size: Size,
    /// Pages from the host's hugetlbfs pool instead of ordinary ones.
    #[serde(default)]
    pub hugepages: HugePages,
    /// In a `memfd` that other processes can map; costs page faults.
    #[serde(default)]
    pub shared: bool,
    /// Transparent huge pages, where the memory has ordinary pages.
    #[serde(default = "on")]
    pub thp: bool,
}

/// Which pages of the host's hugetlbfs pools memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// None: ordinary pages.
    #[default]
    #[serde(rename = "off")]
    Off,
    /// Of 2 MiB.
    #[serde(rename = "2M")]
    Size2M,
    /// Of 1 GiB.
    #[serde(rename = "1G")]
    Size1G,
}

impl HugePages {
    /// The size of a page, in bytes.
    #[must_use]
    pub const fn page_size(self) -> u64 {
        match self {
            Self::Off => 4 << 10,
            Self::Size2M => 2 << 20,
            Self::Size1G => 1 << 30,
        }
    }
}

/// What a reset that the guest asks for does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// The machine starts again, in the same process.
    #[default]
    Reboot,
    /// The process ends, with status 10.
    Exit,
}

/// What the VMM may do to the host. In the jail it has namespaces and an empty root directory of its
/// own, a system call filter for each thread, and no capabilities but those that a shared directory
/// takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    /// Off is for debugging: a guest that breaks out of the VMM is then whoever started it.
    #[serde(default = "on")]
    pub enabled: bool,
    /// The user that the VMM becomes, if root starts it. If not given, one that no other VMM has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group that the VMM becomes; the same number as the user's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The cgroup (v2) that it moves into: a directory that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// `memory.max` of the cgroup: more than the guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<Size>,
    /// `cpu.max` of the cgroup, in percent of one processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_max_percent: Option<u32>,
    /// `pids.max` of the cgroup: how many threads there may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_max: Option<u32>,
    /// `io.max` of the cgroup, for each block device that the VM's disks and shared directories are
    /// on: so much read and so much written. The kernel knows no bursts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_max: Option<RateSpec>,
}

impl Default for VmSpec {
    /// Nothing but one processor and 256 MiB; not even a kernel.
    fn default() -> Self {
        Self {
            version: SPEC_VERSION,
            kernel: None,
            initramfs: None,
            cmdline: None,
            cpus: CpuSpec::default(),
            memory: MemorySpec::default(),
            disks: Vec::new(),
            nets: Vec::new(),
            fs: Vec::new(),
            vsock: None,
            rng: false,
            balloon: None,
            console: OutputSpec::default(),
            serial: OutputSpec::default(),
            pvpanic: on(),
            watchdog: None,
            on_reset: OnReset::default(),
            api_socket: None,
            jail: JailSpec::default(),
        }
    }
}

impl Default for CpuSpec {
    fn default() -> Self {
        Self { count: one_cpu(), template: CpuTemplate::default() }
    }
}

impl Default for MemorySpec {
    fn default() -> Self {
        Self {
            size: default_memory_size(),
            hugepages: HugePages::default(),
            shared: false,
            thp: on(),
        }
    }
}

impl Default for JailSpec {
    fn default() -> Self {
        Self {
            enabled: on(),
            uid: None,
            gid: None,
            cgroup: None,
            memory_max: None,
            cpu_max_percent: None,
            pids_max: None,
            io_max: None,
        }
    }
}

impl VmSpec {
    /// Reads a description.
    ///
    /// # Errors
    /// [`SpecError::Version`] for another version than this program's, whatever else is in there;
    /// [`SpecError::Json`] with the field and its place in the text for everything else.
    pub fn from_json(json: &[u8]) -> Result<Self, SpecError> {
        let version: AnyVersion = read_json(json)?;
        if version.version != SPEC_VERSION {
            return Err(SpecError::Version { found: version.version.to_string() });
        }
        read_json(json)
    }

    /// Writes the description, for people to read: with all defaults, and a line break at the end.
    ///
    /// # Errors
    /// When a path is not UTF-8, which JSON can't say; a verified description has no such path.
    pub fn to_json(&self) -> Result<String, SpecError> {
        let json = serde_json::to_string_pretty(self);
        json.map(|json| json + "\n").map_err(|error| SpecError::Json {
            at: "the description".to_owned(),
            message: error.to_string(),
            suggestion: None,
        })
    }
}

/// The one field that every version has.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

/// Reads JSON of a description or a part of it, and says which field is wrong.
///
/// # Errors
/// [`SpecError::Json`], with the field and its place in the text.
pub fn read_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, SpecError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let at = if path == "." { "the description".to_owned() } else { path };
        json_error(at, &error.into_inner())
    })?;
    deserializer.end().map_err(|error| json_error("the description".to_owned(), &error))?;
    Ok(value)
}

fn json_error(at: String, error: &serde_json::Error) -> SpecError {
    let message = error.to_string();
    let suggestion = suggestion(&message);
    SpecError::Json { at, message, suggestion }
}

/// What an unknown field or variant was meant to be, from serde's own words: ``unknown field `a`,
/// expected one of `b`, `c` ``.
fn suggestion(message: &str) -> Option<String> {
    let mut words = message.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    let given = words.next()?;
    nearest(given, words).map(str::to_owned)
}

/// Lets an enum of plain names be read from a flag by the same names as from JSON.
macro_rules! from_str_like_json {
    ($($name:ty),*) => {$(
        impl std::str::FromStr for $name {
            type Err = BadValue;

            fn from_str(text: &str) -> Result<Self, BadValue> {
                use serde::de::{IntoDeserializer, value::Error};
                let deserializer: serde::de::value::StrDeserializer<'_, Error> =
                    text.into_deserializer();
                Self::deserialize(deserializer).map_err(|error| one_of(&error.to_string()))
            }
        }
    )*};
}

/// The rule in serde's words: ``unknown variant `a`, expected `b` or `c` ``.
fn one_of(message: &str) -> BadValue {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).skip(1).collect();
    let rule = match names.as_slice() {
        [] => message.to_owned(),
        [only] => format!("it is {only}"),
        [first @ .., last] => format!("it is {} or {last}", first.join(", ")),
    };
    BadValue(rule)
}

from_str_like_json!(CpuTemplate, HugePages, OnReset);

const fn on() -> bool {
    true
}

const fn one_cpu() -> u16 {
    1
}

const fn default_memory_size() -> Size {
    Size::from_mib(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> SpecError {
        VmSpec::from_json(json.as_bytes()).unwrap_err()
    }

    #[test]
    fn the_version_is_enough() {
        assert_eq!(VmSpec::from_json(b"{\"version\": 1}").unwrap(), VmSpec::default());
        assert!(error("{}").to_string().contains("missing field `version`"));
    }

    #[test]
    fn another_version_is_named_before_its_unknown_fields() {
        let error = error("{\"version\": 2, \"flux\": {}}");
        assert_eq!(error.to_string(), "version 2: this program reads version 1");
    }

    #[test]
    fn errors_name_the_field_and_the_place() {
        let unknown =
            error("{\"version\": 1,\n \"disks\": [{\"path\": \"a\", \"seriel\": \"x\"}]}");
        let message = unknown.to_string();
        assert!(
            message.starts_with("disks[0].seriel: unknown field `seriel`, expected"),
            "{message}"
        );
        assert!(message.ends_with("at line 2 column 33"), "{message}");
        assert_eq!(unknown.hint().as_deref(), Some("did you mean `serial`?"));
        let size = error("{\"version\": 1, \"memory\": {\"size\": \"1.5G\"}}").to_string();
        assert!(size.starts_with("memory.size: \"1.5G\": a size is a whole number"), "{size}");
        let trailing = error("{\"version\": 1} x").to_string();
        assert!(trailing.contains("trailing characters"), "{trailing}");
    }

    #[test]
    fn names_are_the_same_in_flags() {
        assert_eq!("baseline-v3".parse(), Ok(CpuTemplate::BaselineV3));
        assert_eq!("2M".parse(), Ok(HugePages::Size2M));
        assert_eq!("exit".parse(), Ok(OnReset::Exit));
        let error = "baseline-v5".parse::<CpuTemplate>().unwrap_err().to_string();
        assert_eq!(error, "it is host, baseline-v2 or baseline-v3");
    }
}
