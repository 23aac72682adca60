//! Days of duties in moments: a chain, a machine and a clock that do what a test wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use hostd_chain::calls::NodeSpec;
use hostd_chain::types::{Interface, NodePower, NruConsumption, Power, PowerState, PublicConfig};
use hostd_chain::{ChainConfig, Event};
use hostd_grid::WorkloadType;
use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::*;
use crate::engine::lock;
use crate::health::Duty;
use crate::host::{
    About, Card, Doing, Hardware, HostError, Pool, Resources, Task, Traffic, UpdateError,
};
use crate::registrar::Answer;
use crate::state::MemoryState;
use crate::testing::{Body, NODE, TestLedger, signed};

mod outage;

const MINUTE: Duration = Duration::from_secs(60);
const FARM: u32 = 3;

/// A chain that remembers what it was told, with the time since the test began.
struct TestRegistrar {
    start: tokio::time::Instant,
    told: Mutex<Vec<(u64, String)>>,
    is_gone: Mutex<bool>,
    node_id: Mutex<u32>,
    power: Mutex<NodePower>,
    /// By how many seconds our clock is ahead of the chain's.
    skew: Mutex<i64>,
    /// How often it was told or asked, heard or not, by the first word of what.
    tried: Mutex<BTreeMap<String, usize>>,
}

impl TestRegistrar {
    fn new() -> Self {
        Self {
            start: tokio::time::Instant::now(),
            told: Mutex::default(),
            is_gone: Mutex::default(),
            node_id: Mutex::new(NODE),
            power: Mutex::new(NodePower { state: PowerState::Up, target: Power::Up }),
            skew: Mutex::default(),
            tried: Mutex::default(),
        }
    }

    fn answer<'a, T: Send + 'a>(&self, what: &str, value: impl FnOnce() -> T) -> Answer<'a, T> {
        let kind = what.split(' ').next().unwrap_or_default().to_owned();
        *lock(&self.tried).entry(kind).or_default() += 1;
        let answer = match *lock(&self.is_gone) {
            true => Err(ChainError::Incompatible("nobody listens".into())),
            false => {
                let told = (self.start.elapsed().as_secs(), what.to_owned());
                if !what.is_empty() {
                    lock(&self.told).push(told);
                }
                Ok(value())
            }
        };
        Box::pin(async move { answer })
    }

    /// What it was told of one kind, and when.
    fn take(&self, what: &str) -> Vec<(u64, String)> {
        let mut told = lock(&self.told);
        let (found, rest) = told.drain(..).partition(|(_, text)| text.starts_with(what));
        *told = rest;
        found
    }

    fn times(&self, what: &str) -> Vec<u64> {
        self.take(what).into_iter().map(|(time, _)| time / 60).collect()
    }
}

impl Registrar for TestRegistrar {
    fn register<'a>(&'a self, account: &'a Account, spec: &'a NodeSpec) -> Answer<'a, Numbers> {
        let ips: Vec<_> = spec.interfaces.iter().flat_map(|card| card.ips.clone()).collect();
        let ips: Vec<_> = ips.iter().map(|ip| ip.as_str()).collect();
        let what = format!(
            "register {} {} virtualized={} secure={} serial={:?}",
            account.relays,
            ips.join(","),
            spec.virtualized,
            spec.secure_boot,
            spec.serial_number,
        );
        let node_id = *lock(&self.node_id);
        self.answer(&what, || Numbers::new(node_id, 7, [1; 32], None))
    }

    fn farmer(&self, _farm: u32) -> Answer<'_, Option<u32>> {
        self.answer("", || Some(9))
    }

    fn public_config(&self, _node: u32) -> Answer<'_, Option<PublicConfig>> {
        self.answer("", || None)
    }

    fn interfaces(&self, node: u32) -> Answer<'_, Vec<Interface>> {
        let (name, mac) = ("zos".into(), format!("02:00:00:00:00:{node:02x}").as_str().into());
        self.answer("", || vec![Interface { name, mac, ips: Vec::new() }])
    }

    fn power(&self, _node: u32) -> Answer<'_, NodePower> {
        self.answer("", || *lock(&self.power))
    }

    fn set_power(&self, state: Power) -> Answer<'_, ()> {
        self.answer(&format!("power {state:?}"), || {
            lock(&self.power).state = match state {
                Power::Up => PowerState::Up,
                Power::Down => PowerState::Down(1),
            };
        })
    }

    fn report_uptime(&self, uptime: u64, time: u64) -> Answer<'_, ()> {
        assert!(uptime > 0 && time > 1_600_000_000);
        self.answer("uptime", || ())
    }

    fn report_traffic<'a>(&'a self, report: &'a [NruConsumption]) -> Answer<'a, ()> {
        let bytes: u64 = report.iter().map(|line| line.nru).sum();
        self.answer(&format!("traffic {bytes}"), || ())
    }

    fn time_ms(&self) -> Answer<'_, u64> {
        let chain = crate::engine::now() - *lock(&self.skew);
        self.answer("time", || u64::try_from(chain * 1000).unwrap())
    }
}

