//! Who the VMM becomes: its user and group, and which of the host's ids mean anything to it.
//!
//! A jailed process has a user namespace. Its map says which ids of the host exist in there:
//!
//! | started by | shared directories | map | the VMM is |
//! |---|---|---|---|
//! | root | none | one id, that of the VMM | a user that nobody else is |
//! | root | some | all ids, as they are | the same, with capabilities over those ids' files |
//! | a user | none that the guest writes | one id, the user's | the user |
//! | a user | one that the guest writes | the user's, called 0 | the user, whose files are the guest's root's |
//!
//! The last line lets a guest's root work in a directory of an ordinary user, as the one id that it has.

use std::fs;

use rustix::process::{getegid, geteuid, getpid};
use rustix::thread::CapabilitySet;
use vmm_spec::Jail;

use super::{JailError, Share};

const WALL: &str = "user";
/// The first of the ids that VMMs get, one each: far above those of people, of services, and of
/// containers (systemd's table of ids ends below). The warden's process id is added, which no other
/// living VM has.
const FIRST_ID: u32 = 1_900_000_000;

/// Who the VMM becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whether that takes a change of ids.
    pub(super) must_change: bool,
    /// The text of `/proc/PID/uid_map`.
    pub(super) uid_map: String,
    pub(super) gid_map: String,
    /// What it may still do, to the files of ids that it has.
    pub(super) capabilities: CapabilitySet,
}

/// The facts that decide.
struct Starter {
    uid: u32,
    gid: u32,
    pid: u32,
    uid_map: Vec<Extent>,
    gid_map: Vec<Extent>,
}

/// A line of a map: ids in here, from the first on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    first: u32,
    count: u32,
}

impl Ids {
    /// Decides, in the process that becomes the warden.
    pub(super) fn choose(jail: &Jail, shares: &[Share]) -> Result<Self, JailError> {
        let read = |file: &str| {
            let path = format!("/proc/self/{file}");
            fs::read_to_string(&path).map(|text| parse(&text)).map_err(JailError::host(WALL, &path))
        };
        let starter = Starter {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            pid: getpid().as_raw_nonzero().get().unsigned_abs(),
            uid_map: read("uid_map")?,
            gid_map: read("gid_map")?,
        };
        starter.choose(jail, shares)
    }
}

impl Starter {
    fn choose(&self, jail: &Jail, shares: &[Share]) -> Result<Ids, JailError> {
        if self.uid == 0 { self.choose_for_root(jail, shares) } else { self.stay(jail, shares) }
    }

    fn choose_for_root(&self, jail: &Jail, shares: &[Share]) -> Result<Ids, JailError> {
        let uid = jail.uid.unwrap_or_else(|| own_id(self.pid, &self.uid_map));
        let gid = jail.gid.or(jail.uid).unwrap_or_else(|| own_id(self.pid, &self.gid_map));
        for (key, id, map) in [("uid", uid, &self.uid_map), ("gid", gid, &self.gid_map)] {
            if !map.iter().any(|extent| extent.contains(id)) {
                let rule = "there is no such id in this container";
                return Err(JailError::Id { key, id, rule });
            }
        }
        let capabilities = capabilities(shares);
        let map = |id, all: &[Extent]| {
            if shares.is_empty() { one(id, id) } else { all.iter().map(Extent::as_it_is).collect() }
        };
        Ok(Ids {
            uid,
            gid,
            must_change: true,
            uid_map: map(uid, &self.uid_map),
            gid_map: map(gid, &self.gid_map),
            capabilities,
        })
    }

    fn stay(&self, jail: &Jail, shares: &[Share]) -> Result<Ids, JailError> {
        for (key, own, id) in [("uid", self.uid, jail.uid), ("gid", self.gid, jail.gid)] {
            if let Some(id) = id.filter(|id| *id != own) {
                return Err(JailError::Id { key, id, rule: "only root may become somebody else" });
            }
        }
        let is_written = shares.iter().any(|share| !share.is_readonly);
        let inside = |id| if is_written { 0 } else { id };
        Ok(Ids {
            uid: self.uid,
            gid: self.gid,
            must_change: false,
            uid_map: one(inside(self.uid), self.uid),
            gid_map: one(inside(self.gid), self.gid),
            capabilities: capabilities(shares),
        })
    }
}

