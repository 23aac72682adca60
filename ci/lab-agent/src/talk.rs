//! The two ends of "does a packet get through": an echo server and a ping, over UDP or TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Over what to talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A datagram out, a datagram back.
    Udp,
    /// One connection for all.
    Tcp,
}

impl FromStr for Transport {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "udp" => Ok(Self::Udp),
            "tcp" => Ok(Self::Tcp),
            _ => bail!("no transport {text:?}: udp or tcp"),
        }
    }
}

/// The largest datagram or piece that is echoed, in bytes.
const ECHO_SIZE_MAX: usize = 64 << 10;

/// Echoes until killed. Prints the address it listens on first.
pub(crate) fn listen(transport: Transport, address: SocketAddr) -> Result<()> {
    let context = || format!("cannot listen on {address}");
    match transport {
        Transport::Udp => {
            let socket = UdpSocket::bind(address).with_context(context)?;
            println!("{}", socket.local_addr()?);
            let mut buffer = vec![0; ECHO_SIZE_MAX];
            loop {
                let (size, from) = socket.recv_from(&mut buffer)?;
                // A peer that has gone away is no reason to stop echoing to others.
                let _ = socket.send_to(buffer.get(..size).unwrap_or_default(), from);
            }
        }
        Transport::Tcp => {
            let listener = TcpListener::bind(address).with_context(context)?;
            println!("{}", listener.local_addr()?);
            loop {
                let (stream, _) = listener.accept()?;
                thread::spawn(move || echo(stream));
            }
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; ECHO_SIZE_MAX];
    while let Ok(size @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(buffer.get(..size).unwrap_or_default()).is_err() {
            break;
        }
    }
}

/// Sends `count` messages, each after the echo of the one before; each echo has `timeout`.
pub(crate) fn ping(
    transport: Transport,
    address: SocketAddr,
    count: u32,
    timeout: Duration,
) -> Result<()> {
    let mut wire = Wire::connect(transport, address, timeout)?;
    let mut received = 0;
    for number in 0..count {
        let start = Instant::now();
        match wire.round_trip(number, timeout) {
            Ok(()) => {
                received += 1;
                println!("{number}: {} us", start.elapsed().as_micros());
            }
            Err(error) => println!("{number}: {error}"),
        }
    }
    println!("{received} of {count}");
    if received == count { Ok(()) } else { bail!("{} of {count} lost", count - received) }
}

enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Wire {
    fn connect(transport: Transport, address: SocketAddr, timeout: Duration) -> Result<Self> {
        let context = || format!("cannot connect to {address}");
        Ok(match transport {
            Transport::Udp => {
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(address).with_context(context)?;
                Self::Udp(socket)
            }
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&address, timeout);
                Self::Tcp(stream.with_context(context)?)
            }
        })
    }

    /// Sends `number` and waits until it comes back; late echoes of earlier numbers are skipped.
    fn round_trip(&mut self, number: u32, timeout: Duration) -> std::io::Result<()> {
        let deadline = Instant::now() + timeout;
        let message = number.to_be_bytes();
        match self {
            Self::Udp(socket) => socket.send(&message).map(drop)?,
            Self::Tcp(stream) => stream.write_all(&message)?,
        }
        let mut answer = [0; 4];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            match self {
                Self::Udp(socket) => {
                    socket.set_read_timeout(Some(left))?;
                    socket.recv(&mut answer)?;
                }
                Self::Tcp(stream) => {
                    stream.set_read_timeout(Some(left))?;
                    stream.read_exact(&mut answer)?;
                }
            }
            if answer == message {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_come_back_over_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || echo(listener.accept().unwrap().0));
        ping(Transport::Tcp, address, 3, Duration::from_secs(5)).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn a_silent_peer_is_a_loss() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let error = ping(Transport::Udp, address, 1, Duration::from_millis(10)).unwrap_err();
        assert_eq!(error.to_string(), "1 of 1 lost");
    }
}
