//! flist images against squashfs and erofs: the same tree, packed, mounted and read in one run.

mod counted;
mod tree;
mod workload;

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;

use crate::disk::Disk;
use crate::process::{self, Daemon};
use crate::table::{Goal, Row, Table};

pub(crate) use counted::counted;

/// Ratios to squashfs and erofs, on a tree of this machine's own `/usr`.
pub(crate) fn timed(rounds: u32) -> anyhow::Result<Table> {
    let disk = Disk::new()?;
    let mut bench = Bench::on(&disk.path(), tree::copy_of_usr)?;
    let mut table = Table::default();
    bench.pack(rounds, &mut table)?;
    bench.mounts(rounds, &mut table)?;
    Ok(table)
}

/// Files of one benchmark, all below one temporary folder.
struct Bench {
    folder: PathBuf,
    tree: PathBuf,
    tree_bytes: f64,
    inode_count: f64,
    image: PathBuf,
    blocks: PathBuf,
    cache: PathBuf,
    squashfs: PathBuf,
    erofs: PathBuf,
    mount_ours: PathBuf,
    mount_peer: PathBuf,
}

/// A mounted file system, unmounted when dropped.
enum Mount<'a> {
    Ours { at: &'a Path, daemon: Daemon },
    Peer { at: &'a Path },
}

impl Bench {
    /// A benchmark below `folder`, on the tree that `make` makes.
    fn on(
        folder: &Path,
        make: impl FnOnce(&Path) -> anyhow::Result<tree::Made>,
    ) -> anyhow::Result<Self> {
        let bench = Self {
            folder: folder.to_owned(),
            tree: folder.join("tree"),
            tree_bytes: 0.0,
            inode_count: 0.0,
            image: folder.join("tree.fl"),
            blocks: folder.join("blocks"),
            cache: folder.join("cache"),
            squashfs: folder.join("tree.squashfs"),
            erofs: folder.join("tree.erofs"),
            mount_ours: folder.join("ours"),
            mount_peer: folder.join("peer"),
        };
        for path in [&bench.tree, &bench.mount_ours, &bench.mount_peer] {
            std::fs::create_dir(path)?;
        }
        let tree = make(&bench.tree)?;
        eprintln!("tree: {} inodes, {:.0} MB", tree.inode_count, tree.bytes / 1e6);
        Ok(Self { tree_bytes: tree.bytes, inode_count: tree.inode_count, ..bench })
    }

    fn pack_command(&self) -> anyhow::Result<Vec<String>> {
        let store = format!("dir://{}", path(&self.blocks)?);
        let words =
            ["flist", "pack", path(&self.tree)?, "-o", path(&self.image)?, "--store", &store];
        Ok(words.map(str::to_owned).into())
    }

    fn mount_command(&self) -> anyhow::Result<Vec<String>> {
        let store = format!("dir://{}", path(&self.blocks)?);
        let (cache, at) = (path(&self.cache)?, path(&self.mount_ours)?);
        let words = ["flist", "mount", path(&self.image)?, "--store", &store, "--cache", cache, at];
        Ok(words.map(str::to_owned).into())
    }

    fn pack(&mut self, rounds: u32, table: &mut Table) -> anyhow::Result<()> {
        let mut costs = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..rounds {
            // A folder of its own: ext4 is slow to reuse the inodes of files deleted a moment ago.
            self.blocks = self.folder.join(format!("blocks-{round}"));
            costs[0].push(self.run_until_safe(&self.pack_command()?)?);
            let peer = ["mksquashfs", path(&self.tree)?, path(&self.squashfs)?];
            let options =
                ["-comp", "lz4", "-processors", "2", "-noappend", "-quiet", "-no-progress"];
            costs[1].push(self.run_until_safe(&[peer.as_slice(), &options].concat())?);
            let _ = std::fs::remove_file(&self.erofs);
            let erofs = ["mkfs.erofs", "--quiet", path(&self.erofs)?, path(&self.tree)?];
            costs[2].push(self.run_until_safe(&erofs)?);
        }
        let [ours, squashfs, erofs] = costs;
        let seconds = |costs: &[process::Cost]| median(costs.iter().map(|cost| cost.seconds));
        let memory = |costs: &[process::Cost]| median(costs.iter().map(|cost| cost.memory_mib));
        table.push(Row {
            what: "pack, s".into(),
            ours: seconds(&ours),
            peer: Some(("mksquashfs lz4", seconds(&squashfs))),
            goal: Goal::RatioAtMost(1.5),
        });
        table.push(Row {
            what: "pack, s".into(),
            ours: seconds(&ours),
            peer: Some(("mkfs.erofs plain", seconds(&erofs))),
            goal: Goal::None,
        });
        table.push(Row {
            what: "pack, MiB of memory".into(),
            ours: memory(&ours),
            peer: Some(("mksquashfs lz4", memory(&squashfs))),
            goal: Goal::None,
        });
        let ours =
            tree::apparent_bytes(&self.blocks)? + std::fs::metadata(&self.image)?.len() as f64;
        let peer = std::fs::metadata(&self.squashfs)?.len() as f64;
        table.push(Row {
            what: "image and blocks, MiB".into(),
            ours: ours / 1048576.0,
            peer: Some(("squashfs lz4", peer / 1048576.0)),
            goal: Goal::None,
        });
        Ok(())
    }

    /// Runs a packer until what it wrote is on the disk, and nothing but that: ours syncs by itself, and
    /// would otherwise write back the tree just copied and what its peers left in memory; they do not.
    fn run_until_safe<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<process::Cost> {
        rustix::fs::sync();
        let cost = process::run(arguments)?;
        let begin = Instant::now();
        rustix::fs::syncfs(File::open(&self.folder)?)?;
        Ok(process::Cost { seconds: cost.seconds + begin.elapsed().as_secs_f64(), ..cost })
    }

    fn mounts(&self, rounds: u32, table: &mut Table) -> anyhow::Result<()> {
        for (name, image, options) in
            [("squashfs, loop", &self.squashfs, "loop,ro"), ("erofs, loop", &self.erofs, "loop,ro")]
        {
            let goals = name.starts_with("squashfs");
            let mut figures = [Figures::default(), Figures::default()];
            for _ in 0..rounds {
                figures[0].add(self.ours()?)?;
                figures[1].add(self.peer(image, options)?)?;
            }
            let [ours, peer] = figures;
            ours.rows(&peer, name, goals, self, table);
        }
        Ok(())
    }

    /// Our mount, with an empty cache.
    fn ours(&self) -> anyhow::Result<Mount<'_>> {
        let _ = std::fs::remove_dir_all(&self.cache);
        process::drop_caches()?;
        let daemon =
            Daemon::start(&self.mount_command()?, || process::is_mounted(&self.mount_ours))?;
        Ok(Mount::Ours { at: &self.mount_ours, daemon })
    }

    fn peer(&self, image: &Path, options: &str) -> anyhow::Result<Mount<'_>> {
        process::drop_caches()?;
        process::run(&["mount", "-o", options, path(image)?, path(&self.mount_peer)?])?;
        Ok(Mount::Peer { at: &self.mount_peer })
    }
}

