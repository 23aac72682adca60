//! Where the guest's serial port is heard, and who may type into it.
//!
//! `stdio` is the terminal that the VMM was started in: its keys go to the guest one by one, Ctrl-C
//! included, if it is a terminal; what was piped in is read to its end. Another terminal can be had
//! with `pty`. The terminal is put back as it was when the VM ends.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use vmm_spec::OutputSpec;
use vmm_virtio::Device;

use super::VmError;
use crate::{SerialInput, Sink};

/// The guest's serial port, as the host sees it.
pub(super) struct Consoles {
    serial: Option<Sink>,
    input: Option<Box<dyn Read + Send>>,
    serial_input: Option<SerialInput>,
    ptys: Ptys,
}

/// Paths of pseudo-terminals.
#[derive(Clone, Debug, Default)]
pub(super) struct Ptys {
    pub(super) console: Option<PathBuf>,
    pub(super) serial: Option<PathBuf>,
}

/// The terminal's state, which comes back with the end of this.
pub(super) struct Terminal(Option<Termios>);

/// How long a full serial port is left alone before it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

impl Consoles {
    /// Opens what the description names.
    pub(super) fn open(_console: &OutputSpec, serial: &OutputSpec) -> Result<Self, VmError> {
        let mut consoles =
            Self { serial: None, input: None, serial_input: None, ptys: Ptys::default() };
        match serial {
            OutputSpec::Off => {}
            OutputSpec::Stdio => {
                consoles.serial = Some(Box::new(io::stdout()));
                consoles.input = Some(Box::new(io::stdin()));
            }
            OutputSpec::File { path } => {
                let file = File::create(path)
                    .map_err(VmError::device(format!("serial file={}", path.display())))?;
                consoles.serial = Some(Box::new(file));
            }
            OutputSpec::Pty => {
                let (pty, path) = open_pty().map_err(VmError::device("serial pty"))?;
                let input = pty.try_clone().map_err(VmError::device("serial pty"))?;
                consoles.serial = Some(Box::new(pty));
                consoles.input = Some(Box::new(input));
                consoles.ptys.serial = Some(path);
            }
        }
        Ok(consoles)
    }

    pub(super) fn take_serial(&mut self) -> Option<Sink> {
        self.serial.take()
    }

    pub(super) fn connect_serial(&mut self, input: Option<SerialInput>) {
        self.serial_input = input;
    }

    pub(super) fn take_device(&mut self) -> Option<Box<dyn Device>> {
        None
    }

    pub(super) fn ptys(&self) -> Ptys {
        self.ptys.clone()
    }

    /// Begins to read keys, in a thread that ends with the process.
    pub(super) fn start_input(self) -> io::Result<Terminal> {
        let (Some(mut from), Some(to)) = (self.input, self.serial_input) else {
            return Ok(Terminal(None));
        };
        let terminal = Terminal::raw()?;
        thread::Builder::new().name("input".to_owned()).spawn(move || {
            let mut keys = [0; 64];
            while let Ok(size) = from.read(&mut keys)
                && size > 0
            {
                let mut rest = keys.get(..size).unwrap_or_default();
                while !rest.is_empty() {
                    let taken = to.enqueue(rest);
                    rest = rest.get(taken..).unwrap_or_default();
                    if taken == 0 {
                        thread::sleep(RETRY_INTERVAL);
                    }
                }
            }
        })?;
        Ok(terminal)
    }
}

impl Terminal {
    /// Passes keys on as they are pressed, if standard input is a terminal.
    fn raw() -> io::Result<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // What the guest writes still ends its lines as this terminal expects.
        raw.output_modes = before.output_modes;
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, before);
        }
    }
}

/// A new pseudo-terminal, and where its other end is. It stays open without anyone at that end, and
/// what nobody reads is lost rather than waited for.
fn open_pty() -> io::Result<(File, PathBuf)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let pty: OwnedFd = openpt(flags)?;
    grantpt(&pty)?;
    unlockpt(&pty)?;
    let path = ptsname(&pty, Vec::new())?;
    rustix::fs::fcntl_setfl(&pty, OFlags::NONBLOCK)?;
    let path = PathBuf::from(path.to_string_lossy().into_owned());
    Ok((File::from(pty), path))
}
