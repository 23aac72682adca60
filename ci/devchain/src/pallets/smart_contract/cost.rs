//! What a contract costs. Pure arithmetic, in integers: units in thousandths, money in 10^-7 USD.
//!
//! A compute unit is the least of three mixes of cores and memory, a storage unit 1,200 GiB of hard disk
//! or 200 GiB of solid-state disk (the grid's "cloud units" v3).

use crate::types::{Balance, DiscountLevel, PricingPolicy, Resources, Unit};

const GIB: u128 = 1 << 30;
const SECONDS_PER_HOUR: u128 = 3600;
/// A month of the grid: 30 days.
const SECONDS_PER_MONTH: u128 = 30 * 24 * SECONDS_PER_HOUR;
/// What a certified node costs, in percent of what another does.
const CERTIFIED_PERCENT: u128 = 125;
/// 10^-7 USD in a thousandth of a dollar.
const UNITS_PER_MUSD: u128 = 10_000;

/// Compute units of these resources, in thousandths.
pub(super) fn compute_units(resources: &Resources) -> u128 {
    let cores = u128::from(resources.cru) * 1000;
    let memory = u128::from(resources.mru) * 1000 / GIB;
    let mixes = [
        (cores / 2).max(memory / 4),
        cores.max(memory / 8),
        (cores / 4).max(memory / 2),
    ];
    mixes.into_iter().min().unwrap_or(0)
}

/// Storage units of these resources, in thousandths.
pub(super) fn storage_units(resources: &Resources) -> u128 {
    u128::from(resources.hru) * 1000 / (1200 * GIB) + u128::from(resources.sru) * 1000 / (200 * GIB)
}

/// What `resources` cost over `seconds`.
pub(super) fn of_resources(policy: &PricingPolicy, resources: &Resources, seconds: u64) -> u128 {
    let hourly = u128::from(policy.cu.value) * compute_units(resources)
        + u128::from(policy.su.value) * storage_units(resources);
    hourly * u128::from(seconds) / (1000 * SECONDS_PER_HOUR)
}

/// What `count` public addresses cost over `seconds`.
pub(super) fn of_public_ips(policy: &PricingPolicy, count: u32, seconds: u64) -> u128 {
    u128::from(policy.ipu.value) * u128::from(count) * u128::from(seconds) / SECONDS_PER_HOUR
}

/// What a name costs over `seconds`.
pub(super) fn of_name(policy: &PricingPolicy, seconds: u64) -> u128 {
    u128::from(policy.unique_name.value) * u128::from(seconds) / SECONDS_PER_HOUR
}

/// What `bytes` of traffic cost.
pub(super) fn of_traffic(policy: &PricingPolicy, bytes: u64) -> u128 {
    let factor: u128 = match policy.nu.unit {
        Unit::Bytes => 1,
        Unit::Kilobytes => 1 << 10,
        Unit::Megabytes => 1 << 20,
        Unit::Gigabytes => GIB,
        Unit::Terrabytes => 1 << 40,
    };
    u128::from(policy.nu.value) * u128::from(bytes) / factor
}

/// What a farmer's extra fee of `fee` thousandths of a dollar a month is over `seconds`.
pub(super) fn of_extra_fee(fee: u64, seconds: u64) -> u128 {
    u128::from(fee)
        .saturating_mul(UNITS_PER_MUSD)
        .saturating_mul(u128::from(seconds))
        / SECONDS_PER_MONTH
}

/// `cost` on a certified node.
pub(super) fn certified(cost: u128) -> u128 {
    cost * CERTIFIED_PERCENT / 100
}

/// `cost` less a discount in percent.
pub(super) fn discounted(cost: u128, percent: u8) -> u128 {
    cost * u128::from(100_u8.saturating_sub(percent)) / 100
}

/// `cost` in 10^-7 TFT, when a TFT is worth `price` thousandths of a dollar. None without a price.
pub(super) fn in_tft(cost: u128, price: u32) -> Option<Balance> {
    cost.saturating_mul(crate::types::TFT).checked_div(u128::from(price) * UNITS_PER_MUSD)
}

/// The discount of someone who has `balance` and pays `due` for `seconds`: by how many months the
/// balance would last.
pub(super) fn discount(balance: Balance, due: Balance, seconds: u64) -> DiscountLevel {
    if due == 0 || seconds == 0 {
        return DiscountLevel::None;
    }
    let monthly = due.saturating_mul(SECONDS_PER_MONTH) / u128::from(seconds);
    // In half months, as the first step is one and a half.
    let half_months = balance.saturating_mul(2) / monthly.max(1);
    match half_months {
        36.. => DiscountLevel::Gold,
        12.. => DiscountLevel::Silver,
        6.. => DiscountLevel::Bronze,
        3.. => DiscountLevel::Default,
        _ => DiscountLevel::None,
    }
}

/// A discount in percent.
pub(super) fn percent(level: DiscountLevel) -> u8 {
    match level {
        DiscountLevel::None => 0,
        DiscountLevel::Default => 20,
        DiscountLevel::Bronze => 30,
        DiscountLevel::Silver => 40,
        DiscountLevel::Gold => 60,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(cru: u64, mru_gib: u64, sru_gib: u64, hru_gib: u64) -> Resources {
        let gib = 1 << 30;
        Resources { cru, mru: mru_gib * gib, sru: sru_gib * gib, hru: hru_gib * gib }
    }

    #[test]
    fn compute_units_are_the_least_of_three_mixes() {
        assert_eq!(compute_units(&resources(2, 4, 0, 0)), 1000);
        assert_eq!(compute_units(&resources(1, 8, 0, 0)), 1000);
        assert_eq!(compute_units(&resources(4, 2, 0, 0)), 1000);
        assert_eq!(compute_units(&resources(4, 8, 0, 0)), 2000);
        assert_eq!(compute_units(&resources(0, 0, 0, 0)), 0);
    }

    #[test]
    fn storage_units_add_disks() {
        assert_eq!(storage_units(&resources(0, 0, 200, 1200)), 2000);
        assert_eq!(storage_units(&resources(0, 0, 100, 0)), 500);
    }

    #[test]
    fn an_hour_of_a_unit_costs_its_price() {
        // 0.01 USD at 0.05 USD a TFT are 0.2 TFT.
        assert_eq!(in_tft(100_000, 50), Some(2_000_000));
        assert_eq!(in_tft(100_000, 0), None);
    }

    #[test]
    fn a_deep_purse_pays_less() {
        let hour = 3600;
        let month = 720;
        assert_eq!(discount(month, 1, hour), DiscountLevel::None);
        assert_eq!(discount(month * 3 / 2, 1, hour), DiscountLevel::Default);
        assert_eq!(discount(month * 3, 1, hour), DiscountLevel::Bronze);
        assert_eq!(discount(month * 6, 1, hour), DiscountLevel::Silver);
        assert_eq!(discount(month * 18, 1, hour), DiscountLevel::Gold);
        assert_eq!(discount(0, 0, hour), DiscountLevel::None);
    }

    #[test]
    fn no_input_overflows() {
        let all = Resources { hru: u64::MAX, sru: u64::MAX, cru: u64::MAX, mru: u64::MAX };
        assert!(compute_units(&all) > 0 && storage_units(&all) > 0);
        assert!(of_extra_fee(u64::MAX, u64::MAX) > 0);
        let _ = in_tft(u128::MAX, 1);
        let _ = discount(u128::MAX, u128::MAX, u64::MAX);
    }
}
