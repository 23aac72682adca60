//! Nodes that sleep, and how others wake them.
//!
//! A farmer says on the chain whether a node should run. To wake one that sleeps, its siblings send it
//! packets that its network card knows (AMD, *Magic Packet Technology*, 1995): six bytes `ff`, and
//! sixteen times the card's address.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::sleep;

/// How many packets wake a node; some get lost.
const PACKET_COUNT: usize = 10;
/// Time between two of them.
const PACKET_INTERVAL: Duration = Duration::from_millis(500);
/// Where they go: the port does not matter, since the card itself reads them.
pub(crate) const BROADCAST: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::BROADCAST, 9));

/// A hardware address from its text.
pub(crate) fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let mut address = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut address {
        let digits = parts.next().filter(|digits| digits.len() == 2)?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    parts.next().is_none().then_some(address)
}

/// The packet that wakes the card with that address.
fn magic_packet(address: [u8; 6]) -> [u8; 102] {
    let mut packet = [0xff; 102];
    for place in packet[6..].chunks_exact_mut(6) {
        place.copy_from_slice(&address);
    }
    packet
}

/// Sends it often enough.
///
/// # Errors
///
/// The machine can't send it.
pub(crate) async fn wake(address: [u8; 6], to: SocketAddr) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.set_broadcast(true)?;
    let packet = magic_packet(address);
    for index in 0..PACKET_COUNT {
        if index > 0 {
            sleep(PACKET_INTERVAL).await;
        }
        socket.send_to(&packet, to).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read() {
        let address = Some([0x02, 0, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(hardware_address("02:00:00:ab:CD:ef"), address);
        for text in ["", "02:00:00:ab:cd", "02:00:00:ab:cd:ef:01", "2:0:0:ab:cd:ef", "02-00"] {
            assert_eq!(hardware_address(text), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sibling_is_woken() {
        let card = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = card.local_addr().unwrap();
        let start = tokio::time::Instant::now();
        let waking = tokio::spawn(wake([2, 0, 0, 0, 0, 7], to));
        for _ in 0..PACKET_COUNT {
            let mut packet = [0; 200];
            assert_eq!(card.recv(&mut packet).await.unwrap(), 102);
            assert_eq!(packet[..6], [0xff; 6]);
            assert!(packet[6..102].chunks(6).all(|place| place == [2, 0, 0, 0, 0, 7]));
        }
        waking.await.unwrap().unwrap();
        assert!(start.elapsed() >= PACKET_INTERVAL * 9);
        let more = tokio::time::timeout(Duration::from_secs(5), card.recv(&mut [0; 1])).await;
        assert!(more.is_err(), "ten packets, and no more");
    }
}
