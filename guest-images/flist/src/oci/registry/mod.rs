//! Images in registries (OCI distribution spec 1.1, "Pull").
//!
//! Every request is bounded in time and tried at most [`ATTEMPT_COUNT_MAX`] times; a download that
//! breaks off goes on where it stopped. Bytes count only when their digest fits. Plain HTTP is
//! spoken with this machine's own addresses, and elsewhere only when asked for.

pub mod auth;

use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body};

use self::auth::{Authorization, Challenge, Login};
use super::OciError;
use super::digest::{Digest, Hasher};
use super::manifest::{Blob, JSON_SIZE_MAX, Root, Source, read_json};
use super::reference::Reference;
use super::region::Region;
use super::spool::{Spool, verify};
use crate::progress::Progress;
use crate::web::{self, WebError, is_local};

/// How often a request is tried, and a download without progress resumed.
pub const ATTEMPT_COUNT_MAX: u32 = 5;

const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const REDIRECT_COUNT_MAX: u32 = 5;
const COPY_SIZE: usize = 64 * 1024;
const ERROR_SIZE_MAX: u64 = 4096;
const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// How to speak with registries.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Speak plain HTTP with any registry, not only with this machine.
    pub insecure: bool,
    /// Name and password, if they are to be sent when the registry asks.
    pub login: Option<Login>,
}

/// An image in a registry.
#[derive(Debug)]
pub struct Registry {
    reference: Reference,
    agent: Agent,
    /// `https://HOST/v2/PATH`.
    base: String,
    options: RegistryOptions,
    authorization: Mutex<Option<Authorization>>,
}

/// One try's end.
enum Failure {
    /// Try again.
    Passing(String),
    /// Don't.
    Final(OciError),
}

impl Registry {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(reference: Reference, options: &RegistryOptions) -> Self {
        let host = reference.api_host();
        let local = is_local(&host);
        let scheme = if options.insecure || local { "http" } else { "https" };
        let base = format!("{scheme}://{host}/v2/{}", reference.path());
        Self {
            agent: agent(&base),
            base,
            reference,
            options: options.clone(),
            authorization: Mutex::new(None),
        }
    }

