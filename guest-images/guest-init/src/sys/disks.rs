//! Block devices: which there are, what they hold, and the writing of a file system.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, open};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::cidata::Files;
use crate::disk::{self, Content, Disk, EDGE_SIZE, label, marker_sector};
use crate::ext4::Identity;
use crate::fat;
use crate::template::{self, Template};

/// The disks in the order of the kernel's names: `vda` … `vdz`, `vdaa`.
pub(crate) fn list() -> Vec<Disk> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut disks: Vec<Disk> = names.filter_map(|name| read(&name)).collect();
    disks.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
    disks
}

/// A disk by its name; `None` for what is no device: loop, ram.
fn read(name: &str) -> Option<Disk> {
    let folder = format!("/sys/block/{name}");
    std::fs::metadata(format!("{folder}/device")).ok()?;
    let file = |key: &str| std::fs::read_to_string(format!("{folder}/{key}")).ok();
    let sectors: u64 = file("size")?.trim().parse().ok()?;
    Some(Disk {
        name: name.to_owned(),
        serial: file("serial").unwrap_or_default().trim().to_owned(),
        size: sectors.checked_mul(512)?,
        read_only: file("ro")?.trim() != "0",
    })
}

/// Reads the files of the `cidata` disk, if it is there. Only a small disk that the host has made
/// read-only is looked at: what a workload writes onto its own volume must not pass for it.
pub(crate) fn cidata(disks: &[Disk]) -> Result<Option<Files>> {
    let mut found = None;
    for disk in disks.iter().filter(|disk| disk.read_only && disk.size <= CIDATA_SIZE_MAX) {
        let volume = match fat::Volume::open(DiskImage::open(disk)?) {
            Ok(volume) => volume,
            Err(error @ fat::Error::Unreadable { .. }) => {
                return Err(error).with_context(|| format!("reading {}", disk.describe()));
            }
            Err(_) => continue,
        };
        if !volume.label().is_ok_and(|label| label.eq_ignore_ascii_case("cidata")) {
            continue;
        }
        if found.is_some() {
            bail!("two read-only disks are labelled cidata");
        }
        let file = |name: &str| volume.read(name).with_context(|| format!("reading {name}"));
        found = Some(Files {
            // Every writer of such disks writes this one; without it the disk is a broken one.
            meta_data: file("meta-data")?.context("no file meta-data")?,
            network_config: file("network-config")?.unwrap_or_default(),
            user_data: file("user-data")?.unwrap_or_default(),
            zosrc: file("zosrc")?.unwrap_or_default(),
        });
    }
    Ok(found)
}

/// A disk whose parts are read when they are wanted.
struct DiskImage {
    device: File,
    size: usize,
}

impl DiskImage {
    fn open(disk: &Disk) -> Result<Self> {
        let device = File::open(format!("/dev/{}", disk.name))?;
        Ok(Self { device, size: usize::try_from(disk.size)? })
    }
}

impl fat::Image for DiskImage {
    fn size(&self) -> usize {
        self.size
    }

    fn bytes(
        &self,
        at: usize,
        count: usize,
        what: &'static str,
    ) -> Result<Cow<'_, [u8]>, fat::Error> {
        if at.checked_add(count).is_none_or(|end| end > self.size) {
            return Err(fat::Error::Outside(what));
        }
        let mut bytes = vec![0; count];
        let read = self.device.read_exact_at(&mut bytes, at as u64);
        let failed =
            |error: std::io::Error| fat::Error::Unreadable { what, error: error.to_string() };
        read.map_err(failed)?;
        Ok(Cow::Owned(bytes))
    }
}

/// Looks at what `disk` holds: its first 4 KiB, and both ends whole if these don't tell.
pub(crate) fn content(disk: &Disk) -> Result<Content> {
    let edge = disk.size.min(EDGE_SIZE as u64);
    let start = read_range(disk, 0, edge.min(4096))?;
    match Content::identify(&start, &[]) {
        known @ (Content::Ext4 { .. } | Content::Unfinished) => Ok(known),
        Content::Blank | Content::Btrfs { .. } | Content::Foreign(_) => {
            let head = read_range(disk, 0, edge)?;
            let tail = read_range(disk, disk.size - edge, edge)?;
            Ok(Content::identify(&head, &tail))
        }
    }
}

