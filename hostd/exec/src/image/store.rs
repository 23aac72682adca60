//! The folder of images' files: what is known of addresses, and what may go.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hostd_grid::derived::ShortId;
use serde::{Deserialize, Serialize};

use crate::kept::{read_json, write_whole};

/// Bytes of what is known of an address, which is itself in it.
const KNOWN_SIZE_MAX: u64 = 64 << 10;
/// Characters of a hash.
const HASH_SIZE: usize = 64;

/// What an address led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    /// The address.
    pub(super) url: String,
    /// MD5 of the image's file, which is what hubs tell.
    pub(super) md5: String,
    /// BLAKE2b-256 of it, which is its name.
    pub(super) hash: String,
}

/// Whether a text is the name of an image's file.
pub(super) fn is_hash(text: &str) -> bool {
    text.len() == HASH_SIZE && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte))
}

/// What is known of an address.
pub(super) fn known(folder: &Path, url: &str) -> Option<Known> {
    let known: Known = read_json(&path(folder, url), KNOWN_SIZE_MAX).ok()??;
    // Two addresses can have the same short id, and somebody may have looked for them.
    (known.url == url && is_hash(&known.hash)).then_some(known)
}

/// Remembers what an address led to.
pub(super) fn remember(folder: &Path, known: &Known) -> io::Result<()> {
    write_whole(&path(folder, &known.url), &serde_json::to_vec(known)?)
}

fn path(folder: &Path, url: &str) -> PathBuf {
    folder.join("urls").join(format!("{}.json", ShortId::of(url)))
}

/// Removes what downloads left that were cut short.
pub(super) fn clean(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(".download-") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes images that are not `used`, the oldest first, until the rest of them has at most `size_max`
/// bytes.
pub(super) fn prune(folder: &Path, used: &BTreeSet<String>, size_max: u64) -> io::Result<()> {
    let mut unused = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_hash(&name) && !used.contains(&name) {
            let metadata = entry.metadata()?;
            let time = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            unused.push((time, metadata.len(), name));
        }
    }
    unused.sort();
    let mut size: u64 = unused.iter().map(|(_, size, _)| size).sum();
    for (_, bytes, hash) in unused {
        if size <= size_max {
            break;
        }
        fs::remove_file(folder.join(&hash))?;
        let boot = folder.join(format!("{hash}.boot"));
        match fs::remove_dir_all(boot) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        size -= bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(letter: char) -> String {
        letter.to_string().repeat(HASH_SIZE)
    }

    #[test]
    fn addresses_are_known_by_all_of_them() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("urls")).unwrap();
        let url = "https://hub/u/x.fl";
        assert_eq!(known(folder.path(), url), None);
        let kept = Known { url: url.into(), md5: "0".repeat(32), hash: hash('a') };
        remember(folder.path(), &kept).unwrap();
        assert_eq!(known(folder.path(), url), Some(kept.clone()));
        // As if another address had the same short id.
        let other = Known { url: "https://hub/u/y.fl".into(), ..kept };
        fs::write(path(folder.path(), url), serde_json::to_vec(&other).unwrap()).unwrap();
        assert_eq!(known(folder.path(), url), None);
    }

    #[test]
    fn the_oldest_that_nobody_uses_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        for (letter, age) in [('a', 1), ('b', 2), ('c', 3), ('d', 4)] {
            let path = folder.path().join(hash(letter));
            fs::write(&path, [0; 100]).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(at(age)).unwrap();
            fs::create_dir(folder.path().join(format!("{}.boot", hash(letter)))).unwrap();
        }
        fs::write(folder.path().join(".download-x"), "").unwrap();
        clean(folder.path()).unwrap();
        prune(folder.path(), &BTreeSet::from([hash('a')]), 150).unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let boot = |letter| format!("{}.boot", hash(letter));
        assert_eq!(left, [hash('a'), boot('a'), hash('d'), boot('d')]);
    }
}
