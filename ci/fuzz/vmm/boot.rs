//! Kernels: ELF by either protocol, and `bzImage`.

use std::fs::File;
use std::io::Write;

use rustix::fs::MemfdFlags;
use vmm_machine::boot::{Boot, Entry, Image, Loading, load};
use vmm_machine::memory::layout::{CMDLINE_ADDRESS, Layout};
use vmm_machine::memory::{Backing, Ram};
use vmm_virtio::memory::{Bytes, GuestAddress};

use super::script::Script;

const MEMORY_MIB: u64 = 8;
const CMDLINE: &str = "console=ttyS0";

/// One byte says how it is loaded and whether there is an initramfs, the rest is the kernel.
pub(crate) fn boot(bytes: &[u8]) {
    let script = &mut Script::new(bytes);
    let how = script.byte();
    let boot = Boot {
        initramfs: (how & 2 != 0).then(|| image("initramfs", &[7; 5000])),
        loading: if how & 1 == 0 { Loading::Copy } else { Loading::Map },
        cmdline: CMDLINE.to_owned(),
        kernel: image("kernel", script.rest()),
    };
    let layout = Layout::new(MEMORY_MIB, 40).expect("a sound size");
    let mut ram = Ram::new(layout, Backing::Anonymous { huge_pages: false }).expect("memory");
    match load(&boot, &mut ram) {
        Ok(Entry::Linux64 { address } | Entry::Pvh { address }) => {
            assert!((1 << 20..MEMORY_MIB << 20).contains(&address), "{address:#x}");
            let mut cmdline = [0; CMDLINE.len()];
            ram.memory().read_slice(&mut cmdline, GuestAddress(CMDLINE_ADDRESS)).expect("memory");
            assert_eq!(cmdline, CMDLINE.as_bytes(), "no kernel reaches what is ours");
        }
        Err(error) => drop(error.to_string()),
    }
}

fn image(name: &str, bytes: &[u8]) -> Image {
    let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).expect("memory"));
    file.write_all(bytes).expect("memory");
    Image { file, name: name.to_owned() }
}
