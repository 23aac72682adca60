//! MSI-X (PCI Local Bus 3.0 §6.8.2): a table of messages, a mask for each and one for all.
//!
//! The guest writes the table on a vCPU's thread, under the function's lock; units fire vectors on
//! theirs. They meet in [`Vectors`], at one lock for each vector: who fires a vector holds it until
//! the message is out, so that no message leaves after the guest masked it.
//!
//! ```text
//!               fire                          fire
//!   open ──────────────► message   masked ──────────► pending ──unmask──► message
//! ```
//!
//! Telling the host about a message is a system call that waits for all processors, and guests
//! write their tables long before the device runs. So vectors are connected when the device goes
//! live, all by one call; later changes are connected as the guest unmasks them. What fires in
//! between goes out unprepared, which is slower and right.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Host, Message};
use crate::DeviceError;

/// Bytes that each vector takes in the table.
pub(super) const ENTRY_SIZE: u64 = 16;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;
const ENTRY_MASKED: u32 = 1;

/// The guest's side: what it wrote.
pub(super) struct Msix {
    control: u16,
    is_live: bool,
    vectors: Arc<Vectors>,
}

/// The device's side: what fires.
pub(super) struct Vectors {
    host: Arc<dyn Host>,
    vectors: Box<[Mutex<Vector>]>,
}

#[derive(Clone, Copy)]
struct Vector {
    message: Message,
    is_masked: bool,
    is_pending: bool,
    function: FunctionMask,
    /// What the host was told; it may be out of date.
    connected: Option<Message>,
}

/// What the control register says about all vectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FunctionMask {
    Disabled,
    Masked,
    Open,
}

/// One vector in a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VectorState {
    message: Message,
    is_masked: bool,
    is_pending: bool,
}

impl Msix {
    /// A table of `count` vectors, all masked.
    pub(super) fn new(count: u16, host: Arc<dyn Host>) -> Self {
        let vectors = (0..count).map(|_| Mutex::new(Vector::new())).collect();
        let vectors = Arc::new(Vectors { host, vectors });
        Self { control: 0, is_live: false, vectors }
    }

    /// What fires them.
    pub(super) const fn vectors(&self) -> &Arc<Vectors> {
        &self.vectors
    }

    /// Whether the guest uses MSI-X at all.
    pub(super) const fn is_enabled(&self) -> bool {
        self.control & CONTROL_ENABLE != 0
    }

    /// The control register is `control` now.
    pub(super) fn set_control(&mut self, control: u16) {
        self.control = control;
        let function = match (self.is_enabled(), control & CONTROL_MASK != 0) {
            (false, _) => FunctionMask::Disabled,
            (true, true) => FunctionMask::Masked,
            (true, false) => FunctionMask::Open,
        };
        if function == FunctionMask::Open && self.is_live {
            self.connect(|vector| !vector.is_masked);
        }
        for index in 0..self.vectors.vectors.len() {
            self.vectors.change(index, |vector| vector.function = function);
        }
    }

    /// The device begins to fire: what the guest has set up so far is connected at once.
    pub(super) fn go_live(&mut self) {
        self.is_live = true;
        self.connect(Vector::is_open);
    }

    /// The device fires no more.
    pub(super) fn rest(&mut self) {
        self.is_live = false;
    }

