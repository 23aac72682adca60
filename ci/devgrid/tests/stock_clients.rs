//! The clients that people have, from npm, unmodified, against a grid on this machine and a node on it.
//!
//! They are installed once, with the versions of the lock file, into the cache directory. The grid runs in
//! a network of its own: the message bus's client finds a relay at port 443 only, and the identity
//! service of `grid_client` has a fixed name, which leads to the grid there.

#![expect(clippy::unwrap_used, reason = "a test stops where something is wrong")]

mod common;
#[path = "common/node.rs"]
mod node;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Grid;

const PACKAGE: &str = include_str!("npm/package.json");
/// The lock file says which versions; another one gets another folder.
const LOCK: &str = include_str!("npm/package-lock.json");
const COMMON: &str = include_str!("npm/common.js");
const TESTS: [(&str, &str); 5] = [
    ("polkadot.test.js", include_str!("npm/polkadot.test.js")),
    ("tfchain.test.js", include_str!("npm/tfchain.test.js")),
    ("proxy.test.js", include_str!("npm/proxy.test.js")),
    ("bus.test.js", include_str!("npm/bus.test.js")),
    ("grid.test.js", include_str!("npm/grid.test.js")),
];
const INSTALL_TIME_MAX: Duration = Duration::from_secs(170);
const RUN_TIME_MAX: Duration = Duration::from_secs(170);
/// Where `wss` is when no port is named.
const WSS_PORT: u16 = 443;
/// The name that `grid_client` has for the identity service of the network `dev`.
const IDENTITY_SERVICE: &str = "kyc.dev.grid.tf";
/// Set in the network of its own: the folder of the clients.
const INSIDE: &str = "STOCK_CLIENTS_FOLDER";

#[test]
fn stock_clients_work() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        return run_clients(Path::new(&folder));
    }
    if Command::new("npm").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: there is no npm on this machine");
        return;
    }
    let folder = install();
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1 localhost {IDENTITY_SERVICE}\n")).unwrap();
    let script = "ip link set lo up && mount --bind \"$HOSTS\" /etc/hosts && exec \"$@\"";
    let mut inside = Command::new("unshare");
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        inside.args(["--user", "--map-root-user"]);
    }
    inside.args(["--net", "--mount", "sh", "-c", script, "sh"]);
    inside.arg(std::env::current_exe().unwrap());
    inside.args(["--exact", "stock_clients_work", "--nocapture"]);
    inside.env(INSIDE, folder).env("HOSTS", hosts);
    run(inside, RUN_TIME_MAX + Duration::from_secs(60));
}

/// The folder with the clients, installed if they are not.
fn install() -> PathBuf {
    let sum = LOCK.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31) ^ u32::from(byte));
    let folder = cache().join(format!("stock-clients-{sum:08x}"));
    std::fs::create_dir_all(&folder).unwrap();
    let done = folder.join("installed");
    if !done.exists() {
        std::fs::write(folder.join("package.json"), PACKAGE).unwrap();
        std::fs::write(folder.join("package-lock.json"), LOCK).unwrap();
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

/// A grid, a node, and the clients.
fn run_clients(installed: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (grid, network) = Grid::up(dir, WSS_PORT, &["--tls-name", IDENTITY_SERVICE]);
    let ca = dir.join("ca.pem");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let authority = std::fs::read(&ca).unwrap();
    let node = runtime.block_on(node::start(&network, dir.join("node"), &authority));

    let tests = dir.join("tests");
    std::fs::create_dir(&tests).unwrap();
    std::os::unix::fs::symlink(installed.join("node_modules"), tests.join("node_modules")).unwrap();
    for (name, text) in TESTS.into_iter().chain([("common.js", COMMON)]) {
        std::fs::write(tests.join(name), text).unwrap();
    }
    let mut clients = Command::new("node");
    // These clients leave timers and sockets behind that would keep the process.
    clients.args(["--test", "--test-force-exit", "--test-concurrency=1"]);
    clients.args(TESTS.map(|(name, _)| name)).current_dir(&tests);
    clients.env("NETWORK", dir.join("network.json")).env("NODE_EXTRA_CA_CERTS", ca);
    // What they store in a home is stored here.
    clients.env("HOME", dir);
    clients.env("NODE_ID", node.node_id.to_string()).env("NODE_TWIN", node.twin_id.to_string());
    run(clients, RUN_TIME_MAX);
    drop(node);
    assert!(grid.terminate());
}

/// Runs `command` to its good end, or kills it when it takes too long. What it said is shown only then.
fn run(mut command: Command, time_max: Duration) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = log.reopen().unwrap();
    command.stdout(output.try_clone().unwrap()).stderr(output);
    let said = || String::from_utf8_lossy(&std::fs::read(log.path()).unwrap()).into_owned();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let end = Instant::now() + time_max;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{}\n{command:?}: {status}", said());
            return;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{}\n{command:?} takes longer than {time_max:?}", said());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
