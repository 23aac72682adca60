//! The clients that people have, from npm, against a grid on this machine.
//!
//! They are installed once, with the versions of the lock file, into the cache directory. The relay is
//! served at port 443, as the message bus's stock client finds no other.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Grid;

/// The lock file says which versions; another one gets another folder.
const LOCK: &str = include_str!("npm/package-lock.json");
const PACKAGE: &str = include_str!("npm/package.json");
const TESTS: &str = include_str!("npm/stock.test.js");
const INSTALL_TIME_MAX: Duration = Duration::from_secs(600);
const RUN_TIME_MAX: Duration = Duration::from_secs(180);
/// Where `wss` is when no port is named.
const WSS_PORT: u16 = 443;

#[test]
fn stock_clients_work() {
    if Command::new("npm").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: there is no npm on this machine");
        return;
    }
    let clients = install();
    let dir = tempfile::tempdir().unwrap();
    let (grid, _) = Grid::up(dir.path(), WSS_PORT);
    let mut node = Command::new("node");
    node.args(["--test", "stock.test.js"]).current_dir(clients);
    node.env("NETWORK", dir.path().join("network.json"));
    node.env("NODE_EXTRA_CA_CERTS", dir.path().join("ca.pem"));
    run(node, RUN_TIME_MAX);
    assert!(grid.terminate());
}

/// The folder with the clients, installed if they are not.
fn install() -> PathBuf {
    let sum = LOCK.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31) ^ u32::from(byte));
    let folder = cache().join(format!("stock-clients-{sum:08x}"));
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in
        [("package.json", PACKAGE), ("package-lock.json", LOCK), ("stock.test.js", TESTS)]
    {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let done = folder.join("installed");
    if !done.exists() {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]);
        npm.current_dir(&folder);
        run(npm, INSTALL_TIME_MAX);
        std::fs::write(done, "").unwrap();
    }
    folder
}

fn cache() -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("zero-os")
}

/// Runs `command` to its good end, or kills it when it takes too long.
fn run(mut command: Command, time_max: Duration) {
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let end = Instant::now() + time_max;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{command:?}: {status}");
            return;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} takes longer than {time_max:?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
