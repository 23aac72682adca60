//! The chain's events: each block once, from where the node was before.

use std::sync::Arc;

use hostd_chain::types::Power;
use hostd_chain::{BlockNumber, ChainError, Event};
use hostd_grid::ContractId;
use hostd_rmb::twins::TwinId;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::Shared;
use super::retry::Retry;
use crate::health::Duty;
use crate::power::{hardware_address, wake};
use crate::state::{cursor, set_cursor};

/// Blocks that are caught up with, about an hour of them. Who was away for longer compares everything,
/// instead of reading for long what is past.
const CATCH_UP_COUNT_MAX: BlockNumber = 600;
/// Blocks that an endpoint may lie behind what was seen before.
const LAG_COUNT_MAX: BlockNumber = 64;
/// The card of a node that listens while it sleeps.
const CARD: &str = "zos";

impl Shared {
    /// Does what the chain's events say.
    pub(super) async fn follow(self: Arc<Self>) {
        let (from, mut is_behind) = self.start_of_events().await;
        let mut follow = self.chain.follow(from);
        // Whatever was missed is compared, again and again until it succeeds.
        let (mut retry, mut due) = (Retry::new(), Instant::now());
        loop {
            tokio::select! {
                block = follow.next() => {
                    if let Some(missed) = block.missed {
                        warn!(?missed, "blocks were missed: everything is compared");
                        self.twins.clear();
                        is_behind = true;
                        due = Instant::now();
                    }
                    for event in block.events {
                        self.obey(event).await;
                    }
                    set_cursor(&*self.state, block.number);
                    self.health.note(Duty::Events, &Ok::<(), ChainError>(()));
                }
                () = sleep_until(due), if is_behind => {
                    is_behind = self.engine.reconcile().await.is_err();
                    match is_behind {
                        true => due = Instant::now() + retry.pause(),
                        false => retry.reset(),
                    }
                }
            }
        }
    }

    /// The first block to look at, and whether others before it were not looked at.
    async fn start_of_events(&self) -> (BlockNumber, bool) {
        let mut retry = Retry::new();
        loop {
            match self.chain.finalized().await {
                Ok(head) => return start(cursor(&*self.state), head),
                Err(error) => {
                    self.health.note(Duty::Events, &Err(error));
                    sleep(retry.pause()).await;
                }
            }
        }
    }

    /// Does what one event says, if it is about this node or about somebody who may write to it.
    pub(super) async fn obey(self: &Arc<Self>, event: Event) {
        let (node_id, farm_id) = (self.numbers.node_id, self.site.farm_id);
        let engine = &self.engine;
        match event {
            Event::TwinStored(twin) | Event::TwinUpdated(twin) => {
                if let Some(id) = TwinId::new(twin.id) {
                    self.twins.invalidate(id);
                }
            }
            Event::ContractCreated(contract) | Event::ContractUpdated(contract) => {
                engine.look_again(ContractId(contract.contract_id));
            }
            Event::NodeContractCanceled(over) if over.node_id == node_id => {
                let reason = "contract canceled event received";
                engine.cancel(ContractId(over.contract_id), reason).await;
            }
            Event::GracePeriodStarted(unpaid) if unpaid.node_id == node_id => {
                engine.set_grace(ContractId(unpaid.contract_id), true).await;
            }
            Event::GracePeriodEnded(paid) if paid.node_id == node_id => {
                engine.set_grace(ContractId(paid.contract_id), false).await;
            }
            Event::NodePublicConfigStored { node_id: node, config } if node == node_id => {
                self.known.set_public_config(config);
            }
            Event::PowerTargetChanged(wanted) if wanted.farm_id == farm_id => {
                if wanted.node_id == node_id {
                    let settled = self.settle_power().await;
                    self.health.note(Duty::Power, &settled);
                } else if wanted.power_target == Power::Up {
                    let shared = Arc::clone(self);
                    let sibling = wanted.node_id;
                    tokio::spawn(async move { shared.wake_sibling(sibling).await });
                }
            }
            _ => {}
        }
    }

    /// Wakes another node of the farm.
    async fn wake_sibling(&self, node_id: u32) {
        let cards = match self.registrar.interfaces(node_id).await {
            Ok(cards) => cards,
            Err(error) => return warn!(node_id, %error, "a sibling is not woken"),
        };
        let card = cards.iter().find(|card| card.name.as_str() == CARD);
        let Some(address) = card.and_then(|card| hardware_address(&card.mac)) else {
            return warn!(node_id, "a sibling is not woken: its address is not known");
        };
        match wake(address, self.site.wake_to).await {
            Ok(()) => info!(node_id, "a sibling is woken"),
            Err(error) => warn!(node_id, %error, "a sibling is not woken"),
        }
    }
}

/// The first block to look at after `cursor`, and whether others before it were not looked at.
fn start(cursor: Option<BlockNumber>, head: BlockNumber) -> (BlockNumber, bool) {
    let is_near = |cursor: &BlockNumber| {
        *cursor <= head.saturating_add(LAG_COUNT_MAX)
            && head.saturating_sub(*cursor) <= CATCH_UP_COUNT_MAX
    };
    match cursor.filter(is_near) {
        Some(cursor) => (cursor.saturating_add(1), false),
        None => (head.saturating_add(1), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_away_for_long_does_not_read_everything() {
        assert_eq!(start(None, 1000), (1001, true));
        assert_eq!(start(Some(990), 1000), (991, false));
        // The endpoint is a little behind.
        assert_eq!(start(Some(1003), 1000), (1004, false));
        assert_eq!(start(Some(300), 1000), (1001, true));
        // The chain began anew.
        assert_eq!(start(Some(9000), 1000), (1001, true));
        assert_eq!(start(Some(u32::MAX), u32::MAX), (u32::MAX, false));
    }
}
