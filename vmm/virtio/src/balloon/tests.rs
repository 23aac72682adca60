//! The balloon driven through real rings, over all kinds of memory.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestRegionMmap};

use super::*;
use crate::memory::{Memory, SharedMemory};
use crate::testing::{Buffer, DRIVER_SIZE, Driver, Interrupts};
use crate::{Interrupt, UnitError};

const ALL: u64 = 1 << wire::F_STATS_VQ | 1 << wire::F_REPORTING | 1 << wire::F_PAGE_POISON;
/// Pages of which the tests make use lie behind the rings of five queues.
const FIRST: u64 = 5 * DRIVER_SIZE / wire::PAGE_SIZE;
const PAGES: u64 = 256;
const PAGE: usize = 4096;

struct Rig {
    device: Balloon,
    handle: BalloonHandle,
    unit: Box<dyn Unit>,
    drivers: Vec<Driver>,
    memory: SharedMemory,
    interrupts: Arc<Interrupts>,
}

fn anonymous() -> Memory {
    let size = (FIRST + PAGES) * wire::PAGE_SIZE;
    Memory::from_ranges(&[(GuestAddress(0), usize::try_from(size).unwrap())]).unwrap()
}

/// The pages of the tests are a mapping of a file, whose bytes are all 7.
fn of_file(flags: rustix::mm::MapFlags) -> Memory {
    let size = usize::try_from(PAGES).unwrap() * PAGE;
    let file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &file, &vec![7; size]).unwrap();
    let region = MmapRegionBuilder::new_with_bitmap(size, ())
        .with_file_offset(FileOffset::new(file, 0))
        .with_mmap_prot(3)
        .with_mmap_flags(i32::try_from(flags.bits()).unwrap())
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(FIRST * wire::PAGE_SIZE)).unwrap();
    let rings = usize::try_from(FIRST * wire::PAGE_SIZE).unwrap();
    let rings = Memory::from_ranges(&[(GuestAddress(0), rings)]).unwrap();
    rings.insert_region(Arc::new(region)).unwrap()
}

impl Rig {
    fn new(features: u64, queues: &[u16], memory: Memory, excluded: &[(u64, u64)]) -> Self {
        let memory = Arc::new(memory);
        let interrupts = Arc::new(Interrupts::default());
        let page = |frame: u64| GuestAddress((FIRST + frame) * wire::PAGE_SIZE);
        let mut device = Balloon::new(BalloonOptions {
            memory_size: 64 << 20,
            deflates_on_oom: true,
            has_reporting: true,
            excluded: excluded.iter().map(|(start, end)| page(*start)..page(*end)).collect(),
        })
        .unwrap();
        let mut drivers = Vec::new();
        let mut all = Vec::new();
        for index in 0..5 {
            let interrupt = Arc::clone(&interrupts) as Arc<dyn Interrupt>;
            let base = u64::from(index) * DRIVER_SIZE;
            let (driver, queue) = Driver::new(&memory, base, index, 128, false, interrupt);
            drivers.push(driver);
            all.push(queues.contains(&index).then_some(queue));
        }
        let activation = Activation { memory: Arc::clone(&memory), features, queues: all };
        let unit = device.activate(activation).unwrap().remove(0);
        let handle = device.handle();
        let rig = Self { device, handle, unit, drivers, memory, interrupts };
        for frame in 0..PAGES {
            rig.memory.write_slice(&[9; PAGE], rig.address(frame)).unwrap();
        }
        rig
    }

    fn all() -> Self {
        Self::new(ALL, &[0, 1, 2, 3, 4], anonymous(), &[])
    }

    /// Where page `frame` of the tests is.
    fn address(&self, frame: u64) -> GuestAddress {
        assert!(frame < PAGES && self.device.shared.memory_size > 0);
        GuestAddress((FIRST + frame) * wire::PAGE_SIZE)
    }

