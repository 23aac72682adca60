//! The boot itself: gathers the facts, makes the plan, carries it out, and becomes the guest's
//! own init.
//!
//! ```text
//!   kernel files ─> modules ─> disks, cidata ─> plan ─> root ─> mounts, network, keys
//!                                                                        │
//!                               power-off <── any error             switch_root ─> exec
//! ```
//!
//! Whatever goes wrong ends in one line on the console and a power-off: never a shell, never a
//! hang ([`crate::sys::watchdog`]). What a guest can live without (a network card that is not
//! there, host keys) ends in a warning.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, fstat, mkdirat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, mount};

use crate::agent;
use crate::cidata::{CiData, Interface, Options, User};
use crate::cmdline::CommandLine;
use crate::disk::Disk;
use crate::entry::Entry;
use crate::etc;
use crate::modules::{Trigger, id};
use crate::network;
use crate::plan::{RootUpper, Step, is_waiting, plan};
use crate::startup::Startup;
use crate::sys::links::Rtnetlink;
use crate::sys::modules::{Loader, has_button, has_pvpanic, virtio_ids};
use crate::sys::mount::{Request, attach, detach, flags, grow, grow_btrfs, own_folder, read_ahead};
use crate::sys::root::{Access, Root};
use crate::sys::uevents::Uevents;
use crate::sys::{console, disks, links, switch, watchdog};

/// Boots, as process 1 of a guest. Never returns: it becomes another program, or powers off.
pub fn run() -> ! {
    std::panic::set_hook(Box::new(|info| console::give_up(&format!("broken: {info}"))));
    let error = match boot() {
        Ok(entry) => switch::start(&entry),
        Err(error) => error,
    };
    console::give_up(&format!("{error:#}"))
}

fn boot() -> Result<Entry> {
    mount_own_kernel_files()?;
    console::take();
    let line = std::fs::read_to_string("/proc/cmdline").context("no kernel command line")?;
    let line = CommandLine::parse(&line)?;
    watchdog::start(line.boot_limit, line.trace);
    watchdog::note("loading modules");
    let uevents = Uevents::open()?;
    let mut loader = Loader::open()?;
    let has_sockets = load_for_devices(&mut loader)?;
    let (cidata, disks) = gather(&line, &uevents)?;
    let steps = plan(&line, &cidata, &disks)?;
    let mut boot = Boot { loader, root: None };
    for step in steps {
        watchdog::note(format!("at {}", name(&step)));
        boot.carry_out(step)?;
    }
    if has_sockets && let Err(error) = agent::start() {
        console::say(&format!("warning: {error:#}"));
    }
    boot.entry(&line, &cidata)
}

fn mount_own_kernel_files() -> Result<()> {
    for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        std::fs::create_dir_all(path)?;
        match mount(kind, path, kind, MountFlags::empty(), None) {
            // The kernel may have mounted /dev itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(error).with_context(|| format!("mounting {path}")),
        }
    }
    Ok(())
}

/// Loads the bus, then the drivers of the devices that are on it. A driver that fails is only
/// missed if its device is needed, and then by name. Says whether there is a socket device.
fn load_for_devices(loader: &mut Loader) -> Result<bool> {
    loader.load(&Trigger::Always)?;
    let present = virtio_ids();
    let known = [id::CONSOLE, id::RNG, id::BLOCK, id::NET, id::BALLOON, id::MEM, id::VSOCK];
    let mut triggers: Vec<Trigger> = known.map(Trigger::Virtio).into();
    triggers.retain(|trigger| matches!(trigger, Trigger::Virtio(id) if present.contains(id)));
    triggers.extend(has_pvpanic().then_some(Trigger::Panic));
    triggers.extend(has_button().then_some(Trigger::Button));
    for trigger in triggers {
        if let Err(error) = loader.load(&trigger) {
            console::say(&format!("warning: {error:#}"));
        }
    }
    if present.contains(&id::CONSOLE) {
        console::await_and_take();
    }
    Ok(present.contains(&id::VSOCK))
}

