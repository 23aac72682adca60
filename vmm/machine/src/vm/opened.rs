//! What a VM needs that has a name on the host, opened.
//!
//! This is all that is done with the rights of whoever started the VMM: a jail may follow, in which
//! nothing has a name any more. Threads and mappings of guest memory come later still.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_ioctls::Kvm;
use rustix::fs::StatVfsMountFlags;
use vmm_spec::{Fs, FsSource, Jail, NetBackend, VerifiedSpec};
use vmm_virtio::fs::flist::{self, CacheClient, FlistView};
use vmm_virtio::net::Tap;
use vmm_virtio::vsock;

use super::VmError;
use super::console::Consoles;
use super::devices::{Inherited, open_disk, open_taps};
use super::restore::Origin;
use crate::api::Listener;
use crate::boot::Image;
use crate::jail::{self, BlockDevice, Door, Doors, Inside, Share};
use crate::kvm;

/// What a VM needs, opened.
pub(super) struct Opened {
    pub(super) kvm: Kvm,
    pub(super) kernel: Image,
    pub(super) initramfs: Option<Image>,
    pub(super) consoles: Consoles,
    pub(super) devices: OpenedDevices,
    pub(super) sockets: Sockets,
    pub(super) doors: Doors,
}

/// What devices are made of, in the description's order.
pub(super) struct OpenedDevices {
    pub(super) disks: Vec<File>,
    pub(super) taps: Vec<Vec<Tap>>,
    pub(super) file_systems: Vec<OpenedFs>,
}

/// Sockets with files on the host, which go with them. They stay with whoever can remove those.
pub(super) struct Sockets {
    pub(super) vsock: Option<vsock::Listener>,
    pub(super) api: Option<Listener>,
}

/// What a file system serves.
pub(super) enum OpenedFs {
    /// An image, through the cache process, and where the guest's changes go.
    Flist { view: FlistView, client: Arc<CacheClient>, upper: Option<PathBuf> },
    /// A directory.
    Dir(PathBuf),
}

impl Opened {
    /// Opens everything that `spec` names, beside what is open of a snapshot.
    pub(super) fn new(spec: &VerifiedSpec, origin: Option<&Origin>) -> Result<Self, VmError> {
        if spec.jail.is_some() {
            let mut kept = inherited_numbers(spec);
            kept.extend(origin.map(Origin::descriptor));
            jail::close_foreign(&kept)?;
        }
        let mut inherited = Inherited::take(spec)?;
        let doors = doors(spec);
        let consoles = Consoles::open(&spec.console, &spec.serial)?;
        let disks = spec.disks.iter().map(|disk| open_disk(disk)).collect::<Result<_, _>>()?;
        let taps = spec.nets.iter().map(|net| open_taps(net, inherited.of(net)));
        let taps = taps.collect::<Result<_, _>>()?;
        let file_systems = spec.fs.iter().map(|fs| open_fs(fs, &doors));
        let file_systems = file_systems.collect::<Result<_, _>>()?;
        Ok(Self {
            kvm: kvm::open()?,
            kernel: Image::open(&spec.kernel)?,
            initramfs: spec.initramfs.as_deref().map(Image::open).transpose()?,
            consoles,
            devices: OpenedDevices { disks, taps, file_systems },
            sockets: Sockets::listen(spec, &doors)?,
            doors,
        })
    }

    /// The directories of the host that devices serve.
    pub(super) fn shares(spec: &VerifiedSpec) -> Vec<Share> {
        let share = |fs: &Fs| {
            share_of(fs).map(|(path, is_readonly)| Share { path: path.to_owned(), is_readonly })
        };
        spec.fs.iter().filter_map(|fs| share(fs)).collect()
    }

    /// The block devices that disks and `shares` are on, if their I/O is limited.
    pub(super) fn block_devices(
        &self,
        jail: &Jail,
        shares: &[Share],
    ) -> Result<Vec<BlockDevice>, VmError> {
        if jail.cgroup.as_ref().is_none_or(|cgroup| cgroup.io_max.is_none()) {
            return Ok(Vec::new());
        }
        let disks = self.devices.disks.iter().map(BlockDevice::under);
        let directories = shares.iter().map(|share| BlockDevice::at(&share.path));
        let found: Result<BTreeSet<_>, _> =
            disks.chain(directories).filter_map(Result::transpose).collect();
        let found = found.map_err(VmError::host("find the block devices that its files are on"))?;
        Ok(found.into_iter().collect())
    }

