//! The QEMU process behind a machine, with its connections and its end.
//!
//! ```text
//!   listen on sockets ── start QEMU ── accept each ──► running ──► ended
//!                             │                          ▲  │
//!                             └── ended: its own words   │  └── killed, life over, own end
//!                                 are the error          └── reset
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab_agent::wire::{Reply, Request};
use serde_json::json;

use crate::console::Console;
use crate::error::LabError;
use crate::folder::Folder;
use crate::link::{Link, LinkError, Pending};
use crate::network::Network;
use crate::qemu::{self, Card, Description};
use crate::qmp::{Qmp, QmpError};
use crate::spawn;

/// How long QEMU may take to open its sockets, or to end after it was told to.
pub(crate) const QEMU_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at what the processors of a stuck machine do.
const STATE_INTERVAL: Duration = Duration::from_millis(100);
/// How long QEMU may take from closing its monitor to its end.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the agent may take to answer a request that isn't a command.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// A guest whose instructions are counted runs slower than its own clock by up to this.
const COUNTING_SLOWNESS: u32 = 20;

/// What a process is started from.
pub(crate) struct Birth {
    /// The machine's name.
    pub(crate) name: String,
    /// Tells the logs of machines of one name apart.
    pub(crate) serial: u32,
    /// Where the logs go.
    pub(crate) folder: Arc<Folder>,
    /// After this it is killed.
    pub(crate) life: Duration,
    /// What it is connected to.
    pub(crate) networks: Vec<Network>,
    /// What QEMU is told.
    pub(crate) description: Description,
}

/// A QEMU process and what it is made of.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) qmp: Qmp,
    pub(crate) console: Console,
    /// Its network cards.
    pub(crate) cards: Vec<Card>,
    /// The time stamp counter when the agent started.
    pub(crate) boot_tsc: AtomicU64,
    /// How many slots for disks have been used.
    pub(crate) hot_slots: AtomicUsize,
    link: Option<Link>,
    child: Mutex<Child>,
    folder: Arc<Folder>,
    qemu_log: PathBuf,
    counts_instructions: bool,
    life: Arc<Life>,
    /// Keeps the networks until the machine has ended.
    _networks: Vec<Network>,
}

/// Whether the machine's time is over, or need no longer be watched.
#[derive(Debug, Default)]
struct Life {
    is_ended: Mutex<bool>,
    changed: Condvar,
}

impl Process {
    /// Starts QEMU and takes up its connections.
    pub(crate) fn start(birth: Birth) -> Result<Self, LabError> {
        let log = |what: &str| {
            birth.folder.logs().join(format!("{}-{}.{what}", birth.name, birth.serial))
        };
        let (epoch, qemu_log, console_log) = (Instant::now(), log("qemu"), log("console"));
        let description = &birth.description;
        let monitor = listen(&description.monitor)?;
        let agent = description.agent.as_deref().map(listen).transpose()?;
        let child = start_qemu(description, &qemu_log)?;
        let mut starting = Starting { child: Some(child), birth: &birth, qemu_log: &qemu_log };
        let monitor = starting.accept(&monitor)?;
        let agent = agent.map(|listener| starting.accept(&listener)).transpose()?;
        let connect = || -> io::Result<_> {
            let console = File::open(&description.console)?;
            let console = Console::start(console, File::create(&console_log)?, epoch)?;
            let link = agent.map(Link::start).transpose()?;
            let qmp = start_qmp(monitor, link.as_ref(), console.clone())?;
            Ok((link, qmp, console))
        };
        let (link, qmp, console) =
            connect().map_err(LabError::io("talk to", Path::new(qemu::PROGRAM)))?;
        let child = Mutex::new(starting.done()?);
        let process = Self {
            name: birth.name,
            qmp,
            console,
            cards: birth.description.cards,
            boot_tsc: AtomicU64::new(0),
            hot_slots: AtomicUsize::new(0),
            link,
            child,
            folder: birth.folder,
            counts_instructions: birth.description.counts_instructions,
            life: Arc::new(Life::default()),
            _networks: birth.networks,
            qemu_log,
        };
        process.watch(birth.life)?;
        let capable = process.qmp.execute("qmp_capabilities", &json!({}));
        capable.map_err(|error| process.qmp_error(error, "qmp_capabilities"))?;
        Ok(process)
    }

