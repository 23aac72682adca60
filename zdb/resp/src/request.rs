//! The server's side: one request at a time, resumed where the last bytes ended.
//!
//! ```text
//!  *3\r\n  $3\r\nSET\r\n  $1\r\nk\r\n  $5\r\nvalue\r\n
//!  count   argument       argument     argument
//! ```
//!
//! Only arrays of bulk strings are requests; there are no inline commands (`reference: zdb 2.1`).
//! [`RequestParser`] remembers which arguments it has seen, so that no byte is looked at twice
//! however small the pieces are in which a request comes.
//!
//! Every error ends the conversation: the server sends the error's text, which is the wire text that
//! clients know, and closes. Two of the existing server's habits are not kept: it skips the two bytes
//! after an argument unseen, and it takes a count that is no number for 0 arguments but waits on.

use crate::line::{self, LINE_END, Line};
use crate::{HEADER_SIZE_MAX, Limits};

/// Parses one peer's requests.
#[derive(Debug)]
pub struct RequestParser {
    limits: Limits,
    /// Arguments that were announced; none before the first line is complete.
    count: Option<usize>,
    /// Begin and end of each argument seen, from the request's first byte.
    spans: Vec<(usize, usize)>,
    /// Everything before was looked at.
    position: usize,
    /// Unread bytes without which nothing new can be said.
    wanted: usize,
    is_complete: bool,
}

/// A request, borrowed from the bytes it came in. Has at least one argument.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    bytes: &'a [u8],
    spans: &'a [(usize, usize)],
    size: usize,
}

/// Why bytes are not a request. `Display` is the text that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The first byte is not `*`.
    #[error("Malformed request, array expected")]
    NotAnArray,
    /// A negative count of arguments.
    #[error("Internal memory error")]
    NegativeCount,
    /// No arguments, or a count that is no number.
    #[error("Missing arguments")]
    NoArguments,
    /// More than [`Limits::argument_count_max`] arguments.
    #[error("Too many arguments")]
    TooManyArguments,
    /// An argument is no bulk string, or is not followed by the end of a line.
    #[error("Malformed query string")]
    NotABulk,
    /// An argument is larger than [`Limits::bulk_size_max`].
    #[error("Payload too big")]
    BulkSize,
    /// A line that should hold a number is longer than [`HEADER_SIZE_MAX`].
    #[error("Malformed request, line too long")]
    Line,
}

/// Keys, which are first arguments, of requests that stand one behind the other, as far as they are of
/// the usual form: for looking ahead. What comes of it is no more than a guess; parsing tells.
#[derive(Clone, Copy, Debug)]
pub struct KeysAhead<'a>(&'a [u8]);

/// Arguments of a request of the usual form.
const USUAL_COUNT_MAX: u32 = 4;

impl<'a> KeysAhead<'a> {
    /// Looks at bytes that begin with a request.
    #[must_use]
    pub fn new(unread: &'a [u8]) -> Self {
        Self(unread)
    }

    /// The number after this type byte; the bytes move behind its line.
    fn number(&mut self, kind: u8) -> Option<u32> {
        let (first, rest) = self.0.split_first()?;
        let (number, size) = line::short_number(rest).filter(|_| *first == kind)?;
        self.0 = rest.get(size..)?;
        Some(number)
    }
}

impl<'a> Iterator for KeysAhead<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let count = self.number(b'*').filter(|count| (2..=USUAL_COUNT_MAX).contains(count))?;
        let mut key = None;
        for index in 0..count {
            let size = self.number(b'$')? as usize;
            let argument = self.0.get(..size)?;
            self.0 = self.0.get(size.checked_add(LINE_END.len())?..)?;
            if index == 1 {
                key = Some(argument);
            }
        }
        key
    }
}

