//! When a client hears that its transaction is final.
//!
//! Here that is as soon as it is in a block, and a client that waits for it has no reason to wait longer.
//! But one that is made with `@polkadot/api` reads the block when it hears `inBlock`, and gives that up
//! when `finalized` overtakes it: whoever acts on `inBlock` then waits for ever. On the public chain finality
//! comes seconds later, so nobody notices.
//!
//! Such a client is known by the first thing that it asks for, `system_properties`, which others have
//! no use for. On its connections [`FINALITY_TIME`] goes by between the two.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jsonrpsee::{
    core::middleware::{Batch, Notification, RpcServiceT},
    types::Request,
};

/// Time from `inBlock` to `finalized` for a client that reads the block in between. It is much longer than
/// that takes, even on a busy machine, and much shorter than on the public chain.
pub(super) const FINALITY_TIME: Duration = Duration::from_secs(2);
/// What only such a client asks for.
const SIGN: &str = "system_properties";

/// What one connection's client is like.
#[derive(Clone, Default)]
pub(super) struct Pace {
    reads_blocks: Arc<AtomicBool>,
}

impl Pace {
    /// Time from `inBlock` to `finalized`.
    pub(super) fn finality_time(&self) -> Duration {
        if self.reads_blocks.load(Ordering::Relaxed) { FINALITY_TIME } else { Duration::ZERO }
    }
}

/// The methods, as one connection asks for them.
#[derive(Clone)]
pub(super) struct Paced<S> {
    service: S,
    pace: Pace,
}

impl<S> Paced<S> {
    /// A new connection.
    pub(super) fn new(service: S) -> Self {
        Self { service, pace: Pace::default() }
    }
}

impl<S: RpcServiceT> RpcServiceT for Paced<S> {
    type MethodResponse = S::MethodResponse;
    type NotificationResponse = S::NotificationResponse;
    type BatchResponse = S::BatchResponse;

    fn call<'a>(
        &self,
        mut request: Request<'a>,
    ) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        if request.method_name() == SIGN {
            self.pace.reads_blocks.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(self.pace.clone());
        self.service.call(request)
    }

    // These clients send no batches, and nobody subscribes in one.
    fn batch<'a>(&self, batch: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        self.service.batch(batch)
    }

    fn notification<'a>(
        &self,
        notification: Notification<'a>,
    ) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        self.service.notification(notification)
    }
}