/// Waits for the disks, up to `rootdelay`, and reads what the node says.
fn gather(line: &CommandLine, uevents: &Uevents) -> Result<(CiData, Vec<Disk>)> {
    watchdog::note("waiting for disks");
    let started = Instant::now();
    loop {
        let late = started.elapsed() >= line.root_delay;
        let disks = disks::list();
        if let Some(files) = disks::cidata(&disks).context("cidata")? {
            let cidata = CiData::parse(&files)?;
            if late || !is_waiting(line, &cidata, &disks) {
                return Ok((cidata, disks));
            }
        } else if late {
            let there: Vec<String> = disks.iter().map(Disk::describe).collect();
            bail!(
                "no read-only disk labelled cidata after {} s; disks: {}",
                line.root_delay.as_secs(),
                if there.is_empty() { "none".to_owned() } else { there.join(", ") },
            );
        }
        uevents.wait(LOOK_INTERVAL);
    }
}

/// What carrying out the steps needs and leaves.
struct Boot {
    loader: Loader,
    /// Set by the first step.
    root: Option<Root>,
}

impl Boot {
    fn carry_out(&mut self, step: Step) -> Result<()> {
        match step {
            Step::MountRoot { tag, upper } => self.mount_root(&tag, &upper),
            Step::MountKernelFiles => self.mount_kernel_files(),
            Step::MountModules { tag } => self.mount_modules(&tag),
            Step::MountDisk { disk, target, options } => {
                let result = self.mount_disk(&disk, &target, options);
                forgive(options, result, || format!("mounting {} on {target}", disk.describe()))
            }
            Step::MountShare { tag, target, options } => {
                let result = self.mount_share(&tag, &target, options);
                forgive(options, result, || format!("mounting share {tag} on {target}"))
            }
            Step::Hostname(name) => {
                rustix::system::sethostname(name.as_bytes())?;
                self.root()?.replace("/etc/hostname", &format!("{name}\n"), PUBLIC)
            }
            Step::Hosts(hostname) => self.hosts(hostname.as_deref()),
            Step::Network(interfaces) => self.network(&interfaces),
            Step::AuthorizedKeys(user) => self.authorized_keys(&user),
            Step::SwitchRoot => {
                for path in ["/proc", "/sys", "/dev"] {
                    detach(path)?;
                }
                switch::switch_root(NEW_ROOT)
            }
            Step::HostKeys => {
                if let Err(error) = switch::make_host_keys() {
                    console::say(&format!("warning: ssh host keys: {error:#}"));
                }
                Ok(())
            }
            Step::Warn(text) => {
                console::say(&format!("warning: {text}"));
                Ok(())
            }
        }
    }

    fn root(&self) -> Result<&Root> {
        self.root.as_ref().context("the root is not mounted yet")
    }

    fn mount_root(&mut self, tag: &str, upper: &RootUpper) -> Result<()> {
        self.loader.load_fs("virtiofs")?;
        let target = own_folder(NEW_ROOT)?;
        let share = |read_only| {
            let options = Options { read_only, ..Options::default() };
            create_share(tag, options).with_context(|| format!("mounting the root share {tag}"))
        };
        let fresh = match upper {
            RootUpper::Share => {
                attach(&share(false)?, &target)?;
                false
            }
            RootUpper::Disk(disk) => {
                let upper = mount_volume(&mut self.loader, disk, Options::default())
                    .with_context(|| format!("mounting {}", disk.describe()))?;
                self.overlay(&share(true)?, &upper, &target)?
            }
            RootUpper::Memory => {
                let params = [("source", "rootfs"), ("mode", "0755")];
                let request =
                    Request { kind: "tmpfs", params: &params, flags: MountAttrFlags::empty() };
                self.overlay(&share(true)?, &request.create()?, &target)?
            }
        };
        let root = Root::new(own_folder(NEW_ROOT)?);
        if fresh {
            // Keys that came with the image are known to everybody who has the image.
            root.remove_matching("/etc/ssh", "ssh_host_")?;
            mkdirat(&own_folder("/upper")?, BOOTED, Mode::from_raw_mode(0o700))?;
        }
        if !matches!(upper, RootUpper::Share) {
            detach("/lower")?;
            detach("/upper")?;
        }
        self.root = Some(root);
        Ok(())
    }

