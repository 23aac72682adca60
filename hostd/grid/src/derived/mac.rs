//! MACs from any text, the same on every node.
//!
//! A window of six bytes slides over the text's MD5 hash until what it shows, made a locally
//! administered address of one station, is in one of three ranges. Making it so changes the hash in
//! place, and later windows see that. If no window fits, the changed hash is the text of another round;
//! that is how the format is defined, though a window among the first four always fits.

use std::fmt;

use md5::{Digest, Md5};

use crate::hex;

/// A MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The MAC of a text.
    pub fn of(text: &str) -> Self {
        let mut hash: [u8; 16] = Md5::digest(text).into();
        loop {
            if let Some(address) = Self::in_hash(&mut hash) {
                return address;
            }
            hash = Md5::digest(hash).into();
        }
    }

    /// A MAC of these bytes.
    pub fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes.
    pub fn as_bytes(&self) -> &[u8; 6] {
        &self.0
    }

    /// The twelve digits without colons.
    pub fn to_digits(&self) -> String {
        hex::encode(&self.0)
    }

    fn in_hash(hash: &mut [u8; 16]) -> Option<Self> {
        (0..=10).find_map(|at| {
            let first = hash.get_mut(at)?;
            // Locally administered, and no group.
            *first = (*first | 0x02) & 0xfe;
            let window = hash.get(at..)?.first_chunk()?;
            is_acceptable(window).then_some(Self(*window))
        })
    }
}

/// Three ranges, each told from the others by the last bytes. The order of the tests is the format.
fn is_acceptable(address: &[u8; 6]) -> bool {
    let [a, b, _, x, y, z] = *address;
    let (first, last) = ([a, b], [x, y, z]);
    if last <= [0x00, 0x51, 0xff] {
        first >= [0x00, 0x03]
    } else if last <= [0x90, 0x00, 0xff] {
        first >= [0x00, 0x54] && first != [0x33, 0x33]
    } else {
        *address <= [0xff, 0xff, 0xff, 0xff, 0xff, 0xfe] && first >= [0x90, 0x02]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_has_one_of_a_single_station(text in ".{0,40}") {
            let mac = MacAddress::of(&text);
            prop_assert_eq!(mac, MacAddress::of(&text));
            prop_assert_eq!(mac.as_bytes()[0] & 3, 2);
            prop_assert!(is_acceptable(mac.as_bytes()));
        }

        /// If the first is refused, its fourth byte is at least 0x90, and the fourth begins with that.
        #[test]
        fn one_of_the_first_four_windows_fits(hash in any::<[u8; 16]>()) {
            let mut changed = hash;
            prop_assert!(MacAddress::in_hash(&mut changed).is_some());
            prop_assert_eq!(&changed[4..], &hash[4..]);
        }
    }

    #[test]
    fn ranges_end_where_they_end() {
        for (address, expected) in [
            ([0x00, 0x03, 0, 0x00, 0x51, 0xff], true),
            ([0x00, 0x02, 0, 0x00, 0x51, 0xff], false),
            ([0x00, 0x54, 0, 0x00, 0x52, 0x00], true),
            ([0x00, 0x53, 0, 0x00, 0x52, 0x00], false),
            ([0x33, 0x33, 0, 0x90, 0x00, 0xff], false),
            ([0x90, 0x02, 0, 0x90, 0x01, 0x00], true),
            ([0x90, 0x01, 0, 0x90, 0x01, 0x00], false),
            ([0xff; 6], false),
        ] {
            assert_eq!(is_acceptable(&address), expected, "{address:x?}");
        }
    }
}
