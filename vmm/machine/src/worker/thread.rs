//! One thread with its loop.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use event_manager::{EventManager, RemoteEndpoint, SubscriberId, SubscriberOps};
use vmm_virtio::Unit;
use vmm_virtio::pci::Failure;

use super::running::Answer;
use super::units::{UnitId, Units, apply};
use super::{ThreadSetup, spawn};

/// Room for a unit's locals. Well below a huge page, so that the kernel does not give it one.
const STACK_SIZE: usize = 512 * 1024;
/// How many events one `epoll_wait` may bring.
const EVENT_COUNT_MAX: usize = 64;

/// A worker's thread. Ends when dropped.
pub(super) struct Thread {
    endpoint: RemoteEndpoint<Units>,
    units: SubscriberId,
    next_id: AtomicU64,
    /// Units that have not stopped.
    unit_count: Arc<AtomicU64>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

type Manager = EventManager<Units>;
type Door = (RemoteEndpoint<Units>, SubscriberId);

impl Thread {
    /// Starts a thread called `name` (of which the kernel shows 15 bytes), and waits until it is
    /// set up.
    pub(super) fn spawn(name: &str, setup: &ThreadSetup) -> io::Result<Self> {
        let (ready, is_ready) = sync_channel(1);
        let handle = spawn(name, STACK_SIZE, setup, move || {
            let _guard = AbortOnPanic;
            match make() {
                Ok((manager, door)) => {
                    let units = door.1;
                    if ready.send(Ok(door)).is_ok() {
                        run(manager, units);
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let gone = |_| io::Error::other("a worker thread ended early");
        let (endpoint, units): Door = is_ready.recv().map_err(gone)??;
        Ok(Self {
            endpoint,
            units,
            next_id: AtomicU64::new(0),
            unit_count: Arc::default(),
            handle: Mutex::new(Some(handle)),
        })
    }

    /// Hands a unit over. It begins soon.
    pub(super) fn start(
        &self,
        unit: Box<dyn Unit>,
        failure: Arc<dyn Failure>,
    ) -> io::Result<UnitId> {
        let id = UnitId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.tell(move |units| units.add(id, unit, failure))?;
        self.unit_count.fetch_add(1, Ordering::Relaxed);
        Ok(id)
    }

    /// Asks for a unit to stop, and for its queues.
    pub(super) fn stop(&self, id: UnitId, answer: Answer) {
        let unit_count = Arc::clone(&self.unit_count);
        let result = self.tell(move |units| {
            let queues = units.remove(id);
            unit_count.fetch_sub(1, Ordering::Release);
            // Nobody waits for the answer if the device is gone.
            let _ = answer.send(queues);
        });
        if let Err(error) = result {
            tracing::warn!(%error, "a worker cannot be reached");
        }
    }

    /// Lets the thread do something with its units, between two calls to them.
    fn tell(&self, action: impl FnOnce(&mut Units) + Send + 'static) -> io::Result<()> {
        let units = self.units;
        let result = self.endpoint.fire(move |manager| with_units(manager, units, action));
        result.map_err(|error| io::Error::other(error.to_string()))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let is_told = self.tell(Units::end).is_ok();
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Whoever drops this has stopped its units, or given up on one that does not stop; then
        // the thread is left to it rather than waited for.
        let is_idle = self.unit_count.load(Ordering::Acquire) == 0;
        if let Some(handle) = handle.filter(|_| is_told && is_idle) {
            let _ = handle.join();
        }
    }
}

/// With unwinding, as in tests, a panic would end only the thread, and whoever waits for it would
/// wait for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// A loop without units, and the way to reach it.
fn make() -> io::Result<(Manager, Door)> {
    let mut manager = Manager::new_with_capacity(EVENT_COUNT_MAX)
        .map_err(|error| io::Error::other(error.to_string()))?;
    let units = manager.add_subscriber(Units::default());
    let door = (manager.remote_endpoint(), units);
    Ok((manager, door))
}

fn run(mut manager: Manager, id: SubscriberId) {
    loop {
        let units = manager.subscriber_mut(id).expect("added in `make`, and never removed");
        if units.is_ending() {
            return;
        }
        let timeout_ms = units.timeout_ms();
        manager.run_with_timeout(timeout_ms).expect("epoll_wait on an epoll of our own");
        if timeout_ms >= 0 {
            with_units(&mut manager, id, |units| units.expire(Instant::now()));
        }
    }
}

/// Does something with the units, then brings what is watched up to date.
fn with_units(
    manager: &mut dyn SubscriberOps<Subscriber = Units>,
    id: SubscriberId,
    action: impl FnOnce(&mut Units),
) {
    let mut action = Some(action);
    let mut failures = Vec::new();
    loop {
        let units = manager.subscriber_mut(id).expect("added in `make`, and never removed");
        if let Some(action) = action.take() {
            action(units);
        }
        for (entry, error) in failures.drain(..) {
            units.fail(entry, &error);
        }
        let mut changes = units.take_changes();
        if changes.is_empty() {
            units.give_changes(changes);
            return;
        }
        let mut ops = manager.event_ops(id).expect("added in `make`, and never removed");
        failures = apply(&mut changes, &mut ops);
        let units = manager.subscriber_mut(id).expect("added in `make`, and never removed");
        units.give_changes(changes);
    }
}
