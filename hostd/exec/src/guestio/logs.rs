//! `zlogs`: a machine's log, sent to a server of its owner's.
//!
//! A folder of each, named by its workload's id: `config.json`, which the process reads and which may hold a
//! password, and what the process says. The folder is made first and goes last. Whether one is there is what
//! the supervisor says, unless it is paused: then it rests, and is not missed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use hostd_grid::derived::WorkloadId;
use serde::Serialize;

use super::{GRACE, GuestIo, GuestIoError, described};
use crate::kept::write_whole;
use crate::network::program;
use crate::storage::parse;

/// What is to be sent where.
pub struct Order<'a> {
    /// The log.
    pub log: PathBuf,
    /// The owner's URL.
    pub output: &'a str,
    /// Who knows names in the machine's network.
    pub name_servers: &'a [IpAddr],
    /// The network's namespace, by its file.
    pub namespace: PathBuf,
}

/// The process's configuration, as `guestio logs` reads it.
#[derive(Serialize)]
struct Config<'a> {
    log: &'a Path,
    output: &'a str,
    name_servers: &'a [IpAddr],
}

/// The folders of all logs that are sent.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    fn path(&self, id: &WorkloadId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    fn paused(&self, id: &WorkloadId) -> PathBuf {
        self.path(id).join("paused")
    }

    fn write(&self, id: &WorkloadId, order: &Order<'_>) -> io::Result<PathBuf> {
        let folder = self.path(id);
        if !folder.exists() {
            DirBuilder::new().mode(0o700).create(&folder)?;
            File::open(&self.folder)?.sync_all()?;
        }
        let Order { log, output, name_servers, .. } = order;
        let path = folder.join("config.json");
        write_whole(&path, &serde_json::to_vec(&Config { log, output, name_servers })?)?;
        Ok(path)
    }

    fn remove(&self, id: &WorkloadId) -> io::Result<()> {
        match fs::remove_dir_all(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(&self.folder)?.sync_all(),
        }
    }

    fn ids(&self) -> io::Result<Vec<WorkloadId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            ids.extend(entry?.file_name().to_str().and_then(parse));
        }
        ids.sort();
        Ok(ids)
    }
}

impl GuestIo {
    /// Sends a log somewhere, or finds it sent. One that is paused stays so.
    ///
    /// # Errors
    /// Where it is to go is nowhere that logs are sent to; it can't be written down or started.
    pub fn send_log(&self, id: &WorkloadId, order: &Order<'_>) -> Result<(), GuestIoError> {
        let config = self.records.write(id, order).map_err(unwritten)?;
        if self.records.paused(id).exists() {
            return Ok(());
        }
        let checked = program::run(&self.config.program, &check(&config), "");
        checked.map_err(|error| {
            let text = error.to_string();
            GuestIoError::Output(text.trim_start_matches("error: ").to_owned())
        })?;
        let folder = self.records.path(id);
        let argv = self.argv("logs", "--config", &config);
        self.start(&described(log_name(id), argv, &order.namespace, &folder))
    }

    /// Sends no more until it is resumed.
    ///
    /// # Errors
    /// It can't be written down, or ended.
    pub fn pause_log(&self, id: &WorkloadId) -> Result<(), GuestIoError> {
        // Written first: one that ends is then not missed.
        write_whole(&self.records.paused(id), b"").map_err(unwritten)?;
        self.supervisor.stop(&log_name(id), GRACE)?;
        Ok(())
    }

    /// Goes on.
    ///
    /// # Errors
    /// It can't be written down or started.
    pub fn resume_log(&self, id: &WorkloadId, order: &Order<'_>) -> Result<(), GuestIoError> {
        match fs::remove_file(self.records.paused(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unwritten(error)),
            _ => {}
        }
        self.send_log(id, order)
    }

    /// Sends no more, and forgets where to. One that is not sent is no error.
    ///
    /// # Errors
    /// The supervisor does not answer, or the folder stays.
    pub fn remove_log(&self, id: &WorkloadId) -> Result<(), GuestIoError> {
        if self.has_log(id) {
            self.supervisor.stop(&log_name(id), GRACE)?;
            self.records.remove(id).map_err(unwritten)?;
        }
        Ok(())
    }

    /// Whether anything is kept of it.
    pub fn has_log(&self, id: &WorkloadId) -> bool {
        self.records.path(id).exists()
    }

    /// Logs that anything is kept of.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn kept_logs(&self) -> Result<Vec<WorkloadId>, GuestIoError> {
        self.records.ids().map_err(unwritten)
    }

    /// Logs that are sent, or paused.
    ///
    /// # Errors
    /// The supervisor does not answer, or the folder can't be read.
    pub fn logs(&self) -> Result<Vec<WorkloadId>, GuestIoError> {
        let statuses = self.supervisor.list()?;
        let mut ids = self.kept_logs()?;
        ids.retain(|id| {
            let name = log_name(id);
            statuses.iter().any(|status| status.name == name) || self.records.paused(id).exists()
        });
        Ok(ids)
    }
}

/// Arguments that have a configuration looked at.
fn check(config: &Path) -> [&str; 4] {
    // The folder's name is ours, and ids have no other letters.
    ["logs", "--check", "--config", config.to_str().unwrap_or_default()]
}

fn unwritten(source: io::Error) -> GuestIoError {
    GuestIoError::Io { what: "what is kept of the log can't be read or written", source }
}

/// What the supervisor calls it.
pub fn log_name(id: &WorkloadId) -> String {
    format!("zlogs-{}", id.device("zlogs"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn where_a_log_goes_is_kept_for_the_node_alone() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().join("zlogs")).unwrap();
        let id = parse("1-2-logs").unwrap();
        let order = Order {
            log: "/vms/1-2-vm/log/console.log".into(),
            output: "redis://:hunter2@10.20.2.7/x",
            name_servers: &["8.8.8.8".parse().unwrap()],
            namespace: "/run/netns/n".into(),
        };
        let path = records.write(&id, &order).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            r#"{"log":"/vms/1-2-vm/log/console.log","output":"redis://:hunter2@10.20.2.7/x","name_servers":["8.8.8.8"]}"#
        );
        assert_eq!(records.ids().unwrap(), std::slice::from_ref(&id));
        records.remove(&id).unwrap();
        records.remove(&id).unwrap();
        assert_eq!(records.ids().unwrap(), []);
    }
}
