//! The rules of a jail.

use crate::spec::JailSpec;
use crate::verified::{Cgroup, IoMax, Jail};
use crate::verify::{RATE_MAX, bad_path, path};
use crate::{RateSpec, Size, SpecError};

/// What a VMM needs beside its guest's memory, at least: page tables of a large guest come on top.
const MEMORY_OVERHEAD_MIN: u64 = 16 << 20;
/// Threads of a VMM with one vCPU and a device or two, and its warden.
const PIDS_MIN: u32 = 16;

/// The jail of a VM with so much memory; `None` for none.
pub(crate) fn jail(spec: &JailSpec, memory: Size) -> Result<Option<Jail>, SpecError> {
    if !spec.enabled {
        return Ok(None);
    }
    for (key, id) in [("uid", spec.uid), ("gid", spec.gid)] {
        let rule = match id {
            Some(0) => "a jail of root holds nobody",
            Some(u32::MAX) => "the kernel reads it as `no change`",
            _ => continue,
        };
        return Err(option(key, id.unwrap_or_default(), rule));
    }
    Ok(Some(Jail { uid: spec.uid, gid: spec.gid, cgroup: cgroup(spec, memory)? }))
}

fn cgroup(spec: &JailSpec, memory: Size) -> Result<Option<Cgroup>, SpecError> {
    let limits = [
        ("memory_max", spec.memory_max.map(|_| ())),
        ("cpu_max_percent", spec.cpu_max_percent.map(|_| ())),
        ("pids_max", spec.pids_max.map(|_| ())),
        ("io_max", spec.io_max.map(|_| ())),
    ];
    let Some(given) = &spec.cgroup else {
        let limit = limits.iter().find(|(_, limit)| limit.is_some());
        return limit.map_or(Ok(None), |(key, _)| {
            Err(SpecError::missing("--jail cgroup=…", format!("{key}=… is a limit of it")))
        });
    };
    let path = path("--jail cgroup", given)?;
    if !path.is_absolute() {
        return Err(bad_path("--jail cgroup", &path, "it is not absolute"));
    }
    let needed = memory.bytes().saturating_add(MEMORY_OVERHEAD_MIN);
    if let Some(max) = spec.memory_max.filter(|max| max.bytes() < needed) {
        let rule = format!("the guest's {memory} and 16M of the VMM's own are more");
        return Err(option("memory_max", max, &rule));
    }
    if let Some(0) = spec.cpu_max_percent {
        return Err(option("cpu_max_percent", 0, "it is at least 1: percent of a processor"));
    }
    if let Some(max) = spec.pids_max.filter(|max| *max < PIDS_MIN) {
        return Err(option(
            "pids_max",
            max,
            &format!("a VMM has up to {PIDS_MIN} threads, or more"),
        ));
    }
    let JailSpec { memory_max, cpu_max_percent, pids_max, .. } = *spec;
    let io_max = spec.io_max.map(io_max).transpose()?;
    Ok(Some(Cgroup { path, memory_max, cpu_max_percent, pids_max, io_max }))
}

fn io_max(spec: RateSpec) -> Result<IoMax, SpecError> {
    let RateSpec { bytes_per_s, ops_per_s, burst_bytes, burst_ops } = spec;
    let bad = |value: u64, rule| Err(option("io_max", value, rule));
    if let Some(burst) = burst_bytes.map(Size::bytes).or(burst_ops) {
        return bad(burst, "a cgroup knows no bursts");
    }
    let max = IoMax { bytes_per_s: bytes_per_s.map(Size::bytes), ops_per_s };
    match (max.bytes_per_s, max.ops_per_s) {
        (None, None) => Err(SpecError::missing("--jail io_max=…", "it has no limit in it")),
        (Some(0), _) | (_, Some(0)) => bad(0, "nothing would ever move"),
        (Some(over), _) | (_, Some(over)) if over > RATE_MAX => bad(over, "that is no limit"),
        _ => Ok(max),
    }
}

fn option(key: &str, value: impl ToString, rule: &str) -> SpecError {
    SpecError::option("--jail", key, &value.to_string(), rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut JailSpec)) -> String {
        let mut spec = JailSpec { cgroup: Some("/sys/fs/cgroup/a".into()), ..JailSpec::default() };
        change(&mut spec);
        jail(&spec, Size::from_mib(256)).unwrap_err().to_string()
    }

    #[test]
    fn limits_are_a_cgroup_s_and_leave_room() {
        let none = error(|spec| (spec.cgroup, spec.pids_max) = (None, Some(64)));
        assert!(none.starts_with("--jail cgroup=… is missing: pids_max=…"), "{none}");
        let little = error(|spec| spec.memory_max = Some(Size::from_mib(256)));
        assert!(little.starts_with("--jail memory_max=\"256M\": the guest's 256M"), "{little}");
        assert!(error(|spec| spec.cpu_max_percent = Some(0)).contains("at least 1"));
        assert!(error(|spec| spec.pids_max = Some(3)).contains("16 threads"));
        let io = |bytes_per_s, ops_per_s, burst_ops| {
            let max = RateSpec { bytes_per_s, ops_per_s, burst_ops, burst_bytes: None };
            error(|spec| spec.io_max = Some(max))
        };
        assert!(io(None, None, None).starts_with("--jail io_max=… is missing: it has no limit"));
        assert!(io(None, Some(0), None).contains("nothing would ever move"));
        assert!(io(Some(Size::from_bytes(u64::MAX)), Some(1), None).contains("no limit"));
        assert!(io(Some(Size::from_mib(1)), Some(u64::MAX), None).contains("no limit"));
        assert!(io(Some(Size::from_mib(1)), Some(1), Some(2)).contains("knows no bursts"));
        let memory_max = Some(Size::from_mib(272));
        let spec = JailSpec { cgroup: Some("/a".into()), memory_max, ..JailSpec::default() };
        let jail = jail(&spec, Size::from_mib(256)).unwrap().unwrap();
        assert_eq!(jail.cgroup.unwrap().memory_max, memory_max);
    }
}
