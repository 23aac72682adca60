//! Bytes recorded from the existing daemon (`ci/vectors/mycelium.json`): each is read as what it means,
//! and what it means is written as the same bytes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use mycelium_wire::beacon::Beacon;
use mycelium_wire::cipher::{NONCE_SIZE, Nonce, PairKey, SEAL_OVERHEAD, TAG_SIZE};
use mycelium_wire::control::{
    HELLO_UNICAST, Hello, Ihu, Metric, RouteRequest, Seqno, SeqnoRequest, Tlv, Update,
};
use mycelium_wire::frame::{self, DataFrame, DataHeader, Frame};
use mycelium_wire::identity::{PublicKey, RouterId, SecretKey, Subnet};
use mycelium_wire::inner::{self, INNER_HEADER_SIZE, InnerType};
use mycelium_wire::message::{MessageId, MessageKind, MessagePacket};
use serde_json::Value;

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ci/vectors/mycelium.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The vectors of one kind, of which there are `count`.
fn each<'a>(all: &'a Value, kind: &str, count: usize) -> &'a [Value] {
    let vectors = all[kind].as_array().unwrap();
    assert_eq!(vectors.len(), count, "{kind}");
    vectors
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    hex(value).try_into().unwrap()
}

fn parsed<T: FromStr>(value: &Value) -> T {
    value.as_str().unwrap().parse().ok().unwrap()
}

fn number<T: TryFrom<u64>>(value: &Value) -> T {
    value.as_u64().unwrap().try_into().ok().unwrap()
}

#[test]
fn addresses_follow_from_keys() {
    let all = vectors();
    for vector in each(&all, "address_from_public_key", 10) {
        let secret = SecretKey::from_bytes(array(&vector["secret_key"]));
        let public = secret.public();
        assert_eq!(public, parsed(&vector["public_key"]));
        assert_eq!(public.to_string(), vector["public_key"].as_str().unwrap());
        assert_eq!(public.address(), parsed::<Ipv6Addr>(&vector["address"]));
        assert_eq!(public.address().octets(), array(&vector["address_hex"]));
        assert_eq!(public.subnet(), parsed(&vector["subnet64"]));
        assert_eq!(public.subnet().to_string(), vector["subnet64"].as_str().unwrap());
    }
    for vector in each(&all, "address_from_raw_public_key", 3) {
        let public = PublicKey::from_bytes(array(&vector["public_key"]));
        assert_eq!(public.address(), parsed::<Ipv6Addr>(&vector["address"]));
    }
}

#[test]
fn bodies_are_sealed_and_opened() {
    for vector in each(&vectors(), "encryption", 18) {
        let a = SecretKey::from_bytes(array(&vector["secret_a"]));
        let b = SecretKey::from_bytes(array(&vector["secret_b"]));
        assert_eq!(a.public(), parsed(&vector["public_a"]));
        assert_eq!(b.public(), parsed(&vector["public_b"]));
        let secret = a.shared(&b.public());
        assert_eq!(secret.as_bytes(), &array(&vector["shared_secret"]));
        assert_eq!(b.shared(&a.public()).as_bytes(), secret.as_bytes());
        let key = PairKey::new(&secret);

        let sealed = hex(&vector["encrypted"]);
        let nonce: [u8; NONCE_SIZE] = array(&vector["nonce"]);
        let tag: [u8; TAG_SIZE] = array(&vector["tag"]);
        assert_eq!(sealed[sealed.len() - SEAL_OVERHEAD..], [&tag[..], &nonce].concat());

        let mut body = sealed.clone();
        let plaintext = key.open_in_place(&mut body).unwrap();
        let (inner_type, payload) = inner::parse(plaintext).unwrap();
        assert_eq!(payload, hex(&vector["payload"]));
        assert_eq!(inner_type.header(), array::<INNER_HEADER_SIZE>(&vector["inner_header"]));

        let mut body = [&inner_type.header()[..], payload, &[0; SEAL_OVERHEAD]].concat();
        key.seal_in_place(Nonce::from_bytes(nonce), &mut body);
        assert_eq!(body, sealed);
    }
}

