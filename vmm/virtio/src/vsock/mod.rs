//! Sockets between guest and host (virtio 1.3 §5.10), whose ends on the host are unix sockets.
//!
//! The protocol on the host's side is the one that clients of other VMMs already speak:
//!
//! - **The host asks.** A client connects to the device's socket and sends `CONNECT <port>\n`. If
//!   something in the guest listens on that port, it is answered `OK <host port>\n`, and from then
//!   on the socket is the stream; otherwise it is closed.
//! - **The guest asks.** A connection to port P of address 2 becomes one to the unix socket
//!   `<path>_<P>`. If nothing listens there, the guest's `connect` fails at once.
//!
//! ```text
//!          rx, tx, event                              epoll
//!   guest ══════════════ VsockUnit ─── Switch ─┬─ Host ══════ unix sockets
//!                                              ├─ Mux          who may send how much
//!                                              └─ Services     heartbeat, reseed
//! ```
//!
//! `mux` decides and does no I/O; `host` does I/O and decides nothing. Payload goes from
//! socket to guest memory and back without a copy in between, but for what a slow reader on the
//! host cannot take, which is kept, within the credit that the guest was given.
//!
//! Two parts of the device are ends of connections themselves: [`heartbeat`] listens for an agent
//! of the guest, and [`reseed`] tells a restored guest the time and gives it entropy.
//!
//! Connections survive a pause. They do not survive a snapshot: a guest that is restored is told
//! that all are gone (`TRANSPORT_RESET`), before anything else. The listener stays.
//!
//! Not offered: `SOCK_SEQPACKET`, and connections to other guests.

pub mod heartbeat;
mod host;
mod listener;
mod mux;
mod packet;
pub mod reseed;
mod services;
mod switch;
#[cfg(test)]
mod tests;
mod unit;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::heartbeat::Heartbeat;
use self::host::Host;
pub use self::listener::{Connector, Listener, PATH_SIZE_MAX, connect};
use self::mux::{Counters, LIMITS, Mux};
use self::reseed::Reseed;
use self::services::Services;
use self::switch::Switch;
use self::unit::{EVENT, RX, TX, VsockUnit};
use crate::{Activation, ConfigSpace, Counter, Device, DeviceError, DeviceId, Unit};

/// The lowest address that a guest can have (virtio 1.3 §5.10.4).
pub const GUEST_CID_MIN: u32 = 3;
/// The highest: the next is `VMADDR_CID_ANY`.
pub const GUEST_CID_MAX: u32 = u32::MAX - 1;
/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u32 = 0;
/// Sizes of the rx, tx and event queues.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Something that whoever runs the machine wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Of the guest's agent.
    Heartbeat(heartbeat::Event),
    /// Of a restored guest.
    Reseed(reseed::Event),
}

/// Where events go. Called on the device's thread: it must not wait.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// How a socket device is set up.
pub struct Settings {
    /// The guest's address.
    pub guest_cid: u32,
    /// The socket by which the host reaches the guest.
    pub listener: Listener,
    /// The silence after which a guest that sent beats is missed ([`heartbeat::SILENCE_MAX`]), or
    /// `None` if nobody listens for beats: the port is then like any other.
    pub silence_max: Option<Duration>,
    /// Whether a restored guest is told the time and given entropy.
    pub reseeds: bool,
    /// Where events go.
    pub on_event: EventSink,
}

/// A socket device.
pub struct Vsock {
    guest_cid: u32,
    listener: Arc<Listener>,
    silence_max: Option<Duration>,
    reseeds: bool,
    on_event: EventSink,
    config: ConfigSpace,
    counters: Counters,
    rx_starved: Counter,
    beats: Counter,
    /// The connections, while no unit runs.
    parked: Arc<Mutex<Option<Switch>>>,
    /// What a snapshot said, until the guest runs again.
    restored: Option<State>,
    /// The guest has yet to be told that its connections are gone: until it offers a buffer for that,
    /// over however many pauses.
    owes_reset: Arc<AtomicBool>,
}

/// What a snapshot keeps.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Ports of connections that the guest may remember come before this one.
    next_host_port: u32,
    /// Beats are expected.
    expects_beats: bool,
}

impl State {
    /// Of a guest that had no connections yet.
    const NEW: Self = Self { next_host_port: mux::HOST_PORT_FIRST, expects_beats: false };
}

