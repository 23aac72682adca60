//! The cache under damage, crashes, rivals and want of space.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use flist_view::block::{BlockError, BlockKey, BlockSource};
use tempfile::TempDir;

use super::*;
use crate::block::Codec;

const CIPHER: BlockCipher = BlockCipher::Aes256Gcm;
const SMALL: Config = Config { size_max: SIZE_MAX_MIN, free_min: 0 };

/// A block of `size` bytes that only depends on its arguments.
fn sample(number: u32, size: usize) -> (BlockRef, Vec<u8>) {
    let mut state = u64::from(number) + 1;
    let plaintext: Vec<u8> = (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56).try_into().unwrap()
        })
        .collect();
    (Codec::new().encode(&plaintext).0, plaintext)
}

fn insert(cache: &Cache, number: u32, size: usize) -> Handout {
    let (block, plaintext) = sample(number, size);
    cache.insert(&Verified::check(CIPHER, &block, &plaintext).unwrap()).unwrap()
}

fn contents(data: &BlockData) -> Vec<u8> {
    let mut bytes = vec![0; data.size as usize];
    data.file.read_exact_at(&mut bytes, data.offset).unwrap();
    bytes
}

/// Whether the block is there; panics if what is there is not the block.
fn has(cache: &Cache, number: u32, size: usize) -> bool {
    let (block, plaintext) = sample(number, size);
    match cache.get(CIPHER, &block).unwrap() {
        None => false,
        Some(handout) => {
            assert!(contents(&handout.data) == plaintext, "block {number} has other contents");
            true
        }
    }
}

/// Waits until a block that another process inserted is there.
fn wait_for(cache: &Cache, number: u32, size: usize) {
    let begin = Instant::now();
    while !has(cache, number, size) {
        assert!(begin.elapsed() < Duration::from_secs(20), "block {number} does not appear");
        thread::sleep(flusher::FLUSH_INTERVAL);
    }
}

fn opened(directory: &TempDir) -> Cache {
    Cache::open(directory.path(), SMALL).unwrap()
}

/// The only file of a kind in a cache with one segment.
fn only_file(directory: &TempDir, kind: &str) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == kind))
        .collect();
    assert_eq!(files.len(), 1);
    files.pop().unwrap()
}

/// Files may go while they are counted.
fn disk_bytes(directory: &TempDir) -> u64 {
    let size = |entry: fs::DirEntry| entry.metadata().map_or(0, |metadata| metadata.len());
    fs::read_dir(directory.path()).unwrap().map(|entry| size(entry.unwrap())).sum()
}

#[test]
fn blocks_of_every_size_survive_reopening_and_are_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let sizes = [0, 1, 63, 64, 65, 4096, 65_535, 65_536, 100_000, 524_288];
    let cache = opened(&directory);
    for _ in 0..2 {
        for (number, size) in (0..).zip(sizes) {
            insert(&cache, number, size);
        }
    }
    assert_eq!(cache.statistics().inserted_blocks, sizes.len() as u64);
    drop(cache);
    let cache = opened(&directory);
    for (number, size) in (0..).zip(sizes) {
        let (block, _) = sample(number, size);
        assert!(matches!(cache.find(CIPHER, &block).unwrap(), Found::Unchecked));
        assert!(has(&cache, number, size));
        assert!(matches!(cache.find(CIPHER, &block).unwrap(), Found::Ready(_)));
    }
    assert_eq!(cache.statistics().blocks, sizes.len() as u64);
    assert_eq!(cache.statistics().bad_blocks, 0);
}

#[test]
fn ciphers_do_not_share_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let cache = opened(&directory);
    insert(&cache, 1, 100);
    let (block, _) = sample(1, 100);
    assert!(cache.get(BlockCipher::Xxtea, &block).unwrap().is_none());
}

#[test]
fn a_wrong_key_is_refused_before_and_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let cache = opened(&directory);
    insert(&cache, 1, 100);
    let (block, _) = sample(1, 100);
    let wrong = BlockRef { key: BlockKey([7; 32]), ..block };
    assert!(matches!(cache.get(CIPHER, &wrong), Err(CacheError::Key(id)) if id == block.id));
    assert!(matches!(cache.find(CIPHER, &wrong), Err(CacheError::Key(_))));
    assert_eq!(cache.statistics().refused_keys, 2);
    drop(cache);
    let cache = opened(&directory);
    assert!(cache.get(CIPHER, &wrong).unwrap().is_none(), "an unchecked entry proves nothing");
    assert!(has(&cache, 1, 100));
    assert!(cache.get(CIPHER, &wrong).is_err());
}

