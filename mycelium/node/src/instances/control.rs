//! The control socket: HTTP with JSON on a Unix socket, for who may open it (mode 0600).
//!
//! HTTP, since the node's API is HTTP already: the same server, client and errors serve both, any tool that
//! knows `--unix-socket` can ask, and each instance's own API is found under its name.
//!
//! | method and path under `/api/v1` | request → response |
//! |---|---|
//! | GET `/instances` | `[{name, state, error?, isFromFile, address?, publicKey?, namespace, tunName, joinedInstances, alivePeers}]` |
//! | POST `/instances` | an instance as in the file, as JSON → 201 and how it is; 400 makes no sense; 409 exists; 422 does not start |
//! | DELETE `/instances/NAME` | 204 when nothing is left of it; 404 |
//! | any `/instances/NAME/…` | that instance's own API, as `/api/v1/…` of a node that is alone; 404 unless it runs |

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get};
use axum::{Json, Router};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tower_service::Service;

use crate::api::{self, Control, guard};
use crate::instances::manager::{AddError, AddReply, InstanceInfo};
use crate::instances::settings::InstanceSettings;

/// Who may ask.
const MODE: u32 = 0o600;
/// Clients that wait to be taken.
const BACKLOG: i32 = 64;

/// What a client asks of the manager.
pub(super) enum Order {
    /// How all are doing.
    List(oneshot::Sender<Vec<InstanceInfo>>),
    /// Add one.
    Add(Box<InstanceSettings>, AddReply),
    /// Remove one; the answer's sender is dropped when there is none.
    Remove(String, oneshot::Sender<()>),
    /// What the API of one asks, if it runs.
    Control(String, oneshot::Sender<Option<Arc<dyn Control>>>),
}

/// A socket that is taken, or a path that can't have one.
#[derive(Debug, thiserror::Error)]
#[error("control socket {path}: {reason}")]
pub struct ControlSocketError {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub reason: &'static str,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

/// A socket's file, which is removed with it.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens at `path`, in place of a socket that nobody listens at any more. Must be called inside a
/// runtime.
pub(super) fn listen(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    let failed =
        |reason| move |source| ControlSocketError { path: path.to_owned(), reason, source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed("its folder can't be made"))?;
    }
    clear(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let bind = || -> io::Result<StdListener> {
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        // Nobody can connect before it listens.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(StdListener::from(socket))
    };
    let listener = bind().map_err(failed("can't be made"))?;
    let listener = UnixListener::from_std(listener).context("control socket")?;
    Ok((listener, SocketFile(path.to_owned())))
}

/// Removes a socket that nobody listens at; refuses to touch anything else.
fn clear(path: &Path) -> Result<(), ControlSocketError> {
    let failed = |reason, source| ControlSocketError { path: path.to_owned(), reason, source };
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        let source = io::ErrorKind::AlreadyExists.into();
        return Err(failed("something that is no socket is there", source));
    }
    match StdStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| failed("can't be replaced", source))
        }
        Err(error) => Err(failed("it can't be seen whether another process listens there", error)),
        Ok(_) => Err(failed("another process listens there", io::ErrorKind::AddrInUse.into())),
    }
}

/// Serves clients until the listener fails.
pub(super) async fn serve(listener: UnixListener, orders: mpsc::Sender<Order>) -> io::Result<()> {
    let routes = Router::new()
        .route("/api/v1/instances", get(list).post(add))
        .route("/api/v1/instances/{name}", delete(remove))
        .route("/api/v1/instances/{name}/{*path}", any(of_instance))
        .with_state(orders);
    guard::serve(listener, routes).await
}

type Orders = State<mpsc::Sender<Order>>;

/// Orders something, and waits for the answer; 503 when the process ends, or the manager has none.
async fn order<T>(
    orders: &mpsc::Sender<Order>,
    order: impl FnOnce(oneshot::Sender<T>) -> Order,
) -> Result<T, StatusCode> {
    let (sender, answer) = oneshot::channel();
    let ends = StatusCode::SERVICE_UNAVAILABLE;
    orders.send(order(sender)).await.map_err(|_| ends)?;
    answer.await.map_err(|_| ends)
}

async fn list(State(orders): Orders) -> Result<Json<Vec<InstanceInfo>>, StatusCode> {
    order(&orders, Order::List).await.map(Json)
}

async fn add(State(orders): Orders, Json(settings): Json<InstanceSettings>) -> Response {
    let settings = Box::new(settings);
    match order(&orders, |reply| Order::Add(settings, reply)).await {
        Err(status) => status.into_response(),
        Ok(Ok(info)) => (StatusCode::CREATED, Json(info)).into_response(),
        Ok(Err(error)) => {
            let status = match error {
                AddError::Settings(_) => StatusCode::BAD_REQUEST,
                AddError::Exists(_) => StatusCode::CONFLICT,
                AddError::TooMany => StatusCode::SERVICE_UNAVAILABLE,
                AddError::Failed(..) => StatusCode::UNPROCESSABLE_ENTITY,
            };
            (status, format!("{:#}", anyhow::Error::from(error))).into_response()
        }
    }
}

async fn remove(State(orders): Orders, UrlPath(name): UrlPath<String>) -> Response {
    let (sender, answer) = oneshot::channel();
    if orders.send(Order::Remove(name.clone(), sender)).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match answer.await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(_) => (StatusCode::NOT_FOUND, format!("no instance {name:?}")).into_response(),
    }
}

/// Has an instance's own API answer. The rest of the path is passed on as it came, still encoded.
async fn of_instance(State(orders): Orders, mut request: Request) -> Response {
    let (name, rest) = {
        // "", "api", "v1", "instances", name, the rest.
        let mut parts = request.uri().path().splitn(6, '/').skip(4);
        let name = parts.next().unwrap_or_default().to_owned();
        (name, parts.next().unwrap_or_default().to_owned())
    };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let Ok(uri) = format!("/{rest}{query}").parse::<Uri>() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    *request.uri_mut() = uri;
    // Among them are the parts of this path, which are not those of the instance's.
    request.extensions_mut().clear();
    match order(&orders, |answer| Order::Control(name.clone(), answer)).await {
        Err(status) => status.into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, format!("no instance {name:?} runs")).into_response(),
        Ok(Some(control)) => match api::routes(control).call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_nobody_listens_at_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/control.sock");
        let (listener, file) = listen(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let error = listen(&path).err().unwrap();
        assert!(format!("{error:#}").contains("another process listens"), "{error:#}");
        drop(listener);
        std::mem::forget(file);
        let (_listener, file) = listen(&path).unwrap();
        drop(file);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
