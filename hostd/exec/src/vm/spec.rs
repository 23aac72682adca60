//! From what a machine is to be, to the description that its VMM reads.
//!
//! Pure: which disks in which order, which words for the kernel, which limits. What is done with it,
//! and when, is [`super::Vms`]'s business.
//!
//! | image | kernel | root | writes go to |
//! |---|---|---|---|
//! | plain | the node's | virtio-fs `vroot`, below an overlay in the guest | disk with serial `rootfs` |
//! | with a kernel of its own | its own | virtio-fs `vroot`, writable | a directory with a quota |
//! | of a whole disk | the disk's, found at each start | on the owner's first disk | that disk |
//!
//! Disks that the owner mounts come first, in the owner's order, so that `/dev/vda` is the first of them
//! as on existing nodes; then `rootfs`, then `cidata`.

use std::path::{Path, PathBuf};

use hostd_grid::derived::MacAddress;
use vmm_spec::{
    BalloonSpec, CpuSpec, DiskSpec, FsSource, FsSpec, MemorySpec, NetSpec, OnReset, OutputSpec,
    Size, SpecError, VerifiedSpec, VmSpec,
};

use super::cidata::Mounted;

/// What guests of the node's kernel are told. A panic ends the guest at once; half of a stock kernel's
/// boot is tests of its own ciphers; KVM's timers are what they say.
const WORDS: &str = "rw quiet console=hvc0 reboot=k panic=-1 cryptomgr.notests \
                     rcupdate.rcu_expedited=1 i8042.noaux i8042.nomux i8042.dumbkbd pci=noearly \
                     no_timer_check tsc=reliable 8250.nr_uarts=0 root=vroot rootfstype=virtiofs \
                     rootdelay=30 guest.upper=disk";
/// What existing nodes tell kernels that came with an image.
const WORDS_OF_OTHERS: &str = "rw console=ttyS0 reboot=k panic=1 root=vroot rootfstype=virtiofs \
                               rootdelay=30 boot.shell_on_fail";
/// What kernels of whole disks are told before what their own boot loader's configuration says, which
/// wins: where somebody listens, and what existing nodes tell.
pub(super) const WORDS_FOR_DISKS: &str =
    "console=ttyS0 reboot=k panic=1 cryptomgr.notests no_timer_check";
/// The serial number of the disk that a root's changes go to; the guest's init knows it.
const ROOT_SERIAL: &str = "rootfs";
/// The tag of the root.
const ROOT_TAG: &str = "vroot";

/// What a machine is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Processors.
    pub cpus: u8,
    /// Bytes of memory; what is beyond a whole MiB is left out.
    pub memory: u64,
    /// The image's file.
    pub image: PathBuf,
    /// What boots, and where the root's changes go.
    pub boot: Boot,
    /// Disks and directories that the owner mounts, in the owner's order.
    pub mounts: Vec<Mount>,
    /// Network cards.
    pub cards: Vec<Tap>,
    /// The network namespace that their taps are in, by its file; the node's own if nothing is said.
    pub namespace: Option<PathBuf>,
}

/// What boots, and where the root's changes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// The node's kernel.
    Node {
        /// The disk that the root's changes go to.
        root: PathBuf,
    },
    /// The image's kernel.
    Image {
        /// The kernel.
        kernel: PathBuf,
        /// Its initial file system, if it has one.
        initramfs: Option<PathBuf>,
        /// The directory that the root's changes go to.
        root: PathBuf,
        /// Bytes that fit in there.
        root_size: u64,
        /// Words of the owner's command.
        entrypoint: Vec<String>,
    },
    /// The kernel that is on the first of the owner's disks, whenever the machine starts.
    Disk {
        /// The folder where it is put then.
        folder: PathBuf,
    },
}

/// Something that the owner mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its workload's name, which is a directory's tag.
    pub name: String,
    /// Where the guest mounts it.
    pub target: String,
    /// What it is.
    pub place: Place,
}

/// What an owner's mount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A disk.
    Disk {
        /// Its file.
        path: PathBuf,
        /// What the guest finds it by.
        serial: String,
    },
    /// A directory.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Bytes that fit, as the guest is told.
        size: u64,
    },
}