impl RequestParser {
    /// A parser that has seen nothing.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, count: None, spans: Vec::new(), position: 0, wanted: 1, is_complete: false }
    }

    /// Parses the request at the start of `unread`, or `None` if it has not come whole.
    ///
    /// Between calls that return `None`, `unread` may only grow at its end. After a request the
    /// caller drops [`Request::size`] bytes and calls again.
    ///
    /// # Errors
    /// [`RequestError`]; the connection is of no more use then.
    pub fn parse<'a>(&'a mut self, unread: &'a [u8]) -> Result<Option<Request<'a>>, RequestError> {
        if self.is_complete {
            self.reset();
        }
        let count = match self.count {
            Some(count) => count,
            None => match self.parse_count(unread)? {
                Some(count) => count,
                None => return Ok(None),
            },
        };
        while self.spans.len() < count {
            if !self.parse_argument(unread)? {
                return Ok(None);
            }
        }
        self.is_complete = true;
        Ok(Some(Request { bytes: unread, spans: &self.spans, size: self.position }))
    }

    /// How many unread bytes there must be before calling [`RequestParser::parse`] again can help.
    #[must_use]
    pub fn wanted(&self) -> usize {
        if self.is_complete { 1 } else { self.wanted }
    }

    fn reset(&mut self) {
        self.count = None;
        self.spans.clear();
        self.position = 0;
        self.wanted = 1;
        self.is_complete = false;
    }

    fn parse_count(&mut self, unread: &[u8]) -> Result<Option<usize>, RequestError> {
        match unread.first() {
            None => return Ok(None),
            Some(b'*') => {}
            Some(_) => return Err(RequestError::NotAnArray),
        }
        let Some(number) = self.parse_number(unread)? else { return Ok(None) };
        let count = match number {
            None | Some(0) => return Err(RequestError::NoArguments),
            Some(number) if number < 0 => return Err(RequestError::NegativeCount),
            Some(number) => usize::try_from(number).unwrap_or(usize::MAX),
        };
        if count > self.limits.argument_count_max {
            return Err(RequestError::TooManyArguments);
        }
        self.count = Some(count);
        Ok(Some(count))
    }

    /// Parses the next argument; `false` if it has not come whole.
    fn parse_argument(&mut self, unread: &[u8]) -> Result<bool, RequestError> {
        match unread.get(self.position) {
            None => {
                self.wanted = self.position.saturating_add(1);
                return Ok(false);
            }
            Some(b'$') => {}
            Some(_) => return Err(RequestError::NotABulk),
        }
        let header = self.position;
        let Some(number) = self.parse_number(unread)? else { return Ok(false) };
        let size = number.and_then(|number| usize::try_from(number).ok());
        let size = size.ok_or(RequestError::NotABulk)?;
        if size > self.limits.bulk_size_max {
            return Err(RequestError::BulkSize);
        }
        let begin = self.position;
        let end = begin.saturating_add(size);
        let next = end.saturating_add(LINE_END.len());
        let Some(line_end) = unread.get(end..next) else {
            self.position = header;
            self.wanted = next;
            return Ok(false);
        };
        if line_end != LINE_END {
            return Err(RequestError::NotABulk);
        }
        self.spans.push((begin, end));
        self.position = next;
        Ok(true)
    }

    /// The number after a type byte at `position`, which moves behind its line. The outer `None`
    /// says that the line has not come whole, the inner that it holds no number.
    fn parse_number(&mut self, unread: &[u8]) -> Result<Option<Option<i64>>, RequestError> {
        let start = self.position.saturating_add(1);
        let bytes = unread.get(start..).unwrap_or_default();
        if let Some((number, size)) = line::short_number(bytes) {
            self.position = start.saturating_add(size);
            return Ok(Some(Some(number.into())));
        }
        match line::take(bytes, HEADER_SIZE_MAX) {
            Line::Complete(digits, size) => {
                self.position = start + size;
                Ok(Some(line::number(digits)))
            }
            Line::Incomplete => {
                self.wanted = unread.len().saturating_add(1);
                Ok(None)
            }
            Line::TooLong => Err(RequestError::Line),
        }
    }
}

