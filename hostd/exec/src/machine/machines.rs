//! Virtual machines, out of images, networks and disks.

use std::borrow::Cow;
use std::sync::OnceLock;

use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::secret::SecretText;
use hostd_grid::workload::{ZMachineLight, ZMachineLightResult, ZMachineResult};
use hostd_grid::{Name, WorkloadData, WorkloadType};
use hostd_node::host::{HostError, MachineAction, Task};
use tracing::{info, warn};

use super::check::{self, check, of_full};
use super::guestio::{console_addresses, console_url};
use super::{Inner, host};
use crate::image::{Image, ImageBoot};
use crate::network::Attachment;
use crate::storage::{Kind, Space};
use crate::vm::cidata::{Card, CiData, Mounted, Route, keys};
use crate::vm::entry;
use crate::vm::record::Record;
use crate::vm::spec::{Boot, Mount, Order, Place, Tap};

/// The variable of the environment that holds the keys that may log in.
const KEYS_VARIABLE: &str = "SSH_KEY";

impl Inner {
    /// Makes a machine, or finds it.
    pub(super) fn provision_machine(
        &self,
        task: &Task,
        machine: &ZMachineLight,
    ) -> Result<RawJson, HostError> {
        let id = task.id();
        let old = self.record(&id)?;
        if let Some(record) = &old {
            let status = self.vms.status(&id).map_err(host)?;
            // One that was given up, too: it is not started again by who finds it.
            if record.is_stopped || status.is_some() {
                if record.is_paused && !record.is_stopped {
                    self.vms.pause(&id).map_err(host)?;
                }
                return result_of(record);
            }
        }
        let is_new = old.is_none();
        let made = self.make(task, machine, old);
        if made.is_err() && is_new {
            // Why it could not be made is the news; what is left goes when it is removed.
            if let Err(error) = self.remove_machine(&id) {
                warn!(machine = %id, %error, "a machine that could not be made is not gone");
            }
        }
        made
    }

    /// What is wrong with the machines among workloads of one deployment, a sentence each.
    pub(super) fn examine(&self, workloads: &[(Name, WorkloadData)]) -> Vec<String> {
        let kind = |name: &Name| {
            let found = workloads.iter().find(|(other, _)| other == name)?;
            Some(found.1.kind())
        };
        let mut problems = Vec::new();
        for (name, data) in workloads {
            let WorkloadData::ZMachineLight(machine) = data else { continue };
            let found = [
                check(machine, cpu_count(), kind).err().map(|error| error.to_string()),
                entry::split(&machine.entrypoint).err().map(|error| error.to_string()),
                entry::zosrc(&machine.env, &machine.entrypoint)
                    .err()
                    .map(|error| error.to_string()),
                self.images.examine(&machine.flist).err().map(|error| host(error).0),
            ];
            problems.extend(found.into_iter().flatten().map(|text| format!("{name}: {text}")));
        }
        problems
    }

    fn make(
        &self,
        task: &Task,
        machine: &ZMachineLight,
        old: Option<Record>,
    ) -> Result<RawJson, HostError> {
        let id = task.id();
        let place = check(machine, cpu_count(), |name| kind_of(task, name)).map_err(host)?;
        let words = entry::split(&machine.entrypoint).map_err(host)?;
        let zosrc = entry::zosrc(&machine.env, &machine.entrypoint).map_err(host)?;
        let image = match &old {
            // What it was made from, whatever the address leads to by now.
            Some(record) => self.images.pinned(&record.image),
            None => self.images.fetch(&machine.flist),
        };
        let image = image.map_err(host)?;
        let mut record = match old {
            Some(record) => record,
            None => self.begin(&id, machine, &image)?,
        };
        let boot = self.boot(task, machine, &image, words)?;
        let attached = self.networks.attach(&place.network, &id, Some(place.address), place.seed);
        let attachment = attached.map_err(host)?;
        let consoles = console_addresses(&attachment, &place);
        let kind = task.workload().data.kind();
        let result = result(&id, kind, &place, &attachment, console_url(kind, &consoles))?;
        if record.result != result.as_str() {
            record.result = result.as_str().to_owned();
            self.write(&id, &record)?;
        }
        let order = Order {
            cpus: machine.compute_capacity.cpu,
            memory: machine.compute_capacity.memory,
            image: image.path,
            boot,
            mounts: self.mounts(&id, machine, |name| kind_of(task, name))?,
            cards: taps(&attachment),
            namespace: Some(attachment.namespace.clone()),
        };
        let environment = entry::environment(&machine.env, &order.boot).map_err(host)?;
        let told = told(&id, machine, &attachment, order.mounted(), (environment, zosrc));
        self.serve_console(&id, &attachment, &consoles)?;
        self.vms.start(&id, &order, &told).map_err(host)?;
        if record.is_paused {
            self.vms.pause(&id).map_err(host)?;
        }
        info!(machine = %id, image = %image.hash, "started");
        Ok(result)
    }

