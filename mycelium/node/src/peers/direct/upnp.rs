//! A port that a router passes on, asked for by UPnP (Internet Gateway Device, versions 1 and 2), which is
//! what many routers at homes speak and nothing newer.
//!
//! ```text
//!  M-SEARCH, to the router and to the group ──> LOCATION: where the router describes itself   (SSDP)
//!  GET that                                 ──> control URL of its WAN connection             (XML)
//!  POST AddPortMapping                      ──> done, or 718: somebody has that port          (SOAP)
//!  POST GetExternalIPAddress                ──> where it is
//! ```
//!
//! Everybody on a network can answer a search. So a search leaves by the interface that leads to the
//! router, answers count only if they come from the router's address, and whatever they name must be at
//! that address too. What is read is bounded in size, time and number ([`super::web`], [`super::xml`]).
//! A router that keeps mappings only for ever is not asked to: nobody would take it back.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::peers::direct::mapping::{LIFETIME_SECONDS, Mapping, MappingError};
use crate::peers::direct::web::{Answer, Place, WebError, header};
use crate::peers::direct::xml::{Event, Reader, XmlError};

/// Where searches go besides the router itself.
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// Searches go no farther than the network.
const TTL: u32 = 1;
/// What is searched for; version 2 answers for version 1 as well.
const TARGET: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
/// Services that pass on ports.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// How often a search is sent, and how long answers to each are waited for. Devices may take a second.
const SEARCH_COUNT: usize = 2;
const SEARCH_TIME: Duration = Duration::from_millis(1500);
/// Answers that are looked at, from whoever.
const ANSWER_COUNT_MAX: usize = 64;
/// Answers of a router that are followed: it may answer for each of its devices.
const PLACE_COUNT_MAX: usize = 3;
/// Services of a description that are asked. A router may have connections that are not in use.
const SERVICE_COUNT_MAX: usize = 4;
/// Ports that are asked for, the own one first.
const PORT_COUNT_MAX: usize = 4;
/// Outside ports are chosen from here upwards.
const PORT_MIN: u16 = 1024;

/// Somebody else has the port.
const CONFLICT: u16 = 718;

