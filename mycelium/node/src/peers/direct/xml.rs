//! A reader of what routers say of themselves: elements, text, and nothing that could grow.
//!
//! Descriptions of UPnP devices come from whoever answers at a router's address. So this reads what they
//! consist of, element by element, and refuses the rest of XML: document types, and with them entities
//! of one's own, are errors. Attributes are passed over, prefixes of names too; CDATA is text. The text is
//! in memory already and bounded by who read it; here, depth and names are.

use std::borrow::Cow;

/// Elements inside one another.
const DEPTH_MAX: usize = 24;
/// Longest name of an element, prefix included.
const NAME_SIZE_MAX: usize = 128;

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// An element begins; its name without prefix.
    Start(&'a str),
    /// Text inside the innermost element; never empty.
    Text(Cow<'a, str>),
    /// The innermost element ends; its name without prefix.
    End(&'a str),
}

/// Something that is not the XML read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the description is no plain XML: {0}")]
pub(super) struct XmlError(&'static str);

/// Reads one document.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a str,
    /// Names of the elements that are open.
    open: Vec<&'a str>,
    /// The element that began and ended in one tag.
    closing: Option<&'a str>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text.trim_start_matches('\u{feff}'), open: Vec::new(), closing: None }
    }

    /// The next event; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Event<'a>>, XmlError> {
        if let Some(name) = self.closing.take() {
            return Ok(Some(Event::End(local(name))));
        }
        loop {
            if let Some(text) = self.rest.strip_prefix("<!--") {
                self.rest = after(text, "-->")?.1;
            } else if let Some(text) = self.rest.strip_prefix("<?") {
                self.rest = after(text, "?>")?.1;
            } else if let Some(text) = self.rest.strip_prefix("<![CDATA[") {
                let (text, rest) = after(text, "]]>")?;
                self.rest = rest;
                if !text.is_empty() {
                    return self.text(Cow::Borrowed(text));
                }
            } else if self.rest.starts_with("<!") {
                return Err(XmlError("a document type"));
            } else if let Some(tag) = self.rest.strip_prefix("</") {
                return self.end(tag).map(Some);
            } else if let Some(tag) = self.rest.strip_prefix('<') {
                return self.start(tag).map(Some);
            } else if self.rest.is_empty() {
                return if self.open.is_empty() {
                    Ok(None)
                } else {
                    Err(XmlError("it is cut off"))
                };
            } else {
                let size = self.rest.find('<').unwrap_or(self.rest.len());
                let (text, rest) = self.rest.split_at(size);
                self.rest = rest;
                if !text.trim().is_empty() {
                    return self.text(unescaped(text)?);
                }
            }
        }
    }

    fn text(&self, text: Cow<'a, str>) -> Result<Option<Event<'a>>, XmlError> {
        if self.open.is_empty() {
            Err(XmlError("text outside"))
        } else {
            Ok(Some(Event::Text(text)))
        }
    }

    fn start(&mut self, tag: &'a str) -> Result<Event<'a>, XmlError> {
        let (inside, rest) = tag.split_at(tag_size(tag)?);
        self.rest = rest.strip_prefix('>').unwrap_or(rest);
        let (inside, is_empty) = match inside.strip_suffix('/') {
            Some(inside) => (inside, true),
            None => (inside, false),
        };
        let size = inside.find(|c: char| c.is_ascii_whitespace()).unwrap_or(inside.len());
        let (name, _attributes) = inside.split_at(size);
        let fits = |c: char| c.is_alphanumeric() || matches!(c, ':' | '_' | '-' | '.');
        if name.is_empty() || name.len() > NAME_SIZE_MAX || !name.chars().all(fits) {
            return Err(XmlError("a name that is none"));
        }
        if is_empty {
            self.closing = Some(name);
        } else if self.open.len() == DEPTH_MAX {
            return Err(XmlError("elements too deep"));
        } else {
            self.open.push(name);
        }
        Ok(Event::Start(local(name)))
    }

    fn end(&mut self, tag: &'a str) -> Result<Event<'a>, XmlError> {
        let (name, rest) = after(tag, ">")?;
        self.rest = rest;
        match self.open.pop() {
            Some(open) if open == name.trim_end() => Ok(Event::End(local(open))),
            _ => Err(XmlError("an end without a beginning")),
        }
    }
}

/// Size of what stands before the `>` of a tag: not one inside quotes.
fn tag_size(tag: &str) -> Result<usize, XmlError> {
    let mut quote = None;
    for (at, byte) in tag.bytes().enumerate() {
        match (byte, quote) {
            (b'>', None) => return Ok(at),
            (b'<', None) => break,
            (b'"' | b'\'', None) => quote = Some(byte),
            (byte, Some(open)) if byte == open => quote = None,
            _ => {}
        }
    }
    Err(XmlError("a tag that does not end"))
}

/// What stands before a mark and after it.
fn after<'a>(text: &'a str, mark: &str) -> Result<(&'a str, &'a str), XmlError> {
    text.split_once(mark).ok_or(XmlError("something does not end"))
}

fn local(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

/// Text with the five entities that need no declaration, and characters by their numbers.
fn unescaped(text: &str) -> Result<Cow<'_, str>, XmlError> {
    if !text.contains('&') {
        return Ok(Cow::Borrowed(text));
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, entity)) = rest.split_once('&') {
        let (name, after) = entity.split_once(';').ok_or(XmlError("an entity does not end"))?;
        plain.push_str(before);
        plain.push(character(name).ok_or(XmlError("an entity that nobody declared"))?);
        rest = after;
    }
    plain.push_str(rest);
    Ok(Cow::Owned(plain))
}

fn character(entity: &str) -> Option<char> {
    let number = |digits: &str, radix| {
        let is_short = digits.len() <= 8 && !digits.starts_with('+');
        is_short.then(|| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32))?
    };
    match entity {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => match entity.strip_prefix("#x") {
            Some(digits) => number(digits, 16),
            None => number(entity.strip_prefix('#')?, 10),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<Event<'_>>, XmlError> {
        let mut reader = Reader::new(text);
        let mut events = Vec::new();
        while let Some(event) = reader.next()? {
            events.push(event);
        }
        Ok(events)
    }

    fn text(text: &str) -> Event<'_> {
        Event::Text(Cow::Borrowed(text))
    }

    #[test]
    fn elements_and_text_are_read_and_the_rest_is_passed_over() {
        let document = "\u{feff}<?xml version=\"1.0\"?>\n<!-- a > b --><s:root xmlns:s='a>b'>\n\
                        <a >one &amp; &lt;two&gt; &#65;&#x42;</a ><b/><c x=\"/\"></c>\
                        <![CDATA[<raw>]]></s:root>\n";
        let expected = [
            Event::Start("root"),
            Event::Start("a"),
            text("one & <two> AB"),
            Event::End("a"),
            Event::Start("b"),
            Event::End("b"),
            Event::Start("c"),
            Event::End("c"),
            text("<raw>"),
            Event::End("root"),
        ];
        assert_eq!(read(document).unwrap(), expected);
    }

    #[test]
    fn what_could_do_harm_is_an_error() {
        let deep = "<a>".repeat(DEPTH_MAX + 1);
        let name = format!("<{}>", "a".repeat(NAME_SIZE_MAX + 1));
        for bad in [
            "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
            "<a>&b;</a>",
            "<a>&#xffffffff;</a>",
            "<a>&#x110000;</a>",
            "<a>&amp</a>",
            "<a><b></a></b>",
            "</a>",
            "<a>",
            "<a",
            "<a b='",
            "<",
            "<>",
            "<a<b>",
            "text",
            "<!-- ",
            "<![CDATA[",
            &deep,
            &name,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_the_reader_ends(text in "[<>/!?&;a\\-\\[\\]'\" é]{0,200}") {
            let mut reader = Reader::new(&text);
            let mut count = 0;
            while let Ok(Some(_)) = reader.next() {
                count += 1;
                prop_assert!(count <= 2 * text.len());
            }
        }
    }
}
