//! What a fuzzer does with the bytes of Mycelium's peers: read them, and write again what was understood.
//!
//! Shared by the fuzz targets and by `mycelium/wire/tests/fuzz_corpus.rs`, which feeds the committed
//! corpus through it in every test run.

use std::sync::OnceLock;
use std::time::Duration;

use mycelium_wire::beacon::Beacon;
use mycelium_wire::cipher::{NONCE_SIZE, Nonce, PairKey, SEAL_OVERHEAD};
use mycelium_wire::frame::{self, Frame};
use mycelium_wire::icmp::{self, ERROR_HOP_LIMIT, ERROR_SIZE_MAX, IcmpError, OutOfBand};
use mycelium_wire::identity::{PublicKey, SecretKey, Subnet};
use mycelium_wire::inner::{self, InnerType};
use mycelium_wire::message::MessagePacket;
use mycelium_wire::session::{Clock, Machine, Suites, Time};

/// The key of two nodes, made once: it costs more than all the rest.
static KEY: OnceLock<PairKey> = OnceLock::new();

/// Whatever a stream says, each packet of it is inside it, and what was understood is written so that
/// it is understood again.
pub(crate) fn frame(stream: &[u8]) {
    let mut rest = stream;
    while let Ok(Some((frame, size))) = frame::parse(rest) {
        assert!((1..=rest.len()).contains(&size), "a packet of {size} bytes in {}", rest.len());
        assert_eq!(frame::parse(&rest[..size - 1]), Ok(None), "a packet without its end");
        let mut written = Vec::new();
        match &frame {
            Frame::Control(Ok(tlv)) => tlv.encode(&mut written),
            Frame::Control(Err(_)) => written.extend(&rest[..size]),
            Frame::Data(data) => {
                written.extend(data.header.encode());
                written.extend(data.body);
            }
        }
        assert_eq!(frame::parse_datagram(&written), Ok(frame));
        rest = &rest[size..];
    }
    if let Ok(beacon) = Beacon::parse(stream) {
        assert_eq!(beacon.encode(), stream);
    }
}

/// Whatever an opened body holds, what was understood is written so that it is understood again. As a
/// sealed one, as a text and as an IPv6 packet the same bytes do no harm.
pub(crate) fn inner(body: &[u8]) {
    match inner::parse(body) {
        Ok((InnerType::Message, payload)) => {
            if let Ok(packet) = MessagePacket::parse(payload) {
                let mut written = Vec::new();
                packet.encode(&mut written);
                assert_eq!(MessagePacket::parse(&written), Ok(packet));
            }
        }
        Ok((InnerType::Icmp, payload)) => {
            if let Ok(error) = OutOfBand::parse(payload) {
                let mut written = Vec::new();
                error.encode(&mut written);
                assert_eq!(OutOfBand::parse(&written), Ok(error));
            }
        }
        Ok((InnerType::Packet, payload)) => answer(payload),
        Ok((InnerType::Session, payload)) => handshake(payload),
        Err(_) => {}
    }
    let key = KEY.get_or_init(|| {
        let (a, b) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
        PairKey::new(&a.shared(&b.public()))
    });
    assert!(key.open_in_place(&mut body.to_vec()).is_err(), "a forged body");
    let mut sealed = [body, &[0; SEAL_OVERHEAD]].concat();
    // Nobody sends what is sealed with this key.
    let nonce = Nonce::from_bytes([0; NONCE_SIZE]);
    key.seal_in_place(nonce, &mut sealed);
    assert_eq!(key.open_in_place(&mut sealed).as_deref(), Ok(body));
    if let Ok(text) = std::str::from_utf8(body) {
        if let Ok(subnet) = text.parse::<Subnet>() {
            assert_eq!(subnet.to_string().parse(), Ok(subnet));
        }
        if let Ok(key) = text.parse::<PublicKey>() {
            assert_eq!(key.to_string(), text.to_lowercase());
        }
    }
}

/// Gives a handshake to one that has asked the same peer for a session. Whoever made these bytes has not
/// the peer's key, so nothing comes of them.
fn handshake(payload: &[u8]) {
    let clock = Clock { now: Time::default(), wall: Duration::from_secs(1_800_000_000) };
    let peer = SecretKey::from_bytes([1; 32]).public();
    let machine = Machine::new(SecretKey::from_bytes([2; 32]), Suites(3));
    let mut machine = machine.expect("random bytes");
    machine.want(peer, clock);
    machine.received(peer, payload, clock);
    machine.tick(clock);
    assert_eq!((machine.counters().answered, machine.counters().established), (0, 0));
}

/// Answers a packet with an error, as a node does that can't pass it on.
fn answer(packet: &[u8]) {
    if !icmp::may_answer(packet, false) {
        return;
    }
    let header = packet.first_chunk().expect("what may be answered has a header");
    let (source, destination) = icmp::addresses(header);
    let mut error = Vec::new();
    icmp::write_error(
        IcmpError::TimeExceeded,
        destination,
        source,
        ERROR_HOP_LIMIT,
        packet,
        &mut error,
    );
    assert!(error.len() <= ERROR_SIZE_MAX);
    assert!(!icmp::may_answer(&error, true), "an error is answered with an error");
}
