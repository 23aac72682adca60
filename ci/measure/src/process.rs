//! Running and watching other programs: time, memory, system calls, instructions.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No measured program may take longer.
const TIME_MAX: Duration = Duration::from_secs(600);

/// What a finished program cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// From start to exit.
    pub(crate) seconds: f64,
    /// Largest resident size, in MiB.
    pub(crate) memory_mib: f64,
}

/// Runs a command line to its end, which must be a success.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: &[S]) -> anyhow::Result<Cost> {
    let name = line(arguments);
    let begin = Instant::now();
    let mut child = command(arguments)?.spawn().with_context(|| name.clone())?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pid = child.id();
        let done = &done;
        let watcher = scope.spawn(move || watch(pid, done));
        let status = child.wait();
        done.store(true, Ordering::Relaxed);
        let seconds = begin.elapsed().as_secs_f64();
        let memory_mib = watcher.join().expect("the watcher does not panic");
        if !status.with_context(|| name.clone())?.success() {
            bail!("{name}: failed");
        }
        Ok(Cost { seconds, memory_mib })
    })
}

/// Largest resident size seen until `done`. Kills what runs too long.
fn watch(pid: u32, done: &AtomicBool) -> f64 {
    let begin = Instant::now();
    let mut most = 0.0f64;
    while !done.load(Ordering::Relaxed) {
        most = most.max(status_mib(pid, "VmHWM").unwrap_or_default());
        if begin.elapsed() > TIME_MAX
            && let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
        {
            // Gone already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        thread::sleep(Duration::from_millis(2));
    }
    most
}

/// What a process holds, in MiB (proc(5), smaps_rollup).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// All that is resident.
    pub(crate) resident_mib: f64,
    /// The same, where what is shared is divided among those who share it.
    pub(crate) share_mib: f64,
    /// What nobody shares.
    pub(crate) private_mib: f64,
}

/// A program that runs beside the measurement and is ended with it.
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it and waits until `ready`.
    pub(crate) fn start<S: AsRef<OsStr>>(
        arguments: &[S],
        ready: impl Fn() -> bool,
    ) -> anyhow::Result<Self> {
        let name = line(arguments);
        let child = command(arguments)?.spawn().with_context(|| name.clone())?;
        let mut daemon = Self { child };
        let begin = Instant::now();
        while !ready() {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("{name}: ended with {status}");
            }
            if begin.elapsed() > Duration::from_secs(30) {
                bail!("{name}: not ready after 30 s");
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(daemon)
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it holds now, with what it shares.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path)?;
        let field = |name| field_mib(&text, name).unwrap_or_default();
        Ok(Memory {
            resident_mib: field("Rss"),
            share_mib: field("Pss"),
            private_mib: field("Private_Clean") + field("Private_Dirty"),
        })
    }

    /// Resident size now, in MiB.
    pub(crate) fn memory_mib(&self) -> anyhow::Result<f64> {
        status_mib(self.child.id(), "VmRSS").context("the daemon is gone")
    }

    /// What of that is of no file, in MiB.
    pub(crate) fn anonymous_mib(&self) -> anyhow::Result<f64> {
        status_mib(self.child.id(), "RssAnon").context("the daemon is gone")
    }

    /// Seconds of processor time used so far, user and system.
    pub(crate) fn processor_seconds(&self) -> anyhow::Result<f64> {
        processor_seconds(self.child.id())
    }
}

/// Seconds of processor time that a process has used so far, user and system.
pub(crate) fn processor_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc(5): utime and stime are fields 14 and 15, counted after the name in parentheses.
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let mut ticks = fields.split(' ').skip(11).map(|field| field.parse::<f64>().unwrap_or(0.0));
    let ticks = ticks.next().unwrap_or_default() + ticks.next().unwrap_or_default();
    Ok(ticks / f64::from(u32::try_from(rustix::param::clock_ticks_per_second())?))
}

impl Daemon {
    /// Ends it and waits until it is gone.
    pub(crate) fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // Gone already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > Duration::from_secs(10) {
                // It ignores SIGTERM; nothing it holds may outlive the measurement.
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A daemon under strace, which counts its system calls until it ends by itself.
pub(crate) struct Traced {
    daemon: Daemon,
    report: tempfile::NamedTempFile,
}

impl Traced {
    /// Starts it and waits until `ready`.
    pub(crate) fn start<S: AsRef<OsStr>>(
        arguments: &[S],
        ready: impl Fn() -> bool,
    ) -> anyhow::Result<Self> {
        let report = tempfile::NamedTempFile::new()?;
        let daemon = Daemon::start(&under_strace(report.path(), arguments), ready)?;
        Ok(Self { daemon, report })
    }

