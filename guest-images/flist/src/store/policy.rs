//! Which routes may be followed: an image is a stranger's, and so are the stores it names.
//!
//! Who runs `flist unpack` on an image has chosen to. A node's cache process fetches for everybody:
//! a route to a folder, a unix socket or an address that only the node reaches would let a user look
//! at the node's files and talk to its services. So `flist cached` follows, by itself, only routes
//! over the network to addresses that anybody could reach, and an operator's rules add to that:
//!
//! | rule | what it allows |
//! |---|---|
//! | `10.1.0.0/16`, `2001:db8::7` | ZDB, HTTP and S3 at these addresses |
//! | `dir:///srv/blocks` | folders at and below that one |
//! | `zdb:///run/zdb` | unix sockets at and below that path |
//! | `local` | everything; for tests and development |
//!
//! The node's own addresses need a rule that names the single address (or `local`): a rule for a
//! network is about the neighbours.
//!
//! What is checked is the address that is connected to, after a name was looked up, on every
//! connection and every redirect; a name that leads elsewhere the second time gains nothing. Of a
//! folder, the place is checked that its path leads to in the end. Proxies look names up themselves,
//! so none is used where routes are restricted.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::url::{StoreUrl, Target, ZdbEndpoint};

/// Which routes may be followed. The default is all of them.
#[derive(Clone, Debug, Default)]
pub struct RoutePolicy {
    /// None if everything is allowed.
    rules: Option<Arc<[AllowRule]>>,
}

/// What is allowed beyond addresses that anybody could reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowRule {
    /// Everything.
    Local,
    /// Folders at and below this one.
    Folder(PathBuf),
    /// Unix sockets at and below this path.
    Socket(PathBuf),
    /// Addresses that agree with this one in so many leading bits.
    Network(IpAddr, u8),
}

/// Not an [`AllowRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be ADDRESS[/BITS], dir:///PATH, zdb:///PATH of a unix socket, or local")]
pub struct AllowRuleError;

/// Why a route is not followed: what it leads to, and what that is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {kind}, which no --allow-route allows")]
pub struct Forbidden {
    what: String,
    kind: &'static str,
}

impl RoutePolicy {
    /// Only addresses that anybody could reach, and what `rules` add.
    #[must_use]
    pub fn restricted(rules: Vec<AllowRule>) -> Self {
        let everything = rules.contains(&AllowRule::Local);
        Self { rules: (!everything).then(|| rules.into()) }
    }

    /// Whether there is anything that may not be followed.
    #[must_use]
    pub fn is_restricted(&self) -> bool {
        self.rules.is_some()
    }

    /// Whether a connection to this address may be made.
    ///
    /// # Errors
    /// [`Forbidden`] says what kind of address it is.
    pub fn check_address(&self, address: IpAddr) -> Result<(), Forbidden> {
        let Some(rules) = &self.rules else { return Ok(()) };
        // `::ffff:10.0.0.1` is 10.0.0.1 by another name.
        let address = address.to_canonical();
        let bits_covered = rules.iter().filter_map(|rule| rule.bits_covered(address)).max();
        let kind = match bits_covered {
            Some(bits) if bits == bits_of(address) => None,
            Some(_) => is_own(address).then_some(OWN),
            None => kind_of(address).or_else(|| is_own(address).then_some(OWN)),
        };
        kind.map_or(Ok(()), |kind| Err(Forbidden { what: address.to_string(), kind }))
    }

    /// Whether blocks may be read from the folder `path`. Asked before anything is opened, and again
    /// with the path of what was opened, which symbolic links may have changed.
    ///
    /// # Errors
    /// [`Forbidden`].
    pub fn check_folder(&self, path: &Path) -> Result<(), Forbidden> {
        self.check_path(path, "a folder of this node", |rule| match rule {
            AllowRule::Folder(allowed) => Some(allowed),
            _ => None,
        })
    }

    /// Whether the unix socket at `path` may be connected to.
    ///
    /// # Errors
    /// [`Forbidden`].
    pub fn check_socket(&self, path: &Path) -> Result<(), Forbidden> {
        self.check_path(path, "a unix socket of this node", |rule| match rule {
            AllowRule::Socket(allowed) => Some(allowed),
            _ => None,
        })
    }

    fn check_path<'a>(
        &'a self,
        path: &Path,
        kind: &'static str,
        allowed: impl Fn(&'a AllowRule) -> Option<&'a PathBuf>,
    ) -> Result<(), Forbidden> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let is_plain = path.components().all(|part| part != Component::ParentDir);
        if is_plain && rules.iter().filter_map(allowed).any(|allowed| path.starts_with(allowed)) {
            return Ok(());
        }
        Err(Forbidden { what: path.display().to_string(), kind })
    }
}

