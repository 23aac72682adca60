//! Guests that lie, forget, or never listen; and the clauses that the model does not reach.

use super::super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;

const GUEST_CID: u64 = 42;
const TINY: Limits = Limits { connections: 4, roomy: 1, roomy_size: 64, tight_size: 16, resets: 4 };
/// The ports of the connection that [`open`] makes.
const GUEST_PORT: u32 = 10;
const HOST_PORT: u32 = 20;

fn mux() -> Mux {
    Mux::new(GUEST_CID, TINY, Counters::default())
}

fn packet(op: u16, guest_port: u32, host_port: u32) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        kind: STREAM,
        op,
        buf_alloc: 100,
        ..Header::default()
    }
}

/// A packet of the connection that [`open`] makes.
fn of(op: u16) -> Header {
    packet(op, GUEST_PORT, HOST_PORT)
}

fn payload(len: u32) -> Header {
    Header { len, ..of(op::RW) }
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..of(op::SHUTDOWN) }
}

/// All packets for the guest; what is to be read blocks.
fn packets(mux: &mut Mux, now: Instant) -> Vec<Header> {
    let mut packets = Vec::new();
    while let Some(transmit) = mux.next(1000) {
        match transmit {
            Transmit::Packet(header) => packets.push(header),
            Transmit::Read { id, .. } => assert_eq!(mux.read(id, Read::Blocked, now), None),
        }
    }
    packets
}

fn ops(mux: &mut Mux, now: Instant) -> Vec<u16> {
    packets(mux, now).iter().map(|header| header.op).collect()
}

fn actions(mux: &mut Mux) -> Vec<Action> {
    std::iter::from_fn(|| mux.take_action()).collect()
}

/// A connection that the guest asked for, greeted.
fn open(mux: &mut Mux, guest_port: u32, now: Instant) -> ConnectionId {
    assert_eq!(mux.receive(&packet(op::REQUEST, guest_port, HOST_PORT), now), None);
    let [Action::Connect(id, HOST_PORT)] = actions(mux)[..] else { panic!("no connect") };
    mux.connected(id);
    assert_eq!(ops(mux, now), [op::RESPONSE]);
    id
}

