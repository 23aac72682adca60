//! What the machine says of itself: how much of everything there is, and how it is.

use std::fs;

use hostd_grid::capacity::{Capacity, GIB};
use hostd_node::host::{About, Diagnosis, Module, Pool, Resources};

use super::machines::cpu_count;
use super::{Inner, PoolKind, PoolSettings};
use crate::facts::{Facts, diagnosis};

/// What a node keeps of its memory, at least.
const RESERVED_MEMORY_MIN: u64 = 2 * GIB;
/// And the part of all memory that it keeps: one in so many bytes.
const RESERVED_MEMORY_PART: u64 = 10;

impl Inner {
    pub(super) fn resources(&self) -> Resources {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let (mru, available_memory) = (memory(&text, "MemTotal:"), memory(&text, "MemAvailable:"));
        let of = |kind| {
            let pools = self.config.pools.iter().filter(|pool| pool.kind == kind);
            pools.map(size).fold(0_u64, u64::saturating_add)
        };
        let (sru, hru) = (of(PoolKind::Ssd), of(PoolKind::Hdd));
        let total = Capacity { cru: cpu_count().into(), mru, sru, hru, ipv4u: 0 };
        let system = Capacity {
            mru: reserved_memory(mru),
            sru: self.config.images.cache_size_max.min(sru),
            ..Capacity::default()
        };
        Resources { total, system, available_memory }
    }

    pub(super) fn pools(&self) -> Vec<Pool> {
        let pools = self.config.pools.iter().map(|pool| Pool {
            name: pool.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            kind: match pool.kind {
                PoolKind::Ssd => "ssd",
                PoolKind::Hdd => "hdd",
            },
            size: size(pool),
            used: self.roots.used_in(&pool.path),
        });
        pools.collect()
    }

    pub(super) fn about(&self) -> About {
        let facts = Facts::read();
        About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            supervisor: format!("supervise {}", env!("CARGO_PKG_VERSION")),
            interfaces: facts.interfaces(),
            hypervisor: facts.hypervisor,
            has_ipv6: facts.has_ipv6,
            wireguard_ports: Vec::new(),
        }
    }

    pub(super) fn diagnose(&self) -> Diagnosis {
        let mut modules = std::collections::BTreeMap::new();
        match self.supervisor.list() {
            Ok(statuses) => {
                for status in statuses {
                    let failed = status.state.is_over() || status.crashes > 0;
                    let end = status.last_exit.filter(|_| failed);
                    let module = Module {
                        status: format!(
                            "{:?}, started again {} times",
                            status.state, status.restarts
                        ),
                        error: end.map(|end| end.outcome.to_string()).unwrap_or_default(),
                    };
                    modules.insert(status.name, module);
                }
            }
            Err(error) => {
                let module = Module { status: String::new(), error: error.to_string() };
                modules.insert("supervise".to_owned(), module);
            }
        }
        Diagnosis { modules, details: diagnosis() }
    }
}

/// What a node keeps of its memory for itself: a tenth, and not less than 2 GiB
/// (`reference: zero-os 4.10`).
fn reserved_memory(total: u64) -> u64 {
    (total / RESERVED_MEMORY_PART).max(RESERVED_MEMORY_MIN).min(total)
}

/// A figure of `/proc/meminfo`, in bytes.
fn memory(text: &str, name: &str) -> u64 {
    let kib = text.lines().find_map(|line| {
        let figure = line.strip_prefix(name)?.trim().strip_suffix("kB")?;
        figure.trim().parse::<u64>().ok()
    });
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Bytes of a pool: what may be promised, and not more than there are.
fn size(pool: &PoolSettings) -> u64 {
    let there = rustix::fs::statvfs(&pool.path)
        .map_or(0, |found| found.f_blocks.saturating_mul(found.f_frsize));
    pool.size.map_or(there, |size| size.min(there))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_a_tenth_and_at_least_two_gibibytes() {
        for (total, kept) in [(64 * GIB, 64 * GIB / 10), (8 * GIB, 2 * GIB), (GIB, GIB)] {
            assert_eq!(reserved_memory(total), kept, "{total}");
        }
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24593440 kB\nMemFree:  1 kB\nMemAvailable:   23 kB\n";
        assert_eq!(memory(text, "MemTotal:"), 24_593_440 * 1024);
        assert_eq!(memory(text, "MemAvailable:"), 23 * 1024);
        assert_eq!(memory("", "MemTotal:"), 0);
    }
}
