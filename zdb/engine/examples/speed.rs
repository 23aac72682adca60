//! What the engine costs: CPU time a write and a read, memory and disk a key, CPU time of a start.
//!
//! `cargo run --release -p zdb-engine --example speed [KEYS [FOLDER]]`. Keys have 16 bytes, values
//! 64; batches have 800 requests, as 50 clients with a pipeline of 16 make them. A folder on tmpfs
//! shows the engine, another one the disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use zdb_engine::storage::Disk;
use zdb_engine::{Compaction, Durability, Engine, Name, Namespace, Options, Settings};

const BATCH_SIZE: u64 = 800;
const VALUE_SIZE: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().map_or(Ok(1_000_000), |text| text.parse::<u64>())?;
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("zdb-speed-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let result = measure(count, &folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn measure(count: u64, folder: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::new(folder.join("data"), folder.join("index"));
    let engine = Engine::open(Arc::new(Disk), options)?;
    let name = Name::new(b"speed")?;
    let settings = Settings { durability: Durability::None, ..Settings::default() };
    let mut namespace = engine.create(&name, settings)?;
    let memory = resident_size()?;
    let each = |nanoseconds: u64| nanoseconds / count;

    let set = timed(|| write_all(&mut namespace, count, 1, false));
    println!("set, new keys        {:>7} ns of CPU", each(set));
    println!("memory               {:>7} B a key", (resident_size()? - memory) / count);
    println!("index                {:>7} B a key", namespace.stats().index_memory_size / count);
    let get = timed(|| read_all(&mut namespace, count));
    println!("get                  {:>7} ns of CPU", each(get));
    namespace.close()?;
    println!("disk                 {:>9.1} B a key", disk_size(folder)? as f64 / count as f64);

    let mut loaded = None;
    let start = timed(|| loaded = engine.load(&name).ok());
    let mut namespace = loaded.ok_or("it can't be loaded")?;
    println!("start                {:>7} ms of CPU", start / 1_000_000);
    let set = timed(|| write_all(&mut namespace, count, 2, false));
    println!("set, old keys        {:>7} ns of CPU", each(set));
    let set = timed(|| write_all(&mut namespace, count, 3, true));
    println!("set, and compaction  {:>7} ns of CPU", each(set));
    let stats = namespace.stats();
    let ratio = stats.data_file_size as f64 / stats.live_record_size as f64;
    println!("files / live data    {ratio:>9.2}");
    namespace.close()?;
    for file in std::fs::read_dir(folder.join("index/speed"))? {
        std::fs::remove_file(file?.path())?;
    }
    let start = timed(|| drop(engine.load(&name)));
    println!("start by full scan   {:>7} ms of CPU", start / 1_000_000);
    Ok(())
}

/// Keys in an order that is not theirs.
fn key(number: u64) -> [u8; 16] {
    (u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(number))
        .to_le_bytes()
}

fn write_all(namespace: &mut Namespace, count: u64, round: u8, compact: bool) {
    let value = [round; VALUE_SIZE];
    for number in 0..count {
        namespace.set(&key(number), &value, 0).expect("a write");
        if number % BATCH_SIZE == 0 {
            namespace.commit(Duration::ZERO).expect("a batch");
            if compact {
                let step = namespace.compact_step(BATCH_SIZE * 200, 0).expect("a step");
                let _: Compaction = step;
            }
        }
    }
    namespace.commit(Duration::ZERO).expect("a batch");
}

fn read_all(namespace: &mut Namespace, count: u64) {
    let mut reply = Vec::new();
    for number in 0..count {
        let random = number.wrapping_mul(7_919_777) % count;
        namespace.get(&key(random), usize::MAX, &mut reply, |_, _| {}).expect("a read");
        if reply.len() > 64 * 1024 {
            reply.clear();
        }
    }
}

/// Nanoseconds of CPU time.
fn timed(work: impl FnOnce()) -> u64 {
    let now = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or_default()
    };
    let start = now();
    work();
    now() - start
}

/// Bytes of memory in use.
fn resident_size() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.unwrap_or_default() * rustix::param::page_size() as u64)
}

/// Bytes of a folder's files, without the engine's own.
fn disk_size(folder: &std::path::Path) -> std::io::Result<u64> {
    let mut size = 0;
    for part in ["data/speed", "index/speed"] {
        for file in std::fs::read_dir(folder.join(part))? {
            size += file?.metadata()?.len();
        }
    }
    Ok(size)
}