#[test]
fn plaintext_that_is_not_the_keys_is_never_verified() {
    let (block, mut plaintext) = sample(1, 100);
    plaintext[50] ^= 1;
    assert!(Verified::check(CIPHER, &block, &plaintext).is_err());
    assert!(Verified::check(CIPHER, &block, &vec![0; 524_289]).is_err());
}

/// Writes one segment of small blocks, then lets `damage` spoil a copy of one of its files at each
/// position; whatever a cache then finds must be right. Returns the fewest blocks found.
fn fewest_found_after_damage(kind: &str, damage: impl Fn(&mut Vec<u8>, usize)) -> u32 {
    const BLOCKS: u32 = 6;
    const SIZE: usize = 40;
    let directory = tempfile::tempdir().unwrap();
    let cache = opened(&directory);
    for number in 0..BLOCKS {
        insert(&cache, number, SIZE);
    }
    drop(cache);
    let path = only_file(&directory, kind);
    let whole = fs::read(&path).unwrap();
    let twin = only_file(&directory, if kind == "index" { "blocks" } else { "index" });
    let twin_bytes = fs::read(&twin).unwrap();
    let mut fewest = BLOCKS;
    for position in 0..whole.len() {
        let mut bytes = whole.clone();
        damage(&mut bytes, position);
        for (path, bytes) in [(&path, &bytes), (&twin, &twin_bytes)] {
            // The cache may have removed either, and one of them is read-only.
            let _ = fs::remove_file(path);
            fs::write(path, bytes).unwrap();
        }
        let cache = opened(&directory);
        let found = (0..BLOCKS).filter(|number| has(&cache, *number, SIZE)).count();
        fewest = fewest.min(found.try_into().unwrap());
    }
    fewest
}

#[test]
fn an_index_with_any_byte_changed_never_lies() {
    assert_eq!(fewest_found_after_damage("index", |bytes, at| bytes[at] ^= 0x10), 0);
}

#[test]
fn an_index_cut_off_anywhere_never_lies() {
    assert_eq!(fewest_found_after_damage("index", Vec::truncate), 0);
}

#[test]
fn data_with_any_byte_changed_costs_one_block() {
    assert_eq!(fewest_found_after_damage("blocks", |bytes, at| bytes[at] ^= 0x10), 5);
}

#[test]
fn data_cut_off_anywhere_never_lies() {
    assert_eq!(fewest_found_after_damage("blocks", Vec::truncate), 0);
}

#[test]
fn data_that_never_reached_the_disk_before_the_power_went_never_lies() {
    assert_eq!(fewest_found_after_damage("blocks", |bytes, at| bytes[at..].fill(0)), 0);
}

#[test]
fn a_damaged_block_is_forgotten_counted_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    insert(&opened(&directory), 1, 1000);
    let path = only_file(&directory, "blocks");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::options().write(true).open(&path).unwrap().write_all_at(b"?", 500).unwrap();
    let cache = opened(&directory);
    assert!(!has(&cache, 1, 1000));
    assert!(!has(&cache, 1, 1000));
    assert_eq!(cache.statistics().bad_blocks, 1);
    insert(&cache, 1, 1000);
    assert!(has(&cache, 1, 1000));
    drop(cache);
    assert!(has(&opened(&directory), 1, 1000), "the younger of two entries counts");
}

#[test]
fn handed_out_files_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let on_disk = insert(&opened(&directory), 1, 10);
    let full = Config { free_min: u64::MAX, ..SMALL };
    let elsewhere = tempfile::tempdir().unwrap();
    let in_memory = insert(&Cache::open(elsewhere.path(), full).unwrap(), 2, 10);
    for handout in [on_disk, in_memory] {
        assert!(handout.data.file.write_at(b"x", 0).is_err());
    }
    let mode = only_file(&directory, "blocks").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o400);
}

