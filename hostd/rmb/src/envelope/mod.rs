//! The message on the wire: one protobuf (proto3) in one binary websocket frame.
//!
//! The fields and their numbers are those of the living grid (`reference: tfchain-rmb 3.1`), and
//! fields that we do not know are skipped, not refused. Bytes become an [`Envelope`] by
//! [`Envelope::parse`] alone, which holds every limit of [`limits`]: what was parsed is small enough
//! to be kept, and was cheap to parse.
//!
//! An envelope holds what was on the wire and has no opinion: whether the source wrote it, whether it
//! is still fresh and what is in its cipher, [`crate::seal`] and its callers say.

mod challenge;
mod clock;
pub mod limits;

use std::fmt;

use bytes::Bytes;
use prost::Message as _;

use crate::twins::TwinId;

pub use clock::{EXPIRATION_DEFAULT, EXPIRATION_MAX, TIMESTAMP_AHEAD_MAX, unix_now};
pub use limits::EnvelopeError;

/// The schema of every payload on the grid: JSON.
pub const SCHEMA_JSON: &str = "application/json";

/// The tag of who would rather know at once that the destination is not connected than wait for it.
pub const FAIL_FAST: &str = "fail-fast";

/// A message from one twin to another.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct Envelope {
    /// Id of the message; an answer has its question's.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Words for relays, such as [`FAIL_FAST`].
    #[prost(string, optional, tag = "2")]
    pub tags: Option<String>,
    /// When it was sealed, in seconds since 1970.
    #[prost(uint64, tag = "3")]
    pub timestamp: u64,
    /// How long it is good for, in seconds from then.
    #[prost(uint64, tag = "4")]
    pub expiration: u64,
    /// Who sends it; absent, or twin 0, if a relay does.
    #[prost(message, optional, tag = "5")]
    pub source: Option<Address>,
    /// Who it is for.
    #[prost(message, optional, tag = "6")]
    pub destination: Option<Address>,
    /// What kind of message it is.
    #[prost(oneof = "Body", tags = "7, 8, 12, 15, 16")]
    pub body: Option<Body>,
    /// A kind byte and 64 bytes, see [`crate::signature`].
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub signature: Option<Bytes>,
    /// What the payload is; see [`SCHEMA_JSON`].
    #[prost(string, optional, tag = "10")]
    pub schema: Option<String>,
    /// Where the destination's relays are, as older peers say it. It counts for the signature alone.
    #[prost(string, optional, tag = "11")]
    pub federation: Option<String>,
    /// The payload, readable or sealed.
    #[prost(oneof = "Payload", tags = "13, 14")]
    pub payload: Option<Payload>,
    /// Where the source's relays are, as older peers say it. It counts for the signature alone.
    #[prost(string, repeated, tag = "17")]
    pub relays: Vec<String>,
}

/// One of a twin's connections.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Address {
    /// The twin's number on the chain.
    #[prost(uint32, tag = "1")]
    pub twin: u32,
    /// Which of the twin's sessions, if it has several.
    #[prost(string, optional, tag = "2")]
    pub connection: Option<String>,
}

impl Address {
    /// That twin's session; none is the nameless one.
    pub fn new(twin: TwinId, connection: Option<&str>) -> Self {
        let connection = connection.filter(|name| !name.is_empty()).map(String::from);
        Self { twin: twin.number(), connection }
    }

    /// The twin, unless it is nobody.
    pub fn twin_id(&self) -> Option<TwinId> {
        TwinId::new(self.twin)
    }

    /// The session's name, if it has one; an empty one is none.
    pub fn session(&self) -> Option<&str> {
        self.connection.as_deref().filter(|name| !name.is_empty())
    }
}

/// The kinds of messages.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// Please do.
    #[prost(message, tag = "7")]
    Request(Request),
    /// Done.
    #[prost(message, tag = "8")]
    Response(Response),
    /// Not done.
    #[prost(message, tag = "12")]
    Error(ErrorReply),
    /// Are you there? For the relay.
    #[prost(message, tag = "15")]
    Ping(Ping),
    /// I am.
    #[prost(message, tag = "16")]
    Pong(Pong),
}

