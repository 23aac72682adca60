//! A machine that is a whole disk, by the rooms of a node and without a grid: what the lab runs where a
//! guest can boot (`ci/lab/tests/full/whole_disk.rs`).
//!
//! ```text
//!   images/HASH ──flist write-disk──► a zmount ──► supervise: disk-boot ──► vmm ──► console.log
//! ```
//!
//! Everything lies in one folder: `images/` with the image's file under a hash as its name, the others
//! are made. Prints where the console's log is, when the machine runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use hostd_exec::image::{Image, ImageBoot, ImageConfig, ImageError, ImageTimes, Images};
use hostd_exec::storage::{
    Kind, PoolConfig, PoolKind, Space, Storage, StorageError, parse, write_once,
};
use hostd_exec::vm::cidata::{CiData, keys};
use hostd_exec::vm::entry;
use hostd_exec::vm::record::Record;
use hostd_exec::vm::spec::{Boot, Mount, Order, Place};
use hostd_exec::vm::{VmConfig, Vms};
use hostd_grid::derived::WorkloadId;
use hostd_grid::secret::SecretText;
use supervise::Client;

/// Bytes of the zmount.
const DISK_SIZE: u64 = 3 << 30;
/// Bytes of the machine's memory.
const MEMORY: u64 = 512 << 20;
/// What is told in the environment.
const GREETING: &str = "it's \"hello\" for $5";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Where everything is.
struct Node {
    folder: PathBuf,
    programs: PathBuf,
    supervisor: Client,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let usage = "usage: whole_disk FOLDER PROGRAMS SUPERVISOR HASH";
    let mut next = || arguments.next().context(usage);
    let (folder, programs, socket) = (next()?, next()?, next()?);
    let hash = next()?.to_string_lossy().into_owned();
    let node = Node { folder, programs, supervisor: Client::connect(&socket)? };
    let images = node.images()?;
    let image = images.pinned(&hash)?;
    let ImageBoot::Disk { size } = image.boot else { anyhow::bail!("{image:?} is no disk") };
    let space = node.disk(size)?;
    let write = || write_once(&space, |disk| images.write_disk(&image, disk).map_err(Error::from));
    ensure!(write()?, "a blank disk was not written");
    ensure!(!write()?, "a disk was written twice");
    node.start(&image, &space, images.socket().to_owned())
}

fn id(text: &str) -> anyhow::Result<WorkloadId> {
    parse(text).context("no id")
}

impl Node {
    fn images(&self) -> anyhow::Result<Images> {
        let at = |name: &str| self.folder.join(name);
        let config = ImageConfig {
            folder: at("images"),
            cache: at("blocks"),
            socket: at("cached.sock"),
            logs: at("logs"),
            flist: self.programs.join("flist"),
            size_max: 1 << 30,
            cache_size_max: 4 << 30,
            routes: vec!["local".to_owned()],
            times: ImageTimes::default(),
        };
        let images = Images::open(config, &self.supervisor)?;
        // Where it is asked is there a moment after it was started.
        for _ in 0..600 {
            if images.socket().exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Ok(images)
    }

    fn disk(&self, image: u64) -> anyhow::Result<Space> {
        ensure!(image <= DISK_SIZE, "the image has {image} bytes");
        let path = self.folder.join("pool");
        std::fs::create_dir_all(&path)?;
        let (name, kind) = ("ssd".to_owned(), PoolKind::Ssd);
        let pool = PoolConfig { name, path, kind, size_max: None, mount_point: false };
        let storage = Storage::open(&[pool])?;
        Ok(storage.create(Kind::ZMount, &id("1-2-disk")?, DISK_SIZE)?)
    }

    fn start(&self, image: &Image, space: &Space, cache: PathBuf) -> anyhow::Result<()> {
        let config = VmConfig {
            state: self.folder.join("vms"),
            runtime: self.folder.join("run"),
            vmm: self.programs.join("vmm"),
            disk_boot: Some(self.programs.join("disk-boot")),
            start_time_max: VmConfig::START_TIME_MAX,
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            cache,
        };
        let vms = Vms::open(config, self.supervisor.clone())?;
        let id = id("1-2-cloudy")?;
        let record = Record {
            image: image.hash.clone(),
            url: String::new(),
            result: "null".to_owned(),
            is_stopped: false,
            is_paused: false,
        };
        vms.records().write(&id, &record)?;
        let disk = Place::Disk { path: space.path.clone(), serial: space.serial().to_string() };
        let order = Order {
            cpus: 1,
            memory: MEMORY,
            image: image.path.clone(),
            boot: Boot::Disk { folder: vms.boot_folder(&id) },
            mounts: vec![Mount { name: "disk".into(), target: "/disk".into(), place: disk }],
            cards: Vec::new(),
            namespace: None,
        };
        let env = BTreeMap::from([("GREETING".to_owned(), SecretText::new(GREETING))]);
        let told = CiData {
            instance: id.to_string(),
            hostname: id.name.to_string(),
            keys: keys("ssh-ed25519 AAAAC3Nz owner"),
            mounts: order.mounted(),
            environment: entry::environment(&env, &order.boot)?,
            zosrc: entry::zosrc(&env, "")?,
            cards: Vec::new(),
        };
        vms.start(&id, &order, &told)?;
        println!("{}", vms.log(&id).display());
        Ok(())
    }
}
