//! The control queue (virtio 1.3 §5.1.6.5): commands of the driver, each answered with one byte.
//!
//! Receive modes and address tables are accepted and change nothing: the back end delivers what
//! belongs to the guest, and a device may always let more in than it was asked to.

use std::sync::Arc;
use std::time::Instant;

use super::shared::Shared;
use super::wire::{self, Command};
use super::{Guest, Offloads};
use crate::{Chain, Queue, UnitError};

/// Commands in a row before other queues get their turn.
const COMMANDS_MAX: u32 = 16;

/// The control queue, served beside the first pair.
pub(super) struct Control {
    queue: Queue,
    shared: Arc<Shared>,
    guest: Arc<Guest>,
    /// Queue pairs that the driver may use.
    pairs_max: u16,
    /// Offload bits that were negotiated.
    offloads: u64,
    resume: Option<Instant>,
    chain: Chain,
}

impl Control {
    pub(super) fn new(queue: Queue, shared: Arc<Shared>, guest: Arc<Guest>, features: u64) -> Self {
        let has_pairs = features & 1 << wire::VIRTIO_NET_F_MQ != 0;
        let has_offloads = features & 1 << wire::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS != 0;
        Self {
            queue,
            pairs_max: if has_pairs { shared.pair_count() } else { 0 },
            offloads: if has_offloads { features & Offloads::BITS } else { 0 },
            shared,
            guest,
            resume: None,
            chain: Chain::new(),
        }
    }

    pub(super) const fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.resume
    }

    pub(super) fn into_queue(self) -> Queue {
        self.queue
    }

    pub(super) fn serve(&mut self) -> Result<(), UnitError> {
        self.resume = None;
        let mut count = 0;
        while count < COMMANDS_MAX {
            if !self.queue.pop(&mut self.chain)? {
                if self.queue.rearm()? {
                    continue;
                }
                break;
            }
            self.answer()?;
            count += 1;
        }
        if count == COMMANDS_MAX {
            self.resume = Some(Instant::now());
        }
        self.queue.notify()
    }

    fn answer(&mut self) -> Result<(), UnitError> {
        let ack = if self.obey()? { wire::ACK_OK } else { wire::ACK_ERROR };
        let index = self.queue.index();
        let writable = self.chain.writable(self.queue.memory());
        let result = writable.write(0, &[ack], "the answer to a command");
        result.map_err(|source| UnitError::Queue { index, source })?;
        self.queue.push(self.chain.head(), 1)
    }

    /// Does what the command asks. False if it cannot be done.
    fn obey(&self) -> Result<bool, UnitError> {
        let command = Command::new(self.argument(0, "a command")?);
        Ok(match command {
            Command::ReceiveMode => {
                let [mode] = self.argument(2, "a receive mode")?;
                mode <= 1
            }
            Command::MacTables => self.are_tables_sane()?,
            Command::QueuePairs => {
                let count = u16::from_le_bytes(self.argument(2, "a number of queue pairs")?);
                let is_allowed = (1..=self.pairs_max).contains(&count);
                is_allowed && self.shared.set_active(count).is_ok()
            }
            Command::GuestOffloads => {
                let bits = u64::from_le_bytes(self.argument(2, "offloads")?);
                let is_allowed = self.offloads != 0 && bits & !self.offloads == 0;
                is_allowed && self.set_offloads(bits)
            }
            Command::Unknown => false,
        })
    }

    fn set_offloads(&self, bits: u64) -> bool {
        let result = self.shared.backend(0).set_offloads(Offloads::from_bits(bits));
        if result.is_ok() {
            self.guest.set_offloads(Some(bits));
        }
        result.is_ok()
    }

    /// §5.1.6.5.2: two tables, each a count and as many addresses.
    fn are_tables_sane(&self) -> Result<bool, UnitError> {
        let mut at = 2_u64;
        for _ in 0..2 {
            let Ok(place) = u32::try_from(at) else { return Ok(false) };
            let count = u32::from_le_bytes(self.argument(place, "a table of addresses")?);
            at += 4 + 6 * u64::from(count);
        }
        Ok(at <= u64::from(self.chain.readable_size()))
    }

    /// Reads what the driver sent at `skip`, once.
    fn argument<const SIZE: usize>(
        &self,
        skip: u32,
        what: &'static str,
    ) -> Result<[u8; SIZE], UnitError> {
        let mut bytes = [0; SIZE];
        let readable = self.chain.readable(self.queue.memory());
        let result = readable.read(skip, &mut bytes, what);
        let index = self.queue.index();
        result.map_err(|source| UnitError::Queue { index, source })?;
        Ok(bytes)
    }
}
