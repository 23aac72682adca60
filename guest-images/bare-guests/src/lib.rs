//! Tiny bare-metal guests that exercise KVM and device models without a kernel.
//!
//! Each is a handful of x86 machine code with a known outcome, so that a test can tell "KVM
//! works here" or "this exit costs that much" from a second of a kernel's boot. The lab runs
//! them inside its machines, a VMM's tests run them on whatever `/dev/kvm` there is.
//!
//! # Layout
//!
//! All guests share one layout of [`MEMORY_SIZE`] bytes at guest-physical address 0:
//!
//! | address | what |
//! |---|---|
//! | 0x1000 | code; execution begins at its first byte |
//! | 0x7ff0 | initial stack pointer, growing down |
//! | 0x8000 | the result, a little-endian `u64`, zero at first |
//! | 0x9000 | page map level 4, one entry |
//! | 0xa000 | page directory pointer table, two entries |
//! | 0xb000 | page directory: 512 pages of 2 MiB, the first GiB mapped to itself |
//! | 0xc000 | page directory: the same for the fourth GiB, where devices are |
//!
//! The page tables are used by [`Mode::Long`] guests only. Whoever runs a guest sets the
//! registers: in [`Mode::Real`] all segment bases and selectors 0, in [`Mode::Long`] flat 64-bit
//! segments, `CR3` = [`PAGE_TABLE_ADDRESS`]; `RFLAGS` = 2 (interrupts off) in both.
//!
//! A guest ends by `hlt`. Its text goes to port [`SERIAL_PORT`], byte by byte, with no look at
//! the line status. There is no interrupt table: a fault is a triple fault.

#![forbid(unsafe_code)]

pub mod pci;

/// Guest memory, in bytes, from address 0.
pub const MEMORY_SIZE: usize = 0x1_0000;
/// Where code is, and begins to run.
pub const CODE_ADDRESS: u64 = 0x1000;
/// The initial stack pointer.
pub const STACK_ADDRESS: u64 = 0x7ff0;
/// Where a guest leaves its result.
pub const RESULT_ADDRESS: u64 = 0x8000;
/// Where the page tables begin: the value for `CR3`.
pub const PAGE_TABLE_ADDRESS: u64 = 0x9000;
/// The first serial port's data register.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The port that [`EXITS`] writes to; firmware uses it for progress codes.
pub const EXIT_PORT: u8 = 0x80;

/// How the virtual CPU is to be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit real mode.
    Real,
    /// 64-bit long mode, paging on, the first and the fourth GiB mapped to themselves.
    Long,
}

/// A guest: its code, and what it does when all is well.
#[derive(Debug, Clone, Copy)]
pub struct BareGuest {
    /// What it is called on a command line.
    pub name: &'static str,
    /// How its CPU starts.
    pub mode: Mode,
    /// The machine code at [`CODE_ADDRESS`].
    pub code: &'static [u8],
    /// What it writes to [`SERIAL_PORT`].
    pub serial: &'static [u8],
    /// What it leaves at [`RESULT_ADDRESS`].
    pub result: u64,
    /// Whether it ends; [`SPIN`] doesn't.
    pub halts: bool,
}

impl BareGuest {
    /// Guest memory as it must be before the first instruction.
    #[must_use]
    pub fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; MEMORY_SIZE];
        put(&mut memory, CODE_ADDRESS, self.code);
        const PRESENT_WRITABLE: u64 = 0b11;
        const LARGE: u64 = 1 << 7;
        put(&mut memory, 0x9000, &(0xa000 | PRESENT_WRITABLE).to_le_bytes());
        for (directory, gib) in [(0xb000, 0), (0xc000, 3)] {
            put(&mut memory, 0xa000 + gib * 8, &(directory | PRESENT_WRITABLE).to_le_bytes());
            for page in 0..512 {
                let entry = gib << 30 | page << 21 | PRESENT_WRITABLE | LARGE;
                put(&mut memory, directory + page * 8, &entry.to_le_bytes());
            }
        }
        memory
    }

    /// The result that a guest left in its memory; `None` if the memory is too small.
    #[must_use]
    pub fn result_in(memory: &[u8]) -> Option<u64> {
        let at = usize::try_from(RESULT_ADDRESS).ok()?;
        memory.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
    }
}

/// All guests.
pub const ALL: &[BareGuest] = &[HELLO, COUNT, EXITS, SPIN];

/// The guest of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static BareGuest> {
    ALL.iter().find(|guest| guest.name == name)
}

