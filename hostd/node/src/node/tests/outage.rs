//! An hour and a half without chain and relay: what a node does meanwhile, and what it catches up with.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use hostd_grid::ContractId;
use hostd_grid::workload::State;
use hostd_rmb::server::Commands;
use hostd_rmb::signature::Scheme;
use hostd_rmb::twins::{self, Twin, TwinLookup};
use rmb_relay::{Relay, RelayConfig};
use tokio::net::TcpListener;

use super::*;
use crate::engine::now;
use crate::health::Progress;
use crate::ledger::ContractState;

/// Deployments: one that nothing happens to, one that is cancelled meanwhile, one that is not paid from then
/// on, and one that is accepted just before its contract would be there.
const KEPT: u64 = 5;
const OVER: u64 = 6;
const UNPAID: u64 = 7;
const LATE: u64 = 8;
/// One that comes while nobody can say whose it is.
const REFUSED: u64 = 9;
/// Tries of anything in an hour and a half, if pauses have grown to their longest and half of it is random.
const TRY_COUNT_MAX: usize = 100;
/// The same of connecting to a relay, which waits for half a minute at most.
const DIAL_COUNT_MAX: usize = 400;

/// The node's twin alone.
struct Table;

fn identity() -> Arc<Identity> {
    Arc::new(Identity::from_seed(Scheme::Ed25519, &[7; 32]).unwrap())
}

impl Twins for Table {
    fn twin(&self, id: TwinId) -> TwinLookup<'_> {
        let twin = Twin::from_chain(id, identity().account(), Some(b"127.0.0.1"), None);
        Box::pin(async move { Ok(Some(Arc::new(twin))) })
    }
}

/// A relay that goes and comes back at the same address.
struct Line {
    address: SocketAddr,
    serving: JoinSet<()>,
    /// How often somebody came while it was gone.
    dialled: Arc<AtomicUsize>,
}

