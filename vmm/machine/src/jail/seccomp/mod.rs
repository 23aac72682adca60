//! A system call filter for each thread.
//!
//! [`filters`] says which calls each kind of thread may make, and why; here they become programs that
//! the kernel runs before each call. A thread's kind is told by its name. Its filter is the first
//! thing that it gets, before it does anything for a guest, and stays.
//!
//! A call that is not in the filter is not made, and ends the process ([`trap`]).

mod filters;
mod names;
mod requests;
pub(super) mod trap;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use self::filters::{Filter, When};

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Vcpu,
    Disk,
    Net,
    Fs,
    Devices,
    Api,
    Hotplug,
    Signals,
    Input,
    Main,
    Warden,
}

impl Kind {
    /// All that a jailed process has.
    #[cfg(test)]
    pub(super) const JAILED: [(Self, &str); 10] = [
        (Self::Vcpu, "vcpu0"),
        (Self::Disk, "disk.root"),
        (Self::Net, "net.net0"),
        (Self::Fs, "fs.root"),
        (Self::Devices, "devices"),
        (Self::Api, "api"),
        (Self::Hotplug, "hotplug"),
        (Self::Signals, "signals"),
        (Self::Input, "input"),
        (Self::Main, "main"),
    ];

    /// The kind of a thread called `name`: the name up to a number or a dot.
    pub(super) fn of(name: &str) -> Option<Self> {
        let end = name.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(name.len());
        Some(match &name[..end] {
            "vcpu" => Self::Vcpu,
            "disk" => Self::Disk,
            "net" => Self::Net,
            "fs" => Self::Fs,
            "devices" => Self::Devices,
            "api" => Self::Api,
            "hotplug" => Self::Hotplug,
            "signals" => Self::Signals,
            "input" => Self::Input,
            "main" => Self::Main,
            "warden" => Self::Warden,
            _ => return None,
        })
    }

    fn filter(self, has_shares: bool) -> Filter {
        match self {
            Self::Vcpu => filters::VCPU,
            Self::Disk => filters::DISK,
            Self::Net => filters::NET,
            Self::Fs if has_shares => filters::FS,
            Self::Fs => filters::FLIST,
            Self::Devices => filters::DEVICES,
            Self::Api => filters::API,
            Self::Hotplug => filters::HOTPLUG,
            Self::Signals => filters::SIGNALS,
            Self::Input => filters::INPUT,
            Self::Main => filters::MAIN,
            Self::Warden => filters::WARDEN,
        }
    }
}

/// The filters of one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filters {
    /// Whether file systems have directories of the host to work in.
    pub(super) has_shares: bool,
}

impl Filters {
    /// Puts the calling thread under the filter of its kind, for good.
    pub(super) fn apply(self, kind: Kind) -> io::Result<()> {
        if kind == Kind::Hotplug {
            install(&without_clone3()?)?;
        }
        install(&program(kind.filter(self.has_shares))?)
    }
}

/// A filter as the kernel runs it, for this process.
fn program(filter: Filter) -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut unconditional = BTreeSet::new();
    for rule in filter.iter().copied().flatten() {
        let chain = rules.entry(rule.call).or_default();
        match conditions(rule.when)? {
            Some(more) => chain.extend(more),
            None => {
                unconditional.insert(rule.call);
            }
        }
    }
    for call in unconditional {
        // A chain without rules allows everything, and one with any only what they say.
        rules.insert(call, Vec::new());
    }
    let (forbidden, allowed) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, forbidden, allowed, TargetArch::x86_64);
    filter.and_then(TryInto::try_into).map_err(io::Error::other)
}

/// Answers that there is no `clone3`, whose flags no filter can see. Libraries fall back to `clone`.
fn without_clone3() -> io::Result<BpfProgram> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, missing, TargetArch::x86_64);
    filter.and_then(TryInto::try_into).map_err(io::Error::other)
}

/// One rule for each way in which the condition can hold; `None` for always.
fn conditions(when: When) -> io::Result<Option<Vec<SeccompRule>>> {
    let rule = |argument, operation, value: u32| {
        let value = u64::from(value);
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(io::Error::other)
    };
    let rules = match when {
        When::Always => return Ok(None),
        When::OneOf(argument, values) => {
            values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, *value)).collect()
        }
        When::Without(argument, bits) => {
            rule(argument, SeccompCmpOp::MaskedEq(u64::from(bits)), 0).map(|rule| vec![rule])
        }
        When::Ourselves(argument) => {
            rule(argument, SeccompCmpOp::Eq, std::process::id()).map(|rule| vec![rule])
        }
    };
    rules.map(Some)
}

