//! Streams: the host's ends of a console.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};

use super::{INPUT_SIZE_MAX, PENDING_SIZE_MAX};
use crate::Interest;

/// A log file grows to so many bytes; what follows is dropped, and counted.
pub const FILE_SIZE_MAX: u64 = 64 << 20;
/// Bytes of input in one read.
const READ_SIZE: usize = 4096;
/// Input is read from streams only while less than this waits for the guest.
const INPUT_LOW: usize = READ_SIZE;

/// A pseudo terminal in raw mode.
#[derive(Debug)]
pub struct RawPty {
    /// Our end.
    pub master: OwnedFd,
    /// The other end: as long as it is open, ours does not fail when others come and go.
    pub peer: OwnedFd,
    /// The path by which others open it.
    pub path: PathBuf,
}

impl RawPty {
    /// A new one.
    ///
    /// # Errors
    /// When there are none left.
    pub fn open() -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let peer = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
        let mut mode = tcgetattr(&peer)?;
        mode.make_raw();
        tcsetattr(&peer, OptionalActions::Now, &mode)?;
        let path = PathBuf::from(name.to_string_lossy().into_owned());
        Ok(Self { master, peer, path })
    }
}

/// Where a console's output goes, or its input comes from, or both. It never blocks.
#[derive(Debug)]
pub struct Stream {
    descriptor: OwnedFd,
    is_input: bool,
    is_output: bool,
    /// Whether it can be watched; files and `/dev/null` cannot, and never make anybody wait.
    is_watched: bool,
    /// Output that it has not taken yet.
    pending: VecDeque<u8>,
    /// What may still be written, if that is limited.
    left: Option<u64>,
    /// A pty's other side, open so that it does not hang up when its user does.
    _peer: Option<OwnedFd>,
}

impl Stream {
    /// A file, to whose end output is written until it has [`FILE_SIZE_MAX`] bytes.
    ///
    /// # Errors
    /// When its size cannot be read.
    pub fn file(file: File) -> io::Result<Self> {
        let left = FILE_SIZE_MAX.saturating_sub(file.metadata()?.len());
        let stream = Self::new(file.into(), false, true)?;
        Ok(Self { left: Some(left), ..stream })
    }

    /// Standard input and output of this process. The terminal's mode is not changed.
    ///
    /// # Errors
    /// When they are closed.
    pub fn stdio() -> io::Result<Vec<Self>> {
        let input = Self::new(unblocked(rustix::stdio::stdin(), OFlags::RDONLY)?, true, false)?;
        let output = Self::new(unblocked(rustix::stdio::stdout(), OFlags::WRONLY)?, false, true)?;
        // A file has no input that comes bit by bit: it counts as one that has ended.
        let input = Some(input).filter(|input| input.is_watched);
        Ok(input.into_iter().chain([output]).collect())
    }

    /// A new pseudo terminal in raw mode, and the path by which others open it.
    ///
    /// # Errors
    /// When there are none left.
    pub fn pty() -> io::Result<(Self, PathBuf)> {
        let RawPty { master, peer, path } = RawPty::open()?;
        let stream = Self::duplex(master)?;
        Ok((Self { _peer: Some(peer), ..stream }, path))
    }

    /// A socket, pipe or terminal of its own, for both directions.
    ///
    /// # Errors
    /// When it cannot be made non-blocking, or is none of these.
    pub fn duplex(descriptor: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        let stream = Self::new(descriptor, true, true)?;
        if !stream.is_watched {
            return Err(io::Error::other("neither socket nor pipe nor terminal"));
        }
        Ok(stream)
    }

    pub(super) fn new(descriptor: OwnedFd, is_input: bool, is_output: bool) -> io::Result<Self> {
        let is_watched = match kind(descriptor.as_fd())? {
            FileType::Fifo | FileType::Socket => true,
            FileType::CharacterDevice => isatty(&descriptor),
            _ => false,
        };
        let (pending, left, _peer) = (VecDeque::new(), None, None);
        Ok(Self { descriptor, is_input, is_output, is_watched, pending, left, _peer })
    }