impl AllowRule {
    /// How many bits of `address` the rule's network fixes, if the address is in it.
    fn bits_covered(&self, address: IpAddr) -> Option<u8> {
        let Self::Network(network, bits) = self else { return None };
        let is_inside = match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let rest = 32u32.checked_sub((*bits).into())?;
                let differ = network.to_bits() ^ address.to_bits();
                differ.checked_shr(rest).unwrap_or_default() == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let rest = 128u32.checked_sub((*bits).into())?;
                let differ = network.to_bits() ^ address.to_bits();
                differ.checked_shr(rest).unwrap_or_default() == 0
            }
            _ => false,
        };
        is_inside.then_some(*bits)
    }
}

impl FromStr for AllowRule {
    type Err = AllowRuleError;

    fn from_str(text: &str) -> Result<Self, AllowRuleError> {
        if text == "local" {
            return Ok(Self::Local);
        }
        if text.contains("://") {
            let url = StoreUrl::parse(text).map_err(|_| AllowRuleError)?;
            return match url.target() {
                Target::Dir(path) => Ok(Self::Folder(path.clone())),
                Target::Zdb(zdb) => match &zdb.endpoint {
                    ZdbEndpoint::Unix(path) => Ok(Self::Socket(path.clone())),
                    ZdbEndpoint::Tcp(..) => Err(AllowRuleError),
                },
                _ => Err(AllowRuleError),
            };
        }
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| AllowRuleError)?;
        let bits = match bits {
            Some(bits) => bits.parse().map_err(|_| AllowRuleError)?,
            None => bits_of(address),
        };
        if bits > bits_of(address) || address.to_canonical() != address {
            return Err(AllowRuleError);
        }
        Ok(Self::Network(address, bits))
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Folder(path) => write!(f, "dir://{}", path.display()),
            Self::Socket(path) => write!(f, "zdb://{}", path.display()),
            Self::Network(address, bits) => write!(f, "{address}/{bits}"),
        }
    }
}

const OWN: &str = "an address of this node";

const fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Whether the address is one of this machine's: only to those can a socket be bound.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// What an address is, if not one that anybody could reach.
fn kind_of(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => kind_of_v4(address),
        IpAddr::V6(address) => kind_of_v6(address),
    }
}

/// IANA's registry of IPv4 special-purpose addresses, all that are not "globally reachable".
fn kind_of_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("an unspecified address"),
        [127, ..] => Some("a loopback address"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("a private address"),
        [169, 254, ..] => Some("a link-local address"),
        [100, 64..=127, ..] => Some("an address shared behind a provider's NAT"),
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18..=19, ..] => Some("a reserved address"),
        [198, 51, 100, _] | [203, 0, 113, _] | [240..=255, ..] => Some("a reserved address"),
        [224..=239, ..] => Some("a multicast address"),
        _ => None,
    }
}

