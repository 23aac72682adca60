//! Private networks of users on a light node, and the machines in them.
//!
//! A network is a namespace with two bridges, a mycelium process of its own, and a line to the node that
//! its machines reach the Internet by: `layout` draws it. Who calls this provisions a network, attaches
//! machines to it, runs their VMMs in the namespace that an [`Attachment`] names, detaches them, and
//! removes the network. What a machine may send, and whom it reaches, is in `rules`.
//!
//! Every call brings the whole network to what it should be, whatever it finds: `plan` says how.
//! There is no memory but the machine's own. Of a network, a `record` says whose it is; who is
//! attached is written at the taps; which addresses of the node are taken, at the lines. So a call that
//! was cut off anywhere is completed by the next one, of this process or another.
//!
//! ```text
//!   provision ──> record ──> namespace, line ──> bridges ──> rules ──> started ──> mycelium
//!   attach                                      taps ─────> rules ──> started
//!   remove    ──> mycelium ends ──> line, taps, bridges, namespace ──> rules ──> record
//! ```
//!
//! | module | what |
//! |---|---|
//! | `address` | subnets, addresses of machines, leases of the node |
//! | `layout`, `plan`, `rules` | what should be there, the steps to it, what may pass: pure |
//! | `netlink`, `namespace`, `nft` | doing it |
//! | `mycelium` | the process of a network |
//! | `record` | what is written down |
//!
//! Calls block, for milliseconds. Networks do not wait for one another, except while one gets its line.
//! WireGuard between nodes is not done yet.

mod address;
mod attachment;
mod config;
mod converge;
mod error;
mod layout;
mod mycelium;
mod namespace;
mod netlink;
mod nft;
mod plan;
pub(crate) mod program;
mod record;
mod rules;
mod sys;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hostd_grid::address::Cidr;
use hostd_grid::derived::network::{mycelium_address, mycelium_gateway};
use hostd_grid::derived::{MacAddress, NetworkId, WorkloadId};
use hostd_grid::workload::{MYCELIUM_KEY_SIZE, NetworkLight, SEED_SIZE};
use hostd_grid::{Name, TwinId};

pub use self::address::{PREFIX_LEN_MAX, PREFIX_LEN_MIN, SubnetError};
pub use self::attachment::{Attachment, Interface, MYCELIUM_MTU, NAME_SERVERS, PRIVATE_MTU, Route};
pub use self::config::{
    NODE_ADDRESS, NetworkConfig, PEER_COUNT_MAX, PEER_SIZE_MAX, REACHABLE_COUNT_MAX,
};
pub use self::error::NetworkError;
pub use self::mycelium::Services;

use self::address::{Member, Subnet};
use self::layout::Layout;
use self::namespace::Namespace;
use self::record::{Record, Records};

/// Most networks on a node.
pub const NETWORK_COUNT_MAX: usize = 4096;
/// Most machines in a network: a bridge takes 1023 ports.
pub const MACHINE_COUNT_MAX: usize = 1000;

/// Locks for networks, by their ids. More than there are processors to use them.
const LOCK_COUNT: usize = 64;

/// All networks of a node.
pub struct Networks {
    config: NetworkConfig,
    services: Arc<dyn Services>,
    records: Records,
    uplink: Namespace,
    locks: [Mutex<()>; LOCK_COUNT],
    /// Held while a network gets its line.
    leases: Mutex<()>,
}

impl Networks {
    /// Finds the networks of a node.
    ///
    /// # Errors
    ///
    /// The configuration breaks a rule, or its folder or the uplink cannot be opened.
    pub fn open(config: NetworkConfig, services: Arc<dyn Services>) -> Result<Self, NetworkError> {
        config.check()?;
        let uplink = Namespace::open(&config.uplink)
            .map_err(|source| NetworkError::File { path: config.uplink.clone(), source })?;
        let records = Records::open(&config.directory)?;
        let locks = std::array::from_fn(|_| Mutex::new(()));
        Ok(Self { config, services, records, uplink, locks, leases: Mutex::new(()) })
    }

