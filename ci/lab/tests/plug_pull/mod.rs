//! ZDB on a machine whose plug is pulled while clients write.
//!
//! ```text
//!  this host                            machine
//!  writers ── TCP ──> port 9900 ──────> zdb ── ext4 ── /dev/vda ── QEMU ──> image, and log of writes
//!     └─ what was acknowledged                                      ✂
//!  image := all that was flushed, and any of the other sectors  <───┘
//!  the next boot: nothing acknowledged may be missing, nothing may be wrong
//! ```
//!
//! QEMU's image alone would prove little: what a dead machine wrote without a flush is in this host's page
//! cache. So the disk is rebuilt from the log of its writes as a real one may be left: what came before the
//! last flush is there, and each sector written later is there or not, by chance. Sectors are those of
//! today's disks, 4 KiB: in smaller pieces, ext4's own superblock may be torn, which it does not survive.
//! What ZDB makes of half a sector is proven on the engine's simulated disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Disk, Lab, Machine, MachineBuilder, Running, WriteLog};
use zdb_client::{Client, Endpoint, Timeouts};

use crate::guest_files::{succeed, zdb};

const DISK_MIB: u64 = 96;
const SECTOR_SIZE: usize = 4096;
const PORT: u16 = 9900;
/// Where the server's program is in the machine.
const PROGRAM: &str = "/zdb";
/// Writers at the same time, each with keys of its own.
const WRITER_COUNT: u64 = 3;
/// Keys of a writer: few, so that they are overwritten and deleted.
const KEY_COUNT: u64 = 40;
/// Writes that one writer has under way.
const BATCH_COUNT: u64 = 8;
/// Largest value, in bytes.
const VALUE_SIZE_MAX: u64 = 6000;
/// How long a machine and its server may take to start, on a host with other things to do.
const START_MAX: Duration = Duration::from_secs(300);
/// What a boot and a round of writing take together, at most.
const LIFE: Duration = Duration::from_secs(600);
const FOLDERS: [&str; 4] = ["--data", "/disk/data", "--index", "/disk/index"];

/// What a key may hold: a version, or nothing.
type State = Option<u64>;

/// What is known of a key.
#[derive(Debug, Default)]
struct Key {
    /// What was acknowledged last.
    acknowledged: State,
    /// What was sent after it, in order; any of it may have happened.
    sent: Vec<State>,
}

type Keys = BTreeMap<String, Key>;

/// Pulls the plug so many times.
pub(crate) fn pull(name: &str, rounds: u64) {
    let lab = Lab::new(name).unwrap();
    let disk = lab.disk("data", DISK_MIB).unwrap().logged();
    succeed(Command::new("/sbin/mkfs.ext4").args(["-q", "-F"]).arg(disk.path()));
    let builder = lab.machine("node").cpus(1).memory_mib(512).modules(&["ext4"]).host_network();
    let builder = builder.disk(&disk).life(LIFE).boot_timeout(START_MAX);
    // Its libraries come with the program; its own place may be one that the machine has for itself.
    let builder = builder.program(zdb()).host_file(PROGRAM, 0o755, zdb());
    let mut chance = Chance(0x5eed);
    let mut keys = Keys::new();
    let mut acknowledged_count = 0;
    for round in 0..rounds {
        let before = std::fs::read(disk.path()).unwrap();
        let node = Node::boot(&builder);
        node.check(&mut keys, round);
        acknowledged_count += node.write_until_the_plug_is_pulled(&mut keys, round, &mut chance);
        leave_what_was_flushed(&disk, before, &mut chance);
    }
    let node = Node::boot(&builder);
    node.check(&mut keys, rounds);
    node.end_well();
    eprintln!("{rounds} plugs pulled, {acknowledged_count} writes acknowledged, none lost");
    assert!(acknowledged_count >= rounds * 20, "too little was written: {acknowledged_count}");
}

/// A machine with a server.
struct Node {
    machine: Machine,
    server: Running,
    endpoint: Endpoint,
}

impl Node {
    fn boot(builder: &MachineBuilder) -> Self {
        let machine = builder.clone().boot().unwrap();
        machine.run(&["/init", "mount", "ext4", "/dev/vda", "/disk"]).unwrap().success().unwrap();
        let port = PORT.to_string();
        let words = [&[PROGRAM], &FOLDERS[..]].concat();
        // Small files and reserve: segments end, and garbage is compacted, within a round.
        let flags =
            ["--listen", "0.0.0.0", "--port", &port, "--datasize", "512K", "--reserve", "1M"];
        let words = [&words[..], &flags[..]].concat();
        let server = machine.command(&words).timeout(LIFE).spawn().unwrap();
        let address = machine.forward_tcp(PORT).unwrap();
        let endpoint = Endpoint::Tcp(address.ip().to_string(), address.port());
        let node = Self { machine, server, endpoint };
        let begin = Instant::now();
        // QEMU takes connections before the server does, and hangs up.
        while node.connect().and_then(|mut client| client.ping()).is_err() {
            assert!(begin.elapsed() < START_MAX, "the server does not start");
            if node.server.has_ended(Duration::from_millis(100)).unwrap() {
                panic!("the server ended: {:?}", node.server.wait());
            }
        }
        node
    }

    fn connect(&self) -> Result<Client, zdb_client::ClientError> {
        Client::connect(&self.endpoint, &Timeouts::default())
    }

