//! Opening KVM, or saying exactly why that can't be and what to do about it.
//!
//! The one place that knows: a machine opens KVM here before anything else, and `vmm check` asks
//! here what it would say.

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

/// Where machines run all the same.
const LAB: &str = "without KVM, `ci/test lab` in the source tree runs real guests in QEMU";

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

/// The processor's flag for hardware virtualization, `vmx` or `svm`, by the text of
/// `/proc/cpuinfo`.
#[must_use]
pub fn virtualization(cpuinfo: &str) -> Option<&'static str> {
    ["vmx", "svm"].into_iter().find(|flag| has_flag(cpuinfo, flag))
}

/// Why opening `device` failed.
fn diagnose(error: io::Error, device: &Path) -> KvmError {
    match error.raw_os_error() {
        // The node is there without its driver, or there is none.
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            absent(&cpuinfo, Path::new("/sys/module/kvm").exists())
        }
        Some(libc::EACCES | libc::EPERM) => KvmError::NotPermitted,
        _ => KvmError::Open { device: device.display().to_string(), source: error },
    }
}

/// What is missing when there is no KVM behind the device: judged by the processor's flags and
/// whether the module is loaded.
fn absent(cpuinfo: &str, is_loaded: bool) -> KvmError {
    if is_loaded {
        return KvmError::NoNode;
    }
    match virtualization(cpuinfo) {
        Some(flag) => {
            let module = if flag == "vmx" { "kvm_intel" } else { "kvm_amd" };
            KvmError::ModuleNotLoaded { flag, module }
        }
        None if has_flag(cpuinfo, "hypervisor") => KvmError::NotNested,
        None => KvmError::NoVirtualization,
    }
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|word| word == flag)
}

/// Why there is no KVM for us.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The processor can't, or the firmware does not let it.
    #[error("there is no KVM: the processor has no virtualization, or it is switched off")]
    NoVirtualization,
    /// We are in a virtual machine, and its hypervisor does not let it.
    #[error("there is no KVM: this machine is itself a VM, without nested virtualization")]
    NotNested,
    /// The processor can, the kernel does not.
    #[error("there is no KVM: the processor has {flag}, but the module {module} is not loaded")]
    ModuleNotLoaded {
        /// What the processor calls it.
        flag: &'static str,
        /// The module for this processor.
        module: &'static str,
    },
    /// The kernel can, but there is no way to it.
    #[error("there is no /dev/kvm, though KVM is in the kernel")]
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
    #[error("this host's KVM lacks {missing}")]
    Capabilities {
        /// Names in KVM's documentation.
        missing: String,
    },
}

impl KvmError {
    /// What to do about it, and where machines run all the same.
    #[must_use]
    pub fn hint(&self) -> String {
        let remedy = match self {
            Self::NoVirtualization => {
                "switch on VT-x or AMD-V (SVM) in the firmware's settings".to_owned()
            }
            Self::NotNested => "switch nested virtualization on where this machine is run, or use \
                 a host of metal"
                .to_owned(),
            Self::ModuleNotLoaded { module, .. } => format!("load it: `sudo modprobe {module}`"),
            Self::NoNode => {
                "in a container, pass the device in; else `sudo mknod /dev/kvm c 10 232`".to_owned()
            }
            Self::NotPermitted => {
                "join its group: `sudo usermod -aG kvm $USER`, and log in again".to_owned()
            }
            Self::Open { .. } => return LAB.to_owned(),
            Self::ApiVersion { .. } | Self::Capabilities { .. } => {
                "run a newer Linux kernel, 5.10 at least".to_owned()
            }
        };
        format!("{remedy}; {LAB}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let error = |number| diagnose(io::Error::from_raw_os_error(number), Path::new("/x/kvm"));
        let intel = "processor: 0\nflags\t\t: fpu vmx sse\n";
        let cases = [
            (absent(intel, false), "processor has vmx", "modprobe kvm_intel"),
            (absent("flags : svm hypervisor", false), "processor has svm", "modprobe kvm_amd"),
            (absent("flags : svmx hypervisor", false), "itself a VM", "nested virtualization"),
            (absent("flags : svmx", false), "switched off", "firmware"),
            (absent("", false), "switched off", "firmware"),
            (absent(intel, true), "though KVM is in the kernel", "mknod"),
            (error(libc::EACCES), "permission denied", "usermod"),
            (error(libc::EBUSY), "/x/kvm", "QEMU"),
            (KvmError::ApiVersion { version: 11 }, "version 11", "newer"),
            (KvmError::Capabilities { missing: "X, Y".to_owned() }, "lacks X, Y", "newer"),
        ];
        for (error, text, hint) in cases {
            assert!(error.to_string().contains(text), "{error}");
            let given = error.hint();
            assert!(given.contains(hint) && given.contains("ci/test lab"), "{given}");
        }
        assert!(!matches!(error(libc::ENODEV), KvmError::Open { .. }));
    }
}
