//! The chain as a node's own duties see it: who the node is, that it is there, what it reports.
//!
//! A trait, as the [ledger](crate::ledger) of deployments is, so that days of duties can be tried in a
//! moment against a chain that answers, hangs or is gone.

use std::pin::Pin;

use hostd_chain::calls::NodeSpec;
use hostd_chain::types::{Interface, NodePower, NruConsumption, Power, PublicConfig};
use hostd_chain::{ChainError, SigningChain};

use crate::state::Numbers;

/// An answer that is under way.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ChainError>> + Send + 'a>>;

/// What the chain is told of a node's account and twin, beside what the node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Account {
    /// Where a new account gets its first tokens.
    pub(crate) activation_urls: Vec<String>,
    /// Host names of relays, as a twin has them.
    pub(crate) relays: String,
    /// What others encrypt with.
    pub(crate) encryption_key: Vec<u8>,
}

/// Something that keeps nodes.
pub(crate) trait Registrar: Send + Sync {
    /// Makes sure that the node is known as it is: each part is made or updated only if it has to be.
    fn register<'a>(&'a self, account: &'a Account, spec: &'a NodeSpec) -> Answer<'a, Numbers>;

    /// The twin of a farm's owner.
    fn farmer(&self, farm: u32) -> Answer<'_, Option<u32>>;

    /// How the internet reaches a node directly.
    fn public_config(&self, node: u32) -> Answer<'_, Option<PublicConfig>>;

    /// A node's network cards.
    fn interfaces(&self, node: u32) -> Answer<'_, Vec<Interface>>;

    /// Whether a node runs, and whether it should.
    fn power(&self, node: u32) -> Answer<'_, NodePower>;

    /// Says whether this node runs.
    fn set_power(&self, state: Power) -> Answer<'_, ()>;

    /// Says that this node is there, since so many seconds, at that time of 1970.
    fn report_uptime(&self, uptime: u64, time: u64) -> Answer<'_, ()>;

    /// Says what contracts have sent and received.
    fn report_traffic<'a>(&'a self, report: &'a [NruConsumption]) -> Answer<'a, ()>;

    /// The time of the newest block, in milliseconds since 1970.
    fn time_ms(&self) -> Answer<'_, u64>;
}

impl Registrar for SigningChain {
    fn register<'a>(&'a self, account: &'a Account, spec: &'a NodeSpec) -> Answer<'a, Numbers> {
        Box::pin(async move {
            let Account { activation_urls, relays, encryption_key } = account;
            self.ensure_account(activation_urls).await?;
            let twin = self.ensure_twin(Some(relays), Some(encryption_key)).await?;
            let node = self.ensure_node(spec).await?;
            Ok(Numbers::new(node, twin, self.account(), self.chain().genesis()))
        })
    }

    fn farmer(&self, farm: u32) -> Answer<'_, Option<u32>> {
        Box::pin(async move { Ok(self.chain().farm(farm).await?.map(|farm| farm.twin_id)) })
    }

    fn public_config(&self, node: u32) -> Answer<'_, Option<PublicConfig>> {
        Box::pin(async move {
            let node = self.chain().node(node).await?;
            Ok(node.and_then(|node| node.public_config))
        })
    }

    fn interfaces(&self, node: u32) -> Answer<'_, Vec<Interface>> {
        Box::pin(async move {
            let node = self.chain().node(node).await?;
            Ok(node.map(|node| node.interfaces).unwrap_or_default())
        })
    }

    fn power(&self, node: u32) -> Answer<'_, NodePower> {
        Box::pin(self.chain().node_power(node))
    }

    fn set_power(&self, state: Power) -> Answer<'_, ()> {
        Box::pin(self.set_power_state(state))
    }

    fn report_uptime(&self, uptime: u64, time: u64) -> Answer<'_, ()> {
        Box::pin(Self::report_uptime(self, uptime, time))
    }

    fn report_traffic<'a>(&'a self, report: &'a [NruConsumption]) -> Answer<'a, ()> {
        Box::pin(self.add_nru_reports(report))
    }

    fn time_ms(&self) -> Answer<'_, u64> {
        Box::pin(self.chain().time_ms())
    }
}