/// Why there is no mapping.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpnpError {
    #[error("no search can be sent")]
    Search(#[from] io::Error),
    #[error("the router does not answer a search")]
    Silent,
    #[error("the router names no service that passes on ports")]
    NoService,
    #[error("the router refuses with code {0}")]
    Refused(u16),
    #[error("the router's ports that were asked for are all taken")]
    Taken,
    #[error("the router answers what makes no sense")]
    Nonsense,
    #[error(transparent)]
    Web(#[from] WebError),
    #[error(transparent)]
    Xml(#[from] XmlError),
}

/// Where ports are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    kind: &'static str,
    control: Place,
}

/// Asks the router at `router` for a mapping of `port` at `client`, this machine's address towards it.
pub(super) async fn map(
    router: Ipv4Addr,
    client: Ipv4Addr,
    port: u16,
) -> Result<Mapping, UpnpError> {
    let targets = [SocketAddrV4::new(router, GROUP.port()), GROUP];
    map_at(&targets, router, client, port).await
}

async fn map_at(
    targets: &[SocketAddrV4],
    router: Ipv4Addr,
    client: Ipv4Addr,
    port: u16,
) -> Result<Mapping, UpnpError> {
    let mut failure = UpnpError::NoService;
    for place in search(targets, router, client).await? {
        let answer = place.get().await?;
        if answer.status != 200 {
            continue;
        }
        for service in services(&answer.body, &place)?.into_iter().take(SERVICE_COUNT_MAX) {
            match map_with(&service, client, port).await {
                Ok(mapping) => return Ok(mapping),
                Err(error) => failure = error,
            }
        }
    }
    Err(failure)
}

/// Finds places where the router describes itself.
async fn search(
    targets: &[SocketAddrV4],
    router: Ipv4Addr,
    client: Ipv4Addr,
) -> Result<Vec<Place>, UpnpError> {
    let socket = UdpSocket::bind((client, 0)).await?;
    // Groups are reached by the interface that leads to the router, and by no other.
    rustix::net::sockopt::set_ip_multicast_if(&socket, &client).map_err(io::Error::from)?;
    socket.set_multicast_ttl_v4(TTL)?;
    let mut places = Vec::new();
    let (mut buffer, mut count) = ([0; 1500], 0);
    for _ in 0..SEARCH_COUNT {
        for target in targets {
            let request = format!(
                "M-SEARCH * HTTP/1.1\r\nHOST: {target}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
                 ST: {TARGET}\r\n\r\n"
            );
            // A router that refuses one kind of search may answer the other.
            let _ = socket.send_to(request.as_bytes(), target).await;
        }
        let deadline = Instant::now() + SEARCH_TIME;
        while count < ANSWER_COUNT_MAX && places.len() < PLACE_COUNT_MAX {
            let Ok(received) = timeout_at(deadline, socket.recv_from(&mut buffer)).await else {
                break;
            };
            count += 1;
            // A router without the service says so by ICMP.
            let Ok((size, from)) = received else { continue };
            let place = Some(&buffer[..size]).filter(|_| from.ip() == router);
            let place = place.and_then(|answer| location(answer, router));
            places.extend(place.filter(|place| !places.contains(place)));
            if !places.is_empty() {
                return Ok(places);
            }
        }
    }
    Err(UpnpError::Silent)
}

/// What an answer to a search says about the router.
fn location(answer: &[u8], router: Ipv4Addr) -> Option<Place> {
    let text = std::str::from_utf8(answer).ok()?;
    let is_ok = text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/1.0 200");
    let is_gateway = header(text, "st")?.contains(":InternetGatewayDevice:");
    (is_ok && is_gateway).then(|| Place::parse(header(text, "location")?, router))?
}

/// Services of a description that pass on ports.
fn services(description: &str, at: &Place) -> Result<Vec<Service>, XmlError> {
    let (mut reader, mut services) = (Reader::new(description), Vec::new());
    let (mut inside, mut kind, mut control) = ("", None, None);
    let mut base = None;
    while let Some(event) = reader.next()? {
        match event {
            Event::Start("service") => (inside, kind, control) = ("service", None, None),
            Event::Start(name) => inside = name,
            Event::Text(text) => match inside {
                "serviceType" => kind = SERVICES.into_iter().find(|kind| *kind == text.trim()),
                "controlURL" => control = Some(text.trim().to_owned()),
                "URLBase" => base = at.join(text.trim()),
                _ => {}
            },
            Event::End("service") => {
                if let (Some(kind), Some(url)) = (kind.take(), control.take())
                    && let Some(control) = base.as_ref().unwrap_or(at).join(&url)
                {
                    services.push(Service { kind, control });
                }
                inside = "";
            }
            Event::End(_) => inside = "",
        }
    }
    Ok(services)
}

/// Maps a port, the same one outside if it is free.
async fn map_with(service: &Service, client: Ipv4Addr, port: u16) -> Result<Mapping, UpnpError> {
    let mut outside = port;
    for _ in 0..PORT_COUNT_MAX {
        let arguments = format!(
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>{outside}</NewExternalPort>\
             <NewProtocol>UDP</NewProtocol><NewInternalPort>{port}</NewInternalPort>\
             <NewInternalClient>{client}</NewInternalClient><NewEnabled>1</NewEnabled>\
             <NewPortMappingDescription>mycelium</NewPortMappingDescription>\
             <NewLeaseDuration>{LIFETIME_SECONDS}</NewLeaseDuration>"
        );
        match service.call("AddPortMapping", &arguments).await {
            Ok(_) => {
                let answer = service.call("GetExternalIPAddress", "").await?;
                let ip = text_of(&answer, "NewExternalIPAddress")?.ok_or(UpnpError::Nonsense)?;
                let ip = ip.trim().parse().map_err(|_| UpnpError::Nonsense)?;
                let mapping = Mapping::new(ip, outside, LIFETIME_SECONDS);
                return mapping.map_err(|_: MappingError| UpnpError::Nonsense);
            }
            Err(UpnpError::Refused(CONFLICT)) => {
                let random = mycelium_wire::random_bytes().map_err(|_| UpnpError::Taken)?;
                outside = u16::from_be_bytes(random).max(PORT_MIN);
            }
            Err(error) => return Err(error),
        }
    }
    Err(UpnpError::Taken)
}

impl Service {
    /// Calls an action, and gives the answer's text.
    async fn call(&self, action: &str, arguments: &str) -> Result<String, UpnpError> {
        let kind = self.kind;
        let headers = format!(
            "Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{kind}#{action}\"\r\n"
        );
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n\
             <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{action} xmlns:u=\"{kind}\">{arguments}</u:{action}></s:Body></s:Envelope>\r\n"
        );
        let Answer { status, body } = self.control.post(&headers, &body).await?;
        if status == 200 {
            return Ok(body);
        }
        let code = text_of(&body, "errorCode").ok().flatten();
        Err(UpnpError::Refused(code.and_then(|code| code.trim().parse().ok()).unwrap_or(status)))
    }
}

