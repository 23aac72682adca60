//! What pages in a browser need to be let read answers from here (CORS): that whoever asks may.
//!
//! Everything that is served with it can be read by anyone anyway. What administers the grid is not
//! served with it, and refuses pages.

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

/// Seconds for which a browser need not ask again.
const MAX_AGE_S: &str = "86400";
const ANY: &str = "*";
const METHODS: &str = "GET, POST";

/// Lets pages of any origin read what `next` answers, and answers what browsers ask before.
pub(crate) async fn allow(request: Request, next: Next) -> Response {
    let asks = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !asks {
        let mut response = next.run(request).await;
        let any = HeaderValue::from_static(ANY);
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any);
        return response;
    }
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY),
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, ANY),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_S),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn;
    use axum::routing::post;
    use tower_service::Service as _;

    use super::*;

    async fn ask(method: Method, asks_for: Option<&str>) -> Response {
        let mut router = Router::new().route("/graphql", post(async || "{}")).layer(from_fn(allow));
        let mut request = Request::builder().method(method).uri("/graphql");
        if let Some(asks_for) = asks_for {
            request = request.header(header::ACCESS_CONTROL_REQUEST_METHOD, asks_for);
        }
        router.call(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_page_may_ask_and_read() {
        let before = ask(Method::OPTIONS, Some("POST")).await;
        assert_eq!(before.status(), StatusCode::NO_CONTENT);
        assert_eq!(before.headers()[header::ACCESS_CONTROL_ALLOW_METHODS], "GET, POST");
        let answer = ask(Method::POST, None).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        let other = ask(Method::OPTIONS, None).await;
        assert_eq!(other.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
