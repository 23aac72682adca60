//! The handle that everybody has.

use std::sync::Arc;

use hostd_rmb::identity::Identity;
use hostd_rmb::twins::{self, TwinId, TwinLookup, Twins, TwinsError};

use crate::config::ChainConfig;
use crate::error::ChainError;
use crate::follow::Follow;
use crate::link::Link;
use crate::signing::SigningChain;
use crate::types::BlockNumber;

/// The chain. Clones share one connection.
///
/// Questions are methods of [`crate::reads`]; what changes something is signed, see
/// [`Chain::signed_by`].
#[derive(Clone)]
pub struct Chain {
    pub(crate) link: Arc<Link>,
}

impl Chain {
    /// The chain behind these endpoints, which are connected to when something is asked.
    ///
    /// # Errors
    ///
    /// Only for addresses that can't be any.
    pub fn new(config: ChainConfig) -> Result<Self, ChainError> {
        Ok(Self { link: Arc::new(Link::new(config)?) })
    }

    /// Connects now, to find out whether any endpoint is of use.
    ///
    /// # Errors
    ///
    /// [`ChainError::Unreachable`] says what is wrong with each of them.
    pub async fn connect(config: ChainConfig) -> Result<Self, ChainError> {
        let chain = Self::new(config)?;
        chain.head().await?;
        Ok(chain)
    }

    /// Hash of the chain's first block; not known before the first connection, unless configured.
    pub fn genesis(&self) -> Option<[u8; 32]> {
        self.link.genesis()
    }

    /// The same chain, for somebody who changes something there.
    pub fn signed_by(&self, identity: Arc<Identity>) -> SigningChain {
        SigningChain::new(self.clone(), identity)
    }

    /// All blocks from `from` on. See [`Follow`].
    pub fn follow(&self, from: BlockNumber) -> Follow {
        Follow::new(self.clone(), from)
    }
}

impl Twins for Chain {
    fn twin(&self, id: TwinId) -> TwinLookup<'_> {
        Box::pin(async move {
            let found = self.twin_by_id(id.number()).await;
            let found = found.map_err(|error| TwinsError(error.to_string()))?;
            Ok(found.map(|twin| {
                let account = hostd_rmb::identity::AccountId::from_bytes(twin.account_id);
                let relay = twin.relay.as_ref().map(|relay| relay.as_bytes());
                Arc::new(twins::Twin::from_chain(id, account, relay, twin.pk.as_deref()))
            }))
        })
    }
}