    /// Makes a network, or finds it made, and makes of it what `data` says.
    ///
    /// # Errors
    ///
    /// `data` breaks a rule, another workload is this network, machines use what would change, or the
    /// machine refuses. A network that could not be made leaves nothing behind; one that was there may
    /// be half changed, and the next call completes it.
    pub fn provision(&self, id: &WorkloadId, data: &NetworkLight) -> Result<(), NetworkError> {
        check_name(&id.name)?;
        let subnet = Subnet::check(data.subnet.0)?;
        let key = data.mycelium.hex_key.expose();
        if key.len() != MYCELIUM_KEY_SIZE {
            return Err(NetworkError::KeySize(key.len()));
        }
        if !data.peers.is_empty() {
            return Err(NetworkError::WireGuard(id.name.clone()));
        }
        let network = NetworkId::of(id.twin_id, &id.name);
        let _lock = self.lock(&network);
        let old = self.records.read(&network)?;
        match &old {
            Some(old) if old.workload != *id => {
                let (name, holder) = (id.name.clone(), old.workload.clone());
                return Err(NetworkError::Taken { name, holder });
            }
            Some(_) => {}
            None => self.check_count()?,
        }
        let result = self.put(id, &network, subnet, key, old.as_ref());
        if result.is_err() && old.is_none() {
            // What failed is the news; what is left of it is completed by whoever removes it.
            if let Err(error) = self.take_down(&network) {
                tracing::warn!(%network, %error, "a network that could not be made is not gone");
            }
        }
        result
    }

    /// Makes another network of it. Its machines stay as they are, so what they have must stay too.
    ///
    /// # Errors
    ///
    /// As [`provision`](Self::provision).
    pub fn update(&self, id: &WorkloadId, data: &NetworkLight) -> Result<(), NetworkError> {
        self.provision(id, data)
    }

    /// Removes a network, with the interfaces of machines that are still attached. One that is not there
    /// is no error, nor is one of this name that another workload has.
    ///
    /// # Errors
    ///
    /// The machine refuses. What is left is removed by the next call.
    pub fn remove(&self, id: &WorkloadId) -> Result<(), NetworkError> {
        let network = NetworkId::of(id.twin_id, &id.name);
        let _lock = self.lock(&network);
        match self.records.read(&network)? {
            Some(record) if record.workload == *id => self.take_down(&network),
            _ => Ok(()),
        }
    }

    /// All networks that are there, whole.
    ///
    /// # Errors
    ///
    /// The folder of records cannot be read, or nobody says what runs.
    pub fn inventory(&self) -> Result<Vec<WorkloadId>, NetworkError> {
        Ok(self.divided()?.0)
    }

    /// Networks of which a part is there: a call did not come to its end, or the machine lost its power,
    /// which leaves what is written down.
    ///
    /// # Errors
    ///
    /// As [`inventory`](Self::inventory).
    pub fn remains(&self) -> Result<Vec<WorkloadId>, NetworkError> {
        Ok(self.divided()?.1)
    }

    /// Networks that are whole, and those that are not. The mycelium process is the last that is started,
    /// and the first that is ended.
    fn divided(&self) -> Result<(Vec<WorkloadId>, Vec<WorkloadId>), NetworkError> {
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        let (records, running) = (self.records.list()?, self.services.names()?);
        for record in records {
            let id = record.network();
            let is_whole = running.contains(&mycelium::name(&id)) && self.has_namespace(&id)?;
            if is_whole { &mut whole } else { &mut parts }.push(record.workload);
        }
        Ok((whole, parts))
    }

    /// Gives a machine its place in a network of its own twin: an interface for each address. A machine
    /// that has another place there gets this one instead.
    ///
    /// # Errors
    ///
    /// There is no such network, an address breaks a rule or is another machine's, the network is full,
    /// or the machine refuses.
    pub fn attach(
        &self,
        network: &Name,
        vm: &WorkloadId,
        ip: Option<Ipv4Addr>,
        mycelium_seed: Option<[u8; SEED_SIZE]>,
    ) -> Result<Attachment, NetworkError> {
        check_name(network)?;
        check_name(&vm.name)?;
        let id = NetworkId::of(vm.twin_id, network);
        let _lock = self.lock(&id);
        let record = self.records.read(&id)?;
        let record = record.ok_or_else(|| NetworkError::Absent(network.clone()))?;
        let members = members_of(&record, vm, ip, mycelium_seed)?;
        let layout = self.converge(&id, &record, |all| {
            all.retain(|member| member.machine != *vm);
            admit(network, all, &members)
        })?;
        Ok(self.attachment(&layout, &members))
    }

