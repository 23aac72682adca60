//! What a fuzzer does with the bytes of a snapshot's state: whatever a VMM does with them before there
//! is a machine, and the devices that take their share of them.
//!
//! Shared by the fuzz target and by `vmm/machine/tests/fuzz_corpus.rs`, like `harness.rs`.

use std::path::PathBuf;
use std::sync::Arc;

use vmm_machine::snapshot::SavedVm;
use vmm_spec::restore::{OwnFlags, RestoreClock, RestoreMemory, RestoreSpec};
use vmm_virtio::Device;
use vmm_virtio::balloon::{Balloon, BalloonOptions};
use vmm_virtio::console::Console;
use vmm_virtio::pci::testing::{Echo, FakeHost, Inline};
use vmm_virtio::pci::{Executor, Function, Host, Parts, Pvpanic, Transport};
use vmm_virtio::rng::Rng;

/// Guest memory that rings may lie in.
const MEMORY_SIZE: usize = 1 << 20;

/// The JSON of a state file. A header that fits is put before it, since no fuzzer guesses checksums.
pub(crate) fn snapshot(json: &[u8]) {
    read(json);
    let Some(saved) = read(&with_header(json)) else { return };
    let restore = RestoreSpec {
        snapshot: PathBuf::new(),
        memory: RestoreMemory::Lazy,
        clock: RestoreClock::Advance,
        verify: false,
        paused: false,
        own: OwnFlags::default(),
    };
    if let Err(error) = restore.apply(saved.spec().clone()) {
        let _ = (error.to_string(), error.hint());
    }
    for state in saved.functions().values() {
        for device in devices() {
            transport(device, state);
        }
        let mut pvpanic = Pvpanic::new(|_| {});
        let _ = pvpanic.restore(state.clone());
    }
}

pub(crate) fn read(bytes: &[u8]) -> Option<SavedVm> {
    // Messages must be made without harm, too.
    SavedVm::from_bytes(bytes).map_err(|error| error.to_string()).ok()
}

/// As `vmm/machine/src/snapshot/FORMAT.md` has it.
pub(crate) fn with_header(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"ZOSVMSNP\x01\0\0\0\0\0\0\0".to_vec();
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn devices() -> Vec<Box<dyn Device>> {
    let balloon = Balloon::new(BalloonOptions {
        memory_size: MEMORY_SIZE as u64,
        deflates_on_oom: true,
        has_reporting: true,
        excluded: Vec::new(),
    });
    vec![
        Box::new(Echo::new(2).0),
        Box::new(Rng::new()),
        Box::new(balloon.expect("a descriptor")),
        Box::new(Console::new(80, 25, Vec::new()).expect("a descriptor")),
    ]
}

/// Restores a device, runs it, and saves it again.
fn transport(device: Box<dyn Device>, state: &serde_json::Value) {
    let executor = Arc::new(Inline::default());
    let mut transport = Transport::new(Parts {
        name: "fuzzed".to_owned(),
        device,
        memory: vmm_virtio::testing::memory(MEMORY_SIZE),
        executor: Arc::clone(&executor) as Arc<dyn Executor>,
        host: Arc::new(FakeHost::default()) as Arc<dyn Host>,
    });
    if transport.restore(state.clone()).is_err() {
        return;
    }
    transport.resume();
    executor.run();
    transport.pause().expect("units that run here stop at once");
    transport.save().expect("what was taken can be given");
}
