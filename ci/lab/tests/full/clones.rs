//! Many clones of one snapshot on one host: each lives, and has little to itself.

use std::time::Duration;

use lab::Outcome;

use crate::guest::{GUEST_LIMIT, Guest, SOCKET, end, said};
use crate::node::{Node, kib};

const COUNT: usize = 50;
/// What an idle clone may have to itself, in KiB, its warden's share with it.
const UNIQUE_KIB_MAX: u64 = 8 << 10;
/// How long clones idle before they are measured: through several beats of their hearts.
const IDLE: Duration = Duration::from_secs(20);

/// For each clone, with sockets and a console of its own, in a jail of its own.
const RESTORE: &str = "
pids=; n=0
while [ $n -lt COUNT ]; do
    /vmm restore /run/snapshot --vsock socket=/run/$n.vsock --console file=/run/$n.log --api-socket /run/$n.sock &
    pids=\"$pids $!\"; n=$((n+1))
done
for pid in $pids; do wait $pid; done
";

#[test]
fn fifty_idle_clones_have_less_than_8_mib_each() {
    let node = Node::boot("full-clones", |_, builder| builder);
    // Who watches a guest hears its heart.
    let watched = ["--vsock", "cid=3,socket=/run/first.vsock", "--watchdog", "600"];
    let options = [&watched[..], &["--rng", "--balloon"]].concat();
    let guest = Guest { memory: "256M", options: &options, ..Guest::default() };
    let vm = said(guest.start(&node, "echo guest: idle; sleep 100000"), "guest: idle");
    // Until what the boot left to be done is done.
    std::thread::sleep(Duration::from_secs(5));
    node.ask(&["snapshot", SOCKET, "/run/snapshot", "--then", "stop"]);
    end(vm, &Outcome::Exited(0));
    node.await_no_vmm();

    let count = COUNT.to_string();
    let restore = ["/bin/sh", "-ec", &RESTORE.replace("COUNT", &count)];
    let clones = node.machine.command(&restore).timeout(GUEST_LIMIT * 2).spawn().unwrap();
    // One after the other: to ask all of them again and again would keep the node from running them.
    let beats = |n: usize| -> u64 {
        let metrics = node.shell(&format!("/vmm metrics /run/{n}.sock 2>/dev/null || true"));
        let beats = metrics.lines().find(|line| line.contains("count=\"beats\""));
        beats.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    };
    for n in 0..COUNT {
        node.wait(GUEST_LIMIT, &format!("heart that beats in clone {n}"), || beats(n) > 0);
    }
    std::thread::sleep(IDLE);

    let rollups = node.of_vmms("smaps_rollup");
    let [clean, dirty] =
        ["Private_Clean:", "Private_Dirty:"].map(|name| kib(&rollups, name).sum::<u64>());
    let resident: u64 = kib(&rollups, "Rss:").sum();
    let unique = (clean + dirty) / COUNT as u64;
    eprintln!("{COUNT} clones: {} KiB resident, {unique} KiB unique each", resident / COUNT as u64);
    assert!(unique > 0 && unique < UNIQUE_KIB_MAX, "{unique} KiB: {rollups}");
    // None of them has stopped.
    (0..COUNT).for_each(|n| assert!(beats(n) > 0, "clone {n} has ended"));

    for n in 0..COUNT {
        node.ask(&["stop", &format!("/run/{n}.sock")]);
    }
    let output = clones.wait().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.outcome, Outcome::Exited(0), "{errors}");
}
