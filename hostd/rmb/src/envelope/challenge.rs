//! What of an envelope is signed.
//!
//! Version 1 hashes the plain concatenation of the fields with MD5, and everyone does. Where one field
//! ends and the next begins is not hashed, nor is the kind of message or payload, so a relay can move
//! bytes from one field to another: twin 1 to twin 23 reads like twin 12 to twin 3. Version 2 hashes
//! with each field its number and its length, with BLAKE2b (`FORMAT.md`, "Challenge").

use std::fmt::Write as _;

use blake2b_simd::{Params, State};
use md5::{Digest as _, Md5};

use super::{Address, Body, Envelope, Payload};
use crate::identity::AccountId;
use crate::signature::{self, SignatureError, Version};

/// What version 2's challenge is bound to (BLAKE2b personalization).
const V2_PERSONAL: &[u8; 16] = b"zos-rmb-v2-chall";
/// What version 2's header is bound to, for encryption (BLAKE2b personalization).
const V2_HEADER_PERSONAL: &[u8; 16] = b"zos-rmb-v2-headr";
/// Size of version 2's challenge and header hash, in bytes.
const V2_SIZE: usize = 32;

impl Envelope {
    /// The 16 bytes that version 1 signs.
    pub fn challenge_v1(&self) -> [u8; 16] {
        let mut hash = Md5::new();
        let mut number = String::new();
        let mut text = |text: &str| hash.update(text.as_bytes());
        text(&self.uid);
        text(self.tags.as_deref().unwrap_or_default());
        let _ = write!(number, "{}{}", self.timestamp, self.expiration);
        for address in [&self.source, &self.destination] {
            let _ = write!(number, "{}", address.as_ref().map_or(0, |address| address.twin));
            text(&std::mem::take(&mut number));
            text(address.as_ref().and_then(|address| address.connection.as_deref()).unwrap_or(""));
        }
        match &self.body {
            Some(Body::Request(request)) => text(&request.command),
            Some(Body::Error(error)) => {
                text(&error.code.to_string());
                text(&error.message);
            }
            Some(Body::Response(_) | Body::Ping(_) | Body::Pong(_)) | None => {}
        }
        text(self.schema.as_deref().unwrap_or_default());
        text(self.federation.as_deref().unwrap_or_default());
        match &self.payload {
            Some(Payload::Plain(bytes) | Payload::Cipher(bytes)) => hash.update(bytes),
            None => {}
        }
        for relay in &self.relays {
            hash.update(relay.as_bytes());
        }
        hash.finalize().into()
    }

    /// The 32 bytes that version 2 signs: the header, and the payload as it is on the wire.
    pub fn challenge_v2(&self) -> [u8; V2_SIZE] {
        let mut fields = Fields::new(V2_PERSONAL);
        self.hash_header(&mut fields);
        match &self.payload {
            Some(Payload::Plain(bytes)) => fields.field(13, bytes),
            Some(Payload::Cipher(bytes)) => fields.field(14, bytes),
            None => {}
        }
        fields.finish()
    }

    /// Checks that `account` signed this, in whichever version it says. That is enough to pass it on;
    /// who is to act on it goes by [`Desk::open`](crate::seal::Desk::open), which has an opinion about
    /// versions.
    pub fn verify(&self, account: AccountId) -> Result<(), SignatureError> {
        let bytes = self.signature.as_deref().unwrap_or_default();
        match signature::version(bytes)? {
            Version::V1 => signature::verify(account, Version::V1, &self.challenge_v1(), bytes),
            Version::V2 => signature::verify(account, Version::V2, &self.challenge_v2(), bytes),
        }
    }

    /// What version 2's encryption authenticates along with the payload: all other fields but the
    /// signature.
    pub(crate) fn header_hash_v2(&self) -> [u8; V2_SIZE] {
        let mut fields = Fields::new(V2_HEADER_PERSONAL);
        self.hash_header(&mut fields);
        fields.finish()
    }

    /// All fields but payload and signature, in the order of their numbers.
    fn hash_header(&self, fields: &mut Fields) {
        fields.field(1, self.uid.as_bytes());
        fields.optional(2, self.tags.as_deref());
        fields.field(3, &self.timestamp.to_le_bytes());
        fields.field(4, &self.expiration.to_le_bytes());
        fields.address(5, self.source.as_ref());
        fields.address(6, self.destination.as_ref());
        match &self.body {
            Some(Body::Request(request)) => fields.field(7, request.command.as_bytes()),
            Some(Body::Response(_)) => fields.field(8, &[]),
            Some(Body::Error(error)) => {
                let code = error.code.to_le_bytes();
                fields.field(12, &[&code, error.message.as_bytes()].concat());
            }
            Some(Body::Ping(_)) => fields.field(15, &[]),
            Some(Body::Pong(_)) => fields.field(16, &[]),
            None => {}
        }
        fields.optional(10, self.schema.as_deref());
        fields.optional(11, self.federation.as_deref());
        for relay in &self.relays {
            fields.field(17, relay.as_bytes());
        }
    }
}

