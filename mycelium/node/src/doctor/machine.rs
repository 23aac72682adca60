//! What a node needs of the machine: a TUN device, IPv6, and that the overlay is routed to the device.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use mycelium_wire::identity::{OVERLAY, PublicKey};

use super::{Finding, RunningNode};
use crate::config::Config;
use crate::interfaces::{self, Interfaces};

/// Somewhere in the overlay; nothing is sent there.
const SOMEWHERE: Ipv6Addr = Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 1);
/// Bit of the privilege to make devices (`CAP_NET_ADMIN`).
const NET_ADMIN: u32 = 12;

pub(super) fn examine(
    config: &Config,
    key: Option<PublicKey>,
    node: Option<&RunningNode>,
) -> Vec<Finding> {
    let Some(name) = config.tun_name.as_deref() else {
        return vec![Finding::good("TUN device", "none is wanted (--no-tun)")];
    };
    let interfaces = match interfaces::all() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            let said = format!("the kernel does not say which interfaces there are: {error}");
            return vec![Finding::problem("interfaces", said, "is this Linux, with netlink?")];
        }
    };
    let mut findings = vec![ipv6()];
    match node {
        Some(node) => {
            findings.push(device(&interfaces, name, node.address));
            findings.push(route(&interfaces, name));
        }
        None => findings.push(can_make_device(&interfaces, name, key)),
    }
    findings.push(reachable_from_outside(&interfaces));
    findings
}

fn ipv6() -> Finding {
    const CHECK: &str = "IPv6";
    let path = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim() == "0" => Finding::good(CHECK, "enabled"),
        Ok(_) => Finding::problem(
            CHECK,
            "disabled on this machine, so the device can have no address",
            "sysctl net.ipv6.conf.all.disable_ipv6=0",
        ),
        Err(_) => Finding::problem(
            CHECK,
            "this kernel has none",
            "boot without ipv6.disable=1, or use --no-tun",
        ),
    }
}

/// Of a node that runs.
fn device(interfaces: &Interfaces, name: &str, address: Ipv6Addr) -> Finding {
    const CHECK: &str = "TUN device";
    let Some(interface) = interfaces.named(name) else {
        return Finding::problem(
            CHECK,
            format!("a node runs, but here is no device {name}"),
            "was it removed, or does the node run with --no-tun, another --tun-name, or in another \
             network namespace?",
        );
    };
    if !interface.has(address.into()) {
        let said = format!("{name} does not have the node's address {address}");
        let remedy = format!("restart the node, or: ip -6 addr add {address}/7 dev {name}");
        return Finding::problem(CHECK, said, remedy);
    }
    if !interface.is_up() {
        let remedy = format!("ip link set {name} up");
        return Finding::problem(CHECK, format!("{name} is down"), remedy);
    }
    Finding::good(CHECK, format!("{name} is up and has {address}"))
}

/// Of a node that does not run yet.
fn can_make_device(interfaces: &Interfaces, name: &str, key: Option<PublicKey>) -> Finding {
    const CHECK: &str = "TUN device";
    if let Some(interface) = interfaces.named(name) {
        let is_ours = key.is_some_and(|key| interface.has(key.address().into()));
        let said = format!("no node answers, but there is a device {name}");
        let remedy = if is_ours {
            "a node with this key runs already: where is its API (--api-addr)?"
        } else {
            "choose another --tun-name, or stop the program that has it"
        };
        return Finding::problem(CHECK, said, remedy);
    }
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    match file {
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::problem(
            CHECK,
            "there is no /dev/net/tun",
            "`modprobe tun` brings it (in a container, hand it in); or use --no-tun",
        ),
        Err(error) => {
            let said = format!("/dev/net/tun can't be opened: {error}");
            Finding::problem(CHECK, said, "run as root; or use --no-tun")
        }
        Ok(_) if !has_capability(NET_ADMIN) => Finding::problem(
            CHECK,
            "this user may not make one (CAP_NET_ADMIN)",
            "run as root, or `setcap cap_net_admin+ep` on the program; or use --no-tun",
        ),
        Ok(_) => Finding::good(CHECK, format!("{name} can be made")),
    }
}

/// Whether this process has a capability in effect (`/proc/self/status`).
fn has_capability(bit: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> bit & 1 == 1)
}

/// Whether packets for the overlay go to the device: the kernel is asked which address it would send from.
fn route(interfaces: &Interfaces, name: &str) -> Finding {
    const CHECK: &str = "route 400::/7";
    let remedy = || format!("ip -6 route replace {OVERLAY} dev {name}");
    let source = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).and_then(|socket| {
        // Nothing is sent by this.
        socket.connect(SocketAddr::from((SOMEWHERE, 9)))?;
        socket.local_addr()
    });
    let source = match source {
        Ok(source) => source.ip(),
        Err(error) => {
            return Finding::problem(CHECK, format!("there is none: {error}"), remedy());
        }
    };
    match interfaces.of(source) {
        Some(interface) if interface.name == name => {
            Finding::good(CHECK, format!("to {name}, from {source}"))
        }
        Some(interface) => {
            let said = format!("packets go out by {} instead of {name}", interface.name);
            Finding::problem(CHECK, said, remedy())
        }
        None => {
            let said = format!("packets go out from {source}, which no interface has");
            Finding::problem(CHECK, said, remedy())
        }
    }
}

/// Whether anybody outside could dial this machine.
fn reachable_from_outside(interfaces: &Interfaces) -> Finding {
    const CHECK: &str = "addresses";
    let addresses = interfaces.all_usable();
    let public: Vec<String> =
        addresses.iter().filter(|address| is_public(**address)).map(IpAddr::to_string).collect();
    if !public.is_empty() {
        return Finding::good(CHECK, format!("others may dial {}", public.join(", ")));
    }
    if addresses.is_empty() {
        return Finding::problem(
            CHECK,
            "no interface has an address",
            "connect the machine to a network",
        );
    }
    Finding::hint(
        CHECK,
        "only private ones: nobody outside can dial this machine",
        "that is well as long as it reaches a peer that is public",
    )
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_shared = a == 100 && b & 0xc0 == 64;
            !(v4.is_private() || v4.is_link_local() || v4.is_loopback() || is_shared)
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unique_local()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_no_public_ones() {
        for text in ["10.1.2.3", "100.64.0.1", "192.168.0.1", "169.254.1.1", "fe80::1", "fd00::1"] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["100.128.0.1", "192.0.2.1", "2001:db8::1"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_a_problem() {
        let interfaces = interfaces::all().unwrap();
        let finding = device(&interfaces, "no-such-device", SOMEWHERE);
        assert!(finding.said.contains("no-such-device") && finding.remedy.is_some());
        let finding = device(&interfaces, "lo", SOMEWHERE);
        assert!(finding.remedy.unwrap().contains("addr add"));
    }
}
