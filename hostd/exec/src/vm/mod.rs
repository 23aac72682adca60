//! Virtual machines: one `vmm` process each, started by the supervisor, which outlives us.
//!
//! ```text
//!   Order ──spec──► vm.json ──┐
//!   CiData ──write─► cidata ──┼──► supervise: vm-ID = vmm run --config vm.json ──► log/console.log
//!   Record ──write─► folder ──┘          │ ▲
//!                                        │ └─ ended: off (again, not counted), crashed (again, 4 times)
//!                       api socket ◄─────┘    pause, resume, power button
//! ```
//!
//! What runs is what the supervisor says runs, and what is to run is what the folder says
//! ([`record`]): nothing is remembered. A machine's name there is `vm-` and the 13 characters that are
//! derived from its id.
//!
//! A machine that is a whole disk is started by `disk-boot`, which finds the kernel that is on the disk
//! now and becomes its VMM. A reset of such a guest ends the VMM, so that it goes on with the kernel that
//! it has installed.
//!
//! | module | what |
//! |---|---|
//! | [`entry`] | command and environment, as the guest's init reads them |
//! | [`cidata`] | the disk that tells a guest who it is |
//! | [`spec`] | the VMM's description |
//! | [`record`] | what is kept of a machine |
//! | [`api`] | asking its VMM |
//! | [`rehearsal`] | whether a machine would run |
//! | `arrivals` | hearing that it listens |
//!
//! Networks, disks and images belong to other rooms; [`crate::machine`] brings them together.

pub mod api;
mod arrivals;
pub mod cidata;
pub mod entry;
pub mod record;
pub mod rehearsal;
pub mod spec;

use std::fs::DirBuilder;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hostd_grid::derived::WorkloadId;
use supervise::client::{ClientError, News, Watch};
use supervise::{Client, Limits, Log, Outcome, Policy, Program, Status};
use vmm_spec::api::State;
use vmm_spec::{Exit, SpecError};

use api::ApiError;
use arrivals::Arrivals;
use cidata::{CiData, CiDataError};
use record::{Record, Records};
use spec::{Boot, Files, Order};

/// Pause between two looks at a VMM whose socket is there but does not answer yet: it is being made, or
/// was left by one that is dead. That it appears, and the VMM's end, are told at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// How long a VMM is waited for when all machines are looked at, one after the other.
const LOOK_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a guest may take to switch itself off when asked to.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long a VMM may take to end.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Bytes of a console's log, after which the next file is begun; one older file is kept.
const LOG_SIZE_MAX: u64 = 4 << 20;
/// What a VMM takes beside its guest's memory: itself, and pages of the disks that it reads and writes,
/// which the kernel takes back when it must.
const MEMORY_OVERHEAD: u64 = 512 << 20;
/// Threads of a VMM beside those of its guest's processors.
const THREADS_OVERHEAD: u32 = 128;
/// Ends that are no crashes: the guest switched itself off, or asked for a reset that is none of the
/// machine's ([`Boot::Disk`]).
const CLEAN: [Exit; 2] = [Exit::Off, Exit::ResetRefused];
/// When memory runs out, others end first; that much a machine is spared on existing nodes.
const OOM_SCORE_ADJ: i16 = -200;
/// Bytes of a log's end that are looked at for a reason.
const REASON_SIZE_MAX: u64 = 2048;

/// Where things are.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Folder of what is kept of machines.
    pub state: PathBuf,
    /// Folder of sockets, which goes with the machine's power.
    pub runtime: PathBuf,
    /// The `vmm` program.
    pub vmm: PathBuf,
    /// The `disk-boot` program, without which no machine is a whole disk.
    pub disk_boot: Option<PathBuf>,
    /// The kernel of images that bring none.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initramfs: PathBuf,
    /// The socket of the block cache.
    pub cache: PathBuf,
    /// How long a VMM may take until it answers.
    pub start_time_max: Duration,
}

impl VmConfig {
    /// How long a VMM may take until it answers: it reserves all of its guest's memory before.
    pub const START_TIME_MAX: Duration = Duration::from_secs(60);
}