impl Vsock {
    /// A device that listens already, and serves once it is activated.
    ///
    /// # Errors
    /// [`DeviceError::State`] when the guest cannot have the address.
    pub fn new(settings: Settings) -> Result<Self, DeviceError> {
        let Settings { guest_cid, listener, silence_max, reseeds, on_event } = settings;
        if !(GUEST_CID_MIN..=GUEST_CID_MAX).contains(&guest_cid) {
            return Err(DeviceError::State(format!(
                "vsock: a guest's CID is from {GUEST_CID_MIN} to {GUEST_CID_MAX}, not {guest_cid}"
            )));
        }
        Ok(Self {
            guest_cid,
            listener: Arc::new(listener),
            silence_max,
            reseeds,
            on_event,
            config: ConfigSpace::new(&u64::from(guest_cid).to_le_bytes()),
            counters: Counters::default(),
            rx_starved: Counter::default(),
            beats: Counter::default(),
            parked: Arc::default(),
            restored: None,
            owes_reset: Arc::default(),
        })
    }

    fn parked<T>(&self, use_it: impl FnOnce(&mut Option<Switch>) -> T) -> T {
        use_it(&mut self.parked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A switch without connections, for a guest that starts or was restored.
    fn new_switch(&self, now: Instant) -> Result<Switch, DeviceError> {
        let mut mux = Mux::new(u64::from(self.guest_cid), LIMITS, self.counters.clone());
        let mut heartbeat =
            self.silence_max.map(|silence_max| Heartbeat::new(silence_max, self.beats.clone()));
        let mut reseed = None;
        if let Some(state) = self.restored {
            mux.set_next_host_port(state.next_host_port);
            if let Some(heartbeat) = &mut heartbeat {
                heartbeat.resume(state.expects_beats, now);
            }
            reseed = self.reseeds.then(|| Reseed::new(now));
        }
        let host = Host::new(Arc::clone(&self.listener)).map_err(|error| DeviceError::Host {
            what: "vsock: watch the host's sockets".to_owned(),
            source: error.into(),
        })?;
        let services = Services::new(heartbeat, reseed, Arc::clone(&self.on_event));
        Ok(Switch::new(mux, host, services))
    }
}

impl Device for Vsock {
    fn id(&self) -> DeviceId {
        DeviceId::Vsock
    }

    fn features(&self) -> u64 {
        1 << FEATURE_STREAM | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Unit>>, DeviceError> {
        let queues =
            [activation.take_queue(RX)?, activation.take_queue(TX)?, activation.take_queue(EVENT)?];
        let now = Instant::now();
        let switch = match self.parked(Option::take) {
            Some(mut switch) => {
                switch.resume(now);
                switch
            }
            None => self.new_switch(now)?,
        };
        if self.restored.take().is_some() {
            self.owes_reset.store(true, Ordering::Relaxed);
        }
        let shared = unit::Shared {
            parked: Arc::clone(&self.parked),
            owes_reset: Arc::clone(&self.owes_reset),
            rx_starved: self.rx_starved.clone(),
        };
        Ok(vec![Box::new(VsockUnit::new(queues, switch, shared))])
    }

    fn reset(&mut self) {
        self.parked(|switch| *switch = None);
        self.restored = None;
        self.owes_reset.store(false, Ordering::Relaxed);
    }

    /// The address is this host's: a guest that is told of lost connections asks for it again (virtio
    /// 1.3 §5.10.6.7).
    fn restore_config(&mut self, seen: &[u8]) -> Result<(), DeviceError> {
        self.config.check_seen(seen, &[])
    }

    fn save(&self) -> Result<serde_json::Value, DeviceError> {
        let state = self.parked(|switch| match switch {
            Some(switch) => switch.state(),
            // Saved again before it ran, or never used.
            None => self.restored.unwrap_or(State::NEW),
        });
        serde_json::to_value(state).map_err(|error| DeviceError::State(error.to_string()))
    }

    fn restore(&mut self, state: serde_json::Value) -> Result<(), DeviceError> {
        let state = serde_json::from_value(state);
        let state = state.map_err(|error| DeviceError::State(format!("vsock: {error}")))?;
        self.parked(|switch| *switch = None);
        self.owes_reset.store(false, Ordering::Relaxed);
        self.restored = Some(state);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        vec![
            ("connections", self.counters.connections.clone()),
            ("refused", self.counters.refused.clone()),
            ("resets", self.counters.resets.clone()),
            ("rx_bytes", self.counters.rx_bytes.clone()),
            ("tx_bytes", self.counters.tx_bytes.clone()),
            ("rx_starved", self.rx_starved.clone()),
            ("beats", self.beats.clone()),
        ]
    }
}

impl std::fmt::Debug for Vsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vsock")
            .field("guest_cid", &self.guest_cid)
            .field("listener", &self.listener)
            .field("silence_max", &self.silence_max)
            .field("reseeds", &self.reseeds)
            .finish_non_exhaustive()
    }
}
