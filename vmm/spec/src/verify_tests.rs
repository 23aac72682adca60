//! Each rule, broken once.

use proptest::prelude::*;

use super::*;
use crate::spec::JailSpec;
use crate::strategies::{any_spec, sensible_spec};
use crate::{BalloonSpec, Flags, MacAddress, VsockSpec, WatchdogSpec};

fn bootable() -> VmSpec {
    VmSpec { kernel: Some("vmlinux".into()), ..VmSpec::default() }
}

fn disk(path: &str) -> DiskSpec {
    DiskSpec::parse("--disk[0]", path).unwrap()
}

fn net(tap: &str) -> NetSpec {
    NetSpec::parse("--net[0]", tap).unwrap()
}

/// What the description with this `change` breaks.
fn broken(change: impl FnOnce(&mut VmSpec)) -> String {
    let mut spec = bootable();
    change(&mut spec);
    spec.verify().expect_err("a broken rule").to_string()
}

#[test]
fn a_kernel_is_enough() {
    let verified = bootable().verify().unwrap();
    assert_eq!(verified.kernel, Path::new("vmlinux"));
    assert!(verified.cmdline.contains("cryptomgr.notests"));
    assert!(verified.jail.is_some());
    let error = VmSpec::default().verify().unwrap_err().to_string();
    assert!(error.starts_with("--kernel is missing: a VM boots a kernel"), "{error}");
    assert!(broken(|spec| spec.kernel = Some("a\0b".into())).contains("a NUL in it"));
    assert!(broken(|spec| spec.initramfs = Some("".into())).contains("it is empty"));
}

#[test]
fn names_are_given_where_there_are_none() {
    let mut spec = bootable();
    spec.disks = vec![disk("a"), disk("b,id=data"), disk("c")];
    spec.nets = vec![net("tap0"), net("fd=5:6,queues=2")];
    let verified = spec.verify().unwrap();
    let ids: Vec<&str> = verified.disks.iter().map(|disk| disk.id.as_str()).collect();
    assert_eq!(ids, ["disk0", "data", "disk2"]);
    assert_eq!(verified.nets[1].id, "net1");
    // They are written down: what is left keeps its name when the first disk is unplugged.
    let left = VmSpec { disks: verified.spec().disks[1..].to_vec(), ..verified.spec().clone() };
    assert_eq!(left.verify().unwrap().disks[1].id, "disk2");
    assert_eq!(verified.nets[1].backend, NetBackend::Descriptors(vec![5, 6]));
}

#[test]
fn processors_and_memory_have_bounds() {
    assert_eq!(
        broken(|spec| spec.cpus.count = 0),
        "--cpus count=\"0\": a VM has 1 to 255 processors"
    );
    assert!(broken(|spec| spec.cpus.count = 256).contains("1 to 255"));
    let tiny = VmSpec {
        memory: MemorySpec { size: Size::from_bytes(512), ..MemorySpec::default() },
        ..bootable()
    };
    let error = tiny.verify().unwrap_err();
    assert_eq!(error.to_string(), "--memory size=\"512\": a VM has at least 2M of memory");
    assert_eq!(error.hint().as_deref(), Some("did you mean `512M`?"));
    assert!(broken(|spec| spec.memory.size = Size::from_mib(1 << 30)).contains("at most 16T"));
    let odd = broken(|spec| spec.memory.size = Size::from_bytes((64 << 20) + 1));
    assert!(odd.ends_with("it is not made of whole pieces of 1M"), "{odd}");
    let odd = broken(|spec| {
        spec.memory.size = Size::from_mib(1025);
        spec.memory.hugepages = HugePages::Size1G;
    });
    assert_eq!(odd, "--memory size=\"1025M\": it is not made of whole huge pages of 1G");
}

#[test]
fn command_lines_fit_the_kernel() {
    assert!(
        broken(|spec| spec.cmdline = Some("x".repeat(2048)))
            .ends_with("2048 bytes, the limit is 2047")
    );
    assert!(broken(|spec| spec.cmdline = Some("a\nb".into())).contains("control character"));
    assert!(broken(|spec| spec.cmdline = Some("a\0b".into())).contains("control character"));
}

