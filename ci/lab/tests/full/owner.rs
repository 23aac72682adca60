//! All that an owner does with a machine, on a real node: what was promised is there, the console and the
//! log lead to whom they should, and its power is its owner's, until it crashes too often.
//!
//! ```text
//!   this host                         a machine of the lab
//!     devgrid, grid deploy … ──────►   hostd ── supervise ── vmm ── guest: a shell on its console,
//!                                        │                            a page, a server of logs
//!     the user's own computer:         grid console ── mycelium ──► guestio, in the machine's network
//!     a login and a mycelium there
//! ```
//!
//! One boot of everything, so the steps depend on those before; each says what it was about.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{Options, TIME_MAX, World, is_soon};

/// The user's computer is part of mycelium by the node's own machine, which it is.
const CONFIG: &str = "\n[machine.network]\nmycelium_peers = [\"tcp://100.127.0.1:9651\"]\n";
/// Blocks from bill to bill.
const BILLING: &str = "10";
/// What the user has: enough for a farm, contracts and an hour. The node looks at each block of that, which
/// takes it a while.
const FUNDS: &str = "0.05";
/// Blocks that pass at a time until nothing is left: less than what a contract lives on without money.
const STEP: &str = "60";
/// How many such steps it may take.
const STEP_COUNT_MAX: u32 = 100;
/// How long the machine stands still.
const PAUSE: Duration = Duration::from_secs(15);
/// By how many seconds the guest's clock may differ from its node's, which takes its time to ask.
const CLOCK_ERROR_MAX: f64 = 5.0;
/// Where the machine is in its network.
const IP: &str = "10.7.1.7";
/// The key of somebody who may log in.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDIhz2GK4XCUj4i6Q5yQJL1MXMY0RxzPV2QrBqfHrDq owner";
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What the machine starts: two servers, and a shell for whoever types.
const OWNER: &str = "perl -e \"eval \\$ENV{SERVE}; die \\$@\" & perl -e \"eval \\$ENV{TAKE}; die \\$@\" & \
    echo ready to be typed into; while :; do /bin/sh; done";
/// Says to each who connects which boot it is, and what time.
const SERVE: &str = "use IO::Socket::INET; $| = 1; \
    open F, qq(/proc/sys/kernel/random/boot_id); $id = <F>; chomp $id; \
    $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 5) or die $!; \
    while ($c = $s->accept) { print $c qq(hello from the guest $id ), qx(date +%s.%N); close $c }";
/// A server of redis that keeps what is published: pieces of gzip.
const TAKE: &str = "use IO::Socket::INET; \
    $s = IO::Socket::INET->new(LocalPort => 6379, Listen => 5) or die $!; \
    while ($c = $s->accept) { binmode $c; $c->autoflush(1); while (defined($l = <$c>)) { @w = (); \
    for (1 .. substr($l, 1)) { $n = substr(<$c>, 1); read $c, $w, $n + 2; push @w, substr($w, 0, $n) } \
    open F, qq(>>/data/log.gz); binmode F; print F $w[2]; close F; print $c qq(:1\\r\\n) } }";

#[test]
fn what_an_owner_does_with_a_machine_on_a_real_node() {
    let world = World::new(Options {
        name: "owner",
        devgrid: &["--block-time-ms", "0", "--billing-frequency", BILLING],
        disk_mib: 12 << 10,
        funds: Some(FUNDS),
        programs: &["grid"],
        tools: &["/usr/bin/perl", "/bin/mkdir"],
        config: CONFIG,
        ..Options::default()
    });
    let start = Instant::now();
    let step = |name: &str| eprintln!("after {:?}: {name}", start.elapsed());
    let _mycelium = join_mycelium(&world);
    let before = world.holdings();
    world.grid(&["deploy", "-f", &world.plan(&plan(&world))]);
    step("deployed");
    let first = greeting(&world);
    step("it boots");
    is_as_promised(&world);
    step("the console answers, and all that was promised is there");
    logs_arrive(&world);
    step("its log arrives");
    let first = is_started_after_a_crash(&world, &first);
    step("it is started again after a crash");
    let first = obeys_its_owner(&world, &first);
    step("it is restarted, stopped and started");
    let first = stands_still_until_it_is_paid(&world, &first);
    step("it stands still until it is paid");
    is_started_after_it_ends(&world, &first);
    step("it is started again when it switches itself off, and that is no crash");
    is_given_up_at_the_fourth_crash(&world);
    step("it is given up at the fourth crash");
    nobody_s_vmm_is_ended(&world);
    step("a VMM that nobody reserved is ended");
    world.cancel_all();
    world.holds_again(&before);
}

