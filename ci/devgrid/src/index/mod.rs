//! The tables that REST and GraphQL answer from.
//!
//! They say what the chain's state says now, and what its events said that the state has forgotten:
//! contracts that ended, bills, the last report of a node. Whoever feeds them holds [`Index::write`];
//! answers are made under [`Index::read`], from one consistent state.

mod page;
mod rows;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod saved;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};

pub(crate) use page::{Key, Page, sorted};
pub(crate) use rows::{
    Bill, Contract, ContractKind, ContractState, Farm, Interface, Node, PublicConfig, PublicIp,
    Resources, Twin,
};

/// Bills that are kept; the oldest go first.
pub(crate) const BILL_COUNT_MAX: usize = 100_000;
/// Contracts that ended and are kept; those with the lowest numbers go first.
pub(crate) const ENDED_CONTRACT_COUNT_MAX: usize = 50_000;
/// For how long a node is up after a report: reports come every 40 minutes, and one may be late.
const NODE_UP_S: u64 = 2 * 60 * 60;

/// Tables that are shared by those who ask and the one who feeds.
#[derive(Debug, Default)]
pub(crate) struct Index {
    tables: RwLock<Tables>,
}

impl Index {
    /// The tables, as they are now.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tables, to change them.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All rows by their numbers.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tables {
    /// The chain's time, in Unix seconds.
    pub(crate) now: u64,
    /// The block that they are of.
    pub(crate) block: u32,
    pub(crate) farms: BTreeMap<u32, Farm>,
    pub(crate) nodes: BTreeMap<u32, Node>,
    pub(crate) twins: BTreeMap<u32, Twin>,
    pub(crate) contracts: BTreeMap<u64, Contract>,
    /// In the order of their blocks.
    pub(crate) bills: VecDeque<Bill>,
    ended_count: usize,
}

/// Whether a node can be talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeStatus {
    Up,
    Standby,
    Down,
}

impl NodeStatus {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Standby => "standby",
            Self::Down => "down",
        }
    }
}

/// What contracts say about a node.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NodeUse {
    pub(crate) used: Resources,
    pub(crate) contract_count: usize,
    /// The rent contract and who pays for it.
    pub(crate) rent: Option<(u64, u32)>,
}

impl Tables {
    /// Puts a contract in, in place of what was known of it.
    pub(crate) fn put_contract(&mut self, contract: Contract) {
        let ended = !contract.state.is_active();
        let before = self.contracts.insert(contract.id, contract);
        let had_ended = before.is_some_and(|before| !before.state.is_active());
        match (had_ended, ended) {
            (false, true) => self.ended_count += 1,
            (true, false) => self.ended_count -= 1,
            _ => {}
        }
        if self.ended_count > ENDED_CONTRACT_COUNT_MAX {
            let oldest = self.contracts.values().find(|contract| !contract.state.is_active());
            if let Some(id) = oldest.map(|contract| contract.id) {
                self.contracts.remove(&id);
                self.ended_count -= 1;
            }
        }
    }

    /// Puts the newest bill in.
    pub(crate) fn put_bill(&mut self, bill: Bill) {
        if self.bills.len() == BILL_COUNT_MAX {
            self.bills.pop_front();
        }
        self.bills.push_back(bill);
    }

    /// What is in use of every node that has a contract.
    pub(crate) fn node_uses(&self) -> BTreeMap<u32, NodeUse> {
        let mut uses = BTreeMap::<u32, NodeUse>::new();
        for contract in self.contracts.values().filter(|contract| contract.state.is_active()) {
            let Some(node_id) = contract.node_id() else { continue };
            let entry = uses.entry(node_id).or_default();
            match contract.kind {
                ContractKind::Rent { .. } => entry.rent = Some((contract.id, contract.twin_id)),
                _ => {
                    entry.contract_count += 1;
                    entry.used = entry.used.plus(contract.used);
                }
            }
        }
        uses
    }

    /// Whether `node` can be talked to: it reported lately and doesn't sleep.
    pub(crate) fn node_status(&self, node: &Node) -> NodeStatus {
        if node.power_down || node.power_target_down {
            NodeStatus::Standby
        } else if node.uptime.is_some() && node.updated_at.saturating_add(NODE_UP_S) >= self.now {
            NodeStatus::Up
        } else {
            NodeStatus::Down
        }
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{contract, tables};
    use super::*;

    #[test]
    fn what_contracts_use_is_counted_while_they_last() {
        let mut tables = tables();
        let before = tables.node_uses()[&1];
        assert_eq!(before.contract_count, 1);
        assert_eq!(before.used.cru, 2);
        assert_eq!(before.rent, None);

        let mut ended = contract(1);
        ended.state = ContractState::Deleted;
        tables.put_contract(ended);
        assert!(!tables.node_uses().contains_key(&1));
        assert_eq!(tables.node_uses()[&2].rent, Some((3, 5)));
    }

    #[test]
    fn a_node_is_up_for_a_while_after_its_report() {
        let mut tables = tables();
        let status = |tables: &Tables, id| tables.node_status(&tables.nodes[&id]);
        assert_eq!(status(&tables, 1), NodeStatus::Up);
        assert_eq!(status(&tables, 2), NodeStatus::Down, "never reported");
        assert_eq!(status(&tables, 3), NodeStatus::Standby);
        tables.now += NODE_UP_S + 1;
        assert_eq!(status(&tables, 1), NodeStatus::Down);
    }

    #[test]
    fn ended_contracts_and_bills_are_bounded() {
        let mut tables = Tables::default();
        for id in 1..=ENDED_CONTRACT_COUNT_MAX as u64 + 10 {
            let mut ended = contract(1);
            ended.id = id;
            ended.state = ContractState::Deleted;
            tables.put_contract(ended);
        }
        assert_eq!(tables.contracts.len(), ENDED_CONTRACT_COUNT_MAX);
        assert!(!tables.contracts.contains_key(&10));
        for timestamp in 0..BILL_COUNT_MAX as u64 + 1 {
            tables.put_bill(Bill { contract_id: 1, timestamp, discount: "None", amount: 1 });
        }
        assert_eq!(tables.bills.len(), BILL_COUNT_MAX);
        assert_eq!(tables.bills[0].timestamp, 1);
    }
}
