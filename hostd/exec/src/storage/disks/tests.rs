//! Disks in memory, on which a plug is pulled at every moment.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;

use super::claim::Place;
use super::found::Partition;
use super::gpt::{Copies, Geometry, LINUX, MAKING, POOL, Table};
use super::judge::PART_SIZE_MIN;
use super::testing::{Logged, Memory};
use super::*;

const SIZE: u64 = 64 << 30;
const MIB: u64 = 1 << 20;

/// A machine with one disk.
struct Machine {
    disk: Rc<Memory>,
    device: Device,
    /// What was formatted, and how often.
    formatted: RefCell<Vec<Place>>,
    ids: RefCell<u8>,
}

impl Machine {
    fn new(disk: Memory) -> Self {
        let device = Device {
            name: "vda".to_owned(),
            size: SIZE,
            sector: 512,
            is_rotational: true,
            refusal: None,
            user: None,
            serial: None,
            identity: None,
            partitions: Vec::new(),
        };
        let (formatted, ids) = (RefCell::default(), RefCell::new(0));
        Self { disk: Rc::new(disk), device, formatted, ids }
    }

    fn prepare(&self) -> io::Result<Outcome> {
        prepare_one(self, "vda")
    }

    fn copies(&self) -> Copies {
        Copies::read(&self.disk, geometry()).unwrap()
    }

    fn table(&self) -> Table {
        let copies = self.copies();
        assert_eq!(copies.primary(), copies.backup());
        copies.primary().unwrap().clone()
    }
}

impl Kernel for Machine {
    type Disk = Rc<Memory>;

    fn device(&self, _: &str) -> io::Result<Option<Device>> {
        Ok(Some(self.device.clone()))
    }

    fn open(&self, _: &str) -> io::Result<Rc<Memory>> {
        Ok(Rc::clone(&self.disk))
    }

    fn hold(&self, _: &str) -> io::Result<Rc<Memory>> {
        Ok(Rc::clone(&self.disk))
    }

    fn reread(&self, disk: &Rc<Memory>, _: &str) -> io::Result<()> {
        // The kernel wants a first sector of that kind, and a first copy.
        let mut first = [0; 512];
        disk.read_at(&mut first, 0)?;
        assert!(gpt::is_protective(&first));
        assert!(self.copies().primary().is_some());
        Ok(())
    }

    fn format(&self, _: &str, place: Place, _: Guid) -> io::Result<()> {
        // What a half-made file system leaves looks like anything.
        self.disk.write_at(&[0xab; 512], place.start + 8192)?;
        self.disk.write_at(&[0x53, 0xef], place.start + 1024 + 0x38)?;
        self.disk.sync()?;
        self.formatted.borrow_mut().push(place);
        Ok(())
    }

    fn new_id(&self) -> io::Result<Guid> {
        *self.ids.borrow_mut() += 1;
        Ok(Guid::from_random([*self.ids.borrow(); 16]))
    }
}

fn geometry() -> Geometry {
    Geometry::new(SIZE, 512).unwrap()
}

/// A disk that somebody has partitions on, with these first and last MiB.
fn foreign(parts: &[(u64, u64, Guid)]) -> Memory {
    let disk = Memory::new(SIZE);
    let mut table = Table::of_our_own(Guid::from_random([0xee; 16]), geometry());
    let template = table.entries[0];
    table.entries[0] = table.entries[1];
    for (index, (first, last, kind)) in parts.iter().enumerate() {
        table.entries[index] = template;
        table = table.with_kind(index, *kind);
        table.entries[index].set_place(first * 2048, last * 2048 - 1);
    }
    table.write(&disk, geometry()).unwrap();
    disk
}

fn pool_of(machine: &Machine) -> (Guid, usize) {
    match machine.prepare().unwrap() {
        Outcome::Pool(id, number) => (id, number),
        Outcome::Left(reason) => panic!("left alone: {reason}"),
    }
}

fn reason_of(machine: &Machine) -> String {
    let before = machine.disk.log().len();
    let reason = match machine.prepare().unwrap() {
        Outcome::Left(reason) => reason,
        Outcome::Pool(..) => panic!("it became a pool"),
    };
    assert_eq!(machine.disk.log().len(), before, "a disk that is left alone was written");
    assert!(machine.formatted.borrow().is_empty());
    reason
}