/// virtio 1.3 §5.10.6.4.2: `RST` for whatever there is no socket, or no sense, for.
#[test]
fn whatever_breaks_a_rule_is_reset_and_ends_its_connection() {
    type Case = (&'static str, Vec<Header>, Header);
    let table: Vec<Case> = vec![
        ("operation 0", vec![], of(0)),
        ("an unknown operation", vec![], of(8)),
        ("a request for what is there", vec![], of(op::REQUEST)),
        ("a response nobody waits for", vec![], of(op::RESPONSE)),
        ("more than the buffer holds", vec![], payload(65)),
        ("more than the buffer has left", vec![payload(60)], payload(5)),
        ("a length near 2^32", vec![payload(60)], payload(u32::MAX - 2)),
        ("data after its end", vec![shutdown(SHUTDOWN_SEND)], payload(1)),
        ("more received than was sent", vec![], Header { fwd_cnt: 1, ..of(op::CREDIT_UPDATE) }),
    ];
    for (what, before, broken) in table {
        let (mut mux, now) = (mux(), Instant::now());
        let id = open(&mut mux, GUEST_PORT, now);
        for header in before {
            mux.receive(&header, now);
        }
        actions(&mut mux);
        assert_eq!(mux.receive(&broken, now), None, "{what}");
        assert_eq!(actions(&mut mux), [Action::Close(id)], "{what}");
        let [reset] = packets(&mut mux, now)[..] else { panic!("{what}: no reset") };
        let addressed = (reset.op, reset.src_cid, reset.src_port, reset.dst_cid, reset.dst_port);
        assert_eq!(addressed, (op::RST, HOST_CID, HOST_PORT, GUEST_CID, GUEST_PORT), "{what}");
        assert_eq!(mux.len(), 0, "{what}");
    }
}

#[test]
fn packets_for_nobody_are_refused_and_resets_are_not_answered() {
    let table: [(&str, Header, u64, usize); 9] = [
        ("data for nobody", of(op::RW), HOST_CID, 1),
        ("a response for nobody", of(op::RESPONSE), HOST_CID, 1),
        ("a shutdown for nobody", of(op::SHUTDOWN), HOST_CID, 1),
        ("credit for nobody", of(op::CREDIT_REQUEST), HOST_CID, 1),
        ("a reset for nobody", of(op::RST), HOST_CID, 0),
        ("another's address", Header { src_cid: 43, ..of(op::REQUEST) }, HOST_CID, 1),
        ("for another guest", Header { dst_cid: 43, ..of(op::REQUEST) }, 43, 1),
        ("for the hypervisor", Header { dst_cid: 0, ..of(op::REQUEST) }, 0, 1),
        ("a packet socket", Header { kind: 2, ..of(op::REQUEST) }, HOST_CID, 1),
    ];
    for (what, header, from, count) in table {
        let (mut mux, now) = (mux(), Instant::now());
        assert_eq!(mux.receive(&header, now), None, "{what}");
        let resets = packets(&mut mux, now);
        assert_eq!(resets.len(), count, "{what}");
        for reset in resets {
            assert_eq!((reset.op, reset.kind, reset.src_cid), (op::RST, header.kind, from));
            assert_eq!((reset.dst_cid, reset.dst_port), (GUEST_CID, header.src_port), "{what}");
        }
        assert_eq!((actions(&mut mux).len(), mux.len()), (0, 0), "{what}");
    }
}

#[test]
fn a_request_that_lies_of_credit_is_refused() {
    let (mut mux, now) = (mux(), Instant::now());
    mux.receive(&Header { fwd_cnt: 5, ..of(op::REQUEST) }, now);
    assert!(matches!(actions(&mut mux)[..], [Action::Close(_)]));
    assert_eq!((ops(&mut mux, now), mux.len()), (vec![op::RST], 0));
}

#[test]
fn an_answer_before_the_question_is_reset() {
    let (mut mux, now) = (mux(), Instant::now());
    let id = mux.connect(GUEST_PORT, now).unwrap();
    mux.receive(&packet(op::RESPONSE, GUEST_PORT, HOST_PORT_FIRST), now);
    assert_eq!(actions(&mut mux), [Action::Close(id)]);
    assert_eq!(ops(&mut mux, now), [op::RST]);
}

#[test]
fn connections_are_bounded_for_both_sides() {
    let (mut mux, now) = (mux(), Instant::now());
    for port in 0..4 {
        open(&mut mux, port, now);
    }
    mux.receive(&packet(op::REQUEST, 4, HOST_PORT), now);
    assert_eq!((actions(&mut mux).len(), ops(&mut mux, now)), (0, vec![op::RST]));
    assert_eq!(mux.connect(7, now), None);
    assert_eq!((mux.counters.connections.value(), mux.counters.refused.value()), (4, 2));
    // Room again, once one is gone.
    mux.receive(&packet(op::RST, 0, HOST_PORT), now);
    assert!(mux.connect(7, now).is_some());
}

#[test]
fn only_the_first_connections_have_large_buffers() {
    let (mut mux, now) = (mux(), Instant::now());
    open(&mut mux, 1, now);
    open(&mut mux, 2, now);
    assert!(mux.receive(&Header { len: 64, ..packet(op::RW, 1, HOST_PORT) }, now).is_some());
    assert_eq!(mux.receive(&Header { len: 17, ..packet(op::RW, 2, HOST_PORT) }, now), None);
    mux.receive(&packet(op::RST, 1, HOST_PORT), now);
    actions(&mut mux);
    packets(&mut mux, now);
    open(&mut mux, 3, now);
    assert!(mux.receive(&Header { len: 64, ..packet(op::RW, 3, HOST_PORT) }, now).is_some());
}

/// A guest that never offers a buffer can make nothing grow.
#[test]
fn what_waits_for_buffers_is_bounded() {
    let (mut mux, now) = (mux(), Instant::now());
    for _ in 0..1000 {
        mux.receive(&of(op::REQUEST), now);
        let [Action::Connect(id, _)] = actions(&mut mux)[..] else { panic!("no connect") };
        mux.connected(id);
        mux.receive(&of(op::RST), now);
        mux.receive(&of(op::RW), now);
        actions(&mut mux);
    }
    assert_eq!((mux.resets.len(), mux.listed.len(), mux.len()), (TINY.resets, 0, 0));
    assert_eq!((mux.actions.len(), mux.deadlines.len(), mux.by_ports.len()), (0, 0, 0));
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let (mut mux, now) = (mux(), Instant::now());
    let id = mux.connect(GUEST_PORT, now).unwrap();
    assert_eq!(ops(&mut mux, now), [op::REQUEST]);
    assert_eq!(mux.deadline(), Some(now + CONNECT_TIMEOUT));
    mux.expire(now + CONNECT_TIMEOUT - Duration::from_millis(1));
    assert_eq!(actions(&mut mux), []);
    mux.expire(now + CONNECT_TIMEOUT);
    assert_eq!(actions(&mut mux), [Action::Close(id)]);
    assert_eq!((ops(&mut mux, now), mux.deadline()), (vec![op::RST], None));
    assert_eq!(mux.counters.refused.value(), 1);
}

/// virtio 1.3 §5.10.6.5: no `RST` in answer to both hints, so it is forced.
#[test]
fn a_guest_that_does_not_let_go_is_reset() {
    let (mut mux, now) = (mux(), Instant::now());
    let id = open(&mut mux, GUEST_PORT, now);
    mux.stopped_receiving(id, now);
    mux.readable(id);
    let Some(Transmit::Packet(header)) = mux.next(1000) else { panic!("no packet") };
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_RECEIVE));
    assert_eq!(mux.next(1000), Some(Transmit::Read { id, size_max: 100 }));
    assert_eq!(mux.read(id, Read::End, now), None);
    assert_eq!(actions(&mut mux), [Action::Close(id)]);
    let Some(Transmit::Packet(header)) = mux.next(1000) else { panic!("no packet") };
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    // What was on its way is no offence.
    assert_eq!(mux.receive(&payload(5), now), None);
    assert_eq!((packets(&mut mux, now), mux.len()), (vec![], 1));
    mux.expire(now + CLOSE_TIMEOUT);
    assert_eq!((ops(&mut mux, now), mux.len()), (vec![op::RST], 0));
    assert_eq!(actions(&mut mux), []);
}