    /// Takes a machine out of the networks of its twin. One that is in none is no error.
    ///
    /// # Errors
    ///
    /// The machine refuses. What is left is removed by the next call.
    pub fn detach(&self, vm: &WorkloadId) -> Result<(), NetworkError> {
        for record in self.records.list()? {
            if record.workload.twin_id != vm.twin_id {
                continue;
            }
            let id = record.network();
            let _lock = self.lock(&id);
            if self.members(&id)?.iter().all(|member| member.machine != *vm) {
                continue;
            }
            self.converge(&id, &record, |all| {
                all.retain(|member| member.machine != *vm);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The namespace of a twin's network, by its file.
    ///
    /// # Errors
    ///
    /// There is no such network.
    pub fn namespace(&self, twin: TwinId, network: &Name) -> Result<PathBuf, NetworkError> {
        check_name(network)?;
        let id = NetworkId::of(twin, network);
        match self.records.read(&id)? {
            Some(_) => Ok(self.config.namespaces.join(id.light_namespace())),
            None => Err(NetworkError::Absent(network.clone())),
        }
    }

    /// The node's own addresses in a twin's network: mycelium's, then the private one.
    ///
    /// # Errors
    ///
    /// There is no such network.
    pub fn gateways(&self, twin: TwinId, network: &Name) -> Result<[IpAddr; 2], NetworkError> {
        check_name(network)?;
        let record = self.records.read(&NetworkId::of(twin, network))?;
        let record = record.ok_or_else(|| NetworkError::Absent(network.clone()))?;
        Ok([mycelium_gateway(record.mycelium).address(), record.subnet.gateway().into()])
    }

    /// All machines that have a place in a network, once each.
    ///
    /// # Errors
    ///
    /// The machine does not say.
    pub fn machines(&self) -> Result<Vec<WorkloadId>, NetworkError> {
        let mut machines = Vec::new();
        for record in self.records.list()? {
            machines.extend(self.members(&record.network())?.into_iter().map(|one| one.machine));
        }
        machines.sort();
        machines.dedup();
        Ok(machines)
    }

    /// Bytes that each machine exchanged with the Internet over its private interface, both ways, since it
    /// was attached. What it exchanged with other machines, or by mycelium, is not counted.
    ///
    /// # Errors
    ///
    /// The machine does not say.
    pub fn traffic(&self) -> Result<Vec<(WorkloadId, u64)>, NetworkError> {
        let mut traffic = Vec::new();
        for record in self.records.list()? {
            let id = record.network();
            let _lock = self.lock(&id);
            let counted = self.counted(&id)?;
            traffic.extend(counted.into_iter().map(|(member, bytes)| (member.machine, bytes)));
        }
        Ok(traffic)
    }

    /// Writes a network down and makes it so.
    fn put(
        &self,
        id: &WorkloadId,
        network: &NetworkId,
        subnet: Subnet,
        key: &[u8],
        old: Option<&Record>,
    ) -> Result<(), NetworkError> {
        let in_use = |what, member: &Member| NetworkError::InUse {
            network: id.name.clone(),
            what,
            holder: member.machine.clone(),
        };
        let members = if old.is_some() { self.members(network)? } else { Vec::new() };
        for member in &members {
            if let IpAddr::V4(address) = member.address
                && old.is_some_and(|old| old.subnet != subnet)
                && subnet.machine(address).is_err()
            {
                return Err(in_use("the subnet", member));
            }
        }
        let has_key = self.records.has_key(network, key);
        let mycelium = match old.filter(|_| has_key) {
            Some(old) => old.mycelium,
            None => {
                self.records.with_key(network, key, |path| mycelium::address(&self.config, path))?
            }
        };
        let is_another = old.is_some_and(|old| old.mycelium != mycelium);
        if let Some(user) = members.iter().find(|one| one.address.is_ipv6()).filter(|_| is_another)
        {
            return Err(in_use("the mycelium key", user));
        }
        let record = Record { workload: id.clone(), subnet, mycelium };
        if old != Some(&record) {
            self.records.write(&record)?;
        }
        if !has_key {
            // Ended before, so that no crash leaves one running with a key that is gone.
            self.services.stop(&mycelium::name(network))?;
            self.records.write_key(network, key)?;
        }
        self.converge(network, &record, |_| Ok(()))?;
        let key = self.records.key_path(network);
        self.services.start(&mycelium::service(&self.config, network, &key))
    }

    fn check_count(&self) -> Result<(), NetworkError> {
        let count = self.records.count()?;
        if count < NETWORK_COUNT_MAX { Ok(()) } else { Err(NetworkError::NetworkCount { count }) }
    }

    fn attachment(&self, layout: &Layout, members: &[Member]) -> Attachment {
        let gateway = layout.mycelium_gateway();
        let interfaces = members.iter().map(|member| {
            let mac = MacAddress::of(&member.tap);
            let tap = member.tap.clone();
            match member.address {
                IpAddr::V4(address) => Interface {
                    tap,
                    mac,
                    address: cidr(address.into(), layout.subnet.prefix_len()),
                    gateway: Some(layout.subnet.gateway().into()),
                    routes: Vec::new(),
                    mtu: PRIVATE_MTU,
                },
                IpAddr::V6(address) => Interface {
                    tap,
                    mac,
                    address: cidr(address.into(), gateway.prefix_len()),
                    gateway: None,
                    routes: vec![Route { to: overlay(), via: gateway.address() }],
                    mtu: MYCELIUM_MTU,
                },
            }
        });
        let console_address = match gateway.address() {
            IpAddr::V6(address) => address,
            IpAddr::V4(_) => unreachable!("mycelium is IPv6"),
        };
        Attachment {
            namespace: self.config.namespaces.join(layout.id.light_namespace()),
            interfaces: interfaces.collect(),
            name_servers: NAME_SERVERS.to_vec(),
            console_address,
        }
    }

    fn lock(&self, id: &NetworkId) -> MutexGuard<'_, ()> {
        let sum =
            id.as_str().bytes().fold(0_usize, |sum, byte| sum * 31 % 65_521 + usize::from(byte));
        // A lock protects no data that a panic could spoil.
        self.locks[sum % LOCK_COUNT].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a machine is to have in a network.
fn members_of(
    record: &Record,
    vm: &WorkloadId,
    ip: Option<Ipv4Addr>,
    seed: Option<[u8; SEED_SIZE]>,
) -> Result<Vec<Member>, NetworkError> {
    let network = &record.workload.name;
    let mut members = Vec::with_capacity(2);
    if let Some(ip) = ip {
        let tap = vm.light_private_tap(network).name;
        let address = record.subnet.machine(ip)?.into();
        members.push(Member { machine: vm.clone(), tap, address });
    }
    if let Some(seed) = seed {
        let tap = vm.light_mycelium_tap(network).name;
        let address = mycelium_address(record.mycelium, seed)
            .map_err(|error| NetworkError::Seed(vm.name.clone(), error))?
            .address();
        members.push(Member { machine: vm.clone(), tap, address });
    }
    if members.is_empty() {
        return Err(NetworkError::NoAddress(vm.name.clone(), network.clone()));
    }
    Ok(members)
}

/// Adds a machine to those that are there, if there is room and its addresses are free.
fn admit(network: &Name, all: &mut Vec<Member>, new: &[Member]) -> Result<(), NetworkError> {
    let mut machines: Vec<_> = all.iter().map(|member| &member.machine).collect();
    machines.sort();
    machines.dedup();
    if machines.len() >= MACHINE_COUNT_MAX {
        return Err(NetworkError::MachineCount { network: network.clone(), count: machines.len() });
    }
    for member in new {
        if let Some(holder) = all.iter().find(|one| one.address == member.address) {
            let (address, holder) = (member.address, holder.machine.clone());
            return Err(NetworkError::AddressTaken { address, holder });
        }
    }
    all.extend_from_slice(new);
    Ok(())
}

fn check_name(name: &Name) -> Result<(), NetworkError> {
    name.check().map_err(|source| NetworkError::Name {
        // It may be anything.
        name: name.as_str().chars().filter(|one| !one.is_control()).take(NAME_SHOWN).collect(),
        source,
    })
}

/// Most characters of a bad name that an error shows.
const NAME_SHOWN: usize = 40;

fn cidr(address: IpAddr, prefix_len: u8) -> Cidr {
    Cidr::new(address, prefix_len).unwrap_or_else(|| unreachable!("{address} has more bits"))
}

/// All of mycelium: `400::/7`.
fn overlay() -> Cidr {
    cidr(IpAddr::V6(std::net::Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 0)), 7)
}

#[cfg(test)]
mod tests;
