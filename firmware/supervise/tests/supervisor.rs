//! The supervisor itself, as a process: its clients, its death, its end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{LIMIT, Running, is_alive, spawn, until};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use supervise::{Client, State};

const SLEEP: &str = "exec sleep 1000";

fn raw(run: &Running) -> UnixStream {
    let stream = UnixStream::connect(run.path("socket")).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn is_closed(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        // It closed with something unread.
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn programs_survive_clients_that_die_in_the_middle_of_a_request() {
    let run = Running::start();
    let pid = run.client.start(&run.script("a", SLEEP), &[]).unwrap().pid.unwrap();
    raw(&run).write_all(b"{\"do\":\"stop\",\"name\":\"a\"").unwrap();
    raw(&run).write_all(b"{\"do\":\"wait\",\"name\":\"a\"}\n{\"do\":").unwrap();
    raw(&run).write_all(b"{\"do\":\"watch\"}\n").unwrap();
    assert_eq!(run.status("a").pid, Some(pid));
    // A stop that was asked for is done, whoever is left to hear of it.
    raw(&run).write_all(b"{\"do\":\"stop\",\"name\":\"a\",\"grace_ms\":5000}\n").unwrap();
    until("it is stopped", || run.client.find("a").unwrap().is_none());
    assert!(!is_alive(pid));
}

#[test]
fn many_requests_on_one_connection_are_answered_in_order() {
    let run = Running::start();
    run.client.start(&run.script("a", SLEEP), &[]).unwrap();
    let mut stream = raw(&run);
    let requests = "{\"do\":\"stop\",\"name\":\"b\",\"grace_ms\":0}\n\
                    {\"do\":\"stop\",\"name\":\"a\",\"grace_ms\":0}\n\
                    {\"do\":\"list\"}\nnonsense\n{\"do\":\"wait\",\"name\":\"a\"}\n";
    stream.write_all(requests.as_bytes()).unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "{\"stopped\":null}");
    assert!(lines.next().unwrap().contains("\"state\":\"stopping\""));
    assert_eq!(lines.next().unwrap(), "{\"statuses\":[]}");
    assert!(lines.next().unwrap().contains("\"kind\":\"invalid\""));
    assert!(lines.next().unwrap().contains("\"kind\":\"absent\""));
}

#[test]
fn hostile_clients_are_dropped_and_others_served() {
    let run = Running::start();
    run.client.start(&run.script("a", SLEEP), &[]).unwrap();
    let mut endless = raw(&run);
    let chunk = [b' '; 64 << 10];
    while endless.write_all(&chunk).is_ok() {}
    assert!(is_closed(&mut endless));

    let mut greedy = raw(&run);
    let null = std::fs::File::open("/dev/null").unwrap();
    for _ in 0..5 {
        let descriptors = [null.as_fd(); 7];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(7))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let bytes = [std::io::IoSlice::new(b" ")];
        // It may be dropped already.
        let _ = sendmsg(&greedy, &bytes, &mut control, SendFlags::NOSIGNAL);
    }
    assert!(is_closed(&mut greedy));
    let folder = format!("/proc/{}/fd", run.process.id());
    until("their descriptors are closed", || std::fs::read_dir(&folder).unwrap().count() < 64);

    let mut crowd: Vec<UnixStream> =
        (0..400).filter_map(|_| UnixStream::connect(run.path("socket")).ok()).collect();
    // Those that say nothing are dropped in time, or not let in.
    until("others are served", || Client::connect(run.path("socket")).is_ok());
    crowd.iter().for_each(|stream| stream.set_read_timeout(Some(LIMIT)).unwrap());
    assert!(crowd.iter_mut().all(is_closed));
    assert_eq!(run.status("a").state, State::Running);
}

#[test]
fn a_watcher_that_takes_nothing_is_dropped() {
    let run = Running::start();
    let mut stream = raw(&run);
    stream.write_all(b"{\"do\":\"watch\"}\n").unwrap();
    let program = run.script("a", "exit 0");
    until("it is dropped", || {
        for _ in 0..50 {
            run.client.start(&program, &[]).unwrap();
            run.client.stop("a", Duration::ZERO).unwrap();
        }
        let mut probe = [0; 1];
        // Nothing is read: only the hang-up shows.
        let polled = &mut [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::empty())];
        rustix::event::poll(polled, Some(&rustix::event::Timespec::default())).unwrap();
        probe[0] = u8::from(polled[0].revents().contains(rustix::event::PollFlags::HUP));
        probe[0] == 1
    });
}

#[test]
fn the_socket_is_for_its_user_alone_and_for_one_supervisor() {
    let run = Running::start();
    let mode = std::fs::metadata(run.path("socket")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut second = spawn(&run.folder, &[]);
    assert!(!second.wait().unwrap().success());
    run.client.list().unwrap();
}

#[test]
fn programs_die_with_it_and_the_next_one_begins_empty() {
    let mut run = Running::start();
    let pid = run.client.start(&run.script("a", SLEEP), &[]).unwrap().pid.unwrap();
    run.kill();
    until("its program is dead", || !is_alive(pid));
    assert!(Client::connect(run.path("socket")).is_err());
    run.process = spawn(&run.folder, &[]);
    run.client = common::connect(&run.path("socket"));
    assert_eq!(run.client.list().unwrap(), []);
    run.client.start(&run.script("a", SLEEP), &[]).unwrap();
}

#[test]
fn at_its_end_it_ends_its_programs_first() {
    let mut run = Running::start();
    let script = "trap 'echo ended; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    run.client.start(&run.script("a", script), &[]).unwrap();
    run.client.start(&run.script("b", SLEEP), &[]).unwrap();
    until("it is ready", || run.log("a").contains("ready"));
    let pid = rustix::process::Pid::from_child(&run.process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(run.process.wait().unwrap().success());
    assert!(run.log("a").contains("ended"));
    assert!(!run.path("socket").exists());
}

#[test]
fn a_hundred_programs_at_once_are_no_trouble() {
    let run = Running::start();
    let threads = 8;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let run = &run;
            scope.spawn(move || {
                for number in 0..13 {
                    let name = format!("p{thread}-{number}");
                    run.client.start(&run.script(&name, SLEEP), &[]).unwrap();
                }
            });
        }
    });
    assert_eq!(run.client.list().unwrap().len(), threads * 13);
    std::thread::scope(|scope| {
        for status in run.client.list().unwrap() {
            let run = &run;
            scope.spawn(move || run.client.stop(&status.name, LIMIT).unwrap().unwrap());
        }
    });
    assert_eq!(run.client.list().unwrap(), []);
    assert_eq!(common::children(run.process.id()), []);
}
