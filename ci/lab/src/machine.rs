//! A machine that runs: talked to, and made to suffer.
//!
//! ```text
//!   MachineBuilder ──boot──► Machine ──power_cut, shutdown, drop──► off
//!                               │  ▲
//!                               └──┘ reset, reboot
//! ```

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lab_agent::wire::{DATA_SIZE_MAX, Power, Reply, Request};
use serde_json::{Value, json};

use crate::builder::HOST_NETWORK_ADDRESS;
use crate::command::{Command, Output};
use crate::disk::Disk;
use crate::error::LabError;
use crate::process::{Process, QEMU_TIMEOUT};
use crate::qemu::{self, Cable, Card, HOT_SLOT_COUNT};

/// How many ports of this host are tried: another program may take one before QEMU does.
const FORWARD_TRY_COUNT: u32 = 5;

/// A running machine. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    pub(crate) process: Arc<Process>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.process.kill();
    }
}

impl Machine {
    /// Runs a command and waits for its end, at most 60 s.
    ///
    /// # Errors
    ///
    /// As [`crate::Running::wait`]. That the command fails or times out is no error here; see
    /// [`Output::success`].
    pub fn run(&self, argv: &[&str]) -> Result<Output, LabError> {
        self.command(argv).run()
    }

    /// A command with more to say about it.
    pub fn command(&self, argv: &[&str]) -> Command<'_> {
        Command::new(&self.process, argv)
    }

    /// Writes a file; `mode` is for one that isn't there yet.
    ///
    /// # Errors
    ///
    /// [`LabError::Refused`] when it can't be written, and when the machine fails.
    pub fn push(&self, path: &str, mode: u32, data: &[u8]) -> Result<(), LabError> {
        let mut pieces = data.chunks(DATA_SIZE_MAX).peekable();
        let mut piece = pieces.next().unwrap_or_default();
        let mut append = false;
        loop {
            let sync = pieces.peek().is_none();
            let (path, data) = (path.to_owned(), piece.to_vec());
            let request = Request::WriteFile { append, sync, mode, path: path.clone(), data };
            match self.process.ask(&request, &format!("write {path}"))?.end {
                Some(Reply::Done) => {}
                end => return Err(self.process.refused(&format!("write {path}"), end)),
            }
            let Some(next) = pieces.next() else { return Ok(()) };
            (piece, append) = (next, true);
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`LabError::Refused`] when it can't be read, and when the machine fails.
    pub fn pull(&self, path: &str) -> Result<Vec<u8>, LabError> {
        let mut whole = Vec::new();
        let size = u32::try_from(DATA_SIZE_MAX).unwrap_or(u32::MAX);
        loop {
            let offset = whole.len() as u64;
            let request = Request::ReadFile { offset, size, path: path.to_owned() };
            match self.process.ask(&request, &format!("read {path}"))?.end {
                Some(Reply::Data(piece)) if piece.is_empty() => return Ok(whole),
                Some(Reply::Data(piece)) => whole.extend(piece),
                end => return Err(self.process.refused(&format!("read {path}"), end)),
            }
        }
    }

    /// The CPU's time stamp counter: executed instructions, if the machine counts them.
    ///
    /// # Errors
    ///
    /// When the machine fails.
    pub fn tsc(&self) -> Result<u64, LabError> {
        let end = self.process.ask(&Request::TimeStamp, "time stamp")?.end;
        match &end {
            Some(Reply::Data(bytes)) if bytes.len() == 8 => {
                let bytes = bytes.first_chunk().copied().unwrap_or_default();
                Ok(u64::from_le_bytes(bytes))
            }
            _ => Err(self.process.refused("time stamp", end)),
        }
    }

    /// The time stamp counter when the agent began: what the firmware and kernel took.
    #[must_use]
    pub fn boot_tsc(&self) -> u64 {
        self.process.boot_tsc.load(Ordering::Relaxed)
    }

    /// Gives a network card one more address, like `10.0.0.1/24` or `fd00::1/64`.
    ///
    /// # Errors
    ///
    /// [`LabError::Description`] for a card that isn't there, [`LabError::Command`] when the
    /// machine's kernel refuses the address.
    pub fn add_address(&self, card_index: usize, address: &str) -> Result<(), LabError> {
        let Some(card) = self.process.cards.get(card_index) else {
            return Err(LabError::Description {
                machine: self.process.name.clone(),
                reason: format!("no network card {card_index}"),
            });
        };
        self.run(&["/init", "address", &card.mac, address])?.success().map(drop)
    }

    /// Leads a TCP port of this host's 127.0.0.1 to `port` of the machine, which needs
    /// [`crate::MachineBuilder::host_network`]; returns the address to connect to.
    ///
    /// # Errors
    ///
    /// [`LabError::Description`] without such a card, [`LabError::Qmp`] when QEMU refuses.
    pub fn forward_tcp(&self, port: u16) -> Result<SocketAddr, LabError> {
        let is_host = |card: &&Card| matches!(card.cable, Cable::Host);
        let Some(card) = self.process.cards.iter().find(is_host) else {
            return Err(LabError::Description {
                machine: self.process.name.clone(),
                reason: "no network card leads to this host".to_owned(),
            });
        };
        let mut refusal = String::new();
        for _ in 0..FORWARD_TRY_COUNT {
            let address = free_address()?;
            let line =
                format!("hostfwd_add {}-net tcp:{address}-{HOST_NETWORK_ADDRESS}:{port}", card.id);
            let answer = self.qmp("human-monitor-command", &json!({ "command-line": line }))?;
            match answer.as_str().unwrap_or_default().trim() {
                "" => return Ok(address),
                text => text.clone_into(&mut refusal),
            }
        }
        let command = "hostfwd_add".to_owned();
        Err(LabError::Qmp { machine: self.process.name.clone(), command, reason: refusal })
    }

    /// Plugs a network card's cable in or out.
    ///
    /// # Errors
    ///
    /// [`LabError::Qmp`] for a card that isn't there, and when the machine is off.
    pub fn set_link(&self, card_index: usize, is_up: bool) -> Result<(), LabError> {
        let arguments = json!({ "name": format!("nic{card_index}"), "up": is_up });
        self.qmp("set_link", &arguments).map(drop)
    }

    /// Plugs a disk in, while the machine runs; returns the name to unplug it by.
    ///
    /// # Errors
    ///
    /// [`LabError::Description`] when all slots have been used, [`LabError::Qmp`] when QEMU
    /// refuses.
    pub fn add_disk(&self, disk: &Disk) -> Result<String, LabError> {
        let slot = self.process.hot_slots.fetch_add(1, Ordering::Relaxed);
        if slot >= HOT_SLOT_COUNT {
            return Err(LabError::Description {
                machine: self.process.name.clone(),
                reason: format!("all {HOT_SLOT_COUNT} slots for more disks have been used"),
            });
        }
        disk.prepare()?;
        let (node, id) = (format!("hb{slot}"), format!("hotdisk{slot}"));
        for block_node in disk.block_nodes(&node) {
            self.qmp("blockdev-add", &block_node)?;
        }
        self.qmp("device_add", &disk.device(&node, &id, &qemu::hot_slot(slot)))?;
        Ok(id)
    }

    /// Unplugs a disk that was plugged in, and waits until the machine has let it go.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] when it doesn't let go, [`LabError::Qmp`] when QEMU refuses.
    pub fn remove_disk(&self, id: &str) -> Result<(), LabError> {
        let cursor = self.process.qmp.cursor();
        self.qmp("device_del", &json!({ "id": id }))?;
        let is_gone = |event: &Value| {
            event.get("event").is_some_and(|name| name == "DEVICE_DELETED")
                && event.pointer("/data/device").is_some_and(|device| device == id)
        };
        let gone = self.process.qmp.wait_event(cursor, QEMU_TIMEOUT, is_gone);
        gone.map(drop).map_err(|error| self.process.qmp_error(error, "device_del"))
    }

    /// Any command of QEMU's control protocol.
    ///
    /// # Errors
    ///
    /// [`LabError::Qmp`] when QEMU refuses, [`LabError::Off`] when it has ended.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value, LabError> {
        let answer = self.process.qmp.execute(command, arguments);
        answer.map_err(|error| self.process.qmp_error(error, command))
    }

    /// Pulls the plug: the machine is off at once, and what it had not flushed is for its disks
    /// to show.
    pub fn power_cut(&self) {
        self.process.kill();
    }

    /// Presses the reset button, and waits for the agent. Needs
    /// [`crate::MachineBuilder::may_reboot`].
    ///
    /// # Errors
    ///
    /// As [`crate::MachineBuilder::boot`].
    pub fn reset(&self, timeout: Duration) -> Result<(), LabError> {
        self.qmp("system_reset", &json!({}))?;
        self.process.link()?.reset();
        self.wait_ready(timeout)
    }

    /// Waits for the agent, after a reboot that the machine began itself, and gives the network
    /// cards their addresses.
    ///
    /// # Errors
    ///
    /// As [`crate::MachineBuilder::boot`].
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), LabError> {
        let ready = self.process.link()?.wait_ready(self.process.patience(timeout));
        let tsc = ready.map_err(|error| self.process.link_error(error, "answer from the agent"))?;
        self.process.boot_tsc.store(tsc, Ordering::Relaxed);
        for (index, card) in self.process.cards.iter().enumerate() {
            if let Some(address) = &card.address {
                self.add_address(index, address)?;
            }
        }
        Ok(())
    }

    /// Has the machine switch itself off, after its kernel has flushed its disks.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] when it doesn't.
    pub fn shutdown(&self) -> Result<(), LabError> {
        self.power(Power::Off)?;
        self.wait_off(QEMU_TIMEOUT)
    }

    /// Has the machine's kernel panic; it then reboots, or ends if it may not.
    ///
    /// # Errors
    ///
    /// [`LabError::Off`] when it is off already.
    pub fn panic(&self) -> Result<(), LabError> {
        self.power(Power::Panic)
    }

    /// Has the machine reboot in good order. [`Self::wait_ready`] waits for its return.
    ///
    /// # Errors
    ///
    /// [`LabError::Off`] when it is off already.
    pub fn reboot(&self) -> Result<(), LabError> {
        let cursor = self.process.qmp.cursor();
        self.power(Power::Reboot)?;
        let is_reset = |event: &Value| event.get("event").is_some_and(|name| name == "RESET");
        let reset = self.process.qmp.wait_event(cursor, QEMU_TIMEOUT, is_reset);
        reset.map(drop).map_err(|error| self.process.qmp_error(error, "reboot"))
    }

    /// Waits until the machine is off.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] when it isn't in time.
    pub fn wait_off(&self, timeout: Duration) -> Result<(), LabError> {
        if self.process.qmp.wait_closed(self.process.patience(timeout)) {
            self.process.let_end();
            return Ok(());
        }
        Err(self.process.timed_out("power-off", timeout))
    }

    /// Waits until the console has shown a text.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] when it hasn't in time.
    pub fn wait_console(&self, needle: &str, timeout: Duration) -> Result<(), LabError> {
        let patience = self.process.patience(timeout);
        if self.process.console.wait_for(needle, patience) {
            return Ok(());
        }
        Err(self.process.timed_out(&format!("{needle:?} on the console"), timeout))
    }

    /// What the console has shown.
    #[must_use]
    pub fn console(&self) -> String {
        self.process.console.text()
    }

    /// QEMU's process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.child().id()
    }

    fn power(&self, power: Power) -> Result<(), LabError> {
        let sent = self.process.link()?.begin(&Request::Power(power), 0);
        sent.map(drop).map_err(|error| self.process.link_error(error, "power"))
    }
}

/// An address of this host that nobody listens on at this moment.
fn free_address() -> Result<SocketAddr, LabError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map_err(LabError::io("find a free port of", Path::new("127.0.0.1")))
}
