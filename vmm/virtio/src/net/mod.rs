//! Network card (virtio 1.3 §5.1) on a tap.
//!
//! ```text
//!   driver ── rx/tx queues ──► PairUnit 0 ── readv/writev ──► Backend 0 ┐
//!          ── rx/tx queues ──► PairUnit 1 ── readv/writev ──► Backend 1 ├─ one tap, many queues
//!          ── control queue ─► Control (in unit 0)                ...   ┘
//! ```
//!
//! Packets are never copied here: the kernel reads them from, and writes them to, the driver's own
//! buffers (`receive`, `transmit`). Checksums and segments are left to whoever can do them best:
//! the driver offers what it can take, the tap is told so (`TUNSETOFFLOAD`), and a transfer in bulk
//! moves as packets of 64 KiB that nobody cuts up in between. The header before each packet goes to
//! the kernel as the guest wrote it. The kernel checks it, and a packet whose header makes no sense
//! is dropped and counted.
//!
//! The link can be unplugged by [`NetHandle::set_link`], and goes down by itself when the tap
//! disappears; its unit then stops with an error rather than spin.
//!
//! Descriptors among the units' sources are expected to be watched by level: a unit stops reading
//! before there is nothing left, and relies on being called again.

mod backend;
mod control;
mod receive;
mod shared;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;
mod unit;
mod vectored;
mod wire;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

pub use backend::{Backend, Offloads};
pub use tap::{Tap, TapError};

use crate::{Activation, ConfigSpace, Counter, Device, DeviceError, DeviceId, Unit};
use control::Control;
use receive::Receiver;
use shared::Shared;
use transmit::Transmitter;
use unit::PairUnit;

/// The most queue pairs of a card.
pub const PAIRS_MAX: u16 = 16;
/// The smallest MTU that IPv4 works with, hence the smallest on offer (virtio 1.3 §5.1.4.1).
pub const MTU_MIN: u16 = 68;

const CONTROL_QUEUE_SIZE: u16 = 64;

/// A network card.
pub struct Net {
    shared: Arc<Shared>,
    guest: Arc<Guest>,
    options: NetOptions,
    features: u64,
    queue_sizes: Vec<u16>,
}

/// How a card is to be.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Its address.
    pub mac: [u8; 6],
    /// The largest packet without its Ethernet header, told to the driver if set.
    pub mtu: Option<u16>,
    /// The speed that the driver reports, if set. Nothing depends on it.
    pub speed_mbps: Option<u32>,
    /// Descriptors in each queue: a power of two. 256 is a good number.
    pub queue_size: u16,
    /// Limits what the guest receives; all queue pairs share it.
    pub receive_throttle: Option<SharedThrottle>,
    /// Limits what the guest sends; all queue pairs share it.
    pub transmit_throttle: Option<SharedThrottle>,
}

/// A rate limiter, asked once for each packet.
pub trait Throttle: Send + std::fmt::Debug {
    /// Takes what one packet of `bytes` costs.
    ///
    /// # Errors
    /// When the packet must wait: until when. It is then asked again.
    fn take(&mut self, bytes: u64) -> Result<(), Instant>;
}

/// A rate limiter that several units use, and that an API may change meanwhile.
pub type SharedThrottle = Arc<Mutex<dyn Throttle>>;

/// Takes what a packet costs, if there is a limit.
fn take_from(throttle: Option<&SharedThrottle>, bytes: u32) -> Result<(), Instant> {
    let Some(throttle) = throttle else { return Ok(()) };
    throttle.lock().unwrap_or_else(PoisonError::into_inner).take(u64::from(bytes))
}

/// Reaches a card from other threads. Clones reach the same card.
#[derive(Clone)]
pub struct NetHandle(Arc<Shared>);

impl NetHandle {
    /// Plugs the cable in or out. While it is out, packets of both directions are dropped.
    pub fn set_link(&self, is_up: bool) {
        self.0.set_link(is_up);
    }

    /// Whether packets pass: the cable is in, and what it leads to exists.
    #[must_use]
    pub fn is_link_up(&self) -> bool {
        self.0.is_link_up()
    }
}

/// What a driver has said over its control queue, kept over a pause.
#[derive(Default)]
struct Guest(Mutex<Option<u64>>);

impl Guest {
    /// Offload bits that it chose, if it did.
    fn offloads(&self) -> Option<u64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_offloads(&self, bits: Option<u64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bits;
    }
}

/// What a snapshot keeps.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    active_pairs: u16,
    offloads: Option<u64>,
}

