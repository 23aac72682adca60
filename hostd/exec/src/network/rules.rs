//! What may pass, as `nft` reads it: JSON commands, pure.
//!
//! What a network has is loaded as one transaction on each side: rules take effect at once or not at all.
//! Tables are replaced as a whole, but for the one that counts.
//!
//! | where | table | what |
//! |---|---|---|
//! | namespace | `netdev guard` | what a machine may send: a chain for each tap, before the bridge sees a frame |
//! | namespace | `inet network` | what is routed, and what reaches the node's end |
//! | namespace | `inet counted` | nothing; how much machines exchange with the Internet |
//! | the uplink's | `inet u-N` | what a network may reach of the node and around it |
//!
//! **A machine** sends with its own MAC and its own address, and nothing else: on the private interface
//! IPv4 and ARP, on the mycelium interface IPv6. ARP and neighbour discovery (RFC 4861) speak for the
//! sender's address alone; router advertisements and redirects are nobody's. Frames with a VLAN tag have
//! another type, so they don't pass. Link-local addresses are free for neighbour discovery and multicast
//! listener reports, except the node's, and for nothing else.
//!
//! **A network** reaches the Internet by IPv4 behind its address of the node, mail by SMTP excepted, and
//! other mycelium nodes by mycelium. What others begin reaches machines by mycelium alone. Of the node,
//! machines reach the gateway's echo and their consoles, which their owners reach by mycelium, too; of what is around it, nothing: neither other
//! networks, nor the farmer's, nor link-local neighbours, but what the operator lists.

use std::net::{IpAddr, Ipv4Addr};

use hostd_grid::address::Cidr;
use hostd_grid::derived::MacAddress;
use serde_json::{Value, json};

use super::address::{LINK_LOCAL_GATEWAY, Member};
use super::config::NODE_ADDRESS;
use super::layout::{Layout, MYCELIUM_DEVICE, PUBLIC, UPLINK_PREFIX, uplink_name};

/// Addresses that are not on the public Internet (RFC 6890), and so are the node's surroundings.
const SURROUNDINGS: [(&str, u8); 12] = [
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("224.0.0.0", 4),
    ("240.0.0.0", 4),
    ("192.88.99.0", 24),
];

/// Ports of consoles: 20000 and the last byte of a machine's private address.
const CONSOLE_PORTS: (u16, u16) = (20_001, 20_254);
/// Echo requests a second that a network's end of the node answers.
const ECHO_PER_SECOND: u32 = 50;
/// Connections that a network may have at a time. The kernel tracks so many for all networks together.
const CONNECTION_COUNT_MAX: u32 = 16_384;
/// The port of SMTP.
const SMTP_PORT: u16 = 25;

/// Guards work before everything else on a device.
const GUARD_PRIORITY: i32 = -500;

/// The tables of a network's namespace. `counters` are those that are there.
pub(super) fn inside(layout: &Layout, counters: &[Counter]) -> Value {
    let mut commands = Commands::default();
    commands.replace_table("netdev", "guard");
    for member in &layout.members {
        guard(&mut commands, member);
    }
    commands.replace_table("inet", "network");
    input(&mut commands, layout);
    forward(&mut commands, layout);
    commands.base_chain("way_out", "nat", "postrouting", 100, "accept");
    commands.rule("way_out", [is("oifname", PUBLIC), json!({ "masquerade": null })]);
    count(&mut commands, layout, counters);
    commands.finish()
}

