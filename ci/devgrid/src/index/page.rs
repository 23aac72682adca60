//! Order and pages of answers.

use std::cmp::Ordering;

/// What rows are ordered by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// Before everything else.
    None,
    Number(i128),
    Text(String),
}

impl From<u64> for Key {
    fn from(number: u64) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Key {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Key {
    fn from(number: usize) -> Self {
        Self::Number(i128::try_from(number).unwrap_or(i128::MAX))
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// `rows` by their keys, those with equal keys as they were.
pub(crate) fn sorted<T>(rows: &mut [T], descending: bool, key: impl Fn(&T) -> Key) {
    rows.sort_by_cached_key(|row| Reversible { key: key(row), descending });
}

/// A key that may be ordered the other way round.
#[derive(PartialEq, Eq)]
struct Reversible {
    key: Key,
    descending: bool,
}

impl Ord for Reversible {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = self.key.cmp(&other.key);
        if self.descending { order.reverse() } else { order }
    }
}

impl PartialOrd for Reversible {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A page of an answer, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) number: usize,
    pub(crate) size: usize,
}

impl Page {
    /// Its rows of all `rows`.
    pub(crate) fn of<T>(self, rows: Vec<T>) -> Vec<T> {
        let skipped = self.number.saturating_sub(1).saturating_mul(self.size);
        rows.into_iter().skip(skipped).take(self.size).collect()
    }

    /// How many pages `count` rows have.
    pub(crate) fn count_of(self, count: usize) -> usize {
        count.div_ceil(self.size.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_from_one_and_end() {
        let page = |number, size| Page { number, size }.of((0..7).collect::<Vec<_>>());
        assert_eq!(page(1, 3), [0, 1, 2]);
        assert_eq!(page(3, 3), [6]);
        assert!(page(4, 3).is_empty());
        assert!(page(usize::MAX, 3).is_empty());
        assert_eq!(Page { number: 1, size: 3 }.count_of(7), 3);
        assert_eq!(Page { number: 1, size: 3 }.count_of(0), 0);
    }

    #[test]
    fn equal_keys_keep_their_order_both_ways() {
        let rows = [(2_u32, 'a'), (1, 'b'), (2, 'c')];
        let mut up = rows;
        sorted(&mut up, false, |row| row.0.into());
        assert_eq!(up, [(1, 'b'), (2, 'a'), (2, 'c')]);
        let mut down = rows;
        sorted(&mut down, true, |row| row.0.into());
        assert_eq!(down, [(2, 'a'), (2, 'c'), (1, 'b')]);
    }
}
