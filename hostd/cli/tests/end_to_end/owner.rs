//! A user's machine with disks, a volume and a log, and its power.

use crate::world::{World, text};

#[test]
fn a_machine_is_stopped_and_started_by_its_name_with_all_that_belongs_to_it() {
    let world = World::new(&[]);
    let plan = "project: shop\nnetworks: [{name: lan, nodes: [1]}]\n\
                vms: [{name: web, node: 1, network: lan, flist: 'https://hub/x.flist',\
                disks: [{name: data, size: 1G, mount: /data}],\
                volumes: [{name: pics, size: 1G, mount: /pics}],\
                logs: ['redis://10.20.1.2/web']}]\n";
    let plan = world.file("plan.yaml", plan);
    world.grid(&["deploy", "-f", text(&plan)]).done();
    let made: Vec<_> = world.machine.names().into_iter().collect();
    assert_eq!(made, ["data", "lan", "log1", "pics", "web"]);
    let again = world.grid(&["deploy", "-f", text(&plan)]).done();
    assert!(again.out.contains("as it should be: vm web"), "{}", again.out);
    world.machine.take_done();

    let contract = world.contracts()["web"].0.to_string();
    let said = world.grid(&["stop", "web"]).done();
    assert_eq!(said.out, format!("stopped: web on node 1, contract {contract}\n"));
    let said = world.grid(&["start", &contract]).done();
    assert_eq!(said.out, format!("started: web on node 1, contract {contract}\n"));
    world.grid(&["restart", "web", "--project", "shop"]).done();
    assert_eq!(world.machine.take_done(), ["stop web", "start web", "restart web"]);

    world.grid(&["stop", "web", "--project", "other"]).failed(&["there is no machine web"]).with(3);
    let lan = world.contracts()["lan"].0.to_string();
    world.grid(&["restart", &lan]).failed(&["has no machine"]);
    assert!(world.machine.take_done().is_empty(), "nothing was done");
}
