//! A port that the local router passes on: asked for by PCP (RFC 6887), by NAT-PMP (RFC 6886) of routers
//! that know nothing newer, or by UPnP ([`super::upnp`]) of those that know neither.
//!
//! ```text
//!  PCP request       02 │ 01 │ 0 2 │ lifetime 4 │ client 16 │ nonce 12 │ 17 │ 0 3 │ port 2 │ wanted 2 │ address 16
//!  PCP response      02 │ 81 │ 0 │ result 1 │ lifetime 4 │ epoch 4 │ 0 12 │ nonce 12 │ 17 │ 0 3 │ port 2 │ given 2 │ address 16
//!  NAT-PMP requests  00 │ 00                     00 │ 01 │ 0 2 │ port 2 │ wanted 2 │ lifetime 4
//!  their responses   00 │ 80 │ result 2 │ epoch 4 │ address 4
//!                    00 │ 81 │ result 2 │ epoch 4 │ port 2 │ given 2 │ lifetime 4
//! ```
//!
//! A node asks only if it is told to (`--map-port`): opening a port at somebody's router is their choice.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::peers::direct::upnp::{self, UpnpError};

/// Port of both protocols.
const PORT: u16 = 5351;
/// How long a mapping is asked for.
pub(super) const LIFETIME_SECONDS: u32 = 1800;
/// A mapping that is given for less is renewed as if it were for so long.
const LIFETIME_MIN: Duration = Duration::from_secs(120);
/// When to ask again where nobody answers: the network may be another one by then.
const RETRY_AFTER: Duration = Duration::from_secs(600);
/// Waits for an answer, in milliseconds; both protocols begin with 250 and double.
const WAITS_MS: [u64; 4] = [250, 500, 1000, 2000];

const PCP_VERSION: u8 = 2;
const NAT_PMP_VERSION: u8 = 0;
const PCP_MAP: u8 = 1;
const RESPONSE: u8 = 0x80;
const PROTOCOL_UDP: u8 = 17;
const PCP_SIZE: usize = 60;

/// A mapping.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Mapping {
    pub(super) address: SocketAddrV4,
    pub(super) lifetime: Duration,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum MappingError {
    #[error("the network has no router with an IPv4 address")]
    NoRouter,
    #[error("the router does not answer")]
    Silent(#[from] io::Error),
    #[error("the router refuses with code {0}")]
    Refused(u16),
    #[error("the router answers what makes no sense")]
    Nonsense,
    #[error("the router knows neither PCP nor NAT-PMP, and by UPnP: {0}")]
    Upnp(UpnpError),
}

/// Keeps `port` mapped for as long as the node runs, and says where.
pub(crate) async fn keep(port: u16, mapped: watch::Sender<Option<SocketAddr>>) {
    loop {
        let wait = match map(port).await {
            Ok(mapping) => {
                tracing::info!(address = %mapping.address, "the router passes on a port");
                mapped.send_replace(Some(mapping.address.into()));
                mapping.lifetime.max(LIFETIME_MIN) / 2
            }
            Err(error) => {
                tracing::debug!(%error, "no port is mapped");
                mapped.send_replace(None);
                RETRY_AFTER
            }
        };
        sleep(wait).await;
    }
}

async fn map(port: u16) -> Result<Mapping, MappingError> {
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let router = default_router(&table).ok_or(MappingError::NoRouter)?;
    match map_at((router, PORT).into(), port).await {
        // Nobody is there, or somebody that speaks something else.
        Err(MappingError::Silent(_) | MappingError::Nonsense) => {
            let client = own_address(router).await?;
            upnp::map(router, client, port).await.map_err(MappingError::Upnp)
        }
        answered => answered,
    }
}

/// This machine's address towards a router.
async fn own_address(router: Ipv4Addr) -> Result<Ipv4Addr, MappingError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((router, PORT)).await?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(client) => Ok(client),
        IpAddr::V6(_) => Err(MappingError::NoRouter),
    }
}

/// Asks a router for a mapping of `port`, to the same one if it may be.
async fn map_at(router: SocketAddr, port: u16) -> Result<Mapping, MappingError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(router).await?;
    let IpAddr::V4(client) = socket.local_addr()?.ip() else { return Err(MappingError::NoRouter) };
    let nonce = mycelium_wire::random_bytes().map_err(|_| MappingError::NoRouter)?;
    let request = pcp_request(client, nonce, port);
    let answer = ask(&socket, &request, |answer| {
        // An old router answers in its own version.
        matches!(answer, [NAT_PMP_VERSION, ..]) || is_pcp_answer(answer, nonce)
    });
    match answer.await?.as_slice() {
        [NAT_PMP_VERSION, ..] => nat_pmp(&socket, port).await,
        answer => pcp_mapping(answer),
    }
}

