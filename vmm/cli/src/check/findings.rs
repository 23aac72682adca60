//! What the facts mean for VMs.

use std::error::Error as _;

use serde::Serialize;
use vmm_spec::Size;

use super::facts::Facts;

/// Less than this leaves no room for a VM of the default size.
const MEMORY_AVAILABLE_MIN: u64 = 512 << 20;

/// One thing that VMs want of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) what: &'static str,
    pub(super) verdict: Verdict,
    pub(super) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
}

/// Whether they get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Yes.
    Ok,
    /// VMs run without it, but slower, or with less.
    Limited,
    /// No VM runs without it.
    Missing,
}

/// Judges a host.
pub(super) fn assess(facts: &Facts) -> Vec<Finding> {
    vec![
        kvm(facts),
        huge_pages(facts),
        memory(facts),
        io_uring(facts),
        tun(facts),
        namespaces(facts),
        wall(facts, "landlock", "boot with landlock in `lsm=`, on Linux 5.19 or later"),
        wall(
            facts,
            "seccomp",
            "use a kernel with CONFIG_SECCOMP_FILTER; VMs run only with --no-jail",
        ),
        cgroup(facts),
    ]
}

fn ok(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { what, verdict: Verdict::Ok, text: text.into(), hint: None }
}

fn limited(what: &'static str, text: impl Into<String>, hint: &str) -> Finding {
    Finding { what, verdict: Verdict::Limited, text: text.into(), hint: Some(hint.to_owned()) }
}

fn kvm(facts: &Facts) -> Finding {
    match (&facts.kvm, facts.virtualization) {
        (Ok(()), Some(flag)) => ok("kvm", format!("works, by the processor's {flag}")),
        (Ok(()), None) => limited(
            "kvm",
            "works, but the processor shows no virtualization: guests are probably emulated, and slow",
            "for ordinary kernels, use a host with vmx or svm in /proc/cpuinfo, or the lab: \
             `ci/test lab` in the source tree",
        ),
        (Err(error), _) => {
            let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            Finding {
                what: "kvm",
                verdict: Verdict::Missing,
                text: format!("{error}{source}"),
                hint: Some(error.hint()),
            }
        }
    }
}

