//! Names of namespaces, and of the folders that hold them.
//!
//! A name is up to 128 bytes of anything but `/`. Folders whose name begins with a dot belong to the
//! engine (locks, half-made and half-removed namespaces), so a leading dot is escaped, as are NUL,
//! which no path can hold, and `%`, the escape itself.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Longest name, in bytes.
pub const NAME_SIZE_MAX: usize = 128;

/// Longest name of a file on every file system that we use.
const FILE_NAME_SIZE_MAX: usize = 255;

/// A namespace's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<u8>);

/// Why some bytes are no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// More than [`NAME_SIZE_MAX`] bytes.
    #[error("a name of {size} bytes, at most {NAME_SIZE_MAX}")]
    TooLong {
        /// Bytes of the name.
        size: usize,
    },
    /// Empty, `.`, `..`, or with a `/`.
    #[error("empty, `.`, `..`, or with a `/`")]
    NotAllowed,
}

impl Name {
    /// Takes a name from the wire.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule is broken.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.len() > NAME_SIZE_MAX {
            return Err(NameError::TooLong { size: bytes.len() });
        }
        let name = Self(bytes.to_vec());
        let reserved = matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/');
        if reserved || name.to_folder().len() > FILE_NAME_SIZE_MAX {
            return Err(NameError::NotAllowed);
        }
        Ok(name)
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name of its folder.
    pub(crate) fn to_folder(&self) -> OsString {
        let mut folder = Vec::with_capacity(self.0.len());
        for (index, byte) in self.0.iter().enumerate() {
            match byte {
                b'.' if index == 0 => folder.extend_from_slice(b"%2E"),
                b'%' => folder.extend_from_slice(b"%25"),
                0 => folder.extend_from_slice(b"%00"),
                other => folder.push(*other),
            }
        }
        OsString::from_vec(folder)
    }

    /// The name whose folder this is; `None` if we didn't name it.
    pub(crate) fn from_folder(folder: &std::ffi::OsStr) -> Option<Self> {
        let mut rest = folder.as_bytes();
        let mut name = Vec::with_capacity(rest.len());
        while let Some((first, tail)) = rest.split_first() {
            if *first == b'%' {
                let (code, tail) = tail.split_first_chunk::<2>()?;
                name.push(match code {
                    b"2E" => b'.',
                    b"25" => b'%',
                    b"00" => 0,
                    _ => return None,
                });
                rest = tail;
            } else {
                name.push(*first);
                rest = tail;
            }
        }
        let name = Self::new(&name).ok()?;
        (name.to_folder() == folder).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_folder_leads_back_to_its_name() {
        for name in
            [&b"default"[..], b"a b", b".hidden", b"100%", b"nul\0", b"a.b", b"%2E", b"\xff"]
        {
            let name = Name::new(name).unwrap();
            assert_eq!(Name::from_folder(&name.to_folder()), Some(name));
        }
    }

    #[test]
    fn names_that_a_path_would_misread_are_refused() {
        for name in [&b""[..], b".", b"..", b"a/b", b"/"] {
            assert_eq!(Name::new(name), Err(NameError::NotAllowed));
        }
        assert_eq!(Name::new(&[b'n'; 129]), Err(NameError::TooLong { size: 129 }));
        assert!(Name::new(&[b'n'; 128]).is_ok());
        assert_eq!(Name::new(&[b'%'; 128]), Err(NameError::NotAllowed));
    }

    #[test]
    fn folders_of_others_have_no_name() {
        for folder in [".lockfile", ".trash-1", "%zz", "%", "a%2Eb", "%2E"] {
            assert_eq!(Name::from_folder(OsStr::new(folder)), None, "{folder}");
        }
    }
}
