//! What holds for all values and all bytes: a value is read as it was written, no bytes do harm, and a
//! packet that makes no sense does not take the next one with it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::Ipv6Addr;

use mycelium_wire::beacon::Beacon;
use mycelium_wire::cipher::{Nonces, PairKey, SEAL_OVERHEAD};
use mycelium_wire::control::{
    CONTROL_SIZE_MAX, Hello, Ihu, Metric, ProvedUpdate, RouteRequest, Seqno, SeqnoRequest, Tlv,
    Update,
};
use mycelium_wire::frame::{self, DataFrame, DataHeader, Frame};
use mycelium_wire::icmp::{self, IcmpError, OutOfBand};
use mycelium_wire::identity::{RouterId, SecretKey, Subnet};
use mycelium_wire::inner;
use mycelium_wire::message::{CHUNK_SIZE, MessageId, MessageKind, MessagePacket, TOPIC_SIZE_MAX};
use mycelium_wire::xeddsa::Signature;
use proptest::collection::vec;
use proptest::prelude::*;

fn subnet() -> impl Strategy<Value = Subnet> {
    let network = any::<u128>().prop_map(Ipv6Addr::from_bits);
    (network, 0..=128_u8).prop_map(|(network, len)| Subnet::new(network, len).unwrap())
}

fn router_id() -> impl Strategy<Value = RouterId> {
    any::<[u8; 32]>().prop_flat_map(|key| {
        any::<[u8; 8]>().prop_map(move |rest| {
            RouterId::from_bytes([&key[..], &rest].concat().try_into().unwrap())
        })
    })
}

fn tlv() -> impl Strategy<Value = Tlv> {
    let hello = any::<(u16, u16, u16)>().prop_map(|(flags, seqno, interval)| {
        Tlv::Hello(Hello { flags, seqno: Seqno(seqno), interval })
    });
    let ihu = (any::<u16>(), any::<u16>(), any::<Option<std::net::IpAddr>>())
        .prop_map(|(rxcost, interval, address)| Tlv::Ihu(Ihu { rxcost, interval, address }));
    let numbers = any::<(u8, u16, u16, u16)>();
    let update = (numbers, subnet(), router_id()).prop_map(
        |((flags, interval, seqno, metric), subnet, router_id)| {
            let (seqno, metric) = (Seqno(seqno), Metric(metric));
            Update { flags, interval, seqno, metric, subnet, router_id }
        },
    );
    let update = update.boxed();
    let proved = (update.clone(), any::<[u8; 32]>(), any::<[u8; 32]>()).prop_map(
        |(update, commitment, number)| {
            let bytes = [commitment, number].concat().try_into().unwrap();
            let signature = Signature::from_bytes(bytes);
            Tlv::ProvedUpdate(ProvedUpdate { update, signature })
        },
    );
    let update = update.prop_map(Tlv::Update);
    let route_request = (any::<u8>(), proptest::option::of(subnet()))
        .prop_map(|(generation, subnet)| Tlv::RouteRequest(RouteRequest { generation, subnet }));
    let seqno_request = (any::<u16>(), any::<u8>(), subnet(), router_id()).prop_map(
        |(seqno, hop_count, subnet, router_id)| {
            Tlv::SeqnoRequest(SeqnoRequest { seqno: Seqno(seqno), hop_count, subnet, router_id })
        },
    );
    prop_oneof![hello, ihu, update, proved, route_request, seqno_request]
}

