//! A namespace as one stream: export, restore, verify.
//!
//! The stream holds the properties and every record that the log still has, oldest first, each
//! block with a checksum, and ends with a trailer that says how many there were, so that a cut
//! stream is told from a whole one.

use std::io::{Read, Write};

use crate::{Engine, Error, Name, Namespace, SeqNo};

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Writes in it.
    pub record_count: u64,
    /// The newest of them.
    pub last: SeqNo,
}

/// Writes a namespace to a stream. An encrypted namespace is written decrypted: the stream's
/// place must be private. Passwords are part of it.
///
/// # Errors
///
/// [`Error::Write`] if the stream fails, and as [`Namespace::read_log`].
pub fn export(_namespace: &mut Namespace, _stream: &mut dyn Write) -> Result<Summary, Error> {
    unimplemented!()
}

/// Makes a namespace of a stream. If it can't be read to its end, there is no namespace.
///
/// # Errors
///
/// [`Error::Format`], [`Error::Read`] if the stream fails, and as [`Engine::create`] and
/// [`Namespace::apply`].
pub fn restore(
    _engine: &Engine,
    _name: &Name,
    _stream: &mut dyn Read,
) -> Result<(Namespace, Summary), Error> {
    unimplemented!()
}

/// Reads a stream to its end and believes nothing.
///
/// # Errors
///
/// [`Error::Format`], [`Error::Read`].
pub fn verify(_stream: &mut dyn Read) -> Result<Summary, Error> {
    unimplemented!()
}
