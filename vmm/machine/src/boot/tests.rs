//! Loading as a whole: what ends up where, and what is refused.

use std::io::Write;

use proptest::prelude::*;
use vmm_virtio::memory::{Bytes, GuestAddress};

use super::bzimage::tests::bzimage;
use super::elf::tests::{elf, pvh_note};
use super::*;
use crate::memory::layout::MIB;
use crate::memory::{Backing, Layout};

fn image(name: &str, bytes: &[u8]) -> Image {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Image { file, name: name.to_owned() }
}

fn ram(memory_mib: u64) -> Ram {
    Ram::new(Layout::new(memory_mib, 40).unwrap(), Backing::default()).unwrap()
}

fn boot(kernel: &[u8], initramfs: Option<&[u8]>, loading: Loading) -> Boot {
    Boot {
        kernel: image("kernel", kernel),
        initramfs: initramfs.map(|bytes| image("initramfs", bytes)),
        cmdline: "console=ttyS0".to_owned(),
        loading,
    }
}

fn bytes(ram: &Ram, address: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    ram.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn word(ram: &Ram, address: u64) -> u64 {
    ram.memory().read_obj(GuestAddress(address)).unwrap()
}

#[test]
fn both_ways_of_loading_give_the_same_memory() {
    let code: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8 + 1).collect();
    let initramfs = vec![0x77; 9000];
    for loading in [Loading::Copy, Loading::Map] {
        let mut ram = ram(32);
        let boot = boot(&elf(0x20_0000, &code, &[]), Some(&initramfs), loading);
        assert_eq!(load(&boot, &mut ram).unwrap(), Entry::Linux64 { address: 0x20_0000 });
        assert_eq!(bytes(&ram, 0x20_0000, code.len()), code);
        assert_eq!(bytes(&ram, 0x20_0000 + 10_000, 0x2000), [0; 0x2000], "beyond the file's part");
        let start = 32 * MIB - 3 * PAGE_SIZE;
        assert_eq!(bytes(&ram, start, 9000), initramfs);
        assert_eq!(bytes(&ram, start + 9000, 3288), [0; 3288]);
        assert_eq!(bytes(&ram, CMDLINE_ADDRESS, 14), b"console=ttyS0\0");
        assert_eq!(word(&ram, BOOT_PARAMETERS_ADDRESS + 0x218) & 0xffff_ffff, start);
        assert_eq!(word(&ram, BOOT_PARAMETERS_ADDRESS + 0x250), SEED_ADDRESS);
        assert_ne!(bytes(&ram, SEED_ADDRESS + 16, 32), [0; 32]);
    }
}

#[test]
fn each_machine_gets_a_seed_of_its_own() {
    let seed = || {
        let mut ram = ram(8);
        load(&boot(&elf(0x20_0000, &[0xf4], &[]), None, Loading::Copy), &mut ram).unwrap();
        bytes(&ram, SEED_ADDRESS + 16, 32)
    };
    assert_ne!(seed(), seed());
}

#[test]
fn a_unikernel_is_entered_by_pvh() {
    let mut ram = ram(8);
    let kernel = elf(0x10_0000, &[0xf4], &pvh_note(0x10_0000));
    let entry = load(&boot(&kernel, Some(b"module"), Loading::Copy), &mut ram).unwrap();
    assert_eq!(entry, Entry::Pvh { address: 0x10_0000 });
    assert_eq!(word(&ram, BOOT_PARAMETERS_ADDRESS), 0x1_336e_c578);
    assert_eq!(word(&ram, BOOT_PARAMETERS_ADDRESS + 0x40), 8 * MIB - PAGE_SIZE);
}

#[test]
fn a_bzimage_is_entered_at_its_64_bit_entry_point() {
    let mut ram = ram(32);
    let kernel = bzimage(0x100_0000, 0x40_0000, &[0x90; 0x1000]);
    let entry = load(&boot(&kernel, None, Loading::Map), &mut ram).unwrap();
    assert_eq!(entry, Entry::Linux64 { address: 0x100_0200 });
    assert_eq!(bytes(&ram, 0x100_0000, 0x1001), [&[0x90; 0x1000][..], &[0]].concat());
    assert_eq!(bytes(&ram, BOOT_PARAMETERS_ADDRESS + 0x202, 4), b"HdrS");
}

#[test]
fn what_has_no_room_is_refused_by_name() {
    let error = |boot: &Boot, memory_mib| load(boot, &mut ram(memory_mib)).unwrap_err().to_string();
    for address in [0, 0x9000, 0xf_ffff, 8 * MIB, 8 * MIB - 0x2000, 3 << 30, 1 << 40] {
        let kernel = elf(address, &[0xf4; 16], &[]);
        let error = error(&boot(&kernel, None, Loading::Map), 8);
        assert!(error.starts_with("kernel: a segment of 0x2010 bytes at"), "{error}");
    }
    let kernel = elf(0x20_0000, &[0xf4], &[]);
    let large = vec![1; 7 << 20];
    let text = error(&boot(&kernel, Some(&large), Loading::Map), 8);
    assert!(text.starts_with("initramfs: an initramfs of 7340032 bytes"), "{text}");
    let kernel = bzimage(0x100_0000, 0x4000_0000, &[0x90; 0x400]);
    assert!(error(&boot(&kernel, None, Loading::Copy), 64).contains("0x40000000 bytes"));
    assert!(error(&boot(b"#!/bin/sh", None, Loading::Copy), 8).contains("neither"));
    assert!(error(&boot(b"", None, Loading::Copy), 8).contains("neither"));
}

#[test]
fn command_lines_are_bounded_and_one_line() {
    let with = |cmdline: &str| {
        let mut boot = boot(&elf(0x20_0000, &[0xf4], &[]), None, Loading::Copy);
        boot.cmdline = cmdline.to_owned();
        load(&boot, &mut ram(8))
    };
    assert!(with(&"x".repeat(2047)).is_ok());
    let error = with(&"x".repeat(2048)).unwrap_err().to_string();
    assert!(error.contains("2048 bytes") && error.contains("at most 2047"), "{error}");
    for cmdline in ["a\0b", "a\nb"] {
        assert!(with(cmdline).unwrap_err().to_string().contains("byte 1"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn hostile_kernels_neither_panic_nor_reach_what_is_ours(
        changes in prop::collection::vec((4..176_usize, any::<u8>()), 0..6),
        map in any::<bool>(),
    ) {
        let mut kernel = elf(0x20_0000, &[0xf4; 5000], &pvh_note(0x20_0000));
        for (at, value) in changes {
            kernel[at] = value;
        }
        let mut ram = ram(8);
        let loading = if map { Loading::Map } else { Loading::Copy };
        if load(&boot(&kernel, None, loading), &mut ram).is_ok() {
            prop_assert_eq!(bytes(&ram, CMDLINE_ADDRESS, 14), b"console=ttyS0\0");
        }
    }
}