    /// Mounts an overlay of both on `target`; returns whether the upper layer has not carried a
    /// root before.
    fn overlay(&mut self, lower: &OwnedFd, upper: &OwnedFd, target: &OwnedFd) -> Result<bool> {
        self.loader.load_fs("overlay")?;
        attach(lower, &own_folder("/lower")?)?;
        attach(upper, &own_folder("/upper")?)?;
        let layers = Root::new(own_folder("/upper")?);
        layers.folder("/rw")?;
        layers.folder("/wd")?;
        let fresh = layers.open(BOOTED, OFlags::PATH).is_err();
        if fresh {
            // The merged root folder shows the upper one's owner and permissions.
            let image = fstat(lower)?;
            let mode = image.st_mode & 0o7777;
            layers.set_access("/rw", Access { mode, uid: image.st_uid, gid: image.st_gid })?;
        }
        let params = [
            ("source", "overlay"),
            ("lowerdir", "/lower"),
            ("upperdir", "/upper/rw"),
            ("workdir", "/upper/wd"),
            // Folders of the image can then be renamed, which package managers expect.
            ("redirect_dir", "on"),
        ];
        let request = Request { kind: "overlay", params: &params, flags: MountAttrFlags::empty() };
        request.attach(target).context("mounting the overlay")?;
        Ok(fresh)
    }

    fn mount_kernel_files(&self) -> Result<()> {
        let root = self.root()?;
        for KernelFiles { path, kind, params } in KERNEL_FILES {
            let params = [&[("source", kind)], params].concat();
            let options = Options {
                nosuid: true,
                nodev: !matches!(kind, "devtmpfs" | "devpts"),
                noexec: !matches!(kind, "devtmpfs" | "tmpfs"),
                ..Options::default()
            };
            let request = Request { kind, params: &params, flags: flags(options) };
            root.folder(path)
                .and_then(|target| request.attach(&target))
                .with_context(|| format!("mounting {path} in the root"))?;
        }
        let dev = root.folder("/dev")?;
        for (name, number) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
            match rustix::fs::symlinkat(format!("/proc/self/fd{number}"), &dev, name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).with_context(|| format!("linking /dev/{name}")),
            }
        }
        Ok(())
    }

    fn mount_modules(&self, tag: &str) -> Result<()> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let target = self.root()?.folder(&format!("/lib/modules/{release}"))?;
        let options = Options { read_only: true, nosuid: true, nodev: true, ..Options::default() };
        let share = create_share(tag, options);
        attach(&share.with_context(|| format!("mounting the modules share {tag}"))?, &target)
    }

    fn mount_disk(&mut self, disk: &Disk, target: &str, options: Options) -> Result<()> {
        let mount = mount_volume(&mut self.loader, disk, options)?;
        attach(&mount, &self.root()?.folder(target)?)
    }

    fn mount_share(&mut self, tag: &str, target: &str, options: Options) -> Result<()> {
        self.loader.load_fs("virtiofs")?;
        attach(&create_share(tag, options)?, &self.root()?.folder(target)?)
    }

    fn hosts(&self, hostname: Option<&str>) -> Result<()> {
        let root = self.root()?;
        match etc::hosts(&root.text("/etc/hosts")?, hostname) {
            Some(text) => root.replace("/etc/hosts", &text, PUBLIC),
            None => Ok(()),
        }
    }

    /// Configures the network. What the kernel refuses is a warning: a guest that can be reached
    /// by one address is worth more than none.
    fn network(&self, interfaces: &[Interface]) -> Result<()> {
        let warn = |what: String| console::say(&format!("warning: network: {what}"));
        let mut kernel = Rtnetlink::open()?;
        kernel.loopback()?;
        let (requests, missing) = network::plan(interfaces, &links::list());
        for key in missing {
            warn(format!("{key}: no interface with its MAC address"));
        }
        for request in requests {
            if let Err(error) = kernel.carry_out(&request) {
                warn(format!("{request}: {error:#}"));
            }
        }
        let servers = interfaces.iter().flat_map(|interface| &interface.nameservers);
        let search = interfaces.iter().flat_map(|interface| &interface.search);
        match etc::resolv_conf(servers, search) {
            Some(text) => self.root()?.replace("/etc/resolv.conf", &text, PUBLIC),
            None => Ok(()),
        }
    }

    fn authorized_keys(&self, user: &User) -> Result<()> {
        let root = self.root()?;
        let Some(account) = etc::account(&root.text("/etc/passwd")?, &user.name) else {
            console::say(&format!("warning: ssh keys: the image has no user {:?}", user.name));
            return Ok(());
        };
        let folder = format!("{}/.ssh", account.home.trim_end_matches('/'));
        let access = |mode| Access { mode, uid: account.uid, gid: account.gid };
        let home_is_new = root.open(&account.home, OFlags::PATH).is_err();
        root.folder(&folder)?;
        if home_is_new {
            root.set_access(&account.home, access(0o700))?;
        }
        root.set_access(&folder, access(0o700))?;
        let path = format!("{folder}/authorized_keys");
        match etc::authorized_keys(&root.text(&path)?, &user.keys) {
            Some(text) => root.replace(&path, &text, access(0o600)),
            None => Ok(()),
        }
    }

    /// What to start. Called when the root is `/`.
    fn entry(&self, line: &CommandLine, cidata: &CiData) -> Result<Entry> {
        watchdog::note("starting the guest's init");
        let text = self.root()?.text("/.startup.toml");
        let startup = text.and_then(|text| Ok(Startup::parse(&text)?));
        let startup = startup.unwrap_or_else(|error| {
            console::say(&format!("warning: {error:#}"));
            Startup::default()
        });
        Ok(Entry::resolve(&cidata.zosrc, line.init.as_deref(), &startup))
    }
}

