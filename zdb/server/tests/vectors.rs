//! Conversations recorded from the existing server (`ci/vectors/zdb.json`): every one of class `spec`
//! must go the same way here, with the program itself and over real connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod common;

use std::collections::HashMap;

use common::{Client, Received, Server};
use serde_json::Value;
use sha1::{Digest, Sha1};
use zdb_resp::write;

/// What was saved in a conversation.
type Saved = HashMap<String, Vec<u8>>;

#[test]
fn recorded_conversations_go_the_same_way() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ci/vectors/zdb.json");
    let all: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let spec: Vec<&Value> = all.iter().filter(|vector| vector["class"] == "spec").collect();
    assert!(spec.len() >= 60, "vectors are missing");
    let mut step_count = 0;
    let mut failures = Vec::new();
    for vector in spec {
        step_count += run(vector, &mut failures);
    }
    assert!(step_count >= 500, "only {step_count} steps were compared");
    assert!(failures.is_empty(), "{} of {step_count}:\n{}", failures.len(), failures.join("\n"));
}

/// Runs a conversation; how many replies were compared.
fn run(vector: &Value, failures: &mut Vec<String>) -> usize {
    let arguments: Vec<&str> =
        vector["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let mut server = Server::start(&arguments);
    let mut clients: HashMap<u64, Client> = HashMap::new();
    let mut saved = Saved::new();
    let mut count = 0;
    for step in vector["steps"].as_array().unwrap() {
        if let Some(how) = step["restart"].as_str() {
            clients.clear();
            server.restart(how == "kill");
            continue;
        }
        let client = step["conn"].as_u64().unwrap_or(0);
        let client = clients.entry(client).or_insert_with(|| server.connect());
        if let Some(words) = step["send"].as_array() {
            let words: Vec<Vec<u8>> = words.iter().map(|word| argument(word, &saved)).collect();
            let mut bytes = Vec::new();
            write::request(&mut bytes, &words);
            client.send(&bytes);
        } else if let Some(hex) = step["raw"].as_str() {
            client.send(&from_hex(hex));
        }
        if step["noread"] == true {
            continue;
        }
        let expected = match step["replies"].as_array() {
            Some(replies) => replies.clone(),
            None => vec![step["reply"].clone()],
        };
        for (index, expected) in expected.iter().enumerate() {
            let received = client.receive();
            if index == 0 {
                save(step, &received, &mut saved);
            }
            count += 1;
            if !matches(expected, &received, &saved) {
                let text: String = format!("{received:?}").chars().take(300).collect();
                let asked: String = step["send"].to_string().chars().take(200).collect();
                failures.push(format!("{}: {asked}: {expected} but {text}", vector["name"]));
            }
        }
    }
    assert!(server.is_alive(), "the server died in {}", vector["name"]);
    count
}

fn argument(word: &Value, saved: &Saved) -> Vec<u8> {
    if let Some(text) = word.as_str() {
        // Latin-1, as the recorder wrote it.
        return text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    }
    if let Some(hex) = word["hex"].as_str() {
        return from_hex(hex);
    }
    if let Some(fill) = word["fill"].as_array() {
        let count = usize::try_from(fill[1].as_u64().unwrap()).unwrap();
        return fill[0].as_str().unwrap().as_bytes().repeat(count);
    }
    if let Some(name) = word["var"].as_str() {
        return saved[name].clone();
    }
    let parts = word["sha1"].as_array().expect("no other kind of argument is known");
    let challenge = &saved[parts[0].as_str().unwrap()];
    let hash = Sha1::new().chain_update(challenge).chain_update(b":");
    hex(&hash.chain_update(parts[1].as_str().unwrap()).finalize()).into_bytes()
}

fn save(step: &Value, received: &Received, saved: &mut Saved) {
    for (name, path) in step["save"].as_object().into_iter().flatten() {
        let mut value = received;
        for index in path.as_array().unwrap() {
            let Received::Array(elements) = value else { return };
            value = &elements[usize::try_from(index.as_u64().unwrap()).unwrap()];
        }
        saved.insert(name.clone(), bytes(value));
    }
}

fn bytes(received: &Received) -> Vec<u8> {
    match received {
        Received::Simple(text) | Received::Error(text) => text.as_bytes().to_vec(),
        Received::Bulk(bytes) => bytes.clone(),
        other => format!("{other:?}").into_bytes(),
    }
}

fn matches(expected: &Value, received: &Received, saved: &Saved) -> bool {
    let kind = expected["t"].as_str().unwrap();
    let actual = match received {
        Received::Simple(_) => "simple",
        Received::Error(_) => "error",
        Received::Integer(_) => "int",
        Received::Bulk(_) => "bulk",
        Received::Nil => "nil",
        Received::Array(_) => "array",
        Received::Closed => "closed",
        Received::Nothing => "none",
    };
    if kind == "len" {
        return actual == "bulk" && bytes(received).len() as u64 == expected["v"].as_u64().unwrap();
    }
    if kind != actual {
        return false;
    }
    if let Some(pattern) = expected["re"].as_str() {
        let text = match received {
            Received::Integer(number) => number.to_string().into_bytes(),
            other => bytes(other),
        };
        return Pattern::parse(pattern).is_match(&text);
    }
    if let Some(name) = expected["eqvar"].as_str() {
        return bytes(received) == saved[name];
    }
    match received {
        Received::Array(elements) => {
            let expected = expected["v"].as_array().unwrap();
            expected.len() == elements.len()
                && expected.iter().zip(elements).all(|(one, other)| matches(one, other, saved))
        }
        Received::Integer(number) => expected["v"].as_i64() == Some(*number),
        Received::Bulk(_) if !expected["hex"].is_null() => {
            bytes(received) == from_hex(expected["hex"].as_str().unwrap())
        }
        Received::Bulk(bytes) if !expected["sha1"].is_null() => {
            expected["len"].as_u64() == Some(bytes.len() as u64)
                && expected["sha1"] == hex(&Sha1::digest(bytes))
        }
        Received::Nil | Received::Closed | Received::Nothing => true,
        other => expected["v"].as_str().map(str::as_bytes) == Some(&bytes(other)[..]),
    }
}

fn from_hex(digits: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.as_bytes().chunks(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As much of regular expressions as the recordings use: characters, `.`, classes with ranges, and
/// `*`, `+`, `{n}`, `{n,m}` behind them.
struct Pattern(Vec<Item>);

struct Item {
    /// Ranges of bytes, both ends included; none is any byte.
    ranges: Vec<(u8, u8)>,
    least: usize,
    most: usize,
}

impl Pattern {
    fn parse(text: &str) -> Self {
        let mut rest = text.as_bytes();
        let mut items = Vec::new();
        while let Some((first, left)) = rest.split_first() {
            rest = left;
            let ranges = match first {
                b'.' => Vec::new(),
                b'\\' => {
                    let (escaped, left) = rest.split_first().unwrap();
                    rest = left;
                    let byte = if *escaped == b'n' { b'\n' } else { *escaped };
                    vec![(byte, byte)]
                }
                b'[' => {
                    let end = rest.iter().position(|byte| *byte == b']').unwrap();
                    let (class, left) = rest.split_at(end);
                    rest = &left[1..];
                    ranges(class)
                }
                byte => vec![(*byte, *byte)],
            };
            let (least, most) = match rest.first() {
                Some(b'*') => (0, usize::MAX),
                Some(b'+') => (1, usize::MAX),
                Some(b'{') => {
                    let end = rest.iter().position(|byte| *byte == b'}').unwrap();
                    let bounds = std::str::from_utf8(&rest[1..end]).unwrap();
                    rest = &rest[end..];
                    let (least, most) = bounds.split_once(',').unwrap_or((bounds, bounds));
                    (least.parse().unwrap(), most.parse().unwrap())
                }
                _ => {
                    items.push(Item { ranges, least: 1, most: 1 });
                    continue;
                }
            };
            rest = &rest[1..];
            items.push(Item { ranges, least, most });
        }
        Self(items)
    }

    /// Whether it matches all of `text`.
    fn is_match(&self, text: &[u8]) -> bool {
        // Positions in the text that the items so far can end at.
        let mut ends = std::collections::BTreeSet::from([0]);
        for item in &self.0 {
            let mut next = std::collections::BTreeSet::new();
            for begin in ends {
                let mut end = begin;
                let mut count = 0;
                loop {
                    if count >= item.least {
                        next.insert(end);
                    }
                    let fits = text.get(end).is_some_and(|byte| item.fits(*byte));
                    if !fits || count == item.most {
                        break;
                    }
                    end += 1;
                    count += 1;
                }
            }
            ends = next;
        }
        ends.contains(&text.len())
    }
}

impl Item {
    fn fits(&self, byte: u8) -> bool {
        self.ranges.is_empty()
            || self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte))
    }
}

fn ranges(class: &[u8]) -> Vec<(u8, u8)> {
    let mut ranges = Vec::new();
    let mut rest = class;
    while let Some((low, left)) = rest.split_first() {
        match left {
            [b'-', high, left @ ..] => {
                ranges.push((*low, *high));
                rest = left;
            }
            _ => {
                ranges.push((*low, *low));
                rest = left;
            }
        }
    }
    ranges
}

#[test]
fn patterns_match_whole_texts() {
    for (pattern, text, is_match) in [
        ("a[0-9]+b", "a12b", true),
        ("a[0-9]+b", "ab", false),
        (".*mode: seq\\n.*", "x\nmode: seq\nrest", true),
        ("1[0-9]{9}", "1234567890", true),
        ("1[0-9]{9}", "12345678901", false),
        ("[0-9]{1,3}", "1234", false),
        ("0-db \\(zdb\\)", "0-db (zdb)", true),
    ] {
        assert_eq!(Pattern::parse(pattern).is_match(text.as_bytes()), is_match, "{pattern} {text}");
    }
}
