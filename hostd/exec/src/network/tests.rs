//! What is decided before the machine is touched.

use hostd_grid::{ContractId, TwinId};

use super::*;

fn machine(name: &str) -> WorkloadId {
    WorkloadId { twin_id: TwinId(11), contract_id: ContractId(4242), name: Name::new(name) }
}

fn record() -> Record {
    let subnet = Subnet::check(Some(Cidr::parse("10.20.2.0/24").unwrap())).unwrap();
    Record { workload: machine("net1"), subnet, mycelium: "4a5:1:2:3:4:5:6:7".parse().unwrap() }
}

fn members(ip: Option<&str>, seed: Option<[u8; 6]>) -> Result<Vec<Member>, String> {
    let ip = ip.map(|ip| ip.parse().unwrap());
    members_of(&record(), &machine("vm1"), ip, seed).map_err(|error| error.to_string())
}

#[test]
fn addresses_follow_from_what_was_asked_for() {
    let both = members(Some("10.20.2.5"), Some([1, 2, 3, 4, 5, 6])).unwrap();
    let shown: Vec<_> = both.iter().map(|member| member.address.to_string()).collect();
    assert_eq!(shown, ["10.20.2.5", "4a5:1:2:3:ff0f:102:304:506"]);
    assert_eq!(both[0].tap, machine("vm1").light_private_tap(&Name::new("net1")).name);
    assert_eq!(both[1].tap, machine("vm1").light_mycelium_tap(&Name::new("net1")).name);
    for (ip, seed, why) in [
        (Some("10.20.2.1"), None, "ip 10.20.2.1 is reserved"),
        (Some("10.20.2.0"), None, "ip 10.20.2.0 is reserved"),
        (Some("10.20.3.5"), None, "is not part of local nr subnet 10.20.2.0/24"),
        (None, Some([0; 6]), "mycelium seed of machine 'vm1': invalid seed"),
        (None, None, "machine 'vm1' asks for no address in network 'net1'"),
    ] {
        let error = members(ip, seed).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn an_address_has_one_machine_and_a_network_room_for_so_many() {
    let network = Name::new("net1");
    let mut all = members(Some("10.20.2.5"), Some([1; 6])).unwrap();
    let other =
        |ip: &str| members_of(&record(), &machine("vm2"), Some(ip.parse().unwrap()), None).unwrap();
    let error = admit(&network, &mut all, &other("10.20.2.5")).unwrap_err().to_string();
    assert_eq!(error, "address 10.20.2.5 is already used by machine 11-4242-vm1");
    admit(&network, &mut all, &other("10.20.2.6")).unwrap();
    assert_eq!(all.len(), 3);
    all.extend((0..MACHINE_COUNT_MAX).map(|at| Member {
        machine: machine(&format!("m{at}")),
        tap: String::new(),
        address: Ipv4Addr::from_bits(u32::try_from(at).unwrap()).into(),
    }));
    let error = admit(&network, &mut all, &other("10.20.2.7")).unwrap_err().to_string();
    assert!(error.contains("1002 machines"), "{error}");
}

#[test]
fn bad_names_are_shown_without_what_a_terminal_would_do() {
    let error = check_name(&Name::new("\x1b[31m\n../../etc")).unwrap_err().to_string();
    assert_eq!(error, "network '[31m../../etc': unsupported character in workload name");
    let error = check_name(&Name::new("x".repeat(10_000))).unwrap_err().to_string();
    assert!(error.len() < 120, "{error}");
}
