//! TFChain, as a node and a deployer see it.
