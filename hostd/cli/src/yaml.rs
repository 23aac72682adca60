//! YAML as the values of JSON, so that serde says what a file may hold.
//!
//! [`saphyr_parser`] does the grammar. Unquoted scalars are `null`, truths and integers where they look
//! like one (YAML 1.2 §10.2), and text otherwise. Anchors, aliases, tags and duplicate keys are
//! refused, and so is what is too large: a plan comes from somebody else as often as not.

use anyhow::{Context as _, bail, ensure};
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Bytes of a file.
pub(crate) const TEXT_SIZE_MAX: usize = 1 << 20;
/// Lists and mappings inside one another.
const DEPTH_MAX: usize = 32;
/// Values of a file.
const VALUE_COUNT_MAX: usize = 65_536;

/// A list or mapping that is being read.
enum Open {
    List(Vec<Value>),
    Mapping(Map<String, Value>, Option<String>),
}

/// Reads the first document of a text; an empty one is `null`.
pub(crate) fn parse(text: &str) -> anyhow::Result<Value> {
    ensure!(text.len() <= TEXT_SIZE_MAX, "longer than {TEXT_SIZE_MAX} bytes");
    let mut reader = Reader::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => bail!("line {}: {}", error.marker().line(), error.info()),
        };
        if matches!(event, Event::DocumentEnd) {
            break;
        }
        reader.event(event).with_context(|| format!("line {}", span.start.line()))?;
    }
    Ok(reader.root.unwrap_or(Value::Null))
}

#[derive(Default)]
struct Reader {
    root: Option<Value>,
    open: Vec<Open>,
    count: usize,
}

impl Reader {
    fn event(&mut self, event: Event<'_>) -> anyhow::Result<()> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                ensure!(anchor == 0 && tag.is_none(), "anchors and tags are not supported");
                if let Some(Open::Mapping(mapping, key @ None)) = self.open.last_mut() {
                    ensure!(!mapping.contains_key(&*text), "the key {text:?} is there twice");
                    *key = Some(text.into_owned());
                    return Ok(());
                }
                let is_plain = style == ScalarStyle::Plain;
                self.value(if is_plain { guessed(&text) } else { text.into_owned().into() })
            }
            Event::SequenceStart(..) => self.begin(Open::List(Vec::new())),
            Event::MappingStart(..) => self.begin(Open::Mapping(Map::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(values)) => self.value(Value::Array(values)),
                Some(Open::Mapping(mapping, None)) => self.value(Value::Object(mapping)),
                _ => bail!("a key has no value"),
            },
            Event::Alias(_) => bail!("aliases are not supported"),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> anyhow::Result<()> {
        let is_key = matches!(self.open.last(), Some(Open::Mapping(_, None)));
        ensure!(!is_key, "a key is a text");
        ensure!(self.open.len() < DEPTH_MAX, "more than {DEPTH_MAX} levels");
        self.open.push(open);
        Ok(())
    }

    fn value(&mut self, value: Value) -> anyhow::Result<()> {
        self.count += 1;
        ensure!(self.count <= VALUE_COUNT_MAX, "more than {VALUE_COUNT_MAX} values");
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::List(values)) => values.push(value),
            Some(Open::Mapping(mapping, key)) => {
                let key = key.take().context("a key is a text")?;
                mapping.insert(key, value);
            }
        }
        Ok(())
    }
}

/// What an unquoted scalar means.
fn guessed(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        // Leading zeros and signs make codes and versions, not amounts.
        _ if text == "0" || text.starts_with(|digit: char| ('1'..='9').contains(&digit)) => {
            text.parse::<u64>().map_or_else(|_| text.into(), Value::from)
        }
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_what_they_look_like() {
        let text = "a: 10\nb: '10'\nc: [true, ~, 10.1, 007, 10G]\nd:\n  - e: \"x\\ny\"\n";
        let expected = json!({
            "a": 10, "b": "10", "c": [true, null, "10.1", "007", "10G"], "d": [{"e": "x\ny"}],
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), Value::Null);
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_line() {
        let refusal = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert_eq!(refusal("a: 1\na: 2\n"), "line 2: the key \"a\" is there twice");
        assert_eq!(refusal("a: &x 1\n"), "line 1: anchors and tags are not supported");
        assert_eq!(refusal("[a]: 1\n"), "line 1: a key is a text");
        assert!(refusal(&"[".repeat(100)).contains("more than 32 levels"));
        assert!(refusal("a: [1").starts_with("line "));
    }
}
