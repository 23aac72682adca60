//! Landlock: a second wall around the host's files, and around sockets and signals where the kernel
//! can.
//!
//! What was opened before stays usable. From here on, nothing can be opened but below the shared
//! directories; with newer kernels no TCP socket bound or connected, no abstract or named unix socket
//! reached, no process outside signalled. It holds for this thread and all that it starts.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{JailError, Share, sys};

const WALL: &str = "Landlock";
/// The newest version that this was written for; older kernels enforce what they know.
const NEWEST: ABI = ABI::V10;
/// Before this version, nothing could be moved or linked to another directory under any rule.
const REFER_VERSION: u32 = 2;

/// Restricts this thread. Tells the kernel's version, or why there is no wall.
pub(super) fn restrict(
    shares: &[Share],
    places: &[PathBuf],
) -> Result<Result<u32, String>, JailError> {
    let version = match sys::landlock_version() {
        Ok(version) => version,
        Err(error) => return Ok(Err(absent(&error).to_owned())),
    };
    if version < REFER_VERSION && shares.iter().any(|share| !share.is_readonly) {
        let why = "version 1 would keep the guest from moving files between directories";
        return Ok(Err(why.to_owned()));
    }
    let failed = |error: RulesetError| {
        JailError::host(WALL, "restrict ourselves")(std::io::Error::other(error))
    };
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for (share, place) in shares.iter().zip(places) {
        let opened = PathFd::new(place).map_err(|error| {
            let what = format!("open {}", place.display());
            JailError::host(WALL, &what)(std::io::Error::other(error))
        })?;
        ruleset = ruleset.add_rule(PathBeneath::new(opened, access(share))).map_err(failed)?;
    }
    let status = ruleset.restrict_self().map_err(failed)?;
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => Err("the kernel did not enforce it".to_owned()),
        _ => Ok(version),
    })
}

/// What a device does below a directory. A whiteout is a character device to the kernel.
fn access(share: &Share) -> BitFlags<AccessFs> {
    if share.is_readonly {
        return AccessFs::ReadFile | AccessFs::ReadDir;
    }
    let never =
        AccessFs::Execute | AccessFs::MakeBlock | AccessFs::IoctlDev | AccessFs::ResolveUnix;
    AccessFs::from_all(NEWEST) & !never
}

/// Why a kernel has no Landlock.
pub(super) fn absent(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the kernel has it, but not in its `lsm=`",
        _ => "the kernel has none",
    }
}