impl Net {
    /// A card with a queue pair for each of `backends`, which are queues of one tap.
    ///
    /// # Errors
    /// [`DeviceError::State`] when an option is out of its bounds, [`DeviceError::Host`] when the
    /// host has no descriptors left.
    pub fn new(options: NetOptions, backends: Vec<Arc<dyn Backend>>) -> Result<Self, DeviceError> {
        check(&options, backends.len())?;
        let has_uso = backends.iter().all(|backend| backend.has_udp_segmentation());
        let pairs = u16::try_from(backends.len()).unwrap_or(u16::MAX);
        let config = wire::config(options.mac, pairs, options.mtu, options.speed_mbps);
        let shared = Shared::new(ConfigSpace::new(&config), backends)
            .map_err(|source| DeviceError::Host { what: "make an eventfd".to_owned(), source })?;
        let mut queue_sizes = vec![options.queue_size; 2 * usize::from(pairs)];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        Ok(Self {
            features: features(&options, pairs, has_uso),
            shared: Arc::new(shared),
            guest: Arc::default(),
            options,
            queue_sizes,
        })
    }

    /// Reaches this card from other threads.
    #[must_use]
    pub fn handle(&self) -> NetHandle {
        NetHandle(Arc::clone(&self.shared))
    }

    fn pair(&self, activation: &mut Activation, pair: u16) -> Result<PairUnit, DeviceError> {
        let is_mergeable = activation.has_feature(wire::VIRTIO_NET_F_MRG_RXBUF);
        let has_event_idx = activation.has_feature(wire::VIRTIO_RING_F_EVENT_IDX);
        let receive = activation.take_queue(2 * pair)?;
        let transmit = activation.take_queue(2 * pair + 1)?;
        let throttle = self.options.transmit_throttle.clone();
        Ok(PairUnit {
            pair,
            shared: Arc::clone(&self.shared),
            receiver: Receiver::new(receive, is_mergeable, self.options.receive_throttle.clone())?,
            transmitter: Transmitter::new(transmit, throttle, has_event_idx),
            control: None,
        })
    }

    /// Tells the back ends which offloads and which of their queues are in use.
    fn set_up_backends(&self, features: u64, pairs: u16) -> Result<(), DeviceError> {
        let failed =
            |what: &'static str| move |source| DeviceError::Host { what: what.to_owned(), source };
        let bits = self.guest.offloads().unwrap_or(features) & features;
        let offloads = Offloads::from_bits(bits);
        let first = self.shared.backend(0);
        first.set_offloads(offloads).map_err(failed("set the tap's offloads"))?;
        self.shared.found();
        let active = self.shared.active_count().min(pairs);
        self.shared.set_active(active).map_err(failed("set the tap's queues in use"))
    }
}

impl Device for Net {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &ConfigSpace {
        &self.shared.config
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Unit>>, DeviceError> {
        let features = activation.features;
        // §5.1.2: without MQ there is one pair, and the control queue follows it.
        let has_pairs = activation.has_feature(wire::VIRTIO_NET_F_MQ);
        let pairs = if has_pairs { self.shared.pair_count() } else { 1 };
        self.set_up_backends(features, pairs)?;
        let mut first = self.pair(&mut activation, 0)?;
        if activation.has_feature(wire::VIRTIO_NET_F_CTRL_VQ) {
            let queue = activation.take_queue(2 * pairs)?;
            let (shared, guest) = (Arc::clone(&self.shared), Arc::clone(&self.guest));
            first.control = Some(Control::new(queue, shared, guest, features));
        }
        let mut units: Vec<Box<dyn Unit>> = vec![Box::new(first)];
        for pair in 1..pairs {
            // A driver with fewer processors than we have pairs sets up only some of them.
            let queues = activation.queues.get(2 * usize::from(pair)..).unwrap_or_default();
            if queues.iter().take(2).any(Option::is_some) {
                units.push(Box::new(self.pair(&mut activation, pair)?));
            }
        }
        Ok(units)
    }

    fn reset(&mut self) {
        self.guest.set_offloads(None);
        // A back end that fails here fails again, and is heard, when it is activated.
        let _ = self.shared.set_active(1);
    }

    fn save(&self) -> Result<serde_json::Value, DeviceError> {
        let saved =
            Saved { active_pairs: self.shared.active_count(), offloads: self.guest.offloads() };
        serde_json::to_value(saved).map_err(|error| DeviceError::State(error.to_string()))
    }

