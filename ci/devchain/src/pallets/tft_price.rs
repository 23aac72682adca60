//! `TFTPriceModule`: what a TFT is worth, in thousandths of a dollar.
//!
//! TFChain averages the last 1,440 prices; we average the last [`HISTORY_MAX`], kept in the same ring.
#![allow(
    missing_docs,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "what the pallet macro generates carries no documentation and names types in full"
)]

pub use pallet::*;

/// How many prices the average is of.
pub const HISTORY_MAX: u16 = 1440;

/// The pallet.
#[frame_support::pallet]
pub mod pallet {
    use frame_support::pallet_prelude::*;
    use frame_system::pallet_prelude::*;
    use sp_runtime::traits::UniqueSaturatedInto;

    use super::HISTORY_MAX;

    #[pallet::pallet]
    #[pallet::without_storage_info]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config<RuntimeEvent: From<Event<Self>>> {
        /// Who sets prices and their limits.
        type Council: EnsureOrigin<Self::RuntimeOrigin>;
    }

    #[pallet::storage]
    pub type TftPrice<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type LastBlockSet<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type AverageTftPrice<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type TftPriceHistory<T: Config> = StorageMap<_, Blake2_128Concat, u16, u32, ValueQuery>;
    #[pallet::storage]
    pub type BufferRange<T: Config> = StorageValue<_, (u16, u16), ValueQuery>;
    #[pallet::storage]
    pub type MinTftPrice<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type MaxTftPrice<T: Config> = StorageValue<_, u32, ValueQuery>;

    #[pallet::event]
    #[pallet::generate_deposit(pub(super) fn deposit_event)]
    pub enum Event<T: Config> {
        /// A price came in.
        #[codec(index = 0)]
        PriceStored(u32),
        /// The average after it.
        #[codec(index = 2)]
        AveragePriceStored(u32),
        /// The average is above what is ever charged.
        #[codec(index = 3)]
        AveragePriceIsAboveMaxPrice(u32, u32),
        /// The average is below what is ever charged.
        #[codec(index = 4)]
        AveragePriceIsBelowMinPrice(u32, u32),
    }

    #[pallet::error]
    pub enum Error<T> {
        ErrFetchingPrice,
        OffchainSignedTxError,
        NoLocalAcctForSigning,
        AccountUnauthorizedToSetPrice,
        MaxPriceBelowMinPriceError,
        MinPriceAboveMaxPriceError,
        IsNotAnAuthority,
        WrongAuthority,
    }

    #[pallet::genesis_config]
    #[derive(frame_support::DefaultNoBound)]
    pub struct GenesisConfig<T: Config> {
        /// The price, in thousandths of a dollar.
        pub price: u32,
        /// The least that is ever charged.
        pub min_price: u32,
        /// The most that is ever charged.
        pub max_price: u32,
        #[serde(skip)]
        pub _config: core::marker::PhantomData<T>,
    }

    #[pallet::genesis_build]
    impl<T: Config> BuildGenesisConfig for GenesisConfig<T> {
        fn build(&self) {
            MinTftPrice::<T>::put(self.min_price);
            MaxTftPrice::<T>::put(self.max_price);
            TftPrice::<T>::put(self.price);
            AverageTftPrice::<T>::put(self.price);
        }
    }

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        /// Takes a price in thousandths of a dollar.
        #[pallet::call_index(0)]
        #[pallet::weight(super::super::tfgrid::CALL_WEIGHT)]
        pub fn set_prices(
            origin: OriginFor<T>,
            price: u32,
            block_number: BlockNumberFor<T>,
        ) -> DispatchResultWithPostInfo {
            T::Council::ensure_origin(origin)
                .map_err(|_| Error::<T>::AccountUnauthorizedToSetPrice)?;
            ensure!(price > 0, Error::<T>::ErrFetchingPrice);
            TftPrice::<T>::put(price);
            LastBlockSet::<T>::put(UniqueSaturatedInto::<u32>::unique_saturated_into(block_number));
            Self::deposit_event(Event::PriceStored(price));
            let average = Self::remember(price);
            AverageTftPrice::<T>::put(average);
            Self::deposit_event(Event::AveragePriceStored(average));
            let (least, most) = (MinTftPrice::<T>::get(), MaxTftPrice::<T>::get());
            if average > most {
                Self::deposit_event(Event::AveragePriceIsAboveMaxPrice(average, most));
            }
            if average < least {
                Self::deposit_event(Event::AveragePriceIsBelowMinPrice(average, least));
            }
            Ok(Pays::No.into())
        }

        /// Sets the least that is ever charged.
        #[pallet::call_index(2)]
        #[pallet::weight(super::super::tfgrid::CALL_WEIGHT)]
        pub fn set_min_tft_price(origin: OriginFor<T>, price: u32) -> DispatchResult {
            T::Council::ensure_origin(origin)?;
            ensure!(price < MaxTftPrice::<T>::get(), Error::<T>::MinPriceAboveMaxPriceError);
            MinTftPrice::<T>::put(price);
            Ok(())
        }

        /// Sets the most that is ever charged.
        #[pallet::call_index(3)]
        #[pallet::weight(super::super::tfgrid::CALL_WEIGHT)]
        pub fn set_max_tft_price(origin: OriginFor<T>, price: u32) -> DispatchResult {
            T::Council::ensure_origin(origin)?;
            ensure!(price > MinTftPrice::<T>::get(), Error::<T>::MaxPriceBelowMinPriceError);
            MaxTftPrice::<T>::put(price);
            Ok(())
        }
    }

    impl<T: Config> Pallet<T> {
        /// The price that bills use: the average, within its limits.
        #[must_use]
        pub fn billing_price() -> u32 {
            let (least, most) = (MinTftPrice::<T>::get(), MaxTftPrice::<T>::get());
            AverageTftPrice::<T>::get().min(most).max(least)
        }

        /// Puts `price` into the ring and answers the average of the ring. `BufferRange` is where
        /// the next one goes, and how many there are.
        fn remember(price: u32) -> u32 {
            let (next, count) = BufferRange::<T>::get();
            TftPriceHistory::<T>::insert(next, price);
            let count = count.saturating_add(1).min(HISTORY_MAX);
            BufferRange::<T>::put(((next + 1) % HISTORY_MAX, count));
            let total: u64 = (0..count).map(|i| u64::from(TftPriceHistory::<T>::get(i))).sum();
            u32::try_from(total / u64::from(count)).unwrap_or(u32::MAX)
        }
    }
}
