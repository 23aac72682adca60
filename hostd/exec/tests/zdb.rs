//! Namespaces in real servers under a real supervisor.
//!
//! Both are programs of other packages, which are built beside this test when the workspace is tested.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use hostd_exec::storage::HardDisk;
use hostd_exec::zdb::{ServerConfig, ZdbConfig, ZdbError, Zdbs};
use hostd_grid::derived::WorkloadId;
use hostd_grid::secret::SecretText;
use hostd_grid::workload::Zdb;
use hostd_grid::{ContractId, Name, TwinId};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use zdb_client::{Client, Endpoint, Password, Timeouts, Value};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(20);

/// A supervisor, and what two servers need.
struct Node {
    folder: TempDir,
    process: Child,
    supervisor: supervise::Client,
    config: ZdbConfig,
}

impl Node {
    /// None, with a message, if a program is not built.
    fn start() -> Option<Self> {
        let (supervise, zdb) = (program("supervise")?, program("zdb")?);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("supervise.sock");
        let process = Command::new(supervise)
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + LIMIT;
        let supervisor = loop {
            match supervise::Client::connect(&socket) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let servers = ["one", "two"].map(|pool| {
            let path = folder.path().join(pool);
            std::fs::create_dir(&path).unwrap();
            ServerConfig {
                disk: HardDisk { pool: pool.to_owned(), path, size: 10 * MIB },
                listen: IpAddr::V6(Ipv6Addr::LOCALHOST),
                port: free_port(),
                addresses: vec!["2001:db8::1".parse().unwrap(), "10.0.0.1".parse().unwrap()],
                network_namespace: None,
            }
        });
        let config = ZdbConfig {
            program: zdb,
            runtime: folder.path().join("run"),
            logs: Some(folder.path().to_owned()),
            start_time_max: ZdbConfig::START_TIME_MAX,
            book: folder.path().join("namespaces.json"),
            servers: servers.to_vec(),
        };
        Some(Self { folder, process, supervisor, config })
    }

    /// With servers that all answer.
    fn open(&self) -> Zdbs {
        let zdbs = Zdbs::open(&self.config, &self.supervisor).unwrap();
        until("all servers answer", || zdbs.check().is_empty());
        zdbs
    }

    /// What a user reaches.
    fn user(&self, port: u16) -> Client {
        let endpoint = Endpoint::Tcp("::1".to_owned(), port);
        Client::connect(&endpoint, &Timeouts::default()).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The servers die with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program beside this test's own: `target/debug/deps/test` and `target/debug/program`.
fn program(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let path = test.parent()?.parent()?.join(name);
    if !path.is_file() {
        eprintln!("skipped: {} is not built", path.display());
        return None;
    }
    Some(path)
}

/// A free port that the system gives to no client by itself: one of those could be in use, as the near
/// end of some connection, when the server comes to bind it.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() * 97 % 12_000).unwrap();
    loop {
        let port = 20_000 + (spread + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn id(name: &str) -> WorkloadId {
    WorkloadId { twin_id: TwinId(7), contract_id: ContractId(99), name: Name::new(name) }
}

fn zdb(size: u64, mode: &str, password: &str, public: bool) -> Zdb {
    Zdb { size, mode_name: mode.to_owned(), password: SecretText::new(password), public }
}

fn secret(text: &str) -> Option<Password> {
    Some(Password::new(text))
}

#[test]
fn a_namespace_from_its_making_to_its_removal() {
    let Some(node) = Node::start() else { return };
    let zdbs = node.open();
    let wanted = zdb(MIB, "user", "s3cret", true);
    let made = zdbs.provision(&id("data"), &wanted).unwrap();
    assert_eq!(made.namespace, "7-99-data");
    assert_eq!(made.ips, ["2001:db8::1", "10.0.0.1"]);
    // By the names that clients look for.
    let told = serde_json::to_value(&made).unwrap();
    let ips = ["2001:db8::1", "10.0.0.1"];
    let expected = serde_json::json!({"Namespace": "7-99-data", "IPs": ips, "Port": made.port});
    assert_eq!(told, expected);
    assert_eq!(zdbs.provision(&id("data"), &wanted).unwrap(), made);
    let mut user = node.user(made.port);
    // Nothing without the password but to read, which it allows.
    user.select("7-99-data", None).unwrap();
    assert!(user.set(b"k", b"v").is_err());
    assert!(user.select("7-99-data", secret("wrong").as_ref()).is_err());
    user.select("7-99-data", secret("s3cret").as_ref()).unwrap();
    user.set(b"k", b"v").unwrap();
    let full = user.set(b"big", &vec![1; 2 << 20]).unwrap_err().to_string();
    assert!(full.contains("No space left on this namespace"), "{full}");
    // The administrator's rights are nobody else's, nor the default namespace.
    assert!(user.call(&[b"NSNEW", b"mine"]).is_err());
    user.select("default", None).unwrap();
    assert!(user.set(b"k", b"v").is_err());

    let larger = zdb(4 * MIB, "user", "other", false);
    assert_eq!(zdbs.update(&id("data"), &larger).unwrap(), made);
    assert!(user.select("7-99-data", None).is_err());
    assert!(user.select("7-99-data", secret("s3cret").as_ref()).is_err());
    user.select("7-99-data", secret("other").as_ref()).unwrap();
    user.set(b"big", &vec![1; 2 << 20]).unwrap();
    assert_eq!(user.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    let text = |error: ZdbError| error.to_string();
    let smaller = zdbs.update(&id("data"), &zdb(MIB, "user", "other", false)).unwrap_err();
    assert_eq!(text(smaller), "cannot shrink zdb namespace");
    let other_mode = zdbs.update(&id("data"), &zdb(4 * MIB, "seq", "other", false)).unwrap_err();
    assert_eq!(text(other_mode), "cannot change namespace mode");

    zdbs.remove(&id("data")).unwrap();
    zdbs.remove(&id("data")).unwrap();
    assert_eq!(zdbs.inventory(), []);
    assert!(matches!(zdbs.update(&id("data"), &larger), Err(ZdbError::Absent(_))));
    let left = ["one/data/7-99-data", "two/data/7-99-data"];
    assert!(left.iter().all(|path| !node.folder.path().join(path).exists()));
}

#[test]
fn a_paused_namespace_stays_paused_over_restarts_of_everything() {
    let Some(node) = Node::start() else { return };
    let zdbs = node.open();
    let wanted = zdb(MIB, "seq", "", false);
    let made = zdbs.provision(&id("seq"), &wanted).unwrap();
    let mut user = node.user(made.port);
    user.select("7-99-seq", None).unwrap();
    let Value::Bulk(key) = user.call(&[b"SET", b"", b"v"]).unwrap() else { panic!("no key") };
    assert_eq!(key.len(), 8);
    zdbs.freeze(&id("seq")).unwrap();
    assert!(user.get(&key).unwrap_err().to_string().contains("temporarily frozen"));
    // What finds it again must not thaw it.
    drop(zdbs);
    let zdbs = node.open();
    zdbs.provision(&id("seq"), &wanted).unwrap();
    assert!(user.get(&key).is_err());
    for name in ["zdb-one", "zdb-two"] {
        node.supervisor.stop(name, LIMIT).unwrap();
    }
    assert_eq!(zdbs.inventory(), [id("seq")]);
    until("they are started again", || zdbs.check().is_empty());
    let mut user = node.user(made.port);
    user.select("7-99-seq", None).unwrap();
    assert!(user.get(&key).is_err());
    zdbs.thaw(&id("seq")).unwrap();
    assert_eq!(user.get(&key).unwrap().as_deref(), Some(&b"v"[..]));
    assert!(matches!(zdbs.freeze(&id("none")), Err(ZdbError::Absent(_))));
}

#[test]
fn disks_are_filled_by_what_was_promised_and_no_further() {
    let Some(node) = Node::start() else { return };
    let zdbs = node.open();
    let ports: Vec<u16> = ["a", "b", "c"]
        .into_iter()
        .map(|name| zdbs.provision(&id(name), &zdb(4 * MIB, "user", "", true)).unwrap().port)
        .collect();
    // Always where the most is left.
    assert_ne!(ports[0], ports[1]);
    let promised: u64 = zdbs.promised().values().sum();
    assert_eq!(promised, 12 * MIB);
    let full = "not enough space left in pools of this type hdd";
    let error = zdbs.provision(&id("d"), &zdb(7 * MIB, "user", "", true)).unwrap_err();
    assert_eq!(error.to_string(), full);
    let error = zdbs.update(&id("a"), &zdb(11 * MIB, "user", "", true)).unwrap_err();
    assert_eq!(error.to_string(), full);
    zdbs.provision(&id("d"), &zdb(6 * MIB, "user", "", true)).unwrap();
    assert_eq!(zdbs.inventory().len(), 4);
}

#[test]
fn a_namespace_that_nobody_owns_is_made_anew_for_its_owner() {
    let Some(node) = Node::start() else { return };
    let zdbs = node.open();
    let mut admin = admin(&node, "zdb-two");
    admin.call(&[b"NSNEW", b"7-99-half"]).unwrap();
    let mut squatter = node.user(node.config.servers[1].port);
    squatter.select("7-99-half", None).unwrap();
    squatter.set(b"k", b"v").unwrap();
    assert_eq!(zdbs.inventory(), [id("half")]);
    let made = zdbs.provision(&id("half"), &zdb(MIB, "seq", "pw", false)).unwrap();
    assert_eq!(made.port, node.config.servers[1].port);
    assert!(squatter.set(b"k", b"v").is_err());
    let mut user = node.user(made.port);
    assert!(user.select("7-99-half", None).is_err());
    user.select("7-99-half", secret("pw").as_ref()).unwrap();
    assert!(matches!(user.call(&[b"SET", b"", b"v"]).unwrap(), Value::Bulk(_)));
}

#[test]
fn a_namespace_is_never_there_without_its_password() {
    let Some(node) = Node::start() else { return };
    let zdbs = node.open();
    let ports = [0, 1].map(|index: usize| node.config.servers[index].port);
    let is_made = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let squatters: Vec<_> = { ports.iter() }
            .map(|port| {
                let mut user = node.user(*port);
                let is_made = &is_made;
                scope.spawn(move || {
                    let mut tries = 0_u32;
                    while !is_made.load(std::sync::atomic::Ordering::Relaxed) {
                        for number in 0..20 {
                            let name = format!("7-99-ns{number}");
                            assert!(user.select(&name, None).is_err(), "{name} is open");
                            tries += 1;
                        }
                    }
                    tries
                })
            })
            .collect();
        for number in 0..20 {
            let name = format!("ns{number}");
            zdbs.provision(&id(&name), &zdb(MIB / 2, "user", "pw", false)).unwrap();
        }
        is_made.store(true, std::sync::atomic::Ordering::Relaxed);
        let tries: u32 = squatters.into_iter().map(|squatter| squatter.join().unwrap()).sum();
        assert!(tries > 20, "{tries}");
    });
}

#[test]
fn a_server_that_does_not_start_holds_up_its_own_users_alone() {
    let Some(mut node) = Node::start() else { return };
    let zdbs = node.open();
    let made = zdbs.provision(&id("one"), &zdb(MIB, "user", "", true)).unwrap();
    zdbs.provision(&id("two"), &zdb(2 * MIB, "user", "", true)).unwrap();
    drop(zdbs);
    let lame = node.config.servers.iter().position(|server| server.port == made.port).unwrap();
    // An address that no machine has (RFC 5737): it ends at once, whenever it is started.
    node.config.servers[lame].listen = "192.0.2.1".parse().unwrap();
    node.config.start_time_max = Duration::from_secs(12);
    let begin = Instant::now();
    let zdbs = Zdbs::open(&node.config, &node.supervisor).unwrap();
    // Nothing of the node waits for it, nor does the other server.
    let mut all = zdbs.inventory();
    all.sort();
    assert_eq!(all, [id("one"), id("two")]);
    until("one answers", || zdbs.check().len() == 1);
    zdbs.freeze(&id("two")).unwrap();
    zdbs.thaw(&id("two")).unwrap();
    assert_eq!(zdbs.promised().len(), 1);
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
    // Who needs it waits for it, once.
    let error = zdbs.freeze(&id("one")).unwrap_err();
    assert!(matches!(error, ZdbError::Unavailable { .. }), "{error}");
    let waited = begin.elapsed();
    assert!(waited >= Duration::from_secs(12), "{waited:?}");
    assert!(zdbs.freeze(&id("one")).is_err());
    assert!(begin.elapsed() < waited + Duration::from_secs(6), "{:?}", begin.elapsed());
    let begin = Instant::now();
    zdbs.provision(&id("two"), &zdb(2 * MIB, "user", "", true)).unwrap();
    let new = zdbs.provision(&id("new"), &zdb(MIB, "user", "", true)).unwrap();
    assert_ne!(new.port, made.port);
    assert!(begin.elapsed() < LIMIT / 2, "{:?}", begin.elapsed());
    let mut all = zdbs.inventory();
    all.sort();
    assert_eq!(all, [id("new"), id("one"), id("two")]);
    let error = zdbs.provision(&id("one"), &zdb(MIB, "user", "", true)).unwrap_err();
    assert!(matches!(error, ZdbError::Unavailable { .. }), "{error}");
    assert!(zdbs.remove(&id("one")).is_err());
    zdbs.remove(&id("two")).unwrap();
    // A disk that is not there says nothing: what may be on it is made nowhere else.
    let disk = &node.config.servers[lame].disk.path;
    std::fs::rename(disk, disk.with_extension("away")).unwrap();
    std::fs::create_dir(disk).unwrap();
    assert!(zdbs.provision(&id("three"), &zdb(MIB, "user", "", true)).is_err());
    assert_eq!(zdbs.inventory(), [id("new")]);
}

#[test]
fn a_server_that_hangs_holds_up_others_once() {
    let Some(node) = Node::start() else { return };
    let zdbs = node.open();
    let made = zdbs.provision(&id("one"), &zdb(MIB, "user", "", true)).unwrap();
    zdbs.provision(&id("two"), &zdb(2 * MIB, "user", "", true)).unwrap();
    let hung = node.config.servers.iter().find(|server| server.port == made.port).unwrap();
    let pool = &hung.disk.pool;
    let status = node.supervisor.find(&format!("zdb-{pool}")).unwrap().unwrap();
    let pid = Pid::from_raw(status.pid.unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    // It takes connections still, as does one whose disk does not answer.
    assert_eq!(zdbs.promised().len(), 1);
    let begin = Instant::now();
    for _ in 0..10 {
        assert_eq!(zdbs.promised().len(), 1);
        assert_eq!(zdbs.check().keys().collect::<Vec<_>>(), [pool]);
    }
    // With patience each time, it were 100 s.
    assert!(begin.elapsed() < 2 * LIMIT, "{:?}", begin.elapsed());
    kill_process(pid, Signal::CONT).unwrap();
    until("it answers", || zdbs.check().is_empty());
    zdbs.freeze(&id("one")).unwrap();
}

#[test]
fn a_server_that_is_killed_or_whose_settings_are_lost_comes_back_with_its_data() {
    let Some(mut node) = Node::start() else { return };
    let zdbs = node.open();
    let made = zdbs.provision(&id("data"), &zdb(MIB, "user", "", true)).unwrap();
    let mut user = node.user(made.port);
    user.select("7-99-data", None).unwrap();
    user.set(b"k", b"v").unwrap();
    for status in node.supervisor.list().unwrap() {
        let pid = status.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }
    assert_eq!(zdbs.inventory(), [id("data")]);
    until("they are started again", || zdbs.check().is_empty());
    // Nobody knows the administrator's password any more.
    drop(zdbs);
    std::fs::remove_dir_all(node.folder.path().join("run")).unwrap();
    node.config.servers[0].port = free_port();
    node.config.servers[1].port = free_port();
    let zdbs = node.open();
    let again = zdbs.provision(&id("data"), &zdb(MIB, "user", "", true)).unwrap();
    assert_ne!(again.port, made.port);
    let mut user = node.user(again.port);
    user.select("7-99-data", None).unwrap();
    assert_eq!(user.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert!(zdbs.check().is_empty());
}

#[test]
fn another_program_serves_the_same_data_and_deletes_nothing() {
    let Some(mut node) = Node::start() else { return };
    // What an older program left beside its data is not ours to delete.
    let old = node.folder.path().join("one/zdb-v1/data/ns");
    std::fs::create_dir_all(&old).unwrap();
    std::fs::write(old.join("zdb-data-00000"), b"old data").unwrap();
    let zdbs = node.open();
    let wanted = zdb(MIB, "user", "", true);
    let made = zdbs.provision(&id("data"), &wanted).unwrap();
    let mut user = node.user(made.port);
    user.select("7-99-data", None).unwrap();
    user.set(b"k", b"v").unwrap();
    let pids = |node: &Node| {
        let statuses = node.supervisor.list().unwrap();
        statuses.into_iter().filter_map(|status| status.pid).collect::<Vec<_>>()
    };
    let before = pids(&node);
    drop(zdbs);
    let newer = node.folder.path().join("zdb-newer");
    std::fs::copy(&node.config.program, &newer).unwrap();
    node.config.program = newer;
    let zdbs = node.open();
    assert_eq!(zdbs.inventory(), [id("data")]);
    let is_new = || pids(&node).iter().all(|pid| !before.contains(pid));
    until("the old program does not run any more", || pids(&node).len() == 2 && is_new());
    until("the new one answers", || zdbs.check().is_empty());
    let mut user = node.user(zdbs.provision(&id("data"), &wanted).unwrap().port);
    user.select("7-99-data", None).unwrap();
    assert_eq!(user.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(std::fs::read(old.join("zdb-data-00000")).unwrap(), b"old data");
}

#[test]
fn what_a_missing_disk_has_is_made_on_no_other() {
    let Some(mut node) = Node::start() else { return };
    let wanted = zdb(MIB, "user", "", true);
    let zdbs = node.open();
    let made = zdbs.provision(&id("data"), &wanted).unwrap();
    let mut user = node.user(made.port);
    user.select("7-99-data", None).unwrap();
    user.set(b"k", b"v").unwrap();
    drop(zdbs);

    let all = node.config.servers.clone();
    let its = all.iter().position(|server| server.port == made.port).unwrap();
    node.config.servers.remove(its);
    let zdbs = node.open();
    // It is there, as far as anybody can tell, and can't be had.
    assert_eq!(zdbs.inventory(), [id("data")]);
    let pool = &all[its].disk.pool;
    let missing = format!("zdb server of pool {pool} is not available: its disk is missing");
    let refused = |error: Option<ZdbError>| assert_eq!(error.unwrap().to_string(), missing);
    refused(zdbs.provision(&id("data"), &wanted).err());
    refused(zdbs.update(&id("data"), &wanted).err());
    refused(zdbs.freeze(&id("data")).err());
    // Everybody else is served.
    let other = zdbs.provision(&id("other"), &wanted).unwrap();
    assert_ne!(other.port, made.port);
    zdbs.remove(&id("other")).unwrap();
    drop(zdbs);

    node.config.servers = all;
    let zdbs = node.open();
    assert_eq!(zdbs.provision(&id("data"), &wanted).unwrap(), made);
    assert_eq!(user.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    drop(zdbs);

    // What is over while its disk is missing is not asked for any more, and found when the disk comes back.
    let server = node.config.servers.remove(its);
    let zdbs = node.open();
    zdbs.remove(&id("data")).unwrap();
    assert_eq!(zdbs.inventory(), []);
    drop(zdbs);
    node.config.servers.insert(its, server);
    assert_eq!(node.open().inventory(), [id("data")]);
}

fn admin(node: &Node, name: &str) -> Client {
    let settings = std::fs::read_to_string(node.config.runtime.join(format!("{name}.toml")));
    let settings = settings.unwrap();
    let password = settings.lines().find_map(|line| line.strip_prefix("admin = \"")).unwrap();
    let endpoint = Endpoint::Unix(node.config.runtime.join(format!("{name}.sock")));
    let mut client = Client::connect(&endpoint, &Timeouts::default()).unwrap();
    client.auth(&Password::new(password.trim_end_matches('"'))).unwrap();
    client
}