    /// A GET that the registry answers with success.
    fn get(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        progress: &dyn Progress,
    ) -> Result<Response<Body>, OciError> {
        let mut attempt = 1;
        loop {
            match self.try_get(url, headers) {
                Ok(response) => return Ok(response),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) if attempt >= ATTEMPT_COUNT_MAX => {
                    return Err(WebError::Unreachable { url: url.to_owned(), reason }.into());
                }
                Err(Failure::Passing(_)) => pause(attempt, progress)?,
            }
            attempt += 1;
        }
    }

    /// One try; one more if the registry asks who we are.
    fn try_get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Response<Body>, Failure> {
        let response = self.send(url, headers)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return judge(url, response);
        }
        let answer = self.answer_challenge(url, response.headers())?;
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        judge(url, self.send(url, headers)?)
    }

    fn send(&self, url: &str, headers: &[(&str, &str)]) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(authorization) = known.as_ref() {
            request = request.header(header::AUTHORIZATION, authorization.header());
        }
        drop(known);
        request.call().map_err(|error| Failure::Passing(error.to_string()))
    }

    /// Gets what the registry wants to see from now on.
    fn answer_challenge(&self, url: &str, headers: &HeaderMap) -> Result<Authorization, Failure> {
        let refused = |reason: &str| {
            let (url, reason) = (url.to_owned(), reason.to_owned());
            Failure::Final(WebError::Refused { url, reason }.into())
        };
        let texts = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let challenge = texts.filter_map(|text| Challenge::parse(text.to_str().ok()?)).next();
        let login = self.options.login.as_ref();
        match (challenge, login) {
            (Some(Challenge::Basic), Some(login)) => Ok(login.basic()),
            (Some(Challenge::Basic), None) => Err(refused("it wants a name and a password")),
            (Some(Challenge::Bearer { realm, query }), login) => {
                if !self.may_trust(&realm) {
                    return Err(refused("it asks to log in over plain HTTP"));
                }
                let mut request = self.agent.get(&realm).query_pairs(query);
                if let Some(login) = login {
                    request = request.header(header::AUTHORIZATION, login.basic().header());
                }
                let response = request.call().map_err(|e| Failure::Passing(e.to_string()))?;
                let body = judge(&realm, response)?.into_body().into_reader();
                Authorization::from_token_response(body.take(JSON_SIZE_MAX))
                    .ok_or_else(|| refused("its token service returned no token"))
            }
            (None, _) => Err(refused("it refuses, and does not say how to log in")),
        }
    }

    /// Whether a password may go to `realm`: over TLS, or else as the registry itself is spoken with.
    /// A registry elsewhere has no business with services of this machine.
    fn may_trust(&self, realm: &str) -> bool {
        let Ok(realm) = url::Url::parse(realm) else { return false };
        let local = realm.host_str().is_some_and(is_local);
        let in_the_clear = self.base.starts_with("http://");
        match realm.scheme() {
            "https" => true,
            "http" => in_the_clear && (local || self.options.insecure),
            _ => false,
        }
    }

    /// Downloads a manifest or index into a temporary file.
    fn manifest(
        &self,
        selector: &str,
        spool: &Spool,
        progress: &dyn Progress,
    ) -> Result<Region, OciError> {
        let url = format!("{}/manifests/{selector}", self.base);
        let response = self.get(&url, &[("accept", ACCEPT_MANIFESTS)], progress)?;
        let mut json = Vec::new();
        let mut body = response.into_body().into_reader().take(JSON_SIZE_MAX + 1);
        body.read_to_end(&mut json).map_err(|error| WebError::Unreachable {
            url: url.clone(),
            reason: error.to_string(),
        })?;
        let io_error = |source| OciError::Io { what: url.clone(), source };
        let mut file = spool.file()?;
        file.write_all(&json).map_err(io_error)?;
        Region::whole(file).map_err(io_error)
    }

    /// Downloads a blob into a temporary file, on from where the last try stopped.
    fn download(
        &self,
        digest: &Digest,
        size: Option<u64>,
        spool: &Spool,
        progress: &dyn Progress,
    ) -> Result<Region, OciError> {
        let url = format!("{}/blobs/{digest}", self.base);
        let what = digest.to_string();
        // Descriptors in manifests always tell.
        spool.check_room(&what, size.unwrap_or_default())?;
        let io_error = |source| OciError::Io { what: what.clone(), source };
        let mut partial =
            Partial { file: spool.file()?, hasher: Hasher::new(digest.algorithm()), size: 0 };
        let mut attempt = 1;
        loop {
            let before = partial.size;
            let reason = match self.continue_download(&url, size, &mut partial, progress) {
                Ok(()) => break,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => reason,
            };
            attempt = if partial.size > before { 1 } else { attempt + 1 };
            if attempt > ATTEMPT_COUNT_MAX {
                return Err(WebError::Unreachable { url, reason }.into());
            }
            pause(attempt, progress)?;
        }
        if let Some(expected) = size.filter(|expected| *expected != partial.size) {
            return Err(OciError::Size { what, expected, found: partial.size });
        }
        let found = partial.hasher.finish();
        if found != *digest {
            return Err(OciError::Digest { what, expected: digest.clone(), found });
        }
        Region::whole(partial.file).map_err(io_error)
    }

    fn continue_download(
        &self,
        url: &str,
        size: Option<u64>,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let range = format!("bytes={}-", partial.size);
        let headers = [("range", range.as_str())];
        let headers = if partial.size == 0 { [].as_slice() } else { headers.as_slice() };
        let response = self.get(url, headers, progress).map_err(Failure::Final)?;
        let io_error = |source| Failure::Final(OciError::Io { what: url.to_owned(), source });
        if partial.size > 0 && !resumes_at(&response, partial.size) {
            partial.restart().map_err(io_error)?;
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; COPY_SIZE];
        loop {
            progress.check().map_err(|error| Failure::Final(error.into()))?;
            let read = body.read(&mut buffer).map_err(|e| Failure::Passing(e.to_string()))?;
            let (bytes, _) = buffer.split_at(read);
            if bytes.is_empty() {
                break;
            }
            partial.append(bytes).map_err(io_error)?;
            if size.is_some_and(|size| partial.size > size) {
                return Ok(());
            }
        }
        if size.is_some_and(|size| partial.size < size) {
            return Err(Failure::Passing(format!("it ended after {} bytes", partial.size)));
        }
        Ok(())
    }
}

impl Source for Registry {
    fn root(&self, spool: &Spool, progress: &dyn Progress) -> Result<Root, OciError> {
        let region = self.manifest(&self.reference.selector(), spool, progress)?;
        let what = self.reference.to_string();
        if let Some(digest) = self.reference.digest() {
            verify(&region, &what, digest, progress)?;
        }
        let json = read_json(&what, &region)?;
        Ok(Root::Oci { what, json, is_image: true })
    }

