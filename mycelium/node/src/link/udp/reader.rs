//! A thread for each socket, which reads it and carries what came through to the end.
//!
//! Many datagrams come with one call (`recvmmsg` with UDP GRO). Those for a link are opened in the memory
//! that they were read into, joined, and given to TUN or to the next link, all before the next call: no
//! packet waits for another thread, and none is woken for it. What comes faster than that is lost in the
//! kernel, as on any network.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use quinn_udp::RecvMeta;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::link::udp::UdpLink;
use crate::link::udp::socket::{Socket, Sockets};

/// Buffers that one call fills.
const RECEIVE_COUNT: usize = 4;
/// Size of a buffer: as much as the kernel joins.
const BUFFER_SIZE: usize = 64 << 10;
/// How long reading rests when the kernel has no memory.
const REST: Duration = Duration::from_millis(100);

/// Sealed datagrams of one size but the last, one behind the other, for one link.
pub(super) struct Run {
    pub(super) link: Arc<UdpLink>,
    /// Number of the buffer, and where in it.
    pub(super) buffer: usize,
    pub(super) at: Range<usize>,
    pub(super) stride: usize,
    pub(super) from: SocketAddr,
}

/// A thread that reads a socket.
pub(super) struct Reader {
    pub(super) socket: Arc<Socket>,
    /// Readable when it is to end.
    pub(super) stop: Arc<OwnedFd>,
    pub(super) sockets: Weak<Sockets>,
}

impl Reader {
    /// Reads until the sockets are dropped.
    pub(super) fn run(&self) {
        let mut buffers: [Vec<u8>; RECEIVE_COUNT] = std::array::from_fn(|_| vec![0; BUFFER_SIZE]);
        let mut metas = [RecvMeta::default(); RECEIVE_COUNT];
        let (mut runs, mut stream) = (Vec::new(), Vec::new());
        let mut wait = PollFlags::IN;
        while self.wait(wait) {
            let mut slices = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
            let socket = &self.socket;
            let received = socket.state.recv((&socket.file).into(), &mut slices, &mut metas);
            let Some(sockets) = self.sockets.upgrade() else { return };
            match received {
                Ok(count) => {
                    let filled = buffers.iter_mut().zip(&metas).take(count).enumerate();
                    for (number, (buffer, meta)) in filled {
                        sockets.take(number, buffer, meta, &mut runs);
                    }
                    carry(&mut runs, &mut buffers, &mut stream);
                    wait = PollFlags::IN;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait = PollFlags::IN,
                Err(error) => {
                    tracing::debug!(%error, "nothing can be read from a UDP socket for a moment");
                    wait = PollFlags::empty();
                }
            }
        }
    }

    /// Waits until the socket is ready so, or for a moment when it is not to be waited for. False when
    /// there is no more to read.
    fn wait(&self, events: PollFlags) -> bool {
        let rest = Timespec::try_from(REST).ok().filter(|_| events.is_empty());
        let mut events =
            [PollFd::new(&self.socket.file, events), PollFd::new(&self.stop, PollFlags::IN)];
        // Interrupted or not: what is there is read.
        let _ = rustix::event::poll(&mut events, rest.as_ref());
        events[1].revents().is_empty()
    }
}

/// Has each link take its runs, those that follow each other at once, so that packets of a flow can be
/// joined.
fn carry(runs: &mut Vec<Run>, buffers: &mut [Vec<u8>; RECEIVE_COUNT], stream: &mut Vec<u8>) {
    for runs in runs.chunk_by(|a, b| Arc::ptr_eq(&a.link, &b.link)) {
        let mut receiving = runs[0].link.receiving(stream);
        for Run { buffer, at, stride, from, .. } in runs {
            receiving.open(&mut buffers[*buffer][at.clone()], *stride, *from);
        }
        receiving.finish();
    }
    runs.clear();
}