/// The table of a network in the uplink's namespace.
pub(super) fn outside(
    layout: &Layout,
    lease: Ipv4Addr,
    node_ports: &[u16],
    reachable: &[Cidr],
) -> Value {
    let name = uplink_name(&layout.id);
    let mut commands = Commands::default();
    commands.replace_table("inet", &name);
    let from = |rest: Vec<Value>| [vec![is("iifname", &name)], rest].concat();
    let is_spoofed =
        json!({ "match": { "op": "!=", "left": payload("ip", "saddr"), "right": lease } });
    let is_other = json!({ "match": { "op": "!=", "left": meta("nfproto"), "right": "ipv4" } });

    commands.base_chain("to_node", "filter", "input", -10, "accept");
    commands.rule("to_node", from(vec![is_other.clone(), drop()]));
    commands.rule("to_node", from(vec![is_spoofed.clone(), drop()]));
    commands.rule("to_node", from(vec![ct(&["established"]), accept()]));
    if !node_ports.is_empty() {
        for protocol in ["tcp", "udp"] {
            let to_node = equals(payload("ip", "daddr"), json!(NODE_ADDRESS));
            let ports = equals(payload(protocol, "dport"), json!({ "set": node_ports }));
            commands.rule("to_node", from(vec![to_node, ports, accept()]));
        }
    }
    commands.rule("to_node", from(vec![drop()]));

    commands.base_chain("through_node", "filter", "forward", -10, "accept");
    commands.rule("through_node", from(vec![is_other, drop()]));
    commands.rule("through_node", from(vec![is_spoofed, drop()]));
    commands.rule("through_node", from(vec![is("oifname", format!("{UPLINK_PREFIX}*")), drop()]));
    commands.rule("through_node", from(vec![ct(&["invalid"]), drop()]));
    commands.rule("through_node", from(too_many()));
    if !reachable.is_empty() {
        let reachable = set(reachable.iter().map(prefix));
        let goes_there = equals(payload("ip", "daddr"), reachable);
        commands.rule("through_node", from(vec![goes_there, accept()]));
    }
    let around = set(SURROUNDINGS.iter().map(|(address, len)| range(address, *len)));
    let stays_around = equals(payload("ip", "daddr"), around);
    commands.rule("through_node", from(vec![stays_around, drop()]));
    commands.rule("through_node", from(vec![accept()]));
    let back = is("oifname", &name);
    commands.rule("through_node", [back.clone(), ct(&["established", "related"]), accept()]);
    commands.rule("through_node", [back, drop()]);

    commands.base_chain("way_out", "nat", "postrouting", 90, "accept");
    let leaves = json!({ "match": { "op": "!=", "left": meta("oifname"), "right": name } });
    let ours = equals(payload("ip", "saddr"), json!(lease));
    commands.rule("way_out", [ours, leaves, json!({ "masquerade": null })]);
    commands.finish()
}

/// The commands that remove a network's table in the uplink's namespace, whether it is there or not.
pub(super) fn nothing_outside(layout_name: &str) -> Value {
    let mut commands = Commands::default();
    commands.remove_table("inet", layout_name);
    commands.finish()
}

/// What a machine may send from one of its taps.
fn guard(commands: &mut Commands, member: &Member) {
    let chain = member.tap.as_str();
    let mac = MacAddress::of(&member.tap).to_string();
    commands.ingress_chain(chain, GUARD_PRIORITY);
    let other_mac = json!({ "match": {
        "op": "!=", "left": payload("ether", "saddr"), "right": mac,
    } });
    commands.rule(chain, [other_mac, drop()]);
    match member.address {
        IpAddr::V4(address) => {
            let arp = |field, value: Value| equals(payload("arp", field), value);
            commands.rule(
                chain,
                [
                    frame_type(0x0806),
                    arp("htype", json!(1)),
                    arp("hlen", json!(6)),
                    arp("plen", json!(4)),
                    arp("saddr ether", json!(mac)),
                    // A probe for a duplicate (RFC 5227) comes from nobody.
                    arp("saddr ip", set([json!("0.0.0.0"), json!(address)])),
                    accept(),
                ],
            );
            let own = equals(payload("ip", "saddr"), json!(address));
            commands.rule(chain, [frame_type(0x0800), own, accept()]);
        }
        IpAddr::V6(address) => {
            let other_type = json!({ "match": {
                "op": "!=", "left": raw("ll", 96, 16), "right": 0x86dd,
            } });
            commands.rule(chain, [other_type, drop()]);
            let icmp = |types: &[&str]| equals(payload("icmpv6", "type"), set(types));
            commands.rule(chain, [icmp(&["nd-router-advert", "nd-redirect"]), drop()]);
            // The target of an advertisement is behind its first eight bytes (RFC 4861 section 4.4).
            let advert = icmp(&["nd-neighbor-advert"]);
            let gateway = format!("{:#034x}", LINK_LOCAL_GATEWAY.to_bits());
            let is_gateway = equals(raw("th", 64, 128), json!(gateway));
            commands.rule(chain, [advert.clone(), is_gateway, drop()]);
            let differs = |left: Value, right: String| json!({ "match": { "op": "!=", "left": left, "right": right } });
            let not_own = differs(raw("th", 64, 128), format!("{:#034x}", address.to_bits()));
            let not_local = differs(raw("th", 64, 64), format!("{LINK_LOCAL:#018x}"));
            commands.rule(chain, [advert, not_own, not_local, drop()]);
            let from = |source: Value| equals(payload("ip6", "saddr"), source);
            commands.rule(chain, [from(json!(address)), accept()]);
            let probes = icmp(&["nd-neighbor-solicit", "mld2-listener-report"]);
            commands.rule(chain, [from(json!("::")), probes, accept()]);
            let is_gateways = from(json!(LINK_LOCAL_GATEWAY));
            commands.rule(chain, [is_gateways, drop()]);
            let talk = icmp(&[
                "nd-neighbor-solicit",
                "nd-neighbor-advert",
                "mld-listener-report",
                "mld-listener-done",
                "mld2-listener-report",
            ]);
            commands.rule(chain, [from(range("fe80::", 64)), talk, accept()]);
        }
    }
    commands.rule(chain, [drop()]);
}

