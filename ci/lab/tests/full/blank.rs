//! A node that has nothing but blank disks, from the first start on: `disks = "auto"`.
//!
//! What it has on the chain is what its disks hold; what users have is on them, and so is who the node is.
//! Its power goes without a word, and disks are missing when it comes back: one with users' data, and then
//! the very one with all that the node knows. It is the same node each time, and no disk is made anew.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::world::{Blank, Options, Plugged, World, is_soon};

const GIB: u64 = 1 << 30;
const DISKS: [Blank; 3] = [
    Blank { name: "one", size_mib: 4096, is_rotational: false },
    Blank { name: "two", size_mib: 4096, is_rotational: false },
    Blank { name: "slow", size_mib: 4096, is_rotational: true },
];
/// Of a disk, so many percent at least can be promised.
const PROMISED_MIN: u64 = 90;
const PASSWORD: &str = "not-a-secret";

/// Who the node is, and what its disks are to it.
#[derive(Debug, PartialEq)]
struct Seen {
    account: String,
    node_id: u64,
    twin_id: u64,
    /// Names and kinds of pools, by their disks' serial numbers.
    pools: BTreeMap<String, (String, String)>,
}

impl Seen {
    fn of(world: &World) -> Self {
        let status = json(&world.shell("/opt/hostd status --config /hostd.toml --json"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let disks = disks(world);
        let pools = disks.iter().filter(|disk| !disk["pool"].is_null());
        let pool =
            |disk: &Value| (text(&disk["serial"]), (text(&disk["pool"]), text(&disk["type"])));
        Self {
            account: text(&status["account"]),
            node_id: status["node"]["node_id"].as_u64().unwrap(),
            twin_id: status["node"]["twin_id"].as_u64().unwrap(),
            pools: pools.map(pool).collect(),
        }
    }

    /// The same without a disk.
    fn without(&self, serial: &str) -> Self {
        let pools = self.pools.iter().filter(|(disk, _)| *disk != serial);
        let pools = pools.map(|(disk, pool)| (disk.clone(), pool.clone())).collect();
        Self { account: self.account.clone(), pools, ..*self }
    }
}

#[test]
fn a_node_makes_its_disks_ready_and_is_the_same_whatever_is_missing() {
    let tools = &["/bin/df"];
    let options =
        Options { name: "blank", disk_mib: 64, blank: &DISKS, tools, ..Options::default() };
    let world = World::new(options);
    let first = Seen::of(&world);
    let kinds: Vec<_> =
        { first.pools.iter() }.map(|(disk, (_, kind))| (disk.as_str(), kind.as_str())).collect();
    assert_eq!(kinds, [("one", "ssd"), ("slow", "hdd"), ("two", "ssd")], "{:?}", disks(&world));
    registers(&world, 2, 1);

    let plan = format!(
        "project: test\n\
         zdbs: [{{name: keys, node: 1, size: 1G, password: {PASSWORD}}}]\n\
         volumes: [{{name: files, node: 1, size: 1G}}]\n"
    );
    world.grid(&["deploy", "-f", &world.plan(&plan)]);
    let deployed = world.workloads();
    assert!(deployed.len() == 2 && deployed.iter().all(is_ok), "{deployed:#?}");
    let namespace = namespace(&deployed);
    world.shell("for d in /mnt/*/volumes/*/data; do echo precious > $d/file; done; sync");
    assert_eq!(ask(&world, &namespace, "SET key value"), "key");

    // A disk of users is missing. The rest of the node works, and says what it has now.
    let mut slow = None;
    world.power_cycle(|disks| slow = Some(pull_out(disks, "slow")));
    world.until_reachable();
    assert_eq!(Seen::of(&world), first.without("slow"));
    registers(&world, 2, 0);
    assert_eq!(files(&world), "precious");

    // Everything is there again, and as it was.
    world.power_cycle(|disks| disks.extend(slow));
    world.until_reachable();
    assert_eq!(Seen::of(&world), first);
    registers(&world, 2, 1);
    assert!(is_soon(|| world.workloads() == deployed), "{:#?}", world.workloads());
    assert_eq!(files(&world), "precious");
    assert_eq!(ask(&world, &namespace, "GET key"), "value");

    // The disk with all that the node knows is missing. It is nobody else, and takes from nobody what is on
    // the others and paid for.
    let own = disk_of_the_node(&world);
    world.power_cycle(|disks| drop(pull_out(disks, &own)));
    world.until_reachable();
    assert_eq!(Seen::of(&world), first.without(&own));
    registers(&world, 1, 1);
    assert_eq!(files(&world), "precious");
    assert_eq!(ask(&world, &namespace, "GET key"), "value");
}

/// Waits until the chain knows what the node has: so many SSDs and hard disks. There is one node.
fn registers(world: &World, ssd_count: u64, hdd_count: u64) {
    let mut shown = Value::Null;
    let is_so = |size: &Value, count: u64| {
        let (size, all) = (size.as_u64().unwrap(), count * 4 * GIB);
        (all * PROMISED_MIN / 100..=all).contains(&size)
    };
    let has_registered = || {
        shown = json(&world.grid(&["node", "show", "1", "--json"]));
        let resources = &shown["resources"];
        is_so(&resources["sru"], ssd_count) && is_so(&resources["hru"], hdd_count)
    };
    assert!(is_soon(has_registered), "{shown:#}");
    let pools = json(&world.shell("/opt/hostd status --config /hostd.toml --json"));
    let pools = pools["pools"].as_array().unwrap();
    for (kind, amount) in [("ssd", "sru"), ("hdd", "hru")] {
        let of_kind = pools.iter().filter(|pool| pool["type"] == kind);
        let sum: u64 = of_kind.map(|pool| pool["size"].as_u64().unwrap()).sum();
        assert_eq!(shown["resources"][amount], sum, "{pools:#?}");
    }
    let processors = world.shell("/bin/cat /proc/cpuinfo");
    let processors = processors.lines().filter(|line| line.starts_with("processor")).count();
    assert_eq!(shown["resources"]["cru"], processors, "row 223");
    // What the node keeps of its SSDs is what fits into its folder, of which the kernel shows whole blocks.
    let folder = world.shell("/bin/df -B1 --output=size /var/cache");
    let folder: u64 = folder.lines().last().unwrap().trim().parse().unwrap();
    let kept = shown["statistics"]["system"]["sru"].as_u64().unwrap();
    assert!((folder..folder + 4096).contains(&kept), "row 224: {kept} of {folder}");
    let farm = json(&world.grid(&["farm", "show", "1", "--json"]));
    assert_eq!(farm["nodes"], serde_json::json!([1]));
}

fn disks(world: &World) -> Vec<Value> {
    let disks = json(&world.shell("/opt/hostd disks --json"));
    disks.as_array().unwrap().clone()
}

/// The serial number of the disk that the node's own folder is on.
fn disk_of_the_node(world: &World) -> String {
    let script =
        "while read -r disk place _; do [ $place = /var/cache ] && echo $disk; done < /proc/mounts";
    let partition = world.shell(script);
    let name = partition.trim().trim_start_matches("/dev/").trim_end_matches(char::is_numeric);
    let disks = disks(world);
    let disk = disks.iter().find(|disk| disk["name"] == name);
    disk.unwrap_or_else(|| panic!("{partition}: {disks:?}"))["serial"].as_str().unwrap().to_owned()
}

fn pull_out(disks: &mut Vec<Plugged>, name: &str) -> Plugged {
    let at = disks.iter().position(|(blank, _)| blank.name == name).unwrap();
    disks.remove(at)
}

fn is_ok(workload: &Value) -> bool {
    workload["result"]["state"] == "ok"
}

/// What the user wrote into the volume.
fn files(world: &World) -> String {
    world.shell("cat /mnt/*/volumes/*/data/file").trim().to_owned()
}

/// What the namespace is called on its server.
fn namespace(workloads: &[Value]) -> String {
    let zdb = workloads.iter().find(|workload| workload["name"] == "keys").unwrap();
    zdb["result"]["data"]["Namespace"].as_str().unwrap().to_owned()
}

/// Asks the server of namespaces for something of which the answer is one text.
fn ask(world: &World, namespace: &str, question: &str) -> String {
    let script = format!(
        "exec 3<>/dev/tcp/::1/9900\n\
         ask() {{ printf '*%d\\r\\n' $# >&3; for word; do printf '$%d\\r\\n%s\\r\\n' ${{#word}} \"$word\" >&3; done\n\
         read -r -t 60 answer <&3; }}\n\
         ask SELECT {namespace} {PASSWORD}; echo $answer\n\
         ask {question}; read -r -t 60 answer <&3; echo $answer\n"
    );
    let answers = world.shell(&script);
    let mut answers = answers.lines().map(str::trim_end);
    assert_eq!(answers.next(), Some("+OK"), "{answers:?}");
    answers.next().unwrap_or_default().to_owned()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