    /// Has a thread switch the machine off when its life is over.
    fn watch(&self, life_max: Duration) -> Result<(), LabError> {
        let life = Arc::clone(&self.life);
        let process_id = self.child().id();
        let name = self.name.clone();
        let watch = move || {
            let is_ended = life.is_ended.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = life.changed.wait_timeout_while(is_ended, life_max, |ended| !*ended);
            let (is_ended, _) = waited.unwrap_or_else(PoisonError::into_inner);
            // While it isn't marked as ended, nobody has waited for the process, and its id
            // can't have become another's.
            if !*is_ended {
                eprintln!("lab: machine {name} is switched off after {} s", life_max.as_secs());
                let id = i32::try_from(process_id).ok().and_then(rustix::process::Pid::from_raw);
                if let Some(id) = id {
                    let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
                }
            }
        };
        let started = thread::Builder::new().name("lab-life".to_owned()).spawn(watch);
        started.map(drop).map_err(LabError::io("start a thread for", Path::new(&self.name)))
    }

    pub(crate) fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends QEMU and waits for it. More than once is fine.
    pub(crate) fn kill(&self) {
        *self.life.is_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.life.changed.notify_all();
        let mut child = self.child();
        // Both fail only for a process that has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Waits for a QEMU that has closed its monitor, so that its exit status is its own: its
    /// sockets close a moment before it can be waited for. One that doesn't end is killed.
    pub(crate) fn let_end(&self) {
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.child().try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    /// What a limit in the machine's time may be in ours.
    pub(crate) fn patience(&self, timeout: Duration) -> Duration {
        let factor = if self.counts_instructions { COUNTING_SLOWNESS } else { 1 };
        timeout.saturating_mul(factor)
    }

    /// Sends a short request and waits for its answer.
    pub(crate) fn ask(&self, request: &Request, what: &str) -> Result<Pending, LabError> {
        let link = self.link()?;
        let answer = link.begin(request, 0);
        let answer = answer.and_then(|id| link.wait_end(id, self.patience(ASK_TIMEOUT)));
        answer.map_err(|error| self.link_error(error, what))
    }

    /// The agent's port.
    pub(crate) fn link(&self) -> Result<&Link, LabError> {
        self.link.as_ref().ok_or_else(|| LabError::Description {
            machine: self.name.clone(),
            reason: "an image of the caller's has no agent".to_owned(),
        })
    }

    /// An answer that is none.
    pub(crate) fn refused(&self, what: &str, end: Option<Reply>) -> LabError {
        let reason = match end {
            Some(Reply::Failed(reason)) => reason,
            other => format!("unexpected answer {other:?}"),
        };
        LabError::Refused { machine: self.name.clone(), what: what.to_owned(), reason }
    }

    /// The lab's words for a failure of the port.
    pub(crate) fn link_error(&self, error: LinkError, what: &str) -> LabError {
        match error {
            LinkError::Closed(None) => self.off(),
            LinkError::Closed(Some(source)) => {
                LabError::Wire { machine: self.name.clone(), source }
            }
            LinkError::Timeout(limit) => self.timed_out(what, limit),
            LinkError::Reset => LabError::Reset { machine: self.name.clone() },
        }
    }

    pub(crate) fn qmp_error(&self, error: QmpError, command: &str) -> LabError {
        match error {
            QmpError::Closed => self.off(),
            QmpError::Timeout(limit) => self.timed_out(&format!("answer to {command}"), limit),
            QmpError::Refused(reason) => {
                LabError::Qmp { machine: self.name.clone(), command: command.to_owned(), reason }
            }
        }
    }

    pub(crate) fn timed_out(&self, what: &str, limit: Duration) -> LabError {
        self.folder.keep_logs(true);
        self.record_processors();
        LabError::Timeout {
            machine: self.name.clone(),
            what: what.to_owned(),
            limit,
            tail: self.console.tail(),
            logs: self.folder.logs().to_path_buf(),
        }
    }

    /// What the processors are at goes into the log of QEMU twice, a moment apart: a machine that is
    /// stuck and one that waits look alike from outside. One that can't tell any more is left in peace.
    fn record_processors(&self) {
        let Ok(mut log) = File::options().append(true).open(&self.qemu_log) else { return };
        for command in ["info registers -a", "info lapic", "info registers -a"] {
            let arguments = json!({ "command-line": command });
            let Ok(answer) = self.qmp.execute("human-monitor-command", &arguments) else { return };
            let text = answer.as_str().unwrap_or_default();
            if writeln!(log, "== {command}\n{text}").is_err() {
                return;
            }
            thread::sleep(STATE_INTERVAL);
        }
    }

    fn off(&self) -> LabError {
        self.qmp.wait_closed(QEMU_TIMEOUT);
        self.let_end();
        self.folder.keep_logs(true);
        let status = self.child().wait().map_or_else(|e| e.to_string(), |s| s.to_string());
        let reason = format!("{status}{}{}", words(&self.qemu_log), self.console.tail());
        let logs = self.folder.logs().to_path_buf();
        LabError::Off { machine: self.name.clone(), reason, logs }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn listen(path: &Path) -> Result<(UnixListener, PathBuf), LabError> {
    let listener = UnixListener::bind(path);
    let listener = listener.and_then(|it| it.set_nonblocking(true).map(|()| it));
    Ok((listener.map_err(LabError::io("listen on", path))?, path.to_path_buf()))
}

fn start_qemu(description: &Description, qemu_log: &Path) -> Result<Child, LabError> {
    let arguments = description.arguments();
    fs::write(qemu_log, format!("{} {arguments:?}\n", qemu::PROGRAM))
        .map_err(LabError::io("write", qemu_log))?;
    let stderr = File::options().append(true).open(qemu_log);
    let stderr = stderr.map_err(LabError::io("open", qemu_log))?;
    spawn::spawn(qemu::PROGRAM, &arguments, Stdio::from(stderr))
        .map_err(LabError::io("start", Path::new("setpriv")))
}

/// The monitor, which tells the agent's port of resets, and the console of the end.
fn start_qmp(monitor: UnixStream, link: Option<&Link>, console: Console) -> io::Result<Qmp> {
    let resetter = link.map(Link::resetter);
    Qmp::start(monitor, move |event| {
        let Some(event) = event else { return console.complete() };
        let is_reset = event.get("event").is_some_and(|name| name == "RESET");
        if let (true, Some(reset)) = (is_reset, &resetter) {
            reset();
        }
    })
}

/// QEMU's own messages: what follows its command line in its log.
fn words(qemu_log: &Path) -> String {
    let text = fs::read_to_string(qemu_log).unwrap_or_default();
    let said = text.split_once('\n').map_or("", |(_, said)| said).trim();
    if said.is_empty() { String::new() } else { format!("\nqemu: {said}") }
}

/// QEMU between its start and the last of its connections. Dropping it ends it.
struct Starting<'a> {
    child: Option<Child>,
    birth: &'a Birth,
    qemu_log: &'a Path,
}

impl Starting<'_> {
    /// Waits for QEMU to connect, unless it ends before.
    fn accept(&mut self, from: &(UnixListener, PathBuf)) -> Result<UnixStream, LabError> {
        let (listener, path) = from;
        let deadline = Instant::now() + QEMU_TIMEOUT;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(LabError::io("accept on", path))?;
                    return Ok(stream);
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(LabError::io("accept on", path)(error));
                }
                Err(_) => {}
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                return Err(self.failed(ended));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn failed(&self, ended: Option<ExitStatus>) -> LabError {
        self.birth.folder.keep_logs(true);
        let how = ended.map_or_else(|| "no connection".to_owned(), |status| status.to_string());
        LabError::Off {
            machine: self.birth.name.clone(),
            reason: format!("{how}{}", words(self.qemu_log)),
            logs: self.birth.folder.logs().to_path_buf(),
        }
    }

    fn done(mut self) -> Result<Child, LabError> {
        self.child.take().ok_or_else(|| self.failed(None))
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
