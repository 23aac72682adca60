//! Namespaces of keys and values: one `zdb` server for each hard disk, and namespaces in it.
//!
//! A server runs under the supervisor, with a folder of its disk, an address for users and a unix socket
//! for us. What there is, its servers know: namespaces are called as their workloads are, and their
//! quotas are what was promised of the disk.
//!
//! ```text
//!   which server? ─┬─ it has it: grown, if it is smaller than what is wanted
//!                  └─ none has it: NSMAKE on the one with the most room, all properties in one step
//! ```
//!
//! So there is no moment in which a namespace is there without its password, and no half-made one.
//!
//! A server that can't be asked holds up nobody but its own users, and nothing else of the node: servers
//! are started, and waited for, beside everything else. What it has, its disk says: the names
//! of folders, if the disk is really there, which the folder of the server's own namespace shows. Of a disk
//! that can't be read nobody knows what is on it, and nothing that may be there is made elsewhere. Who
//! was in vain at a server a moment ago is not kept waiting for it again. What a disk has that is missing
//! altogether, `book` says.

mod book;
mod namespace;
mod server;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hostd_grid::derived::WorkloadId;
use hostd_grid::workload::{Zdb, ZdbMode, ZdbResult};

use self::book::Book;
use self::namespace::Admin;
use self::server::Server;
use crate::storage::{HardDisk, file_name, parse};

/// Where servers are, and what they run.
#[derive(Debug, Clone)]
pub struct ZdbConfig {
    /// The `zdb` program.
    pub program: PathBuf,
    /// A folder for sockets and for settings with secrets. It is made, for this user alone.
    pub runtime: PathBuf,
    /// The folder of the servers' logs, which is there; no logs if nothing is said.
    pub logs: Option<PathBuf>,
    /// Longest time until a server that was started answers.
    pub start_time_max: Duration,
    /// The file in which it is written down what each disk has.
    pub book: PathBuf,
    /// The servers.
    pub servers: Vec<ServerConfig>,
}

impl ZdbConfig {
    /// How long a server may take to start: it reads the index of all that it has.
    pub const START_TIME_MAX: Duration = Duration::from_secs(30);
}

/// One server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Its disk.
    pub disk: HardDisk,
    /// The address that it listens on.
    pub listen: IpAddr,
    /// The port that it listens on.
    pub port: u16,
    /// Addresses that users are told.
    pub addresses: Vec<IpAddr>,
    /// The network namespace that it runs in; the machine's own if nothing is said.
    pub network_namespace: Option<PathBuf>,
}

/// Why something was not done. The texts reach users, and hold no password.
#[derive(Debug, thiserror::Error)]
pub enum ZdbError {
    /// The workload's name can't be a namespace's.
    #[error("invalid workload name")]
    Name,
    /// It is neither `user` nor `seq`.
    #[error("invalid mode")]
    Mode,
    /// It must be some bytes, in a number that a server can read.
    #[error("invalid size")]
    Size,
    /// A server can't keep it.
    #[error("a zdb password has at most {PASSWORD_SIZE_MAX} bytes, and is not '*'")]
    Password,
    /// No disk has so much left.
    #[error("not enough space left in pools of this type hdd")]
    Full,
    /// Namespaces never shrink.
    #[error("cannot shrink zdb namespace")]
    Shrinks,
    /// Nor do they change their mode.
    #[error("cannot change namespace mode")]
    OtherMode,
    /// There is none of that name.
    #[error("zdb namespace {0} does not exist")]
    Absent(WorkloadId),
    /// A server can't be asked.
    #[error("zdb server of pool {pool} is not available: {reason}")]
    Unavailable {
        /// The disk's pool.
        pool: String,
        /// Why.
        reason: String,
    },
    /// A server says no.
    #[error("zdb server of pool {pool}: {reason}")]
    Refused {
        /// The disk's pool.
        pool: String,
        /// What it says.
        reason: String,
    },
    /// What disks have can't be written down.
    #[error("the list of namespaces: {0}")]
    Book(io::Error),
}

