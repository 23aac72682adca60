//! Where a legacy image says its blocks are: `router.yaml` and the `backend` metadata.
//!
//! ```text
//! pools:
//!   hub:
//!     00:7F: zdb://host:9900
//!     80:FF: ardb://other:9900
//! lookup: [hub]
//! ```
//!
//! A range is a hex prefix (`AB` means all that begins so) or two prefixes of one length with a
//! colon. Our routes know first bytes only: a longer prefix is widened to its first byte, which can
//! only cost a fruitless question, since every block is verified. Pools count in the order of
//! `lookup`; `cache` names where upstream's reader keeps copies, which is not our affair.

use saphyr_parser::{Event, Parser};
use serde_json::Value;

use super::super::error::Fault;
use super::super::{ROUTE_COUNT_MAX, Route};
use crate::store::url::{StoreUrl, ZDB_PORT};

/// Largest `router.yaml`, in bytes.
pub(super) const ROUTER_SIZE_MAX: u64 = 1 << 20;
/// Deepest nesting; the format needs 3.
const DEPTH_MAX: usize = 8;

/// Routes of a `router.yaml`.
pub(super) fn routes(text: &[u8]) -> Result<Vec<Route>, Fault> {
    parse(text).map_err(|rule| Fault::File(format!("router.yaml: {rule}")))
}

/// The route that the `backend` metadata describes: one ZDB for all blocks.
pub(super) fn backend(text: &str) -> Result<Route, Fault> {
    let fault = |rule: &str| Fault::File(format!("metadata \"backend\": {rule}"));
    let value: Value = serde_json::from_str(text).map_err(|_| fault("must be JSON"))?;
    let field =
        |name: &str| value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let url = if let Some(socket) = field("socket") {
        StoreUrl::parse(&format!("zdb://{socket}"))
    } else {
        let host = field("host").ok_or_else(|| fault("must have a host or a socket"))?;
        let port = match value.get("port") {
            None | Some(Value::Null) => Some(ZDB_PORT),
            Some(Value::String(text)) => text.parse().ok(),
            Some(port) => port.as_u64().and_then(|port| u16::try_from(port).ok()),
        };
        let port = port.ok_or_else(|| fault("port must be from 1 to 65535"))?;
        // A connection is in the namespace "default" before it selects another.
        let namespace = field("namespace").filter(|name| *name != "default");
        StoreUrl::zdb(host, port, namespace, field("password"))
    };
    let url = url.map_err(|error| fault(&error.to_string()))?;
    Ok(Route { start: 0x00, end: 0xff, url })
}

/// What the subset of YAML can hold.
enum Node {
    Scalar(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

fn parse(text: &[u8]) -> Result<Vec<Route>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "must be UTF-8")?;
    let document = document(text)?;
    let (mut pools, mut lookup) = (Vec::new(), Vec::new());
    let Node::Map(fields) = document else { return Err("must be a map".to_owned()) };
    for (name, node) in fields {
        match (name.as_str(), node) {
            ("pools", Node::Map(map)) => pools = map,
            ("lookup", Node::List(list)) => lookup = list,
            ("pools", _) => return Err("pools must be a map".to_owned()),
            ("lookup", _) => return Err("lookup must be a list".to_owned()),
            _ => {}
        }
    }
    let mut routes = Vec::new();
    for name in lookup {
        let Node::Scalar(name) = name else { return Err("lookup must list names".to_owned()) };
        let pool = pools.iter().find(|(pool, _)| *pool == name).map(|(_, pool)| pool);
        let Some(Node::Map(ranges)) = pool else {
            return Err(format!("lookup names pool {name:?}, which is no map in pools"));
        };
        for (text, url) in ranges {
            let Node::Scalar(url) = url else { return Err(format!("range {text:?}: no URL")) };
            let (start, end) = range(text).ok_or_else(|| {
                format!("range {text:?}: must be a hex prefix, or two of one length with a colon")
            })?;
            let url = StoreUrl::parse(url).map_err(|error| error.to_string())?;
            if routes.len() >= ROUTE_COUNT_MAX {
                return Err(format!("more than {ROUTE_COUNT_MAX} routes"));
            }
            routes.push(Route { start, end, url });
        }
    }
    Ok(routes)
}

