//! Starts processes that die with us.
//!
//! `PR_SET_PDEATHSIG` has the kernel kill a child when its parent is gone, however that came
//! about. Two things to know about it (prctl(2)): it must be set in the child, which `setpriv`
//! from util-linux does before it becomes the real program; and "parent" means the *thread*
//! that forked. A test's thread ends with the test, so all children are started by one thread
//! that lives as long as the process.

use std::ffi::OsString;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;

type Job = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts `program` with `arguments`; standard error goes to `stderr`, the rest nowhere.
pub(crate) fn spawn(program: &str, arguments: &[OsString], stderr: Stdio) -> io::Result<Child> {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", program])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let (sender, receiver) = mpsc::sync_channel(1);
    let is_sent = {
        let spawner = spawner()?.lock().unwrap_or_else(PoisonError::into_inner);
        spawner.send((command, sender)).is_ok()
    };
    let answer = if is_sent { receiver.recv().ok() } else { None };
    answer.unwrap_or_else(|| Err(io::Error::other("the spawner thread has ended")))
}

fn spawner() -> io::Result<&'static Mutex<mpsc::Sender<Job>>> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    if let Some(spawner) = SPAWNER.get() {
        return Ok(spawner);
    }
    let (sender, receiver) = mpsc::channel::<Job>();
    thread::Builder::new().name("lab-spawner".to_owned()).spawn(move || {
        for (mut command, answer) in receiver {
            // Whoever asked may have given up.
            let _ = answer.send(command.spawn());
        }
    })?;
    // When two threads come here at once, one of the two spawners is never used and ends.
    Ok(SPAWNER.get_or_init(|| Mutex::new(sender)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let ask = || spawn("sleep", &["60".into()], Stdio::null()).unwrap();
        let mut child = thread::spawn(ask).join().unwrap();
        thread::sleep(std::time::Duration::from_millis(50));
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
