//! What machines say and are told, for their owners: consoles, and logs that are sent somewhere.

use std::net::SocketAddr;

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
use crate::guestio::logs::Order;
use crate::network::{Attachment, NAME_SERVERS};

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

    #[test]
    fn each_type_of_machine_is_told_the_address_that_its_clients_know() {
        let addresses =
            ["[5ab:1:2:3::1]:20005", "10.20.2.1:20005"].map(|text| text.parse().unwrap());
        let url = |kind| console_url(kind, &addresses);
        assert_eq!(url(WorkloadType::ZMachineLight), "[5ab:1:2:3::1]:20005");
        assert_eq!(url(WorkloadType::ZMachine), "10.20.2.1:20005");
    }
}