    fn inflate(&mut self, frames: &[u32]) -> Result<(), UnitError> {
        let bytes = frames.iter().flat_map(|frame| frame.to_le_bytes()).collect();
        self.drivers[0].add(&[Buffer::Readable(bytes)]);
        self.unit.kicked(0)
    }

    /// The pages that read as zeros.
    fn zeroed(&self) -> BTreeSet<u64> {
        let is_zero = |frame: &u64| {
            let mut bytes = [1; PAGE];
            self.memory.read_slice(&mut bytes, self.address(*frame)).unwrap();
            bytes == [0; PAGE]
        };
        (0..PAGES).filter(is_zero).collect()
    }

    /// Offers pages in the reporting queue, each range a writable buffer of its own.
    fn report(&mut self, index: u16, ranges: &[(u64, u32)]) {
        let driver = &mut self.drivers[usize::from(index)];
        for (i, (address, size)) in ranges.iter().enumerate() {
            let i = u16::try_from(i).unwrap();
            let is_last = usize::from(i) + 1 == ranges.len();
            let flags = crate::testing::WRITE | if is_last { 0 } else { crate::testing::NEXT };
            driver.descriptor(i, *address, *size, flags, i + 1);
        }
        driver.offer(0);
        self.unit.kicked(index).unwrap();
        assert_eq!(driver.take_used(), Some((0, 0)));
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.device.counters();
        counters.iter().find(|(known, _)| *known == name).unwrap().1.value()
    }
}

fn frames(list: &[u64]) -> Vec<u32> {
    list.iter().map(|frame| u32::try_from(FIRST + frame).unwrap()).collect()
}

/// §5.5.6: pages whose frames are in the inflate queue go, no others.
#[test]
fn inflated_pages_read_as_zeros() {
    let mut rig = Rig::all();
    rig.inflate(&frames(&[5, 3, 4, 200, 4])).unwrap();
    assert_eq!(rig.drivers[0].take_used(), Some((0, 0)));
    assert_eq!(rig.zeroed(), [3, 4, 5, 200].into());
    assert_eq!(rig.counter("inflated_pages"), 5);
    assert_eq!(rig.counter("discarded_bytes"), 4 * wire::PAGE_SIZE);
    assert_eq!(rig.interrupts.take(), [0]);
    // They are of use again as soon as the guest has them back.
    rig.drivers[1].add(&[Buffer::Readable(vec![0; 8])]);
    rig.unit.kicked(1).unwrap();
    assert_eq!(rig.counter("deflated_pages"), 2);
    rig.memory.write_slice(&[1; PAGE], rig.address(4)).unwrap();
    assert_eq!(rig.zeroed(), [3, 5, 200].into());
}

#[test]
fn frames_outside_memory_stop_the_device_and_are_named() {
    let end = u32::try_from(FIRST + PAGES).unwrap();
    for frames in [vec![end], vec![end - 1, end], vec![u32::MAX]] {
        let mut rig = Rig::all();
        let error = rig.inflate(&frames).unwrap_err();
        let last = frames[frames.len() - 1].to_string();
        assert!(matches!(&error, UnitError::Guest(what) if what.contains(&last)), "{error:?}");
        assert_eq!(rig.zeroed(), BTreeSet::new());
    }
}

#[test]
fn arrays_of_frames_that_make_no_sense_stop_the_device() {
    let too_many = usize::try_from(unit::CHAIN_FRAMES_MAX).unwrap() * 4 + 4;
    for size in [1, 3, 5, too_many] {
        let mut rig = Rig::all();
        rig.drivers[0].add(&[Buffer::Readable(vec![0; size])]);
        let error = rig.unit.kicked(0).unwrap_err();
        assert!(matches!(error, UnitError::Guest(_)), "{size}: {error:?}");
    }
}

#[test]
fn many_chains_are_served_in_turns() {
    let mut rig = Rig::all();
    for frame in 0..40 {
        rig.drivers[0].add(&[Buffer::Readable(frames(&[frame])[0].to_le_bytes().to_vec())]);
    }
    rig.unit.kicked(0).unwrap();
    assert_eq!(rig.zeroed().len(), 16);
    for _ in 0..2 {
        rig.unit.expired(rig.unit.deadline().unwrap()).unwrap();
    }
    assert_eq!(rig.zeroed(), (0..40).collect());
    assert_eq!(rig.unit.deadline(), None);
}