    /// Its descriptor and what to wait for, while `waiting` bytes of input wait for the guest.
    pub(super) fn interest(&self, waiting: usize) -> Option<(BorrowedFd<'_>, Interest)> {
        let wants_read = self.is_input && waiting < INPUT_LOW;
        let interest = match (wants_read, self.pending.is_empty()) {
            (false, true) => Interest::None,
            (true, true) => Interest::Read,
            (false, false) => Interest::Write,
            (true, false) => Interest::ReadWrite,
        };
        self.is_watched.then(|| (self.descriptor.as_fd(), interest))
    }

    /// Whether nothing will pass any more.
    pub(super) const fn has_ended(&self) -> bool {
        !self.is_input && !self.is_output
    }

    /// Sends `bytes` after what waits already. Returns how many of all these were dropped.
    pub(super) fn write(&mut self, bytes: &[u8]) -> u64 {
        if !self.is_output {
            return 0;
        }
        let allowed = self.left.map_or(bytes.len(), |left| {
            bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))
        });
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(allowed as u64);
        }
        let mut dropped = bytes.len() - allowed;
        let mut rest = &bytes[..allowed];
        if self.pending.is_empty() {
            let sent = self.try_write(rest);
            rest = &rest[sent..];
        }
        if self.is_output && !rest.is_empty() {
            // The newest are what a late reader wants to see.
            let kept = &rest[rest.len() - rest.len().min(PENDING_SIZE_MAX)..];
            let surplus = (self.pending.len() + kept.len()).saturating_sub(PENDING_SIZE_MAX);
            self.pending.drain(..surplus);
            self.pending.extend(kept);
            dropped += surplus + (rest.len() - kept.len());
        }
        dropped as u64
    }

    /// Has `bytes` wait, without trying to send them.
    pub(super) fn queue(&mut self, bytes: &VecDeque<u8>) {
        self.pending.extend(bytes);
    }

    /// Sends what waits, as far as it goes.
    pub(super) fn flush(&mut self) {
        while self.is_output && !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            let sent = write_to(self.descriptor.as_fd(), front);
            match sent {
                Ok(sent) => drop(self.pending.drain(..sent)),
                Err(Errno::AGAIN) => return,
                Err(_) => self.end_output(),
            }
        }
    }

    /// Something has happened to it: sends, reads, or finds out that it has ended.
    pub(super) fn ready(&mut self, input: &mut VecDeque<u8>) {
        self.flush();
        if self.is_input && input.len() < INPUT_LOW {
            self.read(input);
        } else if hangs_up(self.descriptor.as_fd()) {
            self.is_input = false;
            self.end_output();
        }
    }

    fn read(&mut self, input: &mut VecDeque<u8>) {
        let mut bytes = [0; READ_SIZE];
        let room = READ_SIZE.min(INPUT_SIZE_MAX.saturating_sub(input.len()));
        match rustix::io::read(&self.descriptor, &mut bytes[..room]) {
            Ok(size) if size > 0 => input.extend(&bytes[..size]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                self.is_input = false;
                // Who closes only their sending side may still want to read.
                if hangs_up(self.descriptor.as_fd()) {
                    self.end_output();
                }
            }
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        match write_to(self.descriptor.as_fd(), bytes) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => 0,
            Err(_) => {
                self.end_output();
                0
            }
        }
    }

    fn end_output(&mut self) {
        self.is_output = false;
        self.pending = VecDeque::new();
    }
}

fn write_to(descriptor: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match rustix::io::write(descriptor, bytes) {
            Err(Errno::INTR) => {}
            // Nothing taken and no reason given: as good as full.
            Ok(0) => return Err(Errno::AGAIN),
            result => return result,
        }
    }
}

/// Whether the other end is gone.
fn hangs_up(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(gone)
}

fn kind(descriptor: BorrowedFd<'_>) -> io::Result<FileType> {
    let status = rustix::fs::fstat(descriptor)?;
    Ok(FileType::from_raw_mode(status.st_mode))
}

/// The same thing, made non-blocking for this process alone: terminals and pipes are often shared
/// with a shell, which would be surprised.
fn unblocked(descriptor: BorrowedFd<'_>, access: OFlags) -> io::Result<OwnedFd> {
    let kind = kind(descriptor)?;
    if matches!(kind, FileType::CharacterDevice | FileType::Fifo) {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(own) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok(own);
        }
    }
    let own = rustix::io::fcntl_dupfd_cloexec(descriptor, 3)?;
    if kind != FileType::RegularFile {
        rustix::io::ioctl_fionbio(&own, true)?;
    }
    Ok(own)
}