/// Why a namespace can't be had whose disk is missing.
const MISSING: &str = "its disk is missing";
/// Longest password, in bytes: of the server's `NSSET`.
pub const PASSWORD_SIZE_MAX: usize = 63;
/// What the server takes for no password.
const NO_PASSWORD: &str = "*";

/// All servers.
#[derive(Debug)]
pub struct Zdbs {
    servers: Vec<Arc<Server>>,
    /// One change at a time: to find room and to take it are one step. Nobody waits for a server with it.
    changing: Mutex<()>,
    /// What disks have. Locked after `changing`.
    book: Mutex<Book>,
}

impl Zdbs {
    /// Has the servers started that do not run yet, so that their users are served, and waits for none of
    /// them. One that does not start is tried again when it is needed.
    ///
    /// # Errors
    /// The folder for sockets can't be made, a pool's name can't be a program's, or the book can't be
    /// written.
    pub fn open(config: &ZdbConfig, supervisor: &supervise::Client) -> Result<Self, ZdbError> {
        let servers = config
            .servers
            .iter()
            .map(|server| Server::new(config, server.clone(), supervisor.clone()).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let mut book = Book::open(&config.book).map_err(ZdbError::Book)?;
        for server in &servers {
            if let Some(names) = server.names_on_disk() {
                let ours = names.into_iter().filter(|name| parse(name).is_some());
                book.set(server.pool(), ours.collect()).map_err(ZdbError::Book)?;
            }
        }
        servers.iter().for_each(Server::have_started);
        Ok(Self { servers, changing: Mutex::default(), book: Mutex::new(book) })
    }

    /// Makes a namespace, or finds it made.
    ///
    /// # Errors
    /// [`ZdbError`].
    pub fn provision(&self, id: &WorkloadId, zdb: &Zdb) -> Result<ZdbResult, ZdbError> {
        let (name, wanted) = (file_name(id).ok_or(ZdbError::Name)?, check(zdb)?);
        // Those that are about to answer may have the most room.
        self.servers.iter().for_each(|server| server.wait());
        self.change(|servers| self.make(servers, id, &name, &wanted))
    }

    /// Changes a namespace's size, password and publicity.
    ///
    /// # Errors
    /// It would shrink or change its mode, the disk has no room: it is as before. See [`ZdbError`].
    pub fn update(&self, id: &WorkloadId, zdb: &Zdb) -> Result<ZdbResult, ZdbError> {
        let (name, wanted) = (file_name(id).ok_or(ZdbError::Name)?, check(zdb)?);
        self.change(|servers| {
            let Some((server, mut admin)) = find(servers, &name)? else {
                self.must_be_absent(&name)?;
                return Err(ZdbError::Absent(id.clone()));
            };
            let info = admin.info(&name)?.ok_or_else(|| ZdbError::Absent(id.clone()))?;
            if info.mode != wanted.mode {
                return Err(ZdbError::OtherMode);
            }
            if wanted.size < info.size_max {
                return Err(ZdbError::Shrinks);
            }
            take(&mut admin, server, wanted.size - info.size_max)?;
            admin.open_to(&name, &wanted)?;
            admin.resize(&name, wanted.size)?;
            Ok(server.result(&name))
        })
    }

    /// Lets nobody read or write, until [`Zdbs::thaw`]. It stays so over restarts.
    ///
    /// # Errors
    /// [`ZdbError`].
    pub fn freeze(&self, id: &WorkloadId) -> Result<(), ZdbError> {
        self.set_frozen(id, true)
    }

    /// Lets its users in again.
    ///
    /// # Errors
    /// [`ZdbError`].
    pub fn thaw(&self, id: &WorkloadId) -> Result<(), ZdbError> {
        self.set_frozen(id, false)
    }

    /// Removes a namespace with all its data, wherever it is. What is not there is no error. What a disk has
    /// that is missing is nobody's when it comes back.
    ///
    /// # Errors
    /// A server that may have it can't be asked; to repeat it is safe.
    pub fn remove(&self, id: &WorkloadId) -> Result<(), ZdbError> {
        let name = file_name(id).ok_or(ZdbError::Name)?;
        self.change(|servers| {
            if let Some((server, mut admin)) = find(servers, &name)? {
                admin.remove(&name)?;
                tracing::info!(%id, pool = server.pool(), "namespace removed");
            }
            self.book().forget(&name).map_err(ZdbError::Book)
        })
    }

    /// Namespaces of all servers; of one that can't be asked, those that its disk has; and those of disks
    /// that are missing. Those of a server of which neither says anything are not among them:
    /// [`Zdbs::provision`] makes none of all these elsewhere.
    pub fn inventory(&self) -> Vec<WorkloadId> {
        let mut ids = Vec::new();
        for server in &self.servers {
            let names = server.admin().and_then(|mut admin| admin.names());
            match names.or_else(|error| server.names_on_disk().ok_or(error)) {
                Ok(names) => ids.extend(names.iter().filter_map(|name| parse(name))),
                Err(error) => tracing::warn!(%error, "what its disk has is not known"),
            }
        }
        ids.extend(self.book().missing(self.is_there()).filter_map(|(name, _)| parse(name)));
        ids
    }

    /// Bytes that are promised of each pool, by its name; without the pools whose servers can't be asked.
    pub fn promised(&self) -> BTreeMap<String, u64> {
        let promised = self.servers.iter().filter_map(|server| {
            let promised = server.admin().and_then(|mut admin| admin.promised());
            Some((server.pool().to_owned(), promised.ok()?))
        });
        promised.collect()
    }

    /// What is wrong with servers, by their pools' names. One that is just being started does not answer
    /// either.
    pub fn check(&self) -> BTreeMap<String, String> {
        let broken = self.servers.iter().filter_map(|server| {
            let error = server.admin().err()?;
            Some((server.pool().to_owned(), error.to_string()))
        });
        broken.collect()
    }

    fn set_frozen(&self, id: &WorkloadId, is_frozen: bool) -> Result<(), ZdbError> {
        let name = file_name(id).ok_or(ZdbError::Name)?;
        self.change(|servers| match find(servers, &name)? {
            Some((_, mut admin)) => admin.set_frozen(&name, is_frozen),
            None => {
                self.must_be_absent(&name)?;
                Err(ZdbError::Absent(id.clone()))
            }
        })
    }

    /// Makes a namespace, or finds it.
    fn make(
        &self,
        servers: &[Arc<Server>],
        id: &WorkloadId,
        name: &str,
        wanted: &Wanted<'_>,
    ) -> Result<ZdbResult, ZdbError> {
        if let Some((server, mut admin)) = find(servers, name)? {
            let info = admin.info(name)?.ok_or_else(|| ZdbError::Absent(id.clone()))?;
            if info.size_max == 0 {
                // Every namespace of ours has a quota; this one was never anybody's.
                admin.remove(name)?;
                take(&mut admin, server, wanted.size)?;
                admin.make(name, wanted)?;
            } else if info.size_max < wanted.size {
                take(&mut admin, server, wanted.size - info.size_max)?;
                admin.resize(name, wanted.size)?;
            }
            return Ok(server.result(name));
        }
        self.must_be_absent(name)?;
        let (server, mut admin) = roomiest(servers, wanted.size)?;
        self.book().note(server.pool(), name).map_err(ZdbError::Book)?;
        admin.make(name, wanted)?;
        tracing::info!(%id, size = wanted.size, pool = server.pool(), "namespace made");
        Ok(server.result(name))
    }

    /// What no server has must not be on a disk that is missing.
    fn must_be_absent(&self, name: &str) -> Result<(), ZdbError> {
        let book = self.book();
        let found = book.missing(self.is_there()).find(|(other, _)| *other == name);
        found.map_or(Ok(()), |(_, pool)| {
            Err(ZdbError::Unavailable { pool: pool.to_owned(), reason: MISSING.to_owned() })
        })
    }

    /// Whether a pool has a server.
    fn is_there(&self) -> impl Fn(&str) -> bool {
        |pool| self.servers.iter().any(|server| server.pool() == pool)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // It is written before it is changed.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, which can be repeated: once more if a server was needed that is about to answer.
    fn change<T>(
        &self,
        work: impl Fn(&[Arc<Server>]) -> Result<T, ZdbError>,
    ) -> Result<T, ZdbError> {
        let once = || {
            // What the servers know is as good after a panic as before.
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            work(&self.servers)
        };
        match once() {
            Err(ZdbError::Unavailable { .. }) if self.servers.iter().any(|it| it.is_hoped()) => {
                self.servers.iter().for_each(|server| server.wait());
                once()
            }
            done => done,
        }
    }
}

/// A namespace that a server can have.
struct Wanted<'a> {
    size: u64,
    mode: ZdbMode,
    /// Empty for none.
    password: &'a str,
    is_public: bool,
}

fn check(zdb: &Zdb) -> Result<Wanted<'_>, ZdbError> {
    let password = zdb.password.expose();
    if password == NO_PASSWORD || password.len() > PASSWORD_SIZE_MAX {
        return Err(ZdbError::Password);
    }
    // The server reads signed numbers, and takes 0 for no limit.
    if zdb.size == 0 || i64::try_from(zdb.size).is_err() {
        return Err(ZdbError::Size);
    }
    let mode = zdb.mode().ok_or(ZdbError::Mode)?;
    Ok(Wanted { size: zdb.size, mode, password, is_public: zdb.public })
}

