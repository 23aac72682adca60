//! One server: its settings, its process, and a way to it.
//!
//! Its settings are in a file for this user alone, because the administrator's password is among them.
//! The file is found again after a restart of the node's brain, and so is the server. When both do not
//! fit (another address, a lost file), the server is started anew: it loses nothing by that.
//!
//! Whoever asks a server waits for nobody. That it is started, and waited for, is a thread's business:
//!
//! ```text
//!             no answer                      it answers
//!   Answers ─────────────> Awaited, hoped ──────────────> Answers
//!                                │ in vain                   ▲
//!                                ▼       it answers          │
//!   a pause, no answer <──── Missed ─────────────────────────┘
//!        └─> Awaited, not hoped: nobody waits with the thread
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hostd_grid::derived::ShortId;
use hostd_grid::workload::ZdbResult;
use supervise::{Client as Supervisor, Log, Policy, Program};
use zdb_client::{Client, Endpoint, Password, Timeouts};
use zeroize::Zeroizing;

use super::namespace::{Admin, DEFAULT_NAME};
use super::{ServerConfig, ZdbConfig, ZdbError};

/// How often it is tried meanwhile.
const START_INTERVAL: Duration = Duration::from_millis(5);
/// How long a server may take to end.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Folders of a disk that are looked at.
const FOLDER_COUNT_MAX: usize = 64 * 1024;
/// How long nobody starts a server again that was waited for in vain.
const MISSED_PAUSE: Duration = Duration::from_secs(30);
/// Limits of one command.
const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(2), request: Duration::from_secs(30) };
/// Limits of a greeting, which no server that is well takes long for.
const GREETING_TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(2), request: Duration::from_secs(5) };
/// Limits of a greeting while a server is waited for, or was in vain: a thread of its own is patient with it, and
/// one that hangs must not hold up everybody who looks at all of them.
const IMPATIENT: Timeouts =
    Timeouts { connect: Duration::from_millis(200), request: Duration::from_millis(200) };
/// Random bytes of the administrator's password.
const PASSWORD_BYTES: usize = 24;
/// Bytes of a log file, and how many old ones are kept.
const LOG_SIZE_MAX: u64 = 8 << 20;
const LOG_KEPT: u32 = 2;

/// A server.
#[derive(Debug)]
pub(super) struct Server {
    config: ServerConfig,
    program: Program,
    settings: PathBuf,
    socket: PathBuf,
    supervisor: Supervisor,
    /// Longest time until it answers when it was started.
    start_time_max: Duration,
    standing: Mutex<Standing>,
    /// Told when a thread has waited for it.
    settled: Condvar,
}

/// What is known of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It answered when it was last asked.
    Answers,
    /// A thread starts it and waits for it. It is worth waiting with it if it is hoped for: it was never
    /// waited for in vain, or has answered since.
    Awaited { is_hoped: bool },
    /// It was waited for in vain until then, and has not answered since.
    Missed { since: Instant },
}

