//! One method a question.
//!
//! Questions are about the newest block, so that one who has just changed something sees it, unless the
//! method says "finalized". `Ok(None)` means that the chain was asked and does not have it.

use std::collections::HashMap;
use std::sync::Arc;

use scale_decode::DecodeAsType;
use scale_value::Value;
use subxt::error::{StorageError, StorageValueError};

use crate::chain::Chain;
use crate::connection::{Block, Connection, Fault, answer};
use crate::error::{ChainError, shortened};
use crate::link::At;
use crate::types::{
    Account, BlockNumber, Contract, ContractResources, Farm, Node, NodePower, Price, Twin,
};

/// Contracts that are asked for at a time: an answer is far smaller than the largest that is read.
const CONTRACT_COUNT_PER_QUESTION: usize = 500;

/// The contracts of a node, at a finalized block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeContracts {
    /// As of this block. A contract that was made after it can't be in the list.
    pub block: BlockNumber,
    /// Their numbers.
    pub ids: Vec<u64>,
}

/// The account's terms, of which only the existence matters.
#[derive(DecodeAsType)]
struct Terms {
    #[expect(dead_code, reason = "decoding looks for a field by its name")]
    timestamp: u64,
}

impl Chain {
    /// Number of the newest block.
    pub async fn head(&self) -> Result<BlockNumber, ChainError> {
        self.height(At::Best).await
    }

    /// Number of the newest block that can't be given up any more.
    pub async fn finalized(&self) -> Result<BlockNumber, ChainError> {
        self.height(At::Finalized).await
    }

    /// The time of the newest block, in milliseconds since 1970.
    pub async fn time_ms(&self) -> Result<u64, ChainError> {
        let link = &self.link;
        let question = |connection: Arc<Connection>| async move {
            let block = link.block(&connection, At::Best).await?;
            let now: Option<u64> = stored(&block, "Timestamp", "Now", Vec::new()).await?;
            Ok(now.unwrap_or_default())
        };
        link.run(question).await
    }

    /// Version of the chain's runtime.
    pub async fn spec_version(&self) -> Result<u32, ChainError> {
        let link = &self.link;
        let question = |connection: Arc<Connection>| async move {
            Ok(link.block(&connection, At::Best).await?.spec_version())
        };
        link.run(question).await
    }

    /// What an account has.
    pub async fn account(&self, account: [u8; 32]) -> Result<Option<Account>, ChainError> {
        let found: Option<Account> = self.map("System", "Account", vec![bytes(account)]).await?;
        // The chain says "all zero" for an account that does not exist.
        Ok(found.filter(|account| account.providers > 0 || account.sufficients > 0))
    }

    /// Whether the account has accepted the terms and conditions.
    pub async fn accepted_terms(&self, account: [u8; 32]) -> Result<bool, ChainError> {
        let key = vec![bytes(account)];
        let terms: Option<Vec<Terms>> =
            self.map("TfgridModule", "UsersTermsAndConditions", key).await?;
        Ok(terms.is_some_and(|terms| !terms.is_empty()))
    }

    /// A twin.
    pub async fn twin_by_id(&self, id: u32) -> Result<Option<Twin>, ChainError> {
        self.map("TfgridModule", "Twins", vec![number(id)]).await
    }

    /// The number of an account's twin.
    pub async fn twin_of_account(&self, account: [u8; 32]) -> Result<Option<u32>, ChainError> {
        let id = self.map("TfgridModule", "TwinIdByAccountID", vec![bytes(account)]).await?;
        Ok(id.filter(|id| *id != 0))
    }

    /// A farm.
    pub async fn farm(&self, id: u32) -> Result<Option<Farm>, ChainError> {
        self.map("TfgridModule", "Farms", vec![number(id)]).await
    }

    /// The number of the farm with that name.
    pub async fn farm_by_name(&self, name: &str) -> Result<Option<u32>, ChainError> {
        let id = self.map("TfgridModule", "FarmIdByName", vec![bytes(name)]).await?;
        Ok(id.filter(|id| *id != 0))
    }

    /// The numbers of a farm's nodes.
    pub async fn nodes_of_farm(&self, farm: u32) -> Result<Vec<u32>, ChainError> {
        let ids = self.map("TfgridModule", "NodesByFarmID", vec![number(farm)]).await?;
        Ok(ids.unwrap_or_default())
    }

    /// A node.
    pub async fn node(&self, id: u32) -> Result<Option<Node>, ChainError> {
        self.map("TfgridModule", "Nodes", vec![number(id)]).await
    }

    /// The number of a twin's node.
    pub async fn node_of_twin(&self, twin: u32) -> Result<Option<u32>, ChainError> {
        let id = self.map("TfgridModule", "NodeIdByTwinID", vec![number(twin)]).await?;
        Ok(id.filter(|id| *id != 0))
    }

