//! [`DevChain`]: blocks, their states, the transactions that wait, and the file that keeps it all.
//!
//! ```text
//!   submit ──> pool ──> producer thread ──> make_block ──> log (fsync) ──> ledger ──> subscribers
//!                         ^ a transaction is ready, or block_time has gone by
//! ```
//!
//! A block is made when a transaction waits (5 ms after the first, so that a burst
//! shares one), and when [`ChainOptions::block_time`] has gone by without one. It is written and synced
//! before anyone hears of it, and is final at once.
//!
//! Time is the machine's, plus what [`DevChain::fast_forward`] skipped. Billing and grace go by block
//! numbers, as TFChain's do, so fast-forward really makes the blocks: empty ones, six seconds of
//! chain time apart, executed with all that happens in them.
//!
//! Locks are taken in the order `production`, `ledger`, `pool`.

mod error;
mod execute;
mod history;
mod ledger;
mod log;
mod pool;
mod producer;
mod view;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use codec::Decode as _;
use sp_core::H256;
use sp_runtime::{
    generic::Preamble,
    transaction_validity::{InvalidTransaction, TransactionValidityError},
};
use tokio::sync::{broadcast, mpsc};

pub use self::{
    error::{ChainError, SubmitError},
    pool::{PoolError, TxStatus},
    view::{AccountInfo, View},
};
use self::{ledger::Ledger, log::Log, pool::Pool};
use crate::{
    genesis, legacy,
    runtime::{self, Address, Header, RuntimeCall, RuntimeEvent},
    signing,
    types::{AccountId32, Balance, BlockNumber},
};

/// Blocks that a slow subscriber may lag behind.
const NEWS_CAPACITY: usize = 1024;
/// The most blocks of one fast-forward: the grace period of the public chain and a day.
pub const FAST_FORWARD_MAX: u32 = 216_000;

/// How a chain is made and run.
#[derive(Clone, Debug)]
pub struct ChainOptions {
    /// Where it is kept; in memory only when there is none.
    pub dir: Option<PathBuf>,
    /// After how long a block is made though no transaction waits; never when there is none.
    pub block_time: Option<Duration>,
    /// Blocks between two bills of a contract. Taken into block 0, and ignored afterwards.
    pub billing_frequency: u64,
    /// Blocks a contract lives on without money. Taken into block 0, and ignored afterwards.
    pub grace_blocks: u64,
    /// Whether nodes may be smaller than the public grid allows. Taken into block 0, and ignored
    /// afterwards.
    pub relaxed_minimums: bool,
}

impl Default for ChainOptions {
    /// As TFChain, in memory, with small nodes allowed.
    fn default() -> Self {
        Self {
            dir: None,
            block_time: Some(Duration::from_millis(runtime::BLOCK_TIME_MS)),
            billing_frequency: crate::pallets::smart_contract::BILLING_FREQUENCY_DEFAULT,
            grace_blocks: runtime::GRACE_PERIOD_BLOCKS,
            relaxed_minimums: true,
        }
    }
}

/// The height and hash of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRef {
    /// Its height.
    pub number: BlockNumber,
    /// Its hash.
    pub hash: H256,
}

/// A block with what happened in it.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its height.
    pub number: BlockNumber,
    /// Its hash.
    pub hash: H256,
    /// Its time, in milliseconds of Unix time.
    pub timestamp_ms: u64,
    /// Its header.
    pub header: Header,
    /// Its extrinsics as they came over the wire.
    pub extrinsics: Arc<[Vec<u8>]>,
    /// Its events, in order.
    pub events: Vec<RuntimeEvent>,
}

/// A chain. Clones are the same chain; it stops when the last one is dropped.
#[derive(Clone)]
pub struct DevChain {
    inner: Arc<Inner>,
}

struct Inner {
    production: Mutex<producer::Production>,
    ledger: RwLock<Ledger>,
    pool: Mutex<Pool>,
    wake: Arc<producer::Wake>,
    news: broadcast::Sender<Arc<Block>>,
    genesis: H256,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.wake.stop();
    }
}

impl DevChain {
    /// Opens the chain of a directory, or makes a new one.
    pub fn open(options: ChainOptions) -> Result<Self, ChainError> {
        let mut ledger = Ledger::new();
        let mut log = match &options.dir {
            Some(dir) => Some(Log::open(dir, |record| ledger.replay(record))?),
            None => None,
        };
        if ledger.is_empty() {
            let storage = genesis::storage(&options).map_err(ChainError::Genesis)?;
            let record = ledger::genesis_record(storage);
            if let (Some(log), Some(dir)) = (&mut log, &options.dir) {
                log.append(&record)
                    .and_then(|()| log.sync())
                    .map_err(|source| ChainError::Io { path: dir.clone(), source })?;
            }
            ledger.replay(record)?;
        }
        ledger.finish()?;
        let genesis = ledger.block(0).map(|block| block.hash).unwrap_or_default();
        let last_ms = timestamp_at(&ledger, ledger.head().header.number);
        let wake = Arc::new(producer::Wake::default());
        let inner = Arc::new(Inner {
            production: Mutex::new(producer::Production::new(log, options.dir, last_ms)),
            ledger: RwLock::new(ledger),
            pool: Mutex::default(),
            wake,
            news: broadcast::channel(NEWS_CAPACITY).0,
            genesis,
        });
        producer::spawn(&inner, options.block_time)?;
        Ok(Self { inner })
    }

