//! `http://` and `https://`: blocks as files on a web server, for reading.
//!
//! Tries `BASE/<hex2>/<hex>` and then the flat `BASE/<hex>`, or the other way round once the flat
//! layout was found (`reference: flist 1.1`). User info becomes basic authentication.
//!
//! `WebClient` is what this and [`s3`](super::s3) share: connections that are kept, limits on time,
//! size and redirects, the route policy, and what each status means; [`crate::web`] has what is not
//! about stores.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::config::Config;
use ureq::http::{StatusCode, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

use super::policy::{Forbidden, RoutePolicy};
use super::route::StoreOptions;
use super::url::{Credentials, HttpTarget};
use super::{Store, StoreError, hex};
use crate::block::STORED_SIZE_MAX;
use crate::web;

/// A folder of blocks on a web server.
pub struct HttpStore {
    client: WebClient,
    base: String,
    authorization: Option<String>,
    /// The flat layout answered last.
    is_flat: AtomicBool,
}

impl HttpStore {
    /// A store that connects with its first request. `name` is its URL without secrets.
    #[must_use]
    pub fn new(name: String, target: &HttpTarget, options: &StoreOptions) -> Self {
        Self {
            client: WebClient::new(name, &target.base, options),
            base: target.base.clone(),
            authorization: target.credentials.as_ref().map(basic_authorization),
            is_flat: AtomicBool::new(false),
        }
    }
}

impl Store for HttpStore {
    fn get(&self, name: &[u8]) -> Result<Vec<u8>, StoreError> {
        let file = hex(name);
        let folder = file.get(..2).unwrap_or_default();
        let sharded = (format!("{}/{folder}/{file}", self.base), false);
        let flat = (format!("{}/{file}", self.base), true);
        let is_flat = self.is_flat.load(Ordering::Relaxed);
        for (url, is_flat) in if is_flat { [flat, sharded] } else { [sharded, flat] } {
            let response = self.client.get(&url, self.authorization.as_deref())?;
            if let Reply::Found(stored) = response {
                self.is_flat.store(is_flat, Ordering::Relaxed);
                return Ok(stored);
            }
        }
        Err(StoreError::Missing { store: self.client.name.clone(), block: file })
    }

    fn put(&self, _name: &[u8], _stored: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly { store: self.client.name.clone() })
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Redirects that are followed for one request.
const REDIRECT_COUNT_MAX: u32 = 3;
/// Bytes of an error's body that are looked at for a reason.
const ERROR_BODY_SIZE_MAX: u64 = 4096;

/// An HTTP client of one store.
pub(crate) struct WebClient {
    name: String,
    agent: Agent,
}

/// What a server said that is no error.
pub(crate) enum Reply<T> {
    /// It has it.
    Found(T),
    /// It does not have it; S3 servers say what is missing (`NoSuchKey`).
    NotFound(Option<String>),
}

impl WebClient {
    /// A client for URLs that begin with `base`.
    pub(crate) fn new(name: String, base: &str, options: &StoreOptions) -> Self {
        let mut config = web::config(base)
            .max_redirects(REDIRECT_COUNT_MAX)
            .max_idle_connections(options.connection_count_max)
            .max_idle_connections_per_host(options.connection_count_max)
            .timeout_connect(Some(options.connect_timeout))
            .timeout_global(Some(options.request_timeout));
        let policy = options.policy.clone();
        if policy.is_restricted() {
            // It would look names up for us, and we would not know where they lead.
            config = config.proxy(None);
        }
        let resolver = CheckedResolver { policy, inner: DefaultResolver::default() };
        let agent = Agent::with_parts(config.build(), DefaultConnector::default(), resolver);
        Self { name, agent }
    }

    /// `GET`; the body, up to one byte more than a block can have.
    pub(super) fn get(
        &self,
        url: &str,
        authorization: Option<&str>,
    ) -> Result<Reply<Vec<u8>>, StoreError> {
        let mut request = self.agent.get(url);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.call().map_err(|error| self.failed(&error))?;
        let status = response.status();
        if status != StatusCode::OK {
            return self.other_status(status, response.body_mut());
        }
        let mut stored = Vec::new();
        let limit = STORED_SIZE_MAX as u64 + 1;
        response
            .body_mut()
            .as_reader()
            .take(limit)
            .read_to_end(&mut stored)
            .map_err(|error| self.failed(&ureq::Error::from(error)))?;
        Ok(Reply::Found(stored))
    }

    /// `GET` into `sink`: at most one byte more than `size_max`, which tells that there is more.
    pub(crate) fn download(
        &self,
        url: &str,
        sink: &mut impl Write,
        size_max: u64,
    ) -> Result<Reply<()>, StoreError> {
        let response = self.agent.get(url).call();
        let mut response = response.map_err(|error| self.failed(&error))?;
        let status = response.status();
        if status != StatusCode::OK {
            return self.other_status(status, response.body_mut());
        }
        let mut body = response.body_mut().as_reader().take(size_max.saturating_add(1));
        std::io::copy(&mut body, sink).map_err(|error| self.failed(&ureq::Error::from(error)))?;
        Ok(Reply::Found(()))
    }

    /// `HEAD`.
    pub(super) fn head(&self, url: &str) -> Result<Reply<()>, StoreError> {
        let mut response = self.agent.head(url).call().map_err(|error| self.failed(&error))?;
        match response.status() {
            StatusCode::OK => Ok(Reply::Found(())),
            status => self.other_status(status, response.body_mut()),
        }
    }

    /// `PUT` of `bytes`.
    pub(super) fn put(&self, url: &str, bytes: &[u8]) -> Result<Reply<()>, StoreError> {
        let mut response = self.agent.put(url).send(bytes).map_err(|error| self.failed(&error))?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(Reply::Found(())),
            status => self.other_status(status, response.body_mut()),
        }
    }

    /// The store's URL without secrets.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn other_status<T>(&self, status: StatusCode, body: &mut Body) -> Result<Reply<T>, StoreError> {
        let code = error_code(body);
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
            return Ok(Reply::NotFound(code));
        }
        let store = self.name.clone();
        let code = code.map_or(String::new(), |code| format!(": {code}"));
        let reason = format!("the server answered {status}{code}");
        let may_pass = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        if may_pass {
            Err(StoreError::Unreachable { store, reason })
        } else if status.is_client_error() {
            Err(StoreError::Refused { store, reason })
        } else {
            Err(StoreError::Failed { store, reason })
        }
    }

    fn failed(&self, error: &ureq::Error) -> StoreError {
        let store = self.name.clone();
        // Some of ureq's texts hold the URL, and the URL can hold a signature.
        let (reason, may_pass) = match error {
            // What rustls objects to comes as invalid data.
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                (format!("TLS: {error}"), false)
            }
            ureq::Error::Io(error) => (error.to_string(), true),
            ureq::Error::Timeout(stage) => (format!("timed out ({stage})"), true),
            ureq::Error::HostNotFound => ("host not found".to_owned(), true),
            ureq::Error::ConnectionFailed => ("connection failed".to_owned(), true),
            ureq::Error::Protocol(error) => (format!("HTTP protocol broken: {error}"), true),
            ureq::Error::TooManyRedirects => {
                (format!("more than {REDIRECT_COUNT_MAX} redirects"), false)
            }
            ureq::Error::RequireHttpsOnly(_) => ("redirected from https to http".to_owned(), false),
            ureq::Error::BadUri(_) => ("redirected to what is no URL".to_owned(), false),
            ureq::Error::Rustls(error) => (format!("TLS: {error}"), false),
            ureq::Error::Tls(text) => (format!("TLS: {text}"), false),
            ureq::Error::Other(error) if error.is::<Forbidden>() => {
                return StoreError::Refused { store, reason: error.to_string() };
            }
            ureq::Error::LargeResponseHeader(size, limit) => {
                (format!("response header of {size} bytes, at most {limit} allowed"), false)
            }
            _ => ("the request failed".to_owned(), true),
        };
        if may_pass {
            StoreError::Unreachable { store, reason }
        } else {
            StoreError::Failed { store, reason }
        }
    }
}

