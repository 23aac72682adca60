//! What is played in a jail.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{CWD, FileType, Mode, StatVfsMountFlags, XattrFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use vmm_machine::jail::{self, Doors, Inside, Needs, Share, Side};
use vmm_machine::{CpuTemplate, Machine, MachineConfig, boot, kvm, memory, vm};
use vmm_spec::{Flags, Jail, VmSpec};

use crate::guest;

const NONE: Jail = Jail { uid: None, gid: None, cgroup: None };

pub(crate) fn play(words: &str) -> ExitCode {
    let words: Vec<&str> = words.split(' ').collect();
    match words.as_slice() {
        ["forbidden", thread, shares] => {
            let shares = if shares.is_empty() { Vec::new() } else { vec![share("/", true)] };
            let thread = (*thread).to_owned();
            in_jail(&shares, |inside| {
                on_thread(&inside, &thread, || {
                    let _ = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
                })
            })
        }
        ["forbidden-arguments", what] => {
            let what = (*what).to_owned();
            in_jail(&[], |inside| on_thread(&inside, "disk.a", || forbidden(&what)))
        }
        ["unknown-thread"] => in_jail(&[], |inside| {
            let error = (inside.threads)("tokio").unwrap_err();
            eprintln!("{error}");
            1
        }),
        ["vcpu"] => in_jail_with_kvm(vcpu),
        ["reach", address, pid] => {
            let (address, pid) = ((*address).to_owned(), pid.parse().unwrap());
            in_jail(&[], move |inside| reach(&inside, &address, pid))
        }
        ["shares", folder] => {
            let folder = Path::new(folder);
            let shares = [share(folder.join("written"), false), share(folder.join("read"), true)];
            in_jail(&shares, |inside| shared(&inside))
        }
        ["descriptors"] => descriptors(),
        ["exit", how] => {
            let how = (*how).to_owned();
            in_jail(&[], move |_| end(&how))
        }
        ["wait"] => in_jail(&[], wait),
        ["vm", how, folder] => whole_vm(how, Path::new(folder)),
        other => panic!("no scenario {other:?}"),
    }
}

fn share(path: impl Into<PathBuf>, is_readonly: bool) -> Share {
    Share { path: path.into(), is_readonly }
}

fn in_jail(shares: &[Share], work: impl FnOnce(Inside) -> u8) -> ExitCode {
    let doors = Doors::default();
    let needs = Needs { shares, doors: &doors, block_devices: &[], has_pagemap: false };
    match jail::enter(&NONE, needs).unwrap() {
        Side::Inside(inside) => ExitCode::from(work(inside)),
        Side::Outside(warden) => ExitCode::from(warden.watch().unwrap().finish().code()),
    }
}

fn in_jail_with_kvm(work: impl FnOnce(Inside, kvm_ioctls::Kvm) -> u8) -> ExitCode {
    match kvm::open() {
        Ok(kvm) => in_jail(&[], |inside| work(inside, kvm)),
        Err(error) => {
            eprintln!("skipped: {error} ({})", error.hint());
            ExitCode::SUCCESS
        }
    }
}

/// Does something on a thread of this name, under its filter.
fn on_thread(inside: &Inside, name: &str, work: impl FnOnce() + Send) -> u8 {
    let set_up = || {
        (inside.threads)(name).unwrap();
        work();
        eprintln!("still here");
    };
    if name == "main" {
        set_up();
        return 0;
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let _ = thread.spawn_scoped(scope, set_up).unwrap().join();
    });
    0
}

#[expect(unsafe_code, reason = "calls that nobody should make")]
fn forbidden(what: &str) {
    let none = std::ptr::null_mut::<libc::c_void>();
    match what {
        "mmap-exec" => {
            let (protection, flags) = (libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping, that nobody uses.
            unsafe { libc::mmap(none, 4096, protection, flags, -1, 0) };
        }
        "tiocsti" => {
            // SAFETY: it reads one byte.
            unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) };
        }
        "kill" => {
            // SAFETY: it sends nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, 999_999, 999_999, 0) };
        }
        "clone" => {
            // SAFETY: it would be a copy of a process, which ends.
            unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        }
        "ring" => {
            // SAFETY: it reads no parameters at null, and says so.
            unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, none) };
        }
        other => panic!("{other}"),
    }
}

/// Whoever has the vCPU's thread in their hands runs a program.
struct TakenOver;