/// What reaches the node's end of a network.
fn input(commands: &mut Commands, layout: &Layout) {
    let (private, mycelium) = (layout.bridge(), layout.mycelium_bridge());
    let at = |device: &str| is("iifname", device);
    let limit = || json!({ "limit": { "rate": ECHO_PER_SECOND, "per": "second" } });
    let echo = || equals(payload("icmp", "type"), json!("echo-request"));
    let icmp = |types: &[&str]| equals(payload("icmpv6", "type"), set(types));
    commands.base_chain("to_node", "filter", "input", 0, "drop");
    commands.rule("to_node", [at("lo"), accept()]);
    commands.rule("to_node", [ct(&["invalid"]), drop()]);
    commands.rule("to_node", [ct(&["established", "related"]), accept()]);
    commands.rule("to_node", [at(&private), echo(), limit(), accept()]);
    let discovery = icmp(&["nd-neighbor-solicit", "nd-neighbor-advert"]);
    commands.rule("to_node", [at(&mycelium), discovery, accept()]);
    for device in [mycelium.as_str(), MYCELIUM_DEVICE] {
        commands.rule("to_node", [at(device), icmp(&["echo-request"]), limit(), accept()]);
    }
    let (first, last) = CONSOLE_PORTS;
    let consoles = || equals(payload("tcp", "dport"), json!({ "range": [first, last] }));
    let bridges = equals(meta("iifname"), set([private, mycelium]));
    commands.rule("to_node", [bridges, consoles(), accept()]);
    // Who comes from elsewhere shows a ticket, and is not one of the network's own.
    let gateway = layout.mycelium_gateway();
    let own = range(&gateway.network().to_string(), gateway.prefix_len());
    let is_other =
        json!({ "match": { "op": "!=", "left": payload("ip6", "saddr"), "right": own } });
    let to_gateway = equals(payload("ip6", "daddr"), json!(gateway.address()));
    commands.rule("to_node", [at(MYCELIUM_DEVICE), is_other, to_gateway, consoles(), accept()]);
}

/// What a network routes.
fn forward(commands: &mut Commands, layout: &Layout) {
    let (private, mycelium) = (layout.bridge(), layout.mycelium_bridge());
    let gateway = layout.mycelium_gateway();
    let prefix_of = range(&gateway.network().to_string(), gateway.prefix_len());
    let way = |from: &str, to: &str| [is("iifname", from), is("oifname", to)];
    let add = |commands: &mut Commands, way: [Value; 2], condition: Value| {
        commands.rule("through_node", way.into_iter().chain([condition, accept()]));
    };
    commands.base_chain("through_node", "filter", "forward", 0, "drop");
    commands.rule("through_node", [ct(&["invalid"]), drop()]);
    commands.rule("through_node", [ct(&["established", "related"]), accept()]);
    commands.rule("through_node", too_many());
    let mail = equals(payload("tcp", "dport"), json!(SMTP_PORT));
    let reject = json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } });
    commands.rule("through_node", [is("iifname", private.as_str()), mail, reject]);
    let own = equals(payload("ip", "saddr"), prefix(&layout.subnet.cidr()));
    add(commands, way(&private, PUBLIC), own);
    let own = equals(payload("ip6", "saddr"), prefix_of.clone());
    add(commands, way(&mycelium, MYCELIUM_DEVICE), own);
    let own = equals(payload("ip6", "daddr"), prefix_of);
    add(commands, way(MYCELIUM_DEVICE, &mycelium), own);
}

/// Counts what machines exchange with the Internet, after all that is dropped. This table is not made
/// anew, so that nothing is forgotten when another machine comes; counters of machines that are gone go.
fn count(commands: &mut Commands, layout: &Layout, counters: &[Counter]) {
    let private = layout.bridge();
    commands.keep_table("inet", COUNTED);
    commands.base_chain("count", "filter", "forward", 10, "accept");
    commands.command("flush", "chain", "count");
    for member in layout.members.iter().filter(|member| member.address.is_ipv4()) {
        let address = |field| equals(payload("ip", field), json!(member.address));
        let counter = json!({ "counter": member.tap });
        commands.command("add", "counter", &member.tap);
        let out = [is("iifname", &private), is("oifname", PUBLIC)];
        let back = [is("iifname", PUBLIC), is("oifname", &private)];
        commands.rule("count", out.into_iter().chain([address("saddr"), counter.clone()]));
        commands.rule("count", back.into_iter().chain([address("daddr"), counter]));
    }
    for counter in counters {
        if layout.members.iter().all(|member| member.tap != counter.name) {
            commands.command("delete", "counter", &counter.name);
        }
    }
}

/// The table of counters.
const COUNTED: &str = "counted";

