//! Publishing images: to a hub over HTTP, or into a folder that any web server of static files can
//! serve as one (`reference: flist 1.3`).
//!
//! A hub keeps each user's images at `/USER/NAME`, their MD5 at `/USER/NAME.md5` (32 hex digits and
//! a newline) and a description in JSON at `/USER/NAME.json` and `/api/flist/USER/NAME/light`.
//! Names end in `.fl` or `.flist`, as the image's generation demands. MD5 is the hub's choice and
//! guards against accidents only; what an image refers to is checked block by block.
//!
//! Only image files are published. Their blocks are in the stores that the image names.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use ureq::http::{Response, StatusCode};
use ureq::{Body, SendBody};
use url::Url;

use crate::format::{FormatError, Image};
use crate::oci::registry::agent;
use crate::progress::{Cancelled, Progress};
use crate::web::{WebError, is_local};

/// Longest name of an image or a user, in bytes.
pub const NAME_SIZE_MAX: usize = 200;

/// A hub unpacks and indexes what it receives before it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
const ANSWER_SIZE_MAX: u64 = 64 * 1024;
const COPY_SIZE: usize = 128 * 1024;
const MAGIC_CURRENT: &[u8] = b"SQLite format 3\0";
const MAGIC_LEGACY: &[u8] = b"\x1f\x8b";

/// A hub's token. It has no `Debug` and appears in no error.
#[derive(Clone)]
pub struct Token(String);

/// Under which name an image is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicName(String);

/// Who publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(String);

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The image's name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When, in seconds since the Unix epoch.
    pub updated: u64,
    /// What kind of entry it is; `regular`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// MD5 of the image file, in hex.
    pub md5: String,
}

