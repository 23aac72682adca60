//! Store URLs, parsed once; secrets stay inside.
//!
//! | URL | where a block is |
//! |---|---|
//! | `dir:///PATH` | `PATH/<hex2>/<hex>`, for reading also `PATH/<hex>` |
//! | `zdb://[user[:password]@]host[:9900][/namespace]`, `zdb:///unix/socket` | under its raw name |
//! | `http://`, `https://` `[user:password@]host[:port][/BASE]` | `BASE/<hex2>/<hex>`, else `BASE/<hex>` |
//! | `s3://`, `s3s://` `[KEY:SECRET@]host:port/bucket[?region=R]` | object `<hex>`, path style; `s3s` by TLS |
//!
//! `redis://` and `ardb://` are what legacy images call `zdb://` (`reference: flist 1.1, 1.2`).
//! Reserved characters in user names, passwords and keys are percent-encoded; the path of `dir://`
//! is taken as it is.
//!
//! URLs come from the command line and out of hostile images alike. Whatever can't be shown to a
//! stranger (user names, passwords, keys) appears in no `Display`, `Debug` or error, not even when
//! the URL does not parse.

use std::fmt;
use std::path::PathBuf;

use url::{Host, Url};

use super::StoreError;
use crate::format::Route;

/// Longest store URL, in bytes; the width of an image's `route.url` column.
pub const URL_SIZE_MAX: usize = 2048;
/// Port of a ZDB whose URL names none.
pub const ZDB_PORT: u16 = 9900;
/// Region of an S3 bucket whose URL names none: what servers other than Amazon's expect.
pub const S3_REGION: &str = "us-east-1";

/// A store's URL. `Display` and `Debug` show it without user names, passwords and keys.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl {
    target: Target,
    /// Normalised, with secrets.
    full: String,
    /// Normalised, without.
    public: String,
}

/// What a store URL says, by scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `dir://`: an absolute path.
    Dir(PathBuf),
    /// `zdb://`, `redis://`, `ardb://`.
    Zdb(ZdbTarget),
    /// `http://`, `https://`.
    Http(HttpTarget),
    /// `s3://`, `s3s://`.
    S3(S3Target),
}

/// A ZDB server and a namespace in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZdbTarget {
    /// Where it listens.
    pub endpoint: ZdbEndpoint,
    /// The namespace to select; none for the one a new connection is in.
    pub namespace: Option<String>,
    /// The namespace's password.
    pub password: Option<Secret>,
}

/// Where a ZDB listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZdbEndpoint {
    /// TCP: a host name or address (IPv6 without brackets), and a port.
    Tcp(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

/// A folder on a web server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTarget {
    /// Scheme, host, port and path, without user info and without a slash at the end.
    pub base: String,
    /// User name and password for basic authentication.
    pub credentials: Option<Credentials>,
}

/// A bucket on an S3 server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Target {
    /// Scheme (`http` or `https`), host and port.
    pub endpoint: String,
    /// The bucket.
    pub bucket: String,
    /// The region that requests are signed for.
    pub region: String,
    /// Access key and secret; none for a bucket that anyone may read.
    pub credentials: Option<Credentials>,
}

/// A user name and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User name or access key.
    pub user: Secret,
    /// Password or secret key.
    pub password: Secret,
}

/// Text that no one may see; its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// `[xx-xx=]URL` of the command line: a store, and the first bytes of the block names it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// First byte of the range.
    pub start: u8,
    /// Last byte of the range.
    pub end: u8,
    /// The store.
    pub url: StoreUrl,
}

