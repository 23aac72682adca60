//! Who holds the ports that a node wants.
//!
//! The kernel lists sockets in `/proc/net`, each with a number by which it is found among the descriptors
//! of processes, as far as the user may see them.

use super::Finding;
use crate::config::Config;

/// A port that is wanted.
struct Port {
    protocol: &'static str,
    number: u16,
    purpose: &'static str,
    flag: &'static str,
    /// A node does without.
    is_optional: bool,
}

/// A process.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Holder {
    pid: u32,
    name: String,
}

/// State of a TCP socket that listens, and of a UDP socket that is bound, in `/proc/net`.
const TCP_LISTENS: &str = "0A";
const UDP_BOUND: &str = "07";
/// Name of our program.
const OWN_NAME: &str = "mycelium";

pub(super) fn examine(config: &Config, node_runs: bool) -> Vec<Finding> {
    wanted(config).iter().map(|port| verdict(port, holder(port), node_runs)).collect()
}

fn wanted(config: &Config) -> Vec<Port> {
    let port = |protocol, number: Option<u16>, purpose, flag, is_optional| {
        number.map(|number| Port { protocol, number, purpose, flag, is_optional })
    };
    let api = config.api_address.map(|api| api.address.port());
    let rpc = config.jsonrpc_address.map(|rpc| rpc.address.port());
    let links = config.udp_listen_port.map(|udp| udp.port);
    let discovery = config.peer_discovery.as_ref().map(|(port, _)| *port);
    let ports = [
        port("tcp", config.tcp_listen_port, "TCP peers", "--tcp-listen-port", false),
        port("udp", config.quic_listen_port, "QUIC peers", "--quic-listen-port", false),
        // Any other port will do where nobody chose one.
        port("udp", links, "UDP peers", "--udp-listen-port", true),
        port("tcp", config.ws_listen_port, "WebSocket peers", "--ws-listen-port", false),
        port("tcp", api, "HTTP API", "--api-addr", true),
        port("tcp", rpc, "JSON-RPC", "--jsonrpc-addr", true),
        port("udp", discovery, "peer discovery", "--peer-discovery-port", true),
    ];
    ports.into_iter().flatten().collect()
}

fn verdict(port: &Port, holder: Option<Option<Holder>>, node_runs: bool) -> Finding {
    const CHECK: &str = "port";
    let Port { protocol, number, purpose, flag, is_optional } = port;
    let shown = format!("{number}/{protocol} for {purpose}");
    let Some(holder) = holder else {
        if node_runs {
            let remedy = format!("does the node run with another {flag}?");
            return Finding::hint(CHECK, format!("{shown}: nobody listens"), remedy);
        }
        return Finding::good(CHECK, format!("{shown}: free"));
    };
    let is_ours = holder.as_ref().is_none_or(|holder| holder.name == OWN_NAME);
    let who = holder.map_or_else(
        || "a process that this user can't see".to_owned(),
        |holder| format!("{} (process {})", holder.name, holder.pid),
    );
    let said = format!("{shown}: held by {who}");
    if node_runs && is_ours {
        return Finding::good(CHECK, said);
    }
    let remedy = if is_ours {
        format!("another node runs: stop it, or choose another {flag}")
    } else {
        format!("choose another {flag}, or stop that program")
    };
    if *is_optional {
        return Finding::hint(CHECK, said, remedy);
    }
    Finding::problem(CHECK, said, remedy)
}

/// Who holds a port, if anybody does; and which process that is, if this user may see it.
fn holder(port: &Port) -> Option<Option<Holder>> {
    let state = if port.protocol == "tcp" { TCP_LISTENS } else { UDP_BOUND };
    let tables = [format!("/proc/net/{}", port.protocol), format!("/proc/net/{}6", port.protocol)];
    let sockets = tables.iter().filter_map(|table| {
        // Without IPv6 there is only one.
        socket_at(&std::fs::read_to_string(table).ok()?, port.number, state)
    });
    let socket = sockets.min()?;
    Some(process_with(socket))
}

/// Number of the socket that has this port and state in a table of `/proc/net`.
fn socket_at(table: &str, port: u16, state: &str) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(local_port, 16).ok()? == port && *fields.get(3)? == state;
        if is_it { fields.get(9)?.parse().ok() } else { None }
    })
}

fn process_with(socket: u64) -> Option<Holder> {
    let wanted = format!("socket:[{socket}]");
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let has_it = files.flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        });
        if has_it {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Holder { pid, name: name.trim().to_owned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::Verdict;
    use super::*;

    fn port(number: u16, is_optional: bool) -> Port {
        let (protocol, purpose, flag) = ("tcp", "TCP peers", "--tcp-listen-port");
        Port { protocol, number, purpose, flag, is_optional }
    }

    #[test]
    fn sockets_are_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                       0: 0100007F:25B3 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 7 1\n\
                       1: 0100007F:25B3 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8 1\n";
        assert_eq!(socket_at(table, 9651, TCP_LISTENS), Some(8));
        assert_eq!(socket_at(table, 9652, TCP_LISTENS), None);
        assert_eq!(socket_at("junk\n1 2 3\n", 9651, TCP_LISTENS), None);
    }

    #[test]
    fn who_listens_here_is_this_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        let holder = holder(&port(number, false)).unwrap().unwrap();
        assert_eq!(holder.pid, std::process::id());
        drop(listener);
        assert_eq!(super::holder(&port(number, false)), None);
    }

    #[test]
    fn what_it_means_depends_on_who_it_is() {
        let holder = |name: &str| Some(Some(Holder { pid: 1, name: name.to_owned() }));
        let verdict = |holder, runs, optional| verdict(&port(9651, optional), holder, runs).verdict;
        assert_eq!(verdict(None, false, false), Verdict::Good);
        assert_eq!(verdict(None, true, false), Verdict::Hint);
        assert_eq!(verdict(holder("mycelium"), true, false), Verdict::Good);
        assert_eq!(verdict(holder("mycelium"), false, false), Verdict::Problem);
        assert_eq!(verdict(holder("nginx"), true, false), Verdict::Problem);
        assert_eq!(verdict(holder("nginx"), false, true), Verdict::Hint);
    }
}
