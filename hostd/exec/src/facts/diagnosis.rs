//! What whoever looks after the machine would have typed into a shell, as JSON.
//!
//! Names of processes are shown, their arguments and environments are not: there could be secrets in
//! them. All lists are cut.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use serde_json::{Map, Value, json};

use super::{names, text};

/// Lines of the kernel's log.
const LOG_LINE_COUNT_MAX: usize = 200;
/// Records of it that are read to find the last ones.
const LOG_RECORD_COUNT_MAX: usize = 100_000;
/// Bytes of one record (linux/printk.h).
const LOG_RECORD_SIZE_MAX: usize = 8192;
/// Processes that are shown: those with the most memory.
const PROCESS_COUNT_MAX: usize = 100;
/// Lines of one of the kernel's tables.
const TABLE_LINE_COUNT_MAX: usize = 200;

/// Everything that helps.
pub fn diagnosis() -> Map<String, Value> {
    let root = Path::new("/proc");
    let mut details = Map::new();
    details.insert("kernel_log".to_owned(), json!(kernel_log(Path::new("/dev/kmsg"))));
    details.insert("processes".to_owned(), Value::Array(processes(root)));
    for (name, file) in [
        ("kernel", "version"),
        ("uptime", "uptime"),
        ("load", "loadavg"),
        ("memory", "meminfo"),
        ("disks", "diskstats"),
        ("partitions", "partitions"),
        ("mounts", "self/mounts"),
        ("network", "net/dev"),
        ("pressure_cpu", "pressure/cpu"),
        ("pressure_memory", "pressure/memory"),
        ("pressure_io", "pressure/io"),
    ] {
        let text = text(&root.join(file)).unwrap_or_default();
        let lines: Vec<_> = text.lines().take(TABLE_LINE_COUNT_MAX).collect();
        details.insert(name.to_owned(), json!(lines));
    }
    details
}

/// The last lines of the kernel's log, without what comes while it is read.
fn kernel_log(device: &Path) -> Vec<String> {
    let mut options = File::options();
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let Ok(mut file) = options.read(true).custom_flags(nonblocking).open(device) else {
        return Vec::new();
    };
    let mut lines = std::collections::VecDeque::new();
    let mut record = [0; LOG_RECORD_SIZE_MAX];
    for _ in 0..LOG_RECORD_COUNT_MAX {
        let size = match file.read(&mut record) {
            Ok(0) => break,
            Ok(size) => size,
            // Records were overwritten while we read.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => continue,
            Err(_) => break,
        };
        lines.extend(log_line(record.get(..size).unwrap_or_default()));
        if lines.len() > LOG_LINE_COUNT_MAX {
            lines.pop_front();
        }
    }
    lines.into()
}

/// One record as a line: `priority,sequence,microseconds,flags;text` and more lines of properties
/// (Documentation/ABI/testing/dev-kmsg).
fn log_line(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let (head, rest) = record.split_once(';')?;
    let microseconds: u64 = head.split(',').nth(2)?.parse().ok()?;
    let (seconds, rest_of_second) = (microseconds / 1_000_000, microseconds % 1_000_000);
    let text = rest.lines().next().unwrap_or_default();
    Some(format!("[{seconds}.{rest_of_second:06}] {text}"))
}

/// Processes, those with the most memory first.
fn processes(root: &Path) -> Vec<Value> {
    let ids = names(&root.to_owned()).into_iter().filter_map(|name| name.parse::<u32>().ok());
    let mut found: Vec<_> = ids.filter_map(|id| process(root, id)).collect();
    found.sort_by_key(|(memory, _)| std::cmp::Reverse(*memory));
    found.into_iter().take(PROCESS_COUNT_MAX).map(|(_, shown)| shown).collect()
}

/// A process and its memory in KiB, from `/proc/PID/status` (proc_pid_status(5)).
fn process(root: &Path, id: u32) -> Option<(u64, Value)> {
    let status = text(&root.join(id.to_string()).join("status"))?;
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    let memory = field("VmRSS").and_then(|text| text.split(' ').next()?.parse().ok());
    let memory: u64 = memory.unwrap_or(0);
    let shown = json!({
        "pid": id, "name": field("Name"), "state": field("State"), "parent": field("PPid"),
        "memory_kib": memory, "threads": field("Threads"),
    });
    Some((memory, shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_the_kernel_become_lines() {
        let record = b"6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n";
        assert_eq!(log_line(record).unwrap(), "[5.140900] NET: Registered");
        assert_eq!(log_line(b"nonsense"), None);
        assert_eq!(kernel_log(Path::new("/dev/absent")), Vec::<String>::new());
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let details = diagnosis();
        let processes = details["processes"].as_array().unwrap();
        let id = std::process::id();
        assert!(processes.iter().any(|process| process["pid"] == id), "{processes:?}");
        assert!(details["memory"][0].as_str().unwrap().starts_with("MemTotal"));
        // Arguments may be secrets.
        assert!(processes.iter().all(|process| process.get("cmdline").is_none()));
    }
}
