//! Which system calls each kind of thread may make, and why.
//!
//! This is data, to be read from top to bottom. A filter is a list of groups; whatever is in none of
//! them ends the VM. What is absent is the point: nothing here opens a socket, runs a program, traces
//! or signals another process, maps memory that can be executed, or changes who the process is; and
//! only file systems of shared directories open files.
//!
//! `io_uring_setup` is absent too, but for `hotplug`, which runs nothing of the guest's: what a ring
//! does passes by all filters. Rings of disks are made beforehand, and restricted.

use libc::{
    SYS_accept4, SYS_brk, SYS_capset, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone,
    SYS_clone3, SYS_close, SYS_connect, SYS_copy_file_range, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_epoll_wait, SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fallocate,
    SYS_fchmod, SYS_fchmodat, SYS_fchmodat2, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fgetxattr,
    SYS_flistxattr, SYS_flock, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat, SYS_fstatfs, SYS_fsync,
    SYS_ftruncate, SYS_futex, SYS_getdents64, SYS_getpid, SYS_getrandom, SYS_gettid,
    SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl, SYS_kill, SYS_linkat,
    SYS_lseek, SYS_lstat, SYS_madvise, SYS_mkdirat, SYS_mknodat, SYS_mmap, SYS_mprotect,
    SYS_mremap, SYS_munmap, SYS_newfstatat, SYS_openat, SYS_openat2, SYS_poll, SYS_ppoll,
    SYS_prctl, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_prlimit64, SYS_pwrite64, SYS_pwritev,
    SYS_pwritev2, SYS_read, SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_renameat2,
    SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_sched_getaffinity, SYS_sched_yield, SYS_seccomp, SYS_sendmsg, SYS_sendto,
    SYS_set_robust_list, SYS_shutdown, SYS_sigaltstack, SYS_socket, SYS_stat, SYS_statx,
    SYS_symlinkat, SYS_syncfs, SYS_tgkill, SYS_unlink, SYS_unlinkat, SYS_utimensat, SYS_wait4,
    SYS_write, SYS_writev,
};

use super::requests::{
    BLOCK_DISCARD, BLOCK_PHYSICAL_SIZE, FILE_EXTENTS, KVM_GET_REGS, KVM_GET_SREGS, KVM_GET_STATE,
    KVM_IOEVENTFD, KVM_IRQ_LINE, KVM_IRQFD, KVM_KVMCLOCK_CTRL, KVM_RUN, KVM_SET_GSI_ROUTING,
    KVM_SET_STATE, KVM_SET_USER_MEMORY_REGION, KVM_SIGNAL_MSI, NON_BLOCKING, TERMINAL_GET,
    TERMINAL_SET, TUN_GET_INTERFACE, TUN_SET_HEADER_SIZE, TUN_SET_OFFLOAD, TUN_SET_QUEUE,
};

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) call: i64,
    pub(super) when: When,
    /// For the reviewer; no program reads it.
    #[expect(dead_code, reason = "a rule without a reason is no rule")]
    pub(super) why: &'static str,
}

/// With which arguments. They are counted from 0, and compared in their lower 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Whatever they are.
    Always,
    /// This one is one of these.
    OneOf(u8, &'static [u32]),
    /// This one has none of these bits.
    Without(u8, u32),
    /// This one is the id of our own process.
    Ourselves(u8),
}

/// What a kind of thread may do.
pub(super) type Filter = &'static [&'static [Rule]];

/// A virtual CPU: the guest itself, and its accesses to registers of devices.
pub(super) const VCPU: Filter = &[VCPU_ALONE, BASE, START, NOTIFY];
/// A queue of a disk.
pub(super) const DISK: Filter = &[BASE, WAIT, DISK_ALONE];
/// A queue pair of a network card.
pub(super) const NET: Filter = &[BASE, WAIT, NET_ALONE];
/// A file system of an image, without a directory above it.
pub(super) const FLIST: Filter = &[BASE, WAIT, READ_FILES, TALK, POLL];
/// A file system of a directory, or with one above its image.
pub(super) const FS: Filter = &[BASE, WAIT, READ_FILES, TALK, POLL, CHANGE_FILES];
/// Devices with little to do: entropy, sockets, console, balloon.
pub(super) const DEVICES: Filter = &[BASE, WAIT, TALK, POLL, DEVICES_ALONE];
/// The API's server, which also stops and starts devices, and reads a machine's state.
pub(super) const API: Filter = &[BASE, START, NOTIFY, TALK, POLL, API_ALONE, STATE];
/// Plugs devices in and takes them out. Threads that it starts are under its filter and their own.
pub(super) const HOTPLUG: Filter =
    &[BASE, WAIT, START, NOTIFY, POLL, DISK_ALONE, NET_ALONE, HOTPLUG_ALONE];
