//! A snapshot of a namespace that a running server makes for us, and that goes when we have read it.
//!
//! It stands beside the namespaces, since hard links can't leave their file system, in folders whose names
//! begin with a dot, which are no namespaces. One that a killed command left behind keeps what it shows on
//! the disk, so old ones that nobody has locked are removed along the way.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use zdb_client::{Client, Endpoint, Timeouts, Value};
use zdb_engine::Name;

use super::server_address::read_password;

const PREFIX: &str = ".backup-";
/// The lock that the engine takes on folders that it works on.
const LOCK_NAME: &str = ".lockfile";
/// Younger ones may be another command's that has not opened them yet.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);
/// How long a server may take: it syncs, and links every file.
const TIME_MAX: Duration = Duration::from_secs(300);

/// A snapshot's folders. They are removed when it is dropped.
pub(crate) struct Snapshot {
    pub(crate) data: PathBuf,
    pub(crate) index: PathBuf,
}

impl Snapshot {
    /// Has the server behind this socket make it.
    pub(crate) fn take(socket: &Path, admin: Option<&Path>, name: &Name) -> anyhow::Result<Self> {
        let timeouts = Timeouts { request: TIME_MAX, ..Timeouts::default() };
        let mut client = Client::connect(&Endpoint::Unix(socket.to_owned()), &timeouts)?;
        if let Some(path) = admin {
            client.auth_secure(&read_password(path)?)?;
        }
        let [data, index] = roots(&mut client, name)?;
        for root in [&data, &index] {
            remove_leftovers(root).with_context(|| root.display().to_string())?;
        }
        let folder = format!("{PREFIX}{}", std::process::id());
        // From here on what was made is removed, also after an error.
        let snapshot = Self { data: data.join(&folder), index: index.join(&folder) };
        let folders = [&snapshot.data, &snapshot.index].map(|path| path.as_os_str().as_bytes());
        client.call(&[b"NSSNAP", name.as_bytes(), folders[0], folders[1]])?;
        Ok(snapshot)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        for folder in [&self.data, &self.index] {
            match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    eprintln!("zdb: {}: {error}; remove it by hand", folder.display());
                }
                _ => {}
            }
        }
    }
}

/// The folders that the server's namespaces are in.
fn roots(client: &mut Client, name: &Name) -> anyhow::Result<[PathBuf; 2]> {
    let Value::Bulk(text) = client.call(&[b"NSINFO", name.as_bytes()])? else {
        bail!("the server's NSINFO is no text")
    };
    let text = String::from_utf8(text).context("the server's NSINFO")?;
    let root = |field: &str| {
        let path = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        let path = path.context("the server tells its folders to administrators only")?;
        let root = Path::new(path).parent().filter(|root| root.is_absolute());
        root.map(Path::to_owned).with_context(|| format!("the server's {field}, {path}"))
    };
    Ok([root("data_path")?, root("index_path")?])
}

fn remove_leftovers(root: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age > LEFTOVER_AGE && is_unlocked(&entry.path()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn is_unlocked(folder: &Path) -> bool {
    match std::fs::File::open(folder.join(LOCK_NAME)) {
        Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_leftovers_go_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - 2 * LEFTOVER_AGE;
        for (name, is_old) in
            [(".backup-1", true), (".backup-2", true), (".backup-3", false), ("default", true)]
        {
            let folder = root.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(LOCK_NAME), "").unwrap();
            if is_old {
                std::fs::File::open(&folder).unwrap().set_modified(old).unwrap();
            }
        }
        // Somebody is still reading the second.
        let lock = std::fs::File::open(root.path().join(".backup-2").join(LOCK_NAME)).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        remove_leftovers(root.path()).unwrap();
        let left = |name: &str| root.path().join(name).exists();
        assert_eq!(
            [".backup-1", ".backup-2", ".backup-3", "default"].map(left),
            [false, true, true, true]
        );
    }
}
