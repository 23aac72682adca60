//! What the node tells the guest: the four files of the `cidata` disk as types.
//!
//! `meta-data`, `network-config` (netplan version 2) and `user-data` are YAML of which we take the
//! keys that a node writes (`reference/zero-os.md` 4.7) and ignore the rest, as cloud-init would;
//! `zosrc` is read by [`crate::zosrc`]. Everything is checked here, so that what follows works with
//! addresses and paths instead of text. Errors name file and key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::yaml::{self, Cursor, Node};
use crate::zosrc::{self, Zosrc};

/// The whole of `cidata`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CiData {
    /// `local-hostname` of `meta-data`.
    pub hostname: Option<String>,
    /// The interfaces of `network-config`, by its order.
    pub interfaces: Vec<Interface>,
    /// Users with keys, of `user-data`.
    pub users: Vec<User>,
    /// Mounts of `user-data`, parents before children.
    pub mounts: Vec<Mount>,
    /// Environment and entrypoint.
    pub zosrc: Zosrc,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its key in the file, for messages.
    pub key: String,
    /// The hardware address that it is found by.
    pub mac: [u8; 6],
    /// Static addresses with their prefix lengths.
    pub addresses: Vec<Prefix>,
    /// Routes, the default ones included.
    pub routes: Vec<Route>,
    /// DNS servers.
    pub nameservers: Vec<IpAddr>,
    /// DNS search domains.
    pub search: Vec<String>,
    /// Largest packet in bytes, where the node sets one.
    pub mtu: Option<u32>,
}

/// An address with a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The address, host bits included.
    pub address: IpAddr,
    /// Bits of the network part.
    pub length: u8,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to; a length of 0 is the default route.
    pub to: Prefix,
    /// The next hop; `None` for what is on the link itself.
    pub via: Option<IpAddr>,
    /// Among equal routes the lowest wins; 0 leaves it to the kernel.
    pub metric: u32,
}

/// A user and the ssh keys that may log in as him.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Lines for `authorized_keys`.
    pub keys: Vec<String>,
}

/// A disk or share to mount into the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What to mount.
    pub source: Source,
    /// Absolute path in the guest, without `.` and `..`.
    pub target: String,
    /// How.
    pub options: Options,
}

/// What to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A disk by kernel name, `vda`.
    Name(String),
    /// A disk by serial.
    Serial(String),
    /// A virtio-fs share by tag.
    Share(String),
}

/// Mount options that mean something to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a mount option of that name")]
pub struct Options {
    /// No writes.
    pub read_only: bool,
    /// Set-user-id bits have no effect.
    pub nosuid: bool,
    /// Devices have no effect.
    pub nodev: bool,
    /// Nothing is executed.
    pub noexec: bool,
    /// Access times are not kept.
    pub noatime: bool,
    /// The boot goes on without it.
    pub nofail: bool,
}

/// Why `cidata` was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// One of the YAML files.
    #[error(transparent)]
    Yaml(#[from] yaml::Error),
    /// The environment file.
    #[error(transparent)]
    Zosrc(#[from] zosrc::Error),
    /// A file is not UTF-8.
    #[error("{0}: not UTF-8 text")]
    Text(&'static str),
}

/// The raw files; those that are absent are empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// `meta-data`.
    pub meta_data: Vec<u8>,
    /// `network-config`.
    pub network_config: Vec<u8>,
    /// `user-data`.
    pub user_data: Vec<u8>,
    /// `zosrc`.
    pub zosrc: Vec<u8>,
}

impl CiData {
    /// Parses the four files.
    ///
    /// # Errors
    ///
    /// [`Error`], naming the file and the key or line.
    pub fn parse(files: &Files) -> Result<Self, Error> {
        let meta = document("meta-data", &files.meta_data)?;
        let network = document("network-config", &files.network_config)?;
        let user = document("user-data", &files.user_data)?;
        let user = Cursor::new("user-data", &user);
        Ok(Self {
            hostname: hostname(&Cursor::new("meta-data", &meta))?,
            interfaces: interfaces(&Cursor::new("network-config", &network))?,
            users: users(&user)?,
            mounts: mounts(&user)?,
            zosrc: Zosrc::parse(utf8("zosrc", &files.zosrc)?)?,
        })
    }
}

fn utf8<'a>(file: &'static str, bytes: &'a [u8]) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::Text(file))
}

