//! The text of a deployment that is hashed: its fields in a fixed order, with nothing in between.
//!
//! ```text
//! deployment  = version twin_id metadata description expiration workload* requirement
//! workload    = version name type metadata description data
//! requirement = (twin_id required weight)* weight_required signature_style
//! ```
//!
//! and `data` as each file of [`workload`](crate::workload) says. Integers are decimal, booleans `true`
//! or `false`, bytes lower-case hexadecimal, addresses canonical
//! ([`address`](crate::address)). The contract's number is left out, since the contract is made with the
//! hash, and so are results, which the node makes.
//!
//! The text is never built: it flows into MD5, whose 16 bytes are the hash. Nothing separates the fields,
//! so different deployments can have equal hashes; what keeps users from meaning one and signing
//! another is the envelope's signature, which covers the JSON. Both are checked.
//!
//! # Two forms
//!
//! Existing clients disagree about `network-light`. Most write its WireGuard part as existing nodes do,
//! an absent network as `<nil>` and an absent port as `0` ([`Form::Current`]). Others write what is absent
//! as nothing ([`Form::Omitting`]): the TypeScript client, and all clients from before that part existed,
//! whose text comes out as a special case. A deployment is accepted in the form in which its signatures
//! hold, and the contract must have the hash of that form.

use std::fmt::{self, Display, Write};

use md5::{Digest, Md5};

use crate::excerpt::excerpt;
use crate::hex;

/// How fields that a client left out are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// As existing nodes write them.
    #[default]
    Current,
    /// Not at all, in workloads of type `network-light`.
    Omitting,
}

/// Writes fields one after another into whatever takes text.
pub(crate) struct Challenge<'a> {
    out: &'a mut dyn Write,
    form: Form,
}

impl<'a> Challenge<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, form: Form) -> Self {
        Self { out, form }
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Adds a text, a number, a boolean or an address.
    pub(crate) fn add(&mut self, field: impl Display) {
        // Neither strings nor hashes refuse text.
        let _ = write!(self.out, "{field}");
    }

    /// Adds bytes as digits.
    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) {
        let _ = self.out.write_str(&hex::encode(bytes));
    }
}

/// MD5 as something to write text into.
#[derive(Default)]
pub(crate) struct HashWriter(Md5);

impl HashWriter {
    pub(crate) fn finish(self) -> DeploymentHash {
        DeploymentHash(self.0.finalize().into())
    }
}

impl Write for HashWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text);
        Ok(())
    }
}

/// The hash of a deployment: MD5 of its challenge. Contracts have its 32 lower-case digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeploymentHash([u8; 16]);

impl DeploymentHash {
    /// Takes the 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl Display for DeploymentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl std::str::FromStr for DeploymentHash {
    type Err = HashError;

    /// Reads the digits of a contract. They are compared as text on the chain, so only lower-case ones
    /// are the hash of a deployment.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || HashError { text: excerpt(text) };
        if text.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return Err(error());
        }
        let bytes = hex::decode(text).map_err(|_| error())?;
        bytes.try_into().map(Self).map_err(|_| error())
    }
}

/// A text that is no hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no deployment hash: 32 lower-case hexadecimal digits are")]
pub struct HashError {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_as_they_are_written() {
        let text = "7e05ca80673f6154c9a78b6a3ff30830";
        assert_eq!(text.parse::<DeploymentHash>().unwrap().to_string(), text);
        for text in
            ["", "7e05", "7E05CA80673F6154C9A78B6A3FF30830", &"0".repeat(34), &"g".repeat(32)]
        {
            assert!(text.parse::<DeploymentHash>().is_err(), "{text}");
        }
    }

    #[test]
    fn fields_are_joined_without_anything_in_between() {
        let mut text = String::new();
        let mut challenge = Challenge::new(&mut text, Form::Current);
        challenge.add(7_u64);
        challenge.add(true);
        challenge.add("x");
        challenge.add_bytes(&[0xab]);
        assert_eq!(text, "7truexab");
        let mut hash = HashWriter::default();
        Challenge::new(&mut hash, Form::Current).add("");
        assert_eq!(hash.finish().to_string(), "d41d8cd98f00b204e9800998ecf8427e");
    }
}
