//! The devices of a description, as JSON and as options of a flag.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::options::{Options, Writer};
use crate::suggest::nearest;
use crate::{BadValue, MacAddress, RateSpec, Size, SpecError};

/// A disk (virtio-blk).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// How the API names it; `disk` and its place if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A file with the disk's raw contents, or a block device.
    pub path: PathBuf,
    /// The guest can't write.
    #[serde(default)]
    pub readonly: bool,
    /// What the guest reads as its serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// How much it may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateSpec>,
    /// Past the host's page cache (`O_DIRECT`).
    #[serde(default)]
    pub direct: bool,
    /// Queues; more than there are processors are of no use.
    #[serde(default = "one_queue")]
    pub queues: u16,
}

/// A network card (virtio-net). Has either `tap` or `fds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// How the API names it; `net` and its place if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A tap interface that exists, or may be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Open descriptors of a tap interface that the VMM inherits, one a queue pair.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<i32>,
    /// The card's address; a random one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Queue pairs; more than there are processors are of no use.
    #[serde(default = "one_queue")]
    pub queues: u16,
    /// The largest packet, which the guest is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How much it may move, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateSpec>,
}

/// A shared file system (virtio-fs).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsSpec {
    /// What the guest mounts it by.
    pub tag: String,
    /// What is in there.
    pub source: FsSource,
}

/// What a shared file system serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum FsSource {
    /// An flist image.
    Flist {
        /// The image's file.
        image: PathBuf,
        /// The socket of the node's cache process (`flist cached`).
        cache: PathBuf,
        /// A directory that takes what the guest writes; without it, the guest can't write.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upper: Option<PathBuf>,
        /// How much fits in there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        quota: Option<Size>,
    },
    /// A directory of the host.
    Dir {
        /// The directory.
        path: PathBuf,
        /// The guest can't write.
        #[serde(default)]
        readonly: bool,
        /// How much the guest is told that fits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        quota: Option<Size>,
    },
}

/// A socket device (virtio-vsock).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's address, from 3 on.
    pub cid: u32,
    /// The host's end: connect here and say `CONNECT port`; what the guest connects to is sought at
    /// this path with `_port` at its end.
    pub socket: PathBuf,
}

/// A memory balloon (virtio-balloon).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonSpec {
    /// Memory that the guest is asked to give back, to begin with.
    #[serde(default)]
    pub target: Size,
    /// The guest takes memory back before it kills a process for want of it.
    #[serde(default = "on")]
    pub deflate_on_oom: bool,
    /// The guest says which pages are free, and the host takes them until they are used.
    #[serde(default = "on")]
    pub free_page_reporting: bool,
}

/// Where a console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum OutputSpec {
    /// There is none.
    #[default]
    Off,
    /// The VMM's standard input and output.
    Stdio,
    /// A file that grows; input comes from whoever attaches.
    File {
        /// The file; made if it isn't there.
        path: PathBuf,
    },
    /// A pseudo-terminal, whose name the API tells.
    Pty,
}

/// A heartbeat that must not stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchdogSpec {
    /// The longest pause between two beats, in seconds. Counted from the first one on.
    pub timeout_s: u32,
}

impl Default for BalloonSpec {
    fn default() -> Self {
        Self { target: Size::default(), deflate_on_oom: on(), free_page_reporting: on() }
    }
}

impl DiskSpec {
    /// Reads the value of `flag`: `path=…` or the path alone, then `readonly`, `serial=`, `rate=`,
    /// `burst=`, `direct`, `queues=`, `id=`.
    ///
    /// # Errors
    /// Which option is wrong, and the rule.
    pub fn parse(flag: &str, text: &str) -> Result<Self, SpecError> {
        const KNOWN: [&str; 8] =
            ["path", "readonly", "serial", "rate", "burst", "direct", "queues", "id"];
        let mut options = Options::parse(flag, text, Some("path"), &KNOWN)?;
        Ok(Self {
            path: options.required("path", "a disk is a file or a block device")?.into(),
            readonly: options.switch("readonly")?.unwrap_or(false),
            serial: options.text("serial")?,
            rate: rate(&mut options)?,
            direct: options.switch("direct")?.unwrap_or(false),
            queues: options.number("queues")?.unwrap_or_else(one_queue),
            id: options.text("id")?,
        })
    }

    /// The options that [`parse`](Self::parse) reads as this disk.
    #[must_use]
    pub fn to_options(&self) -> String {
        let mut writer = Writer::default();
        writer.maybe("id", self.id.as_ref()).option("path", self.path.display());
        switch(&mut writer, "readonly", self.readonly, false);
        writer.maybe("serial", self.serial.as_ref());
        write_rate(&mut writer, self.rate.as_ref());
        switch(&mut writer, "direct", self.direct, false);
        unless(&mut writer, "queues", self.queues, one_queue());
        writer.finish()
    }
}

