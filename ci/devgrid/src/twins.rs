//! Who twin N is, for the relay: what the chain beside it says.

use std::sync::Arc;

use devchain::DevChain;
use hostd_rmb::identity::AccountId;
use hostd_rmb::twins::{Twin, TwinId, TwinLookup, Twins};

/// The twins of a chain in this process. Looking one up is a read of memory.
pub(crate) struct ChainTwins(pub(crate) DevChain);

impl Twins for ChainTwins {
    fn twin(&self, id: TwinId) -> TwinLookup<'_> {
        let twin = self.0.view(None).and_then(|view| view.twin(id.number())).map(|twin| {
            let account = AccountId::from_bytes(twin.account_id.into());
            let (relay, pk) = (twin.relay.as_ref(), twin.pk.as_ref());
            let bytes = (relay.map(|relay| relay.as_slice()), pk.map(|pk| pk.as_slice()));
            Arc::new(Twin::from_chain(id, account, bytes.0, bytes.1))
        });
        Box::pin(std::future::ready(Ok(twin)))
    }
}
