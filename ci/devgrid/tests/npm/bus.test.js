// @threefold/rmb_direct_client: a node answers over the relay.
"use strict";

const assert = require("node:assert");
const test = require("node:test");
const { Client } = require("@threefold/rmb_direct_client");
const { network, chainUrl, node, member } = require("./common");

let me;
let bus;
test.before(async () => {
  me = await member();
  bus = new Client(chainUrl, network.relays_urls[0], me.mnemonic, "stock", "sr25519", 5);
  await bus.connect();
});
test.after(async () => {
  await bus.disconnect();
  await me.chain.disconnect();
});

const ask = async (command, payload) => bus.read(await bus.send(command, payload, node.twin, 1));

test("the relay answers a ping", async () => {
  assert.ok(await bus.read(await bus.ping()));
});

test("the client's key is on the chain", async () => {
  const twin = await me.chain.twins.get({ id: me.twin.id });
  assert.match(twin.pk, /^0x0[23][0-9a-f]{64}$/);
  assert.equal(twin.relay, "127.0.0.1");
});

test("a node answers a question without a payload, and one that is encrypted", async () => {
  const version = await ask("zos.system.version", "");
  assert.equal(version.zos, "1.0.0");
  const addresses = await ask("zos.network.list_private_ips", JSON.stringify({ network_name: "none" }));
  assert.deepEqual(addresses, []);
  const features = await ask("zos.system.node_features_get", "");
  assert.ok(features.includes("network-light"));
});

test("what a node refuses is an error", async () => {
  await assert.rejects(ask("zos.nonsense.get", ""), /function is not found/);
  await assert.rejects(ask("zos.deployment.get", JSON.stringify({ contract_id: 7 })), /deployment not found/);
});
