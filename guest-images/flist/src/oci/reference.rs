//! Names of images in registries: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, read as Docker reads them.
//!
//! The first component is a host if it has a dot or a colon, is `localhost`, or has a capital; else
//! the name is one of the default registry's, and a name of one component is one of its official
//! images (`library/`).

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

/// The registry that a name without a host means.
pub const DEFAULT_HOST: &str = "docker.io";
/// The default registry answers its API under this name in front of its own.
const DEFAULT_API_PREFIX: &str = "registry-1.";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest path and longest tag that registries accept, in bytes.
const PATH_SIZE_MAX: usize = 255;
const TAG_SIZE_MAX: usize = 128;

/// A name of an image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Not a name of an image.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The path has a form that no registry knows.
    #[error("path {0:?} must be lower-case words of letters and digits, joined by . _ __ - and /")]
    Path(String),
    /// The host can't be one.
    #[error("host {0:?} must be letters, digits, dots and hyphens, with a port behind a colon")]
    Host(String),
    /// The tag can't be one.
    #[error("tag {0:?} must be 1 to 128 letters, digits and _ . - and not begin with . or -")]
    Tag(String),
    /// The digest can't be one.
    #[error(transparent)]
    Digest(#[from] super::digest::DigestError),
}

impl Reference {
    /// The registry's name as people know it, with its port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where the registry answers its API.
    #[must_use]
    pub fn api_host(&self) -> String {
        if self.host == DEFAULT_HOST {
            format!("{DEFAULT_API_PREFIX}{DEFAULT_HOST}")
        } else {
            self.host.clone()
        }
    }

    /// The repository.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The digest, if the name has one. It decides then, whatever the tag says.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask the registry for: the digest or the tag, `latest` by default.
    #[must_use]
    pub fn selector(&self) -> String {
        let tag = self.tag.as_deref().unwrap_or(DEFAULT_TAG);
        self.digest.as_ref().map_or_else(|| tag.to_owned(), Digest::to_string)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (host, rest) = match rest.split_once('/') {
            Some((host, rest)) if is_host(host) => (host, rest),
            _ => (DEFAULT_HOST, rest),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        if !is_valid_host(host) {
            return Err(ReferenceError::Host(host.to_owned()));
        }
        if let Some(tag) = tag.as_ref().filter(|tag| !is_valid_tag(tag)) {
            return Err(ReferenceError::Tag(tag.clone()));
        }
        if path.len() > PATH_SIZE_MAX || !path.split('/').all(is_valid_component) {
            return Err(ReferenceError::Path(path.chars().take(PATH_SIZE_MAX).collect()));
        }
        let official = host == DEFAULT_HOST && !path.contains('/');
        let path = if official { format!("{OFFICIAL_PREFIX}{path}") } else { path.to_owned() };
        Ok(Self { host: host.to_owned(), path, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        } else if self.digest.is_none() {
            write!(f, ":{DEFAULT_TAG}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

fn is_host(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':'])
        || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_valid_host(host: &str) -> bool {
    // An IPv6 address stands in brackets.
    let end = if host.starts_with('[') { host.find(']') } else { None };
    let (name, port) = match end {
        Some(end) => host.split_at(end + 1),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let in_brackets = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'[' | b']');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let name_fits =
        if end.is_some() { name.bytes().all(in_brackets) } else { name.bytes().all(plain) };
    let port_fits = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    !name.is_empty() && name_fits && port_fits
}

fn is_valid_tag(tag: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=TAG_SIZE_MAX).contains(&tag.len()) && tag.bytes().all(fits) && !tag.starts_with(['.', '-'])
}

/// Words of letters and digits, joined by `.`, `_`, `__` or hyphens.
fn is_valid_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_fit =
        bytes.first().is_some_and(|b| is_word(*b)) && bytes.last().is_some_and(|b| is_word(*b));
    let mut separators = component.split(|c: char| c.is_ascii() && is_word(c as u8));
    ends_fit
        && separators.all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, full, selector) in [
            ("debian", "DEFAULT/library/debian:latest", "latest"),
            ("debian:12", "DEFAULT/library/debian:12", "12"),
            ("some/thing", "DEFAULT/some/thing:latest", "latest"),
            ("localhost/x", "localhost/x:latest", "latest"),
            ("localhost:5000/x/y:1.0_a", "localhost:5000/x/y:1.0_a", "1.0_a"),
            ("registry.example/a--b/c__d.e:T", "registry.example/a--b/c__d.e:T", "T"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "latest"),
            ("127.0.0.1:80/x", "127.0.0.1:80/x:latest", "latest"),
            (&format!("a/b@{digest}"), &format!("DEFAULT/a/b@{digest}"), &digest),
            (&format!("a/b:1@{digest}"), &format!("DEFAULT/a/b:1@{digest}"), &digest),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full.replace("DEFAULT", DEFAULT_HOST));
            assert_eq!(reference.selector(), selector);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "/",
            "a//b",
            "Debian",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:",
            "a:-b",
            "a b",
            "a@sha256:0",
            "x.example:99999/a",
            "x.example:/a/..",
            "a/../b",
            "x.example/",
            "h\u{e9}.example/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
