//! Both sides' output, appended to a `Vec`, so that a batch becomes one system call.
//!
//! Large values need not be copied: write [`bulk_header`], send the bytes from where they are, then
//! the end of the line (`\r\n`).

use crate::line::LINE_END;

/// Appends a request: an array of bulk strings.
pub fn request<A: AsRef<[u8]>>(out: &mut Vec<u8>, arguments: &[A]) {
    array(out, arguments.len());
    for argument in arguments {
        bulk(out, argument.as_ref());
    }
}

/// Appends a simple string. Line ends in `text` become spaces: they would end the reply.
pub fn simple(out: &mut Vec<u8>, text: &[u8]) {
    line(out, b'+', text);
}

/// Appends an error. Line ends in `text` become spaces.
pub fn error(out: &mut Vec<u8>, text: &[u8]) {
    line(out, b'-', text);
}

/// Appends an integer.
pub fn integer(out: &mut Vec<u8>, number: i64) {
    out.push(b':');
    if number < 0 {
        out.push(b'-');
    }
    decimal(out, number.unsigned_abs());
    out.extend_from_slice(LINE_END);
}

/// Appends a bulk string.
pub fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    bulk_header(out, bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(LINE_END);
}

/// Appends what comes before the `size` bytes of a bulk string.
pub fn bulk_header(out: &mut Vec<u8>, size: usize) {
    header(out, b'$', size);
}

/// Appends nil.
pub fn nil(out: &mut Vec<u8>) {
    out.extend_from_slice(b"$-1\r\n");
}

/// Appends nil as RESP3 has it, for peers that asked for that protocol by `HELLO 3`.
pub fn null(out: &mut Vec<u8>) {
    out.extend_from_slice(b"_\r\n");
}

/// Appends the beginning of a map, which RESP3 alone has; `count` keys follow, each with its value.
pub fn map(out: &mut Vec<u8>, count: usize) {
    header(out, b'%', count);
}

/// Appends the beginning of an array; its `count` elements follow.
pub fn array(out: &mut Vec<u8>, count: usize) {
    header(out, b'*', count);
}

fn header(out: &mut Vec<u8>, kind: u8, number: usize) {
    out.push(kind);
    decimal(out, number as u64);
    out.extend_from_slice(LINE_END);
}

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend(text.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }));
    out.extend_from_slice(LINE_END);
}

fn decimal(out: &mut Vec<u8>, mut number: u64) {
    const DIGIT_COUNT_MAX: usize = 20;
    let mut digits = [0; DIGIT_COUNT_MAX];
    let mut count = 0;
    for digit in digits.iter_mut().rev() {
        // The remainder is below 10.
        *digit = b'0' + (number % 10).to_le_bytes()[0];
        number /= 10;
        count += 1;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(DIGIT_COUNT_MAX - count..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let text = written(|out| request(out, &[&b"SET"[..], b"k", b""]));
        assert_eq!(text, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }

    #[test]
    fn integers_reach_both_ends() {
        assert_eq!(written(|out| integer(out, i64::MIN)), format!(":{}\r\n", i64::MIN));
        assert_eq!(written(|out| integer(out, i64::MAX)), format!(":{}\r\n", i64::MAX));
        assert_eq!(written(|out| integer(out, 0)), ":0\r\n");
        assert_eq!(written(|out| bulk_header(out, 100)), "$100\r\n");
    }

    #[test]
    fn a_line_can_not_be_broken_from_within() {
        assert_eq!(written(|out| error(out, b"a\r\n+OK")), "-a  +OK\r\n");
    }
}
