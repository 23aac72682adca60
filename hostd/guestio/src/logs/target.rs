//! Where a log goes: the owner's URL, read, and what must not be reached by it.
//!
//! `redis://[[USER]:PASSWORD@]HOST[:PORT]/CHANNEL`, `ws://HOST[:PORT][/PATH]` and `wss://…`. Who sends is the
//! node, though in the owner's network, and what it sends is what the owner's machine says. So it is kept
//! from what machines are kept from themselves: mail, and whatever listens on the node's end of the
//! network for the node alone, on its loopback.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// Bytes of a URL.
const URL_SIZE_MAX: usize = 4096;
/// Mail (RFC 5321), its submission (RFC 6409), and the same within TLS (RFC 8314).
const MAIL_PORTS: [u16; 3] = [25, 465, 587];

/// Where a log goes. Shown without what is secret.
#[derive(PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) kind: Kind,
}

/// A name or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Name(String),
    Address(IpAddr),
}

/// What is spoken there.
#[derive(PartialEq, Eq)]
pub(super) enum Kind {
    /// Redis, with what it is logged in to by: a password, or a user and a password.
    Redis { login: Vec<String>, channel: String },
    /// A websocket's URL.
    Websocket { is_secure: bool, url: String },
}

/// What is wrong with a URL. It is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TargetError {
    #[error("it has more than {URL_SIZE_MAX} bytes, or blanks or other letters than ASCII's")]
    Text,
    #[error("expected redis://, ws:// or wss://")]
    Scheme,
    #[error("it names no host, or no port from 1 to 65535")]
    Host,
    #[error("a redis URL ends with a channel: redis://host/channel")]
    Channel,
    #[error("what stands before @ is a user and a password, and % is followed by two digits")]
    Login,
    #[error("port {0} is for mail, which is not sent from here")]
    Mail(u16),
}

impl Target {
    /// Reads a URL (RFC 3986).
    pub(super) fn parse(url: &str) -> Result<Self, TargetError> {
        if url.len() > URL_SIZE_MAX || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TargetError::Text);
        }
        let (scheme, rest) = url.split_once("://").ok_or(TargetError::Scheme)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, authority),
        };
        let usual_port = match scheme.to_ascii_lowercase().as_str() {
            "redis" => 6379,
            "ws" => 80,
            "wss" => 443,
            _ => return Err(TargetError::Scheme),
        };
        let (host, port) = place_of(place, usual_port)?;
        if MAIL_PORTS.contains(&port) {
            return Err(TargetError::Mail(port));
        }
        let kind = if usual_port == 6379 {
            Kind::redis(login, path)?
        } else {
            let is_secure = usual_port == 443;
            let scheme = if is_secure { "wss" } else { "ws" };
            let slash = if path.starts_with('/') { "" } else { "/" };
            Kind::Websocket { is_secure, url: format!("{scheme}://{place}{slash}{path}") }
        };
        Ok(Self { host, port, kind })
    }
}

impl Kind {
    fn redis(login: Option<&str>, path: &str) -> Result<Self, TargetError> {
        let path = path.split('?').next().unwrap_or_default();
        let channel = decoded(path.trim_start_matches('/')).ok_or(TargetError::Channel)?;
        if channel.is_empty() {
            return Err(TargetError::Channel);
        }
        let mut words = Vec::new();
        if let Some(login) = login {
            let (user, password) = login.split_once(':').ok_or(TargetError::Login)?;
            for word in [user, password] {
                let word = decoded(word).ok_or(TargetError::Login)?;
                words.extend(Some(word).filter(|word| !word.is_empty()));
            }
        }
        Ok(Self::Redis { login: words, channel })
    }
}

/// Host and port.
fn place_of(place: &str, usual_port: u16) -> Result<(Host, u16), TargetError> {
    let (name, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (name, port) = rest.split_once(']').ok_or(TargetError::Host)?;
            (name, port.strip_prefix(':').or_else(|| port.is_empty().then_some("")))
        }
        None => match place.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (place, Some("")),
        },
    };
    let port = match port.ok_or(TargetError::Host)? {
        "" => usual_port,
        text => text.parse().ok().filter(|port| *port != 0).ok_or(TargetError::Host)?,
    };
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok((Host::Address(address.to_canonical()), port));
    }
    let is_label = |label: &str| {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(is_letter)
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if place.starts_with('[') || name.len() > 253 || !name.split('.').all(is_label) {
        return Err(TargetError::Host);
    }
    Ok((Host::Name(name.to_ascii_lowercase()), port))
}

