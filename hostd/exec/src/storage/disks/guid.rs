//! Numbers of disks and partitions (RFC 9562, in the mixed order of bytes that UEFI 2.10 appendix A has).

use std::fmt;

/// A number that is unique in the world, in the order of bytes that tables have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Guid(pub(super) [u8; 16]);

impl Guid {
    pub(super) const fn new(a: u32, b: u16, c: u16, end: [u8; 8]) -> Self {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        let [e0, e1, e2, e3, e4, e5, e6, e7] = end;
        Self([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], e0, e1, e2, e3, e4, e5, e6, e7])
    }

    /// One that nobody has, from 16 random bytes (RFC 9562, version 4).
    pub(super) fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[7] = (bytes[7] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// The disk's number that goes with this number of its only partition, and back: so that what is
    /// written to a blank disk follows from one number.
    pub(super) fn twin(self) -> Self {
        let mut bytes = self.0;
        bytes[0] ^= 0xff;
        Self(bytes)
    }

    /// The first eight digits, which tell a farm's disks apart.
    pub(super) fn short(self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = &self.0;
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (place, index) in order.into_iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", b[index])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