    /// The hash of block 0.
    #[must_use]
    pub fn genesis(&self) -> H256 {
        self.inner.genesis
    }

    /// The newest block, which is final.
    #[must_use]
    pub fn head(&self) -> BlockRef {
        let ledger = self.inner.ledger();
        let head = ledger.head();
        BlockRef { number: head.header.number, hash: head.hash }
    }

    /// The time of the newest block, in milliseconds of Unix time.
    #[must_use]
    pub fn timestamp_ms(&self) -> u64 {
        let ledger = self.inner.ledger();
        timestamp_at(&ledger, ledger.head().header.number)
    }

    /// Takes a signed transaction, and answers its hash.
    pub fn submit(&self, extrinsic: Vec<u8>) -> Result<H256, SubmitError> {
        self.inner.submit(extrinsic, false).map(|(hash, _)| hash)
    }

    /// Takes a signed transaction, and answers its hash and what becomes of it.
    pub fn submit_and_watch(
        &self,
        extrinsic: Vec<u8>,
    ) -> Result<(H256, mpsc::Receiver<TxStatus>), SubmitError> {
        let (hash, statuses) = self.inner.submit(extrinsic, true)?;
        // A watched transaction has its channel.
        Ok((hash, statuses.unwrap_or_else(|| mpsc::channel(1).1)))
    }

    /// Gives an account `amount`, out of the chain's purse, and answers the block in which it did.
    pub fn fund(&self, account: AccountId32, amount: Balance) -> Result<BlockRef, ChainError> {
        let mut production = self.inner.production();
        let call = RuntimeCall::Balances(pallet_balances::Call::transfer_allow_death {
            dest: Address::Id(account),
            value: amount,
        });
        let purse = genesis::dev_key(genesis::PURSE_NAME);
        let nonce = self.next_nonce(&genesis::dev_account(genesis::PURSE_NAME));
        let extrinsic = signing::sign_call(call, &purse, nonce, self.inner.genesis);
        let submitted = self.submit_and_watch(extrinsic);
        let (_, mut statuses) = submitted.map_err(|error| ChainError::Fund(error.to_string()))?;
        loop {
            self.inner.make_block(&mut production)?;
            while let Ok(status) = statuses.try_recv() {
                match status {
                    TxStatus::Finalized(hash) => {
                        let number = self.inner.ledger().number(&hash).unwrap_or_default();
                        return Ok(BlockRef { number, hash });
                    }
                    TxStatus::Ready | TxStatus::Future | TxStatus::InBlock(_) => {}
                    TxStatus::Usurped(_) | TxStatus::Dropped | TxStatus::Invalid => {
                        return Err(ChainError::Fund(format!("{status:?}")));
                    }
                }
            }
        }
    }

    /// Makes `blocks` blocks, six seconds of chain time apart, and answers the last one.
    pub fn fast_forward(&self, blocks: u32) -> Result<BlockRef, ChainError> {
        if blocks > FAST_FORWARD_MAX {
            return Err(ChainError::TooFar { asked: blocks });
        }
        self.inner.fast_forward(blocks)?;
        Ok(self.head())
    }

    /// The blocks from now on. A subscriber that lags by more than a thousand is told so, and
    /// reads what it missed with [`Self::block`].
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Block>> {
        self.inner.news.subscribe()
    }

    /// A block by its height.
    #[must_use]
    pub fn block(&self, number: BlockNumber) -> Option<Block> {
        block_at(&self.inner.ledger(), number)
    }

    /// What the chain holds after block `number`, or now.
    #[must_use]
    pub fn view(&self, number: Option<BlockNumber>) -> Option<View> {
        let head = self.head().number;
        let number = number.unwrap_or(head);
        (number <= head).then(|| View::new(self.clone(), number))
    }

    /// The nonce for an account's next transaction, after those that wait.
    #[must_use]
    pub fn next_nonce(&self, account: &AccountId32) -> u32 {
        let ledger = self.inner.ledger();
        let next = nonce_at_head(&ledger, account);
        self.inner.pool().next_nonce(account, next)
    }

    /// The transactions that wait.
    pub(crate) fn pending(&self) -> Vec<Vec<u8>> {
        self.inner.pool().pending()
    }

    /// The height of the block with this hash.
    pub(crate) fn number(&self, hash: &H256) -> Option<BlockNumber> {
        self.inner.ledger().number(hash)
    }

    /// The hash of a block.
    pub(crate) fn hash(&self, number: BlockNumber) -> Option<H256> {
        self.inner.ledger().block(number).map(|block| block.hash)
    }

    /// The header of a block.
    pub(crate) fn header(&self, number: BlockNumber) -> Option<Header> {
        self.inner.ledger().block(number).map(|block| block.header.clone())
    }

