//! What can be read about this host. Nothing is judged here, nothing changed.

use std::fs;
use std::path::Path;

use vmm_machine::jail;
use vmm_machine::kvm::{self, KvmError};
use vmm_spec::api::Wall;

/// The host.
#[derive(Debug)]
pub(super) struct Facts {
    /// How KVM fails, if it does.
    pub(super) kvm: Result<(), KvmError>,
    /// `vmx` or `svm`, if the processor has one of them.
    pub(super) virtualization: Option<&'static str>,
    /// `always`, `madvise` or `never`.
    pub(super) transparent_huge_pages: Option<String>,
    /// Memory that is available, in bytes.
    pub(super) memory_available: Option<u64>,
    /// 0: for everyone; 1: for the privileged; 2: for nobody. `None`: there is no such setting.
    pub(super) io_uring_disabled: Option<u32>,
    /// Whether `/dev/net/tun` can be opened.
    pub(super) has_tun: bool,
    /// What a jail could be made of, as far as it could be tried.
    pub(super) walls: Vec<Wall>,
    /// The controllers of cgroup v2.
    pub(super) cgroup_controllers: Option<String>,
}

impl Facts {
    pub(super) fn gather() -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        Self {
            kvm: kvm::open().map(drop),
            virtualization: kvm::virtualization(&cpuinfo),
            transparent_huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| selected(&text)),
            memory_available: read("/proc/meminfo").and_then(|text| available(&text)),
            io_uring_disabled: read("/proc/sys/kernel/io_uring_disabled")
                .and_then(|text| text.trim().parse().ok()),
            has_tun: fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok(),
            walls: jail::offers().unwrap_or_default(),
            cgroup_controllers: read("/sys/fs/cgroup/cgroup.controllers"),
        }
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The word in brackets: `always [madvise] never`.
fn selected(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

/// `MemAvailable:   123 kB`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(selected("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(selected("x"), None);
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 << 10));
    }
}
