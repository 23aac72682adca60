//! `s3://` and `s3s://`: blocks as objects of a bucket, named by their hex.
//!
//! Path style, so that servers other than Amazon's work (`reference: flist 1.1`). Requests are signed
//! in their query (AWS Signature Version 4, presigned URLs), or not at all when the URL carries no
//! key. An object is there whole or not at all, and durable when the server has answered, so `sync`
//! has nothing to do.

use std::time::Duration;

use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use url::Url;

use super::http::{Reply, WebClient};
use super::route::StoreOptions;
use super::url::S3Target;
use super::{Store, StoreError, hex};

/// A bucket.
pub struct S3Store {
    client: WebClient,
    bucket: Bucket,
    credentials: Option<Credentials>,
}

/// How long a signature is good: longer than any request may take.
const SIGNATURE_LIFETIME: Duration = Duration::from_secs(300);
/// What an S3 server says when the bucket, and not just the object, is missing.
const CODE_NO_BUCKET: &str = "NoSuchBucket";

impl S3Store {
    /// A store that connects with its first request. `name` is its URL without secrets.
    ///
    /// # Errors
    /// [`StoreError::Url`] if endpoint or bucket can't be part of an object's URL.
    pub fn new(
        name: String,
        target: &S3Target,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let rule = |text: String| StoreError::Url { store: name.clone(), rule: text };
        let endpoint = Url::parse(&target.endpoint).map_err(|error| rule(error.to_string()))?;
        let (bucket, region) = (target.bucket.clone(), target.region.clone());
        let bucket = Bucket::new(endpoint, UrlStyle::Path, bucket, region)
            .map_err(|error| rule(error.to_string()))?;
        let credentials = target.credentials.as_ref();
        Ok(Self {
            client: WebClient::new(name.clone(), &target.endpoint, options),
            bucket,
            credentials: credentials
                .map(|pair| Credentials::new(pair.user.reveal(), pair.password.reveal())),
        })
    }

