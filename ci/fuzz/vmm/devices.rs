//! Every device behind its rings, with something of the host at its other end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use vmm_virtio::balloon::{Balloon, BalloonOptions};
use vmm_virtio::block::file::{Engine, FileDisk, FileOptions};
use vmm_virtio::block::{Block, BlockOptions};
use vmm_virtio::console::{Console, Stream};
use vmm_virtio::fs::Fs;
use vmm_virtio::memory::GuestAddress;
use vmm_virtio::net::{Backend, Net, NetOptions, Offloads};
use vmm_virtio::rate_limiter::{Bucket, RateLimits};
use vmm_virtio::rng::Rng;
use vmm_virtio::vsock::{self, Vsock};

use super::requests::{self, Served};
use super::rings::Rings;
use super::script::Script;

const DISK_SIZE: u64 = 64 << 10;
const PAIR_COUNT: usize = 2;
const GUEST_CID: u32 = 5;
/// Connections of the host that are open at a time.
const STREAM_COUNT_MAX: usize = 4;
/// The one port of the host that is listened at.
const HOST_PORT: u32 = 7;

/// A disk in memory, which shrinks and grows under the driver.
pub(crate) fn block(bytes: &[u8]) {
    let script = &mut Script::new(bytes);
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).expect("memory"));
    file.set_len(DISK_SIZE).expect("memory");
    let options = FileOptions {
        is_read_only: script.flag(),
        engine: Engine::Blocking,
        ..FileOptions::default()
    };
    let disk = FileDisk::new(file.try_clone().expect("a descriptor"), options).expect("a disk");
    let second = Duration::from_secs(1);
    let operations = script.flag().then(|| Bucket::new(50, second, 0).expect("a sound bucket"));
    let options = BlockOptions {
        queues: 2,
        queue_size: 64,
        serial: "fuzz".into(),
        limits: RateLimits { operations, bytes: None },
    };
    let device = Block::new(Arc::new(disk), &options).expect("sound options");
    let handle = device.handle();
    Rings::new(device, script).play(script, |rings, script| match script.byte() % 8 {
        0 => {
            file.set_len(script.number() % (4 * DISK_SIZE)).expect("memory");
            let _ = handle.resize();
        }
        1 => file.set_len(script.number() % DISK_SIZE).expect("memory"),
        _ => {
            let other = script.byte();
            let kind = u32::from(script.pick(&[0, 1, 4, 8, 11, 13, other]));
            let sector = script.number();
            let head = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
            rings.request(&head, script);
        }
    });
}

/// A cable that is a socket, one message a packet.
struct Cable(OwnedFd);

impl Backend for Cable {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn has_udp_segmentation(&self) -> bool {
        true
    }

    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        Ok(())
    }
}

fn sockets(kind: SocketType) -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, kind, flags, None).expect("sockets")
}

/// A card of two pairs, packets from outside, and what the driver sends there.
pub(crate) fn net(bytes: &[u8]) {
    let script = &mut Script::new(bytes);
    let (cables, ends): (Vec<_>, Vec<_>) =
        (0..PAIR_COUNT).map(|_| sockets(SocketType::SEQPACKET)).unzip();
    let backends = cables.into_iter().map(|end| Arc::new(Cable(end)) as Arc<dyn Backend>);
    let options = NetOptions {
        mac: [2, 0, 0, 0, 0, 7],
        mtu: Some(1500),
        speed_mbps: None,
        queue_size: 64,
        receive_throttle: None,
        transmit_throttle: None,
    };
    let device = Net::new(options, backends.collect()).expect("sound options");
    let handle = device.handle();
    Rings::new(device, script).play(script, |rings, script| match script.byte() % 6 {
        0 | 1 => {
            let size = usize::from(script.u16() % 4096);
            let mut packet = script.take(size.min(200)).to_vec();
            packet.resize(size, 0);
            // The cable may be full.
            let _ =
                rustix::net::send(&ends[usize::from(script.flag())], &packet, SendFlags::empty());
            rings.look_at_sources();
        }
        2 => {
            let mut packet = [0; 4096];
            for end in &ends {
                let _ = rustix::net::recv(end, &mut packet[..], RecvFlags::empty());
            }
        }
        3 => handle.set_link(script.flag()),
        4 => {
            let head = [script.byte() % 6, script.byte() % 4];
            rings.request_on(2 * PAIR_COUNT, &head, script);
        }
        _ => {
            let head = script.take(12).to_vec();
            rings.request_on(1, &head, script);
        }
    });
}

/// A file system over a directory: the same requests as in `directory`, but in chains.
pub(crate) fn fs_queue(bytes: &[u8]) {
    let script = &mut Script::new(bytes);
    let served = Served::new();
    let device = Fs::new("fuzz", 2, served.directory()).expect("sound options");
    let mut unique = 0;
    Rings::new(device, script).play(script, |rings, script| {
        unique += 1;
        let node = script.number() % 8;
        let request = requests::request(script, node, unique, &[1]);
        let queue = usize::from(script.byte() % 3);
        rings.request_on(queue, &request, script);
    });
    served.check();
}