/// A machine whose state is what a test says.
#[derive(Default)]
struct Machine {
    ip: Mutex<u8>,
    unfit: Mutex<Option<String>>,
    ills: Mutex<Vec<String>>,
    can_wake: Mutex<bool>,
    bytes: Mutex<u64>,
    done: Mutex<Vec<String>>,
    /// What was made, removed, paused and resumed.
    steps: Mutex<Vec<String>>,
    there: Mutex<BTreeSet<WorkloadId>>,
}

impl Machine {
    fn note(&self, what: &str, id: &WorkloadId) {
        lock(&self.steps).push(format!("{what} {id}"));
    }
}

impl Host for Machine {
    fn supported(&self) -> &[WorkloadType] {
        &[WorkloadType::Zdb, WorkloadType::ZMachineLight]
    }

    fn extra_features(&self) -> &[&'static str] {
        &[]
    }

    fn provision(&self, task: Task) -> Doing<'_, Result<RawJson, HostError>> {
        self.note("provision", &task.id());
        lock(&self.there).insert(task.id());
        Box::pin(async { Ok(RawJson::default()) })
    }

    fn update(&self, _old: Task, _new: Task) -> Doing<'_, Result<RawJson, UpdateError>> {
        Box::pin(async { Ok(RawJson::default()) })
    }

    fn remove(&self, id: WorkloadId) -> Doing<'_, Result<(), HostError>> {
        self.note("remove", &id);
        lock(&self.there).remove(&id);
        Box::pin(async { Ok(()) })
    }

    fn pause(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        self.note("pause", &task.id());
        Box::pin(async { Ok(()) })
    }

    fn resume(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        self.note("resume", &task.id());
        Box::pin(async { Ok(()) })
    }

    fn inventory(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        Box::pin(async { Ok(lock(&self.there).iter().cloned().collect()) })
    }

    fn resources(&self) -> Resources {
        Resources::default()
    }

    fn pools(&self) -> Vec<Pool> {
        Vec::new()
    }

    fn about(&self) -> About {
        About { hypervisor: "kvm".into(), ..About::default() }
    }

    fn hardware(&self) -> Hardware {
        let ips = vec![[10, 0, 0, *lock(&self.ip)].into()];
        let card = Card { ips, mac: "02:00:00:00:00:01".into() };
        Hardware {
            cards: [("zos".to_owned(), card)].into(),
            secure_boot: true,
            board_serial: Some("S-1".into()),
            firmware: Vec::new(),
        }
    }

    fn traffic(&self) -> Doing<'_, Result<Vec<Traffic>, HostError>> {
        let (twin_id, contract_id) = (hostd_grid::TwinId(1), hostd_grid::ContractId(5));
        let id = WorkloadId { twin_id, contract_id, name: "ip".into() };
        let mut bytes = lock(&self.bytes);
        *bytes += 10;
        let traffic = vec![Traffic { id, bytes: *bytes }];
        Box::pin(async { Ok(traffic) })
    }

    fn unfit(&self) -> Option<String> {
        lock(&self.unfit).clone()
    }

    fn check(&self) -> Doing<'_, Vec<String>> {
        Box::pin(async { lock(&self.ills).clone() })
    }

    fn enable_wake(&self) -> Doing<'_, Result<(), HostError>> {
        let can_wake = *lock(&self.can_wake);
        Box::pin(async move {
            can_wake.then_some(()).ok_or_else(|| HostError("its card does not listen".into()))
        })
    }

    fn power_off(&self) -> Doing<'_, Result<(), HostError>> {
        lock(&self.done).push("off".into());
        Box::pin(async { Ok(()) })
    }

    fn rehearse(&self) -> Doing<'_, Result<Duration, HostError>> {
        lock(&self.done).push("rehearsal".into());
        let ill = lock(&self.ills).first().cloned();
        Box::pin(async { ill.map_or(Ok(Duration::from_millis(700)), |ill| Err(HostError(ill))) })
    }

    fn set_clock(&self, time: i64) -> Doing<'_, Result<(), HostError>> {
        lock(&self.done).push(format!("clock {time}"));
        Box::pin(async { Ok(()) })
    }
}