/// A network card's other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The tap's name.
    pub name: String,
    /// The card's address.
    pub mac: MacAddress,
    /// Largest packet, in bytes.
    pub mtu: Option<u16>,
}

/// Files of the node that every machine has, and those of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The node's kernel.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initramfs: PathBuf,
    /// The socket of the block cache.
    pub cache: PathBuf,
    /// The disk that tells the guest who it is.
    pub cidata: PathBuf,
    /// Where the VMM listens.
    pub api: PathBuf,
}

impl Order {
    /// The description, verified.
    ///
    /// # Errors
    /// The rule that is broken: a kernel's words that are too many, more devices than a machine has
    /// places.
    pub fn spec(&self, files: &Files) -> Result<VerifiedSpec, SpecError> {
        let (kernel, initramfs, cmdline) = self.kernel(files);
        let is_node = matches!(self.boot, Boot::Node { .. });
        let is_disk = matches!(self.boot, Boot::Disk { .. });
        // A kernel of somebody else's may have no driver for a virtio console.
        let (console, serial) = match is_node {
            true => (OutputSpec::Stdio, OutputSpec::Off),
            false => (OutputSpec::Off, OutputSpec::Stdio),
        };
        let spec = VmSpec {
            kernel: Some(kernel),
            initramfs,
            cmdline: Some(cmdline),
            cpus: CpuSpec { count: self.cpus.into(), ..CpuSpec::default() },
            memory: MemorySpec { size: Size::from_mib(self.memory >> 20), ..MemorySpec::default() },
            disks: self.disks(files),
            nets: self.cards.iter().map(card).collect(),
            fs: self.file_systems(files),
            rng: true,
            balloon: Some(BalloonSpec::default()),
            console,
            serial,
            on_reset: if is_disk { OnReset::Exit } else { OnReset::Reboot },
            api_socket: Some(files.api.clone()),
            ..VmSpec::default()
        };
        spec.verify()
    }

    /// The disk that the machine is, if it is one.
    pub fn whole_disk(&self) -> Option<&Path> {
        match (&self.boot, self.mounts.first()) {
            (Boot::Disk { .. }, Some(Mount { place: Place::Disk { path, .. }, .. })) => Some(path),
            _ => None,
        }
    }

    /// What the guest mounts, as `cidata` says it: of a whole disk, not itself.
    pub fn mounted(&self) -> Vec<Mounted> {
        let has_names = !matches!(self.boot, Boot::Image { .. });
        let own = usize::from(self.whole_disk().is_some());
        // A disk that nobody formatted must not keep somebody else's system from booting.
        let options = if own == 0 { "defaults" } else { "defaults,nofail" };
        let mut disk = 0;
        let mut source = |mount: &Mount| match &mount.place {
            Place::Disk { serial, .. } => {
                disk += 1;
                // Our own init finds disks by their serials, and so does cloud-init, which runs when
                // there are such links; a kernel's own init comes before them.
                let by_serial = format!("/dev/disk/by-id/virtio-{serial}");
                let source = if has_names { by_serial } else { kernel_name(disk) };
                (source, "auto")
            }
            Place::Directory { .. } => (mount.name.clone(), "virtiofs"),
        };
        let mounted = self.mounts.iter().skip(own).map(|mount| {
            let (source, kind) = source(mount);
            Mounted { source, target: mount.target.clone(), kind, options }
        });
        mounted.collect()
    }

    fn kernel(&self, files: &Files) -> (PathBuf, Option<PathBuf>, String) {
        match &self.boot {
            Boot::Node { .. } => {
                (files.kernel.clone(), Some(files.initramfs.clone()), WORDS.to_owned())
            }
            Boot::Image { kernel, initramfs, entrypoint, .. } => {
                let mut words = WORDS_OF_OTHERS.to_owned();
                if let Some((program, arguments)) = entrypoint.split_first() {
                    words.push_str(&format!(" init={}", word(program)));
                    if !arguments.is_empty() {
                        words.push_str(" --");
                        arguments.iter().for_each(|argument| {
                            words.push(' ');
                            words.push_str(&word(argument));
                        });
                    }
                }
                (kernel.clone(), initramfs.clone(), words)
            }
            // Who starts the VMM says what it found.
            Boot::Disk { folder } => (folder.join("kernel"), None, WORDS_FOR_DISKS.to_owned()),
        }
    }

