//! What machines say and are told, for their owners: a `guestio` process a console, and one a log.
//!
//! ```text
//!   machine ──► console-ID = guestio console --folder RUNTIME --listen PRIVATE --listen MYCELIUM
//!   zlogs   ──► zlogs-ID   = guestio logs --config zlogs/ID/config.json
//! ```
//!
//! Both run in the namespace of the machine's network, under the supervisor. A console comes before its
//! machine and goes after it, so that who finds a machine finds its console. A [log](logs) that is sent
//! somewhere is a workload of its own.
//!
//! Who is in the network may use a console without being asked who they are, as on existing nodes. Who
//! comes by mycelium from elsewhere needs a ticket, which is in a file in the machine's folder for a
//! minute, for `guestio` to find, and goes to the owner over the message bus.

pub mod logs;
mod tickets;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostd_grid::derived::WorkloadId;
use supervise::client::ClientError;
use supervise::{Client, Limits, Log, Policy, Program};

/// Bytes of memory that one may have.
const MEMORY_MAX: u64 = 64 << 20;
/// Threads that one may have.
const THREADS_MAX: u32 = 4;
/// Bytes of what one says of itself; no older file is kept.
const LOG_SIZE_MAX: u64 = 64 << 10;
/// How long one may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// Where things are.
#[derive(Debug, Clone)]
pub struct GuestIoConfig {
    /// The `guestio` program.
    pub program: PathBuf,
    /// Folder of what is kept of logs that are sent somewhere.
    pub logs: PathBuf,
}

/// Why something was not done. The texts reach the owner, and hold no secret.
#[derive(Debug, thiserror::Error)]
pub enum GuestIoError {
    /// The system says no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Logs don't go there.
    #[error("output: {0}")]
    Output(String),
    /// The supervisor says no.
    #[error(transparent)]
    Supervisor(#[from] ClientError),
}

/// Consoles and logs of all machines.
#[derive(Debug)]
pub struct GuestIo {
    config: GuestIoConfig,
    supervisor: Client,
    records: logs::Records,
}

impl GuestIo {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// The system says no.
    pub fn open(config: GuestIoConfig, supervisor: Client) -> io::Result<Self> {
        let records = logs::Records::open(config.logs.clone())?;
        Ok(Self { config, supervisor, records })
    }

    /// Serves a machine's console at these addresses, in a network namespace; `runtime` is the folder that
    /// its VMM listens in, and `state` one for what the process says.
    ///
    /// # Errors
    /// It can't be started.
    pub fn serve_console(
        &self,
        machine: &WorkloadId,
        (runtime, state): (&Path, &Path),
        namespace: &Path,
        addresses: &[SocketAddr],
    ) -> Result<(), GuestIoError> {
        let mut argv = self.argv("console", "--folder", runtime);
        for address in addresses {
            argv.extend(["--listen".to_owned(), address.to_string()]);
        }
        self.start(&described(console_name(machine), argv, namespace, state))
    }

    /// Ends a machine's console. One that is not served is no error.
    ///
    /// # Errors
    /// The supervisor does not answer.
    pub fn close_console(&self, machine: &WorkloadId) -> Result<(), GuestIoError> {
        self.supervisor.stop(&console_name(machine), GRACE)?;
        Ok(())
    }

    /// A ticket for the console whose folder that is.
    ///
    /// # Errors
    /// It can't be written down.
    pub fn ticket(&self, runtime: &Path) -> Result<String, GuestIoError> {
        let issued = tickets::issue(runtime);
        issued
            .map_err(|source| GuestIoError::Io { what: "the ticket can't be written down", source })
    }

    fn argv(&self, command: &str, option: &str, path: &Path) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        vec![text(&self.config.program), command.to_owned(), option.to_owned(), text(path)]
    }

    /// Has a program running as it is described.
    fn start(&self, program: &Program) -> Result<(), GuestIoError> {
        match self.supervisor.start(program, &[]) {
            // One runs, of another description.
            Err(error) if error.is_conflict() => {
                self.supervisor.stop(&program.name, GRACE)?;
                self.supervisor.start(program, &[])?;
            }
            other => drop(other?),
        }
        Ok(())
    }
}

fn described(name: String, argv: Vec<String>, namespace: &Path, folder: &Path) -> Program {
    let path = folder.join("guestio.log");
    Program {
        log: Some(Log { path, size_max: LOG_SIZE_MAX, kept: 0 }),
        policy: Policy::service(),
        limits: Limits {
            memory_max: Some(MEMORY_MAX),
            pids_max: Some(THREADS_MAX),
            cpu_max_percent: None,
        },
        network_namespace: Some(namespace.to_owned()),
        ..Program::new(name, argv)
    }
}

/// What the supervisor calls a machine's console.
pub fn console_name(machine: &WorkloadId) -> String {
    format!("console-{}", machine.device("vm"))
}

#[cfg(test)]
mod tests {
    use crate::storage::parse;

    use super::*;

    #[test]
    fn processes_are_described_within_the_supervisors_rules() {
        let machine = parse("7-9-vm").unwrap();
        let argv = vec!["/usr/bin/guestio".to_owned()];
        let program = described(console_name(&machine), argv, Path::new("/n"), Path::new("/s"));
        program.check().unwrap();
        assert!(program.name.starts_with("console-") && program.policy.restarts);
    }
}
