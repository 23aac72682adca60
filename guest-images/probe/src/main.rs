//! A guest's init for tests: says what it was given, and powers off.
//!
//! It is started by `guest-init` as `/sbin/init` or as an entrypoint, statically linked, in a root
//! that holds nothing else. Every fact is one line, `probe: KEY VALUE`, the value quoted as Rust
//! quotes it; the last line is `probe: end`. Environment variables ask for more:
//!
//! - `PROBE_READ=PATH:PATH…`: the content of files, with owner and mode
//! - `PROBE_APPEND=PATH`: adds a line to a file first, so that the next boot can find it
//! - `PROBE_SIZE=PATH:PATH…`: sizes of file systems
//! - `PROBE_AWAIT=PATH:!PATH…`: waits, one after the other, for a path to be there, or not to be

use std::io::Write;
use std::os::unix::fs::MetadataExt;

fn main() {
    for (index, arg) in std::env::args().enumerate() {
        say(&format!("arg{index}"), &arg);
    }
    let mut env: Vec<(String, String)> = std::env::vars().collect();
    env.sort();
    for (name, value) in &env {
        say(&format!("env {name}"), value);
    }
    say("dir", &std::env::current_dir().unwrap_or_default().to_string_lossy());
    say("pid", &std::process::id().to_string());
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    say("uptime_us", &(up.tv_sec * 1_000_000 + up.tv_nsec / 1000).to_string());
    if let Ok(path) = std::env::var("PROBE_APPEND") {
        append(&path);
    }
    for path in list("PROBE_READ").chain(KERNEL_FILES.iter().map(ToString::to_string)) {
        read(&path);
    }
    for path in list("PROBE_SIZE") {
        match rustix::fs::statvfs(path.as_str()) {
            Ok(s) => say(&format!("size {path}"), &(s.f_blocks * s.f_frsize).to_string()),
            Err(error) => say(&format!("size {path}"), &error.to_string()),
        }
    }
    for path in list("PROBE_AWAIT") {
        await_path(&path);
    }
    say("end", "");
    rustix::fs::sync();
    guest_init::power_off();
}

fn say(key: &str, value: &str) {
    println!("probe: {key} {value:?}");
}

fn list(variable: &str) -> impl Iterator<Item = String> {
    let paths = std::env::var(variable).unwrap_or_default();
    paths
        .split(':')
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

fn append(path: &str) {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.append(true).create(true).open(path);
    if let Err(error) = opened.and_then(|mut file| file.write_all(b"one boot\n")) {
        say(&format!("append {path}"), &error.to_string());
    }
}

fn read(path: &str) {
    match std::fs::read(path) {
        Ok(bytes) => say(&format!("file {path}"), &String::from_utf8_lossy(&bytes)),
        Err(error) => say(&format!("file {path}"), &format!("error: {error}")),
    }
    if let Ok(meta) = std::fs::metadata(path) {
        let access = format!("{:o} {} {}", meta.mode() & 0o7777, meta.uid(), meta.gid());
        say(&format!("access {path}"), &access);
    }
}

fn await_path(path: &str) {
    say("awaiting", path);
    let (name, wanted) = path.strip_prefix('!').map_or((path, true), |name| (name, false));
    let started = std::time::Instant::now();
    while std::path::Path::new(name).exists() != wanted {
        if started.elapsed() > AWAIT_LIMIT {
            return say(&format!("awaited {path}"), "in vain");
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    say(&format!("awaited {path}"), "seen");
}

/// Longest wait for one path.
const AWAIT_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
const KERNEL_FILES: [&str; 7] = [
    "/proc/sys/kernel/hostname",
    "/proc/self/mounts",
    "/proc/modules",
    "/proc/net/route",
    "/proc/net/if_inet6",
    "/proc/net/ipv6_route",
    "/proc/net/fib_trie",
];