impl StoreUrl {
    /// Parses a store URL.
    ///
    /// # Errors
    /// [`StoreError::Url`] with the rule that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        parse(text).map_err(|rule| StoreError::Url { store: redacted(text), rule: rule.to_owned() })
    }

    /// The URL of a ZDB, from what a legacy image says about its backend.
    ///
    /// # Errors
    /// [`StoreError::Url`] if `host` is none, or the namespace can't be part of a URL.
    pub fn zdb(
        host: &str,
        port: u16,
        namespace: Option<&str>,
        password: Option<&str>,
    ) -> Result<Self, StoreError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let host = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
        let text = format!("zdb://{host}:{port}");
        let error = |rule: &str| StoreError::Url { store: redacted(&text), rule: rule.to_owned() };
        if bare.contains(['/', '?', '#', '@', '\\']) {
            return Err(error(RULE_HOST));
        }
        let user_info = password.map_or(String::new(), |text| format!(":{}@", encoded(text)));
        let path = namespace.map_or(String::new(), |text| format!("/{}", encoded(text)));
        let url = Self::parse(&format!("zdb://{user_info}{host}:{port}{path}"))?;
        match &url.target {
            Target::Zdb(target) if target.namespace.as_deref() == namespace => Ok(url),
            _ => Err(error(RULE_NAMESPACE)),
        }
    }

    /// What the URL says.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The URL as an image's route table keeps it. `strip_password` leaves the user info away, so
    /// that the image can be given to others.
    #[must_use]
    pub fn to_stored(&self, strip_password: bool) -> String {
        if strip_password { self.public.clone() } else { self.full.clone() }
    }

    /// Whether blocks can be put there.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !matches!(self.target, Target::Http(_))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreUrl({self})")
    }
}

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, to hand to a server.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl RouteSpec {
    /// Parses `[xx-xx=]URL`, two lower-case hex digits each; without a range, all blocks.
    ///
    /// # Errors
    /// [`StoreError::Url`] with the rule that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let (start, end, url) = split_range(text).unwrap_or((0x00, 0xff, text));
        if start > end {
            let rule = "a range xx-xx must not end before it begins".to_owned();
            return Err(StoreError::Url { store: redacted(url), rule });
        }
        Ok(Self { start, end, url: StoreUrl::parse(url)? })
    }
}

impl From<RouteSpec> for Route {
    fn from(spec: RouteSpec) -> Self {
        Self { start: spec.start, end: spec.end, url: spec.url }
    }
}

const RULE_SCHEME: &str = "must be [xx-xx=]URL with dir://, zdb://, http://, https://, s3:// or \
                           s3s:// (xx are two lower-case hex digits)";
const RULE_SIZE: &str = "at most 2048 bytes";
const RULE_CHARACTERS: &str = "white space and control characters must be percent-encoded";
const RULE_DIR: &str = "must be dir:///PATH with an absolute path, without control characters";
const RULE_HOST: &str = "must name a host, or be zdb:///PATH for a unix socket";
const RULE_PORT: &str = "a port is a number from 1 to 65535";
const RULE_ZDB: &str = "must be zdb://[user:password@]host[:port][/namespace] or zdb:///SOCKET";
const RULE_HTTP: &str = "must be http[s]://[user:password@]host[:port][/path], without a query";
const RULE_S3: &str = "must be s3[s]://[KEY:SECRET@]host:port/bucket[?region=REGION]";
const RULE_NAMESPACE: &str = "a namespace is a name without slashes, not . or ..";
const RULE_ENCODING: &str = "user, password, namespace and bucket must be UTF-8, percent-encoded";

type Rule = &'static str;

fn parse(text: &str) -> Result<StoreUrl, Rule> {
    if text.len() > URL_SIZE_MAX {
        return Err(RULE_SIZE);
    }
    if let Some(path) = text.strip_prefix("dir://") {
        return parse_dir(path);
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(RULE_CHARACTERS);
    }
    if !text.contains("://") {
        return Err(RULE_SCHEME);
    }
    let mut url = Url::parse(text).map_err(|error| match error {
        url::ParseError::InvalidPort => RULE_PORT,
        url::ParseError::EmptyHost => RULE_HOST,
        _ => RULE_SCHEME,
    })?;
    if matches!(url.scheme(), "redis" | "ardb") {
        url.set_scheme("zdb").map_err(|()| RULE_SCHEME)?;
    }
    if url.fragment().is_some() || url.port() == Some(0) {
        return Err(if url.port() == Some(0) { RULE_PORT } else { RULE_SCHEME });
    }
    let target = match url.scheme() {
        "zdb" => parse_zdb(&url)?,
        "http" | "https" => parse_http(&url)?,
        "s3" | "s3s" => parse_s3(&url)?,
        _ => return Err(RULE_SCHEME),
    };
    let full = url.as_str().trim_end_matches('/').to_owned();
    let public = without_user_info(url)?.as_str().trim_end_matches('/').to_owned();
    Ok(StoreUrl { target, full, public })
}

fn parse_dir(path: &str) -> Result<StoreUrl, Rule> {
    if !path.starts_with('/') || path.chars().any(char::is_control) {
        return Err(RULE_DIR);
    }
    let text = format!("dir://{path}");
    Ok(StoreUrl { target: Target::Dir(PathBuf::from(path)), full: text.clone(), public: text })
}

