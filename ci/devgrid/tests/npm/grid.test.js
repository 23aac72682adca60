// @threefold/grid_client: a light network, a light VM with a disk and a ZDB are deployed, found and deleted.
"use strict";

const assert = require("node:assert");
const test = require("node:test");
const { BackendStorageType, GridClient } = require("@threefold/grid_client");
const { network, chainUrl, node, member, until } = require("./common");

// What a node with real machines needs: an image that is there, and time.
const flist = process.env.FLIST ?? "https://hub.example.com/user/image.flist";
const entrypoint = process.env.ENTRYPOINT ?? "/sbin/zinit init";
const timeout = Number(process.env.TIME_MAX_MS ?? 120_000);

let me;
let grid;
test.before(async () => {
  me = await member();
  grid = new GridClient({
    // The one whose name of the identity service leads to this grid.
    network: "dev",
    mnemonic: me.mnemonic,
    projectName: "stock",
    backendStorageType: BackendStorageType.fs,
    substrateURL: chainUrl,
    proxyURL: network.gridproxy_urls[0],
    graphqlURL: network.graphql_urls[0],
    activationURL: network.activation_urls[0],
    relayURL: network.relays_urls[0],
  });
  await grid.connect();
});
test.after(async () => {
  await grid.disconnect();
  await me.chain.disconnect();
});

test("who is logged in, with what", async () => {
  assert.equal(grid.twinId, me.twin.id);
  assert.ok((await grid.balance.getMyBalance()).free > 0);
  assert.equal(await grid.twins.get_my_twin_id(), me.twin.id);
  await grid.kvstore.set({ key: "greeting", value: "hello" });
  assert.equal(await grid.kvstore.get({ key: "greeting" }), "hello");
  assert.deepEqual(await grid.kvstore.list(), ["greeting"]);
  assert.equal(await grid.kycClient.status(), "VERIFIED");
});

test("nodes and farms are found", async () => {
  const ask = () => grid.capacity.filterNodes({ cru: 1, mru: 1, sru: 1, availableFor: me.twin.id });
  const nodes = await until(ask, nodes => nodes.some(one => one.nodeId === node.id && one.features.length > 0));
  assert.ok(nodes.length >= 1);
  assert.ok((await grid.capacity.getAllFarms()).length >= 1);
  assert.equal((await grid.capacity.getNodesByFarmId({ farmId: nodes[0].farmId })).length, 1);
  assert.ok((await grid.capacity.getFarmIdFromFarmName({ farmName: "stock-farm" })) > 0);
  assert.equal((await grid.zos.pingNode({ nodeId: node.id })).zos, process.env.NODE_VERSION ?? "1.0.0");
  assert.ok((await grid.nodes.all()).length >= 1);
});

test("a machine with a disk comes, is read and goes", { timeout }, async () => {
  const machine = {
    name: "vm",
    node_id: node.id,
    disks: [{ name: "disk", size: 1, mountpoint: "/data" }],
    public_ip: false,
    public_ip6: false,
    planetary: false,
    mycelium: true,
    cpu: 1,
    memory: 1024,
    rootfs_size: 1,
    flist,
    entrypoint,
    env: { SSH_KEY: "ssh-ed25519 AAAA" },
  };
  const options = { name: "machines", network: { name: "net", ip_range: "10.20.0.0/16" }, machines: [machine] };
  const { contracts } = await grid.machines.deploy(options);
  assert.equal(contracts.created.length, 1, "its network has one too, which is not told");
  assert.deepEqual(await grid.machines.list(), ["machines"]);
  const [found] = await grid.machines.getObj("machines");
  assert.equal(found.status, "ok");
  assert.equal(found.nodeId, node.id);
  assert.match(found.interfaces[0].ip, /^10\.20\./);
  assert.equal(found.mounts[0].mountPoint, "/data");
  const mine = await until(() => grid.contracts.listMyContracts(), mine => mine.nodeContracts.length === 2);
  assert.deepEqual(mine.nodeContracts.map(one => one.nodeID), [node.id, node.id]);
  await grid.machines.delete({ name: "machines" });
  assert.deepEqual(await grid.machines.list(), []);
  await until(() => grid.contracts.listMyContracts(), mine => mine.nodeContracts.length === 0);
});

test("a ZDB comes, is read and goes", { timeout }, async () => {
  const zdb = { name: "db", node_id: node.id, mode: "user", disk_size: 1, publicNamespace: false, password: "secret123" };
  const { contracts } = await grid.zdbs.deploy({ name: "zdbs", zdbs: [zdb] });
  assert.equal(contracts.created.length, 1);
  const [found] = await grid.zdbs.getObj("zdbs");
  assert.equal(found.status, "ok");
  assert.equal(found.resData.Port, 9900);
  await grid.zdbs.delete({ name: "zdbs" });
  assert.deepEqual(await grid.zdbs.list(), []);
});
