//! What stands before all servers: bounds, and a bar to web pages from elsewhere.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{BODY_SIZE_MAX, CONNECTION_COUNT_MAX};

/// Serves these routes to at most [`CONNECTION_COUNT_MAX`] connections at a time.
pub(crate) async fn serve<L>(listener: L, routes: axum::Router) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let routes =
        routes.layer(DefaultBodyLimit::max(BODY_SIZE_MAX)).layer(from_fn(refuse_foreign_pages));
    let permits = Arc::new(Semaphore::new(CONNECTION_COUNT_MAX));
    axum::serve(Bounded { listener, permits }, routes).await
}

/// Refuses what a browser sends for a page that came from another place than this server. Browsers
/// alone say where a page came from, and always do when it matters.
async fn refuse_foreign_pages(request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        let text = "this API is not for web pages from elsewhere";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    origin.map(|(_, origin)| origin) != host || host.is_none()
}

/// A listener that accepts no more connections than there are permits.
struct Bounded<L> {
    listener: L,
    permits: Arc<Semaphore>,
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Permitted<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        // This one waits and tries again when the process is out of descriptors.
        let (stream, address) = self.listener.accept().await;
        (Permitted { stream, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection, and the permit that it gives back when it ends.
struct Permitted<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for Permitted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Permitted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    #[test]
    fn only_pages_from_here_may_ask() {
        let is_foreign = |headers: &[(HeaderName, &str)]| {
            let value = |value: &str| value.parse().unwrap();
            let headers = headers.iter().map(|(name, text)| (name.clone(), value(text)));
            is_foreign(&headers.collect())
        };
        assert!(!is_foreign(&[]));
        assert!(!is_foreign(&[(HOST, "127.0.0.1:8989")]));
        assert!(!is_foreign(&[(HOST, "127.0.0.1:8989"), (ORIGIN, "http://127.0.0.1:8989")]));
        assert!(is_foreign(&[(HOST, "127.0.0.1:8989"), (ORIGIN, "http://127.0.0.1:80")]));
        assert!(is_foreign(&[(HOST, "127.0.0.1:8989"), (ORIGIN, "https://example.org")]));
        assert!(is_foreign(&[(HOST, "127.0.0.1:8989"), (ORIGIN, "null")]));
        assert!(is_foreign(&[(ORIGIN, "null")]));
    }
}
