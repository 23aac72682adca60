//! Terms, twins and their bounded accounts.

use frame_support::ensure;
use sp_runtime::{DispatchError, DispatchResult};

use super::{check, pallet::*};
use crate::types::{
    AccountId32, Bytes, DOCUMENT_HASH_MAX, DOCUMENT_LINK_MAX, PK_MAX, RELAY_MAX,
    TermsAndConditions, Twin,
};

impl<T: Config> Pallet<T> {
    pub(super) fn do_accept_terms(
        account_id: AccountId32,
        document_link: Bytes<DOCUMENT_LINK_MAX>,
        document_hash: Bytes<DOCUMENT_HASH_MAX>,
    ) -> DispatchResult {
        ensure!(!document_link.is_empty(), Error::<T>::DocumentLinkInputTooShort);
        ensure!(document_link.is_ascii(), Error::<T>::InvalidDocumentLinkInput);
        ensure!(!document_hash.is_empty(), Error::<T>::DocumentHashInputTooShort);
        ensure!(
            document_hash.iter().all(u8::is_ascii_alphanumeric),
            Error::<T>::InvalidDocumentHashInput
        );
        let mut accepted = UsersTermsAndConditions::<T>::get(&account_id).unwrap_or_default();
        let again = accepted.iter().any(|terms| {
            terms.document_link == document_link && terms.document_hash == document_hash
        });
        if !again {
            accepted.push(TermsAndConditions {
                account_id: account_id.clone(),
                timestamp: Self::now_seconds(),
                document_link,
                document_hash,
            });
            UsersTermsAndConditions::<T>::insert(account_id, accepted);
        }
        Ok(())
    }

    pub(super) fn do_create_twin(
        account_id: AccountId32,
        relay: Option<Bytes<RELAY_MAX>>,
        pk: Option<Bytes<PK_MAX>>,
    ) -> DispatchResult {
        ensure!(
            UsersTermsAndConditions::<T>::contains_key(&account_id),
            Error::<T>::UserDidNotSignTermsAndConditions
        );
        ensure!(
            !TwinIdByAccountID::<T>::contains_key(&account_id),
            Error::<T>::TwinWithPubkeyExists
        );
        Self::check_relay(relay.as_deref())?;
        let id = TwinID::<T>::get().checked_add(1).ok_or(Error::<T>::StorageOverflow)?;
        let twin = Twin { id, account_id: account_id.clone(), relay, entities: Vec::new(), pk };
        Twins::<T>::insert(id, &twin);
        TwinID::<T>::put(id);
        TwinIdByAccountID::<T>::insert(account_id, id);
        Self::deposit_event(Event::TwinStored(twin));
        Ok(())
    }

    pub(super) fn do_update_twin(
        account_id: &AccountId32,
        relay: Option<Bytes<RELAY_MAX>>,
        pk: Option<Bytes<PK_MAX>>,
    ) -> DispatchResult {
        let id = Self::twin_of(account_id)?;
        let mut twin = Twins::<T>::get(id).ok_or(Error::<T>::TwinNotExists)?;
        ensure!(twin.account_id == *account_id, Error::<T>::UnauthorizedToUpdateTwin);
        Self::check_relay(relay.as_deref())?;
        twin.relay = relay;
        twin.pk = pk;
        Twins::<T>::insert(id, &twin);
        Self::deposit_event(Event::TwinUpdated(twin));
        Ok(())
    }

    pub(super) fn do_bond_twin_account(account_id: AccountId32, twin_id: u32) -> DispatchResult {
        let twin = Twins::<T>::get(twin_id).ok_or(Error::<T>::TwinNotExists)?;
        ensure!(twin.account_id != account_id, Error::<T>::TwinCannotBoundToItself);
        TwinBoundedAccountID::<T>::insert(twin_id, &account_id);
        Self::deposit_event(Event::TwinAccountBounded(twin_id, account_id));
        Ok(())
    }

    /// The twin of an account.
    pub(crate) fn twin_of(account_id: &AccountId32) -> Result<u32, DispatchError> {
        TwinIdByAccountID::<T>::get(account_id).ok_or_else(|| Error::<T>::TwinNotExists.into())
    }

    fn check_relay(relay: Option<&Vec<u8>>) -> DispatchResult {
        let Some(relay) = relay else { return Ok(()) };
        ensure!(!relay.is_empty(), Error::<T>::RelayTooShort);
        ensure!(check::relay(relay), Error::<T>::InvalidRelay);
        Ok(())
    }
}
