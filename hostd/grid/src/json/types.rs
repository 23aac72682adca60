//! How values of one kind are read: numbers, texts, lists, maps, and texts with a meaning.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::decoder::{Decode, Decoder, Kind};
use super::error::Error;
use super::scan::Checked;
use crate::address::{Cidr, Maybe};
use crate::hex;
use crate::id::{ContractId, Name, TwinId};
use crate::secret::{SecretBytes, SecretText};
use crate::timestamp::Timestamp;

impl Decode<'_> for bool {
    const GO_TYPE: &'static str = "bool";

    fn decode(&mut self, decoder: &mut Decoder<'_>, go_type: &'static str) -> Result<(), Error> {
        match decoder.kind() {
            Kind::Null => decoder.skip(),
            Kind::Bool => *self = decoder.raw().as_bytes() == b"true",
            _ => decoder.mismatch("", go_type),
        }
        Ok(())
    }
}

/// An unsigned number up to `max`; none if there is another value, which was noted or is `null`.
fn unsigned(decoder: &mut Decoder<'_>, go_type: &'static str, max: u64) -> Option<u64> {
    match decoder.kind() {
        Kind::Null => {
            decoder.skip();
            None
        }
        Kind::Number => {
            let digits = std::str::from_utf8(decoder.raw().as_bytes()).unwrap_or_default();
            let plain = digits.bytes().all(|digit| digit.is_ascii_digit());
            let number = plain.then(|| digits.parse().ok()).flatten();
            let number = number.filter(|number| *number <= max);
            if number.is_none() {
                decoder.bad_number(digits, go_type);
            }
            number
        }
        _ => {
            decoder.mismatch("", go_type);
            None
        }
    }
}

macro_rules! unsigned {
    ($($type:ident as $go:literal),*) => {$(
        impl Decode<'_> for $type {
            const GO_TYPE: &'static str = $go;

            fn decode(
                &mut self,
                decoder: &mut Decoder<'_>,
                go_type: &'static str,
            ) -> Result<(), Error> {
                let number = unsigned(decoder, go_type, $type::MAX.into());
                if let Some(number) = number.and_then(|number| Self::try_from(number).ok()) {
                    *self = number;
                }
                Ok(())
            }
        }
    )*};
}
unsigned!(u8 as "uint8", u16 as "uint16", u32 as "uint32", u64 as "uint64");

super::newtype!(TwinId as u32::GO_TYPE, ContractId as u64::GO_TYPE);

impl Decode<'_> for String {
    const GO_TYPE: &'static str = "string";

    fn decode(&mut self, decoder: &mut Decoder<'_>, go_type: &'static str) -> Result<(), Error> {
        match decoder.kind() {
            Kind::Null => decoder.skip(),
            Kind::String => *self = decoder.string().into_owned(),
            _ => decoder.mismatch("", go_type),
        }
        Ok(())
    }
}

impl Decode<'_> for Name {
    const GO_TYPE: &'static str = "gridtypes.Name";

    fn decode(&mut self, decoder: &mut Decoder<'_>, go_type: &'static str) -> Result<(), Error> {
        self.text_mut().decode(decoder, go_type)
    }
}

impl Decode<'_> for SecretText {
    const GO_TYPE: &'static str = String::GO_TYPE;

    fn decode(&mut self, decoder: &mut Decoder<'_>, go_type: &'static str) -> Result<(), Error> {
        self.expose_mut().decode(decoder, go_type)
    }
}

/// Reads a string by `parse`, whose error ends reading. `null` gives `null`'s value, if there is one.
fn parsed<T, E: fmt::Display>(
    value: &mut T,
    decoder: &mut Decoder<'_>,
    go_type: &'static str,
    null: Option<T>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<(), Error> {
    match decoder.kind() {
        Kind::Null => {
            decoder.skip();
            if let Some(null) = null {
                *value = null;
            }
        }
        Kind::String => {
            *value = parse(&decoder.string()).map_err(|error| Error::Text(error.to_string()))?;
        }
        _ => decoder.mismatch("", go_type),
    }
    Ok(())
}

impl Decode<'_> for Maybe<IpAddr> {
    const GO_TYPE: &'static str = "net.IP";

    fn decode(&mut self, decoder: &mut Decoder<'_>, go_type: &'static str) -> Result<(), Error> {
        parsed(self, decoder, go_type, Some(Self(None)), Self::parse)
    }
}

impl Decode<'_> for Maybe<Cidr> {
    const GO_TYPE: &'static str = "gridtypes.IPNet";

    /// A struct in Go, where addresses are lists: `null` leaves it.
    fn decode(&mut self, decoder: &mut Decoder<'_>, go_type: &'static str) -> Result<(), Error> {
        parsed(self, decoder, go_type, None, Self::parse)
    }
}

