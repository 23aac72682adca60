//! The service that knows which twins are somebody (`reference: zero-os 2.6`).
//!
//! The grid's operator wants to know who reserves things. A node asks the operator's service about the
//! sender of each new deployment, and remembers for a while who is known; that somebody is not known is
//! asked again each time, since that changes the moment somebody introduces themselves.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hostd_grid::TwinId;
use serde::Deserialize;

use crate::engine::{blocking, lock};

/// How long one question may take.
const QUESTION_TIME_MAX: Duration = Duration::from_secs(5);
/// How often it is asked before it is given up.
const TRY_COUNT_MAX: u32 = 3;
/// Pause between two tries.
const TRY_PAUSE: Duration = Duration::from_millis(500);
/// How long somebody stays known.
const KNOWN_TIME: Duration = Duration::from_secs(3600);
/// Twins that are remembered.
const KNOWN_COUNT_MAX: usize = 4096;
/// Bytes of an answer.
const ANSWER_SIZE_MAX: u64 = 4096;
/// What the service says of somebody who is known.
const VERIFIED: &str = "VERIFIED";

/// The service.
#[derive(Debug)]
pub struct Kyc {
    url: String,
    known: Mutex<HashMap<TwinId, Instant>>,
}

#[derive(Deserialize)]
struct Answer {
    result: Status,
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

impl Kyc {
    /// The service at that address; none if it is empty.
    pub fn new(url: &str) -> Option<Self> {
        let url = url.trim_end_matches('/').to_owned();
        (!url.is_empty()).then(|| Self { url, known: Mutex::default() })
    }

    /// Whether a twin is somebody.
    ///
    /// # Errors
    ///
    /// The service does not say.
    pub async fn is_verified(&self, twin: TwinId) -> Result<bool, String> {
        let now = Instant::now();
        if lock(&self.known).get(&twin).is_some_and(|until| *until > now) {
            return Ok(true);
        }
        let url = format!("{}/api/v1/status?twin_id={twin}", self.url);
        let mut tries = 0;
        let status = loop {
            let url = url.clone();
            match blocking(move || ask(&url)).await {
                Ok(status) => break status,
                Err(_) if tries + 1 < TRY_COUNT_MAX => tries += 1,
                Err(reason) => return Err(reason),
            }
            tokio::time::sleep(TRY_PAUSE).await;
        };
        let is_verified = status == VERIFIED;
        if is_verified {
            let mut known = lock(&self.known);
            if known.len() >= KNOWN_COUNT_MAX {
                known.retain(|_, until| *until > now);
            }
            if known.len() < KNOWN_COUNT_MAX {
                known.insert(twin, now + KNOWN_TIME);
            }
        }
        Ok(is_verified)
    }
}

/// Asks once. An answer with an error status also says what is known of the twin, or nothing.
fn ask(url: &str) -> Result<String, String> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(QUESTION_TIME_MAX))
        .http_status_as_error(false)
        .max_redirects(3);
    let agent: ureq::Agent = config.build().into();
    let mut response = agent.get(url).call().map_err(|error| error.to_string())?;
    let status = response.status();
    let limited = response.body_mut().with_config().limit(ANSWER_SIZE_MAX);
    let body = limited.read_to_vec().map_err(|error| error.to_string())?;
    match serde_json::from_slice::<Answer>(&body) {
        Ok(answer) => Ok(answer.result.status),
        // It has never heard of the twin.
        Err(_) if status.as_u16() == 404 => Ok(String::new()),
        Err(_) => Err(format!("the service answers with status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// Answers so many requests with the same, and returns what was asked first.
    fn service(answer: &'static str, count: usize) -> (Kyc, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let kyc = Kyc::new(&format!("http://{}/kyc/", listener.local_addr().unwrap())).unwrap();
        let thread = std::thread::spawn(move || {
            let mut first = String::new();
            for _ in 0..count {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut request = [0; 2048];
                let size = stream.read(&mut request).unwrap();
                if first.is_empty() {
                    first = String::from_utf8_lossy(&request[..size]).into_owned();
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
            first
        });
        (kyc, thread)
    }

    #[tokio::test]
    async fn who_is_known_is_remembered() {
        let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 32\r\n\r\n\
                      {\"result\":{\"status\":\"VERIFIED\"}}\n";
        let (kyc, thread) = service(answer, 1);
        assert_eq!(kyc.is_verified(TwinId(7)).await, Ok(true));
        assert_eq!(kyc.is_verified(TwinId(7)).await, Ok(true));
        let request = thread.join().unwrap();
        assert!(request.starts_with("GET /kyc/api/v1/status?twin_id=7 "), "{request}");
    }

    #[tokio::test]
    async fn who_is_not_known_is_told_from_a_service_that_fails() {
        let answer = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let (kyc, thread) = service(answer, 1);
        assert_eq!(kyc.is_verified(TwinId(7)).await, Ok(false));
        thread.join().unwrap();
        let answer = "HTTP/1.1 500 Oh\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let (kyc, thread) = service(answer, 3);
        assert!(kyc.is_verified(TwinId(7)).await.is_err());
        thread.join().unwrap();
        assert!(Kyc::new("").is_none());
    }
}
