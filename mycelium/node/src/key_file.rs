//! The node's secret key: a file of exactly 32 raw bytes, made at the first start.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mycelium_wire::RandomError;
use mycelium_wire::identity::{KEY_SIZE, SecretKey};
use zeroize::Zeroizing;

/// A key file that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be read.
    #[error("key file {path}: can't be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It can't be made.
    #[error("key file {path}: can't be written")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no key.
    #[error("key file {path}: {size} bytes, a key has exactly {KEY_SIZE} raw bytes")]
    Size {
        /// Which.
        path: PathBuf,
        /// How large it is; one more than a key when it is larger.
        size: String,
    },
    /// It is there already.
    #[error("key file {path}: exists already")]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// There is no place for it.
    #[error("no --key-file given, and HOME is not set to put one there")]
    NoHome,
    /// The operating system gives no random bytes.
    #[error("no key can be made")]
    Random(#[from] RandomError),
}

impl KeyFileError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("who runs mycelium must own the key file and its folder")
            }
            Self::Size { .. } => Some("`mycelium generate-keys --key-file PATH` makes a new one"),
            Self::Exists { .. } => Some("--force replaces it; the node gets another address"),
            Self::NoHome => Some("give --key-file PATH"),
            _ => None,
        }
    }
}

/// Mode of a new key file: what existing releases use.
const MODE: u32 = 0o640;

/// Where the key is when nobody says: `$HOME/.local/share/mycelium/priv_key.bin`.
pub fn default_path() -> Result<PathBuf, KeyFileError> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = PathBuf::from(home.ok_or(KeyFileError::NoHome)?);
    Ok(home.join(".local/share/mycelium/priv_key.bin"))
}

/// Reads the key.
pub fn read(path: &Path) -> Result<SecretKey, KeyFileError> {
    let failed = |source| KeyFileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o007 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777),
            "the key file is open to every user");
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_SIZE + 1));
    file.take(KEY_SIZE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let Ok(key) = <[u8; KEY_SIZE]>::try_from(bytes.as_slice()) else {
        let is_longer = bytes.len() > KEY_SIZE;
        let size =
            if is_longer { format!("more than {KEY_SIZE}") } else { bytes.len().to_string() };
        return Err(KeyFileError::Size { path: path.to_owned(), size });
    };
    Ok(SecretKey::from_bytes(key))
}

/// Reads the key, or makes one where there is none.
pub fn read_or_create(path: &Path) -> Result<SecretKey, KeyFileError> {
    match read(path) {
        Err(KeyFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let key = create(path, false)?;
            tracing::info!(path = %path.display(), "a new key was made");
            Ok(key)
        }
        result => result,
    }
}

/// Makes a new key. With `replaces`, it takes the place of one that is there.
pub fn create(path: &Path, replaces: bool) -> Result<SecretKey, KeyFileError> {
    if !replaces && path.exists() {
        return Err(KeyFileError::Exists { path: path.to_owned() });
    }
    let key = SecretKey::generate()?;
    write(path, &key).map_err(|source| KeyFileError::Write { path: path.to_owned(), source })?;
    Ok(key)
}

/// Writes beside and renames, so that a key file is whole or not there.
fn write(path: &Path, key: &SecretKey) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let beside = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(MODE).open(&beside)?;
        file.write_all(key.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| {
        // It may not have come into being.
        let _ = std::fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/key.bin");
        let key = read_or_create(&path).unwrap();
        assert_eq!(read_or_create(&path).unwrap().public(), key.public());
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (32, MODE));
        assert!(matches!(create(&path, false), Err(KeyFileError::Exists { .. })));
        assert_ne!(create(&path, true).unwrap().public(), key.public());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_another_size_is_refused_with_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.bin");
        for (size, said) in [(0, "0 bytes"), (31, "31 bytes"), (33, "more than 32 bytes")] {
            std::fs::write(&path, vec![1; size]).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains(said) && error.hint().is_some(), "{error}");
        }
    }
}