fn document(file: &'static str, bytes: &[u8]) -> Result<Node, Error> {
    Ok(Node::parse(file, utf8(file, bytes)?)?)
}

fn hostname(meta: &Cursor<'_>) -> Result<Option<String>, yaml::Error> {
    let Some(name) = meta.get("local-hostname")? else { return Ok(None) };
    let text = name.text()?;
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > HOSTNAME_BYTES_MAX || !text.chars().all(usable) {
        return Err(name.error(format!("{text:?} is no host name of 1 to 64 characters")));
    }
    Ok(Some(text.to_owned()))
}

fn interfaces(top: &Cursor<'_>) -> Result<Vec<Interface>, yaml::Error> {
    // Both netplan's form and cloud-init's, which leaves out the outermost key.
    let top = top.get("network")?.unwrap_or_else(|| top.clone());
    let Some(ethernets) = top.get("ethernets")? else { return Ok(Vec::new()) };
    ethernets.entries()?.into_iter().map(|(key, node)| interface(key, &node)).collect()
}

fn interface(key: &str, node: &Cursor<'_>) -> Result<Interface, yaml::Error> {
    let matching = node.get("match")?;
    let mac = matching.map(|m| m.get("macaddress")).transpose()?.flatten();
    let mac = mac.ok_or_else(|| node.error("no match.macaddress to find the interface by"))?;
    let mut routes = Vec::new();
    for (gateway, v6) in [("gateway4", false), ("gateway6", true)] {
        let Some(value) = node.get(gateway)? else { continue };
        let via: IpAddr = value.parse("an IP address")?;
        if via.is_ipv6() != v6 {
            return Err(value.error(format!("{via} is of the other address family")));
        }
        routes.push(Route { to: default_of(via), via: Some(via), metric: 0 });
    }
    for item in list(node, "routes")? {
        routes.push(route(&item)?);
    }
    let dns = node.get("nameservers")?;
    let dns_list = |key: &str| match &dns {
        Some(dns) => list(dns, key),
        None => Ok(Vec::new()),
    };
    Ok(Interface {
        key: key.to_owned(),
        mac: parse_mac(mac.text()?).ok_or_else(|| mac.error("not a MAC address"))?,
        addresses: list(node, "addresses")?.iter().map(prefix).collect::<Result<_, _>>()?,
        routes,
        nameservers: dns_list("addresses")?
            .iter()
            .map(|n| n.parse("an IP address"))
            .collect::<Result<_, _>>()?,
        search: dns_list("search")?.iter().map(domain).collect::<Result<_, _>>()?,
        mtu: node.get("mtu")?.map(|n| n.parse("a number of bytes")).transpose()?,
    })
}

fn list<'a>(node: &Cursor<'a>, key: &str) -> Result<Vec<Cursor<'a>>, yaml::Error> {
    node.get(key)?.map_or(Ok(Vec::new()), |value| value.items())
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut parts = text.split([':', '-']);
    let mut mac = [0; 6];
    for slot in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && !p.starts_with('+'))?;
        *slot = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn prefix(node: &Cursor<'_>) -> Result<Prefix, yaml::Error> {
    let text = node.text()?;
    parse_prefix(text)
        .ok_or_else(|| node.error(format!("expected address/prefix-length, found {text:?}")))
}

fn parse_prefix(text: &str) -> Option<Prefix> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    (length <= bits(address)).then_some(Prefix { address, length })
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn default_of(family: IpAddr) -> Prefix {
    let address = match family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Prefix { address, length: 0 }
}

fn route(node: &Cursor<'_>) -> Result<Route, yaml::Error> {
    let to_node = node.get("to")?.ok_or_else(|| node.error("a route without `to`"))?;
    let via: Option<IpAddr> = node.get("via")?.map(|v| v.parse("an IP address")).transpose()?;
    let text = to_node.text()?;
    let to = match (text, via) {
        ("default", Some(via)) => default_of(via),
        _ => {
            let host = || text.parse().ok().map(|a| Prefix { address: a, length: bits(a) });
            parse_prefix(text)
                .or_else(host)
                .ok_or_else(|| to_node.error(format!("{text:?} is no address range")))?
        }
    };
    if via.is_some_and(|via| via.is_ipv4() != to.address.is_ipv4()) {
        return Err(node.error("`to` and `via` are of different address families"));
    }
    let metric = node.get("metric")?.map_or(Ok(0), |m| m.parse("a number"))?;
    Ok(Route { to: to.masked(), via, metric })
}

