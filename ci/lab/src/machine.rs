//! A machine: described, booted, talked to, and made to suffer.
//!
//! ```text
//!   MachineBuilder ──boot──► Machine ──power_cut, shutdown, drop──► off
//!                               │  ▲
//!                               └──┘ reset
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use boot_image::{Flavour, Initramfs, KernelPackage};
use lab_agent::wire::{DATA_SIZE_MAX, Exec, Power, Reply, Request};
use serde_json::{Value, json};

use crate::console::Console;
use crate::disk::Disk;
use crate::error::LabError;
use crate::folder::Folder;
use crate::host::Accelerator;
use crate::link::{Link, LinkError, Output, Pending, Running};
use crate::network::Network;
use crate::qemu::{self, Card, Description, HOT_SLOT_COUNT};
use crate::qmp::{Qmp, QmpError};
use crate::{agent, programs, spawn};

/// A command's time limit, unless it is given one.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// What a machine may take longer than a limit that its agent watches.
const GRACE: Duration = Duration::from_secs(30);
/// How long QEMU may take to open its sockets, or to end after it was told to.
const QEMU_TIMEOUT: Duration = Duration::from_secs(30);
/// What is kept of each of a command's outputs, in bytes, unless told otherwise.
const OUTPUT_SIZE_MAX: usize = 16 << 20;
/// A guest whose instructions are counted runs slower than its own clock by up to this.
const COUNTING_SLOWNESS: u32 = 20;

/// A machine to be booted. A clone describes an equal machine.
#[derive(Debug, Clone)]
pub struct MachineBuilder {
    folder: Arc<Folder>,
    name: String,
    flavour: Flavour,
    accelerator: Accelerator,
    counts_instructions: bool,
    cpu_count: u32,
    memory_mib: u32,
    modules: Vec<String>,
    cmdline: Vec<String>,
    disks: Vec<Disk>,
    networks: Vec<(Network, Option<String>)>,
    files: Vec<(String, u32, Source)>,
    programs: Vec<PathBuf>,
    own_image: Option<(PathBuf, PathBuf)>,
    may_reboot: bool,
    boot_timeout: Duration,
    life: Duration,
    qemu_arguments: Vec<String>,
}

#[derive(Debug, Clone)]
enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
}

impl MachineBuilder {
    pub(crate) fn new(folder: Arc<Folder>, name: &str) -> Self {
        Self {
            folder,
            name: name.to_owned(),
            flavour: Flavour::Cloud,
            accelerator: Accelerator::probe(),
            counts_instructions: false,
            cpu_count: 2,
            memory_mib: 512,
            modules: Vec::new(),
            cmdline: Vec::new(),
            disks: Vec::new(),
            networks: Vec::new(),
            files: Vec::new(),
            programs: Vec::new(),
            own_image: None,
            may_reboot: false,
            boot_timeout: Duration::from_secs(120),
            life: Duration::from_secs(600),
            qemu_arguments: Vec::new(),
        }
    }

    /// Which of Debian's kernels; the cloud one unless told otherwise, it boots faster.
    #[must_use]
    pub fn kernel(self, flavour: Flavour) -> Self {
        Self { flavour, ..self }
    }

    /// Boots a kernel and an initramfs of the caller's. There is no agent in it: only the
    /// console, the power, disks and links can be used.
    #[must_use]
    pub fn own_image(self, kernel: &Path, initramfs: &Path) -> Self {
        Self { own_image: Some((kernel.to_path_buf(), initramfs.to_path_buf())), ..self }
    }

