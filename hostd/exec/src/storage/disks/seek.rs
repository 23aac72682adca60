//! How long a disk takes to go somewhere: what turns takes milliseconds.
//!
//! The kernel's word that a disk does not turn is its maker's, and is believed. That it turns is also what
//! the kernel says if nobody told it otherwise, as of many virtual disks, controllers and bridges: then it
//! is measured, by reads at random places past all caches.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::storage::PoolKind;

/// Reads that are measured.
const READ_COUNT: usize = 48;
/// Bytes of each: what all disks can read past the caches.
const READ_SIZE: usize = 4096;
/// How long it takes at most, but for the last read.
const TIME_MAX: Duration = Duration::from_secs(3);
/// The quarter of all reads that are the fastest take less than this, if nothing turns. A disk of 7,200
/// turns a minute needs 4 ms for half of one; a busy SSD is not busy all the time.
const SEEK_TIME_MAX: Duration = Duration::from_millis(2);

/// What a disk is made of.
pub(super) fn kind(node: &Path, size: u64) -> io::Result<PoolKind> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
    let disk = File::options().read(true).custom_flags(flags).open(node)?;
    let mut times = measure(&disk, size)?;
    Ok(judged(&mut times))
}

fn judged(times: &mut [Duration]) -> PoolKind {
    times.sort_unstable();
    let quarter = times.get(times.len() / 4).copied().unwrap_or(Duration::MAX);
    if quarter < SEEK_TIME_MAX { PoolKind::Ssd } else { PoolKind::Hdd }
}

fn measure(disk: &File, size: u64) -> io::Result<Vec<Duration>> {
    let blocks = (size / READ_SIZE as u64).max(1);
    // What is read past the caches goes to memory that is aligned as the disk is.
    let mut memory = vec![0_u8; 2 * READ_SIZE];
    let begin = memory.as_ptr().align_offset(READ_SIZE).min(READ_SIZE);
    let buffer = &mut memory[begin..begin + READ_SIZE];
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    let mut chance = u64::from_le_bytes(seed);
    let (mut times, start) = (Vec::with_capacity(READ_COUNT), Instant::now());
    while times.len() < READ_COUNT && start.elapsed() < TIME_MAX {
        // Knuth's MMIX generator: the upper bits are good enough to go anywhere.
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let place = (chance >> 11) % blocks * READ_SIZE as u64;
        let before = Instant::now();
        disk.read_exact_at(buffer, place)?;
        times.push(before.elapsed());
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fast_every_now_and_then_does_not_turn() {
        let ms = Duration::from_millis;
        let turning: Vec<_> = (0..48).map(|read| ms(3 + read % 9)).collect();
        assert_eq!(judged(&mut turning.clone()), PoolKind::Hdd);
        // What its own cache holds is no proof.
        let mut cached = turning.clone();
        cached[..8].fill(Duration::from_micros(80));
        assert_eq!(judged(&mut cached), PoolKind::Hdd);
        let mut busy = turning;
        busy[..16].fill(Duration::from_micros(90));
        assert_eq!(judged(&mut busy), PoolKind::Ssd);
        assert_eq!(judged(&mut []), PoolKind::Hdd);
    }

    #[test]
    fn a_file_is_measured_within_the_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let start = Instant::now();
        let times = measure(file.as_file(), 64 << 20).unwrap();
        assert!(!times.is_empty() && times.len() <= READ_COUNT);
        assert!(start.elapsed() < TIME_MAX + Duration::from_secs(5));
    }
}
