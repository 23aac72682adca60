//! A description from flags, over one from a file.
//!
//! A flag overrides what it names: `--memory 1G` leaves the file's `hugepages` alone, `--vsock
//! socket=…` its `cid`. The flags that can be repeated (`--disk`, `--net`, `--fs`) replace the
//! file's whole list. `off` takes an optional device of the file away.

use std::path::PathBuf;

use crate::devices::{BalloonSpec, DiskSpec, FsSpec, NetSpec, OutputSpec, VsockSpec, WatchdogSpec};
use crate::options::Options;
use crate::spec::{CpuSpec, JailSpec, MemorySpec, VmSpec};
use crate::{BadValue, RateSpec, SpecError};

/// The flags of `vmm run`, as typed.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is the flag of its name, described at the field of `VmSpec`")]
pub struct Flags {
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub cmdline: Option<String>,
    pub cpus: Option<String>,
    pub memory: Option<String>,
    pub disk: Vec<String>,
    pub net: Vec<String>,
    pub fs: Vec<String>,
    pub vsock: Option<String>,
    pub rng: Option<String>,
    pub balloon: Option<String>,
    pub console: Option<String>,
    pub serial: Option<String>,
    pub pvpanic: Option<String>,
    pub watchdog: Option<String>,
    pub on_reset: Option<String>,
    pub api_socket: Option<PathBuf>,
    pub jail: Option<String>,
    pub no_jail: bool,
}

impl Flags {
    /// The description that `spec` becomes under these flags.
    ///
    /// # Errors
    /// Which flag is wrong, its value, and the rule.
    pub fn apply(&self, mut spec: VmSpec) -> Result<VmSpec, SpecError> {
        self.apply_boot(&mut spec);
        if let Some(text) = &self.cpus {
            spec.cpus = CpuSpec::parse("--cpus", text, spec.cpus)?;
        }
        if let Some(text) = &self.memory {
            spec.memory = MemorySpec::parse("--memory", text, spec.memory)?;
        }
        self.apply_lists(&mut spec)?;
        self.apply_optional_devices(&mut spec)?;
        self.apply_consoles(&mut spec)?;
        if let Some(text) = &self.on_reset {
            let bad = |rule: BadValue| SpecError::flag("--on-reset", text, rule.to_string());
            spec.on_reset = text.parse().map_err(bad)?;
        }
        if let Some(text) = &self.jail {
            spec.jail = JailSpec::parse("--jail", text, spec.jail)?;
        }
        if self.no_jail {
            spec.jail.enabled = false;
        }
        Ok(spec)
    }

    fn apply_boot(&self, spec: &mut VmSpec) {
        let override_path = |field: &mut Option<PathBuf>, flag: &Option<PathBuf>| {
            if flag.is_some() {
                field.clone_from(flag);
            }
        };
        override_path(&mut spec.kernel, &self.kernel);
        override_path(&mut spec.initramfs, &self.initramfs);
        override_path(&mut spec.api_socket, &self.api_socket);
        if self.cmdline.is_some() {
            spec.cmdline.clone_from(&self.cmdline);
        }
    }

    fn apply_lists(&self, spec: &mut VmSpec) -> Result<(), SpecError> {
        override_list(&mut spec.disks, "--disk", &self.disk, DiskSpec::parse)?;
        override_list(&mut spec.nets, "--net", &self.net, NetSpec::parse)?;
        override_list(&mut spec.fs, "--fs", &self.fs, FsSpec::parse)
    }

    fn apply_optional_devices(&self, spec: &mut VmSpec) -> Result<(), SpecError> {
        override_device(&mut spec.vsock, "--vsock", self.vsock.as_deref(), VsockSpec::parse)?;
        override_device(
            &mut spec.balloon,
            "--balloon",
            self.balloon.as_deref(),
            BalloonSpec::parse,
        )?;
        override_device(
            &mut spec.watchdog,
            "--watchdog",
            self.watchdog.as_deref(),
            |flag, text, _| WatchdogSpec::parse(flag, text),
        )?;
        override_switch(&mut spec.rng, "--rng", self.rng.as_deref())?;
        override_switch(&mut spec.pvpanic, "--pvpanic", self.pvpanic.as_deref())
    }

