//! Texts of the chain.
//!
//! The chain keeps names, addresses and host names as bytes, wrapped differently from one version to
//! the next: `Vec<u8>`, `BoundedVec<u8>`, a struct around either. All are read alike, and what is no
//! UTF-8 is replaced: such text is only shown and compared.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use scale_decode::visitor::{DecodeAsTypeResult, TypeIdFor, Visitor};
use scale_decode::{DecodeAsType, IntoVisitor, TypeResolver};

/// A text that the chain keeps.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(pub String);

impl Text {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

/// Reads bytes, however wrapped, as a [`Text`].
#[doc(hidden)]
#[expect(unnameable_types, reason = "only scale-decode asks for it, by a trait")]
pub struct TextVisitor<R>(PhantomData<R>);

impl<R: TypeResolver> Visitor for TextVisitor<R> {
    type Value<'scale, 'resolver> = Text;
    type Error = scale_decode::Error;
    type TypeResolver = R;

    fn unchecked_decode_as_type(
        self,
        input: &mut &[u8],
        type_id: TypeIdFor<Self>,
        types: &R,
    ) -> DecodeAsTypeResult<Self, Result<Text, scale_decode::Error>> {
        let bytes = Vec::<u8>::decode_as_type(input, type_id, types);
        let text = bytes.map(|bytes| Text(String::from_utf8_lossy(&bytes).into_owned()));
        DecodeAsTypeResult::Decoded(text)
    }
}

impl IntoVisitor for Text {
    type AnyVisitor<R: TypeResolver> = TextVisitor<R>;

    fn into_visitor<R: TypeResolver>() -> TextVisitor<R> {
        TextVisitor(PhantomData)
    }
}