impl Write for TakenOver {
    #[expect(unsafe_code, reason = "calls that nobody should make")]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let none = [std::ptr::null()];
        // SAFETY: the path and the empty list are there.
        unsafe { libc::execve(c"/bin/sh".as_ptr(), none.as_ptr(), none.as_ptr()) };
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn vcpu(inside: Inside, kvm: kvm_ioctls::Kvm) -> u8 {
    let mut file =
        File::from(rustix::fs::memfd_create("kernel", rustix::fs::MemfdFlags::empty()).unwrap());
    file.write_all(&guest::kernel(&[guest::SAY, guest::OFF].concat())).unwrap();
    let config = MachineConfig {
        boot: boot::Boot {
            kernel: boot::Image { file, name: "guest".to_owned() },
            initramfs: None,
            cmdline: String::new(),
            loading: boot::Loading::Copy,
        },
        vcpu_count: 1,
        cpu_template: CpuTemplate::Host,
        memory_mib: 16,
        backing: memory::Backing::default(),
        serial: Some(Box::new(TakenOver)),
        has_pci: false,
    };
    let mut machine = Machine::new(&kvm, config).unwrap();
    machine.start_threads(&inside.threads).unwrap();
    machine.start().unwrap();
    let exit = machine.wait(Some(crate::PATIENCE));
    eprintln!("still here: {exit:?}");
    0
}

fn reach(inside: &Inside, address: &str, test: i32) -> u8 {
    let stands = |name: &str| {
        let wall = inside.walls.iter().find(|wall| wall.name == name).unwrap();
        if !wall.stands {
            eprintln!("not tried: {name}: {}", wall.detail);
        }
        wall.stands
    };
    if stands("root directory") {
        // Landlock forbids even to look.
        assert!(fs::read_dir("/").map_or(true, |mut names| names.next().is_none()));
        for path in ["/etc/passwd", "/proc/self/status", "/dev/kvm", "/../etc/passwd"] {
            assert!(File::open(path).is_err(), "{path}");
        }
        assert!(File::create("/new").is_err());
        assert!(rustix::fs::mkdir("/new", Mode::RWXU).is_err());
    }
    if stands("network namespace") {
        assert!(TcpStream::connect(address).is_err());
    }
    if stands("process namespace") {
        assert_eq!(rustix::process::getpid().as_raw_nonzero().get(), 1);
        let test = rustix::process::Pid::from_raw(test);
        let sent = rustix::process::test_kill_process(test.unwrap());
        assert_eq!(sent, Err(Errno::SRCH));
    }
    if stands("uts namespace") {
        assert_eq!(rustix::system::uname().nodename(), c"vmm");
    }
    if stands("capabilities") {
        let sets = rustix::thread::capabilities(None).unwrap();
        assert!((sets.effective | sets.permitted | sets.inheritable).is_empty(), "{sets:?}");
    }
    let nothing = rustix::mount::MountFlags::empty();
    assert!(rustix::mount::mount(c"x", c"/", c"tmpfs", nothing, None).is_err());
    assert!(rustix::process::chroot("/").is_err());
    assert!(rustix::thread::no_new_privs().unwrap());
    assert!(!rustix::process::getuid().is_root());
    assert!(!rustix::process::getgroups().unwrap().iter().any(|group| group.as_raw() == 0));
    assert_eq!(std::env::vars_os().count(), 0);
    assert_ne!(inside.pid, 1);
    0
}

fn shared(inside: &Inside) -> u8 {
    let [written, read] = inside.shares.as_slice() else { panic!("{:?}", inside.shares) };
    let root = inside.walls.iter().find(|wall| wall.name == "root directory").unwrap();
    assert_eq!(fs::read(read.join("file")).unwrap(), b"from outside");
    assert!(fs::write(read.join("file"), "from inside").is_err());
    assert!(fs::remove_file(read.join("file")).is_err());
    fs::write(written.join("new"), "from inside").unwrap();
    fs::rename(written.join("new"), written.join("moved")).unwrap();
    fs::create_dir(written.join("below")).unwrap();
    fs::rename(written.join("moved"), written.join("below/new")).unwrap();
    fs::hard_link(written.join("below/new"), written.join("new")).unwrap();
    for secret in ["../secret", "../../secret", "../../etc/passwd", "../../proc/1/root/etc/passwd"]
    {
        assert!(File::open(written.join(secret)).is_err(), "{secret}");
    }
    let device = rustix::fs::makedev(1, 3);
    for (kind, device) in [(FileType::CharacterDevice, device), (FileType::BlockDevice, device)] {
        let made = rustix::fs::mknodat(CWD, written.join("device"), kind, Mode::RWXU, device);
        assert!(made.is_err(), "{kind:?}");
    }
    let whiteout = written.join("whiteout");
    rustix::fs::mknodat(CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    let trusted = rustix::fs::setxattr(written, "trusted.a", b"x", XattrFlags::empty());
    assert!(matches!(trusted, Err(Errno::PERM | Errno::OPNOTSUPP)), "{trusted:?}");
    if root.stands {
        for place in [written, read] {
            let flags = rustix::fs::statvfs(place).unwrap().f_flag;
            let wanted = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
            assert!(flags.contains(wanted | StatVfsMountFlags::NOEXEC), "{flags:?}");
        }
        // Our own descriptors, and no other process's anything.
        let own = File::open(written.join("file")).unwrap();
        let again = fs::read(format!("/proc/self/fd/{}", own.as_raw_fd())).unwrap();
        assert_eq!(again, b"from outside");
        assert!(fs::read_dir("/proc/self/fd/..").map_or(true, |names| names.count() <= 1));
        assert!(fs::read_dir("/proc/1").is_err());
    }
    if own_any_id(inside) {
        std::os::unix::fs::chown(written.join("new"), Some(1234), Some(4321)).unwrap();
        let metadata = written.join("new").metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 4321));
        fs::write(written.join("new"), "from inside").unwrap();
    }
    0
}

