//! What this machine is, as Linux tells it: cards, firmware, hypervisor.
//!
//! Read each time it is asked, from `/sys`, `/proc` and the kernel's routing socket; nothing is
//! remembered, so what changed is seen. What can't be read is absent: a machine without firmware tables
//! or cards is one all the same.

mod addresses;
mod diagnosis;
pub(crate) mod wake;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hostd_node::host::{Card, FirmwarePart, Hardware};

pub use diagnosis::diagnosis;

/// The name under which clients and the chain look for the card that leads out.
pub const MAIN_CARD: &str = "zos";
/// Bytes that are read of one of the kernel's files.
const FILE_SIZE_MAX: usize = 1 << 20;
/// Cards that are shown.
const CARD_COUNT_MAX: usize = 64;
/// The variable that says whether firmware checked what it booted (UEFI 2.10 section 3.3).
const SECURE_BOOT: &str =
    "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Names of properties, and the files that have them.
type Properties = &'static [(&'static str, &'static str)];

/// Firmware's parts: number, title, properties.
const FIRMWARE: [(u8, &str, Properties); 4] = [
    (
        0,
        "BIOS Information",
        &[("Vendor", "bios_vendor"), ("Version", "bios_version"), ("Release Date", "bios_date")],
    ),
    (
        1,
        "System Information",
        &[
            ("Manufacturer", "sys_vendor"),
            ("Product Name", "product_name"),
            ("Version", "product_version"),
            ("Family", "product_family"),
        ],
    ),
    (
        2,
        "Base Board Information",
        &[
            ("Manufacturer", "board_vendor"),
            ("Product Name", "board_name"),
            ("Version", "board_version"),
        ],
    ),
    (3, "Chassis Information", &[("Manufacturer", "chassis_vendor"), ("Type", "chassis_type")]),
];

/// Hypervisors by what firmware says of the machine, and what tools call them.
const HYPERVISORS: [(&str, &str); 8] = [
    ("QEMU", "kvm"),
    ("KVM", "kvm"),
    ("Amazon EC2", "aws"),
    ("Google", "kvm"),
    ("VMware", "vmware"),
    ("innotek", "virtualbox"),
    ("Microsoft", "hyperv"),
    ("Xen", "xen"),
];

/// What the machine is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Its cards and firmware. The card of the default route is there as [`MAIN_CARD`] too.
    pub hardware: Hardware,
    /// What it runs on; empty for bare metal.
    pub hypervisor: String,
    /// Whether it has an address that the whole IPv6 Internet can reach.
    pub has_ipv6: bool,
}

impl Facts {
    /// Reads them all.
    pub fn read() -> Self {
        Self::read_at(Path::new("/"), addresses::addresses().unwrap_or_default())
    }

    /// Addresses by card, as clients ask for them: those that lead out.
    pub fn interfaces(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let main = self.hardware.cards.get(MAIN_CARD);
        main.map(|card| (MAIN_CARD.to_owned(), card.ips.clone())).into_iter().collect()
    }

    fn read_at(root: &Path, addresses: BTreeMap<String, Vec<IpAddr>>) -> Self {
        let ips: BTreeSet<_> = addresses.values().flatten().copied().collect();
        let hardware = Hardware {
            cards: cards(root, &addresses),
            secure_boot: is_secure_boot(root),
            board_serial: dmi(root, "board_serial"),
            firmware: firmware(root),
        };
        let has_ipv6 = ips.iter().any(is_public_ipv6);
        Self { hardware, hypervisor: hypervisor(root), has_ipv6 }
    }
}

/// The card of the default route, by its own name.
pub(crate) fn main_card() -> Option<String> {
    default_card(&text(Path::new("/proc/net/route")).unwrap_or_default())
}

/// Cards of hardware, and the one that leads out, whatever it is.
fn cards(root: &Path, addresses: &BTreeMap<String, Vec<IpAddr>>) -> BTreeMap<String, Card> {
    let main = default_card(&text(&root.join("proc/net/route")).unwrap_or_default());
    let mut cards = BTreeMap::new();
    for name in names(&root.join("sys/class/net")).into_iter().take(CARD_COUNT_MAX) {
        let folder = root.join("sys/class/net").join(&name);
        let is_main = main.as_ref() == Some(&name);
        if !is_main && !folder.join("device").exists() {
            continue;
        }
        let mac = text(&folder.join("address")).unwrap_or_default();
        let card = Card { ips: addresses.get(&name).cloned().unwrap_or_default(), mac };
        if is_main {
            cards.insert(MAIN_CARD.to_owned(), card.clone());
        }
        cards.entry(name).or_insert(card);
    }
    cards
}

/// The card of the first default route in `/proc/net/route`.
fn default_card(routes: &str) -> Option<String> {
    let default = routes.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let (card, destination) = (columns.next()?, columns.next()?);
        (destination == "00000000").then_some(card)
    });
    default.map(str::to_owned)
}

