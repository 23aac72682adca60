//! Where this node may be reached, and which addresses of others are worth a datagram.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use mycelium_wire::identity::OVERLAY;

use crate::peers::direct::message::{CANDIDATE_COUNT_MAX, Candidate, CandidateKind};

/// Ports below this are those of services, which nobody is sent to on another's word.
const PORT_MIN: u16 = 1024;
/// Addresses set aside for documentation (RFC 5737, RFC 3849): the kernel finds the way to far nodes for
/// them, and nothing is ever sent there.
const FAR: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];

/// All that is known, the surest first, each address once.
pub(crate) fn own(
    port: u16,
    mapped: Option<SocketAddr>,
    observed: &[SocketAddr],
) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut add = |kind, address| {
        let is_new = candidates.iter().all(|known| known.address != address);
        if is_new && candidates.len() < CANDIDATE_COUNT_MAX && is_fit(address) {
            candidates.push(Candidate { kind, address });
        }
    };
    mapped.into_iter().for_each(|address| add(CandidateKind::Mapped, address));
    for ip in host_addresses() {
        add(CandidateKind::Host, SocketAddr::new(ip, port));
    }
    for address in observed {
        add(CandidateKind::Observed, *address);
    }
    candidates
}

/// Those of another node's candidates that may be tried.
pub(crate) fn fit(candidates: &[Candidate]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for Candidate { address, .. } in candidates.iter().take(CANDIDATE_COUNT_MAX) {
        if is_fit(*address) && !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    addresses
}

/// Whether an address can be that of another node's socket. Those inside the overlay would lead in a
/// circle.
fn is_fit(address: SocketAddr) -> bool {
    let is_single = match address.ip() {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_link_local())
        }
        IpAddr::V6(ip) => {
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some()
                || OVERLAY.contains(ip))
        }
    };
    is_single && address.port() >= PORT_MIN
}

/// This machine's addresses on its way to far nodes, one of each family.
fn host_addresses() -> impl Iterator<Item = IpAddr> {
    FAR.iter().filter_map(|(any, far)| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(far).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_services_groups_or_the_overlay() {
        for bad in [
            "192.0.2.1:53",
            "127.0.0.1:9652",
            "224.0.0.1:9652",
            "255.255.255.255:9652",
            "169.254.1.1:9652",
            "0.0.0.0:9652",
            "[::1]:9652",
            "[ff02::1]:9652",
            "[fe80::1]:9652",
            "[400::1]:9652",
            "[5ff::1]:9652",
            "[::ffff:192.0.2.1]:9652",
        ] {
            assert!(!is_fit(bad.parse().unwrap()), "{bad}");
        }
        for good in ["192.0.2.1:1024", "10.0.0.1:9652", "[2001:db8::1]:9652", "[fd00::1]:9652"] {
            assert!(is_fit(good.parse().unwrap()), "{good}");
        }
    }

    #[test]
    fn each_address_is_named_once_and_not_too_many() {
        let address = |port| SocketAddr::from(([198, 51, 100, 1], port));
        let observed: Vec<_> = (2000..2020).map(address).collect();
        let candidates = own(9652, Some(address(2003)), &observed);
        assert_eq!(candidates.len(), CANDIDATE_COUNT_MAX);
        let mapped = Candidate { kind: CandidateKind::Mapped, address: address(2003) };
        assert_eq!(candidates[0], mapped);
        assert_eq!(fit(&candidates).len(), CANDIDATE_COUNT_MAX);
    }
}
