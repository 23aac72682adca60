//! QEMU's command line: a pure function of a machine's description.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::disk::Disk;
use crate::host::Accelerator;

/// The program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// How many disks can be added while a machine runs.
pub(crate) const HOT_SLOT_COUNT: usize = 4;

/// The translator's SVM does not tell a hypervisor when its guest sets XCR0. So KVM keeps it at 1, and a
/// guest's kernel finds the size of XSAVE's area inconsistent and does without. Programs that look for
/// AVX in CPUID alone, as `cksum` of Debian 12 does, would see it all the same and die of it.
const CPU_WITHOUT_AVX: &str = "max,avx=off,avx2=off,fma=off,f16c=off,vaes=off";

/// All that QEMU needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    /// Shown in process lists: tells whose machine it is.
    pub(crate) title: String,
    pub(crate) accelerator: Accelerator,
    pub(crate) counts_instructions: bool,
    pub(crate) cpu_count: u32,
    pub(crate) memory_mib: u32,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) cmdline: String,
    pub(crate) disks: Vec<Disk>,
    pub(crate) cards: Vec<Card>,
    pub(crate) console: PathBuf,
    pub(crate) monitor: PathBuf,
    pub(crate) agent: Option<PathBuf>,
    pub(crate) may_reboot: bool,
    pub(crate) extra: Vec<String>,
}

/// A network card.
#[derive(Debug, Clone)]
pub(crate) struct Card {
    /// QEMU's name for it.
    pub(crate) id: String,
    /// Its address, in the usual notation.
    pub(crate) mac: String,
    /// Where its cable leads.
    pub(crate) cable: Cable,
    /// The address that the machine gives it.
    pub(crate) address: Option<String>,
}

/// Where a network card's cable leads.
#[derive(Debug, Clone)]
pub(crate) enum Cable {
    /// To a network of the lab, by its socket.
    Network(PathBuf),
    /// To this host, through QEMU's user networking.
    Host,
}

impl Description {
    /// The arguments, without the program's name.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut line = Line::default();
        self.put_machine(&mut line);
        line.option("-kernel", &self.kernel);
        line.option("-initrd", &self.initramfs);
        line.option("-append", &self.cmdline);
        line.option("-chardev", format!("file,id=console,{}", path_option(&self.console)));
        line.option("-serial", "chardev:console");
        line.option("-chardev", socket("monitor", &self.monitor));
        line.option("-mon", "chardev=monitor,mode=control");
        if let Some(agent) = &self.agent {
            line.option("-device", "virtio-serial-pci,id=serial0");
            line.option("-chardev", socket("agent", agent));
            let port = lab_agent::wire::PORT_NAME;
            line.option("-device", format!("virtserialport,chardev=agent,name={port}"));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let node = format!("b{index}");
            for block_node in disk.block_nodes(&node) {
                line.json("-blockdev", &block_node);
            }
            line.json("-device", &disk.device(&node, &format!("disk{index}"), "pcie.0"));
        }
        for card in &self.cards {
            line.json("-netdev", &netdev(card));
            let device = json!({
                "driver": "virtio-net-pci", "id": card.id, "netdev": format!("{}-net", card.id),
                "mac": card.mac, "romfile": "",
            });
            line.json("-device", &device);
        }
        for slot in 0..HOT_SLOT_COUNT {
            let (id, chassis) = (hot_slot(slot), slot + 1);
            line.option("-device", format!("pcie-root-port,id={id},chassis={chassis}"));
        }
        line.0.extend(self.extra.iter().map(OsString::from));
        line.0
    }

    fn put_machine(&self, line: &mut Line) {
        line.option("-name", &self.title);
        line.flag("-nodefaults");
        line.flag("-no-user-config");
        line.option("-display", "none");
        line.option("-machine", "q35,usb=off,vmport=off,smbus=off,graphics=off");
        // Machines that count instructions have AVX still: published figures were taken with it.
        let (accelerator, cpu) = match (self.accelerator, self.counts_instructions) {
            (Accelerator::Kvm, false) => ("kvm", "host"),
            (_, true) => ("tcg,thread=single,tb-size=256", "max"),
            (Accelerator::Tcg, false) => ("tcg,thread=multi,tb-size=256", CPU_WITHOUT_AVX),
        };
        line.option("-accel", accelerator);
        line.option("-cpu", cpu);
        line.option("-smp", self.cpu_count.to_string());
        line.option("-m", format!("{}M", self.memory_mib));
        if self.counts_instructions {
            line.option("-icount", "shift=0,sleep=off");
            // The clock and the random numbers decide how long loops run, and where the kernel
            // puts itself.
            line.option("-rtc", "base=2026-01-01T00:00:00,clock=vm");
            line.option("-seed", "1");
        }
        if !self.may_reboot {
            line.flag("-no-reboot");
        }
    }
}