#[test]
fn a_blank_disk_becomes_a_pool_once() {
    let machine = Machine::new(Memory::new(SIZE));
    let (id, number) = pool_of(&machine);
    assert_eq!(number, 1);
    let expected = Place { number: 1, start: MIB, size: SIZE - 2 * MIB };
    assert_eq!(*machine.formatted.borrow(), [expected]);
    let table = machine.table();
    assert_eq!((table.entries[0].kind(), table.entries[0].id()), (POOL, id));
    let written = machine.disk.log().len();
    assert_eq!(pool_of(&machine), (id, 1));
    assert_eq!(machine.disk.log().len(), written);
    assert_eq!(label(id).len(), 12);
}

/// Whatever was written since the last sync may be there or not.
#[test]
fn a_plug_pulled_anywhere_leaves_a_disk_that_is_gone_on_with() {
    for begin in [
        Memory::new(SIZE),
        foreign(&[(1, 1000, LINUX), (2000, 2001, LINUX)]),
        foreign(&[(1, 61_000, LINUX)]),
    ] {
        let others: Vec<_> = Copies::read(&begin, geometry())
            .map(|copies| copies.primary().map(|table| table.entries.clone()))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.is_used())
            .collect();
        let machine = Machine::new(begin.after());
        pool_of(&machine);
        let log = machine.disk.log();
        assert!(log.len() > 8);
        for end in 0..=log.len() {
            let synced = log[..end].iter().rposition(|one| *one == Logged::Sync).unwrap_or(0);
            let late = end - synced;
            // All of what came last, or any part of it, by the bits of a number.
            for lost in 0..1_u32 << late.min(6) {
                let mut kept = log[..synced].to_vec();
                let late = log[synced..end].iter().enumerate();
                kept.extend(late.filter(|(at, _)| lost >> at & 1 == 0).map(|(_, one)| one.clone()));
                let disk = begin.after();
                disk.replay(&kept);
                let was_pool = is_pool(&disk);
                let again = Machine::new(disk);
                let (_, number) = pool_of(&again);
                assert_eq!(pool_of(&again).1, number);
                let count = again.formatted.borrow().len();
                assert!(count <= usize::from(!was_pool), "formatted {count} times at {end}");
                let table = again.table();
                let kept = others.iter().filter(|entry| table.entries.contains(entry)).count();
                // A blank partition of theirs may have become ours.
                assert!(kept + 1 >= others.len() && table.is_sound());
            }
        }
    }
}

/// Whether any copy says so.
fn is_pool(disk: &Memory) -> bool {
    let copies = Copies::read(disk, geometry()).unwrap();
    [copies.primary(), copies.backup()]
        .into_iter()
        .flatten()
        .any(|table| table.find(POOL).is_some())
}

#[test]
fn what_holds_anything_is_left_alone() {
    for (place, bytes, reason) in [
        (1080, &[0x53, 0xef][..], "it holds ext4"),
        (65_600, b"_BHRfS_M", "it holds btrfs"),
        (SIZE - 0x1_0000, &[0xfc, 0x4e, 0x2b, 0xa9], "it holds a part of a RAID array"),
        (77_777, b"x", "it holds something; zeros at its begin and end would free it"),
        (SIZE - 1, b"x", "it holds something; zeros at its begin and end would free it"),
    ] {
        let disk = Memory::new(SIZE);
        disk.write_at(bytes, place).unwrap();
        assert_eq!(reason_of(&Machine::new(disk)), reason);
    }
    // What looks like ours, but for one byte that we never wrote.
    let disk = Memory::new(SIZE);
    Table::of_our_own(Guid::from_random([1; 16]), geometry()).write(&disk, geometry()).unwrap();
    disk.write_at(&[0; 512], 512).unwrap();
    disk.write_at(b"x", 5000).unwrap();
    assert!(reason_of(&Machine::new(disk)).starts_with("it holds"));
}

#[test]
fn a_disk_in_use_or_of_another_kind_is_left_alone() {
    let mut machine = Machine::new(Memory::new(SIZE));
    machine.device.refusal = Some("it is on USB");
    assert_eq!(reason_of(&machine), "it is on USB");
    machine.device.refusal = None;
    machine.device.user = Some("vda1 is in use".to_owned());
    assert_eq!(reason_of(&machine), "vda1 is in use");
    machine.device.user = None;
    machine.device.sector = 520;
    assert!(reason_of(&machine).contains("sectors of another size"));
    machine.device.sector = 512;
    machine.device.size = 512 * MIB;
    assert_eq!(reason_of(&machine), "it is too small");
    machine.device.size = SIZE;
    let (id, number) = pool_of(&machine);
    // A pool of ours is one, whether it is mounted or not; not on USB.
    machine.device.user = Some("vda1 is in use".to_owned());
    assert_eq!(pool_of(&machine), (id, number));
    machine.device.refusal = Some("it is on USB");
    assert_eq!(machine.prepare().unwrap(), Outcome::Left("it is on USB".to_owned()));
}

