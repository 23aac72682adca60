//! Who carries events to owners: the message bus.

use std::pin::Pin;
use std::sync::Weak;
use std::time::Duration;

use hostd_rmb::peer::{Call, CallError, Peer};
use hostd_rmb::twins::TwinId;
use tracing::debug;

use super::{COMMAND, Event, Subscriber};

/// How long an owner may take to answer.
const DELIVERY_TIME_MAX: Duration = Duration::from_secs(30);

/// Something that carries events.
pub(crate) trait Courier: Send + Sync {
    /// Calls the subscriber with an event, and says whether somebody was there.
    fn deliver<'a>(
        &'a self,
        subscriber: &'a Subscriber,
        event: &'a Event,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
}

impl Courier for Weak<Peer> {
    fn deliver<'a>(
        &'a self,
        subscriber: &'a Subscriber,
        event: &'a Event,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async move {
            let Some((peer, twin)) = self.upgrade().zip(TwinId::new(subscriber.twin)) else {
                return false;
            };
            // Numbers and texts are always JSON.
            let payload = serde_json::to_vec(event).unwrap_or_default();
            let session = Some(subscriber.session.clone()).filter(|session| !session.is_empty());
            let call = Call::new(twin, COMMAND, payload)
                .time_max(DELIVERY_TIME_MAX)
                .connection(session)
                // An event that waits for its reader in a relay is none.
                .fail_fast(true);
            match peer.call(call).await {
                // Whatever it answers, it was told.
                Ok(_) | Err(CallError::Failed { .. }) => true,
                Err(error) => {
                    debug!(twin = subscriber.twin, %error, "an owner was not told");
                    false
                }
            }
        })
    }
}
