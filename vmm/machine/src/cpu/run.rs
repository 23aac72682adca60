//! In and out of the guest.
//!
//! [`Vcpu::run`] stays until the CPU is kicked or can't go on. An access that left the guest is
//! answered at once and completed by KVM on the next entry; a kick makes that entry return before
//! the first instruction. So whenever `run` has returned for a kick, no access is half done, and
//! the CPU's state can be read.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{ExitCounters, ExitKind};

/// What there is around the CPUs, as far as KVM doesn't do it. Called by all of them at once.
///
/// `data` of a read holds the answer when it returns; an access has 1, 2, 4 or 8 bytes. A string
/// instruction's ports see their elements one after the other in one `data`.
pub(crate) trait Platform: Send + Sync {
    fn read_port(&self, port: u16, data: &mut [u8]);
    fn write_port(&self, port: u16, data: &[u8]);
    fn read_mmio(&self, address: u64, data: &mut [u8]);
    fn write_mmio(&self, address: u64, data: &[u8]);
}

/// Why a CPU came out for good, or for now.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Someone wants it out.
    Kicked,
    /// It can't go on, by the guest's fault.
    Crash(CrashReport),
    /// It can't go on, by the host's fault.
    Failed(std::io::Error),
}

/// A virtual CPU on its thread.
pub(crate) struct Vcpu {
    pub(crate) index: u8,
    pub(crate) fd: VcpuFd,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) counters: ExitCounters,
}

impl Vcpu {
    /// Runs the guest.
    pub(crate) fn run(&mut self) -> Outcome {
        loop {
            match self.step() {
                Step::Continue => {}
                Step::Kicked => {
                    self.counters.of(ExitKind::Kicked).increment();
                    self.fd.set_kvm_immediate_exit(0);
                    return Outcome::Kicked;
                }
                Step::Stuck(reason) => return Outcome::Crash(self.report(reason)),
                Step::Failed(error) => return Outcome::Failed(error),
            }
        }
    }

    /// Enters the guest once, and answers what it came out for.
    fn step(&mut self) -> Step {
        let (platform, counters) = (&self.platform, &self.counters);
        let count = |kind| counters.of(kind).increment();
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) => return Step::of_error(error),
        };
        match exit {
            VcpuExit::IoIn(port, data) => {
                count(ExitKind::PortRead);
                platform.read_port(port, data);
            }
            VcpuExit::IoOut(port, data) => {
                count(ExitKind::PortWrite);
                platform.write_port(port, data);
            }
            VcpuExit::MmioRead(address, data) => {
                count(ExitKind::MmioRead);
                platform.read_mmio(address, data);
            }
            VcpuExit::MmioWrite(address, data) => {
                count(ExitKind::MmioWrite);
                platform.write_mmio(address, data);
            }
            other => {
                count(ExitKind::Other);
                return Step::of_other(&other);
            }
        }
        Step::Continue
    }

    fn report(&mut self, mut reason: CrashReason) -> CrashReport {
        if let CrashReason::InternalError { suberror, data } = &mut reason {
            let run = self.fd.get_kvm_run();
            // SAFETY: KVM has just said that it left an internal error there; the structure
            // consists of integers, for which any bytes will do.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            let count = usize::try_from(internal.ndata).unwrap_or(0);
            *suberror = internal.suberror;
            *data = internal.data.iter().copied().take(count).collect();
        }
        CrashReport {
            vcpu_index: self.index,
            reason,
            registers: self.fd.get_regs().ok().zip(self.fd.get_sregs().ok()).map(Box::new),
        }
    }
}

enum Step {
    Continue,
    Kicked,
    Stuck(CrashReason),
    Failed(std::io::Error),
}

impl Step {
    fn of_error(error: kvm_ioctls::Error) -> Self {
        match error.errno() {
            libc::EINTR => Self::Kicked,
            // A CPU that waited to be woken by another has been.
            libc::EAGAIN => Self::Continue,
            _ => Self::Failed(error.into()),
        }
    }

    fn of_other(exit: &VcpuExit<'_>) -> Self {
        match *exit {
            VcpuExit::Intr | VcpuExit::IrqWindowOpen => Self::Continue,
            VcpuExit::Shutdown => Self::Stuck(CrashReason::TripleFault),
            VcpuExit::InternalError => {
                Self::Stuck(CrashReason::InternalError { suberror: 0, data: Vec::new() })
            }
            VcpuExit::FailEntry(reason, _) => Self::Stuck(CrashReason::EntryFailed { reason }),
            VcpuExit::SystemEvent(kind, _) => Self::Stuck(CrashReason::SystemEvent { kind }),
            ref other => Self::Stuck(CrashReason::Unexpected { exit: format!("{other:?}") }),
        }
    }
}

/// What brought a virtual CPU down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrashReason {
    /// A fault while delivering a double fault.
    TripleFault,
    /// KVM met something it can't do, such as an instruction it can't emulate.
    InternalError {
        /// KVM's number for it.
        suberror: u32,
        /// What goes with it.
        data: Vec<u64>,
    },
    /// The hardware refused to enter the guest.
    EntryFailed {
        /// Its reason.
        reason: u64,
    },
    /// KVM reports a crash on the guest's behalf.
    SystemEvent {
        /// Its kind.
        kind: u32,
    },
    /// An exit that no guest of ours can cause.
    Unexpected {
        /// Its name.
        exit: String,
    },
}

impl fmt::Display for CrashReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => write!(f, "triple fault"),
            Self::InternalError { suberror, data } => {
                write!(f, "KVM internal error {suberror}, data {data:x?}")
            }
            Self::EntryFailed { reason } => write!(f, "the CPU refused entry: {reason:#x}"),
            Self::SystemEvent { kind } => write!(f, "KVM system event {kind}"),
            Self::Unexpected { exit } => write!(f, "unexpected exit {exit}"),
        }
    }
}

/// What is known of a crash.
#[derive(Clone, Debug, PartialEq)]
pub struct CrashReport {
    /// Which CPU.
    pub vcpu_index: u8,
    /// What happened.
    pub reason: CrashReason,
    /// Its registers, where KVM still gave them.
    pub registers: Option<Box<(kvm_regs, kvm_sregs)>>,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}", self.vcpu_index, self.reason)?;
        let Some((r, s)) = self.registers.as_deref() else { return Ok(()) };
        write!(f, "; rip {:x} rsp {:x} rflags {:x}", r.rip, r.rsp, r.rflags)?;
        write!(f, " rax {:x} rbx {:x} rcx {:x} rdx {:x}", r.rax, r.rbx, r.rcx, r.rdx)?;
        write!(f, " rsi {:x} rdi {:x} rbp {:x}", r.rsi, r.rdi, r.rbp)?;
        write!(f, " r8 {:x} r9 {:x} r10 {:x} r11 {:x}", r.r8, r.r9, r.r10, r.r11)?;
        write!(f, " r12 {:x} r13 {:x} r14 {:x} r15 {:x}", r.r12, r.r13, r.r14, r.r15)?;
        write!(f, " cs {:x} cr0 {:x} cr2 {:x} cr3 {:x}", s.cs.selector, s.cr0, s.cr2, s.cr3)?;
        write!(f, " cr4 {:x} efer {:x}", s.cr4, s.efer)
    }
}