/// The server that has a namespace. Before it is said that none has, all servers must answer, or at least
/// their disks.
fn find<'a>(
    servers: &'a [Arc<Server>],
    name: &str,
) -> Result<Option<(&'a Server, Admin)>, ZdbError> {
    let mut unavailable = None;
    for server in servers {
        match server.admin().and_then(|mut admin| Ok((admin.info(name)?, admin))) {
            Ok((Some(_), admin)) => return Ok(Some((server, admin))),
            Ok((None, _)) => {}
            Err(error) => {
                let names = server.names_on_disk();
                if names.is_none_or(|names| names.iter().any(|other| other == name)) {
                    unavailable = Some(error);
                }
            }
        }
    }
    unavailable.map_or(Ok(None), Err)
}

/// Of the servers with enough room, the one with the most. Without any, those that could not be asked
/// are to blame, if there are such.
fn roomiest(servers: &[Arc<Server>], size: u64) -> Result<(&Server, Admin), ZdbError> {
    let mut best: Option<(u64, &Server, Admin)> = None;
    let mut unavailable = None;
    for server in servers {
        let asked = server.admin().and_then(|mut admin| Ok((admin.promised()?, admin)));
        let (promised, admin) = match asked {
            Ok(answer) => answer,
            Err(error) => {
                unavailable = Some(error);
                continue;
            }
        };
        let left = server.size().saturating_sub(promised);
        if left >= size && best.as_ref().is_none_or(|(most, ..)| left > *most) {
            best = Some((left, server, admin));
        }
    }
    let best = best.map(|(_, server, admin)| (server, admin));
    best.ok_or_else(|| unavailable.unwrap_or(ZdbError::Full))
}

