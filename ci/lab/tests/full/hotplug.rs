//! Disks and cards that come and go while the guest is busy, with them and with others.

use crate::guest::{GUEST_LIMIT, Guest, SOCKET, finish, said};
use crate::node::Node;

/// How often each comes and goes.
const ROUNDS: u32 = 3;

const SCRIPT: &str = r#"
# A file that is not there is not to be made: its place in /dev is the next device's.
hammer() { exec fio --eta=never --output=/dev/null --allow_file_create=0 --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --time_based --runtime=3600 "$@"; }
hammer --name=load --filename=/dev/vda --size=16m --rw=randrw & load=$!
for round in 1 2 3; do
    echo "guest: wants disk $round"
    await '[ -b /dev/vdc ]'
    check --name=hot --filename=/dev/vdc --size=2m --rw=randwrite --bs=16k --ioengine=libaio --iodepth=4 --direct=1 --verify=crc32c
    hammer --name=pulled --filename=/dev/vdc --size=2m --rw=randread 2>/dev/null & pulled=$!
    await 'read reads writes < /sys/block/vdc/inflight; [ $reads != 0 ]'
    echo "guest: gives disk $round"
    await '[ ! -e /sys/block/vdc ]'
    # To whoever still has it open it is a disk of no size, and fio reads that end for ever.
    kill $pulled; wait $pulled || true
    echo "guest: wants card $round"
    await '[ -e /sys/class/net/eth1 ]'
    ip address add 10.20.3.5/24 dev eth1; ip link set eth1 up
    /tools/agent send 10.20.3.1:7 4194304 checked
    /tools/agent send 10.20.3.1:7 1073741824 unchecked 2>/dev/null & pulled=$!
    sleep 1
    echo "guest: gives card $round"
    await '[ ! -e /sys/class/net/eth1 ]'
    kill $pulled; wait $pulled || true
done
kill -0 $load
"#;

#[test]
fn disks_and_cards_come_and_go_under_load() {
    let node = Node::boot("full-hotplug", |_, builder| builder);
    node.shell(
        "dd if=/dev/zero of=/run/load.img bs=1M count=16; dd if=/dev/zero of=/run/hot.img bs=1M count=4\n\
         ip tuntap add tap1 mode tap vnet_hdr; ip address add 10.20.3.1/24 dev tap1; ip link set tap1 up",
    );
    let serve = ["/init", "serve-streams", "10.20.3.1:7"];
    let _streams = node.machine.command(&serve).timeout(GUEST_LIMIT * 2).spawn().unwrap();
    // The first card of the guest is there from the start, so that the other is `eth1`.
    node.shell("ip tuntap add tap0 mode tap vnet_hdr; ip address add 10.20.2.1/24 dev tap0; ip link set tap0 up");
    let card = format!("tap=tap0,mac={}", crate::guest::MAC);
    let guest = Guest {
        cpus: "2",
        disks: &["/run/load.img"],
        options: &["--net", &card],
        ..Guest::default()
    };
    let mut vm = guest.start(&node, SCRIPT);
    for round in 1..=ROUNDS {
        vm = said(vm, &format!("guest: wants disk {round}"));
        node.ask(&["disk", "add", SOCKET, "/run/hot.img,id=hot,serial=hot"]);
        vm = said(vm, &format!("guest: gives disk {round}"));
        node.ask(&["disk", "remove", SOCKET, "hot"]);
        vm = said(vm, &format!("guest: wants card {round}"));
        node.ask(&["net", "add", SOCKET, "tap1,id=hot"]);
        vm = said(vm, &format!("guest: gives card {round}"));
        node.ask(&["net", "remove", SOCKET, "hot"]);
    }
    finish(vm);
}
