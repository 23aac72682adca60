//! Units on threads: an echo device through its transport, and units that try a worker's patience.

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use vmm_virtio::pci::testing::{
    ECHO_DELAY, ECHO_FAIL, ECHO_LATER, ECHO_QUEUE_SIZE, Event, RIG_BAR, Rig, rig_message,
};
use vmm_virtio::pci::{Executor, Failure, Function};
use vmm_virtio::testing::{self, Buffer, DRIVER_SIZE, Driver, Interrupts};
use vmm_virtio::{Interest, Interrupt, Queue, Source, Unit, UnitError};

use super::*;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn workers() -> Workers {
    Workers::new(Arc::new(|_| Ok(())))
}

fn own(name: &str, thread_count: usize) -> Arc<dyn Executor> {
    workers().executor(name, Placement::Own { thread_count }).unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Machine {
    rig: Rig,
    drivers: Vec<Driver>,
}

impl Machine {
    fn new(executor: Arc<dyn Executor>) -> Self {
        let mut rig = Rig::new(2, testing::memory(4 << 20), executor);
        for vector in 0..3 {
            rig.set_up_vector(vector);
        }
        let drivers = Self::start(&mut rig, 0);
        Self { rig, drivers }
    }

    fn start(rig: &mut Rig, base: u64) -> Vec<Driver> {
        rig.negotiate(true);
        rig.write(0x10, &[0, 0]);
        let bases = [base, base + DRIVER_SIZE];
        for (index, base) in (0..).zip(bases) {
            rig.set_up_queue(index, base);
        }
        rig.go();
        bases.map(|base| Driver::alone(&rig.memory, base, ECHO_QUEUE_SIZE)).into()
    }

    fn ask(&mut self, queue: u16, request: &[u8]) {
        let buffers = [Buffer::Readable(request.into()), Buffer::Writable(16)];
        self.drivers[usize::from(queue)].add(&buffers);
        assert!(self.rig.host.ring(RIG_BAR + 0x2000 + u64::from(queue) * 4));
    }

    fn wait(&mut self, queue: u16) -> u32 {
        let mut used = None;
        wait_until("an echo", || {
            used = self.drivers[usize::from(queue)].take_used();
            used.is_some()
        });
        used.unwrap().1
    }
}

#[test]
fn kicks_are_echoed_on_every_thread() {
    for executor in [own("echo", 1), own("echo", 2)] {
        let mut machine = Machine::new(executor);
        for _ in 0..50 {
            for queue in [0, 1] {
                machine.ask(queue, b"hello");
                assert_eq!(machine.wait(queue), 5);
            }
        }
        let events = machine.rig.host.take();
        assert!(events.contains(&Event::Send(1, rig_message(1))), "{events:?}");
    }
}

/// A burst of kicks ends with every chain used: no edge is lost.
#[test]
fn no_kick_is_lost() {
    let mut machine = Machine::new(own("burst", 1));
    for _ in 0..200 {
        for _ in 0..8 {
            machine.ask(0, b"x");
        }
        for _ in 0..8 {
            machine.wait(0);
        }
    }
}

#[test]
fn deadlines_pass() {
    let mut machine = Machine::new(own("later", 1));
    let start = Instant::now();
    machine.ask(1, ECHO_LATER);
    assert_eq!(machine.wait(1), 5);
    assert!(start.elapsed() >= ECHO_DELAY);
    machine.ask(1, b"now");
    assert_eq!(machine.wait(1), 3);
}

#[test]
fn sources_are_watched_while_they_interest() {
    let mut machine = Machine::new(own("poke", 1));
    let control = Arc::clone(&machine.rig.control);
    control.poke.write(1).unwrap();
    wait_until("a poke", || control.poke_count.load(Ordering::Relaxed) == 1);
    control.is_watching.store(false, Ordering::Relaxed);
    machine.ask(0, b"look away");
    machine.wait(0);
    control.poke.write(1).unwrap();
    machine.ask(0, b"still here");
    machine.wait(0);
    assert_eq!(control.poke_count.load(Ordering::Relaxed), 1);
    control.is_watching.store(true, Ordering::Relaxed);
    machine.ask(0, b"look here");
    wait_until("the poke that waited", || control.poke_count.load(Ordering::Relaxed) == 2);
}

#[test]
fn a_unit_that_fails_is_reported_and_its_neighbour_goes_on() {
    let mut machine = Machine::new(own("fail", 1));
    machine.rig.host.take();
    machine.ask(1, ECHO_FAIL);
    wait_until("needs reset", || machine.rig.status() == 15 | 64);
    wait_until("a configuration interrupt", || {
        machine.rig.host.take().contains(&Event::Send(0, rig_message(0)))
    });
    machine.ask(0, b"hello");
    assert_eq!(machine.wait(0), 5);
    machine.drivers = Machine::start(&mut machine.rig, 2 * DRIVER_SIZE);
    machine.ask(1, b"hello");
    assert_eq!(machine.wait(1), 5);
}

#[test]
fn a_slow_stop_does_not_hold_up_the_vcpu() {
    let mut machine = Machine::new(own("slow", 2));
    machine.rig.control.stop_ms.store(1000, Ordering::Relaxed);
    let start = Instant::now();
    machine.rig.write(0x14, &[0]);
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    assert_eq!(machine.rig.status(), 15);
    wait_until("the reset", || machine.rig.status() == 0);
    assert_eq!(machine.rig.control.unit_count.load(Ordering::Relaxed), 0);
}

#[test]
fn a_pause_loses_nothing() {
    let mut machine = Machine::new(own("pause", 2));
    for round in 0..20 {
        machine.ask(0, if round % 2 == 0 { b"later" } else { b"hello" });
        machine.rig.transport.pause().unwrap();
        machine.ask(1, b"hello");
        machine.rig.transport.resume();
        assert_eq!((machine.wait(0), machine.wait(1)), (5, 5));
    }
}

fn thread_names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    tasks.flatten().filter_map(name).map(|name| name.trim().to_owned()).collect()
}