    /// The extrinsics of a block.
    pub(crate) fn extrinsics(&self, number: BlockNumber) -> Option<Arc<[Vec<u8>]>> {
        self.inner.ledger().block(number).map(|block| block.extrinsics.clone())
    }

    /// What `key` held after a block.
    pub(crate) fn storage(&self, key: &[u8], number: BlockNumber) -> Option<Vec<u8>> {
        self.inner.ledger().history.get(key, number).map(<[u8]>::to_vec)
    }

    /// Whether a block wrote `key`.
    pub(crate) fn written_at(&self, key: &[u8], number: BlockNumber) -> bool {
        self.inner.ledger().history.written_at(key, number)
    }

    /// Keys that begin with `prefix` and follow `after`, as they were after a block.
    pub(crate) fn keys(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        count: usize,
        number: BlockNumber,
    ) -> Vec<Vec<u8>> {
        let ledger = self.inner.ledger();
        ledger
            .history
            .pairs(prefix, after, number)
            .take(count)
            .map(|(key, _)| key.to_vec())
            .collect()
    }

    /// Calls a function of the runtime with the state after a block. `None` when it has no such
    /// function, `Some(None)` when it panicked.
    pub(crate) fn call_runtime(
        &self,
        method: &str,
        data: &[u8],
        number: BlockNumber,
    ) -> Option<Option<Vec<u8>>> {
        // What these are given begins with a transaction.
        let renamed =
            method.starts_with("TransactionPaymentApi_query_").then(|| legacy::rename(data));
        let data = match &renamed {
            Some(Ok((renamed, _))) => renamed,
            Some(Err(_)) | None => data,
        };
        self.inner.ledger().with_state(number, |backend| {
            match execute::read(backend, || runtime::api::dispatch(method, data)) {
                Ok(answer) => answer.map(Some),
                Err(execute::Panicked) => Some(None),
            }
        })
    }
}

impl Inner {
    fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        self.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn production(&self) -> MutexGuard<'_, producer::Production> {
        self.production.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a transaction against the state of the head and puts it into the pool.
    fn submit(
        &self,
        bytes: Vec<u8>,
        watched: bool,
    ) -> Result<(H256, Option<mpsc::Receiver<TxStatus>>), SubmitError> {
        let extrinsic =
            legacy::decode(&bytes).map_err(|error| SubmitError::Undecodable(error.to_string()))?;
        let Preamble::Signed(Address::Id(account), _, extension) = &extrinsic.preamble else {
            return Err(SubmitError::Unsigned);
        };
        let (account, nonce, tip) = (account.clone(), extension.5.0, extension.7.tip());
        let hash = H256::from(sp_io::hashing::blake2_256(&bytes));
        let ledger = self.ledger();
        let parent = ledger.head().hash;
        let valid = execute::read(ledger.backend(), || legacy::validate(extrinsic, parent));
        match valid {
            Ok(Ok(_)) => {}
            Ok(Err(TransactionValidityError::Invalid(InvalidTransaction::Future))) => {}
            Ok(Err(error)) => return Err(SubmitError::Invalid(error)),
            Err(execute::Panicked) => return Err(SubmitError::Panicked),
        }
        let next = nonce_at_head(&ledger, &account);
        let arrival = pool::Arrival { account, nonce, tip, hash, bytes };
        let block = ledger.head().header.number;
        let statuses = self.pool().add(arrival, next, block, watched)?;
        drop(ledger);
        self.wake.transaction();
        Ok((hash, statuses))
    }
}

/// The nonce of an account at the head, without what waits.
fn nonce_at_head(ledger: &Ledger, account: &AccountId32) -> u32 {
    let key = frame_system::Account::<runtime::Runtime>::hashed_key_for(account);
    ledger
        .value::<frame_system::AccountInfo<u32, pallet_balances::AccountData<Balance>>>(
            &key,
            ledger.head().header.number,
        )
        .map_or(0, |info| info.nonce)
}

/// The time of a block; 0 for block 0, which has none.
fn timestamp_at(ledger: &Ledger, number: BlockNumber) -> u64 {
    let key = pallet_timestamp::Now::<runtime::Runtime>::hashed_key();
    ledger.value(&key, number).unwrap_or(0)
}

fn block_at(ledger: &Ledger, number: BlockNumber) -> Option<Block> {
    let stored = ledger.block(number)?;
    let key = frame_support::storage::storage_prefix(b"System", b"Events");
    let events = ledger
        .history
        .written_at(&key, number)
        .then(|| ledger.history.get(&key, number))
        .flatten()
        .and_then(|mut bytes| {
            Vec::<frame_system::EventRecord<RuntimeEvent, H256>>::decode(&mut bytes).ok()
        })
        .unwrap_or_default();
    Some(Block {
        number,
        hash: stored.hash,
        timestamp_ms: timestamp_at(ledger, number),
        header: stored.header.clone(),
        extrinsics: stored.extrinsics.clone(),
        events: events.into_iter().map(|record| record.event).collect(),
    })
}
