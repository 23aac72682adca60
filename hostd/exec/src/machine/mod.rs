//! The machine that a node's engine knows: its rooms, brought together.
//!
//! ```text
//!   Engine ──Host──► Machine ──┬─► Networks   namespaces, taps, mycelium, nft
//!                              ├─► Storage    disks, volumes, machines' roots
//!                              ├─► Zdbs       namespaces of keys and values
//!                              ├─► Images     flist fetch, boot, cached
//!                              ├─► Vms        vmm, one process each
//!                              └─► GuestIo    their consoles and logs, a guestio process each
//!   all of which start processes through `supervise`, and find them there again
//! ```
//!
//! A virtual machine is made in an order in which each step can be repeated and the last one is what
//! makes it be there: its record, its image, its root's disk, its place in the network, its process. It
//! goes in the reverse order, so that a record that is there says that something may be left. What fails
//! while a machine is first made takes all of it down again; a machine that was there before keeps its
//! root.
//!
//! Rooms block; each call has a thread of its own for as long as it takes. A workload is worked on by one
//! of them at a time, whether the engine or its owner asks.

mod about;
mod check;
mod config;
mod disks;
mod guestio;
mod machines;
mod ports;
mod power;
mod space;
mod whole_disk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hostd_grid::address::Cidr;
use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::{Name, WorkloadData, WorkloadType};
use hostd_node::host::{
    About, Console, Diagnosis, Doing, Hardware, Host, HostError, MachineAction, Pool, Resources,
    Task, UpdateError,
};
use supervise::Client;
use supervise::client::ClientError;
use tracing::warn;

use crate::facts::Facts;
use crate::guestio::{GuestIo, GuestIoConfig};
use crate::image::{ImageConfig, ImageError, ImageTimes, Images};
use crate::locks::{Held, Locks};
use crate::network::{NODE_ADDRESS, NetworkConfig, NetworkError, Networks};
use crate::storage::{PoolKind, Storage, StorageError};
use crate::vm::rehearsal::rehearse;
use crate::vm::{VmConfig, Vms};
use crate::zdb::{ServerConfig, ZdbConfig, ZdbError, Zdbs};

use machines::machine_of;

pub use config::{Config, Guest, ImageLimits, NetworkSettings, Programs, ZdbSettings};

/// What it can run.
const SUPPORTED: &[WorkloadType] = &[
    WorkloadType::ZMachineLight,
    WorkloadType::NetworkLight,
    WorkloadType::ZMount,
    WorkloadType::Volume,
    WorkloadType::Zdb,
    WorkloadType::Zlogs,
];
/// What it runs without offering it: machines of full nodes, as far as they want no more than light ones.
/// Clients that find the type among a node's features use networks of full nodes, too, which this has not.
const TOLERATED: &[WorkloadType] = &[WorkloadType::ZMachine];
/// What else it can do, by the names that clients look for.
const EXTRA_FEATURES: &[&str] = &["mycelium"];
/// The file with ports of servers of namespaces.
const ZDB_PORTS: &str = "zdb-ports.json";
/// How long a machine that nobody reserved may take.
const REHEARSAL_TIME_MAX: Duration = Duration::from_secs(30);

/// This machine, as a host of workloads.
pub struct Machine {
    inner: Arc<Inner>,
}

/// What its calls share.
struct Inner {
    config: Config,
    supervisor: Client,
    networks: Networks,
    images: Images,
    storage: Storage,
    disks: disks::Disks,
    zdbs: Zdbs,
    vms: Vms,
    guestio: GuestIo,
    /// Workloads that are worked on.
    locks: Locks,
}

