//! From the description of a device to a function on the bus.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use rustix::io::{Errno, FdFlags};
use vmm_spec::{
    BalloonSpec, Disk, Fs, FsSource, Net, NetBackend, RateLimit, Size, VerifiedSpec, VsockSpec,
};
use vmm_virtio::balloon::{Balloon, BalloonOptions};
use vmm_virtio::block::file::{FileDisk, FileOptions};
use vmm_virtio::block::{Block, BlockHandle, BlockOptions};
use vmm_virtio::fs::host::{HostDirectory, HostOptions};
use vmm_virtio::fs::overlay::{MarkPrefix, Overlay, OverlayOptions};
use vmm_virtio::memory::GuestAddress;
use vmm_virtio::net::{self, NetOptions, SharedThrottle, Tap, Throttle};
use vmm_virtio::pci::{Function, GuestPanic, Parts, Pvpanic, Transport};
use vmm_virtio::rate_limiter::{Bucket, RateLimiter, RateLimits};
use vmm_virtio::rng::Rng;
use vmm_virtio::vsock::{self, Vsock, heartbeat};
use vmm_virtio::{Counter, Device, fs};

use super::console::Consoles;
use super::opened::{OpenedDevices, OpenedFs};
use super::{Shared, VmError};
use crate::Exit;
use crate::worker::Placement;

/// A device on the bus.
pub(super) struct Plugged {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) slot: usize,
    pub(super) handle: Handle,
    pub(super) counters: Vec<(&'static str, Counter)>,
}

/// The way to a device that is more than its function.
pub(super) enum Handle {
    None,
    Disk { disk: BlockHandle, file: Arc<File> },
}

/// What a device needs to be put on the bus.
struct Placed {
    id: String,
    kind: &'static str,
    device: Box<dyn Device>,
    placement: Placement,
    handle: Handle,
}

/// Descriptors in each ring of a network card.
const NET_QUEUE_SIZE: u16 = 256;

impl Shared {
    /// Puts everything that `spec` names on the bus, in its order.
    pub(super) fn add_devices(
        self: &Arc<Self>,
        spec: &VerifiedSpec,
        opened: OpenedDevices,
        consoles: &mut Consoles,
        vsock: Option<vsock::Listener>,
    ) -> Result<(), VmError> {
        for (disk, file) in spec.disks.iter().zip(opened.disks) {
            self.add_disk(disk, file)?;
        }
        for (net, taps) in spec.nets.iter().zip(opened.taps) {
            self.add_net(net, taps)?;
        }
        for (fs, opened) in spec.fs.iter().zip(opened.file_systems) {
            self.add_fs(fs, opened)?;
        }
        if let (Some(vsock), Some(listener)) = (&spec.vsock, vsock) {
            let silence = spec.watchdog.map(|dog| Duration::from_secs(u64::from(dog.timeout_s)));
            self.add_vsock(vsock, listener, silence)?;
        }
        if spec.rng {
            self.add_shared("rng", Box::new(Rng::new()))?;
        }
        if let Some(balloon) = spec.balloon {
            self.add_balloon(balloon)?;
        }
        if let Some(console) = consoles.take_device() {
            // Nobody else sets it.
            let _ = self.console.set(console.handle());
            self.add_shared("console", Box::new(console))?;
        }
        if spec.pvpanic {
            self.add_pvpanic()?;
        }
        Ok(())
    }

    /// Adds a disk, and returns its slot.
    pub(super) fn add_disk(&self, disk: &Disk, file: File) -> Result<usize, VmError> {
        let name = || format!("disk {} ({})", disk.id, disk.path.display());
        let handle_file = Arc::new(file.try_clone().map_err(VmError::device(name()))?);
        let options = FileOptions {
            is_read_only: disk.readonly,
            is_direct: disk.direct,
            ..FileOptions::default()
        };
        let storage = FileDisk::new(file, options).map_err(VmError::device(name()))?;
        let options = BlockOptions {
            queues: disk.queues,
            serial: disk.serial.clone(),
            limits: limits(&disk.rate).map_err(VmError::device(name()))?,
            ..BlockOptions::default()
        };
        let device = Block::new(Arc::new(storage), &options).map_err(VmError::device(name()))?;
        // Threads in a jail cannot ask for it later.
        device.prepare(self.machine().memory()).map_err(VmError::device(name()))?;
        let handle = Handle::Disk { disk: device.handle(), file: handle_file };
        let placement = Placement::Own { thread_count: usize::from(disk.queues) };
        let device = Box::new(device);
        self.add(Placed { id: disk.id.clone(), kind: "disk", device, placement, handle })
    }

