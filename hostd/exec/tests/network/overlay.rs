//! Machines of two networks reach one another by mycelium, with real mycelium nodes.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hostd_exec::network::{NetworkError, Networks, Services};
use hostd_grid::Name;
use supervise::Program;

use crate::frames::{self, Mac};
use crate::guest::Card;
use crate::world::{World, is_possible, network, workload};

/// How long two networks may take to find each other.
const PATIENCE: Duration = Duration::from_secs(60);

/// Services that run, as children of the test.
#[derive(Default)]
struct Children {
    running: Mutex<Vec<(String, Child)>>,
}

impl Services for Children {
    fn start(&self, program: &Program) -> Result<(), NetworkError> {
        let mut running = self.running.lock().unwrap();
        if running.iter().all(|(name, _)| *name != program.name) {
            let namespace = program.network_namespace.as_ref().unwrap();
            running.push((program.name.clone(), spawn(namespace, &program.argv)));
        }
        Ok(())
    }

    fn stop(&self, name: &str) -> Result<(), NetworkError> {
        let mut running = self.running.lock().unwrap();
        running.retain_mut(|(running, child)| {
            if running == name {
                end(child);
            }
            running != name
        });
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, NetworkError> {
        Ok(self.running.lock().unwrap().iter().map(|(name, _)| name.clone()).collect())
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.running.lock().unwrap().iter_mut().for_each(|(_, child)| end(child));
    }
}

fn spawn(namespace: &Path, argv: &[String]) -> Child {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).args(argv).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn end(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The program, if it was built with the tests.
fn mycelium() -> Option<PathBuf> {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent()?.parent()?.join("mycelium");
    path.exists().then_some(path)
}

/// A machine's mycelium card, the gateway that it leaves by, and its address.
fn enter(networks: &Networks, twin: u32) -> (Card, Mac, Ipv6Addr) {
    let (id, vm) = (workload(twin, "net1"), workload(twin, "vm1"));
    let key = u8::try_from(twin).unwrap();
    networks.provision(&id, &network("10.20.2.0/24", key)).unwrap();
    let attached = networks.attach(&Name::new("net1"), &vm, None, Some([key; 6])).unwrap();
    let card = Card::open(&attached, 0);
    let IpAddr::V6(gateway) = card.interface.routes[0].via else { panic!("IPv6") };
    let mac = card.discover(gateway).expect("a gateway");
    let address = card.ipv6();
    (card, mac, address)
}

#[test]
fn networks_meet_by_mycelium_alone() {
    if !is_possible() {
        return;
    }
    let Some(program) = mycelium() else {
        eprintln!("skipped: networks meet by mycelium, which is not built");
        return;
    };
    let world = World::new();
    let mut config = world.config();
    config.mycelium = program.clone();
    let key = world.folder.path().join("node.key");
    let arguments = ["--key-file", key.to_str().unwrap(), "--no-tun", "--disable-peer-discovery"];
    let argv = [&[program.to_str().unwrap()][..], &arguments].concat().into_iter();
    let argv: Vec<String> = argv.map(str::to_owned).collect();
    let mut node = spawn(&config.uplink, &argv);
    let services = Arc::new(Children::default());
    let networks = Networks::open(config, services.clone()).unwrap();
    let ((a, via, from), (b, back, to)) = (enter(&networks, 11), enter(&networks, 12));
    let started = Instant::now();
    let mut mark = 0x0e0e_0000;
    let found = loop {
        mark += 1;
        a.send(&frames::ping6((via, a.mac), (from, to), mark));
        let ends = |frame: &[u8]| frame.ends_with(&mark.to_be_bytes());
        let wait = Duration::from_millis(500);
        // The other one keeps its gateway informed of its MAC.
        assert!(b.discover("fe80::1".parse().unwrap()).is_some());
        if b.receive(wait, ends).is_some() {
            break true;
        }
        if started.elapsed() > PATIENCE {
            break false;
        }
    };
    eprintln!("networks met after {:?}", started.elapsed());
    assert!(found);
    // And back; but not from an address that is not its own.
    assert!(a.discover("fe80::1".parse().unwrap()).is_some());
    b.send(&frames::ping6((back, b.mac), (from, from), 0x0bad_0bad));
    b.send(&frames::ping6((back, b.mac), (to, from), 0x600d_600d));
    a.expect_mark(0x600d_600d, &[0x0bad_0bad]);
    drop((a, b));
    for twin in [11, 12] {
        networks.remove(&workload(twin, "net1")).unwrap();
    }
    assert!(services.running.lock().unwrap().is_empty());
    assert_eq!(world.left(), Vec::<String>::new());
    end(&mut node);
}
