//! Who may come in: from inside the network everybody, from outside whoever has a ticket.
//!
//! A console asks for no password, as on existing nodes: whoever is in the private network may use it.
//! That network's mycelium, though, reaches from anywhere, so who comes from there shows a ticket, which the
//! node gives the machine's owner over the message bus: 32 hexadecimal digits that are good for one
//! minute and one terminal. The node writes those that are good into a file, a line each:
//!
//! ```text
//!   1795000000 0123456789abcdef0123456789abcdef
//!   └ good until this second      └ the ticket
//! ```
//!
//! Browsers carry requests of other sites' pages. So a terminal's request names us by an address and not
//! by a name that somebody could lead here (DNS rebinding), and the page that it comes from, if there is one,
//! is ours.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Digits of a ticket.
const TICKET_SIZE: usize = 32;
/// Bytes of the file of tickets that are read.
const FILE_SIZE_MAX: u64 = 4096;
/// Tickets whose use is remembered: more than are good at a time.
const USED_COUNT_MAX: usize = 128;
/// Connections that may come at once, and how many a second after that.
const BURST: u32 = 32;
const INTERVAL: Duration = Duration::from_millis(50);

/// The door.
pub(super) struct Door {
    tickets: PathBuf,
    used: VecDeque<String>,
    /// When the next connection is due if they come evenly; it may lie behind by a burst.
    due: Instant,
}

impl Door {
    /// A door whose tickets are in that file.
    pub(super) fn new(tickets: PathBuf, now: Instant) -> Self {
        Self { tickets, used: VecDeque::new(), due: now }
    }

    /// Until when nobody else may come; none if somebody may.
    pub(super) fn closed_until(&self, now: Instant) -> Option<Instant> {
        let opens = self.due.checked_sub(INTERVAL * BURST)?;
        (opens > now).then_some(opens)
    }

    /// Somebody came.
    pub(super) fn note(&mut self, now: Instant) {
        self.due = self.due.max(now) + INTERVAL;
    }

    /// Whether a ticket is good; it is used up then.
    pub(super) fn admit(&mut self, ticket: &str) -> bool {
        if self.used.iter().any(|used| used == ticket) || !self.is_good(ticket) {
            return false;
        }
        if self.used.len() >= USED_COUNT_MAX {
            self.used.pop_front();
        }
        self.used.push_back(ticket.to_owned());
        true
    }

    fn is_good(&self, ticket: &str) -> bool {
        if ticket.len() != TICKET_SIZE {
            return false;
        }
        let mut text = String::new();
        let Ok(file) = File::open(&self.tickets) else { return false };
        if file.take(FILE_SIZE_MAX).read_to_string(&mut text).is_err() {
            return false;
        }
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |time| time.as_secs());
        text.lines().filter_map(|line| line.split_once(' ')).any(|(until, good)| {
            until.parse::<u64>().is_ok_and(|until| now < until) && is_same(good, ticket)
        })
    }
}

/// Compares without telling how much is the same.
fn is_same(a: &str, b: &str) -> bool {
    let differing = a.bytes().zip(b.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    a.len() == b.len() && differing == 0
}

/// Whether somebody is in the network itself. By IPv4 only its machines reach us; by IPv6, those that
/// have an address of the network's own prefix.
pub(super) fn is_inside(local: SocketAddr, peer: SocketAddr) -> bool {
    match (local.ip().to_canonical(), peer.ip().to_canonical()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(local), IpAddr::V6(peer)) => prefix(local) == prefix(peer),
        _ => false,
    }
}

fn prefix(address: Ipv6Addr) -> u64 {
    let [a, b, c, d, ..] = address.segments();
    [a, b, c, d].into_iter().fold(0, |prefix, part| prefix << 16 | u64::from(part))
}

/// Why a request for a terminal is not answered with one, as far as its headers say.
pub(super) fn check_origin(host: Option<&str>, origin: Option<&str>) -> Result<(), &'static str> {
    let host = host.ok_or("Host: it is missing")?;
    let is_address = host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() || {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        name == "localhost"
    };
    if !is_address {
        return Err("Host: the console is reached by its address, or through localhost");
    }
    match origin {
        Some(origin) if origin.strip_prefix("http://") != Some(host) => {
            Err("Origin: the console is used from its own page")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_ticket_is_good_once_and_for_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tickets");
        let mut door = Door::new(path.clone(), Instant::now());
        assert!(!door.admit(TICKET), "there is no file");
        let other = TICKET.replace('0', "f");
        std::fs::write(&path, format!("1 {other}\nnonsense\n9999999999 {TICKET}\n")).unwrap();
        assert!(!door.admit(&other), "it was good once");
        assert!(!door.admit("") && !door.admit(&TICKET[1..]));
        assert!(door.admit(TICKET));
        assert!(!door.admit(TICKET), "it is used up");
    }

    #[test]
    fn inside_is_the_network_alone() {
        let inside =
            |local: &str, peer: &str| is_inside(local.parse().unwrap(), peer.parse().unwrap());
        assert!(inside("10.20.2.1:20005", "10.20.2.7:1"));
        assert!(inside("[5ab:1:2:3::1]:20005", "[5ab:1:2:3:ff0f::7]:1"));
        assert!(!inside("[5ab:1:2:3::1]:20005", "[5ab:1:2:4:ff0f::7]:1"));
        assert!(!inside("[5ab:1:2:3::1]:20005", "10.20.2.7:1"));
    }

    #[test]
    fn pages_of_others_and_names_of_others_are_refused() {
        let check = |host, origin| check_origin(host, origin).is_ok();
        assert!(check(Some("10.20.2.1:20005"), None));
        assert!(check(Some("10.20.2.1:20005"), Some("http://10.20.2.1:20005")));
        assert!(check(Some("[5ab::1]:20005"), Some("http://[5ab::1]:20005")));
        assert!(check(Some("localhost:8000"), Some("http://localhost:8000")));
        assert!(!check(Some("10.20.2.1:20005"), Some("http://evil.example")));
        assert!(!check(Some("10.20.2.1:20005"), Some("null")));
        assert!(!check(Some("evil.example:20005"), Some("http://evil.example:20005")));
        assert!(!check(None, None));
    }

    #[test]
    fn who_comes_too_often_waits() {
        let start = Instant::now();
        let mut door = Door::new("/none".into(), start);
        for _ in 0..BURST {
            assert_eq!(door.closed_until(start), None);
            door.note(start);
        }
        door.note(start);
        let opens = door.closed_until(start).expect("it is closed");
        assert!(opens <= start + INTERVAL);
        assert_eq!(door.closed_until(opens), None);
        assert_eq!(door.closed_until(start + Duration::from_secs(60)), None);
    }
}
