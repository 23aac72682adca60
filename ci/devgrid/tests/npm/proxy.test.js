// @threefold/gridproxy_client: what the chain has is found, counted and turned in pages.
"use strict";

const assert = require("node:assert");
const test = require("node:test");
const { default: GridProxyClient } = require("@threefold/gridproxy_client");
const { network, node, member, until } = require("./common");

const proxy = new GridProxyClient(network.gridproxy_urls[0]);
let me;
test.before(async () => (me = await member()));
test.after(() => me.chain.disconnect());

const apply = async call => (await call).apply();

test("farms, their addresses and twins", async () => {
  const name = `proxy-${me.twin.id}`;
  const publicIps = [2, 3].map(last => ({ ip: `185.206.${me.twin.id}.${last}/24`, gw: `185.206.${me.twin.id}.1` }));
  const farm = await apply(me.chain.farms.create({ name, publicIps }));
  const ask = () => proxy.farms.list({ name, freeIps: 2, retCount: true });
  const found = await until(ask, farms => farms.count === 1);
  assert.equal(found.data[0].farmId, farm.id);
  assert.equal(found.data[0].publicIps.length, 2);
  const ips = await proxy.publicIps.list({ farmIds: farm.id, free: true, sortBy: "ip", sortOrder: "desc" });
  assert.match(ips.data[0].ip, /\.3\/24$/);
  const twins = await proxy.twins.list({ twinId: me.twin.id });
  assert.equal(twins.data[0].accountId, me.address);
  assert.equal(twins.data[0].relay, "127.0.0.1");
  const [one, two] = [await proxy.farms.list({ size: 1, page: 1 }), await proxy.farms.list({ size: 1, page: 2 })];
  assert.equal(one.count, null);
  assert.notEqual(one.data[0].farmId, two.data[0].farmId);
  assert.equal((await proxy.farms.listAll()).length, (await proxy.stats.get()).farms);
});

test("nodes, with what they can do and what is free", async () => {
  const ask = () => proxy.nodes.list({ status: "up", nodeId: node.id, freeMru: 1 << 30, totalCru: 1 }, { loadFarm: true, loadTwin: true });
  const nodes = await until(ask, nodes => nodes.data.length === 1 && nodes.data[0].features.length > 0);
  const [found] = nodes.data;
  assert.equal(found.twinId, node.twin);
  assert.equal(found.farm.farmId, found.farmId);
  assert.ok(found.features.includes("zmachine-light"));
  assert.ok(!found.features.includes("zmachine"), "it is a light node");
  const known = await proxy.nodes.byId(node.id, { loadStats: true });
  assert.ok(known.total_resources.mru > known.used_resources.mru);
  assert.equal(known.stats.total.cru, known.total_resources.cru);
  assert.deepEqual((await proxy.gateways.list({ status: "up" })).data, []);
});

test("contracts, until they end", async () => {
  const name = `proxy${me.twin.id}`;
  const { contractId } = await apply(me.chain.contracts.createName({ name }));
  const ask = state => () => proxy.contracts.list({ twinId: me.twin.id, type: "name", state: [state], retCount: true });
  const found = await until(ask("Created"), contracts => contracts.count === 1);
  assert.equal(found.data[0].contract_id, contractId);
  assert.equal(found.data[0].details.name, name);
  await apply(me.chain.contracts.cancel({ id: contractId }));
  await until(ask("Deleted"), contracts => contracts.count === 1);
  const stats = await proxy.stats.get({ status: "up" });
  assert.ok(stats.twins > 1 && stats.nodes >= 1);
});
