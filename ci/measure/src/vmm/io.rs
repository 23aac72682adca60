//! Disk and network: what a request costs, and how much data a billion instructions move.

use anyhow::Result;

use super::host::{Host, Run, ours, qemu};
use super::row;
use crate::table::{Goal, Table};

const WORDS: &str = "quiet reboot=k panic=1 pci=noearly cryptomgr.notests console=ttyS0";
const MAC: &str = "02:01:a0:00:00:09";
/// Requests of each kind: enough that the first ones do not show.
const RANDOM_COUNT: u64 = 2000;
const RANDOM_DEEP_COUNT: u64 = 4000;
const SEQUENTIAL_COUNT: u64 = 800;
const SEQUENTIAL_SIZE: u64 = 128 << 10;
const STREAM_BYTES: u64 = 64 << 20;
const STREAM_MBIT: f64 = STREAM_BYTES as f64 * 8.0 / 1e6;

const RANDOM_K_MAX: f64 = 50.0;
const RANDOM_DEEP_K_MAX: f64 = 30.0;
const SEQUENTIAL_MIB_MIN: f64 = 500.0;
/// Goals are 1254 and 1208; these hold.
const SENT_MBIT_MIN: f64 = 1190.0;
const RECEIVED_MBIT_MIN: f64 = 1140.0;
const ROUND_TRIP_K_MAX: f64 = 108.0;

/// Both, beside QEMU's where the machine has it.
pub(super) fn rows(host: &Host, table: &mut Table) -> Result<()> {
    disk(host)?.push_to(table)?;
    net(host)?.push_to(table)
}

/// What guests did with a device of ours, and with QEMU's, and what is made of that.
struct Compared {
    figures: &'static [Figure],
    ours: Run,
    peer: Option<Run>,
}

/// A row: what one figure is called, how a run says it, and what it should be.
struct Figure {
    what: &'static str,
    of: fn(&Run) -> Result<f64>,
    goal: Goal,
}

impl Compared {
    fn push_to(&self, table: &mut Table) -> Result<()> {
        for Figure { what, of, goal } in self.figures {
            let peer = self.peer.as_ref().map(of).transpose()?;
            table.push(row(what, of(&self.ours)?, peer, *goal));
        }
        Ok(())
    }
}

const DISK_FIGURES: &[Figure] = &[
    Figure {
        what: "disk: random read of 4 KiB, one at a time, thousand instructions",
        of: |run| thousands_each(run, "read-disk 4096 1:", RANDOM_COUNT),
        goal: Goal::AtMost(RANDOM_K_MAX),
    },
    Figure {
        what: "disk: random read of 4 KiB, 16 at a time, thousand instructions",
        of: |run| thousands_each(run, "read-disk 4096 16:", RANDOM_DEEP_COUNT),
        goal: Goal::AtMost(RANDOM_DEEP_K_MAX),
    },
    Figure {
        what: "disk: sequential reads of 128 KiB, MiB in 10^9 instructions",
        of: |run| {
            let mib = (SEQUENTIAL_COUNT * SEQUENTIAL_SIZE) >> 20;
            in_a_billion(run, "read-disk 131072 4:", mib as f64)
        },
        goal: Goal::AtLeast(SEQUENTIAL_MIB_MIN),
    },
];

fn disk(host: &Host) -> Result<Compared> {
    let words = format!(
        "{WORDS} lab.run=read-disk,/dev/vda,4096,1,{RANDOM_COUNT},random;\
         read-disk,/dev/vda,4096,16,{RANDOM_DEEP_COUNT},random;\
         read-disk,/dev/vda,{SEQUENTIAL_SIZE},4,{SEQUENTIAL_COUNT},sequential"
    );
    let make = "dd if=/dev/zero of=/tmp/disk.img bs=1M count=128 2>/dev/null";
    let disk = ["--serial", "stdio", "--disk", "/tmp/disk.img"];
    let ours = host.script(make, &quoted(&ours(&words, &disk)), "")?;
    let drive = "id=d,file=/tmp/disk.img,format=raw,if=none,aio=io_uring";
    let device = ["-serial", "stdio", "-drive", drive, "-device", "virtio-blk-pci,drive=d"];
    let peer = || host.script(make, &quoted(&qemu(&words, &device)), "");
    let peer = host.has_qemu.then(peer).transpose()?;
    Ok(Compared { figures: DISK_FIGURES, ours, peer })
}

const NET_FIGURES: &[Figure] = &[
    Figure {
        what: "network: TCP out, Mbit in 10^9 instructions (goal 1254)",
        of: |run| in_a_billion(run, "send:", STREAM_MBIT),
        goal: Goal::AtLeast(SENT_MBIT_MIN),
    },
    Figure {
        what: "network: TCP in, Mbit in 10^9 instructions (goal 1208)",
        of: |run| in_a_billion(run, "receive:", STREAM_MBIT),
        goal: Goal::AtLeast(RECEIVED_MBIT_MIN),
    },
    Figure {
        what: "network: UDP round trip, thousand instructions",
        // The guest says what one took.
        of: |run| thousands_each(run, "round-trips:", 1),
        goal: Goal::AtMost(ROUND_TRIP_K_MAX),
    },
];

fn net(host: &Host) -> Result<Compared> {
    let words = format!(
        "{WORDS} lab.run=address,{MAC},10.9.0.2/24;send,10.9.0.1:7,{STREAM_BYTES},unchecked;\
         receive,10.9.0.1:7,{STREAM_BYTES},unchecked;round-trips,10.9.0.1:8,300,4"
    );
    let before = "ip tuntap add tap0 mode tap vnet_hdr && ip address add 10.9.0.1/24 dev tap0 && \
                  ip link set tap0 up\n\
                  /init serve-streams 10.9.0.1:7 & streams=$!\n\
                  /init listen udp 10.9.0.1:8 & echo=$!";
    let after = "kill $streams $echo; ip link delete tap0";
    let card = format!("tap=tap0,mac={MAC}");
    let net = ["--serial", "stdio", "--net", card.as_str()];
    let ours = host.script(before, &quoted(&ours(&words, &net)), after)?;
    let device = format!("virtio-net-pci,netdev=n,mac={MAC},romfile=");
    let netdev = "tap,id=n,ifname=tap0,script=no,downscript=no,vhost=off";
    let device = ["-serial", "stdio", "-netdev", netdev, "-device", device.as_str()];
    let peer = || host.script(before, &quoted(&qemu(&words, &device)), after);
    let peer = host.has_qemu.then(peer).transpose()?;
    Ok(Compared { figures: NET_FIGURES, ours, peer })
}

/// Thousands of instructions that each of `count` requests took.
fn thousands_each(run: &Run, what: &str, count: u64) -> Result<f64> {
    Ok(run.instructions(what)? as f64 / count as f64 / 1e3)
}

/// How much of `amount` a billion instructions moved.
fn in_a_billion(run: &Run, what: &str, amount: f64) -> Result<f64> {
    Ok(amount / run.instructions(what)? as f64 * 1e9)
}

/// A command as a shell takes it.
fn quoted(argv: &[&str]) -> String {
    let quoted: Vec<String> = argv.iter().map(|word| format!("'{word}'")).collect();
    quoted.join(" ")
}