/// Undoes `%41` and the like.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, more) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = more;
    }
    String::from_utf8(bytes).ok()
}

/// Why an address is not connected to, if it is not.
pub(super) fn check_address(address: IpAddr) -> Result<(), &'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let is_nowhere = address.is_unspecified() || address.octets()[0] == 0;
            match address {
                _ if address.is_loopback() || is_nowhere => Err("is the node itself"),
                _ if address.is_link_local() => Err("is link-local"),
                _ if address.is_multicast() || address == Ipv4Addr::BROADCAST => {
                    Err("is nobody's in particular")
                }
                _ => Ok(()),
            }
        }
        IpAddr::V6(address) if address.is_loopback() || address.is_unspecified() => {
            Err("is the node itself")
        }
        IpAddr::V6(address) if address.is_unicast_link_local() => Err("is link-local"),
        IpAddr::V6(address) if address.is_multicast() => Err("is nobody's in particular"),
        IpAddr::V6(_) => Ok(()),
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redis(url: &str) -> (Host, u16, Vec<String>, String) {
        let Target { host, port, kind } = Target::parse(url).unwrap();
        let Kind::Redis { login, channel } = kind else { panic!("no redis") };
        (host, port, login, channel)
    }

    #[test]
    fn urls_are_read_as_their_owners_mean_them() {
        let name = |name: &str| Host::Name(name.to_owned());
        assert_eq!(
            redis("redis://Hub.example/logs"),
            (name("hub.example"), 6379, vec![], "logs".into())
        );
        let (host, port, login, channel) = redis("redis://me:p%40ss@[5ab::7]:7000/a/b%20c?x");
        assert_eq!((host, port), (Host::Address("5ab::7".parse().unwrap()), 7000));
        assert_eq!((login, channel), (vec!["me".into(), "p@ss".into()], "a/b c".to_owned()));
        assert_eq!(redis("redis://:secret@10.1.2.3/x").2, ["secret"]);
        for (url, expected, is_secure) in [
            ("ws://10.1.2.3:8080", "ws://10.1.2.3:8080/", false),
            ("wss://logs.example/in?token=x#y", "wss://logs.example/in?token=x", true),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!(
                target.kind,
                Kind::Websocket { is_secure, url: expected.to_owned() },
                "{url}"
            );
        }
    }

    impl fmt::Debug for Kind {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("secret")
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_nothing_repeated() {
        for (url, error) in [
            ("http://x/y", TargetError::Scheme),
            ("redis:x", TargetError::Scheme),
            ("redis://x", TargetError::Channel),
            ("redis://x/", TargetError::Channel),
            ("redis:///c", TargetError::Host),
            ("redis://x:0/c", TargetError::Host),
            ("redis://x:65536/c", TargetError::Host),
            ("redis://[::1/c", TargetError::Host),
            ("redis://[x]/c", TargetError::Host),
            ("redis://a..b/c", TargetError::Host),
            ("redis://secret@x/c", TargetError::Login),
            ("redis://a:%zz@x/c", TargetError::Login),
            ("ws://x:25/", TargetError::Mail(25)),
            ("ws://x/ y", TargetError::Text),
            ("ws://x/\u{e4}", TargetError::Text),
        ] {
            assert_eq!(Target::parse(url), Err(error.clone()), "{url}");
            assert!(!error.to_string().contains("secret"));
        }
        let target = Target::parse("redis://:secret@x/c").unwrap();
        assert!(!format!("{target:?}").contains("secret"));
    }

    #[test]
    fn the_node_itself_is_out_of_reach() {
        let check = |address: &str| check_address(address.parse().unwrap()).is_ok();
        for bad in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!check(bad), "{bad}");
        }
        for good in ["10.20.2.7", "198.51.100.2", "5ab::7", "2001:db8::1"] {
            assert!(check(good), "{good}");
        }
    }

    proptest! {
        #[test]
        fn no_url_is_too_strange(url in "(redis|ws|wss)://[ -~]{0,60}") {
            if let Ok(target) = Target::parse(&url) {
                prop_assert!(target.port != 0);
            }
        }
    }
}