impl Prefix {
    /// The network: the address with its host bits cleared, as the kernel demands of a route.
    #[must_use]
    pub fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length.min(32)));
                Ipv4Addr::from_bits(a.to_bits() & mask.unwrap_or(0)).into()
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length.min(128)));
                Ipv6Addr::from_bits(a.to_bits() & mask.unwrap_or(0)).into()
            }
        };
        Self { address, ..self }
    }

    /// Whether `other` lies in this network.
    #[must_use]
    pub fn contains(self, other: IpAddr) -> bool {
        other.is_ipv4() == self.address.is_ipv4()
            && Self { address: other, ..self }.masked() == self.masked()
    }
}

fn domain(node: &Cursor<'_>) -> Result<String, yaml::Error> {
    let text = node.text()?;
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > DOMAIN_BYTES_MAX || !text.chars().all(usable) {
        return Err(node.error(format!("{text:?} is no domain name")));
    }
    Ok(text.to_owned())
}

fn users(top: &Cursor<'_>) -> Result<Vec<User>, yaml::Error> {
    let mut users = Vec::new();
    for node in list(top, "users")? {
        let name = node.get("name")?.ok_or_else(|| node.error("a user without `name`"))?;
        let text = name.text()?;
        if text.is_empty() || text.contains([':', '/', '\n']) {
            return Err(name.error(format!("{text:?} is no user name")));
        }
        let mut keys = Vec::new();
        for key in list(&node, "ssh_authorized_keys")? {
            // One key a line: a newline within would smuggle in a second line.
            let lines = key.text()?.lines().map(str::trim).filter(|line| !line.is_empty());
            keys.extend(lines.map(str::to_owned));
        }
        users.push(User { name: text.to_owned(), keys });
    }
    Ok(users)
}

fn mounts(top: &Cursor<'_>) -> Result<Vec<Mount>, yaml::Error> {
    let mut mounts: Vec<Mount> = Vec::new();
    for node in list(top, "mounts")? {
        let fields = node.items()?;
        let field = |index: usize| fields.get(index).map_or(Ok(""), Cursor::text);
        let kind = field(2)?;
        let target = target(field(1)?).map_err(|what| node.error(what))?;
        if mounts.iter().any(|mount| mount.target == target) {
            return Err(node.error(format!("a second mount on {target}")));
        }
        mounts.push(Mount {
            source: source(field(0)?, kind).map_err(|what| node.error(what))?,
            target,
            options: options(field(3)?).map_err(|what| node.error(what))?,
        });
    }
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    Ok(mounts)
}

fn source(device: &str, kind: &str) -> Result<Source, String> {
    if kind == "virtiofs" {
        if device.is_empty() || device.contains(['/', ',']) {
            return Err(format!("{device:?} is no virtio-fs tag"));
        }
        return Ok(Source::Share(device.to_owned()));
    }
    if !matches!(kind, "" | "auto" | "ext4") {
        return Err(format!("file system {kind:?} is not supported: auto, ext4 or virtiofs"));
    }
    if let Some(serial) = device.strip_prefix("/dev/disk/by-id/virtio-") {
        return Ok(Source::Serial(serial.to_owned()));
    }
    match device.strip_prefix("/dev/") {
        Some(name) if !name.is_empty() && !name.contains('/') => Ok(Source::Name(name.to_owned())),
        _ => Err(format!("{device:?} is neither /dev/NAME nor /dev/disk/by-id/virtio-SERIAL")),
    }
}

