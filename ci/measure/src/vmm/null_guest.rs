//! Kernels of a few instructions: one marks that it runs, and asks for a reset; one sleeps for ever.

use lab::MARK_LEAF;

/// The mark, as an operand.
const LEAF: [u8; 4] = MARK_LEAF.to_le_bytes();
/// Where it is loaded, and entered.
const ADDRESS: u64 = 0x100_0000;
#[rustfmt::skip]
const CODE: [u8; 15] = [
    0xb8, LEAF[0], LEAF[1], LEAF[2], LEAF[3], // mov eax, MARK_LEAF
    0x0f, 0xa2,       // cpuid
    0xb0, 0xfe,       // mov al, 0xfe
    0xe6, 0x64,       // out 0x64, al: the keyboard controller pulls the reset line
    0xf4,             // hlt
    0xeb, 0xfd,       // jmp to it
    0x90,
];

/// Interrupts are off when a kernel is entered, so nothing ever wakes this one.
#[rustfmt::skip]
const SLEEPER: [u8; 3] = [
    0xf4,       // hlt
    0xeb, 0xfd, // jmp to it
];

/// The kernel that marks that it runs.
pub(super) fn elf() -> Vec<u8> {
    elf_of(&CODE)
}

/// The kernel that sleeps.
pub(crate) fn sleeper() -> Vec<u8> {
    elf_of(&SLEEPER)
}

/// An ELF file of one segment, entered by Linux' 64-bit protocol.
fn elf_of(code: &[u8]) -> Vec<u8> {
    const HEADERS_SIZE: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    half(&mut file, &[2, 62]); // executable, x86-64
    word(&mut file, 1);
    long(&mut file, &[ADDRESS, 64, 0]); // entry, program headers, no sections
    word(&mut file, 0);
    half(&mut file, &[64, 56, 1, 0, 0, 0]);
    word(&mut file, 1); // to be loaded
    word(&mut file, 5); // read and execute
    let size = code.len() as u64;
    long(&mut file, &[HEADERS_SIZE, ADDRESS, ADDRESS, size, size, 4096]);
    file.extend(code);
    file
}
