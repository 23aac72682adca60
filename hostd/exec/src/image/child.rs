//! Running a program to its end, within bounds: time, and bytes of what it says.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::process::ends_within;

/// Bytes of its output, and of its errors, that are read.
const OUTPUT_SIZE_MAX: u64 = 64 << 10;
/// Characters of a reason that are passed on.
const REASON_SIZE_MAX: usize = 500;
/// How long what it said is waited for when it has ended. Who holds the other end open for longer is a
/// process that it has left.
const READ_TIME_MAX: Duration = Duration::from_secs(2);

/// Runs `program`, which bounds its time by `limit` itself and may take a `grace` beyond that, and returns
/// what it prints. What it has started itself ends with it.
///
/// # Errors
/// In words for users: what it said on its error output, or why it could not be run.
pub(super) fn run(
    program: &Path,
    arguments: &[OsString],
    (limit, grace): (Duration, Duration),
) -> Result<Vec<u8>, String> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Addresses are users', and an environment could lead elsewhere what they lead to.
    command.env_clear();
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| format!("{name} can't be started: {error}"))?;
    let (output, errors) = (read(child.stdout.take()), read(child.stderr.take()));
    // Who can't be waited for is taken for one that takes too long.
    let ended = ends_within(&child, limit + grace).unwrap_or(false);
    // Before it is asked for its status, so that its number is nobody else's. Its group may be gone.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let status = child.wait().map_err(|error| format!("{name} is lost: {error}"))?;
    let said = |bytes: Receiver<Vec<u8>>| bytes.recv_timeout(READ_TIME_MAX).unwrap_or_default();
    let (output, errors) = (said(output), said(errors));
    match (ended, status.success()) {
        (false, _) => Err(format!("not done within {} s", limit.as_secs())),
        (true, true) => Ok(output),
        (true, false) => Err(reason(&String::from_utf8_lossy(&errors), &name)
            .unwrap_or_else(|| format!("{name} failed: {status}"))),
    }
}

fn read(from: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (read, bytes) = sync_channel(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(from) = from {
            // What can't be read any more was not said.
            let _ = from.take(OUTPUT_SIZE_MAX).read_to_end(&mut bytes);
        }
        // Nobody may wait for it any more.
        let _ = read.send(bytes);
    });
    bytes
}

/// The line in which it says what went wrong, without its name.
fn reason(errors: &str, name: &str) -> Option<String> {
    let prefix = format!("{name}: ");
    let lines = || errors.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find_map(|line| line.strip_prefix(&prefix)).or_else(|| lines().next())?;
    Some(line.chars().filter(|letter| !letter.is_control()).take(REASON_SIZE_MAX).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Vec<u8>, String> {
        let limits = (limit, Duration::from_secs(1));
        run(Path::new("/bin/sh"), &["-c".into(), script.into()], limits)
    }

    #[test]
    fn what_a_program_says_is_passed_on_within_bounds() {
        let limit = Duration::from_secs(20);
        assert_eq!(shell("echo hi", limit), Ok(b"hi\n".to_vec()));
        let error = shell("echo 'warning' >&2; echo 'sh: no\x07 such' >&2; exit 3", limit);
        assert_eq!(error, Err("no such".to_owned()));
        assert!(shell("exit 3", limit).unwrap_err().contains("sh failed"));
        let much = shell("yes | head -c 1000000", limit);
        assert!(much.is_err() || much.is_ok_and(|bytes| bytes.len() as u64 <= OUTPUT_SIZE_MAX));
        let absent = run(Path::new("/no/such"), &[], (limit, limit)).unwrap_err();
        assert!(absent.contains("can't be started"), "{absent}");
    }

    #[test]
    fn a_process_that_is_left_holds_up_nobody() {
        let begin = Instant::now();
        // In a session of its own, so that it does not end with the rest.
        let script = "echo hi; setsid sleep 15 &";
        let _ = shell(script, Duration::from_secs(20));
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        assert_eq!(shell("sleep 60", Duration::ZERO), Err("not done within 0 s".to_owned()));
    }
}