#[test]
fn control_packets_are_read_and_written() {
    for vector in each(&vectors(), "control_packets", 32) {
        let wire = hex(&vector["wire"]);
        let tlv = tlv(vector);
        assert_eq!(frame::parse_datagram(&wire), Ok(Frame::Control(Ok(tlv.clone()))), "{vector}");
        let mut written = Vec::new();
        tlv.encode(&mut written);
        assert_eq!(written, wire, "{vector}");
    }
}

/// What a vector says a TLV says.
fn tlv(vector: &Value) -> Tlv {
    let interval = || number(&vector["interval_cs"]);
    let seqno = || Seqno(number(&vector["seqno"]));
    let router_id = || RouterId::from_bytes(array(&vector["router_id"]));
    match vector["tlv"].as_str().unwrap() {
        "hello" => {
            assert_eq!(number::<u16>(&vector["flags"]), HELLO_UNICAST);
            Tlv::Hello(Hello { flags: HELLO_UNICAST, seqno: seqno(), interval: interval() })
        }
        "ihu" => {
            let address = &vector["address"];
            let address = (!address.is_null()).then(|| parsed::<IpAddr>(address));
            Tlv::Ihu(Ihu { rxcost: number(&vector["rx_cost"]), interval: interval(), address })
        }
        "update" => Tlv::Update(Update {
            flags: 0,
            interval: interval(),
            seqno: seqno(),
            metric: Metric(number(&vector["metric"])),
            subnet: parsed(&vector["subnet"]),
            router_id: router_id(),
        }),
        "route_request" => {
            let prefix = &vector["prefix"];
            let subnet = (!prefix.is_null()).then(|| parsed::<Subnet>(prefix));
            Tlv::RouteRequest(RouteRequest { generation: number(&vector["generation"]), subnet })
        }
        "seqno_request" => Tlv::SeqnoRequest(SeqnoRequest {
            seqno: seqno(),
            hop_count: number(&vector["hop_count"]),
            subnet: parsed(&vector["prefix"]),
            router_id: router_id(),
        }),
        other => panic!("a vector for a TLV of the unknown kind {other}"),
    }
}

#[test]
fn data_packets_are_read_and_written() {
    for vector in each(&vectors(), "data_packets", 3) {
        let (wire, body) = (hex(&vector["wire"]), hex(&vector["body"]));
        let header = DataHeader {
            hop_limit: number(&vector["hop_limit"]),
            source: parsed(&vector["src"]),
            destination: parsed(&vector["dst"]),
            length: body.len().try_into().unwrap(),
        };
        let expected = Frame::Data(DataFrame { header, body: &body });
        assert_eq!(frame::parse_datagram(&wire), Ok(expected));
        assert_eq!([&header.encode()[..], &body].concat(), wire);
    }
}

#[test]
fn message_packets_are_read_and_written() {
    for vector in each(&vectors(), "message_packets", 8) {
        let (topic, data) = (optional_hex(&vector["topic_hex"]), optional_hex(&vector["data"]));
        let (kind, ack) = match vector["kind"].as_str().unwrap() {
            "init" => {
                let length = number(&vector["length"]);
                let topic_length = topic.len().try_into().unwrap();
                let ack = MessageKind::InitAck { length, topic_length };
                (MessageKind::Init { length, topic: &topic }, Some(ack))
            }
            "chunk" => {
                let (index, offset) = (number(&vector["idx"]), number(&vector["offset"]));
                let size = data.len() as u64;
                let ack = MessageKind::ChunkAck { index, offset, size };
                (MessageKind::Chunk { index, offset, data: &data }, Some(ack))
            }
            "done" => {
                let chunk_count = number(&vector["chunk_count"]);
                let checksum = array(&vector["checksum"]);
                let ack = MessageKind::DoneAck { chunk_count, checksum };
                (MessageKind::Done { chunk_count, checksum }, Some(ack))
            }
            "read" => (MessageKind::Read, None),
            "aborted" => (MessageKind::Aborted, None),
            other => panic!("a vector for a packet of the unknown kind {other}"),
        };
        let is_reply = vector["reply"].as_bool().unwrap_or(false);
        check_message(&hex(&vector["body"]), kind, is_reply);
        assert_eq!(ack.is_some(), !vector["ack"].is_null());
        if let Some(ack) = ack {
            check_message(&hex(&vector["ack"]), ack, is_reply);
        }
    }
}

