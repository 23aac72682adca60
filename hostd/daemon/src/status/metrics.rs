//! The status as numbers, in the text that Prometheus reads (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use hostd_grid::capacity::Capacity;
use rustix::param::page_size;

use super::{NodeStatus, Status};

/// A text of metrics under way.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a metric.
    fn about(&mut self, name: &str, kind: &str, help: &str) {
        let text = &mut self.0;
        // Writing to a string can't fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A value of it. Labels are names of ours, which need no escapes.
    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

/// All numbers.
pub(super) fn text(status: &Status) -> String {
    let mut text = Text::default();
    text.about("hostd_node_up", "gauge", "Whether the node runs.");
    text.value("hostd_node_up", &[], u8::from(status.node.is_some()));
    if let Some(bytes) = resident_memory() {
        text.about("process_resident_memory_bytes", "gauge", "Memory of this process.");
        text.value("process_resident_memory_bytes", &[], bytes);
    }
    text.about("hostd_pool_bytes", "gauge", "Disks: their size, and what is promised of it.");
    for pool in &status.pools {
        for (what, bytes) in [("size", pool.size), ("used", pool.used)] {
            let labels = [("pool", &*pool.name), ("type", pool.kind), ("what", what)];
            text.value("hostd_pool_bytes", &labels, bytes);
        }
    }
    if let Some(node) = &status.node {
        about_duties(&mut text, node);
        about_deployments(&mut text, node);
        text.about("hostd_messages_total", "counter", "What happened on the message bus.");
        for (event, count) in &node.messages {
            text.value("hostd_messages_total", &[("event", event)], count);
        }
    }
    text.0
}

fn about_duties(text: &mut Text, node: &NodeStatus) {
    text.about("hostd_relays_connected", "gauge", "Relays that the node is connected to.");
    text.value("hostd_relays_connected", &[], node.relay_count);
    if let Some(block) = node.block {
        text.about("hostd_chain_block", "gauge", "The last block whose events were obeyed.");
        text.value("hostd_chain_block", &[], block);
    }
    text.about("hostd_duty_done_timestamp_seconds", "gauge", "When a duty was last done.");
    for (duty, progress) in &node.duties {
        if let Some(at) = progress.done_at {
            text.value("hostd_duty_done_timestamp_seconds", &[("duty", duty.name())], at);
        }
    }
    text.about("hostd_duty_failures_total", "counter", "How often a duty failed.");
    for (duty, progress) in &node.duties {
        let count = progress.failure_count;
        text.value("hostd_duty_failures_total", &[("duty", duty.name())], count);
    }
}

fn about_deployments(text: &mut Text, node: &NodeStatus) {
    let (mut contracts, mut workloads) = (BTreeMap::new(), BTreeMap::new());
    for deployment in &node.deployments {
        *contracts.entry(deployment.contract).or_insert(0_u64) += 1;
        for workload in &deployment.workloads {
            *workloads.entry((workload.kind, workload.state)).or_insert(0_u64) += 1;
        }
    }
    text.about("hostd_deployments", "gauge", "Deployments, by how their contracts stand.");
    for (contract, count) in contracts {
        text.value("hostd_deployments", &[("contract", contract)], count);
    }
    text.about("hostd_workloads", "gauge", "Workloads, by type and state.");
    for ((kind, state), count) in workloads {
        text.value("hostd_workloads", &[("type", kind), ("state", state)], count);
    }
    text.about("hostd_capacity", "gauge", "What there is, and what is taken: counts and bytes.");
    let capacity = &node.capacity;
    for (what, Capacity { cru, sru, hru, mru, ipv4u }) in
        [("total", capacity.total), ("used", capacity.used), ("system", capacity.system)]
    {
        for (resource, value) in
            [("cru", cru), ("sru", sru), ("hru", hru), ("mru", mru), ("ipv4u", ipv4u)]
        {
            text.value("hostd_capacity", &[("resource", resource), ("what", what)], value);
        }
    }
}

/// Bytes of memory that this process has.
fn resident_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(page_size()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_shape_that_prometheus_reads() {
        let mut text = Text::default();
        text.about("a_b", "gauge", "What it is.");
        text.value("a_b", &[], 1);
        text.value("a_b", &[("x", "1"), ("y", "2")], 2.5);
        let expected =
            "# HELP a_b What it is.\n# TYPE a_b gauge\na_b 1\na_b{x=\"1\",y=\"2\"} 2.5\n";
        assert_eq!(text.0, expected);
        assert!(resident_memory().unwrap() > 1 << 20);
    }
}