/// Why an image is not published.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The system said no.
    #[error("{}", path.display())]
    Io {
        /// What could not be read or written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no image.
    #[error("not published")]
    Image(#[from] FormatError),
    /// A name that a hub could not serve.
    #[error("name {name:?}: {rule}")]
    Name {
        /// The name.
        name: String,
        /// What it must be.
        rule: String,
    },
    /// A token that can't stand in a header; its text is not shown.
    #[error("the hub's token must be visible ASCII characters")]
    Token,
    /// The address is not one of a hub.
    #[error("hub {hub:?}: {rule}")]
    Address {
        /// The address.
        hub: String,
        /// What it must be.
        rule: &'static str,
    },
    /// The hub refused, or could not be reached.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The hub has another image than the one that was sent.
    #[error("{url}: the hub has {found:?}, {expected} was sent")]
    Differs {
        /// Where the hub tells the MD5.
        url: String,
        /// What was sent.
        expected: String,
        /// What the hub has.
        found: String,
    },
    /// The user stopped it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// A hub's answer to what changes something.
#[derive(Deserialize)]
struct Answer {
    status: String,
    message: Option<String>,
}

/// Publishes `image` into `folder`, which a web server may be serving at this moment: each file is
/// replaced in one step, the image before what describes it.
///
/// # Errors
/// [`HubError`] names the file or name and the rule.
pub fn publish(
    image: &Path,
    folder: &Path,
    user: &User,
    name: &PublicName,
    progress: &dyn Progress,
) -> Result<Published, HubError> {
    Image::open(image)?;
    let target = folder.join(&user.0).join(&name.0);
    let api = folder.join("api/flist").join(&user.0).join(&name.0);
    let (md5, size) = replace(&target, |to| copy(image, to, progress))?;
    let published = Published::new(name, size, md5);
    let json = serde_json::to_vec(&published)
        .map_err(|error| HubError::Io { path: target.clone(), source: error.into() })?;
    let checksum = format!("{}\n", published.md5);
    for (path, bytes) in [
        (with_suffix(&target, ".md5"), checksum.as_bytes()),
        (with_suffix(&target, ".json"), &json),
        (api.join("light"), &json),
    ] {
        replace(&path, |to| {
            to.write_all(bytes).map_err(|source| HubError::Io { path: path.clone(), source })
        })?;
    }
    Ok(published)
}

/// Uploads `image` to the account that `token` opens. With a `user`, one account of several is
/// chosen, and the hub is asked afterwards for the MD5 of what it now has.
///
/// # Errors
/// [`HubError`] tells what the hub said.
pub fn push(
    image: &Path,
    hub: &str,
    token: &Token,
    user: Option<&User>,
    name: &PublicName,
    insecure: bool,
    progress: &dyn Progress,
) -> Result<Published, HubError> {
    let hub = parse_hub(hub, insecure)?;
    Image::open(image)?;
    let (md5, size) = copy(image, &mut io::sink(), progress)?;
    let published = Published::new(name, size, md5);
    let url = join(&hub, "api/flist/me/upload-flist");
    let (head, tail) = multipart(&published);
    let file = File::open(image).map_err(|source| io_error(image, source))?;
    progress.begin("uploading", size);
    let counted = Counted { file: file.take(size), progress };
    let mut body = head.as_bytes().chain(counted).chain(tail.as_bytes());
    let agent = agent(hub.as_str());
    let mut request = agent
        .post(&url)
        .config()
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .build()
        .header("authorization", format!("bearer {}", token.0))
        .header("content-type", format!("multipart/form-data; boundary={}", published.md5))
        .header(
            "content-length",
            size.saturating_add((head.len() + tail.len()) as u64).to_string(),
        );
    if let Some(user) = user {
        request = request.header("cookie", format!("active-user={}", user.0));
    }
    let response = request.send(SendBody::from_reader(&mut body));
    progress.check()?;
    accept(&url, response.map_err(|error| unreachable(&url, &error))?)?;
    if let Some(user) = user {
        compare(&agent, &join(&hub, &format!("{}/{}.md5", user.0, name.0)), &published.md5)?;
    }
    Ok(published)
}

impl Token {
    /// A token, without the white space around it.
    ///
    /// # Errors
    /// [`HubError::Token`].
    pub fn new(text: &str) -> Result<Self, HubError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HubError::Token);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl User {
    /// A user's name.
    ///
    /// # Errors
    /// [`HubError::Name`].
    pub fn new(text: &str) -> Result<Self, HubError> {
        check_name(text)?;
        if text == "api" {
            let rule = "\"api\" is where a hub answers questions".to_owned();
            return Err(HubError::Name { name: text.to_owned(), rule });
        }
        Ok(Self(text.to_owned()))
    }
}

impl PublicName {
    /// The name for `image`: `wanted`, or its own file name, with the ending of its generation.
    ///
    /// # Errors
    /// [`HubError::Name`] if a name ends as another generation's does, or could not be served;
    /// [`HubError::Io`].
    pub fn new(image: &Path, wanted: Option<&str>) -> Result<Self, HubError> {
        let ending = generation(image)?;
        let own = image.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = wanted.map_or_else(|| own.unwrap_or_default(), str::to_owned);
        let found = name.rsplit_once('.').map(|(_, ending)| ending);
        let name = match found {
            Some("fl" | "flist") if found != Some(ending) => {
                let rule = format!("must end in \".{ending}\", for that is what the image is");
                return Err(HubError::Name { name, rule });
            }
            Some("fl" | "flist") => name,
            _ => format!("{name}.{ending}"),
        };
        check_name(&name)?;
        Ok(Self(name))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Published {
    fn new(name: &PublicName, size: u64, md5: String) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { name: name.0.clone(), size, updated: now.as_secs(), kind: "regular", md5 }
    }
}

/// What an image's name must end in.
fn generation(image: &Path) -> Result<&'static str, HubError> {
    let mut magic = Vec::new();
    let file = File::open(image).map_err(|source| io_error(image, source))?;
    let read = file.take(MAGIC_CURRENT.len() as u64).read_to_end(&mut magic);
    read.map_err(|source| io_error(image, source))?;
    if magic == MAGIC_CURRENT {
        Ok("fl")
    } else if magic.starts_with(MAGIC_LEGACY) {
        Ok("flist")
    } else {
        Err(io_error(image, io::Error::new(io::ErrorKind::InvalidData, "not an flist image")))
    }
}

/// Names are parts of paths and URLs.
fn check_name(name: &str) -> Result<(), HubError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=NAME_SIZE_MAX).contains(&name.len())
        && name.bytes().all(fits)
        && !name.starts_with(['.', '-'])
    {
        return Ok(());
    }
    let rule =
        format!("must be 1 to {NAME_SIZE_MAX} letters, digits and . _ - and not begin with . or -");
    Err(HubError::Name { name: name.chars().take(NAME_SIZE_MAX).collect(), rule })
}