/// Two disks, a volume, a key, a log that is sent to the machine itself, and something to talk to.
fn plan(world: &World) -> String {
    format!(
        "project: test\n\
         networks: [{{name: lan, nodes: [1], range: 10.7.0.0/16}}]\n\
         vms:\n  - {{name: web, node: 1, network: lan, flist: '{}/hub/lab/guest.fl', memory: 512M, ip: {IP},\n     \
         entrypoint: '/bin/bash -c \"eval $OWNER\"',\n     \
         env: {{SSH_KEY: '{KEY}', OWNER: '{OWNER}', SERVE: '{SERVE}', TAKE: '{TAKE}'}},\n     \
         disks: [{{name: first, size: 1G, mount: /data}}, {{name: second, size: 2G, mount: /more}}],\n     \
         volumes: [{{name: shared, size: 1G, mount: /shared}}],\n     \
         logs: ['redis://{IP}/owner']}}\n",
        world.services(),
    )
}

/// The node's machine is the user's computer, too: who is logged in there, and is part of mycelium.
fn join_mycelium(world: &World) -> lab::Running {
    let login = std::fs::read(world.path("home/login.json")).unwrap();
    let mut login: Value = serde_json::from_slice(&login).unwrap();
    login["network"] = json!("/network.json");
    world.shell("mkdir -m 700 /user");
    world.push("/user/login.json", 0o600, login.to_string().as_bytes());
    let mycelium = ["/opt/mycelium", "--key-file", "/user/mycelium.key", "--tun-name", "mycelium"];
    let options = ["--api-addr", "127.0.0.1:8989", "--disable-peer-discovery"];
    let running = world.start(&[&mycelium[..], &options].concat());
    world.until("[[ $(ip -6 -o addr show dev mycelium) = *global* ]]");
    running
}

/// Types a line into the machine's console, from the user's computer, and reads until a line with `end`.
fn typed(world: &World, line: &str, end: &str) -> String {
    let script = r#"
        export GRID_HOME=/user
        coproc GRID { exec /opt/grid console web 2>/user/console.err; }
        printf '%s\n' "$1" >&"${GRID[1]}"
        while IFS= read -r -t 240 said <&"${GRID[0]}"; do
            printf '%s\n' "$said"
            [[ $said != *"$2"* ]] || { kill "$GRID_PID"; exit 0; }
        done
        printf 'no line with %s\n' "$2" >&2
        while IFS= read -r said; do printf 'grid console: %s\n' "$said" >&2; done </user/console.err
        exit 1"#;
    let said = world.run(&["/bin/bash", "-c", script, "typed", line, end]);
    said.replace('\r', "")
}

/// Which boot it is, and what the guest takes for the time, in seconds.
struct Greeting {
    boot: String,
    time: f64,
}

fn greeting(world: &World) -> Greeting {
    let said = world.answers(IP);
    let mut words = said.trim().rsplit(' ');
    let time = words.next().unwrap().parse().unwrap();
    Greeting { boot: words.next().unwrap().to_owned(), time }
}

/// Waits for another boot than that.
fn other_boot(world: &World, last: &Greeting, why: &str) -> Greeting {
    let mut now = greeting(world);
    let is_other = is_soon(|| {
        now = greeting(world);
        now.boot != last.boot
    });
    assert!(is_other, "{why}: still boot {}", last.boot);
    now
}

