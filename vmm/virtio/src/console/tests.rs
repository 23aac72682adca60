//! The console driven through real rings, with sockets, pipes and a pty as its streams.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::testing::{self, Buffer, DRIVER_SIZE, Driver, Interrupts};
use crate::{Interest, Interrupt, Source, UnitError};

struct Rig {
    device: Console,
    handle: ConsoleHandle,
    unit: Box<dyn Unit>,
    receive: Driver,
    transmit: Driver,
    interrupts: Arc<Interrupts>,
}

impl Rig {
    fn new(streams: Vec<Stream>) -> Self {
        let memory = testing::memory(usize::try_from(DRIVER_SIZE * 2).unwrap());
        let interrupts = Arc::new(Interrupts::default());
        let queue = |index: u16| {
            let interrupt = Arc::clone(&interrupts) as Arc<dyn Interrupt>;
            let base = DRIVER_SIZE * u64::from(index);
            Driver::new(&memory, base, index, 64, false, interrupt)
        };
        let ((receive, first), (transmit, second)) = (queue(0), queue(1));
        let mut device = Console::new(80, 25, streams).unwrap();
        let queues = vec![Some(first), Some(second)];
        let activation = Activation { memory: Arc::clone(&memory), features: 0, queues };
        let unit = device.activate(activation).unwrap().remove(0);
        let handle = device.handle();
        Self { device, handle, unit, receive, transmit, interrupts }
    }

    fn print(&mut self, bytes: &[u8]) {
        let (head, _) = self.transmit.add(&[Buffer::Readable(bytes.to_vec())]);
        self.unit.kicked(1).unwrap();
        assert_eq!(self.transmit.take_used(), Some((head, 0)));
    }

    fn streams(&self) -> Vec<Source> {
        let sources = self.unit.sources();
        sources.into_iter().filter(|source| source.token != unit::WAKE).collect()
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.device.counters();
        counters.iter().find(|(known, _)| *known == name).unwrap().1.value()
    }
}

fn sockets() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
}

