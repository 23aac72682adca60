//! Which crates may know which: the arrows of `ARCHITECTURE.md`, held.
//!
//! A [`Rule`] says what a folder's crates must not depend on. Only direct dependencies are looked
//! at; since every crate of ours has its own rule, an indirect path breaks one on the way.

use crate::source::{Crate, Workspace};

/// Crates below `folder` must not depend on anything in `forbidden`.
struct Rule {
    folder: &'static str,
    forbidden: &'static [&'static str],
    why: &'static str,
}

const NETWORK: &[&str] = &["tokio", "ureq", "reqwest", "hyper", "rustls", "rusty-s3"];

const RULES: &[Rule] = &[
    Rule { folder: "vmm", forbidden: NETWORK, why: "a VM process opens no network connection" },
    Rule {
        folder: "vmm/spec",
        forbidden: &["kvm-ioctls", "vm-memory", "rustix", "vmm-virtio", "vmm-machine"],
        why: "a description is plain data: it opens nothing and runs nothing",
    },
    Rule {
        folder: "vmm/virtio",
        forbidden: &["kvm-ioctls", "kvm-bindings", "event-manager", "vmm-spec", "vmm-machine"],
        why: "device models know no KVM, and others decide on threads",
    },
    Rule {
        folder: "guest-images/flist-view",
        forbidden: &["tokio", "ureq", "rusqlite", "rusty-s3", "flist", "zdb-client"],
        why: "it is what the VMM links: no SQLite, no network, no stores",
    },
    Rule { folder: "guest-images", forbidden: &["tokio"], why: "flist work is synchronous" },
    Rule {
        folder: "zdb/resp",
        forbidden: &["rustix", "tokio", "mio", "zdb-client"],
        why: "the protocol does no I/O",
    },
    Rule {
        folder: "zdb/engine",
        forbidden: &["zdb-resp", "zdb-client", "mio"],
        why: "storage knows no protocol and no network",
    },
    Rule { folder: "zdb", forbidden: &["tokio"], why: "its data path is synchronous" },
    Rule {
        folder: "mycelium/wire",
        forbidden: &["rustix", "libc", "tokio", "mycelium-router"],
        why: "codecs do no I/O",
    },
    Rule {
        folder: "mycelium/router",
        forbidden: &["rustix", "libc", "tokio", "mio", "quinn", "ring"],
        why: "the router opens no socket and reads no clock",
    },
    Rule {
        folder: "hostd/grid",
        forbidden: &["rustix", "libc", "tokio", "mio", "subxt", "hostd-chain", "hostd-rmb"],
        why: "what a deployment means is pure: it opens nothing and waits for nobody",
    },
    Rule {
        folder: "hostd/rmb",
        forbidden: &["subxt", "hostd-chain"],
        why: "the message bus knows twins by a trait, and no chain",
    },
];

/// Folders whose programs meet at a socket, a file or an exit status, and never link one another.
const HOUSES: [&str; 4] = ["vmm", "hostd", "zdb", "mycelium"];

/// What a house may link of another all the same.
const DOORS: &[(&str, &str)] = &[("hostd", "vmm-spec"), ("hostd", "zdb-client")];

pub(super) fn check(workspace: &Workspace) -> Vec<String> {
    let mut broken = Vec::new();
    for member in &workspace.crates {
        for rule in RULES.iter().filter(|rule| member.folder.starts_with(rule.folder)) {
            broken.extend(forbidden(member, rule));
        }
        broken.extend(between_houses(workspace, member));
        broken.extend(only_door(member));
    }
    broken
}

fn forbidden(member: &Crate, rule: &Rule) -> Vec<String> {
    let found = rule.forbidden.iter().filter(|name| member.dependencies.contains(**name));
    found.map(|name| format!("{}: depends on {name}: {}", manifest(member), rule.why)).collect()
}

fn between_houses(workspace: &Workspace, member: &Crate) -> Vec<String> {
    let Some(house) = HOUSES.iter().find(|house| member.folder.starts_with(house)) else {
        return Vec::new();
    };
    let foreign = workspace.crates.iter().filter(|other| {
        let elsewhere = HOUSES.iter().any(|name| name != house && other.folder.starts_with(name));
        elsewhere && member.dependencies.contains(&other.name)
    });
    foreign
        .filter(|other| !DOORS.contains(&(*house, other.name.as_str())))
        .map(|other| {
            format!("{}: links {}, a program of another house", manifest(member), other.name)
        })
        .collect()
}

/// subxt brings about 210 crates, so it lives behind one door.
fn only_door(member: &Crate) -> Option<String> {
    let outside = member.dependencies.contains("subxt") && !member.folder.ends_with("hostd/chain");
    outside.then(|| format!("{}: only hostd/chain uses subxt", manifest(member)))
}

fn manifest(member: &Crate) -> String {
    member.folder.join("Cargo.toml").display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::{member, workspace};

    fn broken(folder: &str, dependencies: &[&str]) -> Vec<String> {
        let others = ["vmm/machine", "zdb/engine"].map(|folder| member(folder, &[], &[]));
        let mut crates = Vec::from(others);
        crates.push(member(folder, &[], dependencies));
        check(&workspace(crates))
    }

    #[test]
    fn what_the_vmm_links_opens_no_connection() {
        assert_eq!(broken("vmm/virtio", &["vm-memory"]), Vec::<String>::new());
        assert_eq!(broken("vmm/virtio", &["tokio"]).len(), 1);
        assert_eq!(broken("guest-images/flist-view", &["rusqlite"]).len(), 1);
    }

    #[test]
    fn houses_do_not_link_one_another() {
        assert_eq!(broken("vmm/cli", &["vmm-machine"]), Vec::<String>::new());
        assert_eq!(broken("hostd/daemon", &["vmm-machine", "zdb-engine"]).len(), 2);
        assert_eq!(broken("hostd/daemon", &["vmm-spec"]), Vec::<String>::new());
    }

    #[test]
    fn subxt_has_one_door() {
        assert_eq!(broken("hostd/chain", &["subxt"]), Vec::<String>::new());
        assert_eq!(broken("hostd/daemon", &["subxt"]).len(), 1);
    }
}
