//! A guest of a few instructions, as a kernel file.

/// Where its code is.
pub(crate) const CODE: u64 = 0x20_0000;
/// `mov dx, 0x600; mov al, 0x34; out dx, al; hlt`: switches off.
pub(crate) const OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4];
/// `ud2`: without an interrupt table, a triple fault.
pub(crate) const CRASH: &[u8] = &[0x0f, 0x0b];
/// `mov al, 'u'; mov dx, 0x3f8; out dx, al`: says something on the serial port.
pub(crate) const SAY: &[u8] = &[0xb0, b'u', 0x66, 0xba, 0xf8, 0x03, 0xee];

/// An ELF file of one segment, entered at its start in 64-bit mode.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    const CODE_OFFSET: usize = 0x1000;
    const PT_LOAD: u32 = 1;
    const EM_X86_64: u16 = 62;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(CODE_OFFSET, 0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(18, &EM_X86_64.to_le_bytes());
    put(24, &CODE.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(64, &PT_LOAD.to_le_bytes());
    put(68, &5_u32.to_le_bytes());
    let size = code.len() as u64;
    let fields = [(8, CODE_OFFSET as u64), (24, CODE), (32, size), (40, size + 0x2000)];
    for (field, value) in fields {
        put(64 + field, &value.to_le_bytes());
    }
    file.extend(code);
    file
}
