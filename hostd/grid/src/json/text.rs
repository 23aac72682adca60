//! What a JSON string says.

use std::borrow::Cow;

/// The text of a checked string, given with its quotes.
pub(super) fn unquote(quoted: &[u8]) -> Cow<'_, str> {
    let inside = quoted.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let inside = inside.unwrap_or_default();
    match std::str::from_utf8(inside) {
        Ok(text) if !text.contains('\\') => Cow::Borrowed(text),
        _ => Cow::Owned(unescape(inside)),
    }
}

fn unescape(mut rest: &[u8]) -> String {
    let mut text = String::with_capacity(rest.len());
    while !rest.is_empty() {
        let plain = rest.iter().position(|byte| *byte == b'\\').unwrap_or(rest.len());
        let (before, after) = rest.split_at(plain);
        push_lossy(&mut text, before);
        rest = match after {
            [b'\\', b'u', ..] => {
                let (character, rest) = unicode_escape(after);
                text.push(character);
                rest
            }
            [b'\\', escaped, rest @ ..] => {
                text.push(simple_escape(*escaped));
                rest
            }
            _ => &[],
        };
    }
    text
}

fn simple_escape(escaped: u8) -> char {
    match escaped {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        other => char::from(other),
    }
}

/// The character at the beginning of `text`, which is `\uXXXX` or a pair of those, and what follows.
fn unicode_escape(text: &[u8]) -> (char, &[u8]) {
    let Some((first, rest)) = code_unit(text) else { return (char::REPLACEMENT_CHARACTER, &[]) };
    if let Some(character) = char::from_u32(first.into()) {
        return (character, rest);
    }
    if let Some((second, after)) = code_unit(rest)
        && let Some(Ok(character)) = char::decode_utf16([first, second]).next()
    {
        return (character, after);
    }
    (char::REPLACEMENT_CHARACTER, rest)
}

fn code_unit(text: &[u8]) -> Option<(u16, &[u8])> {
    let (digits, rest) = text.strip_prefix(b"\\u")?.split_at_checked(4)?;
    let digits = std::str::from_utf8(digits).ok()?;
    Some((u16::from_str_radix(digits, 16).ok()?, rest))
}

/// Every byte that is not part of a character becomes U+FFFD, each on its own.
fn push_lossy(text: &mut String, mut bytes: &[u8]) {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => return text.push_str(valid),
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = rest.get(1..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_read() {
        for (quoted, expected) in [
            (r#""""#, ""),
            (r#""plain""#, "plain"),
            (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
            (r#""\u0041\u00e4\u20AC""#, "Aä€"),
            (r#""\ud83d\ude00!""#, "😀!"),
            (r#""\ud83dx""#, "\u{fffd}x"),
            (r#""\ud83d\u0041""#, "\u{fffd}A"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\ude00\ud83d""#, "\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(unquote(quoted.as_bytes()), expected, "{quoted}");
        }
    }

    #[test]
    fn each_stray_byte_is_replaced() {
        assert_eq!(unquote(b"\"a\xe2\x82b\xff\\n\""), "a\u{fffd}\u{fffd}b\u{fffd}\n");
    }
}
