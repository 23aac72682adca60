//! Moves bytes between the two queues and the streams.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use crate::{Chain, Interest, Queue, QueueError, Source, Unit, UnitError};

/// Bytes of one chain that are output; a driver that offers more loses what follows.
pub(super) const CHAIN_SIZE_MAX: u32 = 64 * 1024;
/// Bytes of output in a row, before others get their turn.
const WAKE_SIZE_MAX: u32 = 64 * 1024;
/// What a chain counts for at least.
const CHAIN_COST: u32 = 512;
/// Bytes copied at a time.
const PIECE_SIZE: u32 = 4096;

/// Token of the wake-up; streams have their numbers, from 1.
pub(super) const WAKE: u32 = 0;

/// Serves both queues.
pub(super) struct ConsoleUnit {
    shared: Arc<Shared>,
    receive: Queue,
    transmit: Queue,
    resume: Option<Instant>,
    chain: Chain,
}

impl ConsoleUnit {
    pub(super) fn new(shared: Arc<Shared>, receive: Queue, transmit: Queue) -> Self {
        Self { shared, receive, transmit, resume: None, chain: Chain::new() }
    }

    /// Takes output from the driver.
    fn serve_output(&mut self) -> Result<(), UnitError> {
        self.resume = None;
        let mut left = WAKE_SIZE_MAX;
        loop {
            if left == 0 {
                self.resume = Some(Instant::now());
                break;
            }
            if self.transmit.pop(&mut self.chain)? {
                let size = self.output()?;
                self.transmit.push(self.chain.head(), 0)?;
                left = left.saturating_sub(size.max(CHAIN_COST));
            } else if !self.transmit.rearm()? {
                break;
            }
        }
        self.transmit.notify()
    }

    fn output(&self) -> Result<u32, UnitError> {
        let offered = self.chain.readable_size();
        let size = offered.min(CHAIN_SIZE_MAX);
        let mut dropped = u64::from(offered - size);
        let readable = self.chain.readable(self.transmit.memory());
        let mut piece = [0; PIECE_SIZE as usize];
        let mut done = 0;
        while done < size {
            let length = (size - done).min(PIECE_SIZE);
            let bytes = &mut piece[..usize::try_from(length).unwrap_or(0)];
            let result = readable.read(done, bytes, "output");
            result.map_err(|source| queue_error(&self.transmit, source))?;
            dropped += self.shared.with(|lines| lines.output(bytes));
            done += length;
        }
        self.shared.written.add(u64::from(size));
        self.shared.dropped.add(dropped);
        Ok(size)
    }

    /// Gives waiting input to the driver, as far as it has buffers.
    fn serve_input(&mut self) -> Result<(), UnitError> {
        while self.shared.with(|lines| !lines.input.is_empty()) {
            if !self.receive.pop(&mut self.chain)? {
                if self.receive.rearm()? {
                    continue;
                }
                break;
            }
            let written = self.input()?;
            self.receive.push(self.chain.head(), written)?;
        }
        self.receive.notify()
    }

    fn input(&self) -> Result<u32, UnitError> {
        if self.chain.writable_size() == 0 {
            let (head, index) = (self.chain.head(), self.receive.index());
            let what = format!("queue {index}: buffer {head} for input is not writable");
            return Err(UnitError::Guest(what));
        }
        let room = self.chain.writable_size().min(PIECE_SIZE);
        let bytes: Vec<u8> = self.shared.with(|lines| {
            let size = lines.input.len().min(usize::try_from(room).unwrap_or(0));
            lines.input.drain(..size).collect()
        });
        let writable = self.chain.writable(self.receive.memory());
        let result = writable.write(0, &bytes, "input");
        result.map_err(|source| queue_error(&self.receive, source))?;
        self.shared.read.add(bytes.len() as u64);
        Ok(u32::try_from(bytes.len()).unwrap_or(room))
    }

    /// Closes streams that had ended at the last event: nobody watches them any more.
    fn close_ended(&self) {
        self.shared.with(|lines| lines.ended.clear());
    }
}

fn queue_error(queue: &Queue, source: QueueError) -> UnitError {
    UnitError::Queue { index: queue.index(), source }
}

impl Unit for ConsoleUnit {
    fn sources(&self) -> Vec<Source> {
        let descriptor = self.shared.wake.as_raw_fd();
        let mut sources = vec![Source { descriptor, token: WAKE, interest: Interest::Read }];
        self.shared.with(|lines| {
            let waiting = lines.input.len();
            let streams = lines.streams.iter().filter_map(|(number, stream)| {
                let (descriptor, interest) = stream.interest(waiting)?;
                Some(Source { descriptor: descriptor.as_raw_fd(), token: *number, interest })
            });
            sources.extend(streams);
        });
        sources
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.receive, &self.transmit]
    }

    fn kicked(&mut self, index: u16) -> Result<(), UnitError> {
        self.close_ended();
        if index == self.transmit.index() { self.serve_output() } else { self.serve_input() }
    }

    fn ready(&mut self, token: u32) -> Result<(), UnitError> {
        self.close_ended();
        if token == WAKE {
            // The count does not matter, nor whether there is one.
            let _ = self.shared.wake.read();
            self.shared.with(super::Lines::flush);
        } else {
            self.shared.with(|lines| lines.ready(token));
        }
        self.serve_input()
    }

    fn deadline(&self) -> Option<Instant> {
        self.resume
    }

    fn expired(&mut self, now: Instant) -> Result<(), UnitError> {
        self.close_ended();
        if self.resume.is_some_and(|at| at <= now) { self.serve_output() } else { Ok(()) }
    }

    fn stop(self: Box<Self>) -> Vec<Queue> {
        vec![self.receive, self.transmit]
    }
}
