//! Rules as they are loaded, compared with files that people read. `UPDATE_RULES=1` writes them anew.

use std::net::Ipv4Addr;
use std::path::Path;

use super::super::layout::tests::example;
use super::*;

/// One command a line, so that a change shows as one.
fn lines(commands: &Value) -> String {
    let list = commands["nftables"].as_array().unwrap();
    list.iter().map(|command| format!("{command}\n")).collect()
}

fn compare(name: &str, commands: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/network/rules").join(name);
    let now = lines(commands);
    if std::env::var_os("UPDATE_RULES").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    for (now, expected) in now.lines().zip(expected.lines()) {
        assert_eq!(now, expected, "{name}");
    }
    assert_eq!(now, expected, "{name}");
}

#[test]
fn rules_are_those_that_were_reviewed() {
    let layout = example();
    let reachable = [Cidr::parse("192.168.7.0/24").unwrap()];
    let gone = Counter { name: "b-gone".to_owned(), bytes: 7 };
    let stays = Counter { name: layout.members[0].tap.clone(), bytes: 8 };
    compare("inside.txt", &inside(&layout, &[gone, stays]));
    let lease = Ipv4Addr::new(100, 127, 3, 4);
    compare("outside.txt", &outside(&layout, lease, &[9651, 9652], &reachable));
}

#[test]
fn every_chain_of_a_machine_ends_in_a_drop() {
    let text = lines(&inside(&example(), &[]));
    for member in example().members {
        let chain = format!("\"chain\":\"{}\"", member.tap);
        let last = text.lines().rfind(|line| line.contains(&chain)).unwrap();
        assert!(last.contains("[{\"drop\":null}]"), "{last}");
        let policy = format!("\"name\":\"{}\",\"policy\":\"drop\"", member.tap);
        assert!(text.contains(&policy));
    }
}

#[test]
fn counters_are_found_among_other_things() {
    let listed = json!({ "nftables": [
        { "metainfo": { "version": "1.0.6" } },
        { "counter": { "family": "inet", "name": "b-1", "table": "counted", "packets": 1, "bytes": 84 } },
        { "counter": { "family": "inet", "name": "b-2", "table": "other", "packets": 1, "bytes": 84 } },
        { "counter": { "family": "inet", "name": "b-3", "table": "counted" } },
        { "counter": 7 },
    ] });
    assert_eq!(read_counters(&listed), [Counter { name: "b-1".to_owned(), bytes: 84 }]);
    assert_eq!(read_counters(&json!([])), []);
}

#[test]
fn without_ports_nothing_of_the_node_is_reached() {
    let text = lines(&outside(&example(), Ipv4Addr::new(100, 127, 3, 4), &[], &[]));
    let accepted =
        text.lines().filter(|line| line.contains("to_node") && line.contains("accept\":"));
    // What the node itself began.
    assert_eq!(accepted.filter(|line| line.contains("iifname")).count(), 1);
}
