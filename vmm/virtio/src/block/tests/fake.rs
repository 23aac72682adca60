//! A disk that does what a test tells it: answers late, in another order, wrongly, or never.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::block::storage::{Done, Lane, Operation, Storage, Traits};
use crate::memory::SharedMemory;

pub(super) const FAKE_SIZE: u64 = 1 << 20;

/// Keeps operations until the test ends them.
#[derive(Clone)]
pub(super) struct FakeDisk(Arc<Mutex<State>>);

struct State {
    size: u64,
    started: Vec<(u16, String)>,
    done: Vec<Done>,
    is_broken: bool,
    /// What is cancelled goes on.
    is_stubborn: bool,
    cannot_open: bool,
    wake: EventFd,
}

impl FakeDisk {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            size: FAKE_SIZE,
            started: Vec::new(),
            done: Vec::new(),
            is_broken: false,
            is_stubborn: false,
            cannot_open: false,
            wake: EventFd::new(EFD_NONBLOCK).unwrap(),
        })))
    }

    /// What was started and has not ended, as text, in order.
    pub(super) fn started(&self) -> Vec<String> {
        self.0.lock().unwrap().started.iter().map(|(_, what)| what.clone()).collect()
    }

    /// Ends the operation that stands at `index` of those started.
    pub(super) fn end(&self, index: usize, result: io::Result<()>) {
        let mut state = self.0.lock().unwrap();
        let (tag, _) = state.started.remove(index);
        state.done.push(Done { tag, result });
        state.wake.write(1).unwrap();
    }

    pub(super) fn set_size(&self, size: u64) {
        self.0.lock().unwrap().size = size;
    }

    /// From now on no lane is of any use.
    pub(super) fn break_lanes(&self) {
        self.0.lock().unwrap().is_broken = true;
    }

    /// From now on nothing ends because it is cancelled.
    pub(super) fn ignore_cancels(&self) {
        self.0.lock().unwrap().is_stubborn = true;
    }

    pub(super) fn refuse_lanes(&self) {
        self.0.lock().unwrap().cannot_open = true;
    }
}

impl Storage for FakeDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().size)
    }

    fn traits(&self) -> Traits {
        Traits { is_read_only: false, block_size: 512, physical_block_size: 512, has_discard: true }
    }

    fn open_lane(&self, _: &SharedMemory, _: u16) -> io::Result<Box<dyn Lane>> {
        let state = self.0.lock().unwrap();
        if state.cannot_open {
            return Err(io::Error::other("no more lanes"));
        }
        let wake = state.wake.try_clone().unwrap();
        Ok(Box::new(FakeLane { state: Arc::clone(&self.0), wake }))
    }
}

struct FakeLane {
    state: Arc<Mutex<State>>,
    wake: EventFd,
}

impl Lane for FakeLane {
    fn start(&mut self, tag: u16, operation: Operation<'_>) {
        let what = match operation {
            Operation::Read { offset, .. } => format!("read {offset}"),
            Operation::Write { offset, .. } => format!("write {offset}"),
            Operation::Flush => "flush".into(),
            Operation::Discard { offset, size } => format!("discard {offset} {size}"),
            Operation::WriteZeroes { offset, size, may_unmap } => {
                format!("zeroes {offset} {size} {may_unmap}")
            }
        };
        let mut state = self.state.lock().unwrap();
        assert!(state.started.iter().all(|(used, _)| *used != tag), "tag {tag} is in use");
        state.started.push((tag, what));
    }

    fn turn(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.is_broken {
            return Err(io::Error::other("the lane is broken"));
        }
        let _ = self.wake.read();
        done.append(&mut state.done);
        Ok(())
    }

    fn cancel(&mut self) {
        let mut state = self.state.lock().unwrap();
        if !state.is_stubborn {
            let tags: Vec<u16> = state.started.drain(..).map(|(tag, _)| tag).collect();
            let cancelled = || Err(io::Error::other("cancelled"));
            state.done.extend(tags.into_iter().map(|tag| Done { tag, result: cancelled() }));
        }
    }

    fn is_busy(&self) -> bool {
        !self.state.lock().unwrap().started.is_empty()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: open as long as the lane, which is borrowed.
        Some(unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) })
    }
}