/// Why this is no machine for workloads.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Something in the configuration can't be.
    #[error("[machine] {key}: {reason}")]
    Config {
        /// Where.
        key: String,
        /// Why.
        reason: String,
    },
    /// A folder can't be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The supervisor is not there.
    #[error(transparent)]
    Supervisor(#[from] ClientError),
    /// Images can't be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Networks can't be had.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Pools can't be had.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Disks can't be looked at.
    #[error("disks: {0}")]
    Disks(io::Error),
    /// Namespaces can't be had.
    #[error(transparent)]
    Zdb(#[from] ZdbError),
}

impl Machine {
    /// Finds what is there, and has the services run that workloads need. Blocks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(mut config: Config) -> Result<Self, OpenError> {
        config.check()?;
        // Everything else may be on them.
        let (disks, storage) = config.open_disks()?;
        let logs = config.state.join("logs");
        for path in [&config.state, &config.runtime, &logs] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|source| OpenError::Io { path: path.clone(), source })?;
        }
        let supervisor = Client::connect(&config.supervisor)?;
        let images = Images::open(config.images(&logs), &supervisor)?;
        let services = Arc::new(supervisor.clone());
        let networks = Networks::open(config.networks(&logs)?, services)?;
        let at = |path: PathBuf| move |source| OpenError::Io { path, source };
        let zdbs = Zdbs::open(&config.zdbs(&logs, &storage)?, &supervisor)?;
        let machines = config.vms(images.socket());
        let vms = Vms::open(machines, supervisor.clone()).map_err(at(config.state.join("vms")))?;
        let logs = config.state.join("zlogs");
        let told = GuestIoConfig { program: config.programs.guestio.clone(), logs: logs.clone() };
        let guestio = GuestIo::open(told, supervisor.clone()).map_err(at(logs))?;
        let locks = Locks::default();
        let inner = Inner {
            config,
            supervisor,
            networks,
            images,
            storage,
            disks,
            zdbs,
            vms,
            guestio,
            locks,
        };
        let inner = Arc::new(inner);
        disks::look_after(&inner);
        Ok(Self { inner })
    }

    /// Folders of all pools, where a copy of what must not be lost may be.
    pub fn pool_folders(&self) -> Vec<PathBuf> {
        self.inner.storage.folders()
    }

    /// Does something that blocks.
    fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> Doing<'_, T> {
        let inner = Arc::clone(&self.inner);
        let thread = tokio::task::spawn_blocking(move || work(&inner));
        Box::pin(async move {
            match thread.await {
                Ok(value) => value,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime ends, and nobody waits for this any more.
                    Err(_) => std::future::pending().await,
                },
            }
        })
    }
}

impl Config {
    fn check(&self) -> Result<(), OpenError> {
        let Programs { vmm, flist, mycelium, zdb, guestio, disk_boot, nft, .. } = &self.programs;
        let Guest { kernel, initramfs } = &self.guest;
        let disk_boot = disk_boot.as_ref().map(|path| ("programs.disk_boot", path));
        let always = [
            ("programs.vmm", vmm),
            ("programs.flist", flist),
            ("programs.mycelium", mycelium),
            ("programs.zdb", zdb),
            ("programs.guestio", guestio),
            ("programs.nft", nft),
            ("guest.kernel", kernel),
            ("guest.initramfs", initramfs),
        ];
        for (key, path) in always.into_iter().chain(disk_boot) {
            let reason = match path.metadata() {
                _ if !path.is_absolute() => format!("{} is not absolute", path.display()),
                Err(error) => format!("{}: {error}", path.display()),
                Ok(_) => continue,
            };
            return Err(OpenError::Config { key: key.to_owned(), reason });
        }
        for (key, path) in
            [("state", &self.state), ("runtime", &self.runtime), ("supervisor", &self.supervisor)]
        {
            if !path.is_absolute() {
                let reason = format!("{} is not absolute", path.display());
                return Err(OpenError::Config { key: key.to_owned(), reason });
            }
        }
        Ok(())
    }

    fn images(&self, logs: &std::path::Path) -> ImageConfig {
        ImageConfig {
            folder: self.state.join("images"),
            cache: self.state.join("blocks"),
            socket: self.runtime.join("cached.sock"),
            logs: logs.to_owned(),
            flist: self.programs.flist.clone(),
            size_max: self.images.size_max,
            cache_size_max: self.images.cache_size_max,
            routes: self.images.allow_routes.clone(),
            times: ImageTimes::default(),
        }
    }

    fn networks(&self, logs: &std::path::Path) -> Result<NetworkConfig, OpenError> {
        let usual = NetworkConfig::new(self.state.join("networks"));
        let settings = &self.network;
        let reachable: Result<Vec<_>, _> =
            settings.reachable.iter().map(|text| Cidr::parse(text)).collect();
        Ok(NetworkConfig {
            nft: self.programs.nft.clone(),
            mycelium: self.programs.mycelium.clone(),
            logs: Some(logs.to_owned()),
            mycelium_peers: settings.mycelium_peers.clone(),
            node_ports: self.node_ports(&usual.node_ports)?,
            uplink: settings.uplink.clone().unwrap_or_else(|| usual.uplink.clone()),
            reachable: reachable.map_err(|error| OpenError::Config {
                key: "network.reachable".to_owned(),
                reason: error.to_string(),
            })?,
            ..usual
        })
    }

