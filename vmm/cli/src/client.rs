//! A client of a running VM's API: one request a connection, with descriptors where they are needed.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm_spec::api::{CONSOLE_PROTOCOL, ErrorBody, VmInfo};

use crate::exit::{FAILED, NOT_FOUND, REFUSED, TRY_AGAIN, USAGE};

/// How long a VM may take for an answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer.
const ANSWER_SIZE_MAX: u64 = 16 << 20;
/// Most headers of an answer.
const HEADER_COUNT_MAX: usize = 32;
/// Descriptors that a request can bring.
const DESCRIPTOR_COUNT_MAX: usize = vmm_spec::QUEUE_COUNT_MAX as usize;

/// A running VM.
pub(crate) struct Client {
    socket: PathBuf,
    timeout: Option<Duration>,
}

/// Why there is no answer, or none that was hoped for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("{}: there is no such socket", .0.display())]
    NoSocket(PathBuf),
    #[error("{}: nobody listens there", .0.display())]
    NobodyListens(PathBuf),
    #[error("{}: permission denied", .0.display())]
    Denied(PathBuf),
    #[error("{}: the VM does not answer", .0.display())]
    Silent(PathBuf),
    #[error("{}: whoever listens there is no VM", .0.display())]
    NoVm(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}", crate::output::clean(&body.error))]
    Refused { status: u16, body: ErrorBody },
}

impl ClientError {
    pub(crate) const fn code(&self) -> u8 {
        match self {
            Self::NoSocket(_) | Self::NobodyListens(_) => NOT_FOUND,
            Self::Denied(_) => REFUSED,
            Self::Silent(_) => TRY_AGAIN,
            Self::NoVm(_) | Self::Io { .. } => FAILED,
            Self::Refused { status, .. } => match status {
                400 => USAGE,
                404 => NOT_FOUND,
                403 | 409 => REFUSED,
                503 => TRY_AGAIN,
                _ => FAILED,
            },
        }
    }

    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoSocket(path) => {
                let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let folder = folder.unwrap_or_else(|| Path::new("."));
                Some(format!("`vmm ps {}` lists the VMs that are there", folder.display()))
            }
            Self::NobodyListens(_) => {
                Some("the VM has ended; its socket was left behind and can be removed".to_owned())
            }
            Self::Denied(_) => Some("only the user that the VM runs as may control it".to_owned()),
            Self::Refused { body, .. } => body.hint.as_deref().map(crate::output::clean),
            Self::Silent(_) | Self::NoVm(_) | Self::Io { .. } => None,
        }
    }
}

