//! Small files that the node keeps for itself: written whole or not at all, read within a bound.
//!
//! A disk can hold anything after years, so whoever reads one says how long it may be at most.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::de::DeserializeOwned;

/// The temporary files of a write that was cut short.
const TEMPORARY: &str = "tmp";

/// Writes a file that is seen whole or not at all, for the node alone.
///
/// # Errors
/// The system says no.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(TEMPORARY);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// What a file of at most `size_max` bytes says in JSON; none if there is none.
///
/// # Errors
/// The system says no; [`io::ErrorKind::InvalidData`] if it is longer or says something else.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, size_max: u64) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let invalid = |why: String| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
    };
    let mut bytes = Vec::new();
    if file.take(size_max + 1).read_to_end(&mut bytes)? as u64 > size_max {
        return Err(invalid(format!("longer than {size_max} bytes")));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| invalid(error.to_string()))
}

/// The same of a file that can do without: one that is not `ours` says nothing, as if there were none. The log is
/// told `lost` then.
///
/// # Errors
/// The system says no.
pub(crate) fn read_or_forget<T: DeserializeOwned>(
    path: &Path,
    size_max: u64,
    is_ours: impl FnOnce(&T) -> bool,
    lost: &str,
) -> io::Result<Option<T>> {
    let kept = match read_json(path, size_max) {
        Ok(None) => return Ok(None),
        Ok(kept) => kept.filter(is_ours),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
        Err(error) => return Err(error),
    };
    if kept.is_none() {
        tracing::warn!(path = %path.display(), "{lost}");
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_there_and_short_and_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers.json");
        let read = |size_max| read_json::<Vec<u8>>(&path, size_max);
        assert_eq!(read(5).unwrap(), None);
        write_whole(&path, b"[1,2]").unwrap();
        assert_eq!(read(5).unwrap(), Some(vec![1, 2]));
        let long = read(4).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
        assert!(long.to_string().ends_with("numbers.json: longer than 4 bytes"), "{long}");
        for text in ["", "[1,", "{}", "[256]"] {
            write_whole(&path, text.as_bytes()).unwrap();
            assert_eq!(read(5).unwrap_err().kind(), io::ErrorKind::InvalidData, "{text}");
        }
        let names = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 1, "nothing temporary is left");
    }
}