impl Line {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut line = Self { address, serving: JoinSet::new(), dialled: Arc::default() };
        line.serve(listener);
        line
    }

    fn serve(&mut self, listener: TcpListener) {
        let config = RelayConfig {
            domains: vec!["127.0.0.1".into()],
            routes: HashMap::new(),
            rate_limit: None,
            roots: TrustedRoots::new(None).unwrap(),
        };
        let relay = Relay::new(config, Arc::new(Table)).unwrap();
        self.serving.spawn(async move { relay.serve(listener).await.unwrap() });
    }

    /// From now on whoever comes is sent away.
    async fn cut(&mut self) {
        self.serving.shutdown().await;
        let listener = TcpListener::bind(self.address).await.unwrap();
        let dialled = Arc::clone(&self.dialled);
        self.serving.spawn(async move {
            while listener.accept().await.is_ok() {
                dialled.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    async fn mend(&mut self) {
        self.serving.shutdown().await;
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }
}

fn body(contract: u64) -> Body {
    Body { contract, ..Body::default() }
}

/// A node with all its duties, three deployments that run, a chain and a relay.
struct World {
    bench: Bench,
    line: Line,
    _peer: Arc<Peer>,
}

impl World {
    async fn new() -> Self {
        let mut bench = Bench::new().await;
        for contract in [KEPT, OVER, UNPAID] {
            bench.ledger.pay(&body(contract));
            let twin = hostd_grid::TwinId(1);
            bench.shared.engine.deploy(twin, &signed(&body(contract))).await.unwrap();
        }
        while lock(&bench.ledger.reports).len() < 3 {
            sleep(Duration::from_millis(10)).await;
        }
        let line = Line::new().await;
        let config = PeerConfig {
            twin: twins::TwinId::new(7).unwrap(),
            session: None,
            relays: vec![format!("ws://{}", line.address).parse().unwrap()],
            encryption: None,
            roots: TrustedRoots::new(None).unwrap(),
            limits: Limits::default(),
        };
        let peer = Peer::start(config, identity(), Arc::new(Table), Commands::default());
        let peer = Arc::new(peer.unwrap());
        assert!(peer.wait_connected(MINUTE).await);
        bench.shared.known.set_peer(&peer);
        bench.duties = bench.shared.duties(duties::Reports::open(&bench.reports).unwrap());
        let (renumber, _) = watch::channel(false);
        bench.duties.spawn(Arc::clone(&bench.shared).keep_registered(false, renumber));
        Self { bench, line, _peer: peer }
    }

    fn set_gone(&self, is_gone: bool) {
        *lock(&self.bench.chain.is_gone) = is_gone;
        self.bench.ledger.set_gone(is_gone);
    }

    fn progress(&self, duty: Duty) -> Progress {
        self.bench.shared.health.progress().remove(&duty).unwrap()
    }

    /// The state of a deployment's one workload.
    fn state(&self, contract: u64) -> Option<State> {
        let id = ContractId(contract);
        let deployment = self.bench.shared.engine.get(hostd_grid::TwinId(1), id)?;
        Some(deployment.workloads[0].result.state)
    }

    /// How often the chain was told what a contract uses.
    fn report_count(&self, contract: u64) -> usize {
        let reports = lock(&self.bench.ledger.reports);
        reports.iter().filter(|(id, _)| id.0 == contract).count()
    }

    /// Files of reports of traffic that wait.
    fn waiting_count(&self) -> usize {
        let files = std::fs::read_dir(&self.bench.reports).unwrap();
        files.filter(|file| file.as_ref().unwrap().path().extension().is_some()).count()
    }

    /// Bytes that were counted and not reported yet.
    fn unreported(&self) -> u64 {
        let text = std::fs::read(self.bench.reports.join("meter")).unwrap();
        let meter: serde_json::Value = serde_json::from_slice(&text).unwrap();
        meter["sums"][KEPT.to_string()].as_u64().unwrap_or(0)
    }

    /// What happens to contracts on a chain that the node does not see.
    fn go_on_without_it(&self) {
        let mut contracts = lock(&self.bench.ledger.contracts);
        contracts.remove(&ContractId(OVER));
        contracts.get_mut(&ContractId(UNPAID)).unwrap().state = ContractState::Grace;
        drop(contracts);
        self.bench.ledger.pay(&body(LATE));
    }
}

fn task_count() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn an_hour_and_a_half_without_chain_and_relay_changes_nothing_and_is_caught_up_with() {
    let mut world = World::new().await;
    sleep(MINUTE * 11).await;
    let well = |world: &World| {
        let mut progress = world.bench.shared.health.progress();
        // Blocks come from a chain of their own, which no test has here.
        progress.remove(&Duty::Events);
        progress.retain(|_, progress| progress.error.is_some() || progress.failing_since.is_some());
        assert!(progress.is_empty(), "{progress:?}");
    };
    well(&world);
    assert_eq!(world.bench.steps().len(), 3);
    assert_eq!(world.bench.chain.times("uptime"), [0]);
    let tasks = task_count();

    let twin = hostd_grid::TwinId(1);
    world.bench.shared.engine.deploy(twin, &signed(&body(LATE))).await.unwrap();
    let begin = now();
    world.set_gone(true);
    world.line.cut().await;
    world.go_on_without_it();
    lock(&world.bench.chain.tried).clear();
    let tried_before = world.bench.ledger.tried_count();
    let error = world.bench.shared.engine.deploy(twin, &signed(&body(REFUSED))).await.unwrap_err();
    assert!(error.to_string().contains("the chain does not answer"), "{error}");

    // What the machine loses meanwhile is made again, without asking anybody.
    sleep(MINUTE * 45).await;
    assert_eq!(world.bench.steps(), [""; 0]);
    lock(&world.bench.machine.there).retain(|id| id.contract_id.0 != KEPT);
    sleep(MINUTE * 45).await;
    assert_eq!(world.bench.steps(), ["provision 1-5-db"]);
    lose_nothing(&world, begin, tasks);
    bounded(&world, tried_before);

    world.set_gone(false);
    world.line.mend().await;
    sleep(retry::RETRY_MAX + MINUTE).await;
    well(&world);
    caught_up(&world);
    // And nothing of it happens twice.
    sleep(MINUTE * 180).await;
    well(&world);
    once(&world);
}

/// Everything stands as it stood, and the node says what is missing, and since when.
fn lose_nothing(world: &World, begin: i64, tasks: usize) {
    let states = [KEPT, OVER, UNPAID, LATE, REFUSED].map(|contract| world.state(contract));
    let (ok, init) = (Some(State::Ok), Some(State::Init));
    assert_eq!(states, [ok, ok, ok, init, None]);
    assert_eq!(lock(&world.bench.machine.there).len(), 3);
    assert_eq!(world.bench.chain.take("uptime"), []);
    for (duty, within) in [(Duty::Chain, 60), (Duty::Relay, 10)] {
        let progress = world.progress(duty);
        let since = progress.failing_since.unwrap();
        assert!((begin..=begin + within + 1).contains(&since), "{duty:?} {since}, not {begin}");
        assert!(progress.done_at.unwrap() <= since);
    }
    let modules = world.bench.shared.known.modules();
    let since = world.progress(Duty::Relay).failing_since.unwrap();
    assert_eq!(modules["relay"].status, format!("connected to none since {since}"));
    assert_eq!(modules["relay"].error, "not connected to any relay");
    assert!(modules["chain"].error.contains("nobody listens"), "{}", modules["chain"].error);
    for duty in [Duty::Uptime, Duty::Comparison, Duty::Traffic, Duty::Registration] {
        assert!(world.progress(duty).error.is_some(), "{duty:?}");
    }
    assert!(task_count() <= tasks + 2, "{} tasks, before {tasks}", task_count());
}

/// Nothing grows without bounds, and nobody is asked again and again without a pause.
fn bounded(world: &World, tried_before: usize) {
    // A report an hour.
    let waiting = world.waiting_count();
    assert!((1..=2).contains(&waiting), "{waiting}");
    let tried = lock(&world.bench.chain.tried).clone();
    assert!(tried.values().all(|count| *count <= TRY_COUNT_MAX), "{tried:?}");
    assert!(tried["uptime"] > 10 && tried["traffic"] > 10, "{tried:?}");
    // The comparison, the deployment that waits for its contract, and the message that was refused.
    let tried = world.bench.ledger.tried_count() - tried_before;
    assert!((20..=2 * TRY_COUNT_MAX).contains(&tried), "{tried}");
    let dialled = world.line.dialled.load(Ordering::Relaxed);
    assert!((90..=DIAL_COUNT_MAX).contains(&dialled), "{dialled}");
}

/// What happened to contracts meanwhile happens to workloads, and what waited is sent.
fn caught_up(world: &World) {
    let states = [KEPT, OVER, UNPAID, LATE].map(|contract| world.state(contract));
    assert_eq!(states, [Some(State::Ok), None, Some(State::Paused), Some(State::Ok)]);
    let mut steps = world.bench.steps();
    steps.sort();
    assert_eq!(steps, ["pause 1-7-db", "provision 1-8-db", "remove 1-6-db"]);
    assert_eq!(world.bench.chain.take("uptime").len(), 1);
    assert_eq!(world.bench.chain.take("register").len(), 2, "one before, one after");
    assert_eq!(world.waiting_count(), 0);
    assert_eq!(world.report_count(LATE), 1);
}

/// Hours later, nothing was said twice and nothing was lost.
fn once(world: &World) {
    assert_eq!(world.bench.steps(), [""; 0]);
    let uptimes = world.bench.chain.times("uptime");
    assert!((4..=5).contains(&uptimes.len()), "{uptimes:?}");
    assert_eq!(world.report_count(KEPT), 1);
    assert_eq!(world.report_count(LATE), 1);
    let reports = world.bench.chain.take("traffic");
    let bytes = |(_, text): &(u64, String)| text["traffic ".len()..].parse::<u64>().unwrap();
    let reported: u64 = reports.iter().map(bytes).sum();
    assert!(reports.len() >= 3, "{reports:?}");
    assert_eq!(reported + world.unreported(), *lock(&world.bench.machine.bytes), "{reports:?}");
}
