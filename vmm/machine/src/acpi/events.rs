//! What the generic event device has to tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::line::Line;

/// Something that the guest is told of: a bit of the event register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Event {
    /// Someone pressed the power button.
    PowerButton = 1,
    /// A slot has changed.
    Slots = 2,
    /// The machine has another generation id: it is not the one that it was.
    Generation = 4,
}

/// Events that are pending, shared by those who raise them.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    pending: Arc<AtomicU32>,
    line: Line,
}

impl Events {
    pub(crate) fn new(line: Line) -> Self {
        Self { pending: Arc::default(), line }
    }

    /// Tells the guest.
    pub(crate) fn raise(&self, event: Event) {
        self.pending.fetch_or(event as u32, Ordering::SeqCst);
        if let Err(error) = self.line.pulse() {
            tracing::error!(?event, %error, "the guest can't be told of an event");
        }
    }

    /// What is pending, for a snapshot.
    pub(super) fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    /// What was pending, from a snapshot. Its interrupt is in the controller's state.
    pub(super) fn set_pending(&self, pending: u32) {
        self.pending.store(pending, Ordering::SeqCst);
    }

    /// What is pending, which it no longer is.
    pub(super) fn take(&self) -> u32 {
        self.pending.swap(0, Ordering::SeqCst)
    }
}
