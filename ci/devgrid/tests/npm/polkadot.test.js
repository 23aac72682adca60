// @polkadot/api: metadata, blocks and storage are read, and transactions watched to their end.
"use strict";

const assert = require("node:assert");
const test = require("node:test");
const { ApiPromise, WsProvider } = require("@polkadot/api");
const { network, chainUrl, somebody } = require("./common");

const TFT = 10_000_000n;
let api;

test.before(async () => {
  api = await ApiPromise.create({ provider: new WsProvider(chainUrl), noInitWarn: true });
});
test.after(() => api.disconnect());

/** Sends a call, and says what was heard of it. */
function send(call, pair) {
  return new Promise((resolve, reject) => {
    const heard = { statuses: [], events: [], blocks: [] };
    const listen = result => {
      heard.statuses.push(result.status.type);
      if (result.isError || result.internalError || result.dispatchError) {
        reject(result.internalError ?? new Error(`${result.status} ${result.dispatchError}`));
      }
      if (result.status.isInBlock) {
        heard.blocks.push(result.status.asInBlock);
        heard.events = result.events.map(({ event }) => `${event.section}.${event.method}`);
      }
      if (result.status.isFinalized) resolve(heard);
    };
    call.signAndSend(pair, listen).catch(reject);
  });
}

async function free(address) {
  return (await api.query.system.account(address)).data.free.toBigInt();
}

test("the chain says which it is", async () => {
  assert.equal(api.genesisHash.toHex(), network.genesis_hash);
  assert.equal(api.runtimeVersion.specName.toString(), "substrate-threefold");
  assert.equal(api.runtimeVersion.specVersion.toNumber(), 152);
  assert.equal(api.registry.chainTokens[0], "TFT");
  assert.ok(api.tx.smartContractModule.createNodeContract);
  assert.equal(api.tx.balances.transfer.callIndex.toString(), "20,7");
});

test("a transfer is seen in its block, and then final", async () => {
  const [from, to] = [await somebody(), await somebody()];
  const before = await free(to.address);
  for (const name of ["transfer", "transferKeepAlive", "transferAllowDeath"]) {
    const call = api.tx.balances[name](to.address, TFT);
    const { partialFee } = await call.paymentInfo(from.pair);
    assert.ok(partialFee.toBigInt() > 0n, name);
    const heard = await send(call, from.pair);
    assert.deepEqual(heard.statuses, ["Ready", "InBlock", "Finalized"], name);
    assert.ok(heard.events.includes("balances.Transfer"), `${name}: ${heard.events}`);
    assert.ok(heard.events.includes("system.ExtrinsicSuccess"), name);
    const block = await api.rpc.chain.getBlock(heard.blocks[0]);
    const methods = block.block.extrinsics.map(one => one.method.method);
    assert.ok(methods.includes(name), `${name}: ${methods}`);
    const root = block.block.header.hash.toHex();
    assert.equal(root, heard.blocks[0].toHex(), "the hash of a block is that of its header");
  }
  assert.equal(await free(to.address), before + 3n * TFT);
});

test("a batch of older transfers, and one that fails", async () => {
  const [from, to] = [await somebody(), await somebody()];
  const before = await free(to.address);
  const transfers = [1n, 2n].map(tft => api.tx.balances.transfer(to.address, tft * TFT));
  const heard = await send(api.tx.utility.batchAll(transfers), from.pair);
  assert.ok(heard.events.includes("utility.BatchCompleted"), `${heard.events}`);
  assert.equal(await free(to.address), before + 3n * TFT);
  const tooMuch = api.tx.balances.transfer(to.address, 10n ** 20n);
  await assert.rejects(send(tooMuch, from.pair), /Underflow/);
});

test("heads, the past, and keys are read", async () => {
  const [from, to] = [await somebody(), await somebody()];
  const past = await api.rpc.chain.getBlockHash();
  const then = await free(to.address);
  const heads = [];
  const stop = await api.rpc.chain.subscribeNewHeads(head => heads.push(head.number.toNumber()));
  await send(api.tx.balances.transfer(to.address, TFT), from.pair);
  stop();
  assert.ok(heads.length > 1 && heads.every((head, at) => at === 0 || head > heads[at - 1]), `${heads}`);
  const at = await api.at(past);
  assert.equal((await at.query.system.account(to.address)).data.free.toBigInt(), then);
  const keys = await api.query.system.account.keysPaged({ args: [], pageSize: 3 });
  assert.equal(keys.length, 3);
  assert.ok((await api.query.tfgridModule.pricingPolicies.entries()).length > 0);
});