    /// Words for the kernel's command line, in addition to the lab's.
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline.push(words.to_owned());
        self
    }

    /// Main memory; 512 MiB unless told otherwise.
    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    /// CPUs; 2 unless told otherwise.
    #[must_use]
    pub fn cpus(self, cpu_count: u32) -> Self {
        Self { cpu_count, ..self }
    }

    /// Modules to load at boot, with what they need; `"name parameter=value"` is fine. Disks,
    /// network cards and the agent's port have theirs anyway.
    #[must_use]
    pub fn modules(mut self, names: &[&str]) -> Self {
        self.modules.extend(names.iter().map(|&name| name.to_owned()));
        self
    }

    /// Loads the module that makes `/dev/kvm` work inside.
    #[must_use]
    pub fn nested_kvm(self) -> Self {
        let accelerator =
            if self.counts_instructions { Accelerator::Tcg } else { self.accelerator };
        self.modules(&[accelerator.nested_kvm_module()])
    }

    /// Counts instructions: one CPU, no hardware, deterministic. See the crate's story.
    #[must_use]
    pub fn count_instructions(self) -> Self {
        let accelerator = Accelerator::Tcg;
        Self { counts_instructions: true, cpu_count: 1, accelerator, ..self }
    }

    /// A disk, in the order of calls: the first is `/dev/vda`.
    #[must_use]
    pub fn disk(mut self, disk: &Disk) -> Self {
        self.disks.push(disk.clone());
        self
    }

    /// A network card without address, in the order of calls: the first is card 0.
    #[must_use]
    pub fn network(mut self, network: &Network) -> Self {
        self.networks.push((network.clone(), None));
        self
    }

    /// A network card with an address, like `10.0.0.1/24`, set when the machine is up.
    #[must_use]
    pub fn network_address(mut self, network: &Network, address: &str) -> Self {
        self.networks.push((network.clone(), Some(address.to_owned())));
        self
    }

    /// A file in the machine's root.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.to_owned(), mode, Source::Bytes(data.into())));
        self
    }

    /// A file of this host in the machine's root: a static program, say.
    #[must_use]
    pub fn host_file(mut self, path: &str, mode: u32, source: &Path) -> Self {
        self.files.push((path.to_owned(), mode, Source::File(source.to_path_buf())));
        self
    }

    /// A program of this host, at the same path, with the libraries it is linked to.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.programs.push(path.into());
        self
    }

    /// Lets the machine reboot; otherwise a reboot ends it, which shows a panic at once.
    #[must_use]
    pub fn may_reboot(self) -> Self {
        Self { may_reboot: true, ..self }
    }

    /// How long it may take until the agent answers; 120 s unless told otherwise.
    #[must_use]
    pub fn boot_timeout(self, boot_timeout: Duration) -> Self {
        Self { boot_timeout, ..self }
    }

    /// After this it is switched off, whatever it is doing; 10 minutes unless told otherwise.
    #[must_use]
    pub fn life(self, life: Duration) -> Self {
        Self { life, ..self }
    }

    /// Arguments for QEMU that the lab has no word for.
    #[must_use]
    pub fn qemu_arguments(mut self, arguments: &[&str]) -> Self {
        self.qemu_arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Boots it and waits for its agent.
    ///
    /// # Errors
    ///
    /// [`LabError`]: what is described can't be made, QEMU can't be started, or the machine
    /// ends or stays silent.
    pub fn boot(self) -> Result<Machine, LabError> {
        self.check()?;
        let serial = self.folder.next_serial();
        let work = self.folder.work().join(format!("m{serial}"));
        fs::create_dir(&work).map_err(LabError::io("create folder", &work))?;
        let (kernel, initramfs) = self.image(&work)?;
        for disk in &self.disks {
            disk.prepare()?;
        }
        let cards = self.cards();
        let description = self.describe(&work, kernel, initramfs, cards.clone(), serial);
        let machine = Machine { inner: Arc::new(Inner::start(&self, &description, serial)?) };
        if description.agent.is_some() {
            machine.wait_ready(self.boot_timeout)?;
            for ((_, address), card) in self.networks.iter().zip(&cards) {
                if let Some(address) = address {
                    machine.run(&["/init", "address", &card.mac, address])?.success()?;
                }
            }
        }
        Ok(machine)
    }

    fn check(&self) -> Result<(), LabError> {
        let fail = |reason: &str| {
            let reason = reason.to_owned();
            Err(LabError::Description { machine: self.name.clone(), reason })
        };
        if self.counts_instructions && self.cpu_count != 1 {
            return fail("instructions can be counted on one CPU only");
        }
        if self.cpu_count == 0 || self.memory_mib < 64 {
            return fail("a machine needs a CPU and 64 MiB");
        }
        if self.disks.iter().any(|disk| disk.name().len() > 20 || disk.name().contains(',')) {
            return fail("a disk's name has at most 20 characters and no comma");
        }
        Ok(())
    }

    /// The kernel and the initramfs to boot.
    fn image(&self, work: &Path) -> Result<(PathBuf, PathBuf), LabError> {
        if let Some(own) = &self.own_image {
            return Ok(own.clone());
        }
        let error = |error: &dyn std::error::Error| LabError::BootImage(chain(error));
        let kernel = KernelPackage::fetch(self.flavour, self.folder.cache());
        let kernel = kernel.map_err(|e| error(&e))?;
        let bytes = self.initramfs(&kernel)?;
        let path = work.join("initramfs.cpio");
        fs::write(&path, bytes).map_err(LabError::io("write", &path))?;
        // Without its compression: that of the full flavour takes longer than all the rest.
        let vmlinux = kernel.vmlinux().map_err(|e| error(&e))?;
        Ok((vmlinux, path))
    }

    fn initramfs(&self, kernel: &KernelPackage) -> Result<Vec<u8>, LabError> {
        let error = |error: &dyn std::error::Error| LabError::BootImage(chain(error));
        let mut image = Initramfs::new();
        let mut fill = || -> Result<(), boot_image::initramfs::InitramfsError> {
            image.char_device("dev/console", 0o600, 5, 1)?;
            let mut modules = vec!["virtio_pci", "virtio_console", "virtio_blk", "virtio_net"];
            modules.extend(self.modules.iter().map(String::as_str));
            image.modules(&kernel.modules()?, &modules)?;
            for (path, mode, source) in &self.files {
                match source {
                    Source::Bytes(bytes) => image.file(path, *mode, bytes.clone())?,
                    Source::File(source) => image.host_file(path, *mode, source)?,
                };
            }
            Ok(())
        };
        fill().map_err(|e| error(&e))?;
        let mut add = |path: &str, source: &Path| {
            image.host_file(path, 0o755, source).map(drop).map_err(|e| error(&e))
        };
        add("init", &agent::ensure(self.folder.cache())?)?;
        let mut closure = std::collections::BTreeMap::new();
        for program in &self.programs {
            closure.append(&mut programs::closure(program)?);
        }
        for (path, source) in &closure {
            add(path, source)?;
        }
        image.build().map_err(|e| error(&e))
    }

    fn cards(&self) -> Vec<Card> {
        let card = |(index, (network, _)): (usize, &(Network, Option<String>))| {
            let [_, a, b, c] = self.folder.next_serial().to_be_bytes();
            Card {
                id: format!("nic{index}"),
                mac: format!("52:54:00:{a:02x}:{b:02x}:{c:02x}"),
                network: network.path().to_path_buf(),
            }
        };
        self.networks.iter().enumerate().map(card).collect()
    }

    fn describe(
        &self,
        work: &Path,
        kernel: PathBuf,
        initramfs: PathBuf,
        cards: Vec<Card>,
        serial: u32,
    ) -> Description {
        // A panic restarts at once, which ends a machine that may not reboot; the timer check
        // fails on hosts that are busy; self-tests of ciphers would be half of a boot.
        let own = "console=ttyS0 panic=-1 no_timer_check cryptomgr.notests random.trust_cpu=on";
        let words: Vec<&str> =
            [own].into_iter().chain(self.cmdline.iter().map(String::as_str)).collect();
        let lab = self.folder.name();
        Description {
            title: format!("lab-{lab}-{}-{}-{serial}", self.name, std::process::id()),
            accelerator: self.accelerator,
            counts_instructions: self.counts_instructions,
            cpu_count: self.cpu_count,
            memory_mib: self.memory_mib,
            kernel,
            initramfs,
            cmdline: words.join(" "),
            disks: self.disks.clone(),
            cards,
            console: work.join("console"),
            monitor: work.join("monitor"),
            agent: self.own_image.is_none().then(|| work.join("agent")),
            may_reboot: self.may_reboot,
            extra: self.qemu_arguments.clone(),
        }
    }
}