/// Waits for signals.
pub(super) const SIGNALS: Filter = &[BASE, POLL, SIGNALS_ALONE];
/// Reads keys for the serial port.
pub(super) const INPUT: Filter = &[BASE, POLL, INPUT_ALONE];
/// Waits for the guest's end, resets the machine, takes it apart.
pub(super) const MAIN: Filter = &[BASE, START, NOTIFY, POLL, STATE, MAIN_ALONE];
/// The process outside, which waits for the VM's and opens its connections.
pub(super) const WARDEN: Filter = &[BASE, POLL, WARDEN_ALONE];

/// What Rust's library, the allocator and the log ask for in any thread.
const BASE: &[Rule] = &[
    always(SYS_read, "eventfds, pipes, sockets, files that are open"),
    always(
        SYS_write,
        "eventfds that wake others, the log, consoles, the line about a forbidden call",
    ),
    always(SYS_writev, "the log"),
    always(SYS_close, "descriptors that are let go of"),
    one_of(SYS_fcntl, 1, &[F_GETFD], "a check of debug builds, before they are closed"),
    always(SYS_futex, "locks, channels, condition variables"),
    always(SYS_sched_yield, "locks that are about to be free"),
    without(SYS_mmap, 2, PROT_EXEC, "the allocator, and stacks; nothing that can be executed"),
    without(SYS_mprotect, 2, PROT_EXEC, "the allocator, and guards of stacks; likewise"),
    always(SYS_munmap, "the allocator, stacks of threads that ended"),
    always(SYS_mremap, "the allocator, for large vectors"),
    always(SYS_madvise, "memory given back: heap, stacks, what the balloon took"),
    always(SYS_brk, "the allocator"),
    always(SYS_clock_gettime, "time, where the host's clock is none that the vDSO can read"),
    always(SYS_clock_nanosleep, "pauses between attempts"),
    always(SYS_getrandom, "keys of hash tables, a boot's seed, what the guest asks for"),
    always(SYS_gettid, "abort, and signals to threads"),
    always(SYS_getpid, "abort, and signals to threads"),
    ourselves(SYS_tgkill, 0, "takes a vCPU's thread out of the guest; abort"),
    always(SYS_rt_sigprocmask, "the start and end of a thread, abort"),
    always(SYS_rt_sigreturn, "the end of a signal's handler"),
    one_of(SYS_rt_sigaction, 0, FATAL_SIGNALS, "abort, and what reports a stack that overflowed"),
    always(SYS_sigaltstack, "the start and end of a thread"),
    always(SYS_restart_syscall, "a call goes on that a stop interrupted"),
    one_of(SYS_prctl, 0, &[PR_GET_NAME], "the line about a forbidden call names its thread"),
    always(SYS_exit, "a thread ends"),
    always(SYS_exit_group, "the process ends"),
];

/// A worker's loop.
const WAIT: &[Rule] = &[
    always(SYS_epoll_wait, "waits for kicks and sources"),
    always(SYS_epoll_pwait, "the same"),
    always(SYS_epoll_create1, "the loop's own, made when its thread starts"),
    always(SYS_epoll_ctl, "what is waited for"),
    always(SYS_eventfd2, "by which others reach the loop"),
    one_of(SYS_fcntl, 1, &[F_DUPFD_CLOEXEC], "a source is watched through a duplicate"),
    one_of(SYS_ioctl, 1, &[KVM_SIGNAL_MSI], "an interrupt that nothing was prepared for"),
];

