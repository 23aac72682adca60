//! Secrets in files: keys and passphrases. Their bytes are wiped from memory after use, and no error shows
//! any of them.

use std::path::Path;

use zdb_engine::{MasterKey, Passphrase, Secret};
use zeroize::Zeroizing;

use super::{ConfigError, value};
use crate::seal::KEY_SIZE;
use crate::session::read_hex;

/// Shortest passphrase, in bytes: Argon2id makes guessing dear, not impossible.
const PASSPHRASE_SIZE_MIN: usize = 8;
/// Longest passphrase, in bytes.
const PASSPHRASE_SIZE_MAX: usize = 1024;

/// What opens encrypted namespaces: from a key file, or a file with a passphrase.
///
/// # Errors
/// [`ConfigError`].
pub fn read_secret(
    keyfile: Option<&Path>,
    passphrase_file: Option<&Path>,
) -> Result<Option<Secret>, ConfigError> {
    match (keyfile, passphrase_file) {
        (None, None) => Ok(None),
        (Some(path), None) => read_key(path).map(|key| Some(Secret::Key(key))),
        (None, Some(path)) => {
            let passphrase = read_passphrase(path)?;
            Ok(Some(Secret::Passphrase(Passphrase::new(&passphrase))))
        }
        (Some(_), Some(_)) => {
            Err(ConfigError::Together("give one of --keyfile and --passphrase-file"))
        }
    }
}

/// A key file: 32 bytes, or their hex digits.
///
/// # Errors
/// [`ConfigError`].
pub fn read_key(path: &Path) -> Result<MasterKey, ConfigError> {
    let bytes = read_private(path)?;
    let key = <[u8; KEY_SIZE]>::try_from(bytes.as_slice()).ok();
    let key = key.or_else(|| read_hex(bytes.trim_ascii()));
    let rule = "a key file holds 32 bytes, or 64 hex digits";
    let key = key.ok_or_else(|| value("keyfile", &path.display().to_string(), rule))?;
    Ok(MasterKey::new(key))
}

/// A passphrase: all of a file but the line's end.
///
/// # Errors
/// [`ConfigError`].
pub fn read_passphrase(path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let mut bytes = read_private(path)?;
    while bytes.pop_if(|last| matches!(last, b'\r' | b'\n')).is_some() {}
    let size = bytes.len();
    if !(PASSPHRASE_SIZE_MIN..=PASSPHRASE_SIZE_MAX).contains(&size) {
        let rule = "a passphrase has 8 to 1024 bytes";
        return Err(value("passphrase-file", &path.display().to_string(), rule));
    }
    Ok(bytes)
}

fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let bytes = std::fs::read(path);
    let bytes = bytes.map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
    Ok(Zeroizing::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_all_of_its_file_but_the_lines_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        std::fs::write(&path, "correct horse\r\n").unwrap();
        assert_eq!(**read_passphrase(&path).unwrap(), *b"correct horse");
        let secret = read_secret(None, Some(&path)).unwrap().unwrap();
        assert!(!format!("{secret:?}").contains("horse"));
        std::fs::write(&path, "short\n").unwrap();
        let error = read_secret(None, Some(&path)).unwrap_err().to_string();
        assert!(error.ends_with("a passphrase has 8 to 1024 bytes"), "{error}");
        assert!(!error.contains("short"), "{error}");
    }
}
