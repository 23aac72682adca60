//! What the operator counts.

use std::sync::atomic::Ordering;

use vmm_virtio::Counter;

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
        let count = |kind: &str, id: &str, name: &str, counter: &Counter| {
            let labels = [("kind", kind), ("id", id), ("count", name)];
            let labels = labels.map(|(label, value)| (label, value.to_owned()));
            (labels.into(), Value::Integer(counter.value()))
        };
        let serial = self.machine().serial_input();
        let lost = serial.map(|port| count("serial", "serial", "lost_bytes", port.lost()));
        let plugged = self.plugged();
        let samples = plugged.iter().flat_map(|device| {
            let counters = device.counters.iter();
            counters.map(|(name, counter)| count(device.kind, &device.id, name, counter))
        });
        metrics.0.push(Family {
            name: "vmm_device_total",
            help: "What devices count, by kind and id of the device and name of the count.",
            kind: Kind::Counter,
            samples: lost.into_iter().chain(samples).collect(),
        });
        metrics
    }
}