impl NetSpec {
    /// Reads the value of `flag`: `tap=…` or the name alone, or `fd=…` (several: `fd=5:6`), then
    /// `mac=`, `queues=`, `mtu=`, `rate=`, `burst=`, `id=`.
    ///
    /// # Errors
    /// Which option is wrong, and the rule.
    pub fn parse(flag: &str, text: &str) -> Result<Self, SpecError> {
        const KNOWN: [&str; 8] = ["tap", "fd", "mac", "queues", "mtu", "rate", "burst", "id"];
        let mut options = Options::parse(flag, text, Some("tap"), &KNOWN)?;
        let fds: Option<Descriptors> = options.value("fd")?;
        Ok(Self {
            tap: options.text("tap")?,
            fds: fds.map(|fds| fds.0).unwrap_or_default(),
            mac: options.value("mac")?,
            queues: options.number("queues")?.unwrap_or_else(one_queue),
            mtu: options.number("mtu")?,
            rate: rate(&mut options)?,
            id: options.text("id")?,
        })
    }

    /// The options that [`parse`](Self::parse) reads as this card.
    #[must_use]
    pub fn to_options(&self) -> String {
        let fds = self.fds.iter().map(i32::to_string).collect::<Vec<_>>().join(":");
        let mut writer = Writer::default();
        writer.maybe("id", self.id.as_ref()).maybe("tap", self.tap.as_ref());
        writer.maybe("fd", (!fds.is_empty()).then_some(fds)).maybe("mac", self.mac);
        unless(&mut writer, "queues", self.queues, one_queue());
        writer.maybe("mtu", self.mtu);
        write_rate(&mut writer, self.rate.as_ref());
        writer.finish()
    }
}

impl FsSpec {
    /// Reads the value of `flag`: `tag=`, then `flist=`, `cache=`, `upper=` or `dir=`, `readonly`; `quota=` of
    /// what can be written to.
    ///
    /// # Errors
    /// Which option is wrong, and the rule.
    pub fn parse(flag: &str, text: &str) -> Result<Self, SpecError> {
        const KNOWN: [&str; 7] = ["tag", "flist", "cache", "upper", "dir", "readonly", "quota"];
        const OF_FLIST: &str = "goes with flist=, not with dir=";
        const OF_DIR: &str = "goes with dir=, not with flist=";
        const OF_UPPER: &str = "goes with upper=, without which nothing is written";
        let mut options = Options::parse(flag, text, None, &KNOWN)?;
        let tag = options.required("tag", "the guest mounts a file system by its tag")?;
        let (image, path) = (options.text("flist")?, options.text("dir")?);
        let (cache, upper) = (options.text("cache")?, options.text("upper")?);
        let (readonly, quota) = (options.switch("readonly")?, options.value::<Size>("quota")?);
        let stray = |key: &str, rule| SpecError::Conflict(format!("{flag} {key}=… {rule}"));
        let source = match (image, path) {
            (Some(_), Some(_)) => {
                let both = format!("{flag} has both flist=… and dir=…: a file system serves one");
                return Err(SpecError::Conflict(both));
            }
            (None, None) => {
                let why = "a file system serves an flist image or a directory of the host";
                return Err(SpecError::missing(format!("{flag} flist=… or dir=…"), why));
            }
            (Some(_), None) if readonly.is_some() => return Err(stray("readonly", OF_DIR)),
            (Some(_), None) if quota.is_some() && upper.is_none() => {
                return Err(stray("quota", OF_UPPER));
            }
            (None, Some(_)) if cache.is_some() => return Err(stray("cache", OF_FLIST)),
            (None, Some(_)) if upper.is_some() => return Err(stray("upper", OF_FLIST)),
            (Some(image), None) => {
                let why = "an flist's contents come through the socket of `flist cached`";
                let cache =
                    cache.ok_or_else(|| SpecError::missing(format!("{flag} cache=…"), why))?;
                FsSource::Flist {
                    image: image.into(),
                    cache: cache.into(),
                    upper: upper.map(PathBuf::from),
                    quota,
                }
            }
            (None, Some(path)) => {
                FsSource::Dir { path: path.into(), readonly: readonly.unwrap_or(false), quota }
            }
        };
        Ok(Self { tag, source })
    }

    /// The options that [`parse`](Self::parse) reads as this file system.
    #[must_use]
    pub fn to_options(&self) -> String {
        let mut writer = Writer::default();
        writer.option("tag", &self.tag);
        match &self.source {
            FsSource::Flist { image, cache, upper, quota } => {
                writer.option("flist", image.display()).option("cache", cache.display());
                writer.maybe("upper", upper.as_ref().map(|upper| upper.display()));
                writer.maybe("quota", *quota);
            }
            FsSource::Dir { path, readonly, quota } => {
                writer.option("dir", path.display());
                switch(&mut writer, "readonly", *readonly, false);
                writer.maybe("quota", *quota);
            }
        }
        writer.finish()
    }
}

