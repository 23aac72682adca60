//! Opening KVM, or saying exactly why that can't be.

use std::fs;
use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

const DEVICE: &str = "/dev/kvm";
/// The one version of KVM's interface there has been since 2007.
const API_VERSION: i32 = 12;

/// What a machine can't do without, and its name in KVM's documentation.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Opens `/dev/kvm` and checks that it can do what a machine needs.
///
/// # Errors
/// [`KvmError`], whose [`hint`](KvmError::hint) says what to do.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| diagnose(error.into(), Path::new(DEVICE)))?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::ApiVersion { version });
    }
    let missing: Vec<&str> = REQUIRED
        .iter()
        .filter(|(capability, _)| !kvm.check_extension(*capability))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        Ok(kvm)
    } else {
        Err(KvmError::Capabilities { missing: missing.join(", ") })
    }
}

/// Why opening `device` failed.
fn diagnose(error: io::Error, device: &Path) -> KvmError {
    match error.raw_os_error() {
        // The node is there without its driver, or there is none.
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            absent(&flags, Path::new("/sys/module/kvm").exists())
        }
        Some(libc::EACCES | libc::EPERM) => KvmError::NotPermitted,
        _ => KvmError::Open { device: device.display().to_string(), source: error },
    }
}

/// What is missing when the device is not there: judged by the CPU's flags and whether the module
/// is loaded.
fn absent(cpuinfo: &str, is_loaded: bool) -> KvmError {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    if is_loaded {
        KvmError::NoNode
    } else if has("vmx") {
        KvmError::ModuleNotLoaded { module: "kvm_intel" }
    } else if has("svm") {
        KvmError::ModuleNotLoaded { module: "kvm_amd" }
    } else {
        KvmError::NoVirtualization
    }
}

/// Why there is no KVM for us.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The CPU can't, or the firmware or an outer hypervisor does not let it.
    #[error(
        "no hardware virtualization: /dev/kvm is missing and the CPU shows neither vmx nor svm"
    )]
    NoVirtualization,
    /// The CPU can, the kernel does not.
    #[error("/dev/kvm is missing: the CPU has virtualization, the module {module} is not loaded")]
    ModuleNotLoaded {
        /// The module for this CPU.
        module: &'static str,
    },
    /// The kernel can, but there is no way to it.
    #[error("/dev/kvm is missing, though KVM is in the kernel")]
    NoNode,
    /// It is there, but not for this user.
    #[error("/dev/kvm: permission denied")]
    NotPermitted,
    /// Something else.
    #[error("{device}")]
    Open {
        /// Its path.
        device: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Not the KVM we know.
    #[error("KVM's interface has version {version}, not {API_VERSION}")]
    ApiVersion {
        /// Its version.
        version: i32,
    },
    /// It lacks something.
    #[error("KVM lacks {missing}")]
    Capabilities {
        /// Names in KVM's documentation.
        missing: String,
    },
}

impl KvmError {
    /// What to do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NoVirtualization => {
                "enable VT-x or AMD-V in the firmware, or nested virtualization in the outer \
                 hypervisor; without, `ci/test lab` runs everything in an emulated machine"
            }
            Self::ModuleNotLoaded { .. } => "load it: modprobe kvm_intel, or modprobe kvm_amd",
            Self::NoNode => "in a container, pass the device in; else: mknod /dev/kvm c 10 232",
            Self::NotPermitted => "become a member of the group that owns /dev/kvm, usually `kvm`",
            Self::Open { .. } => "`ci/test lab` runs everything in an emulated machine",
            Self::ApiVersion { .. } | Self::Capabilities { .. } => {
                "use Linux 5.10 or newer; `ci/test lab` runs everything in an emulated machine"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let intel = absent("processor: 0\nflags\t\t: fpu vmx sse\n", false);
        assert!(intel.to_string().contains("kvm_intel"));
        assert!(absent("flags : svm", false).to_string().contains("kvm_amd"));
        assert!(matches!(absent("flags : svmx", false), KvmError::NoVirtualization));
        assert!(matches!(absent("flags : vmx", true), KvmError::NoNode));
        assert!(matches!(absent("", false), KvmError::NoVirtualization));
    }

    #[test]
    fn errors_of_the_device_are_told_apart() {
        let error = |number| diagnose(io::Error::from_raw_os_error(number), Path::new("/x/kvm"));
        assert!(matches!(error(libc::EACCES), KvmError::NotPermitted));
        assert!(!matches!(error(libc::ENOENT), KvmError::Open { .. }));
        let busy = error(libc::EBUSY);
        assert!(busy.to_string().contains("/x/kvm") && !busy.hint().is_empty());
    }
}