/// Whether the test was started by root, who has all ids to give.
fn own_any_id(inside: &Inside) -> bool {
    let user = inside.walls.iter().find(|wall| wall.name == "user").unwrap();
    user.detail.starts_with("19")
}

fn descriptors() -> ExitCode {
    let [kept, other] = [0, 1].map(|_| rustix::io::dup(rustix::stdio::stderr()).unwrap());
    let numbers = [kept, other].map(std::os::fd::IntoRawFd::into_raw_fd);
    jail::close_foreign(&numbers[..1]).unwrap();
    #[expect(unsafe_code, reason = "a number that may be closed")]
    // SAFETY: it is borrowed for one call, which fails if it is not open.
    let flags = numbers.map(|n| rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(n) }));
    assert!(flags[0].is_ok());
    assert_eq!(flags[1], Err(Errno::BADF));
    ExitCode::SUCCESS
}

fn end(how: &str) -> u8 {
    match how {
        "abort" => std::process::abort(),
        "segv" => {
            let nowhere = std::ptr::null_mut::<u8>();
            #[expect(unsafe_code, reason = "the end of a process that is broken")]
            // SAFETY: it ends the process.
            unsafe {
                nowhere.write_volatile(1);
            }
            0
        }
        code => code.parse().unwrap(),
    }
}

fn wait(inside: Inside) -> u8 {
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGTERM]).unwrap();
    vmm_sys_util::signal::unblock_signal(libc::SIGTERM).unwrap();
    println!("{}", inside.pid);
    assert_eq!(signals.forever().next(), Some(libc::SIGTERM));
    12
}

fn whole_vm(how: &str, folder: &Path) -> ExitCode {
    if let Err(error) = kvm::open() {
        eprintln!("skipped: {error} ({})", error.hint());
        return ExitCode::SUCCESS;
    }
    let last = if how == "off" { guest::OFF } else { guest::CRASH };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    fs::write(folder.join("kernel"), guest::kernel(&[guest::SAY, last].concat())).unwrap();
    File::create(folder.join("disk")).unwrap().set_len(1 << 20).unwrap();
    fs::create_dir(folder.join("share")).unwrap();
    let flags = Flags {
        kernel: Some(path("kernel").into()),
        memory: Some("32M".to_owned()),
        disk: vec![path("disk")],
        fs: vec![format!("tag=share,dir={}", path("share"))],
        vsock: Some(format!("cid=3,socket={}", path("vsock"))),
        serial: Some(format!("file={}", path("serial"))),
        rng: Some("on".to_owned()),
        balloon: Some(String::new()),
        api_socket: Some(path("api").into()),
        ..Flags::default()
    };
    let spec = flags.apply(VmSpec::default()).unwrap().verify().unwrap();
    ExitCode::from(vm::run(&spec).unwrap().code())
}