/// Likewise for IPv6 (RFC 6890, RFC 4291), where what is not global unicast is not reachable, except
/// for the grid's mesh. An address that carries an IPv4 address leads to that one.
fn kind_of_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [first, second, ..] = address.segments();
    let [.., a, b, c, d] = address.octets();
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        // NAT64 (RFC 6052 §2.1).
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => kind_of_v4(Ipv4Addr::new(a, b, c, d)),
        // 6to4 (RFC 3056 §2).
        [0x2002, high, low, ..] => {
            let bits = u32::from(high) << 16 | u32::from(low);
            kind_of_v4(Ipv4Addr::from_bits(bits))
        }
        // RFC 2928, with Teredo and ORCHID; documentation.
        _ if first == 0x2001 && (second < 0x200 || second == 0xdb8) => Some("a reserved address"),
        _ if first == 0x3fff && second < 0x1000 => Some("a reserved address"),
        _ if first & 0xe000 == 0x2000 => None,
        // Mycelium, 400::/7.
        _ if first & 0xfe00 == 0x0400 => None,
        _ if first & 0xffc0 == 0xfe80 => Some("a link-local address"),
        _ if first & 0xfe00 == 0xfc00 => Some("a private address"),
        _ if first & 0xff00 == 0xff00 => Some("a multicast address"),
        _ => Some("a reserved address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &[&str]) -> RoutePolicy {
        RoutePolicy::restricted(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn check(policy: &RoutePolicy, address: &str) -> Result<(), Forbidden> {
        policy.check_address(address.parse().unwrap())
    }

    #[test]
    fn addresses_that_anybody_could_reach_need_no_rule() {
        let policy = policy(&[]);
        for address in ["1.1.1.1", "185.69.166.8", "2a10:b600::1", "2001:4860::1", "45f:1::2"] {
            assert_eq!(check(&policy, address), Ok(()), "{address}");
        }
    }

    #[test]
    fn addresses_that_only_the_node_or_its_neighbours_reach_are_forbidden() {
        let policy = policy(&[]);
        for (address, kind) in [
            ("0.0.0.0", "unspecified"),
            ("127.0.0.1", "loopback"),
            ("127.1.2.3", "loopback"),
            ("10.0.0.1", "private"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.168.1.1", "private"),
            ("169.254.169.254", "link-local"),
            ("100.64.0.1", "shared"),
            ("198.18.0.1", "reserved"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:10.0.0.1", "private"),
            ("::10.0.0.1", "reserved"),
            ("64:ff9b::7f00:1", "loopback"),
            ("64:ff9b:1::1", "reserved"),
            ("2002:a00:1::", "private"),
            ("2001::1", "reserved"),
            ("2001:db8::1", "reserved"),
            ("3fff::1", "reserved"),
            ("fe80::1", "link-local"),
            ("fd00::1", "private"),
            ("ff02::1", "multicast"),
            ("200::1", "reserved"),
        ] {
            let text = check(&policy, address).unwrap_err().to_string();
            assert!(text.contains(kind), "{address}: {text}");
        }
    }

    #[test]
    fn rules_add_networks_and_single_addresses() {
        let policy = policy(&["10.1.0.0/16", "fd00:1::/32", "192.168.7.7"]);
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5", "192.168.7.7", "1.1.1.1"] {
            assert_eq!(check(&policy, address), Ok(()), "{address}");
        }
        for address in ["10.2.0.1", "fd00:2::5", "192.168.7.8", "127.0.0.1", "::1"] {
            check(&policy, address).unwrap_err();
        }
        assert_eq!(check(&self::policy(&["0.0.0.0/0"]), "10.2.0.1"), Ok(()));
    }

    #[test]
    fn the_nodes_own_addresses_need_a_rule_of_their_own() {
        let text = check(&policy(&["127.0.0.0/8"]), "127.0.0.1").unwrap_err().to_string();
        assert_eq!(text, "127.0.0.1 is an address of this node, which no --allow-route allows");
        assert_eq!(check(&policy(&["127.0.0.1"]), "127.0.0.1"), Ok(()));
        assert_eq!(check(&policy(&["local"]), "127.0.0.1"), Ok(()));
        assert_eq!(check(&RoutePolicy::default(), "127.0.0.1"), Ok(()));
    }

    #[test]
    fn folders_and_sockets_need_a_rule() {
        let none = policy(&["10.0.0.0/8"]);
        let text = none.check_folder(Path::new("/etc")).unwrap_err().to_string();
        assert_eq!(text, "/etc is a folder of this node, which no --allow-route allows");
        none.check_socket(Path::new("/run/zdb.sock")).unwrap_err();
        let some = policy(&["dir:///srv/blocks", "zdb:///run/zdb"]);
        for path in ["/srv/blocks", "/srv/blocks/a", "/srv/blocks/./a"] {
            assert_eq!(some.check_folder(Path::new(path)), Ok(()), "{path}");
        }
        for path in ["/srv", "/srv/blocks2", "/srv/blocks/../../etc", "/run/zdb"] {
            some.check_folder(Path::new(path)).unwrap_err();
        }
        assert_eq!(some.check_socket(Path::new("/run/zdb/0")), Ok(()));
        some.check_socket(Path::new("/srv/blocks")).unwrap_err();
        assert_eq!(policy(&["local"]).check_folder(Path::new("/etc")), Ok(()));
    }

    #[test]
    fn rules_read_as_they_are_written() {
        for rule in ["local", "dir:///srv/a b", "zdb:///run/zdb.sock", "10.0.0.0/8", "fd00::/8"] {
            assert_eq!(rule.parse::<AllowRule>().unwrap().to_string(), rule);
        }
        for bad in [
            "",
            "Local",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "host.example",
            "zdb://host",
            "http://h/",
            "dir://relative",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(bad.parse::<AllowRule>(), Err(AllowRuleError), "{bad}");
        }
    }
}