/// Looks names up, and leaves only addresses that may be connected to. Every connection goes through
/// it, those that a redirect leads to as well.
#[derive(Debug)]
struct CheckedResolver {
    policy: RoutePolicy,
    inner: DefaultResolver,
}

impl Resolver for CheckedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        let mut refusal = None;
        for address in &found {
            match self.policy.check_address(address.ip()) {
                Ok(()) => allowed.push(*address),
                Err(forbidden) => refusal = refusal.or(Some(forbidden)),
            }
        }
        match refusal {
            Some(forbidden) if allowed.is_empty() => Err(ureq::Error::Other(forbidden.into())),
            _ => Ok(allowed),
        }
    }
}

/// `RFC 7617`.
fn basic_authorization(credentials: &Credentials) -> String {
    let pair = format!("{}:{}", credentials.user.reveal(), credentials.password.reveal());
    format!("Basic {}", STANDARD.encode(pair))
}

/// The `<Code>` of an S3 server's error document, if that is what the body is.
fn error_code(body: &mut Body) -> Option<String> {
    let mut text = Vec::new();
    body.as_reader().take(ERROR_BODY_SIZE_MAX).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_word = !code.is_empty() && code.chars().all(|c| c.is_ascii_alphanumeric());
    (is_word && code.len() <= 64).then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::policy::AllowRule;
    use super::*;
    use crate::store::testing::{FakeWeb, Response};
    use crate::store::url::{StoreUrl, Target};

    const NAME: [u8; 32] = [0x5a; 32];

    fn open(url: &str, options: &StoreOptions) -> HttpStore {
        let url = StoreUrl::parse(url).unwrap();
        let Target::Http(target) = url.target() else { panic!("{url}") };
        HttpStore::new(url.to_string(), target, options)
    }

    fn store(server: &FakeWeb) -> HttpStore {
        open(&format!("http://127.0.0.1:{}/base/", server.port()), &StoreOptions::default())
    }

    #[test]
    fn both_layouts_are_read_and_the_one_found_is_tried_first() {
        let (sharded, flat) = (format!("/base/5a/{}", hex(&NAME)), format!("/base/{}", hex(&NAME)));
        let wanted = flat.clone();
        let server = FakeWeb::start(move |request| match request.path.as_str() {
            path if path == wanted => Response::ok(b"stored"),
            _ => Response::status(404),
        });
        let store = store(&server);
        assert_eq!(store.get(&NAME).unwrap(), b"stored");
        assert_eq!(store.get(&NAME).unwrap(), b"stored");
        assert_eq!(server.paths(), [sharded, flat.clone(), flat]);
        assert!(matches!(store.get(&[1; 32]), Err(StoreError::Missing { .. })));
        assert!(matches!(store.put(&NAME, b"x"), Err(StoreError::ReadOnly { .. })));
    }

    #[test]
    fn statuses_say_whether_trying_again_may_help() {
        for (status, is_retryable) in [(403, false), (304, false), (500, true), (503, true)] {
            let server = FakeWeb::start(move |_| Response::status(status));
            let error = store(&server).get(&NAME).unwrap_err();
            assert_eq!(matches!(error, StoreError::Unreachable { .. }), is_retryable, "{error}");
            assert!(error.to_string().contains(&status.to_string()), "{error}");
        }
    }

    #[test]
    fn user_info_becomes_basic_authentication_and_is_not_shown() {
        let server = FakeWeb::start(|request| match request.header("authorization") {
            // "me:hunter2"
            Some("Basic bWU6aHVudGVyMg==") => Response::ok(b"stored"),
            _ => Response::status(401),
        });
        let url = format!("http://me:hunter2@127.0.0.1:{}", server.port());
        assert_eq!(open(&url, &StoreOptions::default()).get(&NAME).unwrap(), b"stored");
        let error = store(&server).get(&NAME).unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
    }

    #[test]
    fn no_more_is_read_than_a_block_and_one_byte() {
        let server = FakeWeb::start(|_| Response::ok(&vec![0; STORED_SIZE_MAX + 10]));
        assert_eq!(store(&server).get(&NAME).unwrap().len(), STORED_SIZE_MAX + 1);
    }

    #[test]
    fn a_body_that_breaks_off_is_no_block() {
        let server =
            FakeWeb::start(|_| Response { announced_size: Some(100), ..Response::ok(b"x") });
        let error = store(&server).get(&NAME).unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    }

    #[test]
    fn redirects_are_followed_and_bounded() {
        let server = FakeWeb::start(|request| match request.path.as_str() {
            "/there" => Response::ok(b"stored"),
            path if path.contains("5a5a") => Response::redirect("/there"),
            _ => Response::redirect("/round-and-round"),
        });
        assert_eq!(store(&server).get(&NAME).unwrap(), b"stored");
        let error = store(&server).get(&[1; 32]).unwrap_err();
        assert!(error.to_string().contains("redirects"), "{error}");
    }

    #[test]
    fn addresses_that_the_policy_forbids_are_not_connected_to_not_even_by_a_redirect() {
        let server = FakeWeb::start(|_| Response::ok(b"stored"));
        let restricted = |rules: Vec<AllowRule>| StoreOptions {
            policy: RoutePolicy::restricted(rules),
            ..StoreOptions::default()
        };
        let single = |text: &str| AllowRule::Network(text.parse().unwrap(), 32);
        for host in ["127.0.0.1", "localhost"] {
            let url = format!("http://me:hunter2@{host}:{}", server.port());
            let error = open(&url, &restricted(vec![])).get(&NAME).unwrap_err();
            assert!(matches!(error, StoreError::Refused { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(host) && text.contains("a loopback address"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert!(server.paths().is_empty());
        let port = server.port();
        // 127.0.0.2 is allowed and leads to 127.0.0.1, which is not.
        let other = FakeWeb::start_on("127.0.0.2", move |_| {
            Response::redirect(&format!("http://127.0.0.1:{port}/there"))
        });
        let url = format!("http://127.0.0.2:{}", other.port());
        let error = open(&url, &restricted(vec![single("127.0.0.2")])).get(&NAME).unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("127.0.0.1 is a loopback address"), "{error}");
        assert_eq!((server.paths().len(), other.paths().len()), (0, 1));
        let both = vec![single("127.0.0.1"), single("127.0.0.2")];
        assert_eq!(open(&url, &restricted(both)).get(&NAME).unwrap(), b"stored");
    }

    #[test]
    fn a_server_that_says_nothing_is_given_up() {
        let server = FakeWeb::start(|_| {
            std::thread::sleep(Duration::from_millis(300));
            Response::ok(b"late")
        });
        let url = format!("http://127.0.0.1:{}", server.port());
        let short =
            StoreOptions { request_timeout: Duration::from_millis(50), ..Default::default() };
        let error = open(&url, &short).get(&NAME).unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("timed out"), "{error}");
    }

    #[test]
    fn nobody_there_and_no_tls_there() {
        let options = StoreOptions::default();
        let error = open("http://127.0.0.1:1/", &options).get(&NAME).unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
        let server = FakeWeb::start(|_| Response::ok(b"clear text"));
        let url = format!("https://127.0.0.1:{}", server.port());
        let error = open(&url, &options).get(&NAME).unwrap_err();
        assert!(matches!(error, StoreError::Failed { .. }), "{error}");
        assert!(error.to_string().contains("TLS"), "{error}");
    }
}
