//! What machines say and are told, for their owners: consoles, and logs that are sent somewhere.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use hostd_grid::derived::WorkloadId;
use hostd_grid::derived::network::console_port;
use hostd_grid::json::RawJson;
use hostd_grid::workload::Zlogs;
use hostd_grid::{Name, WorkloadData, WorkloadType};
use hostd_node::host::{Console, HostError, Task};
use tracing::warn;

use super::check::Place;
use super::machines::{machine_of, result_of};
use super::{Inner, host};
use crate::guestio::console_name;
use crate::guestio::logs::{Order, log_name};
use crate::network::{Attachment, NAME_SERVERS};
use crate::vm;

/// What the names of programs of machines and logs begin with.
const PREFIXES: [&str; 3] = ["vm-", "console-", "zlogs-"];
/// How long a program that nobody reserved may take to end.
const STRAY_GRACE: Duration = Duration::from_secs(2);

/// Where a machine's console is: over mycelium, and in its private network.
pub(super) fn console_addresses(attachment: &Attachment, place: &Place) -> Vec<SocketAddr> {
    let port = console_port(place.address);
    let private = attachment.interfaces.iter().find_map(|card| card.gateway);
    let mycelium = Some(attachment.console_address.into());
    { [mycelium, private] }.into_iter().flatten().map(|ip| SocketAddr::new(ip, port)).collect()
}

/// What a machine's result says of it, as existing nodes of either type do.
pub(super) fn console_url(kind: WorkloadType, addresses: &[SocketAddr]) -> String {
    let is_of_kind = |address: &&SocketAddr| match kind {
        WorkloadType::ZMachine => address.is_ipv4(),
        _ => address.is_ipv6(),
    };
    addresses.iter().find(is_of_kind).map(ToString::to_string).unwrap_or_default()
}

impl Inner {
    /// Has a machine's console served, before there is a machine: it waits.
    pub(super) fn serve_console(
        &self,
        id: &WorkloadId,
        attachment: &Attachment,
        addresses: &[SocketAddr],
    ) -> Result<(), HostError> {
        let runtime = self.vms.runtime(id).map_err(host)?;
        let state = self.vms.records().folder(id);
        let folders = (runtime.as_path(), state.as_path());
        let served = self.guestio.serve_console(id, folders, &attachment.namespace, addresses);
        served.map_err(host)
    }

    /// Ends a machine's console.
    pub(super) fn close_console(&self, id: &WorkloadId) -> Result<(), HostError> {
        self.guestio.close_console(id).map_err(host)?;
        self.vms.clear(id).map_err(host)
    }

    /// Lets a machine's owner use its console from anywhere.
    pub(super) fn console(&self, task: &Task) -> Result<Console, HostError> {
        let id = task.id();
        let _lock = self.lock(&id);
        let machine = machine_of(&task.workload().data)?;
        let record = self.record(&id)?;
        let record = record.ok_or_else(|| HostError(format!("there is no machine {id}")))?;
        // What was told when it was made; it is true as long as the machine is there.
        let told: serde_json::Value =
            serde_json::from_str(result_of(&record)?.as_str()).map_err(host)?;
        let url = told.get("console_url").and_then(serde_json::Value::as_str);
        let served: Option<SocketAddr> = url.and_then(|url| url.parse().ok());
        let [interface] = machine.network.interfaces.as_slice() else {
            return Err(HostError(format!("machine {id} has no network")));
        };
        let both = self.networks.gateways(id.twin_id, &interface.network).map_err(host)?;
        let port = served.map(|address| address.port());
        let port = port.ok_or_else(|| HostError(format!("machine {id} has no console")))?;
        let addresses = both.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        let runtime = self.vms.runtime(&id).map_err(host)?;
        let ticket = self.guestio.ticket(&runtime).map_err(host)?;
        Ok(Console { addresses, ticket })
    }

    /// Ends VMMs, consoles and logs of which nothing is kept: nobody reserved them. What is kept is kept
    /// from before they start until after they end, so none that is wanted is taken for one.
    pub(super) fn end_strays(&self) -> Result<(), HostError> {
        // Asked first: what starts meanwhile is kept before it starts.
        let running = self.supervisor.list().map_err(host)?.into_iter().map(|status| status.name);
        let machines = self.vms.records().ids().map_err(host)?;
        let logs = self.guestio.kept_logs().map_err(host)?;
        for name in strays(running, &machines, &logs) {
            warn!(program = %name, "nobody reserved it: ended");
            self.supervisor.stop(&name, STRAY_GRACE).map_err(host)?;
        }
        Ok(())
    }

