//! The file that says who may send messages about what (`--topic-config`), in TOML.
//!
//! ```toml
//! default = "Reject"                       # what holds for topics that are not named; else "Accept"
//!
//! [chat]                                   # a topic
//! subnets = ["400:1:2:3::/64"]             # whose nodes may send it
//! forward_socket = "/run/chat.sock"        # who takes its messages, in place of the inbox
//! ```

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use mycelium_wire::identity::Subnet;
use serde::Deserialize;

use crate::config::ConfigError;
use crate::messages::Topics;

/// One entry of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Action(String),
    Subnets(Vec<String>),
    Topic(Topic),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Topic {
    #[serde(default)]
    subnets: Vec<String>,
    forward_socket: Option<PathBuf>,
}

/// Reads the file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Topics> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    parse(&text).with_context(|| format!("topic configuration {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Topics> {
    let entries: BTreeMap<String, Entry> = toml::from_str(text)?;
    let mut topics = Topics::default();
    for (name, entry) in entries {
        let topic = match entry {
            Entry::Action(action) if name == "default" => {
                topics.set_default(accepts(&action)?);
                continue;
            }
            Entry::Action(action) => bail!("topic {name:?}: {action:?}, expected a table"),
            Entry::Subnets(subnets) => Topic { subnets, forward_socket: None },
            Entry::Topic(topic) => topic,
        };
        add(&mut topics, &name, topic).with_context(|| format!("topic {name:?}"))?;
    }
    Ok(topics)
}

fn accepts(action: &str) -> anyhow::Result<bool> {
    match action {
        "Accept" => Ok(true),
        "Reject" => Ok(false),
        _ => bail!("default: {action:?}, expected \"Accept\" or \"Reject\""),
    }
}

fn add(topics: &mut Topics, name: &str, topic: Topic) -> anyhow::Result<()> {
    topics.add(name.as_bytes().to_vec())?;
    for subnet in topic.subnets {
        // A single address stands for itself.
        let parsed = match subnet.parse::<Ipv6Addr>() {
            Ok(address) => Subnet::new(address, 128)?,
            Err(_) => subnet.parse().with_context(|| format!("subnet {subnet:?}"))?,
        };
        topics.add_source(name.as_bytes(), parsed)?;
    }
    topics.set_forward(name.as_bytes(), topic.forward_socket)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_topic_and_the_default_are_read() {
        let text = "default = \"Reject\"\nold = [\"400::1\"]\n[chat]\n\
                    subnets = [\"400:1::/64\"]\nforward_socket = \"/run/chat\"\n";
        let topics = parse(text).unwrap();
        assert!(!topics.accepts_by_default());
        assert_eq!(topics.topics().collect::<Vec<_>>(), [&b"chat"[..], b"old"]);
        assert_eq!(topics.forward(b"chat").unwrap(), Some(Path::new("/run/chat")));
        let sources = topics.sources(b"old").unwrap();
        assert_eq!(sources.iter().next().unwrap().to_string(), "400::1/128");
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for text in [
            "default = \"Maybe\"",
            "chat = \"Accept\"",
            "[chat]\nsubnet = []",
            "[chat]\nsubnets = [\"400::/129\"]",
            "[chat]\nsubnets = 1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