/// The name of a slot for a disk that is added while the machine runs.
pub(crate) fn hot_slot(slot: usize) -> String {
    format!("hot{slot}")
}

fn netdev(card: &Card) -> Value {
    let id = format!("{}-net", card.id);
    match &card.cable {
        Cable::Network(path) => json!({
            "type": "stream", "id": id, "server": false,
            "addr": { "type": "unix", "path": path },
        }),
        Cable::Host => json!({ "type": "user", "id": id, "ipv6": false }),
    }
}

fn socket(id: &str, path: &Path) -> String {
    format!("socket,id={id},{}", path_option(path))
}

fn path_option(path: &Path) -> String {
    // In QEMU's option lists a comma within a value is doubled.
    format!("path={}", path.to_string_lossy().replace(',', ",,"))
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, flag: &str, value: impl Into<OsString>) {
        self.flag(flag);
        self.0.push(value.into());
    }

    fn json(&mut self, flag: &str, value: &Value) {
        self.option(flag, value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        Description {
            title: "lab-x".into(),
            accelerator: Accelerator::Tcg,
            counts_instructions: false,
            cpu_count: 2,
            memory_mib: 512,
            kernel: "/k".into(),
            initramfs: "/i".into(),
            cmdline: "console=ttyS0".into(),
            disks: vec![Disk::file("data", Path::new("/d"))],
            cards: vec![card("nic0", Cable::Network("/n".into())), card("nic1", Cable::Host)],
            console: "/tmp/a,b/console".into(),
            monitor: "/m".into(),
            agent: Some("/a".into()),
            may_reboot: false,
            extra: vec!["-S".into()],
        }
    }

    fn card(id: &str, cable: Cable) -> Card {
        Card { id: id.into(), mac: "52:54:00:0:0:1".into(), cable, address: None }
    }

    fn text(description: &Description) -> String {
        let arguments = description.arguments();
        let arguments: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
        arguments.join(" ")
    }

    #[test]
    fn what_is_described_is_on_the_line() {
        let text = text(&description());
        for part in [
            "-accel tcg,thread=multi,tb-size=256 -cpu max,avx=off,avx2=off,fma=off,f16c=off,vaes=off -smp 2 -m 512M",
            "-no-reboot",
            "-kernel /k -initrd /i -append console=ttyS0",
            "file,id=console,path=/tmp/a,,b/console",
            "virtserialport,chardev=agent,name=zero-os.lab",
            "\"serial\":\"data\"",
            "\"mac\":\"52:54:00:0:0:1\"",
            "pcie-root-port,id=hot3,chassis=4",
            "\"path\":\"/n\"",
            "\"id\":\"nic1-net\",\"ipv6\":false,\"type\":\"user\"",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(text.ends_with(" -S"));
        assert!(!text.contains("icount"));
    }

    #[test]
    fn counting_instructions_excludes_threads_and_hardware() {
        let accelerator = Accelerator::Kvm;
        let counting = Description { accelerator, counts_instructions: true, ..description() };
        let counting = text(&counting);
        assert!(counting.contains("thread=single") && counting.contains("shift=0,sleep=off"));
        let hardware = text(&Description { accelerator, ..description() });
        assert!(hardware.contains("-accel kvm -cpu host"));
    }
}