fn read(descriptor: impl AsFd) -> Vec<u8> {
    let (mut all, mut bytes) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        match rustix::io::read(&descriptor, &mut bytes[..]) {
            Ok(0) | Err(Errno::AGAIN) => return all,
            Ok(size) => all.extend(&bytes[..size]),
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// §5.3.4: size in the configuration space, and no second port.
#[test]
fn the_configuration_space_has_the_size_and_a_change_is_told() {
    let rig = Rig::new(Vec::new());
    assert_eq!(rig.device.features() & 0b111, 1 << F_SIZE);
    let config = |rig: &Rig| {
        let mut bytes = [0; 8];
        rig.device.config().read(0, &mut bytes);
        bytes
    };
    assert_eq!(config(&rig), [80, 0, 25, 0, 0, 0, 0, 0]);
    let interrupt = Arc::clone(&rig.interrupts) as Arc<dyn Interrupt>;
    rig.device.config().announce_to(Some(interrupt));
    rig.handle.resize(300, 2);
    assert_eq!(config(&rig), [44, 1, 2, 0, 0, 0, 0, 0]);
    assert_eq!(rig.interrupts.config_count(), 1);
}

/// §5.3.6: output goes to every stream in order, however it is cut into buffers.
#[test]
fn output_reaches_the_streams_and_the_scrollback() {
    let ((one, mine), (other, yours)) = (sockets(), sockets());
    let streams = vec![Stream::duplex(one).unwrap(), Stream::duplex(other).unwrap()];
    let mut rig = Rig::new(streams);
    rig.print(b"hello ");
    rig.transmit.add(&[Buffer::Readable(b"wor".to_vec()), Buffer::Readable(b"ld".to_vec())]);
    rig.unit.kicked(1).unwrap();
    assert_eq!(read(&mine), b"hello world");
    assert_eq!(read(&yours), b"hello world");
    assert_eq!(rig.handle.recent(), b"hello world");
    assert_eq!(rig.counter("output_bytes"), 11);
    assert_eq!(rig.interrupts.take(), [1, 1]);
}

#[test]
fn a_reader_that_does_not_read_loses_the_oldest_and_makes_nobody_wait() {
    let (stream, mine) = sockets();
    let mut rig = Rig::new(vec![Stream::duplex(stream).unwrap()]);
    let mut printed = Vec::new();
    for round in 0..30_u8 {
        let line: Vec<u8> = (0..20_000_u32).map(|i| round ^ i.to_le_bytes()[0]).collect();
        rig.print(&line);
        printed.extend(line);
    }
    assert_eq!(rig.streams()[0].interest, Interest::ReadWrite);
    let mut got = read(&mine);
    for _ in 0..10 {
        rig.unit.ready(1).unwrap();
        got.extend(read(&mine));
    }
    assert_eq!(rig.streams()[0].interest, Interest::Read);
    let dropped = usize::try_from(rig.counter("output_bytes_dropped")).unwrap();
    assert!(dropped > 0);
    assert_eq!(got.len() + dropped, printed.len());
    assert!(printed.ends_with(&got[got.len() - PENDING_SIZE_MAX..]));
    assert!(printed.ends_with(&rig.handle.recent()));
    assert_eq!(rig.handle.recent().len(), SCROLLBACK_SIZE);
}

#[test]
fn who_attaches_gets_what_was_printed_before_and_after() {
    let mut rig = Rig::new(Vec::new());
    rig.print(b"before");
    let (stream, mine) = sockets();
    rig.handle.attach(stream).unwrap();
    rig.unit.ready(unit::WAKE).unwrap();
    rig.print(b", after");
    assert_eq!(read(&mine), b"before, after");
    // And types.
    rig.receive.add(&[Buffer::Writable(16)]);
    rustix::io::write(&mine, b"ls\n").unwrap();
    let source = rig.streams()[0];
    rig.unit.ready(source.token).unwrap();
    assert_eq!(rig.receive.take_used(), Some((0, 3)));
    // And goes.
    drop(mine);
    rig.unit.ready(source.token).unwrap();
    assert_eq!(rig.streams(), []);
    rig.print(b"to nobody");
    assert_eq!(rig.counter("output_bytes_dropped"), 0);
}

#[test]
fn attached_streams_are_counted_and_must_be_of_use() {
    let rig = Rig::new(Vec::new());
    let file = tempfile::tempfile().unwrap();
    assert!(rig.handle.attach(file.into()).is_err());
    let ends: Vec<_> = (0..STREAMS_MAX)
        .map(|_| {
            let (stream, mine) = sockets();
            rig.handle.attach(stream).unwrap();
            mine
        })
        .collect();
    let error = rig.handle.attach(sockets().0).unwrap_err();
    assert!(error.to_string().contains('8'), "{error}");
    assert_eq!(rig.streams().len(), ends.len());
}

/// Who half-closes still reads, and an end that is closed while nothing is asked of it is noticed.
#[test]
fn ends_are_noticed_and_cause_no_spin() {
    let (stream, mine) = sockets();
    let mut rig = Rig::new(vec![Stream::duplex(stream).unwrap()]);
    rustix::net::shutdown(&mine, rustix::net::Shutdown::Write).unwrap();
    rig.unit.ready(1).unwrap();
    assert_eq!(rig.streams()[0].interest, Interest::None);
    rig.print(b"still there");
    assert_eq!(read(&mine), b"still there");
    drop(mine);
    rig.unit.ready(1).unwrap();
    assert_eq!(rig.streams(), []);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut rig = Rig::new(vec![Stream::new(writer, false, true).unwrap()]);
    drop(reader);
    rig.unit.ready(1).unwrap();
    assert_eq!(rig.streams(), []);
}

#[test]
fn input_waits_for_the_guest_in_bounded_room() {
    let (stream, mine) = sockets();
    let mut rig = Rig::new(vec![Stream::duplex(stream).unwrap()]);
    let typed: Vec<u8> = (0..10_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    assert_eq!(rustix::io::write(&mine, &typed).unwrap(), typed.len());
    rig.unit.ready(1).unwrap();
    assert_eq!(rig.streams()[0].interest, Interest::None, "the guest takes nothing");
    let mut got = Vec::new();
    for _ in 0..40 {
        let (_, places) = rig.receive.add(&[Buffer::Writable(100), Buffer::Writable(200)]);
        rig.unit.kicked(0).unwrap();
        if rig.streams()[0].interest == Interest::Read {
            rig.unit.ready(1).unwrap();
        }
        while let Some((_, size)) = rig.receive.take_used() {
            let size = usize::try_from(size).unwrap();
            got.extend(rig.receive.read(places[0], size.min(100)));
            got.extend(rig.receive.read(places[1], size.saturating_sub(100)));
        }
    }
    assert_eq!(got, typed);
    assert_eq!(rig.counter("input_bytes"), 10_000);
    let all = vec![1; INPUT_SIZE_MAX + 1];
    assert_eq!(rig.handle.send(&all), INPUT_SIZE_MAX);
    assert_eq!(rig.handle.send(b"x"), 0);
}

/// §5.3.6.1.
#[test]
fn input_buffers_that_cannot_be_written_stop_the_device() {
    let mut rig = Rig::new(Vec::new());
    assert_eq!(rig.handle.send(b"x"), 1);
    rig.receive.add(&[Buffer::Readable(vec![0; 4])]);
    let error = rig.unit.kicked(0).unwrap_err();
    assert!(matches!(error, UnitError::Guest(_)), "{error:?}");
}

#[test]
fn a_chain_of_any_length_is_output_up_to_a_bound() {
    let mut rig = Rig::new(Vec::new());
    let size = usize::try_from(unit::CHAIN_SIZE_MAX).unwrap();
    rig.print(&vec![b'x'; size + 5]);
    assert_eq!(rig.counter("output_bytes_dropped"), 5);
    assert!(rig.unit.deadline().is_some(), "its budget is used up");
    rig.unit.expired(std::time::Instant::now()).unwrap();
    assert_eq!(rig.unit.deadline(), None);
}

#[test]
fn a_file_is_appended_to_until_it_is_full() {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), b"old\n").unwrap();
    let file = File::options().append(true).open(path.path()).unwrap();
    let mut stream = Stream::file(file).unwrap();
    assert!(stream.interest(0).is_none());
    assert_eq!(stream.write(b"new\n"), 0);
    assert_eq!(std::fs::read(path.path()).unwrap(), b"old\nnew\n");
    let sparse = File::options().write(true).open(path.path()).unwrap();
    sparse.set_len(FILE_SIZE_MAX - 2).unwrap();
    let mut stream = Stream::file(sparse.try_clone().unwrap()).unwrap();
    assert_eq!(stream.write(b"1234"), 2);
    assert_eq!(stream.write(b"56"), 2);
}

#[test]
fn a_pty_is_raw_and_works_without_anybody_and_with() {
    let (stream, path) = match Stream::pty() {
        Ok(pty) => pty,
        Err(error) => {
            eprintln!("skipped: no pseudo terminals here: {error}");
            return;
        }
    };
    let mut rig = Rig::new(vec![stream]);
    rig.receive.add(&[Buffer::Writable(16)]);
    rig.print(b"a\nb");
    let user = File::options().read(true).write(true).open(&path).unwrap();
    rustix::io::ioctl_fionbio(&user, true).unwrap();
    assert_eq!(read(&user), b"a\nb", "no carriage return is added");
    rustix::io::write(&user, b"\x03").unwrap();
    rig.unit.ready(1).unwrap();
    assert_eq!(rig.receive.take_used(), Some((0, 1)));
    drop(user);
    rig.unit.ready(1).unwrap();
    assert_eq!(rig.streams().len(), 1, "its user may come back");
    // Nobody reads: still nobody waits.
    for _ in 0..10 {
        rig.print(&[b'x'; 60_000]);
    }
    assert!(rig.counter("output_bytes_dropped") > 0);
}
