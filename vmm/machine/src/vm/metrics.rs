//! What the operator counts.

use std::sync::atomic::Ordering;

use super::Shared;
use crate::ExitKind;
use crate::api::{Family, Kind, Metrics, Value};

impl Shared {
    /// All of it, at this moment.
    pub(super) fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        let uptime = self.started.elapsed().as_secs_f64();
        let help = "Time since the VM was started, in seconds.";
        metrics.single("vmm_uptime_seconds", help, Kind::Gauge, Value::Float(uptime));
        let reboots = Value::Integer(self.reboots.load(Ordering::Relaxed));
        metrics.single("vmm_reboots_total", "Resets so far.", Kind::Counter, reboots);
        let exits = {
            let machine = self.machine();
            let of = |kind: ExitKind| Value::Integer(machine.exits().of(kind).value());
            ExitKind::ALL.map(|kind| (vec![("reason", kind.name().to_owned())], of(kind))).into()
        };
        metrics.0.push(Family {
            name: "vmm_vcpu_exits_total",
            help: "Times that a vCPU came back from the guest, by reason.",
            kind: Kind::Counter,
            samples: exits,
        });
        let plugged = self.plugged();
        let samples = plugged.iter().flat_map(|device| {
            let labels = |name: &str| {
                vec![
                    ("kind", device.kind.to_owned()),
                    ("id", device.id.clone()),
                    ("count", name.to_owned()),
                ]
            };
            let count = |(name, counter): &(&'static str, vmm_virtio::Counter)| {
                (labels(name), Value::Integer(counter.value()))
            };
            device.counters.iter().map(count).collect::<Vec<_>>()
        });
        metrics.0.push(Family {
            name: "vmm_device_total",
            help: "What devices count, by kind and id of the device and name of the count.",
            kind: Kind::Counter,
            samples: samples.collect(),
        });
        metrics
    }
}
