//! Hexadecimal text, with the errors that Go's reader gives.

use std::fmt::Write as _;

/// Lower-case digits of `bytes`.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The bytes of `text`, whose digits may be of either case.
pub(crate) fn decode(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.as_bytes();
    if let Some(odd) = digits.iter().find(|digit| !digit.is_ascii_hexdigit()) {
        return Err(bad_digit(*odd));
    }
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("encoding/hex: odd length hex string".to_owned());
    }
    Ok(pairs.iter().map(|[high, low]| value(*high) << 4 | value(*low)).collect())
}

fn value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

fn bad_digit(byte: u8) -> String {
    let character = char::from(byte);
    let code = u32::from(byte);
    if character.is_control() {
        format!("encoding/hex: invalid byte: U+{code:04X}")
    } else {
        format!("encoding/hex: invalid byte: U+{code:04X} '{character}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_cases_are_read_and_the_lower_one_is_written() {
        assert_eq!(decode("00aBFf"), Ok(vec![0, 0xab, 0xff]));
        assert_eq!(encode(&[0, 0xab, 0xff]), "00abff");
        assert_eq!(decode(""), Ok(Vec::new()));
    }

    #[test]
    fn errors_are_those_of_go() {
        assert_eq!(decode("abc"), Err("encoding/hex: odd length hex string".to_owned()));
        assert_eq!(decode("0g"), Err("encoding/hex: invalid byte: U+0067 'g'".to_owned()));
        assert_eq!(decode("0\n0"), Err("encoding/hex: invalid byte: U+000A".to_owned()));
    }
}
