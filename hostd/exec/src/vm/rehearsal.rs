//! A machine that nobody reserved, to see whether one that somebody reserves would run.
//!
//! It has the node's own kernel and initial file system and nothing else: no disk, no network, no image.
//! Its init finds no root, says so and switches itself off, which takes a second or two and shows that
//! processors, the VMM and its jail, the kernel and the supervisor are what they should be.

use std::path::Path;
use std::time::{Duration, Instant};

use supervise::{Client, Limits, Log, Outcome, Program};
use vmm_spec::Exit;

use super::{MEMORY_OVERHEAD, THREADS_OVERHEAD, VmConfig, VmError, record};

/// What the supervisor calls it.
const NAME: &str = "rehearsal";
/// Bytes of its memory.
const MEMORY_SIZE: u64 = 256 << 20;
/// How long a VMM may take to end.
const STOP_GRACE: Duration = Duration::from_secs(5);
const LOG_SIZE_MAX: u64 = 256 << 10;
const REASON_SIZE_MAX: u64 = 2048;

/// Runs it to its end, for `time_max` at most, and says how long it took. Nothing is left of it but its log.
///
/// # Errors
/// It did not come to a good end, in words.
pub fn rehearse(
    config: &VmConfig,
    supervisor: &Client,
    log: &Path,
    time_max: Duration,
) -> Result<Duration, VmError> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let memory = MEMORY_SIZE.to_string();
    let argv = [
        text(&config.vmm),
        "run".into(),
        "--kernel".into(),
        text(&config.kernel),
        "--initramfs".into(),
        text(&config.initramfs),
        "--memory".into(),
        memory,
    ];
    let program = Program {
        log: Some(Log { path: log.to_owned(), size_max: LOG_SIZE_MAX, kept: 0 }),
        limits: Limits {
            memory_max: Some(MEMORY_SIZE + MEMORY_OVERHEAD),
            pids_max: Some(THREADS_OVERHEAD + 1),
            cpu_max_percent: None,
        },
        ..Program::new(NAME, argv)
    };
    // One that a killed node left is not this one.
    supervisor.stop(NAME, STOP_GRACE)?;
    let start = Instant::now();
    supervisor.start(&program, &[])?;
    let waited = supervisor.wait(NAME, time_max);
    let time = start.elapsed();
    let last = supervisor.stop(NAME, STOP_GRACE)?;
    let end = match waited {
        Ok(status) => status.last_exit,
        Err(_) if time >= time_max => return Err(VmError::Silent(time_max)),
        Err(_) => last.and_then(|status| status.last_exit),
    };
    match end.map(|end| end.outcome) {
        Some(Outcome::Status(status)) if status == Exit::Off.code() => Ok(time),
        Some(how) => Err(VmError::Ended { how, log: record::tail(log, REASON_SIZE_MAX) }),
        None => Err(VmError::Silent(time)),
    }
}
