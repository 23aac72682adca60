//! A walk over a checked document that fills values.

use std::borrow::Cow;
use std::mem;

use super::error::{Error, TypeError};
use super::scan::{Checked, is_space};
use super::text::unquote;
use crate::excerpt::excerpt;

/// A value that JSON can be read into, over what it has already.
pub(crate) trait Decode<'a>: Default {
    /// What Go calls the type; of a list, its elements'.
    const GO_TYPE: &'static str;

    /// Reads the next value. `go_type` is what errors call the type.
    fn decode(&mut self, decoder: &mut Decoder<'a>, go_type: &'static str) -> Result<(), Error>;
}

/// What kind of value comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Number => "number",
            Self::String => "string",
            Self::Array => "array",
            Self::Object => "object",
        }
    }
}

/// A member's name as it was sent.
pub(crate) struct MemberName<'a>(Cow<'a, str>);

impl MemberName<'_> {
    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it means the field `name`, by the simple folding of Unicode.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.0 == name || self.0.chars().map(fold).eq(name.chars().map(fold))
    }
}

/// Two characters beyond ASCII fold to letters of it: the long s and the Kelvin sign.
fn fold(character: char) -> char {
    match character {
        '\u{17f}' => 'S',
        '\u{212a}' => 'K',
        other => other.to_ascii_uppercase(),
    }
}

/// Where reading is, and what went wrong so far.
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
    /// The struct whose member is being read, and the members that led to it.
    object: &'static str,
    path: Vec<&'static str>,
    /// The first value of a wrong type.
    wrong: Option<TypeError>,
    /// How many more elements and entries may be read.
    budget: usize,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(text: Checked<'a>, budget: usize) -> Self {
        Self { rest: text.as_bytes(), object: "", path: Vec::new(), wrong: None, budget }
    }

    /// What is left of the budget, if all values had the right types.
    pub(super) fn finish(self) -> Result<usize, Error> {
        self.wrong.map_or(Ok(self.budget), |wrong| Err(wrong.into()))
    }

    /// The kind of the next value.
    pub(crate) fn kind(&mut self) -> Kind {
        match self.peek() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            _ => Kind::Null,
        }
    }

    /// The text of the next value, which is read by this.
    pub(crate) fn raw(&mut self) -> Checked<'a> {
        let kind = self.kind();
        let len = match kind {
            Kind::String => string_len(self.rest),
            Kind::Array | Kind::Object => nested_len(self.rest),
            Kind::Null | Kind::Bool | Kind::Number => {
                let ends = |byte: &u8| is_space(*byte) || matches!(byte, b',' | b']' | b'}');
                self.rest.iter().position(ends).unwrap_or(self.rest.len())
            }
        };
        let (value, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, &[]));
        self.rest = rest;
        Checked::part(value)
    }

    /// Passes over the next value.
    pub(crate) fn skip(&mut self) {
        let _ = self.raw();
    }

    /// The next value, which is a string.
    pub(crate) fn string(&mut self) -> Cow<'a, str> {
        unquote(self.raw().as_bytes())
    }

    /// Notes that the next value, which is passed over, has the wrong type.
    pub(crate) fn mismatch(&mut self, prefix: &'static str, go_type: &'static str) {
        let kind = self.kind();
        self.skip();
        self.note(kind.name().to_owned(), prefix, go_type);
    }

    /// Notes that a number is out of range, or has a fraction.
    pub(crate) fn bad_number(&mut self, digits: &str, go_type: &'static str) {
        self.note(format!("number {}", excerpt(digits)), "", go_type);
    }

    fn note(&mut self, value: String, prefix: &'static str, go_type: &'static str) {
        if self.wrong.is_none() {
            let path = self.path.join(".");
            self.wrong = Some(TypeError { value, object: self.object, path, prefix, go_type });
        }
    }

    /// Takes one element or entry off the budget.
    pub(crate) fn count(&mut self) -> Result<(), Error> {
        self.budget = self.budget.checked_sub(1).ok_or(Error::TooMany)?;
        Ok(())
    }

    /// Reads the members of a struct, which Go calls `go_type`. `null` leaves it as it is.
    pub(crate) fn object(
        &mut self,
        go_type: &'static str,
        member: impl FnMut(&mut Self, &MemberName<'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self.kind() {
            Kind::Null => self.skip(),
            Kind::Object => {
                let name = go_type.rsplit('.').next().unwrap_or(go_type);
                let outer = mem::replace(&mut self.object, name);
                self.members(member)?;
                self.object = outer;
            }
            _ => self.mismatch("", go_type),
        }
        Ok(())
    }

    /// Reads the members of the next value, which is an object.
    pub(crate) fn members(
        &mut self,
        mut member: impl FnMut(&mut Self, &MemberName<'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.advance();
        while self.peek() == Some(b'"') {
            let name = MemberName(self.string());
            // The colon.
            let _ = self.peek();
            self.advance();
            member(self, &name)?;
            if self.peek() == Some(b',') {
                self.advance();
                let _ = self.peek();
            }
        }
        self.advance();
        Ok(())
    }

    /// Reads the elements of the next value, which is an array, and says how many there are.
    pub(crate) fn elements(
        &mut self,
        mut element: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        self.advance();
        let mut count = 0;
        while !matches!(self.peek(), Some(b']') | None) {
            element(self, count)?;
            count += 1;
            if self.peek() == Some(b',') {
                self.advance();
            }
        }
        self.advance();
        Ok(count)
    }

    /// Reads a member.
    pub(crate) fn member<T: Decode<'a>>(
        &mut self,
        name: &'static str,
        value: &mut T,
    ) -> Result<(), Error> {
        self.member_of(name, value, T::GO_TYPE)
    }

    /// Reads a member whose type, or whose elements' type, Go calls `go_type`.
    pub(crate) fn member_of<T: Decode<'a>>(
        &mut self,
        name: &'static str,
        value: &mut T,
        go_type: &'static str,
    ) -> Result<(), Error> {
        self.path.push(name);
        value.decode(self, go_type)?;
        self.path.pop();
        Ok(())
    }

    /// The next byte that is not space.
    fn peek(&mut self) -> Option<u8> {
        while let Some((byte, rest)) = self.rest.split_first() {
            if !is_space(*byte) {
                return Some(*byte);
            }
            self.rest = rest;
        }
        None
    }

    fn advance(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }
}

/// Bytes of the string at the beginning of `text`, with its quotes.
fn string_len(text: &[u8]) -> usize {
    let mut bytes = text.iter().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return at + 1,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    text.len()
}

/// Bytes of the array or object at the beginning of `text`.
fn nested_len(text: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += match byte {
            b'"' => string_len(text.get(at..).unwrap_or_default()),
            _ => 1,
        };
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    at
}