    fn disks(&self, files: &Files) -> Vec<DiskSpec> {
        let disk = |path: &PathBuf, serial: Option<&str>, readonly| DiskSpec {
            id: None,
            path: path.clone(),
            readonly,
            serial: serial.map(str::to_owned),
            rate: None,
            direct: false,
            queues: 1,
        };
        let mut disks = Vec::new();
        for mount in &self.mounts {
            if let Place::Disk { path, serial } = &mount.place {
                disks.push(disk(path, Some(serial), false));
            }
        }
        if let Boot::Node { root } = &self.boot {
            disks.push(disk(root, Some(ROOT_SERIAL), false));
        }
        disks.push(disk(&files.cidata, None, true));
        disks
    }

    fn file_systems(&self, files: &Files) -> Vec<FsSpec> {
        let upper = match &self.boot {
            Boot::Node { .. } => Some(None),
            Boot::Image { root, root_size, .. } => Some(Some((root.clone(), *root_size))),
            Boot::Disk { .. } => None,
        };
        let root = upper.map(|upper| {
            let (image, cache) = (self.image.clone(), files.cache.clone());
            let (upper, quota) = upper.unzip();
            let quota = quota.map(Size::from_bytes);
            let source = FsSource::Flist { image, cache, upper, quota };
            FsSpec { tag: ROOT_TAG.to_owned(), source }
        });
        let mut systems: Vec<FsSpec> = root.into_iter().collect();
        for mount in &self.mounts {
            if let Place::Directory { path, size } = &mount.place {
                let quota = Some(Size::from_bytes(*size));
                let source = FsSource::Dir { path: path.clone(), readonly: false, quota };
                systems.push(FsSpec { tag: mount.name.clone(), source });
            }
        }
        systems
    }
}

fn card(tap: &Tap) -> NetSpec {
    NetSpec {
        id: None,
        tap: Some(tap.name.clone()),
        fds: Vec::new(),
        mac: tap.mac.to_string().parse().ok(),
        queues: 1,
        mtu: tap.mtu,
        rate: None,
    }
}

/// The kernel's name of the `number`-th disk, counted from 1: a machine has fewer disks than letters.
fn kernel_name(number: u8) -> String {
    format!("/dev/vd{}", char::from(b'a' + number.saturating_sub(1)))
}

