// What the tests share: where the grid is, and somebody new on it.
"use strict";

const fs = require("node:fs");
const { Keyring } = require("@polkadot/api");
const { cryptoWaitReady, mnemonicGenerate } = require("@polkadot/util-crypto");
const { Client } = require("@threefold/tfchain_client");

const network = JSON.parse(fs.readFileSync(process.env.NETWORK, "utf8"));
const chainUrl = network.substrate_urls[0];
/** A node that runs deployments, and its twin. */
const node = { id: Number(process.env.NODE_ID), twin: Number(process.env.NODE_TWIN) };

/** A new account with some money. */
async function somebody() {
  await cryptoWaitReady();
  const mnemonic = mnemonicGenerate();
  const pair = new Keyring({ type: "sr25519" }).addFromMnemonic(mnemonic);
  const response = await fetch(network.activation_urls[0], {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ substrateAccountID: pair.address }),
  });
  if (!response.ok) throw new Error(`activation: ${response.status} ${await response.text()}`);
  return { mnemonic, pair, address: pair.address };
}

/** A new account with a twin, and the chain's client for it. */
async function member() {
  const person = await somebody();
  const chain = new Client({ url: chainUrl, mnemonicOrSecret: person.mnemonic });
  await chain.connect();
  const terms = { documentLink: "https://example.com/terms", documentHash: "0123456789abcdef" };
  await (await chain.termsAndConditions.accept(terms)).apply();
  const twin = await (await chain.twins.create({ relay: "127.0.0.1" })).apply();
  return { ...person, chain, twin };
}

/** Asks again until the answer is one that was waited for, for 20 seconds at most. */
async function until(ask, isIt) {
  const end = Date.now() + 20_000;
  for (;;) {
    const answer = await ask();
    if (isIt(answer)) return answer;
    if (Date.now() > end) throw new Error(`waited in vain; at last: ${JSON.stringify(answer)}`);
    await new Promise(resolve => setTimeout(resolve, 200));
  }
}

module.exports = { network, chainUrl, node, somebody, member, until };
