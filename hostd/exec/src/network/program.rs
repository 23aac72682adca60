//! Asking a program something: arguments and input in, its answer out, in the namespace of the calling
//! thread. Everything is bounded, and the program gets no environment.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::sys;
use crate::process::ends_within;

/// Longest time that a program takes. Rules for a thousand machines take a fraction of a second.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Most that is read of what it answers, in bytes.
const ANSWER_SIZE_MAX: u64 = 4 << 20;
/// Most that is read of its complaints, in bytes.
const COMPLAINT_SIZE_MAX: u64 = 4096;

/// Runs a program until it ends. Its complaint is the error, if it fails.
pub(crate) fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // One that goes on for a caller that is dead would undo what the next one does.
    sys::end_with_this_thread(&mut command);
    let mut child = command.spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        // Each pipe has its reader or writer, so that none waits for another.
        let writer =
            scope.spawn(move || stdin.map_or(Ok(()), |mut to| to.write_all(input.as_bytes())));
        let answer = scope.spawn(move || read(stdout, ANSWER_SIZE_MAX));
        let complaint = scope.spawn(move || read(stderr, COMPLAINT_SIZE_MAX));
        let status = wait(&mut child)?;
        let join = || io::Error::other("a reader of its output panicked");
        let written = writer.join().map_err(|_| join())?;
        let answer = answer.join().map_err(|_| join())?;
        let complaint = complaint.join().map_err(|_| join())?;
        if !status {
            return Err(io::Error::other(first_line(&complaint)));
        }
        written?;
        Ok(answer)
    })
}

/// Whether it succeeded. One that takes too long is killed.
fn wait(child: &mut Child) -> io::Result<bool> {
    let has_ended = ends_within(child, TIME_MAX);
    if !matches!(has_ended, Ok(true)) {
        // It may have ended just now.
        let _ = child.kill();
    }
    let status = child.wait()?;
    match has_ended? {
        true => Ok(status.success()),
        false => Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long")),
    }
}

fn read(from: Option<impl Read>, size_max: u64) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // What came before an error is all that can be had.
        let _ = (&mut from).take(size_max).read_to_end(&mut bytes);
        // The rest must go somewhere, or it waits.
        let _ = io::copy(&mut from, &mut io::sink());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first line of a complaint says what is wrong; the rest shows where.
fn first_line(complaint: &str) -> String {
    let line = complaint.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    line.chars().filter(|character| !character.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_passed_on_and_absent_programs_named() {
        let failing = |program: &str| run(Path::new(program), &["x"], "").unwrap_err();
        assert_eq!(failing("/no/such/nft").kind(), io::ErrorKind::NotFound);
        assert_eq!(failing("/bin/false").to_string(), "no reason given");
        let error = run(Path::new("/bin/sh"), &["-c", "echo bad >&2; exit 1"], "").unwrap_err();
        assert_eq!(error.to_string(), "bad");
    }

    #[test]
    fn much_input_that_nobody_reads_blocks_nothing() {
        let input = "x".repeat(1 << 20);
        assert!(run(Path::new("/bin/false"), &[], &input).is_err());
        let answer = run(Path::new("/bin/cat"), &[], &input).unwrap();
        assert_eq!(answer.len(), input.len());
    }
}