    /// Writes down that there is something of a machine, before there is.
    fn begin(
        &self,
        id: &WorkloadId,
        machine: &ZMachineLight,
        image: &Image,
    ) -> Result<Record, HostError> {
        let record = Record {
            image: image.hash.clone(),
            url: machine.flist.clone(),
            result: "null".to_owned(),
            is_stopped: false,
            is_paused: false,
        };
        self.write(id, &record)?;
        self.prune_images();
        Ok(record)
    }

    fn boot(
        &self,
        task: &Task,
        machine: &ZMachineLight,
        image: &Image,
        entrypoint: Vec<String>,
    ) -> Result<Boot, HostError> {
        let id = &task.id();
        let root = |kind| {
            let space = self.storage.create(kind, id, machine.root_size());
            space.map_err(host)
        };
        match &image.boot {
            ImageBoot::Container => Ok(Boot::Node { root: root(Kind::RootDisk)?.path }),
            ImageBoot::Kernel { kernel, initramfs } => {
                let Space { path: root, size: root_size, .. } = root(Kind::RootFolder)?;
                let (kernel, initramfs) = (kernel.clone(), initramfs.clone());
                Ok(Boot::Image { kernel, initramfs, root, root_size, entrypoint })
            }
            ImageBoot::Disk { size } => {
                self.whole_disk(id, machine, image, *size, |name| kind_of(task, name))
            }
        }
    }

    /// What the owner mounts, where it is.
    fn mounts(
        &self,
        id: &WorkloadId,
        machine: &ZMachineLight,
        kind: impl Fn(&Name) -> Option<WorkloadType>,
    ) -> Result<Vec<Mount>, HostError> {
        let mut mounts = Vec::new();
        for mount in &machine.mounts {
            let is_disk = kind(&mount.name) == Some(WorkloadType::ZMount);
            let kind = if is_disk { Kind::ZMount } else { Kind::Volume };
            let space = self.storage.find(kind, &id.sibling(&mount.name)).map_err(host)?;
            let absent = || HostError(format!("invalid disk '{}' state", mount.name));
            let space = space.ok_or_else(absent)?;
            let serial = space.serial().to_string();
            let place = match is_disk {
                true => Place::Disk { path: space.path, serial },
                false => Place::Directory { path: space.path, size: space.size },
            };
            let (name, target) = (mount.name.to_string(), mount.mountpoint.clone());
            mounts.push(Mount { name, target, place });
        }
        Ok(mounts)
    }

    /// Takes a machine down, with its root. One that is not there is no error.
    pub(super) fn remove_machine(&self, id: &WorkloadId) -> Result<(), HostError> {
        if !self.vms.records().exists(id) && self.vms.status(id).map_err(host)?.is_none() {
            return Ok(());
        }
        self.vms.stop(id).map_err(host)?;
        self.close_console(id)?;
        self.networks.detach(id).map_err(host)?;
        for kind in [Kind::RootDisk, Kind::RootFolder] {
            self.storage.remove(kind, id).map_err(host)?;
        }
        self.vms.records().remove(id).map_err(host)?;
        info!(machine = %id, "gone");
        Ok(())
    }

    /// Stops a machine's processors, or lets them go on. Other workloads only change their state.
    pub(super) fn set_paused(&self, task: &Task, is_paused: bool) -> Result<(), HostError> {
        let id = task.id();
        let _lock = self.lock(&id);
        match &task.workload().data {
            WorkloadData::ZMachineLight(_) | WorkloadData::ZMachine(_) => {}
            WorkloadData::Zlogs(zlogs) => return self.set_log_paused(task, zlogs, is_paused),
            WorkloadData::Zdb(_) if is_paused => return self.zdbs.freeze(&id).map_err(host),
            WorkloadData::Zdb(_) => return self.zdbs.thaw(&id).map_err(host),
            // Of others, only the state changes.
            _ => return Ok(()),
        }
        let Some(mut record) = self.record(&id)? else {
            return Err(HostError(format!("there is no machine {id}")));
        };
        // Written first when it is to stand still: one that is started again then does, too.
        if record.is_paused != is_paused {
            record.is_paused = is_paused;
            self.write(&id, &record)?;
        }
        if record.is_stopped {
            return Ok(());
        }
        let done = if is_paused { self.vms.pause(&id) } else { self.vms.resume(&id) };
        done.map_err(host)
    }

