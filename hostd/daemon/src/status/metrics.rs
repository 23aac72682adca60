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
    text.about("hostd_build_info", "gauge", "The version of this program.");
    text.value("hostd_build_info", &[("version", status.version)], 1);
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
    text.about("hostd_duty_failing", "gauge", "Whether the last try of a duty failed.");
    for (duty, progress) in &node.duties {
        let is_failing = u8::from(progress.error.is_some());
        text.value("hostd_duty_failing", &[("duty", duty.name())], is_failing);
    }
    let since = "hostd_duty_failing_since_timestamp_seconds";
    text.about(since, "gauge", "When a duty that fails began to.");
    for (duty, progress) in &node.duties {
        if let Some(at) = progress.failing_since {
            text.value(since, &[("duty", duty.name())], at);
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
    use hostd_node::engine::{Overview, Statistics, Users, WorkloadOverview};
    use hostd_node::health::{Duty, Progress};
    use hostd_node::host::Pool;

    use super::*;

    fn workload(kind: &'static str, state: &'static str) -> WorkloadOverview {
        let (name, message) = ("secret-name".to_owned(), "secret words".to_owned());
        WorkloadOverview { name, kind, version: 0, state, since: 7, message }
    }

    fn deployment(contract: &'static str, workloads: Vec<WorkloadOverview>) -> Overview {
        Overview { twin_id: 1, contract_id: 5, version: 0, contract, workloads }
    }

    fn busy() -> Status {
        let total = Capacity { cru: 8, mru: 16 << 30, sru: 1 << 40, hru: 0, ipv4u: 0 };
        let used = Capacity { cru: 3, ..Capacity::default() };
        let users = Users { deployments: 2, workloads: 3, last_deployment_timestamp: 7 };
        let system = Capacity::default();
        let done = Progress { done_at: Some(1700), ..Progress::default() };
        let (error, failing_since) = (Some("gone".into()), Some(1600));
        let failed = Progress { error, failing_since, failure_count: 4, ..Progress::default() };
        let node = NodeStatus {
            node_id: 11,
            twin_id: 7,
            block: Some(900),
            relay_count: 2,
            duties: [(Duty::Uptime, done), (Duty::Events, failed)].into(),
            capacity: Statistics { total, used, system, users, open_connections: 0 },
            messages: [("run", 12)].into(),
            deployments: vec![
                deployment("paid", vec![workload("zdb", "ok"), workload("zdb", "ok")]),
                deployment("not paid", vec![workload("zmachine-light", "paused")]),
            ],
        };
        Status {
            version: "1.2.3",
            account: "5F…".into(),
            farm_id: 1,
            problem: String::new(),
            node: Some(node),
            pools: vec![Pool { name: "hdd1".into(), kind: "hdd", size: 100, used: 40 }],
        }
    }

    #[test]
    fn metrics_say_how_the_node_is_and_nothing_of_what_is_in_workloads() {
        let text = super::text(&busy());
        for line in [
            "hostd_node_up 1",
            "hostd_build_info{version=\"1.2.3\"} 1",
            "hostd_relays_connected 2",
            "hostd_chain_block 900",
            "hostd_duty_done_timestamp_seconds{duty=\"uptime\"} 1700",
            "hostd_duty_failing{duty=\"uptime\"} 0",
            "hostd_duty_failing{duty=\"events\"} 1",
            "hostd_duty_failing_since_timestamp_seconds{duty=\"events\"} 1600",
            "hostd_duty_failures_total{duty=\"events\"} 4",
            "hostd_deployments{contract=\"paid\"} 1",
            "hostd_deployments{contract=\"not paid\"} 1",
            "hostd_workloads{type=\"zdb\",state=\"ok\"} 2",
            "hostd_workloads{type=\"zmachine-light\",state=\"paused\"} 1",
            "hostd_capacity{resource=\"cru\",what=\"used\"} 3",
            "hostd_capacity{resource=\"mru\",what=\"total\"} 17179869184",
            "hostd_pool_bytes{pool=\"hdd1\",type=\"hdd\",what=\"used\"} 40",
            "hostd_messages_total{event=\"run\"} 12",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("secret"), "{text}");
        // Each metric is described once, and before its values.
        let mut described = std::collections::BTreeSet::new();
        for line in text.lines() {
            match line.strip_prefix("# HELP ") {
                Some(rest) => assert!(described.insert(rest.split(' ').next().unwrap()), "{line}"),
                None if line.starts_with('#') => {}
                None => {
                    assert!(described.contains(line.split(['{', ' ']).next().unwrap()), "{line}");
                }
            }
        }
    }

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
