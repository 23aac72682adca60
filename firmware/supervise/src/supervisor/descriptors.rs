//! Which descriptors a program gets: those that are meant for it, at the numbers that it expects.
//!
//! Everything here is closed on exec, but for what is put into a slot for the moment of a start. Slots
//! are the numbers from [`DESCRIPTOR_FIRST`] on, held from the beginning, so that nothing else gets them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::{DupFlags, dup2, dup3, fcntl_dupfd_cloexec};

use crate::program::{DESCRIPTOR_COUNT_MAX, DESCRIPTOR_FIRST};

/// The numbers that descriptors of programs have.
#[derive(Debug)]
pub(super) struct Slots {
    /// What is in a slot that is not used.
    null: File,
    slots: Vec<OwnedFd>,
}

impl Slots {
    /// Takes all numbers. None of them may be in use.
    pub(super) fn reserve() -> io::Result<Self> {
        let mut slots = Vec::new();
        for number in (DESCRIPTOR_FIRST..).take(DESCRIPTOR_COUNT_MAX) {
            let null = File::open("/dev/null")?;
            // The lowest that is free.
            let slot: OwnedFd = if null.as_raw_fd() == number {
                null.into()
            } else {
                fcntl_dupfd_cloexec(&null, number)?
            };
            if slot.as_raw_fd() != number {
                let text = format!(
                    "descriptor {number} is in use: nothing but the standard streams may be open"
                );
                return Err(io::Error::other(text));
            }
            slots.push(slot);
        }
        Ok(Self { null: File::open("/dev/null")?, slots })
    }

    /// Runs `start` while `descriptors` are in the first slots and stay open on exec.
    pub(super) fn with<T>(
        &mut self,
        descriptors: &[OwnedFd],
        start: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut filled = 0;
        let mut result = Ok(());
        for (slot, descriptor) in self.slots.iter_mut().zip(descriptors) {
            result = dup2(descriptor, slot);
            if result.is_err() {
                break;
            }
            filled += 1;
        }
        let started = match result {
            Ok(()) => start(),
            Err(error) => Err(error.into()),
        };
        for slot in self.slots.iter_mut().take(filled) {
            dup3(&self.null, slot, DupFlags::CLOEXEC)?;
        }
        started
    }
}