#[test]
fn what_a_guest_sent_before_it_closed_is_kept_for_a_while() {
    let (mut mux, now) = (mux(), Instant::now());
    let id = open(&mut mux, GUEST_PORT, now);
    assert_eq!(mux.receive(&payload(20), now), Some(id));
    mux.receive(&shutdown(SHUTDOWN_BOTH), now);
    // The guest has its port back at once.
    assert_eq!(ops(&mut mux, now), [op::RST]);
    assert_eq!(actions(&mut mux), [Action::ShutRead(id)]);
    let successor = open(&mut mux, GUEST_PORT, now);
    assert_ne!(successor, id);
    mux.forwarded(id, 19, now);
    assert_eq!(actions(&mut mux), []);
    mux.forwarded(id, 1, now);
    assert_eq!(actions(&mut mux), [Action::Close(id)]);
    // Another that nobody reads.
    assert_eq!(mux.receive(&payload(1), now), Some(successor));
    mux.receive(&shutdown(SHUTDOWN_SEND), now);
    mux.receive(&shutdown(SHUTDOWN_RECEIVE), now);
    packets(&mut mux, now);
    actions(&mut mux);
    mux.expire(now + DRAIN_TIMEOUT);
    assert_eq!((actions(&mut mux), ops(&mut mux, now)), (vec![Action::Close(successor)], vec![]));
    assert_eq!(mux.len(), 0);
}

/// virtio 1.3 §5.10.6.3: a sender never exceeds the peer's credit, and asks once.
#[test]
fn without_credit_nothing_is_read_and_credit_is_asked_for_once() {
    let (mut mux, now) = (mux(), Instant::now());
    let id = open(&mut mux, GUEST_PORT, now);
    mux.readable(id);
    assert_eq!(mux.next(60), Some(Transmit::Read { id, size_max: 60 }));
    assert_eq!(mux.read(id, Read::Bytes(60), now).unwrap().len, 60);
    assert_eq!(mux.next(60), Some(Transmit::Read { id, size_max: 40 }));
    assert_eq!(mux.read(id, Read::Bytes(40), now).unwrap().len, 40);
    assert_eq!(ops(&mut mux, now), [op::CREDIT_REQUEST]);
    mux.readable(id);
    assert!(ops(&mut mux, now).is_empty());
    // An update that was overtaken changes nothing, nor does a smaller buffer.
    let credit = |fwd_cnt, buf_alloc| Header { fwd_cnt, buf_alloc, ..of(op::CREDIT_UPDATE) };
    mux.receive(&credit(30, 100), now);
    assert_eq!(mux.next(60), Some(Transmit::Read { id, size_max: 30 }));
    assert_eq!(mux.read(id, Read::Bytes(30), now).unwrap().len, 30);
    mux.receive(&credit(10, 100), now);
    mux.receive(&credit(60, 50), now);
    assert_eq!(ops(&mut mux, now), [op::CREDIT_REQUEST]);
    mux.receive(&credit(130, 50), now);
    assert_eq!(mux.next(60), Some(Transmit::Read { id, size_max: 50 }));
    mux.read(id, Read::Blocked, now);
    assert_eq!(mux.len(), 1);
}