impl Client {
    /// The VM that listens on this socket. Nothing is sent yet.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), timeout: Some(ANSWER_TIMEOUT) }
    }

    /// Waits so long for an answer, or as long as it takes.
    pub(crate) const fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// What the VM is and does.
    pub(crate) fn info(&self) -> Result<VmInfo, ClientError> {
        self.get("/vm")
    }

    /// What is at this path.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.read(&self.request("GET", path, &[], &[])?)
    }

    /// What is at this path, as text.
    pub(crate) fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let bytes = self.request("GET", path, &[], &[])?;
        String::from_utf8(bytes).map_err(|_| ClientError::NoVm(self.socket.clone()))
    }

    /// Asks for something that has no parameters and no result.
    pub(crate) fn put(&self, path: &str) -> Result<(), ClientError> {
        self.request("PUT", path, &[], &[]).map(drop)
    }

    /// Asks for something, with descriptors if there are any.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.io(error.into()))?;
        self.request(method, path, &body, descriptors)
    }

    /// Plugs a device in, and tells its id.
    pub(crate) fn add(
        &self,
        path: &str,
        device: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<String, ClientError> {
        let answer = self.send("POST", path, device, descriptors)?;
        self.read::<vmm_spec::api::Created>(&answer).map(|created| created.id)
    }

    /// Asks the guest to let go of a device.
    pub(crate) fn remove(&self, path: &str) -> Result<(), ClientError> {
        self.request("DELETE", path, &[], &[]).map(drop)
    }

    /// Attaches to the console: from here on, the stream is the console's.
    pub(crate) fn attach(&self) -> Result<UnixStream, ClientError> {
        let mut stream = self.connect()?;
        let request = format!(
            "GET /console HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: {CONSOLE_PROTOCOL}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).map_err(|error| self.io(error))?;
        // Byte by byte: what follows the head belongs to the console.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).map_err(|error| self.io(error))?;
            head.push(byte[0]);
            if head.len() > ANSWER_HEAD_SIZE_MAX {
                return Err(ClientError::NoVm(self.socket.clone()));
            }
        }
        if head.starts_with(b"HTTP/1.1 101 ") {
            return Ok(stream);
        }
        // Refused: the body says why, and its length stands in the head.
        let mut answer = head;
        while self.parse(&answer)?.is_none() {
            let mut byte = [0];
            stream.read_exact(&mut byte).map_err(|error| self.io(error))?;
            answer.push(byte[0]);
        }
        match self.parse(&answer)? {
            Some(answer) => Err(self.refusal(&answer)),
            None => Err(ClientError::NoVm(self.socket.clone())),
        }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, ClientError> {
        let mut stream = self.connect()?;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        send_all(&mut stream, &request, descriptors).map_err(|error| self.io(error))?;
        let mut bytes = Vec::new();
        let read = stream.take(ANSWER_SIZE_MAX).read_to_end(&mut bytes);
        let answer = match (self.parse(&bytes)?, read) {
            (Some(answer), _) => answer,
            (None, Err(error)) => return Err(self.io(error)),
            (None, Ok(_)) => return Err(ClientError::NoVm(self.socket.clone())),
        };
        if (200..300).contains(&answer.status) {
            Ok(answer.body)
        } else {
            Err(self.refusal(&answer))
        }
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let connected = (|| {
            // Without blocking: a VM that accepts nobody is as good as silent.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&socket, &SocketAddrUnix::new(&self.socket)?)?;
            rustix::io::ioctl_fionbio(&socket, false)?;
            Ok(OwnedFd::into(socket))
        })();
        let stream: UnixStream =
            connected.map_err(|error: rustix::io::Errno| self.io(error.into()))?;
        stream.set_read_timeout(self.timeout).map_err(|error| self.io(error))?;
        stream.set_write_timeout(self.timeout).map_err(|error| self.io(error))?;
        Ok(stream)
    }

    /// The answer at the beginning of `bytes`, if it is all there.
    fn parse(&self, bytes: &[u8]) -> Result<Option<Answer>, ClientError> {
        let no_vm = || ClientError::NoVm(self.socket.clone());
        let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(size) = head.parse(bytes).map_err(|_| no_vm())? else {
            return Ok(None);
        };
        let length = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
        let length = match length {
            Some(header) => std::str::from_utf8(header.value).ok().and_then(|v| v.parse().ok()),
            None => Some(0),
        };
        let end = length.and_then(|length| size.checked_add(length)).ok_or_else(no_vm)?;
        if end as u64 > ANSWER_SIZE_MAX {
            return Err(no_vm());
        }
        let status = head.code.unwrap_or_default();
        Ok(bytes.get(size..end).map(|body| Answer { status, body: body.to_owned() }))
    }

    fn refusal(&self, answer: &Answer) -> ClientError {
        match serde_json::from_slice(&answer.body) {
            Ok(body) => ClientError::Refused { status: answer.status, body },
            Err(_) => ClientError::NoVm(self.socket.clone()),
        }
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|_| ClientError::NoVm(self.socket.clone()))
    }

    fn io(&self, error: io::Error) -> ClientError {
        let path = self.socket.clone();
        match error.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket(path),
            io::ErrorKind::ConnectionRefused => ClientError::NobodyListens(path),
            io::ErrorKind::PermissionDenied => ClientError::Denied(path),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent(path),
            _ => ClientError::Io { path, source: error },
        }
    }
}

/// Largest head of an answer to an upgrade.
const ANSWER_HEAD_SIZE_MAX: usize = 8 << 10;

struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// Sends all bytes, the descriptors with the first of them.
fn send_all(
    stream: &mut UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_COUNT_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other(format!("more than {DESCRIPTOR_COUNT_MAX} descriptors")));
    }
    let flags = SendFlags::NOSIGNAL;
    let sent = sendmsg(&*stream, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    stream.write_all(&bytes[sent..])
}

/// A path segment: ids have only letters that need no escape, and what has others is no id.
pub(crate) fn device_path(kind: &str, id: &str) -> Result<String, crate::exit::Usage> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if id.is_empty() || !id.bytes().all(allowed) {
        return Err(crate::exit::Usage(format!("{id:?} is no device's id")));
    }
    Ok(format!("/{kind}/{id}"))
}
