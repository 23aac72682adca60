//! Memory that a guest gives back: to a balloon, and by reporting what is free.

use std::time::Duration;

use crate::guest::{Guest, SOCKET, finish, said};
use crate::node::Node;

/// How long the kernel of a guest may take to give memory back.
const RETURN_LIMIT: Duration = Duration::from_secs(120);

const FUNCTIONS: &str = r#"
free() { while read key value unit; do [ $key != MemFree: ] || echo $((value / 1024)); done < /proc/meminfo; }
fill() { dd if=/dev/urandom of=/dev/shm/fill bs=1M count=$1 2>/dev/null; }
"#;

#[test]
fn a_balloon_takes_memory_and_gives_it_back() {
    let node = Node::boot("full-balloon", |_, builder| builder);
    let guest = Guest { memory: "640M", options: &["--balloon"], ..Guest::default() };
    let script = "fill 250; echo guest: full\n\
                  rm /dev/shm/fill; await '[ $(free) -lt 220 ]'; echo guest: small\n\
                  await '[ $(free) -gt 350 ]'; echo guest: large\n\
                  fill 250; echo guest: full again";
    let vm = guest.start(&node, &format!("{FUNCTIONS}{script}"));
    let vm = said(vm, "guest: full");
    let full = node.resident_mib();
    node.ask(&["balloon", SOCKET, "400M"]);
    let vm = said(vm, "guest: small");
    node.wait(RETURN_LIMIT, "memory that is back", || node.resident_mib() + 150 < full);
    node.ask(&["balloon", SOCKET, "0"]);
    finish(vm);
}

#[test]
fn memory_that_a_guest_frees_is_the_hosts_again() {
    let node = Node::boot("full-reporting", |_, builder| builder);
    let options = ["--balloon", "free_page_reporting"];
    let guest = Guest { memory: "640M", options: &options, ..Guest::default() };
    let script = "fill 280; echo guest: full; await '[ -e /dev/vdb ]'\n\
                  rm /dev/shm/fill; echo guest: free; await '[ ! -e /dev/vdb ]'";
    let vm = guest.start(&node, &format!("{FUNCTIONS}{script}"));
    let vm = said(vm, "guest: full");
    let full = node.resident_mib();
    // A disk that comes and goes tells the guest to go on.
    node.shell("dd if=/dev/zero of=/run/sign.img bs=1M count=1");
    node.ask(&["disk", "add", SOCKET, "/run/sign.img,id=sign"]);
    let vm = said(vm, "guest: free");
    node.wait(RETURN_LIMIT, "memory that is back", || node.resident_mib() + 200 < full);
    node.ask(&["disk", "remove", SOCKET, "sign"]);
    finish(vm);
}
