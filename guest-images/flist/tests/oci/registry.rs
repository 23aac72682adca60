//! A registry on a loopback port: logins, resumed downloads, and answers that can't be trusted.

use std::sync::{Arc, Mutex};

use flist::oci::registry::RegistryOptions;
use flist::oci::registry::auth::Login;
use flist::oci::{Converted, OciError, Options, convert as convert_image};
use flist::progress::Quiet;
use serde_json::{Value, json};

use super::image::{Compression, Image, Layer};
use super::server::{Request, Response, Server};
use super::{chain, listing, options};

const TOKEN: &str = "opaque-token";

/// What the registry knows, and how it misbehaves.
struct Shelf {
    image: Image,
    manifest: Value,
    address: String,
    /// Whether it wants a token, for which it wants `me:secret`.
    guarded: bool,
    /// Breaks off the first answer for each blob here.
    cut_at: Option<usize>,
    /// Answers 503 so many times.
    failures: u32,
    log: Vec<String>,
}

/// A served shelf.
struct Registry {
    shelf: Arc<Mutex<Shelf>>,
    server: Server,
}

impl Registry {
    fn new(change: impl FnOnce(&mut Shelf)) -> Self {
        let contents: Vec<u8> =
            (0..200_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
        let layer = Layer::new().file("a", b"hello").file("big", &contents).finish();
        let mut image = Image::new(json!({"User": "1"})).layer(&layer, Compression::Gzip);
        let manifest = image.seal();
        let mut shelf = Shelf {
            image,
            manifest,
            address: String::new(),
            guarded: false,
            cut_at: None,
            failures: 0,
            log: Vec::new(),
        };
        change(&mut shelf);
        let shelf = Arc::new(Mutex::new(shelf));
        let answering = Arc::clone(&shelf);
        let server = Server::new(move |request| answering.lock().unwrap().answer(request));
        shelf.lock().unwrap().address = server.address().to_string();
        Self { shelf, server }
    }

    fn convert(&self, name: &str, login: Option<Login>) -> Result<Converted, OciError> {
        let registry = RegistryOptions { insecure: false, login };
        let source = format!("{}/{name}", self.server.address());
        convert_image(&source, &Options { registry, ..options() }, &Quiet)
    }

    fn log(&self) -> Vec<String> {
        self.shelf.lock().unwrap().log.clone()
    }
}

impl Shelf {
    fn answer(&mut self, request: &Request) -> Response {
        assert_eq!(request.method, "GET");
        self.log.push(request.target.clone());
        let authorization = request.header("authorization");
        if let Some(query) = request.target.strip_prefix("/token?") {
            assert!(
                query.contains("service=shelf") && query.contains("scope=repository"),
                "{query}"
            );
            let basic = Login::new("me".into(), "secret".into()).basic();
            return if authorization == Some(basic.header()) {
                Response::new(200, json!({"token": TOKEN}).to_string())
            } else {
                Response::new(401, json!({"errors": [{"message": "who?"}]}).to_string())
            };
        }
        if self.guarded && authorization != Some(&format!("Bearer {TOKEN}")) {
            let challenge = format!(
                "Bearer realm=\"http://{}/token\",service=\"shelf\",scope=\"repository:x/y:pull\"",
                self.address
            );
            return Response::new(401, "").header("www-authenticate", challenge);
        }
        if self.failures > 0 {
            self.failures -= 1;
            return Response::new(503, "");
        }
        match request.target.strip_prefix("/v2/x/y/").and_then(|rest| rest.split_once('/')) {
            Some(("manifests", "latest")) => {
                assert!(request.header("accept").unwrap().contains("image.index"));
                let digest = self.manifest["digest"].as_str().unwrap();
                Response::new(200, self.image.blobs[digest].clone())
            }
            Some(("manifests" | "blobs", digest)) => self.blob(digest, request.header("range")),
            _ => Response::new(404, ""),
        }
    }

