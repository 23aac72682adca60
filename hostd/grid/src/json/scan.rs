//! Whether a text is one JSON document: the whole of it, before anything is read.
//!
//! The grammar is RFC 8259's, as Go applies it: any bytes may stand in a string but control characters,
//! whether they are UTF-8 or not. Errors tell the byte and what was expected where.

use super::error::{Error, Quoted};
use crate::limits::DEPTH_MAX;

/// A text that is one JSON value, without space around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checked<'a>(&'a [u8]);

impl<'a> Checked<'a> {
    /// Checks a text.
    pub(crate) fn new(text: &'a [u8]) -> Result<Self, Error> {
        let mut scanner = Scanner { rest: text };
        scanner.value(0)?;
        scanner.space();
        match scanner.rest.first() {
            None => Ok(Self(text.trim_ascii())),
            Some(byte) => Err(syntax(*byte, "after top-level value")),
        }
    }

    /// A value that was cut out of a checked text.
    pub(super) fn part(text: &'a [u8]) -> Self {
        Self(text)
    }

    pub(crate) fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn syntax(byte: u8, context: &'static str) -> Error {
    Error::Syntax { byte: Quoted(byte), context }
}

struct Scanner<'a> {
    rest: &'a [u8],
}

impl Scanner<'_> {
    fn next(&mut self) -> Result<u8, Error> {
        let (byte, rest) = self.rest.split_first().ok_or(Error::UnexpectedEnd)?;
        self.rest = rest;
        Ok(*byte)
    }

    fn space(&mut self) {
        while let Some((byte, rest)) = self.rest.split_first()
            && is_space(*byte)
        {
            self.rest = rest;
        }
    }

    fn next_token(&mut self) -> Result<u8, Error> {
        self.space();
        self.next()
    }

    fn value(&mut self, depth: usize) -> Result<(), Error> {
        let byte = self.next_token()?;
        self.value_from(byte, depth)
    }

    /// The rest of a value whose first byte is known. Recursion ends at [`DEPTH_MAX`].
    fn value_from(&mut self, byte: u8, depth: usize) -> Result<(), Error> {
        match byte {
            b'{' | b'[' if depth == DEPTH_MAX => Err(Error::TooDeep),
            b'{' => self.object(depth + 1),
            b'[' => self.array(depth + 1),
            b'"' => self.string(),
            b'-' => match self.next()? {
                digit @ b'0'..=b'9' => self.number(digit),
                other => Err(syntax(other, "in numeric literal")),
            },
            b'0'..=b'9' => self.number(byte),
            b't' => self.literal(&TRUE),
            b'f' => self.literal(&FALSE),
            b'n' => self.literal(&NULL),
            other => Err(syntax(other, "looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), Error> {
        let mut byte = self.next_token()?;
        if byte == b'}' {
            return Ok(());
        }
        loop {
            if byte != b'"' {
                return Err(syntax(byte, "looking for beginning of object key string"));
            }
            self.string()?;
            match self.next_token()? {
                b':' => self.value(depth)?,
                other => return Err(syntax(other, "after object key")),
            }
            match self.next_token()? {
                b',' => byte = self.next_token()?,
                b'}' => return Ok(()),
                other => return Err(syntax(other, "after object key:value pair")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Error> {
        let byte = self.next_token()?;
        if byte == b']' {
            return Ok(());
        }
        self.value_from(byte, depth)?;
        loop {
            match self.next_token()? {
                b',' => self.value(depth)?,
                b']' => return Ok(()),
                other => return Err(syntax(other, "after array element")),
            }
        }
    }

    fn string(&mut self) -> Result<(), Error> {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
                byte @ 0..=0x1f => return Err(syntax(byte, "in string literal")),
                _ => {}
            }
        }
    }

    fn escape(&mut self) -> Result<(), Error> {
        match self.next()? {
            b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => Ok(()),
            b'u' => (0..4).try_for_each(|_| match self.next()? {
                digit if digit.is_ascii_hexdigit() => Ok(()),
                other => Err(syntax(other, "in \\u hexadecimal character escape")),
            }),
            other => Err(syntax(other, "in string escape code")),
        }
    }

    /// The rest of a number after its first digit.
    fn number(&mut self, first: u8) -> Result<(), Error> {
        if first != b'0' {
            self.digits();
        }
        if self.take(b'.') {
            self.digit("after decimal point in numeric literal")?;
            self.digits();
        }
        if self.take(b'e') || self.take(b'E') {
            let _ = self.take(b'+') || self.take(b'-');
            self.digit("in exponent of numeric literal")?;
            self.digits();
        }
        Ok(())
    }

    fn take(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn digit(&mut self, context: &'static str) -> Result<(), Error> {
        match self.next()? {
            b'0'..=b'9' => Ok(()),
            other => Err(syntax(other, context)),
        }
    }

    fn digits(&mut self) {
        while let Some((b'0'..=b'9', rest)) = self.rest.split_first() {
            self.rest = rest;
        }
    }

    /// The rest of a word: its letters, each with what is said when it is another.
    fn literal(&mut self, letters: &[(u8, &'static str)]) -> Result<(), Error> {
        letters.iter().try_for_each(|(letter, context)| match self.next()? {
            byte if byte == *letter => Ok(()),
            other => Err(syntax(other, context)),
        })
    }
}

const TRUE: [(u8, &str); 3] = [
    (b'r', "in literal true (expecting 'r')"),
    (b'u', "in literal true (expecting 'u')"),
    (b'e', "in literal true (expecting 'e')"),
];
const FALSE: [(u8, &str); 4] = [
    (b'a', "in literal false (expecting 'a')"),
    (b'l', "in literal false (expecting 'l')"),
    (b's', "in literal false (expecting 's')"),
    (b'e', "in literal false (expecting 'e')"),
];
const NULL: [(u8, &str); 3] = [
    (b'u', "in literal null (expecting 'u')"),
    (b'l', "in literal null (expecting 'l')"),
    (b'l', "in literal null (expecting 'l')"),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: impl AsRef<[u8]>) -> Result<(), String> {
        Checked::new(text.as_ref()).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn documents_are_accepted() {
        for text in [
            "null",
            " {\"a\" : [ ] , \"b\":[true,false, -0.1e+9 ,0,\"\\u12aB\\/\\n\"]}\r\n\t",
            "12E-3",
            "\"\u{7f}ä\"",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        assert_eq!(check(b"\"\xff\""), Ok(()));
        assert_eq!(Checked::new(b" 1\n").unwrap().as_bytes(), b"1");
    }

    #[test]
    fn what_is_wrong_is_said_as_go_says_it() {
        for (text, expected) in [
            ("x", "'x' looking for beginning of value"),
            ("'", r"'\'' looking for beginning of value"),
            ("\u{b}", r"'\v' looking for beginning of value"),
            ("{}x", "'x' after top-level value"),
            ("{x", "'x' looking for beginning of object key string"),
            ("{\"a\":1,}", "'}' looking for beginning of object key string"),
            ("{\"a\" 1}", "'1' after object key"),
            ("{\"a\":1 2}", "'2' after object key:value pair"),
            ("[1 2]", "'2' after array element"),
            ("[1,]", "']' looking for beginning of value"),
            ("\"\n\"", r"'\n' in string literal"),
            ("\"\\x\"", "'x' in string escape code"),
            ("\"\\u12G\"", "'G' in \\u hexadecimal character escape"),
            ("-x", "'x' in numeric literal"),
            ("01", "'1' after top-level value"),
            ("1.x", "'x' after decimal point in numeric literal"),
            ("1e+x", "'x' in exponent of numeric literal"),
            ("tru1", "'1' in literal true (expecting 'e')"),
            ("\u{1}", r"'\x01' looking for beginning of value"),
        ] {
            assert_eq!(check(text), Err(format!("invalid character {expected}")), "{text}");
        }
        for text in
            ["", " ", "{", "{\"a\"", "{\"a\":", "[", "[1,", "\"", "\"\\u1", "1.", "1e", "nul", "-"]
        {
            assert_eq!(check(text), Err("unexpected end of JSON input".to_owned()), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert_eq!(check(nested(DEPTH_MAX)), Ok(()));
        assert_eq!(check(nested(DEPTH_MAX + 1)), Err(Error::TooDeep.to_string()));
        assert_eq!(check(vec![b'['; 1 << 20]), Err(Error::TooDeep.to_string()));
        let objects = "{\"a\":".repeat(1 << 16);
        assert_eq!(check(objects), Err(Error::TooDeep.to_string()));
    }

    proptest! {
        /// An independent reader accepts the same texts.
        #[test]
        fn agrees_with_serde(text in "[\\[\\]{}:,\"0-9.eE+\\- truefalsn\\\\u]{0,12}") {
            let other = serde_json::from_str::<&serde_json::value::RawValue>(&text);
            prop_assert_eq!(check(&text).is_ok(), other.is_ok());
        }
    }
}
