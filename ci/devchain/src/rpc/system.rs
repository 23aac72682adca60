//! `system_*`: what this is, and the nonces of accounts.

use jsonrpsee::{RpcModule, core::RegisterMethodError, types::ErrorObjectOwned};
use serde_json::json;
use sp_core::crypto::Ss58Codec as _;

use super::{INVALID_PARAMS, RpcResult};
use crate::{DevChain, types::AccountId32};

pub(super) fn register(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    module.register_method("system_name", |_, _, _| "devchain")?;
    module.register_method("system_version", |_, _, _| env!("CARGO_PKG_VERSION"))?;
    module.register_method("system_chain", |_, _, _| "TFChain Development")?;
    module.register_method("system_chainType", |_, _, _| "Development")?;
    module.register_method("system_nodeRoles", |_, _, _| ["Authority"])?;
    module.register_method("system_localPeerId", |_, _, _| "devchain")?;
    module.register_method("system_localListenAddresses", |_, _, _| json!([]))?;
    module.register_method("system_peers", |_, _, _| json!([]))?;
    module.register_method("system_properties", |_, _, _| {
        json!({ "ss58Format": 42, "tokenDecimals": 7, "tokenSymbol": "TFT" })
    })?;
    module.register_method("system_health", |_, _, _| {
        json!({ "peers": 0, "isSyncing": false, "shouldHavePeers": false })
    })?;
    module.register_method("system_syncState", |_, chain, _| {
        let number = chain.head().number;
        json!({ "startingBlock": 0, "currentBlock": number, "highestBlock": number })
    })?;
    for name in ["system_accountNextIndex", "account_nextIndex"] {
        module.register_method(name, |params, chain, _| {
            let (address,): (String,) = params.parse()?;
            let account = AccountId32::from_ss58check(&address).map_err(|error| {
                let message = format!("{address} is no account: {error:?}");
                ErrorObjectOwned::owned(INVALID_PARAMS, message, None::<()>)
            })?;
            RpcResult::Ok(chain.next_nonce(&account))
        })?;
    }
    Ok(())
}
