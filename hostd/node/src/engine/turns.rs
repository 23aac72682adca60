//! Turns on the host: so many steps run at a time, and of one twin so few that others always get theirs.
//!
//! A step may take long, because of a store of images that is slow or lies: that is the trouble of whoever
//! named it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use hostd_grid::TwinId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::lock;

/// Steps that run on the host at a time.
const STEP_COUNT_MAX: u32 = 64;
/// The same of one twin.
const STEP_COUNT_PER_TWIN_MAX: usize = 16;

/// All turns.
pub(super) struct Turns {
    all: Semaphore,
    twins: Mutex<BTreeMap<TwinId, Arc<Semaphore>>>,
}

/// One turn, until it is dropped.
pub(super) struct Turn<'a> {
    _of_twin: Option<OwnedSemaphorePermit>,
    _of_all: Option<SemaphorePermit<'a>>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { all: Semaphore::new(STEP_COUNT_MAX as usize), twins: Mutex::default() }
    }

    /// Waits for a turn of a twin.
    pub(super) async fn take(&self, twin_id: TwinId) -> Turn<'_> {
        let of_twin = {
            let mut twins = lock(&self.twins);
            // Who neither has a turn nor waits for one is forgotten.
            twins.retain(|_, turns| Arc::strong_count(turns) > 1);
            let new = || Arc::new(Semaphore::new(STEP_COUNT_PER_TWIN_MAX));
            Arc::clone(twins.entry(twin_id).or_insert_with(new))
        };
        // Neither of them is ever closed. First one's own, so that nobody waits with a turn of all.
        let of_twin = of_twin.acquire_owned().await.ok();
        Turn { _of_twin: of_twin, _of_all: self.all.acquire().await.ok() }
    }

    /// Waits until nobody has a turn, and gives none any more.
    pub(super) async fn end(&self) {
        if let Ok(all) = self.all.acquire_many(STEP_COUNT_MAX).await {
            all.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_twin_takes_its_own_turns_and_nobody_elses() {
        let turns = Turns::new();
        let soon = |twin| timeout(Duration::from_secs(1), turns.take(TwinId(twin)));
        let mut taken = Vec::new();
        for _ in 0..STEP_COUNT_PER_TWIN_MAX {
            taken.push(soon(1).await.unwrap());
        }
        assert!(soon(1).await.is_err());
        let other = soon(2).await.unwrap();
        taken.pop();
        taken.push(soon(1).await.unwrap());
        drop(other);
        taken.clear();
        assert!(soon(3).await.is_ok());
        assert_eq!(lock(&turns.twins).keys().collect::<Vec<_>>(), [&TwinId(3)]);
        turns.end().await;
        assert!(soon(1).await.is_err());
    }
}
