//! URLs as Go's `net/url` splits them, as far as workloads need it: scheme and host.
//!
//! Browsers' rules (WHATWG) are kinder, and repair what Go refuses; what a node accepted once, it must
//! accept again, so Go's rules it is.

/// The parts of a URL that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url<'a> {
    /// In lower case; empty if there is none.
    pub(super) scheme: String,
    /// Host and port as written.
    authority: &'a str,
}

/// Why a text is no URL, in Go's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum UrlError {
    #[error("net/url: invalid control character in URL")]
    Control,
    #[error("missing protocol scheme")]
    NoScheme,
    #[error("first path segment in URL cannot contain colon")]
    Colon,
    #[error("net/url: invalid userinfo")]
    UserInfo,
    #[error("missing ']' in host")]
    Bracket,
    #[error("invalid port after host")]
    Port,
    #[error("invalid character in host name")]
    Host,
    #[error("invalid URL escape")]
    Escape,
}

impl<'a> Url<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, UrlError> {
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(UrlError::Control);
        }
        let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
        check_escapes(fragment)?;
        let (scheme, rest) = split_scheme(text)?;
        let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
        let url = |authority| Self { scheme: scheme.to_ascii_lowercase(), authority };
        if !rest.starts_with('/') {
            if !scheme.is_empty() {
                return Ok(url(""));
            }
            if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
                return Err(UrlError::Colon);
            }
        }
        let has_authority = !scheme.is_empty() || !rest.starts_with("///");
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) if has_authority => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            _ => ("", rest),
        };
        check_escapes(path)?;
        Ok(url(host_of(authority)?))
    }

    /// The host without brackets and port.
    pub(super) fn hostname(&self) -> &'a str {
        let host = self.split_port().0;
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The port, if it is written and not empty.
    pub(super) fn port(&self) -> Option<&'a str> {
        Some(self.split_port().1).filter(|port| !port.is_empty())
    }

    fn split_port(&self) -> (&'a str, &'a str) {
        match self.authority.rsplit_once(':') {
            Some((host, port)) if is_digits(port) => (host, port),
            _ => (self.authority, ""),
        }
    }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|digit| digit.is_ascii_digit())
}

/// Scheme and what follows its colon.
fn split_scheme(text: &str) -> Result<(&str, &str), UrlError> {
    let in_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    match text.split_once(':') {
        Some(("", _)) => Err(UrlError::NoScheme),
        Some((scheme, rest))
            if scheme.bytes().all(in_scheme)
                && scheme.starts_with(|first: char| first.is_ascii_alphabetic()) =>
        {
            Ok((scheme, rest))
        }
        _ => Ok(("", text)),
    }
}

/// Host and port of an authority, whose form is checked.
fn host_of(authority: &str) -> Result<&str, UrlError> {
    let host = match authority.rsplit_once('@') {
        Some((user_info, host)) => {
            if !user_info.bytes().all(in_user_info) {
                return Err(UrlError::UserInfo);
            }
            check_escapes(user_info)?;
            host
        }
        None => authority,
    };
    let port = if host.starts_with('[') {
        host.rsplit_once(']').ok_or(UrlError::Bracket)?.1
    } else {
        host.rfind(':').and_then(|at| host.get(at..)).unwrap_or_default()
    };
    if !(port.is_empty() || port.strip_prefix(':').is_some_and(is_digits)) {
        return Err(UrlError::Port);
    }
    check_escapes(host)?;
    if host.bytes().all(in_host) { Ok(host) } else { Err(UrlError::Host) }
}

fn in_user_info(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte)
}

/// Beyond ASCII everything is fine.
fn in_host(byte: u8) -> bool {
    !byte.is_ascii() || byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"%".contains(&byte)
}

fn check_escapes(text: &str) -> Result<(), UrlError> {
    let mut parts = text.split('%');
    // What stands before the first is no escape.
    parts.next();
    let hex = |part: &str| part.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if parts.all(hex) { Ok(()) } else { Err(UrlError::Escape) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Result<(String, &str, Option<&str>), UrlError> {
        Url::parse(text).map(|url| (url.scheme.clone(), url.hostname(), url.port()))
    }

    #[test]
    fn urls_are_split() {
        for (text, scheme, host, port) in [
            ("http://1.2.3.4", "http", "1.2.3.4", None),
            ("HTTP://1.2.3.4:80/path?a:b#c", "http", "1.2.3.4", Some("80")),
            ("http://u:p%20w@[400::1]:80", "http", "400::1", Some("80")),
            ("http://[400::1]", "http", "400::1", None),
            ("http://host:", "http", "host", None),
            ("redis:opaque:1", "redis", "", None),
            ("//host/x", "", "host", None),
            ("///x:y", "", "", None),
            ("a/b:c", "", "", None),
            ("", "", "", None),
            ("http://a?x@b", "http", "a", None),
        ] {
            assert_eq!(split(text), Ok((scheme.to_owned(), host, port)), "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for (text, error) in [
            ("http://a\n", UrlError::Control),
            ("://a", UrlError::NoScheme),
            ("1.2.3.4:443", UrlError::Colon),
            ("a b:c", UrlError::Colon),
            ("http://a b@c", UrlError::UserInfo),
            ("http://[::1", UrlError::Bracket),
            ("http://[::1]x", UrlError::Port),
            ("http://a:8x", UrlError::Port),
            ("http://a b", UrlError::Host),
            ("http://a/%zz", UrlError::Escape),
            ("http://a%4", UrlError::Escape),
        ] {
            assert_eq!(split(text), Err(error), "{text}");
        }
    }
}