/// Devices that a driver starts, resets, or sets interrupts up for.
const START: &[Rule] = &[
    always(SYS_eventfd2, "an interrupt, or a doorbell"),
    one_of(SYS_ioctl, 1, DEVICE_REQUESTS, "interrupts and doorbells; a card's offloads and queues"),
    always(SYS_epoll_create1, "the sockets of a socket device that starts"),
    always(SYS_epoll_ctl, "the same"),
    one_of(SYS_fcntl, 1, &[F_DUPFD_CLOEXEC], "its listener, watched anew"),
    always(SYS_statx, "what unnamed files took that a file system forgets at its reset"),
    // `IORING_UNREGISTER_FILES`: a ring that is taken apart.
    one_of(SYS_io_uring_register, 1, &[3], "lets go of a disk's file"),
];
const DEVICE_REQUESTS: &[u32] = &[
    KVM_IRQFD,
    KVM_IOEVENTFD,
    KVM_SET_GSI_ROUTING,
    KVM_SIGNAL_MSI,
    TUN_GET_INTERFACE,
    TUN_SET_OFFLOAD,
    TUN_SET_QUEUE,
];

/// Pins of the interrupt controller: ACPI's, the serial port's.
const NOTIFY: &[Rule] = &[one_of(SYS_ioctl, 1, &[KVM_IRQ_LINE], "raises a pin and lets it fall")];

const VCPU_ALONE: &[Rule] = &[
    one_of(SYS_ioctl, 1, &[KVM_RUN], "enters the guest"),
    one_of(SYS_ioctl, 1, &[KVM_GET_REGS, KVM_GET_SREGS], "the report of a crash"),
];

const POLL: &[Rule] =
    &[always(SYS_poll, "waits for a descriptor"), always(SYS_ppoll, "the same, with a limit")];

const DISK_ALONE: &[Rule] = &[
    always(SYS_io_uring_enter, "hands a batch to the ring, which can use but the disk's file"),
    one_of(SYS_io_uring_register, 1, &[3], "lets go of the disk's file when the ring goes"),
    always(SYS_preadv2, "a read that may be in the page cache"),
    always(SYS_pwritev2, "a write, where there is no ring"),
    always(SYS_preadv, "the same calls in older C libraries"),
    always(SYS_pwritev, "the same"),
    always(SYS_pread64, "a direct read into memory that is not aligned"),
    always(SYS_pwrite64, "such a write"),
    always(SYS_fdatasync, "a flush, where there is no ring"),
    always(SYS_fallocate, "a discard, where there is no ring"),
    one_of(SYS_ioctl, 1, &[BLOCK_DISCARD], "a discard of a block device"),
    always(SYS_poll, "waits for the ring when the disk stops"),
    always(SYS_ppoll, "the same"),
];

const NET_ALONE: &[Rule] = &[
    always(SYS_readv, "packets from the tap"),
    one_of(SYS_ioctl, 1, &[TUN_GET_INTERFACE], "whether the tap is still there"),
    one_of(SYS_ioctl, 1, &[TUN_SET_OFFLOAD, TUN_SET_QUEUE], "offloads, queues that are in use"),
];

/// Contents of files that are open: segments of the block cache, and shared files.
const READ_FILES: &[Rule] = &[
    always(SYS_pread64, "contents"),
    always(SYS_preadv, "contents, into the guest's memory"),
    always(SYS_preadv2, "the same"),
    always(SYS_fstat, "a segment's size"),
    always(SYS_statx, "the same"),
    always(SYS_lseek, "holes"),
];

/// Over sockets that are open, to the cache process, a guest's peers, and the warden.
const TALK: &[Rule] = &[
    always(SYS_sendmsg, "requests"),
    always(SYS_recvmsg, "answers, and the descriptors that come with them"),
    always(SYS_sendto, "the same without descriptors"),
    always(SYS_recvfrom, "the same"),
];

