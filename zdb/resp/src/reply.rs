//! The client's side: one reply at a time.
//!
//! ```text
//!  +OK\r\n   -No such key\r\n   :42\r\n   $5\r\nvalue\r\n   $-1\r\n   *2\r\n:1\r\n$-1\r\n
//!  simple    error              integer   bulk              nil      array
//! ```
//!
//! ZDB's errors have no code word: the text follows `-` directly (`reference: zdb 2.1`). Replies
//! borrow from the bytes they came in; only arrays allocate, a `Vec` of borrowed elements.

use crate::line::{self, LINE_END, Line};
use crate::{DEPTH_MAX, HEADER_SIZE_MAX, LINE_SIZE_MAX, Limits};

/// A reply, borrowed from the bytes it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `+text`.
    Simple(&'a [u8]),
    /// `-text`.
    Error(&'a [u8]),
    /// `:number`.
    Integer(i64),
    /// `$size`, bytes.
    Bulk(&'a [u8]),
    /// `$-1`, or the null array `*-1`.
    Nil,
    /// `*count`, elements.
    Array(Vec<Self>),
}

/// What [`parse`] made of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A reply, and the bytes it took.
    Complete(Reply<'a>, usize),
    /// It has not come whole. Below this many bytes, parsing again can't help.
    Incomplete(usize),
}

/// Why bytes are not a reply. The connection is of no more use then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The first byte of a reply is none of `+-:$*`.
    #[error("byte {0:#04x} begins no reply")]
    Type(u8),
    /// A size, count or integer is no number, or is negative where it can't be.
    #[error("a size, count or integer is not a number in its range")]
    Number,
    /// A bulk string larger than [`Limits::bulk_size_max`].
    #[error("a bulk string of {size} bytes, at most {size_max} allowed")]
    BulkSize {
        /// What was announced.
        size: usize,
        /// What is allowed.
        size_max: usize,
    },
    /// A bulk string that is not followed by the end of a line.
    #[error("a bulk string does not end where its size says")]
    BulkEnd,
    /// More elements than [`Limits::element_count_max`], nested ones included.
    #[error("more than {0} elements in one reply")]
    ElementCount(usize),
    /// Arrays nested deeper than [`DEPTH_MAX`].
    #[error("arrays nested more than {DEPTH_MAX} deep")]
    Depth,
    /// A line longer than [`LINE_SIZE_MAX`], or [`HEADER_SIZE_MAX`] where a number stands.
    #[error("a line is longer than allowed")]
    Line,
}

/// Parses the reply at the start of `unread`.
///
/// # Errors
/// [`ReplyError`]; more bytes will not help.
pub fn parse<'a>(unread: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, ReplyError> {
    let mut parser = Parser { unread, position: 0, limits, element_count: 0 };
    match parser.reply(0) {
        Ok(reply) => Ok(Parsed::Complete(reply, parser.position)),
        Err(Stop::Incomplete(wanted)) => {
            Ok(Parsed::Incomplete(wanted.max(unread.len().saturating_add(1))))
        }
        Err(Stop::Error(error)) => Err(error),
    }
}

struct Parser<'a, 'l> {
    unread: &'a [u8],
    position: usize,
    limits: &'l Limits,
    element_count: usize,
}

enum Stop {
    /// So many bytes are needed at least.
    Incomplete(usize),
    Error(ReplyError),
}

/// The smallest reply, `+` and the end of a line.
const REPLY_SIZE_MIN: usize = 3;