/// Asks for a command; its argument is the payload.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Request {
    /// Dotted, such as `zos.deployment.deploy`.
    #[prost(string, tag = "1")]
    pub command: String,
}

/// A command's result is the payload.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Response {}

/// Why there is no result.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ErrorReply {
    /// 100 to 106 and 500 say what is wrong with an envelope; 0 is anything else.
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// For people, and for clients that look for certain texts.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// An empty question.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Ping {}

/// An empty answer.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Pong {}

/// A payload, as it is on the wire.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
#[prost(skip_debug)]
pub enum Payload {
    /// For all to read.
    #[prost(bytes = "bytes", tag = "13")]
    Plain(Bytes),
    /// For the destination.
    #[prost(bytes = "bytes", tag = "14")]
    Cipher(Bytes),
}

impl Envelope {
    /// Reads what came in one frame. Payloads are parts of `bytes`, not copies.
    pub fn parse(bytes: Bytes) -> Result<Self, EnvelopeError> {
        limits::check_shape(&bytes)?;
        let envelope = Self::decode(bytes)?;
        envelope.check_limits()?;
        Ok(envelope)
    }

    /// The bytes of one frame, which [`parse`](Self::parse) reads.
    pub fn to_bytes(&self) -> Result<Bytes, EnvelopeError> {
        self.check_limits()?;
        let bytes = self.encode_to_vec();
        limits::check_shape(&bytes)?;
        Ok(bytes.into())
    }

    /// The twin that says it sent this; none if a relay did.
    pub fn source_twin(&self) -> Option<TwinId> {
        self.source.as_ref().and_then(Address::twin_id)
    }

    /// The twin that this is for.
    pub fn destination_twin(&self) -> Option<TwinId> {
        self.destination.as_ref().and_then(Address::twin_id)
    }

    /// Whether `tag` is one of the words in `tags`.
    pub fn has_tag(&self, tag: &str) -> bool {
        let separator = |character: char| character.is_whitespace() || character == ',';
        self.tags.as_deref().is_some_and(|tags| tags.split(separator).any(|word| word == tag))
    }
}

/// All but the payload, which may be somebody's secret.
impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("uid", &self.uid)
            .field("source", &self.source)
            .field("destination", &self.destination)
            .field("timestamp", &self.timestamp)
            .field("expiration", &self.expiration)
            .field("body", &self.body)
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(bytes) => write!(f, "Plain({} bytes)", bytes.len()),
            Self::Cipher(bytes) => write!(f, "Cipher({} bytes)", bytes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            uid: "u-1".into(),
            source: Some(Address { twin: 7, connection: None }),
            payload: Some(Payload::Plain(Bytes::from_static(b"secret"))),
            ..Envelope::default()
        }
    }

    #[test]
    fn debug_shows_no_payload() {
        let shown = format!("{:?}", envelope());
        assert!(shown.contains("Plain(6 bytes)") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut bytes = envelope().to_bytes().unwrap().to_vec();
        // Field 100, a varint; field 101, a string; field 102, 64 bits; field 103, 32 bits.
        bytes.extend_from_slice(&[0xa0, 0x06, 0x05]);
        bytes.extend_from_slice(&[0xaa, 0x06, 0x02, b'h', b'i']);
        bytes.extend_from_slice(&[0xb1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes.extend_from_slice(&[0xbd, 0x06, 1, 2, 3, 4]);
        assert_eq!(Envelope::parse(bytes.into()).unwrap(), envelope());
    }

    #[test]
    fn tags_are_words() {
        let mut envelope = envelope();
        assert!(!envelope.has_tag("fail-fast"));
        for (tags, has) in [("fail-fast", true), ("x fail-fast,y", true), ("fail-faster", false)] {
            envelope.tags = Some(tags.into());
            assert_eq!(envelope.has_tag("fail-fast"), has, "{tags}");
        }
    }

    #[test]
    fn twin_0_and_an_empty_session_are_nobody_and_none() {
        let address = Address { twin: 0, connection: Some(String::new()) };
        assert_eq!((address.twin_id(), address.session()), (None, None));
    }
}
