//! Disks and files: reads whose cost is counted, and data that is written and found again.
//!
//! Reads go past the page cache, so that each is a request to the device. One at a time they are
//! `pread`; several at a time go through io_uring, each completion followed by a new request.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Context, Result, bail, ensure};
use io_uring::{IoUring, opcode, types};
use memmap2::MmapMut;
use rustix::fs::{OFlags, SeekFrom, seek};

use crate::pattern::{Numbers, fill, first_difference};
use crate::tsc;

/// The most reads at a time.
const DEPTH_MAX: usize = 256;
/// The largest read, in bytes.
const READ_SIZE_MAX: usize = 1 << 20;
/// What is written at a time, in bytes.
const PIECE_SIZE: usize = 256 << 10;

/// Where reads go.
#[derive(Clone, Copy)]
enum Order {
    Random,
    Sequential,
}

/// `read-disk DEVICE SIZE DEPTH COUNT random|sequential`: prints what the reads took.
pub(crate) fn read(device: &str, size: &str, depth: &str, count: &str, order: &str) -> Result<()> {
    let (size, depth, count) = (size.parse()?, depth.parse()?, count.parse()?);
    let order = match order {
        "random" => Order::Random,
        "sequential" => Order::Sequential,
        _ => bail!("no order {order:?}: random or sequential"),
    };
    ensure!((1..=DEPTH_MAX).contains(&depth), "a depth of {depth}: 1 to {DEPTH_MAX}");
    ensure!((512..=READ_SIZE_MAX).contains(&size), "reads of {size}: 512 to {READ_SIZE_MAX}");
    let file = open(device, false)?;
    let blocks = file_size(&file)? / size as u64;
    ensure!(blocks > 0, "{device} is smaller than {size} bytes");
    let mut reads = Reads { numbers: Numbers::new(1), order, next: 0, blocks, size };
    // Once without counting: buffers, page tables, and the device's first steps.
    reads.run(&file, depth, depth.max(8))?;
    let start = tsc::now();
    reads.run(&file, depth, count)?;
    let taken = tsc::now() - start;
    println!("read-disk {size} {depth}: {count} requests, {taken} instructions");
    Ok(())
}

struct Reads {
    numbers: Numbers,
    order: Order,
    next: u64,
    blocks: u64,
    size: usize,
}

impl Reads {
    fn offset(&mut self) -> u64 {
        let block = match self.order {
            Order::Random => self.numbers.below(self.blocks),
            Order::Sequential => self.next % self.blocks,
        };
        self.next += 1;
        block * self.size as u64
    }

    fn run(&mut self, file: &File, depth: usize, count: usize) -> Result<()> {
        if depth > 1 {
            return self.run_ring(file, depth, count);
        }
        // A mapping is aligned as direct reads need it.
        let mut buffer = MmapMut::map_anon(self.size)?;
        for _ in 0..count {
            let offset = self.offset();
            file.read_exact_at(&mut buffer, offset).with_context(|| format!("at {offset}"))?;
        }
        Ok(())
    }

    fn run_ring(&mut self, file: &File, depth: usize, count: usize) -> Result<()> {
        let mut buffers = MmapMut::map_anon(self.size * depth)?;
        let mut ring = IoUring::new(u32::try_from(depth)?)?;
        let mut free: Vec<usize> = (0..depth).collect();
        let (mut begun, mut ended) = (0, 0);
        while ended < count {
            while begun < count
                && let Some(slot) = free.pop()
            {
                let buffer = &mut buffers[slot * self.size..(slot + 1) * self.size];
                let size = u32::try_from(self.size)?;
                let read =
                    opcode::Read::new(types::Fd(file.as_raw_fd()), buffer.as_mut_ptr(), size);
                let entry = read.offset(self.offset()).build().user_data(slot as u64);
                // SAFETY: the buffer is in `buffers`, which outlives the ring's requests: all of them
                // have ended when this function returns, except when the ring itself fails, which
                // ends the process.
                unsafe { ring.submission().push(&entry) }.context("the ring is full")?;
                begun += 1;
            }
            ring.submit_and_wait(1).expect("a ring of our own works");
            for completion in ring.completion() {
                let is_whole = usize::try_from(completion.result()) == Ok(self.size);
                assert!(is_whole, "a read gave {}", completion.result());
                free.push(usize::try_from(completion.user_data()).expect("one of our slots"));
                ended += 1;
            }
        }
        Ok(())
    }
}

/// `check-disk DEVICE`: fills it, and reads everything back in another order and other pieces.
pub(crate) fn check(device: &str) -> Result<()> {
    const READ_SIZE: usize = 48 << 10;
    let file = open(device, true)?;
    let size = file_size(&file)? / PIECE_SIZE as u64 * PIECE_SIZE as u64;
    let mut buffer = MmapMut::map_anon(PIECE_SIZE)?;
    for offset in (0..size).step_by(PIECE_SIZE) {
        fill(&mut buffer, offset, 7);
        file.write_all_at(&buffer, offset).with_context(|| format!("writing at {offset}"))?;
    }
    file.sync_all().context("flushing")?;
    let offsets: Vec<u64> = (0..size).step_by(READ_SIZE).collect();
    for &offset in offsets.iter().rev() {
        let length = usize::try_from(size - offset)?.min(READ_SIZE);
        let part = &mut buffer[..length];
        file.read_exact_at(part, offset).with_context(|| format!("reading at {offset}"))?;
        if let Some(at) = first_difference(part, offset, 7) {
            bail!("{device}: other data at {at}");
        }
    }
    println!("check-disk: {size} bytes");
    Ok(())
}

/// `read-file PATH`: prints what reading it took.
pub(crate) fn read_file(path: &str) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("opening {path}"))?;
    let mut buffer = vec![0; READ_SIZE_MAX];
    let (mut total, start) = (0, tsc::now());
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            size => total += size,
        }
    }
    println!("read-file: {total} bytes, {} instructions", tsc::now() - start);
    Ok(())
}

/// `write-file PATH SIZE`: writes it with a flush, and reads it back.
pub(crate) fn write_file(path: &str, size: &str) -> Result<()> {
    let size: usize = size.parse::<usize>()? / 8 * 8;
    ensure!(size <= 256 << 20, "a file of {size} bytes is too much");
    let mut bytes = vec![0; size];
    fill(&mut bytes, 0, 9);
    let file = File::create(path).with_context(|| format!("creating {path}"))?;
    file.write_all_at(&bytes, 0).context("writing")?;
    file.sync_all().context("flushing")?;
    check_file(path, size)
}

/// Whether a file of that size is as [`write_file`] left it.
fn check_file(path: &str, size: usize) -> Result<()> {
    let found = std::fs::read(path).with_context(|| format!("reading {path}"))?;
    ensure!(found.len() == size, "{path} has {} bytes, not {size}", found.len());
    ensure!(first_difference(&found, 0, 9).is_none(), "{path} holds other data");
    println!("write-file: {path}, {size} bytes");
    Ok(())
}

fn open(device: &str, is_written: bool) -> Result<File> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(is_written).custom_flags(flags);
    options.open(device).with_context(|| format!("opening {device}"))
}

fn file_size(file: &File) -> Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}
