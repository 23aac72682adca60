//! Serves the three queues: what the guest sends goes to the switch, and what the switch has for
//! the guest goes into whatever buffers the guest offers.
//!
//! Whatever the reason for a call, all is served, a bounded amount of each: the guest's packets
//! first, because they make room. What is left asks for another call at once, by a deadline that
//! has passed, so that other devices of the thread get their turn in between.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::switch::Switch;
use crate::{Chain, Counter, Interest, Queue, QueueError, Source, Unit, UnitError};

/// Packets for the guest (virtio 1.3 §5.10.2).
pub(super) const RX: u16 = 0;
/// Packets of the guest.
pub(super) const TX: u16 = 1;
/// Events for the guest.
pub(super) const EVENT: u16 = 2;
/// Packets in each direction in one call.
pub(super) const PACKETS_MAX: u32 = 64;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.3 §5.10.6.7): all connections are gone, and the
/// guest's address may have changed.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The unit of a socket device.
pub(super) struct VsockUnit {
    rx: Queue,
    tx: Queue,
    event: Queue,
    chain: Chain,
    switch: Switch,
    shared: Shared,
    is_starved: bool,
    /// When there is something to be done at once: since then.
    has_more: Option<Instant>,
}

/// What outlives the unit, in its device.
pub(super) struct Shared {
    /// Where the switch goes when the unit stops.
    pub(super) parked: Arc<Mutex<Option<Switch>>>,
    /// The guest is to be told first of all that it has no connections any more.
    pub(super) owes_reset: Arc<AtomicBool>,
    pub(super) rx_starved: Counter,
}

impl VsockUnit {
    /// Serves `queues`: rx, tx and event.
    pub(super) fn new(queues: [Queue; 3], switch: Switch, shared: Shared) -> Self {
        let [rx, tx, event] = queues;
        let has_more = Some(Instant::now());
        let chain = Chain::new();
        Self { rx, tx, event, chain, switch, shared, is_starved: false, has_more }
    }

    fn serve(&mut self) -> Result<(), UnitError> {
        let now = Instant::now();
        self.tell_reset()?;
        let mut has_more = self.switch.poll(now)?;
        has_more |= self.transmit(now)?;
        has_more |= self.receive(now)?;
        self.has_more = has_more.then_some(now);
        Ok(())
    }

    fn tell_reset(&mut self) -> Result<(), UnitError> {
        if !self.shared.owes_reset.load(Ordering::Relaxed) {
            return Ok(());
        }
        let memory = Arc::clone(self.event.memory());
        while !self.event.pop(&mut self.chain)? {
            if !self.event.rearm()? {
                // It is told as soon as it offers a buffer.
                return Ok(());
            }
        }
        let buffer = self.chain.writable(&memory);
        buffer.write(0, &TRANSPORT_RESET, "an event").map_err(|error| broken(EVENT, error))?;
        self.event.push(self.chain.head(), 4)?;
        self.shared.owes_reset.store(false, Ordering::Relaxed);
        self.event.notify()
    }

    /// Takes what the guest sends. True if there is more.
    fn transmit(&mut self, now: Instant) -> Result<bool, UnitError> {
        let memory = Arc::clone(self.tx.memory());
        let mut count = 0;
        self.tx.disarm()?;
        loop {
            while count < PACKETS_MAX && self.tx.pop(&mut self.chain)? {
                count += 1;
                let packet = self.chain.readable(&memory);
                self.switch.take_packet(&packet, now).map_err(|error| broken(TX, error))?;
                self.tx.push(self.chain.head(), 0)?;
            }
            if count == PACKETS_MAX || !self.tx.rearm()? {
                break;
            }
        }
        self.tx.notify()?;
        Ok(count == PACKETS_MAX)
    }

    /// Fills the guest's buffers. True if there is more to fill them with.
    fn receive(&mut self, now: Instant) -> Result<bool, UnitError> {
        let memory = Arc::clone(self.rx.memory());
        let mut count = 0;
        if !self.is_starved {
            // More buffers are of no interest as long as there are some.
            self.rx.disarm()?;
        }
        while count < PACKETS_MAX && self.switch.has_packet() {
            if !self.rx.pop(&mut self.chain)? {
                if self.rx.rearm()? {
                    continue;
                }
                if !std::mem::replace(&mut self.is_starved, true) {
                    self.shared.rx_starved.increment();
                }
                break;
            }
            self.is_starved = false;
            let buffer = self.chain.writable(&memory);
            match self.switch.put_packet(&buffer, now).map_err(|error| broken(RX, error))? {
                Some(size) => self.rx.push(self.chain.head(), size)?,
                None => {
                    self.rx.unpop();
                    break;
                }
            }
            count += 1;
        }
        self.rx.notify()?;
        Ok(count == PACKETS_MAX)
    }
}

impl Unit for VsockUnit {
    fn sources(&self) -> Vec<Source> {
        let descriptor = self.switch.descriptor().as_raw_fd();
        vec![Source { descriptor, token: 0, interest: Interest::Read }]
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.rx, &self.tx, &self.event]
    }

    fn kicked(&mut self, _: u16) -> Result<(), UnitError> {
        self.serve()
    }

    fn ready(&mut self, _: u32) -> Result<(), UnitError> {
        self.serve()
    }

    fn deadline(&self) -> Option<Instant> {
        self.has_more.or_else(|| self.switch.deadline())
    }

    fn expired(&mut self, _: Instant) -> Result<(), UnitError> {
        self.serve()
    }

    fn stop(self: Box<Self>) -> Vec<Queue> {
        *self.shared.parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.switch);
        vec![self.rx, self.tx, self.event]
    }
}

fn broken(index: u16, source: QueueError) -> UnitError {
    UnitError::Queue { index, source }
}
