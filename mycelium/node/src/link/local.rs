//! A link between two instances of this process: memory, no socket.
//!
//! Each direction is a [`Pipe`] of bounded size, which takes bytes as a socket does: as many as there is
//! room for. What it does not take waits in the sender's [`Outbound`], as on every link, so packets keep
//! their order, control packets pass data that waits, and what waits for too long is dropped. The ends may
//! belong to different runtimes. When either end's task ends, both directions close.
//!
//! What passes is what passes on any link: sealed by its sender for its receiver, and not once more for
//! the way from one instance to the next.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::link::outbound::{Outbound, Sent, Transmit};
use crate::link::stream::{Inbound, LinkError};

/// What is on its way in one direction, in bytes.
const PIPE_SIZE: usize = 256 << 10;
/// Memory that each buffer keeps after much traffic. A link that had none costs next to nothing.
const SIZE_KEPT: usize = 64 << 10;
/// Reads in a row before others have their turn.
const READ_COUNT_MAX: usize = 16;

/// One end of a link between two instances.
pub(crate) struct LocalCarrier {
    outbound: Mutex<Outbound>,
    waiting: Notify,
    to: Arc<Pipe>,
    from: Arc<Pipe>,
    sent_size: AtomicU64,
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    state: Mutex<PipeState>,
    /// Something is there to be taken, or the pipe is closed.
    readable: Notify,
    /// There is room, or the pipe is closed.
    writable: Notify,
}

#[derive(Debug, Default)]
struct PipeState {
    bytes: Vec<u8>,
    is_closed: bool,
}

/// Ends a link from outside.
#[derive(Debug)]
pub(crate) struct Closer([Arc<Pipe>; 2]);

impl Closer {
    /// Ends the link.
    pub(crate) fn close(&self) {
        self.0.iter().for_each(|pipe| pipe.close());
    }
}

/// Both ends of a new link, and what ends it.
pub(crate) fn pair() -> (LocalCarrier, LocalCarrier, Closer) {
    let (there, back) = (Arc::<Pipe>::default(), Arc::<Pipe>::default());
    let end = |to: &Arc<Pipe>, from: &Arc<Pipe>| LocalCarrier {
        outbound: Mutex::default(),
        waiting: Notify::new(),
        to: Arc::clone(to),
        from: Arc::clone(from),
        sent_size: AtomicU64::new(0),
    };
    (end(&there, &back), end(&back, &there), Closer([there, back]))
}

impl LocalCarrier {
    /// Sends whole data packets, one behind the other.
    pub(crate) fn send_data(&self, packets: &[u8], now: Instant) {
        self.with(packets.len(), |outbound, pipe| outbound.send_data(pipe, packets, now));
    }

    /// Sends a control packet.
    pub(crate) fn send_control(&self, packet: &[u8]) {
        self.with(packet.len(), |outbound, pipe| outbound.send_control(pipe, packet));
    }

    /// Ends the link; the tasks of both ends find out at once.
    pub(crate) fn close(&self) {
        self.to.close();
        self.from.close();
    }

    /// Bytes given to the link to send.
    pub(crate) fn sent_size(&self) -> u64 {
        self.sent_size.load(Ordering::Relaxed)
    }

    /// Data packets that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.outbound().dropped()
    }

    /// Carries packets both ways until either end closes.
    pub(crate) async fn run(&self, inbound: &mut impl Inbound) -> LinkError {
        // Also when this future is dropped, with the runtime that polls it.
        let _closes = Closes(self);
        tokio::select! {
            error = self.read(inbound) => error,
            error = self.drain() => error,
        }
    }

    fn with(&self, size: usize, send: impl FnOnce(&mut Outbound, &Pipe) -> io::Result<Sent>) {
        self.sent_size.fetch_add(size as u64, Ordering::Relaxed);
        let sent = send(&mut self.outbound(), &self.to);
        match sent {
            Ok(Sent::Done) => {}
            Ok(Sent::Waiting) => self.waiting.notify_one(),
            Err(_closed) => self.close(),
        }
    }

    /// Sends what waits, as long as the link lives.
    async fn drain(&self) -> LinkError {
        loop {
            self.waiting.notified().await;
            loop {
                let drained = self.outbound().drain(&*self.to, Instant::now());
                match drained {
                    Ok(Sent::Done) => break,
                    Ok(Sent::Waiting) => self.to.writable.notified().await,
                    Err(error) => return LinkError::Io(error),
                }
            }
        }
    }

    /// Takes what arrives until the link closes or brings what is no packet.
    async fn read(&self, inbound: &mut impl Inbound) -> LinkError {
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        let mut reads = 0_usize;
        loop {
            if !self.from.take(&mut taken) {
                return LinkError::Closed;
            }
            if taken.is_empty() {
                taken.shrink_to(SIZE_KEPT);
                self.from.readable.notified().await;
                continue;
            }
            inbound.arrived(taken.len());
            let done = take_packets(&mut taken, &mut rest, inbound);
            if let Err(error) = done {
                return LinkError::Frame(error);
            }
            if let Err(error) = inbound.settle().await {
                return error;
            }
            reads += 1;
            if reads.is_multiple_of(READ_COUNT_MAX) {
                tokio::task::yield_now().await;
            }
        }
    }

    fn outbound(&self) -> MutexGuard<'_, Outbound> {
        self.outbound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the packets of `taken` looked at, which is empty afterwards; `rest` keeps the front of one that is