    /// Fills `data` from `offset` of the table on.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in (0..).zip(data) {
            let at = offset.saturating_add(i);
            let entry = self.vectors.lock(at / ENTRY_SIZE).map(|vector| vector.to_bytes());
            let within = usize::try_from(at % ENTRY_SIZE).unwrap_or(0);
            *byte = entry.map_or(0, |bytes| bytes[within]);
        }
    }

    /// The guest wrote `data` at `offset` of the table: one or two aligned double words; anything
    /// else is undefined (§6.8.2), and dropped.
    pub(super) fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let (index, within) = (offset / ENTRY_SIZE, offset % ENTRY_SIZE);
        let Some(mut vector) = self.vectors.lock(index).map(|vector| *vector) else { return };
        let mut bytes = vector.to_bytes();
        let at = usize::try_from(within).unwrap_or(0);
        bytes[at..at + data.len()].copy_from_slice(data);
        vector.set_bytes(&bytes);
        let Ok(index) = usize::try_from(index) else { return };
        if self.is_live && vector.is_open() && vector.connected != Some(vector.message) {
            self.connect_these(&[(index, vector.message)]);
        }
        self.vectors.change(index, |old| old.set_bytes(&bytes));
    }

    /// Fills `data` from `offset` of the pending bits on.
    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in (0..).zip(data) {
            let first = offset.saturating_add(i).saturating_mul(8);
            let bit = |n: u64| {
                let vector = self.vectors.lock(first.saturating_add(n));
                u8::from(vector.is_some_and(|vector| vector.is_pending)) << n
            };
            *byte = (0..8).map(bit).sum();
        }
    }

    /// Power-on state.
    pub(super) fn reset(&mut self) {
        self.rest();
        self.control = 0;
        for index in 0..self.vectors.vectors.len() {
            self.vectors.change(index, |vector| {
                *vector = Vector { connected: vector.connected, ..Vector::new() };
            });
        }
    }

    /// What a snapshot keeps; the control register is in the configuration space.
    pub(super) fn save(&self) -> Vec<VectorState> {
        let save = |mutex: &Mutex<Vector>| {
            let Vector { message, is_masked, is_pending, .. } = *lock(mutex);
            VectorState { message, is_masked, is_pending }
        };
        self.vectors.vectors.iter().map(save).collect()
    }

    /// Takes what [`save`](Self::save) gave. Nothing fires until the control register is set.
    pub(super) fn restore(&mut self, saved: &[VectorState]) -> Result<(), DeviceError> {
        let count = self.vectors.vectors.len();
        if saved.len() != count {
            let what = format!("{} MSI-X vectors in the snapshot, {count} here", saved.len());
            return Err(DeviceError::State(what));
        }
        for (mutex, saved) in self.vectors.vectors.iter().zip(saved) {
            let mut vector = lock(mutex);
            vector.message = saved.message;
            vector.is_masked = saved.is_masked;
            vector.is_pending = saved.is_pending;
        }
        Ok(())
    }

    /// Connects those of `wanted` that the host knows nothing or something old of.
    fn connect(&self, wanted: impl Fn(&Vector) -> bool) {
        let vectors = self.vectors.vectors.iter().enumerate();
        let stale: Vec<_> = vectors
            .map(|(index, mutex)| (index, *lock(mutex)))
            .filter(|(_, vector)| wanted(vector) && vector.connected != Some(vector.message))
            .map(|(index, vector)| (index, vector.message))
            .collect();
        if !stale.is_empty() {
            self.connect_these(&stale);
        }
    }

    /// Where that fails, vectors stay as they are, and fire unprepared.
    fn connect_these(&self, stale: &[(usize, Message)]) {
        let indexed: Vec<_> = stale
            .iter()
            .filter_map(|&(index, message)| Some((u16::try_from(index).ok()?, message)))
            .collect();
        match self.vectors.host.connect(&indexed) {
            Ok(()) => {
                for &(index, message) in stale {
                    self.vectors.change(index, |vector| vector.connected = Some(message));
                }
            }
            Err(error) => tracing::debug!(?indexed, %error, "MSI-X vectors stay unprepared"),
        }
    }
}

impl Vectors {
    /// Sends the message of vector `index`, or keeps it pending. No such vector: nothing.
    pub(super) fn fire(&self, index: u16) {
        let Some(mut vector) = self.lock(index.into()) else { return };
        if vector.is_open() {
            self.send(index, &vector);
        } else if vector.function != FunctionMask::Disabled {
            vector.is_pending = true;
        }
    }

    /// Whether there is a vector `index`.
    pub(super) fn has(&self, index: u16) -> bool {
        usize::from(index) < self.vectors.len()
    }

    /// Changes a vector; if that opens it while it is pending, its message goes out.
    fn change(&self, index: usize, change: impl FnOnce(&mut Vector)) {
        let Some(mutex) = self.vectors.get(index) else { return };
        let mut vector = lock(mutex);
        change(&mut vector);
        if vector.is_open() && vector.is_pending {
            vector.is_pending = false;
            if let Ok(index) = u16::try_from(index) {
                self.send(index, &vector);
            }
        }
    }

