//! Asking a VMM: its HTTP interface over a unix socket, one request a connection.
//!
//! The process on the other side holds a guest and is believed little: an answer is bounded in time and
//! size, however it comes in, and what is read of it is a state and a reason.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use vmm_spec::api::{ErrorBody, State};

/// How long a VMM may take for an answer. Pausing waits for the guest's disks.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer: a description has less than this.
const ANSWER_SIZE_MAX: usize = 1 << 20;
/// Bytes that are read at a time.
const PIECE_SIZE: usize = 4 << 10;
/// Bytes of a reason that are passed on.
const REASON_SIZE_MAX: usize = 512;

/// Why a VMM did not do something.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It is not there, or does not answer.
    #[error("the machine's VMM does not answer: {0}")]
    Silent(#[from] io::Error),
    /// It says no.
    #[error("the machine's VMM says: {0}")]
    Refused(String),
    /// What it says makes no sense.
    #[error("the machine's VMM gives no answer that makes sense")]
    Nonsense,
}

/// The part of a VM's information that is looked at.
#[derive(serde::Deserialize)]
struct Info {
    state: State,
}

/// What the VM does.
///
/// # Errors
/// [`ApiError`].
pub fn state(socket: &Path) -> Result<State, ApiError> {
    state_within(socket, ANSWER_TIMEOUT)
}

/// The same, from a VMM that may take so long for the answer.
pub(super) fn state_within(socket: &Path, limit: Duration) -> Result<State, ApiError> {
    let info: Info = read(&request(socket, "GET", "/vm", limit.min(ANSWER_TIMEOUT))?)?;
    Ok(info.state)
}

/// Asks for something that has no parameters: `pause`, `resume`, `shutdown`.
///
/// # Errors
/// [`ApiError`].
pub fn put(socket: &Path, what: &str) -> Result<(), ApiError> {
    request(socket, "PUT", &format!("/vm/{what}"), ANSWER_TIMEOUT).map(drop)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|_| ApiError::Nonsense)
}

fn request(socket: &Path, method: &str, path: &str, limit: Duration) -> Result<Vec<u8>, ApiError> {
    let deadline = Instant::now() + limit;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let answer = answer(&mut stream, deadline)?;
    let (status, body) = parse(&answer).ok_or(ApiError::Nonsense)?;
    if (200..300).contains(&status) {
        return Ok(body.to_vec());
    }
    let reason: ErrorBody = read(body)?;
    Err(ApiError::Refused(reason.error.chars().take(REASON_SIZE_MAX).collect()))
}

/// All that comes until the connection ends.
fn answer(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let (mut answer, mut piece) = (Vec::new(), [0; PIECE_SIZE]);
    while answer.len() < ANSWER_SIZE_MAX {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// The time that is left, which is not nothing.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(late()) } else { Ok(left) }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "not in time")
}

/// Status and body of an answer that ends with its connection.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, rest) = answer.split_at_checked(end)?;
    let line = std::str::from_utf8(head).ok()?.lines().next()?;
    let status = line.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    Some((status, rest.get(4..)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A VMM that gives one answer.
    fn with_answer<T>(answer: &'static str, ask: impl FnOnce(&Path) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let result = ask(&path);
        serving.join().unwrap();
        result
    }

    #[test]
    fn states_and_refusals_are_understood_and_nonsense_is_called_so() {
        let running = "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"state\":\"running\"}";
        assert_eq!(with_answer(running, state).unwrap(), State::Running);
        let refused = "HTTP/1.1 409 Conflict\r\n\r\n{\"error\":\"it is paused already\"}";
        let error = with_answer(refused, |path| put(path, "pause")).unwrap_err();
        assert_eq!(error.to_string(), "the machine's VMM says: it is paused already");
        with_answer("HTTP/1.1 204 No Content\r\n\r\n", |path| put(path, "pause")).unwrap();
        for nonsense in ["", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n{}", "HTTP/1.1 x\r\n\r\n"]
        {
            assert!(matches!(with_answer(nonsense, state), Err(ApiError::Nonsense)), "{nonsense}");
        }
        // One that trickles is not waited for longer than one that says nothing.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let trickling = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let begin = Instant::now();
        let late = state_within(&path, Duration::from_millis(300)).unwrap_err().to_string();
        assert_eq!(late, "the machine's VMM does not answer: not in time");
        assert!(begin.elapsed() < Duration::from_secs(10));
        trickling.join().unwrap();
        let nobody = tempfile::tempdir().unwrap();
        assert!(matches!(state(&nobody.path().join("x")), Err(ApiError::Silent(_))));
    }
}
