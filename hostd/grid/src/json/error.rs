//! Why a document can't be read, in Go's words.

use std::fmt;

use crate::limits::{DEPLOYMENT_SIZE_MAX, DEPTH_MAX, VALUE_COUNT_MAX};

/// Why a document can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More bytes than anybody sends.
    #[error("deployment of {size} bytes, at most {DEPLOYMENT_SIZE_MAX} are accepted")]
    TooLarge {
        /// Bytes that were sent.
        size: usize,
    },
    /// Lists and objects inside one another.
    #[error("JSON is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// Too much to keep in memory.
    #[error("JSON has more than {VALUE_COUNT_MAX} list elements and map entries")]
    TooMany,
    /// It ends in the middle.
    #[error("unexpected end of JSON input")]
    UnexpectedEnd,
    /// It is no JSON.
    #[error("invalid character {byte} {context}")]
    Syntax {
        /// What is there.
        byte: Quoted,
        /// Where it was met.
        context: &'static str,
    },
    /// A value of another type than its place has.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// A text that is not what it should be: an address, hexadecimal digits, a date.
    #[error("{0}")]
    Text(String),
}

/// A value of another type than its place has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeError {
    /// What is there: a kind, and the digits if it is a number out of range.
    pub(super) value: String,
    /// The innermost struct, without its package.
    pub(super) object: &'static str,
    /// Names of the members that lead there, with dots in between.
    pub(super) path: String,
    /// `[]` for a list, else nothing.
    pub(super) prefix: &'static str,
    /// Go's name of the type that belongs there.
    pub(super) go_type: &'static str,
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, object, path, prefix, go_type } = self;
        if path.is_empty() {
            write!(f, "json: cannot unmarshal {value} into Go value of type {prefix}{go_type}")
        } else {
            write!(
                f,
                "json: cannot unmarshal {value} into Go struct field {object}.{path} of type \
                 {prefix}{go_type}"
            )
        }
    }
}

impl std::error::Error for TypeError {}

/// A byte as Go quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted(pub u8);

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b'\'' => f.write_str(r"'\''"),
            b'\\' => f.write_str(r"'\\'"),
            0x07 => f.write_str(r"'\a'"),
            0x08 => f.write_str(r"'\b'"),
            0x0c => f.write_str(r"'\f'"),
            b'\n' => f.write_str(r"'\n'"),
            b'\r' => f.write_str(r"'\r'"),
            b'\t' => f.write_str(r"'\t'"),
            0x0b => f.write_str(r"'\v'"),
            byte @ (0..=0x1f | 0x7f) => write!(f, r"'\x{byte:02x}'"),
            byte @ (0x80..=0xa0 | 0xad) => write!(f, r"'\u{byte:04x}'"),
            byte => write!(f, "'{}'", char::from(byte)),
        }
    }
}
