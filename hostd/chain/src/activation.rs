//! The service that gives a new account its first tokens.
//!
//! An account that does not exist can't pay for anything, also not for calls that are free afterwards.
//! The grid's operator runs a service that is told an address, by HTTP, and sends a little to it. It
//! says 200 if it did, and 409 if it had before; either is fine. Several services stand in for one
//! another (zos: `pkg/registrar`, `substrateAccountID`).

use std::time::Duration;

use hostd_rmb::identity::AccountId;

use crate::error::shortened;

/// How long one service may take.
pub const ACTIVATION_TIMEOUT: Duration = Duration::from_secs(20);
/// Most services that are tried.
pub const SERVICE_COUNT_MAX: usize = 16;
/// Most bytes of an answer that are read.
const ANSWER_SIZE_MAX: u64 = 4096;

/// Why an account was not activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// There is no service.
    #[error("account {0} does not exist, and this network has no activation service")]
    NoService(AccountId),
    /// Each of them failed.
    #[error("account {account} could not be activated: {reasons}")]
    Failed {
        /// The account.
        account: AccountId,
        /// What each service said.
        reasons: String,
    },
}

/// Asks one service after the other to activate `account`, until one has.
///
/// # Errors
///
/// Says what each of them answered.
pub async fn activate(urls: &[String], account: AccountId) -> Result<(), ActivationError> {
    if urls.is_empty() {
        return Err(ActivationError::NoService(account));
    }
    let mut reasons = Vec::new();
    for url in urls.iter().take(SERVICE_COUNT_MAX) {
        let address = url.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&address, account)).await;
        match asked.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(format!("{url}: {reason}")),
        }
    }
    Err(ActivationError::Failed { account, reasons: reasons.join("; ") })
}

/// Asks one service. Returns what it says, if it does not.
fn ask(url: &str, account: AccountId) -> Result<(), String> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(ACTIVATION_TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(3);
    let agent: ureq::Agent = config.build().into();
    let body = serde_json::json!({ "substrateAccountID": account.to_string() }).to_string();
    let request = agent.post(url).header("content-type", "application/json");
    let mut response = request.send(&body).map_err(|error| shortened(&error.to_string()))?;
    match response.status().as_u16() {
        200..=299 | 409 => Ok(()),
        status => {
            let limited = response.body_mut().with_config().limit(ANSWER_SIZE_MAX);
            // What it says matters less than that it refused.
            let answer = limited.read_to_vec().unwrap_or_default();
            Err(format!("status {status} {}", shortened(&String::from_utf8_lossy(&answer))))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// Answers one request with that status, and returns what it was asked.
    fn service(status: &'static str) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/activation/activate", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.ends_with(b"}") {
                let size = stream.read(&mut buffer).unwrap();
                assert_ne!(size, 0, "the request ends early");
                request.extend_from_slice(&buffer[..size]);
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nno");
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (url, thread)
    }

    fn account() -> AccountId {
        AccountId::from_bytes([7; 32])
    }

    #[tokio::test]
    async fn the_next_service_is_asked_if_one_fails() {
        let (broken, first) = service("500 Oh");
        let (good, second) = service("200 OK");
        activate(&[broken, good], account()).await.unwrap();
        first.join().unwrap();
        let request = second.join().unwrap();
        assert!(request.starts_with("POST /activation/activate HTTP/1.1\r\n"), "{request}");
        let body = format!("{{\"substrateAccountID\":\"{}\"}}", account());
        assert!(request.ends_with(&body), "{request}");
    }

    #[tokio::test]
    async fn an_account_that_was_activated_before_is_fine() {
        let (url, thread) = service("409 Conflict");
        activate(&[url], account()).await.unwrap();
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn what_every_service_said_is_reported() {
        let (url, thread) = service("503 Busy");
        let error = activate(std::slice::from_ref(&url), account()).await.unwrap_err().to_string();
        thread.join().unwrap();
        assert!(error.contains(&format!("{url}: status 503 no")), "{error}");
        let error = activate(&[], account()).await.unwrap_err();
        assert!(matches!(error, ActivationError::NoService(_)));
    }
}
