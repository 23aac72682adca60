//! What a machine is to be, and the making of what it boots.
//!
//! A description costs nothing until [`MachineBuilder::boot`], and can be cloned: the same
//! machine is booted again after a power cut that way.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use boot_image::{Flavour, Initramfs, KernelPackage};

use crate::disk::Disk;
use crate::error::LabError;
use crate::folder::Folder;
use crate::host::Accelerator;
use crate::machine::Machine;
use crate::network::Network;
use crate::process::{Birth, Process};
use crate::qemu::{Cable, Card, Description};
use crate::{agent, programs};

/// The address of a machine's card that leads to this host; QEMU's choice.
pub(crate) const HOST_NETWORK_ADDRESS: &str = "10.0.2.15";

/// A machine to be booted. A clone describes an equal machine.
#[derive(Debug, Clone)]
pub struct MachineBuilder {
    folder: Arc<Folder>,
    name: String,
    flavour: Flavour,
    accelerator: Accelerator,
    counts_instructions: bool,
    cpu_count: Option<u32>,
    has_nested_kvm: bool,
    memory_mib: u32,
    modules: Vec<String>,
    cmdline: Vec<String>,
    disks: Vec<Disk>,
    cables: Vec<(Plug, Option<String>)>,
    files: Vec<(String, u32, Source)>,
    programs: Vec<PathBuf>,
    linked: Vec<PathBuf>,
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

#[derive(Debug, Clone)]
enum Plug {
    Network(Network),
    Host,
}

impl MachineBuilder {
    pub(crate) fn new(folder: Arc<Folder>, name: &str) -> Self {
        Self {
            folder,
            name: name.to_owned(),
            flavour: Flavour::Cloud,
            accelerator: Accelerator::probe(),
            counts_instructions: false,
            cpu_count: None,
            has_nested_kvm: false,
            memory_mib: 512,
            modules: Vec::new(),
            cmdline: Vec::new(),
            disks: Vec::new(),
            cables: Vec::new(),
            files: Vec::new(),
            programs: Vec::new(),
            linked: Vec::new(),
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

    /// CPUs; 2 unless told otherwise, or 1 if the machine has an emulated `/dev/kvm`
    /// ([`nested_kvm`](Self::nested_kvm)).
    #[must_use]
    pub fn cpus(self, cpu_count: u32) -> Self {
        Self { cpu_count: Some(cpu_count), ..self }
    }

    /// Modules to load at boot, with what they need; `"name parameter=value"` is fine. Disks,
    /// network cards and the agent's port have theirs anyway.
    #[must_use]
    pub fn modules(mut self, names: &[&str]) -> Self {
        self.modules.extend(names.iter().map(|&name| name.to_owned()));
        self
    }

    /// Loads the module that makes `/dev/kvm` work inside.
    ///
    /// Where that is emulated, such a machine has one CPU, because QEMU 7.2 is no good hypervisor's CPU with more:
    ///
    /// - When KVM has injected an interrupt and the emulated CPU is asked to leave its loop before the guest's
    ///   next exit, without an interrupt for it (another CPU's turn, a flush of translations), the same interrupt
    ///   is delivered to the guest once more, even into its handler. Guests were seen to wait for ever for the
    ///   lock of a run queue that they held themselves.
    /// - A CPU that translates code while another one patches it can miss the second half of the patch, and then
    ///   traps on a breakpoint that is no longer there; until QEMU 8.1, which locks pages meanwhile.
    #[must_use]
    pub fn nested_kvm(self) -> Self {
        let module = self.used_accelerator().nested_kvm_module();
        Self { has_nested_kvm: true, ..self }.modules(&[module])
    }

    fn used_accelerator(&self) -> Accelerator {
        if self.counts_instructions { Accelerator::Tcg } else { self.accelerator }
    }

    fn used_cpu_count(&self) -> u32 {
        let has_emulated_kvm = self.has_nested_kvm && self.used_accelerator() == Accelerator::Tcg;
        self.cpu_count.unwrap_or(if has_emulated_kvm { 1 } else { 2 })
    }

    /// Counts instructions: one CPU, no hardware, deterministic. See the crate's story.
    #[must_use]
    pub fn count_instructions(self) -> Self {
        let accelerator = Accelerator::Tcg;
        Self { counts_instructions: true, cpu_count: Some(1), accelerator, ..self }
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
        self.cables.push((Plug::Network(network.clone()), None));
        self
    }

    /// A network card with an address, like `10.0.0.1/24`, set when the machine is up.
    #[must_use]
    pub fn network_address(mut self, network: &Network, address: &str) -> Self {
        self.cables.push((Plug::Network(network.clone()), Some(address.to_owned())));
        self
    }

    /// A network card, in the order of calls, that leads to this host: what listens on this
    /// host's 127.0.0.1 the machine reaches at 10.0.2.2, and [`Machine::forward_tcp`] leads
    /// the other way. The machine gets no route to anywhere else.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.cables.push((Plug::Host, Some(format!("{HOST_NETWORK_ADDRESS}/24"))));
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

    /// All files below a folder of this host, with their permissions: below `path` in the machine.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] when a folder can't be read.
    pub fn host_folder(mut self, path: &str, source: &Path) -> Result<Self, LabError> {
        const READ: &str = "read folder";
        for entry in fs::read_dir(source).map_err(LabError::io(READ, source))? {
            let entry = entry.map_err(LabError::io(READ, source))?;
            let path = format!("{path}/{}", entry.file_name().to_string_lossy());
            let metadata = entry.metadata().map_err(LabError::io(READ, &entry.path()))?;
            if metadata.is_dir() {
                self = self.host_folder(&path, &entry.path())?;
            } else if metadata.is_file() {
                self = self.host_file(&path, metadata.mode() & 0o7777, &entry.path());
            }
        }
        Ok(self)
    }

    /// A program of this host, at the same path, with the libraries it is linked to.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.programs.push(path.into());
        self
    }

    /// Only the libraries that a program of this host is linked to, at the same paths: for one that comes to the
    /// machine in another way, on a disk say.
    #[must_use]
    pub fn libraries_of(mut self, program: impl Into<PathBuf>) -> Self {
        self.linked.push(program.into());
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
        let description = self.describe(&work, kernel, initramfs, serial);
        let has_agent = description.agent.is_some();
        let process = Process::start(Birth {
            name: self.name.clone(),
            serial,
            folder: Arc::clone(&self.folder),
            life: self.life,
            networks: self.cables.iter().filter_map(|(plug, _)| plug.network().cloned()).collect(),
            description,
        })?;
        let machine = Machine { process: Arc::new(process) };
        if has_agent {
            machine.wait_ready(self.boot_timeout)?;
        }
        Ok(machine)
    }

    fn check(&self) -> Result<(), LabError> {
        let fail = |reason: &str| {
            let reason = reason.to_owned();
            Err(LabError::Description { machine: self.name.clone(), reason })
        };
        if self.counts_instructions && self.used_cpu_count() != 1 {
            return fail("instructions can be counted on one CPU only");
        }
        if self.used_cpu_count() == 0 || self.memory_mib < 64 {
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
        let mut closure = BTreeMap::new();
        for program in &self.programs {
            closure.append(&mut programs::closure(program)?);
        }
        for program in &self.linked {
            let mut libraries = programs::closure(program)?;
            libraries.remove(&*program.to_string_lossy());
            closure.append(&mut libraries);
        }
        for (path, source) in &closure {
            add(path, source)?;
        }
        image.build().map_err(|e| error(&e))
    }

    fn cards(&self) -> Vec<Card> {
        let card = |(index, (plug, address)): (usize, &(Plug, Option<String>))| {
            let [_, a, b, c] = self.folder.next_serial().to_be_bytes();
            Card {
                id: format!("nic{index}"),
                mac: format!("52:54:00:{a:02x}:{b:02x}:{c:02x}"),
                cable: plug
                    .network()
                    .map_or(Cable::Host, |network| Cable::Network(network.path().to_path_buf())),
                address: address.clone(),
            }
        };
        self.cables.iter().enumerate().map(card).collect()
    }

    fn describe(
        &self,
        work: &Path,
        kernel: PathBuf,
        initramfs: PathBuf,
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
            cpu_count: self.used_cpu_count(),
            memory_mib: self.memory_mib,
            kernel,
            initramfs,
            cmdline: words.join(" "),
            disks: self.disks.clone(),
            cards: self.cards(),
            console: work.join("console"),
            monitor: work.join("monitor"),
            agent: self.own_image.is_none().then(|| work.join("agent")),
            may_reboot: self.may_reboot,
            extra: self.qemu_arguments.clone(),
        }
    }
}

impl Plug {
    fn network(&self) -> Option<&Network> {
        match self {
            Self::Network(network) => Some(network),
            Self::Host => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_booted_is_refused_before_anything_is_made() {
        let lab = crate::Lab::new("unit-builder").unwrap();
        let machine = || lab.machine("n1");
        let long = Disk::file("a-name-of-more-than-20-characters", Path::new("/x"));
        for (builder, rule) in [
            (machine().count_instructions().cpus(2), "one CPU"),
            (machine().memory_mib(16), "64 MiB"),
            (machine().cpus(0), "a CPU"),
            (machine().disk(&long), "20 characters"),
        ] {
            let error = builder.boot().unwrap_err();
            assert!(matches!(error, LabError::Description { .. }), "{error}");
            assert!(error.to_string().contains(rule), "{error}");
        }
    }

    #[test]
    fn a_description_says_whose_machine_it_is_and_where_its_cables_lead() {
        let lab = crate::Lab::new("unit-builder").unwrap();
        let lan = lab.network("lan").unwrap();
        let builder = lab.machine("n1").cmdline("a=1").network_address(&lan, "10.0.0.1/24");
        let builder = builder.network(&lan).host_network();
        let description = builder.describe(Path::new("/w"), "/k".into(), "/i".into(), 7);
        assert!(description.title.starts_with("lab-unit-builder-n1-"));
        assert!(description.cmdline.ends_with(" a=1"), "{}", description.cmdline);
        let cards = &description.cards;
        let addresses: Vec<_> = cards.iter().map(|card| card.address.as_deref()).collect();
        assert_eq!(addresses, [Some("10.0.0.1/24"), None, Some("10.0.2.15/24")]);
        assert!(matches!(cards[2].cable, Cable::Host));
        assert_ne!(cards[0].mac, cards[1].mac);
    }
}
