//! A virtual network: an Ethernet switch in this process.
//!
//! Each machine's network card is a stream on a unix socket, on which QEMU (`-netdev stream`)
//! writes a frame after its size as a big-endian `u32`. The switch hands every frame to every
//! other card, as a hub does: machines are few, and a test that listens wants to hear. Nothing
//! leaves this process, and no privilege is needed.
//!
//! A card whose machine doesn't read loses frames rather than hold up the others.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::error::LabError;
use crate::folder::Folder;

/// The largest frame, in bytes: QEMU's own buffer.
const FRAME_SIZE_MAX: usize = (4096 + 65536) & !15;
/// How many frames may wait for a card.
const QUEUE_COUNT_MAX: usize = 1024;

/// A virtual network. A clone is the same network; it ends with the last clone.
#[derive(Debug, Clone)]
pub struct Network {
    switch: Arc<Handle>,
}

impl Network {
    pub(crate) fn create(folder: &Folder, name: &str) -> Result<Self, LabError> {
        let path = folder.work().join(format!("net-{}", folder.next_serial()));
        let listener = UnixListener::bind(&path).map_err(LabError::io("listen on", &path))?;
        let shared = Arc::new(Switch::default());
        let seen = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("lab-net-{name}"))
            .spawn(move || accept(&listener, &seen))
            .map_err(LabError::io("start a thread for", &path))?;
        Ok(Self { switch: Arc::new(Handle { name: name.to_owned(), path, shared }) })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.switch.name
    }

    /// How many frames have come in from all cards together.
    #[must_use]
    pub fn frame_count(&self) -> u64 {
        self.switch.shared.frame_count.load(Ordering::Relaxed)
    }

    /// The socket that a card connects to.
    pub(crate) fn path(&self) -> &Path {
        &self.switch.path
    }
}

#[derive(Debug)]
struct Handle {
    name: String,
    path: PathBuf,
    shared: Arc<Switch>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then sees the flag.
        let _ = UnixStream::connect(&self.path);
        for port in self.shared.ports().values() {
            let _ = port.stream.shutdown(Shutdown::Both);
        }
    }
}

#[derive(Debug, Default)]
struct Switch {
    ports: Mutex<HashMap<u64, Port>>,
    frame_count: AtomicU64,
    is_closing: AtomicBool,
}

#[derive(Debug)]
struct Port {
    stream: UnixStream,
    queue: SyncSender<Arc<[u8]>>,
}

impl Switch {
    fn ports(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Port>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To all cards but the one it came from. The frame carries its size in front.
    fn forward(&self, from: u64, frame: &Arc<[u8]>) {
        self.frame_count.fetch_add(1, Ordering::Relaxed);
        for (_, port) in self.ports().iter().filter(|(index, _)| **index != from) {
            // Full or gone: the frame is lost, as on a real wire.
            let _ = port.queue.try_send(Arc::clone(frame));
        }
    }
}

fn accept(listener: &UnixListener, switch: &Arc<Switch>) {
    for (index, stream) in (0..).zip(listener.incoming()) {
        if switch.is_closing.load(Ordering::Relaxed) {
            return;
        }
        // A card that can't be served has no link, which its machine's test will notice.
        let _ = stream.and_then(|stream| attach(switch, index, stream));
    }
}

fn attach(switch: &Arc<Switch>, index: u64, stream: UnixStream) -> std::io::Result<()> {
    let (queue, frames) = sync_channel::<Arc<[u8]>>(QUEUE_COUNT_MAX);
    let mut writer = stream.try_clone()?;
    let reader = BufReader::new(stream.try_clone()?);
    thread::Builder::new().name(format!("lab-net-tx-{index}")).spawn(move || {
        for frame in frames {
            if writer.write_all(&frame).is_err() {
                return;
            }
        }
    })?;
    switch.ports().insert(index, Port { stream, queue });
    let switch = Arc::clone(switch);
    thread::Builder::new().name(format!("lab-net-rx-{index}")).spawn(move || {
        receive(&switch, index, reader);
        switch.ports().remove(&index);
    })?;
    Ok(())
}

/// Reads frames until the card is gone, or out of step.
fn receive(switch: &Switch, index: u64, mut reader: BufReader<UnixStream>) {
    let mut size = [0; 4];
    while reader.read_exact(&mut size).is_ok() {
        let frame_size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
        if frame_size > FRAME_SIZE_MAX {
            return;
        }
        let mut frame = size.to_vec();
        frame.resize(4 + frame_size, 0);
        if reader.read_exact(frame.split_at_mut(4).1).is_err() {
            return;
        }
        switch.forward(index, &frame.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn card(network: &Network) -> UnixStream {
        let stream = UnixStream::connect(network.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn frame(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
    }

    fn expect(stream: &mut UnixStream, body: &[u8]) {
        let mut found = vec![0; 4 + body.len()];
        stream.read_exact(&mut found).unwrap();
        assert_eq!(found, frame(body));
    }

    /// Sends until the others have heard: a card is attached a moment after it connected.
    fn wait_attached(network: &Network, count: usize) {
        while network.switch.shared.ports().len() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn each_frame_goes_to_all_other_cards() {
        let folder = Folder::create("unit-network").unwrap();
        let network = Network::create(&folder, "lan").unwrap();
        let mut cards: Vec<_> = (0..3).map(|_| card(&network)).collect();
        wait_attached(&network, 3);
        cards[0].write_all(&frame(b"one")).unwrap();
        expect(&mut cards[1], b"one");
        expect(&mut cards[2], b"one");
        cards[2].write_all(&frame(b"three")).unwrap();
        expect(&mut cards[0], b"three");
        expect(&mut cards[1], b"three");
        assert_eq!(network.frame_count(), 2);
    }

    #[test]
    fn a_card_out_of_step_is_cut_off_and_a_deaf_one_holds_up_nobody() {
        let folder = Folder::create("unit-network").unwrap();
        let network = Network::create(&folder, "lan").unwrap();
        let mut mad = card(&network);
        let _deaf = card(&network);
        let (mut sender, mut receiver) = (card(&network), card(&network));
        wait_attached(&network, 4);
        mad.write_all(&[0xff; 8]).unwrap();
        while network.switch.shared.ports().len() > 3 {
            thread::yield_now();
        }
        let reader = thread::spawn(move || {
            let mut last = vec![0; 4 + 4];
            while !last.ends_with(b"last") {
                receiver.read_exact(&mut last).unwrap();
            }
        });
        for _ in 0..3 * QUEUE_COUNT_MAX {
            sender.write_all(&frame(b"fill")).unwrap();
        }
        while !reader.is_finished() {
            sender.write_all(&frame(b"last")).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        reader.join().unwrap();
    }
}