    /// Sends a machine's log somewhere, or finds it sent.
    pub(super) fn provision_logs(&self, task: &Task, zlogs: &Zlogs) -> Result<RawJson, HostError> {
        let id = task.id();
        let is_new = !self.guestio.has_log(&id);
        let sent = self.with_order(task, zlogs, |order| self.guestio.send_log(&id, order));
        if sent.is_err() && is_new {
            // Why it could not be sent is the news; what is left goes when it is removed.
            if let Err(error) = self.guestio.remove_log(&id) {
                warn!(log = %id, %error, "a log that could not be sent is not forgotten");
            }
        }
        sent.map(|()| RawJson::default())
    }

    /// Sends no more while it is not paid for.
    pub(super) fn set_log_paused(
        &self,
        task: &Task,
        zlogs: &Zlogs,
        is_paused: bool,
    ) -> Result<(), HostError> {
        let id = task.id();
        if is_paused {
            return self.guestio.pause_log(&id).map_err(host);
        }
        self.with_order(task, zlogs, |order| self.guestio.resume_log(&id, order))
    }

    fn with_order(
        &self,
        task: &Task,
        zlogs: &Zlogs,
        act: impl FnOnce(&Order<'_>) -> Result<(), crate::guestio::GuestIoError>,
    ) -> Result<(), HostError> {
        let machine = task.id().sibling(&zlogs.zmachine);
        if self.record(&machine)?.is_none() {
            return Err(HostError(format!("machine '{}' is not there", zlogs.zmachine)));
        }
        let network = network_of(task, &zlogs.zmachine)?;
        let namespace = self.networks.namespace(machine.twin_id, &network).map_err(host)?;
        let log = self.vms.log(&machine);
        let output = zlogs.output.expose();
        act(&Order { log, output, name_servers: &NAME_SERVERS, namespace }).map_err(host)
    }
}

/// Programs of machines and logs of which nothing is kept.
fn strays(
    running: impl Iterator<Item = String>,
    machines: &[WorkloadId],
    logs: &[WorkloadId],
) -> Vec<String> {
    let consoles = machines.iter().map(console_name);
    let known = machines.iter().map(vm::name).chain(consoles).chain(logs.iter().map(log_name));
    let known: BTreeSet<String> = known.collect();
    let is_ours = |name: &String| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    running.filter(|name| is_ours(name) && !known.contains(name)).collect()
}

/// The network of a machine of the same deployment.
fn network_of(task: &Task, name: &Name) -> Result<Name, HostError> {
    let workloads = &task.deployment().deployment().workloads;
    let interfaces = { workloads.iter() }.find(|workload| workload.name == *name).map(|found| {
        match &found.data {
            WorkloadData::ZMachine(machine) => machine.network.interfaces.as_slice(),
            WorkloadData::ZMachineLight(machine) => machine.network.interfaces.as_slice(),
            _ => &[],
        }
    });
    let first = interfaces.and_then(<[_]>::first);
    let network = first.map(|interface| interface.network.clone());
    network.ok_or_else(|| HostError(format!("'{name}' is no machine in a network")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::parse;

    #[test]
    fn what_nobody_reserved_is_found_and_nothing_else() {
        let [kept, lost, log] = ["7-9-vm", "7-8-vm", "7-9-log"].map(|id| parse(id).unwrap());
        let running = [
            vm::name(&kept),
            console_name(&kept),
            vm::name(&lost),
            console_name(&lost),
            log_name(&log),
            log_name(&lost),
            "mycelium-nX".to_owned(),
            "zdb-hdd".to_owned(),
        ];
        let found = strays(running.into_iter(), &[kept], &[log]);
        assert_eq!(found, [vm::name(&lost), console_name(&lost), log_name(&lost)]);
    }

    #[test]
    fn each_type_of_machine_is_told_the_address_that_its_clients_know() {
        let addresses =
            ["[5ab:1:2:3::1]:20005", "10.20.2.1:20005"].map(|text| text.parse().unwrap());
        let url = |kind| console_url(kind, &addresses);
        assert_eq!(url(WorkloadType::ZMachineLight), "[5ab:1:2:3::1]:20005");
        assert_eq!(url(WorkloadType::ZMachine), "10.20.2.1:20005");
    }
}