    /// Keeps the address that the guest knows, which may have been a random one. The link is this
    /// host's.
    fn restore_config(&mut self, seen: &[u8]) -> Result<(), DeviceError> {
        self.shared.config.check_seen(seen, &wire::FIXED)?;
        let mac = seen.get(wire::MAC).unwrap_or_default();
        if mac.first().is_none_or(|first| first & 1 != 0) {
            return Err(DeviceError::State(format!("address {mac:02x?} is multicast")));
        }
        self.shared.config.write_from_driver(wire::MAC.start as u64, mac);
        Ok(())
    }

    fn restore(&mut self, state: serde_json::Value) -> Result<(), DeviceError> {
        let saved: Saved = serde_json::from_value(state)
            .map_err(|error| DeviceError::State(format!("network card: {error}")))?;
        let (active, pairs) = (saved.active_pairs, self.shared.pair_count());
        if !(1..=pairs).contains(&active) {
            let what = format!("network card: {active} queue pairs in use, of {pairs}");
            return Err(DeviceError::State(what));
        }
        self.guest.set_offloads(saved.offloads);
        self.shared.set_active(active).map_err(|source| DeviceError::Host {
            what: "set the tap's queues in use".to_owned(),
            source,
        })
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        let Shared { received, sent, .. } = &*self.shared;
        vec![
            ("rx_packets", received.packets.clone()),
            ("rx_bytes", received.bytes.clone()),
            ("rx_drops", received.drops.clone()),
            ("rx_throttled", received.throttled.clone()),
            ("tx_packets", sent.packets.clone()),
            ("tx_bytes", sent.bytes.clone()),
            ("tx_drops", sent.drops.clone()),
            ("tx_throttled", sent.throttled.clone()),
        ]
    }
}

/// Feature bits of a card.
fn features(options: &NetOptions, pairs: u16, has_uso: bool) -> u64 {
    let always = [
        wire::VIRTIO_NET_F_CSUM,
        wire::VIRTIO_NET_F_GUEST_CSUM,
        wire::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        wire::VIRTIO_NET_F_MAC,
        wire::VIRTIO_NET_F_GUEST_TSO4,
        wire::VIRTIO_NET_F_GUEST_TSO6,
        wire::VIRTIO_NET_F_GUEST_ECN,
        wire::VIRTIO_NET_F_HOST_TSO4,
        wire::VIRTIO_NET_F_HOST_TSO6,
        wire::VIRTIO_NET_F_HOST_ECN,
        wire::VIRTIO_NET_F_MRG_RXBUF,
        wire::VIRTIO_NET_F_STATUS,
        wire::VIRTIO_NET_F_CTRL_VQ,
        wire::VIRTIO_NET_F_CTRL_RX,
        wire::VIRTIO_NET_F_CTRL_RX_EXTRA,
        wire::VIRTIO_RING_F_INDIRECT_DESC,
        wire::VIRTIO_RING_F_EVENT_IDX,
    ];
    let at_times = [
        (options.mtu.is_some(), wire::VIRTIO_NET_F_MTU),
        (options.speed_mbps.is_some(), wire::VIRTIO_NET_F_SPEED_DUPLEX),
        (pairs > 1, wire::VIRTIO_NET_F_MQ),
        (has_uso, wire::VIRTIO_NET_F_GUEST_USO4),
        (has_uso, wire::VIRTIO_NET_F_GUEST_USO6),
        (has_uso, wire::VIRTIO_NET_F_HOST_USO),
    ];
    let chosen = at_times.into_iter().filter_map(|(is_on, bit)| is_on.then_some(bit));
    always.into_iter().chain(chosen).fold(0, |features, bit| features | 1 << bit)
}

fn check(options: &NetOptions, pairs: usize) -> Result<(), DeviceError> {
    let size = options.queue_size;
    let complaint = if !(1..=usize::from(PAIRS_MAX)).contains(&pairs) {
        format!("{pairs} queue pairs: 1 to {PAIRS_MAX} are possible")
    } else if !size.is_power_of_two() || size > 1024 {
        format!("queue size {size}: a power of two up to 1024 is needed")
    } else if options.mac[0] & 1 != 0 {
        format!("address {:02x?}: a card needs one that is not multicast", options.mac)
    } else if let Some(mtu) = options.mtu.filter(|mtu| *mtu < MTU_MIN) {
        format!("MTU {mtu}: at least {MTU_MIN} is needed")
    } else {
        return Ok(());
    };
    Err(DeviceError::State(format!("network card: {complaint}")))
}