/// The kernel's words, disks, volume, keys and cards, as the guest has them.
fn is_as_promised(world: &World) {
    let questions = "cat /proc/cmdline; hostname; cat /root/.ssh/authorized_keys; \
        for d in vda vdb vdc; do echo size $d $(cat /sys/block/$d/size); done; \
        df -B1 --output=source,fstype,size,target / /data /more /shared; ip -o addr; ip route; \
        touch /data/mine; sync; echo that was a\"\"ll";
    let said = typed(world, questions, "that was all");
    eprintln!("{said}");
    let has = |line: &str| said.lines().any(|said| said.trim() == line);
    let words = said.lines().find(|line| line.contains("root=vroot")).expect("no command line");
    let words: Vec<_> = words.split(' ').collect();
    for word in
        ["rw", "console=hvc0", "reboot=k", "root=vroot", "rootfstype=virtiofs", "rootdelay=30"]
    {
        assert!(words.contains(&word), "row 66: {word} is not in {words:?}");
    }
    assert!(has("web"), "it is not called web: {said}");
    assert!(has(KEY), "row 70: the owner's key may not log in: {said}");
    for (disk, size, why) in [
        ("vda", GIB, "row 73: the owner's first disk comes first"),
        ("vdb", 2 * GIB, "row 73: then the second"),
        ("vdc", 500 * MIB, "row 62: then the root, of the size that so small a machine has"),
    ] {
        assert!(has(&format!("size {disk} {}", size / 512)), "{why}: {said}");
    }
    for (source, kind, target, size, why) in [
        ("/dev/vda", "ext4", "/data", GIB, "row 73: the first disk"),
        ("/dev/vdb", "ext4", "/more", 2 * GIB, "row 73: the second disk"),
        ("shared", "virtiofs", "/shared", GIB, "row 74: the volume"),
        ("rootfs", "overlay", "/", 500 * MIB, "row 62: the root"),
    ] {
        let mount = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut mount = mount.filter(|words| words.len() == 4 && words[3] == target);
        let mount = mount.next().unwrap_or_else(|| panic!("{why} is not at {target}: {said}"));
        let shown: u64 = mount[2].parse().unwrap();
        assert_eq!(mount[1], kind, "{why}: {said}");
        assert!(kind == "overlay" || mount[0] == source, "{why}: {said}");
        // A file system takes some of its disk; a volume has all that was promised.
        let least = if kind == "virtiofs" { size } else { size / 10 * 8 };
        assert!((least..=size).contains(&shown), "{why} has {shown} bytes of {size}: {said}");
    }
    let address = |card: &str, start: &str| {
        let mut lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.any(|words| {
            words.get(1) == Some(&card) && words.get(3).is_some_and(|ip| ip.starts_with(start))
        })
    };
    assert!(
        address("eth0", &format!("{IP}/24")),
        "row 77: the first card is the private one: {said}"
    );
    let mycelium = workload(world, "web")["result"]["data"]["mycelium_ip"].clone();
    let mycelium = mycelium.as_str().expect("no mycelium address");
    assert!(address("eth1", mycelium), "row 77: the second is {mycelium} on mycelium: {said}");
    let route =
        said.lines().find(|line| line.starts_with("default")).expect("row 78: no default route");
    assert!(route.starts_with("default via 10.7.1.1 dev eth0"), "row 78: {route}");
}

fn workload(world: &World, name: &str) -> Value {
    let found = world.workloads().into_iter().find(|workload| workload["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {name}"))
}

/// A line of the console is at the server of logs soon.
fn logs_arrive(world: &World) {
    let line = "echo ma\"\"rked by the owner; for i in $(seq 60); do \
        gzip -dc /data/log.gz 2>/dev/null | grep -q ^marked && break; sleep 1; done; \
        echo arri\"\"ved: $(gzip -dc /data/log.gz | grep -c ^marked)";
    let said = typed(world, line, "arrived:");
    assert!(said.contains("arrived: 1"), "row 89: the log did not arrive: {said}");
}

/// What the supervisor says.
fn ask_supervisor(world: &World, request: &Value) -> Value {
    let script = r#"socket(S, 1, 1, 0) or die; connect(S, pack("S a108", 1, "/run/supervise.sock")) or die $!;
        syswrite S, "$ARGV[0]\n"; $_ = <S>; print"#;
    let said = world.run(&["/usr/bin/perl", "-e", script, &request.to_string()]);
    serde_json::from_str(&said).unwrap()
}

/// The machines' programs, as the supervisor knows them.
fn programs(world: &World) -> Vec<Value> {
    let said = ask_supervisor(world, &json!({"do": "list"}));
    let programs = said["statuses"].as_array().unwrap_or_else(|| panic!("{said}")).iter();
    let is_vmm =
        |program: &&Value| program["name"].as_str().is_some_and(|name| name.starts_with("vm-"));
    programs.filter(is_vmm).cloned().collect()
}

/// The machine's program.
fn program(world: &World) -> Value {
    let mut programs = programs(world);
    assert_eq!(programs.len(), 1, "{programs:#?}");
    programs.remove(0)
}

/// Ends the VMM as no VMM ends, and waits for what the supervisor makes of it.
fn kill(world: &World, wanted: &str) {
    let before = program(world);
    let pid = before["pid"].as_u64().unwrap_or_else(|| panic!("it does not run: {before}"));
    world.shell(&format!("kill -9 {pid}"));
    let is_so = is_soon(|| {
        let now = program(world);
        now["state"] == wanted && now["pid"] != before["pid"]
    });
    assert!(is_so, "row 82: killed, it is not {wanted}: {}", program(world));
}

/// Row 82: it comes up again by itself.
fn is_started_after_a_crash(world: &World, last: &Greeting) -> Greeting {
    kill(world, "running");
    other_boot(world, last, "row 82: killed")
}

/// Row 237: restart, stop and start. One that was stopped stays so when the node starts again.
fn obeys_its_owner(world: &World, last: &Greeting) -> Greeting {
    world.grid(&["restart", "web"]);
    let restarted = other_boot(world, last, "row 237: restarted");
    world.grid(&["stop", "web"]);
    assert_eq!(programs(world), Vec::<Value>::new(), "row 237: it was stopped");
    world.hostd_dies();
    world.start_hostd();
    world.until_reachable();
    assert_eq!(programs(world), Vec::<Value>::new(), "row 237: it is to stay stopped");
    assert_eq!(workload(world, "web")["result"]["state"], "ok", "row 237: it stays reserved");
    world.grid(&["start", "web"]);
    let started = other_boot(world, &restarted, "row 237: started");
    let kept = typed(world, "ls -l /data/mine; echo it was ke\"\"pt", "it was kept");
    assert!(!kept.contains("No such file"), "row 237: its disk is another: {kept}");
    started
}

