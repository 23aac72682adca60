//! How guests start over and end: reset in place, by the button, by a crash.

use lab::{Lab, Outcome};

use crate::guest::{GUEST_LIMIT, Guest, SOCKET, end, finish, said};
use crate::node::Node;

/// One process of the VMM, four boots of its guest, whose volume counts them.
#[test]
fn a_guest_reboots_in_place_three_times() {
    let node = Node::boot("full-reboot", |lab: &Lab, builder| {
        builder.disk(&lab.disk("rootfs", 64).unwrap())
    });
    let guest = Guest {
        cpus: "2",
        words: "guest.upper=disk",
        disks: &["/dev/vdb,serial=rootfs"],
        options: &["--rng", "--balloon"],
        ..Guest::default()
    };
    let text = guest.run(
        &node,
        "echo boot >> /count; sync /count; boots=$(wc -l < /count); echo \"boots: $boots\"\n\
         [ $boots -ge 4 ] || { /tools/agent power reboot; sleep 1000; }\n\
         [ $(nproc) = 2 ]",
    );
    for boots in 1..=4 {
        assert!(text.contains(&format!("boots: {boots}")), "{text}");
    }
}

#[test]
fn the_button_and_the_api_reach_the_guests_own_init() {
    let node = Node::boot("full-button", |_, builder| builder);
    let script = "/tools/agent await-button; echo in order";
    let vm = Guest::default().start(&node, script);
    let vm = said(vm, "await-button:");
    node.ask(&["shutdown", SOCKET]);
    assert!(finish(vm).contains("in order"));

    // A reboot by the API asks nobody; what comes up is the same guest.
    let script = "/tools/agent await-button";
    let vm = Guest::default().start(&node, script);
    let vm = said(vm, "await-button:");
    node.ask(&["reboot", SOCKET]);
    node.wait(GUEST_LIMIT, "second start", || {
        let status = node.ask(&["status", SOCKET, "--json"]);
        status.contains("\"reboots\": 1")
    });
    node.ask(&["stop", SOCKET]);
    let text = end(vm, &Outcome::Exited(0));
    assert!(!text.contains("await-button: pressed"), "{text}");
}

#[test]
fn a_kernel_that_panics_is_a_crash_and_not_a_reset() {
    let node = Node::boot("full-crash", |_, builder| builder);
    let vm = Guest::default().start(&node, "/tools/agent power panic; sleep 1000");
    end(vm, &Outcome::Exited(11));
}
