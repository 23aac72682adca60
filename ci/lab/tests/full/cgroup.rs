//! What a VM may take of its host: the limits of the cgroup that its jail puts it into.

use lab::Lab;

use crate::guest::{Guest, SOCKET, finish, said, value};
use crate::node::Node;

const GROUP: &str = "/sys/fs/cgroup/vm";
/// Bytes that may be written each second.
const WRITTEN_MAX: u64 = 4 << 20;

/// Writes 12 MiB past the page cache, and is busy: more than the limits of a second allow.
const SCRIPT: &str = r#"
begin=$(now); dd if=/dev/zero of=/dev/vda oflag=direct bs=256k count=48 2>/dev/null; echo "bytes: $(($(now) - begin))"
begin=$(now); while [ $(($(now) - begin)) -lt 200 ]; do :; done
echo "guest: done"
/tools/agent await-button
"#;

#[test]
fn a_vm_takes_no_more_than_its_cgroup_lets_it() {
    let node =
        Node::boot("full-cgroup", |lab: &Lab, builder| builder.disk(&lab.disk("raw", 32).unwrap()));
    node.shell(&format!(
        "echo '+cpu +memory +pids +io' > /sys/fs/cgroup/cgroup.subtree_control; mkdir {GROUP}"
    ));
    let jail = format!(
        "cgroup={GROUP},memory_max=600M,cpu_max_percent=80,pids_max=48,io_max={WRITTEN_MAX}/s"
    );
    let options = ["--jail", jail.as_str()];
    let guest = Guest { disks: &["/dev/vdb,direct"], options: &options, ..Guest::default() };
    let vm = said(guest.start(&node, SCRIPT), "guest: done");

    let read = |file: &str| node.shell(&format!("cat {GROUP}/{file}")).trim().to_owned();
    let status: serde_json::Value =
        serde_json::from_str(&node.ask(&["status", SOCKET, "--json"])).unwrap();
    // Besides, KVM puts a worker of the kernel's own there.
    let members = node.shell(&format!(
        "for p in $(cat {GROUP}/cgroup.procs); do read comm < /proc/$p/comm; echo $comm $p; done"
    ));
    let own: Vec<&str> = members.lines().filter(|line| !line.starts_with("kvm-")).collect();
    assert_eq!(own, [format!("vmm {}", status["pid"])], "the VM, not its warden: {members}");
    assert_eq!(read("memory.max"), (600 << 20).to_string());
    assert_eq!(read("cpu.max"), "80000 100000");
    assert_eq!(read("pids.max"), "48");
    let device = node.shell("cat /sys/block/vdb/dev");
    let device = device.trim();
    let io_max = format!("{device} rbps={WRITTEN_MAX} wbps={WRITTEN_MAX} riops=max wiops=max");
    assert_eq!(read("io.max"), io_max);
    // The guest's memory is the group's, and its time and I/O are, too.
    let peak: u64 = read("memory.peak").parse().unwrap();
    assert!((64 << 20..600 << 20).contains(&peak), "{peak} bytes");
    let times = read("cpu.stat");
    let throttled = times.lines().find_map(|line| line.strip_prefix("nr_throttled "));
    assert!(throttled.is_some_and(|count| count != "0"), "a busy guest was never held up: {times}");
    let io = read("io.stat");
    assert!(io.lines().any(|line| line.starts_with(device)), "nothing of {device}: {io}");

    node.ask(&["shutdown", SOCKET]);
    let text = finish(vm);
    // Hundredths of a second: of 12 MiB, a second's worth may pass at once.
    let taken: u64 = value(&text, "bytes").parse().unwrap();
    assert!(taken >= 190, "12 MiB were written within {taken} hundredths of a second");
    node.await_no_vmm();
    node.shell(&format!("/init sleep 200; [ -z \"$(cat {GROUP}/cgroup.procs)\" ]"));
}