    /// Starts or stops a machine for its owner.
    pub(super) fn control(&self, task: &Task, action: MachineAction) -> Result<(), HostError> {
        let id = task.id();
        let _lock = self.lock(&id);
        let machine = machine_of(&task.workload().data)?;
        let Some(mut record) = self.record(&id)? else {
            return Err(HostError(format!("there is no machine {id}")));
        };
        if record.is_paused {
            return Err(HostError(format!("machine {id} is paused until it is paid")));
        }
        if matches!(action, MachineAction::Stop | MachineAction::Restart) {
            record.is_stopped = true;
            self.write(&id, &record)?;
            self.vms.stop(&id).map_err(host)?;
        }
        if matches!(action, MachineAction::Start | MachineAction::Restart) {
            record.is_stopped = false;
            self.write(&id, &record)?;
            self.provision_machine(task, &machine)?;
        }
        Ok(())
    }

    pub(super) fn record(&self, id: &WorkloadId) -> Result<Option<Record>, HostError> {
        let unreadable = |error| HostError(format!("the record of machine {id}: {error}"));
        self.vms.records().read(id).map_err(unreadable)
    }

    fn write(&self, id: &WorkloadId, record: &Record) -> Result<(), HostError> {
        let unwritten = |error| HostError(format!("the record of machine {id}: {error}"));
        self.vms.records().write(id, record).map_err(unwritten)
    }
}

/// Processors of this machine.
pub(super) fn cpu_count() -> u16 {
    static COUNT: OnceLock<u16> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        u16::try_from(count).unwrap_or(u16::MAX)
    })
}

fn kind_of(task: &Task, name: &Name) -> Option<WorkloadType> {
    let workloads = &task.deployment().deployment().workloads;
    let found = workloads.iter().find(|workload| workload.name == *name)?;
    Some(found.data.kind())
}

pub(super) fn result_of(record: &Record) -> Result<RawJson, HostError> {
    let value: serde_json::Value = serde_json::from_str(&record.result)
        .map_err(|error| HostError(format!("the machine's record makes no sense: {error}")))?;
    RawJson::of(&value).map_err(host)
}

/// What a guest is told.
fn told(
    id: &WorkloadId,
    machine: &ZMachineLight,
    attachment: &Attachment,
    mounts: Vec<Mounted>,
    (environment, zosrc): (Option<SecretText>, String),
) -> CiData {
    let lines = machine.env.get(KEYS_VARIABLE).map(|text| keys(text.expose()));
    CiData {
        instance: id.to_string(),
        hostname: id.name.to_string(),
        cards: cards(attachment),
        keys: lines.unwrap_or_default(),
        mounts,
        environment,
        zosrc,
    }
}

/// What a workload asks for, if it is a machine that this node can run.
pub(super) fn machine_of(data: &WorkloadData) -> Result<Cow<'_, ZMachineLight>, HostError> {
    match data {
        WorkloadData::ZMachineLight(machine) => Ok(Cow::Borrowed(machine)),
        WorkloadData::ZMachine(machine) => of_full(machine).map(Cow::Owned).map_err(host),
        other => Err(HostError(format!("a workload of type {} is no machine", other.kind()))),
    }
}

fn result(
    id: &WorkloadId,
    kind: WorkloadType,
    place: &check::Place,
    attachment: &Attachment,
    console_url: String,
) -> Result<RawJson, HostError> {
    let mycelium = attachment.interfaces.iter().map(|card| card.address.address());
    let mut mycelium =
        mycelium.filter(std::net::IpAddr::is_ipv6).map(|address| address.to_string());
    let (id, ip) = (id.to_string(), place.address.to_string());
    let mycelium_ip = mycelium.next().unwrap_or_default();
    let result = match kind {
        WorkloadType::ZMachine => {
            let planetary_ip = String::new();
            RawJson::of(&ZMachineResult { id, ip, planetary_ip, mycelium_ip, console_url })
        }
        _ => RawJson::of(&ZMachineLightResult { id, ip, mycelium_ip, console_url }),
    };
    result.map_err(host)
}

fn taps(attachment: &Attachment) -> Vec<Tap> {
    let taps = attachment.interfaces.iter().map(|card| Tap {
        name: card.tap.clone(),
        mac: card.mac,
        mtu: Some(card.mtu),
    });
    taps.collect()
}

fn cards(attachment: &Attachment) -> Vec<Card> {
    let cards = attachment.interfaces.iter().enumerate().map(|(index, card)| {
        let default = card.gateway.and_then(|via| Some(Route { to: everywhere(via)?, via }));
        let routes = card.routes.iter().map(|route| Route { to: route.to, via: route.via });
        Card {
            mac: card.mac,
            addresses: vec![card.address],
            routes: default.into_iter().chain(routes).collect(),
            // Whom to ask is the same on all cards.
            nameservers: if index == 0 { attachment.name_servers.clone() } else { Vec::new() },
            mtu: Some(card.mtu),
        }
    });
    cards.collect()
}