/// With `nofail` an error becomes a warning.
fn forgive(options: Options, result: Result<()>, what: impl Fn() -> String) -> Result<()> {
    match result {
        Err(error) if options.nofail => {
            console::say(&format!("warning: {}: {error:#}", what()));
            Ok(())
        }
        other => other.with_context(what),
    }
}

fn create_share(tag: &str, options: Options) -> Result<OwnedFd> {
    let mut params = vec![("source", tag)];
    params.extend(options.read_only.then_some(("ro", "")));
    let mount = Request { kind: "virtiofs", params: &params, flags: flags(options) }.create()?;
    // Without it, it works too.
    let _ = read_ahead(&mount, SHARE_READ_AHEAD_KIB);
    Ok(mount)
}

/// Mounts `disk`, formatted first if it is blank, grown if it has room.
fn mount_volume(loader: &mut Loader, disk: &Disk, options: Options) -> Result<OwnedFd> {
    let prepared = disks::prepare(disk)?;
    loader.load_fs(prepared.kind)?;
    let device = format!("/dev/{}", disk.name);
    let mut params = vec![("source", device.as_str())];
    // Without this the kernel would zero all inode tables of a new disk in the background: 1.6 %
    // of its size, written to a host that keeps the zeros sparse.
    params.extend((prepared.kind == "ext4").then_some(("noinit_itable", "")));
    let read_only = options.read_only || disk.read_only;
    params.extend(read_only.then_some(("ro", "")));
    let request = Request { kind: prepared.kind, params: &params, flags: flags(options) };
    let mount = request.create()?;
    let Some(blocks) = prepared.grow_to.filter(|_| !read_only) else { return Ok(mount) };
    let grown = match prepared.kind {
        "btrfs" => grow_btrfs(&mount),
        _ => grow_in_steps(&mount, disk, blocks),
    };
    match grown {
        Ok(()) => {
            // Mounted anew, the kernel chooses its allocator by the new size.
            drop(mount);
            request.create()
        }
        // A new disk must have the size that was asked for; an old one is better small than absent.
        Err(error) if prepared.new => Err(error),
        Err(error) => {
            console::say(&format!("warning: {}: {error:#}", disk.describe()));
            Ok(mount)
        }
    }
}