    /// Every key holds what was acknowledged, or what was sent after it.
    fn check(&self, keys: &mut Keys, round: u64) {
        let mut client = self.connect().unwrap();
        let names: Vec<String> = keys.keys().cloned().collect();
        for names in names.chunks(16) {
            let values = client.get_batch(names).unwrap();
            for (name, value) in names.iter().zip(values) {
                let key = keys.get_mut(name).unwrap();
                let states = || [key.acknowledged].into_iter().chain(key.sent.iter().copied());
                let found = states().find(|state| {
                    state.map(|version| value_of(name, version)).as_ref() == value.as_ref()
                });
                let Some(found) = found else {
                    let start = value.as_ref().map(|bytes| bytes[..bytes.len().min(40)].to_vec());
                    panic!("after {round} plugs {name} is {start:?}, but {key:?} was written");
                };
                // What is there once more stays there.
                *key = Key { acknowledged: found, sent: Vec::new() };
            }
        }
    }

    /// Writes for a while, then the machine is off at once. Gives how many writes were acknowledged.
    fn write_until_the_plug_is_pulled(
        &self,
        keys: &mut Keys,
        round: u64,
        chance: &mut Chance,
    ) -> u64 {
        let shares = (0..WRITER_COUNT).map(|writer| {
            let mut share = Keys::new();
            for number in 0..KEY_COUNT {
                let name = format!("{writer}-{number}");
                let key = keys.remove(&name).unwrap_or_default();
                share.insert(name, key);
            }
            (share, Chance(round << 8 | writer))
        });
        let shares: Vec<_> = shares.collect();
        let (begun, has_begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let writers: Vec<_> = shares
                .into_iter()
                .map(|(share, chance)| {
                    let (client, begun) = (self.connect().unwrap(), begun.clone());
                    scope.spawn(move || write(client, share, round, chance, &begun))
                })
                .collect();
            for _ in 0..WRITER_COUNT {
                has_begun.recv_timeout(START_MAX).expect("a writer is acknowledged something");
            }
            std::thread::sleep(Duration::from_millis(200 + chance.below(1500)));
            self.machine.power_cut();
            let mut acknowledged_count = 0;
            for writer in writers {
                let (share, count) = writer.join().unwrap();
                keys.extend(share);
                acknowledged_count += count;
            }
            acknowledged_count
        })
    }

    /// The server ends by a signal, and its folders are whole.
    fn end_well(self) {
        self.server.signal(15).unwrap();
        self.server.wait().unwrap().success().unwrap();
        let verify = [&[PROGRAM, "verify"], &FOLDERS[..]].concat();
        let verified = self.machine.run(&verify).unwrap().success().unwrap().text();
        assert!(verified.contains(" 0 damaged records"), "{verified}");
        self.machine.shutdown().unwrap();
    }
}

/// Writes batches until the connection breaks.
fn write(
    mut client: Client,
    mut keys: Keys,
    round: u64,
    mut chance: Chance,
    begun: &std::sync::mpsc::Sender<()>,
) -> (Keys, u64) {
    let names: Vec<String> = keys.keys().cloned().collect();
    let mut acknowledged_count = 0;
    for batch in 0.. {
        let mut requests = Vec::new();
        let mut changed = Vec::new();
        for number in 0..BATCH_COUNT {
            let name = &names[usize::try_from(chance.below(names.len() as u64)).unwrap()];
            let key = keys.get_mut(name).unwrap();
            let exists = key.sent.last().copied().unwrap_or(key.acknowledged).is_some();
            let version = round << 40 | batch << 8 | number;
            let words: Vec<Vec<u8>> = if exists && chance.below(6) == 0 {
                key.sent.push(None);
                vec![b"DEL".to_vec(), name.clone().into_bytes()]
            } else {
                key.sent.push(Some(version));
                vec![b"SET".to_vec(), name.clone().into_bytes(), value_of(name, version)]
            };
            requests.push(words);
            changed.push(name.clone());
        }
        if client.call_batch(&requests).is_err() {
            break;
        }
        for name in changed {
            let key = keys.get_mut(&name).unwrap();
            if let Some(last) = key.sent.last().copied() {
                *key = Key { acknowledged: last, sent: Vec::new() };
            }
        }
        acknowledged_count += BATCH_COUNT;
        if batch == 0 {
            begun.send(()).unwrap();
        }
    }
    (keys, acknowledged_count)
}

/// Rebuilds the disk: what was flushed is there, each sector written later is there or not.
fn leave_what_was_flushed(disk: &Disk, before: Vec<u8>, chance: &mut Chance) {
    let log = WriteLog::open(disk.log_path().unwrap()).unwrap();
    let image = tempfile::tempfile().unwrap();
    image.write_all_at(&before, 0).unwrap();
    drop(before);
    log.replay(0, log.entries().len(), &image).unwrap();
    let disk = File::options().read(true).write(true).open(disk.path()).unwrap();
    let (mut flushed, mut written) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for mib in 0..DISK_MIB {
        image.read_exact_at(&mut flushed, mib << 20).unwrap();
        disk.read_exact_at(&mut written, mib << 20).unwrap();
        if flushed == written {
            continue;
        }
        let sectors = written.chunks_exact_mut(SECTOR_SIZE).zip(flushed.chunks_exact(SECTOR_SIZE));
        for (written, flushed) in sectors.filter(|(written, flushed)| written != flushed) {
            if chance.below(2) == 0 {
                written.copy_from_slice(flushed);
            }
        }
        disk.write_all_at(&written, mib << 20).unwrap();
    }
}

/// A value that says whose it is, and fills some sectors.
fn value_of(name: &str, version: u64) -> Vec<u8> {
    let mut chance = Chance(version);
    let size = usize::try_from(chance.below(VALUE_SIZE_MAX)).unwrap();
    let mut value = format!("{name} {version} ").into_bytes();
    while value.len() < size {
        value.extend_from_slice(&chance.below(u64::MAX).to_le_bytes());
    }
    value
}

/// A small generator of numbers, good enough for choices.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
