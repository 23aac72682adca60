//! A call on its way into a block, exactly once.
//!
//! Sending is not simply repeatable: a transaction whose fate is not known may still be executed, and a
//! second one for the same call would then be executed too. What makes it safe is the nonce: of two
//! transactions with the same nonce at most one is executed. So a nonce is kept until the chain shows
//! that it is used up, and then the blocks say whether one of ours used it.
//!
//! ```text
//!                ┌────────────── fresh nonce ◄──────────────┐
//!                ▼                                          │ used, not by us
//!    nonce ─► sign ─► submit ─► in a block ─► events: done, or refused
//!                ▲      │ refused, lost, dropped, silent    ▲
//!                │      ▼                                   │ used by one of ours
//!                └── settle: is the nonce used? ────────────┘
//!              no: sign again, same nonce
//! ```
//!
//! Transactions are mortal, so that one that got lost for good is not executed days later.

use std::sync::Arc;
use std::time::Duration;

use hostd_rmb::identity::Identity;
use hostd_rmb::signature::Scheme;
use subxt::config::DefaultExtrinsicParamsBuilder;
use subxt::config::substrate::{AccountId32, H256, MultiSignature};
use subxt::error::{BackendError, DispatchError, ExtrinsicError, RpcError};
use subxt::events::Phase;
use subxt::tx::{SubmittableTransaction, TransactionProgress, TransactionStatus};
use tokio::time::Instant;

use crate::calls::Call;
use crate::chain::Chain;
use crate::config::{BACKOFF_MAX, BACKOFF_MIN, Confirmation, MORTALITY};
use crate::connection::{Block, Connection, Fault, Grid, answer, hash_of_bytes, number};
use crate::error::{ChainError, EndpointFaults, Refusal, shortened};
use crate::event::{self, Event};
use crate::link::{At, timed_out};
use crate::types::BlockNumber;

/// How long an endpoint that took a transaction may say nothing of a block: four blocks of TFChain.
const WATCH_MAX: Duration = Duration::from_secs(24);
/// How many blocks are looked through for a transaction.
const SEARCH_COUNT_MAX: u32 = 256;
/// How many times one call is signed with one nonce.
const SIGNED_COUNT_MAX: usize = 32;
/// What endpoints say of somebody who can't pay.
const PAYMENT_MARKS: &[&str] = &["pay some fees", "Payment"];

/// What a call did.
pub(crate) struct Outcome {
    /// In order.
    pub(crate) events: Vec<Event>,
}

/// What one attempt led to.
enum Step {
    /// It is in a block.
    Done(Result<Outcome, Refusal>),
    /// The endpoint did not take it; `fatal` if no other try can help.
    Rejected { reason: String, fatal: bool },
    /// It was taken, and is in no block yet.
    Lost(String),
}

/// A call, and everything that was sent for it.
struct Order<'a> {
    chain: &'a Chain,
    identity: &'a Identity,
    call: &'a Call,
    /// What all transactions that were sent have in common.
    nonce: Option<u64>,
    /// The block from which on they can have been included.
    born: BlockNumber,
    /// Their hashes.
    sent: Vec<H256>,
}

