//! A lab's two folders: one for sockets and disks, gone at the end; one for logs, kept on failure.
//!
//! The first holds a lock file that is locked while the lab lives. A lab that starts removes
//! the folders whose lock nobody holds: they belong to runners that were killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use boot_image::Cache;
use tempfile::TempDir;

use crate::error::LabError;

const PREFIX: &str = "zero-os-lab-";
/// How many kept log folders there may be; the oldest go first.
const LOG_FOLDER_COUNT_MAX: usize = 40;

/// A lab's folders.
#[derive(Debug)]
pub(crate) struct Folder {
    name: String,
    work: TempDir,
    logs: PathBuf,
    cache: Cache,
    keep_logs: AtomicBool,
    serial: AtomicU32,
    _lock: File,
}

impl Folder {
    /// Creates both.
    pub(crate) fn create(name: &str) -> Result<Self, LabError> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let cache = Cache::from_env().map_err(|error| LabError::BootImage(error.to_string()))?;
        let temp = std::env::temp_dir();
        remove_stale(&temp);
        let work = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&temp);
        let work = work.map_err(LabError::io("create a folder in", &temp))?;
        let lock_path = work.path().join("lock");
        let lock = File::create(&lock_path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(LabError::io("lock", &lock_path))?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let all_logs = cache.root().join("lab-logs");
        let logs = all_logs.join(format!("{name}-{}-{serial}", std::process::id()));
        prune(&all_logs);
        fs::create_dir_all(&logs).map_err(LabError::io("create folder", &logs))?;
        Ok(Self {
            name: name.to_owned(),
            work,
            logs,
            cache,
            keep_logs: AtomicBool::new(false),
            serial: AtomicU32::new(0),
            _lock: lock,
        })
    }

    /// The lab's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where sockets and disks are.
    pub(crate) fn work(&self) -> &Path {
        self.work.path()
    }

    /// Where logs are.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// The project's cache.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// A number that this lab has not used: for short socket names and MAC addresses.
    pub(crate) fn next_serial(&self) -> u32 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether the logs are kept though nothing panics.
    pub(crate) fn keep_logs(&self, keep: bool) {
        self.keep_logs.store(keep, Ordering::Relaxed);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() || self.keep_logs.load(Ordering::Relaxed) {
            eprintln!("lab {}: logs are in {}", self.name, self.logs.display());
        } else {
            // What can't be removed now, a later lab prunes.
            let _ = fs::remove_dir_all(&self.logs);
        }
    }
}

/// Removes the work folders of labs that are no more.
fn remove_stale(temp: &Path) {
    for entry in fs::read_dir(temp).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // A folder without lock is about to get one.
        if let Some(lock) = is_ours.then(|| File::open(path.join("lock")).ok()).flatten()
            && lock.try_lock().is_ok()
            && age(&path) > Duration::from_secs(5)
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Keeps the newest log folders only.
fn prune(all_logs: &Path) {
    let entries = fs::read_dir(all_logs).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort_by_cached_key(|path| age(path));
    for path in paths.iter().skip(LOG_FOLDER_COUNT_MAX) {
        let _ = fs::remove_dir_all(path);
    }
}

fn age(path: &Path) -> Duration {
    let modified = fs::metadata(path).and_then(|found| found.modified());
    let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_killed_runners_go_and_others_stay() {
        let temp = tempfile::tempdir().unwrap();
        let make = |name: &str, is_old: bool| {
            let path = temp.path().join(name);
            fs::create_dir(&path).unwrap();
            let lock = File::create(path.join("lock")).unwrap();
            if is_old {
                let past = SystemTime::now() - Duration::from_secs(60);
                File::open(&path).unwrap().set_modified(past).unwrap();
            }
            lock
        };
        make("zero-os-lab-dead", true);
        let alive = make("zero-os-lab-alive", true);
        alive.lock().unwrap();
        make("zero-os-lab-new", false);
        make("somebody-else", true);
        remove_stale(temp.path());
        let mut left: Vec<_> =
            fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["somebody-else", "zero-os-lab-alive", "zero-os-lab-new"]);
    }
}