fn is_secure_boot(root: &Path) -> bool {
    // Four bytes of attributes, then the value.
    fs::read(root.join(SECURE_BOOT)).is_ok_and(|value| value.get(4) == Some(&1))
}

fn firmware(root: &Path) -> Vec<FirmwarePart> {
    let parts = FIRMWARE.into_iter().map(|(kind, title, files)| {
        let properties = files.iter().filter_map(|(name, file)| Some((*name, dmi(root, file)?)));
        FirmwarePart { kind, title, properties: properties.collect() }
    });
    parts.filter(|part| !part.properties.is_empty()).collect()
}

/// What tools call the hypervisor below.
fn hypervisor(root: &Path) -> String {
    if let Some(kind) = text(&root.join("sys/hypervisor/type")) {
        return kind;
    }
    let processors = text(&root.join("proc/cpuinfo")).unwrap_or_default();
    let mut flags = processors.lines().filter(|line| line.starts_with("flags"));
    let is_virtual = flags
        .next()
        .is_some_and(|line| line.split_ascii_whitespace().any(|flag| flag == "hypervisor"));
    if !is_virtual {
        return String::new();
    }
    let says = ["sys_vendor", "product_name", "bios_vendor"].map(|file| dmi(root, file));
    let says: Vec<_> = says.into_iter().flatten().collect();
    let known = HYPERVISORS.iter().find(|(name, _)| says.iter().any(|text| text.contains(name)));
    known.map_or("unknown", |(_, kind)| kind).to_owned()
}

fn dmi(root: &Path, file: &str) -> Option<String> {
    text(&root.join("sys/class/dmi/id").join(file))
}

fn is_public_ipv6(ip: &IpAddr) -> bool {
    // RFC 4291 section 2.5.4: global unicast is 2000::/3, as far as it is given out.
    matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xe000 == 0x2000)
}

/// A file's text, trimmed; none if it can't be read or says nothing.
fn text(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(FILE_SIZE_MAX as u64).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Names in a folder, in order.
fn names(folder: &PathBuf) -> BTreeSet<String> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    found.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_machine_is_read_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let routes = "Iface\tDestination\tGateway\neth0\t0000A8C0\t0\nbr0\t00000000\t0100A8C0\n";
        write(root, "proc/net/route", routes);
        write(root, "proc/cpuinfo", "processor : 0\nflags\t\t: fpu hypervisor avx\n");
        write(root, "sys/class/net/eth0/address", "02:00:00:00:00:01\n");
        write(root, "sys/class/net/eth0/device/vendor", "0x1\n");
        write(root, "sys/class/net/br0/address", "02:00:00:00:00:02\n");
        write(root, "sys/class/net/tap7/address", "02:00:00:00:00:03\n");
        write(root, "sys/class/dmi/id/sys_vendor", "QEMU\n");
        write(root, "sys/class/dmi/id/board_serial", "S-1\n");
        write(root, "sys/class/dmi/id/board_name", "\n");
        fs::create_dir_all(root.join(SECURE_BOOT).parent().unwrap()).unwrap();
        fs::write(root.join(SECURE_BOOT), [6, 0, 0, 0, 1]).unwrap();

        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let addresses = [
            ("br0".to_owned(), ips(&["192.168.0.2", "2a02::1"])),
            ("lo".to_owned(), ips(&["::1"])),
        ];
        let facts = Facts::read_at(root, addresses.into());
        let cards: Vec<_> = facts.hardware.cards.keys().collect();
        assert_eq!(cards, ["br0", "eth0", "zos"]);
        assert_eq!(facts.hardware.cards["zos"].mac, "02:00:00:00:00:02");
        assert_eq!(facts.interfaces()["zos"], ips(&["192.168.0.2", "2a02::1"]));
        assert!(facts.hardware.secure_boot && facts.has_ipv6);
        assert_eq!(facts.hardware.board_serial.as_deref(), Some("S-1"));
        assert_eq!(facts.hypervisor, "kvm");
        assert_eq!(facts.hardware.firmware.len(), 1);
        assert_eq!(facts.hardware.firmware[0].properties["Manufacturer"], "QEMU");
    }

    #[test]
    fn a_machine_that_tells_nothing_is_one() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Facts::read_at(root.path(), BTreeMap::new()), Facts::default());
    }

    #[test]
    fn private_ipv6_is_not_public() {
        for (text, is_public) in
            [("2a02::1", true), ("3fff::1", true), ("fd00::1", false), ("fe80::1", false)]
        {
            assert_eq!(is_public_ipv6(&text.parse().unwrap()), is_public, "{text}");
        }
        assert!(!is_public_ipv6(&"1.1.1.1".parse().unwrap()));
    }

    #[test]
    fn this_machine_can_be_read() {
        let facts = Facts::read();
        assert!(facts.hardware.cards.values().all(|card| card.mac.len() == 17), "{facts:?}");
    }
}
