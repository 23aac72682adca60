//! Posting an envelope to another relay: one HTTP request, and its status.
//!
//! Names come from the chain, where anybody writes what they like, so those that are addresses, or of
//! one word, are not posted to: they would be machines of our own network. A relay's configuration
//! says otherwise where that is meant ([`crate::RelayConfig::routes`]).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use hostd_rmb::relay::TrustedRoots;
use http_body_util::Full;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Url;

/// How long one attempt may take.
const POST_TIME_MAX: Duration = Duration::from_secs(3);

/// A route that leads nowhere.
#[derive(Debug, thiserror::Error)]
#[error("{0} is no address of a relay: they begin with https:// or http://")]
pub struct RouteAddressError(Url);

/// What became of an envelope.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The other relay has it.
    Accepted,
    /// It will never take it.
    Refused(u16),
    /// It may take it another time.
    Failed(AttemptError),
}

/// Why an attempt led to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error("{0:?} is no host name that envelopes are posted to")]
    Name(String),
    #[error("no answer in {POST_TIME_MAX:?}")]
    Time,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    #[error("status {0}")]
    Status(StatusCode),
}

/// Posts envelopes.
pub(crate) struct Poster {
    routes: HashMap<String, Url>,
    tls: TlsConnector,
}

/// Where a relay is.
struct Place {
    host: String,
    port: u16,
    is_tls: bool,
    path: String,
}

impl Poster {
    pub(crate) fn new(
        routes: HashMap<String, Url>,
        roots: &TrustedRoots,
    ) -> Result<Self, RouteAddressError> {
        for url in routes.values() {
            if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
                return Err(RouteAddressError(url.clone()));
            }
        }
        let routes = routes.into_iter().map(|(name, url)| (name.to_lowercase(), url)).collect();
        Ok(Self { routes, tls: TlsConnector::from(roots.client()) })
    }

    /// Posts an envelope to the relay of that name.
    pub(crate) async fn post(&self, relay: &str, bytes: Bytes) -> Outcome {
        let attempt = timeout(POST_TIME_MAX, self.attempt(relay, bytes)).await;
        match attempt.unwrap_or(Err(AttemptError::Time)) {
            Ok(StatusCode::ACCEPTED) => Outcome::Accepted,
            Ok(status) if status.is_client_error() => Outcome::Refused(status.as_u16()),
            Ok(status) => Outcome::Failed(AttemptError::Status(status)),
            Err(error) => Outcome::Failed(error),
        }
    }

    async fn attempt(&self, relay: &str, bytes: Bytes) -> Result<StatusCode, AttemptError> {
        let place = self.place(relay)?;
        let stream = TcpStream::connect((place.host.as_str(), place.port)).await?;
        stream.set_nodelay(true)?;
        let host = format!("{}:{}", place.host, place.port);
        let request = Request::post(place.path).header(HOST, host).body(Full::new(bytes))?;
        if !place.is_tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(place.host);
        let name = name.map_err(|_| AttemptError::Name(relay.to_owned()))?;
        exchange(self.tls.connect(name, stream).await?, request).await
    }

    fn place(&self, relay: &str) -> Result<Place, AttemptError> {
        let error = || AttemptError::Name(relay.to_owned());
        let Some(url) = self.routes.get(relay) else {
            if !is_public_name(relay) {
                return Err(error());
            }
            return Ok(Place { host: relay.into(), port: 443, is_tls: true, path: "/".into() });
        };
        let host = url.host_str().ok_or_else(error)?;
        Ok(Place {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port_or_known_default().ok_or_else(error)?,
            is_tls: url.scheme() == "https",
            path: url.path().to_owned(),
        })
    }
}

/// Sends a request and waits for the status; what follows does not matter.
async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<StatusCode, AttemptError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Moves the bytes; ends when this function does.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    Ok(sender.send_request(request).await?.status())
}

/// Whether a name may belong to somebody else's relay.
fn is_public_name(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_numeric = last.bytes().all(|byte| byte.is_ascii_digit());
    let is_local = matches!(last, "localhost" | "local" | "internal" | "lan" | "home" | "arpa");
    name.contains('.') && name.parse::<IpAddr>().is_err() && !is_numeric && !is_local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_our_own_network_are_not_posted_to() {
        for name in ["relay.grid.tf", "r2.dev.grid.tf"] {
            assert!(is_public_name(name), "{name}");
        }
        for name in [
            "localhost",
            "127.0.0.1",
            "10.0.0.1",
            "::1",
            "0x7f.1",
            "printer",
            "a.localhost",
            "db.internal",
            "",
            "x.",
        ] {
            assert!(!is_public_name(name), "{name}");
        }
    }

    #[test]
    fn routes_are_checked_when_the_relay_is_made() {
        let routes = |text: &str| HashMap::from([("b".to_owned(), Url::parse(text).unwrap())]);
        let roots = TrustedRoots::new(None).unwrap();
        assert!(Poster::new(routes("http://127.0.0.1:80/"), &roots).is_ok());
        assert!(Poster::new(routes("ftp://127.0.0.1/"), &roots).is_err());
    }

    #[tokio::test]
    async fn a_name_that_may_not_be_is_a_failure() {
        let poster = Poster::new(HashMap::new(), &TrustedRoots::new(None).unwrap()).unwrap();
        let outcome = poster.post("127.0.0.1", Bytes::new()).await;
        assert!(matches!(outcome, Outcome::Failed(AttemptError::Name(_))), "{outcome:?}");
    }
}