/// A hole in a file that is shared reads as zeros, for all who map it.
#[test]
fn shared_memory_is_discarded_too() {
    let memory = of_file(rustix::mm::MapFlags::SHARED);
    let mut rig = Rig::new(ALL, &[0, 1, 2, 3, 4], memory, &[]);
    rig.inflate(&frames(&[1, 2])).unwrap();
    assert_eq!(rig.zeroed(), [1, 2].into());
}

/// A private mapping would show the file's bytes again: it is left as the guest has written it.
#[test]
fn a_private_mapping_of_a_file_is_left_alone() {
    let memory = of_file(rustix::mm::MapFlags::PRIVATE);
    let mut rig = Rig::new(ALL, &[0, 1, 2, 3, 4], memory, &[]);
    rig.inflate(&frames(&[1, 2])).unwrap();
    let mut bytes = [0; PAGE];
    rig.memory.read_slice(&mut bytes, rig.address(1)).unwrap();
    assert_eq!(bytes, [9; PAGE], "neither the file's 7 nor zeros");
    assert_eq!(rig.counter("discarded_bytes"), 0);
}

#[test]
fn excluded_ranges_are_left_alone() {
    let excluded = [(10, 20), (30, 31)];
    let mut rig = Rig::new(ALL, &[0, 1, 2, 3, 4], anonymous(), &excluded);
    rig.inflate(&frames(&(8..32).collect::<Vec<_>>())).unwrap();
    assert_eq!(rig.zeroed(), (8..10).chain(20..30).chain([31]).collect());
    let start = rig.address(29).0;
    rig.report(4, &[(start, 3 << 12)]);
    assert!(!rig.zeroed().contains(&30));
}

/// §5.5.6.7: the buffers themselves are discarded, but only whole pages of them.
#[test]
fn reported_pages_are_discarded_whole() {
    let mut rig = Rig::all();
    let at = |rig: &Rig, frame| rig.address(frame).0;
    let ranges = [(at(&rig, 8) + 1, 3 << 12), (at(&rig, 20), 1 << 12), (at(&rig, 30) + 1, 4094)];
    rig.report(4, &ranges);
    assert_eq!(rig.zeroed(), [9, 10, 20].into());
    assert_eq!(rig.counter("reported_bytes"), 3 << 12);
}

/// Readable buffers are no free pages.
#[test]
fn what_a_report_does_not_let_us_write_stays() {
    let mut rig = Rig::all();
    let start = rig.address(8).0;
    rig.drivers[4].descriptor(0, start, 1 << 13, 0, 0);
    rig.drivers[4].offer(0);
    rig.unit.kicked(4).unwrap();
    assert_eq!(rig.zeroed(), BTreeSet::new());
}

/// §5.5.6.7: with a poison value other than zero, reported pages must keep it.
#[test]
fn poisoned_pages_keep_their_poison() {
    let mut rig = Rig::all();
    rig.device.write_config(12, &0xaaaa_aaaa_u32.to_le_bytes());
    let start = rig.address(8).0;
    rig.report(4, &[(start, 1 << 12)]);
    assert_eq!(rig.zeroed(), BTreeSet::new());
    rig.device.reset();
    rig.report(4, &[(start, 1 << 12)]);
    assert_eq!(rig.zeroed(), [8].into());
}