#[test]
fn the_bound_on_disk_holds_at_every_step_and_used_blocks_stay() {
    let directory = tempfile::tempdir().unwrap();
    let cache = opened(&directory);
    let retired = cache.watch_retired();
    for number in 0..400 {
        insert(&cache, number, 60_000);
        assert!(has(&cache, 0, 60_000), "used all the time, after {number}");
        assert!(disk_bytes(&directory) <= SMALL.size_max, "after {number}");
    }
    let statistics = cache.statistics();
    assert!(statistics.evicted_segments >= 15, "{statistics:?}");
    assert!(statistics.disk_bytes <= SMALL.size_max);
    assert!(statistics.carried_blocks > 0);
    assert!(!has(&cache, 1, 60_000), "the oldest unused block is gone");
    assert!(has(&cache, 399, 60_000));
    assert_eq!(retired.try_iter().count() as u64, statistics.evicted_segments);
}

#[test]
fn tiny_blocks_do_not_swell_the_index() {
    let directory = tempfile::tempdir().unwrap();
    let cache = opened(&directory);
    for number in 0..1100 {
        insert(&cache, number, 8);
    }
    assert_eq!(cache.statistics().segments, 2, "1 MiB holds 1024 entries at most");
    assert!((0..1100).all(|number| has(&cache, number, 8)));
}

#[test]
fn two_caches_in_one_directory_see_each_others_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let caches = [opened(&directory), opened(&directory)];
    thread::scope(|scope| {
        for (first, cache) in (0..).zip(&caches) {
            scope.spawn(move || (0..150).for_each(|i| drop(insert(cache, first * 100 + i, 5000))));
        }
    });
    for cache in &caches {
        (0..250).for_each(|number| wait_for(cache, number, 5000));
    }
    assert!((0..250).all(|number| has(&opened(&directory), number, 5000)));
}

#[test]
fn a_segment_that_another_process_writes_is_not_evicted() {
    let directory = tempfile::tempdir().unwrap();
    let idle = opened(&directory);
    insert(&idle, 0, 1000);
    let busy = opened(&directory);
    wait_for(&busy, 0, 1000);
    (1..200).for_each(|number| drop(insert(&busy, number, 60_000)));
    assert!(busy.statistics().evicted_segments > 0);
    assert!(has(&opened(&directory), 0, 1000));
    assert!(disk_bytes(&directory) <= SMALL.size_max);
}

#[test]
fn a_segment_that_a_rival_evicted_is_noticed_and_its_descriptor_stays_good() {
    let directory = tempfile::tempdir().unwrap();
    let cache = opened(&directory);
    insert(&cache, 0, 1000);
    cache.settle(cache.writing().disk.take());
    let held = cache.get(CIPHER, &sample(0, 1000).0).unwrap().unwrap();
    let rival = opened(&directory);
    (1..200).for_each(|number| drop(insert(&rival, number, 60_000)));
    thread::sleep(NEWS_INTERVAL);
    assert!(!has(&cache, 1_000_000, 10), "a miss brings the news");
    assert!(!has(&cache, 0, 1000));
    assert_eq!(contents(&held.data), sample(0, 1000).1);
}

const CHILD_DIRECTORY: &str = "FLIST_TEST_CACHE_CHILD";
const CHILD_BLOCKS: u32 = 3000;

/// Not a test of its own: the body of the processes that the tests below start.
#[test]
fn child_process() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let cache = Cache::open(directory.as_ref(), SMALL).unwrap();
    (0..CHILD_BLOCKS).for_each(|number| drop(insert(&cache, number, 1 + number as usize * 7)));
}

fn spawn_child(directory: &TempDir) -> std::process::Child {
    // Not by name: the file may have been replaced by a newer build.
    Command::new("/proc/self/exe")
        .args(["--exact", "cache::tests::child_process"])
        .env(CHILD_DIRECTORY, directory.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn writers_killed_at_any_moment_leave_a_sound_cache() {
    let directory = tempfile::tempdir().unwrap();
    let mut most_found = 0;
    for round in 0..12 {
        let before = disk_bytes(&directory);
        let mut children = [spawn_child(&directory), spawn_child(&directory)];
        let deadline = Instant::now() + Duration::from_secs(20);
        while disk_bytes(&directory) == before && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(round * 9));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let cache = opened(&directory);
        let found = (0..400).filter(|number| has(&cache, *number, 1 + *number as usize * 7));
        most_found = most_found.max(found.count());
        assert_eq!(cache.statistics().bad_blocks, 0, "a kill alone damages no block");
        assert!(disk_bytes(&directory) <= SMALL.size_max, "round {round}");
    }
    assert!(most_found > 0, "the children wrote something");
}

/// Fetches by number, slowly enough that others join, and fails while told to.
struct FakeStores {
    fetched: AtomicU64,
    failing: AtomicBool,
}

impl Fetch for FakeStores {
    fn fetch(
        &self,
        _codec: &mut Codec,
        cipher: BlockCipher,
        block: &BlockRef,
    ) -> Result<Verified<'static>, BlockError> {
        self.fetched.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(200));
        if self.failing.load(Ordering::SeqCst) {
            let reason = "stores are away".to_owned();
            return Err(BlockError::Unavailable { id: block.id, reason });
        }
        Ok(Verified::fetched(cipher, *block, sample(5, 3000).1))
    }
}