    /// Adds a network card, and returns its slot.
    pub(super) fn add_net(&self, net: &Net, taps: Vec<Tap>) -> Result<usize, VmError> {
        let name = || format!("net {}", net.id);
        let throttle = || -> Result<Option<SharedThrottle>, VmError> {
            let limits = limits(&net.rate).map_err(VmError::device(name()))?;
            let limiter = PacketLimiter(RateLimiter::new(&limits, Instant::now()));
            Ok(limiter.0.is_limited().then(|| Arc::new(Mutex::new(limiter)) as _))
        };
        let options = NetOptions {
            mac: net
                .mac
                .map_or_else(random_mac, |mac| Ok(mac.0))
                .map_err(VmError::device(name()))?,
            mtu: net.mtu,
            speed_mbps: None,
            queue_size: NET_QUEUE_SIZE,
            receive_throttle: throttle()?,
            transmit_throttle: throttle()?,
        };
        let thread_count = taps.len();
        let backends = taps.into_iter().map(|tap| Arc::new(tap) as Arc<dyn net::Backend>);
        let device = vmm_virtio::net::Net::new(options, backends.collect());
        let device = device.map_err(VmError::device(name()))?;
        let placement = Placement::Own { thread_count };
        let (device, handle) = (Box::new(device), Handle::None);
        self.add(Placed { id: net.id.clone(), kind: "net", device, placement, handle })
    }

    fn add_vsock(
        &self,
        spec: &VsockSpec,
        listener: vsock::Listener,
        silence_max: Option<Duration>,
    ) -> Result<usize, VmError> {
        let name = || format!("vsock {}", spec.socket.display());
        let ender = self.machine().ender();
        let device = Vsock::new(vsock::Settings {
            guest_cid: spec.cid,
            listener,
            silence_max,
            reseeds: true,
            on_event: Arc::new(move |event| match event {
                vsock::Event::Heartbeat(heartbeat::Event::Silent(_)) => ender.end(Exit::Watchdog),
                event => tracing::debug!(?event, "vsock"),
            }),
        });
        self.add_shared("vsock", Box::new(device.map_err(VmError::device(name()))?))
    }

    /// Adds a file system. Reading it may wait for the network, so it has a thread of its own.
    fn add_fs(&self, spec: &Fs, opened: OpenedFs) -> Result<usize, VmError> {
        let name = || format!("fs {}", spec.tag);
        let device = match opened {
            OpenedFs::Flist { view, client, upper } => {
                let device = match upper {
                    None => fs::Fs::new(&spec.tag, 1, view),
                    Some(upper) => {
                        let (marks, quota) = (marks(&upper), quota_of(&spec.source));
                        let options = OverlayOptions { marks, quota };
                        let overlay = Overlay::open(view, &upper, options);
                        let overlay = overlay.map_err(VmError::device(name()))?;
                        fs::Fs::new(&spec.tag, 1, overlay)
                    }
                };
                device.map(|device| device.with_cache(client))
            }
            OpenedFs::Dir(path) => {
                let directory = HostDirectory::open(&path, host_options(&spec.source));
                fs::Fs::new(&spec.tag, 1, directory.map_err(VmError::device(name()))?)
            }
        };
        let device = Box::new(device.map_err(VmError::device(name()))?);
        let placement = Placement::Own { thread_count: 1 };
        self.add(Placed {
            id: spec.tag.clone(),
            kind: "fs",
            device,
            placement,
            handle: Handle::None,
        })
    }

    /// Adds a device that has little to do, and of which there is one.
    fn add_shared(&self, kind: &'static str, device: Box<dyn Device>) -> Result<usize, VmError> {
        let placement = Placement::Shared;
        self.add(Placed { id: kind.to_owned(), kind, device, placement, handle: Handle::None })
    }

