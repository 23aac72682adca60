//! Fills what the driver offers.

use std::time::Instant;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::{CHAIN_SIZE_MAX, REST, WAKE_SIZE_MAX};
use crate::{Chain, Counter, Queue, Unit, UnitError};

/// Serves the one queue.
pub(super) struct RngUnit {
    queue: Queue,
    bytes: Counter,
    resume: Option<Instant>,
    chain: Chain,
}

impl RngUnit {
    pub(super) fn new(queue: Queue, bytes: Counter) -> Self {
        Self { queue, bytes, resume: None, chain: Chain::new() }
    }

    fn serve(&mut self) -> Result<(), UnitError> {
        let mut left = WAKE_SIZE_MAX;
        loop {
            if left == 0 {
                self.resume = Some(Instant::now() + REST);
                break;
            }
            if self.queue.pop(&mut self.chain)? {
                let written = self.fill(left)?;
                self.queue.push(self.chain.head(), written)?;
                self.bytes.add(u64::from(written));
                // Short buffers cost about as much as long ones.
                left = left.saturating_sub(written.max(CHAIN_SIZE_MAX / 4));
            } else if !self.queue.rearm()? {
                break;
            }
        }
        self.queue.notify()
    }

    fn fill(&self, left: u32) -> Result<u32, UnitError> {
        let index = self.queue.index();
        if self.chain.readable_size() > 0 {
            // §5.4.6.1.
            let what = format!("queue {index}: a buffer for random bytes is not writable");
            return Err(UnitError::Guest(what));
        }
        let mut bytes = [0; CHAIN_SIZE_MAX as usize];
        let size = self.chain.writable_size().min(CHAIN_SIZE_MAX).min(left);
        let bytes = &mut bytes[..usize::try_from(size).unwrap_or(0)];
        draw(bytes)?;
        let writable = self.chain.writable(self.queue.memory());
        let result = writable.write(0, bytes, "random bytes");
        result.map_err(|source| UnitError::Queue { index, source })?;
        Ok(size)
    }
}

/// Fills all of `bytes`.
fn draw(bytes: &mut [u8]) -> Result<(), UnitError> {
    let mut done = 0;
    while done < bytes.len() {
        // Blocks only before the host's own pool is seeded, long before machines are started.
        match getrandom(&mut bytes[done..], GetRandomFlags::empty()) {
            Ok(size) => done += size,
            Err(Errno::INTR) => {}
            Err(errno) => {
                let what = "draw random bytes".to_owned();
                return Err(UnitError::Host { what, source: errno.into() });
            }
        }
    }
    Ok(())
}

impl Unit for RngUnit {
    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn kicked(&mut self, _index: u16) -> Result<(), UnitError> {
        if self.resume.is_some() {
            return Ok(());
        }
        self.serve()
    }

    fn deadline(&self) -> Option<Instant> {
        self.resume
    }

    fn expired(&mut self, now: Instant) -> Result<(), UnitError> {
        if self.resume.is_none_or(|at| now < at) {
            return Ok(());
        }
        self.resume = None;
        self.serve()
    }

    fn stop(self: Box<Self>) -> Vec<Queue> {
        vec![self.queue]
    }
}