    fn apply_consoles(&self, spec: &mut VmSpec) -> Result<(), SpecError> {
        if let Some(text) = &self.console {
            spec.console = OutputSpec::parse("--console", text)?;
        }
        if let Some(text) = &self.serial {
            spec.serial = OutputSpec::parse("--serial", text)?;
        }
        Ok(())
    }
}

fn override_list<T>(
    list: &mut Vec<T>,
    flag: &str,
    texts: &[String],
    parse: impl Fn(&str, &str) -> Result<T, SpecError>,
) -> Result<(), SpecError> {
    if texts.is_empty() {
        return Ok(());
    }
    let items = texts.iter().enumerate();
    *list = items
        .map(|(index, text)| parse(&format!("{flag}[{index}]"), text))
        .collect::<Result<_, _>>()?;
    Ok(())
}

fn override_device<T>(
    device: &mut Option<T>,
    flag: &str,
    text: Option<&str>,
    parse: impl Fn(&str, &str, Option<T>) -> Result<T, SpecError>,
) -> Result<(), SpecError> {
    *device = match text {
        None => return Ok(()),
        Some("off") => None,
        Some(text) => Some(parse(flag, text, device.take())?),
    };
    Ok(())
}

fn override_switch(field: &mut bool, flag: &str, text: Option<&str>) -> Result<(), SpecError> {
    *field = match text {
        None => return Ok(()),
        Some("on" | "true") => true,
        Some("off" | "false") => false,
        Some(other) => return Err(SpecError::flag(flag, other, "it is `on` or `off`")),
    };
    Ok(())
}

impl CpuSpec {
    fn parse(flag: &str, text: &str, base: Self) -> Result<Self, SpecError> {
        let mut options = Options::parse(flag, text, Some("count"), &["count", "template"])?;
        Ok(Self {
            count: options.number("count")?.unwrap_or(base.count),
            template: options.value("template")?.unwrap_or(base.template),
        })
    }
}

impl MemorySpec {
    fn parse(flag: &str, text: &str, base: Self) -> Result<Self, SpecError> {
        const KNOWN: [&str; 4] = ["size", "hugepages", "shared", "thp"];
        let mut options = Options::parse(flag, text, Some("size"), &KNOWN)?;
        Ok(Self {
            size: options.value("size")?.unwrap_or(base.size),
            hugepages: options.value("hugepages")?.unwrap_or(base.hugepages),
            shared: options.switch("shared")?.unwrap_or(base.shared),
            thp: options.switch("thp")?.unwrap_or(base.thp),
        })
    }
}

impl WatchdogSpec {
    fn parse(flag: &str, text: &str) -> Result<Self, SpecError> {
        let mut options = Options::parse(flag, text, Some("timeout_s"), &["timeout_s"])?;
        let missing = SpecError::missing(format!("{flag} timeout_s=…"), "how long it waits");
        Ok(Self { timeout_s: options.number("timeout_s")?.ok_or(missing)? })
    }
}

