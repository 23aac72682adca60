//! Against `snow`, another implementation, in both roles of both patterns; and against damage.

use snow::{Builder, HandshakeState};

use super::*;

const PROLOGUE: &[u8] = b"what this is for";

fn secret(number: u8) -> SecretKey {
    SecretKey::from_bytes([number; 32])
}

fn snow(pattern: Pattern, number: u8, peer: Option<PublicKey>, initiates: bool) -> HandshakeState {
    let name = match pattern {
        Pattern::Ik => "Noise_IK_25519_ChaChaPoly_BLAKE2s",
        Pattern::Xx => "Noise_XX_25519_ChaChaPoly_BLAKE2s",
    };
    let key = [number; 32];
    let builder = Builder::new(name.parse().unwrap());
    let builder = builder.local_private_key(&key).unwrap().prologue(PROLOGUE).unwrap();
    let peer = peer.map(|peer| *peer.as_bytes());
    let builder = match &peer {
        Some(peer) => builder.remote_public_key(peer).unwrap(),
        None => builder,
    };
    if initiates { builder.build_initiator() } else { builder.build_responder() }.unwrap()
}

/// Whether keys are those of a finished handshake of snow: each opens what the other seals.
fn agree(keys: &Keys, snow: HandshakeState) {
    assert_eq!(snow.get_handshake_hash(), keys.hash);
    let mut transport = snow.into_transport_mode().unwrap();
    let mut sealed = [0; 64];
    let size = transport.write_message(b"from snow", &mut sealed).unwrap();
    let opened = cipher(&keys.receive, &mut sealed[..size], true);
    assert_eq!(opened, b"from snow");
    let mut ours = b"from us".to_vec();
    ours.resize(ours.len() + 16, 0);
    let sealed = cipher(&keys.send, &mut ours, false);
    let mut opened = [0; 64];
    let size = transport.read_message(&sealed, &mut opened).unwrap();
    assert_eq!(&opened[..size], b"from us");
}

/// Opens, or seals in front of 16 bytes of room, with the first nonce.
fn cipher(key: &TrafficKey, bytes: &mut [u8], opens: bool) -> Vec<u8> {
    use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_bytes()).unwrap());
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    if opens {
        return key.open_in_place(nonce, Aad::empty(), bytes).unwrap().to_vec();
    }
    let (text, room) = bytes.split_at_mut(bytes.len() - 16);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), text).unwrap();
    room.copy_from_slice(tag.as_ref());
    bytes.to_vec()
}

#[test]
fn an_initiator_agrees_with_snow() {
    for (pattern, known) in [(Pattern::Ik, Some(secret(2).public())), (Pattern::Xx, None)] {
        let mut ours = Initiator::new(pattern, &secret(1), known.as_ref(), PROLOGUE).unwrap();
        let mut theirs = snow(pattern, 2, None, false);
        let (mut message, mut payload) = (Vec::new(), [0; 100]);
        assert_eq!(ours.write(b"first", &mut message), Ok(Step::More));
        let size = theirs.read_message(&message, &mut payload).unwrap();
        assert_eq!(&payload[..size], b"first");
        let mut answer = [0; 200];
        let size = theirs.write_message(b"second", &mut answer).unwrap();
        let mut read = Vec::new();
        let step = ours.read(&answer[..size], &mut read).unwrap();
        assert_eq!((read.as_slice(), step == Step::Done), (&b"second"[..], pattern == Pattern::Ik));
        if pattern == Pattern::Xx {
            message.clear();
            assert_eq!(ours.write(b"third", &mut message), Ok(Step::Done));
            let size = theirs.read_message(&message, &mut payload).unwrap();
            assert_eq!(&payload[..size], b"third");
        }
        assert_eq!(ours.peer(), Some(secret(2).public()));
        assert_eq!(theirs.get_remote_static(), Some(&secret(1).public().as_bytes()[..]));
        agree(&ours.finish().unwrap(), theirs);
    }
}