#[test]
fn disks_keep_their_rules() {
    let serial =
        broken(|spec| spec.disks = vec![disk("a"), disk("b,serial=123456789012345678901")]);
    assert_eq!(serial, "--disk[1] serial=\"123456789012345678901\": 21 bytes, the limit is 20");
    assert!(broken(|spec| spec.disks = vec![disk("a,serial=é")]).contains("printable ASCII"));
    assert!(broken(|spec| spec.disks = vec![disk("a,queues=0")]).contains("it is 1 to 16"));
    assert!(broken(|spec| spec.disks = vec![disk("a,queues=17")]).contains("it is 1 to 16"));
    assert!(broken(|spec| spec.disks = vec![disk("a,id=x/y")]).contains("an id has 1 to 32"));
    assert!(broken(|spec| spec.disks = vec![disk("a,id=..")]).contains("an id has 1 to 32"));
    assert!(
        broken(|spec| spec.disks = vec![disk("a,id=disk1"), disk("b")])
            .contains("unless it is given")
    );
    assert!(
        broken(|spec| spec.disks = vec![disk("a,id=x"), disk("b,id=x")]).contains("another device")
    );
    assert!(
        broken(|spec| spec.disks = vec![disk("a"), disk("a,readonly")]).contains("is written to")
    );
    assert!(
        broken(|spec| spec.disks = vec![disk("a,rate=0/s")]).contains("nothing would ever move")
    );
    assert!(
        broken(|spec| spec.disks = vec![disk("a,rate=1M/s,burst=5ops")])
            .contains("no rate of its kind")
    );
    let endless = broken(|spec| spec.disks = vec![disk("a,rate=2000T/s")]);
    assert!(endless.contains("that is no limit"), "{endless}");
    let mut shared = bootable();
    shared.disks = vec![disk("a,readonly"), disk("a,readonly,rate=10M/s+5ops/s,burst=20M")];
    let rate = shared.verify().unwrap().disks[1].rate;
    assert_eq!(rate.bytes, Some(Bucket { per_second: 10 << 20, burst: 20 << 20 }));
    assert_eq!(rate.operations, Some(Bucket { per_second: 5, burst: 5 }));
}

#[test]
fn network_cards_keep_their_rules() {
    let nets =
        |texts: &[&str]| broken(|spec| spec.nets = texts.iter().map(|text| net(text)).collect());
    assert!(nets(&["mtu=1500"]).contains("tap=… or fd=… is missing"));
    assert!(nets(&["tap=a,fd=5"]).contains("one is enough"));
    assert!(nets(&["sixteen-letters!"]).contains("16 bytes, the limit is 15"));
    assert!(nets(&["a/b"]).contains("can have this name"));
    assert!(nets(&["a", "a"]).contains("another card has it"));
    assert!(nets(&["fd=2"]).contains("standard input"));
    assert!(nets(&["fd=5", "fd=5"]).contains("given twice"));
    assert!(nets(&["fd=5:6"]).contains("2 descriptors for 1 queue pairs"));
    assert!(nets(&["a,mac=53:54:00:00:00:01"]).contains("first byte is even"));
    assert!(nets(&["a,mac=00:00:00:00:00:00"]).contains("is not zero"));
    assert!(nets(&["a,mtu=67"]).contains("at least 68"));
    assert!(!MacAddress([0x52, 0, 0, 0, 0, 1]).is_multicast());
}

#[test]
fn file_systems_keep_their_rules() {
    let fs = |texts: &[&str]| {
        broken(|spec| {
            spec.fs = texts.iter().map(|text| FsSpec::parse("--fs", text).unwrap()).collect();
        })
    };
    assert!(fs(&[&format!("tag={},dir=a", "x".repeat(37))]).contains("37 bytes, the limit is 36"));
    assert!(fs(&["tag=a,dir=a", "tag=a,dir=b"]).contains("another file system has it"));
    assert!(fs(&["tag=a,dir=a,quota=0"]).contains("nothing would fit"));
    let long = format!("tag=a,flist=i,cache=/{}", "x".repeat(107));
    assert!(fs(&[&long]).contains("108 bytes, the limit for a socket is 107"));
}

#[test]
fn single_devices_keep_their_rules() {
    let vsock = |cid, socket: &str| Some(VsockSpec { cid, socket: socket.into() });
    assert!(broken(|spec| spec.vsock = vsock(2, "/s")).contains("3 to 4294967294"));
    assert!(broken(|spec| spec.vsock = vsock(u32::MAX, "/s")).contains("3 to 4294967294"));
    let long = format!("/{}", "x".repeat(96));
    assert!(
        broken(|spec| spec.vsock = vsock(3, &long))
            .contains("97 bytes, the limit for a socket is 96")
    );
    let same = broken(|spec| {
        spec.vsock = vsock(3, "/s");
        spec.api_socket = Some("/s".into());
    });
    assert_eq!(same, "--api-socket \"/s\": another socket has it");
    let timeout = |timeout_s| Some(WatchdogSpec { timeout_s });
    assert!(broken(|spec| spec.watchdog = timeout(0)).contains("1 to 3600 seconds"));
    assert!(broken(|spec| spec.watchdog = timeout(30)).contains("--vsock is missing"));
    let balloon = BalloonSpec { target: Size::from_mib(256), ..BalloonSpec::default() };
    assert!(broken(|spec| spec.balloon = Some(balloon)).contains("the guest has 256M in all"));
    let stdio = broken(|spec| {
        spec.console = OutputSpec::Stdio;
        spec.serial = OutputSpec::Stdio;
    });
    assert!(stdio.contains("only one can have it"));
    assert!(broken(|spec| spec.console = OutputSpec::File { path: "".into() }).contains("empty"));
    assert!(broken(|spec| spec.version = 2).contains("version 2"));
}