    fn add_balloon(&self, spec: BalloonSpec) -> Result<usize, VmError> {
        let memory_size = self.machine().layout().ram().map(|range| range.size).sum();
        let range =
            |range: crate::memory::Range| GuestAddress(range.start)..GuestAddress(range.end());
        let images = self.machine().ram().images().into_iter().map(range).collect();
        let balloon = Balloon::new(BalloonOptions {
            memory_size,
            deflates_on_oom: spec.deflate_on_oom,
            has_reporting: spec.free_page_reporting,
            excluded: images,
        });
        let balloon = balloon.map_err(VmError::device("balloon"))?;
        let handle = balloon.handle();
        handle.set_target(spec.target.bytes()).map_err(VmError::device("balloon"))?;
        let _ = self.balloon.set(handle);
        self.add_shared("balloon", Box::new(balloon))
    }

    fn add_pvpanic(&self) -> Result<(), VmError> {
        let ender = self.machine().ender();
        // Once: the guest may say it as often as it likes.
        let is_told = AtomicBool::new(false);
        let function = Pvpanic::new(move |event| match event {
            GuestPanic::Panicked => ender.end(Exit::Panic),
            GuestPanic::CrashLoaded if !is_told.swap(true, Ordering::Relaxed) => {
                tracing::warn!("the guest panicked; its crash kernel runs");
            }
            GuestPanic::CrashLoaded => {}
        });
        let (id, kind) = ("pvpanic".to_owned(), "pvpanic");
        let slot = self.bus.add(self.place(kind, &id), Box::new(function))?;
        let (handle, counters) = (Handle::None, Vec::new());
        self.plugged().push(Plugged { id, kind, slot, handle, counters });
        Ok(())
    }

    /// The slot in which a snapshot's guest found this device; none for any.
    fn place(&self, kind: &str, id: &str) -> Option<usize> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.remove(&(kind.to_owned(), id.to_owned()))
    }

    /// Puts a virtio device into its slot, or the first free one, which is returned.
    fn add(&self, placed: Placed) -> Result<usize, VmError> {
        let Placed { id, kind, device, placement, handle } = placed;
        let name = if id == kind { id.clone() } else { format!("{kind}.{id}") };
        let executor = self.workers.executor(&name, placement);
        let executor = executor.map_err(VmError::device(name.clone()))?;
        let host = self.bus.host(Transport::vector_count(&*device));
        let memory = Arc::clone(self.machine().memory());
        let transport = Transport::new(Parts { name, device, memory, executor, host });
        let counters = transport.counters();
        let place = self.place(kind, &id);
        let slot = self.bus.add(place, Box::new(transport) as Box<dyn Function>)?;
        self.plugged().push(Plugged { id, kind, slot, handle, counters });
        Ok(slot)
    }
}

/// Marks that need no capability, unless the host's file system keeps no such attributes (tmpfs before
/// Linux 6.6). Then it takes a VMM of root's without a jail.
fn marks(volume: &Path) -> MarkPrefix {
    const PROBE: &str = "user.overlay.probe";
    let kept = rustix::fs::setxattr(volume, PROBE, b"y", XattrFlags::empty());
    // Nothing else reads it.
    let _ = rustix::fs::removexattr(volume, PROBE);
    if kept == Err(Errno::OPNOTSUPP) { MarkPrefix::Trusted } else { MarkPrefix::User }
}

fn host_options(source: &FsSource) -> HostOptions {
    let is_readonly = matches!(source, FsSource::Dir { readonly: true, .. });
    HostOptions { is_readonly, quota: quota_of(source), ..HostOptions::default() }
}

/// How many bytes the guest may write there; as many as fit if nothing is said.
fn quota_of(source: &FsSource) -> Option<u64> {
    let (FsSource::Flist { quota, .. } | FsSource::Dir { quota, .. }) = source;
    quota.map(Size::bytes)
}

/// A rate limiter as network cards ask for it.
#[derive(Debug)]
struct PacketLimiter(RateLimiter);

