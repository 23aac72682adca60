//! What the process gives up for good: its user, its capabilities, the ways to get any back.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    set_capabilities, set_capabilities_secure_bits, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::ids::Ids;
use super::{JailError, sys};

const WALL: &str = "capabilities";

/// Becomes another user and group, without any other groups. Capabilities stay, to close the rest
/// of the jail with.
pub(super) fn change_ids(ids: &Ids) -> Result<(), JailError> {
    let host = |what: &'static str| {
        move |error: rustix::io::Errno| JailError::host("user", what)(error.into())
    };
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .map_err(host("keep capabilities for now"))?;
    // Some containers have no way to drop groups, so that nobody gains by dropping one.
    let may_drop = std::fs::read_to_string("/proc/self/setgroups");
    if may_drop.map_or(true, |answer| answer.trim() != "deny") {
        set_thread_groups(&[]).map_err(host("leave all groups"))?;
    }
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    set_thread_res_gid(gid, gid, gid).map_err(host("become the group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(host("become the user"))
}

/// Nothing that is run can get more than there is. Needed by Landlock and filters of users.
pub(super) fn no_new() -> Result<(), JailError> {
    set_no_new_privs(true).map_err(|error| JailError::host(WALL, "no_new_privs")(error.into()))
}

/// Gives up all capabilities but `kept`, for every thread to come, and all ways to regain any. Nobody
/// may look into the process, and it leaves no core.
pub(super) fn give_up(kept: CapabilitySet, is_capable: bool) -> Result<(), JailError> {
    let host = |what: &'static str| move |error: io::Error| JailError::host(WALL, what)(error);
    if is_capable {
        sys::drop_bounding_set().map_err(host("empty the bounding set"))?;
        let locked = CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
        set_capabilities_secure_bits(locked).map_err(|e| host("lock them")(e.into()))?;
    }
    clear_ambient_capability_set().map_err(|e| host("empty the ambient set")(e.into()))?;
    let kept = if is_capable { kept } else { CapabilitySet::empty() };
    set(kept).map_err(host("give them up"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| host("keep others from looking in")(e.into()))?;
    for resource in [Resource::Core, Resource::Msgqueue, Resource::Rtprio, Resource::Nice] {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        setrlimit(resource, none).map_err(|e| host("limit resources")(e.into()))?;
    }
    Ok(())
}

/// Gives up what capabilities there are, in the calling thread.
pub(super) fn give_up_all() -> io::Result<()> {
    set(CapabilitySet::empty())
}

fn set(kept: CapabilitySet) -> io::Result<()> {
    let inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?)
}
