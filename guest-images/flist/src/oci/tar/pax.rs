//! Pax records: `LENGTH KEY=VALUE\n`, where the value is any bytes (POSIX.1-2017 pax, "pax Extended
//! Header").

use std::collections::BTreeMap;

use flist_view::filesystem::Timestamp;

use super::{XATTR_NAME_SIZE_MAX, XATTR_VALUE_SIZE_MAX};
use crate::tree::printable;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// Digits of a record's length that can make sense within the largest header.
const LENGTH_DIGIT_COUNT_MAX: usize = 7;
const NANOSECOND_DIGIT_COUNT: usize = 9;

/// The records of one extension header in order.
#[derive(Debug, Default)]
pub(super) struct Pax {
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    /// Parses a header's data.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, &'static str> {
        let mut records = Vec::new();
        while !data.is_empty() {
            let (key, value, rest) =
                split_record(data).ok_or("its pax header is not made of records")?;
            records.push((key.to_vec(), value.to_vec()));
            data = rest;
        }
        Ok(Self { records })
    }

    /// The last record with this key. An empty value deletes a record that stood before.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let found = self.records.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
    }

    /// All values of a key that may stand several times, and of the other key, in order.
    pub(super) fn each<'a>(
        &'a self,
        keys: [&'a [u8]; 2],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let records = self.records.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
        records.filter(move |(key, _)| keys.contains(key))
    }

    /// The member's name. A sparse file's real name stands in a record of its own.
    pub(super) fn name(&self) -> Option<Vec<u8>> {
        self.get(b"GNU.sparse.name").or_else(|| self.get(b"path")).map(<[u8]>::to_vec)
    }

    pub(super) fn target(&self) -> Option<Vec<u8>> {
        self.get(b"linkpath").map(<[u8]>::to_vec)
    }

    pub(super) fn size(&self) -> Result<Option<u64>, String> {
        self.number(b"size")
    }

    /// A record that is a number.
    pub(super) fn number(&self, key: &[u8]) -> Result<Option<u64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = decimal(value);
        number.map(Some).ok_or_else(|| {
            format!("pax record {}: {:?} is no number", printable(key), printable(value))
        })
    }

    /// A record that is a time: seconds since the epoch, with a sign and a fraction if need be.
    pub(super) fn time(&self, key: &[u8]) -> Result<Option<Timestamp>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        time(value).map(Some).ok_or_else(|| {
            format!("pax record {}: {:?} is no time", printable(key), printable(value))
        })
    }

    /// Extended attributes by name.
    pub(super) fn xattrs(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
        let mut xattrs = BTreeMap::new();
        for (key, value) in &self.records {
            let Some(name) = key.strip_prefix(XATTR_PREFIX) else { continue };
            if name.is_empty() || name.len() > XATTR_NAME_SIZE_MAX || name.contains(&0) {
                let name = printable(name);
                return Err(format!("extended attribute {name:?}: not a name of 1 to 255 bytes"));
            }
            if value.len() > XATTR_VALUE_SIZE_MAX {
                let name = printable(name);
                return Err(format!("extended attribute {name:?}: more than 65536 bytes"));
            }
            xattrs.insert(name.to_vec(), value.clone());
        }
        Ok(xattrs)
    }
}

/// Key, value and what follows the record.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(LENGTH_DIGIT_COUNT_MAX + 1).position(|byte| *byte == b' ')?;
    let (digits, _) = data.split_at_checked(space)?;
    let length = usize::try_from(decimal(digits)?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at_checked(equals)?;
    (!key.is_empty()).then_some((key, value.get(1..)?, rest))
}

/// Decimal digits and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn time(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let whole = i64::try_from(decimal(parts.next()?)?).ok()?;
    let nanoseconds = nanoseconds(parts.next().unwrap_or_default())?;
    if !negative {
        return Some(Timestamp { seconds: whole, nanoseconds });
    }
    // Seconds are rounded down, the fraction counts up from there.
    Some(match nanoseconds {
        0 => Timestamp { seconds: -whole, nanoseconds: 0 },
        part => Timestamp { seconds: (-whole).checked_sub(1)?, nanoseconds: 1_000_000_000 - part },
    })
}

/// The digits behind the point; those beyond nanoseconds are dropped.
fn nanoseconds(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let padded = digits.iter().copied().chain(std::iter::repeat(b'0'));
    let digits = padded.take(NANOSECOND_DIGIT_COUNT);
    Some(digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_any_bytes() {
        let data =
            b"30 mtime=1350244992.023960108\n32 SCHILY.xattr.user.x=a\n=\0 \xff b\n8 path=\n";
        let pax = Pax::parse(data).unwrap();
        assert_eq!(pax.xattrs().unwrap()[&b"user.x"[..]], b"a\n=\0 \xff b");
        let time = Timestamp { seconds: 1_350_244_992, nanoseconds: 23_960_108 };
        assert_eq!(pax.time(b"mtime").unwrap(), Some(time));
        assert_eq!(pax.name(), None);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for data in [
            &b"x"[..],
            b"8 path=a\n",
            b"99999999999 path=a\n",
            b"0 path=a\n",
            b"10 path=ab",
            b"7 path\n",
            b"5 =a\n",
            b"-1 path=a\n",
            b"2 path=a\n",
        ] {
            assert!(Pax::parse(data).is_err(), "{data:?}");
        }
    }

    #[test]
    fn times_before_the_epoch_round_down() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        for (text, expected) in [
            ("-1", at(-1, 0)),
            ("-1.25", at(-2, 750_000_000)),
            ("-0.000000001", at(-1, 999_999_999)),
            ("0.1234567899", at(0, 123_456_789)),
            ("9223372036854775807", at(i64::MAX, 0)),
            ("9223372036854775808", None),
            ("-9223372036854775807.5", at(i64::MIN, 500_000_000)),
            ("1e3", None),
            ("", None),
            (".5", None),
            ("1.-5", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }
}