/// §5.5.2, and what Linux makes of it when there is no queue for hints.
#[test]
fn the_reporting_queue_is_found_where_drivers_put_it() {
    let reporting = 1 << wire::F_REPORTING;
    let statistics = 1 << wire::F_STATS_VQ;
    let cases: [(u64, &[u16], u16); 4] = [
        (reporting, &[0, 1, 4], 4),
        (reporting, &[0, 1, 2], 2),
        (reporting | statistics, &[0, 1, 2, 3], 3),
        (reporting | statistics, &[0, 1, 2, 4], 4),
    ];
    for (features, queues, index) in cases {
        let mut rig = Rig::new(features, queues, anonymous(), &[]);
        let start = rig.address(8).0;
        rig.report(index, &[(start, 1 << 12)]);
        assert_eq!(rig.zeroed(), [8].into(), "{queues:?}");
        assert_eq!(rig.unit.stop().len(), queues.len());
    }
}

/// §5.5.5 and §5.5.4: a target is in the configuration space; only the driver's fields are its.
#[test]
fn targets_and_what_came_of_them_pass_through_the_configuration_space() {
    let mut rig = Rig::all();
    let interrupt = Arc::clone(&rig.interrupts) as Arc<dyn Interrupt>;
    rig.device.config().announce_to(Some(interrupt));
    rig.handle.set_target((3 << 12) + 5).unwrap();
    assert_eq!((rig.handle.target(), rig.interrupts.config_count()), (3 << 12, 1));
    let error = rig.handle.set_target((64 << 20) + 1).unwrap_err();
    assert!(error.to_string().contains("67108865"), "{error}");
    assert_eq!(rig.handle.target(), 3 << 12);
    rig.device.write_config(4, &2_u32.to_le_bytes());
    assert_eq!(rig.handle.actual(), 2 << 12);
    for (offset, data) in [(0, &[9; 4][..]), (2, &[9; 4]), (4, &[9; 2]), (4, &[9; 8]), (99, &[9])] {
        rig.device.write_config(offset, data);
    }
    assert_eq!((rig.handle.target(), rig.handle.actual()), (3 << 12, 2 << 12));
    rig.device.reset();
    assert_eq!((rig.handle.target(), rig.handle.actual()), (3 << 12, 0));
}

