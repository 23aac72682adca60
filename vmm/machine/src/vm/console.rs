//! Where the guest's console and serial port are heard, and who may type into them.
//!
//! The console (`hvc0`) is a virtio device that moves whole buffers and never holds a guest up; the
//! serial port (`ttyS0`) is there from the first instruction, costs an exit for each character, and
//! waits for whoever reads it. Both can go to the terminal that the VMM was started in: its keys
//! then reach the guest one by one, Ctrl-C included; what was piped in is read to its end. Whoever
//! attaches later hears both, and types into both, by the API (`serial_line`, and the console itself). The
//! terminal is put back as it was when the VM ends.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use vmm_spec::OutputSpec;
use vmm_virtio::console::{Console, RawPty, Stream};

use super::serial_line::SerialLine;
use super::{STACK_SIZE, VmError};
use crate::worker::{self, ThreadSetup};
use crate::{SerialInput, Sink};

/// Both, as the host sees them.
pub(super) struct Consoles {
    device: Option<Console>,
    serial: Option<Sink>,
    /// Who attaches to it.
    line: Option<SerialLine>,
    /// Where the serial port's keys come from.
    input: Option<File>,
    serial_peer: Option<OwnedFd>,
    serial_input: Option<SerialInput>,
    uses_terminal: bool,
    ptys: Ptys,
}

/// Paths of pseudo-terminals.
#[derive(Clone, Debug, Default)]
pub(super) struct Ptys {
    pub(super) console: Option<PathBuf>,
    pub(super) serial: Option<PathBuf>,
}

/// The terminals: ours is put back as it was at the end of this, the guest's is open that long.
pub(super) struct Terminal {
    before: Option<Termios>,
    _serial_peer: Option<OwnedFd>,
}

impl Consoles {
    /// Opens what the description names.
    pub(super) fn open(console: &OutputSpec, serial: &OutputSpec) -> Result<Self, VmError> {
        let mut consoles = Self {
            device: None,
            serial: None,
            line: None,
            input: None,
            serial_peer: None,
            serial_input: None,
            uses_terminal: [console, serial].contains(&&OutputSpec::Stdio),
            ptys: Ptys::default(),
        };
        consoles.open_console(console)?;
        consoles.open_serial(serial)?;
        if let Some(sink) = consoles.serial.take() {
            let line = SerialLine::new().map_err(VmError::device("serial port"))?;
            consoles.serial = Some(line.heard(sink));
            consoles.line = Some(line);
        }
        Ok(consoles)
    }

    fn open_console(&mut self, spec: &OutputSpec) -> Result<(), VmError> {
        let streams = match spec {
            OutputSpec::Off => return Ok(()),
            OutputSpec::Stdio => Stream::stdio().map_err(VmError::device("console stdio"))?,
            OutputSpec::File { path } => {
                let name = || format!("console file={}", path.display());
                let file = open_file(path).map_err(VmError::device(name()))?;
                vec![Stream::file(file).map_err(VmError::device(name()))?]
            }
            OutputSpec::Pty => {
                let (stream, path) = Stream::pty().map_err(VmError::device("console pty"))?;
                self.ptys.console = Some(path);
                vec![stream]
            }
        };
        let (columns, rows) = terminal_size();
        let device = Console::new(columns, rows, streams);
        self.device = Some(device.map_err(VmError::device("console"))?);
        Ok(())
    }

    fn open_serial(&mut self, spec: &OutputSpec) -> Result<(), VmError> {
        match spec {
            OutputSpec::Off => {}
            OutputSpec::Stdio => {
                self.serial = Some(Box::new(io::stdout()));
                let input = io::stdin().as_fd().try_clone_to_owned();
                self.input = Some(File::from(input.map_err(VmError::device("serial stdio"))?));
            }
            OutputSpec::File { path } => {
                let name = format!("serial file={}", path.display());
                self.serial = Some(Box::new(open_file(path).map_err(VmError::device(name))?));
            }
            OutputSpec::Pty => {
                let opened = RawPty::open().map_err(VmError::device("serial pty"))?;
                let RawPty { master, peer, path } = opened;
                // What nobody reads is lost rather than waited for.
                rustix::io::ioctl_fionbio(&master, true).map_err(VmError::device("serial pty"))?;
                let pty = File::from(master);
                let input = pty.try_clone().map_err(VmError::device("serial pty"))?;
                self.input = Some(input);
                self.serial = Some(Box::new(pty));
                self.serial_peer = Some(peer);
                self.ptys.serial = Some(path);
            }
        }
        Ok(())
    }

    pub(super) fn take_serial(&mut self) -> Option<Sink> {
        self.serial.take()
    }

    pub(super) fn serial_line(&self) -> Option<SerialLine> {
        self.line.clone()
    }

    pub(super) fn connect_serial(&mut self, input: Option<SerialInput>) {
        self.serial_input = input;
    }

    pub(super) fn take_device(&mut self) -> Option<Console> {
        self.device.take()
    }

    pub(super) fn ptys(&self) -> Ptys {
        self.ptys.clone()
    }

    /// Makes the terminal raw if it is used, and begins to read the serial port's keys, in a thread
    /// that ends with the process.
    pub(super) fn start_input(self, setup: &ThreadSetup) -> io::Result<Terminal> {
        let before = if self.uses_terminal { make_raw()? } else { None };
        let terminal = Terminal { before, _serial_peer: self.serial_peer };
        if let (Some(line), Some(to)) = (self.line, self.serial_input) {
            let from = self.input;
            worker::spawn("input", STACK_SIZE, setup, move || line.pass_keys(from, &to))?;
        }
        Ok(terminal)
    }
}

/// Passes keys on as they are pressed, if standard input is a terminal; returns what it was before.
fn make_raw() -> io::Result<Option<Termios>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(None);
    }
    let before = tcgetattr(&stdin)?;
    let mut raw = before.clone();
    raw.make_raw();
    // What the guest writes still ends its lines as this terminal expects.
    raw.output_modes = before.output_modes;
    tcsetattr(&stdin, OptionalActions::Now, &raw)?;
    Ok(Some(before))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, before);
        }
    }
}

/// Written to at its end, so that a VM that is started again keeps what the last one said.
fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Columns and rows of our own terminal, or of the usual one.
fn terminal_size() -> (u16, u16) {
    rustix::termios::tcgetwinsize(io::stdout()).map_or((80, 24), |size| (size.ws_col, size.ws_row))
}
