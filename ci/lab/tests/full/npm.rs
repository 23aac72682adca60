//! The TypeScript client that people have, from npm, unmodified, deploys on a node with real machines.
//!
//! The same script as against a pretended node (`ci/devgrid/tests/stock_clients.rs`), with an image that
//! boots. The grid is in a network of its own: the client finds a relay at port 443 only, and its
//! identity service has a fixed name, which leads to the grid there.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::guest_files::succeed;
use crate::world::{Options, World};

const PACKAGE: &str = include_str!("../../../devgrid/tests/npm/package.json");
const LOCK: &str = include_str!("../../../devgrid/tests/npm/package-lock.json");
const SCRIPTS: [(&str, &str); 2] = [
    ("common.js", include_str!("../../../devgrid/tests/npm/common.js")),
    ("grid.test.js", include_str!("../../../devgrid/tests/npm/grid.test.js")),
];
/// The name that `grid_client` has for the identity service of the network `dev`.
const IDENTITY_SERVICE: &str = "kyc.dev.grid.tf";
/// Set in the network of its own: the folder of the clients.
const INSIDE: &str = "STOCK_CLIENTS_FOLDER";
/// How long one of its deployments may take.
const TIME_MAX_MS: &str = "600000";

#[test]
fn the_client_from_npm_deploys_on_a_node_with_real_machines() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        return deploy_by(Path::new(&folder));
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
    let mut inside = Command::new("timeout");
    inside.args(["--kill-after=5", "1500", "unshare"]);
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        inside.args(["--user", "--map-root-user"]);
    }
    inside.args(["--net", "--mount", "sh", "-c", script, "sh"]);
    inside.arg(std::env::current_exe().unwrap());
    let name = "npm::the_client_from_npm_deploys_on_a_node_with_real_machines";
    inside.args(["--exact", name, "--nocapture"]);
    let status = inside.env(INSIDE, folder).env("HOSTS", hosts).status().unwrap();
    assert!(status.success(), "{status}");
}

/// The folder with the clients, installed if they are not; the same that `stock_clients` has.
fn install() -> PathBuf {
    let sum = LOCK.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31) ^ u32::from(byte));
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    let folder = cache.join("zero-os").join(format!("stock-clients-{sum:08x}"));
    std::fs::create_dir_all(&folder).unwrap();
    let done = folder.join("installed");
    if !done.exists() {
        std::fs::write(folder.join("package.json"), PACKAGE).unwrap();
        std::fs::write(folder.join("package-lock.json"), LOCK).unwrap();
        let mut npm = Command::new("timeout");
        npm.args(["--kill-after=5", "170", "npm", "ci", "--omit=dev", "--ignore-scripts"]);
        succeed(npm.args(["--no-audit", "--no-fund"]).current_dir(&folder));
        std::fs::write(done, "").unwrap();
    }
    folder
}

/// A grid, a node, and the client.
fn deploy_by(installed: &Path) {
    let world = World::new(Options {
        name: "npm",
        farm: "stock-farm",
        devgrid: &["--block-time-ms", "0", "--tls", "--tls-name", IDENTITY_SERVICE],
        memory_mib: 4608,
        disk_mib: 20 << 10,
        ..Options::default()
    });
    let before = world.holdings();
    let tests = PathBuf::from(world.path("npm"));
    std::fs::create_dir(&tests).unwrap();
    std::os::unix::fs::symlink(installed.join("node_modules"), tests.join("node_modules")).unwrap();
    for (name, text) in SCRIPTS {
        std::fs::write(tests.join(name), text).unwrap();
    }
    let node: serde_json::Value =
        serde_json::from_str(&world.grid(&["node", "show", "1", "--json"])).unwrap();
    let mut client = Command::new("timeout");
    // It leaves timers and sockets behind that would keep the process.
    client.args(["--kill-after=5", "1200", "node", "--test", "--test-force-exit", "grid.test.js"]);
    client.current_dir(&tests).env("HOME", &tests);
    client.env("NETWORK", world.path("grid/network.json"));
    client.env("NODE_EXTRA_CA_CERTS", world.path("grid/ca.pem"));
    client.env("NODE_ID", "1").env("NODE_TWIN", node["twin_id"].to_string());
    client.env("NODE_VERSION", env!("CARGO_PKG_VERSION")).env("TIME_MAX_MS", TIME_MAX_MS);
    client.env("FLIST", format!("{}/hub/lab/guest.fl", world.services()));
    client.env("ENTRYPOINT", "/bin/sleep 100000");
    let status = client.status().unwrap();
    assert!(status.success(), "{status}");
    world.holds_again(&before);
}
