//! Descriptions of all kinds, for property tests: every field takes every shape, sense or not.

use std::path::PathBuf;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::*;

/// A description that can be written as JSON and as flags.
pub(crate) fn any_spec() -> impl Strategy<Value = VmSpec> {
    (boot(), devices(), rest()).prop_map(|(boot, devices, rest)| VmSpec {
        kernel: boot.kernel,
        initramfs: boot.initramfs,
        cmdline: boot.cmdline,
        cpus: boot.cpus,
        memory: boot.memory,
        disks: devices.disks,
        nets: devices.nets,
        fs: devices.fs,
        vsock: devices.vsock,
        rng: devices.rng,
        balloon: devices.balloon,
        ..rest
    })
}

/// A description that keeps every rule: any one, with what breaks them mended.
pub(crate) fn sensible_spec() -> impl Strategy<Value = VmSpec> {
    any_spec().prop_map(|mut spec| {
        spec.kernel.get_or_insert_with(|| "/vmlinux".into());
        spec.cmdline = spec.cmdline.map(|text| text.replace(char::is_control, " "));
        spec.cpus.count = spec.cpus.count.clamp(1, CPU_COUNT_MAX);
        spec.memory.size = Size::from_mib(1024 + (spec.memory.size.bytes() % 1024) * 1024);
        spec.disks.iter_mut().enumerate().for_each(|(index, disk)| mend_disk(index, disk));
        spec.nets.iter_mut().enumerate().for_each(|(index, net)| mend_net(index, net));
        spec.fs.iter_mut().enumerate().for_each(|(index, fs)| mend_fs(index, fs));
        if let Some(vsock) = &mut spec.vsock {
            *vsock = VsockSpec { cid: vsock.cid + VSOCK_CID_MIN, socket: "/run/vsock".into() };
        }
        if let Some(balloon) = &mut spec.balloon {
            balloon.target = Size::from_bytes(balloon.target.bytes() % spec.memory.size.bytes());
        }
        spec.watchdog = spec.vsock.as_ref().and(spec.watchdog);
        if let Some(watchdog) = &mut spec.watchdog {
            watchdog.timeout_s = watchdog.timeout_s.clamp(1, WATCHDOG_TIMEOUT_MAX_S);
        }
        if spec.console == OutputSpec::Stdio {
            spec.serial = OutputSpec::Off;
        }
        spec.api_socket = spec.api_socket.map(|_| "/run/api".into());
        (spec.jail.uid, spec.jail.gid) =
            (spec.jail.uid.map(|u| u + 1), spec.jail.gid.map(|g| g + 1));
        spec.jail.cgroup = spec.jail.cgroup.map(|path| PathBuf::from("/cg").join(path));
        spec
    })
}

fn mend_disk(index: usize, disk: &mut DiskSpec) {
    disk.id = disk.id.take().map(|_| format!("my-disk{index}"));
    disk.path = format!("/disk{index}").into();
    disk.serial = disk.serial.take().map(|text| text.replace(|c: char| !c.is_ascii_graphic(), "x"));
    mend_rate(&mut disk.rate);
    disk.queues = disk.queues.clamp(1, QUEUE_COUNT_MAX);
}

fn mend_net(index: usize, net: &mut NetSpec) {
    net.id = net.id.take().map(|_| format!("my-net{index}"));
    net.queues = net.queues.clamp(1, QUEUE_COUNT_MAX);
    net.tap = net.tap.take().map(|_| format!("tap{index}"));
    // Descriptors of its own, from 3 on, unless it has a name.
    let first = 3 + 100 * i32::try_from(index).unwrap();
    let fds = first..first + i32::from(net.queues);
    net.fds = if net.tap.is_some() { Vec::new() } else { fds.collect() };
    net.mac = net.mac.map(|MacAddress([first, rest @ .., last])| {
        let [a, b, c, d] = rest;
        MacAddress([first & !1, a, b, c, d, last | 1])
    });
    net.mtu = net.mtu.map(|mtu| mtu.max(MTU_MIN));
    mend_rate(&mut net.rate);
}

fn mend_fs(index: usize, fs: &mut FsSpec) {
    fs.tag = format!("tag{index}");
    let is_read_only = matches!(&fs.source, FsSource::Flist { upper: None, .. });
    let (FsSource::Flist { quota, .. } | FsSource::Dir { quota, .. }) = &mut fs.source;
    *quota = quota.filter(|quota| quota.bytes() != 0 && !is_read_only);
}

fn mend_rate(rate: &mut Option<RateSpec>) {
    let Some(rate) = rate else { return };
    let number = |number: u64| number.clamp(1, RATE_MAX);
    let size = |size: Size| Size::from_bytes(number(size.bytes()));
    rate.bytes_per_s = rate.bytes_per_s.map(size);
    rate.ops_per_s = rate.ops_per_s.map(number);
    rate.burst_bytes = rate.bytes_per_s.and(rate.burst_bytes).map(size);
    rate.burst_ops = rate.ops_per_s.and(rate.burst_ops).map(number);
}

fn boot() -> impl Strategy<Value = VmSpec> {
    let cpus =
        (0..300u16, any_template()).prop_map(|(count, template)| CpuSpec { count, template });
    (option::of(path()), option::of(path()), option::of(text()), cpus, memory()).prop_map(
        |(kernel, initramfs, cmdline, cpus, memory)| VmSpec {
            kernel,
            initramfs,
            cmdline,
            cpus,
            memory,
            ..VmSpec::default()
        },
    )
}