struct Bench {
    shared: Arc<Shared>,
    chain: Arc<TestRegistrar>,
    machine: Arc<Machine>,
    ledger: Arc<TestLedger>,
    reports: std::path::PathBuf,
    duties: JoinSet<()>,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = Arc::new(Machine::default());
        let host = Arc::clone(&machine) as Arc<dyn Host>;
        let store = Store::open(folder.path().join("d"), StoreKey::from_seed(&[9; 32])).unwrap();
        let ledger = Arc::new(TestLedger::default());
        ledger.pay(&Body::default());
        let contracts = Arc::clone(&ledger) as Arc<dyn Ledger>;
        let engine = Engine::start(EngineConfig::new(NODE), store, contracts, Arc::clone(&host));
        let engine = engine.await.unwrap();
        let (registrar, health) = (Arc::new(TestRegistrar::new()), Arc::new(Health::default()));
        let state: Arc<dyn StateStore> = Arc::new(MemoryState::default());
        let results = Results::new(Arc::clone(&state));
        let known = Known::new(Place::default(), Vec::new(), Arc::clone(&health), results);
        let roots = TrustedRoots::new(None).unwrap();
        let chain = Chain::new(ChainConfig::new(vec!["ws://127.0.0.1:1".into()], roots)).unwrap();
        let shared = Shared {
            numbers: Numbers::new(NODE, 7, [1; 32], None),
            twins: Arc::new(CachedTwins::new(Arc::new(chain.clone()))),
            chain,
            registrar: Arc::clone(&registrar) as Arc<dyn Registrar>,
            site: Site {
                farm_id: FARM,
                place: Place::default(),
                account: Account { relays: "relay".into(), ..Account::default() },
                wake_to: BROADCAST,
            },
            state,
            host,
            engine: Arc::new(engine),
            known: Arc::new(known),
            health,
            power: tokio::sync::Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            chain: registrar,
            machine,
            ledger,
            reports: folder.path().join("reports"),
            duties: JoinSet::new(),
            _folder: folder,
        }
    }

    fn error(&self, duty: Duty) -> Option<String> {
        self.shared.health.progress().remove(&duty).and_then(|progress| progress.error)
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.machine.done))
    }

    fn steps(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.machine.steps))
    }
}

