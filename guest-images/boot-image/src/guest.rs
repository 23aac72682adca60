//! The guest's kernel and initramfs: what the VMM boots when an image brings no kernel of its own.
//!
//! From Debian's cloud kernel come the uncompressed `vmlinux` and the few modules that a guest may
//! need; `guest-init` is the only program in the initramfs; beside it lie the ext4 templates for
//! blank disks, made here by `mke2fs` and kept as their non-zero blocks. [`build`] writes
//!
//! | file | what |
//! |---|---|
//! | `vmlinux` | the kernel, ELF, for the 64-bit boot protocol or PVH |
//! | `initramfs.img` | the initramfs, compressed by zstd |
//! | `btrfs.img` | modules for btrfs: appended to `initramfs.img` for a guest with such a volume |
//! | `manifest.json` | versions, sizes and SHA-256 sums, and what is inside |
//!
//! The same inputs give the same bytes. hostd and the lab call this; `boot-image guest` is for
//! people and scripts. Programs used: those of [`crate::kernel`], `mke2fs`, and `cargo` unless the
//! init is given.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_init::modules::{DIR as MODULES_DIR, Groups, Trigger, id};
use guest_init::modules::{PATH as GROUPS_PATH, PATH_BTRFS as GROUPS_PATH_BTRFS};
use guest_init::template::{self, BLOCK_SIZE, DIR as TEMPLATES_DIR, Template};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cache::{CacheError, write_whole};
use crate::initramfs::{Initramfs, InitramfsError};
use crate::kernel::{FetchError, KernelPackage};
use crate::modules::{ModuleError, ModuleTree, without_signature};

/// What to build.
#[derive(Debug)]
pub struct Recipe<'a> {
    /// The kernel package, of the cloud flavour.
    pub kernel: &'a KernelPackage,
    /// The statically linked `guest-init`.
    pub init: &'a Path,
    /// Folder for the files; made if absent.
    pub out: &'a Path,
    /// zstd level of the initramfs, 1 to 19.
    pub zstd_level: i32,
}

/// What was built.
#[derive(Debug)]
pub struct Built {
    /// The kernel.
    pub vmlinux: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// What is appended to it for a guest with a btrfs volume.
    pub btrfs: PathBuf,
    /// The text of `manifest.json`, parsed.
    pub manifest: Value,
}

/// Builds kernel, initramfs and manifest.
///
/// # Errors
///
/// [`GuestError`], naming what failed.
pub fn build(recipe: &Recipe<'_>) -> Result<Built, GuestError> {
    fs::create_dir_all(recipe.out).map_err(GuestError::io("create folder", recipe.out))?;
    let vmlinux = recipe.out.join("vmlinux");
    let kernel = read(&recipe.kernel.vmlinux()?)?;
    write_whole(&vmlinux, &kernel)?;

    let mut image = Initramfs::new();
    let init = read(recipe.init)?;
    require_static(recipe.init, &init)?;
    let init_row = row(&init);
    image.file("init", 0o755, init)?;
    image.char_device("dev/console", 0o600, 5, 1)?;
    // Where the only console is a virtio one, it comes with its module: the kernel starts init
    // without open files, and Rust's runtime then wants this one, or gives up.
    image.char_device("dev/null", 0o666, 1, 3)?;
    let tree = recipe.kernel.modules()?;
    let groups = add_modules(&mut image, &tree, &wanted(), GROUPS_PATH)?;
    let templates = add_templates(&mut image)?;
    let packed = pack(image, recipe.zstd_level)?;
    let initramfs = recipe.out.join("initramfs.img");
    write_whole(&initramfs, &packed)?;

    let mut image = Initramfs::new();
    let wanted_btrfs = [(Trigger::FileSystem("btrfs".to_owned()), &["btrfs"][..])];
    let groups_btrfs = add_modules(&mut image, &tree, &wanted_btrfs, GROUPS_PATH_BTRFS)?;
    let packed_btrfs = pack(image, recipe.zstd_level)?;
    let btrfs = recipe.out.join("btrfs.img");
    write_whole(&btrfs, &packed_btrfs)?;

    let manifest = json!({
        "kernel": {
            "package": recipe.kernel.package(),
            "version": recipe.kernel.version(),
            "release": recipe.kernel.release(),
        },
        "files": {
            "vmlinux": row(&kernel),
            "initramfs.img": row(&packed),
            "btrfs.img": row(&packed_btrfs),
        },
        "init": init_row,
        "modules": (groups.to_string() + &groups_btrfs.to_string()).lines().collect::<Vec<_>>(),
        "templates": templates,
    });
    let text = format!("{manifest:#}\n");
    write_whole(&recipe.out.join("manifest.json"), text.as_bytes())?;
    Ok(Built { vmlinux, initramfs, btrfs, manifest })
}

