//! A neighbour made by hand, byte by byte, in front of the real program: what an existing release would
//! see, and what a broken or hostile one gets. Needs neither root nor a device.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mycelium_wire::cipher::{Nonces, PairKey, SEAL_OVERHEAD};
use mycelium_wire::control::{HELLO_UNICAST, Hello, Metric, Seqno, Tlv, Update};
use mycelium_wire::frame::{self, DATA_HEADER_SIZE, DataHeader, Frame};
use mycelium_wire::identity::{PublicKey, RouterId, SecretKey};
use mycelium_wire::inner::{self, InnerType};
use mycelium_wire::message::{MessageId, MessageKind, MessagePacket};

const PATIENCE: Duration = Duration::from_secs(20);

/// A node that only routes and carries messages.
struct Node {
    process: Child,
    port: u16,
    key: PublicKey,
    _folder: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key_file = folder.path().join("node.key");
        let secret = [0x5a; 32];
        std::fs::write(&key_file, secret).unwrap();
        // Free a moment ago; nobody else is likely to take it.
        let [port, http, rpc] = [(); 3].map(|()| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap().port()
        });
        let process = Command::new(env!("CARGO_BIN_EXE_mycelium"))
            .args(["--no-tun", "--disable-quic", "--disable-peer-discovery", "--key-file"])
            .arg(&key_file)
            .args(["--tcp-listen-port", &port.to_string()])
            .args(["--api-addr", &format!("127.0.0.1:{http}")])
            .args(["--jsonrpc-addr", &format!("127.0.0.1:{rpc}")])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let key = SecretKey::from_bytes(secret).public();
        Self { process, port, key, _folder: folder }
    }

    fn connect(&self) -> Neighbour {
        let start = Instant::now();
        loop {
            if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return Neighbour { stream, bytes: Vec::new() };
            }
            assert!(start.elapsed() < PATIENCE, "the node does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The other end of a link.
struct Neighbour {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Neighbour {
    fn send(&mut self, tlv: &Tlv) {
        let mut packet = Vec::new();
        tlv.encode(&mut packet);
        self.stream.write_all(&packet).unwrap();
    }

    /// Reads packets until one is what is looked for.
    fn until<T>(&mut self, mut look: impl FnMut(Frame<'_>) -> Option<T>) -> T {
        loop {
            while let Some((frame, size)) = frame::parse(&self.bytes).unwrap() {
                let found = look(frame);
                self.bytes.drain(..size);
                if let Some(found) = found {
                    return found;
                }
            }
            let mut buffer = [0; 4096];
            let size = self.stream.read(&mut buffer).unwrap();
            assert!(size > 0, "the node closed the connection");
            self.bytes.extend_from_slice(&buffer[..size]);
        }
    }

    fn until_tlv<T>(&mut self, mut look: impl FnMut(&Tlv) -> Option<T>) -> T {
        self.until(|frame| match frame {
            Frame::Control(tlv) => look(&tlv.unwrap()),
            Frame::Data(_) => None,
        })
    }

    /// Whether the node closes the connection.
    fn closes(mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

fn hello(seqno: u16) -> Tlv {
    Tlv::Hello(Hello { flags: HELLO_UNICAST, seqno: Seqno(seqno), interval: 2000 })
}

fn update(key: PublicKey) -> Tlv {
    Tlv::Update(Update {
        flags: 0,
        interval: 30_000,
        seqno: Seqno(0),
        metric: Metric::ZERO,
        subnet: key.subnet(),
        router_id: RouterId::new(key, [0, 0], [1; 6]),
    })
}

#[test]
fn a_link_begins_with_an_update_and_every_hello_is_answered() {
    let node = Node::start();
    let mut neighbour = node.connect();
    let subnet = node.key.subnet();
    neighbour.until_tlv(|tlv| match tlv {
        Tlv::Update(update) if update.subnet == subnet => {
            assert_eq!(update.metric, Metric::ZERO);
            assert_eq!(update.router_id.public_key(), node.key);
            Some(())
        }
        _ => None,
    });
    for seqno in 0..3 {
        neighbour.send(&hello(seqno));
        neighbour.until_tlv(|tlv| matches!(tlv, Tlv::Ihu(_)).then_some(()));
    }
}

#[test]
fn what_makes_no_sense_is_stepped_over_or_ends_the_link() {
    let node = Node::start();
    let mut neighbour = node.connect();
    // An Update that is cut off, and a TLV that nobody knows, in one write with a Hello.
    let mut bytes = vec![1, 1, 0, 0, 42, 3, 0, 4, 8, 2, 0, 0, 1, 1, 0, 0, 42, 3, 0, 3, 200, 1, 9];
    hello(0).encode(&mut bytes);
    neighbour.stream.write_all(&bytes).unwrap();
    neighbour.until_tlv(|tlv| matches!(tlv, Tlv::Ihu(_)).then_some(()));
    for bad in [&[2, 0, 0, 0][..], &[1, 7, 0, 0], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut neighbour = node.connect();
        neighbour.stream.write_all(bad).unwrap();
        assert!(neighbour.closes(), "{bad:?}");
    }
    // The first one is still a neighbour.
    neighbour.send(&hello(1));
    neighbour.until_tlv(|tlv| matches!(tlv, Tlv::Ihu(_)).then_some(()));
}

#[test]
fn a_message_packet_of_a_known_node_is_answered_sealed() {
    let node = Node::start();
    let mut neighbour = node.connect();
    let secret = SecretKey::from_bytes([0x77; 32]);
    let key = PairKey::new(&secret.shared(&node.key));
    let own = secret.public();
    let id = MessageId([9; 8]);
    let init = MessagePacket {
        id,
        is_reply: false,
        kind: MessageKind::Init { length: 1000, topic: b"chat" },
    };
    let packet = sealed(&key, own, node.key, &init);
    // It comes before its sender is known, and waits.
    neighbour.stream.write_all(&packet).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    neighbour.send(&update(own));
    neighbour.until(|frame| {
        let Frame::Data(data) = frame else { return None };
        assert_eq!(
            (data.header.source, data.header.destination),
            (node.key.address(), own.address())
        );
        let mut body = data.body.to_vec();
        let (inner_type, payload) = inner::parse(key.open_in_place(&mut body).unwrap()).unwrap();
        assert_eq!(inner_type, InnerType::Message);
        let answer = MessagePacket::parse(payload).unwrap();
        assert_eq!(answer.id, id);
        matches!(answer.kind, MessageKind::InitAck { length: 1000, .. }).then_some(())
    });
}

fn sealed(key: &PairKey, from: PublicKey, to: PublicKey, message: &MessagePacket<'_>) -> Vec<u8> {
    let mut body = InnerType::Message.header().to_vec();
    message.encode(&mut body);
    body.resize(body.len() + SEAL_OVERHEAD, 0);
    key.seal_in_place(Nonces::new().unwrap().next().unwrap(), &mut body);
    let header = DataHeader {
        hop_limit: 63,
        source: from.address(),
        destination: to.address(),
        length: u16::try_from(body.len()).unwrap(),
    };
    let packet = [&header.encode()[..], &body].concat();
    assert_eq!(packet.len(), DATA_HEADER_SIZE + body.len());
    packet
}