#[test]
fn a_responder_agrees_with_snow() {
    for (pattern, known) in [(Pattern::Ik, Some(secret(2).public())), (Pattern::Xx, None)] {
        let mut theirs = snow(pattern, 1, known, true);
        let mut ours = Responder::new(pattern, &secret(2), PROLOGUE).unwrap();
        let (mut bytes, mut payload) = ([0; 200], Vec::new());
        let size = theirs.write_message(b"first", &mut bytes).unwrap();
        assert_eq!(ours.read(&bytes[..size], &mut payload), Ok(Step::More));
        let mut answer = Vec::new();
        let step = ours.write(b"second", &mut answer).unwrap();
        assert_eq!(step == Step::Done, pattern == Pattern::Ik);
        let size = theirs.read_message(&answer, &mut bytes).unwrap();
        assert_eq!(&bytes[..size], b"second");
        if pattern == Pattern::Xx {
            let size = theirs.write_message(b"third", &mut bytes).unwrap();
            assert_eq!(ours.read(&bytes[..size], &mut payload), Ok(Step::Done));
            assert_eq!(payload, b"firstthird");
        }
        assert_eq!(ours.peer(), Some(secret(1).public()));
        agree(&ours.finish().unwrap(), theirs);
    }
}

#[test]
fn overheads_are_what_they_are_said_to_be() {
    let (mut initiator, mut responder) = pair(Pattern::Ik);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let _ = initiator.write(b"12345", &mut first).unwrap();
    assert_eq!(first.len(), IK_FIRST_OVERHEAD + 5);
    let _ = responder.read(&first, &mut Vec::new()).unwrap();
    let _ = responder.write(b"1", &mut second).unwrap();
    assert_eq!(second.len(), IK_SECOND_OVERHEAD + 1);
}

fn pair(pattern: Pattern) -> (Initiator, Responder) {
    let peer = secret(2).public();
    let initiator = Initiator::new(pattern, &secret(1), Some(&peer), PROLOGUE).unwrap();
    (initiator, Responder::new(pattern, &secret(2), PROLOGUE).unwrap())
}

/// Reads `message` damaged in every way, none of which may be taken for it; then as it is.
fn read_after_damage(
    message: &[u8],
    has_plain_payload: bool,
    mut read: impl FnMut(&[u8], &mut Vec<u8>) -> Result<Step, NoiseError>,
) {
    let mut payload = b"before".to_vec();
    // XX's first message has nothing to recognise it by; damage shows in the next one.
    if !has_plain_payload {
        for place in 0..message.len() {
            let mut changed = message.to_vec();
            changed[place] ^= 0x10;
            let result = read(&changed, &mut payload);
            assert!(result.is_err(), "byte {place}: {result:?}");
        }
    }
    let size_min = if has_plain_payload { KEY_SIZE } else { message.len() };
    for size in 0..size_min {
        let result = read(&message[..size], &mut payload);
        let is_seen = matches!(result, Err(NoiseError::Short(_) | NoiseError::Forged));
        assert!(is_seen, "{size} bytes: {result:?}");
    }
    assert_eq!(
        read(&vec![0; MESSAGE_SIZE_MAX + 1], &mut payload),
        Err(NoiseError::Large(MESSAGE_SIZE_MAX + 1))
    );
    assert_eq!(payload, b"before");
    let _ = read(message, &mut payload).unwrap();
    assert_eq!(payload, b"beforethis");
}

#[test]
fn damaged_messages_change_nothing() {
    for pattern in [Pattern::Ik, Pattern::Xx] {
        let (mut initiator, mut responder) = pair(pattern);
        let is_plain = pattern == Pattern::Xx;
        let mut message = Vec::new();
        let _ = initiator.write(b"this", &mut message).unwrap();
        read_after_damage(&message, is_plain, |bytes, out| responder.read(bytes, out));
        message.clear();
        let _ = responder.write(b"this", &mut message).unwrap();
        read_after_damage(&message, false, |bytes, out| initiator.read(bytes, out));
        if pattern == Pattern::Xx {
            message.clear();
            let _ = initiator.write(b"this", &mut message).unwrap();
            read_after_damage(&message, false, |bytes, out| responder.read(bytes, out));
        }
        let (a, b) = (initiator.finish().unwrap(), responder.finish().unwrap());
        assert_eq!(a.hash, b.hash);
        assert_eq!(a.send.as_bytes(), b.receive.as_bytes());
        assert_eq!(b.send.as_bytes(), a.receive.as_bytes());
        assert_ne!(a.send.as_bytes(), a.receive.as_bytes());
    }
}

