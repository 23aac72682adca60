// Stock clients against a running devgrid, whose network.json NETWORK names.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const test = require("node:test");
const { ApiPromise, Keyring, WsProvider } = require("@polkadot/api");
const { mnemonicGenerate, cryptoWaitReady } = require("@polkadot/util-crypto");
const { Client: ChainClient } = require("@threefold/tfchain_client");
const { Client: MessageClient } = require("@threefold/rmb_direct_client");
const { default: GridProxyClient } = require("@threefold/gridproxy_client");

const network = JSON.parse(fs.readFileSync(process.env.NETWORK, "utf8"));
const chainUrl = network.substrate_urls[0];
const mnemonic = mnemonicGenerate();

test("polkadot: the chain's metadata and blocks are read", async () => {
  const api = await ApiPromise.create({ provider: new WsProvider(chainUrl), noInitWarn: true });
  assert.equal(api.genesisHash.toHex(), network.genesis_hash);
  assert.equal(api.runtimeVersion.specName.toString(), "substrate-threefold");
  assert.ok(api.tx.smartContractModule.createNodeContract);
  await api.disconnect();
});

test("tfchain_client: an account becomes a twin with a farm", async () => {
  await cryptoWaitReady();
  const { address } = new Keyring({ type: "sr25519" }).addFromMnemonic(mnemonic);
  const activated = await fetch(network.activation_urls[0], {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ substrateAccountID: address }),
  });
  assert.equal(activated.status, 200);
  const client = new ChainClient({ url: chainUrl, mnemonicOrSecret: mnemonic });
  await client.connect();
  const terms = { documentLink: "https://example.com/terms", documentHash: "0123456789abcdef" };
  await (await client.termsAndConditions.accept(terms)).apply();
  await (await client.twins.create({ relay: "127.0.0.1" })).apply();
  const id = await client.twins.getMyTwinId();
  assert.ok(id > 0);
  await (await client.farms.create({ name: "stock", publicIps: [] })).apply();
  await client.disconnect();
});

test("gridproxy_client: twins, farms and totals are found", async () => {
  const proxy = new GridProxyClient(network.gridproxy_urls[0]);
  const farms = await proxy.farms.list({ name: "stock", retCount: true });
  assert.equal(farms.count, 1);
  const twins = await proxy.twins.list({ twinId: farms.data[0].twinId });
  assert.equal(twins.data[0].relay, "127.0.0.1");
  assert.deepEqual((await proxy.nodes.list({ status: "up" })).data, []);
  assert.equal((await proxy.stats.get()).farms, 1);
});

test("rmb_direct_client: a twin is answered by the relay", async () => {
  const client = new MessageClient(chainUrl, network.relays_urls[0], mnemonic, "test", "sr25519", 5);
  await client.connect();
  const answer = await client.read(await client.ping());
  assert.ok(answer);
  setTimeout(() => process.exit(0), 500).unref();
  await client.disconnect();
});