impl JailSpec {
    fn parse(flag: &str, text: &str, base: Self) -> Result<Self, SpecError> {
        const KNOWN: [&str; 7] =
            ["uid", "gid", "cgroup", "memory_max", "cpu_max_percent", "pids_max", "io_max"];
        let mut options = Options::parse(flag, text, None, &KNOWN)?;
        let io_max = options.text("io_max")?.map(|text| {
            let bad = |bad: BadValue| SpecError::option(flag, "io_max", &text, bad.to_string());
            RateSpec::parse(&text, None).map_err(|(_, error)| bad(error))
        });
        Ok(Self {
            enabled: base.enabled,
            uid: options.number("uid")?.or(base.uid),
            gid: options.number("gid")?.or(base.gid),
            cgroup: options.text("cgroup")?.map(PathBuf::from).or(base.cgroup),
            memory_max: options.value("memory_max")?.or(base.memory_max),
            cpu_max_percent: options.number("cpu_max_percent")?.or(base.cpu_max_percent),
            pids_max: options.number("pids_max")?.or(base.pids_max),
            io_max: io_max.transpose()?.or(base.io_max),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuTemplate, FsSource, HugePages, Size};

    fn apply(flags: &Flags) -> VmSpec {
        flags.apply(VmSpec::default()).unwrap()
    }

    fn error(flags: &Flags) -> String {
        flags.apply(VmSpec::default()).unwrap_err().to_string()
    }

    #[test]
    fn flags_override_what_they_name_and_nothing_else() {
        let file = apply(&Flags {
            memory: Some("1G,hugepages=2M".to_owned()),
            vsock: Some("cid=3,socket=/run/a".to_owned()),
            disk: vec!["a.img".to_owned(), "b.img".to_owned()],
            balloon: Some(String::new()),
            ..Flags::default()
        });
        let flags = Flags {
            memory: Some("2G".to_owned()),
            vsock: Some("socket=/run/b".to_owned()),
            disk: vec!["c.img,readonly".to_owned()],
            balloon: Some("off".to_owned()),
            ..Flags::default()
        };
        let spec = flags.apply(file).unwrap();
        assert_eq!(
            (spec.memory.size, spec.memory.hugepages),
            (Size::from_mib(2048), HugePages::Size2M)
        );
        let vsock = spec.vsock.unwrap();
        assert_eq!((vsock.cid, vsock.socket), (3, PathBuf::from("/run/b")));
        assert_eq!(spec.disks.len(), 1);
        assert!(spec.disks[0].readonly);
        assert_eq!(spec.balloon, None);
    }

    #[test]
    fn every_flag_reaches_its_field() {
        let some = |text: &str| Some(text.to_owned());
        let spec = apply(&Flags {
            kernel: Some("vmlinux".into()),
            initramfs: Some("initrd".into()),
            cmdline: some("quiet"),
            cpus: some("4,template=baseline-v3"),
            memory: some("size=1G,shared,thp=off"),
            fs: vec!["tag=root,flist=a.fl,cache=/run/c,upper=/up,quota=1G".to_owned()],
            rng: some("on"),
            console: some("file=/log,,1"),
            serial: some("pty"),
            pvpanic: some("off"),
            watchdog: some("30"),
            on_reset: some("exit"),
            api_socket: Some("/run/vm.sock".into()),
            jail: some("uid=7,gid=8,cgroup=/sys/fs/cgroup/vm,io_max=9M/s+100ops/s"),
            no_jail: true,
            ..Flags::default()
        });
        assert_eq!((spec.cpus.count, spec.cpus.template), (4, CpuTemplate::BaselineV3));
        assert!(spec.memory.shared && !spec.memory.thp && spec.rng && !spec.pvpanic);
        assert_eq!(spec.console, OutputSpec::File { path: "/log,1".into() });
        assert_eq!(spec.watchdog, Some(WatchdogSpec { timeout_s: 30 }));
        assert_eq!((spec.jail.uid, spec.jail.gid, spec.jail.enabled), (Some(7), Some(8), false));
        let io_max = spec.jail.io_max.unwrap();
        assert_eq!((io_max.bytes_per_s, io_max.ops_per_s), (Some(Size::from_mib(9)), Some(100)));
        let FsSource::Flist { upper: Some(_), quota, .. } = &spec.fs[0].source else { panic!() };
        assert_eq!(*quota, Some(Size::from_mib(1024)));
    }

    #[test]
    fn errors_name_the_flag_and_its_place() {
        let disks = |text: &str| Flags { disk: vec!["a".into(), text.into()], ..Flags::default() };
        assert_eq!(
            error(&disks("b,rate=fast")),
            "--disk[1] rate=\"fast\": a rate is such as 100M/s, 1000ops/s or 100M/s+1000ops/s"
        );
        assert_eq!(
            error(&disks("b,burst=1M")),
            "--disk[1] rate=… is missing: burst=… goes with it"
        );
        assert!(error(&disks("readonly=on")).starts_with("--disk[1] path=… is missing"));
        let fs = |text: &str| error(&Flags { fs: vec![text.into()], ..Flags::default() });
        assert!(fs("tag=a").starts_with("--fs[0] flist=… or dir=… is missing"));
        assert!(fs("tag=a,flist=x").starts_with("--fs[0] cache=… is missing"));
        assert!(fs("tag=a,dir=x,flist=y").contains("both flist=… and dir=…"));
        assert!(fs("tag=a,dir=x,cache=y").contains("goes with flist="));
        assert!(fs("tag=a,flist=x,cache=y,quota=1G").contains("goes with upper="));
        assert!(fs("tag=a,flist=x,cache=y,readonly").contains("goes with dir="));
        let memory = error(&Flags { memory: Some("1.5G".into()), ..Flags::default() });
        assert_eq!(
            memory,
            "--memory size=\"1.5G\": a size is a whole number and a unit, such as 512M or 2G"
        );
    }
}
