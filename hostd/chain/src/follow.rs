//! All blocks from one on: first those that were missed, then each as it comes.
//!
//! Only finalized blocks are shown, so nothing that was shown is ever taken back, and each number comes
//! exactly once and in order. Who follows remembers the last number, and goes on behind it after a
//! restart. Nothing here fails: while no endpoint can be reached, the next block just does not come.
//!
//! ```text
//!   next ≤ head ──► block `next`: events ──► shown
//!   next > head ──► wait for a head (subscription, silence limit, poll) ──► head
//!   state pruned ──► the oldest block that is left is searched for; what lies before is `missed`
//!   unreadable at every endpoint ──► that block alone is `missed`
//! ```
//!
//! What is missed is said, because the follower then has to compare everything with the chain
//! ([`Chain::node_contracts`]).

use std::ops::RangeInclusive;
use std::sync::Arc;

use subxt::config::substrate::{H256, SubstrateHeader};
use subxt::rpcs::client::RpcSubscription;

use crate::chain::Chain;
use crate::connection::{Connection, Fault, answer, number};
use crate::error::ChainError;
use crate::event::{self, Event};
use crate::link::At;
use crate::types::BlockNumber;

/// A block, as far as its events matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEvents {
    /// Its number: what to remember.
    pub number: BlockNumber,
    /// Its hash; all zero for a block that was missed.
    pub hash: [u8; 32],
    /// What happened, as far as we know such events.
    pub events: Vec<Event>,
    /// Blocks up to this one of which nothing is known, and nothing will be.
    pub missed: Option<RangeInclusive<BlockNumber>>,
}

/// Shows block after block. See the [module](self).
pub struct Follow {
    chain: Chain,
    next: BlockNumber,
    /// The newest finalized block that is known.
    head: Option<BlockNumber>,
    heads: Option<Heads>,
}

/// New heads from one endpoint.
struct Heads {
    endpoint: String,
    subscription: RpcSubscription<SubstrateHeader<H256>>,
    /// Dropping it would end the subscription.
    _connection: Arc<Connection>,
}

/// What is at a number.
enum Found {
    Events(H256, Vec<Event>),
    /// There is no state before this block.
    Pruned {
        oldest: BlockNumber,
    },
}

impl Follow {
    pub(crate) fn new(chain: Chain, from: BlockNumber) -> Self {
        Self { chain, next: from, head: None, heads: None }
    }

