//! One queue pair's data plane: says what it waits for, and hands each event to its receiver, its
//! transmitter or, in the first pair, the control queue.
//!
//! A pair that the driver does not use (`VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`) watches nothing but its
//! wake-up, by which the control queue, on another thread perhaps, puts it in use.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use super::control::Control;
use super::receive::Receiver;
use super::shared::Shared;
use super::transmit::Transmitter;
use crate::{Interest, Queue, Source, Unit, UnitError};

/// Packets of one direction before the other gets its turn.
pub(super) const BATCH: u32 = 64;

/// Token of the back end's descriptor.
pub(super) const BACKEND: u32 = 0;
/// Token of the wake-up.
pub(super) const WAKE: u32 = 1;

/// Serves one queue pair.
pub(super) struct PairUnit {
    pub(super) pair: u16,
    pub(super) shared: Arc<Shared>,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    pub(super) control: Option<Control>,
}

impl PairUnit {
    fn is_active(&self) -> bool {
        self.shared.is_active(self.pair)
    }

    fn serve_control(&mut self) -> Result<(), UnitError> {
        self.control.as_mut().map_or(Ok(()), Control::serve)
    }

    fn backend_ready(&mut self) -> Result<(), UnitError> {
        let wants_packets = self.receiver.wants_packets();
        let is_blocked = self.transmitter.is_blocked();
        if !wants_packets && !is_blocked {
            // Nothing was asked for: either this was on its way already, or it is an error.
            let checked = self.shared.backend(self.pair).check();
            return checked.map_err(|error| self.shared.lost("watch for packets", error));
        }
        if is_blocked {
            self.transmitter.serve(&self.shared, self.pair)?;
        }
        if wants_packets {
            self.receiver.serve(&self.shared, self.pair)?;
        }
        Ok(())
    }
}

impl Unit for PairUnit {
    fn sources(&self) -> Vec<Source> {
        let mut sources = Vec::with_capacity(2);
        // The first pair is always in use.
        if self.pair > 0 {
            let descriptor = self.shared.wake(self.pair).as_raw_fd();
            sources.push(Source { descriptor, token: WAKE, interest: Interest::Read });
        }
        if self.is_active() {
            let interest = match (self.receiver.wants_packets(), self.transmitter.is_blocked()) {
                (false, false) => Interest::None,
                (true, false) => Interest::Read,
                (false, true) => Interest::Write,
                (true, true) => Interest::ReadWrite,
            };
            let descriptor = self.shared.backend(self.pair).descriptor().as_raw_fd();
            sources.push(Source { descriptor, token: BACKEND, interest });
        }
        sources
    }

    fn queues(&self) -> Vec<&Queue> {
        let control = self.control.as_ref().map(Control::queue);
        [self.receiver.queue(), self.transmitter.queue()].into_iter().chain(control).collect()
    }

    fn kicked(&mut self, index: u16) -> Result<(), UnitError> {
        if self.control.as_ref().is_some_and(|control| control.queue().index() == index) {
            return self.serve_control();
        }
        if !self.is_active() {
            return Ok(());
        }
        if index == self.transmitter.queue().index() {
            // While the back end takes nothing, its descriptor will say when it does.
            if self.transmitter.is_blocked() {
                return Ok(());
            }
            return self.transmitter.serve(&self.shared, self.pair);
        }
        if self.receiver.refilled() {
            self.receiver.serve(&self.shared, self.pair)?;
        }
        Ok(())
    }

    fn ready(&mut self, token: u32) -> Result<(), UnitError> {
        if token == WAKE {
            // The count does not matter, nor whether there is one.
            let _ = self.shared.wake(self.pair).read();
        }
        if !self.is_active() {
            return Ok(());
        }
        if token == BACKEND {
            return self.backend_ready();
        }
        // What the driver queued before the pair was in use has been kicked already.
        self.transmitter.serve(&self.shared, self.pair)?;
        self.receiver.serve(&self.shared, self.pair)
    }

    fn deadline(&self) -> Option<Instant> {
        let control = self.control.as_ref().and_then(Control::deadline);
        let pair = [self.receiver.deadline(), self.transmitter.deadline()];
        pair.into_iter().flatten().chain(control).min()
    }

    fn expired(&mut self, now: Instant) -> Result<(), UnitError> {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.control.as_ref().and_then(Control::deadline)) {
            self.serve_control()?;
        }
        self.transmitter.expired(now, &self.shared, self.pair)?;
        if is_due(self.receiver.deadline()) {
            self.receiver.serve(&self.shared, self.pair)?;
        }
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<Queue> {
        let control = self.control.map(Control::into_queue);
        let pair = [self.receiver.stop(&self.shared), self.transmitter.stop()];
        pair.into_iter().chain(control).collect()
    }
}
