//! Answers the lab's requests on the virtio-serial port.
//!
//! One thread reads; each command has a thread of its own, so that requests overlap; replies
//! share the port under a lock, a whole frame at a time. The end of the port's stream means
//! that the lab has gone away: the server ends, and PID 1 switches the machine off.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab_agent::wire::{DATA_SIZE_MAX, Decoder, Exec, PORT_NAME, Power, Reply, Request, VERSION};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, reboot};

use crate::exec::Running;
use crate::net;
use crate::tsc;

/// How long the port may take to appear after its driver was loaded.
const PORT_TIMEOUT: Duration = Duration::from_secs(60);
/// How many commands may run at once.
const COMMAND_COUNT_MAX: usize = 64;

/// Serves until the lab goes away.
pub(crate) fn run() -> Result<()> {
    let tsc_at_start = tsc::now();
    let path = find_port()?;
    let port = OpenOptions::new().read(true).write(true).open(&path);
    let mut port = port.with_context(|| format!("cannot open {}", path.display()))?;
    let writer = port.try_clone().context("cannot clone the port")?;
    let server = Arc::new(Server {
        port: Mutex::new(writer),
        commands: Mutex::new(HashMap::new()),
        tsc_at_start,
    });
    let mut decoder = Decoder::for_agent();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let size = port.read(&mut buffer).context("cannot read the port")?;
        ensure!(size > 0, "the lab has gone away");
        decoder.push(buffer.get(..size).unwrap_or_default());
        while let Some(frame) = decoder.next_frame()? {
            server.answer(frame.id, Request::decode(&frame)?);
        }
    }
}

struct Server {
    port: Mutex<File>,
    /// By request id: the process group.
    commands: Mutex<HashMap<u32, Pid>>,
    tsc_at_start: u64,
}

impl Server {
    fn answer(self: &Arc<Self>, id: u32, request: Request) {
        let reply = match request {
            Request::Hello { .. } => Ok(Reply::Ready { version: VERSION, tsc: self.tsc_at_start }),
            Request::Exec(exec) => return self.exec(id, exec),
            Request::Signal { signal } => return self.signal(id, signal),
            Request::WriteFile { append, sync, mode, path, data } => {
                write_file(&path, append, sync, mode, &data).map(|()| Reply::Done)
            }
            Request::ReadFile { offset, size, path } => {
                read_file(&path, offset, size).map(Reply::Data)
            }
            Request::TimeStamp => Ok(Reply::Data(tsc::now().to_le_bytes().to_vec())),
            Request::Power(power) => end(power).map(|()| Reply::Done),
        };
        self.put(id, &reply.unwrap_or_else(|error| Reply::Failed(format!("{error:#}"))));
    }

    /// Starts the command at once, so that a signal that follows finds it; its own thread sees
    /// it through.
    fn exec(self: &Arc<Self>, id: u32, exec: Exec) {
        let running = match self.start(id, exec) {
            Ok(running) => running,
            Err(error) => return self.put(id, &Reply::Failed(format!("{error:#}"))),
        };
        let server = Arc::clone(self);
        let finish = move || {
            let exit = running.finish(&|reply| server.put(id, &reply));
            server.commands().remove(&id);
            let failed = |error| Reply::Failed(format!("{error:#}"));
            server.put(id, &exit.map_or_else(failed, Reply::Exit));
        };
        if let Err(error) = thread::Builder::new().name(format!("command-{id}")).spawn(finish) {
            self.put(id, &Reply::Failed(format!("cannot start a thread: {error}")));
        }
    }

    fn start(&self, id: u32, exec: Exec) -> Result<Running> {
        let mut commands = self.commands();
        if commands.len() >= COMMAND_COUNT_MAX {
            bail!("{COMMAND_COUNT_MAX} commands are running already");
        }
        let running = Running::start(exec)?;
        commands.insert(id, running.pid());
        Ok(running)
    }

    fn commands(&self) -> MutexGuard<'_, HashMap<u32, Pid>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command that has just ended can't be signalled any more, which is no error.
    fn signal(&self, id: u32, signal: u32) {
        let commands = self.commands();
        let signal = i32::try_from(signal).ok().and_then(Signal::from_named_raw);
        if let Some((pid, signal)) = commands.get(&id).zip(signal) {
            let _ = kill_process_group(*pid, signal);
        }
    }

    fn put(&self, id: u32, reply: &Reply) {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = port.write_all(&reply.encode(id)) {
            // The reading side sees the same failure and ends the server.
            eprintln!("lab-agent: cannot write the port: {error}");
        }
    }
}

/// The device node of the port named [`PORT_NAME`], once it is there.
fn find_port() -> Result<PathBuf> {
    let deadline = Instant::now() + PORT_TIMEOUT;
    while Instant::now() < deadline {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let node = PathBuf::from("/dev").join(entry.file_name());
            if name.trim() == PORT_NAME && node.exists() {
                return Ok(node);
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("no virtio-serial port named {PORT_NAME} after {} s", PORT_TIMEOUT.as_secs())
}

fn write_file(path: &str, append: bool, sync: bool, mode: u32, data: &[u8]) -> Result<()> {
    let context = || format!("cannot write {path}");
    let mut options = OpenOptions::new();
    options.create(true).mode(mode);
    let options = if append { options.append(true) } else { options.write(true).truncate(true) };
    let mut file = options.open(path).with_context(context)?;
    file.write_all(data).with_context(context)?;
    if sync { file.sync_all().with_context(context) } else { Ok(()) }
}

fn read_file(path: &str, offset: u64, size: u32) -> Result<Vec<u8>> {
    let context = || format!("cannot read {path}");
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    ensure!(size <= DATA_SIZE_MAX, "{size} bytes are more than {DATA_SIZE_MAX} at once");
    let file = File::open(path).with_context(context)?;
    let mut data = vec![0; size];
    let mut filled = 0;
    while let Some(room) = data.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, offset + filled as u64).with_context(context)? {
            0 => break,
            read => filled += read,
        }
    }
    data.truncate(filled);
    Ok(data)
}

/// Switches the machine off, or on again, or has its kernel panic.
pub(crate) fn end(power: Power) -> Result<()> {
    rustix::fs::sync();
    match power {
        Power::Off => {
            net::set_all_down();
            reboot(RebootCommand::PowerOff).context("power off")
        }
        Power::Reboot => {
            net::set_all_down();
            reboot(RebootCommand::Restart).context("reboot")
        }
        Power::Panic => fs::write("/proc/sysrq-trigger", "c").context("panic"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_in_pieces_and_read_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let path = path.to_str().unwrap();
        write_file(path, false, false, 0o600, b"hello ").unwrap();
        write_file(path, true, true, 0o600, b"world").unwrap();
        assert_eq!(read_file(path, 0, 100).unwrap(), b"hello world");
        assert_eq!(read_file(path, 6, 3).unwrap(), b"wor");
        assert_eq!(read_file(path, 11, 3).unwrap(), b"");
        write_file(path, false, false, 0o600, b"new").unwrap();
        assert_eq!(read_file(path, 0, 100).unwrap(), b"new");
    }

    #[test]
    fn errors_name_the_path_and_the_limit() {
        let error = format!("{:#}", read_file("/no/such/file", 0, 1).unwrap_err());
        assert!(error.contains("/no/such/file"), "{error}");
        let error = read_file("/dev/zero", 0, u32::MAX).unwrap_err().to_string();
        assert!(error.contains("at once"), "{error}");
    }
}