fn encoded(tlv: &Tlv) -> Vec<u8> {
    let mut bytes = Vec::new();
    tlv.encode(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn a_tlv_is_read_as_it_was_written(tlv in tlv()) {
        let bytes = encoded(&tlv);
        prop_assert!(bytes.len() <= CONTROL_SIZE_MAX);
        prop_assert_eq!(frame::parse_datagram(&bytes), Ok(Frame::Control(Ok(tlv))));
    }

    #[test]
    fn what_follows_a_damaged_tlv_is_understood(
        damaged in tlv(),
        place in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in 0..20_usize,
        next in tlv(),
    ) {
        // Cut behind the Babel header and with any byte of the body changed; the packet's own length
        // field tells the truth.
        let mut bytes = encoded(&damaged);
        bytes.truncate((bytes.len() - cut.min(bytes.len() - 9)).max(9));
        let body_size = u16::try_from(bytes.len() - 8).unwrap();
        bytes[6..8].copy_from_slice(&body_size.to_be_bytes());
        let place = 8 + place.index(bytes.len() - 8);
        bytes[place] = value;
        let damaged_size = bytes.len();
        bytes.extend(encoded(&next));
        let (frame, size) = frame::parse(&bytes).unwrap().unwrap();
        prop_assert!(matches!(frame, Frame::Control(_)));
        prop_assert_eq!(size, damaged_size);
        let next = Frame::Control(Ok(next));
        prop_assert_eq!(frame::parse_datagram(&bytes[size..]), Ok(next));
    }

    #[test]
    fn a_data_packet_is_read_as_it_was_written(
        hop_limit in any::<u8>(),
        source in any::<Ipv6Addr>(),
        destination in any::<Ipv6Addr>(),
        body in vec(any::<u8>(), 0..2000),
    ) {
        let length = u16::try_from(body.len()).unwrap();
        let header = DataHeader { hop_limit, source, destination, length };
        let bytes = [&header.encode()[..], &body].concat();
        let expected = Frame::Data(DataFrame { header, body: &body });
        prop_assert_eq!(frame::parse_datagram(&bytes), Ok(expected));
    }

    #[test]
    fn a_body_is_opened_as_it_was_sealed(keys in any::<[[u8; 32]; 2]>(), body in vec(any::<u8>(), 0..2000)) {
        let [a, b] = keys.map(SecretKey::from_bytes);
        let mut sealed = [&body[..], &[0; SEAL_OVERHEAD]].concat();
        PairKey::new(&a.shared(&b.public()))
            .seal_in_place(Nonces::new().unwrap().next().unwrap(), &mut sealed);
        let key = PairKey::new(&b.shared(&a.public()));
        prop_assert_eq!(key.open_in_place(&mut sealed).unwrap(), &body[..]);
    }

    #[test]
    fn a_message_packet_is_read_as_it_was_written(
        id in any::<[u8; 8]>(),
        is_reply in any::<bool>(),
        which in 0..8,
        numbers in any::<[u64; 3]>(),
        topic_length in any::<u8>(),
        checksum in any::<[u8; 32]>(),
        data in vec(any::<u8>(), 0..=CHUNK_SIZE),
    ) {
        let [length, offset, size] = numbers;
        let (index, chunk_count) = (length, length);
        let kind = match which {
            0 => MessageKind::Init { length, topic: &data[..data.len().min(TOPIC_SIZE_MAX)] },
            1 => MessageKind::InitAck { length, topic_length },
            2 => MessageKind::Chunk { index, offset, data: &data },
            3 => MessageKind::ChunkAck { index, offset, size },
            4 => MessageKind::Done { chunk_count, checksum },
            5 => MessageKind::DoneAck { chunk_count, checksum },
            6 => MessageKind::Read,
            _ => MessageKind::Aborted,
        };
        let packet = MessagePacket { id: MessageId(id), is_reply, kind };
        let mut bytes = Vec::new();
        packet.encode(&mut bytes);
        prop_assert_eq!(MessagePacket::parse(&bytes), Ok(packet));
    }

    #[test]
    fn an_out_of_band_error_is_read_as_it_was_written(
        addresses in any::<[Ipv6Addr; 3]>(),
        hop_limit in any::<u8>(),
        mtu in any::<u32>(),
        original in vec(any::<u8>(), 0..=icmp::ORIGINAL_SIZE_MAX),
    ) {
        let [original_destination, source, destination] = addresses;
        let error = IcmpError::PacketTooBig { mtu };
        let original = &original;
        let sample =
            OutOfBand { original_destination, source, destination, hop_limit, error, original };
        let mut bytes = Vec::new();
        sample.encode(&mut bytes);
        prop_assert_eq!(OutOfBand::parse(&bytes), Ok(sample));
    }

    #[test]
    fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Beacon::parse(&bytes);
        let _ = MessagePacket::parse(&bytes);
        let _ = OutOfBand::parse(&bytes);
        let _ = inner::parse(&bytes);
        let _ = icmp::may_answer(&bytes, false);
        if let Ok(Some((_, size))) = frame::parse(&bytes) {
            prop_assert!((8..=bytes.len()).contains(&size));
        }
    }

    #[test]
    fn no_packet_does_harm(
        is_control in any::<bool>(),
        tlv_type in 0..14_u8,
        body in vec(any::<u8>(), 0..300),
    ) {
        let size = u16::try_from(body.len()).unwrap().to_be_bytes();
        let mut bytes = if is_control {
            vec![1, 1, 0, 0, 42, 3, size[0], size[1], tlv_type]
        } else {
            vec![1, 0, 0, 0, 0, size[0], size[1]]
        };
        bytes.extend(&body);
        if let Some((_, size)) = frame::parse(&bytes).unwrap() {
            prop_assert!((8..=bytes.len()).contains(&size));
        }
    }
}
