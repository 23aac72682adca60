//! What is done to a mounted tree: the accesses that programs make, as bare as possible.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A regular file, and its size in bytes.
pub(super) type FileOfSize = (PathBuf, u64);

/// Lists every directory and inspects every entry; collects regular files.
pub(super) fn walk(root: &Path, mut files: Option<&mut Vec<FileOfSize>>) -> anyhow::Result<()> {
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_file()
                && let Some(files) = files.as_deref_mut()
            {
                files.push((path, metadata.size()));
            }
        }
    }
    Ok(())
}

/// Looks up names that do not exist, each once.
pub(super) fn absent(root: &Path, count: u32) -> anyhow::Result<()> {
    for number in 0..count {
        anyhow::ensure!(!root.join(format!("absent-{number}")).exists(), "an absent name exists");
    }
    Ok(())
}

/// Reads every file from beginning to end.
pub(super) fn read_all(files: &[FileOfSize]) -> anyhow::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    for (path, size) in files {
        let mut file = File::open(path)?;
        let mut found = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => found += count as u64,
            }
        }
        anyhow::ensure!(found == *size, "{}: {found} bytes read, {size} expected", path.display());
    }
    Ok(())
}

/// Reads 4 KiB at random places of random files; the same places in every run.
pub(super) fn random_reads(files: &[FileOfSize], count: u32) -> anyhow::Result<()> {
    anyhow::ensure!(!files.is_empty(), "the tree has no files");
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut buffer = [0; 4096];
    for _ in 0..count {
        // xorshift64: Marsaglia, "Xorshift RNGs", 2003.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let index = usize::try_from(random >> 20)? % files.len();
        let (path, size) = &files[index];
        let offset = (random & 0xfffff) % size.div_ceil(4096).max(1) * 4096;
        File::open(path)?.read_at(&mut buffer, offset)?;
    }
    Ok(())
}