    fn open(
        &self,
        blob: &Blob,
        spool: &Spool,
        progress: &dyn Progress,
    ) -> Result<Region, OciError> {
        match blob {
            Blob::Digest(digest, size) => self.download(digest, *size, spool, progress),
            Blob::Member(path) => Err(OciError::Missing { what: path.clone() }),
        }
    }

    fn open_manifest(
        &self,
        blob: &Blob,
        spool: &Spool,
        progress: &dyn Progress,
    ) -> Result<Region, OciError> {
        let what = blob.to_string();
        let Some(digest) = blob.digest() else { return Err(OciError::Missing { what }) };
        let region = self.manifest(&what, spool, progress)?;
        verify(&region, &what, digest, progress)?;
        Ok(region)
    }

    fn name(&self) -> Option<String> {
        Some(self.reference.to_string())
    }
}

/// A download so far.
struct Partial {
    file: std::fs::File,
    hasher: Hasher,
    size: u64,
}

impl Partial {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size = self.size.saturating_add(bytes.len() as u64);
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Hasher::new(match self.hasher {
            Hasher::Sha256(_) => super::digest::Algorithm::Sha256,
            Hasher::Sha512(_) => super::digest::Algorithm::Sha512,
        });
        self.size = 0;
        Ok(())
    }
}

/// Speaks HTTP with bounds on everything.
pub(crate) fn agent(base: &str) -> Agent {
    web::config(base)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(RESPONSE_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .max_redirects(REDIRECT_COUNT_MAX)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .build()
        .into()
}

/// Sorts answers into success, what may pass, and what will not.
fn judge(url: &str, response: Response<Body>) -> Result<Response<Body>, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let passing = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
    let reason = format!("{status}{}", message(response));
    let url = url.to_owned();
    if passing || status.is_server_error() {
        Err(Failure::Passing(reason))
    } else if status == StatusCode::NOT_FOUND {
        Err(Failure::Final(WebError::Missing { url }.into()))
    } else {
        Err(Failure::Final(WebError::Refused { url, reason }.into()))
    }
}

/// What the registry says in its own words, if it does.
fn message(response: Response<Body>) -> String {
    let body = response.into_body().into_reader().take(ERROR_SIZE_MAX);
    let errors: Option<serde_json::Value> = serde_json::from_reader(body).ok();
    let text = errors.as_ref().and_then(|errors| errors.pointer("/errors/0/message")?.as_str());
    let printable = |text: &str| text.chars().filter(|c| !c.is_control()).take(200).collect();
    text.map(printable).map_or_else(String::new, |text: String| format!(": {text}"))
}

/// Whether a partial answer begins where we asked it to.
fn resumes_at(response: &Response<Body>, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|text| text.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    response.status() == StatusCode::PARTIAL_CONTENT
        && start.is_some_and(|start| start.parse() == Ok(offset))
}

/// Waits before the next try, longer each time.
fn pause(attempt: u32, progress: &dyn Progress) -> Result<(), OciError> {
    progress.check()?;
    thread::sleep(BACKOFF_FIRST.saturating_mul(1 << attempt.min(ATTEMPT_COUNT_MAX)) / 2);
    Ok(progress.check()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(name: &str, insecure: bool) -> Registry {
        let options = RegistryOptions { insecure, login: None };
        Registry::new(name.parse().unwrap(), &options)
    }

    #[test]
    fn only_this_machine_is_spoken_with_in_the_clear() {
        for (name, scheme) in [
            ("registry.example/a", "https"),
            ("localhost.example/a", "https"),
            ("127.0.0.1.example/a", "https"),
            ("10.0.0.1:5000/a", "https"),
            ("localhost:5000/a", "http"),
            ("127.0.0.1/a", "http"),
            ("[::1]:5000/a", "http"),
        ] {
            let base = registry(name, false).base;
            assert!(base.starts_with(&format!("{scheme}://")), "{base}");
        }
        assert_eq!(registry("registry.example/a", true).base, "http://registry.example/v2/a");
    }

    #[test]
    fn passwords_do_not_travel_in_the_clear() {
        let trusts = |realm| registry("registry.example/a", false).may_trust(realm);
        assert!(trusts("https://auth.example/token"));
        assert!(!trusts("http://127.0.0.1:5000/token"));
        assert!(registry("127.0.0.1/a", false).may_trust("http://127.0.0.1:5000/token"));
        assert!(!registry("127.0.0.1/a", false).may_trust("http://auth.example/token"));
        assert!(!trusts("http://auth.example/token"));
        assert!(!trusts("ftp://auth.example/token") && !trusts("token"));
        assert!(registry("registry.example/a", true).may_trust("http://auth.example/token"));
    }
}
