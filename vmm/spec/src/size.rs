//! Numbers of bytes, as people write them: `512M`, `2G`.
//!
//! Units are binary (`K` is 1,024) and whole; `KiB`, `MiB` and so on say the same. A plain number is
//! bytes. In JSON a size is such a string or a plain number, and is written as a string.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

/// Why a text is no such value: the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadValue(pub(crate) String);

impl Size {
    /// A size of so many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of so many MiB; the largest one there is, if that is more than fits.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let rule = || BadValue("a size is a whole number and a unit, such as 512M or 2G".into());
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        if digits.is_empty() {
            return Err(rule());
        }
        let too_large = || BadValue("more bytes than 64 bits can count".into());
        let number: u64 = digits.parse().map_err(|_| too_large())?;
        let letter = unit.strip_suffix("iB").unwrap_or(unit);
        let shift = match letter {
            "" if unit.is_empty() => 0,
            _ => UNITS
                .iter()
                .find(|(known, _)| letter.len() == 1 && letter.starts_with(known.to_owned()))
                .map(|(_, shift)| *shift)
                .ok_or_else(rule)?,
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(too_large)
    }
}

impl fmt::Display for Size {
    /// With the largest unit that needs no fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512M\", or a number of bytes")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(|rule| E::custom(format_args!("{text:?}: {rule}")))
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_binary_and_whole() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4K", 4096),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("2G", 2 << 30),
            ("3T", 3 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in
            ["", "M", "-1", "+1", " 1", "1 M", "1.5G", "1m", "1MB", "1iB", "1KK", "1Ki", "1é"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for text in ["18446744073709551616", "18014398509481984K", "99999999T"] {
            assert!(text.parse::<Size>().unwrap_err().0.contains("64 bits"), "{text}");
        }
    }

    #[test]
    fn json_takes_numbers_and_texts() {
        assert_eq!(serde_json::from_str::<Size>("4096").unwrap(), Size(4096));
        assert_eq!(serde_json::from_str::<Size>("\"4K\"").unwrap(), Size(4096));
        for bad in ["-1", "1.5", "null", "true", "\"4k\"", "[]"] {
            assert!(serde_json::from_str::<Size>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(bytes: u64, shift in 0..64u32) {
            let size = Size(bytes.wrapping_shl(shift));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            let json = serde_json::to_string(&size).unwrap();
            prop_assert_eq!(serde_json::from_str::<Size>(&json).unwrap(), size);
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text: String) {
            if let Ok(size) = text.parse::<Size>() {
                prop_assert_eq!(size.to_string().parse(), Ok(size));
            }
        }
    }
}
