//! Nobody works for nothing: what is not paid stands still, goes on when it is paid, and ends when it is
//! not.

use std::sync::Arc;

use hostd_chain::types::UNITS_PER_TFT;
use hostd_rmb::identity::Identity;
use hostd_rmb::signature::Scheme;

use crate::world::{USER_SEED, World, until};

/// Blocks from bill to bill.
const BILLING: u32 = 10;
/// Blocks without money until the end.
const GRACE: u32 = 60;
/// What the user keeps: less than the next bill.
const LITTLE: u128 = UNITS_PER_TFT / 200;
/// Where the rest goes.
const ELSEWHERE: [u8; 32] = [0x33; 32];

#[test]
fn what_is_not_paid_stands_still_goes_on_and_ends() {
    let flags = [BILLING.to_string(), GRACE.to_string()];
    let world = World::new(&["--billing-frequency", &flags[0], "--grace-blocks", &flags[1]]);
    world.grid(&["deploy", "network", "lan", "--node", "1"]).done();
    let vm = ["deploy", "vm", "web", "--node", "1", "--network", "lan", "--cpu", "32"];
    world.grid(&[&vm[..], &["--memory", "64G", "--flist", "https://hub/x.flist"]].concat()).done();
    let contract = world.contracts()["web"].0;

    let user = Arc::new(Identity::from_seed(Scheme::Sr25519, &USER_SEED).unwrap());
    let chain = world.chain(&user);
    let spend = || {
        let spent = world.runtime.block_on(async {
            let has = chain.chain().account(chain.account()).await.unwrap().unwrap().data.free;
            chain.transfer(&ELSEWHERE, has - LITTLE).await
        });
        spent.unwrap();
    };
    let is_paused = || world.machine.there().get("web") == Some(&true);
    until("the chain knows what it takes", || {
        let known = world.runtime.block_on(chain.chain().contract_resources(contract));
        known.unwrap().used.cru == 32
    });

    spend();
    world.pass(BILLING + 1);
    until("it stands still", is_paused);
    assert!(!world.machine.there()["lan"], "what costs nothing goes on");
    let (_, state) = world.contracts().remove("web").unwrap();
    assert!(state.starts_with("not paid since block"), "{state}");
    let shown = world.grid(&["show", &contract.to_string()]).done();
    assert!(shown.out.contains("web stands still until its contract is paid"), "{}", shown.out);

    world.devgrid(&["fund", &user.account().to_string(), "50"]);
    world.pass(BILLING + 1);
    until("it goes on", || !is_paused());
    assert_eq!(world.contracts()["web"].1, "paid");
    let shown = world.grid(&["show", &contract.to_string()]).done();
    assert!(shown.out.contains("web runs\n"), "{}", shown.out);

    spend();
    world.pass(BILLING + 1);
    until("it stands still again", is_paused);
    world.pass(GRACE + BILLING + 1);
    until("it is taken down", || !world.machine.there().contains_key("web"));
    assert!(!world.contracts().contains_key("web"));
    let changes = ["make lan", "make web", "pause web", "resume web", "pause web", "remove web"];
    assert_eq!(world.machine.take_done(), changes);
}
