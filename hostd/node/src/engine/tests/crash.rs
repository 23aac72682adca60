//! The program ends at every boundary there is, and the next one finishes what it began.
//!
//! Each scenario runs once undisturbed, and then once for each boundary that it passes: before and after
//! each change on disk, in the middle of each step on the host, around each question to the chain. There
//! the program is gone; another one starts over what is on disk, on the host and on the chain, as the
//! node's does, and must come to the same end: the same states and the same history of them, the same
//! workloads, each made once, and the same files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::faults::{Faults, Machine, Mortal, There};

/// How long the chain may show no contract.
const CONFIRM_PATIENCE: Duration = Duration::from_millis(20);
/// How often it is looked whether a life has come to its end.
const LOOK_INTERVAL: Duration = Duration::from_micros(500);
/// Lives that a story may take that is disturbed again and again.
const LIFE_COUNT_MAX: usize = 1000;

/// What somebody wants of the node.
enum Act {
    Deploy(Body),
    Update(Body),
    /// The contract is over.
    Cancel,
    /// It is not paid, or paid again.
    Grace(bool),
    /// A machine has crashed too often.
    Fall,
    /// Nothing but that all is as it was.
    Nothing,
}

/// What happens, and how it ends.
struct Scenario {
    /// What is done undisturbed.
    before: fn(&World),
    act: Act,
    /// States at the end, as [`states`] shows them; none if the deployment is gone.
    states: &'static [&'static str],
    /// Boundaries that it has, at least.
    boundary_count_min: usize,
}

/// What outlives the program.
struct World {
    folder: tempfile::TempDir,
    ledger: Arc<TestLedger>,
    machine: Arc<Machine>,
    /// Somebody knows that the node has taken it.
    is_acknowledged: AtomicBool,
}

/// What there is at the end.
#[derive(Debug, PartialEq, Eq)]
struct End {
    there: BTreeMap<String, There>,
    files: BTreeSet<PathBuf>,
    /// What became of each workload, one state after another.
    history: BTreeMap<String, Vec<String>>,
    changes: BTreeSet<String>,
}

impl World {
    fn new() -> Self {
        // Nothing of this is about power, so memory will do where there is a disk of it.
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let (ledger, machine) = (Arc::default(), Arc::default());
        Self { folder: folder.unwrap(), ledger, machine, is_acknowledged: AtomicBool::new(false) }
    }