#[test]
fn of_a_disk_with_partitions_the_largest_free_piece_is_taken() {
    // 5 GiB free at most: between 1 and 7 GiB; then a blank partition that is larger.
    let boot = Guid::from_random([9; 16]);
    let machine = Machine::new(foreign(&[(1, 1024, boot), (7168, 65_535, boot)]));
    machine.disk.write_at(b"ZOSPXE", 2 * MIB).unwrap();
    let before = machine.table();
    let (id, number) = pool_of(&machine);
    assert_eq!(number, 3);
    let after = machine.table();
    assert_eq!(after.entries[..2], before.entries[..2]);
    assert_eq!(after.entries[2].id(), id);
    let place = Place { number: 3, start: 1024 * MIB, size: 6144 * MIB };
    assert_eq!(*machine.formatted.borrow(), [place]);
    assert!(place.size >= PART_SIZE_MIN);

    let machine = Machine::new(foreign(&[(1, 61_000, LINUX)]));
    assert_eq!(pool_of(&machine).1, 1);
    // A partition of Linux with something in it is somebody's; so is a blank one of another type.
    let machine = Machine::new(foreign(&[(1, 61_000, LINUX)]));
    machine.disk.write_at(b"XFSB", MIB).unwrap();
    assert_eq!(reason_of(&machine), "others have partitions on it, and no 5 GiB are free");
    let machine = Machine::new(foreign(&[(1, 61_000, boot)]));
    assert_eq!(reason_of(&machine), "others have partitions on it, and no 5 GiB are free");
}

#[test]
fn disks_with_an_mbr_are_left_alone_and_their_farmer_is_told_how_they_are_used() {
    // A boot partition, a blank one for Linux, and 40 GiB free.
    let entry = |kind: u8, first: u32, count: u32| {
        let mut entry = [0; 16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..].copy_from_slice(&count.to_le_bytes());
        entry
    };
    let used = [entry(0x0c, 2048, 1 << 20), entry(0x83, 2 << 20, 40 << 20)];
    for entries in [&used[..], &used[1..], &[]] {
        let disk = Memory::new(SIZE);
        for (index, entry) in entries.iter().enumerate() {
            disk.write_at(entry, 446 + 16 * index as u64).unwrap();
        }
        disk.write_at(&[0x55, 0xaa], 510).unwrap();
        let reason = reason_of(&Machine::new(disk));
        assert!(reason.starts_with("it has an MBR") && reason.contains("sgdisk"), "{reason}");
    }
    // What stands before a GPT that is broken is none; nor is the first sector of a file system.
    let disk = Memory::new(SIZE);
    disk.write_at(&entry(0xee, 1, u32::MAX), 446).unwrap();
    disk.write_at(&[0x55, 0xaa], 510).unwrap();
    assert_eq!(reason_of(&Machine::new(disk)), "it holds a partition table");
    let disk = Memory::new(SIZE);
    disk.write_at(b"FAT32   ", 82).unwrap();
    disk.write_at(&[0x55, 0xaa], 510).unwrap();
    assert_eq!(reason_of(&Machine::new(disk)), "it holds FAT");
}

#[test]
fn a_table_that_is_not_what_it_seems_is_left_alone() {
    let two = |disk: &Memory| Copies::read(disk, geometry()).unwrap().primary().unwrap().clone();
    // Partitions that overlap.
    let disk = foreign(&[(1, 1000, LINUX), (900, 2000, LINUX)]);
    assert_eq!(reason_of(&Machine::new(disk)), "its partitions overlap");
    // An MBR that has partitions, too.
    let disk = foreign(&[(1, 1000, LINUX)]);
    disk.write_at(&[0x83], 446 + 16 + 4).unwrap();
    assert_eq!(reason_of(&Machine::new(disk)), "it has partitions of two kinds");
    // Copies that differ in what others have.
    let disk = foreign(&[(1, 1000, LINUX)]);
    let mut other = two(&disk);
    other.entries[0].set_place(4096, 8191);
    let moved = Memory::new(SIZE);
    other.write(&moved, geometry()).unwrap();
    let mut backup = vec![0; 33 * 512];
    moved.read_at(&mut backup, SIZE - 33 * 512).unwrap();
    disk.write_at(&backup, SIZE - 33 * 512).unwrap();
    assert_eq!(reason_of(&Machine::new(disk)), "the copies of its partition table differ");
    // A copy that is damaged, on a disk that is not ours.
    let disk = foreign(&[(1, 1000, LINUX)]);
    disk.write_at(&[1], SIZE - 512 + 60).unwrap();
    assert!(reason_of(&Machine::new(disk)).starts_with("it holds"));
}