/// An absolute path below `/`, without empty parts, `.` and `..`.
fn target(path: &str) -> Result<String, String> {
    let Some(relative) = path.strip_prefix('/') else {
        return Err(format!("mount point {path:?} is not absolute"));
    };
    let parts: Vec<&str> = relative.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.is_empty() || parts.contains(&"..") || path.contains('\0') {
        return Err(format!("{path:?} can't be a mount point"));
    }
    if matches!(parts.first(), Some(&("proc" | "sys" | "dev"))) {
        return Err(format!("mount point {path:?} would hide the kernel's own"));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn options(text: &str) -> Result<Options, String> {
    let mut options = Options::default();
    for option in text.split(',') {
        match option {
            "ro" => options.read_only = true,
            "nosuid" => options.nosuid = true,
            "nodev" => options.nodev = true,
            "noexec" => options.noexec = true,
            "noatime" => options.noatime = true,
            "nofail" => options.nofail = true,
            "" | "defaults" | "rw" | "suid" | "dev" | "exec" | "relatime" | "auto" | "user"
            | "async" | "_netdev" => {}
            other => return Err(format!("mount option {other:?} is not supported")),
        }
    }
    Ok(options)
}

/// Longest host name in bytes (Linux `__NEW_UTS_LEN`).
const HOSTNAME_BYTES_MAX: usize = 64;
/// Longest domain name in bytes (RFC 1035 §2.3.4).
const DOMAIN_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(network: &str, user: &str) -> Result<CiData, Error> {
        CiData::parse(&Files {
            meta_data: b"#cloud-config\ninstance-id: x\nlocal-hostname: my-vm\n".to_vec(),
            network_config: network.into(),
            user_data: user.into(),
            zosrc: b"export A='1'\n".to_vec(),
        })
    }

    fn network_error(network: &str) -> String {
        parse(network, "").unwrap_err().to_string()
    }

    fn user_error(user: &str) -> String {
        parse("", user).unwrap_err().to_string()
    }

    fn prefix(text: &str) -> Prefix {
        parse_prefix(text).unwrap()
    }

    /// What guests of the lab get, too: one card.
    const NETWORK: &str = include_str!("../tests/network-config.yaml");
    const SECOND_CARD: &str = "  eth1:
    match:
      macaddress: 02-01-A0-00-00-0A
    routes:
    - to: 400::/7
      via: fe80::3
      metric: 7
    nameservers: {addresses: [9.9.9.9], search: [grid.tf]}
";

    #[test]
    fn what_a_node_writes_is_understood() {
        let user = "#cloud-config\nusers:\n- name: root\n  ssh_authorized_keys:\n  - ssh-ed25519 A b\n\
                    mounts:\n- [/dev/vda, /data/deep, auto, defaults, 0, 0]\n\
                    - [shared, /data, virtiofs, \"defaults,ro\", 0, 0]\n";
        let data = parse(&[NETWORK, SECOND_CARD].concat(), user).unwrap();
        assert_eq!(data.hostname.as_deref(), Some("my-vm"));
        assert_eq!(
            data.users,
            [User { name: "root".into(), keys: vec!["ssh-ed25519 A b".into()] }]
        );
        let share = Options { read_only: true, ..Options::default() };
        assert_eq!(
            data.mounts,
            [
                Mount {
                    source: Source::Share("shared".into()),
                    target: "/data".into(),
                    options: share
                },
                Mount {
                    source: Source::Name("vda".into()),
                    target: "/data/deep".into(),
                    options: Options::default()
                },
            ]
        );
        let eth0 = &data.interfaces[0];
        assert_eq!(eth0.mac, [2, 1, 0xa0, 0, 0, 9]);
        assert_eq!(eth0.addresses, [prefix("10.20.2.5/24"), prefix("fd63:6f63::5/64")]);
        let hop = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            eth0.routes,
            [
                Route { to: prefix("0.0.0.0/0"), via: hop("10.20.2.1"), metric: 0 },
                Route { to: prefix("::/0"), via: hop("fe80::1"), metric: 0 },
                Route { to: prefix("100.64.0.0/16"), via: hop("10.20.2.1"), metric: 0 },
                Route { to: prefix("400::/7"), via: hop("fe80::2"), metric: 0 },
            ]
        );
        assert_eq!((eth0.nameservers.len(), eth0.search.len()), (2, 0));
        let eth1 = &data.interfaces[1];
        assert_eq!(eth1.mac, [2, 1, 0xa0, 0, 0, 10]);
        let to = prefix("400::/7");
        assert_eq!(eth1.routes, [Route { to, via: hop("fe80::3"), metric: 7 }]);
        assert_eq!((eth1.nameservers.len(), &*eth1.search), (1, &["grid.tf".to_owned()][..]));
    }

    #[test]
    fn nothing_is_required() {
        let data = CiData::parse(&Files::default()).unwrap();
        assert_eq!(data, CiData::default());
    }

    #[test]
    fn bad_networks_name_file_and_key() {
        let eth = |text: &str| {
            format!("ethernets: {{eth0: {{match: {{macaddress: '02:01:a0:00:00:09'}}, {text}}}}}")
        };
        for (text, want) in [
            (eth("addresses: [10.0.0.1]"), "network-config: ethernets.eth0.addresses[0]: expected"),
            (eth("addresses: [10.0.0.1/33]"), "found \"10.0.0.1/33\""),
            (eth("gateway4: 'fe80::1'"), "ethernets.eth0.gateway4: fe80::1 is of the other"),
            (eth("gateway6: x"), "gateway6: expected an IP address, found \"x\""),
            (eth("routes: [{via: 10.0.0.1}]"), "routes[0]: a route without `to`"),
            (eth("routes: [{to: '1::/16', via: 10.0.0.1}]"), "different address families"),
            (eth("routes: [{to: default}]"), "routes[0].to: \"default\" is no address range"),
            ("ethernets: {eth0: {}}".into(), "eth0: no match.macaddress"),
            ("ethernets: {eth0: {match: {macaddress: '1:2'}}}".into(), "not a MAC address"),
            (
                "ethernets: [1]".into(),
                "network-config: ethernets: expected a mapping, found a list",
            ),
        ] {
            let message = network_error(&text);
            assert!(message.contains(want), "{text}: {message}");
        }
    }

    #[test]
    fn bad_mounts_name_file_and_key() {
        for (text, want) in [
            ("[/dev/vda, data]", "mounts[0]: mount point \"data\" is not absolute"),
            ("[/dev/vda, /]", "can't be a mount point"),
            ("[/dev/vda, /a/../b]", "can't be a mount point"),
            ("[/dev/vda, /proc/x]", "hide the kernel's own"),
            ("[/dev/a/b, /x]", "neither /dev/NAME"),
            ("[LABEL=x, /x]", "neither /dev/NAME"),
            ("[/dev/vda, /x, btrfs]", "\"btrfs\" is not supported"),
            ("[a/b, /x, virtiofs]", "no virtio-fs tag"),
            ("[/dev/vda, /x, auto, data=journal]", "mount option \"data=journal\""),
            ("[/dev/vda, /x], [/dev/vdb, //x/]", "mounts[1]: a second mount on /x"),
        ] {
            let message = user_error(&format!("mounts: [{text}]"));
            assert!(message.starts_with("user-data: ") && message.contains(want), "{message}");
        }
        assert!(user_error("users: [{name: 'a:b'}]").contains("users[0].name: \"a:b\""));
        assert!(user_error("users: {}").contains("users: expected a list"));
    }

    #[test]
    fn a_disk_may_be_named_by_its_serial() {
        let data = parse("", "mounts: [[/dev/disk/by-id/virtio-dezoev3vcf3zk, /x]]").unwrap();
        assert_eq!(data.mounts[0].source, Source::Serial("dezoev3vcf3zk".into()));
    }

    #[test]
    fn host_names_are_checked() {
        for name in ["''", "a b", "'a/b'", &"x".repeat(65)] {
            let files = Files {
                meta_data: format!("local-hostname: {name}").into_bytes(),
                ..Files::default()
            };
            let result = CiData::parse(&files);
            assert!(result.unwrap_err().to_string().starts_with("meta-data: local-hostname: "));
        }
    }

    #[test]
    fn binary_files_are_refused() {
        let files = Files { zosrc: vec![0xff], ..Files::default() };
        assert_eq!(CiData::parse(&files), Err(Error::Text("zosrc")));
    }

    #[test]
    fn networks_contain_what_they_should() {
        assert!(prefix("10.1.2.3/24").contains("10.1.2.200".parse().unwrap()));
        assert!(!prefix("10.1.2.3/24").contains("10.1.3.1".parse().unwrap()));
        assert!(prefix("0.0.0.0/0").contains("1.2.3.4".parse().unwrap()));
        assert!(!prefix("::/0").contains("1.2.3.4".parse().unwrap()));
        assert_eq!(prefix("fd00::1/128").masked(), prefix("fd00::1/128"));
        assert_eq!(prefix("fd00:1::1/16").masked(), prefix("fd00::/16"));
    }
}
