//! Desks write to each other, in every combination of keys.

use super::*;
use crate::envelope::{Body, ErrorReply, Request};
use crate::signature::Scheme;

const NOW: u64 = 1_000_000;

fn desk(number: u32, encryption: Option<Version>) -> Desk {
    let seed = [u8::try_from(number).unwrap(); 32];
    let identity = Arc::new(Identity::from_seed(Scheme::Sr25519, &seed).unwrap());
    Desk::new(identity, Address { twin: number, connection: None }, encryption)
}

fn twin(desk: &Desk) -> Twin {
    let key = desk.encryption.map(|version| desk.identity.encryption_key(version));
    Twin {
        id: desk.address.twin_id().unwrap(),
        account: desk.identity.account(),
        relays: Vec::new(),
        encryption_key: Ok(key),
    }
}

fn letter() -> Envelope {
    Envelope {
        uid: "u-1".into(),
        expiration: 300,
        destination: Some(Address { twin: 2, connection: None }),
        body: Some(Body::Request(Request { command: "zos.system.version".into() })),
        payload: Some(Payload::Plain("null".into())),
        ..Envelope::default()
    }
}

fn closed(from: &Desk, to: &Desk) -> Envelope {
    let bytes = from.close(letter(), &twin(to), Privacy::Preferred, NOW).unwrap();
    Envelope::parse(bytes).unwrap()
}

const KEYS: [Option<Version>; 3] = [None, Some(Version::V1), Some(Version::V2)];

#[test]
fn each_pair_of_keys_leads_to_what_the_table_says() {
    for (ours, theirs) in KEYS.into_iter().flat_map(|ours| KEYS.map(|theirs| (ours, theirs))) {
        let (a, b) = (desk(1, ours), desk(2, theirs));
        let bytes = a.close(letter(), &twin(&b), Privacy::Preferred, NOW);
        let required = a.close(letter(), &twin(&b), Privacy::Required, NOW);
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && ours != theirs
        {
            let error = CipherError::NoCommonVersion { twin: twin(&b).id, theirs, ours };
            assert_eq!(bytes, Err(error.into()));
            continue;
        }
        let envelope = Envelope::parse(bytes.unwrap()).unwrap();
        assert_eq!((envelope.timestamp, envelope.expiration), (NOW, 300));
        let is_encrypted = ours.is_some() && theirs.is_some();
        assert_eq!(matches!(envelope.payload, Some(Payload::Cipher(_))), is_encrypted);
        assert_eq!(required.is_ok(), is_encrypted);
        let is_v2 = ours == Some(Version::V2) && theirs == Some(Version::V2);
        assert_eq!(envelope.signature()[0], if is_v2 { b'S' } else { b's' });
        let opened = b.open(&envelope, &twin(&a)).unwrap();
        assert_eq!(opened, Opened { payload: "null".into(), is_encrypted });
    }
}

#[test]
fn twins_of_version_2_take_nothing_less_from_one_another() {
    let (a, b) = (desk(1, Some(Version::V2)), desk(2, Some(Version::V2)));
    // As a sender that knows of no version 2 would do it, or a relay that got hold of one.
    let naive = desk(1, None);
    let envelope = closed(&naive, &b);
    let (expected, found) = (Version::V2, Version::V1);
    let refused = b.open(&envelope, &twin(&a)).unwrap_err();
    assert_eq!(refused, SignatureError::Version { expected, found }.into());
}

#[test]
fn forged_and_changed_letters_are_refused() {
    for version in [Version::V1, Version::V2] {
        let (a, b) = (desk(1, Some(version)), desk(2, Some(version)));
        let envelope = closed(&a, &b);
        let refused = |change: &dyn Fn(&mut Envelope)| {
            let mut changed = envelope.clone();
            change(&mut changed);
            assert_ne!(changed, envelope);
            b.open(&changed, &twin(&a)).unwrap_err()
        };
        let wrong = OpenError::Signature(SignatureError::Wrong(a.identity.account()));
        assert_eq!(refused(&|e| e.uid.push('x')), wrong);
        assert_eq!(refused(&|e| e.timestamp += 1), wrong);
        assert_eq!(refused(&|e| e.payload = Some(Payload::Plain("null".into()))), wrong);
        assert_eq!(refused(&|e| e.tags = Some("x".into())), wrong);
        let missing = OpenError::Signature(SignatureError::Missing);
        assert_eq!(refused(&|e| e.signature = None), missing);
        // By somebody else.
        let forged = closed(&desk(3, Some(version)), &b);
        assert_eq!(b.open(&forged, &twin(&a)).unwrap_err(), wrong);
    }
}

#[test]
fn a_letter_signed_by_its_writer_may_still_be_for_somebody_else() {
    for version in [Version::V1, Version::V2] {
        let (a, b, c) = (desk(1, Some(version)), desk(2, Some(version)), desk(3, Some(version)));
        let refused = c.open(&closed(&a, &b), &twin(&a)).unwrap_err();
        assert_eq!(refused, OpenError::Cipher(CipherError::Wrong));
    }
}

#[test]
fn sealed_by_a_twin_without_a_key() {
    let (a, b) = (desk(1, Some(Version::V1)), desk(2, Some(Version::V1)));
    let envelope = closed(&a, &b);
    let without = Twin { encryption_key: Ok(None), ..twin(&a) };
    assert_eq!(b.open(&envelope, &without), Err(OpenError::NoKey));
    let off = desk(2, None);
    assert_eq!(off.open(&envelope, &twin(&a)), Err(CipherError::Off.into()));
}

#[test]
fn keys_of_unknown_kinds_are_neither_used_nor_ignored() {
    let b = desk(2, Some(Version::V1));
    let error = EncryptionKey::parse(&[0x79; 33]).unwrap_err();
    let strange = Twin { encryption_key: Err(error), ..twin(&b) };
    let refused = desk(1, Some(Version::V1)).close(letter(), &strange, Privacy::Preferred, NOW);
    assert_eq!(refused, Err(CipherError::UnknownKey { twin: strange.id, error }.into()));
    // Who encrypts nothing has nothing to be strict about.
    assert!(desk(1, None).close(letter(), &strange, Privacy::Preferred, NOW).is_ok());
}

#[test]
fn what_waited_too_long_is_not_sent() {
    let (a, b) = (desk(1, None), desk(2, None));
    let old = Envelope { timestamp: NOW - 300, ..letter() };
    let refused = a.close(old, &twin(&b), Privacy::Preferred, NOW);
    assert_eq!(refused, Err(CloseError::Expired));
}

#[test]
fn why_there_is_no_answer_can_always_be_said() {
    let (a, b) = (desk(1, Some(Version::V2)), desk(2, Some(Version::V1)));
    let body = Some(Body::Error(ErrorReply { code: 106, message: "no".into() }));
    let reply = Envelope { body, payload: None, ..letter() };
    let bytes = a.close_readable(reply, &twin(&b), NOW).unwrap();
    assert!(b.open(&Envelope::parse(bytes).unwrap(), &twin(&a)).is_ok());
}

#[test]
fn keys_are_read_as_they_are_written() {
    for version in [Version::V1, Version::V2] {
        let key = desk(1, None).identity.encryption_key(version);
        assert_eq!(EncryptionKey::parse(&key.to_bytes()), Ok(key));
    }
    for bytes in [&[2; 32][..], &[0x78; 34], &[0; 33], &[0xff; 33], &[]] {
        assert_eq!(EncryptionKey::parse(bytes), Err(KeyError { size: bytes.len() }));
    }
}
