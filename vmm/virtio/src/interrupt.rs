//! How a device reaches its driver.

/// The interrupts of one device. The transport implements it; whatever the driver masked, or
/// never asked for, is swallowed there.
pub trait Interrupt: Send + Sync {
    /// Used buffers wait in queue `index`.
    fn queue(&self, index: u16);

    /// The configuration space has changed.
    fn config(&self);
}