/// Builds `guest-init` of the workspace at `workspace` as a static binary, and returns its path.
///
/// # Errors
///
/// [`GuestError::Command`] when cargo fails, [`GuestError::NoBinary`] when it names no binary.
pub fn build_init(workspace: &Path) -> Result<PathBuf, GuestError> {
    build_static(workspace, &["--package", "guest-init", "--bin", "guest-init"])
}

/// Builds one program of the workspace at `workspace`, statically linked, small and without
/// symbols; `target` is what cargo needs to find it, such as `--package X --bin Y`.
///
/// # Errors
///
/// As [`build_init`].
pub fn build_static(workspace: &Path, target: &[&str]) -> Result<PathBuf, GuestError> {
    let mut cargo = cargo(workspace);
    cargo
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    program(cargo, target)
}

/// Builds one program of the workspace at `workspace` as a release of it, linked to this host's
/// libraries.
///
/// # Errors
///
/// As [`build_init`].
pub fn build_dynamic(workspace: &Path, target: &[&str]) -> Result<PathBuf, GuestError> {
    program(cargo(workspace), target)
}

fn cargo(workspace: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace).args([
        "build",
        "--quiet",
        "--release",
        "--message-format",
        "json",
    ]);
    cargo
}

/// Builds `target`, and returns the program's path.
fn program(mut cargo: Command, target: &[&str]) -> Result<PathBuf, GuestError> {
    let output = run(cargo.args(target))?;
    let messages = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs =
        messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    programs.next().ok_or_else(|| GuestError::NoBinary { target: target.join(" ") })
}

/// Modules by what needs them. Where several are named, all are wanted.
fn wanted() -> Vec<(Trigger, &'static [&'static str])> {
    let fs = |name: &str| Trigger::FileSystem(name.to_owned());
    vec![
        (Trigger::Always, &["virtio_pci"]),
        (Trigger::Virtio(id::NET), &["virtio_net"]),
        (Trigger::Virtio(id::BLOCK), &["virtio_blk"]),
        (Trigger::Virtio(id::CONSOLE), &["virtio_console"]),
        (Trigger::Virtio(id::RNG), &["virtio_rng"]),
        (Trigger::Virtio(id::BALLOON), &["virtio_balloon"]),
        (Trigger::Virtio(id::VSOCK), &["vmw_vsock_virtio_transport"]),
        (Trigger::Virtio(id::MEM), &["virtio_mem"]),
        (Trigger::Panic, &["pvpanic_pci"]),
        (Trigger::Button, &["button", "evdev"]),
        (fs("virtiofs"), &["virtiofs"]),
        (fs("overlay"), &["overlay"]),
        (fs("ext4"), &["ext4"]),
    ]
}

/// Compresses an archive, padded so that the kernel finds another one behind it.
fn pack(image: Initramfs, zstd_level: i32) -> Result<Vec<u8>, GuestError> {
    let mut packed = image.build_zstd(zstd_level)?;
    packed.resize(packed.len().next_multiple_of(4), 0);
    Ok(packed)
}

fn add_modules(
    image: &mut Initramfs,
    tree: &ModuleTree,
    wanted: &[(Trigger, &[&str])],
    groups_path: &str,
) -> Result<Groups, GuestError> {
    let mut groups = Groups::default();
    for (trigger, names) in wanted {
        let mut files = Vec::new();
        for step in tree.load_order(names)? {
            let name = step.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let path = format!("{MODULES_DIR}/{name}");
            if !image.contains(&path) {
                image.file(&path, 0o644, without_signature(&read(&step.path)?))?;
            }
            files.push(name);
        }
        // What is built into the kernel needs no line.
        if !files.is_empty() {
            groups.add(trigger.clone(), files);
        }
    }
    image.file(groups_path, 0o644, groups.to_string())?;
    Ok(groups)
}

