//! Kinds of machines: CPUs, their features, memory, and ways into the kernel.

use std::path::Path;

use boot_image::{Cache, Flavour, KernelPackage};

use crate::guest::{Guest, value};
use crate::guest_files::built;
use crate::node::Node;

/// What `cksum` says of three million zeros.
const ZEROS_SUM: &str = "3933251326 3000000";

/// Says what the guest sees, and has it work a little, by vector instructions too.
const LOOK: &str = r#"
echo "cpus: $(nproc)"
while read key sep rest; do case $key in flags) echo "flags: $rest "; break;; esac; done < /proc/cpuinfo
works=; for key in 1 2 3 4; do head -c 3000000 /dev/zero | cksum > /tmp/sum.$key & works="$works $!"; done
for work in $works; do wait $work; done
for key in 1 2 3 4; do echo "sum $key: $(cat /tmp/sum.$key)"; done
check --filename=/dev/vda --name=work --size=2m --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=16k --verify=crc32c
dd if=/dev/zero of=/dev/shm/fill bs=1M count=64 2>/dev/null
"#;

fn node(name: &str) -> Node {
    let kernel = KernelPackage::fetch(Flavour::Cloud, &Cache::from_env().unwrap()).unwrap();
    let pvh = only_pvh(&built().vmlinux);
    let node = Node::boot(name, |_, builder| {
        builder.host_file("/vmlinuz", 0o644, &kernel.vmlinuz()).file("/vmlinux.pvh", 0o644, pvh)
    });
    node.shell("dd if=/dev/zero of=/run/a.img bs=1M count=4");
    node
}

fn look(node: &Node, guest: &Guest<'_>) -> String {
    let disk = format!("/run/a.img,queues={}", guest.cpus.split(',').next().unwrap());
    let text = Guest { disks: &[&disk], ..*guest }.run(node, LOOK);
    let cpus = guest.cpus.split(',').next().unwrap();
    assert_eq!(value(&text, "cpus"), cpus);
    for key in 1..=4 {
        assert_eq!(value(&text, &format!("sum {key}")), ZEROS_SUM);
    }
    text
}

#[test]
fn baseline_templates_hide_what_hosts_differ_in() {
    let node = node("full-templates");
    let has = |text: &str, flag: &str| text.split_whitespace().any(|found| found == flag);
    let host = node.shell("cat /proc/cpuinfo");
    let own = look(&node, &Guest { cpus: "2", ..Guest::default() });
    let v2 = look(&node, &Guest { cpus: "2,template=baseline-v2", ..Guest::default() });
    let mut seen = vec![value(&own, "flags"), value(&v2, "flags")];
    assert!(has(seen[1], "sse4_2") && !has(seen[1], "avx2") && !has(seen[1], "avx"), "{v2}");
    let v3;
    if has(&host, "avx2") {
        v3 = look(&node, &Guest { cpus: "2,template=baseline-v3", ..Guest::default() });
        seen.push(value(&v3, "flags"));
        assert!(has(seen[2], "sse4_2") && has(seen[2], "avx2"), "{v3}");
    } else {
        // What a host has not is not promised.
        let run = "/vmm run --kernel /vmlinux --cpus 2,template=baseline-v3";
        let refused = node.shell(&format!("{run} 2>&1 || [ $? = 1 ]"));
        assert!(refused.contains("baseline-v3") && refused.contains("avx2"), "{refused}");
    }
    for (index, flags) in seen.into_iter().enumerate() {
        let hidden = ["svm", "vmx", "avx512f", "pku", "la57"];
        let hidden = if index == 0 { &hidden[..2] } else { &hidden[..] };
        assert!(!hidden.iter().any(|flag| has(flags, flag)), "{hidden:?} in {flags}");
    }
}

#[test]
fn four_and_eight_cpus_work() {
    let node = node("full-cpus");
    for cpus in ["4", "8"] {
        look(&node, &Guest { cpus, ..Guest::default() });
    }
}

#[test]
fn memory_comes_from_a_file_from_huge_pages_and_without_them() {
    let node = node("full-memory");
    node.shell("echo 260 > /proc/sys/vm/nr_hugepages; [ $(cat /proc/sys/vm/nr_hugepages) = 260 ]");
    for memory in ["512M,hugepages=2M", "512M,shared", "512M,thp=off"] {
        look(&node, &Guest { memory, ..Guest::default() });
    }
    // One page too many is told before the guest starts.
    node.shell("/vmm run --no-jail --kernel /vmlinux --memory 640M,hugepages=2M || [ $? = 1 ]");
}

#[test]
fn compressed_kernels_and_pvh_are_ways_in_too() {
    let node = node("full-ways");
    look(&node, &Guest { cpus: "2", kernel: "/vmlinuz", ..Guest::default() });
    look(&node, &Guest { cpus: "2", kernel: "/vmlinux.pvh", ..Guest::default() });
}

/// A kernel whose notes no longer say that it is Linux, which leaves its PVH entry as the way in.
fn only_pvh(vmlinux: &Path) -> Vec<u8> {
    const PT_NOTE: u32 = 4;
    let mut elf = std::fs::read(vmlinux).unwrap();
    let word = |elf: &[u8], at: usize| u32::from_le_bytes(elf[at..at + 4].try_into().unwrap());
    let long = |elf: &[u8], at: usize| {
        usize::try_from(u64::from_le_bytes(elf[at..at + 8].try_into().unwrap())).unwrap()
    };
    let (table, count) = (long(&elf, 32), u16::from_le_bytes([elf[56], elf[57]]));
    let (mut changed, mut pvh) = (0, 0);
    for header in (0..usize::from(count)).map(|index| table + index * 56) {
        if word(&elf, header) != PT_NOTE {
            continue;
        }
        let (mut at, size) = (long(&elf, header + 8), long(&elf, header + 32));
        let end = at + size;
        while at < end {
            let [name_size, data_size, kind] = [0, 4, 8].map(|field| word(&elf, at + field));
            let name = at + 12;
            match (&elf[name..name + 4], kind) {
                (b"Linu", _) => {
                    elf[name] = b'l';
                    changed += 1;
                }
                // Xen's note of the guest's system.
                (b"Xen\0", 6) => elf[at + 8] = 99,
                (b"Xen\0", 18) => pvh += 1,
                _ => {}
            }
            let padded = |size: u32| usize::try_from(size).unwrap().next_multiple_of(4);
            at = name + padded(name_size) + padded(data_size);
        }
    }
    assert!(changed > 0 && pvh == 1, "{changed} notes changed, {pvh} PVH entries");
    elf
}
