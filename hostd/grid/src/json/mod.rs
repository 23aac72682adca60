//! How the grid reads JSON: by the rules of Go's `encoding/json`, which are its wire format.
//!
//! Clients in other languages were written against nodes in Go, so what those accept must be accepted,
//! and what those make of it must come out, since it is hashed:
//!
//! - names of members match in any case, and unknown ones are skipped;
//! - `null` leaves numbers, texts and objects as they are and empties lists, maps and what is optional;
//! - a member that comes twice is read twice *into the same value*: the last number wins, objects and
//!   maps are merged;
//! - integers are written without fraction and exponent, and fit their type;
//! - a lone surrogate and each byte that is no UTF-8 become U+FFFD;
//! - a member of a wrong type does not stop reading: the first such error is reported at the end, while a
//!   text that a type refuses (an address, hexadecimal digits) stops at once.
//!
//! Reading is two passes. `scan` checks the whole document and its depth, and everything after it
//! relies on that (`Checked`). `decoder` walks the text and fills values that say what members they
//! have (`Decode`, mostly by `object!`); there is no tree in between, so memory is what the values
//! take, and [`VALUE_COUNT_MAX`] bounds those.
//!
//! Errors have Go's texts, with Go's names of types: clients show them, and tests of clients know them.
//! Numbers in them are cut at [`EXCERPT_SIZE_MAX`](crate::limits::EXCERPT_SIZE_MAX).

mod decoder;
mod error;
mod scan;
mod text;
mod types;

pub(crate) use decoder::{Decode, Decoder};
pub use error::{Error, Quoted, TypeError};
pub(crate) use scan::Checked;
pub(crate) use types::Raw;
pub use types::RawJson;

use crate::limits::VALUE_COUNT_MAX;

/// Reads one document.
pub(crate) fn from_slice<'a, T: Decode<'a>>(text: &'a [u8]) -> Result<T, Error> {
    let mut budget = VALUE_COUNT_MAX;
    from_checked(Checked::new(text)?, &mut budget)
}

/// Reads one document or a part of one; `budget` is how many more elements and entries may be read.
pub(crate) fn from_checked<'a, T: Decode<'a>>(
    text: Checked<'a>,
    budget: &mut usize,
) -> Result<T, Error> {
    let mut value = T::default();
    let mut decoder = Decoder::new(text, *budget);
    value.decode(&mut decoder, T::GO_TYPE)?;
    *budget = decoder.finish()?;
    Ok(value)
}

/// Implements [`Decode`] for a struct: which members its JSON has, by the names of Go's fields, and what
/// Go calls its type. A type after a colon is Go's name of a field's type, or of its elements' type,
/// where ours is more general.
macro_rules! object {
    ($type:ty as $object:literal { $($key:literal => $field:ident $(: $go:literal)?),* $(,)? }) => {
        impl<'a> $crate::json::Decode<'a> for $type {
            const GO_TYPE: &'static str = $object;

            fn decode(
                &mut self,
                decoder: &mut $crate::json::Decoder<'a>,
                go_type: &'static str,
            ) -> Result<(), $crate::json::Error> {
                decoder.object(go_type, |decoder, name| match name {
                    $(name if name.is($key) => {
                        $crate::json::object!(@member decoder, $key, &mut self.$field $(, $go)?)
                    })*
                    _ => {
                        decoder.skip();
                        Ok(())
                    }
                })
            }
        }
    };
    (@member $decoder:ident, $key:literal, $value:expr) => {
        $decoder.member($key, $value)
    };
    (@member $decoder:ident, $key:literal, $value:expr, $go:literal) => {
        $decoder.member_of($key, $value, $go)
    };
}
pub(crate) use object;

