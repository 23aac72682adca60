//! Whether KVM works here, and if not, what is in the way.

use kvm_ioctls::{Cap, Kvm};
use rustix::io::Errno;

use super::facts::Facts;

/// The one version of the interface there has ever been.
const API_VERSION: i32 = 12;

/// What a machine can't do without.
const CAPABILITIES: [(Cap, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// How `/dev/kvm` fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KvmState {
    /// There is no such device.
    Absent,
    /// We may not open it.
    Denied,
    /// It is there, but there is no KVM behind it.
    Dead(Errno),
    /// It speaks another language.
    Version(i32),
    /// It lacks what we need.
    Lacking(Vec<&'static str>),
}

/// Opens `/dev/kvm` and asks.
pub(super) fn probe() -> Result<(), KvmState> {
    let kvm = Kvm::new().map_err(|error| match Errno::from_raw_os_error(error.errno()) {
        Errno::NOENT => KvmState::Absent,
        Errno::ACCESS | Errno::PERM => KvmState::Denied,
        other => KvmState::Dead(other),
    })?;
    if kvm.get_api_version() != API_VERSION {
        return Err(KvmState::Version(kvm.get_api_version()));
    }
    let lacking = CAPABILITIES.iter().filter(|(cap, _)| !kvm.check_extension(*cap));
    let lacking: Vec<_> = lacking.map(|(_, name)| *name).collect();
    if lacking.is_empty() { Ok(()) } else { Err(KvmState::Lacking(lacking)) }
}

/// Why no VM can run here, as a person would say it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct KvmProblem {
    text: String,
    remedy: String,
}

/// Where VMs run all the same.
const LAB: &str = "without KVM, `ci/test lab` in the source tree runs real guests in QEMU";

impl KvmProblem {
    pub(super) fn new(state: KvmState, facts: &Facts) -> Self {
        let (text, remedy) = match state {
            KvmState::Absent => absent(facts),
            KvmState::Denied => (
                "/dev/kvm: permission denied".to_owned(),
                "join its group: `sudo usermod -aG kvm $USER`, and log in again".to_owned(),
            ),
            KvmState::Dead(error) => (
                format!("/dev/kvm is there, but the kernel has no KVM behind it ({error})"),
                "load the module: `sudo modprobe kvm_intel` or `kvm_amd`".to_owned(),
            ),
            KvmState::Version(version) => (
                format!("/dev/kvm speaks version {version}, and this program {API_VERSION}"),
                "run a Linux kernel of this century".to_owned(),
            ),
            KvmState::Lacking(names) => (
                format!("this host's KVM lacks {}", names.join(", ")),
                "run a newer Linux kernel".to_owned(),
            ),
        };
        Self { text, remedy }
    }

    /// What would help, and where VMs run all the same.
    pub(crate) fn hint(&self) -> String {
        format!("{}; {LAB}", self.remedy)
    }
}

/// There is no `/dev/kvm`: why depends on the processor, and on whose it is.
fn absent(facts: &Facts) -> (String, String) {
    match (&facts.virtualization, facts.is_guest) {
        (Some(flag), _) => {
            let module = if *flag == "vmx" { "kvm_intel" } else { "kvm_amd" };
            (
                format!("there is no /dev/kvm, though the processor has {flag}"),
                format!(
                    "load the module: `sudo modprobe {module}`; in a container, pass the device in"
                ),
            )
        }
        (None, true) => (
            "there is no /dev/kvm: this machine is itself a VM, without nested virtualization"
                .to_owned(),
            "switch nested virtualization on where this machine is run, or use a host of metal"
                .to_owned(),
        ),
        (None, false) => (
            "there is no /dev/kvm: the processor has no virtualization, or it is switched off"
                .to_owned(),
            "switch on VT-x or AMD-V (SVM) in the firmware's settings".to_owned(),
        ),
    }
}
