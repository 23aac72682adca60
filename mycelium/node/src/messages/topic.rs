//! Who may send what: topics with rules of their own, and what holds for the others.
//!
//! A rule names the subnets whose nodes may send messages of its topic, and perhaps a socket that
//! takes them in place of the inbox. All other topics, and messages without one, are accepted or not
//! as the default says.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use mycelium_wire::identity::Subnet;
use mycelium_wire::message::TOPIC_SIZE_MAX;

use super::limits::TOPIC_COUNT_MAX;

/// The rules of all topics.
#[derive(Debug)]
pub struct Topics {
    accepts_by_default: bool,
    rules: BTreeMap<Vec<u8>, Rule>,
}

/// The rule of one topic.
#[derive(Debug, Default)]
struct Rule {
    sources: BTreeSet<Subnet>,
    forward: Option<PathBuf>,
}

/// Why rules stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The topic has no rule.
    #[error("the topic has no rule of its own")]
    Unknown,
    /// The topic can't be one.
    #[error("a topic has at most {TOPIC_SIZE_MAX} bytes, not {0}")]
    TooLong(usize),
    /// There is no room for more.
    #[error("there are {TOPIC_COUNT_MAX} rules already")]
    TooMany,
}

impl Default for Topics {
    fn default() -> Self {
        Self { accepts_by_default: true, rules: BTreeMap::new() }
    }
}

impl Topics {
    /// Whether messages of topics without a rule are accepted.
    #[must_use]
    pub const fn accepts_by_default(&self) -> bool {
        self.accepts_by_default
    }

    /// Decides about topics without a rule.
    pub const fn set_default(&mut self, accept: bool) {
        self.accepts_by_default = accept;
    }

    /// Topics with a rule, in order.
    pub fn topics(&self) -> impl Iterator<Item = &[u8]> {
        self.rules.keys().map(Vec::as_slice)
    }

    /// Gives a topic a rule, by which nobody may send at first; one that it has is kept.
    ///
    /// # Errors
    /// When it is too long, or there are too many.
    pub fn add(&mut self, topic: Vec<u8>) -> Result<(), TopicError> {
        if topic.len() > TOPIC_SIZE_MAX {
            return Err(TopicError::TooLong(topic.len()));
        }
        let is_full = self.rules.len() >= TOPIC_COUNT_MAX;
        if let Entry::Vacant(place) = self.rules.entry(topic) {
            if is_full {
                return Err(TopicError::TooMany);
            }
            place.insert(Rule::default());
        }
        Ok(())
    }

    /// Takes a topic's rule away.
    ///
    /// # Errors
    /// When it has none.
    pub fn remove(&mut self, topic: &[u8]) -> Result<(), TopicError> {
        self.rules.remove(topic).map(drop).ok_or(TopicError::Unknown)
    }

    /// Subnets whose nodes may send messages of a topic.
    ///
    /// # Errors
    /// When the topic has no rule.
    pub fn sources(&self, topic: &[u8]) -> Result<&BTreeSet<Subnet>, TopicError> {
        self.rule(topic).map(|rule| &rule.sources)
    }

    /// Lets a subnet's nodes send messages of a topic, which gets a rule if it has none.
    ///
    /// # Errors
    /// When the topic is too long, or there are too many rules or subnets.
    pub fn add_source(&mut self, topic: &[u8], subnet: Subnet) -> Result<(), TopicError> {
        self.add(topic.to_vec())?;
        let sources = &mut self.rule_mut(topic)?.sources;
        if sources.len() >= TOPIC_COUNT_MAX && !sources.contains(&subnet) {
            return Err(TopicError::TooMany);
        }
        sources.insert(subnet);
        Ok(())
    }

    /// No longer lets a subnet's nodes do so.
    ///
    /// # Errors
    /// When the topic has no rule.
    pub fn remove_source(&mut self, topic: &[u8], subnet: Subnet) -> Result<(), TopicError> {
        self.rule_mut(topic)?.sources.remove(&subnet);
        Ok(())
    }

    /// The socket that takes a topic's messages.
    ///
    /// # Errors
    /// When the topic has no rule.
    pub fn forward(&self, topic: &[u8]) -> Result<Option<&Path>, TopicError> {
        self.rule(topic).map(|rule| rule.forward.as_deref())
    }

    /// Has a socket take a topic's messages, or the inbox again.
    ///
    /// # Errors
    /// When the topic has no rule.
    pub fn set_forward(&mut self, topic: &[u8], path: Option<PathBuf>) -> Result<(), TopicError> {
        self.rule_mut(topic)?.forward = path;
        Ok(())
    }

    /// Whether `source` may send a message of this topic.
    pub(super) fn accepts(&self, topic: &[u8], source: Ipv6Addr) -> bool {
        self.rules.get(topic).map_or(self.accepts_by_default, |rule| {
            rule.sources.iter().any(|subnet| subnet.contains(source))
        })
    }

    fn rule(&self, topic: &[u8]) -> Result<&Rule, TopicError> {
        self.rules.get(topic).ok_or(TopicError::Unknown)
    }

    fn rule_mut(&mut self, topic: &[u8]) -> Result<&mut Rule, TopicError> {
        self.rules.get_mut(topic).ok_or(TopicError::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_goes_before_the_default() {
        let mut topics = Topics::default();
        let (friend, other) = ("400:1::1".parse().unwrap(), "400:2::1".parse().unwrap());
        assert!(topics.accepts(b"news", friend) && topics.accepts(b"", friend));
        topics.add(b"news".to_vec()).unwrap();
        assert!(!topics.accepts(b"news", friend) && topics.accepts(b"", friend));
        let subnet = "400:1::/64".parse().unwrap();
        topics.add_source(b"news", subnet).unwrap();
        // Adding it again changes nothing.
        topics.add(b"news".to_vec()).unwrap();
        topics.set_default(false);
        assert!(topics.accepts(b"news", friend) && !topics.accepts(b"news", other));
        assert!(!topics.accepts(b"", friend));
        assert_eq!(topics.sources(b"news").unwrap(), &BTreeSet::from([subnet]));
        topics.remove_source(b"news", subnet).unwrap();
        assert!(!topics.accepts(b"news", friend));
        assert_eq!(topics.topics().collect::<Vec<_>>(), [b"news"]);
        topics.remove(b"news").unwrap();
        assert_eq!(topics.remove(b"news"), Err(TopicError::Unknown));
    }

    #[test]
    fn only_a_topic_with_a_rule_has_a_socket() {
        let mut topics = Topics::default();
        let path = PathBuf::from("/run/news.sock");
        assert_eq!(topics.set_forward(b"news", Some(path.clone())), Err(TopicError::Unknown));
        topics.add(b"news".to_vec()).unwrap();
        assert_eq!(topics.forward(b"news"), Ok(None));
        topics.set_forward(b"news", Some(path.clone())).unwrap();
        assert_eq!(topics.forward(b"news"), Ok(Some(path.as_path())));
    }

    #[test]
    fn rules_are_bounded() {
        let mut topics = Topics::default();
        assert_eq!(topics.add(vec![0; 256]), Err(TopicError::TooLong(256)));
        for number in 0..TOPIC_COUNT_MAX {
            topics.add(number.to_be_bytes().to_vec()).unwrap();
        }
        assert_eq!(topics.add(b"one more".to_vec()), Err(TopicError::TooMany));
        assert_eq!(topics.add(7_usize.to_be_bytes().to_vec()), Ok(()));
    }
}