/// Writes a line to the serial port: one exit a character.
pub const HELLO: BareGuest = BareGuest {
    name: "hello",
    mode: Mode::Real,
    #[rustfmt::skip]
    code: &[
        0xba, 0xf8, 0x03,       // 1000: mov dx, 0x3f8
        0xbe, 0x0f, 0x10,       // 1003: mov si, 0x100f
        0xac,                   // 1006: lodsb
        0x84, 0xc0,             // 1007: test al, al
        0x74, 0x03,             // 1009: jz 0x100e
        0xee,                   // 100b: out dx, al
        0xeb, 0xf8,             // 100c: jmp 0x1006
        0xf4,                   // 100e: hlt
        b'h', b'e', b'l', b'l', b'o', b'\n', 0, // 100f
    ],
    serial: b"hello\n",
    result: 0,
    halts: true,
};

/// Counts to 100,000 in long mode: what guest code costs when nothing exits.
pub const COUNT: BareGuest = BareGuest {
    name: "count",
    mode: Mode::Long,
    #[rustfmt::skip]
    code: &[
        0xb9, 0xa0, 0x86, 0x01, 0x00,                   // 1000: mov ecx, 100000
        0x31, 0xc0,                                     // 1005: xor eax, eax
        0x48, 0xff, 0xc0,                               // 1007: inc rax
        0xff, 0xc9,                                     // 100a: dec ecx
        0x75, 0xf9,                                     // 100c: jnz 0x1007
        0x48, 0x89, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, // 100e: mov [0x8000], rax
        0xf4,                                           // 1016: hlt
    ],
    serial: b"",
    result: 100_000,
    halts: true,
};

/// Writes 1,000 times to [`EXIT_PORT`]: what an exit costs.
pub const EXITS: BareGuest = BareGuest {
    name: "exits",
    mode: Mode::Long,
    #[rustfmt::skip]
    code: &[
        0xb9, 0xe8, 0x03, 0x00, 0x00,                   // 1000: mov ecx, 1000
        0x31, 0xc0,                                     // 1005: xor eax, eax
        0xe6, 0x80,                                     // 1007: out 0x80, al
        0x48, 0xff, 0xc0,                               // 1009: inc rax
        0xff, 0xc9,                                     // 100c: dec ecx
        0x75, 0xf7,                                     // 100e: jnz 0x1007
        0x48, 0x89, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, // 1010: mov [0x8000], rax
        0xf4,                                           // 1018: hlt
    ],
    serial: b"",
    result: 1000,
    halts: true,
};

/// Never ends: for tests of whoever has to end it.
pub const SPIN: BareGuest = BareGuest {
    name: "spin",
    mode: Mode::Real,
    #[rustfmt::skip]
    code: &[
        0xeb, 0xfe, // 1000: jmp 0x1000
    ],
    serial: b"",
    result: 0,
    halts: false,
};

/// Callers pass addresses of the layout above, which lie within [`MEMORY_SIZE`].
fn put(memory: &mut [u8], address: u64, bytes: &[u8]) {
    let from = usize::try_from(address).unwrap_or(MEMORY_SIZE);
    let room = memory.get_mut(from..from + bytes.len());
    room.expect("the layout lies within guest memory").copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_holds_code_and_an_identity_map() {
        let memory = COUNT.memory();
        assert_eq!(memory.len(), MEMORY_SIZE);
        assert_eq!(&memory[0x1000..0x1000 + COUNT.code.len()], COUNT.code);
        let entry = |at: usize| u64::from_le_bytes(memory[at..at + 8].try_into().unwrap());
        assert_eq!((entry(0x9000), entry(0xa000)), (0xa003, 0xb003));
        assert_eq!((entry(0xb000), entry(0xbff8)), (0x83, 511 << 21 | 0x83));
        assert_eq!((entry(0xa008), entry(0xa018)), (0, 0xc003));
        assert_eq!((entry(0xc000), entry(0xcff8)), (0xc000_0083, 0xffe0_0083));
        assert_eq!(BareGuest::result_in(&memory), Some(0));
        assert_eq!(BareGuest::result_in(&memory[..0x8001]), None);
    }

    #[test]
    fn names_are_unique_and_code_fits_below_the_stack() {
        for guest in ALL {
            assert_eq!(by_name(guest.name).unwrap().code, guest.code);
            assert!(CODE_ADDRESS + guest.code.len() as u64 <= STACK_ADDRESS - 0x1000);
        }
        assert!(by_name("nobody").is_none());
    }
}
