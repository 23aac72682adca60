//! The mycelium process of a network: what it is started with, and the address that its key has.
//!
//! It runs in the network's namespace, dials the node's peers, and makes its device there. Its key stays
//! in a file; nothing secret is in its arguments. Machines could talk to its ports, so rules forbid it;
//! and it looks for no peers by multicast, which machines could pretend to be.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

use hostd_grid::derived::NetworkId;
use serde::Deserialize;
use supervise::{Client, Log, Policy, Program};

use super::layout::MYCELIUM_DEVICE;
use super::{NetworkConfig, NetworkError, program};

/// Bytes of a log file, and how many old ones are kept.
const LOG: (u64, u32) = (1 << 20, 1);
/// Bytes of memory that a network's mycelium may have.
const MEMORY_MAX: u64 = 256 << 20;
/// Threads that it may have.
const THREADS_MAX: u32 = 64;
/// How long one may take to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// Who runs the programs of networks. [`Client`] does on a node.
pub trait Services: Send + Sync {
    /// Has a program running, exactly as described. One that runs already, and was described so, stays.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    fn start(&self, program: &Program) -> Result<(), NetworkError>;

    /// Ends a program. One that does not run is no error.
    ///
    /// # Errors
    ///
    /// It cannot be ended, as far as one knows.
    fn stop(&self, name: &str) -> Result<(), NetworkError>;

    /// Names of all programs that run, or will again.
    ///
    /// # Errors
    ///
    /// Nobody says.
    fn names(&self) -> Result<Vec<String>, NetworkError>;
}

impl Services for Client {
    fn start(&self, program: &Program) -> Result<(), NetworkError> {
        let failed = |error: supervise::ClientError| wrong(error.to_string());
        match Self::start(self, program, &[]) {
            Err(error) if error.is_conflict() => {
                Self::stop(self, &program.name, GRACE).map_err(failed)?;
                Self::start(self, program, &[]).map_err(failed)?;
            }
            other => drop(other.map_err(failed)?),
        }
        Ok(())
    }

    fn stop(&self, name: &str) -> Result<(), NetworkError> {
        Self::stop(self, name, GRACE).map(drop).map_err(|error| wrong(error.to_string()))
    }

    fn names(&self) -> Result<Vec<String>, NetworkError> {
        let statuses = self.list().map_err(|error| wrong(error.to_string()))?;
        Ok(statuses.into_iter().map(|status| status.name).collect())
    }
}

/// What the process of a network is called.
pub(super) fn name(id: &NetworkId) -> String {
    format!("mycelium-{}", id.light_namespace())
}

/// The process of a network.
pub(super) fn service(config: &NetworkConfig, id: &NetworkId, key: &Path) -> Program {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut argv = vec![
        text(&config.mycelium),
        "--key-file".to_owned(),
        text(key),
        "--tun-name".to_owned(),
        MYCELIUM_DEVICE.to_owned(),
        "--disable-peer-discovery".to_owned(),
    ];
    if !config.mycelium_peers.is_empty() {
        argv.push("--peers".to_owned());
        argv.extend(config.mycelium_peers.iter().cloned());
    }
    let mut program = Program::new(name(id), argv);
    program.env = BTreeMap::new();
    program.policy = Policy::service();
    program.limits.memory_max = Some(MEMORY_MAX);
    program.limits.pids_max = Some(THREADS_MAX);
    program.network_namespace = Some(config.namespaces.join(id.light_namespace()));
    program.log = config.logs.as_ref().map(|folder| {
        let (size_max, kept) = LOG;
        Log { path: folder.join(format!("{}.log", name(id))), size_max, kept }
    });
    program
}

/// The address that belongs to a key, which mycelium itself says.
pub(super) fn address(config: &NetworkConfig, key: &Path) -> Result<Ipv6Addr, NetworkError> {
    #[derive(Deserialize)]
    struct Inspected {
        address: Ipv6Addr,
    }
    let key = key.to_string_lossy();
    let arguments = ["--key-file", &key, "inspect", "--json"];
    let answer =
        program::run(&config.mycelium, &arguments, "").map_err(|error| wrong(error.to_string()))?;
    let inspected: Inspected =
        serde_json::from_str(&answer).map_err(|error| wrong(error.to_string()))?;
    // 400::/7
    if inspected.address.segments()[0] >> 9 != 0x0400 >> 9 {
        return Err(wrong(format!("{} is no mycelium address", inspected.address)));
    }
    Ok(inspected.address)
}

fn wrong(reason: String) -> NetworkError {
    NetworkError::Program { program: "mycelium", reason }
}

#[cfg(test)]
mod tests {
    use hostd_grid::{Name, TwinId};

    use super::*;

    #[test]
    fn a_process_is_described_without_its_key() {
        let mut config = NetworkConfig::new("/run/networks");
        config.mycelium_peers = vec!["tcp://100.127.0.1:9651".to_owned()];
        config.logs = Some("/var/log/networks".into());
        let id = NetworkId::of(TwinId(11), &Name::new("net1"));
        let program = service(&config, &id, Path::new("/run/networks/x.key"));
        program.check().unwrap();
        assert_eq!(program.name, format!("mycelium-n{id}"));
        let expected = "/usr/bin/mycelium --key-file /run/networks/x.key --tun-name my0 \
                        --disable-peer-discovery --peers tcp://100.127.0.1:9651";
        assert_eq!(program.argv.join(" "), expected);
        assert_eq!(program.network_namespace, Some(format!("/run/netns/n{id}").into()));
        assert!(program.policy.restarts);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let fake = folder.path().join("mycelium");
        let say = |answer: &str| {
            std::fs::write(&fake, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&fake, mode).unwrap();
            let mut config = NetworkConfig::new("/run/networks");
            config.mycelium = fake.clone();
            address(&config, Path::new("/k")).map_err(|error| error.to_string())
        };
        assert_eq!(say(r#"{"publicKey":"x","address":"5ff::1"}"#), Ok("5ff::1".parse().unwrap()));
        for bad in ["", "{}", r#"{"address":"fe80::1"}"#, r#"{"address":"600::1"}"#] {
            assert!(say(bad).unwrap_err().starts_with("mycelium: "), "{bad}");
        }
    }
}
