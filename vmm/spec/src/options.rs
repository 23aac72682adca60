//! Device options on the command line: `key=value,key=value`.
//!
//! - Items are divided by commas. A comma that belongs to a value is written twice: `path=a,,b.img`
//!   is the file `a,b.img`.
//! - A key ends at the first `=`; the value may contain more of them.
//! - Some devices have a leading option, whose key may be left out of the first item:
//!   `--disk root.img,readonly` is `--disk path=root.img,readonly=true`. A leading value that has a
//!   `=` in it needs its key.
//! - A key without `=` is a switch that is on: `readonly` is `readonly=true`. Switches take `true`,
//!   `on`, `false` and `off`.
//! - `-` and `_` in keys are the same.

use std::fmt;
use std::str::FromStr;

use crate::SpecError;
use crate::suggest::nearest;

/// Options in one flag: far more than any device has.
const ITEM_COUNT_MAX: usize = 64;

/// The options of one device. What was looked at is taken out.
pub(crate) struct Options {
    /// How errors name the flag: `--disk[1]`.
    flag: String,
    items: Vec<(&'static str, Option<String>)>,
}

impl Options {
    /// Splits `text`, of which all keys must be `known`. `lead` is the leading option.
    pub(crate) fn parse(
        flag: &str,
        text: &str,
        lead: Option<&'static str>,
        known: &[&'static str],
    ) -> Result<Self, SpecError> {
        let mut options = Self { flag: flag.to_owned(), items: Vec::new() };
        for (index, item) in split(text).into_iter().enumerate() {
            if index == ITEM_COUNT_MAX {
                let rule = format!("more than {ITEM_COUNT_MAX} options");
                return Err(SpecError::flag(flag, text, rule));
            }
            if item.is_empty() {
                let rule = "an option is empty (a comma in a value is written twice: `,,`)";
                return Err(SpecError::flag(flag, text, rule));
            }
            let (key, value) = match (item.split_once('='), lead) {
                (Some((key, value)), _) => (options.known(key, known)?, Some(value.to_owned())),
                (None, Some(lead)) if index == 0 => (lead, Some(item)),
                (None, _) => (options.known(&item, known)?, None),
            };
            if options.items.iter().any(|(earlier, _)| *earlier == key) {
                return Err(SpecError::flag(flag, text, format!("`{key}` is given twice")));
            }
            options.items.push((key, value));
        }
        Ok(options)
    }

    /// How errors name the flag.
    pub(crate) fn flag(&self) -> &str {
        &self.flag
    }

    /// The value of `key`, if it was given.
    pub(crate) fn text(&mut self, key: &'static str) -> Result<Option<String>, SpecError> {
        match self.take(key) {
            None => Ok(None),
            Some(Some(value)) if !value.is_empty() => Ok(Some(value)),
            Some(_) => {
                Err(SpecError::missing(format!("{} {key}=…", self.flag), "the option has no value"))
            }
        }
    }

    /// The value of `key`, which the device cannot do without: it is `why`.
    pub(crate) fn required(&mut self, key: &'static str, why: &str) -> Result<String, SpecError> {
        let missing = SpecError::missing(format!("{} {key}=…", self.flag), why);
        self.text(key)?.ok_or(missing)
    }

    /// The value of `key` as a `T`, if it was given.
    pub(crate) fn value<T>(&mut self, key: &'static str) -> Result<Option<T>, SpecError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let bad = |rule: T::Err| SpecError::option(&self.flag, key, &text, rule.to_string());
        text.parse().map(Some).map_err(bad)
    }

    /// The value of `key` as a whole number, if it was given.
    pub(crate) fn number<T: TryFrom<u64>>(
        &mut self,
        key: &'static str,
    ) -> Result<Option<T>, SpecError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let bad = |rule: &str| SpecError::option(&self.flag, key, &text, rule);
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad("it is a whole number"));
        }
        // What fits no 64 bits fits no smaller number either.
        let number = text.parse::<u64>().unwrap_or(u64::MAX);
        number.try_into().map(Some).map_err(|_| bad("it is far too large"))
    }

    /// Whether the switch `key` is on, if it was given.
    pub(crate) fn switch(&mut self, key: &'static str) -> Result<Option<bool>, SpecError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_deref() {
            None | Some("true" | "on") => Ok(Some(true)),
            Some("false" | "off") => Ok(Some(false)),
            Some(other) => {
                Err(SpecError::option(&self.flag, key, other, "a switch is `on` or `off`"))
            }
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Option<String>> {
        let index = self.items.iter().position(|(given, _)| *given == key)?;
        Some(self.items.remove(index).1)
    }

    fn known(&self, key: &str, known: &[&'static str]) -> Result<&'static str, SpecError> {
        let key = key.replace('-', "_");
        known.iter().copied().find(|name| *name == key).ok_or_else(|| SpecError::UnknownOption {
            flag: self.flag.clone(),
            suggestion: nearest(&key, known.iter().copied()),
            known: known.to_vec(),
            key,
        })
    }
}

/// Divides at single commas; a doubled one stands for itself.
fn split(text: &str) -> Vec<String> {
    let mut items = Vec::new();
    let mut item = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != ',' || characters.next_if_eq(&',').is_some() {
            item.push(character);
        } else {
            items.push(std::mem::take(&mut item));
        }
    }
    items.push(item);
    items
}

/// Writes options, the other way round.
#[derive(Default)]
pub(crate) struct Writer(String);

impl Writer {
    /// `key=value`, commas doubled.
    pub(crate) fn option(&mut self, key: &str, value: impl fmt::Display) -> &mut Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        let value = value.to_string().replace(',', ",,");
        self.0.push_str(&format!("{comma}{key}={value}"));
        self
    }

    /// The same, unless there is no value.
    pub(crate) fn maybe(&mut self, key: &str, value: Option<impl fmt::Display>) -> &mut Self {
        if let Some(value) = value {
            self.option(key, value);
        }
        self
    }

    /// What was written.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: [&str; 4] = ["path", "readonly", "serial", "free_page"];

    fn parse(text: &str) -> Result<Options, SpecError> {
        Options::parse("--disk[1]", text, Some("path"), &KNOWN)
    }

    #[test]
    fn commas_divide_and_doubled_ones_do_not() {
        assert_eq!(split("a,b"), ["a", "b"]);
        assert_eq!(split("a,,b"), ["a,b"]);
        assert_eq!(split("a,,,b"), ["a,", "b"]);
        assert_eq!(split(",,a"), [",a"]);
        assert_eq!(split("a,"), ["a", ""]);
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn the_leading_key_may_be_left_out() {
        let mut options = parse("root.img,readonly,free-page=off").unwrap();
        assert_eq!(options.text("path").unwrap().as_deref(), Some("root.img"));
        assert_eq!(options.switch("readonly").unwrap(), Some(true));
        assert_eq!(options.switch("free_page").unwrap(), Some(false));
        assert_eq!(options.text("serial").unwrap(), None);
        let mut options = parse("path=a=b,,c").unwrap();
        assert_eq!(options.text("path").unwrap().as_deref(), Some("a=b,c"));
    }

    #[test]
    fn errors_name_flag_value_and_rule() {
        let message = |text| parse(text).err().unwrap().to_string();
        assert_eq!(
            message("x,seriel=1"),
            "--disk[1] has no option \"seriel\"; it has path, readonly, serial, free_page"
        );
        let hint = parse("x,seriel=1").err().unwrap().hint();
        assert_eq!(hint.as_deref(), Some("did you mean `serial`?"));
        assert_eq!(message("a,path=b"), "--disk[1] \"a,path=b\": `path` is given twice");
        assert!(message("a,").contains("an option is empty"));
        assert!(message("").contains("an option is empty"));
        assert!(message(&"readonly,".repeat(100)).contains("given twice"));
        let mut options = parse("serial,readonly=maybe").unwrap();
        let switch = options.switch("readonly").unwrap_err().to_string();
        assert_eq!(switch, "--disk[1] readonly=\"maybe\": a switch is `on` or `off`");
        let mut options = parse("a,serial").unwrap();
        let text = options.text("serial").unwrap_err().to_string();
        assert_eq!(text, "--disk[1] serial=… is missing: the option has no value");
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(path in ".{1,20}", serial in proptest::option::of(".{1,20}")) {
            let text = Writer::default().option("path", &path).maybe("serial", serial.as_ref()).finish();
            let mut options = parse(&text).unwrap();
            prop_assert_eq!(options.text("path").unwrap(), Some(path));
            prop_assert_eq!(options.text("serial").unwrap(), serial);
        }

        #[test]
        fn any_text_is_options_or_an_error(text in ".*") {
            let _ = parse(&text);
        }
    }
}