    fn blob(&mut self, digest: &str, range: Option<&str>) -> Response {
        let Some(blob) = self.image.blobs.get(digest) else { return Response::new(404, "") };
        let Some(start) = range.map(|range| range["bytes=".len()..].trim_end_matches('-')) else {
            let mut response = Response::new(200, blob.clone());
            response.cut_at = self.cut_at.filter(|cut| *cut < blob.len());
            return response;
        };
        let start: usize = start.parse().unwrap();
        let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
        self.log.push(format!("resumed at {start}"));
        Response::new(206, blob[start..].to_vec()).header("content-range", range)
    }
}

fn error(result: Result<Converted, OciError>) -> String {
    chain(&result.unwrap_err())
}

#[test]
fn an_image_is_pulled_by_name() {
    let registry = Registry::new(|_| {});
    let converted = registry.convert("x/y", None).unwrap();
    assert!(listing(&converted)[1].ends_with("\"hello\""));
    let shelf = registry.shelf.lock().unwrap();
    assert_eq!(converted.tags["oci.digest"], shelf.manifest["digest"].as_str().unwrap());
    let name = format!("{}/x/y:latest", shelf.address);
    assert_eq!(converted.tags["oci.reference"], name);
}

#[test]
fn a_digest_in_the_name_is_held_to() {
    let registry = Registry::new(|_| {});
    let digest = registry.shelf.lock().unwrap().manifest["digest"].as_str().unwrap().to_owned();
    assert!(registry.convert(&format!("x/y@{digest}"), None).is_ok());
    {
        let mut shelf = registry.shelf.lock().unwrap();
        shelf.image.blobs.get_mut(&digest).unwrap().push(b' ');
    }
    let found = error(registry.convert(&format!("x/y@{digest}"), None));
    assert!(found.contains("digest is sha256:") && found.contains(&digest), "{found}");
}

#[test]
fn a_challenge_is_answered_with_a_token() {
    let registry = Registry::new(|shelf| shelf.guarded = true);
    let login = Login::new("me".into(), "secret".into());
    assert!(registry.convert("x/y", Some(login)).is_ok());
    let tokens = registry.log().iter().filter(|line| line.starts_with("/token")).count();
    assert_eq!(tokens, 1, "{:?}", registry.log());
    let wrong = Login::new("me".into(), "guess".into());
    let found = error(registry.convert("x/y", Some(wrong)));
    assert!(found.contains("/token: 401") && found.ends_with(": who?"), "{found}");
    assert!(!found.contains("guess"), "{found}");
    assert!(error(registry.convert("x/y", None)).contains("401"));
}

#[test]
fn a_download_goes_on_where_it_broke_off() {
    let registry = Registry::new(|shelf| shelf.cut_at = Some(100_000));
    let converted = registry.convert("x/y", None).unwrap();
    assert_eq!(
        listing(&converted).len(),
        3 + usize::from(converted.tree.find(b".startup.toml").is_some())
    );
    let resumed = registry.log().iter().any(|line| line == "resumed at 100000");
    assert!(resumed, "{:?}", registry.log());
}

#[test]
fn failures_that_may_pass_are_tried_again() {
    let registry = Registry::new(|shelf| shelf.failures = 2);
    assert!(registry.convert("x/y", None).is_ok());
}

#[test]
fn a_changed_blob_is_named_by_its_digest() {
    let registry = Registry::new(|_| {});
    let digest = {
        let mut shelf = registry.shelf.lock().unwrap();
        let digest = shelf.image.layers[0].clone();
        shelf.image.blobs.get_mut(&digest).unwrap()[20] ^= 1;
        digest
    };
    assert!(error(registry.convert("x/y", None)).starts_with(&format!("{digest}: digest is")));
}

#[test]
fn a_blob_of_another_size_is_refused() {
    let registry = Registry::new(|_| {});
    let digest = {
        let mut shelf = registry.shelf.lock().unwrap();
        let digest = shelf.image.layers[0].clone();
        shelf.image.blobs.get_mut(&digest).unwrap().extend([0; 1000]);
        digest
    };
    let found = error(registry.convert("x/y", None));
    assert!(found.starts_with(&digest) && found.contains("bytes, expected"), "{found}");
}

#[test]
fn what_is_not_there_is_not_found() {
    let registry = Registry::new(|_| {});
    let found = registry.convert("x/z", None).unwrap_err();
    assert!(chain(&found).ends_with("/v2/x/z/manifests/latest: not found"), "{}", chain(&found));
    let digest = registry.shelf.lock().unwrap().image.layers[0].clone();
    registry.shelf.lock().unwrap().image.blobs.remove(&digest);
    assert!(error(registry.convert("x/y", None)).ends_with("not found"));
}