/// One file system to copy onto blank disks.
struct TemplateSpec {
    /// File name in the initramfs.
    name: &'static str,
    /// Size of the file system, in MiB, before it is grown.
    size_mib: u64,
    /// Smallest disk that it is for, in MiB.
    disk_size_min_mib: u64,
    /// Size of the journal, in MiB: the only thing that doesn't grow with the disk.
    journal_mib: u64,
}

const TEMPLATES: [TemplateSpec; 3] = [
    TemplateSpec { name: "small", size_mib: 16, disk_size_min_mib: 16, journal_mib: 4 },
    TemplateSpec { name: "medium", size_mib: 256, disk_size_min_mib: 256, journal_mib: 16 },
    TemplateSpec { name: "large", size_mib: 512, disk_size_min_mib: 8192, journal_mib: 64 },
];

fn add_templates(image: &mut Initramfs) -> Result<BTreeMap<String, Value>, GuestError> {
    let mut rows = BTreeMap::new();
    for spec in &TEMPLATES {
        let bytes = make_template(spec)?.encode()?;
        rows.insert(spec.name.to_owned(), row(&bytes));
        image.file(&format!("{TEMPLATES_DIR}/{}", spec.name), 0o644, bytes)?;
    }
    Ok(rows)
}

/// Makes the file system in a sparse file.
///
/// `meta_bg` without `resize_inode` keeps the used blocks few and growth unlimited;
/// `metadata_csum_seed` lets a copy have its own UUID; one inode per 16 KiB stays so as it grows.
fn make_template(spec: &TemplateSpec) -> Result<Template, GuestError> {
    let folder = tempfile::tempdir().map_err(GuestError::io("create folder", Path::new("")))?;
    let path = folder.path().join("template");
    let file = fs::File::create(&path).map_err(GuestError::io("create", &path))?;
    file.set_len(spec.size_mib << 20).map_err(GuestError::io("resize", &path))?;
    // mke2fs is in a folder that is not on every user's PATH.
    let mut search = std::env::var_os("PATH").unwrap_or_default();
    search.push(":/usr/sbin:/sbin");
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .env("PATH", search)
        .env("MKE2FS_CONFIG", "/dev/null")
        // Times and identity are written anew on every copy; here they only must not vary.
        .env("E2FSPROGS_FAKE_TIME", "1577836800")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0"])
        // Groups that are added together: with the default of 16 a disk of 4 TiB takes twice as long.
        .args(["-G", "128"])
        .args(["-O", FEATURES, "-e", "remount-ro", "-U", TEMPLATE_UUID])
        .arg("-J")
        .arg(format!("size={}", spec.journal_mib))
        .arg("-N")
        .arg((spec.size_mib.div_ceil(128) * INODES_PER_GROUP).to_string())
        .arg("-E")
        .arg(format!("{EXTENDED},hash_seed={TEMPLATE_UUID}"))
        .arg(&path);
    run(&mut mke2fs)?;
    let blocks = data_blocks(&path).map_err(GuestError::io("read", &path))?;
    Ok(Template::from_blocks(blocks, spec.disk_size_min_mib << 20)?)
}

/// The blocks of a sparse file that are not holes, by index.
fn data_blocks(path: &Path) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    let block_size = BLOCK_SIZE as u64;
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            start => start? / block_size * block_size,
        };
        let end = seek(&file, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let mut block = vec![0; BLOCK_SIZE];
            file.read_exact_at(&mut block, at)?;
            blocks.push((at / block_size, block));
            at += block_size;
        }
    }
    Ok(blocks)
}

const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,meta_bg,extent,64bit,flex_bg,\
                        metadata_csum,metadata_csum_seed,sparse_super,large_file,huge_file,\
                        dir_nlink,extra_isize";
const EXTENDED: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
/// Any constant: every copy gets its own.
const TEMPLATE_UUID: &str = "7a65726f-6f73-4e74-a001-000000000000";
/// One inode per 16 KiB of a block group's 128 MiB.
const INODES_PER_GROUP: u64 = 8192;