/// Bytes in hexadecimal, none where the field is absent or is words.
fn optional_hex(value: &Value) -> Vec<u8> {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if value.as_str().is_some_and(is_hex) { hex(value) } else { Vec::new() }
}

fn check_message(bytes: &[u8], kind: MessageKind<'_>, is_reply: bool) {
    let id = MessageId([0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4]);
    let packet = MessagePacket { id, is_reply, kind };
    assert_eq!(MessagePacket::parse(bytes), Ok(packet));
    let mut written = Vec::new();
    packet.encode(&mut written);
    assert_eq!(written, bytes);
}

#[test]
fn a_beacon_is_read_and_written() {
    let vector = &vectors()["multicast_beacon"];
    let beacon = Beacon::parse(&hex(&vector["hex"])).unwrap();
    assert_eq!(beacon.tcp_port, number::<u16>(&vector["tcp_port"]));
    assert_eq!(beacon.router_id.as_bytes(), &array(&vector["router_id"]));
    let secret = SecretKey::from_bytes(array(&vector["secret_key"]));
    assert_eq!(beacon.router_id.public_key(), secret.public());
    assert_eq!(beacon.encode().to_vec(), hex(&vector["hex"]));
}

#[test]
fn a_captured_session_is_understood_to_its_last_byte() {
    let all = vectors();
    let session = &all["captured_tcp_session"];
    let listener = SecretKey::from_bytes(array(&session["secret_key_listener"]));
    let dialer = SecretKey::from_bytes(array(&session["secret_key_dialer"]));
    assert_eq!(listener.public(), parsed(&session["listener"]["publicKey"]));
    assert_eq!(dialer.public().address(), parsed::<Ipv6Addr>(&session["dialer"]["address"]));
    let key = PairKey::new(&listener.shared(&dialer.public()));
    let mut packet_count = 0;
    for direction in ["dialer->listener", "listener->dialer"] {
        let segments = session["segments"].as_array().unwrap().iter();
        let segments = segments.filter(|segment| segment["dir"] == direction);
        let stream: Vec<u8> = segments.flat_map(|segment| hex(&segment["hex"])).collect();
        let mut rest = &stream[..];
        for decoded in session["decoded"][direction].as_array().unwrap() {
            let (frame, size) = frame::parse(rest).unwrap().unwrap();
            check_captured(&key, &frame, &rest[..size], decoded);
            rest = &rest[size..];
            packet_count += 1;
        }
        assert!(rest.is_empty(), "{direction}: {} bytes are left", rest.len());
    }
    assert_eq!(packet_count, 24);
}

/// A packet of the session against what the independent reader saw in it.
fn check_captured(key: &PairKey, frame: &Frame<'_>, wire: &[u8], decoded: &Value) {
    let DataFrame { header, body } = match frame {
        Frame::Control(tlv) => {
            let tlv = tlv.as_ref().unwrap();
            let mut written = Vec::new();
            tlv.encode(&mut written);
            assert_eq!(written, wire);
            assert_eq!(wire, hex(&decoded["wire"]));
            return;
        }
        Frame::Data(data) => data,
    };
    assert_eq!(header.hop_limit, number::<u8>(&decoded["hop_limit"]));
    assert_eq!(header.source, parsed::<Ipv6Addr>(&decoded["src"]));
    assert_eq!(header.destination, parsed::<Ipv6Addr>(&decoded["dst"]));
    assert_eq!([&header.encode()[..], body].concat(), wire);
    let mut opened = body.to_vec();
    let plaintext = key.open_in_place(&mut opened).unwrap();
    let (inner_type, payload) = inner::parse(plaintext).unwrap();
    assert_eq!(inner_type.header(), array::<INNER_HEADER_SIZE>(&decoded["inner_header"]));
    if inner_type == InnerType::Message {
        let message = MessagePacket::parse(payload).unwrap();
        assert_eq!(message.id, parsed(&decoded["message"]["id"]));
        let mut written = Vec::new();
        message.encode(&mut written);
        assert_eq!(written, payload);
    }
    // Sealed again with the nonce that it came with, it is the same.
    let nonce = *body.last_chunk::<NONCE_SIZE>().unwrap();
    let mut sealed = [&inner_type.header()[..], payload, &[0; SEAL_OVERHEAD]].concat();
    key.seal_in_place(Nonce::from_bytes(nonce), &mut sealed);
    assert_eq!(sealed, *body);
}