#[tokio::test(start_paused = true)]
async fn uptime_is_reported_every_forty_minutes_and_after_an_outage() {
    let mut bench = Bench::new().await;
    bench.duties.spawn(Arc::clone(&bench.shared).report_uptime());
    sleep(MINUTE * 90).await;
    assert_eq!(bench.chain.times("uptime"), [0, 40, 80]);
    *lock(&bench.chain.is_gone) = true;
    sleep(MINUTE * 120).await;
    assert_eq!(bench.chain.times("uptime"), [0; 0]);
    assert!(bench.error(Duty::Uptime).unwrap().contains("nobody listens"));
    *lock(&bench.chain.is_gone) = false;
    sleep(MINUTE * 50).await;
    // At once but for the pause until the next try, and from then on as before.
    let times = bench.chain.times("uptime");
    assert!((210..=212).contains(&times[0]), "{times:?}");
    assert_eq!(times[1] - times[0], 40);
    assert_eq!(bench.error(Duty::Uptime), None);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_ill_says_nothing_of_its_uptime() {
    let mut bench = Bench::new().await;
    *lock(&bench.machine.ills) = vec!["/var/lib: read-only file system".into()];
    bench.duties.spawn(Arc::clone(&bench.shared).report_uptime());
    sleep(MINUTE * 90).await;
    assert_eq!(bench.chain.times("uptime"), [0; 0]);
    let error = bench.error(Duty::Uptime).unwrap();
    assert_eq!(error, "withheld: /var/lib: read-only file system");
    lock(&bench.machine.ills).clear();
    *lock(&bench.machine.unfit) = Some("virtualization is not enabled".into());
    sleep(MINUTE * 10).await;
    let error = bench.error(Duty::Uptime).unwrap();
    assert_eq!(error, "withheld: virtualization is not enabled");
    *lock(&bench.machine.unfit) = None;
    sleep(retry::RETRY_MAX).await;
    assert_eq!(bench.chain.times("uptime").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_registered_again_and_with_what_is_new_of_it() {
    let mut bench = Bench::new().await;
    let (renumber, renumbered) = watch::channel(false);
    let shared = Arc::clone(&bench.shared);
    bench.duties.spawn(shared.keep_registered(false, renumber));
    sleep(MINUTE * 24 * 60).await;
    let told = bench.chain.take("register");
    assert!(told.len() >= 24, "{told:?}");
    let facts = "virtualized=true secure=true serial=Some(\"S-1\")";
    let first = format!("register relay 10.0.0.0 {facts}");
    assert!(told.iter().all(|(_, text)| *text == first), "{told:?}");
    assert!(bench.shared.known.is_farmer(9));

    let begin = bench.chain.start.elapsed().as_secs();
    *lock(&bench.machine.ip) = 8;
    sleep(MINUTE * 6).await;
    let told = bench.chain.take("register");
    assert!(told[0].0 - begin <= 6 * 60, "{told:?}");
    assert_eq!(told[0].1, format!("register relay 10.0.0.8 {facts}"));
    // The chain is another one, on which the node has another number.
    *lock(&bench.chain.node_id) = 99;
    sleep(MINUTE * 60).await;
    assert!(*renumbered.borrow());
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_virtualisation_or_without_ssd_is_no_node() {
    for reason in ["virtualization is not enabled", "no disks: there is no SSD"] {
        let mut bench = Bench::new().await;
        *lock(&bench.machine.unfit) = Some(reason.into());
        let registered =
            registration::register(&*bench.chain, &bench.shared.site, &*bench.machine).await;
        assert_eq!(registered.unwrap_err().to_string(), reason);
        let (renumber, _) = watch::channel(false);
        bench.duties.spawn(Arc::clone(&bench.shared).keep_registered(false, renumber));
        sleep(MINUTE * 30).await;
        assert_eq!(bench.chain.take("register"), []);
        assert_eq!(bench.error(Duty::Registration).unwrap(), reason);
        // Nor does it take deployments, should it have been a node before.
        let deploy = async || {
            let twin = hostd_grid::TwinId(1);
            bench.shared.engine.deploy(twin, &signed(&Body::default())).await
        };
        let refused = deploy().await.unwrap_err().to_string();
        assert_eq!(refused, format!("this node takes no deployments: {reason}"));
        // Somebody mended it.
        *lock(&bench.machine.unfit) = None;
        deploy().await.unwrap();
        sleep(MINUTE * 3).await;
        assert_eq!(bench.chain.take("register").len(), 1);
        assert_eq!(bench.error(Duty::Registration), None);
    }
}

#[tokio::test(start_paused = true)]
async fn reports_of_traffic_wait_for_the_chain_and_are_sent_when_it_is_back() {
    let mut bench = Bench::new().await;
    std::fs::create_dir(&bench.reports).unwrap();
    // As if an hour was counted.
    let meter = serde_json::json!({
        "counters": {}, "sums": { "5": 7 }, "since": crate::engine::now() - 3700,
    });
    std::fs::write(bench.reports.join("meter"), meter.to_string()).unwrap();
    *lock(&bench.chain.is_gone) = true;
    let reports = duties::Reports::open(&bench.reports).unwrap();
    bench.duties.spawn(Arc::clone(&bench.shared).count_traffic(reports));
    sleep(MINUTE * 110).await;
    assert_eq!(bench.chain.take("traffic"), []);
    assert!(bench.error(Duty::Traffic).unwrap().contains("nobody listens"));
    *lock(&bench.chain.is_gone) = false;
    sleep(retry::RETRY_MAX).await;
    // Of the hour before, and of the one that went by.
    let told = bench.chain.take("traffic");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[1].0 <= 112 * 60);
    assert_eq!(bench.error(Duty::Traffic), None);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_can_be_woken_is_switched_off_when_its_farmer_wants_it() {
    let bench = Bench::new().await;
    *lock(&bench.machine.can_wake) = true;
    lock(&bench.chain.power).target = Power::Down;
    let event = |node_id, power_target| {
        Event::PowerTargetChanged(hostd_chain::event::PowerTargetChanged {
            farm_id: FARM,
            node_id,
            power_target,
        })
    };
    // Another node's, or another farm's.
    bench.shared.obey(event(NODE + 1, Power::Down)).await;
    assert_eq!(bench.done(), [""; 0]);
    bench.shared.obey(event(NODE, Power::Down)).await;
    let told: Vec<_> = bench.chain.take("").into_iter().map(|(_, text)| text).collect();
    assert_eq!(told, ["power Down", "uptime"]);
    assert_eq!(bench.done(), ["off"]);

    // It was woken, and says so after its first uptime.
    lock(&bench.chain.power).target = Power::Up;
    let mut duties = JoinSet::new();
    duties.spawn(Arc::clone(&bench.shared).report_uptime());
    sleep(MINUTE).await;
    let told: Vec<_> = bench.chain.take("").into_iter().map(|(_, text)| text).collect();
    assert_eq!(told, ["uptime", "power Up"]);
    assert_eq!(bench.done(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_nobody_could_wake_or_that_somebody_uses_stays_on() {
    let bench = Bench::new().await;
    *lock(&bench.chain.power) = NodePower { state: PowerState::Down(3), target: Power::Down };
    bench.shared.settle_power().await.unwrap();
    assert_eq!(bench.done(), [""; 0]);
    assert_eq!(bench.chain.take("").pop().unwrap().1, "power Up");

    *lock(&bench.machine.can_wake) = true;
    let twin = hostd_grid::TwinId(1);
    bench.shared.engine.deploy(twin, &signed(&Body::default())).await.unwrap();
    while lock(&bench.machine.there).is_empty()
        || bench.shared.engine.statistics().users.workloads == 0
    {
        sleep(Duration::from_millis(10)).await;
    }
    bench.shared.settle_power().await.unwrap();
    assert_eq!(bench.done(), [""; 0]);
    assert_eq!(bench.chain.take(""), []);
}

#[tokio::test(start_paused = true)]
async fn everything_is_compared_every_hour() {
    let mut bench = Bench::new().await;
    let twin = hostd_grid::TwinId(1);
    bench.shared.engine.deploy(twin, &signed(&Body::default())).await.unwrap();
    while bench.shared.engine.statistics().users.workloads == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    bench.duties.spawn(Arc::clone(&bench.shared).compare());
    sleep(MINUTE).await;
    // The contract ends, and nobody hears the event.
    lock(&bench.ledger.contracts).clear();
    sleep(MINUTE * 58).await;
    assert_eq!(lock(&bench.machine.there).len(), 1);
    sleep(MINUTE * 2).await;
    assert_eq!(lock(&bench.machine.there).len(), 0);
    assert_eq!(bench.error(Duty::Comparison), None);
}

#[tokio::test(start_paused = true)]
async fn a_sibling_that_its_farmer_wants_is_woken() {
    let mut bench = Bench::new().await;
    let card = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let shared = Arc::get_mut(&mut bench.shared).unwrap();
    shared.site.wake_to = card.local_addr().unwrap();
    let wanted = hostd_chain::event::PowerTargetChanged {
        farm_id: FARM,
        node_id: 0x20,
        power_target: Power::Up,
    };
    bench.shared.obey(Event::PowerTargetChanged(wanted)).await;
    let mut packet = [0; 200];
    assert_eq!(card.recv(&mut packet).await.unwrap(), 102);
    assert_eq!(packet[6..12], [2, 0, 0, 0, 0, 0x20]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_wrong_is_set_by_the_chains() {
    let mut bench = Bench::new().await;
    bench.duties.spawn(Arc::clone(&bench.shared).compare_clock());
    sleep(MINUTE * 5).await;
    assert_eq!(bench.error(Duty::Clock), None);
    assert_eq!(bench.done(), [""; 0]);
    *lock(&bench.chain.skew) = 7200;
    sleep(MINUTE * 2).await;
    assert!(bench.error(Duty::Clock).is_some());
    assert_eq!(bench.done(), [""; 0]);
    sleep(MINUTE * 4).await;
    let done = bench.done();
    assert!(done[0].starts_with("clock "), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn health_is_looked_at_every_quarter_of_an_hour_and_speed_is_measured_once() {
    let mut bench = Bench::new().await;
    bench.duties.spawn(Arc::clone(&bench.shared).check_health());
    bench.duties.spawn(Arc::clone(&bench.shared).measure());
    sleep(MINUTE * 2).await;
    let result = |name: &str| bench.shared.known.results.get(name);
    let health = || result("healthcheck").unwrap().result;
    let relay = "relay: not connected to any relay";
    assert_eq!(health(), serde_json::json!({ "cache": [], "network": [relay] }));
    lock(&bench.machine.ills).push("/var/lib: no space".into());
    bench.shared.health.note(Duty::Uptime, &Err("nobody listens"));
    sleep(MINUTE * 15).await;
    let expected = serde_json::json!({
        "cache": ["/var/lib: no space"], "network": [relay, "uptime: nobody listens"],
    });
    assert_eq!(health(), expected);
    assert_eq!(bench.error(Duty::Health).unwrap(), "/var/lib: no space");
    while result("cpu-benchmark").is_none() {
        sleep(MINUTE).await;
    }
    let speed = result("cpu-benchmark").unwrap().result;
    assert!(speed["single"].as_f64().unwrap() > 0.0 && speed["threads"].as_u64().unwrap() > 0);
    assert_eq!(speed["workloads"], 0);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_nobody_reserved_is_run_every_day_and_its_failure_shows() {
    let mut bench = Bench::new().await;
    lock(&bench.machine.ills).push("the machine did not start".into());
    bench.duties.spawn(Arc::clone(&bench.shared).rehearse());
    sleep(MINUTE * 11).await;
    assert_eq!(bench.done(), ["rehearsal"]);
    let result = || bench.shared.known.results.get("vm-test").unwrap().result;
    assert_eq!(result()["error"], "the machine did not start");
    assert_eq!(bench.error(Duty::Rehearsal).unwrap(), "the machine did not start");
    let modules = bench.shared.known.modules();
    assert_eq!(modules["rehearsal"].error, "the machine did not start");
    lock(&bench.machine.ills).clear();
    // A failure is looked at again in an hour.
    sleep(MINUTE * 130).await;
    assert!(!bench.done().is_empty());
    assert_eq!(result(), serde_json::json!({ "time_ms": 700, "error": null }));
    assert_eq!(bench.error(Duty::Rehearsal), None);
    sleep(MINUTE * 60 * 22).await;
    assert_eq!(bench.done(), [""; 0]);
    sleep(MINUTE * 60 * 4).await;
    assert_eq!(bench.done(), ["rehearsal"]);
}