/// Whether a server has so much more.
fn take(admin: &mut Admin, server: &Server, more: u64) -> Result<(), ZdbError> {
    let left = server.size().saturating_sub(admin.promised()?);
    if more <= left { Ok(()) } else { Err(ZdbError::Full) }
}

#[cfg(test)]
mod tests {
    use hostd_grid::secret::SecretText;

    use super::*;

    #[test]
    fn what_a_server_would_misunderstand_is_refused() {
        let zdb = |size, mode: &str, password: &str| Zdb {
            size,
            mode_name: mode.to_owned(),
            password: SecretText::new(password),
            public: false,
        };
        let error = |zdb: &Zdb| check(zdb).err().map(|error| error.to_string());
        assert_eq!(error(&zdb(1, "user", "")), None);
        assert_eq!(error(&zdb(1, "seq", &"x".repeat(63))), None);
        assert_eq!(error(&zdb(1, "block", "")).unwrap(), "invalid mode");
        assert_eq!(error(&zdb(0, "user", "")).unwrap(), "invalid size");
        assert_eq!(error(&zdb(u64::MAX, "user", "")).unwrap(), "invalid size");
        for password in ["*", &"x".repeat(64)] {
            let text = error(&zdb(1, "user", password)).unwrap();
            assert!(text.starts_with("a zdb password has at most 63"), "{text}");
            assert!(!text.contains(&"x".repeat(64)));
        }
    }
}
