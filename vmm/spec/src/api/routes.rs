//! The routes: one table, from which the server dispatches, clients find their way, and tests hold
//! the document to account.

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is one row of `ROUTES`, described in `openapi.json`")]
pub enum Operation {
    ShowVm,
    Pause,
    Resume,
    Shutdown,
    Reboot,
    Stop,
    ShowBalloon,
    SetBalloon,
    AddDisk,
    ResizeDisk,
    RemoveDisk,
    AddNet,
    RemoveNet,
    Snapshot,
    Metrics,
    Console,
    OpenApi,
}

/// HTTP methods that occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "they are HTTP's own")]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
}

impl Method {
    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// What a body holds: the name of a schema in the document, or something else than JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    Empty,
    /// JSON of this schema.
    Json(&'static str),
    /// Prometheus' text format.
    Metrics,
    /// The document itself.
    OpenApi,
    /// The console's bytes, both ways.
    Stream,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, in which `{id}` stands for a device's id.
    pub path: &'static str,
    /// What it does.
    pub operation: Operation,
    /// What the request's body holds.
    pub request: Body,
    /// The status of success.
    pub status: u16,
    /// What the answer's body holds.
    pub answer: Body,
}

/// All routes.
pub const ROUTES: &[Route] = &[
    route(Method::Get, "/vm", Operation::ShowVm, Body::Empty, 200, Body::Json("VmInfo")),
    route(Method::Put, "/vm/pause", Operation::Pause, Body::Empty, 204, Body::Empty),
    route(Method::Put, "/vm/resume", Operation::Resume, Body::Empty, 204, Body::Empty),
    route(Method::Put, "/vm/shutdown", Operation::Shutdown, Body::Empty, 202, Body::Empty),
    route(Method::Put, "/vm/reboot", Operation::Reboot, Body::Empty, 202, Body::Empty),
    route(Method::Put, "/vm/stop", Operation::Stop, Body::Empty, 202, Body::Empty),
    route(
        Method::Get,
        "/balloon",
        Operation::ShowBalloon,
        Body::Empty,
        200,
        Body::Json("BalloonInfo"),
    ),
    route(
        Method::Put,
        "/balloon",
        Operation::SetBalloon,
        Body::Json("BalloonTarget"),
        204,
        Body::Empty,
    ),
    route(
        Method::Post,
        "/disks",
        Operation::AddDisk,
        Body::Json("DiskSpec"),
        201,
        Body::Json("Created"),
    ),
    route(
        Method::Put,
        "/disks/{id}",
        Operation::ResizeDisk,
        Body::Json("DiskResize"),
        204,
        Body::Empty,
    ),
    route(Method::Delete, "/disks/{id}", Operation::RemoveDisk, Body::Empty, 202, Body::Empty),
    route(
        Method::Post,
        "/nets",
        Operation::AddNet,
        Body::Json("NetSpec"),
        201,
        Body::Json("Created"),
    ),
    route(Method::Delete, "/nets/{id}", Operation::RemoveNet, Body::Empty, 202, Body::Empty),
    route(
        Method::Put,
        "/snapshot",
        Operation::Snapshot,
        Body::Json("SnapshotRequest"),
        204,
        Body::Empty,
    ),
    route(Method::Get, "/metrics", Operation::Metrics, Body::Empty, 200, Body::Metrics),
    route(Method::Get, "/console", Operation::Console, Body::Empty, 101, Body::Stream),
    route(Method::Get, "/openapi.json", Operation::OpenApi, Body::Empty, 200, Body::OpenApi),
];

const fn route(
    method: Method,
    path: &'static str,
    operation: Operation,
    request: Body,
    status: u16,
    answer: Body,
) -> Route {
    Route { method, path, operation, request, status, answer }
}

/// Where a request leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed<'a> {
    /// Here.
    Found(Match<'a>),
    /// The path exists, the method doesn't: these do.
    WrongMethod(&'static str),
    /// Nowhere.
    Unknown,
}

/// A row, and the id in the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match<'a> {
    /// The row.
    pub route: &'static Route,
    /// What stands where the row's path has `{id}`; empty if it hasn't.
    pub id: &'a str,
}

/// Finds the row for a method and a path; a query is ignored.
#[must_use]
pub fn find<'a>(method: &str, target: &'a str) -> Routed<'a> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let mut allowed = None;
    for route in ROUTES {
        let Some(id) = match_path(route.path, path) else { continue };
        if route.method.name() == method {
            return Routed::Found(Match { route, id });
        }
        allowed = Some(route.path);
    }
    allowed.map_or(Routed::Unknown, |path| Routed::WrongMethod(allowed_methods(path)))
}

/// The id in `path` if it has the shape of `pattern`.
fn match_path<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    match pattern.strip_suffix("{id}") {
        None => (pattern == path).then_some(""),
        Some(start) => path.strip_prefix(start).filter(|id| !id.is_empty() && !id.contains('/')),
    }
}

/// The value of `Allow:` for a path of the table.
fn allowed_methods(path: &str) -> &'static str {
    let has = |method| ROUTES.iter().any(|route| route.path == path && route.method == method);
    match (has(Method::Get), has(Method::Put), has(Method::Post), has(Method::Delete)) {
        (true, true, _, _) => "GET, PUT",
        (true, false, _, _) => "GET",
        (false, true, _, true) => "PUT, DELETE",
        (false, true, _, false) => "PUT",
        (false, false, true, _) => "POST",
        (false, false, false, _) => "DELETE",
    }
}
