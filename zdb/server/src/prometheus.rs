//! Figures in Prometheus's text format, version 0.0.4.

use std::fmt::Write;

use zdb_engine::Stats;

use crate::commands::CommandId;
use crate::core::Core;
use crate::metrics::Histogram;

/// Namespaces that are shown; a server may have many thousands.
const NAMESPACE_COUNT_MAX: usize = 1000;

/// A figure of a namespace: name, what it is, kind, and how to get it.
type Figure = (&'static str, &'static str, &'static str, fn(&Stats) -> u64);

const FIGURES: &[Figure] = &[
    ("zdb_namespace_entries", "Live keys.", "gauge", |stats| stats.entry_count),
    ("zdb_namespace_value_bytes", "Bytes of live values.", "gauge", |stats| stats.value_size),
    ("zdb_namespace_data_file_bytes", "Bytes of segments.", "gauge", |stats| stats.data_file_size),
    ("zdb_namespace_index_file_bytes", "Bytes of index files.", "gauge", |stats| {
        stats.index_file_size
    }),
    (
        "zdb_namespace_live_record_bytes",
        "Bytes of segments that are no garbage.",
        "gauge",
        |stats| stats.live_record_size,
    ),
    ("zdb_namespace_index_memory_bytes", "Memory of the index.", "gauge", |stats| {
        stats.index_memory_size
    }),
    ("zdb_namespace_segments", "Segments.", "gauge", |stats| stats.segment_count),
    ("zdb_namespace_quarantined_segments", "Segments with damage.", "gauge", |stats| {
        stats.quarantined_segments.len() as u64
    }),
    ("zdb_namespace_damaged_records", "Records known to be damaged.", "gauge", |stats| {
        stats.damaged_record_count
    }),
    ("zdb_namespace_sequence", "Number of the newest write.", "counter", |stats| stats.last.0),
    ("zdb_namespace_durable_sequence", "Number of the newest durable write.", "counter", |stats| {
        stats.durable.0
    }),
    ("zdb_namespace_syncs_total", "Syncs of the log.", "counter", |stats| stats.sync_count),
    ("zdb_namespace_reclaimed_bytes_total", "Bytes freed by compaction.", "counter", |stats| {
        stats.reclaimed_size
    }),
    ("zdb_namespace_data_errors_total", "Errors of segments.", "counter", |stats| {
        stats.data_error_count
    }),
    ("zdb_namespace_index_errors_total", "Errors of index files.", "counter", |stats| {
        stats.index_error_count
    }),
];

/// All figures.
pub(crate) fn render(core: &Core) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_server(&mut text, core);
    let _ = write_commands(&mut text, core);
    let _ = write_namespaces(&mut text, core);
    text
}

fn write_server(text: &mut String, core: &Core) -> std::fmt::Result {
    let metrics = &core.metrics;
    let uptime = core.clock.now.as_secs();
    let rows = [
        ("zdb_uptime_seconds", "Time since the start.", "counter", uptime),
        ("zdb_clients", "Clients that are connected.", "gauge", metrics.connected_count),
        ("zdb_clients_total", "Clients that ever came.", "counter", metrics.client_count),
        ("zdb_clients_refused_total", "Clients turned away.", "counter", metrics.refused_count),
        ("zdb_buffer_bytes", "Memory of clients' buffers.", "gauge", metrics.buffer_size),
        ("zdb_received_bytes_total", "Bytes from clients.", "counter", metrics.received_size),
        ("zdb_sent_bytes_total", "Bytes to clients.", "counter", metrics.sent_size),
        (
            "zdb_unauthorized_total",
            "Commands without a right.",
            "counter",
            metrics.unauthorized_count,
        ),
        (
            "zdb_commit_failures_total",
            "Batches lost to the disk.",
            "counter",
            metrics.commit_failed_count,
        ),
        ("zdb_scrubs_total", "Namespaces read to their end.", "counter", metrics.scrub_count),
        (
            "zdb_hooks_dropped_total",
            "Events no hook heard of.",
            "counter",
            core.hooks.dropped_count,
        ),
        ("zdb_disk_full", "Whether writes are refused.", "gauge", core.engine.disk_full().into()),
    ];
    for (name, help, kind, value) in rows {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}")?;
    }
    let name = "zdb_sync_duration_seconds";
    writeln!(text, "# HELP {name} Time of a sync.\n# TYPE {name} histogram")?;
    write_histogram(text, name, "", &metrics.syncs)
}

fn write_commands(text: &mut String, core: &Core) -> std::fmt::Result {
    let used = core.metrics.commands.iter().zip(CommandId::all());
    let used: Vec<_> = used.filter(|(command, _)| command.latency.count > 0).collect();
    let name = "zdb_command_duration_seconds";
    writeln!(text, "# HELP {name} Time of a command, without its sync.\n# TYPE {name} histogram")?;
    for (command, id) in &used {
        let label = format!("command=\"{}\"", id.name());
        write_histogram(text, name, &label, &command.latency)?;
    }
    let name = "zdb_command_failures_total";
    writeln!(text, "# HELP {name} Commands refused.\n# TYPE {name} counter")?;
    for (command, id) in &used {
        writeln!(text, "{name}{{command=\"{}\"}} {}", id.name(), command.failed_count)?;
    }
    Ok(())
}

fn write_namespaces(text: &mut String, core: &Core) -> std::fmt::Result {
    let entries = core.namespaces.entries().take(NAMESPACE_COUNT_MAX);
    let stats: Vec<(String, Stats)> = entries
        .filter_map(|entry| {
            let stats = entry.stats()?;
            Some((escape(&entry.name.to_string()), stats))
        })
        .collect();
    for (name, help, kind, get) in FIGURES {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
        for (namespace, stats) in &stats {
            writeln!(text, "{name}{{namespace=\"{namespace}\"}} {}", get(stats))?;
        }
    }
    Ok(())
}

fn write_histogram(
    text: &mut String,
    name: &str,
    label: &str,
    histogram: &Histogram,
) -> std::fmt::Result {
    let comma = if label.is_empty() { "" } else { "," };
    let mut count = 0;
    for (exponent, bucket) in (0..).zip(&histogram.buckets) {
        count += bucket;
        // Empty ends are left out: cumulated counts lose nothing by it.
        if *bucket > 0 {
            let bound = 2f64.powi(exponent) / 1e6;
            writeln!(text, "{name}_bucket{{{label}{comma}le=\"{bound}\"}} {count}")?;
        }
    }
    writeln!(text, "{name}_bucket{{{label}{comma}le=\"+Inf\"}} {}", histogram.count)?;
    let braces = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
    writeln!(text, "{name}_sum{braces} {}", histogram.sum.as_secs_f64())?;
    writeln!(text, "{name}_count{braces} {}", histogram.count)
}

/// A label's value: backslashes, quotes and line ends are escaped.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn histograms_cumulate() {
        let mut histogram = Histogram::default();
        for micros in [0, 1, 3] {
            histogram.record(Duration::from_micros(micros));
        }
        let mut text = String::new();
        write_histogram(&mut text, "t", "a=\"b\"", &histogram).unwrap();
        let expected = "t_bucket{a=\"b\",le=\"0.000001\"} 1\n\
            t_bucket{a=\"b\",le=\"0.000002\"} 2\n\
            t_bucket{a=\"b\",le=\"0.000004\"} 3\n\
            t_bucket{a=\"b\",le=\"+Inf\"} 3\n\
            t_sum{a=\"b\"} 0.000004\n\
            t_count{a=\"b\"} 3\n";
        assert_eq!(text, expected);
    }
}
