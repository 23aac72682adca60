//! The handle on units that run: how they stop.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use vmm_virtio::Queue;
use vmm_virtio::pci::Running;

use super::thread::Thread;
use super::units::UnitId;

/// Units of one device, on their threads.
#[derive(Default)]
pub(super) struct RunningUnits {
    units: Vec<(Arc<Thread>, UnitId)>,
    stopping: Option<Stopping>,
}

/// Units that were asked to stop.
struct Stopping {
    answers: Receiver<Vec<Queue>>,
    missing_count: usize,
    queues: Vec<Queue>,
}

impl RunningUnits {
    /// Adds a unit.
    pub(super) fn add(&mut self, thread: Arc<Thread>, id: UnitId) {
        self.units.push((thread, id));
    }

    fn ask(units: &[(Arc<Thread>, UnitId)]) -> Stopping {
        let (sender, answers) = channel();
        for (thread, id) in units {
            thread.stop(*id, sender.clone());
        }
        Stopping { answers, missing_count: units.len(), queues: Vec::new() }
    }
}

impl Running for RunningUnits {
    fn stop(&mut self, within: Duration) -> Option<Vec<Queue>> {
        let deadline = Instant::now() + within;
        let stopping = self.stopping.get_or_insert_with(|| Self::ask(&self.units));
        while stopping.missing_count > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            // No sender left means that a thread is gone, and its units with it: it never answers.
            stopping.queues.extend(stopping.answers.recv_timeout(left).ok()?);
            stopping.missing_count -= 1;
        }
        Some(std::mem::take(&mut stopping.queues))
    }
}

impl Drop for RunningUnits {
    fn drop(&mut self) {
        if self.stopping.is_none() {
            Self::ask(&self.units);
        }
    }
}

/// How a thread answers.
pub(super) type Answer = Sender<Vec<Queue>>;