impl Mount<'_> {
    fn daemon(&self) -> Option<&Daemon> {
        match self {
            Mount::Ours { daemon, .. } => Some(daemon),
            Mount::Peer { .. } => None,
        }
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if let Mount::Peer { at } = self {
            // A leftover mount shows up at the next one, which then fails.
            let _ = rustix::mount::unmount(*at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Every figure of one file system, a value a round.
#[derive(Default)]
struct Figures {
    walk_cold: Vec<f64>,
    walk_warm: Vec<f64>,
    absent: Vec<f64>,
    read_cold: Vec<f64>,
    random_warm: Vec<f64>,
    memory_mib: Vec<f64>,
    processor: Vec<f64>,
}

impl Figures {
    /// One round on a fresh mount.
    fn add(&mut self, mount: Mount<'_>) -> anyhow::Result<()> {
        let at = match &mount {
            Mount::Ours { at, .. } | Mount::Peer { at } => *at,
        };
        let mut files = Vec::new();
        self.walk_cold.push(timed_seconds(|| workload::walk(at, Some(&mut files)))?);
        self.walk_warm.push(timed_seconds(|| workload::walk(at, None))?);
        self.absent.push(timed_seconds(|| workload::absent(at, 5000))?);
        let before = mount.daemon().map(Daemon::processor_seconds).transpose()?;
        self.read_cold.push(timed_seconds(|| workload::read_all(&files))?);
        if let (Some(before), Some(daemon)) = (before, mount.daemon()) {
            self.processor.push(daemon.processor_seconds()? - before);
        }
        // Once more before it counts: kernels may have dropped pages that were read only once.
        workload::random_reads(&files, 20_000)?;
        self.random_warm.push(timed_seconds(|| workload::random_reads(&files, 20_000))?);
        if let Some(daemon) = mount.daemon() {
            self.memory_mib.push(daemon.memory_mib()?);
        }
        Ok(())
    }

    fn rows(&self, peer: &Self, name: &'static str, goals: bool, bench: &Bench, table: &mut Table) {
        let mut row = |what: &str, ours: &[f64], peer: &[f64], goal: Goal| {
            table.push(Row {
                what: what.into(),
                ours: median(ours.iter().copied()),
                peer: Some((name, median(peer.iter().copied()))),
                goal: if goals { goal } else { Goal::None },
            });
        };
        row("walk and lstat, cold, s", &self.walk_cold, &peer.walk_cold, Goal::RatioAtMost(1.3));
        row("walk and lstat, warm, s", &self.walk_warm, &peer.walk_warm, Goal::None);
        row("5,000 names that are absent, s", &self.absent, &peer.absent, Goal::None);
        row("read all, cold, s", &self.read_cold, &peer.read_cold, Goal::None);
        let rate = |seconds: &[f64]| seconds.iter().map(|s| 20_000.0 / s).collect::<Vec<_>>();
        let (ours, peers) = (rate(&self.random_warm), rate(&peer.random_warm));
        row("random 4 KiB, warm, reads/s", &ours, &peers, Goal::RatioAtLeast(0.8));
        if goals {
            let mut own = |what: &str, ours: f64, goal: Goal| {
                table.push(Row { what: what.into(), ours, peer: None, goal });
            };
            let memory = self.memory_mib.iter().copied().fold(0.0, f64::max);
            own("mount process, MiB of memory", memory, Goal::AtMost(30.0));
            let rate = bench.tree_bytes / 1e6 / median(self.processor.iter().copied());
            own("cold read, MB per second of its processor time", rate, Goal::AtLeast(100.0));
            own("inodes in the tree", bench.inode_count, Goal::None);
        }
    }
}

fn timed_seconds(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn path(path: &Path) -> anyhow::Result<&str> {
    match path.to_str() {
        Some(text) => Ok(text),
        None => bail!("{}: the temporary folder's path is not UTF-8", path.display()),
    }
}