/// Sockets in both directions.
pub(crate) fn vsock(bytes: &[u8]) {
    let script = &mut Script::new(bytes);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("v");
    let settings = vsock::Settings {
        guest_cid: GUEST_CID,
        listener: vsock::Listener::bind(&path).expect("a socket"),
        silence_max: script.flag().then_some(Duration::from_secs(10)),
        reseeds: script.flag(),
        on_event: Arc::new(|_| ()),
    };
    let device = Vsock::new(settings).expect("sound settings");
    let listener = UnixListener::bind(folder.path().join(format!("v_{HOST_PORT}"))).expect("one");
    listener.set_nonblocking(true).expect("a socket");
    let mut streams: Vec<UnixStream> = Vec::new();
    Rings::new(device, script).play(script, |rings, script| match script.byte() % 8 {
        0 => {
            if let Ok(stream) = UnixStream::connect(&path) {
                stream.set_nonblocking(true).expect("a socket");
                let port = script.number();
                let _ = (&stream).write(format!("CONNECT {port}\n").as_bytes());
                streams.push(stream);
            }
            streams.truncate(STREAM_COUNT_MAX);
            rings.look_at_sources();
        }
        1 => {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).expect("a socket");
                streams.push(stream);
            }
            streams.truncate(STREAM_COUNT_MAX);
        }
        2 => {
            let size = usize::from(script.byte());
            let data = script.take(size);
            for mut stream in &streams {
                let _ = stream.write(data);
            }
            rings.look_at_sources();
        }
        3 => {
            let mut data = [0; 4096];
            for mut stream in &streams {
                let _ = stream.read(&mut data);
            }
            rings.look_at_sources();
        }
        4 => {
            streams.pop();
            rings.look_at_sources();
        }
        5 => rings.request_on(0, &[], script),
        _ => {
            let head = packet(script);
            rings.request_on(1, &head, script);
        }
    });
}

/// A packet's header (virtio 1.3 §5.10.6), with whom and how much as a script has it.
fn packet(script: &mut Script<'_>) -> Vec<u8> {
    let address = |script: &mut Script<'_>, usual: u32| match script.byte() {
        0xf0.. => script.u64(),
        _ => u64::from(usual),
    };
    let mut header = Vec::new();
    header.extend(address(script, GUEST_CID).to_le_bytes());
    header.extend(address(script, 2).to_le_bytes());
    let ports = [HOST_PORT, 1, 2, 1024, 1_073_741_824, 1_073_741_825, u32::MAX];
    header.extend(script.pick(&ports).to_le_bytes());
    header.extend(script.pick(&ports).to_le_bytes());
    header.extend(u32::try_from(script.number()).unwrap_or(u32::MAX).to_le_bytes());
    header.extend(script.pick(&[1_u16, 1, 1, 0, 2]).to_le_bytes());
    header.extend(u16::from(script.byte() % 9).to_le_bytes());
    for _ in 0..3 {
        header.extend(u32::try_from(script.number()).unwrap_or(u32::MAX).to_le_bytes());
    }
    header
}

/// A balloon over half of memory; some of it must stay.
pub(crate) fn balloon(bytes: &[u8]) {
    let script = &mut Script::new(bytes);
    let options = BalloonOptions {
        memory_size: 5 << 20,
        deflates_on_oom: script.flag(),
        has_reporting: script.flag(),
        excluded: vec![GuestAddress(0x8_0000)..GuestAddress(0x9_0000)],
    };
    let device = Balloon::new(options).expect("sound options");
    let handle = device.handle();
    Rings::new(device, script).play(script, |rings, script| match script.byte() % 4 {
        0 => {
            let _ = handle.set_target(script.number() << 12);
        }
        1 => {
            let values: Vec<u8> = (0..10)
                .flat_map(|_| {
                    let tag = u16::from(script.byte() % 16).to_le_bytes();
                    let value = script.number().to_le_bytes();
                    [&tag[..], &value].concat()
                })
                .collect();
            rings.request_on(2, &values, script);
        }
        _ => {
            let frames: Vec<u8> = (0..8)
                .flat_map(|_| u32::try_from(script.number()).unwrap_or(u32::MAX).to_le_bytes())
                .collect();
            let queue = script.pick(&[0, 1, 3, 4]);
            rings.request_on(queue, &frames, script);
        }
    });
}

/// A console with two streams, of which one goes away.
pub(crate) fn console(bytes: &[u8]) {
    let script = &mut Script::new(bytes);
    let (mut streams, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (ours, other) = sockets(SocketType::STREAM);
        streams.push(Stream::duplex(ours).expect("a stream"));
        ends.push(other);
    }
    let device = Console::new(80, 25, streams).expect("sound options");
    let handle = device.handle();
    Rings::new(device, script).play(script, |rings, script| match script.byte() % 6 {
        0 => {
            let size = usize::from(script.byte());
            let _ = handle.send(script.take(size));
        }
        1 => {
            let size = usize::from(script.byte());
            let data = script.take(size);
            if let Some(end) = ends.first() {
                let _ = rustix::net::send(end, data, SendFlags::NOSIGNAL);
            }
            rings.look_at_sources();
        }
        2 => {
            let mut data = [0; 4096];
            for end in &ends {
                let _ = rustix::net::recv(end, &mut data[..], RecvFlags::empty());
            }
            rings.look_at_sources();
        }
        3 => {
            ends.pop();
            rings.look_at_sources();
        }
        4 => handle.resize(script.u16(), script.u16()),
        _ => {
            let _ = handle.recent();
            let head = script.take(64).to_vec();
            rings.request_on(1, &head, script);
        }
    });
}

/// An entropy source.
pub(crate) fn rng(bytes: &[u8]) {
    let script = &mut Script::new(bytes);
    Rings::new(Rng::new(), script).play(script, |rings, script| rings.request(&[], script));
}
