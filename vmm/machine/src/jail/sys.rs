//! System calls that no crate of ours has, and those that need a word on why they are safe.

#![expect(unsafe_code, reason = "this is where it is fenced in")]

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Which of the two processes this is after [`fork`].
#[derive(Debug)]
pub(super) enum Forked {
    /// The one that was there, and the other's id.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Copies this process, which has but one thread.
///
/// # Errors
/// When it has more, or the host gives no process.
pub(super) fn fork() -> io::Result<Forked> {
    let thread_count = std::fs::read_dir("/proc/self/task")?.count();
    if thread_count != 1 {
        // Locks that the others hold would stay held in the copy.
        return Err(io::Error::other(format!("{thread_count} threads run already")));
    }
    // SAFETY: there is one thread, this one, so that the copy has all of the process's threads and
    // finds every lock as it is here.
    let result = unsafe { libc::fork() };
    match result {
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid).filter(|_| pid > 0).map(Forked::Parent).ok_or_else(last_error),
    }
}

/// Moves this thread, the only one, into a new namespace.
pub(super) fn unshare(namespace: UnshareFlags) -> io::Result<()> {
    debug_assert!(!namespace.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: the table of descriptors is not among what is unshared.
    Ok(unsafe { unshare_unsafe(namespace) }?)
}

/// Closes all descriptors but standard input, output, error, and `kept`.
pub(super) fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first: u32 = 3;
    for end in kept.into_iter().filter(|fd| *fd >= 3).chain([u32::MAX]) {
        if first < end {
            let last = if end == u32::MAX { end } else { end - 1 };
            // SAFETY: called before anything here was opened, so that what is closed is nobody's
            // in this process.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if result != 0 {
                return Err(last_error());
            }
        }
        first = end.saturating_add(1);
    }
    Ok(())
}

/// Drops every capability from the set that bounds what a program could ever get.
pub(super) fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: it changes a set of the calling thread, and no memory.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if result != 0 {
            let error = last_error();
            // The first that the kernel does not know.
            return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

/// Forgets the environment, and overwrites it, since `/proc` shows that memory.
pub(super) fn clear_environment() {
    unsafe extern "C" {
        static mut environ: *mut *mut c_char;
    }
    // SAFETY: there is one thread, so that nobody reads or changes the environment meanwhile;
    // `environ` is null or a list of strings that ends with null, all of them in memory that may be
    // written: the stack of the process's start, or the heap.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let size = CStr::from_ptr(*entry).to_bytes().len();
            std::ptr::write_bytes(*entry, 0, size);
            entry = entry.add(1);
        }
        libc::clearenv();
    }
}

/// Becomes readable when one of `signals` is sent, which are blocked.
pub(super) fn signal_descriptor(signals: &[c_int]) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: it fills the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set is filled.
        unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: the set is whole.
    let descriptor =
        unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(last_error());
    }
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A signal, and whether a process sent it rather than the kernel.
pub(super) fn read_signal(descriptor: BorrowedFd<'_>) -> io::Result<Option<(c_int, bool)>> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has so many bytes.
    let read = unsafe { libc::read(descriptor.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if read < 0 {
        let error = last_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    // SAFETY: the structure consists of integers, for which any bytes will do.
    let info = unsafe { info.assume_init() };
    // `si_code` is positive when it is the kernel's.
    Ok(Some((info.ssi_signo.cast_signed(), info.ssi_code <= 0)))
}

/// Ends this process by `signal`, as the one that it waited for was ended. Returns if it does not.
pub(super) fn die_by(signal: c_int) {
    // SAFETY: the default action needs no handler; unblocking and raising touch no memory of ours.
    unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::raise(signal);
    }
}

/// Settles what the allocator would else ask files for, which no thread may open in a jail: how many
/// processors there are, once it has a few arenas; and how memory is promised, when it first gives the end of
/// an arena back, which it never does now. What is large is not in arenas, and is given back as before.
pub(super) fn settle_arenas() {
    /// Hardly anything is allocated while the guest runs.
    const ARENA_COUNT_MAX: c_int = 4;
    // SAFETY: they set numbers of the allocator's, before there are other threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENA_COUNT_MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, c_int::MAX);
    }
}

/// Which version of Landlock the kernel has.
///
/// # Errors
/// `ENOSYS` if it has none, `EOPNOTSUPP` if it is switched off.
pub(super) fn landlock_version() -> io::Result<u32> {
    /// `LANDLOCK_CREATE_RULESET_VERSION`.
    const VERSION: c_int = 1;
    let (none, size) = (std::ptr::null::<u8>(), 0_usize);
    // SAFETY: with this flag it takes no structure, and answers with a number.
    let result = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, size, VERSION) };
    u32::try_from(result).map_err(|_| last_error())
}

/// Ends this process at once, without destructors: a copy that was only there to make another.
pub(super) fn exit_now(code: c_int) -> ! {
    // SAFETY: it ends the process.
    unsafe { libc::_exit(code) }
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// What an error of a namespace means to whoever wants one.
pub(super) fn why(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::USERS) => "the limit is reached (user.max_*_namespaces)".into(),
        Some(Errno::PERM) => "the kernel does not permit it to this user".into(),
        Some(Errno::INVAL | Errno::NOSYS) => "this kernel has none".into(),
        _ => error.to_string(),
    }
}
