//! The little YAML that `cidata` needs: a tree of strings, read with limits, that knows its own path.
//!
//! [`saphyr_parser`] does the grammar; we keep scalars as text (cloud-init's files hold addresses,
//! names and keys, and `10.1` must not become a number), refuse anchors, aliases and duplicate
//! keys, and bound depth and size. A [`Cursor`] walks the tree and names file and key in every
//! error, as `network-config: ethernets.eth0.addresses[1]: expected text, found a list`.

use saphyr_parser::{Event, Parser, ScalarStyle};

/// One node of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Nothing, `~` or `null`, unquoted.
    Null,
    /// Text as written, whatever type YAML would guess.
    Scalar(String),
    /// A list.
    Sequence(Vec<Self>),
    /// Keys and values in the file's order; keys are unique.
    Mapping(Vec<(String, Self)>),
}

/// Why a document was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Not YAML, or YAML that we refuse.
    #[error("{file}: line {line}: {what}")]
    Grammar {
        /// The file's name.
        file: &'static str,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// A value of the wrong kind, or one that means nothing.
    #[error("{file}: {path}: {what}")]
    Value {
        /// The file's name.
        file: &'static str,
        /// Where: keys joined by dots, list positions in brackets.
        path: String,
        /// What is wrong there.
        what: String,
    },
}

impl Node {
    /// Parses the first document of `text`; an empty text is [`Node::Null`].
    ///
    /// # Errors
    ///
    /// [`Error::Grammar`] for text that is no YAML, that exceeds [`TEXT_BYTES_MAX`],
    /// [`DEPTH_MAX`] or [`NODES_MAX`], or that holds an anchor, alias, duplicate or composed key.
    pub fn parse(file: &'static str, text: &str) -> Result<Self, Error> {
        let grammar = |line: usize, what: &str| Error::Grammar { file, line, what: what.into() };
        if text.len() > TEXT_BYTES_MAX {
            return Err(grammar(1, "longer than 256 KiB"));
        }
        let mut builder = Builder::default();
        for event in Parser::new_from_str(text) {
            let (event, span) = event
                .map_err(|e| grammar(e.marker().line(), &format!("not YAML: {}", e.info())))?;
            if matches!(event, Event::DocumentEnd) {
                break;
            }
            builder.event(event).map_err(|what| grammar(span.start.line(), &what))?;
        }
        Ok(builder.root.unwrap_or(Self::Null))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "text",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

/// A place in a document.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    node: &'a Node,
    file: &'static str,
    path: String,
}

impl<'a> Cursor<'a> {
    /// The top of `file`'s document.
    #[must_use]
    pub fn new(file: &'static str, node: &'a Node) -> Self {
        Self { node, file, path: String::new() }
    }

    /// The value under `key`; `None` if it is absent or null.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if this is neither a mapping nor null.
    pub fn get(&self, key: &str) -> Result<Option<Self>, Error> {
        Ok(self.entries()?.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value))
    }

    /// All keys with their values, without the null ones; none if this is null.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if this is neither a mapping nor null.
    pub fn entries(&self) -> Result<Vec<(&'a str, Self)>, Error> {
        match self.node {
            Node::Null => Ok(Vec::new()),
            Node::Mapping(pairs) => {
                let dot = if self.path.is_empty() { "" } else { "." };
                let child = |(key, node): &'a (String, Node)| {
                    let path = format!("{}{dot}{key}", self.path);
                    (key.as_str(), Self { node, file: self.file, path })
                };
                Ok(pairs.iter().filter(|(_, node)| *node != Node::Null).map(child).collect())
            }
            other => Err(self.error(format!("expected a mapping, found {}", other.kind()))),
        }
    }

    /// The items of a list; none if this is null.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if this is neither a list nor null.
    pub fn items(&self) -> Result<Vec<Self>, Error> {
        match self.node {
            Node::Null => Ok(Vec::new()),
            Node::Sequence(nodes) => {
                let child = |(index, node)| {
                    let path = format!("{}[{index}]", self.path);
                    Self { node, file: self.file, path }
                };
                Ok(nodes.iter().enumerate().map(child).collect())
            }
            other => Err(self.error(format!("expected a list, found {}", other.kind()))),
        }
    }

    /// The text of a scalar; empty if this is null.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if this is a list or a mapping.
    pub fn text(&self) -> Result<&'a str, Error> {
        match self.node {
            Node::Null => Ok(""),
            Node::Scalar(text) => Ok(text),
            other => Err(self.error(format!("expected text, found {}", other.kind()))),
        }
    }

    /// The scalar as a `T`.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] naming the text and what was `expected` of it.
    pub fn parse<T: std::str::FromStr>(&self, expected: &str) -> Result<T, Error> {
        let text = self.text()?;
        text.parse().map_err(|_| self.error(format!("expected {expected}, found {text:?}")))
    }

    /// An error at this place.
    #[must_use]
    pub fn error(&self, what: impl Into<String>) -> Error {
        let path = if self.path.is_empty() { "document" } else { &self.path };
        Error::Value { file: self.file, path: path.to_owned(), what: what.into() }
    }
}

