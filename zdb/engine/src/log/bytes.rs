//! Little-endian fields of a buffer, read without a way to panic.

/// Reads fields one after the other; past the end all are `None`.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn array<const SIZE: usize>(&mut self) -> Option<[u8; SIZE]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn slice(&mut self, size: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(first)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u24(&mut self) -> Option<u32> {
        self.array().map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u56(&mut self) -> Option<u64> {
        self.array().map(|[a, b, c, d, e, f, g]| u64::from_le_bytes([a, b, c, d, e, f, g, 0]))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// 7 bits a byte, the lowest first; at most 9 bytes.
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

/// Appends 7 bits a byte, the lowest first. `value` has at most 63 bits.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// The lowest three bytes.
pub(crate) fn u24_bytes(value: u32) -> [u8; 3] {
    let [a, b, c, _] = value.to_le_bytes();
    [a, b, c]
}

/// The lowest seven bytes.
pub(crate) fn u56_bytes(value: u64) -> [u8; 7] {
    let [a, b, c, d, e, f, g, _] = value.to_le_bytes();
    [a, b, c, d, e, f, g]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_come_back() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), (1 << 63) - 1] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut fields = Fields(&bytes);
            assert_eq!(fields.varint(), Some(value));
            assert!(fields.0.is_empty());
        }
        assert_eq!(Fields(&[0xff; 20]).varint(), None);
        assert_eq!(Fields(&[0x80]).varint(), None);
    }

    #[test]
    fn fields_end_with_the_buffer() {
        let mut fields = Fields(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(fields.u24(), Some(0x03_0201));
        assert_eq!(fields.u32(), Some(0x0706_0504));
        assert_eq!(fields.u16(), None);
        assert_eq!(fields.u8(), Some(8));
        assert_eq!(u24_bytes(0x0403_0201), [1, 2, 3]);
        assert_eq!(u56_bytes(0x0807_0605_0403_0201), [1, 2, 3, 4, 5, 6, 7]);
    }
}
