//! What was recorded from the grid's own peers (`ci/vectors/rmb.json`) is understood, and comes out
//! again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hostd_rmb::envelope::{Address, Envelope};
use hostd_rmb::identity::{AccountId, Identity};
use hostd_rmb::jwt::{Claims, Unverified, issue};
use hostd_rmb::seal::{CipherError, Desk, EncryptionKey, OpenError};
use hostd_rmb::signature::{Scheme, Version, verify};
use hostd_rmb::twins::{Twin, TwinId};
use serde_json::Value;

fn vectors(name: &str, count: usize) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/vectors/rmb.json");
    let mut all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let Value::Array(cases) = all[name].take() else { panic!("no {name}") };
    assert_eq!(cases.len(), count, "cases of {name}");
    cases
}

fn text<'a>(case: &'a Value, name: &str) -> &'a str {
    case[name].as_str().unwrap()
}

fn hex(case: &Value, name: &str) -> Vec<u8> {
    let digits = text(case, name).as_bytes();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn account(case: &Value, name: &str) -> AccountId {
    AccountId::from_bytes(hex(case, name).try_into().unwrap())
}

/// How the signer of a case signs, by the first letters of its name.
fn scheme(name: &str) -> Scheme {
    match name.get(..2) {
        Some("sr") => Scheme::Sr25519,
        Some("ed") => Scheme::Ed25519,
        _ => panic!("{name}"),
    }
}

#[test]
fn keys_come_of_mnemonics() {
    for case in vectors("keys_from_mnemonic", 4) {
        let mnemonic = text(&case, "mnemonic");
        let sr25519 = Identity::from_phrase(Scheme::Sr25519, mnemonic).unwrap();
        assert_eq!(sr25519.account(), account(&case, "sr25519_account"));
        let ed25519 = Identity::from_phrase(Scheme::Ed25519, mnemonic).unwrap();
        assert_eq!(ed25519.account(), account(&case, "ed25519_account"));
        for identity in [sr25519, ed25519] {
            let key = identity.encryption_key(Version::V1);
            assert_eq!(key.to_bytes()[..], hex(&case, "secp256k1_pub_compressed"));
            assert_eq!(EncryptionKey::parse(&key.to_bytes()), Ok(key));
        }
    }
}

#[test]
fn envelopes_are_read_verified_and_written_again() {
    for case in vectors("envelopes", 24) {
        let name = text(&case, "name");
        let bytes = hex(&case, "envelope_hex");
        let envelope = Envelope::parse(bytes.clone().into()).unwrap();
        let challenge = envelope.challenge_v1();
        assert_eq!(challenge[..], hex(&case, "md5_hex"), "{name}");
        let signature = hex(&case, "signature_hex");
        assert_eq!(envelope.signature.as_deref(), Some(&signature[..]));
        let account = account(&case, "account_hex");
        verify(account, Version::V1, &challenge, &signature).unwrap();

        // The same fields, whatever their order: upstream's writer has the variants last.
        let written = envelope.to_bytes().unwrap();
        assert_eq!(fields(&written), fields(&bytes), "{name}");
        assert_eq!(Envelope::parse(written).unwrap(), envelope);
    }
}

/// The bytes of each field, sorted.
fn fields(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let before = bytes;
        let (tag, wire_type) = decode_key(&mut bytes).unwrap();
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).unwrap();
        fields.push(before[..before.len() - bytes.len()].to_vec());
    }
    fields.sort();
    fields
}

#[test]
fn envelopes_are_signed_as_upstream_does() {
    for case in vectors("envelopes", 24) {
        let name = text(&case, "name");
        let envelope = Envelope::parse(hex(&case, "envelope_hex").into()).unwrap();
        let scheme = scheme(name);
        let signer = Identity::from_phrase(scheme, text(&case, "signer_uri")).unwrap();
        assert_eq!(signer.account(), account(&case, "account_hex"), "{name}");

        let desk = |identity: &Arc<Identity>, address: &Option<Address>, encryption| {
            Desk::new(Arc::clone(identity), address.clone().unwrap(), encryption)
        };
        let signer = Arc::new(signer);
        let sender = desk(&signer, &envelope.source, None);
        let source = Twin::from_chain(
            TwinId::new(envelope.source.as_ref().unwrap().twin).unwrap(),
            signer.account(),
            None,
            Some(&signer.encryption_key(Version::V1).to_bytes()),
        );
        // Whoever gets it: what is readable opens, what is made up as a cipher does not.
        let receiver = desk(&signer, &envelope.destination, Some(Version::V1));
        match receiver.open(&envelope, &source) {
            Ok(opened) => assert!(!opened.is_encrypted && !name.contains("cipher"), "{name}"),
            Err(error) => {
                assert_eq!(error, OpenError::Cipher(CipherError::Wrong));
                assert!(name.contains("cipher"), "{name}");
            }
        }
        if name.contains("cipher") {
            continue;
        }
        // Closed again at the same second, an ed25519 signature is the very same.
        let unsigned = Envelope { signature: None, ..envelope.clone() };
        let to = Twin { encryption_key: Ok(None), ..source };
        let closed = sender.close(unsigned, &to, Default::default(), envelope.timestamp).unwrap();
        let closed = Envelope::parse(closed).unwrap();
        match scheme {
            Scheme::Ed25519 if envelope.payload.is_some() => assert_eq!(closed, envelope, "{name}"),
            // Randomized, or with an empty payload where upstream has none.
            _ => assert_eq!(closed.uid, envelope.uid),
        }
        assert!(sender.open(&closed, &to).is_ok(), "{name}");
    }
}

#[test]
fn tokens_are_verified_and_made() {
    for case in vectors("jwt", 4) {
        let token = text(&case, "jwt");
        let signer = text(&case, "signer");
        let (_, uri) = signer.split_once(' ').unwrap();
        let identity = Identity::from_phrase(scheme(signer), uri).unwrap();
        let unverified = Unverified::parse(token).unwrap();
        assert_eq!(u64::from(unverified.twin().number()), case["twin"].as_u64().unwrap());
        // The day of the recording is over, so the clock is set back.
        let iat = {
            let over = Unverified::parse(token).unwrap().verify(identity.account(), u64::MAX);
            let text = over.unwrap_err().to_string();
            text.split(' ').nth(4).unwrap().parse().unwrap()
        };
        let claims = unverified.verify(identity.account(), iat).unwrap();
        let ttl = case["ttl"].as_u64().unwrap();
        let expected = Claims {
            sub: 7,
            sid: case["sid"].as_str().map(String::from),
            iat,
            exp: iat + ttl,
            aud: None,
        };
        assert_eq!(claims, expected);
        let ours = issue(&identity, &claims);
        match identity.scheme() {
            Scheme::Ed25519 => assert_eq!(ours, token),
            Scheme::Sr25519 => {
                let text = |token: &str| token.rsplit_once('.').unwrap().0.to_owned();
                assert_eq!(text(&ours), text(token));
                let ours = Unverified::parse(&ours).unwrap();
                ours.verify(identity.account(), iat).unwrap();
            }
        }
    }
}

#[test]
fn payloads_share_the_frames_memory() {
    let case = vectors("envelopes", 24).remove(0);
    let bytes = Bytes::from(hex(&case, "envelope_hex"));
    let envelope = Envelope::parse(bytes.clone()).unwrap();
    let Some(hostd_rmb::envelope::Payload::Plain(payload)) = envelope.payload else { panic!() };
    let range = bytes.as_ptr() as usize..bytes.as_ptr() as usize + bytes.len();
    assert!(range.contains(&(payload.as_ptr() as usize)));
}
