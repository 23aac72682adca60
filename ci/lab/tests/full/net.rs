//! The network both ways over a tap: data in bulk that is compared, datagrams of all sizes, several
//! queues.

use std::time::Duration;

use lab::Outcome;

use crate::guest::{GUEST_LIMIT, Guest, MAC, SOCKET, end, said, value};
use crate::node::Node;

/// What the guest does with a peer on the node; then it serves the node.
const TALK: &str = r#"
echo "queues: $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
/tools/agent send 10.20.2.1:7 25165824 checked
/tools/agent receive 10.20.2.1:7 25165824 checked
others=; for n in 1 2 3 4; do /tools/agent send 10.20.2.1:7 4194304 checked & others="$others $!"; done
for n in 1 2; do /tools/agent receive 10.20.2.1:7 4194304 checked & others="$others $!"; done
for one in $others; do wait $one; done
for size in 4 1472 1473 8000 60000; do /tools/agent round-trips 10.20.2.1:8 20 $size; done
iperf3 -s -1 -p 5201 > /dev/null & server=$!
sleep 1
iperf3 -c 10.20.2.5 -p 5201 -n 4M > /dev/null; wait $server
/tools/agent serve-streams 10.20.2.5:7 &
/tools/agent listen udp 10.20.2.5:8 &
sleep 1
echo "guest: serves"
/tools/agent await-button
"#;

#[test]
fn data_arrives_both_ways_with_one_queue_two_and_large_frames() {
    let node = Node::boot("full-net", |_, builder| builder);
    for (cpus, queues, mtu) in [("1", "1", ""), ("2", "2", ""), ("2", "1", "9000")] {
        let many = if queues == "1" { "" } else { "multi_queue" };
        let large = if mtu.is_empty() { "1500" } else { mtu };
        node.shell(&format!(
            "ip tuntap add tap0 mode tap vnet_hdr {many}; ip address add 10.20.2.1/24 dev tap0; \
             ip link set tap0 up mtu {large}"
        ));
        let serve = |words: &[&str]| {
            let command = [&["/init"], words].concat();
            node.machine.command(&command).timeout(GUEST_LIMIT).spawn().unwrap()
        };
        let streams = serve(&["serve-streams", "10.20.2.1:7"]);
        let echo = serve(&["listen", "udp", "10.20.2.1:8"]);
        let mut card = format!("tap=tap0,mac={MAC},queues={queues}");
        if !mtu.is_empty() {
            card += &format!(",mtu={mtu}");
        }
        let guest = Guest { cpus, options: &["--net", &card], ..Guest::default() };
        let vm = guest.start(&node, &format!("echo mtu: $(cat /sys/class/net/eth0/mtu)\n{TALK}"));
        let vm = said(vm, "guest: serves");
        for direction in ["send", "receive"] {
            let transfer = ["/init", direction, "10.20.2.5:7", "16777216", "checked"];
            let limit = Duration::from_secs(120);
            node.machine.command(&transfer).timeout(limit).run().unwrap().success().unwrap();
        }
        let trips = ["/init", "round-trips", "10.20.2.5:8", "20", "1400"];
        node.machine.run(&trips).unwrap().success().unwrap();
        let metrics = node.ask(&["metrics", SOCKET]);
        let count = |name: &str| -> u64 {
            let key = format!("count=\"{name}\"");
            let line =
                metrics.lines().find(|line| line.contains("kind=\"net\"") && line.contains(&key));
            line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
                .unwrap_or_else(|| panic!("{metrics}"))
        };
        // Segments are cut by whoever sends them on: what passes here is several frames long.
        for direction in ["rx", "tx"] {
            let (bytes, packets) =
                (count(&format!("{direction}_bytes")), count(&format!("{direction}_packets")));
            assert!(
                bytes / packets > 2000,
                "{direction}: {bytes} bytes in {packets} packets, MTU {large}"
            );
        }
        node.ask(&["shutdown", SOCKET]);
        let text = end(vm, &Outcome::Exited(0));
        assert!(text.contains(&format!("queues: {queues}")), "{text}");
        assert!(text.contains("script: ended with 0"), "{text}");
        assert_eq!(value(&text, "mtu"), large);
        for running in [streams, echo] {
            running.signal(9).unwrap();
            running.wait().unwrap();
        }
        node.shell(&format!("ip tuntap del tap0 mode tap {many}"));
    }
}