#[test]
fn credit_is_announced_when_half_of_it_is_new_or_when_asked() {
    let (mut mux, now) = (mux(), Instant::now());
    let id = open(&mut mux, GUEST_PORT, now);
    assert_eq!(mux.receive(&payload(64), now), Some(id));
    mux.forwarded(id, 31, now);
    assert_eq!(packets(&mut mux, now), []);
    mux.forwarded(id, 1, now);
    let [update] = packets(&mut mux, now)[..] else { panic!("no update") };
    assert_eq!((update.op, update.buf_alloc, update.fwd_cnt), (op::CREDIT_UPDATE, 64, 32));
    mux.receive(&of(op::CREDIT_REQUEST), now);
    assert_eq!(ops(&mut mux, now), [op::CREDIT_UPDATE]);
}

#[test]
fn connections_take_turns() {
    let (mut mux, now) = (mux(), Instant::now());
    let ids = [open(&mut mux, 1, now), open(&mut mux, 2, now), open(&mut mux, 3, now)];
    ids.into_iter().for_each(|id| mux.readable(id));
    for turn in 0..9 {
        let Some(Transmit::Read { id, .. }) = mux.next(10) else { panic!("nothing to read") };
        assert_eq!(id, ids[turn % 3]);
        mux.read(id, Read::Bytes(10), now);
    }
}

#[test]
fn host_ports_wrap_and_are_never_taken_twice() {
    let (mut mux, now) = (mux(), Instant::now());
    mux.set_next_host_port(HOST_PORT_LAST);
    mux.connect(GUEST_PORT, now);
    mux.connect(GUEST_PORT, now);
    mux.set_next_host_port(HOST_PORT_LAST);
    mux.connect(GUEST_PORT, now);
    let ports: Vec<u32> = packets(&mut mux, now).iter().map(|header| header.src_port).collect();
    assert_eq!(ports, [HOST_PORT_LAST, HOST_PORT_FIRST, HOST_PORT_FIRST + 1]);
    mux.set_next_host_port(5);
    assert_eq!(mux.next_host_port(), HOST_PORT_FIRST);
}

/// A client that wrote, and closed without reading what came.
#[test]
fn a_failed_read_ends_both_directions() {
    let (mut mux, now) = (mux(), Instant::now());
    let id = open(&mut mux, GUEST_PORT, now);
    mux.receive(&payload(5), now);
    mux.readable(id);
    assert!(matches!(mux.next(10), Some(Transmit::Read { .. })));
    assert_eq!(mux.read(id, Read::Failed, now), None);
    assert_eq!(actions(&mut mux), [Action::Close(id)]);
    let [shutdown] = packets(&mut mux, now)[..] else { panic!("no shutdown") };
    assert_eq!((shutdown.op, shutdown.flags, shutdown.fwd_cnt), (op::SHUTDOWN, SHUTDOWN_BOTH, 5));
    mux.receive(&of(op::RST), now);
    assert_eq!((ops(&mut mux, now), mux.len()), (vec![], 0));
}

#[test]
fn a_malformed_packet_ends_the_connection_that_it_names() {
    let (mut mux, now) = (mux(), Instant::now());
    let id = open(&mut mux, GUEST_PORT, now);
    mux.malformed(&of(op::RW));
    assert_eq!((actions(&mut mux), ops(&mut mux, now)), (vec![Action::Close(id)], vec![op::RST]));
    mux.malformed(&of(op::RW));
    assert_eq!((actions(&mut mux), ops(&mut mux, now)), (vec![], vec![op::RST]));
}
