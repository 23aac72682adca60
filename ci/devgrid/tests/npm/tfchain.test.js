// @threefold/tfchain_client: everything that a user does on the chain.
"use strict";

const assert = require("node:assert");
const test = require("node:test");
const { node, member, somebody } = require("./common");

let me;
test.before(async () => (me = await member()));
test.after(() => me.chain.disconnect());

const apply = async call => (await call).apply();

test("an account has a twin", async () => {
  const id = await me.chain.twins.getMyTwinId();
  assert.equal(id, me.twin.id);
  await apply(me.chain.twins.update({ relay: "127.0.0.1", pk: "0x02" + "ab".repeat(32) }));
  const twin = await me.chain.twins.get({ id });
  assert.equal(twin.accountId, me.address);
  assert.equal(twin.relay, "127.0.0.1");
  assert.equal(twin.pk, "0x02" + "ab".repeat(32));
});

test("money is transferred", async () => {
  const other = await somebody();
  const before = await me.chain.balances.get({ address: other.address });
  const amount = await apply(me.chain.balances.transfer({ address: other.address, amount: 12_345_678 }));
  assert.equal(amount, 12_345_678);
  const after = await me.chain.balances.get({ address: other.address });
  assert.equal(BigInt(after.free) - BigInt(before.free), 12_345_678n);
});

test("a farm gets and loses an address", async () => {
  const name = `farm-${me.twin.id}`;
  const farm = await apply(me.chain.farms.create({ name, publicIps: [] }));
  assert.equal(farm.twinId, me.twin.id);
  await apply(me.chain.farms.addFarmIp({ farmId: farm.id, ip: "185.206.122.33/24", gw: "185.206.122.1" }));
  const known = await me.chain.farms.get({ id: farm.id });
  assert.equal(known.name, name);
  assert.equal(known.publicIps[0].ip, "185.206.122.33/24");
  await apply(me.chain.farms.removeFarmIp({ farmId: farm.id, ip: "185.206.122.33/24" }));
  const again = apply(me.chain.farms.create({ name, publicIps: [] }));
  await assert.rejects(again, error => error.keyError === "FarmExists");
});

test("contracts are made, changed, found and cancelled", async () => {
  const { contracts } = me.chain;
  const hash = "0123456789abcdef0123456789abcdef";
  const made = await apply(
    contracts.createNode({ nodeId: node.id, hash, data: '{"type":"vm"}', numberOfPublicIps: 0, solutionProviderId: null }),
  );
  const id = made.contractId;
  assert.equal(await contracts.getContractIdByNodeIdAndHash({ nodeId: node.id, hash }), id);
  assert.ok((await contracts.getActiveContracts({ nodeId: node.id })).includes(id));
  const other = "f".repeat(32);
  await apply(contracts.updateNode({ id, hash: other, data: "{}" }));
  const known = await contracts.get({ id });
  assert.equal(known.twinId, me.twin.id);
  assert.equal(known.contractType.nodeContract.nodeId, node.id);
  assert.equal(known.contractType.nodeContract.deploymentData, "{}");

  const named = await apply(contracts.createName({ name: `name${me.twin.id}` }));
  assert.equal(await contracts.getContractIdByName({ name: `name${me.twin.id}` }), named.contractId);
  const calls = await Promise.all([id, named.contractId].map(id => contracts.cancel({ id })));
  await me.chain.applyAllExtrinsics(calls);
  assert.equal(await contracts.get({ id }), null);
  assert.equal(await contracts.getContractIdByName({ name: `name${me.twin.id}` }), 0);
});

test("values are kept", async () => {
  const { kvStore } = me.chain;
  await apply(kvStore.set({ key: "answer", value: "42" }));
  assert.equal(await kvStore.get({ key: "answer" }), "42");
  assert.deepEqual(await kvStore.list(), ["answer"]);
  await kvStore.deleteAll();
  assert.deepEqual(await kvStore.list(), []);
});

test("prices are told", async () => {
  assert.ok((await me.chain.tftPrice.get()) > 0);
  assert.ok((await me.chain.pricingPolicies.get({ id: 1 })).cu.value > 0);
  assert.ok((await me.chain.nodes.get({ id: node.id })).resources.cru > 0);
});