/// Below the directories that the machine was given. Paths lead nowhere else: there is no other
/// mount, and Landlock forbids it.
const CHANGE_FILES: &[Rule] = &[
    always(SYS_openat2, "opens a name of a directory, following nothing"),
    always(SYS_openat, "opens a file again, for reading or writing"),
    always(SYS_newfstatat, "attributes"),
    always(SYS_fstatfs, "how much room there is"),
    one_of(SYS_ioctl, 1, &[FILE_EXTENTS], "which of a file is room alone, for its quota"),
    always(SYS_getdents64, "lists a directory"),
    always(SYS_readlinkat, "a link's target"),
    always(SYS_pwrite64, "contents"),
    always(SYS_pwritev, "contents, from the guest's memory"),
    always(SYS_pwritev2, "the same"),
    always(SYS_copy_file_range, "copies within the host"),
    always(SYS_ftruncate, "a file's size"),
    always(SYS_fallocate, "room made, holes punched"),
    always(SYS_fsync, "durability"),
    always(SYS_fdatasync, "the same, of contents"),
    always(SYS_syncfs, "the same, of all"),
    always(SYS_mkdirat, "makes a directory"),
    always(SYS_mknodat, "makes a pipe, a socket, a whiteout"),
    always(SYS_symlinkat, "makes a link"),
    always(SYS_linkat, "gives a file another name"),
    always(SYS_renameat2, "moves a name"),
    always(SYS_unlinkat, "removes a name"),
    always(SYS_fchownat, "owner"),
    always(SYS_fchmodat, "mode"),
    always(SYS_fchmodat2, "mode, by newer kernels"),
    always(SYS_fchmod, "mode of what is open"),
    always(SYS_utimensat, "times"),
    always(SYS_fgetxattr, "extended attributes"),
    always(SYS_fsetxattr, "the same"),
    always(SYS_fremovexattr, "the same"),
    always(SYS_flistxattr, "the same"),
];

const DEVICES_ALONE: &[Rule] = &[
    always(SYS_accept4, "a client of the socket device"),
    always(SYS_shutdown, "one direction of a connection ends"),
    always(SYS_readv, "from a peer into the guest's memory"),
];

const API_ALONE: &[Rule] = &[
    always(SYS_accept4, "a client"),
    one_of(SYS_ioctl, 1, &[NON_BLOCKING], "a client's stream becomes the console's"),
    one_of(SYS_ioctl, 1, TERMINAL_GET, "whether it is a terminal"),
    always(SYS_fstat, "what kind of descriptor it is; a disk's size"),
    always(SYS_statx, "a disk's size"),
    always(SYS_lseek, "the same, of a block device"),
    always(SYS_ftruncate, "a disk grows; a snapshot is emptied, or given its size"),
    always(SYS_pwrite64, "a snapshot, into files that were handed over"),
    always(SYS_fsync, "the same, made durable"),
    always(SYS_fdatasync, "the disks that it takes for granted, likewise"),
    always(SYS_fstatfs, "whether there is room for it"),
    one_of(SYS_fcntl, 1, &[F_GETFL], "whether its files may be written to"),
    one_of(SYS_prlimit64, 2, &[0], "how large they may be; no limit is set"),
    one_of(SYS_ioctl, 1, &[KVM_KVMCLOCK_CTRL], "tells the guest's watchdogs of a pause"),
    one_of(SYS_ioctl, 1, KVM_GET_STATE, "a machine's state"),
];

/// What a machine's memory is made of.
const STATE: &[Rule] = &[
    always(SYS_pread64, "memory and kernel, read"),
    always(SYS_preadv, "the same"),
    always(SYS_fallocate, "memory that is a file, emptied"),
];

const MAIN_ALONE: &[Rule] = &[
    one_of(SYS_ioctl, 1, KVM_GET_STATE, "what a vCPU is reset from"),
    one_of(SYS_ioctl, 1, KVM_SET_STATE, "a reset"),
    one_of(SYS_ioctl, 1, &[KVM_KVMCLOCK_CTRL], "a pause, before a reset"),
    one_of(SYS_ioctl, 1, &[KVM_SET_USER_MEMORY_REGION], "memory of the bus that goes with it"),
    one_of(SYS_ioctl, 1, TERMINAL_GET, "the terminal is put back"),
    one_of(SYS_ioctl, 1, TERMINAL_SET, "the same"),
    always(SYS_statx, "the kernel's size"),
    always(SYS_fstat, "the same"),
    always(SYS_lseek, "the kernel, read anew"),
    always(SYS_readv, "the same"),
    always(SYS_io_uring_enter, "a disk that is taken apart"),
    always(SYS_shutdown, "a socket device that is taken apart"),
];