    /// The next block, as soon as it is there. May be dropped and called again at any time.
    pub async fn next(&mut self) -> BlockEvents {
        loop {
            match self.try_next().await {
                Ok(Some(block)) => {
                    // Nothing is awaited between here and the return.
                    self.next = block.number.saturating_add(1);
                    return block;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, next = self.next, "no new blocks for now");
                    self.heads = None;
                    tokio::time::sleep(self.chain.link.config.resubscribe_pause).await;
                }
            }
        }
    }

    /// The block that is due, or nothing if the head had to be looked at first.
    async fn try_next(&mut self) -> Result<Option<BlockEvents>, ChainError> {
        let Some(head) = self.head.filter(|head| self.next <= *head) else {
            self.wait_for_head().await?;
            return Ok(None);
        };
        match self.find(self.next).await {
            Ok(Found::Events(hash, events)) => {
                let number = self.next;
                Ok(Some(BlockEvents { number, hash: hash.0, events, missed: None }))
            }
            Ok(Found::Pruned { oldest }) => {
                let last = oldest.saturating_sub(1).clamp(self.next, head);
                Ok(Some(self.missed(last)))
            }
            Err(ChainError::Incompatible(reason)) => {
                tracing::error!(number = self.next, reason, "a block can't be read");
                Ok(Some(self.missed(self.next)))
            }
            Err(error) => Err(error),
        }
    }

    fn missed(&self, last: BlockNumber) -> BlockEvents {
        let missed = Some(self.next..=last);
        BlockEvents { number: last, hash: [0; 32], events: Vec::new(), missed }
    }

    /// Reads block `wanted`.
    async fn find(&mut self, wanted: BlockNumber) -> Result<Found, ChainError> {
        let link = &self.chain.link;
        let question = |connection: Arc<Connection>| async move {
            match events_of(&connection, wanted).await {
                Ok((hash, events)) => Ok(Found::Events(hash, events)),
                Err(Fault::Pruned(_)) => {
                    let (head, _) = link.head(&connection, At::Finalized).await?;
                    let oldest = oldest_with_state(&connection, wanted, head).await?;
                    Ok(Found::Pruned { oldest })
                }
                Err(fault) => Err(fault),
            }
        };
        link.run(question).await
    }

    /// Waits until the finalized head moves, or it is time to look for ourselves.
    async fn wait_for_head(&mut self) -> Result<(), ChainError> {
        if self.heads.is_none() {
            self.heads = Some(self.subscribe().await?);
            // Blocks between the last look and the subscription are not told.
            self.look().await?;
            return Ok(());
        }
        let silence = self.chain.link.config.head_silence_max;
        let Some(heads) = &mut self.heads else { return Ok(()) };
        match tokio::time::timeout(silence, heads.subscription.next()).await {
            Ok(Some(Ok(header))) => {
                if let Ok(head) = number(header.number) {
                    self.advance(head);
                }
                Ok(())
            }
            Ok(Some(Err(_)) | None) => {
                // The connection is gone.
                let endpoint = heads.endpoint.clone();
                self.heads = None;
                self.chain.link.leave(&endpoint).await;
                self.look().await
            }
            Err(_) => self.after_silence().await,
        }
    }

    /// No block came for long: the endpoint may be stuck, the subscription dead, or the chain quiet.
    async fn after_silence(&mut self) -> Result<(), ChainError> {
        let before = self.head;
        if self.chain.link.config.endpoints.len() > 1
            && let Some(heads) = self.heads.take()
        {
            self.chain.link.leave(&heads.endpoint).await;
        }
        self.look().await?;
        if self.head != before {
            self.heads = None;
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), ChainError> {
        let head = self.chain.finalized().await?;
        self.advance(head);
        Ok(())
    }

    /// The head never goes back, whoever says so.
    fn advance(&mut self, head: BlockNumber) {
        self.head = Some(self.head.map_or(head, |known| known.max(head)));
    }

    async fn subscribe(&mut self) -> Result<Heads, ChainError> {
        let question = |connection: Arc<Connection>| async move {
            let subscription = connection.methods.chain_subscribe_finalized_heads().await?;
            let endpoint = connection.endpoint.clone();
            Ok(Heads { endpoint, subscription, _connection: connection })
        };
        self.chain.link.run(question).await
    }
}

/// The events of a block.
async fn events_of(
    connection: &Connection,
    number: BlockNumber,
) -> Result<(H256, Vec<Event>), Fault> {
    let hash = connection.hash_of(number).await?;
    let hash = hash.ok_or_else(|| answer(&format!("it has no block {number}")))?;
    let block = connection.at((number, hash)).await?;
    let events = block.events().fetch().await?;
    Ok((hash, event::known(&events)?))
}

/// Succeeds if the endpoint can run that block's code.
async fn has_state(connection: &Connection, number: BlockNumber) -> Result<(), Fault> {
    let hash = connection.hash_of(number).await?;
    let hash = hash.ok_or_else(|| answer(&format!("it has no block {number}")))?;
    connection.at((number, hash)).await.map(drop)
}

/// The oldest block after `pruned` whose state the endpoint still has, by bisection up to `head`.
async fn oldest_with_state(
    connection: &Connection,
    pruned: BlockNumber,
    head: BlockNumber,
) -> Result<BlockNumber, Fault> {
    let (mut gone, mut there) = (pruned, head.max(pruned.saturating_add(1)));
    while there - gone > 1 {
        let middle = gone + (there - gone) / 2;
        match has_state(connection, middle).await {
            Ok(()) | Err(Fault::Incompatible(_)) => there = middle,
            Err(Fault::Pruned(_)) => gone = middle,
            Err(fault) => return Err(fault),
        }
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use hostd_rmb::relay::TrustedRoots;

    use super::*;
    use crate::config::ChainConfig;

    fn follow(from: BlockNumber) -> Follow {
        let roots = TrustedRoots::new(None).unwrap();
        let config = ChainConfig::new(vec!["ws://127.0.0.1:1".to_owned()], roots);
        Chain::new(config).unwrap().follow(from)
    }

    #[test]
    fn the_head_never_goes_back() {
        let mut follow = follow(1);
        follow.advance(9);
        follow.advance(3);
        assert_eq!(follow.head, Some(9));
    }

    #[test]
    fn what_is_missed_is_said_as_a_range() {
        let missed = follow(5).missed(8);
        assert_eq!((missed.number, missed.missed), (8, Some(5..=8)));
        assert!(missed.events.is_empty());
    }
}