impl<'a> Parser<'a, '_> {
    fn reply(&mut self, depth: usize) -> Result<Reply<'a>, Stop> {
        let kind = *self.unread.get(self.position).ok_or(Stop::Incomplete(0))?;
        self.position += 1;
        match kind {
            b'+' => Ok(Reply::Simple(self.line(LINE_SIZE_MAX)?)),
            b'-' => Ok(Reply::Error(self.line(LINE_SIZE_MAX)?)),
            b':' => Ok(Reply::Integer(self.number()?)),
            b'$' => self.bulk(),
            b'*' => self.array(depth),
            other => Err(Stop::Error(ReplyError::Type(other))),
        }
    }

    fn bulk(&mut self) -> Result<Reply<'a>, Stop> {
        let Some(size) = self.size()? else { return Ok(Reply::Nil) };
        let size_max = self.limits.bulk_size_max;
        if size > size_max {
            return Err(Stop::Error(ReplyError::BulkSize { size, size_max }));
        }
        let end = self.position.saturating_add(size);
        let next = end.saturating_add(LINE_END.len());
        let line_end = self.unread.get(end..next).ok_or(Stop::Incomplete(next))?;
        if line_end != LINE_END {
            return Err(Stop::Error(ReplyError::BulkEnd));
        }
        let bytes = self.unread.get(self.position..end).unwrap_or_default();
        self.position = next;
        Ok(Reply::Bulk(bytes))
    }

    fn array(&mut self, depth: usize) -> Result<Reply<'a>, Stop> {
        let Some(count) = self.size()? else { return Ok(Reply::Nil) };
        if depth >= DEPTH_MAX {
            return Err(Stop::Error(ReplyError::Depth));
        }
        self.element_count = self.element_count.saturating_add(count);
        if self.element_count > self.limits.element_count_max {
            return Err(Stop::Error(ReplyError::ElementCount(self.limits.element_count_max)));
        }
        // All of the elements must come, so that nothing is allocated for what was only promised.
        let wanted = self.position.saturating_add(count.saturating_mul(REPLY_SIZE_MIN));
        if self.unread.len() < wanted {
            return Err(Stop::Incomplete(wanted));
        }
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(self.reply(depth + 1)?);
        }
        Ok(Reply::Array(elements))
    }

    /// A size or count; `None` is the -1 of nil.
    fn size(&mut self) -> Result<Option<usize>, Stop> {
        match self.number()? {
            -1 => Ok(None),
            number => {
                usize::try_from(number).map(Some).map_err(|_| Stop::Error(ReplyError::Number))
            }
        }
    }

    fn number(&mut self) -> Result<i64, Stop> {
        line::number(self.line(HEADER_SIZE_MAX)?).ok_or(Stop::Error(ReplyError::Number))
    }

    fn line(&mut self, size_max: usize) -> Result<&'a [u8], Stop> {
        match line::take(self.unread.get(self.position..).unwrap_or_default(), size_max) {
            Line::Complete(line, size) => {
                self.position += size;
                Ok(line)
            }
            Line::Incomplete => Err(Stop::Incomplete(0)),
            Line::TooLong => Err(Stop::Error(ReplyError::Line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::write;

    fn parse_default(bytes: &[u8]) -> Result<Parsed<'_>, ReplyError> {
        parse(bytes, &Limits::default())
    }

    fn complete(bytes: &[u8]) -> Reply<'_> {
        match parse_default(bytes).unwrap() {
            Parsed::Complete(reply, size) if size == bytes.len() => reply,
            other => panic!("{other:?}"),
        }
    }

    /// A reply that owns its bytes, to generate and write.
    #[derive(Clone, Debug)]
    enum Owned {
        Simple(Vec<u8>),
        Error(Vec<u8>),
        Integer(i64),
        Bulk(Vec<u8>),
        Nil,
        Array(Vec<Self>),
    }

    impl Owned {
        fn write(&self, out: &mut Vec<u8>) {
            match self {
                Self::Simple(text) => write::simple(out, text),
                Self::Error(text) => write::error(out, text),
                Self::Integer(number) => write::integer(out, *number),
                Self::Bulk(bytes) => write::bulk(out, bytes),
                Self::Nil => write::nil(out),
                Self::Array(elements) => {
                    write::array(out, elements.len());
                    elements.iter().for_each(|element| element.write(out));
                }
            }
        }

        fn borrow(&self) -> Reply<'_> {
            match self {
                Self::Simple(text) => Reply::Simple(text),
                Self::Error(text) => Reply::Error(text),
                Self::Integer(number) => Reply::Integer(*number),
                Self::Bulk(bytes) => Reply::Bulk(bytes),
                Self::Nil => Reply::Nil,
                Self::Array(elements) => Reply::Array(elements.iter().map(Self::borrow).collect()),
            }
        }
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        "[ -~]{0,20}".prop_map(String::into_bytes)
    }

    fn replies() -> impl Strategy<Value = Owned> {
        let leaf = prop_oneof![
            text().prop_map(Owned::Simple),
            text().prop_map(Owned::Error),
            any::<i64>().prop_map(Owned::Integer),
            vec(any::<u8>(), 0..40).prop_map(Owned::Bulk),
            Just(Owned::Nil),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| vec(inner, 0..5).prop_map(Owned::Array))
    }

    #[test]
    fn all_five_types_and_nil() {
        assert_eq!(complete(b"+OK\r\n"), Reply::Simple(b"OK"));
        assert_eq!(complete(b"-No such key\r\n"), Reply::Error(b"No such key"));
        assert_eq!(complete(b":-7\r\n"), Reply::Integer(-7));
        assert_eq!(complete(b"$3\r\na\nb\r\n"), Reply::Bulk(b"a\nb"));
        assert_eq!(complete(b"$0\r\n\r\n"), Reply::Bulk(b""));
        assert_eq!(complete(b"$-1\r\n"), Reply::Nil);
        assert_eq!(complete(b"*-1\r\n"), Reply::Nil);
        assert_eq!(complete(b"*0\r\n"), Reply::Array(vec![]));
        let nested = Reply::Array(vec![Reply::Integer(1), Reply::Array(vec![Reply::Nil])]);
        assert_eq!(complete(b"*2\r\n:1\r\n*1\r\n$-1\r\n"), nested);
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        let deep: Vec<u8> = b"*1\r\n".repeat(DEPTH_MAX + 1).into_iter().chain(*b":1\r\n").collect();
        let long = [b"+".to_vec(), vec![b'x'; LINE_SIZE_MAX + 2]].concat();
        for (bytes, error) in [
            (&b"OK\r\n"[..], ReplyError::Type(b'O')),
            (b"$x\r\n", ReplyError::Number),
            (b"$-2\r\n", ReplyError::Number),
            (b":\r\n", ReplyError::Number),
            (b"$1\r\nabc", ReplyError::BulkEnd),
            (b"*1048577\r\n", ReplyError::ElementCount(1_048_576)),
            (b"*9223372036854775807\r\n", ReplyError::ElementCount(1_048_576)),
            (b"$8388609\r\n", ReplyError::BulkSize { size: 8_388_609, size_max: 8_388_608 }),
            (&deep, ReplyError::Depth),
            (&long, ReplyError::Line),
            (b":00000000000000000000000000000000000", ReplyError::Line),
        ] {
            assert_eq!(parse_default(bytes), Err(error));
        }
    }

    #[test]
    fn an_incomplete_reply_says_how_much_it_wants() {
        assert_eq!(parse_default(b"").unwrap(), Parsed::Incomplete(1));
        assert_eq!(parse_default(b"$5\r\nab").unwrap(), Parsed::Incomplete(11));
        assert_eq!(parse_default(b"*100\r\n").unwrap(), Parsed::Incomplete(306));
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 300,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn what_is_written_is_parsed(reply in replies()) {
            let mut bytes = Vec::new();
            reply.write(&mut bytes);
            prop_assert_eq!(complete(&bytes), reply.borrow());
        }

        #[test]
        fn every_prefix_is_incomplete_and_wants_no_more_than_the_whole(reply in replies()) {
            let mut bytes = Vec::new();
            reply.write(&mut bytes);
            for size in 0..bytes.len() {
                match parse_default(&bytes[..size]).unwrap() {
                    Parsed::Incomplete(wanted) => {
                        prop_assert!(wanted > size && wanted <= bytes.len());
                    }
                    Parsed::Complete(..) => prop_assert!(false, "complete at {}", size),
                }
            }
        }

        #[test]
        fn hostile_bytes_never_panic(
            bytes in vec(prop_oneof![
                Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b':'),
                b'0'..=b'9', any::<u8>(),
            ], 0..80),
        ) {
            if let Ok(Parsed::Complete(_, size)) = parse_default(&bytes) {
                prop_assert!(size <= bytes.len());
            }
        }
    }
}
