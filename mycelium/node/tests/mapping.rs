//! A port mapped at a router that speaks UPnP alone, in namespaces: the search goes to the router's network
//! and to no other, and what the router gives is known to the node.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses its part of it")]
mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::Lab;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
const TARGET: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";
const OUTSIDE: &str = "198.51.100.7";
/// Where things are.
const ROUTER: usize = 0;
const NODE: usize = 1;
const STRANGER: usize = 2;

/// Answers searches to the group, at an address of this namespace, that the device is there; counts them.
fn answer_searches(lab: &Lab, at: usize, address: &str, count: Arc<AtomicUsize>) {
    let address: Ipv4Addr = address.parse().unwrap();
    lab.inside(at, move || {
        let group = UdpSocket::bind((GROUP, 1900)).unwrap();
        group.join_multicast_v4(&GROUP, &address).unwrap();
        let answers = UdpSocket::bind((address, 0)).unwrap();
        let mut buffer = [0; 1500];
        while let Ok((size, from)) = group.recv_from(&mut buffer) {
            if buffer[..size].starts_with(b"M-SEARCH * HTTP/1.1\r\n") {
                count.fetch_add(1, Ordering::Relaxed);
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {TARGET}\r\nEXT:\r\n\
                     LOCATION: http://{address}:5000/root.xml\r\n\r\n"
                );
                let _ = answers.send_to(answer.as_bytes(), from);
            }
        }
    });
}

/// A router's web server: describes the device, maps what it is asked to, and says where it is.
fn serve(mut stream: TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(size) = stream.read(&mut buffer) {
        request.extend(&buffer[..size]);
        let is_whole = request.starts_with(b"GET") && request.ends_with(b"\r\n\r\n");
        if size == 0 || is_whole || request.ends_with(b"Envelope>\r\n") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&request);
    let envelope =
        |inside: &str| format!("<s:Envelope xmlns:s=\"e\"><s:Body>{inside}</s:Body></s:Envelope>");
    let body = if text.starts_with("GET /root.xml ") {
        format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device>\
             <serviceList><service><serviceType>{SERVICE}</serviceType>\
             <controlURL>/ctl</controlURL></service></serviceList></device></root>"
        )
    } else if text.contains("#AddPortMapping") {
        assert!(text.contains("<NewInternalClient>10.1.0.2</NewInternalClient>"), "{text}");
        envelope("<u:AddPortMappingResponse/>")
    } else {
        envelope(&format!("<u:R><NewExternalIPAddress>{OUTSIDE}</NewExternalIPAddress></u:R>"))
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all((head + &body).as_bytes());
}

#[test]
fn a_router_that_speaks_upnp_maps_the_port_and_nobody_else_is_asked() {
    let Some(mut lab) = Lab::new(3) else { return };
    let (router, _) = lab.join(ROUTER, NODE);
    let (stranger, _) = lab.join(STRANGER, NODE);
    lab.ip(NODE, &format!("route add default via {router}"));
    let (asked, misdirected) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    answer_searches(&lab, ROUTER, &router, Arc::clone(&asked));
    answer_searches(&lab, STRANGER, &stranger, Arc::clone(&misdirected));
    let place: SocketAddr = format!("{router}:5000").parse().unwrap();
    lab.inside(ROUTER, move || {
        let listener = TcpListener::bind(place).unwrap();
        listener.incoming().for_each(|stream| serve(stream.unwrap()));
    });
    let node = lab.start(NODE, &["--disable-peer-discovery", "--map-port"]);
    let (start, mapped) = (Instant::now(), format!("{OUTSIDE}:9652"));
    while !node.log().contains(&mapped) {
        assert!(start.elapsed() < Duration::from_secs(40), "no mapping:\n{}", node.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(asked.load(Ordering::Relaxed) > 0);
    assert_eq!(misdirected.load(Ordering::Relaxed), 0, "a search left by another interface");
    assert!(node.stop());
}
