//! `TFKVStore`: a small store for each account, where deployers keep their (encrypted) state.
#![allow(
    missing_docs,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "what the pallet macro generates carries no documentation and names types in full"
)]

pub use pallet::*;

/// The pallet.
#[frame_support::pallet]
pub mod pallet {
    use frame_support::pallet_prelude::*;
    use frame_system::pallet_prelude::*;

    /// The longest key.
    pub const KEY_SIZE_MAX: usize = 512;
    /// The longest value.
    pub const VALUE_SIZE_MAX: usize = 2048;

    #[pallet::pallet]
    #[pallet::without_storage_info]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config<RuntimeEvent: From<Event<Self>>> {}

    #[pallet::storage]
    pub type TFKVStore<T: Config> = StorageDoubleMap<
        _,
        Blake2_128Concat,
        T::AccountId,
        Blake2_128Concat,
        Vec<u8>,
        Vec<u8>,
        ValueQuery,
    >;

    #[pallet::event]
    #[pallet::generate_deposit(pub(super) fn deposit_event)]
    pub enum Event<T: Config> {
        /// The account wrote this value under this key.
        EntrySet(T::AccountId, Vec<u8>, Vec<u8>),
        /// The account read this value; TFChain never says so either.
        EntryGot(T::AccountId, Vec<u8>, Vec<u8>),
        /// The account removed this value.
        EntryTaken(T::AccountId, Vec<u8>, Vec<u8>),
    }

    #[pallet::error]
    pub enum Error<T> {
        NoValueStored,
        KeyIsTooLarge,
        ValueIsTooLarge,
    }

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        /// Writes `value` under `key`.
        #[pallet::call_index(0)]
        #[pallet::weight(super::super::tfgrid::CALL_WEIGHT)]
        pub fn set(origin: OriginFor<T>, key: Vec<u8>, value: Vec<u8>) -> DispatchResult {
            let who = ensure_signed(origin)?;
            ensure!(key.len() <= KEY_SIZE_MAX, Error::<T>::KeyIsTooLarge);
            ensure!(value.len() <= VALUE_SIZE_MAX, Error::<T>::ValueIsTooLarge);
            TFKVStore::<T>::insert(&who, &key, &value);
            Self::deposit_event(Event::EntrySet(who, key, value));
            Ok(())
        }

        /// Removes what is under `key`.
        #[pallet::call_index(1)]
        #[pallet::weight(super::super::tfgrid::CALL_WEIGHT)]
        pub fn delete(origin: OriginFor<T>, key: Vec<u8>) -> DispatchResult {
            let who = ensure_signed(origin)?;
            ensure!(TFKVStore::<T>::contains_key(&who, &key), Error::<T>::NoValueStored);
            let value = TFKVStore::<T>::take(&who, &key);
            Self::deposit_event(Event::EntryTaken(who, key, value));
            Ok(())
        }
    }
}