fn devices() -> impl Strategy<Value = VmSpec> {
    let vsock = (0..9u32, path()).prop_map(|(cid, socket)| VsockSpec { cid, socket });
    let balloon = (size(), any::<bool>(), any::<bool>()).prop_map(
        |(target, deflate_on_oom, free_page_reporting)| BalloonSpec {
            target,
            deflate_on_oom,
            free_page_reporting,
        },
    );
    let lists = (vec(disk(), 0..4), vec(net(), 0..4), vec(fs(), 0..3));
    (lists, option::of(vsock), any::<bool>(), option::of(balloon)).prop_map(
        |((disks, nets, fs), vsock, rng, balloon)| VmSpec {
            disks,
            nets,
            fs,
            vsock,
            rng,
            balloon,
            ..VmSpec::default()
        },
    )
}

fn rest() -> impl Strategy<Value = VmSpec> {
    let watchdog = option::of((0..4000u32).prop_map(|timeout_s| WatchdogSpec { timeout_s }));
    let on_reset = prop_oneof![Just(OnReset::Reboot), Just(OnReset::Exit)];
    let jail = (any::<bool>(), option::of(0..9u32), option::of(0..9u32), option::of(path()))
        .prop_map(|(enabled, uid, gid, cgroup)| JailSpec {
            enabled,
            uid,
            gid,
            cgroup,
            ..JailSpec::default()
        });
    (output(), output(), any::<bool>(), watchdog, on_reset, option::of(path()), jail).prop_map(
        |(console, serial, pvpanic, watchdog, on_reset, api_socket, jail)| VmSpec {
            console,
            serial,
            pvpanic,
            watchdog,
            on_reset,
            api_socket,
            jail,
            ..VmSpec::default()
        },
    )
}

fn memory() -> impl Strategy<Value = MemorySpec> {
    let hugepages =
        prop_oneof![Just(HugePages::Off), Just(HugePages::Size2M), Just(HugePages::Size1G)];
    (size(), hugepages, any::<bool>(), any::<bool>())
        .prop_map(|(size, hugepages, shared, thp)| MemorySpec { size, hugepages, shared, thp })
}

fn any_template() -> impl Strategy<Value = CpuTemplate> {
    use CpuTemplate::*;
    prop_oneof![Just(Host), Just(BaselineV2), Just(BaselineV3)]
}

fn disk() -> impl Strategy<Value = DiskSpec> {
    let identity = (option::of(text()), path(), option::of(text()));
    (identity, any::<bool>(), option::of(rate()), any::<bool>(), 0..20u16).prop_map(
        |((id, path, serial), readonly, rate, direct, queues)| DiskSpec {
            id,
            path,
            readonly,
            serial,
            rate,
            direct,
            queues,
        },
    )
}

fn net() -> impl Strategy<Value = NetSpec> {
    let identity = (option::of(text()), option::of(text()), vec(-1..20i32, 0..3));
    let mac = option::of(any::<[u8; 6]>().prop_map(MacAddress));
    // A card without any option can't be written as options; it is refused anyway.
    let not_bare = |net: &NetSpec| !net.to_options().is_empty();
    (identity, mac, 0..20u16, option::of(any::<u16>()), option::of(rate()))
        .prop_map(|((id, tap, fds), mac, queues, mtu, rate)| NetSpec {
            id,
            tap,
            fds,
            mac,
            queues,
            mtu,
            rate,
        })
        .prop_filter("a bare card", not_bare)
}

fn fs() -> impl Strategy<Value = FsSpec> {
    let flist = (path(), path(), option::of((path(), option::of(size())))).prop_map(
        |(image, cache, upper)| {
            let (upper, quota) = upper.unzip();
            FsSource::Flist { image, cache, upper, quota: quota.flatten() }
        },
    );
    let dir = (path(), any::<bool>(), option::of(size()))
        .prop_map(|(path, readonly, quota)| FsSource::Dir { path, readonly, quota });
    (text(), prop_oneof![flist, dir]).prop_map(|(tag, source)| FsSpec { tag, source })
}

fn output() -> impl Strategy<Value = OutputSpec> {
    prop_oneof![
        Just(OutputSpec::Off),
        Just(OutputSpec::Stdio),
        Just(OutputSpec::Pty),
        path().prop_map(|path| OutputSpec::File { path }),
    ]
}

/// At least one limit: none can't be written as options.
fn rate() -> impl Strategy<Value = RateSpec> {
    let limits = || (option::of(size()), option::of(any::<u64>()));
    (limits(), limits()).prop_filter_map("no limit", |((bytes, ops), (burst_bytes, burst_ops))| {
        let rate = RateSpec { bytes_per_s: bytes, ops_per_s: ops, burst_bytes, burst_ops };
        (bytes.is_some() || ops.is_some()).then_some(rate)
    })
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![any::<u64>(), (0..4096u64).prop_map(|mib| mib << 20)].prop_map(Size::from_bytes)
}

fn path() -> impl Strategy<Value = PathBuf> {
    text().prop_map(PathBuf::from)
}

/// With what gives parsers trouble: commas, equals signs, quotes, other alphabets. Without NUL, which
/// no path can have.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/=,.\"\\\\ é]{1,12}", "[^\\x00]{1,8}", Just("off".to_owned())]
}