    /// Lets the program live until all is as it should be, or until it is gone; whether it was done, what
    /// it passed, and what there is at the end.
    fn life(&self, act: &Act, states: &[&str], limit: Option<usize>) -> (Option<End>, Vec<String>) {
        let faults = Faults::at(limit);
        let end = Mutex::new(None);
        // One for each life: it ends when the last thread of that life has.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let is_done = runtime.block_on(faults.live(async {
            let engine = self.start(&faults).await;
            if !self.is_acknowledged.load(Ordering::Relaxed) {
                self.begin(&engine, act).await;
                self.is_acknowledged.store(true, Ordering::Relaxed);
            }
            // As the node does when it starts, and from time to time.
            engine.take_down_fallen().await.unwrap();
            engine.reconcile().await.unwrap();
            self.until_settled(&engine, states, &faults).await;
            *lock(&end) = Some(self.end(&engine));
        }));
        drop(runtime);
        let end = lock(&end).take();
        assert_eq!(is_done, end.is_some());
        (end, faults.places())
    }

    async fn start(&self, faults: &Arc<Faults>) -> Engine {
        let config = EngineConfig { node_id: NODE, confirm_patience: CONFIRM_PATIENCE };
        let key = StoreKey::from_seed(&[9; 32]);
        let store = Store::watched(self.folder.path(), key, faults.watcher());
        let faults = || Arc::clone(faults);
        let ledger = Mortal { inner: Arc::clone(&self.ledger), faults: faults() };
        let host = Mortal { inner: Arc::clone(&self.machine), faults: faults() };
        Engine::start(config, store, Arc::new(ledger), Arc::new(host)).await.unwrap()
    }

    async fn begin(&self, engine: &Engine, act: &Act) {
        match act {
            Act::Deploy(body) => engine.deploy(TWIN, &signed(body)).await.unwrap(),
            Act::Update(body) => engine.update(TWIN, &signed(body)).await.unwrap(),
            Act::Cancel => engine.cancel(CONTRACT, "contract canceled event received").await,
            Act::Grace(is_on) => engine.set_grace(CONTRACT, *is_on).await,
            Act::Fall | Act::Nothing => {}
        }
    }

    /// Waits until it is as it should be, which the chain knows, too.
    async fn until_settled(&self, engine: &Engine, expected: &[&str], faults: &Faults) {
        let start = Instant::now();
        let is_settled = || {
            let is_there = |state: &&&str| state.ends_with(" ok") || state.ends_with(" paused");
            let count = expected.iter().filter(is_there).count();
            let there = self.machine.there();
            let is_whole = there.values().all(|there| matches!(there, There::Whole { .. }));
            let reported = lock(&self.ledger.reports).last().map(|(_, used)| *used);
            let is_reported = count == 0 || reported == Some(engine.statistics().used);
            states(engine) == expected && there.len() == count && is_whole && is_reported
        };
        while !is_settled() {
            if start.elapsed() > PATIENCE {
                let (states, there) = (states(engine), self.machine.there());
                panic!("{states:?} and not {expected:?}, {there:?}, after {:#?}", faults.places());
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn end(&self, engine: &Engine) -> End {
        let mut history: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for change in engine.changes(TWIN, CONTRACT).unwrap_or_default() {
            let state = format!("{} {}", change.version, change.result.state);
            let states = history.entry(change.name.to_string()).or_default();
            // Somebody who was disturbed may say the same again.
            if states.last() != Some(&state) {
                states.push(state);
            }
        }
        let changes = self.machine.changes();
        for (at, change) in changes.iter().enumerate() {
            let is_again = !change.starts_with("remove") && changes[..at].contains(change);
            assert!(!is_again, "twice: {change} in {changes:?}");
        }
        let changes = changes.into_iter().collect();
        let mut files = BTreeSet::new();
        for folder in std::fs::read_dir(self.folder.path()).unwrap() {
            let folder = folder.unwrap().path();
            let found = std::fs::read_dir(&folder).unwrap().map(|found| found.unwrap().path());
            files.extend({ found }.map(|path| path.strip_prefix(&self.folder).unwrap().to_owned()));
        }
        End { there: self.machine.there(), files, history, changes }
    }

    /// Does something undisturbed.
    fn done(&self, act: &Act, states: &[&str]) {
        let (end, _) = self.life(act, states, None);
        end.unwrap();
        self.is_acknowledged.store(false, Ordering::Relaxed);
    }
}

impl Scenario {
    fn world(&self) -> World {
        let world = World::new();
        (self.before)(&world);
        world
    }

    /// One end for all of it, wherever it is disturbed.
    fn try_everywhere(&self) {
        let world = self.world();
        let (expected, places) = world.life(&self.act, self.states, None);
        let expected = expected.unwrap();
        assert!(places.len() >= self.boundary_count_min, "only {}: {places:#?}", places.len());
        eprintln!("{} boundaries", places.len());
        for limit in 1.. {
            let world = self.world();
            let (end, passed) = world.life(&self.act, self.states, Some(limit));
            if let Some(end) = end {
                // What happens at the same time may be one boundary more or less.
                assert!(limit + 8 > places.len(), "{limit} of {}: {passed:#?}", places.len());
                assert_eq!(end, expected);
                return;
            }
            let place = || format!("{limit}, {}", passed.last().unwrap());
            let (end, _) = world.life(&self.act, self.states, None);
            assert_eq!(end.unwrap(), expected, "disturbed at {}", place());
            assert!(world.is_acknowledged.load(Ordering::Relaxed), "{}", place());
        }
    }

    /// The same end, when no life is long.
    fn try_again_and_again(&self, seed: u64) {
        let (expected, places) = self.world().life(&self.act, self.states, None);
        let (world, mut chance) = (self.world(), seed);
        for count in 1..LIFE_COUNT_MAX {
            // Constants of Knuth's MMIX generator.
            chance = chance
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let limit = usize::try_from(chance >> 40).unwrap() % places.len() + 1;
            let (end, _) = world.life(&self.act, self.states, Some(limit));
            if end.is_some() {
                assert_eq!(end, expected, "after {count} lives");
                return;
            }
        }
        panic!("no end after {LIFE_COUNT_MAX} lives");
    }
}

const NAMES: [&str; 4] = ["vm", "disk", "net", "db"];

fn first() -> Body {
    Body::of(&NAMES, &NAMES)
}

/// The disk grows, a namespace goes, and another comes.
fn second() -> Body {
    let names = ["vm", "disk", "net", "db2"];
    Body { version: 1, size: 2 << 30, ..Body::of(&names, &["disk", "db2"]) }
}

const RUNNING: &[&str] = &["vm 0 ok", "disk 0 ok", "net 0 ok", "db 0 ok"];
const PAUSED: &[&str] = &["vm 0 paused", "disk 0 paused", "net 0 paused", "db 0 paused"];
const UPDATED: &[&str] = &["vm 0 ok", "disk 1 ok", "net 0 ok", "db2 1 ok"];

fn run(world: &World) {
    world.ledger.pay(&first());
    world.done(&Act::Deploy(first()), RUNNING);
}

fn set_contract(world: &World, state: ContractState) {
    lock(&world.ledger.contracts).get_mut(&CONTRACT).unwrap().state = state;
}

fn deploying() -> Scenario {
    let before = |world: &World| world.ledger.pay(&first());
    Scenario { before, act: Act::Deploy(first()), states: RUNNING, boundary_count_min: 50 }
}

fn updating() -> Scenario {
    let before = |world: &World| {
        run(world);
        world.ledger.pay(&second());
    };
    Scenario { before, act: Act::Update(second()), states: UPDATED, boundary_count_min: 50 }
}

fn cancelling() -> Scenario {
    let before = |world: &World| {
        run(world);
        lock(&world.ledger.contracts).clear();
    };
    Scenario { before, act: Act::Cancel, states: &[], boundary_count_min: 40 }
}

#[test]
fn a_deployment_survives_the_end_of_the_program_anywhere() {
    deploying().try_everywhere();
}

#[test]
fn an_update_survives_the_end_of_the_program_anywhere() {
    updating().try_everywhere();
}

#[test]
fn a_deletion_survives_the_end_of_the_program_anywhere() {
    cancelling().try_everywhere();
}

#[test]
fn what_is_not_paid_is_paused_wherever_the_program_ends() {
    let before = |world: &World| {
        run(world);
        set_contract(world, ContractState::Grace);
    };
    let act = Act::Grace(true);
    Scenario { before, act, states: PAUSED, boundary_count_min: 35 }.try_everywhere();
}

#[test]
fn what_is_paid_again_goes_on_wherever_the_program_ends() {
    let before = |world: &World| {
        run(world);
        set_contract(world, ContractState::Grace);
        world.done(&Act::Grace(true), PAUSED);
        set_contract(world, ContractState::Created);
    };
    let act = Act::Grace(false);
    Scenario { before, act, states: RUNNING, boundary_count_min: 35 }.try_everywhere();
}

#[test]
fn what_a_power_cut_took_is_made_again_wherever_the_program_ends() {
    let before = |world: &World| {
        run(world);
        world.machine.lose_power();
    };
    let act = Act::Nothing;
    Scenario { before, act, states: RUNNING, boundary_count_min: 20 }.try_everywhere();
}

#[test]
fn what_failed_leaves_nothing_wherever_the_program_ends() {
    let before = |world: &World| {
        lock(&world.machine.failing).extend(["disk".to_owned(), "db".to_owned()]);
        world.ledger.pay(&first());
    };
    let act = Act::Deploy(first());
    let states = &["vm 0 error", "disk 0 error", "net 0 ok", "db 0 error"];
    Scenario { before, act, states, boundary_count_min: 50 }.try_everywhere();
}

#[test]
fn what_nobody_pays_for_is_not_made_wherever_the_program_ends() {
    let before = |_: &World| {};
    let act = Act::Deploy(first());
    let states = &["vm 0 error", "disk 0 error", "net 0 error", "db 0 error"];
    Scenario { before, act, states, boundary_count_min: 25 }.try_everywhere();
}

#[test]
fn a_machine_that_was_given_up_goes_wherever_the_program_ends() {
    let before = |world: &World| {
        run(world);
        let id = hostd_grid::derived::WorkloadId {
            twin_id: TWIN,
            contract_id: CONTRACT,
            name: "vm".into(),
        };
        lock(&world.machine.fallen).insert(id);
    };
    let states = &["vm 0 deleted", "disk 0 ok", "net 0 ok", "db 0 ok"];
    Scenario { before, act: Act::Fall, states, boundary_count_min: 12 }.try_everywhere();
}

#[test]
fn a_program_that_ends_again_and_again_gets_there() {
    for seed in 0..20 {
        deploying().try_again_and_again(seed);
        updating().try_again_and_again(seed);
        cancelling().try_again_and_again(seed);
    }
}