/// A word of the kernel's command line, which knows double quotes and nothing else.
fn word(text: &str) -> String {
    if text.is_empty() || text.contains(|letter: char| letter.is_ascii_whitespace()) {
        format!("\"{text}\"")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        Files {
            kernel: "/k".into(),
            initramfs: "/i".into(),
            cache: "/run/cached".into(),
            cidata: "/vm/cidata.img".into(),
            api: "/run/vm/a.sock".into(),
        }
    }

    fn order(boot: Boot) -> Order {
        let disk = Place::Disk { path: "/p/disk".into(), serial: "YYzBJUHjASz9U".into() };
        let directory = Place::Directory { path: "/p/dir".into(), size: 1 << 30 };
        let mount = |name: &str, target: &str, place| Mount {
            name: name.into(),
            target: target.into(),
            place,
        };
        Order {
            cpus: 2,
            memory: (512 << 20) + 5,
            image: "/images/x".into(),
            boot,
            mounts: vec![mount("share", "/s", directory), mount("disk", "/d", disk)],
            cards: vec![Tap {
                name: "b-x".into(),
                mac: MacAddress::from_bytes([2, 0, 0, 0, 0, 1]),
                mtu: Some(1400),
            }],
            namespace: None,
        }
    }

    #[test]
    fn a_plain_image_boots_the_nodes_kernel_with_a_disk_for_its_changes() {
        let order = order(Boot::Node { root: "/p/root".into() });
        let spec = order.spec(&files()).unwrap().spec().clone();
        assert_eq!(spec.kernel.as_deref(), Some(std::path::Path::new("/k")));
        assert_eq!(spec.memory.size, Size::from_mib(512));
        let disks: Vec<_> =
            { spec.disks.iter() }.map(|disk| (disk.serial.as_deref(), disk.readonly)).collect();
        let expected = [(Some("YYzBJUHjASz9U"), false), (Some("rootfs"), false), (None, true)];
        assert_eq!(disks, expected);
        assert_eq!(spec.fs.len(), 2);
        assert_eq!(spec.console, OutputSpec::Stdio);
        assert_eq!(spec.nets[0].mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert!(spec.cmdline.unwrap().contains("guest.upper=disk"));
        let mounted = order.mounted();
        assert_eq!((mounted[0].source.as_str(), mounted[0].kind), ("share", "virtiofs"));
        assert_eq!(mounted[1].source, "/dev/disk/by-id/virtio-YYzBJUHjASz9U");
    }

    #[test]
    fn an_images_own_kernel_gets_the_command_and_a_writable_root() {
        let entrypoint = ["/sbin/zinit", "a b", "c"].map(str::to_owned).to_vec();
        let boot = Boot::Image {
            kernel: "/boot/k".into(),
            initramfs: None,
            root: "/p/upper".into(),
            root_size: 7 << 20,
            entrypoint,
        };
        let order = order(boot);
        let spec = order.spec(&files()).unwrap().spec().clone();
        assert!(spec.cmdline.unwrap().ends_with(" init=/sbin/zinit -- \"a b\" c"));
        assert_eq!((spec.disks.len(), spec.initramfs), (2, None));
        assert_eq!(spec.serial, OutputSpec::Stdio);
        let FsSource::Flist { upper, quota, .. } = &spec.fs[0].source else { panic!("no image") };
        assert_eq!(*quota, Some(Size::from_mib(7)));
        assert_eq!(upper.as_deref(), Some(std::path::Path::new("/p/upper")));
        assert_eq!(order.mounted()[1].source, "/dev/vda");
    }

    #[test]
    fn a_whole_disk_is_the_first_and_nothing_of_the_image_is_mounted() {
        let mut order = order(Boot::Disk { folder: "/vms/x/boot".into() });
        assert_eq!(order.whole_disk(), None);
        order.mounts.rotate_left(1);
        let second = Place::Disk { path: "/p/data".into(), serial: "SECOND".into() };
        order.mounts.push(Mount { name: "more".into(), target: "/m".into(), place: second });
        assert_eq!(order.whole_disk(), Some(Path::new("/p/disk")));
        let spec = order.spec(&files()).unwrap().spec().clone();
        let disks: Vec<_> = spec.disks.iter().map(|disk| disk.path.to_str().unwrap()).collect();
        assert_eq!(disks, ["/p/disk", "/p/data", "/vm/cidata.img"]);
        let tags: Vec<_> = spec.fs.iter().map(|fs| fs.tag.as_str()).collect();
        assert_eq!((tags, spec.on_reset), (vec!["share"], OnReset::Exit));
        assert_eq!(spec.serial, OutputSpec::Stdio);
        let mounted = order.mounted();
        let mounted: Vec<_> =
            mounted.iter().map(|one| (one.source.as_str(), one.options)).collect();
        let nofail = "defaults,nofail";
        assert_eq!(mounted, [("share", nofail), ("/dev/disk/by-id/virtio-SECOND", nofail)]);
    }

    #[test]
    fn what_a_kernel_cannot_be_told_is_refused() {
        let boot = |word: &str| Boot::Image {
            kernel: "/k".into(),
            initramfs: None,
            root: "/u".into(),
            root_size: 1 << 20,
            entrypoint: vec![word.to_owned()],
        };
        for word in ["a\nb", &"x".repeat(2048)] {
            assert!(order(boot(word)).spec(&files()).is_err());
        }
    }
}
