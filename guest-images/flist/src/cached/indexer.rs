//! Building an index in a process of its own.
//!
//! An image is a hostile database. Its parser gets a process that holds nothing of the daemon's, may
//! take a bounded time, and gives all its memory back.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Longest time for one index; clients wait a minute for their binding.
const BUILD_TIMEOUT: Duration = Duration::from_secs(45);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Most of what the process says that is passed on, in bytes.
const TEXT_SIZE_MAX: u64 = 1024;

/// Where indexes are, and which program builds them.
#[derive(Clone)]
pub(super) struct Indexer {
    pub(super) directory: PathBuf,
    /// Run as `PROGRAM index --index DIRECTORY IMAGE`.
    pub(super) program: PathBuf,
}

impl Indexer {
    /// Has the index of `image` built.
    ///
    /// # Errors
    /// What the process said, which names `image`; or that it took too long.
    pub(super) fn build(&self, image: &Path) -> io::Result<()> {
        let mut child = Command::new(&self.program)
            .args(["index", "--index"])
            .arg(&self.directory)
            .arg(image)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let status = wait(&mut child)?;
        if status.success() {
            return Ok(());
        }
        let mut text = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            stderr.take(TEXT_SIZE_MAX).read_to_end(&mut text)?;
        }
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().next().unwrap_or_default();
        let reason = line.strip_prefix("flist: ").unwrap_or(line);
        Err(io::Error::other(if reason.is_empty() {
            status.to_string()
        } else {
            reason.to_owned()
        }))
    }
}

fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + BUILD_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "its index takes too long to build",
            ));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_says_is_passed_on() {
        let build = |program: &str| {
            let indexer = Indexer { directory: PathBuf::from("/none"), program: program.into() };
            indexer.build(Path::new("/image"))
        };
        build("true").unwrap();
        assert_eq!(build("false").unwrap_err().to_string(), "exit status: 1");
        let error = build("ls").unwrap_err().to_string();
        assert!(error.contains("ls"), "{error}");
        assert!(build("/no such program").is_err());
    }
}
