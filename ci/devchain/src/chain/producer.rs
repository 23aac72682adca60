//! Who makes blocks: a thread that wakes when a transaction waits or time has gone by, and
//! [`Inner::make_block`], which everyone uses who needs a block now.

use std::{
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sp_core::H256;

use super::{
    ChainError, Inner, block_at,
    execute::{self, Outcome},
    ledger::Ledger,
    log::Log,
    nonce_at_head,
    pool::{Candidate, TxStatus},
};
use crate::runtime::BLOCK_TIME_MS;

/// How long the first transaction waits for others to share its block.
pub(super) const BATCH_WINDOW: Duration = Duration::from_millis(5);
/// The most transactions that are tried for one block.
const CANDIDATES_MAX: usize = 4096;
/// Blocks of a fast-forward between two syncs of the log.
const SYNC_INTERVAL_BLOCKS: u32 = 1024;
/// How long the thread waits after a block could not be made.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What only the maker of blocks has.
pub(super) struct Production {
    log: Option<Log>,
    dir: Option<PathBuf>,
    /// Milliseconds by which chain time is ahead of the machine's.
    ahead_ms: u64,
    last_ms: u64,
    stopped: bool,
}

impl Production {
    /// Goes on after a block at `last_ms`. Chain time that is ahead of the machine's stays so.
    pub(super) fn new(log: Option<Log>, dir: Option<PathBuf>, last_ms: u64) -> Self {
        let ahead_ms = last_ms.saturating_sub(machine_ms());
        Self { log, dir, ahead_ms, last_ms, stopped: false }
    }

    /// The time of a block that is made now.
    fn now_ms(&self) -> u64 {
        machine_ms().saturating_add(self.ahead_ms).max(self.last_ms.saturating_add(1))
    }

    fn io(&mut self, source: std::io::Error) -> ChainError {
        self.stopped = true;
        ChainError::Io { path: self.dir.clone().unwrap_or_default(), source }
    }
}

/// What the thread waits for.
#[derive(Default)]
pub(super) struct Wake {
    state: Mutex<WakeState>,
    changed: Condvar,
}

#[derive(Default)]
struct WakeState {
    transaction: bool,
    stop: bool,
}

impl Wake {
    /// A transaction waits.
    pub(super) fn transaction(&self) {
        self.set(|state| state.transaction = true);
    }

    /// The chain is gone.
    pub(super) fn stop(&self) {
        self.set(|state| state.stop = true);
    }

    fn set(&self, change: impl FnOnce(&mut WakeState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits for a transaction, or for `deadline`. False when the chain is gone.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.stop && !state.transaction {
            let left = match deadline {
                None => Duration::from_secs(3600),
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                break;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.transaction = false;
        !state.stop
    }
}

/// Starts the thread. It ends when the chain is dropped.
pub(super) fn spawn(inner: &Arc<Inner>, block_time: Option<Duration>) -> Result<(), ChainError> {
    let (wake, inner) = (inner.wake.clone(), Arc::downgrade(inner));
    std::thread::Builder::new()
        .name("devchain".to_owned())
        .spawn(move || produce(&wake, &inner, block_time))
        .map(drop)
        .map_err(|source| ChainError::Io { path: PathBuf::from("devchain thread"), source })
}

fn produce(wake: &Wake, inner: &Weak<Inner>, block_time: Option<Duration>) {
    loop {
        let deadline = block_time.map(|block_time| Instant::now() + block_time);
        if !wake.wait(deadline) {
            return;
        }
        let due = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if !due {
            std::thread::sleep(BATCH_WINDOW);
        }
        let Some(inner) = inner.upgrade() else { return };
        let mut production = inner.production();
        // Someone who needed a block may have taken the transactions along.
        if !due && inner.pool().is_empty() {
            continue;
        }
        if let Err(error) = inner.make_block(&mut production) {
            tracing::error!(%error, "no block could be made");
            drop(production);
            std::thread::sleep(RETRY_DELAY);
        }
    }
}

impl Inner {
    /// Makes a block of what waits; an empty one when nothing does. None is made when something waits
    /// and nothing of it can be included.
    pub(super) fn make_block(&self, production: &mut Production) -> Result<(), ChainError> {
        let timestamp_ms = production.now_ms();
        self.make_block_at(production, timestamp_ms, true)
    }

    /// Makes `blocks` blocks, a block time apart.
    pub(super) fn fast_forward(&self, blocks: u32) -> Result<(), ChainError> {
        let mut production = self.production();
        for done in 1..=blocks {
            let timestamp_ms = production
                .last_ms
                .max(if done == 1 { production.now_ms() } else { 0 })
                .saturating_add(BLOCK_TIME_MS);
            let sync = done == blocks || done % SYNC_INTERVAL_BLOCKS == 0;
            self.make_block_at(&mut production, timestamp_ms, sync)?;
        }
        Ok(())
    }

    fn make_block_at(
        &self,
        production: &mut Production,
        timestamp_ms: u64,
        sync: bool,
    ) -> Result<(), ChainError> {
        if production.stopped {
            return Err(ChainError::Stopped);
        }
        let (candidates, made, outcomes) = {
            let ledger = self.ledger();
            let candidates =
                self.pool().candidates(CANDIDATES_MAX, |account| nonce_at_head(&ledger, account));
            let bytes: Vec<&[u8]> = candidates.iter().map(|found| &found.bytes[..]).collect();
            let head = ledger.head();
            let parent = (head.header.number, head.hash);
            let (made, outcomes) =
                execute::make_block(ledger.backend(), parent, timestamp_ms, &bytes)?;
            (candidates, made, outcomes)
        };
        let included = match made {
            None => None,
            Some(made) => {
                let mut ledger = self.ledger.write().unwrap_or_else(PoisonError::into_inner);
                let record = ledger.commit(made);
                if let Some(log) = &mut production.log {
                    let written =
                        log.append(&record).and_then(|()| if sync { log.sync() } else { Ok(()) });
                    written.map_err(|source| production.io(source))?;
                }
                production.last_ms = timestamp_ms;
                production.ahead_ms =
                    production.ahead_ms.max(timestamp_ms.saturating_sub(machine_ms()));
                Some(ledger.head().hash)
            }
        };
        self.announce(included, &candidates, &outcomes);
        Ok(())
    }

    /// Tells the watchers of transactions and the subscribers of blocks.
    fn announce(&self, block: Option<H256>, candidates: &[Candidate], outcomes: &[Outcome]) {
        let ledger = self.ledger();
        let number = ledger.head().header.number;
        {
            let mut pool = self.pool();
            for (candidate, outcome) in candidates.iter().zip(outcomes) {
                match (outcome, block) {
                    (Outcome::Included(_), Some(hash)) => {
                        let statuses = [TxStatus::InBlock(hash), TxStatus::Finalized(hash)];
                        pool.settle(candidate, &statuses);
                    }
                    (Outcome::Invalid, _) => pool.settle(candidate, &[TxStatus::Invalid]),
                    (Outcome::Later, _) | (Outcome::Included(_), None) => {}
                }
            }
            pool.maintain(number, |account| nonce_at_head(&ledger, account));
            // What did not fit is next.
            let more = pool.candidates(1, |account| nonce_at_head(&ledger, account));
            if block.is_some() && !more.is_empty() {
                self.wake.transaction();
            }
        }
        if block.is_some() && self.news.receiver_count() > 0 {
            self.tell(&ledger, number);
        }
    }

    fn tell(&self, ledger: &Ledger, number: u32) {
        if let Some(block) = block_at(ledger, number) {
            // Nobody listens any more: nobody misses it.
            let _ = self.news.send(Arc::new(block));
        }
    }
}

/// The machine's time in milliseconds of Unix time.
fn machine_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
