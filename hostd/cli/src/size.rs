//! Amounts of bytes as people write them: `512M`, `10G`, `2T`, or a number of bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// Suffixes, and how many bits they shift by. The grid's gigabyte has 2^30 bytes.
const UNITS: &[(&str, u32)] = &[("K", 10), ("M", 20), ("G", 30), ("T", 40)];

/// Numbers below this are shown exactly; larger ones in a larger unit, rounded down to a tenth.
const EXACT_MAX: u64 = 10_000;

/// An amount of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
        let unit = UNITS.iter().find_map(|(unit, bits)| Some((bare.strip_suffix(unit)?, *bits)));
        let (digits, bits) = unit.unwrap_or((bare, 0));
        let number = digits.trim().parse::<u64>().ok();
        let size = number.and_then(|number| number.checked_mul(1 << bits));
        size.map(Self).ok_or_else(|| format!("{text:?} is no size: 512M, 10G and 2T are"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |bits: u32| self.0.is_multiple_of(1 << bits) && self.0 >> bits < EXACT_MAX;
        let Some((unit, bits)) = UNITS.iter().rev().find(|(_, bits)| self.0 >> bits > 0) else {
            return self.0.fmt(f);
        };
        match UNITS.iter().rev().find(|(_, bits)| self.0 >> bits > 0 && fits(*bits)) {
            Some((unit, bits)) => write!(f, "{}{unit}", self.0 >> bits),
            None => {
                let tenths = (u128::from(self.0) * 10) >> bits;
                write!(f, "{}.{}{unit}", tenths / 10, tenths % 10)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        let expected = [("512M", 512 << 20), ("10g", 10 << 30), ("2TiB", 2 << 40), ("7", 7)];
        for (text, bytes) in expected {
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(10 << 30).to_string(), "10G");
        assert_eq!(Size(1536 << 20).to_string(), "1536M");
        assert_eq!(Size(0).to_string(), "0");
        assert_eq!(Size(7_780_526_208).to_string(), "7.2G");
        assert_eq!(Size(4_022_024 << 10).to_string(), "3.8G");
        for text in ["", "G", "-1", "1.5G", "99999999T", "10 potatoes"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
