//! How large an envelope and its fields may be.
//!
//! Protobuf lets a few bytes become many: two bytes make a string in a list, which takes 24. So the
//! number of fields is checked before anything is parsed, and the size of each afterwards.

use bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};

use super::{Body, Envelope};

/// Most bytes of an envelope: room for a deployment of thousands of workloads.
pub const ENVELOPE_SIZE_MAX: usize = 8 * 1024 * 1024;
/// Most fields of an envelope, repeated and unknown ones included.
pub const FIELD_COUNT_MAX: usize = 64;
/// Most bytes of an id; a UUID has 36.
pub const UID_SIZE_MAX: usize = 128;
/// Most bytes of the tags.
pub const TAGS_SIZE_MAX: usize = 1024;
/// Most bytes of a session's name.
pub const CONNECTION_SIZE_MAX: usize = 256;
/// Most bytes of a command's name.
pub const COMMAND_SIZE_MAX: usize = 256;
/// Most bytes of an error's text.
pub const MESSAGE_SIZE_MAX: usize = 64 * 1024;
/// Most bytes of a schema's name.
pub const SCHEMA_SIZE_MAX: usize = 128;
/// Most bytes of relays' names: as many as the chain takes.
pub const RELAY_SIZE_MAX: usize = 1024;

/// Why bytes are no envelope.
#[derive(Debug, thiserror::Error, PartialEq, Clone)]
pub enum EnvelopeError {
    /// Larger than any.
    #[error("an envelope has at most {ENVELOPE_SIZE_MAX} bytes, this one {0}")]
    Size(usize),
    /// More fields than any.
    #[error("an envelope has at most {FIELD_COUNT_MAX} fields")]
    FieldCount,
    /// Not the protobuf that it should be.
    #[error("{0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A field that is too long.
    #[error("{field} has at most {max} bytes, not {size}")]
    FieldSize {
        /// Which.
        field: &'static str,
        /// Its size in bytes.
        size: usize,
        /// What would be fine.
        max: usize,
    },
    /// Without an id nobody could answer it.
    #[error("the uid is empty")]
    NoUid,
}

/// Looks at the size and the number of fields, and parses nothing.
pub(super) fn check_shape(bytes: &[u8]) -> Result<(), EnvelopeError> {
    if bytes.len() > ENVELOPE_SIZE_MAX {
        return Err(EnvelopeError::Size(bytes.len()));
    }
    let mut rest = bytes;
    let mut count = 0;
    while rest.has_remaining() {
        count += 1;
        if count > FIELD_COUNT_MAX {
            return Err(EnvelopeError::FieldCount);
        }
        let (tag, wire_type): (u32, WireType) = decode_key(&mut rest)?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
    }
    Ok(())
}

impl Envelope {
    /// Holds the sizes of all fields against their limits.
    pub(super) fn check_limits(&self) -> Result<(), EnvelopeError> {
        if self.uid.is_empty() {
            return Err(EnvelopeError::NoUid);
        }
        let optional = |text: &Option<String>| text.as_deref().map_or(0, str::len);
        check("the uid", self.uid.len(), UID_SIZE_MAX)?;
        check("tags", optional(&self.tags), TAGS_SIZE_MAX)?;
        for address in [&self.source, &self.destination].into_iter().flatten() {
            check("a connection", optional(&address.connection), CONNECTION_SIZE_MAX)?;
        }
        match &self.body {
            Some(Body::Request(request)) => {
                check("the command", request.command.len(), COMMAND_SIZE_MAX)?;
            }
            Some(Body::Error(error)) => {
                check("the error", error.message.len(), MESSAGE_SIZE_MAX)?;
            }
            Some(Body::Response(_) | Body::Ping(_) | Body::Pong(_)) | None => {}
        }
        check("the schema", optional(&self.schema), SCHEMA_SIZE_MAX)?;
        check("federation", optional(&self.federation), RELAY_SIZE_MAX)?;
        self.relays.iter().try_for_each(|relay| check("a relay", relay.len(), RELAY_SIZE_MAX))
    }
}

fn check(field: &'static str, size: usize, max: usize) -> Result<(), EnvelopeError> {
    if size > max { Err(EnvelopeError::FieldSize { field, size, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::{Address, ErrorReply, Payload, Request};
    use super::*;

    fn refused(change: impl FnOnce(&mut Envelope)) -> String {
        let mut envelope = Envelope { uid: "u".into(), ..Envelope::default() };
        envelope.to_bytes().unwrap();
        change(&mut envelope);
        let bytes = prost::Message::encode_to_vec(&envelope);
        let error = Envelope::parse(bytes.into()).unwrap_err();
        assert_eq!(envelope.to_bytes(), Err(error.clone()));
        error.to_string()
    }

    #[test]
    fn each_field_has_its_limit() {
        let long = |size: usize| "x".repeat(size + 1);
        assert_eq!(refused(|e| e.uid.clear()), "the uid is empty");
        assert_eq!(
            refused(|e| e.uid = long(UID_SIZE_MAX)),
            "the uid has at most 128 bytes, not 129"
        );
        refused(|e| e.tags = Some(long(TAGS_SIZE_MAX)));
        let address = || Some(Address { twin: 1, connection: Some(long(CONNECTION_SIZE_MAX)) });
        refused(|e| e.source = address());
        refused(|e| e.destination = address());
        let command = long(COMMAND_SIZE_MAX);
        refused(|e| e.body = Some(Body::Request(Request { command })));
        let message = long(MESSAGE_SIZE_MAX);
        refused(|e| e.body = Some(Body::Error(ErrorReply { code: 0, message })));
        refused(|e| e.schema = Some(long(SCHEMA_SIZE_MAX)));
        refused(|e| e.federation = Some(long(RELAY_SIZE_MAX)));
        refused(|e| e.relays = vec![long(RELAY_SIZE_MAX)]);
        refused(|e| e.relays = vec![String::new(); FIELD_COUNT_MAX]);
        let payload = vec![0; ENVELOPE_SIZE_MAX];
        refused(|e| e.payload = Some(Payload::Plain(payload.into())));
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&b"\xff"[..], b"hello world", &[0x0a, 0x05, b'a'], &[0x3b], &[0x3c]] {
            let parsed = Envelope::parse(bytes.to_vec().into());
            assert!(matches!(parsed, Err(EnvelopeError::Protobuf(_))), "{parsed:?}");
        }
    }
}