/// Why something was not done with a machine. The text reaches its owner.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The system says no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The supervisor says no.
    #[error(transparent)]
    Supervisor(#[from] ClientError),
    /// There can be no such machine.
    #[error("no such machine can be made: {0}")]
    Spec(#[from] SpecError),
    /// It can't be told who it is.
    #[error(transparent)]
    CiData(#[from] CiDataError),
    /// Its VMM says no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// It ended at once.
    #[error("the machine did not start: its VMM {how}{}", said(.log))]
    Ended {
        /// How.
        how: Outcome,
        /// What it said last.
        log: String,
    },
    /// It says nothing.
    #[error("the machine did not start: its VMM did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// There is none.
    #[error("there is no machine {0}")]
    Absent(WorkloadId),
}

fn said(log: &str) -> String {
    let last = log.lines().rev().map(str::trim).find(|line| !line.is_empty());
    last.map_or_else(String::new, |line| format!(": {line}"))
}

/// The whole lines at the end of a guest's console.
fn last_words(log: &str) -> String {
    let whole = match log.split_once('\n') {
        Some((_, rest)) if log.len() as u64 >= REASON_SIZE_MAX => rest,
        _ => log,
    };
    match whole.trim() {
        "" => String::new(),
        words => format!("; its console ended with:\n{words}"),
    }
}

/// All machines of a node.
#[derive(Debug)]
pub struct Vms {
    config: VmConfig,
    records: Records,
    supervisor: Client,
}

impl Vms {
    /// Opens the folders, or makes them.
    ///
    /// # Errors
    /// The system says no.
    pub fn open(config: VmConfig, supervisor: Client) -> io::Result<Self> {
        let records = Records::open(config.state.clone())?;
        DirBuilder::new().recursive(true).mode(0o700).create(&config.runtime)?;
        Ok(Self { config, records, supervisor })
    }

    /// What is kept of machines.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// What the supervisor says of a machine.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self, id: &WorkloadId) -> Result<Option<Status>, VmError> {
        Ok(self.supervisor.find(&name(id))?)
    }

    /// Starts a machine that has a record, or finds it started. When it fails, nothing runs.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn start(&self, id: &WorkloadId, order: &Order, told: &CiData) -> Result<(), VmError> {
        let folder = self.records.folder(id);
        let files = self.files(id);
        let spec = order.spec(&files)?;
        self.runtime(id)?;
        // A folder of its own: whoever sends the log somewhere sees nothing else.
        make_folder(&folder.join("log"))?;
        told.write(&files.cidata)?;
        let description = folder.join("vm.json");
        let io =
            |source| VmError::Io { what: "the machine's description can't be written", source };
        crate::kept::write_whole(&description, spec.spec().to_json()?.as_bytes()).map_err(io)?;
        self.run(id, &self.program(id, &description, order))
    }

    fn run(&self, id: &WorkloadId, program: &Program) -> Result<(), VmError> {
        let mut watch = self.supervisor.watch()?;
        // Listened to before there can be anything to hear.
        let arrivals = Arrivals::of(&self.runtime(id)?);
        match self.supervisor.start(program, &[]) {
            // One runs, of another description: it is left as it is.
            Err(error) if error.is_conflict() => return Ok(()),
            other => other?,
        };
        let socket = self.socket(id);
        let limit = self.config.start_time_max;
        let deadline = Instant::now() + limit;
        let failure = loop {
            // One that is there but does not serve yet keeps who asks waiting until it does.
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(State::Running | State::Paused) = api::state_within(&socket, left) {
                return Ok(());
            }
            match end_of(&program.name, &mut watch)? {
                // A guest that is quick to switch itself off, or to ask for a reset, has run.
                Some(Outcome::Status(code)) if CLEAN.iter().any(|exit| exit.code() == code) => {
                    return Ok(());
                }
                Some(how) => {
                    let log = record::tail(&self.log(id), REASON_SIZE_MAX);
                    break VmError::Ended { how, log };
                }
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break VmError::Silent(limit);
            }
            match &arrivals {
                Ok(arrivals) if !socket.exists() => arrivals.wait(watch.as_fd(), left),
                _ => std::thread::sleep(LOOK_INTERVAL.min(left)),
            }
        };
        self.supervisor.stop(&program.name, STOP_GRACE)?;
        Err(failure)
    }

    fn program(&self, id: &WorkloadId, description: &Path, order: &Order) -> Program {
        let memory_max = order.memory.saturating_add(MEMORY_OVERHEAD);
        Program {
            log: Some(Log { path: self.log(id), size_max: LOG_SIZE_MAX, kept: 1 }),
            policy: Policy::machine(&CLEAN.map(Exit::code), &[Exit::Usage.code()]),
            limits: Limits {
                memory_max: Some(memory_max),
                pids_max: Some(THREADS_OVERHEAD + u32::from(order.cpus)),
                cpu_max_percent: None,
            },
            network_namespace: order.namespace.clone(),
            oom_score_adj: OOM_SCORE_ADJ,
            ..Program::new(name(id), self.argv(description, order))
        }
    }

    fn argv(&self, description: &Path, order: &Order) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut argv = Vec::new();
        if let (Boot::Disk { folder }, Some(program)) = (&order.boot, &self.config.disk_boot) {
            argv.extend([text(program), "run".into(), "--into".into(), text(folder)]);
            argv.extend(["--words".into(), spec::WORDS_FOR_DISKS.into()]);
            argv.extend(order.whole_disk().map(text));
            argv.push("--".into());
        }
        argv.extend([text(&self.config.vmm), "run".into(), "--config".into(), text(description)]);
        argv
    }

    /// Stops its processors.
    ///
    /// # Errors
    /// It does not run, or does not answer.
    pub fn pause(&self, id: &WorkloadId) -> Result<(), VmError> {
        self.switch(id, State::Paused, "pause")
    }

    /// Goes on.
    ///
    /// # Errors
    /// It does not run, or does not answer.
    pub fn resume(&self, id: &WorkloadId) -> Result<(), VmError> {
        self.switch(id, State::Running, "resume")
    }

    fn switch(&self, id: &WorkloadId, wanted: State, how: &str) -> Result<(), VmError> {
        let socket = self.socket(id);
        if api::state(&socket)? == wanted {
            return Ok(());
        }
        Ok(api::put(&socket, how)?)
    }

    /// Ends a machine: by its power button, and if its guest does not obey, without asking it. What
    /// is kept of it stays.
    ///
    /// # Errors
    /// The supervisor does not answer.
    pub fn stop(&self, id: &WorkloadId) -> Result<(), VmError> {
        let mut watch = self.supervisor.watch()?;
        let name = name(id);
        let is_running = watch
            .statuses()
            .iter()
            .any(|status| status.name == name && status.state == supervise::State::Running);
        let socket = self.socket(id);
        // A guest that stands still can't hear the button.
        let asked = is_running
            && api::state(&socket).is_ok_and(|state| state == State::Running)
            && api::put(&socket, "shutdown").is_ok();
        let deadline = Instant::now() + SHUTDOWN_GRACE;
        while asked && Instant::now() < deadline {
            match watch.next(deadline.saturating_duration_since(Instant::now()))? {
                Some(News::Changed(status)) if status.name == name && status.pid.is_none() => break,
                Some(News::Removed(removed)) if removed == name => break,
                Some(_) => {}
                None => break,
            }
        }
        self.supervisor.stop(&name, STOP_GRACE)?;
        for (what, removed) in [
            ("the machine's socket can't be removed", std::fs::remove_file(&socket)),
            (
                "the machine's kernel can't be removed",
                std::fs::remove_dir_all(self.boot_folder(id)),
            ),
        ] {
            match removed {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(VmError::Io { what, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Machines that have a process, will have one again, or crashed too often, or that their owners
    /// stopped: all but those that the node lost, and those that run though they should stand still.
    ///
    /// # Errors
    /// The supervisor does not answer, or the folder can't be read.
    pub fn inventory(&self) -> Result<Vec<WorkloadId>, VmError> {
        Ok(self.divided()?.0)
    }

    /// Machines of which something is kept, and that are not whole.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub fn remains(&self) -> Result<Vec<WorkloadId>, VmError> {
        Ok(self.divided()?.1)
    }

    fn divided(&self) -> Result<(Vec<WorkloadId>, Vec<WorkloadId>), VmError> {
        let statuses = self.supervisor.list()?;
        let is_whole = |id: &WorkloadId| {
            let name = name(id);
            let is_known = statuses.iter().any(|status| status.name == name);
            match self.records.read(id) {
                Ok(Some(Record { is_stopped: true, .. })) => true,
                // Its VMM was started again, or whoever started it did not come to stopping it.
                Ok(Some(Record { is_paused: true, .. })) if is_known => {
                    let state = api::state_within(&self.socket(id), LOOK_TIME_MAX);
                    !matches!(state, Ok(State::Running))
                }
                _ => is_known,
            }
        };
        Ok(self.ids()?.into_iter().partition(is_whole))
    }

    /// Machines that are started no more, and why.
    ///
    /// # Errors
    /// The supervisor does not answer, or the folder can't be read.
    pub fn fallen(&self) -> Result<Vec<(WorkloadId, String)>, VmError> {
        let statuses = self.supervisor.list()?;
        let fallen = self.ids()?.into_iter().filter_map(|id| {
            let name = name(&id);
            let status = statuses.iter().find(|status| status.name == name)?;
            let reason = match status.state {
                supervise::State::GivenUp => format!(
                    "deleting vm due to so many crashes{}",
                    last_words(&record::tail(&self.log(&id), REASON_SIZE_MAX))
                ),
                supervise::State::Ended => format!(
                    "deleting vm, whose VMM can't be started{}",
                    said(&record::tail(&self.log(&id), REASON_SIZE_MAX))
                ),
                _ => return None,
            };
            Some((id, reason))
        });
        Ok(fallen.collect())
    }

    /// Where a machine says what it says.
    pub fn log(&self, id: &WorkloadId) -> PathBuf {
        self.records.folder(id).join("log/console.log")
    }

    /// The folder of a machine's sockets, made if it is missing.
    ///
    /// # Errors
    /// The system says no.
    pub fn runtime(&self, id: &WorkloadId) -> Result<PathBuf, VmError> {
        let folder = self.runtime_of(id);
        make_folder(&folder)?;
        Ok(folder)
    }

    /// Removes that folder. One that is not there is no error.
    ///
    /// # Errors
    /// The system says no.
    pub fn clear(&self, id: &WorkloadId) -> Result<(), VmError> {
        match std::fs::remove_dir_all(self.runtime_of(id)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(VmError::Io { what: "the folder of the machine's sockets stays", source })
            }
            _ => Ok(()),
        }
    }

    fn runtime_of(&self, id: &WorkloadId) -> PathBuf {
        self.config.runtime.join(id.device("vm").as_str())
    }

    /// Where the kernel of a whole disk is put whenever its machine starts. It is as large as a stranger
    /// makes it, so it lies in memory, which is the machine's own, and goes when the machine stops.
    pub fn boot_folder(&self, id: &WorkloadId) -> PathBuf {
        self.config.runtime.join(format!("{}.boot", id.device("vm")))
    }

    fn ids(&self) -> Result<Vec<WorkloadId>, VmError> {
        let failed = |source| VmError::Io { what: "the folder of machines can't be read", source };
        self.records.ids().map_err(failed)
    }

    fn socket(&self, id: &WorkloadId) -> PathBuf {
        // Whoever serves its console has this folder, and knows the name.
        self.runtime_of(id).join("api.sock")
    }

    fn files(&self, id: &WorkloadId) -> Files {
        Files {
            kernel: self.config.kernel.clone(),
            initramfs: self.config.initramfs.clone(),
            cache: self.config.cache.clone(),
            cidata: self.records.folder(id).join("cidata.img"),
            api: self.socket(id),
        }
    }
}

/// How a program ended, if the news that are there say so.
fn end_of(name: &str, watch: &mut Watch) -> Result<Option<Outcome>, ClientError> {
    while let Some(news) = watch.next(Duration::ZERO)? {
        let News::Changed(status) = news else { continue };
        if status.name == name
            && status.pid.is_none()
            && let Some(end) = status.last_exit
        {
            return Ok(Some(end.outcome));
        }
    }
    Ok(None)
}

fn make_folder(path: &Path) -> Result<(), VmError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| VmError::Io { what: "a folder of the machine's can't be made", source })
}

/// What the supervisor calls a machine.
pub fn name(id: &WorkloadId) -> String {
    format!("vm-{}", id.device("vm"))
}