    /// Whether a node runs, and whether it should; up and up for one that never said anything.
    pub async fn node_power(&self, node: u32) -> Result<NodePower, ChainError> {
        let power = self.map("TfgridModule", "NodePower", vec![number(node)]).await?;
        power.ok_or_else(|| ChainError::Incompatible("NodePower has no default".to_owned()))
    }

    /// A contract.
    pub async fn contract(&self, id: u64) -> Result<Option<Contract>, ChainError> {
        self.map("SmartContractModule", "Contracts", vec![number(id)]).await
    }

    /// Those of these contracts that there are, in their order: many for the price of a few questions. Each
    /// is as the newest block of its question has it.
    pub async fn contracts(&self, ids: &[u64]) -> Result<Vec<Contract>, ChainError> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(CONTRACT_COUNT_PER_QUESTION) {
            let link = &self.link;
            let question = |connection: Arc<Connection>| async move {
                let block = link.block(&connection, At::Best).await?;
                let keys = ids.iter().map(|id| vec![number(*id)]).collect();
                stored_many(&connection, &block, "SmartContractModule", "Contracts", keys).await
            };
            let contracts: Vec<Option<Contract>> = link.run(question).await?;
            found.extend(contracts.into_iter().flatten());
        }
        Ok(found)
    }

    /// The number of the contract for the deployment with that hash on that node.
    pub async fn contract_by_hash(
        &self,
        node: u32,
        hash: [u8; 32],
    ) -> Result<Option<u64>, ChainError> {
        let keys = vec![number(node), bytes(hash)];
        let id = self.map("SmartContractModule", "ContractIDByNodeIDAndHash", keys).await?;
        Ok(id.filter(|id| *id != 0))
    }

    /// The contracts of a node that are in force or in their grace period, finalized.
    ///
    /// For a full comparison with what a node has. What is not in the list is gone only if it was
    /// accepted at or before [`NodeContracts::block`]; see [`Chain::confirmed_gone`].
    pub async fn node_contracts(&self, node: u32) -> Result<NodeContracts, ChainError> {
        let link = &self.link;
        let question = |connection: Arc<Connection>| async move {
            let block = link.block(&connection, At::Finalized).await?;
            let keys = vec![number(node)];
            let ids = stored(&block, "SmartContractModule", "ActiveNodeContracts", keys).await?;
            let height = crate::connection::number(block.block_number())?;
            Ok(NodeContracts { block: height, ids: ids.unwrap_or_default() })
        };
        link.run(question).await
    }

    /// Whether a contract that existed at block `since` is gone for good.
    ///
    /// `false` also while the finalized block is older than `since`: nothing is gone that may only not
    /// be there yet. An error says nothing at all.
    pub async fn confirmed_gone(
        &self,
        contract: u64,
        since: BlockNumber,
    ) -> Result<bool, ChainError> {
        let link = &self.link;
        let question = |connection: Arc<Connection>| async move {
            let block = link.block(&connection, At::Finalized).await?;
            if block.block_number() < u64::from(since) {
                return Ok(false);
            }
            let keys = vec![number(contract)];
            let found: Option<Contract> =
                stored(&block, "SmartContractModule", "Contracts", keys).await?;
            Ok(found.is_none_or(|contract| {
                matches!(contract.state, crate::types::ContractState::Deleted(_))
            }))
        };
        link.run(question).await
    }

    /// What a contract was last reported to use.
    pub async fn contract_resources(&self, contract: u64) -> Result<ContractResources, ChainError> {
        let keys = vec![number(contract)];
        let used = self.map("SmartContractModule", "NodeContractResources", keys).await?;
        used.ok_or_else(|| ChainError::Incompatible("NodeContractResources has no default".into()))
    }

    /// The number of the contract for that name.
    pub async fn name_contract(&self, name: &str) -> Result<Option<u64>, ChainError> {
        let keys = vec![bytes(name)];
        let id = self.map("SmartContractModule", "ContractIDByNameRegistration", keys).await?;
        Ok(id.filter(|id| *id != 0))
    }

    /// The number of the contract with which somebody rents that node.
    pub async fn rent_contract(&self, node: u32) -> Result<Option<u64>, ChainError> {
        let keys = vec![number(node)];
        let id = self.map("SmartContractModule", "ActiveRentContractForNode", keys).await?;
        Ok(id.filter(|id| *id != 0))
    }

    /// What TFT costs.
    pub async fn price(&self) -> Result<Price, ChainError> {
        let link = &self.link;
        let question = |connection: Arc<Connection>| async move {
            let block = link.block(&connection, At::Best).await?;
            let current = stored(&block, "TFTPriceModule", "TftPrice", Vec::new()).await?;
            let average = stored(&block, "TFTPriceModule", "AverageTftPrice", Vec::new()).await?;
            Ok(Price {
                current_musd: current.unwrap_or_default(),
                average_musd: average.unwrap_or_default(),
            })
        };
        link.run(question).await
    }

    /// Which release nodes should run, as the council wrote it.
    pub async fn zos_version(&self) -> Result<Vec<u8>, ChainError> {
        Ok(self.map("TfgridModule", "ZosVersion", Vec::new()).await?.unwrap_or_default())
    }

    /// What an account keeps under `key`.
    pub async fn kv(&self, account: [u8; 32], key: &[u8]) -> Result<Option<Vec<u8>>, ChainError> {
        let keys = vec![bytes(account), bytes(key)];
        let value: Option<Vec<u8>> = self.map("TFKVStore", "TFKVStore", keys).await?;
        Ok(value.filter(|value| !value.is_empty()))
    }

    async fn height(&self, at: At) -> Result<BlockNumber, ChainError> {
        let link = &self.link;
        let question =
            |connection: Arc<Connection>| async move { link.head(&connection, at).await };
        let (height, _) = link.run(question).await?;
        Ok(height)
    }

    /// What the newest block has at a key.
    async fn map<V: DecodeAsType + Send>(
        &self,
        pallet: &str,
        entry: &str,
        keys: Vec<Value>,
    ) -> Result<Option<V>, ChainError> {
        self.link
            .run(|connection: Arc<Connection>| {
                let keys = keys.clone();
                async move {
                    let block = self.link.block(&connection, At::Best).await?;
                    stored(&block, pallet, entry, keys).await
                }
            })
            .await
    }
}