const HOTPLUG_ALONE: &[Rule] = &[
    one_of(SYS_clone, 0, &[THREAD_FLAGS], "starts a worker's thread, and nothing else"),
    // The kernel does not see its flags here: another filter answers that it does not exist.
    always(SYS_clone3, "is tried first"),
    always(SYS_set_robust_list, "a thread starts"),
    always(SYS_rseq, "the same"),
    always(SYS_sched_getaffinity, "the same"),
    one_of(SYS_prctl, 0, &[PR_SET_NAME, PR_SET_NO_NEW_PRIVS], "its name, and its own filter"),
    always(SYS_seccomp, "its own filter; one can but be added"),
    always(SYS_capset, "it gives up what capabilities there are"),
    always(SYS_io_uring_setup, "a disk's rings"),
    // Files, restrictions, and their end: `IORING_REGISTER_FILES`, `_RESTRICTIONS`, `_ENABLE_RINGS`.
    one_of(SYS_io_uring_register, 1, &[2, 11, 12], "ties a ring to its disk's file"),
    always(SYS_flock, "nobody else uses the disk"),
    always(SYS_fstat, "what was handed over"),
    always(SYS_statx, "the same"),
    always(SYS_fstatfs, "whether it is in memory"),
    always(SYS_lseek, "its size"),
    one_of(SYS_fcntl, 1, &[F_GETFL, F_SETFL], "direct transfers"),
    one_of(SYS_ioctl, 1, &[BLOCK_PHYSICAL_SIZE], "its block size"),
    one_of(SYS_ioctl, 1, &[NON_BLOCKING, TUN_SET_HEADER_SIZE], "a tap that was handed over"),
    one_of(SYS_ioctl, 1, &[KVM_SET_USER_MEMORY_REGION], "the device's configuration space"),
    always(SYS_shutdown, "a device that is taken apart"),
];

const SIGNALS_ALONE: &[Rule] =
    &[always(SYS_recvfrom, "what the handler wrote"), always(SYS_sendto, "the handler writes")];

const INPUT_ALONE: &[Rule] =
    &[one_of(SYS_ioctl, 1, &[KVM_IRQ_LINE], "the guest is told that there is a key")];

/// It has all rights of whoever started it, and does nothing for the jailed process but connect to
/// the sockets that the description names.
const WARDEN_ALONE: &[Rule] = &[
    always(SYS_recvmsg, "what the jailed process asks for"),
    always(SYS_recvfrom, "the same"),
    always(SYS_sendmsg, "a connection, handed over"),
    always(SYS_sendto, "that there is none"),
    one_of(SYS_socket, 0, &[AF_UNIX], "connections to the cache process and to a guest's peers"),
    always(SYS_connect, "the same"),
    always(SYS_kill, "passes signals on, to the one process that it waits for"),
    always(SYS_wait4, "how that ended"),
    always(SYS_rt_sigaction, "it ends by the signal that the VM ended by"),
    always(SYS_lstat, "whether a socket's file is still ours"),
    always(SYS_stat, "the same"),
    always(SYS_newfstatat, "the same"),
    always(SYS_statx, "the same"),
    always(SYS_unlink, "removes it"),
    one_of(SYS_ioctl, 1, TERMINAL_GET, "the terminal is put back if the VM was killed"),
    one_of(SYS_ioctl, 1, TERMINAL_SET, "the same"),
];

const PROT_EXEC: u32 = 4;
const AF_UNIX: u32 = 1;
const F_GETFD: u32 = 1;
const F_GETFL: u32 = 3;
const F_SETFL: u32 = 4;
const F_DUPFD_CLOEXEC: u32 = 1030;
const PR_SET_NAME: u32 = 15;
const PR_GET_NAME: u32 = 16;
const PR_SET_NO_NEW_PRIVS: u32 = 38;
/// `SIGABRT`, `SIGBUS`, `SIGSEGV`.
const FATAL_SIGNALS: &[u32] = &[6, 7, 11];
/// `CLONE_VM`, `_FS`, `_FILES`, `_SIGHAND`, `_THREAD`, `_SYSVSEM`, `_SETTLS`, `_PARENT_SETTID`,
/// `_CHILD_CLEARTID`: what `pthread_create` of the GNU C library asks for.
const THREAD_FLAGS: u32 = 0x3d_0f00;

const fn always(call: i64, why: &'static str) -> Rule {
    Rule { call, when: When::Always, why }
}

const fn one_of(call: i64, argument: u8, values: &'static [u32], why: &'static str) -> Rule {
    Rule { call, when: When::OneOf(argument, values), why }
}

const fn without(call: i64, argument: u8, bits: u32, why: &'static str) -> Rule {
    Rule { call, when: When::Without(argument, bits), why }
}

const fn ourselves(call: i64, argument: u8, why: &'static str) -> Rule {
    Rule { call, when: When::Ourselves(argument), why }
}