fn huge_pages(facts: &Facts) -> Finding {
    match facts.transparent_huge_pages.as_deref() {
        Some(mode @ ("always" | "madvise")) => {
            ok("huge pages", format!("transparent ones are given ({mode})"))
        }
        Some(mode) => limited(
            "huge pages",
            format!("transparent ones are not given ({mode}): guests start slower and run slower"),
            "`echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`",
        ),
        None => limited(
            "huge pages",
            "this kernel has no transparent ones: guests start slower and run slower",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

fn memory(facts: &Facts) -> Finding {
    let Some(available) = facts.memory_available else {
        return ok("memory", "unknown: /proc/meminfo does not say");
    };
    let text = format!("{} available", Size::from_mib(available >> 20));
    if available < MEMORY_AVAILABLE_MIN {
        let hint = "a VM of the default size wants 256M and a little";
        return limited("memory", text, hint);
    }
    ok("memory", text)
}

fn io_uring(facts: &Facts) -> Finding {
    match facts.io_uring_disabled {
        None | Some(0) => ok("io_uring", "is there, for disks"),
        Some(level) => limited(
            "io_uring",
            format!("is switched off (kernel.io_uring_disabled = {level}): disks need it"),
            "`sudo sysctl kernel.io_uring_disabled=0`",
        ),
    }
}

fn tun(facts: &Facts) -> Finding {
    if facts.has_tun {
        return ok("tap", "/dev/net/tun can be opened, for network cards");
    }
    limited(
        "tap",
        "/dev/net/tun can't be opened: no network cards by --net tap=",
        "`sudo modprobe tun`, and the right to open it; or pass open taps: --net fd=",
    )
}

/// All that a jail wants are made together; without those, filters and Landlock remain.
fn namespaces(facts: &Facts) -> Finding {
    let walls = || facts.walls.iter().filter(|wall| wall.name.ends_with(NAMESPACE));
    let missing: Vec<String> = walls()
        .filter(|wall| !wall.stands)
        .map(|wall| format!("{} ({})", wall.name.trim_end_matches(NAMESPACE), wall.detail))
        .collect();
    if walls().next().is_none() {
        return ok("namespaces", "unknown: they could not be tried");
    }
    if missing.is_empty() {
        return ok("namespaces", "this user may make all that a jail has");
    }
    limited(
        "namespaces",
        format!("a jail has fewer walls, without those of {}", missing.join(", ")),
        "`sudo sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1 \
         kernel.apparmor_restrict_unprivileged_userns=0`, as far as they exist; or start VMs as root",
    )
}

const NAMESPACE: &str = " namespace";

/// A wall that has no others with it.
fn wall(facts: &Facts, name: &'static str, hint: &str) -> Finding {
    match facts.walls.iter().find(|wall| wall.name == name) {
        None => ok(name, "unknown: it could not be tried"),
        Some(wall) if wall.stands => ok(name, format!("is there ({}), for the jail", wall.detail)),
        Some(wall) => limited(name, format!("is not there: {}", wall.detail), hint),
    }
}

fn cgroup(facts: &Facts) -> Finding {
    match facts.cgroup_controllers.as_deref().map(str::trim) {
        Some(controllers) if !controllers.is_empty() => {
            ok("cgroup", format!("version 2, with {controllers}"))
        }
        Some(_) => limited(
            "cgroup",
            "version 2 has no controllers here: VMs can't be limited from outside",
            "boot with `cgroup_no_v1=all`",
        ),
        None => limited(
            "cgroup",
            "version 2 is not mounted at /sys/fs/cgroup: --jail cgroup= can't be used",
            "boot with `systemd.unified_cgroup_hierarchy=1`, or mount it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use vmm_machine::kvm::KvmError;
    use vmm_spec::api::Wall;

    use super::*;

    fn wall(name: &str, stands: bool) -> Wall {
        Wall { name: name.to_owned(), stands, detail: "detail".to_owned() }
    }

    fn good() -> Facts {
        Facts {
            kvm: Ok(()),
            virtualization: Some("vmx"),
            transparent_huge_pages: Some("madvise".to_owned()),
            memory_available: Some(8 << 30),
            io_uring_disabled: Some(0),
            has_tun: true,
            walls: ["user namespace", "mount namespace", "landlock", "seccomp"]
                .map(|name| wall(name, true))
                .into(),
            cgroup_controllers: Some("cpu memory\n".to_owned()),
        }
    }

    #[test]
    fn a_good_host_has_it_all() {
        let findings = assess(&good());
        assert!(
            findings.iter().all(|f| f.verdict == Verdict::Ok && f.hint.is_none()),
            "{findings:?}"
        );
    }

    #[test]
    fn kvm_problems_say_what_is_in_the_way() {
        let missing = |kvm| assess(&Facts { kvm: Err(kvm), ..good() }).remove(0);
        let denied = missing(KvmError::NotPermitted);
        assert_eq!((denied.what, denied.verdict), ("kvm", Verdict::Missing));
        assert_eq!(denied.text, "/dev/kvm: permission denied");
        assert!(denied.hint.unwrap().contains("usermod"));
        let source = std::io::ErrorKind::ResourceBusy.into();
        let busy = missing(KvmError::Open { device: "/dev/kvm".to_owned(), source });
        assert_eq!(busy.text, "/dev/kvm: resource busy");
    }

    #[test]
    fn what_is_less_is_said_to_be_less() {
        let poor = Facts {
            virtualization: None,
            transparent_huge_pages: Some("never".to_owned()),
            memory_available: Some(100 << 20),
            io_uring_disabled: Some(2),
            has_tun: false,
            walls: good().walls.iter().map(|found| wall(&found.name, false)).collect(),
            cgroup_controllers: Some("\n".to_owned()),
            ..good()
        };
        for finding in assess(&poor) {
            assert_eq!(finding.verdict, Verdict::Limited, "{}", finding.what);
            assert!(finding.hint.is_some(), "{}", finding.what);
        }
    }
}