/// An error and its sources, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// A running machine. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    inner: Arc<Inner>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.inner.kill();
    }
}

impl Machine {
    /// Runs a command and waits for its end, at most 60 s.
    ///
    /// # Errors
    ///
    /// As [`Running::wait`]. That the command fails or times out is no error here; see
    /// [`Output::success`].
    pub fn run(&self, argv: &[&str]) -> Result<Output, LabError> {
        self.command(argv).run()
    }

    /// A command with more to say about it.
    pub fn command(&self, argv: &[&str]) -> Command<'_> {
        let exec = Exec {
            timeout_ms: 0,
            argv: argv.iter().map(|&arg| arg.to_owned()).collect(),
            ..Exec::default()
        };
        Command { machine: self, exec, timeout: COMMAND_TIMEOUT, output_size_max: OUTPUT_SIZE_MAX }
    }

    /// Writes a file; `mode` is for one that isn't there yet.
    ///
    /// # Errors
    ///
    /// [`LabError::Refused`] when it can't be written, and when the machine fails.
    pub fn push(&self, path: &str, mode: u32, data: &[u8]) -> Result<(), LabError> {
        let mut pieces = data.chunks(DATA_SIZE_MAX).peekable();
        let mut piece = pieces.next().unwrap_or_default();
        let mut append = false;
        loop {
            let sync = pieces.peek().is_none();
            let (path, data) = (path.to_owned(), piece.to_vec());
            let request = Request::WriteFile { append, sync, mode, path: path.clone(), data };
            match self.inner.ask(&request, &format!("write {path}"))?.end {
                Some(Reply::Done) => {}
                end => return Err(self.inner.refused(&format!("write {path}"), end)),
            }
            let Some(next) = pieces.next() else { return Ok(()) };
            (piece, append) = (next, true);
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`LabError::Refused`] when it can't be read, and when the machine fails.
    pub fn pull(&self, path: &str) -> Result<Vec<u8>, LabError> {
        let mut whole = Vec::new();
        let size = u32::try_from(DATA_SIZE_MAX).unwrap_or(u32::MAX);
        loop {
            let offset = whole.len() as u64;
            let request = Request::ReadFile { offset, size, path: path.to_owned() };
            match self.inner.ask(&request, &format!("read {path}"))?.end {
                Some(Reply::Data(piece)) if piece.is_empty() => return Ok(whole),
                Some(Reply::Data(piece)) => whole.extend(piece),
                end => return Err(self.inner.refused(&format!("read {path}"), end)),
            }
        }
    }

    /// The CPU's time stamp counter: executed instructions, if the machine counts them.
    ///
    /// # Errors
    ///
    /// When the machine fails.
    pub fn tsc(&self) -> Result<u64, LabError> {
        let end = self.inner.ask(&Request::TimeStamp, "time stamp")?.end;
        match &end {
            Some(Reply::Data(bytes)) if bytes.len() == 8 => {
                let bytes = bytes.first_chunk().copied().unwrap_or_default();
                Ok(u64::from_le_bytes(bytes))
            }
            _ => Err(self.inner.refused("time stamp", end)),
        }
    }

    /// The time stamp counter when the agent began: what the firmware and kernel took.
    #[must_use]
    pub fn boot_tsc(&self) -> u64 {
        *self.inner.boot_tsc.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs a network card's cable in or out.
    ///
    /// # Errors
    ///
    /// [`LabError::Qmp`] for a card that isn't there, and when the machine is off.
    pub fn set_link(&self, card_index: usize, is_up: bool) -> Result<(), LabError> {
        let arguments = json!({ "name": format!("nic{card_index}"), "up": is_up });
        self.qmp("set_link", &arguments).map(drop)
    }

    /// Plugs a disk in, while the machine runs; returns the name to unplug it by.
    ///
    /// # Errors
    ///
    /// [`LabError::Description`] when all slots have been used, [`LabError::Qmp`] when QEMU
    /// refuses.
    pub fn add_disk(&self, disk: &Disk) -> Result<String, LabError> {
        let slot = self.inner.hot_slots.fetch_add(1, Ordering::Relaxed);
        if slot >= HOT_SLOT_COUNT {
            return Err(LabError::Description {
                machine: self.inner.name.clone(),
                reason: format!("all {HOT_SLOT_COUNT} slots for more disks have been used"),
            });
        }
        disk.prepare()?;
        let (node, id) = (format!("hb{slot}"), format!("hotdisk{slot}"));
        for block_node in disk.block_nodes(&node) {
            self.qmp("blockdev-add", &block_node)?;
        }
        self.qmp("device_add", &disk.device(&node, &id, &qemu::hot_slot(slot)))?;
        Ok(id)
    }

    /// Unplugs a disk that was plugged in, and waits until the machine has let it go.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] when it doesn't let go, [`LabError::Qmp`] when QEMU refuses.
    pub fn remove_disk(&self, id: &str) -> Result<(), LabError> {
        let cursor = self.inner.qmp.cursor();
        self.qmp("device_del", &json!({ "id": id }))?;
        let is_gone = |event: &Value| {
            event.get("event").is_some_and(|name| name == "DEVICE_DELETED")
                && event.pointer("/data/device").is_some_and(|device| device == id)
        };
        let gone = self.inner.qmp.wait_event(cursor, QEMU_TIMEOUT, is_gone);
        gone.map(drop).map_err(|error| self.inner.qmp_error(error, "device_del"))
    }

    /// Any command of QEMU's control protocol.
    ///
    /// # Errors
    ///
    /// [`LabError::Qmp`] when QEMU refuses, [`LabError::Off`] when it has ended.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value, LabError> {
        let answer = self.inner.qmp.execute(command, arguments);
        answer.map_err(|error| self.inner.qmp_error(error, command))
    }

    /// Pulls the plug: the machine is off at once, and what it had not flushed is for its disks
    /// to show.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] when QEMU can't be killed.
    pub fn power_cut(&self) -> Result<(), LabError> {
        self.inner.kill();
        Ok(())
    }

    /// Presses the reset button, and waits for the agent. Needs [`MachineBuilder::may_reboot`].
    ///
    /// # Errors
    ///
    /// As [`MachineBuilder::boot`].
    pub fn reset(&self, timeout: Duration) -> Result<(), LabError> {
        self.qmp("system_reset", &json!({}))?;
        self.inner.link()?.reset();
        self.wait_ready(timeout)
    }

    /// Waits for the agent: after a reboot that the machine began itself.
    ///
    /// # Errors
    ///
    /// As [`MachineBuilder::boot`].
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), LabError> {
        let ready = self.inner.link()?.wait_ready(self.inner.patience(timeout));
        let tsc = ready.map_err(|error| self.inner.link_error(error, "answer from the agent"))?;
        *self.inner.boot_tsc.lock().unwrap_or_else(PoisonError::into_inner) = tsc;
        Ok(())
    }

    /// Has the machine switch itself off, after its kernel has flushed its disks.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] when it doesn't.
    pub fn shutdown(&self) -> Result<(), LabError> {
        self.power(Power::Off)?;
        self.wait_off(QEMU_TIMEOUT)
    }

    /// Has the machine's kernel panic; it then reboots, or ends if it may not.
    ///
    /// # Errors
    ///
    /// [`LabError::Off`] when it is off already.
    pub fn panic(&self) -> Result<(), LabError> {
        self.power(Power::Panic)
    }

    /// Has the machine reboot in good order. [`Self::wait_ready`] waits for its return.
    ///
    /// # Errors
    ///
    /// [`LabError::Off`] when it is off already.
    pub fn reboot(&self) -> Result<(), LabError> {
        let cursor = self.inner.qmp.cursor();
        self.power(Power::Reboot)?;
        let is_reset = |event: &Value| event.get("event").is_some_and(|name| name == "RESET");
        let reset = self.inner.qmp.wait_event(cursor, QEMU_TIMEOUT, is_reset);
        reset.map(drop).map_err(|error| self.inner.qmp_error(error, "reboot"))
    }

    /// Waits until the machine is off.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] when it isn't in time.
    pub fn wait_off(&self, timeout: Duration) -> Result<(), LabError> {
        if self.inner.qmp.wait_closed(self.inner.patience(timeout)) {
            self.inner.kill();
            return Ok(());
        }
        Err(self.inner.timed_out("power-off", timeout))
    }

    /// Waits until the console has shown a text.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] when it hasn't in time.
    pub fn wait_console(&self, needle: &str, timeout: Duration) -> Result<(), LabError> {
        let patience = self.inner.patience(timeout);
        if self.inner.console.wait_for(needle, patience) {
            return Ok(());
        }
        Err(self.inner.timed_out(&format!("{needle:?} on the console"), timeout))
    }

    /// What the console has shown.
    #[must_use]
    pub fn console(&self) -> String {
        self.inner.console.text()
    }

    /// QEMU's process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.inner.child().id()
    }

    fn power(&self, power: Power) -> Result<(), LabError> {
        let sent = self.inner.link()?.begin(&Request::Power(power), 0);
        sent.map(drop).map_err(|error| self.inner.link_error(error, "power"))
    }
}

