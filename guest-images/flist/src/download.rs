//! An image from a hub, for a node that runs whatever its users name.
//!
//! The address is a stranger's, and so is the server behind it: what it sends is bounded in time and
//! size, where it leads is judged by a [`RoutePolicy`], connection by connection and redirect by
//! redirect, and nothing is believed but that the bytes are these. The file is named by their hash; who
//! asked first gets the same bytes ever after, if it asks for the hash.
//!
//! A hub tells an image's MD5 at `ADDRESS.md5` (`reference: flist 1.3`). A node that says which MD5 it
//! has is spared the download when that is still the image; and what comes must have the MD5 that the
//! hub told, or it was changed, or cut off, on its way.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use md5::{Digest, Md5};
use serde::Serialize;
use url::Url;

use crate::format::{FormatError, image_hash};
use crate::store::StoreError;
use crate::store::http::{Reply, WebClient};
use crate::store::policy::RoutePolicy;
use crate::store::route::StoreOptions;

/// Longest address, in bytes.
pub const URL_SIZE_MAX: usize = 2048;
/// Largest answer to a question for an MD5, in bytes.
const MD5_ANSWER_SIZE_MAX: u64 = 64;
const MAGICS: [&[u8]; 2] = [b"SQLite format 3\0", b"\x1f\x8b"];

