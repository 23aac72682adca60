//! Disks of the machine that this runs on.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};

use super::claim::{Kernel, Place};
use super::found::{Device, Partition, Roots};
use super::guid::Guid;
use super::{Block, label};
use crate::storage::sys;

/// How long a new partition may take to have a file, and an old one to be left by who looks at it.
const NODE_TIME_MAX: Duration = Duration::from_secs(10);
/// How often it is looked for.
const NODE_INTERVAL: Duration = Duration::from_millis(20);
/// How long a file system may take to be made, or looked after.
const PROGRAM_TIME_MAX: Duration = Duration::from_secs(30 * 60);
/// How often it is looked whether it is.
const PROGRAM_INTERVAL: Duration = Duration::from_millis(20);
/// Bytes of what programs say that are kept.
const WORDS_SIZE_MAX: usize = 200;
/// Where ext4 says how it is, and what it says if it found itself damaged.
const STATE_AT: u64 = 1024 + 0x3a;
const STATE_ERRORS: u8 = 2;

/// This machine.
#[derive(Debug, Clone)]
pub(super) struct Linux {
    pub(super) roots: Roots,
    /// `mkfs.ext4`.
    pub(super) mkfs: PathBuf,
    /// `e2fsck`.
    pub(super) fsck: PathBuf,
}

impl Block for File {
    fn read_at(&self, bytes: &mut [u8], place: u64) -> io::Result<()> {
        self.read_exact_at(bytes, place)
    }

    fn write_at(&self, bytes: &[u8], place: u64) -> io::Result<()> {
        self.write_all_at(bytes, place)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Kernel for Linux {
    type Disk = File;

    fn device(&self, name: &str) -> io::Result<Option<Device>> {
        self.roots.again(name)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        File::open(self.roots.node(name))
    }

    fn hold(&self, name: &str) -> io::Result<File> {
        // Of a block device, this alone is enough to be the only one (open(2)).
        let flags = i32::try_from(OFlags::EXCL.bits()).unwrap_or_default();
        File::options().read(true).write(true).custom_flags(flags).open(self.roots.node(name))
    }

    fn reread(&self, disk: &File, _name: &str) -> io::Result<()> {
        let deadline = Instant::now() + NODE_TIME_MAX;
        loop {
            match sys::reread_partitions(disk) {
                // Somebody looks at a partition, as udev does at new ones.
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                {
                    std::thread::sleep(NODE_INTERVAL);
                }
                other => return other,
            }
        }
    }

    fn format(&self, name: &str, place: Place, id: Guid) -> io::Result<()> {
        let partition = self.partition(name, |partition| partition.number == place.number)?;
        if (partition.start, partition.size) != (place.start, place.size) {
            return Err(io::Error::other("the kernel has its partition elsewhere"));
        }
        let node = self.roots.node(&partition.name);
        let mut command = Command::new(&self.mkfs);
        command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-e", "remount-ro"]);
        command.args(["-O", "quota,project", "-E", "quotatype=prjquota"]);
        command.args(["-U", &id.to_string(), "-L", &label(id)]).arg(&node);
        let (code, words) = run(&mut command)?;
        if code != Some(0) {
            return Err(io::Error::other(format!("mkfs.ext4 failed: {words}")));
        }
        File::open(node)?.sync_all()
    }

    fn new_id(&self) -> io::Result<Guid> {
        let mut bytes = [0; 16];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(Guid::from_random(bytes))
    }
}

impl Linux {
    /// Waits for a partition's file.
    pub(super) fn partition(
        &self,
        disk: &str,
        is_it: impl Fn(&Partition) -> bool,
    ) -> io::Result<Partition> {
        let deadline = Instant::now() + NODE_TIME_MAX;
        loop {
            let device = self.roots.again(disk)?;
            let mut partitions = device.map(|device| device.partitions).unwrap_or_default();
            partitions.retain(&is_it);
            if let Some(partition) = partitions.pop()
                && self.roots.node(&partition.name).exists()
            {
                return Ok(partition);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::other("the kernel does not know its partition"));
            }
            std::thread::sleep(NODE_INTERVAL);
        }
    }

    /// Mounts a pool where it belongs, if it is not. One that is damaged is mended first, as far as that
    /// loses nothing.
    pub(super) fn mount(&self, partition: &Partition, target: &Path) -> io::Result<()> {
        let points = self.roots.mount_points(&partition.name)?;
        if points.iter().any(|point| point == target) {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(target)?;
        let node = self.roots.node(&partition.name);
        let mut state = [0];
        File::open(&node)?.read_exact_at(&mut state, STATE_AT)?;
        if points.is_empty() && state[0] & STATE_ERRORS != 0 {
            let (code, words) = run(Command::new(&self.fsck).arg("-p").arg(&node))?;
            tracing::warn!(partition = partition.name, ?code, words, "its file system was damaged");
        }
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        mount(&node, target, "ext4", flags, c"prjquota").map_err(io::Error::from)
    }
}

/// Runs a program to its end. Its exit code, and what it complained about.
fn run(command: &mut Command) -> io::Result<(Option<i32>, String)> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    let complaints = child.stderr.take();
    let reader = std::thread::spawn(move || complaints.map(first_words).unwrap_or_default());
    let deadline = Instant::now() + PROGRAM_TIME_MAX;
    let code = loop {
        if let Some(status) = child.try_wait()? {
            break status.code();
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!("{program} does not end")));
        }
        std::thread::sleep(PROGRAM_INTERVAL);
    };
    Ok((code, reader.join().unwrap_or_default()))
}

/// The first of what is read. The rest is read, too, so that who writes it is not held up.
fn first_words(mut from: impl io::Read) -> String {
    let (mut words, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let rest = WORDS_SIZE_MAX - words.len();
        words.extend_from_slice(&buffer[..count.min(rest)]);
    }
    String::from_utf8_lossy(&words).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a pool's own file says; none if there is none.
pub(super) fn read_note(pool: &Path, name: &str) -> Option<String> {
    fs::read_to_string(pool.join(name)).ok().map(|text| text.trim().to_owned())
}
