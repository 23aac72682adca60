//! The cgroup (v2) that bounds what the VM takes of the host.
//!
//! It exists already: whoever supervises VMs made it, and removes it. Joining is the process's own
//! doing, before its namespaces, so that its cgroup namespace has the group as its root.

use std::fs;
use std::path::Path;

use vmm_spec::{Cgroup, IoMax};

use super::{BlockDevice, JailError};

/// The period of `cpu.max`, in microseconds: the kernel's own choice.
const CPU_PERIOD_US: u64 = 100_000;
const WALL: &str = "cgroup";

/// Sets the limits, those of I/O for each of `devices`, and moves this process in. Says what was done.
pub(super) fn join(cgroup: &Cgroup, devices: &[BlockDevice]) -> Result<String, JailError> {
    let mut detail = cgroup.path.display().to_string();
    if cgroup.io_max.is_some() && devices.is_empty() {
        detail = format!("{detail}, no block device for io.max");
    }
    for (file, value) in limits(cgroup, devices) {
        write(&cgroup.path, file, &value)?;
        detail = format!("{detail}, {file} {value}");
    }
    // 0 is whoever writes it.
    write(&cgroup.path, "cgroup.procs", "0")?;
    Ok(detail)
}

fn limits(cgroup: &Cgroup, devices: &[BlockDevice]) -> Vec<(&'static str, String)> {
    let memory = cgroup.memory_max.map(|size| ("memory.max", size.bytes().to_string()));
    let cpu = cgroup.cpu_max_percent.map(|percent| {
        let quota_us = u64::from(percent) * CPU_PERIOD_US / 100;
        ("cpu.max", format!("{quota_us} {CPU_PERIOD_US}"))
    });
    let pids = cgroup.pids_max.map(|count| ("pids.max", count.to_string()));
    let io = cgroup.io_max.into_iter().flat_map(|max| {
        devices.iter().map(move |device| ("io.max", format!("{device} {}", io_limits(max))))
    });
    [memory, cpu, pids].into_iter().flatten().chain(io).collect()
}

/// As much for reading as for writing. What is not given stays as it is.
fn io_limits(max: IoMax) -> String {
    let bytes = max.bytes_per_s.map(|limit| format!("rbps={limit} wbps={limit}"));
    let requests = max.ops_per_s.map(|limit| format!("riops={limit} wiops={limit}"));
    bytes.into_iter().chain(requests).collect::<Vec<_>>().join(" ")
}

fn write(cgroup: &Path, file: &str, value: &str) -> Result<(), JailError> {
    let path = cgroup.join(file);
    // It must be there: in an ordinary directory, a file would be made in vain.
    let opened = fs::File::options().write(true).open(&path);
    opened
        .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(JailError::host(WALL, &format!("{} = {value}", path.display())))
}

#[cfg(test)]
mod tests {
    use vmm_spec::Size;

    use super::*;

    #[test]
    fn limits_are_written_before_the_process_moves_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        for file in ["memory.max", "cpu.max", "cgroup.procs"] {
            fs::write(path.join(file), "").unwrap();
        }
        let cgroup = Cgroup {
            path: path.clone(),
            memory_max: Some(Size::from_mib(512)),
            cpu_max_percent: Some(150),
            pids_max: None,
            io_max: None,
        };
        join(&cgroup, &[]).unwrap();
        let read = |file| fs::read_to_string(path.join(file)).unwrap();
        assert_eq!(read("memory.max"), "536870912");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("cgroup.procs"), "0");
        let error = join(&Cgroup { pids_max: Some(16), ..cgroup }, &[]).unwrap_err();
        assert!(error.to_string().contains("pids.max = 16"), "{error}");
    }

    #[test]
    fn each_device_has_its_line_of_io_limits() {
        let io_max = Some(IoMax { bytes_per_s: Some(1 << 20), ops_per_s: Some(100) });
        let cgroup = Cgroup {
            path: "/none".into(),
            memory_max: None,
            cpu_max_percent: None,
            pids_max: None,
            io_max,
        };
        let folder = tempfile::tempdir().unwrap();
        let device = BlockDevice::at(folder.path()).unwrap();
        let lines = limits(&cgroup, device.as_slice());
        let expected = device.map(|device| {
            ("io.max", format!("{device} rbps=1048576 wbps=1048576 riops=100 wiops=100"))
        });
        assert_eq!(lines, Vec::from_iter(expected));
        let requests = IoMax { bytes_per_s: None, ops_per_s: Some(7) };
        assert_eq!(io_limits(requests), "riops=7 wiops=7");
    }
}