/// First bytes that a range covers.
fn range(text: &str) -> Option<(u8, u8)> {
    let (start, end) = text.split_once(':').unwrap_or((text, text));
    if start.len() != end.len() {
        return None;
    }
    let (start, end) = (first_byte(start, '0')?, first_byte(end, 'f')?);
    (start <= end).then_some((start, end))
}

/// First byte of a hex prefix; `fill` stands for a second digit that is not there.
fn first_byte(prefix: &str, fill: char) -> Option<u8> {
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let digits: String = prefix.chars().chain([fill]).take(2).collect();
    u8::from_str_radix(&digits, 16).ok()
}

/// The one document of `text`. No aliases: they are how YAML explodes.
fn document(text: &str) -> Result<Node, String> {
    let mut stack: Vec<(Node, Option<String>)> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| format!("not YAML: {error}"))?;
        let node = match event {
            Event::Scalar(text, ..) => Node::Scalar(text.into_owned()),
            Event::SequenceStart(..) | Event::MappingStart(..) if stack.len() >= DEPTH_MAX => {
                return Err(format!("more than {DEPTH_MAX} levels deep"));
            }
            Event::SequenceStart(..) => {
                stack.push((Node::List(Vec::new()), None));
                continue;
            }
            Event::MappingStart(..) => {
                stack.push((Node::Map(Vec::new()), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some((node, None)) => node,
                _ => return Err("a key without a value".to_owned()),
            },
            Event::Alias(_) => return Err("aliases are not allowed".to_owned()),
            _ => continue,
        };
        match stack.last_mut() {
            None => return Ok(node),
            Some((Node::List(list), _)) => list.push(node),
            Some((Node::Map(map), key)) => match (key.take(), node) {
                (Some(name), node) => map.push((name, node)),
                (None, Node::Scalar(name)) => *key = Some(name),
                (None, _) => return Err("keys must be plain".to_owned()),
            },
            Some((Node::Scalar(_), _)) => return Err("a scalar with contents".to_owned()),
        }
    }
    Err("empty".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_in_the_order_of_lookup_with_ranges_of_any_length() {
        let text = b"pools:\n  a:\n    00:7F: zdb://one:1\n    'C': ardb://two:2\n    abcd: redis://three:3\n  b:\n    00:FF: zdb://four:4\n  unused:\n    00:FF: zdb://five:5\nlookup:\n  - b\n  - a\ncache:\n  - unused\n";
        let found: Vec<_> = routes(text)
            .unwrap()
            .iter()
            .map(|route| (route.start, route.end, route.url.to_string()))
            .collect();
        let expected = [
            (0x00, 0xff, "zdb://four:4"),
            (0x00, 0x7f, "zdb://one:1"),
            (0xc0, 0xcf, "zdb://two:2"),
            (0xab, 0xab, "zdb://three:3"),
        ];
        assert_eq!(found, expected.map(|(start, end, url)| (start, end, url.to_owned())));
    }

    #[test]
    fn what_is_no_router_is_refused() {
        for text in [
            &b""[..],
            b"\xff",
            b"- a",
            b"pools: [a]",
            b"lookup: [a]",
            b"pools: {a: {'0:00': 'zdb://h:1'}}\nlookup: [a]",
            b"pools: {a: {'xy': 'zdb://h:1'}}\nlookup: [a]",
            b"pools: {a: {'FF:00': 'zdb://h:1'}}\nlookup: [a]",
            b"pools: {a: {'00': 'gopher://h:1'}}\nlookup: [a]",
            b"pools: &x {a: *x}\nlookup: [a]",
            b"[[[[[[[[[[[[[[[[[[[[",
            b"pools: {a: {",
        ] {
            assert!(routes(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn backends() {
        let url = |text: &str| backend(text).map(|route| route.url.to_stored(false));
        let plain = r#"{"namespace": "default", "host": "hub.example.invalid", "port": 9900}"#;
        assert_eq!(url(plain).unwrap(), "zdb://hub.example.invalid:9900");
        let named = r#"{"host": "h", "port": "1234", "namespace": "n", "password": "p"}"#;
        assert_eq!(url(named).unwrap(), "zdb://:p@h:1234/n");
        assert!(url(r#"{"socket": "/run/zdb.sock"}"#).is_ok());
        for bad in ["", "[]", "{}", r#"{"host": "h", "port": 70000}"#, r#"{"host": "a/b"}"#] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}