    fn has(&self, object: &str) -> Result<bool, StoreError> {
        let action = self.bucket.head_object(self.credentials.as_ref(), object);
        match self.client.head(action.sign(SIGNATURE_LIFETIME).as_str()) {
            Ok(Reply::Found(())) => Ok(true),
            // Who may write but not list is refused the answer that there is no such object.
            Ok(Reply::NotFound(_)) | Err(StoreError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn no_bucket(&self) -> StoreError {
        let reason = format!("no bucket {:?}", self.bucket.name());
        StoreError::Refused { store: self.client.name().to_owned(), reason }
    }
}

impl Store for S3Store {
    fn get(&self, name: &[u8]) -> Result<Vec<u8>, StoreError> {
        let object = hex(name);
        let action = self.bucket.get_object(self.credentials.as_ref(), &object);
        match self.client.get(action.sign(SIGNATURE_LIFETIME).as_str(), None)? {
            Reply::Found(stored) => Ok(stored),
            Reply::NotFound(Some(code)) if code == CODE_NO_BUCKET => Err(self.no_bucket()),
            Reply::NotFound(_) => {
                Err(StoreError::Missing { store: self.client.name().to_owned(), block: object })
            }
        }
    }

    fn put(&self, name: &[u8], stored: &[u8]) -> Result<(), StoreError> {
        let object = hex(name);
        if self.has(&object)? {
            return Ok(());
        }
        let action = self.bucket.put_object(self.credentials.as_ref(), &object);
        match self.client.put(action.sign(SIGNATURE_LIFETIME).as_str(), stored)? {
            Reply::Found(()) => Ok(()),
            Reply::NotFound(_) => Err(self.no_bucket()),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use ring::{digest, hmac};

    use super::*;
    use crate::store::testing::{FakeWeb, Request, Response};
    use crate::store::url::{StoreUrl, Target};

    const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const NAME: [u8; 32] = [0xc3; 32];

    type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

    fn open(url: &str) -> S3Store {
        let url = StoreUrl::parse(url).unwrap();
        let Target::S3(target) = url.target() else { panic!("{url}") };
        S3Store::new(url.to_string(), target, &StoreOptions::default()).unwrap()
    }

    /// A bucket `blocks` in the region `garage` that checks signatures.
    fn bucket(objects: &Objects) -> FakeWeb {
        let objects = Arc::clone(objects);
        FakeWeb::start(move |request| {
            let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
            if signature(&request.method, path, request.header("host").unwrap(), query, "garage")
                .is_none_or(|good| !query.ends_with(&format!("&X-Amz-Signature={good}")))
            {
                return error(403, "SignatureDoesNotMatch");
            }
            let Some(object) = path.strip_prefix("/blocks/") else {
                return error(404, "NoSuchBucket");
            };
            answer(&mut objects.lock().unwrap(), request, object)
        })
    }

    fn answer(
        objects: &mut BTreeMap<String, Vec<u8>>,
        request: &Request,
        object: &str,
    ) -> Response {
        match (request.method.as_str(), objects.get(object)) {
            ("GET", Some(bytes)) => Response::ok(bytes),
            ("HEAD", Some(_)) => Response::ok(b""),
            ("PUT", _) => {
                objects.insert(object.to_owned(), request.body.clone());
                Response::ok(b"")
            }
            _ => error(404, "NoSuchKey"),
        }
    }

    fn error(status: u16, code: &str) -> Response {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        Response { body: body.into_bytes(), ..Response::status(status) }
    }

    /// Signature Version 4 of a presigned request, computed from Amazon's description of it and
    /// nothing else. `None` if the query is not one of a presigned request.
    fn signature(
        method: &str,
        path: &str,
        host: &str,
        query: &str,
        region: &str,
    ) -> Option<String> {
        let unsigned = query.split("&X-Amz-Signature=").next()?;
        let parameters: BTreeMap<&str, &str> =
            unsigned.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let time = parameters.get("X-Amz-Date")?;
        let date = time.get(..8)?;
        // A sorted map, so in the canonical order.
        let query: Vec<_> =
            parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = query.join("&");
        let request = format!("{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
        let scope = format!("{date}/{region}/s3/aws4_request");
        let credential = format!("{KEY}/{scope}").replace('/', "%2F");
        if parameters.get("X-Amz-Credential") != Some(&credential.as_str()) {
            return None;
        }
        let hash = hex(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}");
        let mut key = format!("AWS4{SECRET}").into_bytes();
        for part in [date, region, "s3", "aws4_request", &text] {
            let hmac_key = hmac::Key::new(hmac::HMAC_SHA256, &key);
            key = hmac::sign(&hmac_key, part.as_bytes()).as_ref().to_vec();
        }
        Some(hex(&key))
    }

    /// The example of Amazon's documentation ("Authenticating Requests: Using Query Parameters").
    #[test]
    fn the_tests_own_signature_is_the_documented_one() {
        let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256\
                     &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
                     &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host";
        let host = "examplebucket.s3.amazonaws.com";
        assert_eq!(
            signature("GET", "/test.txt", host, query, "us-east-1").unwrap(),
            "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }

    #[test]
    fn blocks_are_signed_objects_and_put_only_once() {
        let objects = Objects::default();
        let server = bucket(&objects);
        let secret = SECRET.replace('/', "%2F");
        let port = server.port();
        let store = open(&format!("s3://{KEY}:{secret}@127.0.0.1:{port}/blocks?region=garage"));
        assert!(matches!(store.get(&NAME), Err(StoreError::Missing { .. })));
        store.put(&NAME, b"stored").unwrap();
        store.put(&NAME, b"again").unwrap();
        store.sync().unwrap();
        assert_eq!(store.get(&NAME).unwrap(), b"stored");
        assert_eq!(objects.lock().unwrap().get(&hex(&NAME)).unwrap(), b"stored");
    }

    #[test]
    fn a_wrong_key_or_bucket_is_refused_with_the_servers_word_and_no_secret() {
        let server = bucket(&Objects::default());
        let port = server.port();
        let secret = SECRET.replace('/', "%2F");
        for (url, word) in [
            (format!("s3://{KEY}:wrong@127.0.0.1:{port}/blocks?region=garage"), "SignatureDoesNot"),
            (format!("s3://{KEY}:{secret}@127.0.0.1:{port}/blocks?region=other"), "SignatureDoes"),
            (format!("s3://127.0.0.1:{port}/blocks"), "SignatureDoesNotMatch"),
            (format!("s3://{KEY}:{secret}@127.0.0.1:{port}/nope?region=garage"), "no bucket"),
        ] {
            let store = open(&url);
            for error in [store.get(&NAME).unwrap_err(), store.put(&NAME, b"x").unwrap_err()] {
                assert!(matches!(error, StoreError::Refused { .. }), "{error}");
                let shown = format!("{error} {error:?}");
                assert!(shown.contains(word), "{shown}");
                assert!(!shown.contains(KEY) && !shown.contains("X-Amz"), "{shown}");
            }
        }
    }

    #[test]
    fn a_bucket_that_anyone_may_read_needs_no_key() {
        let server = FakeWeb::start(|request| match request.path.contains('?') {
            false => Response::ok(b"stored"),
            true => Response::status(400),
        });
        let store = open(&format!("s3://127.0.0.1:{}/blocks", server.port()));
        assert_eq!(store.get(&NAME).unwrap(), b"stored");
        assert_eq!(server.paths(), [format!("/blocks/{}", hex(&NAME))]);
    }
}