/// Signs and sends `call`, and waits until it is in a block. One at a time for each account.
pub(crate) async fn send(
    chain: &Chain,
    identity: &Identity,
    call: &Call,
) -> Result<Outcome, ChainError> {
    let mut order = Order { chain, identity, call, nonce: None, born: 0, sent: Vec::new() };
    let config = &chain.link.config;
    let started = Instant::now();
    let mut faults = EndpointFaults::default();
    let mut tries = 0_usize;
    let mut pause = BACKOFF_MIN;
    loop {
        let deadline = started + config.inclusion_timeout;
        let step = order.attempt(deadline).await;
        tries += 1;
        let reason = match step {
            Ok(Step::Done(Ok(outcome))) => return Ok(outcome),
            Ok(Step::Done(Err(refusal))) => {
                return Err(ChainError::Refused { call: call.title(), refusal });
            }
            Ok(Step::Rejected { reason, fatal }) => {
                let over = started.elapsed() >= config.retry_max;
                if order.sent.is_empty() && (fatal || over) {
                    return Err(ChainError::NotAccepted { call: call.title(), reason });
                }
                reason
            }
            Ok(Step::Lost(reason)) => reason,
            Err((_, Fault::Answer(error))) => return Err(error),
            Err((_, Fault::Incompatible(reason))) if tries > 1 && order.sent.is_empty() => {
                return Err(ChainError::Incompatible(reason));
            }
            Err((_, Fault::Incompatible(reason))) => {
                chain.link.forget_metadata();
                reason
            }
            Err((endpoint, Fault::Pruned(reason))) => {
                chain.link.leave(&endpoint).await;
                reason
            }
            Err((endpoint, Fault::Endpoint(fault))) => {
                chain.link.leave(&endpoint).await;
                let reason = fault.to_string();
                faults.add(&endpoint, fault);
                let all_tried = tries >= config.endpoints.len();
                let over = all_tried && started.elapsed() >= config.retry_max;
                if order.sent.is_empty() && over {
                    return Err(ChainError::Unreachable(faults));
                }
                reason
            }
        };
        tracing::debug!(call = call.title(), reason, "not in a block yet");
        if Instant::now() >= deadline {
            return Err(order.gave_up(reason));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

impl Order<'_> {
    /// Settles what was sent before, then signs, sends and watches once.
    async fn attempt(&mut self, deadline: Instant) -> Result<Step, (String, Fault)> {
        let connection = self.chain.link.connection().await?;
        let endpoint = connection.endpoint.clone();
        self.attempt_at(&connection, deadline).await.map_err(|fault| (endpoint, fault))
    }

    async fn attempt_at(
        &mut self,
        connection: &Arc<Connection>,
        deadline: Instant,
    ) -> Result<Step, Fault> {
        let limit = self.chain.link.config.call_timeout;
        let within = |_| timed_out(limit);
        if !self.sent.is_empty() {
            let settled = tokio::time::timeout(limit, self.settle(connection)).await;
            if let Some(done) = settled.map_err(within)?? {
                return Ok(Step::Done(done));
            }
        }
        let signed = tokio::time::timeout(limit, self.sign(connection)).await;
        let transaction = signed.map_err(within)??;
        let hash = transaction.hash();
        let submitted = tokio::time::timeout(limit, transaction.submit_and_watch()).await;
        let progress = match submitted {
            Ok(Ok(progress)) => progress,
            Ok(Err(error)) => {
                return match rejection(error) {
                    Ok(rejected) => Ok(rejected),
                    Err(fault) => {
                        // It may have arrived all the same.
                        self.remember(hash);
                        Err(fault)
                    }
                };
            }
            Err(_) => {
                self.remember(hash);
                return Err(timed_out(limit));
            }
        };
        self.remember(hash);
        self.watch(connection, progress, hash, deadline).await
    }

    fn remember(&mut self, hash: H256) {
        if self.sent.len() < SIGNED_COUNT_MAX && !self.sent.contains(&hash) {
            self.sent.push(hash);
        }
    }

    /// Finds out what became of what was sent. Nothing, if it may be sent again.
    async fn settle(
        &mut self,
        connection: &Connection,
    ) -> Result<Option<Result<Outcome, Refusal>>, Fault> {
        let (height, hash) = self.chain.link.head(connection, At::Best).await?;
        let block = connection.at((height, hash)).await?;
        let account = AccountId32(*self.identity.account().as_bytes());
        let next = block.tx().account_nonce(&account).await.map_err(unsent)?;
        if self.nonce.is_none_or(|nonce| next <= nonce) {
            return Ok(None);
        }
        let first = self.born.saturating_add(1).max(height.saturating_sub(SEARCH_COUNT_MAX));
        for number in (first..=height).rev() {
            let Some(hash) = connection.hash_of(number).await? else { continue };
            if let Some(done) = self.outcome(connection, (number, hash)).await? {
                return Ok(Some(done));
            }
        }
        // Somebody else with the same key was faster. None of ours can be executed any more.
        self.nonce = None;
        self.sent.clear();
        Ok(None)
    }

    /// Signs the call, with the nonce of what was sent before.
    async fn sign(
        &mut self,
        connection: &Connection,
    ) -> Result<SubmittableTransaction<Grid, subxt::client::OnlineClientAtBlockImpl<Grid>>, Fault>
    {
        if self.sent.len() >= SIGNED_COUNT_MAX {
            return Err(answer("it took a transaction many times and put none into a block"));
        }
        let account = AccountId32(*self.identity.account().as_bytes());
        let nonce = match self.nonce {
            Some(nonce) if !self.sent.is_empty() => nonce,
            _ => connection.methods.system_account_next_index(&account).await?,
        };
        let (born, birth_hash) = connection.finalized().await?;
        if self.sent.is_empty() {
            self.born = born;
        }
        self.nonce = Some(nonce);
        let block = self.chain.link.block(connection, At::Best).await?;
        let params = DefaultExtrinsicParamsBuilder::<Grid>::new()
            .nonce(nonce)
            .mortal_from_unchecked(MORTALITY, born.into(), birth_hash)
            .build();
        let payload = self.call.payload();
        let transactions = block.tx();
        let mut signable =
            transactions.create_signable_offline(&payload, params).map_err(unsent)?;
        signable.sign(&SubxtSigner(self.identity)).map_err(unsent)
    }

    /// Waits until the transaction is in a block.
    async fn watch(
        &self,
        connection: &Connection,
        mut progress: TransactionProgress<Grid, subxt::client::OnlineClientAtBlockImpl<Grid>>,
        hash: H256,
        deadline: Instant,
    ) -> Result<Step, Fault> {
        let until = deadline.min(Instant::now() + WATCH_MAX);
        loop {
            let Ok(status) = tokio::time::timeout_at(until, progress.next()).await else {
                return Err(answer("it took the transaction and puts it into no block"));
            };
            let status = match status {
                Some(Ok(status)) => status,
                Some(Err(error)) => return Ok(Step::Lost(shortened(&error.to_string()))),
                None => return Ok(Step::Lost("the endpoint stopped telling".to_owned())),
            };
            let included = match status {
                TransactionStatus::InFinalizedBlock(block) => block.block_hash(),
                TransactionStatus::InBestBlock(block)
                    if self.chain.link.config.confirmation == Confirmation::InBlock =>
                {
                    block.block_hash()
                }
                TransactionStatus::Error { message }
                | TransactionStatus::Invalid { message }
                | TransactionStatus::Dropped { message } => {
                    return Ok(Step::Lost(shortened(&message)));
                }
                _ => continue,
            };
            let limit = self.chain.link.config.call_timeout;
            let reading = self.outcome_in(connection, included);
            let done =
                tokio::time::timeout(limit, reading).await.map_err(|_| timed_out(limit))??;
            return match done {
                Some(done) => Ok(Step::Done(done)),
                None => Err(answer(&format!("transaction {hash:#x} is not in the block it names"))),
            };
        }
    }

    /// What became of one of ours in that block.
    async fn outcome_in(
        &self,
        connection: &Connection,
        hash: H256,
    ) -> Result<Option<Result<Outcome, Refusal>>, Fault> {
        let header = connection.methods.chain_get_header(Some(hash)).await?;
        let header = header.ok_or_else(|| answer("it does not have the block it names"))?;
        self.outcome(connection, (number(header.number)?, hash)).await
    }

    /// What became of one of ours in that block, if one is in there.
    async fn outcome(
        &self,
        connection: &Connection,
        (number, hash): (BlockNumber, H256),
    ) -> Result<Option<Result<Outcome, Refusal>>, Fault> {
        let details = connection.methods.chain_get_block(Some(hash)).await?;
        let details = details.ok_or_else(|| answer("it does not have the block it names"))?;
        let position = details
            .block
            .extrinsics
            .iter()
            .position(|extrinsic| self.sent.contains(&hash_of_bytes(&extrinsic.0)));
        let Some(position) = position.and_then(|position| u32::try_from(position).ok()) else {
            return Ok(None);
        };
        let block = connection.at((number, hash)).await?;
        executed(&block, position).await.map(Some)
    }

    /// The error after the time is over.
    fn gave_up(&self, reason: String) -> ChainError {
        let call = self.call.title();
        match self.sent.last() {
            Some(hash) => ChainError::Unconfirmed { call, transaction: hash.0, reason },
            None => ChainError::NotAccepted { call, reason },
        }
    }
}

/// What the transaction at `position` of the block did.
async fn executed(block: &Block, position: u32) -> Result<Result<Outcome, Refusal>, Fault> {
    let events = block.events().fetch().await?;
    let mut known = Vec::new();
    let mut executed = false;
    for raw in events.iter() {
        let raw = raw?;
        if raw.phase() != Phase::ApplyExtrinsic(position) {
            continue;
        }
        match (raw.pallet_name(), raw.event_name()) {
            ("System", "ExtrinsicFailed") => {
                let error = DispatchError::decode_from(raw.field_bytes(), block.metadata())
                    .map_err(|error| Fault::Incompatible(shortened(&error.to_string())))?;
                return Ok(Err(Refusal::new(&error)));
            }
            ("System", "ExtrinsicSuccess") => executed = true,
            _ => known.extend(event::read(&raw)?),
        }
    }
    if executed {
        Ok(Ok(Outcome { events: known }))
    } else {
        Err(answer("the block says neither that the transaction succeeded nor that it failed"))
    }
}

/// Why a transaction could not be made.
fn unsent(error: ExtrinsicError) -> Fault {
    match error {
        ExtrinsicError::AccountNonceError { reason, .. } => match reason {
            subxt::error::AccountNonceError::CouldNotRetrieve(error) => error.into(),
            other => answer(&shortened(&other.to_string())),
        },
        other => Fault::Incompatible(shortened(&other.to_string())),
    }
}

/// Tells an endpoint that refuses a transaction from one that fails.
fn rejection(error: ExtrinsicError) -> Result<Step, Fault> {
    let ExtrinsicError::ErrorSubmittingTransaction(error) = error else {
        return Err(unsent(error));
    };
    let BackendError::Rpc(RpcError::ClientError(subxt::rpcs::Error::User(user))) = error else {
        return Err(error.into());
    };
    let data = user.data.as_ref().map_or("", |data| data.get());
    let reason = shortened(&format!("{} {data}", user.message));
    let fatal = PAYMENT_MARKS.iter().any(|mark| reason.contains(mark));
    Ok(Step::Rejected { reason, fatal })
}

/// An identity, as subxt wants it.
struct SubxtSigner<'a>(&'a Identity);

impl subxt::tx::Signer<Grid> for SubxtSigner<'_> {
    fn account_id(&self) -> AccountId32 {
        AccountId32(*self.0.account().as_bytes())
    }

    fn sign(&self, payload: &[u8]) -> MultiSignature {
        let signature = self.0.sign_bare(payload);
        match self.0.scheme() {
            Scheme::Ed25519 => MultiSignature::Ed25519(signature),
            Scheme::Sr25519 => MultiSignature::Sr25519(signature),
        }
    }
}