async fn nat_pmp(socket: &UdpSocket, port: u16) -> Result<Mapping, MappingError> {
    let is_answer = |operation: u8| {
        move |answer: &[u8]| answer.starts_with(&[NAT_PMP_VERSION, RESPONSE | operation])
    };
    let answer = ask(socket, &[NAT_PMP_VERSION, 0], is_answer(0)).await?;
    let ip = nat_pmp_address(&answer)?;
    let [port_high, port_low] = port.to_be_bytes();
    let mut request = vec![NAT_PMP_VERSION, 1, 0, 0, port_high, port_low, port_high, port_low];
    request.extend(LIFETIME_SECONDS.to_be_bytes());
    let answer = ask(socket, &request, is_answer(1)).await?;
    nat_pmp_mapping(&answer, ip)
}

/// Sends a request until an answer comes that is one.
async fn ask(
    socket: &UdpSocket,
    request: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 1100];
    for wait in WAITS_MS.map(Duration::from_millis) {
        socket.send(request).await?;
        let answer = async {
            loop {
                let size = socket.recv(&mut buffer).await?;
                if is_answer(&buffer[..size]) {
                    return io::Result::Ok(size);
                }
            }
        };
        if let Ok(size) = timeout(wait, answer).await {
            return Ok(buffer[..size?].to_vec());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// RFC 6887 §7.1, §11.1.
fn pcp_request(client: Ipv4Addr, nonce: [u8; 12], port: u16) -> Vec<u8> {
    let mut request = vec![PCP_VERSION, PCP_MAP, 0, 0];
    request.extend(LIFETIME_SECONDS.to_be_bytes());
    request.extend(client.to_ipv6_mapped().octets());
    request.extend(nonce);
    request.extend([PROTOCOL_UDP, 0, 0, 0]);
    request.extend(port.to_be_bytes());
    request.extend(port.to_be_bytes());
    request.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
    request
}

/// Whether bytes answer the request with this nonce; an error may come without it.
fn is_pcp_answer(answer: &[u8], nonce: [u8; 12]) -> bool {
    let is_map = answer.starts_with(&[PCP_VERSION, RESPONSE | PCP_MAP]);
    let is_error = answer.get(3).is_some_and(|code| *code != 0);
    is_map && (is_error || answer.get(24..36) == Some(&nonce))
}

/// RFC 6887 §7.2, §11.1.
fn pcp_mapping(answer: &[u8]) -> Result<Mapping, MappingError> {
    match answer.get(3) {
        Some(0) => {}
        Some(code) => return Err(MappingError::Refused(u16::from(*code))),
        None => return Err(MappingError::Nonsense),
    }
    let answer: &[u8; PCP_SIZE] = answer.first_chunk().ok_or(MappingError::Nonsense)?;
    let lifetime = u32::from_be_bytes([answer[4], answer[5], answer[6], answer[7]]);
    let port = u16::from_be_bytes([answer[42], answer[43]]);
    let address = answer.last_chunk::<16>().map(|address| Ipv6Addr::from(*address));
    let ip = address.and_then(|ip| ip.to_ipv4_mapped()).ok_or(MappingError::Nonsense)?;
    Mapping::new(ip, port, lifetime)
}

/// RFC 6886 §3.2.
fn nat_pmp_address(answer: &[u8]) -> Result<Ipv4Addr, MappingError> {
    check_nat_pmp(answer)?;
    let (_, address) = answer.split_at_checked(8).ok_or(MappingError::Nonsense)?;
    address.first_chunk::<4>().map(|address| Ipv4Addr::from(*address)).ok_or(MappingError::Nonsense)
}

/// RFC 6886 §3.3.
fn nat_pmp_mapping(answer: &[u8], ip: Ipv4Addr) -> Result<Mapping, MappingError> {
    check_nat_pmp(answer)?;
    let answer: &[u8; 16] = answer.first_chunk().ok_or(MappingError::Nonsense)?;
    let [.., port_high, port_low, a, b, c, d] = *answer;
    let port = u16::from_be_bytes([port_high, port_low]);
    Mapping::new(ip, port, u32::from_be_bytes([a, b, c, d]))
}

fn check_nat_pmp(answer: &[u8]) -> Result<(), MappingError> {
    match answer {
        [_, _, 0, 0, ..] => Ok(()),
        [_, _, high, low, ..] => Err(MappingError::Refused(u16::from_be_bytes([*high, *low]))),
        _ => Err(MappingError::Nonsense),
    }
}

impl Mapping {
    /// What a router says, if it can be.
    pub(super) fn new(ip: Ipv4Addr, port: u16, lifetime: u32) -> Result<Self, MappingError> {
        let is_nobodys = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
        if is_nobodys || ip.is_broadcast() || port == 0 {
            return Err(MappingError::Nonsense);
        }
        let lifetime = Duration::from_secs(lifetime.min(LIFETIME_SECONDS).into());
        Ok(Self { address: SocketAddrV4::new(ip, port), lifetime })
    }
}

/// The router of the default route, from lines such as `eth0 00000000 0100000A 0003 …`: interface,
/// destination, gateway (both as the machine stores them), flags, and four fields more before the mask.
fn default_router(table: &str) -> Option<Ipv4Addr> {
    const GATEWAY: u32 = 2;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, destination, gateway, flags, _, _, _, mask, ..] = fields.as_slice() else {
            return None;
        };
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        let is_default = number(destination)? == 0 && number(mask)? == 0;
        let has_gateway = number(flags)? & GATEWAY != 0;
        // The file shows the bytes of the address as one number of this machine.
        let gateway = Ipv4Addr::from(u32::from_be(number(gateway)?));
        (is_default && has_gateway).then_some(gateway)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_is_that_of_the_default_route() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                     eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                     eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let expected = cfg!(target_endian = "little").then_some(Ipv4Addr::new(192, 168, 0, 1));
        assert_eq!(default_router(table), expected);
        assert_eq!(default_router("Iface\nx\ny 1 2\n"), None);
    }

    /// A router that answers each request by a function.
    async fn router(answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 100];
            while let Ok((size, from)) = socket.recv_from(&mut buffer).await {
                if let Some(answer) = answer(&buffer[..size]) {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        address
    }

    fn given(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), port)
    }

    #[tokio::test]
    async fn a_router_with_pcp_gives_a_mapping() {
        let address = router(|request| {
            assert_eq!(request.len(), PCP_SIZE);
            let mut answer = request.to_vec();
            answer[1] |= RESPONSE;
            answer[4..8].copy_from_slice(&900_u32.to_be_bytes());
            answer[42..44].copy_from_slice(&7777_u16.to_be_bytes());
            answer[44..].copy_from_slice(&given(0).ip().to_ipv6_mapped().octets());
            Some(answer)
        });
        let mapping = map_at(address.await, 9652).await.unwrap();
        assert_eq!(mapping, Mapping { address: given(7777), lifetime: Duration::from_secs(900) });
    }

    #[tokio::test]
    async fn an_old_router_gives_one_by_nat_pmp() {
        let address = router(|request| {
            Some(match request {
                [PCP_VERSION, ..] => vec![0, RESPONSE, 0, 1, 0, 0, 0, 0],
                [0, 0] => [&[0, RESPONSE, 0, 0, 0, 0, 0, 9], &given(0).ip().octets()[..]].concat(),
                _ => [
                    &[0, RESPONSE | 1, 0, 0, 0, 0, 0, 9, 0x25, 0xb4, 0x1e, 0x61],
                    &[0, 0, 3, 132][..],
                ]
                .concat(),
            })
        });
        let mapping = map_at(address.await, 9652).await.unwrap();
        assert_eq!(mapping, Mapping { address: given(7777), lifetime: Duration::from_secs(900) });
    }

    #[tokio::test]
    async fn a_refusal_and_nonsense_are_errors() {
        let refusing = router(|request| {
            let mut answer = request.to_vec();
            (answer[1], answer[3]) = (answer[1] | RESPONSE, 2);
            Some(answer)
        });
        assert!(matches!(map_at(refusing.await, 1).await, Err(MappingError::Refused(2))));
        for size in 0..PCP_SIZE {
            assert!(pcp_mapping(&vec![0; size]).is_err());
            assert!(nat_pmp_mapping(&vec![0; size.min(15)], *given(0).ip()).is_err());
        }
        assert!(nat_pmp_address(&[0; 11]).is_err());
        assert!(pcp_mapping(&[0; PCP_SIZE]).is_err());
    }
}
