//! The entropy source driven through a real ring.

use std::sync::Arc;

use super::*;
use crate::testing::{self, Buffer, Driver, Interrupts};
use crate::{Interrupt, UnitError};

fn rig() -> (Rng, Box<dyn Unit>, Driver, Arc<Interrupts>) {
    let memory = testing::memory(1 << 20);
    let interrupts = Arc::new(Interrupts::default());
    let interrupt = Arc::clone(&interrupts) as Arc<dyn Interrupt>;
    let (driver, queue) = Driver::new(&memory, 0, 0, 64, false, interrupt);
    let mut device = Rng::new();
    let activation = Activation { memory, features: 0, queues: vec![Some(queue)] };
    let unit = device.activate(activation).unwrap().remove(0);
    (device, unit, driver, interrupts)
}

/// §5.4.6.2: random bytes in the buffer, as many as are said to be there.
#[test]
fn buffers_are_filled_and_differ() {
    let (device, mut unit, mut driver, interrupts) = rig();
    let (first, a) = driver.add(&[Buffer::Writable(3), Buffer::Writable(61)]);
    let (second, b) = driver.add(&[Buffer::Writable(64)]);
    unit.kicked(0).unwrap();
    assert_eq!(driver.take_used(), Some((first, 64)));
    assert_eq!(driver.take_used(), Some((second, 64)));
    let one = [driver.read(a[0], 3), driver.read(a[1], 61)].concat();
    let other = driver.read(b[0], 64);
    assert_ne!(one, other);
    for bytes in [one, other] {
        assert!(bytes.iter().filter(|byte| **byte == 0).count() < 8, "{bytes:?}");
    }
    assert_eq!(interrupts.take(), [0]);
    assert_eq!(device.counters()[0].1.value(), 128);
}

/// §5.4.6.1: the driver must not offer readable buffers.
#[test]
fn readable_buffers_stop_the_device() {
    let (_, mut unit, mut driver, _) = rig();
    driver.add(&[Buffer::Readable(vec![1; 8]), Buffer::Writable(8)]);
    let error = unit.kicked(0).unwrap_err();
    assert!(matches!(error, UnitError::Guest(_)), "{error:?}");
}

#[test]
fn a_greedy_guest_gets_so_much_and_waits() {
    let (_, mut unit, mut driver, _) = rig();
    let count = WAKE_SIZE_MAX / CHAIN_SIZE_MAX;
    for _ in 0..count {
        driver.add(&[Buffer::Writable(CHAIN_SIZE_MAX * 2)]);
    }
    driver.add(&[Buffer::Writable(16)]);
    unit.kicked(0).unwrap();
    for _ in 0..count {
        assert_eq!(driver.take_used().unwrap().1, CHAIN_SIZE_MAX);
    }
    let until = unit.deadline().unwrap();
    unit.kicked(0).unwrap();
    unit.expired(until - REST).unwrap();
    assert_eq!(driver.take_used(), None, "it rests");
    unit.expired(until).unwrap();
    assert_eq!(driver.take_used().unwrap().1, 16);
    assert_eq!(unit.deadline(), None);
    assert_eq!(unit.stop().len(), 1);
}

/// Many tiny buffers do not make the work of a wake-up longer.
#[test]
fn tiny_buffers_end_a_wake_up_too() {
    let (_, mut unit, mut driver, _) = rig();
    for _ in 0..64 {
        driver.add(&[Buffer::Writable(1)]);
    }
    unit.kicked(0).unwrap();
    assert!(unit.deadline().is_some());
}
