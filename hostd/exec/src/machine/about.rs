//! What the machine says of itself: how much of everything there is, and how it is.

use std::fs;

use hostd_grid::capacity::{Capacity, GIB};
use hostd_node::host::{About, Diagnosis, Module, Pool, Resources};

use super::Inner;
use super::machines::cpu_count;
use crate::facts::{Facts, diagnosis};

/// What a node keeps of its memory, at least.
const RESERVED_MEMORY_MIN: u64 = 2 * GIB;
/// And the part of all memory that it keeps: one in so many bytes.
const RESERVED_MEMORY_PART: u64 = 10;

impl Inner {
    pub(super) fn resources(&self) -> Resources {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let (mru, available_memory) = (memory(&text, "MemTotal:"), memory(&text, "MemAvailable:"));
        let total = Capacity { cru: cpu_count().into(), mru, ..self.storage.capacity() };
        let system = Capacity {
            mru: reserved_memory(mru),
            sru: self.disks.reserved(self.config.images.cache_size_max).min(total.sru),
            ..Capacity::default()
        };
        Resources { total, system, available_memory }
    }

    pub(super) fn pools(&self) -> Vec<Pool> {
        // Of a server that does not answer, nobody knows now what it has promised.
        self.storage.pools(&self.zdbs.promised())
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
        for pool in self.storage.check() {
            let error = pool.problem.unwrap_or_default();
            modules.insert(format!("pool-{}", pool.name), Module { status: String::new(), error });
        }
        modules.extend(self.disks.modules(&self.config.state));
        for (pool, error) in self.zdbs.check() {
            modules.insert(format!("zdb-{pool}"), Module { status: String::new(), error });
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
