//! The trees that are packed: a copy of part of this machine's own `/usr`, for ratios to peers, and a
//! made-up one that is the same everywhere, for counts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::bail;

/// At least so many bytes and inodes, as the goals in the issue are stated for.
const BYTES_MIN: f64 = 280e6;
const INODE_COUNT_MIN: f64 = 30_000.0;
/// Files up to this size make up the inodes; larger ones then make up the bytes.
const SMALL_SIZE_MAX: u64 = 16 * 1024;
/// Larger files would leave too few of them to be a mix.
const LARGE_SIZE_MAX: u64 = 4 << 20;

/// What the files of the made-up tree consist of.
const WORDS: [&[u8]; 16] = [
    b"node ",
    b"farm ",
    b"twin ",
    b"block",
    b"route",
    b"\0\0\0\0",
    b"\x7fELF",
    b"\x48\x89",
    b"a",
    b"\n",
    b"x7",
    b"==",
    b"0x41",
    b"static",
    b"\xff\xfe",
    b"struct ",
];

/// What a tree holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Made {
    pub(super) bytes: f64,
    pub(super) inode_count: f64,
}

/// Copies from `/usr` in order of names: small files and links until there are enough inodes, then
/// larger files until there are enough bytes.
pub(super) fn copy_of_usr(target: &Path) -> anyhow::Result<Made> {
    let mut copied = Made::default();
    let paths = paths_below(Path::new("/usr"))?;
    for (small, enough) in [(true, INODE_COUNT_MIN), (false, BYTES_MIN)] {
        for (path, metadata) in &paths {
            if (if small { copied.inode_count } else { copied.bytes }) >= enough {
                break;
            }
            let size = metadata.size();
            if (size <= SMALL_SIZE_MAX) == small && size <= LARGE_SIZE_MAX {
                copy(path, metadata, target, &mut copied)?;
            }
        }
    }
    if copied.bytes < BYTES_MIN || copied.inode_count < INODE_COUNT_MIN {
        bail!(
            "/usr is too small: {copied:?}, {BYTES_MIN} bytes and {INODE_COUNT_MIN} inodes needed"
        );
    }
    Ok(copied)
}

/// `folders` with `files` each, of up to 4 KiB of text that compresses about as well as programs do.
pub(super) fn synthetic(target: &Path, folders: u32, files: u32) -> anyhow::Result<Made> {
    let mut made = Made::default();
    let mut random = 1u32;
    for folder in 0..folders {
        let folder = target.join(format!("folder-{folder:03}"));
        fs::create_dir(&folder)?;
        for file in 0..files {
            let mut text = Vec::new();
            for _ in 0..random % 1024 {
                // Numerical Recipes' linear congruential generator: quick, and the same everywhere.
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let [.., top] = random.to_le_bytes();
                text.extend_from_slice(WORDS[usize::from(top / 16)]);
            }
            random = random.wrapping_add(file);
            fs::write(folder.join(format!("file-{file:02}")), &text)?;
            made.bytes += text.len() as f64;
        }
        made.inode_count += f64::from(files + 1);
    }
    Ok(made)
}

/// Sum of the sizes of all files below `folder`.
pub(super) fn apparent_bytes(folder: &Path) -> anyhow::Result<f64> {
    Ok(paths_below(folder)?.iter().map(|(_, metadata)| metadata.size() as f64).sum())
}

/// Files and links below `folder`, on its file system, in order of names.
fn paths_below(folder: &Path) -> anyhow::Result<Vec<(PathBuf, fs::Metadata)>> {
    let device = fs::metadata(folder)?.dev();
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() && metadata.dev() == device {
                pending.push(entry.path());
            } else if metadata.is_file() || metadata.is_symlink() {
                found.push((entry.path(), metadata));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

fn copy(
    path: &Path,
    metadata: &fs::Metadata,
    target: &Path,
    copied: &mut Made,
) -> anyhow::Result<()> {
    let target = target.join(path.strip_prefix("/")?);
    let folder = target.parent().unwrap_or(&target);
    let missing = folder.ancestors().take_while(|folder| !folder.exists()).count();
    fs::create_dir_all(folder)?;
    if metadata.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(path)?, &target)?;
    } else {
        fs::copy(path, &target)?;
        copied.bytes += metadata.size() as f64;
    }
    copied.inode_count += f64::from(u32::try_from(missing + 1)?);
    Ok(())
}