    fn send(&self, index: u16, vector: &Vector) {
        if vector.connected == Some(vector.message) {
            self.host.send(index);
        } else {
            self.host.send_unprepared(vector.message);
        }
    }

    fn lock(&self, index: u64) -> Option<MutexGuard<'_, Vector>> {
        usize::try_from(index).ok().and_then(|index| self.vectors.get(index)).map(lock)
    }
}

impl Vector {
    const fn new() -> Self {
        Self {
            message: Message { address: 0, data: 0 },
            is_masked: true,
            is_pending: false,
            function: FunctionMask::Disabled,
            connected: None,
        }
    }

    fn is_open(&self) -> bool {
        !self.is_masked && self.function == FunctionMask::Open
    }

    /// As it lies in the table.
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        bytes[12..].copy_from_slice(&u32::from(self.is_masked).to_le_bytes());
        bytes
    }

    fn set_bytes(&mut self, bytes: &[u8; 16]) {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        self.message.address = u64::from(word(4)) << 32 | u64::from(word(0));
        self.message.data = word(8);
        self.is_masked = word(12) & ENTRY_MASKED != 0;
    }
}

fn lock(mutex: &Mutex<Vector>) -> MutexGuard<'_, Vector> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::{Event, FakeHost};
    use proptest::prelude::*;

    const OPEN: u16 = CONTROL_ENABLE;
    const MASKED: u16 = CONTROL_ENABLE | CONTROL_MASK;

    fn rig() -> (Msix, Arc<FakeHost>) {
        let host = Arc::new(FakeHost::default());
        (Msix::new(2, Arc::clone(&host) as Arc<dyn Host>), host)
    }

    fn message(data: u32) -> Message {
        Message { address: 0xfee0_0000, data }
    }

    fn set(msix: &mut Msix, index: u64, data: u32, is_masked: bool) {
        let at = index * ENTRY_SIZE;
        msix.write_table(at, &0xfee0_0000_u64.to_le_bytes());
        msix.write_table(at + 8, &data.to_le_bytes());
        msix.write_table(at + 12, &u32::from(is_masked).to_le_bytes());
    }

    fn pending(msix: &Msix) -> u8 {
        let mut bytes = [0; 8];
        msix.read_pending(0, &mut bytes);
        assert_eq!(bytes[1..], [0; 7]);
        bytes[0]
    }

    #[test]
    fn a_table_set_up_early_is_connected_by_one_call() {
        let (mut msix, host) = rig();
        msix.set_control(MASKED);
        set(&mut msix, 0, 33, false);
        set(&mut msix, 1, 34, false);
        msix.set_control(OPEN);
        assert_eq!(host.take(), []);
        msix.vectors().fire(0);
        assert_eq!(host.take(), [Event::Unprepared(message(33))]);
        msix.go_live();
        assert_eq!(host.take(), [Event::Connect(vec![(0, message(33)), (1, message(34))])]);
        msix.vectors().fire(1);
        msix.vectors().fire(2);
        assert_eq!(host.take(), [Event::Send(1, message(34))]);
    }

    /// As Linux moves an interrupt to another CPU: mask, write, unmask.
    #[test]
    fn a_changed_message_is_connected_before_it_is_sent() {
        let (mut msix, host) = rig();
        msix.set_control(OPEN);
        set(&mut msix, 1, 34, false);
        msix.go_live();
        msix.write_table(28, &[1, 0, 0, 0]);
        msix.vectors().fire(1);
        assert_eq!(pending(&msix), 2);
        host.take();
        set(&mut msix, 1, 99, false);
        let expected = [Event::Connect(vec![(1, message(99))]), Event::Send(1, message(99))];
        assert_eq!(host.take(), expected);
        assert_eq!(pending(&msix), 0);
        msix.write_table(28, &[1, 0, 0, 0]);
        msix.write_table(28, &[0, 0, 0, 0]);
        assert_eq!(host.take(), [], "nothing new to connect");
    }

    #[test]
    fn a_host_that_refuses_still_delivers() {
        let (mut msix, host) = rig();
        host.refuse(true);
        msix.set_control(OPEN);
        set(&mut msix, 0, 33, false);
        msix.go_live();
        msix.vectors().fire(0);
        assert_eq!(host.take(), [Event::Unprepared(message(33))]);
        host.refuse(false);
        msix.set_control(MASKED);
        msix.set_control(OPEN);
        assert_eq!(host.take(), [Event::Connect(vec![(0, message(33))])]);
    }

    #[test]
    fn disabled_means_silent_and_nothing_pending() {
        let (mut msix, host) = rig();
        set(&mut msix, 0, 33, false);
        msix.vectors().fire(0);
        msix.set_control(MASKED);
        msix.vectors().fire(0);
        msix.vectors().fire(0);
        assert_eq!((host.take(), pending(&msix)), (vec![], 1));
        msix.set_control(OPEN);
        assert_eq!(host.take(), [Event::Unprepared(message(33))]);
    }

    /// §6.8.2: double words, or quad words that are aligned.
    #[test]
    fn other_widths_are_dropped() {
        let (mut msix, _) = rig();
        for (offset, size) in [(0, 1), (0, 2), (0, 3), (2, 4), (4, 8), (12, 8), (0, 16), (32, 4)] {
            msix.write_table(offset, &[0xff; 16][..size]);
        }
        msix.write_table(u64::MAX - 7, &[0xff; 8]);
        let mut table = [9; 40];
        msix.read_table(0, &mut table);
        let mut expected = [0; 40];
        (expected[12], expected[28]) = (1, 1);
        assert_eq!(table, expected);
        msix.write_table(8, &[0xff; 8]);
        msix.read_table(8, &mut table[..8]);
        assert_eq!(table[..8], [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }

    #[test]
    fn a_snapshot_keeps_messages_masks_and_pending_bits() {
        let (mut msix, _) = rig();
        msix.set_control(MASKED);
        set(&mut msix, 0, 33, false);
        msix.vectors().fire(0);
        let saved = msix.save();
        let (mut other, host) = rig();
        other.restore(&saved).unwrap();
        assert_eq!(host.take(), []);
        other.set_control(OPEN);
        assert_eq!(host.take(), [Event::Unprepared(message(33))]);
        assert!(other.restore(&saved[..1]).is_err());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Fire(u16),
        Mask(u64, bool),
        Control(u16),
        Live(bool),
    }

    proptest! {
        /// However masks change, as many messages go out as a model says, and none is lost.
        #[test]
        fn no_interrupt_is_lost_or_sent_masked(steps in prop::collection::vec(prop_oneof![
            (0..2_u16).prop_map(Step::Fire),
            (0..2_u64, any::<bool>()).prop_map(|(index, masked)| Step::Mask(index, masked)),
            prop_oneof![Just(0), Just(OPEN), Just(MASKED)].prop_map(Step::Control),
            any::<bool>().prop_map(Step::Live),
        ], 0..64)) {
            let (mut msix, host) = rig();
            let (mut masked, mut pending, mut control, mut sent) = ([true; 2], [false; 2], 0, 0);
            for step in steps {
                match step {
                    Step::Fire(index) => {
                        let at = usize::from(index);
                        if control == OPEN && !masked[at] {
                            sent += 1;
                        } else if control != 0 {
                            pending[at] = true;
                        }
                        msix.vectors().fire(index);
                    }
                    Step::Mask(index, is_masked) => {
                        masked[usize::try_from(index).unwrap()] = is_masked;
                        msix.write_table(index * 16 + 12, &u32::from(is_masked).to_le_bytes());
                    }
                    Step::Control(value) => {
                        control = value;
                        msix.set_control(value);
                    }
                    Step::Live(true) => msix.go_live(),
                    Step::Live(false) => msix.rest(),
                }
                for at in 0..2 {
                    if pending[at] && !masked[at] && control == OPEN {
                        pending[at] = false;
                        sent += 1;
                    }
                }
            }
            let events = host.take();
            let messages = events.iter().filter(|event| !matches!(event, Event::Connect(_)));
            prop_assert_eq!(messages.count(), sent);
        }
    }
}