/// not whole.
fn take_packets(
    taken: &mut Vec<u8>,
    rest: &mut Vec<u8>,
    inbound: &mut impl Inbound,
) -> Result<(), mycelium_wire::frame::FrameError> {
    if rest.is_empty() {
        let done = inbound.packets(taken)?;
        rest.extend_from_slice(&taken[done..]);
    } else {
        rest.append(taken);
        let done = inbound.packets(rest)?;
        rest.drain(..done);
    }
    taken.clear();
    rest.shrink_to(SIZE_KEPT);
    Ok(())
}

/// Closes a link with the end of its scope.
struct Closes<'a>(&'a LocalCarrier);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Pipe {
    /// Swaps what is there with `taken`, which is empty. False when the pipe is closed and empty.
    fn take(&self, taken: &mut Vec<u8>) -> bool {
        let mut state = self.state();
        if state.bytes.is_empty() {
            state.bytes.shrink_to(SIZE_KEPT);
            return !state.is_closed;
        }
        std::mem::swap(&mut state.bytes, taken);
        drop(state);
        self.writable.notify_one();
        true
    }

    fn close(&self) {
        self.state().is_closed = true;
        // Each has one task that waits, perhaps only a moment later.
        self.readable.notify_one();
        self.writable.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transmit for Pipe {
    fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        if state.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let size = bytes.len().min(PIPE_SIZE - state.bytes.len());
        if size == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let was_empty = state.bytes.is_empty();
        state.bytes.extend_from_slice(&bytes[..size]);
        drop(state);
        if was_empty {
            self.readable.notify_one();
        }
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use mycelium_wire::frame::{self, DataHeader, Frame, FrameError};
    use tokio::time::timeout;

    use super::*;
    use crate::link::stream::Taker;

    /// Counts data packets, by the order of their hop limits.
    #[derive(Default)]
    struct Counter {
        sizes: Vec<usize>,
        size: usize,
    }

    impl Taker for Counter {
        fn packets(&mut self, bytes: &mut [u8]) -> Result<usize, FrameError> {
            let mut at = 0;
            while let Some((frame, size)) = frame::parse(&bytes[at..])? {
                if let Frame::Data(data) = frame {
                    self.sizes.push(data.body.len());
                }
                at += size;
            }
            Ok(at)
        }

        fn arrived(&mut self, size: usize) {
            self.size += size;
        }
    }

    impl Inbound for Counter {
        async fn settle(&mut self) -> Result<(), LinkError> {
            // Slow, so that the sender has to wait.
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(())
        }

        fn data_taker(&self) -> Box<dyn Taker> {
            Box::new(Self::default())
        }
    }

    fn packet(size: u16) -> Vec<u8> {
        let address = Ipv6Addr::from([4; 16]);
        let header =
            DataHeader { hop_limit: 1, source: address, destination: address, length: size };
        let mut packet = header.encode().to_vec();
        packet.resize(packet.len() + usize::from(size), 0);
        packet
    }

    #[tokio::test]
    async fn packets_arrive_in_order_though_the_pipe_is_smaller_than_they_are() {
        let (near, far, closer) = pair();
        let near = Arc::new(near);
        let (reader, writer) = (Arc::new(far), Arc::clone(&near));
        let receiving = Arc::clone(&reader);
        let received = tokio::spawn(async move {
            let mut counter = Counter::default();
            let _ = timeout(Duration::from_secs(10), receiving.run(&mut counter)).await;
            counter
        });
        let drains = tokio::spawn(async move { writer.run(&mut Counter::default()).await });
        let mut size = 0;
        for number in 1..=100 {
            let packet = packet(number * 100);
            size += packet.len();
            near.send_data(&packet, Instant::now());
        }
        let start = Instant::now();
        while near.to.state().bytes.len() + near.outbound().waiting_size() > 0 {
            assert!(start.elapsed() < Duration::from_secs(5));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        closer.close();
        let counter = received.await.unwrap();
        assert_eq!(counter.size, size);
        assert_eq!(counter.sizes, (1..=100).map(|number| number * 100).collect::<Vec<_>>());
        assert!(matches!(drains.await.unwrap(), LinkError::Closed | LinkError::Io(_)));
    }

    #[tokio::test]
    async fn an_end_that_is_dropped_ends_the_other() {
        let (near, far, _closer) = pair();
        let task = tokio::spawn(async move { far.run(&mut Counter::default()).await });
        tokio::task::yield_now().await;
        task.abort();
        let ended = timeout(Duration::from_secs(5), near.run(&mut Counter::default())).await;
        assert!(matches!(ended, Ok(LinkError::Closed)), "{ended:?}");
        // Nobody takes it, and nothing happens.
        near.send_data(&packet(9), Instant::now());
        near.send_control(b"x");
    }
}