impl Throttle for PacketLimiter {
    fn take(&mut self, bytes: u64) -> Result<(), Instant> {
        if self.0.is_limited() { self.0.admit(Instant::now(), bytes) } else { Ok(()) }
    }
}

pub(super) fn open_disk(disk: &Disk) -> Result<File, VmError> {
    let name = format!("disk {} ({})", disk.id, disk.path.display());
    open_file(&disk.path, disk.readonly).map_err(VmError::device(name))
}

fn open_file(path: &Path, is_read_only: bool) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // A FIFO would keep us waiting.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).write(!is_read_only).custom_flags(flags).open(path)
}

/// The queues of a card's tap: `descriptors` that were handed over, or opened by name.
pub(super) fn open_taps(net: &Net, descriptors: Vec<OwnedFd>) -> Result<Vec<Tap>, VmError> {
    let taps = match &net.backend {
        NetBackend::Tap(tap) if descriptors.is_empty() => Tap::open(tap, usize::from(net.queues)),
        NetBackend::Tap(_) | NetBackend::Descriptors(_) => Tap::from_descriptors(descriptors),
    };
    taps.map_err(VmError::device(format!("net {}", net.id)))
}

/// Opens the queues of a tap, to be handed to a VM that cannot do it itself.
///
/// # Errors
/// [`VmError::Device`], with the tap's name and what could not be done.
pub fn open_tap(name: &str, queues: u16) -> Result<Vec<OwnedFd>, VmError> {
    let device = || format!("tap {name}");
    let taps = Tap::open(name, usize::from(queues)).map_err(VmError::device(device()))?;
    let descriptors = taps.iter().map(|tap| net::Backend::descriptor(tap).try_clone_to_owned());
    descriptors.collect::<io::Result<_>>().map_err(VmError::device(device()))
}

/// Descriptors that whoever started us left open for the description's cards, by number.
pub(super) struct Inherited(BTreeMap<i32, OwnedFd>);

impl Inherited {
    /// Takes them. To be called before this process opens anything of its own.
    pub(super) fn take(spec: &VerifiedSpec) -> Result<Self, VmError> {
        let mut taken = BTreeMap::new();
        for net in &spec.nets {
            let NetBackend::Descriptors(numbers) = &net.backend else { continue };
            for &number in numbers {
                let name = format!("net {}: descriptor {number}", net.id);
                taken.insert(number, inherited(number).map_err(VmError::device(name))?);
            }
        }
        Ok(Self(taken))
    }

    /// Those of `net`.
    pub(super) fn of(&mut self, net: &Net) -> Vec<OwnedFd> {
        let NetBackend::Descriptors(numbers) = &net.backend else { return Vec::new() };
        numbers.iter().filter_map(|number| self.0.remove(number)).collect()
    }
}

/// Takes over a descriptor that was open when this process began. All that we open ourselves closes
/// on `exec`, which tells them apart.
#[expect(unsafe_code, reason = "a number from the command line becomes a descriptor that we own")]
fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: Verification made sure that it is not -1. It is borrowed for one call, which fails if
    // it is not open.
    let flags = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::other("it is one of our own, not inherited"));
    }
    // SAFETY: It is open, and nobody here knows of it: it was not opened by us, and each number is
    // named once in a description.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

/// An address out of the range that anyone may use (IEEE 802, locally administered, unicast).
fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty())?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

/// A bucket holds `burst` tokens and gets `per_second` in each second.
fn limits(rate: &RateLimit) -> Result<RateLimits, vmm_virtio::rate_limiter::RateLimitError> {
    let bucket = |bucket: vmm_spec::Bucket| {
        let refill_ns = u128::from(bucket.burst) * 1_000_000_000 / u128::from(bucket.per_second);
        let refill_time = Duration::from_nanos(u64::try_from(refill_ns).unwrap_or(u64::MAX));
        Bucket::new(bucket.burst, refill_time.max(Bucket::REFILL_TIME_MIN), 0)
    };
    Ok(RateLimits {
        bytes: rate.bytes.map(bucket).transpose()?,
        operations: rate.operations.map(bucket).transpose()?,
    })
}