/// Assembles the tree from the parser's events, without recursion.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    nodes: usize,
}

enum Open {
    Sequence(Vec<Node>),
    Mapping(Vec<(String, Node)>, Option<String>),
}

impl Builder {
    fn event(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Alias(_) => Err("aliases are not supported".to_owned()),
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _)
                if anchor != 0 =>
            {
                Err("anchors are not supported".to_owned())
            }
            Event::Scalar(text, style, _, _) => {
                let plain = style == ScalarStyle::Plain;
                self.add(match &*text {
                    "" | "~" | "null" if plain => Node::Null,
                    _ => Node::Scalar(text.into_owned()),
                })
            }
            Event::SequenceStart(..) => self.begin(Open::Sequence(Vec::new())),
            Event::MappingStart(..) => self.begin(Open::Mapping(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence(nodes)) => self.add(Node::Sequence(nodes)),
                Some(Open::Mapping(pairs, _)) => self.add(Node::Mapping(pairs)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX}"));
        }
        self.open.push(open);
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(format!("more than {NODES_MAX} values"));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence(nodes)) => nodes.push(node),
            Some(Open::Mapping(pairs, pending)) => match (pending.take(), node) {
                (Some(key), value) => pairs.push((key, value)),
                (None, Node::Scalar(key)) if pairs.iter().any(|(k, _)| *k == key) => {
                    return Err(format!("key {key:?} appears twice"));
                }
                (None, Node::Scalar(key)) => *pending = Some(key),
                (None, other) => return Err(format!("{} as a key", other.kind())),
            },
        }
        Ok(())
    }
}

/// Longest document, in bytes.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
/// Deepest nesting.
pub const DEPTH_MAX: usize = 16;
/// Most values in a document.
pub const NODES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Node, Error> {
        Node::parse("user-data", text)
    }

    fn fails(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn block_and_flow_styles_are_the_same() {
        let block = parse("#cloud-config\na:\n  - 1\n  - \"null\"\nb: ~\n").unwrap();
        assert_eq!(block, parse("{\"a\": [1, 'null'], b: null}").unwrap());
        assert_eq!(
            block,
            Node::Mapping(vec![
                (
                    "a".into(),
                    Node::Sequence(vec![Node::Scalar("1".into()), Node::Scalar("null".into())])
                ),
                ("b".into(), Node::Null),
            ])
        );
    }

    #[test]
    fn an_empty_document_is_null() {
        assert_eq!(parse("").unwrap(), Node::Null);
        assert_eq!(parse("#cloud-config\n").unwrap(), Node::Null);
        let node = Node::Null;
        let top = Cursor::new("user-data", &node);
        assert!(top.get("users").unwrap().is_none());
        assert!(top.items().unwrap().is_empty());
    }

    #[test]
    fn errors_name_file_and_key() {
        let node = parse("a:\n  b:\n  - c: [x]\n").unwrap();
        let top = Cursor::new("user-data", &node);
        let item = top.get("a").unwrap().unwrap().get("b").unwrap().unwrap().items().unwrap();
        let c = item[0].get("c").unwrap().unwrap();
        let want = "user-data: a.b[0].c: expected text, found a list";
        assert_eq!(c.text().unwrap_err().to_string(), want);
        let x = &c.items().unwrap()[0];
        let want = "user-data: a.b[0].c[0]: expected a number, found \"x\"";
        assert_eq!(x.parse::<u8>("a number").unwrap_err().to_string(), want);
        assert!(top.items().unwrap_err().to_string().contains("document: expected a list"));
    }

    #[test]
    fn grammar_errors_name_the_line() {
        assert!(fails("a: 1\nb: [1\n").starts_with("user-data: line "));
        assert_eq!(fails("a: 1\na: 2\n"), "user-data: line 2: key \"a\" appears twice");
        assert!(fails("a: &x 1\nb: *x\n").contains("anchors"));
        assert!(fails("? [1]\n: 2\n").contains("a list as a key"));
    }

    #[test]
    fn limits_hold() {
        assert!(fails(&"[".repeat(200)).contains("nested deeper than 16"));
        assert!(fails(&format!("[{}]", "1,".repeat(NODES_MAX + 1))).contains("more than 10000"));
        assert!(fails(&" ".repeat(TEXT_BYTES_MAX + 1)).contains("256 KiB"));
    }
}
