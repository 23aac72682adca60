//! Block 0: who has what, and the settings of this chain.
//!
//! The accounts are the well-known ones of every Substrate development chain, `//Alice` and so on.
//! `//Alice` is the council. `//Devchain` is the chain's own purse: it holds more than anyone can ask
//! of [`crate::DevChain::fund`].

use sp_core::{Pair as _, crypto::AccountId32, sr25519};
use sp_runtime::{BuildStorage as _, Storage};

use crate::{
    ChainOptions,
    pallets::{smart_contract, tfgrid, tft_price},
    runtime::{BalancesConfig, RuntimeGenesisConfig},
    types::{Balance, TFT},
};

/// What each well-known account begins with.
const ENDOWMENT: Balance = 1_000_000 * TFT;
/// What the chain's own purse begins with.
const PURSE: Balance = 1_000_000_000_000 * TFT;
/// The price of a TFT: five cents.
const TFT_PRICE_MUSD: u32 = 50;
/// The limits of that price.
const TFT_PRICE_MUSD_MIN: u32 = 10;
const TFT_PRICE_MUSD_MAX: u32 = 1000;

/// The accounts that begin with money.
const ENDOWED: [&str; 9] = [
    "Alice", "Bob", "Charlie", "Dave", "Eve", "Ferdie", "Foundation", "Sales", "StakingPool",
];

/// The key of a development account: `name` is what follows `//`.
///
/// # Panics
///
/// If `name` is no derivation path, which a constant can be seen to be.
#[must_use]
pub fn dev_key(name: &str) -> sr25519::Pair {
    match sr25519::Pair::from_string(&format!("//{name}"), None) {
        Ok(pair) => pair,
        Err(error) => panic!("//{name} is no key: {error:?}"),
    }
}

/// The account of [`dev_key`].
#[must_use]
pub fn dev_account(name: &str) -> AccountId32 {
    dev_key(name).public().into()
}

/// The council.
#[must_use]
pub fn alice() -> AccountId32 {
    static ALICE: std::sync::LazyLock<AccountId32> =
        std::sync::LazyLock::new(|| dev_account("Alice"));
    ALICE.clone()
}

/// Where the stakers' share of every bill goes.
#[must_use]
pub fn staking_pool() -> AccountId32 {
    static POOL: std::sync::LazyLock<AccountId32> =
        std::sync::LazyLock::new(|| dev_account("StakingPool"));
    POOL.clone()
}

/// The chain's own purse.
pub(crate) const PURSE_NAME: &str = "Devchain";

/// The state of block 0.
pub(crate) fn storage(options: &ChainOptions) -> Result<Storage, String> {
    let mut balances: Vec<_> =
        ENDOWED.iter().map(|name| (dev_account(name), ENDOWMENT)).collect();
    balances.push((dev_account(PURSE_NAME), PURSE));
    let config = RuntimeGenesisConfig {
        balances: BalancesConfig { balances, ..Default::default() },
        tfgrid_module: tfgrid::GenesisConfig {
            policy_accounts: Some((dev_account("Foundation"), dev_account("Sales"))),
            ..Default::default()
        },
        smart_contract_module: smart_contract::GenesisConfig {
            billing_frequency: options.billing_frequency,
            ..Default::default()
        },
        tft_price_module: tft_price::GenesisConfig {
            price: TFT_PRICE_MUSD,
            min_price: TFT_PRICE_MUSD_MIN,
            max_price: TFT_PRICE_MUSD_MAX,
            ..Default::default()
        },
        ..Default::default()
    };
    let mut storage = config.build_storage()?;
    let mut put = |key: [u8; 16], value: Vec<u8>| storage.top.insert(key.to_vec(), value);
    put(crate::runtime::GracePeriodBlocks::key(), codec::Encode::encode(&options.grace_blocks));
    put(crate::runtime::RelaxedMinimums::key(), codec::Encode::encode(&options.relaxed_minimums));
    Ok(storage)
}