fn parse_zdb(url: &Url) -> Result<Target, Rule> {
    if url.query().is_some() {
        return Err(RULE_ZDB);
    }
    let path = decoded(url.path())?;
    if !url.has_host() || url.host_str() == Some("") {
        if path.ends_with('/') || !path.starts_with('/') || !url.username().is_empty() {
            return Err(RULE_ZDB);
        }
        let endpoint = ZdbEndpoint::Unix(PathBuf::from(path));
        return Ok(Target::Zdb(ZdbTarget { endpoint, namespace: None, password: None }));
    }
    let namespace = path.trim_matches('/');
    if namespace.contains('/') || namespace.contains(char::is_control) {
        return Err(RULE_ZDB);
    }
    Ok(Target::Zdb(ZdbTarget {
        endpoint: ZdbEndpoint::Tcp(host(url)?, url.port().unwrap_or(ZDB_PORT)),
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        password: url.password().map(decoded).transpose()?.map(Secret),
    }))
}

fn parse_http(url: &Url) -> Result<Target, Rule> {
    if url.query().is_some() {
        return Err(RULE_HTTP);
    }
    let base = without_user_info(url.clone())?.as_str().trim_end_matches('/').to_owned();
    Ok(Target::Http(HttpTarget { base, credentials: credentials(url)? }))
}

fn parse_s3(url: &Url) -> Result<Target, Rule> {
    let port = url.port().ok_or(RULE_S3)?;
    let scheme = if url.scheme() == "s3s" { "https" } else { "http" };
    let host = host(url)?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let bucket = decoded(url.path().trim_matches('/'))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if bucket.is_empty() || bucket.starts_with('.') || !bucket.chars().all(is_plain) {
        return Err(RULE_S3);
    }
    let mut region = S3_REGION.to_owned();
    for (name, value) in url.query_pairs() {
        if name != "region" || value.is_empty() || !value.chars().all(is_plain) {
            return Err(RULE_S3);
        }
        region = value.into_owned();
    }
    let endpoint = format!("{scheme}://{host}:{port}");
    Ok(Target::S3(S3Target { endpoint, bucket, region, credentials: credentials(url)? }))
}

/// The host, IPv6 addresses without brackets.
fn host(url: &Url) -> Result<String, Rule> {
    match url.host().ok_or(RULE_HOST)? {
        Host::Ipv6(address) => Ok(address.to_string()),
        Host::Ipv4(address) => Ok(address.to_string()),
        Host::Domain(name) => {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            let good = !name.is_empty() && name.chars().all(is_plain);
            if good { Ok(name.to_owned()) } else { Err(RULE_HOST) }
        }
    }
}

fn credentials(url: &Url) -> Result<Option<Credentials>, Rule> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let user = Secret(decoded(url.username())?);
    let password = Secret(decoded(url.password().unwrap_or_default())?);
    Ok(Some(Credentials { user, password }))
}

fn without_user_info(mut url: Url) -> Result<Url, Rule> {
    // A URL without a host (a unix socket) can't have user info either.
    if !url.username().is_empty() || url.password().is_some() {
        url.set_username("").map_err(|()| RULE_HOST)?;
        url.set_password(None).map_err(|()| RULE_HOST)?;
    }
    Ok(url)
}

/// Percent-decoding that refuses what is not UTF-8 and NUL.
fn decoded(text: &str) -> Result<String, Rule> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).filter(|_| *first == b'%').and_then(hex_byte);
        bytes.push(digits.unwrap_or(*first));
        rest = if digits.is_some() { &tail[2..] } else { tail };
    }
    let text = String::from_utf8(bytes).map_err(|_| RULE_ENCODING)?;
    if text.contains('\0') { Err(RULE_ENCODING) } else { Ok(text) }
}

/// Percent-encoding of all but what never needs it (RFC 3986 §2.3).
fn encoded(text: &str) -> String {
    use fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        // Writing to a `String` can't fail.
        let _ = match byte {
            b'-' | b'.' | b'_' | b'~' => write!(out, "{}", char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => write!(out, "{}", char::from(byte)),
            byte => write!(out, "%{byte:02X}"),
        };
        out
    })
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |c: u8| char::from(c).to_digit(16);
    let [high, low] = digits else { return None };
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

/// `xx-xx=rest`, lower-case.
fn split_range(text: &str) -> Option<(u8, u8, &str)> {
    let (range, rest) = text.split_once('=')?;
    let (start, end) = range.split_once('-')?;
    if range.bytes().any(|c| c.is_ascii_uppercase()) {
        return None;
    }
    Some((hex_byte(start.as_bytes())?, hex_byte(end.as_bytes())?, rest))
}

