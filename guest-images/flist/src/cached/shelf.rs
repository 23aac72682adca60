//! The folder of indexes and traces, kept from growing without end.
//!
//! Images come and go on a node; their indexes would stay. Each use of an index sets its time of
//! modification, and the longest unused go first. A file that goes while someone has it open, here
//! or in another process, stays good for them.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Most bytes of indexes. One of a million files has some 150 MB.
const INDEX_BYTES_MAX: u64 = 2 << 30;
/// Most indexes.
const INDEX_COUNT_MAX: usize = 4096;
/// What belongs to an index, by file name extension; the index itself goes last.
const KINDS: [&str; 3] = ["trace", "routes", "idx"];
/// Names of files that are being written.
const TEMPORARY_PREFIXES: [&str; 3] = [".image-", ".index-", ".trace-"];
/// A temporary file this old was left by a process that died.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);

/// Removes what dead processes left, and the longest unused indexes beyond the limits.
pub(super) fn sweep(directory: &Path) -> io::Result<()> {
    let mut indexes = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
        if is_stale(&path, &metadata) {
            let _ = fs::remove_file(&path);
        } else if path.extension().is_some_and(|extension| extension == "idx") {
            indexes.push((metadata.modified()?, metadata.len(), path));
        }
    }
    for path in surplus(indexes, INDEX_BYTES_MAX, INDEX_COUNT_MAX) {
        for kind in KINDS {
            let _ = fs::remove_file(path.with_extension(kind));
        }
    }
    Ok(())
}

fn is_stale(path: &Path, metadata: &Metadata) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok());
    TEMPORARY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        && age.is_some_and(|age| age >= TEMPORARY_AGE)
}

/// Those that must go, of `(last use, bytes, path)`. The last used one always stays.
fn surplus(
    mut indexes: Vec<(SystemTime, u64, PathBuf)>,
    bytes_max: u64,
    count_max: usize,
) -> Vec<PathBuf> {
    indexes.sort_unstable_by(|a, b| b.cmp(a));
    let mut bytes = 0u64;
    let over = indexes.iter().enumerate().position(|(count, (_, size, _))| {
        bytes = bytes.saturating_add(*size);
        count > 0 && (bytes > bytes_max || count >= count_max)
    });
    indexes.split_off(over.unwrap_or(indexes.len())).into_iter().map(|(_, _, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(second: u64, size: u64) -> (SystemTime, u64, PathBuf) {
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        (used, size, PathBuf::from(format!("{second}.idx")))
    }

    #[test]
    fn the_longest_unused_go_first_and_the_last_used_stays() {
        let indexes = vec![index(3, 10), index(1, 10), index(2, 10)];
        let names = |bytes, count| surplus(indexes.clone(), bytes, count);
        assert_eq!(names(30, 3), [] as [PathBuf; 0]);
        assert_eq!(names(29, 3), [PathBuf::from("1.idx")]);
        assert_eq!(names(30, 2), [PathBuf::from("1.idx")]);
        assert_eq!(names(0, 3), [PathBuf::from("2.idx"), PathBuf::from("1.idx")]);
    }

    #[test]
    fn old_temporary_files_go_and_young_ones_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        for name in [".image-old", ".image-new", "a.idx", "a.trace", "other"] {
            fs::write(path(name), "").unwrap();
        }
        let file = fs::File::options().write(true).open(path(".image-old")).unwrap();
        file.set_modified(SystemTime::now() - TEMPORARY_AGE * 2).unwrap();
        sweep(directory.path()).unwrap();
        assert!(!path(".image-old").exists());
        for name in [".image-new", "a.idx", "a.trace", "other"] {
            assert!(path(name).exists(), "{name}");
        }
    }
}
