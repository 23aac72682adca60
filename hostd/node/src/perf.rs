//! What a node finds out about itself: the results of its tests, for everybody to see.
//!
//! The last result of each is remembered, so that a node that starts anew has an answer at once, and
//! does not measure again what it measured an hour ago.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::lock;
use crate::state::{StateStore, recall, remember};

/// What results are remembered as.
const RESULTS: &str = "results";
/// Bytes that are hashed at a time.
const CHUNK_SIZE: usize = 64 << 10;
/// Threads that are measured.
const THREAD_COUNT_MAX: usize = 1024;

/// The result of a test, as clients of `zos.perf.get` read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TestResult {
    pub(crate) name: String,
    pub(crate) description: String,
    /// When it was found, in seconds since 1970.
    pub(crate) timestamp: i64,
    pub(crate) result: Value,
}

/// The last results.
pub(crate) struct Results {
    state: Arc<dyn StateStore>,
    results: Mutex<BTreeMap<String, TestResult>>,
}

impl Results {
    /// Those that are remembered.
    pub(crate) fn new(state: Arc<dyn StateStore>) -> Self {
        let results: Vec<TestResult> = recall(&*state, RESULTS).unwrap_or_default();
        let results = results.into_iter().map(|result| (result.name.clone(), result)).collect();
        Self { state, results: Mutex::new(results) }
    }

    pub(crate) fn put(&self, result: TestResult) {
        let mut results = lock(&self.results);
        results.insert(result.name.clone(), result);
        let all: Vec<_> = results.values().collect();
        remember(&*self.state, RESULTS, &all);
    }

    pub(crate) fn get(&self, name: &str) -> Option<TestResult> {
        lock(&self.results).get(name).cloned()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<TestResult> {
        lock(&self.results).values().cloned().collect()
    }
}

/// How fast processors are: MiB per second that one of them, and all of them together, hash (BLAKE2b).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Speed {
    pub(crate) single: f64,
    pub(crate) multi: f64,
    pub(crate) threads: usize,
}

/// Measures it, for so long with one thread, and as long with as many as there are processors.
pub(crate) fn speed(time: Duration) -> Speed {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREAD_COUNT_MAX);
    let single = hashed(time);
    let multi = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| hashed(time))).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).sum()
    });
    Speed { single, multi, threads }
}

/// MiB per second that this thread hashes.
fn hashed(time: Duration) -> f64 {
    let mut chunk = vec![0; CHUNK_SIZE];
    let (start, mut count) = (Instant::now(), 0_u32);
    loop {
        // Each hash goes into the next, so that none can be left out.
        let hash = blake2b_simd::blake2b(&chunk);
        chunk[..hash.as_bytes().len()].copy_from_slice(hash.as_bytes());
        count = count.saturating_add(1);
        let elapsed = start.elapsed();
        if elapsed >= time {
            return f64::from(count) / 16.0 / elapsed.as_secs_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::MemoryState;

    const _: () = assert!(CHUNK_SIZE * 16 == 1 << 20);

    #[test]
    fn the_last_result_of_each_test_is_remembered() {
        let state: Arc<dyn StateStore> = Arc::new(MemoryState::default());
        let results = Results::new(Arc::clone(&state));
        let result = |name: &str, value: u32| TestResult {
            name: name.to_owned(),
            description: String::new(),
            timestamp: 7,
            result: json!(value),
        };
        for (name, value) in [("b", 1), ("a", 2), ("b", 3)] {
            results.put(result(name, value));
        }
        let results = Results::new(state);
        assert_eq!(results.all(), [result("a", 2), result("b", 3)]);
        assert_eq!(results.get("c"), None);
    }

    #[test]
    fn speed_is_measured_in_bounded_time() {
        let start = Instant::now();
        let speed = speed(Duration::from_millis(20));
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(speed.single > 0.1 && speed.multi > 0.1, "{speed:?}");
        assert!(speed.threads >= 1);
    }
}