/// What `block` has at a key, or the entry's default if it has one.
pub(crate) async fn stored<V: DecodeAsType + Send>(
    block: &Block,
    pallet: &str,
    entry: &str,
    keys: Vec<Value>,
) -> Result<Option<V>, Fault> {
    let address = subxt::dynamic::storage::<Vec<Value>, V>(pallet, entry);
    let entry = block.storage().entry(address)?;
    match entry.try_fetch(keys).await? {
        Some(value) => Ok(Some(value.decode()?)),
        None => Ok(None),
    }
}

/// What `block` has at each of these keys of a map without defaults, by one question. An endpoint that does
/// not answer for all of them has not answered: what it leaves out is not thereby gone.
async fn stored_many<V: DecodeAsType + Send>(
    connection: &Connection,
    block: &Block,
    pallet: &str,
    entry: &str,
    keys: Vec<Vec<Value>>,
) -> Result<Vec<Option<V>>, Fault> {
    let metadata = block.metadata_ref();
    let known = metadata.pallet_by_name(pallet).and_then(|pallet| pallet.storage());
    let known = known.and_then(|storage| storage.entry_by_name(entry));
    let value_type = known
        .ok_or_else(|| Fault::Incompatible(format!("there is no {pallet}.{entry}")))?
        .value_ty();
    let address = subxt::dynamic::storage::<Vec<Value>, V>(pallet, entry);
    let entry = block.storage().entry(address)?;
    let keys: Result<Vec<_>, _> = keys.into_iter().map(|key| entry.fetch_key(key)).collect();
    let keys = keys?;
    let asked = keys.iter().map(Vec::as_slice);
    let sets = connection.methods.state_query_storage_at(asked, Some(block.block_hash())).await?;
    let pairs = sets.into_iter().flat_map(|set| set.changes);
    let mut told: HashMap<_, _> = pairs.map(|(key, value)| (key.0, value)).collect();
    let values = keys.into_iter().map(|key| {
        let value = told.remove(&key).ok_or_else(|| answer("it leaves keys out"))?;
        let decode = |value: subxt::rpcs::methods::legacy::Bytes| {
            V::decode_as_type(&mut value.as_ref(), value_type, metadata.types())
                .map_err(|error| Fault::Incompatible(shortened(&error.to_string())))
        };
        value.map(decode).transpose()
    });
    values.collect()
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::CannotFetchValue(error) => error.into(),
            other => Self::Incompatible(shortened(&other.to_string())),
        }
    }
}

impl From<StorageValueError> for Fault {
    fn from(error: StorageValueError) -> Self {
        Self::Incompatible(shortened(&error.to_string()))
    }
}

/// A number as a key.
pub(crate) fn number(number: impl Into<u128>) -> Value {
    Value::u128(number.into())
}

/// Bytes as a key.
pub(crate) fn bytes(bytes: impl AsRef<[u8]>) -> Value {
    Value::from_bytes(bytes)
}