impl<'a> Request<'a> {
    /// Arguments, the command's name included; at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.spans.len()
    }

    /// The argument at `index`; 0 is the command's name.
    #[must_use]
    pub fn argument(&self, index: usize) -> Option<&'a [u8]> {
        let (begin, end) = *self.spans.get(index)?;
        self.bytes.get(begin..end)
    }

    /// All arguments.
    pub fn arguments(&self) -> impl Iterator<Item = &'a [u8]> {
        let Request { bytes, spans, .. } = *self;
        spans.iter().map(move |(begin, end)| bytes.get(*begin..*end).unwrap_or_default())
    }

    /// Bytes the request took.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::write;

    fn parse_whole(bytes: &[u8]) -> Result<Option<Vec<Vec<u8>>>, RequestError> {
        let mut parser = RequestParser::new(Limits::default());
        let request = parser.parse(bytes)?;
        Ok(request.map(|request| request.arguments().map(<[u8]>::to_vec).collect()))
    }

    /// Feeds `bytes` in pieces, and keeps to `wanted`.
    fn parse_pieces(
        bytes: &[u8],
        cuts: &[usize],
    ) -> (Vec<Vec<Vec<u8>>>, Option<RequestError>, usize) {
        let mut parser = RequestParser::new(Limits::default());
        let (mut requests, mut begin) = (Vec::new(), 0);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([bytes.len()]);
        cuts.sort_unstable();
        for cut in cuts {
            while cut - begin >= parser.wanted() {
                match parser.parse(&bytes[begin..cut]) {
                    Ok(Some(request)) => {
                        requests.push(request.arguments().map(<[u8]>::to_vec).collect());
                        begin += request.size();
                    }
                    Ok(None) => {
                        assert!(parser.wanted() > cut - begin, "no progress");
                    }
                    Err(error) => return (requests, Some(error), begin),
                }
            }
        }
        (requests, None, begin)
    }

    #[test]
    fn a_request_is_an_array_of_bulk_strings() {
        let arguments = parse_whole(b"*2\r\n$3\r\nGET\r\n$2\r\nk\0\r\n").unwrap().unwrap();
        assert_eq!(arguments, [b"GET".to_vec(), b"k\0".to_vec()]);
        assert_eq!(parse_whole(b"*1\r\n$0\r\n\r\n").unwrap().unwrap(), [b""]);
        assert_eq!(parse_whole(b"*1\n$4\nPING\r\n").unwrap().unwrap(), [b"PING"]);
    }

    #[test]
    fn errors_have_the_text_that_clients_know() {
        for (bytes, text) in [
            (&b"PING\r\n"[..], "Malformed request, array expected"),
            (b"*0\r\n", "Missing arguments"),
            (b"*abc\r\n", "Missing arguments"),
            (b"*1025\r\n", "Too many arguments"),
            (b"*99999999999999999999\r\n", "Missing arguments"),
            (b"*-1\r\n", "Internal memory error"),
            (b"*1\r\n*1\r\n$1\r\nX\r\n", "Malformed query string"),
            (b"*2\r\n$3\r\nGET\r\n$-1\r\n", "Malformed query string"),
            (b"*2\r\n$3\r\nGETxx$1\r\nayy", "Malformed query string"),
            (b"*2\r\n$3\r\nGET\r\n$8388609\r\n", "Payload too big"),
            (b"*11111111111111111111111111111111111", "Malformed request, line too long"),
        ] {
            assert_eq!(parse_whole(bytes).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn the_largest_argument_is_accepted_and_awaited_without_looking() {
        let mut parser = RequestParser::new(Limits::default());
        assert!(parser.parse(b"*1\r\n$8388608\r\n").unwrap().is_none());
        assert_eq!(parser.wanted(), 4 + 10 + 8_388_608 + 2);
        let mut bytes = b"*1\r\n$8388608\r\n".to_vec();
        bytes.resize(bytes.len() + 8_388_608, b'x');
        assert!(parser.parse(&bytes).unwrap().is_none());
        bytes.extend_from_slice(b"\r\n");
        assert_eq!(parser.parse(&bytes).unwrap().unwrap().size(), bytes.len());
    }

    #[test]
    fn keys_are_seen_ahead_until_something_is_unusual() {
        let mut bytes = Vec::new();
        write::request(&mut bytes, &[&b"GET"[..], b"a"]);
        write::request(&mut bytes, &[&b"SET"[..], b"", b"value\r\n", b"1"]);
        write::request(&mut bytes, &[&b"SETX"[..], b"c", b"v"]);
        let whole = bytes.len();
        write::request(&mut bytes, &[&b"PING"[..]]);
        write::request(&mut bytes, &[&b"GET"[..], b"d"]);
        let ahead: Vec<_> = KeysAhead::new(&bytes).collect();
        assert_eq!(ahead, [&b"a"[..], b"", b"c"]);
        for cut in 0..whole {
            let seen: Vec<_> = KeysAhead::new(&bytes[..cut]).collect();
            assert!(seen.len() < 3 && ahead.starts_with(&seen), "{cut}");
        }
        assert_eq!(KeysAhead::new(b"*2\r\n$3\r\nGET\r\n$9999999\r\n").count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 300,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn any_split_gives_the_same_requests(
            requests in vec(vec(vec(any::<u8>(), 0..40), 1..6), 0..6),
            cuts in vec(any::<usize>(), 0..30),
        ) {
            let mut bytes = Vec::new();
            for request in &requests {
                write::request(&mut bytes, request);
            }
            let (parsed, error, size) = parse_pieces(&bytes, &cuts);
            prop_assert_eq!(parsed, requests);
            prop_assert_eq!((error, size), (None, bytes.len()));
        }

        #[test]
        fn hostile_bytes_never_panic_and_splits_change_nothing(
            bytes in vec(prop_oneof![
                Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'-'),
                b'0'..=b'9', any::<u8>(),
            ], 0..60),
            cuts in vec(any::<usize>(), 0..20),
        ) {
            prop_assert_eq!(parse_pieces(&bytes, &cuts), parse_pieces(&bytes, &[]));
        }

        #[test]
        fn damaged_requests_never_panic_and_splits_change_nothing(
            request in vec(vec(any::<u8>(), 0..10), 1..5),
            damage in vec((any::<usize>(), any::<u8>()), 1..4),
            cuts in vec(any::<usize>(), 0..20),
        ) {
            let mut bytes = Vec::new();
            write::request(&mut bytes, &request);
            for (position, value) in damage {
                let position = position % bytes.len();
                bytes[position] = value;
            }
            prop_assert_eq!(parse_pieces(&bytes, &cuts), parse_pieces(&bytes, &[]));
        }
    }
}