    /// Ports that networks reach: of the node's mycelium, and of its servers of namespaces.
    fn node_ports(&self, usual: &[u16]) -> Result<Vec<u16>, OpenError> {
        let mut ports = self.network.node_ports.clone().unwrap_or_else(|| usual.to_vec());
        ports.extend(self.zdb_ports()?.into_values());
        Ok(ports)
    }

    /// Ports of servers of namespaces, by their pools.
    fn zdb_ports(&self) -> Result<BTreeMap<String, u16>, OpenError> {
        let file = self.state.join(ZDB_PORTS);
        let pools = self.pools.iter().filter(|pool| pool.kind == PoolKind::Hdd);
        let names = pools.map(|pool| pool.name.as_str());
        let ports = ports::of_pools(&file, self.zdb.port, names);
        ports.map_err(|source| OpenError::Io { path: file, source })
    }

    fn zdbs(&self, logs: &std::path::Path, storage: &Storage) -> Result<ZdbConfig, OpenError> {
        let ZdbSettings { listen, addresses, .. } = &self.zdb;
        let own = || {
            let interfaces = Facts::read().interfaces().into_values().flatten();
            interfaces.chain([NODE_ADDRESS.into()]).collect()
        };
        let addresses = if addresses.is_empty() { own() } else { addresses.clone() };
        let ports = self.zdb_ports()?;
        let servers = storage.hard_disks()?.into_iter().filter_map(|disk| {
            let (listen, port) = (*listen, *ports.get(&disk.pool)?);
            let addresses = addresses.clone();
            Some(ServerConfig { disk, listen, port, addresses, network_namespace: None })
        });
        Ok(ZdbConfig {
            program: self.programs.zdb.clone(),
            runtime: self.runtime.join("zdb"),
            logs: Some(logs.to_owned()),
            start_time_max: ZdbConfig::START_TIME_MAX,
            book: self.state.join("namespaces.json"),
            servers: servers.collect(),
        })
    }

    fn vms(&self, cache: &std::path::Path) -> VmConfig {
        VmConfig {
            state: self.state.join("vms"),
            runtime: self.runtime.join("vms"),
            vmm: self.programs.vmm.clone(),
            disk_boot: self.programs.disk_boot.clone(),
            kernel: self.guest.kernel.clone(),
            initramfs: self.guest.initramfs.clone(),
            cache: cache.to_owned(),
            start_time_max: VmConfig::START_TIME_MAX,
        }
    }
}

impl Inner {
    fn provision(&self, task: &Task) -> Result<RawJson, HostError> {
        let id = task.id();
        let _lock = self.lock(&id);
        match &task.workload().data {
            data @ (WorkloadData::ZMachineLight(_) | WorkloadData::ZMachine(_)) => {
                self.provision_machine(task, &*machine_of(data)?)
            }
            WorkloadData::Zlogs(zlogs) => self.provision_logs(task, zlogs),
            WorkloadData::NetworkLight(network) => {
                self.networks.provision(&id, network).map_err(host)?;
                Ok(RawJson::default())
            }
            other => self.provision_space(&id, other),
        }
    }

    fn update(&self, new: &Task) -> Result<RawJson, UpdateError> {
        let id = new.id();
        let _lock = self.lock(&id);
        match &new.workload().data {
            WorkloadData::NetworkLight(network) => {
                let updated = self.networks.update(&id, network);
                updated.map_err(|error| UpdateError::Unchanged(error.to_string()))?;
                Ok(RawJson::default())
            }
            other => self.update_space(new, other),
        }
    }

    fn remove(&self, id: &WorkloadId) -> Result<(), HostError> {
        let _lock = self.lock(id);
        self.guestio.remove_log(id).map_err(host)?;
        self.remove_machine(id)?;
        self.networks.remove(id).map_err(host)?;
        self.remove_space(id)
    }

    fn inventory(&self) -> Result<Vec<WorkloadId>, HostError> {
        let mut ids = self.vms.inventory().map_err(host)?;
        ids.extend(self.guestio.logs().map_err(host)?);
        ids.extend(self.networks.inventory().map_err(host)?);
        ids.extend(self.storage.inventory().map_err(host)?);
        ids.extend(self.zdbs.inventory());
        Ok(ids)
    }

    fn remains(&self) -> Result<Vec<WorkloadId>, HostError> {
        let mut ids = self.vms.remains().map_err(host)?;
        ids.extend(self.networks.remains().map_err(host)?);
        Ok(ids)
    }

