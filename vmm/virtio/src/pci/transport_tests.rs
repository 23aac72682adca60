//! A transport and an echo device, driven by registers and rings.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::testing::{ECHO_FAIL, ECHO_QUEUE_SIZE, Event, Inline, RIG_BAR, Rig, rig_message};
use super::{BAR_SIZE, Executor, Function};
use crate::testing::{self, Buffer, DRIVER_SIZE, Driver};

const NEEDS_RESET: u8 = 64;

struct Ready {
    rig: Rig,
    executor: Arc<Inline>,
    drivers: Vec<Driver>,
}

fn rig(queue_count: usize) -> (Rig, Arc<Inline>) {
    let executor = Arc::new(Inline::default());
    let memory = testing::memory(4 << 20);
    (Rig::new(queue_count, memory, Arc::clone(&executor) as Arc<dyn Executor>), executor)
}

/// Two queues, three vectors, `DRIVER_OK`.
fn ready() -> Ready {
    let (mut rig, executor) = rig(2);
    for vector in 0..3 {
        rig.set_up_vector(vector);
    }
    let drivers = start(&mut rig);
    Ready { rig, executor, drivers }
}

fn start(rig: &mut Rig) -> Vec<Driver> {
    rig.negotiate(false);
    rig.write(0x10, &[0, 0]);
    for index in 0..2 {
        rig.set_up_queue(index, u64::from(index) * DRIVER_SIZE);
    }
    rig.go();
    let bases = [0, DRIVER_SIZE];
    bases.map(|base| Driver::alone(&rig.memory, base, ECHO_QUEUE_SIZE)).into()
}

impl Ready {
    fn ask(&mut self, queue: u16, request: &[u8]) -> u64 {
        let buffers = [Buffer::Readable(request.into()), Buffer::Writable(16)];
        let (_, addresses) = self.drivers[usize::from(queue)].add(&buffers);
        self.rig.write(0x2000 + u64::from(queue) * 4, &queue.to_le_bytes());
        addresses[1]
    }

    fn assert_echoes(&mut self, queue: u16) {
        let answer = self.ask(queue, b"hello");
        self.executor.run();
        let driver = &mut self.drivers[usize::from(queue)];
        assert_eq!(driver.take_used().unwrap().1, 5);
        assert_eq!(driver.read(answer, 5), b"hello");
    }
}