/// A dynamic init would end in a kernel panic without a word about why.
fn require_static(path: &Path, elf: &[u8]) -> Result<(), GuestError> {
    let is_elf = elf.starts_with(b"\x7fELF");
    let has_loader = elf.windows(LOADER.len()).take(LOADER_SEARCH_SIZE).any(|w| w == LOADER);
    if is_elf && !has_loader {
        return Ok(());
    }
    Err(GuestError::NotStatic { path: path.to_path_buf() })
}

const LOADER: &[u8] = b"/lib64/ld-linux";
/// A program's interpreter is named within its first page or so.
const LOADER_SEARCH_SIZE: usize = 64 << 10;

fn row(bytes: &[u8]) -> Value {
    let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "size": bytes.len(), "sha256": sum })
}

fn read(path: &Path) -> Result<Vec<u8>, GuestError> {
    fs::read(path).map_err(GuestError::io("read", path))
}

/// Runs a command and returns its standard output.
fn run(command: &mut Command) -> Result<String, GuestError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |reason: String| GuestError::Command { name: name.clone(), reason };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, words.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The guest's kernel and initramfs can't be built.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The kernel package.
    #[error(transparent)]
    Kernel(#[from] FetchError),
    /// Its modules.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The archive.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// Writing a file.
    #[error(transparent)]
    Write(#[from] CacheError),
    /// `mke2fs` made something that is no template.
    #[error(transparent)]
    Template(#[from] template::Error),
    /// A file can't be read or made.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{name}: {reason}")]
    Command {
        /// The program.
        name: String,
        /// Its status and words.
        reason: String,
    },
    /// The init needs a loader that the initramfs hasn't.
    #[error("{} is not a statically linked ELF program", path.display())]
    NotStatic {
        /// The init.
        path: PathBuf,
    },
    /// Cargo was done but named no binary.
    #[error("cargo built no binary for {target}")]
    NoBinary {
        /// What it was asked for.
        target: String,
    },
}

impl GuestError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_init::ext4::{Identity, Superblock};

    #[test]
    fn templates_are_small_and_repeatable() {
        for spec in &TEMPLATES {
            let once = make_template(spec).unwrap().encode().unwrap();
            assert!(once.len() < 24 * 4104, "{}: {} bytes", spec.name, once.len());
            assert_eq!(once, make_template(spec).unwrap().encode().unwrap(), "{}", spec.name);
        }
    }

    /// What a guest writes onto a blank disk is a file system to `e2fsck`'s liking.
    #[test]
    fn a_copy_passes_e2fsck() {
        let folder = tempfile::tempdir().unwrap();
        for spec in &TEMPLATES {
            let path = folder.path().join(spec.name);
            let disk = fs::File::create(&path).unwrap();
            disk.set_len(spec.size_mib << 20).unwrap();
            let id = Identity { uuid: [5; 16], hash_seed: [6; 16], label: "vol".into(), now: 7 };
            for (at, bytes) in make_template(spec).unwrap().writes(&id) {
                disk.write_all_at(&bytes, at).unwrap();
            }
            let mut e2fsck = Command::new("/sbin/e2fsck");
            let text = run(e2fsck.args(["-fn"]).arg(&path)).unwrap();
            assert!(!text.contains("FIXED") && !text.contains("differ"), "{text}");
            let mut start = vec![0; 2048];
            let disk = fs::File::open(&path).unwrap();
            disk.read_exact_at(&mut start, 0).unwrap();
            let superblock = Superblock::parse(&start[1024..]).unwrap();
            assert_eq!((superblock.uuid, superblock.label.as_str()), ([5; 16], "vol"));
            assert_eq!(superblock.size(), spec.size_mib << 20);
        }
    }

    #[test]
    fn a_dynamic_init_is_refused() {
        let path = Path::new("x");
        assert!(require_static(path, b"\x7fELF..../lib64/ld-linux-x86-64.so.2").is_err());
        assert!(require_static(path, b"#!/bin/sh").is_err());
        assert!(require_static(path, b"\x7fELF").is_ok());
    }
}
