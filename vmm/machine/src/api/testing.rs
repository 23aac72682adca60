//! A connection without a server and a machine that isn't there, for tests of other crates: what a
//! client sends goes in, what it would read comes out.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, Timespec, poll};

use super::Control;
use super::connection::{Connection, Next, Timeouts};
use super::dispatch::dispatch;
pub use super::fake::Fake;

/// Sends `pieces` one after the other, and returns all answers, until the connection is closed or
/// nothing more is to be said.
///
/// # Panics
/// When the host has no sockets left.
#[must_use]
pub fn converse(pieces: &[&[u8]], control: &dyn Control) -> Vec<u8> {
    let (ours, client) = UnixStream::pair().expect("sockets");
    for end in [&ours, &client] {
        end.set_nonblocking(true).expect("a socket");
    }
    let mut connection = Connection::new(ours, Timeouts::default(), Instant::now());
    let mut answers = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            match (&client).write(rest) {
                Ok(size) => rest = rest.get(size..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return answers,
            }
            match turn(&mut connection, &client, &mut answers, control) {
                Next::Stay => {}
                Next::Close => return answers,
                Next::Attach => {
                    connection.attach();
                    return answers;
                }
            }
        }
    }
    answers
}

/// Serves until there is nothing to do.
fn turn(
    connection: &mut Connection,
    mut client: &UnixStream,
    answers: &mut Vec<u8>,
    control: &dyn Control,
) -> Next {
    loop {
        let interest = connection.interest();
        let mut polled = [PollFd::from_borrowed_fd(connection.as_fd(), interest)];
        let is_ready = poll(&mut polled, Some(&Timespec::default())).is_ok_and(|count| count > 0);
        if !is_ready && !connection.is_ready() {
            return Next::Stay;
        }
        let next = connection.step(is_ready, Instant::now(), |call| dispatch(control, call));
        let mut bytes = [0; 4096];
        while let Ok(size @ 1..) = client.read(&mut bytes) {
            answers.extend(bytes.iter().take(size));
        }
        if next != Next::Stay {
            return next;
        }
    }
}