/// virtio 1.3 §4.1.2 and §4.1.4, found as a driver finds them.
#[test]
fn capabilities_lead_to_the_registers() {
    let (rig, _) = rig(2);
    let bytes = rig.transport.config().bytes();
    assert_eq!(bytes[..4], [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(bytes[8], 1, "revision of a modern device");
    let (mut at, mut found) = (usize::from(bytes[0x34]), Vec::new());
    while at != 0 {
        let word = |n: usize| u32::from_le_bytes(bytes[at + n..at + n + 4].try_into().unwrap());
        match bytes[at] {
            0x09 => found.push((bytes[at + 3], word(8), word(12))),
            0x11 => assert_eq!((bytes[at + 2], word(4), word(8)), (2, 0x3000, 0x3800)),
            other => panic!("capability {other:#x}"),
        }
        if bytes[at + 3] == 2 && bytes[at] == 9 {
            assert_eq!((bytes[at + 2], word(16)), (20, 4), "notify multiplier");
        }
        at = usize::from(bytes[at + 1]);
    }
    let expected = [(1, 0, 0x38), (2, 0x2000, 8), (3, 0x100, 1), (4, 0x1000, 8)];
    assert_eq!(found, expected);
}

#[test]
fn a_driver_gets_its_echo_and_an_interrupt() {
    let mut ready = ready();
    assert_eq!(ready.rig.status(), 15);
    let connected = (0..3).map(|v| (u16::from(v), rig_message(v))).collect();
    assert_eq!(ready.rig.host.take(), [Event::Connect(connected)], "all vectors by one call");
    assert_eq!(ready.rig.host.doorbells(), [RIG_BAR + 0x2000, RIG_BAR + 0x2004]);
    ready.assert_echoes(1);
    assert_eq!(ready.rig.host.take(), [Event::Send(2, rig_message(2))]);
    assert!(ready.rig.host.ring(RIG_BAR + 0x2000));
    ready.assert_echoes(0);
}

/// §4.1.4.5: without MSI-X the status register is all there is, and reading it clears it.
#[test]
fn a_driver_without_msix_polls_the_interrupt_status() {
    let mut ready = ready();
    ready.rig.transport.write_config(0x42, &[0, 0]);
    ready.rig.host.take();
    ready.assert_echoes(0);
    assert_eq!(ready.rig.read::<2>(0x100), [1, 0]);
    assert_eq!(ready.rig.read::<1>(0x100), [0]);
    assert_eq!(ready.rig.host.take(), []);
}

#[test]
fn configuration_changes_interrupt_once_the_driver_is_ready() {
    let (mut rig, _executor) = rig(2);
    rig.set_up_vector(0);
    let config = rig.transport.device.config().clone();
    config.update(|bytes| bytes[0] = b'E');
    assert_eq!((rig.host.take(), rig.read::<1>(0x15)), (vec![], [1]));
    start(&mut rig);
    rig.host.take();
    config.update(|bytes| bytes[1] = b'C');
    assert_eq!(rig.host.take(), [Event::Send(0, rig_message(0))]);
    assert_eq!(rig.read::<8>(0x1000), *b"EChoecho");
    rig.write(0x1004, b"E");
    assert_eq!(rig.read::<4>(0x1004), *b"Echo");
    assert_eq!(rig.read::<4>(0x1006), *b"ho\0\0");
}

/// §2.1.2: a device that cannot go on says so, and a reset makes it good.
#[test]
fn a_unit_that_fails_leaves_a_device_that_needs_reset() {
    let mut ready = ready();
    ready.rig.host.take();
    ready.ask(1, ECHO_FAIL);
    ready.executor.run();
    assert_eq!(ready.rig.status(), 15 | NEEDS_RESET);
    assert_eq!(ready.rig.host.take(), [Event::Send(0, rig_message(0))]);
    ready.rig.write(0x14, &[0]);
    assert_eq!(ready.rig.status(), 0);
    assert_eq!(ready.rig.host.doorbells(), [0; 0]);
    assert_eq!(ready.rig.control.unit_count.load(Ordering::Relaxed), 0);
    zero_rings(&ready.rig);
    ready.drivers = start(&mut ready.rig);
    ready.assert_echoes(1);
}

fn zero_rings(rig: &Rig) {
    use crate::memory::{Bytes, GuestAddress};
    rig.memory.write_slice(&vec![0; 4 << 20], GuestAddress(0)).unwrap();
}

#[test]
fn a_device_that_cannot_start_needs_reset() {
    let (mut rig, _executor) = rig(2);
    rig.control.fails_to_start.store(true, Ordering::Relaxed);
    start(&mut rig);
    assert_eq!(rig.status(), 15 | NEEDS_RESET);
    rig.control.fails_to_start.store(false, Ordering::Relaxed);
    start(&mut rig);
    assert_eq!(rig.status(), 15);
}

#[test]
fn rings_outside_memory_are_refused_when_the_driver_is_ready() {
    let (mut rig, _executor) = rig(2);
    rig.negotiate(false);
    rig.set_up_queue(0, 0);
    rig.set_up_queue(1, u64::MAX - 0x10_0000 + 1);
    rig.go();
    assert_eq!(rig.status(), 15 | NEEDS_RESET);
    assert_eq!(rig.control.unit_count.load(Ordering::Relaxed), 0);
}

/// §4.1.4.3.2: rings are where they were when the queue was enabled.
#[test]
fn rings_moved_while_active_stay_where_they_are() {
    let mut ready = ready();
    ready.rig.set_up_queue(0, 2 * DRIVER_SIZE);
    ready.assert_echoes(0);
    assert_eq!(ready.rig.read::<8>(0x20), [0; 8]);
}

#[test]
fn doorbells_follow_the_bar() {
    let mut ready = ready();
    ready.rig.transport.write_config(0x10, &0xf000_0000_u32.to_le_bytes());
    assert_eq!(ready.rig.host.doorbells(), [0xf000_2000, 0xf000_2004]);
    ready.rig.transport.write_config(4, &[0]);
    assert_eq!(ready.rig.host.doorbells(), [0; 0]);
    ready.rig.transport.write_config(0x14, &[1]);
    ready.rig.transport.write_config(4, &[2]);
    assert_eq!(ready.rig.host.doorbells(), [0x1_f000_2000, 0x1_f000_2004]);
    ready.assert_echoes(0);
}

/// §4.1.4.3.2: the driver waits until the status reads as 0.
#[test]
fn a_reset_may_take_longer_than_a_vcpu_waits() {
    let mut ready = ready();
    ready.executor.is_stuck.store(true, Ordering::Relaxed);
    ready.rig.write(0x14, &[0]);
    assert_eq!(ready.rig.status(), 15);
    ready.rig.write(0x14, &[1]);
    ready.rig.write(0x16, &[1, 0]);
    assert_eq!(ready.rig.status(), 15, "nothing is taken meanwhile");
    assert!(ready.rig.transport.save().is_err());
    ready.executor.is_stuck.store(false, Ordering::Relaxed);
    assert_eq!(ready.rig.status(), 0);
    zero_rings(&ready.rig);
    ready.drivers = start(&mut ready.rig);
    ready.assert_echoes(0);
}

#[test]
fn a_pause_keeps_what_was_asked() {
    let mut ready = ready();
    ready.assert_echoes(0);
    ready.rig.transport.pause().unwrap();
    assert_eq!(ready.rig.control.unit_count.load(Ordering::Relaxed), 0);
    let answer = ready.ask(0, b"while away");
    ready.rig.transport.pause().unwrap();
    ready.rig.transport.resume();
    ready.executor.run();
    assert_eq!(ready.drivers[0].take_used().unwrap().1, 10);
    assert_eq!(ready.drivers[0].read(answer, 10), b"while away");
    ready.assert_echoes(1);
}

#[test]
fn a_pause_that_was_given_up_is_resumed() {
    let mut ready = ready();
    ready.executor.is_stuck.store(true, Ordering::Relaxed);
    let error = ready.rig.transport.pause().unwrap_err().to_string();
    assert_eq!(error, "echo0: requests in flight after 5 s");
    ready.executor.is_stuck.store(false, Ordering::Relaxed);
    ready.rig.transport.resume();
    ready.assert_echoes(0);
}

#[test]
fn a_snapshot_goes_on_elsewhere() {
    let mut ready = ready();
    ready.assert_echoes(0);
    ready.rig.write(0x16, &[1, 0]);
    assert!(ready.rig.transport.save().is_err(), "it runs");
    ready.rig.transport.pause().unwrap();
    let answer = ready.ask(0, b"frozen");
    let state = ready.rig.transport.save().unwrap();
    let executor = Arc::new(Inline::default());
    let memory = Arc::clone(&ready.rig.memory);
    let mut other = Rig::new(2, memory, Arc::clone(&executor) as Arc<dyn Executor>);
    other.transport.restore(state.clone()).unwrap();
    assert_eq!(other.host.take(), [], "nothing before it resumes");
    let mut again = other.transport.save().unwrap();
    assert_eq!(again["config_generation"], 1, "a driver that reads twice sees that it moved");
    again["config_generation"] = 0.into();
    assert_eq!(again, state);
    other.transport.resume();
    let sent = other.host.take();
    assert!(matches!(sent[0], Event::Connect(_)));
    assert_eq!(sent[1..], [0, 1, 2].map(|v| Event::Send(v.into(), rig_message(v))));
    executor.run();
    assert_eq!(ready.drivers[0].take_used().unwrap().1, 6);
    assert_eq!(ready.drivers[0].read(answer, 6), b"frozen");
    assert_eq!(other.read::<0x22>(0x16), ready.rig.read::<0x22>(0x16));
}

#[test]
fn nonsense_is_not_restored() {
    let mut ready = ready();
    ready.rig.transport.pause().unwrap();
    let good = ready.rig.transport.save().unwrap();
    let changes: [(&str, serde_json::Value); 9] = [
        ("/status", 4.into()),
        ("/status", 8.into()),
        ("/status", 64.into()),
        ("/driver_features", 2.into()),
        ("/queues", serde_json::json!([])),
        ("/vectors", serde_json::json!([])),
        ("/queues/0/registers/size", 3.into()),
        ("/queues/1/registers/size_max", 8.into()),
        ("/config", serde_json::json!([1])),
    ];
    for (at, value) in changes {
        let mut bad = good.clone();
        *bad.pointer_mut(at).unwrap() = value;
        let (mut other, _executor) = rig(2);
        other.transport.restore(bad).expect_err(at);
    }
    let (mut smaller, _executor) = rig(1);
    smaller.transport.restore(good).unwrap_err();
    smaller.transport.restore(serde_json::Value::Null).unwrap_err();
}

/// What a file says of rings is checked when they are built.
#[test]
fn a_snapshot_with_rings_outside_memory_needs_reset() {
    let mut ready = ready();
    ready.rig.transport.pause().unwrap();
    let mut state = ready.rig.transport.save().unwrap();
    *state.pointer_mut("/queues/0/registers/used_ring").unwrap() = u64::MAX.into();
    let (mut other, _executor) = rig(2);
    other.transport.restore(state).unwrap();
    other.transport.resume();
    assert_eq!(other.status(), 15 | NEEDS_RESET);
}

#[test]
fn a_machine_reset_is_power_on() {
    let mut ready = ready();
    let (mut fresh, _) = rig(2);
    fresh.transport.write_config(4, &[0]);
    ready.rig.transport.write_config(0x10, &0xf000_0000_u32.to_le_bytes());
    ready.rig.transport.reset().unwrap();
    assert_eq!(ready.rig.transport.config().bytes(), fresh.transport.config().bytes());
    let image = |rig: &mut Rig| (rig.read::<0x38>(0), rig.read::<48>(0x3000));
    assert_eq!(image(&mut ready.rig), image(&mut fresh));
    assert_eq!(ready.rig.control.unit_count.load(Ordering::Relaxed), 0);
}

#[test]
fn units_end_with_their_transport() {
    let ready = ready();
    let control = Arc::clone(&ready.rig.control);
    let host = Arc::clone(&ready.rig.host);
    drop(ready);
    assert_eq!(control.unit_count.load(Ordering::Relaxed), 0);
    assert_eq!(host.doorbells(), [0; 0]);
}

#[derive(Clone, Debug)]
enum Access {
    Config(usize, Vec<u8>),
    Write(u64, Vec<u8>),
    Read(u64, usize),
    /// A register that matters, so that hostile drivers get far.
    Known(u64, Vec<u8>),
    Memory(u64, Vec<u8>),
    Run,
    Pause,
}

fn access() -> impl Strategy<Value = Access> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..9);
    let natural = prop_oneof![
        prop::sample::select(vec![0_u8, 1, 3, 11, 15, 0x4f, 0x8f]).prop_map(|s| (0x14, vec![s])),
        (prop::sample::select(vec![0x10, 0x16, 0x18, 0x1a, 0x1c_u64]), 0..4_u8)
            .prop_map(|(at, value)| (at, vec![value, 0])),
        (prop::sample::select(vec![0, 8, 0xc_u64]), 0..2_u8)
            .prop_map(|(at, value)| (at, vec![value, 0, 0, 0])),
        (prop::sample::select(vec![0x20, 0x28, 0x30_u64]), 0..0x50_u8)
            .prop_map(|(at, page)| (at, vec![0, page << 4, page >> 4, 0])),
        (0..12_u64, any::<u8>()).prop_map(|(at, v)| (0x3000 + at * 4, vec![v, 0, 0, 0])),
        (0..3_u64).prop_map(|queue| (0x2000 + queue * 4, vec![0, 0])),
    ];
    prop_oneof![
        1 => (0..0x110_usize, bytes()).prop_map(|(at, data)| Access::Config(at, data)),
        2 => (0..BAR_SIZE, bytes()).prop_map(|(at, data)| Access::Write(at, data)),
        2 => (0..BAR_SIZE, 1..9_usize).prop_map(|(at, size)| Access::Read(at, size)),
        10 => natural.prop_map(|(at, data)| Access::Known(at, data)),
        2 => (0..0x5000_u64, bytes()).prop_map(|(at, data)| Access::Memory(at, data)),
        2 => Just(Access::Run),
        1 => Just(Access::Pause),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a driver does, nothing panics, and after a reset a good one is served.
    #[test]
    fn a_hostile_driver_is_survived(
        is_negotiated in any::<bool>(),
        accesses in prop::collection::vec(access(), 0..80),
    ) {
        use crate::memory::{Bytes, GuestAddress};
        let (mut rig, executor) = rig(2);
        if is_negotiated {
            rig.negotiate(true);
        }
        for access in accesses {
            match access {
                Access::Config(at, data) => {
                    rig.transport.write_config(at, &data);
                }
                Access::Write(at, data) | Access::Known(at, data) => rig.write(at, &data),
                Access::Read(at, size) => {
                    rig.transport.read_bar(0, at, &mut [0; 8][..size]);
                }
                Access::Memory(at, data) => {
                    rig.memory.write_slice(&data, GuestAddress(at)).unwrap();
                }
                Access::Run => executor.run(),
                Access::Pause => {
                    rig.transport.pause().unwrap();
                    let state = rig.transport.save().unwrap();
                    rig.transport.restore(state).unwrap();
                    rig.transport.resume();
                }
            }
        }
        zero_rings(&rig);
        let drivers = start(&mut rig);
        prop_assert_eq!(rig.status(), 15);
        let mut ready = Ready { rig, executor, drivers };
        ready.assert_echoes(0);
        ready.assert_echoes(1);
    }
}