/// A command to be run in a machine.
#[derive(Debug, Clone)]
#[must_use = "nothing happens before run or spawn"]
pub struct Command<'a> {
    machine: &'a Machine,
    exec: Exec,
    timeout: Duration,
    output_size_max: usize,
}

impl Command<'_> {
    /// The agent kills it after this; 60 s unless told otherwise.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.exec.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The folder to run it in; `/` unless told otherwise.
    pub fn current_dir(mut self, path: &str) -> Self {
        self.exec.cwd = path.to_owned();
        self
    }

    /// Its standard input, at most 512 KiB; push a file for more.
    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.exec.stdin = bytes.to_vec();
        self
    }

    /// How much of each of its outputs is kept, in bytes; 16 MiB unless told otherwise.
    pub fn output_size_max(self, output_size_max: usize) -> Self {
        Self { output_size_max, ..self }
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// [`LabError::Description`] when the input is too large, and when the machine fails.
    pub fn spawn(mut self) -> Result<Running, LabError> {
        let inner = &self.machine.inner;
        let size = self.exec.stdin.len();
        if size > DATA_SIZE_MAX {
            let reason = format!("{size} bytes of input are more than {DATA_SIZE_MAX}");
            return Err(LabError::Description { machine: inner.name.clone(), reason });
        }
        self.exec.timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let argv = self.exec.argv.clone();
        let begun = inner.link()?.begin(&Request::Exec(self.exec), self.output_size_max);
        let id = begun.map_err(|error| inner.link_error(error, "command"))?;
        let timeout = inner.patience(self.timeout).saturating_add(GRACE);
        Ok(Running { machine: Arc::clone(inner), id, argv, timeout })
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    ///
    /// As [`Running::wait`].
    pub fn run(self) -> Result<Output, LabError> {
        self.spawn()?.wait()
    }
}

/// What a machine is made of.
#[derive(Debug)]
pub(crate) struct Inner {
    name: String,
    folder: Arc<Folder>,
    child: Mutex<Child>,
    qmp: Qmp,
    link: Option<Link>,
    console: Console,
    qemu_log: PathBuf,
    counts_instructions: bool,
    boot_tsc: Mutex<u64>,
    hot_slots: AtomicUsize,
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

impl Inner {
    fn start(
        builder: &MachineBuilder,
        description: &Description,
        serial: u32,
    ) -> Result<Self, LabError> {
        let log =
            |what: &str| builder.folder.logs().join(format!("{}-{serial}.{what}", builder.name));
        let (epoch, qemu_log, console_log) = (Instant::now(), log("qemu"), log("console"));
        let listen = |path: &Path| {
            let listener = UnixListener::bind(path).map_err(LabError::io("listen on", path))?;
            listener.set_nonblocking(true).map_err(LabError::io("listen on", path))?;
            Ok::<_, LabError>((listener, path.to_path_buf()))
        };
        let console = listen(&description.console)?;
        let monitor = listen(&description.monitor)?;
        let agent = description.agent.as_deref().map(listen).transpose()?;
        let arguments = description.arguments();
        fs::write(&qemu_log, format!("{} {arguments:?}\n", qemu::PROGRAM))
            .map_err(LabError::io("write", &qemu_log))?;
        let stderr = File::options().append(true).open(&qemu_log);
        let stderr = stderr.map_err(LabError::io("open", &qemu_log))?;
        let child = spawn::spawn(qemu::PROGRAM, &arguments, Stdio::from(stderr))
            .map_err(LabError::io("start", Path::new("setpriv")))?;
        let mut starting = Starting { child: Some(child), builder, qemu_log: &qemu_log };
        let console = starting.accept(console)?;
        let monitor = starting.accept(monitor)?;
        let agent = agent.map(|listener| starting.accept(listener)).transpose()?;
        let io = LabError::io("talk to", Path::new(qemu::PROGRAM));
        let build = || -> io::Result<_> {
            let link = agent.map(Link::start).transpose()?;
            let resetter = link.as_ref().map(Link::resetter);
            let qmp = Qmp::start(monitor, move |event| {
                let is_reset = event.get("event").is_some_and(|name| name == "RESET");
                if let (true, Some(reset)) = (is_reset, &resetter) {
                    reset();
                }
            })?;
            Ok((link, qmp, Console::start(console, File::create(&console_log)?, epoch)?))
        };
        let (link, qmp, console) = build().map_err(io)?;
        let machine = Self {
            name: builder.name.clone(),
            folder: Arc::clone(&builder.folder),
            child: Mutex::new(starting.done()?),
            qmp,
            link,
            console,
            qemu_log,
            counts_instructions: builder.counts_instructions,
            boot_tsc: Mutex::new(0),
            hot_slots: AtomicUsize::new(0),
            life: Arc::new(Life::default()),
            _networks: builder.networks.iter().map(|(network, _)| network.clone()).collect(),
        };
        machine.watch(builder.life)?;
        let capable = machine.qmp.execute("qmp_capabilities", &json!({}));
        capable.map_err(|error| machine.qmp_error(error, "qmp_capabilities"))?;
        Ok(machine)
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

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends QEMU and waits for it. More than once is fine.
    fn kill(&self) {
        *self.life.is_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.life.changed.notify_all();
        let mut child = self.child();
        // Both fail only for a process that has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// What a limit in the machine's time may be in ours.
    fn patience(&self, timeout: Duration) -> Duration {
        let factor = if self.counts_instructions { COUNTING_SLOWNESS } else { 1 };
        timeout.saturating_mul(factor)
    }

    /// Sends a short request and waits for its answer.
    fn ask(&self, request: &Request, what: &str) -> Result<Pending, LabError> {
        let link = self.link()?;
        let answer = link.begin(request, 0);
        let answer = answer.and_then(|id| link.wait_end(id, self.patience(COMMAND_TIMEOUT)));
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

    fn qmp_error(&self, error: QmpError, command: &str) -> LabError {
        match error {
            QmpError::Closed => self.off(),
            QmpError::Timeout(limit) => self.timed_out(&format!("answer to {command}"), limit),
            QmpError::Refused(reason) => {
                LabError::Qmp { machine: self.name.clone(), command: command.to_owned(), reason }
            }
        }
    }

    fn timed_out(&self, what: &str, limit: Duration) -> LabError {
        self.folder.keep_logs();
        LabError::Timeout {
            machine: self.name.clone(),
            what: what.to_owned(),
            limit,
            tail: self.console.tail(),
            logs: self.folder.logs().to_path_buf(),
        }
    }

    fn off(&self) -> LabError {
        // Its sockets close a moment before it can be waited for.
        self.qmp.wait_closed(QEMU_TIMEOUT);
        self.kill();
        self.folder.keep_logs();
        let status = self.child().wait().map_or_else(|e| e.to_string(), |s| s.to_string());
        let reason = format!("{status}{}{}", words(&self.qemu_log), self.console.tail());
        let logs = self.folder.logs().to_path_buf();
        LabError::Off { machine: self.name.clone(), reason, logs }
    }
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
    builder: &'a MachineBuilder,
    qemu_log: &'a Path,
}

impl Starting<'_> {
    /// Waits for QEMU to connect, unless it ends before.
    fn accept(&mut self, from: (UnixListener, PathBuf)) -> Result<UnixStream, LabError> {
        let (listener, path) = from;
        let deadline = Instant::now() + QEMU_TIMEOUT;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(LabError::io("accept on", &path))?;
                    return Ok(stream);
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(LabError::io("accept on", &path)(error));
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

    fn failed(&self, ended: Option<std::process::ExitStatus>) -> LabError {
        self.builder.folder.keep_logs();
        let how = ended.map_or_else(|| "no connection".to_owned(), |status| status.to_string());
        LabError::Off {
            machine: self.builder.name.clone(),
            reason: format!("{how}{}", words(self.qemu_log)),
            logs: self.builder.folder.logs().to_path_buf(),
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
