//! One websocket to one endpoint, and what subxt needs to know.
//!
//! [`Grid`] tells subxt how TFChain hashes, addresses and signs, and holds the metadata: a few versions
//! at most, shared by all connections, because one takes some megabytes. Which version a block has is
//! asked for at every block, so that an upgrade of the chain is noticed where it happens.
//!
//! Only the older of the two families of JSON-RPC methods is used: every node of the grid has it, and
//! it keeps nothing between calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hostd_rmb::relay::TrustedRoots;
use subxt::backend::{BlockRef, LegacyBackend};
use subxt::config::substrate::{
    AccountId32, BlakeTwo256, H256, MultiAddress, MultiSignature, SubstrateHeader,
};
use subxt::config::{Config, DefaultTransactionExtensions, Hasher, RpcConfigFor};
use subxt::error::{BackendError, OnlineClientAtBlockError, RpcError};
use subxt::ext::codec::Encode as _;
use subxt::ext::jsonrpsee::client_transport::ws::{Url, WsTransportClientBuilder};
use subxt::ext::jsonrpsee::core::client::async_client::PingConfig;
use subxt::ext::jsonrpsee::core::client::{Client, ClientBuilder};
use subxt::rpcs::{LegacyRpcMethods, RpcClient};
use subxt::{ArcMetadata, OnlineClient, OnlineClientAtBlock};

use crate::config::{
    CONNECT_TIMEOUT, HEAD_COUNT_MAX, METADATA_COUNT_MAX, PING_INTERVAL, PING_TIMEOUT,
    RESPONSE_SIZE_MAX,
};
use crate::error::{ChainError, EndpointFault, shortened};
use crate::types::BlockNumber;

/// Codes with which endpoints say that they keep no state of such an old block.
const PRUNED_CODES: &[i32] = &[-32000, 4003];

/// TFChain, to subxt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grid {
    metadata: Arc<Mutex<Vec<(u32, ArcMetadata)>>>,
}

impl Grid {
    /// Forgets all metadata, which then is asked for again.
    pub(crate) fn forget_metadata(&self) {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Config for Grid {
    type AccountId = AccountId32;
    type Address = MultiAddress<AccountId32, u32>;
    type Signature = MultiSignature;
    type Header = SubstrateHeader<H256>;
    type TransactionExtensions = DefaultTransactionExtensions<Self>;
    type AssetId = u32;
    type Hasher = BlakeTwo256;

    fn metadata_for_spec_version(&self, spec_version: u32) -> Option<ArcMetadata> {
        let metadata = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, found) = metadata.iter().find(|(version, _)| *version == spec_version)?;
        Some(Arc::clone(found))
    }

    fn set_metadata_for_spec_version(&self, spec_version: u32, new: ArcMetadata) {
        let mut metadata = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        metadata.retain(|(version, _)| *version != spec_version);
        metadata.truncate(METADATA_COUNT_MAX - 1);
        metadata.insert(0, (spec_version, new));
    }
}

/// A block, with the metadata of its time, at an endpoint.
pub(crate) type Block = OnlineClientAtBlock<Grid>;

/// Why something could not be had from an endpoint.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The endpoint is at fault: try another.
    Endpoint(EndpointFault),
    /// What it sent does not fit the metadata that we have.
    Incompatible(String),
    /// The endpoint keeps no state of this block.
    Pruned(String),
    /// It is an answer, and no other endpoint will give a better one.
    Answer(ChainError),
}

impl From<EndpointFault> for Fault {
    fn from(fault: EndpointFault) -> Self {
        Self::Endpoint(fault)
    }
}

impl From<ChainError> for Fault {
    fn from(error: ChainError) -> Self {
        Self::Answer(error)
    }
}

impl From<subxt::rpcs::Error> for Fault {
    fn from(error: subxt::rpcs::Error) -> Self {
        match error {
            subxt::rpcs::Error::User(user) => {
                let text = shortened(&user.to_string());
                let discarded = user.message.contains("discarded");
                if PRUNED_CODES.contains(&user.code) || discarded {
                    Self::Pruned(text)
                } else {
                    Self::Endpoint(EndpointFault::Answer(text))
                }
            }
            other => Self::Endpoint(EndpointFault::Connection(shortened(&other.to_string()))),
        }
    }
}

impl From<BackendError> for Fault {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Rpc(RpcError::ClientError(error)) => error.into(),
            other => Self::Endpoint(EndpointFault::Connection(shortened(&other.to_string()))),
        }
    }
}

impl From<OnlineClientAtBlockError> for Fault {
    fn from(error: OnlineClientAtBlockError) -> Self {
        use OnlineClientAtBlockError as Error;
        match error {
            Error::CannotGetCurrentBlock { reason }
            | Error::CannotGetBlockHash { reason, .. }
            | Error::CannotGetBlockHeader { reason, .. }
            | Error::CannotGetSpecVersion { reason, .. } => reason.into(),
            Error::BlockNotFound { .. }
            | Error::BlockHeaderNotFound { .. }
            | Error::CannotGetMetadata { .. } => {
                Self::Endpoint(EndpointFault::Answer(shortened(&error.to_string())))
            }
            other => Self::Incompatible(shortened(&other.to_string())),
        }
    }
}