#[test]
fn another_prologue_or_another_key_is_another_handshake() {
    let (mut initiator, _) = pair(Pattern::Ik);
    let mut message = Vec::new();
    let _ = initiator.write(b"", &mut message).unwrap();
    let mut other = Responder::new(Pattern::Ik, &secret(2), b"something else").unwrap();
    assert_eq!(other.read(&message, &mut Vec::new()), Err(NoiseError::Forged));
    let mut other = Responder::new(Pattern::Ik, &secret(3), PROLOGUE).unwrap();
    assert_eq!(other.read(&message, &mut Vec::new()), Err(NoiseError::Forged));
}

#[test]
fn turns_are_kept() {
    let (mut initiator, mut responder) = pair(Pattern::Xx);
    let mut out = Vec::new();
    assert_eq!(initiator.read(&[0; 100], &mut out), Err(NoiseError::Turn(0)));
    assert_eq!(responder.write(b"", &mut out), Err(NoiseError::Turn(0)));
    let _ = initiator.write(b"", &mut out).unwrap();
    assert_eq!(initiator.write(b"", &mut out), Err(NoiseError::Turn(1)));
    assert_eq!(initiator.finish().unwrap_err(), NoiseError::NotDone(1));
    let large = vec![0; MESSAGE_SIZE_MAX];
    let (mut initiator, _) = pair(Pattern::Xx);
    let size = MESSAGE_SIZE_MAX + KEY_SIZE;
    out.clear();
    assert_eq!(initiator.write(&large, &mut out), Err(NoiseError::Large(size)));
    assert!(out.is_empty());
    assert_eq!(initiator.write(b"smaller", &mut out), Ok(Step::More));
    let without = Initiator::new(Pattern::Ik, &secret(1), None, PROLOGUE);
    assert_eq!(without.unwrap_err(), NoiseError::NoPeer);
}

/// Points of low order on the curve and its twist, all encodings that X25519 takes for them
/// (<https://cr.yp.to/ecdh.html#validate>).
fn low_order_points() -> Vec<[u8; 32]> {
    let field = |low: u8| {
        let mut point = [0xff; 32];
        (point[0], point[31]) = (low, 0x7f);
        point
    };
    let mut one = [0; 32];
    one[0] = 1;
    let eight: [u8; 32] = [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ];
    vec![[0; 32], one, eight, field(0xec), field(0xed), field(0xee)]
}

#[test]
fn points_of_low_order_are_refused() {
    for point in low_order_points() {
        let key = PublicKey::from_bytes(point);
        // As the responder's static key.
        let mut initiator = Initiator::new(Pattern::Ik, &secret(1), Some(&key), PROLOGUE).unwrap();
        let mut out = Vec::new();
        assert_eq!(initiator.write(b"", &mut out), Err(NoiseError::LowOrder), "{point:02x?}");
        assert!(out.is_empty());
        // As an ephemeral key, read by a responder: IK's first message, then XX's.
        let (_, mut responder) = pair(Pattern::Ik);
        let message = [&point[..], &[0; 64]].concat();
        assert_eq!(responder.read(&message, &mut out), Err(NoiseError::LowOrder));
        let (_, mut responder) = pair(Pattern::Xx);
        assert_eq!(responder.read(&point, &mut out), Ok(Step::More));
        assert_eq!(responder.write(b"", &mut out), Err(NoiseError::LowOrder));
        // As an ephemeral key, read by an initiator.
        let (mut initiator, _) = pair(Pattern::Ik);
        let _ = initiator.write(b"", &mut Vec::new()).unwrap();
        let message = [&point[..], &[0; 16]].concat();
        assert_eq!(initiator.read(&message, &mut out), Err(NoiseError::LowOrder));
    }
}

#[test]
fn nothing_secret_is_shown() {
    let (initiator, responder) = pair(Pattern::Xx);
    assert_eq!(format!("{initiator:?}"), "Initiator(Handshake(0 of 3 messages))");
    assert_eq!(format!("{responder:?}"), "Responder(Handshake(0 of 3 messages))");
    assert_eq!(format!("{:?}", TrafficKey([7; 32])), "TrafficKey(..)");
}