impl VsockSpec {
    /// Reads the value of `flag`: `cid=` and `socket=`; what is missing is as in `base`.
    pub(crate) fn parse(flag: &str, text: &str, base: Option<Self>) -> Result<Self, SpecError> {
        let mut options = Options::parse(flag, text, None, &["cid", "socket"])?;
        let (cid, socket) = match base {
            Some(base) => (Some(base.cid), Some(base.socket)),
            None => (None, None),
        };
        let missing = |key, why| SpecError::missing(format!("{flag} {key}=…"), why);
        let cid = options.number("cid")?.or(cid);
        let socket = options.text("socket")?.map(PathBuf::from).or(socket);
        Ok(Self {
            cid: cid.ok_or_else(|| missing("cid", "the guest's address, from 3 on"))?,
            socket: socket.ok_or_else(|| missing("socket", "where the host connects"))?,
        })
    }

    /// The same as the options of its flag.
    #[must_use]
    pub fn to_options(&self) -> String {
        Writer::default().option("cid", self.cid).option("socket", self.socket.display()).finish()
    }
}

impl BalloonSpec {
    /// Reads the value of `flag`, which may be empty; what is missing is as in `base`.
    pub(crate) fn parse(flag: &str, text: &str, base: Option<Self>) -> Result<Self, SpecError> {
        let base = base.unwrap_or_default();
        if text.is_empty() {
            return Ok(base);
        }
        const KNOWN: [&str; 3] = ["target", "deflate_on_oom", "free_page_reporting"];
        let mut options = Options::parse(flag, text, None, &KNOWN)?;
        let deflate_on_oom = options.switch("deflate_on_oom")?;
        let free_page_reporting = options.switch("free_page_reporting")?;
        Ok(Self {
            target: options.value("target")?.unwrap_or(base.target),
            deflate_on_oom: deflate_on_oom.unwrap_or(base.deflate_on_oom),
            free_page_reporting: free_page_reporting.unwrap_or(base.free_page_reporting),
        })
    }

    /// The same as the options of its flag.
    #[must_use]
    pub fn to_options(&self) -> String {
        let mut writer = Writer::default();
        writer.option("target", self.target);
        switch(&mut writer, "deflate_on_oom", self.deflate_on_oom, true);
        switch(&mut writer, "free_page_reporting", self.free_page_reporting, true);
        writer.finish()
    }
}

impl OutputSpec {
    /// Reads `off`, `stdio`, `pty` or `file=PATH`.
    pub(crate) fn parse(flag: &str, text: &str) -> Result<Self, SpecError> {
        let bad = |value| SpecError::flag(flag, value, "it is off, stdio, pty or file=PATH");
        match text {
            "off" => Ok(Self::Off),
            "stdio" => Ok(Self::Stdio),
            "pty" => Ok(Self::Pty),
            _ if text.starts_with("file=") => {
                let mut options = Options::parse(flag, text, None, &["file"])?;
                Ok(Self::File { path: options.required("file", "which file")?.into() })
            }
            other => {
                let near = nearest(other, ["off", "stdio", "pty", "file"]);
                Err(bad(other).suggest(near.map(str::to_owned)))
            }
        }
    }

    /// The same as the value of its flag.
    #[must_use]
    pub fn to_options(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Stdio => "stdio".to_owned(),
            Self::Pty => "pty".to_owned(),
            Self::File { path } => Writer::default().option("file", path.display()).finish(),
        }
    }
}

/// `fd=5:6`.
struct Descriptors(Vec<i32>);

impl std::str::FromStr for Descriptors {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let numbers = text.split(':').map(str::parse).collect::<Result<_, _>>();
        numbers
            .map(Self)
            .map_err(|_| BadValue("descriptors are numbers, such as 5 or 5:6".to_owned()))
    }
}

fn rate(options: &mut Options) -> Result<Option<RateSpec>, SpecError> {
    let (rate, burst) = (options.text("rate")?, options.text("burst")?);
    let flag = options.flag();
    let Some(rate) = rate else {
        return match burst {
            None => Ok(None),
            Some(_) => Err(SpecError::missing(format!("{flag} rate=…"), "burst=… goes with it")),
        };
    };
    RateSpec::parse(&rate, burst.as_deref()).map(Some).map_err(|(key, rule)| {
        let value = if key == "rate" { &rate } else { burst.as_ref().unwrap_or(&rate) };
        SpecError::option(flag, key, value, rule.to_string())
    })
}

fn write_rate(writer: &mut Writer, rate: Option<&RateSpec>) {
    let Some(rate) = rate else { return };
    writer.option("rate", rate.rate_text()).maybe("burst", rate.burst_text());
}

fn switch(writer: &mut Writer, key: &str, value: bool, default: bool) {
    unless(writer, key, if value { "on" } else { "off" }, if default { "on" } else { "off" });
}

fn unless<T: PartialEq + std::fmt::Display>(writer: &mut Writer, key: &str, value: T, default: T) {
    if value != default {
        writer.option(key, value);
    }
}

const fn on() -> bool {
    true
}

const fn one_queue() -> u16 {
    1
}