impl Decode<'_> for SecretBytes {
    const GO_TYPE: &'static str = "zos.Bytes";

    fn decode(&mut self, decoder: &mut Decoder<'_>, go_type: &'static str) -> Result<(), Error> {
        let parse = |text: &str| hex::decode(text).map(Self::new);
        parsed(self, decoder, go_type, Some(Self::default()), parse)
    }
}

impl Decode<'_> for Timestamp {
    const GO_TYPE: &'static str = "gridtypes.Timestamp";

    /// Seconds, or a date; `null` is 0.
    fn decode(&mut self, decoder: &mut Decoder<'_>, _go_type: &'static str) -> Result<(), Error> {
        let read = match decoder.kind() {
            Kind::Null => {
                decoder.skip();
                Some(Self(0))
            }
            Kind::Number => {
                let digits = std::str::from_utf8(decoder.raw().as_bytes()).unwrap_or_default();
                digits.parse().ok().map(Self)
            }
            Kind::String => Self::from_rfc3339(&decoder.string()),
            Kind::Bool | Kind::Array | Kind::Object => None,
        };
        *self = read.ok_or_else(|| Error::Text(UNKNOWN_TIMESTAMP.to_owned()))?;
        Ok(())
    }
}

const UNKNOWN_TIMESTAMP: &str =
    "unknown timestamp format, expecting a timestamp or an ISO-8601 date";

impl<'a, T: Decode<'a>> Decode<'a> for Option<T> {
    const GO_TYPE: &'static str = T::GO_TYPE;

    fn decode(&mut self, decoder: &mut Decoder<'a>, go_type: &'static str) -> Result<(), Error> {
        if decoder.kind() == Kind::Null {
            decoder.skip();
            *self = None;
            return Ok(());
        }
        self.get_or_insert_default().decode(decoder, go_type)
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Vec<T> {
    const GO_TYPE: &'static str = T::GO_TYPE;

    /// Elements that are there already are read over, as Go does.
    fn decode(&mut self, decoder: &mut Decoder<'a>, go_type: &'static str) -> Result<(), Error> {
        match decoder.kind() {
            Kind::Null => {
                decoder.skip();
                self.clear();
            }
            Kind::Array => {
                let count = decoder.elements(|decoder, at| {
                    decoder.count()?;
                    if let Some(element) = self.get_mut(at) {
                        return element.decode(decoder, go_type);
                    }
                    let mut element = T::default();
                    element.decode(decoder, go_type)?;
                    self.push(element);
                    Ok(())
                })?;
                self.truncate(count);
            }
            _ => decoder.mismatch("[]", go_type),
        }
        Ok(())
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for BTreeMap<String, T> {
    const GO_TYPE: &'static str = "map[string]string";

    fn decode(&mut self, decoder: &mut Decoder<'a>, go_type: &'static str) -> Result<(), Error> {
        match decoder.kind() {
            Kind::Null => {
                decoder.skip();
                self.clear();
            }
            Kind::Object => decoder.members(|decoder, name| {
                decoder.count()?;
                let mut value = T::default();
                value.decode(decoder, T::GO_TYPE)?;
                self.insert(name.as_str().to_owned(), value);
                Ok(())
            })?,
            _ => decoder.mismatch("", go_type),
        }
        Ok(())
    }
}

/// A value that is read later, when its type is known; none if the member is missing.
#[derive(Default)]
pub(crate) struct Raw<'a>(pub(crate) Option<Checked<'a>>);

impl<'a> Decode<'a> for Raw<'a> {
    const GO_TYPE: &'static str = "json.RawMessage";

    fn decode(&mut self, decoder: &mut Decoder<'a>, _go_type: &'static str) -> Result<(), Error> {
        self.0 = Some(decoder.raw());
        Ok(())
    }
}

/// JSON that passes through as it is: what a workload's result says depends on its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawJson(Box<str>);

impl RawJson {
    /// The JSON of a value.
    ///
    /// # Errors
    ///
    /// The value can't be JSON: a map's keys are no texts.
    pub fn of(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self(serde_json::to_string(value)?.into()))
    }

    /// Bytes that are no UTF-8 can only stand in strings, where they are replaced.
    pub(crate) fn from_checked(text: &Checked<'_>) -> Self {
        Self(String::from_utf8_lossy(text.as_bytes()).into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RawJson {
    fn default() -> Self {
        Self("null".into())
    }
}

impl Decode<'_> for RawJson {
    const GO_TYPE: &'static str = "json.RawMessage";

    fn decode(&mut self, decoder: &mut Decoder<'_>, _go_type: &'static str) -> Result<(), Error> {
        *self = Self::from_checked(&decoder.raw());
        Ok(())
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}