#[test]
fn many_requests_for_one_missing_block_cause_one_fetch_and_errors_are_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let stores =
        Arc::new(FakeStores { fetched: AtomicU64::new(0), failing: AtomicBool::new(true) });
    let source = LocalSource::new(Arc::new(opened(&directory)), stores.clone(), CIPHER);
    let (block, plaintext) = sample(5, 3000);
    let all_ask = || {
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                source.block(0, &block)
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        })
    };
    assert!(all_ask().iter().all(Result::is_err));
    assert_eq!(stores.fetched.load(Ordering::SeqCst), 1);
    stores.failing.store(false, Ordering::SeqCst);
    let answers = all_ask();
    assert!(answers.iter().all(|answer| contents(answer.as_ref().unwrap()) == plaintext));
    assert_eq!(stores.fetched.load(Ordering::SeqCst), 2);
    assert!(all_ask().iter().all(Result::is_ok));
    assert_eq!(stores.fetched.load(Ordering::SeqCst), 2, "cached now");
}

#[test]
fn without_free_space_blocks_are_served_from_bounded_memory() {
    let directory = tempfile::tempdir().unwrap();
    let full = Config { size_max: SIZE_MAX_MIN, free_min: u64::MAX };
    let cache = Cache::open(directory.path(), full).unwrap();
    for number in 0..100 {
        let handout = insert(&cache, number, 500_000);
        assert_eq!(contents(&handout.data), sample(number, 500_000).1);
    }
    let statistics = cache.statistics();
    assert_eq!(statistics.memory_blocks, 100);
    assert_eq!(statistics.segments, MEMORY_SEGMENT_COUNT_MAX as u64);
    assert_eq!(disk_bytes(&directory), 0, "nothing but an empty lock file");
    assert!(has(&cache, 99, 500_000));
    assert!(!has(&cache, 0, 500_000));
}

/// Unmounts when a test ends, however it ends.
struct Mounted<'a>(&'a std::path::Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Needs root for a small file system; elsewhere the test above covers the same paths.
#[test]
fn a_disk_that_fills_up_under_the_writer_degrades_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let options = Some(c"size=5m");
    let flags = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("tmpfs", directory.path(), "tmpfs", flags, options).is_err() {
        return;
    }
    let _mounted = Mounted(directory.path());
    let cache = opened(&directory);
    insert(&cache, 0, 10_000);
    let filler = directory.path().join("filler");
    let _ = fs::write(&filler, vec![0; 6 << 20]).unwrap_err();
    for number in 1..20 {
        let handout = insert(&cache, number, 100_000);
        assert_eq!(contents(&handout.data), sample(number, 100_000).1);
    }
    assert!(cache.statistics().memory_blocks >= 18);
    assert!(has(&cache, 0, 10_000) && has(&cache, 1, 100_000) && has(&cache, 19, 100_000));
    fs::remove_file(&filler).unwrap();
    cache.writing().disk_suspended = Some(Instant::now());
    let before = cache.statistics().memory_blocks;
    insert(&cache, 50, 100_000);
    assert_eq!(cache.statistics().memory_blocks, before);
    assert!(has(&cache, 50, 100_000));
    assert!(!has(&cache, 19, 100_000), "memory is given back");
}

#[test]
fn a_cache_that_is_too_small_or_no_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let tiny = Config { size_max: SIZE_MAX_MIN - 1, ..SMALL };
    assert!(matches!(Cache::open(directory.path(), tiny), Err(CacheError::Size(_))));
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Cache::open(&file, SMALL), Err(CacheError::Directory { .. })));
}