#[test]
fn a_jail_is_not_roots() {
    let jail = |uid, gid, cgroup: &str| {
        broken(|spec| {
            let cgroup = Some(cgroup.into());
            spec.jail = JailSpec { uid, gid, cgroup, ..JailSpec::default() };
        })
    };
    assert_eq!(jail(Some(0), None, "/a"), "--jail uid=\"0\": a jail of root holds nobody");
    assert!(jail(Some(1), Some(u32::MAX), "/a").starts_with("--jail gid="));
    assert!(jail(Some(1), Some(1), "a").contains("not absolute"));
    let free = VmSpec { jail: JailSpec { enabled: false, ..JailSpec::default() }, ..bootable() };
    assert_eq!(free.verify().unwrap().jail, None);
}

#[test]
fn devices_fit_the_bus() {
    let disks = |count: usize| (0..count).map(|index| disk(&format!("d{index}"))).collect();
    let too_many = broken(|spec| spec.disks = disks(31));
    assert_eq!(too_many, "32 devices: the PCI bus has 31 slots for them");
    let full = VmSpec { disks: disks(30), ..bootable() };
    let error = disk("x").verify_beside(&full).unwrap_err().to_string();
    assert_eq!(error, "all 31 slots of the PCI bus are taken");
    full.verify().unwrap();
}

#[test]
fn plugged_devices_know_their_neighbours() {
    let running = VmSpec { disks: vec![disk("a"), disk("b,id=data")], ..bootable() };
    assert_eq!(disk("c").verify_beside(&running).unwrap().id, "disk1");
    assert_eq!(net("t").verify_beside(&running).unwrap().id, "net0");
    assert!(disk("c,id=data").verify_beside(&running).is_err());
    assert!(disk("a").verify_beside(&running).is_err());
}

proptest! {
    #[test]
    fn any_description_is_verified_or_refused(spec in any_spec()) {
        let _ = spec.verify();
    }

    /// Nothing but ids is added, and what was verified means the same when it is verified again.
    #[test]
    fn verification_keeps_the_description(spec in sensible_spec()) {
        let verified = spec.clone().verify().unwrap();
        let mut unnamed = verified.spec().clone();
        for (disk, given) in unnamed.disks.iter_mut().zip(&spec.disks) {
            disk.id.clone_from(&given.id);
        }
        for (net, given) in unnamed.nets.iter_mut().zip(&spec.nets) {
            net.id.clone_from(&given.id);
        }
        prop_assert_eq!(&unnamed, &spec);
        prop_assert_eq!(verified.spec().clone().verify(), Ok(verified));
    }

    /// The same description as JSON and as options of flags.
    #[test]
    fn flags_and_json_say_the_same(spec in any_spec()) {
        let json = spec.to_json().unwrap();
        prop_assert_eq!(&VmSpec::from_json(json.as_bytes()).unwrap(), &spec);
        let flags = Flags {
            disk: spec.disks.iter().map(DiskSpec::to_options).collect(),
            net: spec.nets.iter().map(NetSpec::to_options).collect(),
            fs: spec.fs.iter().map(FsSpec::to_options).collect(),
            vsock: spec.vsock.as_ref().map(VsockSpec::to_options),
            balloon: spec.balloon.as_ref().map(BalloonSpec::to_options),
            console: Some(spec.console.to_options()),
            serial: Some(spec.serial.to_options()),
            ..Flags::default()
        };
        let bare = VmSpec {
            disks: Vec::new(),
            nets: Vec::new(),
            fs: Vec::new(),
            vsock: None,
            balloon: None,
            console: OutputSpec::Off,
            serial: OutputSpec::Off,
            ..spec.clone()
        };
        prop_assert_eq!(flags.apply(bare).unwrap(), spec);
    }
}
