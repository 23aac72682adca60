//! Disks under `fio`: what was written is found, whatever the size, depth, engine and cache.

use lab::Lab;

use crate::guest::{Guest, value};
use crate::node::Node;

/// Data of all kinds written and verified, ranges given up and zeroed, on one disk after the other.
const VERIFY: &str = r#"
for disk in vda vdb; do
    d="--filename=/dev/$disk --verify=crc32c"
    check $d --name=deep --size=8m --direct=1 --ioengine=libaio --iodepth=32 --rw=randwrite --bs=4k
    check $d --name=sectors --size=1m --direct=1 --ioengine=psync --rw=randwrite --bs=512
    check $d --name=sizes --offset=8m --size=24m --direct=1 --ioengine=io_uring --iodepth=8 --rw=randwrite --bsrange=4k-256k
    check $d --name=large --offset=8m --size=32m --direct=1 --ioengine=libaio --iodepth=4 --rw=write --bs=1m
    check $d --name=buffered --offset=40m --size=16m --ioengine=psync --rw=write --bs=64k --fsync=32
    check $d --name=mixed --offset=40m --size=8m --ioengine=libaio --direct=1 --iodepth=16 --rw=randrw --bs=16k --fdatasync=16
    check $d --name=jobs --offset=40m --size=2m --offset_increment=2m --numjobs=4 --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=8k
    check $d --name=trims --size=4m --direct=1 --ioengine=libaio --iodepth=4 --rw=trimwrite --bs=64k
    blkdiscard -z -o 1048576 -l 2097152 /dev/$disk
    cmp -n 2097152 -i 1048576:0 /dev/$disk /dev/zero
    blkdiscard -o 4194304 -l 4194304 /dev/$disk
    check $d --name=again --offset=4m --size=4m --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k
    echo "$disk queues: $(ls -d /sys/block/$disk/mq/* | wc -l)"
    echo "$disk segments: $(cat /sys/block/$disk/queue/max_segments)"
done
"#;

fn with_raw_disk(name: &str) -> Node {
    Node::boot(name, |lab: &Lab, builder| builder.disk(&lab.disk("raw", 96).unwrap()))
}

/// A block device past the page cache, and a file in memory.
#[test]
fn fio_finds_what_it_wrote_with_one_queue_and_with_two() {
    let node = with_raw_disk("full-block");
    node.shell("dd if=/dev/zero of=/run/file.img bs=1M count=0 seek=96 2>/dev/null");
    for cpus in ["1", "2"] {
        let raw = format!("/dev/vdb,direct,queues={cpus}");
        let file = format!("/run/file.img,queues={cpus}");
        let guest = Guest { cpus, disks: &[&raw, &file], ..Guest::default() };
        let text = guest.run(&node, VERIFY);
        for disk in ["vda", "vdb"] {
            assert_eq!(value(&text, &format!("{disk} queues")), cpus);
            assert_eq!(value(&text, &format!("{disk} segments")), "254");
        }
    }
}

#[test]
fn limits_hold_and_a_read_only_disk_takes_nothing() {
    let node = with_raw_disk("full-limits");
    node.shell(
        "dd if=/dev/zero of=/run/a.img bs=1M count=32; dd if=/dev/zero of=/run/b.img bs=1M count=8",
    );
    let disks = [
        "/run/a.img,rate=4M/s,burst=1M",
        "/dev/vdb,rate=100ops/s,burst=20ops",
        "/run/b.img,readonly",
    ];
    let guest = Guest { disks: &disks, ..Guest::default() };
    let text = guest.run(
        &node,
        r#"
begin=$(now); dd if=/dev/vda of=/dev/null iflag=direct bs=256k count=48 2>/dev/null; echo "bytes: $(($(now) - begin))"
begin=$(now); dd if=/dev/vdb of=/dev/null iflag=direct bs=4k count=220 2>/dev/null; echo "requests: $(($(now) - begin))"
check --filename=/dev/vda --name=limited --size=2m --verify=crc32c --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=64k
echo "read-only: $(cat /sys/block/vdc/ro)"
! dd if=/dev/urandom of=/dev/vdc bs=4k count=1 conv=fsync 2>/dev/null
! blkdiscard /dev/vdc 2>/dev/null
cmp -n 8388608 /dev/vdc /dev/zero
"#,
    );
    // Hundredths of a second: 12 MiB of which 1 at once, 220 requests of which 20 at once.
    for (key, least) in [("bytes", 275), ("requests", 200)] {
        let taken: u64 = value(&text, key).parse().unwrap();
        assert!(taken >= least * 95 / 100, "{key}: {taken} of at least {least}");
    }
    assert_eq!(value(&text, "read-only"), "1");
}