/// Writes a file system onto `disk`, in the order that `FORMAT.md` gives.
pub(crate) fn format(disk: &Disk) -> Result<()> {
    let templates = templates()?;
    let Some(template) = template::choose(&templates, disk.size) else {
        bail!("{} bytes are too few for a file system", disk.size);
    };
    let mut writes = template.writes(&identity(disk)?);
    let Some((superblock_at, superblock)) = writes.pop() else { bail!("the template is empty") };
    let device = open_writable(disk)?;
    device.write_all_at(&marker_sector(), 0)?;
    device.sync_data()?;
    for (at, bytes) in &writes {
        device.write_all_at(bytes, *at)?;
    }
    device.sync_data()?;
    device.write_all_at(&superblock, superblock_at)?;
    device.sync_data()?;
    clear_marker(&device)
}

/// Clears the marker that an interrupted format has left.
pub(crate) fn unmark(disk: &Disk) -> Result<()> {
    clear_marker(&open_writable(disk)?)
}

fn clear_marker(device: &File) -> Result<()> {
    device.write_all_at(&[0; 512], 0)?;
    Ok(device.sync_data()?)
}

/// Opens a disk for writing, for nobody else's use: fails if it is mounted.
fn open_writable(disk: &Disk) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    Ok(open(format!("/dev/{}", disk.name), flags, Mode::empty())?.into())
}

fn read_range(disk: &Disk, at: u64, length: u64) -> Result<Vec<u8>> {
    let device = File::open(format!("/dev/{}", disk.name))?;
    let mut bytes = vec![0; usize::try_from(length)?];
    device.read_exact_at(&mut bytes, at).with_context(|| format!("reading {}", disk.describe()))?;
    Ok(bytes)
}

fn templates() -> Result<Vec<Template>> {
    let mut templates = Vec::new();
    for entry in std::fs::read_dir(TEMPLATES).context("no ext4 templates in the initramfs")? {
        let bytes = std::fs::read(entry?.path())?;
        templates.push(Template::decode(&bytes)?);
    }
    Ok(templates)
}

fn identity(disk: &Disk) -> Result<Identity> {
    let mut uuid: [u8; 16] = random()?;
    // RFC 9562 §5.4: version 4, variant 10.
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut uuid;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    let now = u32::try_from(now).unwrap_or(u32::MAX);
    Ok(Identity { uuid, hash_seed: random()?, label: label(disk), now })
}

/// Random bytes; this early the pool may not be filled yet, and the boot doesn't wait for it.
fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    if getrandom(&mut bytes, GetRandomFlags::NONBLOCK).is_err() {
        getrandom(&mut bytes, GetRandomFlags::INSECURE)?;
    }
    Ok(bytes)
}

/// Decides about `disk` and writes its file system if it needs one.
pub(crate) fn prepare(disk: &Disk) -> Result<Prepared> {
    let found = content(disk)?;
    let kind = if matches!(found, Content::Btrfs { .. }) { "btrfs" } else { "ext4" };
    match disk::decide(disk, &found)? {
        disk::Action::Format => {
            format(disk).with_context(|| format!("formatting {}", disk.describe()))?;
            Ok(Prepared { kind, new: true, grow_to: Some(disk.size / TEMPLATE_BLOCK_SIZE) })
        }
        disk::Action::Mount { grow, unmark: marked } => {
            if marked {
                unmark(disk)?;
            }
            let block_size = match found {
                Content::Ext4 { superblock, .. } => superblock.block_size.max(1),
                _ => TEMPLATE_BLOCK_SIZE,
            };
            Ok(Prepared { kind, new: false, grow_to: grow.then(|| disk.size / block_size) })
        }
    }
}

/// A disk with a file system.
pub(crate) struct Prepared {
    /// Its name.
    pub(crate) kind: &'static str,
    /// It was made just now.
    pub(crate) new: bool,
    /// Size to grow to, in the file system's blocks.
    pub(crate) grow_to: Option<u64>,
}

/// Folder of the templates in the initramfs.
const TEMPLATES: &str = template::DIR;
/// Block size of the templates, in bytes.
const TEMPLATE_BLOCK_SIZE: u64 = 4096;
/// Largest disk that is looked at for `cidata`, in bytes.
const CIDATA_SIZE_MAX: u64 = 16 << 20;
