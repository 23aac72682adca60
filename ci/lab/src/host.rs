//! What this host offers: hardware virtualization or not.

use std::fmt;
use std::fs::{self, OpenOptions};

/// How QEMU executes a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By hardware, through `/dev/kvm`.
    Kvm,
    /// By translation (TCG), with an emulated AMD CPU that has nested SVM.
    Tcg,
}

impl Accelerator {
    /// What this host offers; `LAB_ACCEL=kvm` or `LAB_ACCEL=tcg` overrides it.
    ///
    /// A `/dev/kvm` alone proves nothing: there are hosts that emulate it without the CPU's
    /// help and run only the simplest guests. Hardware is used when the CPU shows it (`vmx` or
    /// `svm` in `/proc/cpuinfo`) and the device can be opened.
    #[must_use]
    pub fn probe() -> Self {
        let wanted = std::env::var("LAB_ACCEL").unwrap_or_default();
        Self::choose(&wanted, has_virtualization(&cpu_flags()), can_open_kvm())
    }

    fn choose(wanted: &str, has_virtualization: bool, can_open_kvm: bool) -> Self {
        match wanted {
            "kvm" => Self::Kvm,
            "tcg" => Self::Tcg,
            _ if has_virtualization && can_open_kvm => Self::Kvm,
            _ => Self::Tcg,
        }
    }

    /// The KVM module that works inside a machine.
    pub(crate) fn nested_kvm_module(self) -> &'static str {
        match self {
            Self::Kvm if cpu_flags().contains(&"vmx".to_owned()) => "kvm-intel nested=1",
            Self::Kvm | Self::Tcg => "kvm-amd nested=1",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

fn has_virtualization(flags: &[String]) -> bool {
    flags.iter().any(|flag| flag == "vmx" || flag == "svm")
}

fn can_open_kvm() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

fn cpu_flags() -> Vec<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("flags"));
    let flags = line.and_then(|line| line.split_once(':')).map_or("", |(_, flags)| flags);
    flags.split_ascii_whitespace().map(str::to_owned).collect()
}

/// What `lab check` prints: names and findings.
pub(crate) fn report() -> Vec<(&'static str, String)> {
    let found = |program: &str| {
        let output = std::process::Command::new(program).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let line = text.ok().and_then(|text| text.lines().next().map(str::to_owned));
        line.unwrap_or_else(|| "missing".to_owned())
    };
    let yes_no = |is: bool| if is { "yes" } else { "no" }.to_owned();
    vec![
        ("accelerator", Accelerator::probe().to_string()),
        ("cpu virtualization", yes_no(has_virtualization(&cpu_flags()))),
        ("/dev/kvm", yes_no(can_open_kvm())),
        ("cpus", std::thread::available_parallelism().map_or(1, usize::from).to_string()),
        ("qemu", found(crate::qemu::PROGRAM)),
        ("setpriv", found("setpriv")),
        ("apt-get", found("apt-get")),
        ("dpkg-deb", found("dpkg-deb")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_needs_both_cpu_and_device_unless_told_otherwise() {
        assert_eq!(Accelerator::choose("", true, true), Accelerator::Kvm);
        assert_eq!(Accelerator::choose("", false, true), Accelerator::Tcg);
        assert_eq!(Accelerator::choose("", true, false), Accelerator::Tcg);
        assert_eq!(Accelerator::choose("tcg", true, true), Accelerator::Tcg);
        assert_eq!(Accelerator::choose("kvm", false, false), Accelerator::Kvm);
    }
}
