//! Lines and the numbers in them, which both parsers share.

/// What comes after the bytes of a bulk string.
pub(crate) const LINE_END: &[u8] = b"\r\n";

/// A line without its end.
pub(crate) enum Line<'a> {
    /// The line, and how many bytes it took with its end.
    Complete(&'a [u8], usize),
    /// Its end has not come yet.
    Incomplete,
    /// Longer than allowed.
    TooLong,
}

/// Takes the line at the start of `bytes`. A lone `\n` ends a line as well as `\r\n`: existing
/// clients were never held to more (`reference: zdb 2.1`).
pub(crate) fn take(bytes: &[u8], size_max: usize) -> Line<'_> {
    let window = bytes.get(..size_max.saturating_add(LINE_END.len())).unwrap_or(bytes);
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() > size_max.saturating_add(1) {
            Line::TooLong
        } else {
            Line::Incomplete
        };
    };
    let line = window.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > size_max { Line::TooLong } else { Line::Complete(line, end + 1) }
}

/// Digits of the numbers that [`short_number`] knows.
const SHORT_DIGIT_COUNT_MAX: usize = 7;

/// The line at the start of `bytes` as nearly all are: a few digits and `\r\n`. The number, and how many
/// bytes the line took; of any other line [`take`] and [`number`] know more.
pub(crate) fn short_number(bytes: &[u8]) -> Option<(u32, usize)> {
    let mut number = 0;
    for (count, byte) in bytes.iter().take(SHORT_DIGIT_COUNT_MAX + 1).enumerate() {
        match byte {
            b'0'..=b'9' if count < SHORT_DIGIT_COUNT_MAX => {
                number = number * 10 + u32::from(byte - b'0');
            }
            b'\r' if count > 0 && bytes.get(count + 1) == Some(&b'\n') => {
                return Some((number, count + LINE_END.len()));
            }
            _ => return None,
        }
    }
    None
}

/// A decimal number with an optional minus sign and nothing else.
pub(crate) fn number(digits: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match digits {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    if digits.is_empty() {
        return None;
    }
    // Counting downwards reaches the smallest number, which has no positive twin.
    let mut value: i64 = 0;
    for digit in digits {
        let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
        value = value.checked_mul(10)?.checked_sub(digit)?;
    }
    if is_negative { Some(value) } else { value.checked_neg() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_decimal_and_fit() {
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"-12"), Some(-12));
        assert_eq!(number(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(number(b"-9223372036854775808"), Some(i64::MIN));
        for bad in ["", "-", "+1", "1 ", "0x1", "9223372036854775808", "--1"] {
            assert_eq!(number(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn short_numbers_are_what_the_long_way_gives() {
        let digits =
            ["0", "7", "10", "1024", "007", "1234567", "12345678", "", "-1", "1x", "99999999"];
        for digits in digits {
            for end in ["\r\n", "\r\n$", "\n", "\r", "\rx", ""] {
                let bytes = format!("{digits}{end}").into_bytes();
                let Some((short, size)) = short_number(&bytes) else { continue };
                let Line::Complete(line, taken) = take(&bytes, 32) else { panic!("{bytes:?}") };
                assert_eq!((number(line), taken), (Some(short.into()), size), "{bytes:?}");
            }
        }
        assert_eq!(short_number(b"1234567\r\n"), Some((1_234_567, 9)));
        assert_eq!(short_number(b"12345678\r\n"), None);
    }

    #[test]
    fn lines_end_and_are_bounded() {
        assert!(matches!(take(b"abc\r\nx", 3), Line::Complete(b"abc", 5)));
        assert!(matches!(take(b"abc\nx", 3), Line::Complete(b"abc", 4)));
        assert!(matches!(take(b"abc\r", 3), Line::Incomplete));
        assert!(matches!(take(b"abcd", 3), Line::Incomplete));
        assert!(matches!(take(b"abcd\n", 3), Line::TooLong));
        assert!(matches!(take(b"abcde", 3), Line::TooLong));
    }
}