/// Grows to `blocks`, a step at a time. The kernel's work grows with the square of the size: what
/// is not done within [`GROW_LIMIT`] is left to the next boot.
fn grow_in_steps(mount: &OwnedFd, disk: &Disk, blocks: u64) -> Result<()> {
    let started = Instant::now();
    let mut next = rustix::fs::fstatvfs(mount)?.f_blocks;
    while next < blocks {
        if started.elapsed() > GROW_LIMIT {
            let disk = disk.describe();
            console::say(&format!(
                "warning: {disk}: grown to {next} of {blocks} blocks; the rest at the next boot"
            ));
            return Ok(());
        }
        next = next.saturating_add(GROW_STEP_BLOCKS).min(blocks);
        grow(mount, next)?;
    }
    Ok(())
}

/// How a step is called when it takes too long.
fn name(step: &Step) -> String {
    match step {
        Step::MountRoot { tag, .. } => format!("mounting the root share {tag}"),
        Step::MountKernelFiles => "mounting the kernel's files".to_owned(),
        Step::MountModules { tag } => format!("mounting the modules share {tag}"),
        Step::MountDisk { disk, target, .. } => format!("mounting {} on {target}", disk.name),
        Step::MountShare { tag, target, .. } => format!("mounting share {tag} on {target}"),
        Step::Hostname(_) | Step::Hosts(_) => "writing the host's name".to_owned(),
        Step::Network(_) => "configuring the network".to_owned(),
        Step::AuthorizedKeys(user) => format!("writing the ssh keys of {}", user.name),
        Step::SwitchRoot => "entering the root".to_owned(),
        Step::HostKeys => "making ssh host keys".to_owned(),
        Step::Warn(_) => "warning".to_owned(),
    }
}

/// One of the kernel's own file systems.
struct KernelFiles {
    path: &'static str,
    kind: &'static str,
    params: &'static [(&'static str, &'static str)],
}

const fn kernel_files(
    path: &'static str,
    kind: &'static str,
    params: &'static [(&'static str, &'static str)],
) -> KernelFiles {
    KernelFiles { path, kind, params }
}

/// What every root gets, in this order.
const KERNEL_FILES: [KernelFiles; 7] = [
    kernel_files("/proc", "proc", &[]),
    kernel_files("/sys", "sysfs", &[]),
    kernel_files("/sys/fs/cgroup", "cgroup2", &[]),
    kernel_files("/dev", "devtmpfs", &[]),
    kernel_files("/dev/pts", "devpts", &[("mode", "620"), ("gid", "5"), ("ptmxmode", "666")]),
    kernel_files("/dev/shm", "tmpfs", &[("mode", "1777")]),
    kernel_files("/run", "tmpfs", &[("mode", "0755")]),
];
const PUBLIC: Access = Access { mode: 0o644, uid: 0, gid: 0 };
/// Where the root is mounted until it becomes `/`.
const NEW_ROOT: &str = "/newroot";
/// On the upper volume: says that a root has been prepared on it.
const BOOTED: &str = "booted";
/// How far a share is read ahead: each request is a way out of the guest and back, so a few large ones
/// are cheaper than the kernel's 128 KiB.
const SHARE_READ_AHEAD_KIB: u32 = 512;
/// Longest time that growing a file system may hold up a boot.
const GROW_LIMIT: Duration = Duration::from_secs(40);
/// How far a file system grows in one step: 512 GiB of 4 KiB blocks.
const GROW_STEP_BLOCKS: u64 = 1 << 27;
/// How often the boot looks for disks that are late, whether or not something was announced.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
