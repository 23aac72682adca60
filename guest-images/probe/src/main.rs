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
//! - `PROBE_WORK=FOLDER`: never ends, but writes files, reads them again and compares, and says every
//!   300 ms how far it came: `tick "COUNT WALL_MS MONOTONIC_MS RANDOM FILES_CHECKED ERRORS"`
//! - `PROBE_STILL_AGENT=1`: stops the agent that beats, as if the guest hung

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::ClockId;

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
    if std::env::var_os("PROBE_STILL_AGENT").is_some() {
        still_agent();
    }
    if let Ok(folder) = std::env::var("PROBE_WORK") {
        work(std::path::Path::new(&folder));
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

/// Keeps a disk busy, and shows whether the guest is what it was: its files, its clocks, its random
/// numbers.
fn work(folder: &std::path::Path) -> ! {
    let (checked, errors) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (folder, seen, wrong) = (folder.to_owned(), Arc::clone(&checked), Arc::clone(&errors));
    std::thread::spawn(move || {
        for round in 0_u64.. {
            let path = folder.join(format!("work-{}", round % WORK_FILES));
            let is_right = check(&path, round).is_ok_and(|is_right| is_right);
            let counter = if is_right && write(&path, round).is_ok() { &seen } else { &wrong };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    for count in 0_u64.. {
        let mut random = [0; 8];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let millis = |clock| {
            let time = rustix::time::clock_gettime(clock);
            time.tv_sec * 1000 + time.tv_nsec / 1_000_000
        };
        let (wall, monotonic) = (millis(ClockId::Realtime), millis(ClockId::Monotonic));
        let (checked, errors) = (checked.load(Ordering::Relaxed), errors.load(Ordering::Relaxed));
        let random = u64::from_le_bytes(random);
        say("tick", &format!("{count} {wall} {monotonic} {random:016x} {checked} {errors}"));
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    unreachable!("nobody counts so far")
}

/// Whether a file has what the round before its last wrote; the first ones have none yet.
fn check(path: &std::path::Path, round: u64) -> std::io::Result<bool> {
    let Some(before) = round.checked_sub(WORK_FILES) else { return Ok(true) };
    let file = std::fs::File::open(path)?;
    // From the disk, not from memory.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let bytes = std::fs::read(path)?;
    Ok(bytes == contents(before))
}

fn write(path: &std::path::Path, round: u64) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(&contents(round))?;
    file.sync_all()
}

fn contents(round: u64) -> Vec<u8> {
    (0..WORK_WORDS).flat_map(|word| (round << 32 | word).to_le_bytes()).collect()
}

/// Finds the process that beats, and lets it stand still.
fn still_agent() {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids {
        let name = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if name.starts_with(b"@guest-agent")
            && let Some(process) = rustix::process::Pid::from_raw(pid)
        {
            // It has had time for its first beat.
            std::thread::sleep(std::time::Duration::from_secs(1));
            let stilled = rustix::process::kill_process(process, rustix::process::Signal::STOP);
            say("agent", &format!("{stilled:?}"));
        }
    }
}

/// Files that are written in turn, and 64-bit words in each.
const WORK_FILES: u64 = 16;
const WORK_WORDS: u64 = 8192;
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