    /// Forgets images that are too many.
    fn prune_images(&self) {
        let records = self.vms.records();
        let ids = records.ids().unwrap_or_default();
        let used: Result<BTreeSet<_>, io::Error> = { ids.iter() }
            .filter_map(|id| records.read(id).transpose())
            .map(|record| record.map(|record| record.image))
            .collect();
        // Whose image is not known may be any of them.
        if let Err(error) = used.and_then(|used| self.images.prune(&used)) {
            warn!(%error, "images that nobody uses stay");
        }
    }

    fn lock(&self, id: &WorkloadId) -> Held<'_> {
        self.locks.hold(id.to_string())
    }
}

/// What went wrong, in words for the owner.
fn host(error: impl std::error::Error) -> HostError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        // Some say their cause themselves.
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        source = error.source();
    }
    HostError(disks::without_numbers(&text))
}

impl Host for Machine {
    fn supported(&self) -> &[WorkloadType] {
        SUPPORTED
    }

    fn tolerated(&self) -> &[WorkloadType] {
        TOLERATED
    }

    fn extra_features(&self) -> &[&'static str] {
        EXTRA_FEATURES
    }

    fn provision(&self, task: Task) -> Doing<'_, Result<RawJson, HostError>> {
        self.on_thread(move |inner| inner.provision(&task))
    }

    fn update(&self, _old: Task, new: Task) -> Doing<'_, Result<RawJson, UpdateError>> {
        self.on_thread(move |inner| inner.update(&new))
    }

    fn remove(&self, id: WorkloadId) -> Doing<'_, Result<(), HostError>> {
        self.on_thread(move |inner| inner.remove(&id))
    }

    fn pause(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        self.on_thread(move |inner| inner.set_paused(&task, true))
    }

    fn resume(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        self.on_thread(move |inner| inner.set_paused(&task, false))
    }

    fn inventory(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        self.on_thread(Inner::inventory)
    }

    fn remains(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        self.on_thread(Inner::remains)
    }

    fn resources(&self) -> Resources {
        self.inner.resources()
    }

    fn pools(&self) -> Vec<Pool> {
        self.inner.pools()
    }

    fn about(&self) -> About {
        self.inner.about()
    }

    fn hardware(&self) -> Hardware {
        Facts::read().hardware
    }

    fn control(&self, task: Task, action: MachineAction) -> Doing<'_, Result<(), HostError>> {
        self.on_thread(move |inner| inner.control(&task, action))
    }

    fn console(&self, task: Task) -> Doing<'_, Result<Console, HostError>> {
        self.on_thread(move |inner| inner.console(&task))
    }

    fn fallen(&self) -> Doing<'_, Result<Vec<(WorkloadId, String)>, HostError>> {
        self.on_thread(|inner| {
            inner.end_strays()?;
            inner.vms.fallen().map_err(host)
        })
    }

    fn unfit(&self) -> Option<String> {
        let unfit = self.inner.disks.unfit().map(str::to_owned);
        unfit.or_else(|| power::unfit(Path::new("/dev/kvm")))
    }

    fn check(&self) -> Doing<'_, Vec<String>> {
        self.on_thread(|inner| power::check(&inner.config.state))
    }

    fn examine(&self, workloads: Vec<(Name, WorkloadData)>) -> Doing<'_, Vec<String>> {
        self.on_thread(move |inner| inner.examine(&workloads))
    }

    fn enable_wake(&self) -> Doing<'_, Result<(), HostError>> {
        self.on_thread(|inner| power::enable_wake(inner.config.power_off.is_some()))
    }

    fn power_off(&self) -> Doing<'_, Result<(), HostError>> {
        self.on_thread(|inner| power::power_off(inner.config.power_off.as_deref()))
    }

    fn rehearse(&self) -> Doing<'_, Result<Duration, HostError>> {
        self.on_thread(|inner| {
            let log = inner.config.state.join("logs/rehearsal.log");
            let config = inner.config.vms(inner.images.socket());
            rehearse(&config, &inner.supervisor, &log, REHEARSAL_TIME_MAX).map_err(host)
        })
    }

    fn set_clock(&self, time: i64) -> Doing<'_, Result<(), HostError>> {
        self.on_thread(move |_| power::set_clock(time))
    }

    fn diagnose(&self) -> Doing<'_, Diagnosis> {
        self.on_thread(Inner::diagnose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_cannot_run_is_not_announced() {
        assert!(!SUPPORTED.contains(&WorkloadType::Qsfs));
        assert!(!EXTRA_FEATURES.iter().any(|feature| feature.contains("qsfs")));
    }
}