/// An open connection.
pub(crate) struct Connection {
    /// Where it leads.
    pub(crate) endpoint: String,
    /// Subxt on top of it.
    pub(crate) client: OnlineClient<Grid>,
    /// The methods that subxt does not offer.
    pub(crate) methods: LegacyRpcMethods<RpcConfigFor<Grid>>,
    genesis: [u8; 32],
}

impl Connection {
    /// Connects to `endpoint`.
    pub(crate) async fn open(
        endpoint: &str,
        roots: &TrustedRoots,
        grid: &Grid,
        call_timeout: Duration,
    ) -> Result<Self, Fault> {
        let opening = Self::open_unbounded(endpoint, roots, grid, call_timeout);
        tokio::time::timeout(CONNECT_TIMEOUT.min(call_timeout), opening).await.unwrap_or_else(
            |_| {
                let limit = CONNECT_TIMEOUT.min(call_timeout);
                Err(EndpointFault::Timeout(limit.as_secs_f32()).into())
            },
        )
    }

    async fn open_unbounded(
        endpoint: &str,
        roots: &TrustedRoots,
        grid: &Grid,
        call_timeout: Duration,
    ) -> Result<Self, Fault> {
        let broken = |error: &dyn std::fmt::Display| {
            Fault::Endpoint(EndpointFault::Connection(shortened(&error.to_string())))
        };
        let url = Url::parse(endpoint)
            .map_err(|error| ChainError::Config(format!("{endpoint} is no address: {error}")))?;
        let tls = roots.client();
        let (sender, receiver) = WsTransportClientBuilder::default()
            .with_custom_cert_store(tls.as_ref().clone())
            .connection_timeout(CONNECT_TIMEOUT)
            .max_response_size(RESPONSE_SIZE_MAX)
            .build(url)
            .await
            .map_err(|error| broken(&error))?;
        let ping = PingConfig::new().ping_interval(PING_INTERVAL).inactive_limit(PING_TIMEOUT);
        let client: Client = ClientBuilder::new()
            // Ours come first, and tell what happened; this one frees what was waited for.
            .request_timeout(call_timeout * 2)
            .max_buffer_capacity_per_subscription(HEAD_COUNT_MAX)
            .enable_ws_ping(ping)
            .build_with_tokio(sender, receiver);
        let rpc = RpcClient::new(client);
        let methods = LegacyRpcMethods::new(rpc.clone());
        let backend = Arc::new(LegacyBackend::builder().build(rpc));
        let client = OnlineClient::from_backend_with_config(grid.clone(), backend)
            .await
            .map_err(|error| broken(&error))?;
        let genesis = client.genesis_hash().0;
        Ok(Self { endpoint: endpoint.to_owned(), client, methods, genesis })
    }

    /// Hash of the first block of its chain.
    pub(crate) fn genesis(&self) -> [u8; 32] {
        self.genesis
    }

    /// Its newest block.
    pub(crate) async fn best(&self) -> Result<(BlockNumber, H256), Fault> {
        let header = self.methods.chain_get_header(None).await?;
        let header = header.ok_or_else(|| answer("it has no newest block"))?;
        Ok((number(header.number)?, hash(&header)))
    }

    /// The newest block that it can't give up.
    pub(crate) async fn finalized(&self) -> Result<(BlockNumber, H256), Fault> {
        let hash = self.methods.chain_get_finalized_head().await?;
        let header = self.methods.chain_get_header(Some(hash)).await?;
        let header = header.ok_or_else(|| answer("it does not have its own finalized block"))?;
        Ok((number(header.number)?, hash))
    }

    /// The hash of block `number`, if it has one.
    pub(crate) async fn hash_of(&self, number: BlockNumber) -> Result<Option<H256>, Fault> {
        Ok(self.methods.chain_get_block_hash(Some(number.into())).await?)
    }

    /// A block, ready to be asked.
    pub(crate) async fn at(&self, (number, hash): (BlockNumber, H256)) -> Result<Block, Fault> {
        let block = BlockRef::from_hash(hash);
        Ok(self.client.at_block_hash_and_number(block, number.into()).await?)
    }
}

/// A header's hash is the block's.
pub(crate) fn hash(header: &SubstrateHeader<H256>) -> H256 {
    hash_of_bytes(&header.encode())
}

/// How this chain hashes.
pub(crate) fn hash_of_bytes(bytes: &[u8]) -> H256 {
    BlakeTwo256.hash(bytes)
}

/// Blocks have numbers of 32 bits on this chain.
pub(crate) fn number(number: u64) -> Result<BlockNumber, Fault> {
    BlockNumber::try_from(number).map_err(|_| answer(&format!("{number} is no block's number")))
}

/// An endpoint's answer that makes no sense.
pub(crate) fn answer(text: &str) -> Fault {
    Fault::Endpoint(EndpointFault::Answer(text.to_owned()))
}