fn install(program: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        other => io::Error::other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(filter: Filter) -> impl Iterator<Item = (i64, When)> {
        filter.iter().copied().flatten().map(|rule| (rule.call, rule.when))
    }

    fn allows(filter: Filter, call: i64, when: When) -> bool {
        rules(filter).any(|(allowed, condition)| {
            allowed == call
                && match (condition, when) {
                    (When::Always, _) => true,
                    (When::OneOf(a, some), When::OneOf(b, all)) => {
                        // Several rules may share the values out.
                        a == b && all.iter().all(|value| some.contains(value))
                    }
                    (one, other) => one == other,
                }
        })
    }

    #[test]
    fn each_thread_has_a_kind_and_each_kind_a_program() {
        for (kind, name) in Kind::JAILED {
            assert_eq!(Kind::of(name), Some(kind));
            for has_shares in [false, true] {
                program(kind.filter(has_shares)).unwrap();
            }
        }
        program(Kind::Warden.filter(false)).unwrap();
        without_clone3().unwrap();
        for name in ["", "vcpux", "tokio-1", "disk-a", ".disk"] {
            assert_eq!(Kind::of(name), None, "{name}");
        }
    }

    /// A child, since only the first time an arena's end is given back is a file asked for.
    #[test]
    fn a_thread_may_free_what_it_allocated() {
        const IS_CHILD: &str = "TEST_IS_THE_CHILD";
        if std::env::var_os(IS_CHILD).is_none() {
            let own = std::env::current_exe().unwrap();
            let mut child = std::process::Command::new(own);
            child.args(["--exact", "jail::seccomp::tests::a_thread_may_free_what_it_allocated"]);
            let output = child.env(IS_CHILD, "1").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
            return;
        }
        super::super::sys::settle_arenas();
        let thread = std::thread::spawn(|| {
            Filters { has_shares: false }.apply(Kind::Api).unwrap();
            // Together more than what an arena keeps at its end, each too small to be mapped alone.
            let pieces: Vec<_> = (0..8).map(|_| vec![1_u8; 100 << 10]).collect();
            pieces.iter().map(Vec::len).sum::<usize>()
        });
        assert_eq!(thread.join().unwrap(), 800 << 10);
    }

    /// A thread has the filters of whoever started it, too.
    #[test]
    fn whoever_plugs_devices_in_may_do_all_that_their_threads_may() {
        for (name, filter) in [("disk", filters::DISK), ("net", filters::NET)] {
            for (call, when) in rules(filter) {
                let each: Vec<When> = match when {
                    When::OneOf(argument, values) => values
                        .iter()
                        .map(|value| When::OneOf(argument, std::slice::from_ref(value)))
                        .collect(),
                    other => vec![other],
                };
                for when in each {
                    assert!(allows(filters::HOTPLUG, call, when), "{name}: {call} {when:?}");
                }
            }
        }
    }

    /// What no thread of a jailed process may do, whatever becomes of the lists.
    #[test]
    fn no_filter_lets_anybody_out() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_pidfd_getfd,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_chroot,
            libc::SYS_setresuid,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_memfd_create,
            libc::SYS_name_to_handle_at,
            libc::SYS_open_by_handle_at,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_init_module,
        ];
        for (kind, name) in Kind::JAILED {
            for (call, when) in rules(kind.filter(true)) {
                assert!(!never.contains(&call), "{name}: {call}");
                let is_checked =
                    [libc::SYS_ioctl, libc::SYS_prctl, libc::SYS_fcntl, libc::SYS_mmap]
                        .contains(&call);
                assert!(!is_checked || when != When::Always, "{name}: {call}");
            }
            let opens = rules(kind.filter(true))
                .any(|(call, _)| [libc::SYS_openat, libc::SYS_openat2].contains(&call));
            assert_eq!(opens, kind == Kind::Fs, "{name}");
            assert!(!rules(kind.filter(false)).any(|(call, _)| call == libc::SYS_openat), "{name}");
            let makes_rings = rules(kind.filter(true)).any(|(c, _)| c == libc::SYS_io_uring_setup);
            assert_eq!(makes_rings, kind == Kind::Hotplug, "{name}");
        }
    }
}
