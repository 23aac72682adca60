//! What a snapshot keeps of a transport: everything that the driver wrote or could read.
//!
//! It comes from a file, so nothing of it is believed: what a driver could not have brought about
//! by writing registers is refused here, rings are checked again when the device resumes, and
//! what is the device's own is for the device to check.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::common::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, QueueRegisters};
use super::msix::VectorState;
use super::transport::{Run, Transport};
use crate::DeviceError;

/// A transport in a snapshot.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TransportState {
    /// The PCI header.
    header: Vec<u8>,
    vectors: Vec<VectorState>,
    status: u8,
    needs_reset: bool,
    isr: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    config_vector: u16,
    queues: Vec<QueueState>,
    /// The device's configuration space, as its driver knows it.
    config: Vec<u8>,
    /// Its generation.
    config_generation: u8,
    /// What the device adds.
    device: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueState {
    vector: u16,
    registers: QueueRegisters,
}

impl TransportState {
    /// The state of a transport whose units do not run.
    pub(super) fn of(transport: &Transport) -> Result<Self, DeviceError> {
        if matches!(transport.run, Run::Running(_) | Run::Stopping(_)) {
            let what = format!("{} is running: pause it first", transport.name());
            return Err(DeviceError::State(what));
        }
        let common = &transport.common;
        let interrupts = &transport.shared.interrupts;
        let queues = (0..).zip(&common.queues).map(|(index, registers)| QueueState {
            vector: interrupts.queue_vector(index),
            registers: registers.clone(),
        });
        Ok(Self {
            header: transport.config.bytes().to_vec(),
            vectors: transport.msix.save(),
            status: common.status,
            needs_reset: transport.shared.needs_reset.load(Ordering::Acquire),
            isr: interrupts.isr(),
            device_feature_select: common.device_feature_select,
            driver_feature_select: common.driver_feature_select,
            driver_features: common.driver_features,
            queue_select: common.queue_select,
            config_vector: interrupts.config_vector(),
            queues: queues.collect(),
            config: transport.device.config().save(),
            config_generation: transport.device.config().generation(),
            device: transport.device.save()?,
        })
    }

    /// Makes `transport`, which no driver has touched, what this one was.
    pub(super) fn give_to(self, transport: &mut Transport) -> Result<(), DeviceError> {
        self.check(transport)?;
        transport.config.restore(&self.header)?;
        transport.msix.restore(&self.vectors)?;
        let name = transport.name().to_owned();
        let device = &mut transport.device;
        let restored =
            device.restore_config(&self.config).and_then(|()| device.restore(self.device));
        restored.map_err(|error| match error {
            DeviceError::State(what) => DeviceError::State(format!("{name}: {what}")),
            other => other,
        })?;
        transport.device.config().succeed(self.config_generation);
        let interrupts = &transport.shared.interrupts;
        interrupts.set_config_vector(self.config_vector);
        interrupts.set_isr(self.isr);
        let common = &mut transport.common;
        common.status = self.status;
        common.device_feature_select = self.device_feature_select;
        common.driver_feature_select = self.driver_feature_select;
        common.driver_features = self.driver_features;
        common.queue_select = self.queue_select;
        for (index, queue) in (0..).zip(self.queues) {
            interrupts.set_queue_vector(index, queue.vector);
            common.queues[usize::from(index)] = queue.registers;
        }
        transport.shared.needs_reset.store(self.needs_reset, Ordering::Release);
        transport.run = Run::Paused { is_restored: true };
        Ok(())
    }

    fn check(&self, transport: &Transport) -> Result<(), DeviceError> {
        let refuse =
            |what: String| Err(DeviceError::State(format!("{}: {what}", transport.name())));
        let common = &transport.common;
        if self.queues.len() != common.queues.len() {
            return refuse(format!("{} queues, not {}", self.queues.len(), common.queues.len()));
        }
        for (index, (saved, own)) in self.queues.iter().zip(&common.queues).enumerate() {
            let QueueRegisters { size, size_max, .. } = saved.registers;
            if size_max != own.size_max || !size.is_power_of_two() || size > size_max {
                let limit = own.size_max;
                return refuse(format!("queue {index} of {size} of {size_max}, not {limit}"));
            }
        }
        let steps = [ACKNOWLEDGE | DRIVER, FEATURES_OK, DRIVER_OK];
        let known = steps.iter().fold(FAILED, |all, bits| all | bits);
        let has = |bits: u8| self.status & bits == bits;
        if self.status & !known != 0
            || has(DRIVER_OK) && !has(FEATURES_OK)
            || has(FEATURES_OK) && !has(ACKNOWLEDGE | DRIVER)
        {
            return refuse(format!("status {:#x} cannot be", self.status));
        }
        let negotiated = self.driver_features;
        if has(FEATURES_OK) && !common.are_acceptable(negotiated) {
            let offered = common.offered();
            return refuse(format!("features {negotiated:#x}, this one offers {offered:#x}"));
        }
        Ok(())
    }
}
