//! From a request to a call of the machine, and from its result to a response.

use std::error::Error;
use std::os::fd::OwnedFd;

use serde::de::DeserializeOwned;
use vmm_spec::api::{
    BalloonTarget, CONSOLE_PROTOCOL, Created, DiskResize, OPENAPI, Operation, Routed,
    SnapshotRequest, find,
};
use vmm_spec::{DiskSpec, NetSpec, SpecError};

use super::control::{Attach, Control, ControlError};
use super::http::Response;

/// What to send, and what becomes of the connection.
pub(super) struct Answer {
    pub(super) response: Response,
    /// After the response, the connection is a console's.
    pub(super) attach: Option<Attach>,
}

/// What a client asked for, with the descriptors that it sent along.
pub(super) struct Call<'a> {
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) body: &'a [u8],
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) upgrade: bool,
}

/// Does what is asked.
pub(super) fn dispatch(control: &dyn Control, call: Call<'_>) -> Answer {
    let (method, target) = (call.method, call.target);
    let found = match find(method, target) {
        Routed::Found(found) => found,
        Routed::WrongMethod(allowed) => {
            let error = format!("{method} is not for {target}; {allowed} is");
            let mut response = Response::error(405, error, None::<String>);
            response.headers.push(("Allow", allowed));
            return response.into();
        }
        Routed::Unknown => {
            let error = format!("there is no {target} here");
            return Response::error(404, error, Some("GET /openapi.json tells what is")).into();
        }
    };
    if found.route.operation == Operation::Console {
        return console(control, call.upgrade);
    }
    let status = found.route.status;
    let done = perform(control, found.route.operation, found.id, status, call);
    done.unwrap_or_else(Response::from).into()
}

fn perform(
    control: &dyn Control,
    operation: Operation,
    id: &str,
    status: u16,
    call: Call<'_>,
) -> Result<Response, Refusal> {
    let body = call.body;
    match operation {
        Operation::ShowVm => return Ok(Response::json(status, &control.info())),
        Operation::ShowBalloon => return Ok(Response::json(status, &control.balloon()?)),
        Operation::AddDisk => return add_disk(control, status, body, call.descriptors),
        Operation::AddNet => return add_net(control, status, body, call.descriptors),
        Operation::Metrics => {
            let text = control.metrics().render().into_bytes();
            return Ok(Response::new(status, "text/plain; version=0.0.4", text));
        }
        Operation::OpenApi => {
            return Ok(Response::new(status, "application/json", OPENAPI.into()));
        }
        Operation::Pause => control.pause()?,
        Operation::Resume => control.resume()?,
        Operation::Shutdown => control.shutdown()?,
        Operation::Reboot => control.reboot()?,
        Operation::Stop => control.stop()?,
        Operation::SetBalloon => {
            control.set_balloon(read::<BalloonTarget>(body)?.target_mib)?;
        }
        Operation::ResizeDisk => control.resize_disk(id, read::<DiskResize>(body)?.size)?,
        Operation::RemoveDisk => control.remove_disk(id)?,
        Operation::RemoveNet => control.remove_net(id)?,
        Operation::Snapshot => snapshot(control, body, call.descriptors)?,
        // Answered before: it changes the connection.
        Operation::Console => {}
    }
    Ok(Response::empty(status))
}

fn console(control: &dyn Control, upgrade: bool) -> Answer {
    if !upgrade {
        let error = format!("the console is a raw stream: ask for `Upgrade: {CONSOLE_PROTOCOL}`");
        let mut response = Response::error(426, error, Some("`vmm console` does"));
        response.headers.push(("Upgrade", CONSOLE_PROTOCOL));
        return response.into();
    }
    match control.attach_console() {
        Ok(attach) => {
            let headers = vec![("Connection", "Upgrade"), ("Upgrade", CONSOLE_PROTOCOL)];
            let response = Response { headers, ..Response::empty(101) };
            Answer { response, attach: Some(attach) }
        }
        Err(error) => Response::from(Refusal::from(error)).into(),
    }
}

fn add_disk(
    control: &dyn Control,
    status: u16,
    body: &[u8],
    mut descriptors: Vec<OwnedFd>,
) -> Result<Response, Refusal> {
    let disk = read::<DiskSpec>(body)?.verify_beside(&control.info().spec)?;
    let descriptor = descriptors.pop();
    if !descriptors.is_empty() {
        return Err(Refusal::bad("a disk is one file: send one descriptor"));
    }
    let id = disk.id.clone();
    control.add_disk(disk, descriptor)?;
    Ok(Response::json(status, &Created { id }))
}

fn add_net(
    control: &dyn Control,
    status: u16,
    body: &[u8],
    descriptors: Vec<OwnedFd>,
) -> Result<Response, Refusal> {
    let spec = read::<NetSpec>(body)?;
    if !spec.fds.is_empty() {
        // Numbers of descriptors mean something to processes that inherit them alone.
        return Err(Refusal::bad("`fds` means nothing here: send the descriptors along"));
    }
    let net = spec.verify_beside(&control.info().spec)?;
    let (sent, queues) = (descriptors.len(), usize::from(net.queues));
    if sent != 0 && sent != queues {
        return Err(Refusal::bad(&format!("{sent} descriptors for {queues} queue pairs")));
    }
    let id = net.id.clone();
    control.add_net(net, descriptors)?;
    Ok(Response::json(status, &Created { id }))
}

fn snapshot(control: &dyn Control, body: &[u8], descriptors: Vec<OwnedFd>) -> Result<(), Refusal> {
    let SnapshotRequest { path, then } = read(body)?;
    let files = match <[OwnedFd; 2]>::try_from(descriptors) {
        Ok([state, memory]) => Some((state, memory)),
        Err(none) if none.is_empty() => None,
        Err(_) => return Err(Refusal::bad("a snapshot is two files: send both, or neither")),
    };
    Ok(control.snapshot(&path, then, files)?)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // `{}` need not be said.
    let body = if body.is_empty() { b"{}" } else { body };
    Ok(vmm_spec::read_json(body)?)
}

/// A response that says no.
struct Refusal {
    status: u16,
    error: String,
    hint: Option<String>,
}

impl Refusal {
    fn bad(error: &str) -> Self {
        Self { status: 400, error: error.to_owned(), hint: None }
    }
}

impl From<SpecError> for Refusal {
    fn from(error: SpecError) -> Self {
        Self { status: 400, error: error.to_string(), hint: error.hint() }
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let (status, hint) = match &error {
            ControlError::NotFound { .. } => (404, Some("GET /vm lists the devices")),
            ControlError::Invalid(_) => (400, None),
            ControlError::Conflict { hint, .. } => (409, *hint),
            ControlError::Busy(_) => (503, None),
            ControlError::Host { .. } => (500, None),
        };
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            text.push_str(&format!(": {source}"));
            cause = source.source();
        }
        Self { status, error: text, hint: hint.map(str::to_owned) }
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        Self::error(refusal.status, refusal.error, refusal.hint)
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self { response, attach: None }
    }
}