#[test]
fn a_pool_whose_type_was_lost_is_not_made_anew() {
    let machine = Machine::new(Memory::new(SIZE));
    let (id, _) = pool_of(&machine);
    // Mounted once, after which the disk forgets its last writes.
    machine.disk.write_at(&[1, 2, 3, 4], MIB + 1024 + 0x2c).unwrap();
    machine.table().with_kind(0, MAKING).write(&machine.disk, geometry()).unwrap();
    assert_eq!(pool_of(&machine), (id, 1));
    assert_eq!(machine.formatted.borrow().len(), 1);
    assert_eq!(machine.table().entries[0].kind(), POOL);
}

#[test]
fn disks_of_4_kib_sectors_have_their_table_where_it_belongs() {
    let mut machine = Machine::new(Memory::new(SIZE));
    machine.device.sector = 4096;
    let geometry = Geometry::new(SIZE, 4096).unwrap();
    let table = Table::of_our_own(Guid::from_random([7; 16]), geometry);
    table.write(&machine.disk, geometry).unwrap();
    let copies = Copies::read(&machine.disk, geometry).unwrap();
    assert_eq!(copies.agreed(), Some(&table));
    assert_eq!((table.entries[0].first(), table.free(geometry)), (256, vec![]));
}

#[test]
fn what_others_read_is_what_we_mean() {
    let id = Guid::from_random(std::array::from_fn(|index| u8::try_from(index).unwrap()));
    assert_eq!(id.to_string(), "03020100-0504-4706-8809-0a0b0c0d0e0f");
    assert_eq!(LINUX.to_string(), "0fc63daf-8483-4772-8e79-3d69d8477de4");
    assert_eq!(label(id), "zos-03020100");
}

#[test]
fn copies_of_a_disk_are_told_from_ways_to_it() {
    let id = Guid::from_random([1; 16]);
    let device = |name: &str, identity: Option<&str>| Device {
        name: name.to_owned(),
        // A controller of NVMe gives all its disks the same.
        serial: Some("serial".to_owned()),
        identity: identity.map(str::to_owned),
        partitions: Vec::<Partition>::new(),
        ..Machine::new(Memory::new(SIZE)).device
    };
    let outcomes = || [Ok(Outcome::Pool(id, 1)), Ok(Outcome::Pool(id, 1))];
    let one = [device("sda", Some("wwn")), device("sdb", Some("wwn"))];
    assert_eq!(copies(&one, &outcomes())[&id], "sda");
    let two = [device("sda", Some("wwn")), device("sdb", Some("other"))];
    assert_eq!(copies(&two, &outcomes())[&id], "");
    let unknown = [device("sda", None), device("sdb", None)];
    assert_eq!(copies(&unknown, &outcomes())[&id], "");
}

#[test]
fn pools_that_are_gone_are_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let (file, mounts) = (folder.path().join("pools.json"), Path::new("/mnt"));
    let pool = |name: &str, kind| PoolConfig {
        name: name.to_owned(),
        path: mounts.join(name),
        kind,
        size_max: None,
        mount_point: true,
    };
    let mut pools = vec![pool("zos-1", PoolKind::Ssd), pool("zos-2", PoolKind::Hdd)];
    let all = pools.clone();
    remember(&file, mounts, &mut pools).unwrap();
    assert_eq!(pools, all);
    pools.remove(1);
    pools.push(pool("zos-3", PoolKind::Ssd));
    remember(&file, mounts, &mut pools).unwrap();
    let names: Vec<_> = pools.iter().map(|pool| (&*pool.name, pool.kind)).collect();
    let (ssd, hdd) = (PoolKind::Ssd, PoolKind::Hdd);
    assert_eq!(names, [("zos-1", ssd), ("zos-3", ssd), ("zos-2", hdd)]);
    fs::write(&file, "[]").unwrap();
    assert!(remember(&file, mounts, &mut pools).is_err());
}