/// What may be shown of a URL that does not parse: its scheme, and its host if it is certain which
/// part that is.
fn redacted(text: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(s, r)| (s, r));
    if scheme == "dir" || (scheme.is_empty() && !rest.contains(['@', '?', '#', ':'])) {
        return text.chars().take(SHOWN_MAX).collect();
    }
    let scheme = if scheme.contains(['@', '?', '#', ':', '/']) { "" } else { scheme };
    let (head, tail) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    let host = head.rsplit('@').next().unwrap_or_default();
    let host = host.split([':', '/']).next().unwrap_or_default();
    let host = if tail.contains('@') { "" } else { host };
    format!("{scheme}://{host}..").chars().take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    fn zdb(text: &str) -> ZdbTarget {
        match StoreUrl::parse(text).unwrap().target {
            Target::Zdb(target) => target,
            other => panic!("{other:?}"),
        }
    }

    fn s3(text: &str) -> S3Target {
        match StoreUrl::parse(text).unwrap().target {
            Target::S3(target) => target,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn dir_takes_its_path_as_it_is() {
        let url = StoreUrl::parse("dir:///srv/my blocks/100%25").unwrap();
        assert_eq!(url.target, Target::Dir(PathBuf::from("/srv/my blocks/100%25")));
        assert_eq!(url.to_stored(true), "dir:///srv/my blocks/100%25");
        StoreUrl::parse("dir://relative").unwrap_err();
        StoreUrl::parse("dir://").unwrap_err();
        StoreUrl::parse("dir:///a\0b").unwrap_err();
    }

    #[test]
    fn zdb_in_all_its_forms() {
        let tcp = |host: &str, port| ZdbEndpoint::Tcp(host.to_owned(), port);
        assert_eq!(zdb("zdb://hub.example").endpoint, tcp("hub.example", 9900));
        assert_eq!(zdb("zdb://hub.example").namespace, None);
        assert_eq!(zdb("zdb://hub.example/").namespace, None);
        assert_eq!(zdb("ardb://hub.example:1/ns"), zdb("zdb://hub.example:1/ns"));
        assert_eq!(zdb("redis://10.0.0.1:16379").endpoint, tcp("10.0.0.1", 16379));
        let full = zdb("zdb://user:p%40ss%2Fword@[2001:db8::1]:9901/some-ns");
        assert_eq!(full.endpoint, tcp("2001:db8::1", 9901));
        assert_eq!(full.namespace.as_deref(), Some("some-ns"));
        assert_eq!(full.password.unwrap().reveal(), "p@ss/word");
        assert_eq!(zdb("zdb://user@h/ns").password, None);
        let unix = zdb("zdb:///run/zdb.sock");
        assert_eq!(unix.endpoint, ZdbEndpoint::Unix(PathBuf::from("/run/zdb.sock")));
    }

    #[test]
    fn zdb_from_a_legacy_backend() {
        let url = StoreUrl::zdb("2001:db8::2", 9900, Some("a b"), Some("se:cr/et@")).unwrap();
        let Target::Zdb(target) = url.target() else { panic!("not zdb") };
        assert_eq!(target.endpoint, ZdbEndpoint::Tcp("2001:db8::2".to_owned(), 9900));
        assert_eq!(target.namespace.as_deref(), Some("a b"));
        assert_eq!(target.password.as_ref().unwrap().reveal(), "se:cr/et@");
        assert_eq!(url.to_stored(true), "zdb://[2001:db8::2]:9900/a%20b");
        StoreUrl::zdb("", 1, None, None).unwrap_err();
        StoreUrl::zdb("h", 1, Some(".."), None).unwrap_err();
        StoreUrl::zdb("h", 1, Some("a/b"), None).unwrap_err();
        StoreUrl::zdb("evil/host@x", 1, None, Some("password")).unwrap_err();
    }

    #[test]
    fn http_keeps_its_base_and_gives_the_user_info_away_once() {
        let url = StoreUrl::parse("https://me:secret@example.org:8443/blocks/v1/").unwrap();
        let Target::Http(target) = url.target() else { panic!("not http") };
        assert_eq!(target.base, "https://example.org:8443/blocks/v1");
        assert_eq!(target.credentials.as_ref().unwrap().password.reveal(), "secret");
        assert_eq!(url.to_string(), "https://example.org:8443/blocks/v1");
        assert_eq!(url.to_stored(false), "https://me:secret@example.org:8443/blocks/v1");
        assert!(!url.is_writable());
        StoreUrl::parse("http://example.org/?token=secret").unwrap_err();
    }

    #[test]
    fn s3_needs_port_and_bucket() {
        let target = s3("s3://KEY:SEC%2FRET@[::1]:9000/bucket?region=garage");
        assert_eq!(target.endpoint, "http://[::1]:9000");
        assert_eq!((target.bucket.as_str(), target.region.as_str()), ("bucket", "garage"));
        assert_eq!(target.credentials.unwrap().password.reveal(), "SEC/RET");
        let open = s3("s3s://s3.example.org:443/public");
        assert_eq!(open.endpoint, "https://s3.example.org:443");
        assert_eq!((open.credentials, open.region.as_str()), (None, S3_REGION));
        for bad in ["s3://K:S@h/b", "s3://K:S@h:1/", "s3://K:S@h:1/a/b", "s3://K:S@h:1/b?x=y"] {
            StoreUrl::parse(bad).unwrap_err();
        }
    }

    #[test]
    fn stored_urls_parse_to_the_same_place() {
        for text in [
            "dir:///a/b",
            "zdb://u:pw@h:1/ns",
            "zdb:///run/sock",
            "http://u:pw@h/base",
            "s3://K:S@h:1/b?region=r",
        ] {
            let url = StoreUrl::parse(text).unwrap();
            assert_eq!(url.to_stored(false), text);
            assert_eq!(StoreUrl::parse(&url.to_stored(false)).unwrap(), url);
            let public = url.to_stored(true);
            assert_eq!(StoreUrl::parse(&public).unwrap().to_string(), public);
        }
    }

    #[test]
    fn ranges_of_the_command_line() {
        let spec = RouteSpec::parse("00-7f=dir:///a").unwrap();
        assert_eq!((spec.start, spec.end), (0x00, 0x7f));
        let spec = RouteSpec::parse("dir:///a=b").unwrap();
        assert_eq!((spec.start, spec.end, spec.url.to_string().as_str()), (0, 255, "dir:///a=b"));
        for bad in ["80-7f=dir:///a", "00-7F=dir:///a", "0-7=dir:///a", "=dir:///a", "00-7f="] {
            assert!(matches!(RouteSpec::parse(bad), Err(StoreError::Url { .. })), "{bad}");
        }
    }

    #[test]
    fn what_is_no_store_url_is_refused_with_a_rule() {
        for bad in [
            "",
            "/srv/blocks",
            "zdb://",
            "zdb://h:0",
            "zdb://h:99999",
            "zdb://h/a/b",
            "zdb:///",
            "zdb:////",
            "zdb:///socket/",
            "zdb://h?x=y",
            "zdb://h#f",
            "http://",
            "ftp://h/",
            "file:///x",
            "zdb://h a/",
            "s3://h:1/..",
            "zdb://%00/",
            "zdb://h/%00",
            "zdb://h/%ff",
        ] {
            let error = StoreUrl::parse(bad).unwrap_err();
            assert!(matches!(error, StoreError::Url { .. }), "{bad}: {error}");
        }
        StoreUrl::parse(&format!("dir:///{}", "x".repeat(URL_SIZE_MAX))).unwrap_err();
    }

    #[test]
    fn no_text_shows_a_secret() {
        const SECRET: &str = "hunter2";
        for text in [
            "zdb://user:hunter2@h/ns",
            "zdb://hunter2@h/ns",
            "https://me:hunter2@h/",
            "s3://hunter2:hunter2@h:1/b",
            "zdb://user:hunter2@h/a/b",
            "zdb://user:hunter2",
            "zdb://u:a?hunter2@h",
            "zdb://u:a/hunter2@h",
            "zdb://u:@hunter2@h:x",
            "s3://K:hunter2@h/b",
            "u:hunter2@h",
            "ftp://u:hunter2@h",
            "http://h/?token=hunter2",
            "http://h/?token=a@hunter2",
            "u:hunter2@x://h",
            "zz-00=zdb://u:hunter2@h",
            "zdb://u:hunter2 @h",
        ] {
            let shown = match RouteSpec::parse(text) {
                Ok(spec) => format!("{spec:?} {} {}", spec.url, spec.url.to_stored(true)),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!shown.contains(SECRET), "{text}: {shown}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 256,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn parsing_never_panics_and_is_stable(text in "(dir|zdb|http|s3s?)://[ -~]{0,40}") {
            if let Ok(url) = StoreUrl::parse(&text) {
                let again = StoreUrl::parse(&url.to_stored(false)).unwrap();
                prop_assert_eq!(again.target(), url.target());
            }
        }

        #[test]
        fn what_a_legacy_backend_says_survives(
            password in "\\PC{1,40}",
            namespace in "[a-z%2F0-9 ?#:@é]{1,20}",
        ) {
            let url = StoreUrl::zdb("h", 9900, Some(&namespace), Some(&password)).unwrap();
            let Target::Zdb(target) = url.target() else { panic!("not zdb") };
            prop_assert_eq!(target.namespace.as_ref().unwrap(), &namespace);
            prop_assert_eq!(target.password.as_ref().unwrap().reveal(), password);
        }
    }
}
