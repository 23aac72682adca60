//! What happens when a thread makes a system call that its filter forbids.
//!
//! The kernel does not make the call; it sends `SIGSYS` to the thread, in a way that can neither be
//! blocked nor ignored. The handler here writes one line and ends the process:
//!
//! ```text
//!   vmm: thread vcpu0: system call 41 (socket) is forbidden: the guest may have broken out …
//! ```
//!
//! That beats letting the kernel kill the process, which would say nothing, and costs nothing: the
//! call was not made, no filter allows another handler to be installed, and a handler that whoever
//! holds the thread has somehow disabled ends in the kernel killing the process after all.
//!
//! Everything in a handler is async-signal-safe: system calls and a buffer on the stack.

use std::io;

use super::names::name;

/// What the kernel tells of the call (`siginfo_t` with `SI_SYSCALL`, `<asm-generic/siginfo.h>`).
#[repr(C)]
struct ForbiddenCall {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _padding: libc::c_int,
    address: *mut libc::c_void,
    call: libc::c_int,
    arch: libc::c_uint,
}

/// `SYS_SECCOMP`: the signal is a filter's, and nobody's who sent it.
const BY_FILTER: libc::c_int = 1;
/// How a process ends that a signal ended, for a shell.
const SIGNALLED: libc::c_int = 128;

/// Installs the handler of `SIGSYS`, before any filter.
pub(in crate::jail) fn install() -> io::Result<()> {
    set_handler(libc::SIGSYS, on_forbidden)
}

/// Lets `abort` end this process even where the kernel protects it from its own signals, as it does
/// the first process of a namespace.
pub(in crate::jail) fn let_abort_end() -> io::Result<()> {
    set_handler(libc::SIGABRT, on_abort)
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

#[expect(unsafe_code, reason = "a signal's handler")]
fn set_handler(signal: libc::c_int, handler: Handler) -> io::Result<()> {
    // SAFETY: all fields of a `sigaction` may be zero.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is a whole structure, and the handlers below do only what is
    // async-signal-safe.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[expect(unsafe_code, reason = "the kernel's structure, and system calls")]
extern "C" fn on_forbidden(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a `siginfo_t` of 128 bytes, which begins with these fields when the
    // signal is `SIGSYS`.
    let info = unsafe { &*info.cast::<ForbiddenCall>() };
    let call = if info.code == BY_FILTER { info.call } else { -1 };
    let mut line = Line::default();
    line.text("vmm: thread ");
    line.text(thread_name(&mut [0; 16]));
    line.text(": system call ");
    line.number(call);
    line.text(" (");
    line.text(name(call));
    line.text(") is forbidden: the guest may have broken out of its VM, which ends here\n");
    let bytes = line.bytes();
    // SAFETY: the bytes are there; if they cannot be written, there is nothing to be done.
    unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    // SAFETY: it ends the process and touches nothing.
    unsafe { libc::_exit(libc::c_int::from(vmm_spec::Exit::Forbidden.code())) };
}

#[expect(unsafe_code, reason = "a system call")]
extern "C" fn on_abort(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: it ends the process and touches nothing.
    unsafe { libc::_exit(SIGNALLED + signal) };
}

#[expect(unsafe_code, reason = "a system call")]
fn thread_name(buffer: &mut [u8; 16]) -> &str {
    // SAFETY: the kernel writes at most 16 bytes, which end with a zero.
    unsafe { libc::prctl(libc::PR_GET_NAME, buffer.as_mut_ptr()) };
    let size = buffer.iter().position(|byte| *byte == 0).unwrap_or(0);
    std::str::from_utf8(&buffer[..size]).unwrap_or("?")
}

/// A line, without an allocator. What does not fit is left out.
struct Line {
    bytes: [u8; 192],
    size: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 192], size: 0 }
    }
}

impl Line {
    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.size) {
                *place = byte;
                self.size += 1;
            }
        }
    }

    fn number(&mut self, number: i32) {
        let mut digits = [0; 10];
        let mut rest = number.unsigned_abs();
        let mut start = digits.len();
        loop {
            start -= 1;
            // A digit.
            digits[start] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            self.text("-");
        }
        self.text(std::str::from_utf8(&digits[start..]).unwrap_or("?"));
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.size).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_need_no_allocator_and_have_an_end() {
        let mut line = Line::default();
        for number in [0, 7, 41, 2_147_483_647, -1, i32::MIN] {
            line.number(number);
            line.text(" ");
        }
        assert_eq!(line.bytes(), b"0 7 41 2147483647 -1 -2147483648 ");
        line.text(&"x".repeat(1000));
        assert_eq!(line.bytes().len(), 192);
    }
}