/// Implements [`Decode`] for a type that reads as the one field that it has.
macro_rules! newtype {
    ($($type:ty as $go:expr),* $(,)?) => {$(
        impl<'a> $crate::json::Decode<'a> for $type {
            const GO_TYPE: &'static str = $go;

            fn decode(
                &mut self,
                decoder: &mut $crate::json::Decoder<'a>,
                go_type: &'static str,
            ) -> Result<(), $crate::json::Error> {
                self.0.decode(decoder, go_type)
            }
        }
    )*};
}
pub(crate) use newtype;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Inner {
        count: u8,
        name: String,
    }
    object!(Inner as "zos.Inner" { "count" => count, "Name" => name: "gridtypes.Name" });

    #[derive(Debug, Default, PartialEq)]
    struct Outer {
        size: u64,
        on: bool,
        inner: Inner,
        list: Vec<Inner>,
        names: Vec<String>,
        option: Option<Inner>,
        map: BTreeMap<String, String>,
    }
    object!(Outer as "zos.Outer" {
        "size" => size: "gridtypes.Unit",
        "on" => on,
        "inner" => inner,
        "list" => list,
        "names" => names: "zos.Backend",
        "option" => option,
        "map" => map,
    });

    fn read(text: &str) -> Outer {
        from_slice(text.as_bytes()).unwrap()
    }

    fn error(text: &str) -> String {
        from_slice::<Outer>(text.as_bytes()).unwrap_err().to_string()
    }

    fn inner(count: u8, name: &str) -> Inner {
        Inner { count, name: name.to_owned() }
    }

    #[test]
    fn names_match_in_any_case_and_by_simple_folding() {
        assert_eq!(read(r#"{"SIZE":5}"#).size, 5);
        assert_eq!(read("{\"\u{17f}ize\":5}").size, 5);
        assert_eq!(read(r#"{"inner":{"nAME":"x","other":[{}]}}"#).inner.name, "x");
        assert_eq!(read("{\"s\\u0069ze\" : 7 }").size, 7);
    }

    #[test]
    fn null_leaves_or_empties() {
        let text = r#"{"size":5,"size":null,"on":true,"on":null,"inner":{"count":3},"inner":null,
            "list":[{}],"list":null,"option":{},"option":null,"map":{"a":"b"},"map":null}"#;
        let expected = Outer { size: 5, on: true, inner: inner(3, ""), ..Outer::default() };
        assert_eq!(read(text), expected);
        assert_eq!(read("null"), Outer::default());
        assert_eq!(read(r#"{"list":[null,{"count":1}]}"#).list, [inner(0, ""), inner(1, "")]);
        assert_eq!(read(r#"{"map":{"a":null}}"#).map["a"], "");
    }

    #[test]
    fn what_comes_twice_is_merged() {
        assert_eq!(read(r#"{"size":5,"Size":6}"#).size, 6);
        let text = r#"{"inner":{"count":1,"name":"a"},"inner":{"count":2}}"#;
        assert_eq!(read(text).inner, inner(2, "a"));
        let text = r#"{"list":[{"count":1},{"count":2}],"list":[{"name":"b"}]}"#;
        assert_eq!(read(text).list, [inner(1, "b")]);
        let text = r#"{"option":{"count":1},"option":{"name":"c"}}"#;
        assert_eq!(read(text).option, Some(inner(1, "c")));
        let map = read(r#"{"map":{"a":"1","b":"2"},"map":{"a":"3"}}"#).map;
        assert_eq!(map.into_iter().collect::<Vec<_>>().len(), 2);
    }

    #[test]
    fn errors_name_the_innermost_struct_and_the_whole_path() {
        for (text, expected) in [
            (
                r#"{"inner":{"count":256}}"#,
                "number 256 into Go struct field Inner.inner.count of type uint8",
            ),
            (
                r#"{"list":[{"Name":5}]}"#,
                "number into Go struct field Inner.list.Name of type gridtypes.Name",
            ),
            (r#"{"size":-0}"#, "number -0 into Go struct field Outer.size of type gridtypes.Unit"),
            (r#"{"size":{}}"#, "object into Go struct field Outer.size of type gridtypes.Unit"),
            (r#"{"on":"x"}"#, "string into Go struct field Outer.on of type bool"),
            (r#"{"inner":[]}"#, "array into Go struct field Outer.inner of type zos.Inner"),
            (r#"{"list":{}}"#, "object into Go struct field Outer.list of type []zos.Inner"),
            (r#"{"names":[true]}"#, "bool into Go struct field Outer.names of type zos.Backend"),
            (r#"{"names":"x"}"#, "string into Go struct field Outer.names of type []zos.Backend"),
            (r#"{"map":7}"#, "number into Go struct field Outer.map of type map[string]string"),
            (r#"[]"#, "array into Go value of type zos.Outer"),
            // The first one is reported, and only after all was read.
            (r#"{"on":1,"size":"x"}"#, "number into Go struct field Outer.on of type bool"),
        ] {
            assert_eq!(error(text), format!("json: cannot unmarshal {expected}"), "{text}");
        }
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let list = |count| format!(r#"{{"names":[{}null]}}"#, "null,".repeat(count - 1));
        assert_eq!(read(&list(VALUE_COUNT_MAX)).names.len(), VALUE_COUNT_MAX);
        assert_eq!(error(&list(VALUE_COUNT_MAX + 1)), Error::TooMany.to_string());
        let entry = |at: usize| format!(r#""{at}":"","#);
        let entries: String = (0..=VALUE_COUNT_MAX).map(entry).collect();
        assert_eq!(error(&format!(r#"{{"map":{{{entries}"":""}}}}"#)), Error::TooMany.to_string());
        // What is skipped doesn't count.
        read(&format!(r#"{{"other":[{}null]}}"#, "null,".repeat(VALUE_COUNT_MAX + 1)));
    }
}