/// What devices need to serve these directories with the owners and modes that their guest asks for.
/// Neither `MKNOD` nor `SYS_ADMIN`: devices and `trusted.` attributes are the host's.
fn capabilities(shares: &[Share]) -> CapabilitySet {
    if shares.iter().any(|share| !share.is_readonly) {
        CapabilitySet::CHOWN
            | CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::FOWNER
            | CapabilitySet::FSETID
            | CapabilitySet::SETFCAP
    } else if shares.is_empty() {
        CapabilitySet::empty()
    } else {
        CapabilitySet::DAC_READ_SEARCH
    }
}

/// An id for the VM whose warden has this process id.
fn own_id(pid: u32, map: &[Extent]) -> u32 {
    let wanted = FIRST_ID.saturating_add(pid);
    if map.iter().any(|extent| extent.contains(wanted)) {
        return wanted;
    }
    // In a container with few ids: one of the last ones.
    map.iter().map(|extent| extent.first + (extent.count - 1)).max().unwrap_or(wanted)
}

impl Extent {
    const fn contains(&self, id: u32) -> bool {
        id >= self.first && id - self.first < self.count
    }

    fn as_it_is(&self) -> String {
        format!("{first} {first} {count}\n", first = self.first, count = self.count)
    }
}

fn one(inside: u32, outside: u32) -> String {
    format!("{inside} {outside} 1\n")
}

/// The ids that a map gives.
fn parse(text: &str) -> Vec<Extent> {
    let extent = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let (first, _, count) = (numbers.next()?.ok()?, numbers.next()?, numbers.next()?.ok()?);
        (count > 0).then_some(Extent { first, count })
    };
    text.lines().filter_map(extent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "         0          0 4294967295\n";

    fn starter(uid: u32, map: &str) -> Starter {
        Starter { uid, gid: uid, pid: 42, uid_map: parse(map), gid_map: parse(map) }
    }

    fn jail(uid: Option<u32>) -> Jail {
        Jail { uid, gid: None, cgroup: None }
    }

    fn share(is_readonly: bool) -> Share {
        Share { path: "/srv".into(), is_readonly }
    }

    #[test]
    fn root_becomes_somebody_that_nobody_else_is() {
        let ids = starter(0, HOST).choose(&jail(None), &[]).unwrap();
        assert_eq!((ids.uid, ids.gid, ids.must_change), (1_900_000_042, 1_900_000_042, true));
        assert_eq!(ids.uid_map, "1900000042 1900000042 1\n");
        assert!(ids.capabilities.is_empty());
        let named = starter(0, HOST).choose(&jail(Some(7)), &[share(false)]).unwrap();
        assert_eq!((named.uid, named.gid), (7, 7));
        assert_eq!(named.gid_map, "0 0 4294967295\n");
        assert!(named.capabilities.contains(CapabilitySet::CHOWN));
        let never = CapabilitySet::MKNOD | CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID;
        assert!(!named.capabilities.intersects(never));
        let readonly = starter(0, HOST).choose(&jail(None), &[share(true)]).unwrap();
        assert_eq!(readonly.capabilities, CapabilitySet::DAC_READ_SEARCH);
    }

    #[test]
    fn a_container_has_the_ids_that_it_has() {
        let container = starter(0, "0 100000 1000\n1000 5000 1\n");
        let ids = container.choose(&jail(None), &[share(false)]).unwrap();
        assert_eq!(ids.uid, 1000);
        assert_eq!(ids.uid_map, "0 0 1000\n1000 1000 1\n");
        let error = container.choose(&jail(Some(1001)), &[]).unwrap_err();
        assert!(error.to_string().starts_with("--jail uid=1001"), "{error}");
    }

    #[test]
    fn a_user_stays_who_it_is() {
        let ids = starter(1000, HOST).choose(&jail(None), &[share(true)]).unwrap();
        assert_eq!((ids.uid_map.as_str(), ids.must_change), ("1000 1000 1\n", false));
        let written = starter(1000, HOST).choose(&jail(Some(1000)), &[share(false)]).unwrap();
        assert_eq!(written.uid_map, "0 1000 1\n");
        let error = starter(1000, HOST).choose(&jail(Some(7)), &[]).unwrap_err();
        assert!(error.to_string().contains("only root"), "{error}");
    }

    #[test]
    fn maps_that_make_no_sense_give_nothing() {
        assert_eq!(parse("x\n1 2\n0 0 0\n5 6 7\n"), [Extent { first: 5, count: 7 }]);
    }
}