fn stats(pairs: &[(u16, u64)]) -> Vec<u8> {
    let bytes = |(tag, value): &(u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    pairs.iter().flat_map(bytes).collect()
}

/// §5.5.6.3: the buffer stays with the device until it wants statistics.
#[test]
fn statistics_are_asked_for_at_an_interval() {
    let mut rig = Rig::all();
    assert!(rig.handle.statistics().received().is_none());
    let (head, _) = rig.drivers[2].add(&[Buffer::Readable(stats(&[(4, 1000), (99, 1)]))]);
    rig.unit.kicked(2).unwrap();
    let known: Vec<_> = rig.handle.statistics().iter().collect();
    assert_eq!(known, [("free_bytes", 1000)]);
    assert!(rig.handle.statistics().received().is_some());
    assert_eq!((rig.drivers[2].take_used(), rig.unit.deadline()), (None, None));
    rig.handle.set_statistics_interval(Some(Duration::from_millis(1)));
    rig.unit.ready(unit::WAKE).unwrap();
    let due = rig.unit.deadline().unwrap();
    assert!(due > Instant::now() + STATISTICS_INTERVAL_MIN / 2);
    rig.unit.expired(due - STATISTICS_INTERVAL_MIN / 2).unwrap();
    assert_eq!(rig.drivers[2].take_used(), None);
    rig.unit.expired(due).unwrap();
    assert_eq!(rig.drivers[2].take_used(), Some((head, 0)));
    assert_eq!(rig.unit.deadline(), None, "nothing to ask with");
    rig.drivers[2].add(&[Buffer::Readable(stats(&[(4, 500), (5, 2000)]))]);
    rig.unit.kicked(2).unwrap();
    let known: Vec<_> = rig.handle.statistics().iter().collect();
    assert_eq!(known, [("free_bytes", 500), ("total_bytes", 2000)]);
    assert!(rig.unit.deadline().is_some());
    rig.handle.set_statistics_interval(Some(Duration::MAX));
    rig.unit.ready(unit::WAKE).unwrap();
    rig.handle.set_statistics_interval(None);
    rig.unit.ready(unit::WAKE).unwrap();
    assert_eq!(rig.unit.deadline(), None);
    // A pause gives the buffer back to the ring, from which it comes again.
    let mut queues = rig.unit.stop();
    let mut chain = Chain::new();
    assert!(queues[2].pop(&mut chain).unwrap());
    assert_eq!((chain.head(), chain.readable_size()), (1, 20));
}

/// §5.5.6.3.1: one buffer at a time; and none of any length.
#[test]
fn statistics_that_break_rules_stop_the_device() {
    let mut rig = Rig::all();
    rig.drivers[2].add(&[Buffer::Readable(stats(&[(4, 1)]))]);
    rig.drivers[2].add(&[Buffer::Readable(stats(&[(4, 1)]))]);
    assert!(matches!(rig.unit.kicked(2), Err(UnitError::Guest(_))));
    let mut rig = Rig::all();
    rig.drivers[2].add(&[Buffer::Readable(vec![0; 651])]);
    assert!(matches!(rig.unit.kicked(2), Err(UnitError::Guest(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is inflated, reported and excluded, in any order: exactly the right pages go.
    #[test]
    fn discarded_pages_are_those_of_the_model(
        steps in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec((0..PAGES, 0_u64..12), 1..30)), 1..6),
        excluded in proptest::collection::vec((0..PAGES, 0_u64..20), 0..4),
        offset in 0_u32..4096,
    ) {
        let excluded: Vec<_> =
            excluded.iter().map(|(start, size)| (*start, (start + size).min(PAGES))).collect();
        let is_excluded = |page: &u64| excluded.iter().any(|(start, end)| (*start..*end).contains(page));
        let mut rig = Rig::new(ALL, &[0, 1, 2, 3, 4], anonymous(), &excluded);
        let mut model = BTreeSet::new();
        for (is_report, ranges) in steps {
            let ranges = ranges.iter().map(|(start, size)| *start..(start + size).min(PAGES));
            let ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
            if is_report {
                // From within the first page to the end of the last: the first does not go.
                let skipped = u64::from(offset > 0);
                let buffers: Vec<_> = ranges
                    .iter()
                    .map(|range| {
                        let size = u32::try_from((range.end - range.start) << 12).unwrap();
                        (rig.address(range.start).0 + u64::from(offset), size - offset)
                    })
                    .collect();
                if !buffers.is_empty() {
                    rig.report(4, &buffers);
                }
                model.extend(ranges.into_iter().flat_map(|range| range.start + skipped..range.end));
            } else {
                let pages: Vec<_> = ranges.into_iter().flatten().collect();
                if !pages.is_empty() {
                    rig.inflate(&frames(&pages)).unwrap();
                    prop_assert!(rig.drivers[0].take_used().is_some());
                }
                model.extend(pages);
            }
            let expected = model.iter().copied().filter(|page| !is_excluded(page));
            prop_assert_eq!(rig.zeroed(), expected.collect::<BTreeSet<_>>());
        }
    }
}

#[test]
fn a_restored_guest_s_balloon_is_as_it_was() {
    let mut rig = Rig::new(ALL, &[0, 1, 2, 4], anonymous(), &[]);
    let mut seen = vec![0; wire::CONFIG_SIZE];
    for (field, value) in [(wire::NUM_PAGES, 512_u32), (wire::ACTUAL, 300), (wire::POISON, 0xaa)] {
        seen[field].copy_from_slice(&value.to_le_bytes());
    }
    rig.device.restore_config(&seen).unwrap();
    assert_eq!((rig.handle.target(), rig.handle.actual()), (512 * 4096, 300 * 4096));
    assert_eq!(rig.device.shared.poison(), 0xaa);
    seen[wire::NUM_PAGES].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = rig.device.restore_config(&seen).unwrap_err().to_string();
    assert!(error.ends_with("in a machine of 67108864"), "{error}");
    assert_eq!(rig.handle.target(), 512 * 4096);
    rig.device.restore_config(&seen[1..]).unwrap_err();
}