/// Bytes that a machine exchanged with the Internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counter {
    /// The name of its tap.
    pub(super) name: String,
    /// Both ways.
    pub(super) bytes: u64,
}

/// Finds counters in what `nft` lists.
pub(super) fn read_counters(listed: &Value) -> Vec<Counter> {
    let list = listed.get("nftables").and_then(Value::as_array);
    let read = |entry: &Value| {
        let counter = entry.get("counter")?;
        let text = |key: &str| counter.get(key).and_then(Value::as_str);
        let is_ours = text("table") == Some(COUNTED) && text("family") == Some("inet");
        let bytes = counter.get("bytes").and_then(Value::as_u64)?;
        is_ours.then_some(Counter { name: text("name")?.to_owned(), bytes })
    };
    list.into_iter().flatten().filter_map(read).collect()
}

/// Link-local prefixes have 64 bits (RFC 4291 section 2.5.6).
const LINK_LOCAL: u64 = 0xfe80_0000_0000_0000;

/// Commands in the order in which they are given.
#[derive(Default)]
struct Commands {
    list: Vec<Value>,
    family: String,
    table: String,
}

impl Commands {
    /// Makes a table anew. To remove one that is not there is an error, so it is made first.
    fn replace_table(&mut self, family: &str, name: &str) {
        self.remove_table(family, name);
        self.list.push(json!({ "add": { "table": { "family": family, "name": name } } }));
    }

    fn remove_table(&mut self, family: &str, name: &str) {
        (self.family, self.table) = (family.to_owned(), name.to_owned());
        self.list.push(json!({ "add": { "table": { "family": family, "name": name } } }));
        self.list.push(json!({ "delete": { "table": { "family": family, "name": name } } }));
    }

    /// Goes on in a table that stays as it is, or makes it.
    fn keep_table(&mut self, family: &str, name: &str) {
        (self.family, self.table) = (family.to_owned(), name.to_owned());
        self.list.push(json!({ "add": { "table": { "family": family, "name": name } } }));
    }

    /// Any other command on something in the table.
    fn command(&mut self, verb: &str, kind: &str, name: &str) {
        let (family, table) = (&self.family, &self.table);
        let what = json!({ "family": family, "table": table, "name": name });
        self.list.push(json!({ verb: { kind: what } }));
    }

    fn base_chain(&mut self, name: &str, kind: &str, hook: &str, priority: i32, policy: &str) {
        let (family, table) = (&self.family, &self.table);
        self.list.push(json!({ "add": { "chain": {
            "family": family, "table": table, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": policy,
        } } }));
    }

    /// A chain for what comes from a device, named by it. What no rule accepts is dropped.
    fn ingress_chain(&mut self, device: &str, priority: i32) {
        let (family, table) = (&self.family, &self.table);
        self.list.push(json!({ "add": { "chain": {
            "family": family, "table": table, "name": device, "type": "filter",
            "hook": "ingress", "dev": device, "prio": priority, "policy": "drop",
        } } }));
    }

    fn rule(&mut self, chain: &str, statements: impl IntoIterator<Item = Value>) {
        let (family, table) = (&self.family, &self.table);
        let statements: Vec<Value> = statements.into_iter().collect();
        self.list.push(json!({ "add": { "rule": {
            "family": family, "table": table, "chain": chain, "expr": statements,
        } } }));
    }

    fn finish(self) -> Value {
        json!({ "nftables": self.list })
    }
}

fn accept() -> Value {
    json!({ "accept": null })
}

fn drop() -> Value {
    json!({ "drop": null })
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

/// Bits of a packet, from the beginning of its link layer or of its transport.
fn raw(base: &str, offset: u32, len: u32) -> Value {
    json!({ "payload": { "base": base, "offset": offset, "len": len } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn equals(left: Value, right: Value) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

fn is(key: &str, name: impl Into<String>) -> Value {
    equals(meta(key), json!(name.into()))
}

fn frame_type(number: u16) -> Value {
    equals(raw("ll", 96, 16), json!(number))
}

fn ct(states: &[&str]) -> Value {
    json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": states } })
}

/// Drops what would begin one connection too many.
fn too_many() -> Vec<Value> {
    let count = json!({ "ct count": { "val": CONNECTION_COUNT_MAX, "inv": true } });
    vec![ct(&["new"]), count, drop()]
}

fn set<T: serde::Serialize>(elements: impl IntoIterator<Item = T>) -> Value {
    let elements: Vec<Value> = elements.into_iter().map(|element| json!(element)).collect();
    json!({ "set": elements })
}

fn prefix(network: &Cidr) -> Value {
    range(&network.network().to_string(), network.prefix_len())
}

fn range(first: &str, prefix_len: u8) -> Value {
    json!({ "prefix": { "addr": first, "len": prefix_len } })
}

#[cfg(test)]
mod tests;