#[test]
fn threads_are_named_set_up_shared_and_ended() {
    let names = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&names);
    let workers = Workers::new(Arc::new(move |name| {
        log.lock().unwrap().push(name.to_owned());
        if name == "bad" { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    }));
    let mut machines: Vec<_> = (0..3)
        .map(|_| Machine::new(workers.executor("ignored", Placement::Shared).unwrap()))
        .collect();
    for machine in &mut machines {
        machine.ask(0, b"hello");
        machine.wait(0);
    }
    let executor = workers.executor("vdq", Placement::Own { thread_count: 2 }).unwrap();
    let error = workers.executor("bad", Placement::Own { thread_count: 1 }).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let mut seen = names.lock().unwrap().clone();
    seen.sort();
    assert_eq!(seen, ["bad", "devices", "vdq.0", "vdq.1"]);
    assert!(thread_names().contains(&"vdq.1".into()));
    drop(executor);
    assert!(!thread_names().contains(&"vdq.1".into()));
}

/// A unit whose one source is a socket that it replaces when the other side hangs up.
struct Reconnecting {
    queue: Queue,
    socket: OwnedFd,
    next: Receiver<UnixStream>,
    call_count: Arc<AtomicU64>,
}

impl Unit for Reconnecting {
    fn sources(&self) -> Vec<Source> {
        let descriptor = self.socket.as_raw_fd();
        vec![Source { descriptor, token: 0, interest: Interest::Read }]
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn kicked(&mut self, _: u16) -> Result<(), UnitError> {
        Ok(())
    }

    fn ready(&mut self, _: u32) -> Result<(), UnitError> {
        self.call_count.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [0; 8];
        if rustix::io::read(&self.socket, &mut bytes).unwrap() == 0 {
            let next = self.next.recv_timeout(PATIENCE).unwrap();
            // Under the very number that was closed.
            rustix::io::dup2(&next, &mut self.socket).unwrap();
        }
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<Queue> {
        vec![self.queue]
    }
}

struct NoFailure(Sender<String>);

impl Failure for NoFailure {
    fn failed(&self, error: &UnitError) {
        let _ = self.0.send(error.to_string());
    }
}

fn queue() -> Queue {
    let interrupts = Arc::new(Interrupts::default()) as Arc<dyn Interrupt>;
    Driver::new(&testing::memory(1 << 20), 0, 0, 8, false, interrupts).1
}

#[test]
fn a_source_that_is_replaced_under_its_number_is_watched_on() {
    let executor = own("reconnect", 1);
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let (sender, next) = channel();
    let (failure, _failures) = channel();
    let call_count = Arc::new(AtomicU64::new(0));
    let unit = Reconnecting {
        queue: queue(),
        socket: socket.into(),
        next,
        call_count: Arc::clone(&call_count),
    };
    let mut running = executor.start(vec![Box::new(unit)], Arc::new(NoFailure(failure))).unwrap();
    let calls = || call_count.load(Ordering::Relaxed);
    for round in 0..3 {
        peer.write_all(b"x").unwrap();
        wait_until("a byte", || calls() == round * 2 + 1);
        let (new_peer, new_socket) = UnixStream::pair().unwrap();
        sender.send(new_socket).unwrap();
        peer = new_peer;
        wait_until("the end of the stream", || calls() >= round * 2 + 2);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(calls(), 6, "it does not spin");
    assert_eq!(running.stop(PATIENCE).unwrap().len(), 1);
}

/// A unit that names what epoll does not take.
struct Unwatchable(Queue, std::fs::File);

impl Unit for Unwatchable {
    fn sources(&self) -> Vec<Source> {
        vec![Source { descriptor: self.1.as_raw_fd(), token: 0, interest: Interest::Read }]
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.0]
    }

    fn kicked(&mut self, _: u16) -> Result<(), UnitError> {
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<Queue> {
        vec![self.0]
    }
}

#[test]
fn a_source_that_cannot_be_watched_fails_its_unit() {
    let executor = own("unwatchable", 1);
    let (failure, failures) = channel();
    let unit = Unwatchable(queue(), tempfile::tempfile().unwrap());
    let mut running = executor.start(vec![Box::new(unit)], Arc::new(NoFailure(failure))).unwrap();
    assert_eq!(failures.recv_timeout(PATIENCE).unwrap(), "watching a descriptor");
    assert_eq!(running.stop(PATIENCE).unwrap().len(), 1);
    failures.recv().unwrap_err();
}