/// Row 85: without money it stands still, and goes on when there is some, with the right time.
fn stands_still_until_it_is_paid(world: &World, last: &Greeting) -> Greeting {
    let mut steps = 0;
    while !world.grid(&["ls", "--json"]).contains("not paid") {
        assert!(steps < STEP_COUNT_MAX, "row 85: the user still has money");
        world.devgrid(&["fast-forward", "--blocks", STEP]);
        steps += 1;
    }
    eprintln!("not paid after {steps} steps");
    let state = || workload(world, "web")["result"]["state"].clone();
    assert!(is_soon(|| state() == "paused"), "row 85: it is {}, not paused", state());
    assert!(world.is_silent(IP), "row 85: it answers, though it is to stand still");
    let refusal = world.grid_fails(&["restart", "web"]);
    assert!(refusal.contains("paused"), "row 85: {refusal}");
    std::thread::sleep(PAUSE);
    world.fund("100");
    world.devgrid(&["fast-forward", "--blocks", BILLING]);
    world.devgrid(&["fast-forward", "--blocks", "1"]);
    assert!(is_soon(|| state() == "ok"), "row 85: it is {}, though it is paid", state());
    let now = greeting(world);
    assert_eq!(now.boot, last.boot, "row 85: it began anew");
    let node: f64 = world.shell("echo $EPOCHREALTIME").trim().parse().unwrap();
    let error = node - now.time;
    eprintln!("the guest's clock after the pause: {error:.3} s behind");
    assert!(error.abs() < CLOCK_ERROR_MAX, "row 85: its clock is {error} s behind the node's");
    now
}

/// Row 82: a machine that switches itself off is started again, and has not crashed.
fn is_started_after_it_ends(world: &World, last: &Greeting) {
    let before = program(world);
    typed(world, "sync; sleep 1; echo o >/proc/sysrq-trigger", "sysrq-trigger");
    other_boot(world, last, "row 82: switched off by itself");
    let now = program(world);
    let why = world.shell("grep -h 'vmm: ' /data/machine/vms/*/log/console.log || true");
    assert_eq!(now["crashes"], 0, "row 82: to switch oneself off is no crash: {now}\n{why}");
    assert_ne!(now["pid"], before["pid"], "row 82: {now}");
}

/// Row 82: three times it is started again, and no fourth; its owner sees why.
fn is_given_up_at_the_fourth_crash(world: &World) {
    let start = Instant::now();
    for _ in 0..3 {
        kill(world, "running");
    }
    let last = program(world);
    let pid = last["pid"].as_u64().unwrap();
    eprintln!("three crashes within {:?}: {last}", start.elapsed());
    world.shell(&format!("kill -9 {pid}"));
    let is_down = is_soon(|| workload(world, "web")["result"]["state"] == "deleted");
    let shown = workload(world, "web");
    assert!(is_down, "row 82: {shown:#}");
    let message = shown["result"]["message"].as_str().unwrap();
    assert!(message.contains("so many crashes"), "row 82: its owner is told {message:?}");
    assert!(is_soon(|| programs(world).is_empty()), "row 82: {:#?}", programs(world));
}

/// Row 83: a VMM without a record is no machine of this node's.
fn nobody_s_vmm_is_ended(world: &World) {
    let description = json!({
        "kernel": "/opt/vmlinux", "initramfs": "/opt/initramfs.img", "cmdline": "console=hvc0",
        "memory": {"size": "256M"}, "console": "stdio",
    });
    world.push("/user/stray.json", 0o600, description.to_string().as_bytes());
    let argv = ["/opt/vmm", "run", "--config", "/user/stray.json"];
    let stray = json!({"name": "vm-STRAYxxxxxxxx", "argv": argv, "policy": {"restarts": true}});
    let started = ask_supervisor(world, &json!({"do": "start", "program": stray}));
    let pid = started["status"]["pid"].as_u64().unwrap_or_else(|| panic!("row 83: {started}"));
    let start = Instant::now();
    assert!(is_soon(|| programs(world).is_empty()), "row 83: {:#?}", programs(world));
    eprintln!("ended after {:?}", start.elapsed());
    let left = world.shell(&format!("[[ ! -e /proc/{pid} ]] || echo it runs"));
    assert_eq!(left, "", "row 83: its process is left");
    assert!(start.elapsed() < TIME_MAX, "row 83: it took long");
}