    /// Waits for its end; how many system calls it made in all.
    pub(crate) fn system_calls(mut self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        while self.daemon.child.try_wait()?.is_none() {
            if begin.elapsed() > Duration::from_secs(30) {
                bail!("a traced daemon does not end");
            }
            thread::sleep(Duration::from_millis(5));
        }
        strace_total(self.report.path())
    }
}

/// strace, attached to a process that runs already.
pub(crate) struct Attached {
    daemon: Daemon,
    report: tempfile::NamedTempFile,
}

impl Attached {
    /// Counts from now on, in all threads.
    pub(crate) fn to(pid: u32) -> anyhow::Result<Self> {
        let report = tempfile::NamedTempFile::new()?;
        let pid = pid.to_string();
        let process = ["-p", &pid];
        let words = under_strace(report.path(), &process);
        let daemon = Daemon::start(&words, || is_traced(&pid))?;
        Ok(Self { daemon, report })
    }

    /// Lets it go; how many system calls it made meanwhile.
    pub(crate) fn system_calls(mut self) -> anyhow::Result<f64> {
        self.daemon.stop();
        strace_total(self.report.path())
    }
}

/// Whether somebody traces each thread of a process.
pub(crate) fn is_traced(pid: &str) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}

/// System calls of a command and all its threads, counted by strace.
pub(crate) fn system_calls<S: AsRef<OsStr>>(arguments: &[S]) -> anyhow::Result<f64> {
    let report = tempfile::NamedTempFile::new()?;
    run(&under_strace(report.path(), arguments))?;
    strace_total(report.path())
}

fn under_strace<'a, S: AsRef<OsStr>>(report: &'a Path, arguments: &'a [S]) -> Vec<&'a OsStr> {
    let strace = ["strace", "-q", "-f", "-c", "-U", "calls,name", "-o"].map(OsStr::new);
    let arguments = arguments.iter().map(AsRef::as_ref);
    strace.into_iter().chain([report.as_os_str()]).chain(arguments).collect()
}

fn strace_total(report: &Path) -> anyhow::Result<f64> {
    let text = fs::read_to_string(report)?;
    let total = text.lines().rev().find_map(|line| line.trim().strip_suffix(" total"));
    let total = total.context("strace printed no total")?;
    Ok(total.trim().parse()?)
}

/// Instructions of a command in user space, counted by valgrind.
pub(crate) fn instructions<S: AsRef<OsStr>>(arguments: &[S]) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let out = format!("--callgrind-out-file={}", folder.path().join("out").display());
    let log_file = format!("--log-file={}", log.display());
    let mut traced: Vec<&OsStr> =
        ["valgrind", "--tool=callgrind", &out, &log_file].map(OsStr::new).into();
    traced.extend(arguments.iter().map(AsRef::as_ref));
    run(&traced)?;
    let text = fs::read_to_string(log)?;
    let count = text.lines().find_map(|line| line.split("Collected : ").nth(1));
    Ok(count.context("callgrind printed no count")?.trim().parse()?)
}

/// Raises the limit on open files for us and the servers we start; how many connections that allows.
pub(crate) fn raise_descriptor_limit() -> usize {
    /// What both sides open besides.
    const OTHERS: u64 = 1500;
    const WANTED: u64 = 64 * 1024;
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: Some(WANTED), maximum: Some(WANTED) };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        // Only root may raise the upper limit; what is below it is ours.
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let _ = setrlimit(Resource::Nofile, raised);
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(WANTED);
    usize::try_from(current.saturating_sub(OTHERS)).unwrap_or(0)
}

/// Writes back what is dirty and empties the kernel's caches of files and names.
pub(crate) fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("emptying the kernel's caches needs root")
}

/// Whether `path` is a mount point.
pub(crate) fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

fn command<S: AsRef<OsStr>>(arguments: &[S]) -> anyhow::Result<Command> {
    let (program, arguments) = arguments.split_first().context("an empty command line")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

fn line<S: AsRef<OsStr>>(arguments: &[S]) -> String {
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    words.join(" ")
}

fn status_mib(pid: u32, field: &str) -> Option<f64> {
    field_mib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, field)
}

/// A line of the kind "Name:  12 kB".
fn field_mib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kib / 1024.0)
}
