//! Data in bulk over TCP, and round trips over UDP: their cost, and whether it arrives as it was sent.
//!
//! A connection begins with the client's wish: whether it will send (0) or wants to receive (1), whether
//! the data is to be checked (1), and the count of bytes (8, little-endian). Whoever received says with
//! one byte whether all was well.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::pattern::{fill, first_difference};
use crate::tsc;

/// What is written or read at a time.
const PIECE_SIZE: usize = 256 << 10;
/// How often a connection is tried, and the time between.
const CONNECT_ATTEMPTS_MAX: u32 = 300;
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How long a datagram may take.
const DATAGRAM_TIMEOUT: Duration = Duration::from_secs(10);
const SEND: u8 = 0;
const RECEIVE: u8 = 1;
const SEED: u64 = 5;

/// `serve-streams ADDRESS:PORT`: serves clients until killed. Prints the address first.
pub(crate) fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept()?;
        thread::spawn(move || {
            if let Err(error) = answer(stream) {
                eprintln!("{peer}: {error:#}");
            }
        });
    }
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut wish = [0; 10];
    stream.read_exact(&mut wish)?;
    let [direction, is_checked, count @ ..] = wish;
    let (is_checked, count) = (is_checked == 1, u64::from_le_bytes(count));
    match direction {
        SEND => {
            let received = take(&mut stream, count, is_checked);
            stream.write_all(&[u8::from(received.is_ok())])?;
            received
        }
        RECEIVE => {
            give(&mut stream, count, is_checked)?;
            confirmation(&mut stream)
        }
        other => bail!("no direction {other}"),
    }
}

/// `send` and `receive ADDRESS:PORT COUNT checked|unchecked`: prints what it took.
pub(crate) fn transfer(direction: &str, address: &str, count: &str, check: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let (count, is_checked): (u64, bool) = (count.parse()?, check == "checked");
    let is_sent = direction == "send";
    let mut stream = connect(address)?;
    let start = tsc::now();
    let mut wish = vec![if is_sent { SEND } else { RECEIVE }, u8::from(is_checked)];
    wish.extend(count.to_le_bytes());
    stream.write_all(&wish)?;
    if is_sent {
        give(&mut stream, count, is_checked)?;
        confirmation(&mut stream)?;
    } else {
        let received = take(&mut stream, count, is_checked);
        stream.write_all(&[u8::from(received.is_ok())])?;
        received?;
    }
    println!("{direction}: {count} bytes, {} instructions", tsc::now() - start);
    Ok(())
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    for _ in 1..CONNECT_ATTEMPTS_MAX {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(_) => thread::sleep(CONNECT_PAUSE),
        }
    }
    TcpStream::connect(address).with_context(|| format!("connecting to {address}"))
}

fn give(stream: &mut TcpStream, count: u64, is_checked: bool) -> Result<()> {
    let mut buffer = vec![0x5a; PIECE_SIZE];
    let mut done = 0;
    while done < count {
        let size = usize::try_from(count - done)?.min(PIECE_SIZE);
        if is_checked {
            fill(&mut buffer, done, SEED);
        }
        stream.write_all(&buffer[..size])?;
        done += size as u64;
    }
    Ok(())
}

fn take(stream: &mut TcpStream, count: u64, is_checked: bool) -> Result<()> {
    let mut buffer = vec![0; PIECE_SIZE];
    let mut done = 0;
    while done < count {
        let size = usize::try_from(count - done)?.min(PIECE_SIZE);
        let part = &mut buffer[..size];
        stream.read_exact(part)?;
        if is_checked && let Some(at) = first_difference(part, done, SEED) {
            bail!("other data at {at} of {count}");
        }
        done += size as u64;
    }
    Ok(())
}

fn confirmation(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    ensure!(byte == [1], "the other end received other data");
    Ok(())
}

/// `round-trips ADDRESS:PORT COUNT SIZE`: datagrams of so many bytes to an echo and back, one after the
/// other; prints what the median of them took.
pub(crate) fn round_trips(address: SocketAddr, count: usize, size: usize) -> Result<()> {
    ensure!((1..=1_000_000).contains(&count), "{count} round trips: 1 to a million");
    ensure!((4..=60_000).contains(&size), "datagrams of {size} bytes: 4 to 60000");
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(DATAGRAM_TIMEOUT))?;
    let mut taken = Vec::with_capacity(count + 8);
    let (mut message, mut echo) = (vec![0x5a; size], vec![0; size]);
    for number in 0..count + 8 {
        let start = tsc::now();
        message[..4].copy_from_slice(&u32::try_from(number)?.to_le_bytes());
        socket.send(&message)?;
        let received = socket.recv(&mut echo).with_context(|| format!("echo {number}"))?;
        ensure!(received == size && echo == message, "another echo than that of datagram {number}");
        taken.push(tsc::now() - start);
    }
    // The first few find their way: neighbours, caches.
    let mut taken = taken.split_off(8);
    taken.sort_unstable();
    println!("round-trips: {count}, {} instructions", taken[count / 2]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_arrive_and_a_wrong_byte_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = answer(stream.unwrap());
            }
        });
        let text = address.to_string();
        for direction in ["send", "receive"] {
            transfer(direction, &text, "1000000", "checked").unwrap();
            transfer(direction, &text, "300000", "unchecked").unwrap();
        }
        let mut stream = TcpStream::connect(address).unwrap();
        let wish = [&[SEND, 1][..], &8_u64.to_le_bytes(), &[0; 8]].concat();
        stream.write_all(&wish).unwrap();
        let error = confirmation(&mut stream).unwrap_err().to_string();
        assert!(error.contains("other data"), "{error}");
    }
}
