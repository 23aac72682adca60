//! Endpoints of the chain, and every limit.

use std::time::Duration;

use hostd_rmb::relay::TrustedRoots;

/// Most endpoints that are used.
pub const ENDPOINT_COUNT_MAX: usize = 16;
/// Largest answer of an endpoint, in bytes: the metadata and a block's events are the large ones.
pub const RESPONSE_SIZE_MAX: u32 = 16 << 20;
/// Most new blocks that wait to be looked at; beyond that the subscription is made anew.
pub const HEAD_COUNT_MAX: usize = 256;
/// Versions of the chain's metadata that are kept: today's, and one of a block that is caught up with.
pub const METADATA_COUNT_MAX: usize = 2;
/// How long a connection, with TLS and the checks, may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long one attempt at a question may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause after all endpoints failed.
pub const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest pause.
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// For how long a question is asked again, once every endpoint was tried.
pub const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a transaction may take from being accepted to being in a block.
pub const INCLUSION_TIMEOUT: Duration = Duration::from_secs(60);
/// For how many blocks a transaction is valid; a power of two.
pub const MORTALITY: u64 = 64;
/// How many blocks an endpoint may lie behind another, honestly.
pub const HEIGHT_LAG_MAX: u32 = 5;
/// After how long without a new block the subscription is made anew.
pub const HEAD_SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long [`crate::Follow`] waits after it could reach nobody.
pub const RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(10);
/// How often a quiet connection is tried.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// After how long without any answer it is given up.
pub const PING_TIMEOUT: Duration = Duration::from_secs(40);

/// When a transaction counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Confirmation {
    /// It is in a block. On TFChain that takes about 6 seconds, and very rarely the block is given up
    /// for another one, into which the transaction then normally goes.
    #[default]
    InBlock,
    /// It is in a block that can't be given up any more: about 12 to 18 seconds.
    Finalized,
}

/// How to reach the chain.
#[derive(Clone)]
pub struct ChainConfig {
    /// Websocket addresses, `ws://` or `wss://`, the preferred one first.
    pub endpoints: Vec<String>,
    /// Hash of the chain's first block. If it is not known, whatever the first endpoint says counts
    /// from then on.
    pub genesis: Option<[u8; 32]>,
    /// Whose certificates `wss://` endpoints may show.
    pub roots: TrustedRoots,
    /// When a transaction counts as done.
    pub confirmation: Confirmation,
    /// See [`CALL_TIMEOUT`].
    pub call_timeout: Duration,
    /// See [`RETRY_MAX`].
    pub retry_max: Duration,
    /// See [`INCLUSION_TIMEOUT`].
    pub inclusion_timeout: Duration,
    /// See [`HEIGHT_LAG_MAX`].
    pub height_lag_max: u32,
    /// See [`HEAD_SILENCE_MAX`].
    pub head_silence_max: Duration,
    /// See [`RESUBSCRIBE_PAUSE`].
    pub resubscribe_pause: Duration,
}

impl ChainConfig {
    /// These endpoints, any chain, and the limits of this module.
    pub fn new(endpoints: Vec<String>, roots: TrustedRoots) -> Self {
        Self {
            endpoints,
            genesis: None,
            roots,
            confirmation: Confirmation::default(),
            call_timeout: CALL_TIMEOUT,
            retry_max: RETRY_MAX,
            inclusion_timeout: INCLUSION_TIMEOUT,
            height_lag_max: HEIGHT_LAG_MAX,
            head_silence_max: HEAD_SILENCE_MAX,
            resubscribe_pause: RESUBSCRIBE_PAUSE,
        }
    }
}
