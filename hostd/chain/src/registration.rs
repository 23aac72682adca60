//! Account, terms, twin and node: each made or updated only if it has to be.
//!
//! A node does this at every start and then every day, a deployer at login. Each step first asks the
//! chain what is there, so that doing all of it again changes nothing and costs nothing.

use hostd_rmb::identity::AccountId;

use crate::activation;
use crate::calls::NodeSpec;
use crate::error::ChainError;
use crate::signing::SigningChain;
use crate::types::UNITS_PER_TFT;

/// Below this an account is activated again: it could not pay for a call that is free afterwards.
pub const BALANCE_MIN: u128 = UNITS_PER_TFT / 1000;
/// Where the terms and conditions of the grid are.
pub const TERMS_LINK: &str = "http://zos.tf/terms/v0.1";
/// The hash of what stands there.
pub const TERMS_HASH: &str = "9021d4dee05a661e2cb6838152c67f25";

impl SigningChain {
    /// Makes sure that the account exists, can pay, and has accepted the terms.
    ///
    /// # Errors
    ///
    /// [`ChainError::Activation`] if no service gave it anything.
    pub async fn ensure_account(&self, activation_urls: &[String]) -> Result<(), ChainError> {
        let found = self.chain().account(self.account()).await?;
        if found.is_none_or(|account| account.data.free <= BALANCE_MIN) {
            activation::activate(activation_urls, AccountId::from_bytes(self.account())).await?;
        }
        if !self.chain().accepted_terms(self.account()).await? {
            self.accept_terms(TERMS_LINK, TERMS_HASH).await?;
        }
        Ok(())
    }

    /// Makes sure that the account has a twin, with these relays (joined by `_`) and this key, and
    /// returns its number. What is `None` is left as it is.
    ///
    /// # Errors
    ///
    /// If it has to be made or updated, and can't.
    pub async fn ensure_twin(
        &self,
        relay: Option<&str>,
        pk: Option<&[u8]>,
    ) -> Result<u32, ChainError> {
        let Some(id) = self.chain().twin_of_account(self.account()).await? else {
            return self.create_twin(relay, pk).await;
        };
        let Some(twin) = self.chain().twin_by_id(id).await? else {
            let text = format!("the account has twin {id}, and there is no such twin");
            return Err(ChainError::Incompatible(text));
        };
        let known = twin.relay.as_ref().map(|relay| relay.as_str());
        let wanted_relay = relay.or(known);
        let wanted_pk = pk.or(twin.pk.as_deref());
        if wanted_relay != known || wanted_pk != twin.pk.as_deref() {
            self.update_twin(wanted_relay, wanted_pk).await?;
        }
        Ok(id)
    }

    /// Makes sure that the account's twin is a node, that the chain knows it as it is, and returns its
    /// number.
    ///
    /// # Errors
    ///
    /// If it has to be made or updated, and can't; without a twin it can't.
    pub async fn ensure_node(&self, spec: &NodeSpec) -> Result<u32, ChainError> {
        let Some(twin) = self.chain().twin_of_account(self.account()).await? else {
            return self.create_node(spec).await;
        };
        let Some(id) = self.chain().node_of_twin(twin).await? else {
            return self.create_node(spec).await;
        };
        let Some(node) = self.chain().node(id).await? else {
            let text = format!("twin {twin} is node {id}, and there is no such node");
            return Err(ChainError::Incompatible(text));
        };
        if spec.differs_from(&node) {
            self.update_node(id, spec).await?;
        }
        Ok(id)
    }
}