/// The text of the first element of this name.
fn text_of(document: &str, name: &str) -> Result<Option<String>, XmlError> {
    let (mut reader, mut is_inside) = (Reader::new(document), false);
    while let Some(event) = reader.next()? {
        match event {
            Event::Start(started) => is_inside = started == name,
            Event::Text(text) if is_inside => return Ok(Some(text.into_owned())),
            Event::Text(_) => {}
            Event::End(_) => is_inside = false,
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
    const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

    /// A device that answers each request with the next of `answers`, and keeps what it was asked.
    async fn web(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut answers = VecDeque::from(answers);
        let served = tokio::spawn(async move {
            let mut requests = Vec::new();
            while let Some(answer) = answers.pop_front() {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4000];
                let mut size = 0;
                while !request[..size].windows(4).any(|end| end == b"\r\n\r\n")
                    || (request.starts_with(b"POST")
                        && !request[..size].ends_with(b"Envelope>\r\n"))
                {
                    size += stream.read(&mut request[size..]).await.unwrap();
                }
                requests.push(String::from_utf8(request[..size].to_vec()).unwrap());
                // Who found the answer too long may have hung up.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            requests
        });
        (port, served)
    }

    /// Answers searches from `at` with `answer`.
    async fn searched(at: Ipv4Addr, answer: String) -> SocketAddrV4 {
        let socket = UdpSocket::bind((at, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buffer = [0; 1000];
            while let Ok((size, from)) = socket.recv_from(&mut buffer).await {
                assert!(buffer[..size].starts_with(b"M-SEARCH * HTTP/1.1\r\n"));
                socket.send_to(answer.as_bytes(), from).await.unwrap();
            }
        });
        SocketAddrV4::new(at, port)
    }

    fn found(place: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nST: {TARGET}\r\nUSN: x\r\nLocation: {place}\r\n\r\n")
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    const DESCRIPTION: &str = "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">\
        <device><serviceList><service><serviceType>urn:x:Layer3Forwarding:1</serviceType>\
        <controlURL>/l3</controlURL></service></serviceList><deviceList><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><serviceId>a</serviceId>\
        <controlURL>/ctl?a&amp;b</controlURL></service></serviceList></device></deviceList></device></root>";

    fn refusal(code: u16) -> String {
        let body = format!(
            "<s:Envelope xmlns:s='e'><s:Body><s:Fault><detail><UPnPError>\
             <errorCode>{code}</errorCode></UPnPError></detail></s:Fault></s:Body></s:Envelope>"
        );
        answer("500 Internal Server Error", &body)
    }

    fn external(address: &str) -> String {
        let body = format!(
            "<s:Envelope xmlns:s='e'><s:Body><u:R xmlns:u='t'><NewExternalIPAddress>{address}\
             </NewExternalIPAddress></u:R></s:Body></s:Envelope>"
        );
        answer("200 OK", &body)
    }

    async fn ask(answers: Vec<String>) -> (Result<Mapping, UpnpError>, Vec<String>) {
        let (port, served) = web(answers).await;
        let target = searched(HERE, found(&format!("http://127.0.0.1:{port}/desc.xml"))).await;
        let mapping = map_at(&[target], HERE, HERE, 9652).await;
        served.abort();
        (mapping, served.await.unwrap_or_default())
    }

    #[tokio::test]
    async fn a_router_gives_a_mapping_at_another_port_if_need_be() {
        let answers = vec![
            answer("200 OK", DESCRIPTION),
            refusal(CONFLICT),
            answer("200 OK", "<a/>"),
            external("198.51.100.7"),
        ];
        let (port, served) = web(answers).await;
        let target = searched(HERE, found(&format!("http://127.0.0.1:{port}/desc.xml"))).await;
        let mapping = map_at(&[target], HERE, HERE, 9652).await.unwrap();
        let requests = served.await.unwrap();
        assert!(requests[0].starts_with("GET /desc.xml HTTP/1.1\r\n"), "{requests:?}");
        assert!(requests[1].starts_with("POST /ctl?a&b HTTP/1.1\r\n"), "{requests:?}");
        assert!(requests[1].contains("<NewExternalPort>9652</NewExternalPort>"));
        let outside = mapping.address.port();
        assert!(requests[2].contains(&format!("<NewExternalPort>{outside}</NewExternalPort>")));
        assert!(requests[2].contains("<NewInternalPort>9652</NewInternalPort>"));
        assert_eq!(mapping.address.ip(), &Ipv4Addr::new(198, 51, 100, 7));
        assert_eq!(mapping.lifetime, Duration::from_secs(LIFETIME_SECONDS.into()));
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_errors() {
        let description = || answer("200 OK", DESCRIPTION);
        let (mapping, _) = ask(vec![description(), refusal(725)]).await;
        assert!(matches!(mapping, Err(UpnpError::Refused(725))), "{mapping:?}");
        let taken = std::iter::repeat_n(refusal(CONFLICT), PORT_COUNT_MAX);
        let (mapping, _) = ask(std::iter::once(description()).chain(taken).collect()).await;
        assert!(matches!(mapping, Err(UpnpError::Taken)), "{mapping:?}");
        for address in ["0.0.0.0", "127.0.0.1", "router", ""] {
            let answers = vec![description(), answer("200 OK", "<a/>"), external(address)];
            let (mapping, _) = ask(answers).await;
            assert!(matches!(mapping, Err(UpnpError::Nonsense)), "{address}: {mapping:?}");
        }
        let (mapping, _) = ask(vec![answer("200 OK", "<root/>")]).await;
        assert!(matches!(mapping, Err(UpnpError::NoService)), "{mapping:?}");
        let (mapping, _) = ask(vec![answer("200 OK", "<!DOCTYPE a>")]).await;
        assert!(matches!(mapping, Err(UpnpError::Xml(_))), "{mapping:?}");
        let (mapping, _) = ask(vec![answer("200 OK", &"<a>".repeat(40_000))]).await;
        assert!(matches!(mapping, Err(UpnpError::Web(WebError::Large))), "{mapping:?}");
    }

    #[tokio::test]
    async fn others_than_the_router_are_not_believed() {
        let (port, _served) = web(vec![answer("200 OK", DESCRIPTION)]).await;
        let place = format!("http://127.0.0.1:{port}/desc.xml");
        // Somebody else on the network answers, or the router names somebody else.
        let stranger = searched(OTHER, found(&place)).await;
        let misled = searched(HERE, found(&format!("http://127.0.0.2:{port}/desc.xml"))).await;
        let printer = searched(HERE, found(&place).replace("InternetGateway", "Printer")).await;
        let mapping = map_at(&[stranger, misled, printer], HERE, HERE, 9652).await;
        assert!(matches!(mapping, Err(UpnpError::Silent)), "{mapping:?}");
    }

    #[test]
    fn services_elsewhere_are_left_out() {
        let at = Place::parse("http://127.0.0.1:5000/desc.xml", HERE).unwrap();
        assert_eq!(services(DESCRIPTION, &at).unwrap().len(), 1);
        let elsewhere = DESCRIPTION.replace("/ctl?a&amp;b", "http://127.0.0.2:5000/ctl");
        assert!(services(&elsewhere, &at).unwrap().is_empty());
    }
}