impl Server {
    /// What is needed to run it. Starts nothing.
    pub(super) fn new(
        all: &ZdbConfig,
        config: ServerConfig,
        supervisor: Supervisor,
    ) -> Result<Self, ZdbError> {
        let pool = config.disk.pool.clone();
        let name = format!("zdb-{pool}");
        let unavailable = |reason: String| ZdbError::Unavailable { pool: pool.clone(), reason };
        supervise::program::check_name(&name).map_err(|error| unavailable(error.to_string()))?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&all.runtime)
            .map_err(|error| unavailable(format!("{}: {error}", all.runtime.display())))?;
        let settings = all.runtime.join(format!("{name}.toml"));
        let socket = all.runtime.join(format!("{name}.sock"));
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| unavailable(format!("{}: no UTF-8", path.display())))
        };
        let argv = [text(&all.program)?, "--config".to_owned(), text(&settings)?];
        let mut program = Program::new(name.as_str(), argv);
        program.policy = Policy::service();
        program.network_namespace.clone_from(&config.network_namespace);
        program.log = all.logs.as_ref().map(|logs| Log {
            path: logs.join(format!("{name}.log")),
            size_max: LOG_SIZE_MAX,
            kept: LOG_KEPT,
        });
        let mut server = Self {
            config,
            program,
            settings,
            socket,
            supervisor,
            start_time_max: all.start_time_max,
            standing: Mutex::new(Standing::Answers),
            settled: Condvar::new(),
        };
        // Other settings are another program: the supervisor says so, and it is started anew.
        let version = ShortId::of(&server.public_settings()?);
        server.program.env.insert("ZDB_SETTINGS".to_owned(), version.to_string());
        Ok(server)
    }

    pub(super) fn pool(&self) -> &str {
        &self.config.disk.pool
    }

    /// Bytes that may be promised of its disk.
    pub(super) fn size(&self) -> u64 {
        self.config.disk.size
    }

    /// What a namespace's user is told.
    pub(super) fn result(&self, name: &str) -> ZdbResult {
        ZdbResult {
            namespace: name.to_owned(),
            ips: self.config.addresses.iter().map(ToString::to_string).collect(),
            port: self.config.port,
        }
    }

    /// Names of the namespaces that its disk has; none if the disk does not say.
    pub(super) fn names_on_disk(&self) -> Option<Vec<String>> {
        let folders = fs::read_dir(self.config.disk.path.join("data")).ok()?;
        let names = folders.take(FOLDER_COUNT_MAX).map(|folder| folder.map(|it| it.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>().ok()?;
        let names: Vec<_> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        // What is mounted nowhere is an empty folder, and every server has this one.
        names.iter().any(|name| name == DEFAULT_NAME).then_some(names)
    }

    /// The administrator's connection to it, if it answers at once. If it does not, it is started.
    pub(super) fn admin(self: &Arc<Self>) -> Result<Admin, ZdbError> {
        let asked = self.ask();
        match &asked {
            Ok(_) => {
                let mut standing = self.standing();
                if matches!(*standing, Standing::Missed { .. }) {
                    *standing = Standing::Answers;
                }
            }
            Err(_) => self.have_started(),
        }
        asked
    }

    fn ask(&self) -> Result<Admin, ZdbError> {
        let unavailable = |error: &dyn std::fmt::Display| self.unavailable(error.to_string());
        let settings = fs::read_to_string(&self.settings).map(Zeroizing::new);
        let settings = settings.map_err(|error| unavailable(&format!("its settings: {error}")))?;
        let password = password_of(&settings);
        let password = password.ok_or_else(|| unavailable(&"its settings are not ours"))?;
        // First whether it is there at all: what it is asked then may take longer.
        let is_well = *self.standing() == Standing::Answers;
        let limits = if is_well { &GREETING_TIMEOUTS } else { &IMPATIENT };
        let greeted = self.connect(&password, limits);
        greeted
            .and_then(|_| self.connect(&password, &TIMEOUTS))
            .map_err(|error| unavailable(&error))
    }

    /// Has a thread start it and wait for it, unless one does or did a moment ago.
    pub(super) fn have_started(self: &Arc<Self>) {
        let is_hoped = {
            let mut standing = self.standing();
            let is_hoped = match *standing {
                Standing::Answers => true,
                Standing::Missed { since } if since.elapsed() >= MISSED_PAUSE => false,
                Standing::Awaited { .. } | Standing::Missed { .. } => return,
            };
            *standing = Standing::Awaited { is_hoped };
            is_hoped
        };
        let server = Arc::clone(self);
        let starting = move || server.settle(server.admin_within(server.start_time_max), is_hoped);
        let thread = std::thread::Builder::new().name(self.program.name.clone());
        if let Err(error) = thread.spawn(starting) {
            self.settle(Err(self.unavailable(error.to_string())), is_hoped);
        }
    }

    /// It was waited for.
    fn settle(&self, admin: Result<Admin, ZdbError>, is_hoped: bool) {
        let now = match admin {
            Ok(_) => Standing::Answers,
            Err(error) => {
                if is_hoped {
                    tracing::error!(%error, "a zdb server does not start");
                }
                Standing::Missed { since: Instant::now() }
            }
        };
        *self.standing() = now;
        self.settled.notify_all();
    }

    /// Whether it is about to answer, as far as anybody can know.
    pub(super) fn is_hoped(&self) -> bool {
        *self.standing() == Standing::Awaited { is_hoped: true }
    }

    /// Waits while it is about to answer.
    pub(super) fn wait(&self) {
        let limit = self.start_time_max + STOP_GRACE;
        let is_hoped = |standing: &mut Standing| *standing == Standing::Awaited { is_hoped: true };
        // Whoever waits asks it afterwards, whatever came of it.
        drop(self.settled.wait_timeout_while(self.standing(), limit, is_hoped));
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admin_within(&self, patience: Duration) -> Result<Admin, ZdbError> {
        let password = self.password()?;
        self.start()?;
        let deadline = Instant::now() + patience;
        let mut was_anew = false;
        loop {
            let refused = match self.connect(&password, &GREETING_TIMEOUTS) {
                Ok(admin) => return Ok(admin),
                Err(error) => error,
            };
            if refused.is_refusal() && !was_anew {
                // It runs with a password that was lost.
                was_anew = true;
                self.stop()?;
                self.start()?;
            } else if Instant::now() >= deadline {
                return Err(self.unavailable(refused.to_string()));
            }
            std::thread::sleep(START_INTERVAL);
        }
    }

    fn connect(
        &self,
        password: &str,
        timeouts: &Timeouts,
    ) -> Result<Admin, zdb_client::ClientError> {
        let endpoint = Endpoint::Unix(self.socket.clone());
        let mut client = Client::connect(&endpoint, timeouts)?;
        client.auth(&Password::new(password))?;
        Ok(Admin::new(self.pool(), client))
    }

    fn start(&self) -> Result<(), ZdbError> {
        let started = match self.supervisor.start(&self.program, &[]) {
            Err(error) if error.is_conflict() => {
                self.stop()?;
                self.supervisor.start(&self.program, &[])
            }
            other => other,
        };
        started.map(drop).map_err(|error| self.unavailable(error.to_string()))
    }

    fn stop(&self) -> Result<(), ZdbError> {
        let stopped = self.supervisor.stop(&self.program.name, STOP_GRACE);
        stopped.map(drop).map_err(|error| self.unavailable(error.to_string()))
    }

    /// All settings but the password, as TOML: its strings are JSON's.
    fn public_settings(&self) -> Result<String, ZdbError> {
        let disk = &self.config.disk.path;
        let quoted = |path: &Path| {
            let text = path.to_str().and_then(|text| serde_json::to_string(text).ok());
            text.ok_or_else(|| self.unavailable(format!("{}: no UTF-8", path.display())))
        };
        Ok(format!(
            "data = {}\nindex = {}\nlisten = \"{}\"\nport = {}\nsocket = {}\ndualnet = true\n\
             protect = true\n",
            quoted(&disk.join("data"))?,
            quoted(&disk.join("index"))?,
            self.config.listen,
            self.config.port,
            quoted(&self.socket)?,
        ))
    }

    /// The administrator's password: of the settings if they are as they should be, else new ones are
    /// written with the same or another.
    fn password(&self) -> Result<Zeroizing<String>, ZdbError> {
        let public = self.public_settings()?;
        let old = fs::read_to_string(&self.settings).map(Zeroizing::new).ok();
        let kept = old.as_ref().and_then(|text| password_of(text));
        let password = match kept {
            Some(password) => password,
            None => random_password().map_err(|error| self.unavailable(error.to_string()))?,
        };
        let text = Zeroizing::new(format!("{public}admin = \"{}\"\n", *password));
        if old.as_ref() != Some(&text) {
            let written = write_private(&self.settings, text.as_bytes());
            let path = self.settings.display();
            written.map_err(|error| self.unavailable(format!("{path}: {error}")))?;
        }
        Ok(password)
    }

    fn unavailable(&self, reason: String) -> ZdbError {
        ZdbError::Unavailable { pool: self.pool().to_owned(), reason }
    }
}

fn password_of(settings: &str) -> Option<Zeroizing<String>> {
    let rest = settings.lines().find_map(|line| line.strip_prefix("admin = \""))?;
    let password = rest.strip_suffix('"')?;
    let is_ours = password.len() == 2 * PASSWORD_BYTES
        && password.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_ours.then(|| Zeroizing::new(password.to_owned()))
}

fn random_password() -> io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; PASSWORD_BYTES]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(Zeroizing::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// A file for this user alone, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_password_is_found_again_and_only_in_a_private_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zdb.toml");
        let password = random_password().unwrap();
        assert_eq!(password.len(), 48);
        assert_ne!(*password, *random_password().unwrap());
        let text = format!("port = 1\nadmin = \"{}\"\n", *password);
        write_private(&path, text.as_bytes()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let found = password_of(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(found, password);
        for broken in ["", "admin = \"short\"", "admin = \"", "admin = 1"] {
            assert!(password_of(broken).is_none());
        }
    }
}
