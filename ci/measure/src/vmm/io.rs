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

const RANDOM_K_MAX: f64 = 50.0;
const RANDOM_DEEP_K_MAX: f64 = 30.0;
const SEQUENTIAL_MIB_MIN: f64 = 500.0;
/// Goals are 1254 and 1208; these hold.
const SENT_MBIT_MIN: f64 = 1190.0;
const RECEIVED_MBIT_MIN: f64 = 1140.0;
const ROUND_TRIP_K_MAX: f64 = 108.0;

/// Both, beside QEMU's where the machine has it.
pub(super) fn rows(host: &Host, table: &mut Table) -> Result<()> {
    disk_rows(host, table)?;
    net_rows(host, table)
}

fn disk_rows(host: &Host, table: &mut Table) -> Result<()> {
    let words = format!(
        "{WORDS} lab.run=read-disk,/dev/vda,4096,1,{RANDOM_COUNT},random;\
         read-disk,/dev/vda,4096,16,{RANDOM_DEEP_COUNT},random;\
         read-disk,/dev/vda,{SEQUENTIAL_SIZE},4,{SEQUENTIAL_COUNT},sequential"
    );
    let make = "dd if=/dev/zero of=/tmp/disk.img bs=1M count=128 2>/dev/null";
    let disk = ["--serial", "stdio", "--disk", "/tmp/disk.img"];
    let ours = Disk::of(&host.script(make, &quoted(&ours(&words, &disk)), "")?)?;
    let drive = "id=d,file=/tmp/disk.img,format=raw,if=none,aio=io_uring";
    let device = ["-serial", "stdio", "-drive", drive, "-device", "virtio-blk-pci,drive=d"];
    let peer = || Disk::of(&host.script(make, &quoted(&qemu(&words, &device)), "")?);
    let peer = host.has_qemu.then(peer).transpose()?;
    let peer = |figure: fn(&Disk) -> f64| peer.as_ref().map(figure);
    let random = peer(|disk| disk.random_k);
    table.push(row(
        "disk: random read of 4 KiB, one at a time, thousand instructions",
        ours.random_k,
        random,
        Goal::AtMost(RANDOM_K_MAX),
    ));
    table.push(row(
        "disk: random read of 4 KiB, 16 at a time, thousand instructions",
        ours.random_deep_k,
        peer(|disk| disk.random_deep_k),
        Goal::AtMost(RANDOM_DEEP_K_MAX),
    ));
    table.push(row(
        "disk: sequential reads of 128 KiB, MiB in 10^9 instructions",
        ours.sequential_mib,
        peer(|disk| disk.sequential_mib),
        Goal::AtLeast(SEQUENTIAL_MIB_MIN),
    ));
    Ok(())
}

/// Figures of a disk.
struct Disk {
    random_k: f64,
    random_deep_k: f64,
    sequential_mib: f64,
}

impl Disk {
    fn of(run: &Run) -> Result<Self> {
        let instructions = |what: &str| run.instructions(what).map(|count| count as f64);
        let mib = ((SEQUENTIAL_COUNT * SEQUENTIAL_SIZE) >> 20) as f64;
        Ok(Self {
            random_k: instructions("read-disk 4096 1:")? / RANDOM_COUNT as f64 / 1e3,
            random_deep_k: instructions("read-disk 4096 16:")? / RANDOM_DEEP_COUNT as f64 / 1e3,
            sequential_mib: mib / instructions("read-disk 131072 4:")? * 1e9,
        })
    }
}

fn net_rows(host: &Host, table: &mut Table) -> Result<()> {
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
    let ours = Net::of(&host.script(before, &quoted(&ours(&words, &net)), after)?)?;
    let device = format!("virtio-net-pci,netdev=n,mac={MAC},romfile=");
    let netdev = "tap,id=n,ifname=tap0,script=no,downscript=no,vhost=off";
    let device = ["-serial", "stdio", "-netdev", netdev, "-device", device.as_str()];
    let peer = || Net::of(&host.script(before, &quoted(&qemu(&words, &device)), after)?);
    let peer = host.has_qemu.then(peer).transpose()?;
    let peer = |figure: fn(&Net) -> f64| peer.as_ref().map(figure);
    table.push(row(
        "network: TCP out, Mbit in 10^9 instructions (goal 1254)",
        ours.sent_mbit,
        peer(|net| net.sent_mbit),
        Goal::AtLeast(SENT_MBIT_MIN),
    ));
    table.push(row(
        "network: TCP in, Mbit in 10^9 instructions (goal 1208)",
        ours.received_mbit,
        peer(|net| net.received_mbit),
        Goal::AtLeast(RECEIVED_MBIT_MIN),
    ));
    table.push(row(
        "network: UDP round trip, thousand instructions",
        ours.round_trip_k,
        peer(|net| net.round_trip_k),
        Goal::AtMost(ROUND_TRIP_K_MAX),
    ));
    Ok(())
}

/// Figures of a network card.
struct Net {
    sent_mbit: f64,
    received_mbit: f64,
    round_trip_k: f64,
}

impl Net {
    fn of(run: &Run) -> Result<Self> {
        let instructions = |what: &str| run.instructions(what).map(|count| count as f64);
        let megabits = STREAM_BYTES as f64 * 8.0 / 1e6;
        Ok(Self {
            sent_mbit: megabits / instructions("send:")? * 1e9,
            received_mbit: megabits / instructions("receive:")? * 1e9,
            round_trip_k: instructions("round-trips:")? / 1e3,
        })
    }
}

/// A command as a shell takes it.
fn quoted(argv: &[&str]) -> String {
    let quoted: Vec<String> = argv.iter().map(|word| format!("'{word}'")).collect();
    quoted.join(" ")
}