/// A hash that is fed with fields: number, length, contents.
struct Fields(State);

impl Fields {
    fn new(personal: &[u8; 16]) -> Self {
        Self(Params::new().hash_length(V2_SIZE).personal(personal).to_state())
    }

    fn field(&mut self, number: u8, contents: &[u8]) {
        let size = u64::try_from(contents.len()).expect("sizes fit into 64 bits");
        self.0.update(&[number]).update(&size.to_le_bytes()).update(contents);
    }

    fn optional(&mut self, number: u8, text: Option<&str>) {
        if let Some(text) = text {
            self.field(number, text.as_bytes());
        }
    }

    /// Twin, then whether there is a connection, then its name.
    fn address(&mut self, number: u8, address: Option<&Address>) {
        let Some(address) = address else { return };
        let connection = address.connection.as_deref();
        let twin = address.twin.to_le_bytes();
        let is_named = [u8::from(connection.is_some())];
        let name = connection.unwrap_or_default().as_bytes();
        self.field(number, &[&twin[..], &is_named, name].concat());
    }

    fn finish(self) -> [u8; V2_SIZE] {
        let hash = self.0.finalize();
        *hash.as_bytes().first_chunk().expect("a hash of the size that was asked for")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ErrorReply, Ping, Pong, Request, Response};
    use super::*;

    fn envelope(source: u32, connection: Option<&str>, destination: u32) -> Envelope {
        Envelope {
            uid: "u".into(),
            timestamp: 1,
            source: Some(Address { twin: source, connection: connection.map(String::from) }),
            destination: Some(Address { twin: destination, connection: None }),
            ..Envelope::default()
        }
    }

    /// Two envelopes that mean different things and that version 1 can't tell apart.
    fn assert_told_apart(a: &Envelope, b: &Envelope) {
        assert_ne!(a, b);
        assert_eq!(a.challenge_v1(), b.challenge_v1());
        assert_ne!(a.challenge_v2(), b.challenge_v2());
        assert_ne!(a.header_hash_v2(), b.header_hash_v2());
    }

    #[test]
    fn version_2_tells_apart_what_version_1_does_not() {
        assert_told_apart(&envelope(1, None, 23), &envelope(12, None, 3));
        assert_told_apart(&envelope(1, None, 23), &envelope(1, Some("2"), 3));
        assert_told_apart(&envelope(1, None, 2), &envelope(1, Some(""), 2));
        let of = |body: Body| Envelope { body: Some(body), ..envelope(1, None, 2) };
        let request = of(Body::Request(Request { command: "x".into() }));
        let response = of(Body::Response(Response {}));
        assert_told_apart(&request, &Envelope { schema: Some("x".into()), ..response.clone() });
        assert_told_apart(&response, &of(Body::Ping(Ping {})));
        assert_told_apart(&of(Body::Ping(Ping {})), &of(Body::Pong(Pong {})));
        let error = of(Body::Error(ErrorReply { code: 10, message: "1".into() }));
        assert_told_apart(&error, &of(Body::Error(ErrorReply { code: 101, message: "".into() })));
        let relays = |relays: [&str; 2]| Envelope {
            relays: relays.map(String::from).to_vec(),
            ..envelope(1, None, 2)
        };
        assert_told_apart(&relays(["ab", "c"]), &relays(["a", "bc"]));
    }

    #[test]
    fn version_2_tells_payloads_apart() {
        let of = |payload| Envelope { payload, ..envelope(1, None, 2) };
        let plain = of(Some(Payload::Plain("x".into())));
        let cipher = of(Some(Payload::Cipher("x".into())));
        assert_eq!(plain.challenge_v1(), cipher.challenge_v1());
        assert_ne!(plain.challenge_v2(), cipher.challenge_v2());
        assert_eq!(plain.header_hash_v2(), cipher.header_hash_v2());
        assert_ne!(of(None).challenge_v2(), of(Some(Payload::Plain("".into()))).challenge_v2());
    }
}