/// What to ask for, and how much of it.
#[derive(Clone, Debug)]
pub struct DownloadOptions {
    /// Longest time for all of it.
    pub time_max: Duration,
    /// Most bytes of the image's file.
    pub size_max: u64,
    /// Which addresses may be connected to.
    pub policy: RoutePolicy,
    /// The MD5 of the image that is there already, in hex.
    pub known: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Downloaded {
    /// The image is the one that is known.
    Unchanged,
    /// The image is in the folder.
    Fetched {
        /// BLAKE2b-256 of the file, in hex, and the file's name.
        hash: String,
        /// MD5 of the file, in hex.
        md5: String,
        /// Bytes.
        size: u64,
    },
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// It is no address of an image.
    #[error("{url:?}: {rule}")]
    Url {
        /// The address.
        url: String,
        /// What it must be.
        rule: &'static str,
    },
    /// The server says that there is none.
    #[error("{0}: the hub has no such image")]
    Missing(String),
    /// The server refused, or could not be reached in time.
    #[error(transparent)]
    Web(#[from] StoreError),
    /// It is larger than allowed.
    #[error("{url}: more than {size_max} bytes, which no image may have here")]
    Large {
        /// The address.
        url: String,
        /// The limit.
        size_max: u64,
    },
    /// It is not what the hub says it is.
    #[error("{url}: the hub says that its MD5 is {told}, and sent one with {found}")]
    Differs {
        /// The address.
        url: String,
        /// What the hub told.
        told: String,
        /// What came.
        found: String,
    },
    /// It is something else.
    #[error("{0}: what the hub sent is no image")]
    NoImage(String),
    /// It can't be read again.
    #[error(transparent)]
    Image(#[from] FormatError),
    /// The folder can't be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Fetches the image at `url` into `folder`, which exists.
///
/// # Errors
/// [`DownloadError`]; nothing is left behind.
pub fn download(
    url: &str,
    folder: &Path,
    options: &DownloadOptions,
) -> Result<Downloaded, DownloadError> {
    let deadline = Instant::now() + options.time_max;
    let url = checked(url)?;
    let name = url.to_string();
    let told = told_md5(&name, options, deadline)?;
    if told.is_some() && told == options.known {
        return Ok(Downloaded::Unchanged);
    }
    let io = |source| DownloadError::Io { path: folder.to_owned(), source };
    let mut file = tempfile::Builder::new().prefix(".download-").tempfile_in(folder).map_err(io)?;
    let mut sink = Sink { file: file.as_file_mut(), md5: Md5::new(), size: 0, head: Vec::new() };
    let client = client(&name, options, deadline);
    match client.download(&name, &mut sink, options.size_max)? {
        Reply::Found(()) => {}
        Reply::NotFound(_) => return Err(DownloadError::Missing(name)),
    }
    let (md5, size, head) = (hex(&sink.md5.finalize()), sink.size, sink.head);
    if size > options.size_max {
        return Err(DownloadError::Large { url: name, size_max: options.size_max });
    }
    if let Some(told) = told.filter(|told| *told != md5) {
        return Err(DownloadError::Differs { url: name, told, found: md5 });
    }
    if !MAGICS.iter().any(|magic| head.starts_with(magic)) {
        return Err(DownloadError::NoImage(name));
    }
    let hash = hex(&image_hash(file.path())?);
    file.as_file().sync_all().map_err(io)?;
    let path = folder.join(&hash);
    file.persist(&path).map_err(|error| DownloadError::Io { path, source: error.error })?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(Downloaded::Fetched { hash, md5, size })
}

/// An address that may be asked, without what is none of the server's business.
fn checked(text: &str) -> Result<Url, DownloadError> {
    let shown: String = text.chars().take(200).collect();
    let bad = |rule| Err(DownloadError::Url { url: shown, rule });
    if text.len() > URL_SIZE_MAX {
        return bad("an address has at most 2048 bytes");
    }
    let Ok(mut url) = Url::parse(text) else {
        return bad("must be https://HUB/USER/NAME.flist, or .fl");
    };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return bad("must be https://HUB/USER/NAME.flist, or .fl");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(DownloadError::Url {
            url: url.host_str().unwrap_or_default().to_owned(),
            rule: "an address of an image holds no user and no password",
        });
    }
    url.set_fragment(None);
    Ok(url)
}

fn client(name: &str, options: &DownloadOptions, deadline: Instant) -> WebClient {
    let left = deadline.saturating_duration_since(Instant::now());
    let options = StoreOptions {
        request_timeout: left.max(Duration::from_millis(1)),
        connection_count_max: 1,
        policy: options.policy.clone(),
        ..StoreOptions::default()
    };
    WebClient::new(name.to_owned(), name, &options)
}

/// What the hub says the image's MD5 is; none if it does not say.
fn told_md5(
    url: &str,
    options: &DownloadOptions,
    deadline: Instant,
) -> Result<Option<String>, DownloadError> {
    let mut text = Vec::new();
    let url = format!("{url}.md5");
    match client(&url, options, deadline).download(&url, &mut text, MD5_ANSWER_SIZE_MAX)? {
        Reply::Found(()) => {}
        Reply::NotFound(_) => return Ok(None),
    }
    let text = String::from_utf8_lossy(&text).trim().to_ascii_lowercase();
    let is_md5 = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(is_md5.then_some(text))
}

/// Counts and hashes what it passes on.
struct Sink<'a> {
    file: &'a mut fs::File,
    md5: Md5,
    size: u64,
    head: Vec<u8>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let size = self.file.write(bytes)?;
        let written = bytes.get(..size).unwrap_or_default();
        let missing = MAGICS[0].len().saturating_sub(self.head.len());
        self.head.extend(written.iter().take(missing));
        self.md5.update(written);
        self.size += size as u64;
        Ok(size)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::Arc;

    use super::*;
    use crate::store::policy::AllowRule;

    const IMAGE: &[u8] = b"SQLite format 3\0and so on";

    /// A hub that answers by path, each connection once; it ends with the test's process.
    fn hub(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut line = String::new();
                    let _ = reader.read_line(&mut line);
                    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                    while reader.read_line(&mut line).is_ok_and(|size| size > 2) {}
                    let _ = (&stream).write_all(&answer(&path));
                });
            }
        });
        format!("http://{address}")
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    fn missing() -> Vec<u8> {
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()
    }

    fn options() -> DownloadOptions {
        DownloadOptions {
            time_max: Duration::from_secs(10),
            size_max: 1000,
            policy: RoutePolicy::restricted(vec![AllowRule::Local]),
            known: None,
        }
    }

    fn failure(url: &str, options: &DownloadOptions) -> String {
        let folder = tempfile::tempdir().unwrap();
        let error = download(url, folder.path(), options).unwrap_err().to_string();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{error}: something is left");
        error
    }

    #[test]
    fn an_image_is_named_by_its_hash_and_fetched_once() {
        let md5 = hex(&Md5::digest(IMAGE));
        let told = md5.clone();
        let hub = hub(move |path| match path {
            "/u/a.fl" | "/u/b.fl" => ok(IMAGE),
            "/u/a.fl.md5" => ok(format!("{told}\n").as_bytes()),
            _ => missing(),
        });
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let url = format!("{hub}/u/{name}.fl");
            let Downloaded::Fetched { hash, md5: found, size } =
                download(&url, folder.path(), &options()).unwrap()
            else {
                panic!("not fetched");
            };
            assert_eq!((found, size), (md5.clone(), IMAGE.len() as u64));
            assert_eq!(fs::read(folder.path().join(&hash)).unwrap(), IMAGE);
        }
        let known = DownloadOptions { known: Some(md5), ..options() };
        let again =
            |name: &str| download(&format!("{hub}/u/{name}"), folder.path(), &known).unwrap();
        assert_eq!(again("a.fl"), Downloaded::Unchanged);
        assert!(matches!(again("b.fl"), Downloaded::Fetched { .. }), "this hub tells no MD5");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn hubs_that_lie_or_have_too_much_are_refused_in_words() {
        let hub = hub(|path| match path {
            "/u/lie.fl" | "/u/html.fl.md5" => ok(IMAGE),
            "/u/lie.fl.md5" => ok(&[b'0'; 32]),
            "/u/html.fl" => ok(b"<html>"),
            "/u/large.fl" => ok(&[b'x'; 1001]),
            "/u/short.fl" => b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nSQLite".to_vec(),
            _ => missing(),
        });
        for (name, expected) in [
            ("lie.fl", "the hub says that its MD5 is 0000"),
            ("html.fl", "what the hub sent is no image"),
            ("large.fl", "more than 1000 bytes"),
            ("none.fl", "the hub has no such image"),
        ] {
            let error = failure(&format!("{hub}/u/{name}"), &options());
            assert!(error.contains(expected), "{error}");
        }
        failure(&format!("{hub}/u/short.fl"), &options());
    }

    #[test]
    fn a_hub_that_dawdles_and_one_of_the_nodes_own_are_not_waited_for() {
        let hub = hub(|path| {
            if !path.ends_with(".md5") {
                std::thread::sleep(Duration::from_secs(20));
            }
            missing()
        });
        let start = Instant::now();
        let short = DownloadOptions { time_max: Duration::from_millis(300), ..options() };
        let error = failure(&format!("{hub}/u/x.fl"), &short);
        assert!(error.contains("timed out") && start.elapsed().as_secs() < 10, "{error}");
        let policy = RoutePolicy::restricted(Vec::new());
        let error = failure(&format!("{hub}/u/x.fl"), &DownloadOptions { policy, ..options() });
        assert!(error.contains("127.0.0.1 is"), "{error}");
        for url in ["ftp://x/y", "x", "file:///etc/passwd", "http://a:b@hub/x.fl"] {
            let error = failure(url, &options());
            assert!(error.contains("must be") || error.contains("no password"), "{error}");
        }
    }
}