/// Copies a file; returns its MD5 in hex and its size.
fn copy(
    from: &Path,
    to: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<(String, u64), HubError> {
    let mut file = File::open(from).map_err(|source| io_error(from, source))?;
    let (mut hasher, mut size) = (Md5::new(), 0u64);
    let mut buffer = vec![0; COPY_SIZE];
    loop {
        progress.check()?;
        let read = file.read(&mut buffer).map_err(|source| io_error(from, source))?;
        let (bytes, _) = buffer.split_at(read);
        if bytes.is_empty() {
            let digits = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok((digits, size));
        }
        hasher.update(bytes);
        to.write_all(bytes).map_err(|source| io_error(from, source))?;
        size = size.saturating_add(read as u64);
    }
}

/// Writes a file under another name, makes it durable, and puts it in its place in one step.
fn replace<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<T, HubError>,
) -> Result<T, HubError> {
    let error = |source| io_error(path, source);
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder).map_err(error)?;
    let mut file = tempfile::Builder::new()
        .prefix(".publishing-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(error)?;
    let result = write(file.as_file_mut())?;
    file.as_file().sync_all().map_err(error)?;
    file.persist(path).map_err(|failed| error(failed.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(error)?;
    Ok(result)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

/// The hub's URL. A token may not travel in the clear, except within this machine.
fn parse_hub(text: &str, insecure: bool) -> Result<Url, HubError> {
    let address = |rule| HubError::Address { hub: text.to_owned(), rule };
    let Ok(url) = Url::parse(text) else {
        return Err(address("must be a URL: https://HOST"));
    };
    if !url.username().is_empty() || url.password().is_some() {
        let hub = url.host_str().unwrap_or_default().to_owned();
        let rule = "a name or password does not belong into the URL; use a token";
        return Err(HubError::Address { hub, rule });
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if insecure || url.host_str().is_some_and(is_local) => Ok(url),
        "http" => Err(address("the token would travel in the clear; use https or --insecure")),
        _ => Err(address("must be a URL: https://HOST")),
    }
}

fn join(hub: &Url, path: &str) -> String {
    format!("{}/{path}", hub.as_str().trim_end_matches('/'))
}

/// What stands before and behind the file in a form's body (RFC 7578). The boundary is the file's
/// own MD5, which the file does not contain.
fn multipart(published: &Published) -> (String, String) {
    let (boundary, name) = (&published.md5, &published.name);
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    (head, format!("\r\n--{boundary}--\r\n"))
}

/// Whether the hub says that it took the upload.
fn accept(url: &str, response: Response<Body>) -> Result<(), WebError> {
    let status = response.status();
    let mut body = response.into_body().into_reader().take(ANSWER_SIZE_MAX);
    let mut text = Vec::new();
    // Half an answer is as good as none.
    let read = body.read_to_end(&mut text).ok();
    let answer: Option<Answer> = read.and_then(|_| serde_json::from_slice(&text).ok());
    let success = answer.as_ref().is_some_and(|answer| answer.status == "success");
    if status.is_success() && success {
        return Ok(());
    }
    let message = answer.and_then(|answer| answer.message).unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
    let separator = if message.is_empty() { "" } else { ": " };
    let (url, reason) = (url.to_owned(), format!("{status}{separator}{message}"));
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(WebError::Unreachable { url, reason });
    }
    if status.is_success() && message.is_empty() {
        let reason = "the answer is not a hub's".to_owned();
        return Err(WebError::Refused { url, reason });
    }
    Err(WebError::Refused { url, reason })
}

/// Asks the hub what it has.
fn compare(agent: &ureq::Agent, url: &str, expected: &str) -> Result<(), HubError> {
    let response = agent.get(url).call().map_err(|error| unreachable(url, &error))?;
    let status = response.status();
    if !status.is_success() {
        let reason = format!("{status}: the hub took the image but does not show it");
        return Err(WebError::Unreachable { url: url.to_owned(), reason }.into());
    }
    let mut found = String::new();
    let mut body = response.into_body().into_reader().take(expected.len() as u64 + 1);
    let read = body.read_to_string(&mut found);
    read.map_err(|error| WebError::Unreachable { url: url.to_owned(), reason: error.to_string() })?;
    if found.trim_end() == expected {
        return Ok(());
    }
    let (url, expected) = (url.to_owned(), expected.to_owned());
    Err(HubError::Differs { url, expected, found })
}

fn unreachable(url: &str, error: &ureq::Error) -> WebError {
    WebError::Unreachable { url: url.to_owned(), reason: error.to_string() }
}

fn io_error(path: &Path, source: io::Error) -> HubError {
    HubError::Io { path: path.to_owned(), source }
}

/// Tells how much of an upload is done, and ends it early when the user wants that.
struct Counted<'a> {
    file: io::Take<File>,
    progress: &'a dyn Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.progress.check().map_err(io::Error::other)?;
        let size = self.file.read(buffer)?;
        self.progress.advance(size as u64);
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().prefix("x").suffix(".img").tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn names_end_as_the_generation_demands() {
        let (current, legacy) = (file(MAGIC_CURRENT), file(MAGIC_LEGACY));
        let name = |file: &tempfile::NamedTempFile, wanted| PublicName::new(file.path(), wanted);
        assert_eq!(name(&current, Some("a")).unwrap().as_str(), "a.fl");
        assert_eq!(name(&current, Some("a-1.2")).unwrap().as_str(), "a-1.2.fl");
        assert_eq!(name(&legacy, Some("a.flist")).unwrap().as_str(), "a.flist");
        assert!(name(&current, None).unwrap().as_str().ends_with(".img.fl"));
        for bad in ["a.flist", "../a", "a/b", ".a", "-a", "", "a b"] {
            assert!(name(&current, Some(bad)).is_err(), "{bad}");
        }
        assert!(name(&file(b"text"), Some("a")).is_err());
        assert!(
            User::new("api").is_err() && User::new("..").is_err() && User::new("me.3bot").is_ok()
        );
    }

    #[test]
    fn tokens_are_not_shown_and_do_not_travel_in_the_clear() {
        let token = Token::new(" secret\n").unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
        assert!(Token::new("two words").is_err() && Token::new("").is_err());
        assert!(parse_hub("http://hub.example", false).is_err());
        assert!(parse_hub("http://hub.example", true).is_ok());
        assert!(parse_hub("http://127.0.0.1:80", false).is_ok());
        let error = parse_hub("https://me:secret@hub.example", false).unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