/// All addresses of the family of `via`.
fn everywhere(via: std::net::IpAddr) -> Option<hostd_grid::address::Cidr> {
    let nowhere = match via {
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    hostd_grid::address::Cidr::new(nowhere, 0)
}

#[cfg(test)]
mod tests {
    use hostd_grid::address::Cidr;

    use super::*;
    use crate::network::{Interface, NAME_SERVERS, Route as Way};
    use crate::storage::parse;

    fn attachment() -> Attachment {
        let mac = hostd_grid::derived::MacAddress::from_bytes([2, 0, 0, 0, 0, 1]);
        let cidr = |text: &str| Cidr::parse(text).unwrap();
        let private = Interface {
            tap: "b-x".into(),
            mac,
            address: cidr("10.20.2.5/24"),
            gateway: Some("10.20.2.1".parse().unwrap()),
            routes: Vec::new(),
            mtu: 1500,
        };
        let mycelium = Interface {
            tap: "m-x".into(),
            mac,
            address: cidr("5ab:1:2:3:ff0f::7/64"),
            gateway: None,
            routes: vec![Way { to: cidr("400::/7"), via: "5ab:1:2:3::1".parse().unwrap() }],
            mtu: 1400,
        };
        Attachment {
            namespace: "/run/netns/n".into(),
            interfaces: vec![private, mycelium],
            name_servers: NAME_SERVERS.to_vec(),
            console_address: "5ab:1:2:3::1".parse().unwrap(),
        }
    }

    fn place() -> check::Place {
        check::Place {
            network: "net".into(),
            address: "10.20.2.5".parse().unwrap(),
            seed: Some([0, 0, 0, 0, 0, 7]),
        }
    }

    #[test]
    fn a_guest_is_told_its_name_its_keys_and_whom_to_ask() {
        let id = parse("7-9-my_vm").unwrap();
        let keys = SecretText::new("ssh-ed25519 A me\nssh-rsa B,ssh-rsa C");
        let env = [("SSH_KEY".to_owned(), keys), ("OTHER".to_owned(), SecretText::new("x"))];
        let machine = ZMachineLight { env: env.into(), ..ZMachineLight::default() };
        let data = told(&id, &machine, &attachment(), Vec::new(), (None, "zosrc".to_owned()));
        assert_eq!((data.instance.as_str(), data.hostname.as_str()), ("7-9-my_vm", "my_vm"));
        assert_eq!(data.keys, ["ssh-ed25519 A me", "ssh-rsa B", "ssh-rsa C"]);
        // One of the cards says whom to ask: the three that existing nodes name.
        let servers = ["8.8.8.8", "1.1.1.1", "2001:4860:4860::8888"];
        let servers = servers.map(|text| text.parse::<std::net::IpAddr>().unwrap());
        assert_eq!(data.cards[0].nameservers, servers);
        assert!(data.cards[1].nameservers.is_empty());
        // The private card is the only way to everywhere.
        let ways: Vec<Vec<String>> = data
            .cards
            .iter()
            .map(|card| {
                card.routes.iter().map(|route| format!("{} by {}", route.to, route.via)).collect()
            })
            .collect();
        assert_eq!(ways, [vec!["0.0.0.0/0 by 10.20.2.1"], vec!["400::/7 by 5ab:1:2:3::1"]]);
        // What was once another command changes nothing.
        let corex = ZMachineLight { corex: true, ..machine };
        assert_eq!(told(&id, &corex, &attachment(), Vec::new(), (None, "zosrc".to_owned())), data);
    }

    #[test]
    fn results_have_the_fields_that_clients_of_each_type_know() {
        let id = parse("7-9-vm").unwrap();
        let say = |kind| {
            let addresses = console_addresses(&attachment(), &place());
            let url = console_url(kind, &addresses);
            result(&id, kind, &place(), &attachment(), url).unwrap().as_str().to_owned()
        };
        assert_eq!(
            say(WorkloadType::ZMachineLight),
            r#"{"id":"7-9-vm","ip":"10.20.2.5","mycelium_ip":"5ab:1:2:3:ff0f::7","console_url":"[5ab:1:2:3::1]:20005"}"#
        );
        assert_eq!(
            say(WorkloadType::ZMachine),
            r#"{"id":"7-9-vm","ip":"10.20.2.5","planetary_ip":"","mycelium_ip":"5ab:1:2:3:ff0f::7","console_url":"10.20.2.1:20005"}"#
        );
    }
}