    /// In a jail, which has its own names for them, and leaves sockets' files to its warden.
    pub(super) fn move_into(mut self, inside: &Inside) -> Self {
        let mut places = inside.shares.iter().cloned();
        for fs in &mut self.devices.file_systems {
            let path = match fs {
                OpenedFs::Flist { upper: Some(upper), .. } => upper,
                OpenedFs::Flist { upper: None, .. } => continue,
                OpenedFs::Dir(path) => path,
            };
            if let Some(place) = places.next() {
                *path = place;
            }
        }
        let Sockets { vsock, api } = self.sockets;
        let vsock = vsock.map(vsock::Listener::keep_file);
        self.sockets = Sockets { vsock, api: api.map(Listener::keep_file) };
        self
    }
}

impl Sockets {
    fn listen(spec: &VerifiedSpec, doors: &Doors) -> Result<Self, VmError> {
        let vsock = spec.vsock.as_ref().map(|vsock| {
            let name = format!("vsock {}", vsock.socket.display());
            let (doors, door) = (doors.clone(), Door::Ports(vsock.socket.clone()));
            let connector = Box::new(move |port| doors.connect(&door, port));
            let listener = vsock::Listener::bind(&vsock.socket).map_err(VmError::device(name))?;
            Ok::<_, VmError>(listener.connecting_by(connector))
        });
        let vsock = vsock.transpose()?;
        let api = spec.api_socket.as_deref().map(Listener::bind).transpose()?;
        Ok(Self { vsock, api })
    }
}

/// Descriptors that whoever started us left open for us.
fn inherited_numbers(spec: &VerifiedSpec) -> Vec<RawFd> {
    let numbers = spec.nets.iter().flat_map(|net| match &net.backend {
        NetBackend::Descriptors(numbers) => numbers.clone(),
        NetBackend::Tap(_) => Vec::new(),
    });
    numbers.collect()
}

fn doors(spec: &VerifiedSpec) -> Doors {
    let caches = spec.fs.iter().filter_map(|fs| match &fs.source {
        FsSource::Flist { cache, .. } => Some(Door::Cache(cache.clone())),
        FsSource::Dir { .. } => None,
    });
    let ports = spec.vsock.iter().map(|vsock| Door::Ports(vsock.socket.clone()));
    Doors::new(caches.chain(ports).collect())
}

/// The directory of the host that a file system serves, and whether nothing is written there.
fn share_of(fs: &Fs) -> Option<(&Path, bool)> {
    match &fs.source {
        FsSource::Flist { upper, .. } => upper.as_deref().map(|upper| (upper, false)),
        FsSource::Dir { path, readonly, .. } => Some((path, *readonly)),
    }
}

fn open_fs(fs: &Fs, doors: &Doors) -> Result<OpenedFs, VmError> {
    if let Some((path, false)) = share_of(fs) {
        warn_of_set_uid(fs, path);
    }
    Ok(match &fs.source {
        FsSource::Flist { image, cache, upper, .. } => {
            let (doors, door) = (doors.clone(), Door::Cache(cache.clone()));
            let connector = Box::new(move || doors.connect(&door, 0));
            let opened = flist::open(connector, image, &[]);
            let (view, client) = opened.map_err(VmError::device(format!("fs {}", fs.tag)))?;
            OpenedFs::Flist { view, client, upper: upper.clone() }
        }
        FsSource::Dir { path, .. } => OpenedFs::Dir(path.clone()),
    })
}

/// A jail cannot help: the host's users reach such files by the host's own mount.
fn warn_of_set_uid(fs: &Fs, path: &Path) {
    let flags = rustix::fs::statvfs(path).map(|found| found.f_flag);
    if flags.is_ok_and(|flags| !flags.contains(StatVfsMountFlags::NOSUID)) {
        let (tag, directory) = (&fs.tag, path.display());
        tracing::warn!(
            tag,
            %directory,
            "set-uid files that the guest makes mean something on this host: mount it nosuid,nodev"
        );
    }
}
